"""`kood compare` and the paired differences of a table, on made-up runs."""

import csv
import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from kood import metrics, report
from kood.compare import compare_runs
from kood.errors import UserError
from kood.intervals import auroc_interval, paired_difference
from kood.report import print_matrix
from kood.report.comparable import ALIKE, unlike

SETS = {"cats": ("near", 40), "dogs": ("near", 30), "static": ("far", 25)}


def rng(seed=0):
    return np.random.default_rng(seed)


def cell(folder, labels=None, seed=0, lift=1.0, score="msp", sets=None, test="t"):
    """A cell whose scores of out-of-distribution images lie `lift` above those of the others."""
    sets = SETS if sets is None else sets
    draw = rng([seed, 5])
    values = {"id": draw.normal(size=60)} | {name: draw.normal(lift, size=n) for name, (_, n) in sets.items()}
    key = f"evaluate-{abs(hash((str(labels), seed, lift, score))):x}"
    (folder / "stages" / key).mkdir(parents=True, exist_ok=True)
    np.savez(folder / "stages" / key / "scores.npz", **{f"{name}/{score}": v for name, v in values.items()})
    figures = {
        name: metrics.summary(np.r_[values["id"], values[name]], np.repeat([False, True], [60, len(values[name])]))
        for name in sets
    }
    for kind in ("near", "far"):
        of_kind = [figures[name] for name, (its, _) in sets.items() if its == kind]
        if of_kind:
            figures[kind] = {metric: float(np.mean([one[metric] for one in of_kind])) for metric in of_kind[0]}
    return {
        "recipe": folder.name, "cell": {**(labels or {}), "seed": str(seed)}, "seeds": [seed], "kood": "0.1.0",
        "id": {"accuracy": 0.9 + seed / 100}, "scores": {score: figures}, "headline_score": score,
        "datasets": {name: {"kind": kind, "images": n, "sha256": name} for name, (kind, n) in sets.items()},
        "id_sets": {"test": {"images": 60, "sha256": test}},
        "scores_file": f"stages/{key}/scores.npz",
    }  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    """saved("name", [cells' settings]) -> the folder of such a run."""

    def make(name, *settings, **more):
        folder = tmp_path / name
        cells = [cell(folder, **one) for one in settings]
        whole = cells[0] if len(cells) == 1 else {"recipe": name, "cells": cells, "table": report.aggregate(cells)}
        (folder / "report.json").write_text(json.dumps({**whole, **more}))
        return folder

    return make


FOLDS = (("a", "b"), ("c",), ("d", "e"))


def held_out(folder, seed, lift, score="msp", others=()):
    """What three folds say of a classifier; `others` are scores beside the headline score."""
    folds = []
    for number, classes in enumerate(FOLDS):
        draw = rng([seed, number, 7])
        values = {"id": draw.normal(size=40 + number), "held_out": draw.normal(lift + number, size=30)}
        file = f"stages/fold-{seed}-{lift}-{score}-{number}/scores.npz"
        (folder / file).parent.mkdir(parents=True)
        made = {f"{name}/{score}": of for name, of in values.items()}
        np.savez(folder / file, **made, **{f"{name}/{more}": -of for more in others for name, of in values.items()})
        folds.append({
            "classes": list(classes), "score": score, **report.fold_figures(values), "accepted": 0.9, "accuracy": 0.8,
            "scores_file": file, "sha256": {"id": f"id {number}", "held_out": f"out {number}"},
        })  # fmt: skip
    return {"folds": folds, "mean": report.fold_means(folds), "scores": {}, "left_out": []}


def with_folds(folder, *lifts, **more):
    """A run of three seeds, or of as many as there are lifts, whose cells held classes out."""
    cells = [{**cell(folder, seed=s), "hold_out": held_out(folder, s, lift, **more)} for s, lift in enumerate(lifts)]
    (folder / "report.json").write_text(json.dumps(cells[0] if len(cells) == 1 else {"cells": cells}))
    return folder


def quietly(*folders, **options):
    out = io.StringIO()
    rows = compare_runs(folders, console=Console(file=out, width=160), **options)
    return rows, out.getvalue()


def seeds(labels=None, lift=1.0, count=3, **more):
    return [{"labels": labels, "seed": seed, "lift": lift, **more} for seed in range(count)]


def test_rows_are_compared_with_the_first_over_seeds_and_images(saved):
    one, other = saved("one", *seeds()), saved("other", *seeds(lift=3.0))
    rows, text = quietly(one, other)
    assert rows[0]["difference"] is None
    apart = rows[1]["difference"]
    first, second = ([json.loads((f / "report.json").read_text())["cells"][s] for s in range(3)] for f in (one, other))
    images = []
    for a, b in zip(first, second, strict=True):
        arrays = [np.load(folder / c["scores_file"]) for folder, c in ((one, a), (other, b))]
        placed = [metrics.placements(f["id/msp"], [f["cats/msp"], f["dogs/msp"]]) for f in arrays]
        images.append((placed[1][0] - placed[0][0], [y - x for x, y in zip(placed[0][1], placed[1][1], strict=True)]))
    near = [[c["scores"]["msp"]["near"]["auroc"] for c in cells] for cells in (first, second)]
    expected = paired_difference(*near, images)
    found = apart["near"]["auroc"]
    assert (found["mean"], found["low"], found["high"]) == (expected.mean, expected.low, expected.high)
    assert found["significant"] and found["seeds"] == 3 and found["positive"] == 3
    assert apart["id"]["accuracy"]["mean"] == 0.0 and not apart["id"]["accuracy"]["significant"]
    assert f"{100 * expected.mean:+.1f}" in text and "‡" in text and "one" in text


