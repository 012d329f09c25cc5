"""Terminal tables: the figures are those of the input, whatever the names and the console."""

import math
import re

import pytest

from kood.report import aggregate, print_cell, print_matrix
from kood.report.across import matrix as matrix_table
from kood.report.html import page
from kood.report.terminal import print_table

FIGURES = [("id", "accuracy"), *((kind, metric) for kind in ("near", "far") for metric in ("auroc", "fpr_at_ood_tpr"))]
METRICS = ("auroc", "aupr_in", "aupr_out", "fpr_at_ood_tpr", "fpr_at_id_tpr")
NASTY = (
    "[red]x[/red]",
    "<script>alert(1)</script>",
    "[/]",
    "a\x1b[31mb\x07",
    "two\nlines",
    "\udcff",
    "$x^2$",
    "_",
    "漢字",
)


def line_of(text, start):
    return next(line for line in text.splitlines() if line.strip().startswith(start))


def figures_of(line):
    return re.findall(r"\d+\.\d|—", line)


def test_the_cell_table_holds_the_headline_figures(cell, capture):
    text = capture(lambda console: print_cell(console, cell))
    for name in cell["datasets"]:
        line = line_of(text, name).replace(name, "")
        assert figures_of(line) == [f"{100 * cell['scores']['msp'][name][metric]:.1f}" for metric in METRICS]
        assert line.split()[0] == str(cell["datasets"][name]["images"])
    means = [line for line in text.splitlines() if line.strip().startswith("mean")]
    for line, kind in zip(means, ("near", "far"), strict=True):
        assert figures_of(line) == [f"{100 * cell['scores']['msp'][kind][metric]:.1f}" for metric in METRICS]


def test_the_cell_table_holds_every_score(cell, capture):
    text = capture(lambda console: print_cell(console, cell)).split("All scores")[1]
    for score, figures in cell["scores"].items():
        expected = [figures[kind][m] for m in ("auroc", "fpr_at_ood_tpr") for kind in ("near", "far")]
        expected.append(cell["validation"][score])
        assert figures_of(line_of(text, score)) == [f"{100 * value:.1f}" for value in expected]
    assert [line.split()[0] for line in text.splitlines()[1:] if line.count("◂") and "◂:" not in line] == ["msp"]


def test_notes_are_no_warnings(cell, capture):
    cell.update(warnings=[], notes=["3 folders [red]passed[/red] over"])
    text = capture(lambda console: print_cell(console, cell))
    assert "3 folders [red]passed[/red] over" in text and "WARNING" not in text


def test_warnings_come_before_figures(cell, capture):
    cell.update(warnings=["something is wrong"], quick=True)
    text = capture(lambda console: print_cell(console, cell))
    assert text.index("Smoke run") < text.index("something is wrong") < text.index("AUROC")


def test_threshold_accuracy_and_stages_are_told(cell, capture):
    text = " ".join(capture(lambda console: print_cell(console, cell)).split())
    assert f"ID accuracy: {100 * cell['id']['accuracy']:.1f}% of 324 test images." in text
    assert "msp score is above 0.4124" in text
    assert "accepts 95% of 109 calibration images" in text
    assert "it accepted 94.4%." in text
    assert "diffusion 13 s (cached), outliers 0.7 s, classifier 2 min 5 s" in text


def test_what_the_threshold_refuses_is_told_by_set(cell, capture):
    cell["threshold"]["flagged"] = {"letters": {"share": 0.625, "interval": [0.5, 0.75], "images": 64}}
    text = " ".join(capture(lambda console: print_cell(console, cell)).split())
    assert "It called out-of-distribution: 62.5% of letters (50.0 to 75.0)." in text


def test_missing_figures_are_dashes_not_nan(cell, capture):
    cell["scores"]["msp"]["letters"]["auroc"] = math.nan
    cell["scores"]["msp"]["letters"]["aupr_in"] = None
    cell["scores"]["msp"]["uniform"] = {}
    cell["scores"]["energy"]["far"] = None
    cell["id"]["accuracy"] = math.nan
    cell["threshold"]["accepted_id_test"] = None
    cell["validation"] = {}
    text = capture(lambda console: print_cell(console, cell))
    assert "nan" not in text.lower()
    assert figures_of(line_of(text, "letters"))[:2] == ["—", "—"]
    assert figures_of(line_of(text, "uniform")) == ["—"] * 5


