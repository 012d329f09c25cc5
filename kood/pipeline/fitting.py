"""How every stage that trains does it: under its bar, its clock and its log."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kood import training
from kood.pipeline.stage import Stage
from kood.pipeline.work import Work
from kood.report import fit_callback
from kood.timing import Pace, TimeBudget

__all__ = ["fitted"]


def fitted(
    stage: Stage,
    work: Work,
    folder: Path,
    model: keras.Model,
    batches: Callable[[int], Any],
    *,
    epochs: int,
    steps_per_epoch: int,
    rows: int,
    limit: TimeBudget | None = None,
    images: np.ndarray | None = None,
) -> tuple[keras.Model, dict[str, Any], int]:
    """Trains a stage's model, from its last checkpoint if there is one.

    Args:
        stage: What the model is trained for.
        work: The run.
        folder: The stage's folder.
        model: Compiled.
        batches: As for `kood.training.fit`, and likewise `epochs`, `steps_per_epoch` and `images`.
        epochs: Epochs in all.
        steps_per_epoch: Batches of one.
        rows: Rows of a batch.
        limit: Ends the training in time, and moves its rate.
        images: What the batches name rows of.

    Returns:
        The trained model, what the stage's facts hold of it, and its number of steps.
    """
    pace = Pace(rows)
    shown = limit.shown if limit else {"total": epochs}
    with work.progress.bar(stage.role, **shown) as bar:
        model, history = training.fit(
            model,
            batches,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            folder=folder,
            log=folder / "history.csv",
            board=work.board(stage.role),
            callbacks=[
                fit_callback(bar, position=(lambda: limit.spent) if limit else None),
                pace,
                None if limit else work.budget.deadline(),
            ],
            budget=limit,
            images=images,
        )
    steps = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
    return model, {"history": history, "parameters": model.count_params(), **pace.facts}, steps