def test_nothing_is_significant_of_images_in_groups(saved):
    """The interval counts them as independent, and is too narrow: equally good arms would be marked."""
    one, other = saved("one", *seeds()), saved("other", *seeds(lift=3.0))
    for folder in (one, other):
        found = json.loads((folder / "report.json").read_text())
        for run in found["cells"]:
            run["groups"] = {"test": {"images": 60, "groups": 6}}
        (folder / "report.json").write_text(json.dumps(found))
    rows, text = quietly(one, other)
    apart = rows[1]["difference"]
    assert apart["near"]["auroc"]["low"] > 0 and not any(
        apart[kind][figure]["significant"] for kind, figure in (("near", "auroc"), ("far", "auroc"), ("id", "accuracy"))
    )
    assert " ‡ " not in text and "one, other: The test images stand in groups and are counted as independent" in text


def test_sets_in_another_order_are_paired_with_themselves(saved):
    one, same, turned = saved("one", *seeds()), saved("same", *seeds(lift=2.0)), saved("turned", *seeds(lift=2.0))
    whole = json.loads((turned / "report.json").read_text())
    for each in whole["cells"]:
        each["datasets"] = dict(reversed(each["datasets"].items()))
    (turned / "report.json").write_text(json.dumps(whole))
    rows, _ = quietly(one, same, turned)
    assert rows[1]["difference"]["near"] == rows[2]["difference"]["near"]


def test_the_accuracy_of_the_same_test_images_is_no_surer_for_more_seeds(saved):
    """One image of 60 that the other run loses under each of three seeds."""
    one, other = saved("one", *seeds()), saved("other", *seeds(lift=3.0))
    for folder, lost in ((one, 0), (other, 1)):
        told = json.loads((folder / "report.json").read_text())
        for each in told["cells"]:
            each["id"]["accuracy"] -= lost / 60
            right = np.arange(60) >= 5 + lost
            np.savez((folder / each["scores_file"]).with_name("details.npz"), correct=right)
        (folder / "report.json").write_text(json.dumps(told))
    found = quietly(one, other)[0][1]["difference"]["id"]["accuracy"]
    lost = (np.arange(60) >= 6).astype(float) - (np.arange(60) >= 5)
    half = scipy.stats.t.ppf(0.975, 59) * lost.std(ddof=1) / math.sqrt(60)
    assert [found["low"], found["high"]] == [pytest.approx(-1 / 60 - half), pytest.approx(-1 / 60 + half)]
    assert not found["significant"]
    np.savez((other / each["scores_file"]).with_name("details.npz"), correct=right[1:])
    found = quietly(one, other)[0][1]["difference"]["id"]["accuracy"]  # Of the seeds alone, which all differ alike.
    assert (found["low"], found["high"], found["significant"]) == (None, None, False)


def test_a_set_of_one_image_leaves_the_others_their_images(saved):
    sets = {**SETS, "single": ("far", 1)}
    one, other = saved("one", *seeds(sets=sets)), saved("other", *seeds(lift=3.0, sets=sets))
    whole = saved("whole one", *seeds()), saved("whole other", *seeds(lift=3.0))
    with_it, without = (quietly(*pair)[0][1]["difference"]["near"]["auroc"] for pair in ((one, other), whole))
    assert with_it == without


def test_a_baseline_is_named_by_its_row(saved):
    run = saved("run", *seeds({"outliers": "none"}), *seeds({"outliers": "noise"}, lift=1.2))
    other = saved("noise", *seeds(lift=2.0))
    rows, _ = quietly(run, other, baseline="outliers noise")
    assert [row["difference"] is None for row in rows] == [False, True, False]
    assert rows[0]["difference"]["near"]["auroc"]["mean"] < 0 < rows[2]["difference"]["near"]["auroc"]["mean"]
    assert quietly(run, other, baseline="noise")[0][2]["difference"] is None  # A whole name comes before a part.
    for wanted, message in (("nothing", "no row is called so; the rows: run: outliers none"), ("outliers", "2 rows")):
        with pytest.raises(UserError, match=message):
            quietly(run, other, baseline=wanted)


