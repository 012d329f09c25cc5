"""Augmentations as a run has them: by their names, or with pictures of the user's own."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from kood import registry
from kood.data.images import fit_images
from kood.pipeline.prepare import PICTURES, Rows
from kood.recipe import Recipe

__all__ = ["augmentations", "decided"]

#: Pictures are kept in memory, and no more than so many bytes of them.
MOST_BYTES = 2**28


def augmentations(
    recipe: Recipe, data: Rows, names: Sequence[str], image_shape: tuple[int, int, int] | None = None
) -> list[str | Callable]:
    """What a training's batches are augmented by.

    Args:
        recipe: Its `data.pictures` are what `pixmix` mixes in, where it has any.
        data: The images of the run.
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
