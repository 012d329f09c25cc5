"""Renderers of tables: the same cells in every medium, whatever they hold."""

import csv
import io
import re

import pytest

from kood.report import across, aggregate, leaderboard_entries
from kood.report.formats import as_csv, latex, markdown
from kood.report.html import render, write
from kood.report.tables import Cell, Column, Table, row
from kood.report.terminal import print_table
from kood.report.wording import SMOKE

NASTY = (
    ":smile:",
    "[/]",
    "=1+1",
    "+1",
    "-1",
    "@x",
    "a|b",
    "[red]x[/red]",
    "<script>",
    "a\x1b[31mb",
    r"\input{x}$&_^~%#",
    "two\nlines",
)


def table_of(name="one", second="b"):
    columns = (
        Column("name", words=True), Column("second\nlabel", words=True, name="second"),
        Column("AUROC", "(OOD)", more_is_better=True, name="auroc", parts=("mean", "std")),
        Column("FPR", priority=2, more_is_better=False), Column("seconds", priority=1),
    )  # fmt: skip
    rows = (
        row(name, second, Cell("91.2 ± 0.4", {"mean": 0.91234, "std": 0.004}), Cell("9.0", 0.09), Cell("1", 1)),
        row("two", "—", Cell("91.2 ± 0.9", {"mean": 0.912, "std": 0.009}), Cell("—", None), Cell("2", 2)),
        row("three", "c", Cell("80.0", {"mean": 0.8, "std": None}), Cell("7.0", 0.07), Cell("3", 3)),
    )
    return Table(columns, rows, "A title", ("A note.",))


def test_csv_has_unrounded_figures_a_column_for_each_part():
    first, second, third = csv.DictReader(io.StringIO(as_csv(table_of())))
    assert first == {
        "name": "one", "second": "b", "auroc_mean": "0.91234", "auroc_std": "0.004", "FPR": "0.09", "seconds": "1",
    }  # fmt: skip
    assert second["FPR"] == second["second"] == "" == third["auroc_std"]


def test_markdown_and_latex_have_the_same_cells_and_the_best_in_bold():
    written = [line.strip("| ").split(" | ") for line in markdown(table_of()).splitlines()]
    assert written[0] == ["name", "second label", r"AUROC \(OOD\)", "FPR", "seconds"]
    assert written[2] == ["one", "b", "**91.2 ± 0.4**", "9.0", "1"] and written[3][2] == "**91.2 ± 0.9**"
    assert written[4] == ["three", "c", "80.0", "**7.0**", "3"] and "A note. Bold: best" in written[-1][0]
    lines = latex(table_of()).splitlines()
    assert lines[0].startswith("% A note. Bold: best") and lines[1] == r"\begin{tabular}{llrrr}"
    assert lines[5] == r"one & b & \textbf{91.2 $\pm$ 0.4} & 9.0 & 1 \\"


def test_where_there_is_no_room_columns_go_then_labels_merge_then_rows_are_lists(capture):
    forms = []
    for width in range(16, 60):
        text = capture(lambda console: print_table(console, table_of("a long name")), width=width)
        assert max(map(len, text.splitlines())) <= width and "91.2±0.4*" in text and "80.0" in text
        kind = "list" if "───" not in text else "merged" if "name a long" in text else "whole"
        form = (kind, "FPR" in text, "seconds" in text)
        gone = 2 - sum(form[1:])
        assert (f"{gone} more column" in " ".join(text.split())) == (gone > 0)
        forms += [form] if form not in forms[-1:] else []
    assert forms == [
        ("list", True, True), ("merged", False, False), ("whole", False, False), ("whole", False, True),
        ("whole", True, True),
    ]  # fmt: skip


def test_a_list_has_every_figure_under_the_name_of_its_row(capture):
    lines = [line.rstrip() for line in capture(lambda console: print_table(console, table_of()), width=16).splitlines()]
    assert lines[1:7] == ["name one, second", "label b", "  AUROC (OOD):", "  91.2±0.4*", "  FPR: 9.0", "  seconds: 1"]
    assert lines[7] == "name two"


