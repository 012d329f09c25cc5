"""Results in the terminal, laid out as a paper would print them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kood.report import by_class, outlier_audit
from kood.report.aggregate import aggregate, beside_controls
from kood.report.paired import DIFFERENCE_NOTE
from kood.report.wording import (
    COLUMNS,
    INTERVAL_NOTE,
    SMOKE,
    all_notes,
    all_warnings,
    by_reason,
    duration,
    headings,
    headline_names,
    mean_std,
    origin,
    override,
    percent,
    sets,
    setting,
    signed,
    threshold_meaning,
    validation_note,
    with_interval,
)
from kood.text import clean

__all__ = ["DIFFERENCE_COLUMNS", "best_marks", "print_cell", "print_matrix"]

#: What a row of the matrix table shows: heading, path to the statistic, whether more is better.
MATRIX_COLUMNS: tuple[tuple[str, tuple[str, str], bool], ...] = (
    ("ID\nacc", ("id", "accuracy"), True),
    ("near\nAUROC", ("near", "auroc"), True),
    ("near\nFPR@95", ("near", "fpr_at_ood_tpr"), False),
    ("far\nAUROC", ("far", "auroc"), True),
    ("far\nFPR@95", ("far", "fpr_at_ood_tpr"), False),
)


def _fitting(console: Console, text: str) -> str:
    """The text with the signs that an ASCII-only terminal cannot show replaced."""
    if not console.options.ascii_only:
        return text
    for sign, plain in (("±", "+-"), ("—", "-"), ("·", "|"), ("◂", "<"), ("‡", "!"), ("↓", "v")):
        text = text.replace(sign, plain)
    return text.encode("ascii", "backslashreplace").decode("ascii")


def _say(console: Console, text: str, style: str = "", indent: int = 0) -> None:
    # Text, never markup: "[red]" in a user's class name is a name.
    line = Text(_fitting(console, text), style=style)
    console.print(Padding(line, (0, 0, 0, indent)) if indent else line, highlight=False)


def _table(**options: Any) -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", **options)


def _warn(console: Console, report: Mapping[str, Any]) -> None:
    warnings = ([SMOKE] if report.get("quick") else []) + all_warnings(report)
    for text in warnings:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(Text("WARNING", style="bold yellow"), Text(_fitting(console, text), style="yellow"))
        console.print(grid)
    notes = all_notes(report)
    for text in notes:
        _say(console, text, "dim")
    if warnings or notes:
        console.print()


def _width(console: Console, table: Table) -> int:
    for column in table.columns:
        if column.no_wrap:  # A column of figures is as wide as the widest of them; Rich measures its longest word.
            texts = [column.header, *column.cells]
            column.min_width = max(cell_len(line) for text in texts for line in str(text).split("\n"))
    # Measured against no width at all: a measurement never exceeds the width it is taken in.
    return Measurement.get(console, console.options.update(width=10_000), table).minimum


def _print_fitting(console: Console, tables: Sequence[Table]) -> None:
    """Prints the first table that fits, or else the last: half a figure would be a wrong one."""
    console.print(next((one for one in tables if _width(console, one) <= console.width), tables[-1]))


def _headline_table(console: Console, cell: Mapping[str, Any], metrics: Sequence[str]) -> Table:
    table = _table()
    table.add_column("dataset", overflow="fold", min_width=12)
    table.add_column("images", justify="right", no_wrap=True)
    for name, qualifier in (COLUMNS[metric] for metric in metrics):
        table.add_column(Text(f"{name}\n{qualifier}".strip()), justify="right", no_wrap=True)
    figures = cell["scores"].get(cell["headline_score"], {})

    sure = cell.get("intervals") or {}

    def add(label: Text, images: str, name: str, style: str = "") -> None:
        one = figures.get(name) or {}
        values = [
            with_interval(one.get(metric), sure.get(name)) if metric == "auroc" else percent(one.get(metric))
            for metric in metrics
        ]
        table.add_row(label, images, *(_fitting(console, value) for value in values), style=style)

    for kind in ("near", "far"):
        names = sets(cell, kind)
        if not names:
            continue
        table.add_row(Text(f"{kind}-OOD", style="italic"))
        for name in names:
            images = cell["datasets"][name].get("images")
            label = Text("  " + _fitting(console, clean(name)))
            add(label, "" if images is None else str(images), name)
        add(Text("  mean"), "", kind, "bold")
    return table


def _scores_table(console: Console, cell: Mapping[str, Any], metrics: Sequence[str]) -> Table:
    table = _table(padding=(0, 1, 0, 0))
    table.add_column("score", overflow="fold", min_width=12)
    for metric in metrics:
        for kind in ("near", "far"):
            table.add_column(Text(f"{kind}\n{COLUMNS[metric][0]}"), justify="right", no_wrap=True)
    for score, figures in cell["scores"].items():
        headline = score == cell["headline_score"]
        near, far = figures.get("near") or {}, figures.get("far") or {}
        values = [one.get(metric) for metric in metrics for one in (near, far)]
        table.add_row(
            Text(_fitting(console, clean(score) + (" ◂" if headline else ""))),
            *(_fitting(console, percent(value)) for value in values),
            style="bold" if headline else "",
        )
    return table


def _class_table(console: Console, classes: Sequence[Mapping[str, Any]], columns: Sequence[by_class.Column]) -> Table:
    table = _table(padding=(0, 1, 0, 0))
    table.add_column("class", overflow="fold", min_width=12)
    for heading, _ in columns:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for one in classes:
        values = (_fitting(console, content(one)) for _, content in columns)
        table.add_row(Text(_fitting(console, clean(one["name"]))), *values)
    return table


def _print_classes(console: Console, cell: Mapping[str, Any]) -> None:
    if not cell.get("classes"):
        return
    _say(console, by_class.TITLE, "bold")
    every, plain = by_class.columns(cell), by_class.columns(cell, sure=False)
    for heading, classes in by_class.blocks(cell["classes"]):
        if heading:
            _say(console, heading)
        _print_fitting(
            console, [_class_table(console, classes, columns) for columns in (every, every[:3], plain[:3], plain[1:3])]
        )
    if len(cell["classes"]) > by_class.FEW:
        _say(console, "All classes stand in report.html and report.json.", "dim")
    _say(console, by_class.note(cell), "dim")
    console.print()


def _stages(cell: Mapping[str, Any]) -> str:
    stages = cell.get("stages", {})
    parts = [
        f"{clean(name)} {duration(stage.get('seconds'))}{' (cached)' if stage.get('cached') else ''}"
        for name, stage in stages.items()
    ]
    return "Stages: " + ", ".join(parts) + "." if parts else ""


def print_cell(console: Console, cell: Mapping[str, Any]) -> None:
    """Prints the results of one run: warnings, headline score by dataset, all scores, the figures of each class,
    threshold, stages, and the audit of the outliers.

    Args:
        console: Where to print; plain text when it is not a terminal.
        cell: The result of one run. Its figures are fractions; they are printed in percent.
    """
    _say(console, clean(cell["recipe"]), "bold")
    if cell.get("cell"):
        _say(console, setting(cell["cell"]))
    _say(console, origin(cell), "dim")
    console.print()
    _warn(console, cell)
    _say(console, f"OOD detection by {clean(cell['headline_score'])}, the headline score, in percent", "bold")
    few, fewest = ("auroc", "fpr_at_ood_tpr"), ("auroc",)
    _print_fitting(console, [_headline_table(console, cell, metrics) for metrics in (tuple(COLUMNS), few, fewest)])
    if cell.get("intervals"):
        _say(console, INTERVAL_NOTE.strip(), "dim")
    console.print()
    _say(console, "All scores (◂ headline), means over the datasets, in percent; FPR@95 at OOD TPR", "bold")
    _print_fitting(console, [_scores_table(console, cell, metrics) for metrics in (few, fewest)])
    console.print()
    _print_classes(console, cell)
    images = cell["id"].get("images")
    accuracy = f"ID accuracy: {percent(cell['id'].get('accuracy'))}%"
    _say(console, accuracy + (f" of {images} test images." if images is not None else "."))
    for text in (validation_note(cell), threshold_meaning(cell), _stages(cell)):
        if text:
            _say(console, text)
    if cell.get("outlier_audit"):
        console.print()
        _say(console, outlier_audit.TITLE, "bold")
        for text in outlier_audit.lines(cell["outlier_audit"]):
            _say(console, text)


#: What a row says of its distance from the baseline: heading, part of the difference, metric.
DIFFERENCE_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("ID acc\n- baseline", "id", "accuracy"),
    ("near AUROC\n- baseline", "near", "auroc"),
    ("far AUROC\n- baseline", "far", "auroc"),
)


def best_marks(rows: Sequence[Mapping[str, Any]]) -> list[list[bool]]:
    """Which means are the best of their column of the matrix table.

    Means that print alike share the mark; a table of one row, or a column all alike, has none.

    Args:
        rows: Rows of `aggregate`.

    Returns:
        For each row one bool for each of `MATRIX_COLUMNS`.
    """
    marks = [[False] * len(MATRIX_COLUMNS) for _ in rows]
    for column, (_, (part, metric), more_is_better) in enumerate(MATRIX_COLUMNS):
        means = [(row.get(part, {}).get(metric) or {}).get("mean") for row in rows]
        there = [mean for mean in means if mean is not None and math.isfinite(mean)]
        printed = {percent(mean) for mean in there}
        if len(printed) < 2:
            continue
        best = percent(max(there) if more_is_better else min(there))
        for row, mean in enumerate(means):
            marks[row][column] = percent(mean) == best
    return marks


def _matrix_table(console: Console, rows: Sequence[Mapping[str, Any]], *, columns: int, merged: bool) -> Table:
    names = headings(rows)
    one_score = len({headline_names(row) for row in rows}) == 1
    table = _table(padding=(0, 1, 0, 0))
    if merged or not names:
        table.add_column("setting", overflow="fold", min_width=14)
    else:
        for key, name in names.items():
            # Long settings fold, but not the names of heads and outliers.
            longest = max(len(override(row["cell"].get(key))) for row in rows)
            table.add_column(Text(_fitting(console, name)), overflow="fold", min_width=min(16, longest))
    table.add_column("n", justify="right", no_wrap=True)
    for heading, _, _ in MATRIX_COLUMNS[:columns]:
        table.add_column(heading, justify="right", no_wrap=True)
    if not one_score:
        table.add_column("score", overflow="fold")
    for row, marks in zip(rows, best_marks(rows), strict=True):
        if merged or not names:
            labels = [setting(row["cell"])]
        else:
            labels = [override(row["cell"][key]) if key in row["cell"] else "—" for key in names]
        runs = len(row["seeds"])
        values = []
        for (_, (part, metric), _), best in zip(MATRIX_COLUMNS[:columns], marks, strict=False):
            text = mean_std(row.get(part, {}).get(metric), runs).replace(" ± ", "±")
            # Bold is invisible in a file or a pipe; a star is not.
            star = "" if console.is_terminal else ("*" if best else " ")
            values.append(Text(_fitting(console, text + star), style="bold" if best else ""))
        score = [] if one_score else [_fitting(console, headline_names(row))]
        table.add_row(*(Text(_fitting(console, label)) for label in labels), str(runs), *values, *map(Text, score))
    return table


def _print_table(console: Console, rows: Sequence[Mapping[str, Any]]) -> int:
    """Prints the richest form of the matrix table that fits, returns how many of its columns are shown."""
    everything = len(MATRIX_COLUMNS)
    for columns, merged in ((everything, False), (everything - 1, False), (everything, True), (everything - 1, True)):
        table = _matrix_table(console, rows, columns=columns, merged=merged)
        if _width(console, table) <= console.width:
            console.print(table)
            return columns
    for row, marks in zip(rows, best_marks(rows), strict=True):
        _say(console, f"{setting(row['cell'])} (n={len(row['seeds'])}, {headline_names(row)})", "bold")
        for (heading, (part, metric), _), best in zip(MATRIX_COLUMNS, marks, strict=True):
            value = mean_std(row.get(part, {}).get(metric), len(row["seeds"]))
            star = "*" if best and not console.is_terminal else ""
            _say(console, f"{' '.join(heading.split())}: {value}{star}", "bold" if best else "", indent=2)
    return everything


def _print_differences(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows against their baseline, in a table of its own: beside the figures it would fit no terminal."""
    if not any(row.get("difference") for row in rows):
        return
    table = _table(padding=(0, 1, 0, 0))
    table.add_column("setting", overflow="fold", min_width=14)
    table.add_column("baseline", overflow="fold", min_width=10)
    for heading, _, _ in DIFFERENCE_COLUMNS:
        table.add_column(Text(heading), justify="right")
    for row in rows:
        apart = row.get("difference")
        if apart:
            values = [signed((apart.get(part) or {}).get(metric)) for _, part, metric in DIFFERENCE_COLUMNS]
            own, against = setting(row["cell"]), setting(
                {k: v for k, v in apart["baseline"].items() if v != row["cell"].get(k)}
            )  # fmt: skip
            table.add_row(*(Text(_fitting(console, text)) for text in (own, against, *values)))
    console.print()
    _say(console, "Against the baseline, points of percent", "bold")
    console.print(table)
    _say(console, DIFFERENCE_NOTE, "dim")


