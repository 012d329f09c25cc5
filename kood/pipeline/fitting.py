"""How every stage that trains does it: on augmented images, under its bar, its clock and its log."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kood import registry, training
from kood.backends import resides
from kood.data import ImageSet
from kood.data.batches import raising
from kood.data.images import fit_images
from kood.data.resident import only_move, pixels_of
from kood.pipeline.prepare import PICTURES, Rows
from kood.pipeline.stage import Stage, Work
from kood.recipe import Recipe
from kood.report import fit_callback
from kood.runs import key_of
from kood.training import Pace, TimeBudget

__all__ = ["augmentations", "decided", "fitted", "remembered", "resident_images"]

#: Pictures are kept in memory, and no more than so many bytes of them.
MOST_BYTES = 2**28
#: So much of an average of weights may be where it began without a word.
REMEMBERED = 0.05


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
        model: Compiled.
        batches: As for `kood.training.fit`, and likewise `epochs`, `steps_per_epoch` and `images`.
        limit: Ends the training in time, and moves its rate.
        images: What the batches name rows of.

    Returns:
        The trained model, what the stage's facts hold of it, and its number of steps.
    """
    pace = Pace(rows)
    shown = limit.shown if limit else {"total": epochs}
    with work.progress.bar(stage.role, **shown) as bar, raising():
        model, history = training.fit(
            model,
            batches,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            folder=folder,
            log=folder / "history.csv",
            board=work.board(f"{stage.role}-{key_of(folder)[:8]}"),
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


def remembered(key: str, ema: float | None, steps: int) -> list[str]:
    """Says so where an average of weights, which replaces them at the end, still holds much of where it began.

    Args:
        key: The recipe's, of its decay.
        ema: That decay, or None.
        steps: Of the whole training; the average begins with the weights after the first of them.
    """
    left = 0.0 if ema is None or not steps else ema ** (steps - 1)
    if left <= REMEMBERED:
        return []
    lower = f"set {key} = {1 - float(f'{5 / steps:.1g}'):g} or lower, or " if steps >= 10 else ""
    taken = f"{steps:,} step{'s' * (steps > 1)}"
    return [f"{key} = {ema:g}: after {taken} {left:.0%} of the averaged weights, which are kept, are those "
            f"that the training began with; {lower}train for more steps"]  # fmt: skip


def augmentations(
    recipe: Recipe, data: Rows, names: Sequence[str], image_shape: tuple[int, int, int] | None = None
) -> list[str | Callable]:
    """What a training's batches are augmented by.

    Args:
        recipe: Its `data.pictures` are what `pixmix` mixes in, where it has any.
        names: Of `kood.data.augment`.
        image_shape: (H, W, C) of the images that they are for; the recipe's where not given.

    Returns:
        The names, and functions in place of those that pictures go into.
    """
    if not _mixes(recipe, names):
        return list(names)
    from kood.data.augment.mixes import mixed_with

    found, most = data.images(PICTURES), max(1, MOST_BYTES // math.prod(recipe.data.shape))
    rows = np.linspace(0, len(found) - 1, min(len(found), most)).astype(int)
    pictures = fit_images(np.asarray(found.take(rows).images), image_shape or recipe.data.shape)
    return [partial(mixed_with, pictures) if _takes_pictures(name) else name for name in names]


def decided(recipe: Recipe, data: Rows, names: Sequence[str]) -> list[Any]:
    """What these augmentations decide, for fingerprints."""
    return [*names, *(data.digest(PICTURES) if _mixes(recipe, names) else [])]


def _mixes(recipe: Recipe, names: Sequence[str]) -> bool:
    return recipe.data.pictures is not None and any(map(_takes_pictures, names))


def _takes_pictures(name: str) -> bool:
    return registry.find("augmentations", name, "data.augment").name == "pixmix"


def resident_images(
    recipe: Recipe,
    augment: Sequence[str | Callable],
    id_set: ImageSet,
    outliers: ImageSet | None = None,
    labelled: ImageSet | None = None,
) -> np.ndarray | None:
    """The images of a training that go to the device before it, so that its batches need not have any.

    Args:
        id_set: As for `kood.data.batches.training_batches`, and likewise the others.

    Returns:
        uint8 (N, H, W, C) for `kood.training.fit`; None where batches bring their pixels: as `train.resident` or
        `kood.backends.resides` has it, where augmentations or mixtures make other pixels of them, and where the rows
        are features.
    """
    if not id_set.is_pixels or outliers is not None and recipe.outliers.mix != "none" or not only_move(augment):
        return None
    count = sum(len(one) for one in (id_set, outliers, labelled) if one is not None)
    if not resides(recipe.train.resident, (count, *id_set.images.shape[1:])):
        return None
    return pixels_of(id_set, outliers, labelled)
