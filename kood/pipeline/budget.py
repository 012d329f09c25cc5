"""The time that a run may take: what each stage gets of it, and what there is no time left for.

Stages whose length is a choice are cut down: the diffusion model and the samplers get their shares, and so does the
classifier of a recipe without a matrix, in each of its folds alike. The cells of a matrix are to be compared, so each
classifier is trained as long as the recipe says or not at all. What a stage took the last time tells whether there is
time for another cell or fold.
"""

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import keras

from kood.errors import UserError
from kood.recipe import Recipe
from kood.recipe.sections import Head
from kood.report.wording import duration

__all__ = ["Budget", "OutOfTimeError"]

#: The stages that there may be too little time for, beside those of slow sources of outliers. Others are short, and
#: those after the classifier are made in any case: without them what was trained says nothing.
LONG = ("diffusion", "pure", "pure_audit", "classifier", "fine_tuned")
#: What follows the classifier in a cell.
AFTER: tuple[str, ...] = ("evaluate", "shortcut", "validation", "baseline", "decision_cost", "export")
#: The trainings that a classifier is made of, and the share of its time that the first takes where there are two.
TRAININGS, FIRST = ("classifier", "fine_tuned"), 0.1
#: Share of what a classifier may take that is kept for measuring, publishing and the report.
KEPT = 0.25


class OutOfTimeError(UserError):
    """A stage that would not be finished in time."""

    def __init__(self, message: str):
        super().__init__(message, exit_code=1)


