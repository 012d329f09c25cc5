"""The whole story of a run, one function per stage, in order.

    recipe -> data -> diffusion model -> judge -> outliers, pure samples -> classifier -> evaluation -> audit
    -> comparison with no exposure -> SavedModel -> report

Stages hand each other only files. What a stage's result depends on is spelled out in its call of `run.stage`; where
nothing of that changed, its result is taken as it lies.
"""

import errno
import io
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import keras
from rich.console import Console
from rich.text import Text

from kood import report
from kood.errors import UserError
from kood.pipeline.audit import audit_outliers
from kood.pipeline.baseline import compare_with_baseline, train_baseline
from kood.pipeline.belonging import Belonging, refuse_mixed_classes
from kood.pipeline.budget import Budget, OutOfTimeError
from kood.pipeline.classify import evaluate_classifier, train_classifier
from kood.pipeline.diffusion import train_denoiser
from kood.pipeline.environment import origin_of
from kood.pipeline.export import export_model
from kood.pipeline.judge import train_judge
from kood.pipeline.outliers import make_outliers
from kood.pipeline.prepare import check, prepare_data
from kood.pipeline.samples import make_pure_samples
from kood.pipeline.summary import headline_scores, summarize, write_report
from kood.pipeline.team import Team
from kood.pipeline.work import Work
from kood.process import keras_defaults
from kood.recipe import Recipe, load
from kood.runs import Run, write_atomically
from kood.steps import obtain
from kood.text import masked

__all__ = ["make_cell", "run"]

#: A disk without room, a quota or a limit reached, a disk that is for reading only.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@keras_defaults()
def run(
    path: str | Path,
    overrides: tuple[str, ...] | list[str] = (),
    *,
    fresh: bool = False,
    quick: bool = False,
    any_backend: bool = False,
    other_data: bool = False,
    began: float | None = None,
    saved: Path = Path("saved"),
    console: Console | None = None,
) -> dict[str, Any]:
    """Runs a recipe from its file to its report.

    Where the backend's launcher started several processes, each of them calls this; the first one reports.

    Args:
        path: The recipe.
        overrides: `KEY=VALUE` settings.
        fresh: Make every stage again.
        quick: Smoke run.
        any_backend: Take stages that another backend finished, and go on with those that it left half made.
        other_data: Go on in a run folder that belongs to other classes or to another data set; its report is kept.
        began: When the command began, on `time.monotonic`; `budget.minutes` count from there, or from now on.
        saved: Where run folders go.
        console: Where to print.

    Returns:
        What `report.json` holds.

    Raises:
        UserError: the recipe, the data or the environment cannot do it.
    """
    console = console or Console()
    recipe = load(path, overrides, quick=quick)
    budget = Budget(recipe, began)
    asked = [cell.train.devices for _, cell in recipe.cells()]
    devices = obtain(recipe.train.devices, most=max(1 if number == "auto" else number for number in asked))
    folder = Run(saved / recipe.name, fresh=fresh, backend=keras.backend.backend(), any_backend=any_backend)
    if devices.processes > 1 and recipe.budget.minutes is not None:
        raise UserError("budget.minutes: several processes have no common clock; run it in one, or without --minutes")
    team = Team(devices, folder)
    if not team.leads:
        console = Console(file=io.StringIO())
    folder.on_damage = lambda message: console.print(Text(message, "yellow"), soft_wrap=True)
    with folder.held() if team.leads else nullcontext(), team.gathered():
        refused, belonging = team.leads, Belonging(folder, other_data)

        def accepted(work: Work) -> None:
            nonlocal refused
            if team.leads:
                belonging.accept(work)
            if refused:
                write_atomically(folder.folder / "recipe.toml", recipe.to_toml().encode())
            refused = False

        try:
            make = _run_matrix if recipe.matrix else _run_single
            told = {"origin": origin_of(Path(path), overrides), "accepted": accepted, "budget": budget}
            result = make(recipe, team, console, told)
        except UserError:
            if refused:
                folder.withdraw()
            raise
        except Exception as error:
            if not team.leads:
                raise
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise UserError(
                    f"{folder.folder}: cannot write there ({error.strerror}); make room, and the same command goes on "
                    "where this one was",
                    exit_code=1,
                ) from error
            log = folder.folder / "error.log"
            write_atomically(log, masked(traceback.format_exc()).encode("utf-8", "backslashreplace"))
            raise UserError(f"{type(error).__name__}: {error} (details in {log})", exit_code=1) from error
        if team.leads:
            (folder.folder / "error.log").unlink(missing_ok=True)  # Of an earlier run, which this one has mended.
            _say_where(console, folder.folder, result)
    return result