@pytest.mark.parametrize("name", NASTY)
def test_no_text_is_an_instruction_in_any_medium(name, capture):
    table = table_of(name)
    shown = " ".join(name.split()).replace("\x1b", r"\x1b")
    printed = capture(lambda console: print_table(console, table), width=100)
    assert shown in printed and "\x1b" not in printed
    read = next(csv.DictReader(io.StringIO(as_csv(table))))["name"]
    assert read == (f"'{shown}" if name[0] in "=+-@" and name not in ("+1", "-1") else shown)
    part = Table([Column("name", words=True, parts=("",))], [row(Cell("", {"": name}))])
    assert next(csv.DictReader(io.StringIO(as_csv(part))))["name"] == read
    (line,) = [one for one in markdown(table).splitlines() if one.endswith("| 1 |")]
    assert len(re.findall(r"(?<!\\)\|", line)) == 6 and not re.search(r"(?<!\\)[\[<`]", line) and "\x1b" not in line
    (line,) = [one for one in latex(table).splitlines() if one.endswith(r"1 \\")]
    assert not re.search(r"(?<!\\)[%$#_~^]|\\input", line.replace(r"$\pm$", "")) and line.count(" & ") == 4


def test_a_template_says_when_something_is_missing():
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError):
        render("run.html", recipe="r")


def test_the_table_of_a_matrix_is_written_for_papers_and_programs(tmp_path, matrix, cell):
    write(tmp_path / "report.html", cell)
    assert {file.name for file in tmp_path.iterdir()} == {"report.html"}
    write(tmp_path / "report.html", matrix)
    first, *rest = csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text()))
    assert len(rest) == 5 and first["head.name"] == "softmax" and first["outliers.kind"] == "label_mixup"
    cells = [one for one in matrix["cells"] if one["cell"]["head.name"] == "softmax"][:3]
    expected = sum(one["scores"]["msp"]["near"]["auroc"] for one in cells) / 3
    assert float(first["near_auroc_mean"]) == pytest.approx(expected) and first["seeds"] == "0 1 2"
    assert (tmp_path / "table.tex").read_text().count(r"\\") == 7


@pytest.mark.parametrize("text", ["-0.5", "-1e-3", "+2", "-inf"])
def test_settings_below_zero_stay_numbers_in_csv(text):
    assert next(csv.DictReader(io.StringIO(as_csv(table_of(text)))))["name"] == text


@pytest.mark.parametrize("text", ["-1+1", "-0.5 A1", "+A1", "-cmd|' /C calc'!A0"])
def test_what_only_begins_as_a_number_is_no_formula_in_csv(text):
    assert next(csv.DictReader(io.StringIO(as_csv(table_of(text)))))["name"] == f"'{text}"


def test_tables_for_papers_say_what_their_figures_are(matrix, tmp_path):
    matrix["leaderboard"] = leaderboard_entries(matrix["cells"], lambda *_: None)
    for quick in (False, True):
        matrix["quick"] = quick
        write(tmp_path / "report.html", matrix)
        told, board = ((tmp_path / f"{name}.tex").read_text().splitlines()[0] for name in ("table", "leaderboard"))
        assert "FPR@95: ID flagged when 95% of OOD is caught." in told
        assert "mean ± sample standard deviation over n seeds" in told
        assert (SMOKE in told, SMOKE in board) == (quick, quick)


def test_a_comparison_names_the_rows_that_lack_figures(matrix):
    rows = aggregate(matrix["cells"])
    for of in rows[0]["scores"].values():
        of["letters"] = {metric: {**one, "n": 2} for metric, one in of["letters"].items()}
    for told in (across.matrix(rows), across.comparison(rows)):
        assert "letters has figures in 2 of 3 runs." in told.noted() and "FPR@95: ID flagged" in told.noted()


def test_the_options_that_were_chosen_are_told_under_the_scores(cell):
    from kood.report import results

    assert "Options chosen" not in " ".join(results.scores(cell).notes)
    cell["tuned"] = {
        "energy": {"chosen": "energy", "tried": {"energy": 0.973, "energy:temperature=10": 0.9}},
        "ash": {"chosen": "ash:share=0.7", "tried": {"ash": 0.5, "ash:share=0.7": 0.912}},
    }
    told = " ".join(results.scores(cell).notes)
    assert "Options chosen by their AUROC on validation images: energy (97.3; 2 tried), " in told
    assert "ash:share=0.7 (91.2, as named 50.0; 2 tried)." in told and "Folds choose no options" not in told
    cell["hold_out"] = {"scores": {"energy": 0.9, "ash": 0.8}}
    assert "Folds choose no options" in " ".join(results.scores(cell).notes)
