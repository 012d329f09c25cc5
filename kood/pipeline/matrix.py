"""The cells of a matrix, one after the other, and the table of them all."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras

from kood import report
from kood.backends import obtain
from kood.errors import UserError
from kood.pipeline.belonging import refuse_mixed_classes
from kood.pipeline.budget import OutOfTimeError
from kood.pipeline.make import make_cell
from kood.pipeline.stage import Work
from kood.pipeline.summary import headline_scores, labelled_rightly, scores_by
from kood.recipe import Recipe
from kood.text import masked

__all__ = ["run_matrix"]


def run_matrix(whole: Work) -> dict[str, Any]:
    """Makes every cell, and the report after each.

    Args:
        whole: Of the recipe with its matrix; each cell has one that differs in what is the cell's own.

    Returns:
        What `report.json` holds; nothing in all but the first of several processes.

    Raises:
        UserError: no cell was finished, or the first of them is refused.
    """
    cells, progress = whole.recipe.cells(), whole.progress
    refuse_mixed_classes([cell for _, cell in cells])
    so_far: dict[str, list[dict[str, Any]]] = {"cells": [], "failed": [], "left_out": []}
    made, failed, left_out = so_far.values()
    due = 0.0
    for number, (labels, cell) in enumerate(cells, start=1):
        shown = ", ".join(f"{key} {label}" for key, label in labels.items())
        progress.say(f"cell {number}/{len(cells)}: {shown}", style="bold")
        try:
            work = replace(whole, recipe=cell, devices=obtain(cell.train.devices), labels=labels)
            with whole.team.cell(number):
                found, _ = make_cell(work)
            made.append({**found, "cell": labels})
            # A run that is killed later has told what it found, but for what a twentieth of its time would not write.
            if whole.team.leads and number < len(cells) and (began := time.monotonic()) >= due:
                missing = [{"cell": later, "why": "the run has not come to it"} for later, _ in cells[number:]]
                _write_matrix(whole, {**so_far, "left_out": [*left_out, *missing]})
                due = time.monotonic() + 20 * (time.monotonic() - began)
        except OutOfTimeError as error:
            left_out.append({"cell": labels, "why": f"{error}"})
            progress.say(f"cell {number}/{len(cells)} left out: {error}", style="yellow")
        except Exception as error:  # Whatever it was, the other cells are still worth making.
            if not made and getattr(error, "exit_code", 1) == 2:
                raise  # Wrong input, which every other cell has too or which is cheap to mend now.
            failed.append(
                {"cell": labels, "error": f"{error}" if isinstance(error, UserError) else masked(repr(error))}
            )
            progress.say(f"cell {number}/{len(cells)} failed: {failed[-1]['error']}", style="red")
        keras.utils.clear_session()
    if not made and failed:
        raise UserError(f"every cell failed; the first: {failed[0]['error']}", exit_code=1)
    if not made:
        raise UserError(
            f"no cell was finished in {whole.recipe.budget.minutes:g} minutes ({left_out[0]['why']}); give more, or "
            "lower train.epochs",
            exit_code=1,
        )
    return _write_matrix(whole, so_far) if whole.team.leads else {}


def _write_matrix(whole: Work, so_far: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The report of the cells so far."""
    recipe, made, folder = whole.recipe, so_far["cells"], whole.run.folder
    result = {
        **{key: made[0][key] for key in ("backend", "kood", "quick", "environment")},
        "recipe": recipe.name,
        **so_far,
        "budget": whole.budget.facts(),
        "table": _table(recipe, made, folder),
    }
    if recipe.report.leaderboard:
        result["leaderboard"] = report.leaderboard_entries(made, lambda cell, score: scores_by(folder, cell, score))
    report.write_json(folder / "report.json", result)
    report.write(folder / "report.html", result)
    return result


def _table(recipe: Recipe, cells: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    rows = report.aggregate(cells)
    if not recipe.report.baseline:
        return rows
    apart = report.differences(
        cells, lambda labels: {**labels, **recipe.report.baseline}, lambda cell: headline_scores(folder, cell),
        lambda cell: labelled_rightly(folder, cell),
    )  # fmt: skip
    return [{**row, "difference": one} for row, one in zip(rows, apart, strict=True)]