class Budget:
    """What is left of the time of a run.

    Args:
        recipe: The whole recipe, matrix and all.
        began: When the run began, on the clock; now where not given.
        clock: Seconds since any fixed moment.
    """

    def __init__(self, recipe: Recipe, began: float | None = None, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self.began = clock() if began is None else began
        self.seconds = math.inf if recipe.budget.minutes is None else 60.0 * recipe.budget.minutes
        self._took: dict[str, float] = {}
        self._settings, self._recipe = recipe.budget, recipe
        every = [cell for _, cell in recipe.cells()]
        self._long = {*LONG, *(name for cell in every for name in _slow(cell))}
        tested = {"near", "far", "validation_ood"}
        #: How many diffusion models the cells and their folds need, and how many are there.
        self._models = len({
            (
                cell.diffusion.model_dump_json(), cell.seed if cell.diffusion.seed is None else 0, fold,
                cell.data.model_dump_json(exclude=tested if fold else {*tested, "hold_out"}),
            )
            for cell in every
            if cell.needs_diffusion
            for fold in range(1 + _folds(cell))
        })  # fmt: skip
        self._trained: set[str] = set()
        #: Whether what there is no time for may be left out; and the stages that follow a classifier.
        self.leaves_out, self.after = bool(recipe.matrix), AFTER

    def for_folds(self) -> "Budget":
        """The same time, for the folds of a cell: one that it is not enough for is left out, matrix or not, and nothing
        but an evaluation follows its classifier."""
        budget = copy.copy(self)
        budget.leaves_out, budget.after = True, ("evaluate",)
        return budget

    @property
    def spent(self) -> float:
        """Seconds since the run began."""
        return self.clock() - self.began

    @property
    def left(self) -> float:
        """Seconds that are left; infinite where the run has all the time it wants."""
        return self.seconds - self.spent

    def of(self, name: str, recipe: Recipe) -> float | None:
        """The seconds that a stage of a cell may take; None where the recipe alone decides how long it is.

        Args:
            recipe: Of the cell, or of a classifier beside it.

        Returns:
            Seconds, which follow from the recipe alone, so that the same command finds the stage again.
        """
        if math.isinf(self.seconds) or name not in self._long:
            return None
        if name == "diffusion":
            return self._settings.diffusion * self.seconds / max(1, self._models)
        if name not in TRAININGS:
            stages = len(_slow(recipe)) + recipe.pure_samples.trains + recipe.audits
            return self._settings.sampling * self.seconds / max(1, stages) / (1 + _folds(recipe))
        whole = self._recipe
        if whole.matrix:
            return None
        sampled = whole.needs_diffusion or bool(_slow(whole))
        taken = self._settings.diffusion * whole.needs_diffusion + self._settings.sampling * sampled
        exposes = whole.outliers.exposes or whole.pure_samples.trains
        beside = {"judge": whole.needs_judge, "unexposed": whole.evaluate.baseline and exposes}
        # Under a softmax head the judge is the unexposed one.
        classifiers = 1 + (any(beside.values()) if whole.head == Head() else sum(beside.values()))
        # A fold has no unexposed one, and nothing to audit.
        classifiers += _folds(whole) * (1 + whole.outliers.needs("judge"))
        part = 1.0 if whole.classifier.train != "last" else FIRST if name == "classifier" else 1.0 - FIRST
        return part * (1.0 - taken) * (1.0 - KEPT) * self.seconds / classifiers

    def timer(self, name: str, recipe: Recipe) -> Callable[[], bool]:
        """Whether a stage that begins now has used up the time that it may take, whenever it is asked."""
        seconds, began = self.of(name, recipe), self.clock()
        return lambda: seconds is not None and self.clock() - began >= seconds

    def afford(self, name: str) -> None:
        """Raises where a stage of a matrix or of a fold that has to be made would not be finished.

        Raises:
            OutOfTimeError: the time is up, or what is left is less than the same stage took before, with what follows
                it; what diffusion models that a matrix has yet to train, and their samples, may take counts as gone.
        """
        if math.isinf(self.seconds) or name in (*AFTER, "audit") or not self.leaves_out:
            return
        if self.left <= 0:
            raise OutOfTimeError(f"the {self._settings.minutes:g} minutes were up")
        if name not in self._long:
            return
        needed = sum(self._took.get(later, 0.0) for later in (*TRAININGS, *self.after))
        left = self.left
        if name == "diffusion":
            needed += self._settings.diffusion * self.seconds / max(1, self._models)
        elif name in TRAININGS:
            if self._recipe.matrix and self._models:  # A fold of a single run is finished before the next is begun.
                missing = 1.0 - len(self._trained) / self._models
                left -= missing * (self._settings.diffusion + self._settings.sampling) * self.seconds
        else:
            needed += self._took.get(name, 0.0)
        if left < max(needed, 1e-9):
            raise OutOfTimeError(
                f"{name}: {duration(max(left, 0.0))} were left for it, and it was to take {duration(needed)}"
            )

    def note(self, name: str, key: str, seconds: float) -> None:
        """Keeps what a stage took, the last of its name: the first also compiled. 0 where it was there."""
        if name == "diffusion":
            self._trained.add(key)
        if seconds:
            self._took[name] = seconds

    def deadline(self) -> keras.callbacks.Callback | None:
        """Ends a training that will not be finished in time, by `OutOfTimeError`; None where there is all the time.

        Looked at after each epoch from the second on, by the pace of the epochs after the first, which compiles; and
        at any moment whether the time is up.
        """
        if math.isinf(self.seconds):
            return None
        after = sum(self._took.get(later, 0.0) for later in self.after)
        return _Deadline(lambda: self.left - after)

    def facts(self) -> dict[str, Any]:
        """What the report says of it."""
        return {} if math.isinf(self.seconds) else {"minutes": self._settings.minutes, "seconds": round(self.spent, 1)}


def _folds(recipe: Recipe) -> int:
    """How often its classifier is trained again without some classes, or less where there are not so many ways."""
    return recipe.data.hold_out.asked if recipe.data.hold_out else 0


def _slow(recipe: Recipe) -> list[str]:
    """The sources in use that have a share of the time for sampling."""
    return [name for name, source in recipe.outliers.drawn.items() if source.is_slow]


class _Deadline(keras.callbacks.Callback):
    def __init__(self, left: Callable[[], float]):
        super().__init__()
        self.left = left
        self.epochs: list[float] = []

    def on_train_begin(self, logs=None):
        self.epochs = []

    def on_train_batch_end(self, batch, logs=None):
        if self.left() <= 0:
            self._end(f"the time is up after {len(self.epochs)} of {self.params['epochs']} epochs")

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(time.monotonic())
        missing, since = self.params["epochs"] - epoch - 1, len(self.epochs) - 1
        if not missing or not since:
            return
        needed = missing * (self.epochs[-1] - self.epochs[0]) / since
        if needed > self.left():
            self._end(f"{missing} more epochs were to take {duration(needed)}, and {duration(self.left())} were left")

    def _end(self, why: str) -> None:
        raise OutOfTimeError(f"{self.model.name}: {why}")
