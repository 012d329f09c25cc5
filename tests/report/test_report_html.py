"""report.html: the right figures, nothing from outside, nothing that runs."""

import base64
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from kood.report import aggregate, print_cell, write
from kood.report.html import SHEET_BYTES, figures_of, page

METRICS = ("auroc", "aupr_in", "aupr_out", "fpr_at_ood_tpr", "fpr_at_id_tpr")
VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Collects tables, tags and attributes, and checks that the tags nest."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tables, self.tags, self.attributes, self.open, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
        if self.open and {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self):
        return " ".join("".join(self.words).split())


def row_of(table, name):
    return next(row for row in table if row[0] == name)


def sheet(path, width=64, height=32, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_the_tables_hold_the_figures(cell):
    reader = Reader(page(cell))
    headline, scores, by_dataset, stages = reader.tables
    of_msp = cell["scores"]["msp"]
    for name in cell["datasets"]:
        expected = [f"{100 * of_msp[name][metric]:.1f}" for metric in METRICS]
        assert row_of(headline, name) == [name, str(cell["datasets"][name]["images"]), *expected]
    means = [row for row in headline if row[0] == "mean"]
    for row, kind in zip(means, ("near", "far"), strict=True):
        assert row[2:] == [f"{100 * of_msp[kind][metric]:.1f}" for metric in METRICS]
    for score, figures in cell["scores"].items():
        row = row_of(scores, score + (" ◂" if score == "msp" else ""))
        values = [figures[kind][m] for m in ("auroc", "fpr_at_ood_tpr") for kind in ("near", "far")]
        assert row[1:] == [f"{100 * value:.1f}" for value in [*values, cell["validation"][score]]]
        assert row_of(by_dataset, score)[1:] == [f"{100 * figures[name]['auroc']:.1f}" for name in cell["datasets"]]
    assert row_of(stages, "diffusion") == ["diffusion", "13 s", "earlier run, kept"]
    assert row_of(stages, "classifier") == ["classifier", "2 min 5 s", "this run"]


def test_the_stages_that_sampled_say_how_fast(cell):
    cell["stages"]["label_mixup"] = {"seconds": 3.0, "cached": False, "images_per_second": 412.3, "drop_rate": 0.25}
    cell["stages"]["pure"] = {"seconds": 3.0, "cached": False, "images_per_second": 40.0, "drop_rate": 0.0}
    stages = Reader(page(cell)).tables[-1]
    assert row_of(stages, "label_mixup")[2] == "this run, 412 images/s, 25.0% dropped"
    assert row_of(stages, "pure")[2] == "this run, 40 images/s" and row_of(stages, "classifier")[2] == "this run"


def test_how_long_and_in_which_precision_a_network_was_trained(cell):
    cell["stages"]["diffusion"] |= {"steps": 12345, "precision": "mixed_bfloat16"}
    *_, stages = Reader(page(cell)).tables
    expected = ["diffusion", "13 s", "earlier run, kept, 12,345 steps, mixed_bfloat16"]
    assert row_of(stages, "diffusion") == expected


def test_the_classifier_without_outliers_stands_beside_the_exposed_one(cell):
    assert "With and without exposure" not in Reader(page(cell)).text
    cell["baseline"] = {
        "validation_auroc": 0.921, "validation_accuracy": 0.943, "exposed_validation_auroc": 0.989,
        "exposed_validation_accuracy": 0.931, "score": "msp", "exposed_score": "knn", "sets": ["patch<b>"],
        "images": 87, "auroc_interval": [0.031, 0.105], "accuracy_interval": [-0.034, 0.011],
    }  # fmt: skip
    read = Reader(page(cell))
    table = next(table for table in read.tables if table[-1][0] == "difference")
    assert table[1:] == [
        ["this run", "98.9", "knn", "93.1"],
        ["without exposure", "92.1", "msp", "94.3"],
        ["difference", "+6.8 [+3.1, +10.5]", "", "-1.2 [-3.4, +1.1]"],
    ]
    assert "on 87 validation images, against patch<b>" in read.text


def test_the_page_says_what_the_run_is(cell):
    cell.update(quick=True, warnings=["mind the gap"])
    text = Reader(page(cell)).text
    for part in ("digits", "seed 0", "tensorflow", "CPU", "kood 0.1.0", "3.15.1", "above 0.4124", "109 calibration"):
        assert part in text
    assert text.index("figures mean nothing") < text.index("mind the gap") < text.index("AUROC")
    cell["quick"] = False
    assert "figures mean nothing" not in page(cell)


def test_notes_stand_under_the_warnings_and_are_none(cell, matrix):
    cell.update(warnings=["mind the gap"], notes=["3 folders <passed> over"])
    text = Reader(page(cell)).text
    assert text.index("mind the gap") < text.index("3 folders <passed> over") < text.index("AUROC")
    cell["warnings"] = []
    assert "Warnings" not in Reader(page(cell)).text
    for number, one in enumerate(matrix["cells"][:2]):
        one["notes"] = [f"{number + 3} folders passed over"]
    assert "3 to 4 folders passed over (2 of 18 cells)" in Reader(page(matrix)).text


def test_the_matrix_page(matrix, histories):
    matrix["cells"][4]["warnings"] = ["odd"]
    reader = Reader(page(matrix, histories=histories))
    table = reader.tables[0]
    for row in aggregate(matrix["cells"]):
        found = next(one for one in table if one[:2] == [row["cell"]["head.name"], row["cell"]["outliers.kind"]])
        figures = [row["id"]["accuracy"], *(row[k][m] for k in ("near", "far") for m in ("auroc", "fpr_at_ood_tpr"))]
        assert found[2:] == ["3", *(f"{100 * one['mean']:.1f} ± {100 * one['std']:.1f}" for one in figures)]
    assert reader.tags.count("summary") == 2 * len(matrix["cells"])
    for part in ("seeds 0, 1, 2", "odd (1 of 18 cells)", "head sphereface, outliers noise, seed 1", "out of memory"):
        assert part in reader.text


def test_the_whole_page_is_small_and_stands_alone(tmp_path, cell, id_and_ood_scores, histories):
    rng = np.random.default_rng(0)
    big = {name: rng.normal(size=26_000) for name in id_and_ood_scores}
    long = {stage: {f"term {i}": rng.uniform(size=20_000) for i in range(4)} for stage in ("diffusion", "classifier")}
    write(
        path := tmp_path / "report.html",
        cell,
        scores=big,
        histories=long,
        contact_sheet=sheet(tmp_path / "sheet.png", 1500, 1200),
        outlier_notes=["mixed in pairs"],
    )
    assert path.stat().st_size < 1_500_000
    text = path.read_text(encoding="utf-8")
    reader = Reader(text)
    assert not {"script", "link", "iframe", "object", "form"} & set(reader.tags)
    for tag, name, value in reader.attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            assert (tag, value.split(",")[0]) in {("img", f"data:image/{kind};base64") for kind in ("svg+xml", "jpeg")}
    assert "http" not in re.sub(r'src="data:[^"]*"|http-equiv', "", text)
    assert "url(" not in text
    assert "@import" not in text
    images = [attribute for attribute in reader.attributes if attribute[0] == "img"]
    assert all(value for _, name, value in images if name == "alt")
    assert "mixed in pairs" in reader.text


@pytest.mark.parametrize(("width", "kind"), [(64, "png"), (1500, "jpeg")])
def test_contact_sheets(tmp_path, cell, width, kind):
    path = sheet(tmp_path / "sheet.png", width, width)
    reader = Reader(page(cell, contact_sheet=path))
    found = {name: value for tag, name, value in reader.attributes if tag == "img"}
    start, encoded = found["src"].split(",")
    content = base64.b64decode(encoded)
    assert start == f"data:image/{kind};base64" and len(content) <= SHEET_BYTES
    if kind == "png":  # Enlarged by a whole factor.
        assert content == path.read_bytes() and found["style"] == "width:704px"
    else:
        assert Image.open(io.BytesIO(content)).width >= 600


def test_a_contact_sheet_must_be_an_image(tmp_path, cell):
    path = tmp_path / "sheet.png"
    path.write_bytes(b"<script>")
    with pytest.raises(UnidentifiedImageError):
        page(cell, contact_sheet=path)
    with pytest.raises(FileNotFoundError):
        page(cell, contact_sheet=tmp_path / "none.png")


def test_missing_figures_are_dashes(cell):
    cell["scores"]["msp"]["letters"] = {"auroc": math.nan, "aupr_in": None}
    cell["scores"]["msp"]["near"] = {}
    cell["scores"]["energy"] = {}
    cell["id"] = {"accuracy": None}
    for key in ("validation", "threshold", "stages", "environment", "warnings"):
        del cell[key]
    reader = Reader(page(cell))
    assert row_of(reader.tables[0], "letters")[2:] == ["—"] * 5
    assert not re.search(r"\b(nan|None)\b", reader.text)


NASTY = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><b>",
    "' onmouseover='x",
    "&amp;lt;",
    "a\x00b\x1b[31m",
    "\udcff\ud800",
    "\u202etxet",
    "[red]",
)


