"""Makes the stages of a cell, one after the other."""

from dataclasses import replace
from typing import Any

from kood.errors import UserError
from kood.pipeline.attached import Attached
from kood.pipeline.cell import Cell
from kood.pipeline.checks import check
from kood.pipeline.evaluation import Evaluation
from kood.pipeline.held_out import notes_of, notes_on, told_folds
from kood.pipeline.prepare import Data
from kood.pipeline.stage import Work
from kood.pipeline.summary import made_otherwise, summarize

__all__ = ["make_cell"]


def make_cell(work: Work) -> tuple[dict[str, Any], Cell]:
    """Makes one classifier, from its data to its SavedModel.

    Returns:
        Its part of the report, empty in all but the first of several processes, and its stages.
    """
    cell, left_out = Cell(work.recipe), set()
    data = cell.data
    assert isinstance(data, Data)  # Those of a fold are its parent's.
    # A model that is refused leaves nothing behind: the folder is taken once it has been looked at.
    last_refused = data if work.recipe.attach is None else cell.classifier
    for stage in cell.stages:
        if not (stage.is_shared or work.team.leads):
            continue
        if why := stage.applies():
            if why not in left_out:
                work.progress.say(why, style="yellow")
            left_out.add(why)
            continue
        stage.ensure(work)
        if stage is data:
            check(work.recipe, data, work.devices)
        if stage is last_refused:
            if isinstance(stage, Attached):
                stage.check()
            work.accepted(data, cell.classifier.labelled(data.images("train")).class_names)
    held_out, line, texts = _make_folds(work, cell)
    if not work.team.leads:
        return {}, cell
    told = summarize(work, cell)
    if held_out:
        told |= {**held_out, "stages": told["stages"] | line}
        told |= {key: [*told[key], *more] for key, more in texts.items()}
    return told, cell


def _make_folds(work: Work, cell: Cell) -> tuple[dict[str, Any], dict[str, Any], dict[str, list[str]]]:
    """Makes the same classifier without some classes, fold by fold.

    Returns:
        Their part of the report, their line among its stages, and their warnings and notes, each empty where there are
        no folds.
    """
    # By what score is measured only the first of several processes knows, and only that measures.
    folds = cell.folds(cell.evaluation.headline if work.team.leads else "")
    work = replace(work, budget=work.budget.for_folds())
    made: list[tuple[tuple[str, ...], Evaluation]] = []
    left_out: list[dict[str, Any]] = []
    for number, (held, fold) in enumerate(folds, start=1):
        without = f"fold {number}/{len(folds)}: without {', '.join(map(repr, held))}"
        work.progress.say(without, style="bold")
        try:
            for stage in fold.stages:
                if stage.is_shared or work.team.leads:
                    stage.ensure(work)
        except UserError as error:  # What is published is there, and is worth its report.
            left_out.append({"classes": list(held), "why": f"{error}"})
            work.progress.say(f"{without}: left out: {error}", style="yellow")
            continue
        made.append((held, fold.evaluation))
    settings = work.recipe.data.hold_out
    if not (folds and settings and work.team.leads):
        return {}, {}, {}
    lines = [stage.line for _, fold in folds for stage in fold.made]
    line = {
        "seconds": sum(one["seconds"] for one in lines),
        "cached": all(one["cached"] for one in lines),
        "backend": ", ".join(dict.fromkeys(one["backend"] for one in lines)),
    }
    notes = notes_on(settings, [held for held, _ in folds], cell.data.images("train").class_names)
    measured = cell.evaluation.facts["scores"]
    warnings = []
    for held, fold in folds:
        without = f"data.hold_out: without {', '.join(map(repr, held))}"
        found = notes_of(fold.data, fold.exposed_to.values(), fold.evaluation, measured)
        notes += [f"{without}: {note}" for note in found]
        warnings += [f"{without}: {text}" for stage in fold.made for text in stage.warnings]
    notes += made_otherwise([("folds", stage) for _, fold in folds for stage in fold.made], work.run.versions)
    texts = {"warnings": warnings, "notes": notes}
    return {"hold_out": told_folds(made, left_out, work.run.folder)}, {"folds": line}, texts
