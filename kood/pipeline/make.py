"""Makes the stages of a cell, one after the other."""

from typing import Any

from kood.pipeline.attached import Attached
from kood.pipeline.cell import Cell
from kood.pipeline.checks import check
from kood.pipeline.summary import summarize
from kood.pipeline.work import Work

__all__ = ["make_cell"]


def make_cell(work: Work) -> tuple[dict[str, Any], Cell]:
    """Makes one classifier, from its data to its SavedModel.

    Args:
        work: The run.

    Returns:
        Its part of the report, empty in all but the first of several processes, and its stages.
    """
    cell, left_out = Cell(work.recipe), set()
    # A model that is refused leaves nothing behind: the folder is taken once it has been looked at.
    last_refused = cell.data if work.recipe.attach is None else cell.classifier
    for stage in cell.stages:
        if not (stage.is_shared or work.team.leads):
            continue
        if why := stage.applies():
            if why not in left_out:
                work.progress.say(why, style="yellow")
            left_out.add(why)
            continue
        stage.ensure(work)
        if stage is cell.data:
            check(work.recipe, cell.data, work.devices.count)
        if stage is last_refused:
            if isinstance(stage, Attached):
                stage.check()
            work.accepted(cell.data)
    return (summarize(work, cell) if work.team.leads else {}), cell