def test_a_cell_with_only_what_it_must_have(cell, capture):
    for key in ("validation", "threshold", "warnings", "stages", "environment"):
        del cell[key]
    cell.update(datasets={}, scores={"msp": {}})
    assert "ID accuracy" in capture(lambda console: print_cell(console, cell))


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_is_wider_than_the_console_and_no_figure_is_cut(cell, matrix, capture, width):
    for show, report in ((print_cell, cell), (print_matrix, matrix)):
        text = capture(lambda console, show=show, report=report: show(console, report), width=width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        assert "\x1b" not in text
        if show is print_cell:
            figures = [one[kind]["auroc"] for one in cell["scores"].values() for kind in ("near", "far")]
            expected = [f"{100 * value:.1f}" for value in figures]
        else:
            means = [row[kind]["auroc"] for row in aggregate(matrix["cells"]) for kind in ("near", "far")]
            expected = [f"{100 * one['mean']:.1f}±{100 * one['std']:.1f}" for one in means]
        compact = text.replace(" ± ", "±")
        assert [value for value in expected if value not in compact] == []


def test_matrix_rows_hold_the_aggregated_figures(matrix, capture):
    text = capture(lambda console: print_matrix(console, matrix))
    for row in aggregate(matrix["cells"]):
        start = f"{row['cell']['head.name']} +{row['cell']['outliers.kind']}"
        line = next(line for line in text.splitlines() if re.match(start, line))
        expected = []
        for part, metric in FIGURES:
            figure = row[part][metric]
            expected.append(f"{100 * figure['mean']:.1f}±{100 * figure['std']:.1f}")
        assert re.findall(r"[\d.]+±[\d.]+", line) == expected
        assert line.split()[2] == "3"
    assert "2 cells failed" in text
    assert "head sphereface, outliers noise, seed 1: out of memory" in text


def test_the_best_of_each_column_is_marked(matrix, capture):
    rows = aggregate(matrix["cells"])
    table = matrix_table(rows)
    for column, (part, metric) in enumerate(FIGURES, start=len(table.columns) - len(FIGURES)):
        means = [row[part][metric]["mean"] for row in rows]
        best = min(means) if metric.startswith("fpr") else max(means)
        marked = [mean for mean, marks in zip(means, table.best, strict=True) if marks[column]]
        assert best in marked and {f"{100 * mean:.1f}" for mean in marked} == {f"{100 * best:.1f}"}
    plain = capture(lambda console: print_matrix(console, matrix))
    assert plain.count("*") >= len(FIGURES)
    live = capture(lambda console: print_matrix(console, matrix), force_terminal=True, color_system=None)
    assert "*" not in live


def test_a_single_row_is_not_called_best(new_cell, capture):
    table = matrix_table(aggregate([new_cell()]))
    assert not any(table.best[0])
    assert "best" not in capture(lambda console: print_table(console, table))


def test_one_seed_prints_no_deviation(new_cell, capture):
    report = {"recipe": "r", "cells": [new_cell(0, head="a"), new_cell(0, head="b")], "failed": []}
    text = capture(lambda console: print_matrix(console, report))
    assert "±" not in text


def test_headline_scores_that_differ_and_datasets_that_lack(new_cell, capture):
    cells = [new_cell(seed, head="a") for seed in (0, 1)] + [new_cell(0, head="b")]
    cells[1]["headline_score"] = "energy"
    for score in cells[1]["scores"].values():
        del score["letters"]
    text = capture(lambda console: print_matrix(console, {"recipe": "r", "cells": cells}), width=120)
    assert "msp, energy" in text
    assert "head a: letters has figures in 1 of 2 runs." in " ".join(text.split())
    assert "head a: letters has figures in 1 of 2 runs." in page({"recipe": "r", "cells": cells})


def test_a_run_missing_in_a_mean_is_told(new_cell, capture):
    cells = [new_cell(seed, head="a") for seed in (0, 1, 2)] + [new_cell(0, head="b")]
    cells[0]["scores"]["msp"]["near"]["auroc"] = None
    text = capture(lambda console: print_matrix(console, {"recipe": "r", "cells": cells}), width=120)
    assert "(n=2)" in text


def test_a_cell_that_failed(capture, cell):
    report = {
        "recipe": "r",
        "cells": [cell],
        "failed": [{"cell": {"head": "x"}, "error": "[bold]broken[/bold]\nat line 3"}],
    }
    text = capture(lambda console: print_matrix(console, report))
    assert "1 cell failed" in text
    assert "head x: [bold]broken[/bold] at line 3" in text


def test_cells_that_there_was_no_time_for_stand_under_the_reason(new_cell, capture):
    cells = [{"cell": {"head": name}, "why": "the [b]3[/b] minutes were up"} for name in ("x", "y")]
    report = {
        "recipe": "r",
        "cells": [new_cell(0, head="a")],
        "left_out": [*cells, {"cell": {"head": "z"}, "why": "w"}],
    }
    text = capture(lambda console: print_matrix(console, report), width=120)
    assert "3 cells left out" in text
    assert "the [b]3[/b] minutes were up: head x; head y" in text and "w: head z" in text
    whole = page({**report, "budget": {"minutes": 3.0}})
    assert "Cells left out of a run of 3 minutes" in whole
    assert re.sub(r"(<[^>]*>)+", " ", whole).count("[b]3[/b] minutes were up head x head y") == 1


@pytest.mark.parametrize("name", NASTY)
@pytest.mark.parametrize("terminal", [False, True])
def test_names_are_names_not_markup(new_cell, capture, name, terminal):
    cell = new_cell(0, head=name)
    cell.update(recipe=name, headline_score=name, warnings=[name], seeds=[0])
    cell["datasets"][name] = {"kind": "near", "images": 3}
    cell["scores"] = {name: {name: {"auroc": 0.5}, "near": {"auroc": 0.5}}}
    cell["threshold"]["score"] = name
    cell["stages"] = {name: {"seconds": 1.0, "cached": False}}
    report = {"recipe": name, "cells": [cell, new_cell(0, head="y")], "failed": [{"cell": {name: name}, "error": name}]}
    for show, one in ((print_cell, cell), (print_matrix, report)):
        text = capture(
            lambda console, show=show, one=one: show(console, one),
            width=160,
            force_terminal=terminal,
            color_system=None,
        )
        text.encode("utf-8")
        plain = re.sub(r"\x1b\[[0-9;]*m", "", text) if terminal and "\x1b" not in name else text
        assert "\x1b[31m" not in plain
        assert "\x07" not in plain
        expected = {"a\x1b[31mb\x07": r"a\x1b[31mb\x07", "two\nlines": "two lines", "\udcff": r"\udcff"}.get(name, name)
        assert expected in plain


def test_an_ascii_terminal_gets_ascii(cell, matrix, capture):
    import io

    from rich.console import Console

    cell["recipe"] = "größe"
    for show, report in ((print_cell, cell), (print_matrix, matrix)):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        show(Console(file=stream, width=80), report)
        stream.flush()
        assert b"AUROC" in stream.buffer.getvalue()