def pages_named(name, new_cell, contact_sheet):
    """The page of a run and of a matrix in which everything a user can name has this name."""
    cell = new_cell(0, **{name: name})
    cell.update(recipe=name, backend=name, kood=name, warnings=[name], headline_score=name, seeds=[name])
    cell["datasets"] = {name: {"kind": "near", "images": name}, "other": {"kind": "far", "images": 1}}
    cell["scores"] = {name: {name: {"auroc": 0.5}, "near": {"auroc": 0.5}}}
    cell["validation"] = {name: 0.5}
    cell["threshold"].update(score=name, calibration_images=name)
    cell["stages"] = {name: {"seconds": 1.0, "cached": True, "precision": name}}
    cell["environment"] = {name: name, "device": name}
    report = {"recipe": name, "backend": name, "cells": [cell], "failed": [{"cell": {name: name}, "error": name}]}
    options = {"histories": {name: {name: [1.0]}}, "contact_sheet": contact_sheet, "outlier_notes": [name]}
    drawn = figures_of(cell, {"id": np.arange(3.0), name: np.arange(3.0)})
    return page(cell, drawn=drawn, **options), page(report, **options)


@pytest.fixture(scope="module")
def harmless():
    return []


@pytest.mark.parametrize("name", NASTY)
def test_no_name_becomes_markup(tmp_path, new_cell, name, harmless):
    contact_sheet = sheet(tmp_path / "sheet.png")
    hostile = pages_named(name, new_cell, contact_sheet)
    harmless[:] = harmless or pages_named("harmless", new_cell, contact_sheet)
    for text, expected in zip(hostile, harmless, strict=True):
        text.encode("utf-8")
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", text)
        reader, plain = Reader(text), Reader(expected)
        assert reader.tags == plain.tags
        assert [(tag, key) for tag, key, _ in reader.attributes] == [(tag, key) for tag, key, _ in plain.attributes]
        if name.isprintable():
            assert reader.text.count(name) == plain.text.count("harmless")