def test_the_command_of_the_page_names_one_row(saved):
    page = (Path(__file__).parents[1] / "docs" / "howto" / "compare.md").read_text(encoding="utf-8")
    first = re.search(r"^\$ (kood compare (?:.*\\\n)*.*)$", page, re.MULTILINE)[1]
    _, _, *folders, option, baseline = shlex.split(first.replace("\\\n", ""))
    assert folders == ["saved/digits_controls", "saved/digits_table"] and option == "--baseline"
    kinds = ("none", "noise")
    controls = saved("digits_controls", *[one for kind in kinds for one in seeds({"outliers": kind})])
    heads = [{"head": head, "outliers": kind} for head in ("softmax", "arcface") for kind in kinds]
    rows, _ = quietly(controls, saved("digits_table", *[one for row in heads for one in seeds(row)]), baseline=baseline)
    assert [row["difference"] is None for row in rows] == [True] + [False] * 5


def test_only_seeds_that_both_have_are_paired(saved):
    one, other = saved("one", *seeds(count=2)), saved("other", *seeds(lift=2.0, count=5))
    apart = quietly(one, other)[0][1]["difference"]["near"]["auroc"]
    assert apart["seeds"] == 2 and not apart["significant"]


@pytest.mark.parametrize(("of_base", "of_other", "pairs"), [((0, 1), (0,), 1), ((0, 1, 2), (2, 0, 5), 2)])
def test_a_difference_of_fewer_seeds_than_a_row_has_says_how_many(saved, tmp_path, of_base, of_other, pairs):
    arms = (("base", 1.0, of_base), ("same", 2.0, of_base), ("other", 2.0, of_other))
    runs = [saved(name, *({"seed": seed, "lift": lift} for seed in own)) for name, lift, own in arms]
    told, to = quietly(*runs, to=tmp_path / "out")[1].split("Against the baseline")[1], tmp_path / "out"
    lines = {line.split()[0]: line for line in told.splitlines() if line.startswith(("same ", "other "))}
    assert [lines[name].count(f"(n={pairs})") for name in ("same", "other")] == [0, 3]
    assert "with one seed, over images alone" in " ".join(told.split())
    table = list(csv.DictReader((to / "compare.csv").open()))
    for figure in ("id_accuracy", "near_auroc", "far_auroc"):
        assert [row[f"{figure}_difference_seeds"] for row in table] == ["", f"{len(of_base)}", f"{pairs}"]
    assert all(f"(n={pairs})" in (to / f"compare.{ending}").read_text() for ending in ("md", "tex"))


def test_without_scores_intervals_are_over_seeds_alone(saved, tmp_path):
    one, other = saved("one", *seeds()), saved("other", *seeds(lift=2.0))
    with_images = quietly(one, other)[0][1]["difference"]["near"]["auroc"]
    inside = json.loads((other / "report.json").read_text())
    for scores_file in ("../one/" + inside["cells"][0]["scores_file"], "/etc/passwd", "stages", None, 7, "none.npz"):
        inside["cells"][0]["scores_file"] = scores_file
        (other / "report.json").write_text(json.dumps(inside))
        found = quietly(one, other)[0][1]["difference"]["near"]["auroc"]
        assert found["mean"] == with_images["mean"] and found["low"] != with_images["low"]


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip", "object", "short", "nan", "integers", "deep"])
def test_scores_that_cannot_be_trusted_are_left_out(saved, content):
    one, other = saved("one", *seeds()), saved("other", *seeds(lift=2.0))
    file = other / json.loads((other / "report.json").read_text())["cells"][1]["scores_file"]
    names = ("id/msp", "cats/msp", "dogs/msp", "static/msp")
    sizes = (60, 40, 30, 25)
    values = {
        "object": lambda n: np.array([{}] * n, object), "short": lambda n: np.zeros(n - 1),
        "nan": lambda n: np.full(n, np.nan), "integers": lambda n: np.zeros(n, int), "deep": lambda n: np.zeros((n, 1)),
    }  # fmt: skip
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.savez(file, **{name: values[content](n) for name, n in zip(names, sizes, strict=True)})
        assert zipfile.is_zipfile(file)
    assert quietly(one, other)[0][1]["difference"]["near"]["auroc"]["seeds"] == 3


