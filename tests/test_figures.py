"""The tables of the documentation are those of the kept reports."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("figures", ROOT / "scripts" / "figures.py")
figures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(figures)

MARKS = (figures.MARKED, figures.IN_TEXT)
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if any(marks.search(page.read_text("utf-8")) for marks in MARKS)
]


def test_each_kept_report_is_shown():
    shown = {
        mark[2].removesuffix("_short")
        for page in PAGES
        for marks in MARKS
        for mark in marks.finditer(page.read_text("utf-8"))
    }
    assert shown == {file.stem for file in figures.KEPT.glob("*.json")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_are_those_of_the_kept_reports(page):
    assert figures.written(page.read_text("utf-8")) == page.read_text("utf-8")


def cell(seed, arm, accuracy, folds):
    return {
        "cell": {"seed": seed, "head": "softmax", "arm": arm}, "id": {"accuracy": accuracy}, "headline_score": "gen",
        "scores": {"gen": {"blobs": {"auroc": 0.5, "fpr_at_ood_tpr": 0.9}, "tin": {"auroc": 0.8, "fpr_at_ood_tpr": 0.4},
                           "dogs": {"auroc": 0.6, "fpr_at_ood_tpr": 0.6}}},
        "datasets": {"blobs": {"kind": "far"}, "tin": {"kind": "near"}, "dogs": {"kind": "near"}},
        "hold_out": {"folds": [{"auroc": one} for one in folds]},
    }  # fmt: skip


def test_what_a_table_says():
    """Two seeds and two folds, written out: differences are paired by seed."""
    report = {
        "recipe": "photographs_table", "kood": "0", "environment": {},
        "cells": [cell("0", "none", 0.8, [0.6, 0.7]), cell("0", "noise", 0.9, [0.65, 0.7]),
                  cell("1", "none", 0.7, [0.7, 0.9]), cell("1", "noise", 0.7, [0.72, 0.87])],
    }  # fmt: skip
    kept = json.loads(json.dumps(figures.keep(report)))
    assert kept["cells"][0]["near"] == {"auroc": 0.7, "fpr_at_ood_tpr": 0.5}
    _, _, none, noise = figures.markdown(figures.photographs_table(kept))
    assert none == "| softmax | none | 2 | 75.0 | 65.0 | 80.0 | 72.5 |  |  |"
    assert noise == "|  | noise | 2 | 80.0 | 68.5 | 78.5 | 73.5 | +1.0 | 1 |"


def test_what_the_table_of_ablations_says():
    """Two seeds, written out: each arm against none of its seed, and how far of the way to real outliers it goes."""

    def one(seed, arm, accuracy, near, far):
        figures_of = {"near": {"auroc": near, "fpr_at_ood_tpr": 0.5}, "far": {"auroc": far}}
        return {"cell": {"seed": seed, "arm": arm}, "accuracy": accuracy, "score": "knn", **figures_of}

    cells = [
        one("2", "none", 0.60, 0.70, 0.90),
        one("2", "rotation", 0.61, 0.72, 0.95),
        one("2", "real outliers", 0.60, 0.78, 0.90),
        one("3", "none", 0.62, 0.74, 0.94),
        one("3", "rotation", 0.60, 0.74, 0.95),
        one("3", "real outliers", 0.60, 0.78, 0.90),
    ]
    table = [line.replace("\u00a0", " ") for line in figures.markdown(figures.ablations_16px({"cells": cells}))]
    _, _, none, rotation, real = table
    assert none == "| none | 61.0 ± 1.4 | 72.0 ± 2.8 | 50.0 ± 0.0 | 92.0 ± 2.8 |  |  |  |  |"
    assert rotation.startswith("| rotation | 60.5 ± 0.7 | 73.0 ± 1.4 | 50.0 ± 0.0 | 95.0 ± 0.0 | +1.0 ")
    # Student's quantile of two seeds is 12.7, the standard error half of what their differences lie apart.
    assert rotation.endswith(
        "| +1.0 [-11.7, +13.7], 1 of 2 | +3.0 [-22.4, +28.4], 2 of 2 | -0.5 [-19.6, +18.6], 1 of 2 | 17% |"
    )
    assert real.endswith(
        "| +6.0 [-19.4, +31.4], 2 of 2 | -2.0 [-27.4, +23.4], 0 of 2 | -1.0 [-13.7, +11.7], 0 of 2 | 100% |"
    )


def test_what_a_figure_of_a_sentence_says():
    """Two seeds, written out; a row of two settings is named by both."""
    cells = [
        {"cell": {"seed": seed, "head": "cosface", "arm": arm}, "accuracy": accuracy, "folds": folds}
        for seed, arm, accuracy, folds in (
            ("0", "none", 0.80, [0.6, 0.8]), ("1", "none", 0.82, [0.7, 0.7]),
            ("0", "noise", 0.80, [0.7, 0.8]), ("1", "noise", 0.82, [0.7, 0.74]),
        )
    ]  # fmt: skip
    kept = {"cells": cells}
    assert figures.in_text(kept, " ID accuracy; cosface, none") == "81.0"
    assert figures.in_text(kept, " held-out AUROC; cosface, noise") == "73.5"
    # 5 and 2 points: Student's quantile of two seeds is 12.71, the standard error half of what they lie apart.
    assert figures.in_text(kept, " held-out AUROC; cosface, noise; cosface, none") == "+3.5 [-15.6, +22.6]"
    page = figures.IN_TEXT.sub(lambda mark: f"{mark[1]}{mark[2]}{mark[4]}", 'a <span title="one; x; y">9</span> b')
    assert page == 'a <span title="one; x; y">one</span> b'


def test_what_a_benchmark_printed_is_shown():
    kept = {"rows": [{"row": "torch", "train": 300.0, "bare": 400.0, "sample": 90.0, "machine": "a CPU"},
                     {"row": "diffusers NCHW", "train": 200.0, "sample": 100.0, "passes": 0.1234}]}  # fmt: skip
    _, _, torch, diffusers = figures.markdown(figures.unet_throughput(kept))
    assert torch == "| kood, torch | 300 | 400 | 0.75 | 1.50 | 90 | 0.90 |"
    assert diffusers == "| diffusers NCHW | 200 |  |  |  | 100 |  |"
    said = [figures.in_text(kept, mark) for mark in ("train; torch", "machine; torch", "passes; diffusers NCHW")]
    assert said == ["300", "a CPU", "0.12"]
    with pytest.raises(ValueError, match="not enough values"):
        figures.in_text(kept, "train; jax")
