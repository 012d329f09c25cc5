"""The results of a run or of a matrix in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from kood.report import across, leaderboard, outlier_audit, results, wording
from kood.report.aggregate import rows_of
from kood.report.comparable import Unlike, unlike, warnings_of
from kood.report.terminal import print_table, say, warn

__all__ = ["print_cell", "print_matrix"]


def _print_head(console: Console, report: Mapping[str, Any]) -> None:
    say(console, report["recipe"], "bold")
    if report.get("cell"):
        say(console, wording.setting(report["cell"]))
    say(console, wording.origin(report), "dim")
    console.print()
    warnings, notes = warnings_of(report), wording.all_notes(report)
    if report.get("quick"):
        warnings.insert(0, wording.SMOKE)
    for text in warnings:
        warn(console, text)
    for text in notes:
        say(console, text, "dim")
    if warnings or notes:
        console.print()


def _stages(cell: Mapping[str, Any]) -> str:
    parts = [
        f"{name} {wording.duration(stage.get('seconds'))}{' (cached)' if stage.get('cached') else ''}"
        for name, stage in cell.get("stages", {}).items()
    ]
    return "Stages: " + ", ".join(parts) + "." if parts else ""


def print_cell(console: Console, cell: Mapping[str, Any]) -> None:
    """Prints the results of one run: warnings, headline score by dataset, all scores, the figures of each class,
    threshold, stages, and the audit of the outliers.

    Args:
        console: Where to print; plain text when it is not a terminal.
        cell: The result of one run. Its figures are fractions; they are printed in percent.
    """
    _print_head(console, cell)
    for table in (results.headline(cell), results.held_out(cell), results.scores(cell), *results.classes(cell)):
        if table is not None:
            print_table(console, table)
            console.print()
    if results.every_class(cell):
        say(console, "All classes stand in report.html and report.json.", "dim")
    for text in (wording.accuracy_note(cell), wording.threshold_meaning(cell), _stages(cell)):
        if text:
            say(console, text)
    if cell.get("outlier_audit"):
        console.print()
        say(console, outlier_audit.TITLE, "bold")
        for text in outlier_audit.lines(cell["outlier_audit"]):
            say(console, text)


def print_matrix(console: Console, report: Mapping[str, Any], apart: Unlike | None = None) -> None:
    """Prints the results of a matrix: warnings, one row for each setting over its seeds, and what failed.

    Args:
        console: Where to print; plain text when it is not a terminal.
        report: The matrix report; its "table" is computed from its cells where it has none.
        apart: What of its rows does not compare; found of its cells where not given.
    """
    rows, apart = rows_of(report), apart or unlike(report.get("cells", []))
    _print_head(console, report)
    print_table(console, across.matrix(rows, apart))
    differences = across.differences(rows)
    if differences:
        console.print()
        print_table(console, differences)
    if report.get("leaderboard"):
        console.print()
        print_table(console, leaderboard.table(report["leaderboard"], leaderboard.FIRST, apart))
    failed = [f"{wording.setting(one['cell'])}: {one['error']}" for one in report.get("failed", [])]
    _print_missing(console, len(failed), "failed", "bold red", failed)
    left_out = report.get("left_out", [])
    reasons = [f"{why}: {'; '.join(cells)}" for why, cells in wording.by_reason(left_out).items()]
    _print_missing(console, len(left_out), "left out", "bold yellow", reasons)


def _print_missing(console: Console, count: int, what: str, style: str, lines: Sequence[str]) -> None:
    if count:
        console.print()
        say(console, f"{count} cell{'s' if count > 1 else ''} {what}", style)
        for text in lines:
            say(console, text, indent=2)