def test_the_same_results_give_the_same_page(cell, id_and_ood_scores, histories):
    one, other = (page(cell, drawn=figures_of(cell, id_and_ood_scores), histories=histories) for _ in range(2))
    assert one == other


def test_held_out_classes_stand_first_where_there_is_no_near_set(cell):
    fold = {
        "classes": ["3"], "images": 9, "score": "msp", "auroc": 0.81, "fpr_at_ood_tpr": 0.375, "fpr_at_id_tpr": 0.5,
        "auroc_interval": [0.7, 0.9], "accepted": 0.9, "accepted_interval": [0.8, 1.0], "accuracy": 0.9,
    }  # fmt: skip
    mean = {
        metric: {"mean": fold[metric], "std": None, "n": 1, "interval": None}
        for metric in ("auroc", "fpr_at_ood_tpr", "fpr_at_id_tpr", "accepted", "accuracy")
    }
    held = {**cell, "hold_out": {"folds": [fold], "mean": mean, "scores": {"msp": 0.81}, "left_out": []}}
    assert "Near-OOD AUROC" in Reader(page(held)).text and "Held-out AUROC" not in Reader(page(held)).text
    for of_score in held["scores"].values():
        del of_score["near"], of_score["digits 6-9"], of_score["letters"]
    held["datasets"] = {name: of for name, of in cell["datasets"].items() if of["kind"] == "far"}
    text = Reader(page(held)).text.replace(" ", "")
    assert "Held-outAUROC81.0%Held-outFPR@95(OODTPR)37.5%" in text and "Near-OODAUROC" not in text


def test_without_ood_sets_nothing_empty_stands_anywhere(cell, id_and_ood_scores, capture):
    for of_score in cell["scores"].values():
        of_score.clear()
    cell["validation"] = dict.fromkeys(cell["scores"], 0.7)
    cell["datasets"] = {}
    drawn = figures_of(cell, {"id": id_and_ood_scores["id"]})
    assert drawn.keys() == {"scores"}
    told = " ".join(capture(lambda console: print_cell(console, cell)).split())
    text = Reader(page(cell, drawn=drawn)).text
    for shown in (told, text):
        assert "No out-of-distribution set was measured" in shown and "70.0" in shown
        assert not re.search("FPR@95|AUPR|OOD AUROC|far sets", shown)
        assert "ID accuracy" in shown