def test_runs_on_other_images_are_refused(saved):
    one = saved("one", *seeds())
    fewer = {name: of for name, of in SETS.items() if name != "dogs"}
    moved = {**SETS, "dogs": ("far", 30)}
    for name, more, expected in (
        ("fewer", {"sets": fewer}, "dogs"), ("moved", {"sets": moved}, "dogs"), ("test", {"test": "u"}, r"\(id\)"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"{name}: measured on other images than one .*{expected}"):
            quietly(one, saved(name, *seeds(**more)))


def test_the_refusal_of_other_images_names_the_keys_that_differ(saved):
    one, other = saved("one", *seeds()), saved("other", *seeds(test="u"))
    recipe = """seed = 0
[data]
resize = "crop"
augment = ["flip"]
[data.id]
path = "x"
[data.far.dogs]
count = 3
[data.far.\"\\u001b[31mcats\"]
count = 4
"""
    (one / "recipe.toml").write_text(recipe)
    for written, expected in (
        (recipe.replace("crop", "pad").replace("flip", "cutout").replace("seed = 0", "seed = 1"), "same data.resize$"),
        (recipe.replace('"x"', '"y"').replace("count = 3", "count = 5"), "same data.id.path, data.far.dogs.count$"),
        (recipe.partition('[data.far."')[0], r"same data.far..x1b\[31mcats$"),
        ("quick = true\n" + recipe, "same quick$"),
        (recipe, "same data.id, data.near and data.far$"),
        ("= no recipe", "same data.id, data.near and data.far$"),
    ):
        (other / "recipe.toml").write_text(written)
        with pytest.raises(UserError, match=expected):
            quietly(one, other)


def test_smoke_runs_are_said_to_be_such(saved, tmp_path):
    one, other = saved("one", *seeds(count=1)), saved("other", *seeds(count=1), quick=True)
    many = saved("many", *seeds())
    whole = json.loads((many / "report.json").read_text())
    (many / "report.json").write_text(json.dumps({**whole, "cells": [{**of, "quick": True} for of in whole["cells"]]}))
    told = f"other, many: {report.wording.SMOKE}"
    _, text = quietly(one, other, many, to=tmp_path / "to")
    assert told in " ".join(text.split())
    for form in ("markdown", "latex"):
        assert "its figures mean nothing" in quietly(one, other, many, form=form)[1]
    assert told in (tmp_path / "to" / "compare.md").read_text()
    _, text = quietly(one, saved("third", *seeds(count=1), quick=False))
    assert "mean nothing" not in text and "WARNING" not in text


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", "[1]", '{"cells": []}', '{"cells": 3}', '{"cells": [3]}', "[" * 100_000, "\xff"]
)
def test_a_report_that_is_none_is_one_message(saved, text):
    run = saved("run", {})
    (run / "report.json").write_text(text)
    with pytest.raises(UserError, match=r"report\.json"):
        quietly(run)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scores", None), ("scores", {}), ("scores", {"msp": 3}), ("scores", {"msp": {"near": {"auroc": "x"}}}),
        ("headline_score", "energy"), ("headline_score", ["msp"]), ("id", {}), ("id", {"accuracy": True}),
        ("datasets", None), ("datasets", {"a": 1}), ("id_sets", {}), ("seeds", None), ("seeds", ["x"]), ("cell", [1]),
        ("cell", {"a": {}}),
    ],
)  # fmt: skip
def test_a_report_that_lacks_something_names_it(saved, key, value):
    run = saved("run", {}, **{key: value})
    with pytest.raises(UserError, match=rf"report\.json: {key} is missing or not as kood writes it"):
        quietly(run)


