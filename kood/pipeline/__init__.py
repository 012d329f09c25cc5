"""The whole story of a run, one function per stage, in order.

    recipe -> data -> diffusion model -> judge -> outliers, pure samples -> classifier -> evaluation -> audit
    -> comparison with no exposure -> SavedModel -> report

Stages hand each other only files. What a stage's result depends on is spelled out in its call of `run.stage`; where
nothing of that changed, its result is taken as it lies.
"""

import traceback
from pathlib import Path
from typing import Any

import keras
from rich.console import Console

from kood import report
from kood.errors import UserError
from kood.pipeline.audit import audit_outliers
from kood.pipeline.baseline import compare_with_baseline
from kood.pipeline.classify import evaluate_classifier, export_model, train_classifier
from kood.pipeline.judge import train_judge
from kood.pipeline.outliers import make_outliers, train_denoiser
from kood.pipeline.prepare import check, prepare_data
from kood.pipeline.samples import make_pure_samples
from kood.pipeline.summary import summarize, write_report
from kood.pipeline.work import Work
from kood.recipe import Recipe, load
from kood.runs import Run, write_atomically

__all__ = ["make_cell", "run"]


def run(
    path: str | Path,
    overrides: tuple[str, ...] | list[str] = (),
    *,
    fresh: bool = False,
    quick: bool = False,
    saved: Path = Path("saved"),
    console: Console | None = None,
) -> dict[str, Any]:
    """Runs a recipe from its file to its report.

    Args:
        path: The recipe.
        overrides: `KEY=VALUE` settings.
        fresh: Make every stage again.
        quick: Smoke run.
        saved: Where run folders go.
        console: Where to print.

    Returns:
        What `report.json` holds.

    Raises:
        UserError: the recipe, the data or the environment cannot do it.
    """
    console = console or Console()
    recipe = load(path, overrides, quick=quick)
    with Run(saved / recipe.name, fresh=fresh).held() as folder:
        write_atomically(folder.folder / "recipe.toml", recipe.to_toml().encode())
        try:
            result = _run_matrix(recipe, folder, console) if recipe.matrix else _run_single(recipe, folder, console)
        except UserError:
            raise
        except Exception as error:
            log = folder.folder / "error.log"
            write_atomically(log, traceback.format_exc().encode())
            raise UserError(f"{type(error).__name__}: {error} (details in {log})", exit_code=1) from error
        _say_where(console, folder.folder, result)
    return result


def _run_single(recipe: Recipe, folder: Run, console: Console) -> dict[str, Any]:
    work = Work(recipe, folder, report.StageProgress(console))
    result = make_cell(work)
    write_report(folder.folder, result, work)
    report.print_cell(console, result)
    return result


def make_cell(work: Work) -> dict[str, Any]:
    """One classifier, from data to SavedModel; returns its part of the report."""
    prepare_data(work)
    check(work)
    if work.recipe.needs_diffusion:
        train_denoiser(work)
    if work.recipe.needs_judge:
        train_judge(work)
    outliers = make_outliers(work)
    if work.recipe.samples_pure:
        make_pure_samples(work)
    train_classifier(work, outliers, work.stages.get("pure"))
    evaluate_classifier(work)
    if work.recipe.audits:
        audit_outliers(work)
    compare_with_baseline(work)
    if work.recipe.serve.export:
        export_model(work)
    return summarize(work)


def _run_matrix(recipe: Recipe, folder: Run, console: Console) -> dict[str, Any]:
    progress, cells = report.StageProgress(console), recipe.cells()
    made, failed = [], []
    seen: set[Path] = set()
    for number, (labels, cell) in enumerate(cells, start=1):
        shown = ", ".join(f"{key} {label}" for key, label in labels.items())
        progress.say(f"cell {number}/{len(cells)}: {shown}", style="bold")
        try:
            made.append({**make_cell(Work(cell, folder, progress, seen=seen)), "cell": labels})
        except Exception as error:  # Whatever it was, the other cells are still worth making.
            failed.append({"cell": labels, "error": f"{error}" if isinstance(error, UserError) else repr(error)})
            progress.say(f"cell {number}/{len(cells)} failed: {failed[-1]['error']}", style="red")
            if not made and getattr(error, "exit_code", 1) == 2:
                raise  # Wrong input, which every other cell has too or which is cheap to mend now.
        keras.utils.clear_session()
    if not made:
        raise UserError(f"every cell failed; the first: {failed[0]['error']}", exit_code=1)
    result = {
        **{key: made[0][key] for key in ("backend", "kood", "quick", "environment")},
        "recipe": recipe.name,
        "cells": made,
        "failed": failed,
        "table": report.aggregate(made),
    }
    report.write_json(folder.folder / "report.json", result)
    report.write(folder.folder / "report.html", result)
    report.print_matrix(console, result)
    return result


def _say_where(console: Console, folder: Path, result: dict[str, Any]) -> None:
    cells = result.get("cells", [result])
    trained = [
        name
        for cell in cells
        for name in ("diffusion", "classifier", "baseline_classifier")
        if not cell["stages"].get(name, {"cached": True})["cached"]
    ]
    if not trained:
        console.print("Nothing was trained: the results of an earlier run fit this recipe.", highlight=False)
    console.print(f"Report: {folder / 'report.html'}", highlight=False, soft_wrap=True)
    if result.get("version"):
        console.print(f"SavedModel: {folder / str(result['version'])}", highlight=False, soft_wrap=True)