def _run_single(recipe: Recipe, team: Team, console: Console, told: dict[str, Any]) -> dict[str, Any]:
    work = Work(recipe, team, report.StageProgress(console), team.devices, **told)
    result = make_cell(work)
    if not team.leads:
        return result
    write_report(team.run.folder, result, work)
    report.print_cell(console, result)
    return result


def make_cell(work: Work) -> dict[str, Any]:
    """One classifier, from data to SavedModel; returns its part of the report, in the first of several processes."""
    prepare_data(work)
    check(work)
    work.accepted(work)
    if work.recipe.needs_diffusion:
        train_denoiser(work)
    if work.recipe.needs_judge:
        train_judge(work)
    outliers = make_outliers(work)
    if work.recipe.samples_pure:
        make_pure_samples(work)
    train_classifier(work, outliers, work.stages.get("pure"))
    train_baseline(work)
    if not work.team.leads:
        return {}
    evaluate_classifier(work)
    if work.recipe.audits:
        audit_outliers(work)
    compare_with_baseline(work)
    if work.recipe.serve.export:
        export_model(work)
    return summarize(work)


def _run_matrix(recipe: Recipe, team: Team, console: Console, told: dict[str, Any]) -> dict[str, Any]:
    progress, cells = report.StageProgress(console), recipe.cells()
    budget: Budget = told["budget"]
    refuse_mixed_classes([cell for _, cell in cells])
    made: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    seen: set[Path] = set()
    for number, (labels, cell) in enumerate(cells, start=1):
        shown = ", ".join(f"{key} {label}" for key, label in labels.items())
        progress.say(f"cell {number}/{len(cells)}: {shown}", style="bold")
        try:
            work = Work(cell, team, progress, obtain(cell.train.devices), seen=seen, labels=labels, **told)
            made.append({**make_cell(work), "cell": labels})
            if team.leads and number < len(cells):  # A run that is killed later has told what it found.
                missing = [{"cell": later, "why": "the run has not come to it"} for later, _ in cells[number:]]
                _write_matrix(recipe, team, budget, made, failed, [*left_out, *missing])
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
            f"no cell was finished in {recipe.budget.minutes:g} minutes ({left_out[0]['why']}); give more, or lower "
            "train.epochs",
            exit_code=1,
        )
    if not team.leads:
        return {}
    result = _write_matrix(recipe, team, budget, made, failed, left_out)
    report.print_matrix(console, result)
    return result


def _write_matrix(
    recipe: Recipe,
    team: Team,
    budget: Budget,
    made: list[dict[str, Any]],
    failed: list[dict[str, Any]],
    left_out: list[dict[str, Any]],
) -> dict[str, Any]:
    """The report of the cells so far."""
    result = {
        **{key: made[0][key] for key in ("backend", "kood", "quick", "environment")},
        "recipe": recipe.name,
        "cells": made,
        "failed": failed,
        "left_out": left_out,
        "budget": budget.facts(),
        "table": _table(recipe, made, team.run.folder),
    }
    report.write_json(team.run.folder / "report.json", result)
    report.write(team.run.folder / "report.html", result)
    return result


def _table(recipe: Recipe, cells: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    rows = report.aggregate(cells)
    if not recipe.report.baseline:
        return rows
    apart = report.differences(
        cells, lambda labels: {**labels, **recipe.report.baseline}, lambda cell: headline_scores(folder, cell)
    )
    return [{**row, "difference": one} for row, one in zip(rows, apart, strict=True)]


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
    console.print(Text(f"Report: {folder / 'report.html'}"), soft_wrap=True)
    if result.get("version"):
        console.print(Text(f"SavedModel: {folder / str(result['version'])}"), soft_wrap=True)