def _print_incomplete(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        runs = len(row["seeds"])
        found: dict[str, int] = {}
        for figures in row["scores"].values():
            for dataset, metrics in figures.items():
                n = max((one["n"] for one in metrics.values()), default=0)
                found[dataset] = max(found.get(dataset, 0), n)
        for dataset, n in found.items():
            if n < runs and dataset not in ("near", "far"):
                _say(
                    console,
                    f"{setting(row['cell'])}: {clean(dataset)} has figures in {n} of {runs} runs.",
                    "yellow",
                )


def print_matrix(console: Console, report: Mapping[str, Any]) -> None:
    """Prints the results of a matrix: warnings, one row for each setting over its seeds, and what failed.

    Rows that differ only in their outliers (label mixup and its controls) stand next to each other. On a
    narrow console the last column goes first, then the overrides share one column.

    Args:
        console: Where to print; plain text, the best of each column starred, when it is not a terminal.
        report: The matrix report; its "table" is computed from its cells where it has none.
    """
    rows = beside_controls(report.get("table") or aggregate(report.get("cells", [])))
    failed = report.get("failed", [])
    _say(console, clean(report["recipe"]), "bold")
    _say(console, origin(report), "dim")
    console.print()
    _warn(console, report)
    if rows:
        columns = _print_table(console, rows)
        scores = {headline_names(row) for row in rows}
        notes = ["Percent; n runs."]
        if any(len(row["seeds"]) > 1 for row in rows):
            notes = ["Percent; mean ± sample standard deviation over n seeds."]
        if len(scores) == 1:
            notes.append(f"Headline score: {scores.pop()}.")
        notes.append("FPR@95: ID flagged when 95% of OOD is caught.")
        if any(any(marks[:columns]) for marks in best_marks(rows)):
            notes.append("Bold: best mean of its column." if console.is_terminal else "*: best mean of its column.")
        console.print()
        _say(console, " ".join(notes), "dim")
        _print_differences(console, rows)
        _print_incomplete(console, rows)
    else:
        _say(console, "No cell finished.", "bold red")
    if failed:
        console.print()
        _say(console, f"{len(failed)} cell{'s' if len(failed) > 1 else ''} failed", "bold red")
        for one in failed:
            _say(console, f"{setting(one['cell'])}: {clean(one['error'])}", indent=2)
    left_out = report.get("left_out", [])
    if left_out:
        console.print()
        _say(console, f"{len(left_out)} cell{'s' if len(left_out) > 1 else ''} left out", "bold yellow")
        for why, cells in by_reason(left_out).items():
            _say(console, f"{why}: {'; '.join(cells)}", indent=2)