def test_folders_that_are_no_runs_are_refused(saved, tmp_path):
    run = saved("run", {})
    (tmp_path / "empty").mkdir()
    for folders, message in (
        ([tmp_path / "none"], "does not exist"), ([tmp_path / "empty"], "no finished run"), ([run, run], "given twice"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            quietly(*folders)


def test_one_score_for_all(saved):
    run = saved("run", *seeds(score="knn"))
    assert quietly(run, score="KNN")[0][0]["headline_score"] == "knn"
    other = saved("tuned", *seeds(score="ash:share=0.8,variant=B"))
    assert quietly(other, score="ASH:variant=B,share=0.80")[0][0]["headline_score"] == "ash:share=0.8,variant=B"
    options = [f"ash:share={share}" for share in (0.6, 0.7, 0.8)]
    chose = saved("chose", *({"seed": seed, "score": option} for seed, option in enumerate(options)))
    whole = json.loads((chose / "report.json").read_text())
    for one, option in zip(whole["cells"], options, strict=True):
        one["tuned"] = {"ash": {"chosen": option}}
    (chose / "report.json").write_text(json.dumps(whole))
    assert quietly(chose, score="ash")[0][0]["headline_score"] == options
    stranger = saved("stranger", *seeds(score="not.here:Score:k=3"))  # Its package need not be installed.
    assert quietly(stranger, score="not.here:Score:k=3")[0][0]["headline_score"] == "not.here:Score:k=3"
    with pytest.raises(UserError, match="--score: ash has no option 'shar'"):
        quietly(other, score="ash:shar=1")
    with pytest.raises(UserError, match="was not measured by 'msp'.*knn"):
        quietly(run, score="msp")


def test_files_hold_the_table(saved, tmp_path):
    one, other = saved("one", *seeds()), saved("other", *seeds(lift=3.0))
    rows, _ = quietly(one, other, to=tmp_path / "paper" / "here")
    read = {ending: (tmp_path / "paper" / "here" / f"compare.{ending}").read_text() for ending in ("md", "tex", "csv")}
    table = list(csv.DictReader(io.StringIO(read["csv"])))
    assert [line["run"] for line in table] == ["one", "other"]
    assert float(table[1]["near_auroc_mean"]) == rows[1]["near"]["auroc"]["mean"]
    assert float(table[1]["near_auroc_difference_low"]) == rows[1]["difference"]["near"]["auroc"]["low"]
    assert table[0]["near_auroc_difference_low"] == "" and table[0]["near_auroc_n"] == "3"
    lines = read["md"].splitlines()
    assert len({line.count(" | ") for line in lines[:4]}) == 1 and lines[2].startswith("| one | 3 | msp |")
    assert read["tex"].count(r"\\") == 3 and r"\toprule" in read["tex"] and r"$\ddagger$" in read["tex"]
    quietly(one, to=tmp_path / "one.tex")
    assert (
        re.match("% .*Differences are paired", (tmp_path / "one.tex").read_text())
        and not (tmp_path / "one.csv").exists()
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write there") as raised:
        quietly(one, to=tmp_path / "file" / "compare.md")
    assert raised.value.exit_code == 1  # As of the other commands.


def test_names_from_a_stranger_are_neutralised(saved, tmp_path):
    hostile = "=1+1|[red]\x1b[31m<b>$\\input{x}$&_^~"
    rows, text = quietly(
        saved("run", {"labels": {"outliers": hostile}}, {"labels": {"outliers": "none"}}), to=tmp_path / "out"
    )
    assert "\x1b" not in text and "[red]" in text
    read = {ending: (tmp_path / "out" / f"compare.{ending}").read_text() for ending in ("md", "tex", "csv")}
    assert not any("\x1b" in one for one in read.values())
    assert "<b>" not in read["md"] and r"\|" in read["md"] and r"\[red\]" in read["md"]
    line = next(line for line in read["tex"].splitlines() if "[red]" in line)
    assert r"\input" not in line and line.count(" & ") == 10
    assert not re.search(r"(?<!\\)[$&_^~#%]", line.replace(" & ", " ").replace(r"$\pm$", ""))
    (strange,) = [row for row in csv.reader(io.StringIO(read["csv"])) if "red" in row[0]]
    assert strange[0].startswith("run: outliers =1+1")
    named = saved("=cmd", {})
    quietly(named, to=tmp_path / "formula.csv")
    assert (tmp_path / "formula.csv").read_text().splitlines()[1].startswith("'=cmd,")


@pytest.mark.parametrize("form", ["markdown", "latex", "csv"])
def test_a_format_is_printed_as_it_is_written_whatever_the_width(saved, tmp_path, form):
    runs, out = [saved("one", *seeds()), saved("other", *seeds(lift=3.0))], io.StringIO()
    compare_runs(runs, console=Console(file=out, width=40), form=form, to=tmp_path / "out")
    ending = {"markdown": "md", "latex": "tex"}.get(form, form)
    assert out.getvalue() == (tmp_path / "out" / f"compare.{ending}").read_text() != ""


def test_the_command_answers_without_keras(saved):
    one, other = saved("one", *seeds()), saved("other", *seeds(lift=2.0))
    code = (
        "import sys\nfrom kood import cli\nsys.argv = ['kood', 'compare', *sys.argv[1:]]\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert not {'keras', 'tensorflow', 'matplotlib', 'torch', 'jax'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(one), str(other)], capture_output=True, text=True,
        env={**os.environ, "COLUMNS": "150"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "other" in done.stdout and "Against the baseline" in done.stdout


# The table of a matrix -----------------------------------------------------------------------------------------------


def test_a_matrix_pairs_rows_that_differ_in_the_baselines_labels_alone(saved):
    labels = [{"head": head, "outliers": kind} for head in ("softmax", "cosface") for kind in ("none", "noise")]
    run = saved("run", *(one for i, of in enumerate(labels) for one in seeds(of, lift=1.0 + i)))
    cells = json.loads((run / "report.json").read_text())["cells"]
    apart = report.differences(cells, lambda own: {**own, "outliers": "none"}, lambda _: None, lambda _: None)
    assert [one is None for one in apart] == [True, False, True, False]
    assert apart[3]["baseline"] == {"head": "cosface", "outliers": "none"}
    out = io.StringIO()
    rows = [{**row, "difference": one} for row, one in zip(report.aggregate(cells), apart, strict=True)]
    print_matrix(Console(file=out, width=150), {"recipe": "run", "table": rows})
    paired = out.getvalue().split("Against the baseline outliers none")[1]
    assert re.search(r"^cosface +noise +[+-]", paired, re.MULTILINE) and "none" not in paired
    page = report.html.page({"recipe": "run", "cells": cells, "table": rows})
    assert "Against the baseline outliers none" in page and "‡" in page


def test_baselines_that_are_not_the_same_stand_beside_each_row(saved):
    run = saved("run", *(one for i in range(3) for one in seeds({"weight": str(i)}, lift=1.0 + i)))
    cells = json.loads((run / "report.json").read_text())["cells"]
    apart = report.differences(
        cells, lambda own: {"weight": str(max(0, int(own["weight"]) - 1))}, lambda _: None, lambda _: None
    )
    rows = [{**row, "difference": one} for row, one in zip(report.aggregate(cells), apart, strict=True)]
    out = io.StringIO()
    print_matrix(Console(file=out, width=150), {"recipe": "run", "table": rows})
    heads, _, *lines = out.getvalue().split("Against the baseline\n")[1].splitlines()[1:5]
    assert heads.split()[-1] == "baseline" and [(line.split()[0], line.split()[-1]) for line in lines] == [
        ("1", "0"), ("2", "1"),
    ]  # fmt: skip


def test_cells_measured_on_other_images_are_not_paired(saved):
    run = saved("run", *seeds({"data": "a"}), *seeds({"data": "b"}, lift=2.0, test="u"))
    cells = json.loads((run / "report.json").read_text())["cells"]
    assert report.differences(cells, lambda _: {"data": "a"}, lambda _: None, lambda _: None) == [None, None]


def shown(cells, width=150):
    """A matrix of these cells as the terminal, its page and its file have it."""
    whole = {"recipe": "run", "cells": cells, "table": report.aggregate(cells)}
    out = io.StringIO()
    print_matrix(Console(file=out, width=width), whole)
    return " ".join(out.getvalue().split()), report.html.page(whole), out.getvalue()


def best(text, column):
    """Whether any row of the printed table has the star of the best in a column of figures."""
    rows = [line.split() for line in text.splitlines() if re.match(r"(first|second|third) ", line)]
    assert len(rows) > 1
    return any(row[column].endswith("*") for row in rows)


FAR_AUROC, NEAR_AUROC, ACCURACY = 5, 3, 2


def test_rows_measured_on_other_images_are_told_of_and_have_no_best(saved):
    def cells(**third):
        arms = seeds({"arm": "first"}), seeds({"arm": "second"}, lift=2.0), seeds({"arm": "third"}, lift=3.0, **third)
        made = json.loads((saved("run", *(one for arm in arms for one in arm)) / "report.json").read_text())["cells"]
        for number, one in enumerate(made):
            one["id"] = {"accuracy": 0.5 + number / 100}
        return made

    whole, page, text = shown(cells())
    assert "on the same images" not in whole and "on the same images" not in page
    assert best(text, ACCURACY) and best(text, NEAR_AUROC) and best(text, FAR_AUROC)

    whole, page, text = shown(cells(sets={**SETS, "dogs": ("near", 31)}))
    assert "on the same images" not in whole  # The number alone says nothing, the content does.
    told = (
        "Not all rows are measured on the same images: those of cats, birds under 'arm third' are others than under "
        "'arm first'; figures on different images do not compare, so no best of them is marked and such rows are not "
        "paired"
    )
    birds = {("birds" if name == "cats" else name): of for name, of in SETS.items()}
    whole, page, text = shown(cells(sets=birds))
    assert told in whole and told.replace("'", "&#39;") in page
    assert best(text, ACCURACY) and best(text, FAR_AUROC) and not best(text, NEAR_AUROC)

    whole, page, text = shown(cells(test="u"))
    assert "those of id under 'arm third' are others than under 'arm first'" in whole
    assert not (best(text, ACCURACY) or best(text, NEAR_AUROC) or best(text, FAR_AUROC))


def test_other_images_from_seed_to_seed_are_compared_by_seed(saved):
    arms = [{"labels": {"arm": arm}, "seed": seed, "test": f"{seed}"} for arm in "ab" for seed in range(3)]
    run = saved("run", *arms)
    cells = json.loads((run / "report.json").read_text())["cells"]
    assert unlike(cells) == ALIKE and unlike([]) == ALIKE
    cells[4]["id_sets"]["test"]["sha256"] = "other"
    assert unlike(cells).parts == {"id", "near", "far", "held_out"}


def test_intervals_of_a_run_are_those_of_its_sets_and_means(tmp_path):
    one = cell(tmp_path / "run")
    with np.load(tmp_path / "run" / one["scores_file"]) as arrays:
        scores = report.score_arrays(arrays, "msp")
    found = report.intervals(one, scores)
    assert set(found) == {*SETS, "near", "far"} and set(scores) == {"id", *SETS}
    assert found["near"] == list(auroc_interval(scores["id"], [scores["cats"], scores["dogs"]]))
    assert found["static"] == found["far"] == list(auroc_interval(scores["id"], [scores["static"]]))
    assert report.intervals(one, None) == {} and set(report.intervals(one, {**scores, "dogs": scores["dogs"][:1]})) == {
        "cats", "static", "far",
    }  # fmt: skip


# Classes held out ----------------------------------------------------------------------------------------------------


def folds_in(folder):
    found = json.loads((folder / "report.json").read_text())
    return [one["hold_out"]["folds"] for one in found.get("cells", [found])]


def test_folds_are_paired_one_by_one_and_over_them(tmp_path):
    one, other = with_folds(tmp_path / "one", 0.5, 0.6, 0.4), with_folds(tmp_path / "other", 1.0, 1.3, 1.1)
    rows, text = quietly(one, other)
    apart = rows[1]["difference"]["held_out"]
    first, second = folds_in(one), folds_in(other)
    for number, classes in enumerate(FOLDS):
        pairs = [(a[number], b[number]) for a, b in zip(first, second, strict=True)]
        images = []
        for a, b in pairs:
            arrays = [np.load(folder / f["scores_file"]) for folder, f in ((one, a), (other, b))]
            placed = [metrics.placements(f["id/msp"], [f["held_out/msp"]]) for f in arrays]
            images.append((placed[1][0] - placed[0][0], [placed[1][1][0] - placed[0][1][0]]))
        expected = paired_difference([a["auroc"] for a, _ in pairs], [b["auroc"] for _, b in pairs], images)
        found = apart["folds"][number]
        assert found["classes"] == list(classes)
        assert [found["auroc"][key] for key in ("mean", "low", "high")] == [expected.mean, expected.low, expected.high]
        assert ", ".join(classes) in text and f"{100 * expected.mean:+.1f}" in text
    means = [[np.mean([fold["auroc"] for fold in run]) for run in zip(*runs, strict=True)] for runs in (first, second)]
    expected = paired_difference(*means)
    assert [apart["auroc"][key] for key in ("mean", "seeds")] == [pytest.approx(expected.mean), 3]
    assert apart["auroc"]["low"] == pytest.approx(expected.low) and "held-out AUROC" in text and "fold by fold" in text
    assert "(n=" not in text.replace("(n=…)", "")
    quietly(one, other, with_folds(tmp_path / "few", 0.9, 0.8), to=tmp_path / "out")
    rows = [list(csv.DictReader((tmp_path / "out" / f"compare{of}.csv").open())) for of in ("", "_folds")]
    assert [line["held_out_auroc_difference_seeds"] for line in rows[0]] == ["", "3", "2"]
    assert [line["held_out_auroc_difference_folds"] for line in rows[0]] == ["", "3", "3"]
    assert [line["auroc_difference_seeds"] for line in rows[1]] == [*[""] * 3, *["3"] * 3, *["2"] * 3]
    marked = [(tmp_path / "out" / f"compare{of}.md").read_text().count(" (n=2)") for of in ("", "_folds")]
    assert marked == [4, 3]


def test_a_fold_of_one_run_has_its_interval(tmp_path):
    run = with_folds(tmp_path / "run", 1.0)
    (only,) = folds_in(run)
    rows, text = quietly(run)
    assert [fold["interval"] for fold in rows[0]["folds"]] == [fold["auroc_interval"] for fold in only]
    low, high = only[1]["auroc_interval"]
    assert f"{100 * only[1]['auroc']:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in text


def test_folds_of_other_images_or_other_classes_are_not_paired(tmp_path):
    one, other = with_folds(tmp_path / "one", 0.5), with_folds(tmp_path / "other", 1.0)
    told = json.loads((other / "report.json").read_text())
    told["hold_out"]["folds"][0]["classes"] = ["a", "z"]
    told["hold_out"]["folds"][1]["sha256"]["id"] = "others"
    (other / "report.json").write_text(json.dumps(told))
    apart = quietly(one, other)[0][1]["difference"]["held_out"]
    assert [fold["classes"] for fold in apart["folds"]] == [["d", "e"]]
    assert apart["auroc"]["low"] is None  # Of one fold nothing is known of others.


def best_held_out(*runs):
    """Whether any row of their comparison is the best by its held-out AUROC, and what is said of it."""
    text = quietly(*runs, form="markdown")[1]
    heads, _, *rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return any("**" in row[heads.index("held-out AUROC")] for row in rows), text


@pytest.mark.parametrize("changed", ["a fold left out", "other classes", "other images"])
def test_means_over_other_folds_are_told_of_and_have_no_best(tmp_path, changed):
    one, other = with_folds(tmp_path / "one", 0.5), with_folds(tmp_path / "other", 1.0)
    marked, text = best_held_out(one, other)
    assert marked and "hold out" not in text
    told = json.loads((other / "report.json").read_text())
    folds = told["hold_out"]["folds"]
    if changed == "a fold left out":
        del folds[0]
    elif changed == "other classes":
        folds[0]["classes"] = ["a", "z"]
    else:
        folds[1]["sha256"]["held_out"] = "others"
    (other / "report.json").write_text(json.dumps(told))
    said = "the folds under 'run other' are others than under 'run one'; means over different folds do not compare"
    marked, text = best_held_out(one, other)
    assert not marked and said in text
    text = " ".join(quietly(one, other)[1].split())
    assert text.count(said) == 1 and "*" not in text


def test_rows_of_a_matrix_with_other_folds_have_no_best_of_them(tmp_path):
    arms = [("a", 0.5), ("b", 1.0), ("c", 2.0)]
    cells = [{**cell(tmp_path, {"arm": arm}), "hold_out": held_out(tmp_path, 0, lift)} for arm, lift in arms]
    assert unlike(cells) == ALIKE
    cells[2]["hold_out"]["folds"].reverse()
    assert unlike(cells) == ALIKE
    cells[2]["hold_out"]["folds"].pop()
    assert unlike(cells).parts == {"held_out"}
    whole, page, _ = shown(cells)
    told = "the folds under 'arm c' are others than under 'arm a'"
    assert told in whole and told.replace("'", "&#39;") in page
    cells[0]["hold_out"] = None  # No mean is compared with that of a row that has none.
    assert unlike(cells[:2]) == ALIKE and "under 'arm c' are others than under 'arm b'" in unlike(cells).told[0]


def test_a_row_whose_seeds_have_other_folds_is_told_of_and_has_no_best(tmp_path):
    one, other = with_folds(tmp_path / "one", 0.5, 0.5), with_folds(tmp_path / "other", 1.0, 1.0)
    for run in (one, other):  # Each lost the same: compared by seed they are alike.
        told = json.loads((run / "report.json").read_text())
        told["cells"][1]["hold_out"]["folds"].pop(0)
        (run / "report.json").write_text(json.dumps(told))
    marked, text = best_held_out(one, other)
    assert not marked and "Not all seeds hold out the same classes under 'run one', 'run other': their" in text
    assert "under 'run one': their held-out figures are means over different folds" in " ".join(quietly(one)[1].split())
    cells = told["cells"]
    cells[1]["id_sets"]["test"]["sha256"] = "other"
    assert "Not all seeds" in unlike([*cells, {**cells[0], "cell": {"arm": "b"}, "id_sets": {}}]).told[-1]


def test_folds_by_another_score_are_of_that_score(tmp_path):
    run = with_folds(tmp_path / "run", 1.0, others=("energy",))
    told = json.loads((run / "report.json").read_text())
    told["scores"]["energy"] = told["scores"]["msp"]
    (run / "report.json").write_text(json.dumps(told))
    (row,), (only,) = quietly(run, score="energy")[0], folds_in(run)
    assert [fold["auroc"]["mean"] for fold in row["folds"]] == pytest.approx([1 - fold["auroc"] for fold in only])
    assert row["held_out"]["auroc"]["mean"] == pytest.approx(1 - np.mean([fold["auroc"] for fold in only]))
    (run / only[0]["scores_file"]).unlink()
    (row,) = quietly(run, score="energy")[0]
    assert "held_out" not in row and "folds" not in row


def test_folds_by_a_score_that_some_seeds_alone_chose_so_are_left_out_and_told_of(tmp_path):
    """Seeds choose options, folds do not: those of the seed that chose the defaults are no mean over seeds."""
    runs = [with_folds(tmp_path / name, 0.5, 0.6, 0.4, others=("energy",)) for name in ("one", "other")]
    for run, chosen in zip(runs, (["energy"] * 3, ["energy:temperature=10", "energy", "energy"]), strict=True):
        told = json.loads((run / "report.json").read_text())
        for one, spec in zip(told["cells"], chosen, strict=True):
            one["tuned"] = {"energy": {"chosen": spec, "tried": {spec: 0.5}}}
            one["scores"][spec] = one["scores"]["msp"]
        (run / "report.json").write_text(json.dumps(told))
    rows, text = quietly(*runs, score="energy")
    assert rows[0]["held_out"]["auroc"]["n"] == 3 and "held_out" not in rows[1] and "folds" not in rows[1]
    said = "No held-out figures under 'other': not all folds were measured by energy as their seeds were"
    assert said in " ".join(text.split())
    assert "No held-out" not in quietly(*runs)[1] and quietly(*runs)[0][1]["held_out"]["auroc"]["n"] == 3


@pytest.mark.parametrize(
    "held", [3, {"folds": 3, "mean": {}}, {"folds": [3], "mean": {}}, {"folds": [], "mean": {"auroc": {"mean": "x"}}}]
)
def test_folds_that_kood_did_not_write_are_one_message(tmp_path, held):
    run = with_folds(tmp_path / "run", 1.0)
    told = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({**told, "hold_out": held}))
    with pytest.raises(UserError, match=r"report\.json: hold_out is missing or not as kood writes it"):
        quietly(run)


@pytest.mark.parametrize("path", [("scores_file",), ("sha256", "id"), ("sha256", "held_out")])
def test_a_fold_that_lacks_something_is_one_message(tmp_path, path):
    one, other = with_folds(tmp_path / "one", 0.5), with_folds(tmp_path / "other", 1.0)
    told = json.loads((other / "report.json").read_text())
    table = told["hold_out"]["folds"][1]
    for key in path[:-1]:
        table = table[key]
    del table[path[-1]]
    (other / "report.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"report\.json: hold_out is missing or not as kood writes it"):
        quietly(one, other)


def test_folds_are_written_beside_the_rows(tmp_path):
    run = with_folds(tmp_path / "run", 1.0, 2.0)
    quietly(run, to=tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        f"compare{part}.{ending}" for part in ("", "_folds") for ending in ("md", "tex", "csv")
    }
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "compare_folds.csv").read_text())))
    assert [line["held out"] for line in lines] == ["a, b", "c", "d, e"]
    assert {line["auroc_n"] for line in lines} == {"2"}
    expected = np.mean([[fold["auroc"] for fold in one] for one in folds_in(run)], axis=0)
    np.testing.assert_allclose([float(line["auroc_mean"]) for line in lines], expected)


def test_a_table_of_folds_that_an_earlier_comparison_left_is_removed(tmp_path, saved):
    quietly(with_folds(tmp_path / "run", 1.0, 2.0), to=tmp_path / "out")
    assert len(list((tmp_path / "out").glob("compare_folds.*"))) == 3
    quietly(saved("none", *seeds()), to=tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"compare.md", "compare.tex", "compare.csv"}
