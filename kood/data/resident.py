"""Batches without pixels, for a training whose device holds the images: which rows they are, and how they are moved.

Orders and random draws are those of the batches with pixels (`kood.data.batches`), and so is what the device makes of
them (`kood.backends.resident`).
"""

from collections.abc import Callable, Sequence

import numpy as np

from kood import registry
from kood.data.augment.geometry import MOVES, every_place
from kood.data.image_set import ImageSet
from kood.data.tf_on_cpu import tf

__all__ = ["moved_places", "only_move", "pixels_of"]


def only_move(augment: Sequence[str | Callable]) -> bool:
    """Whether these augmentations only move pixels, so that batches can do without; a function may do anything."""
    return all(isinstance(one, str) and _attribute(one) in MOVES for one in augment)


def pixels_of(id_set: ImageSet, outliers: ImageSet | None = None, labelled: ImageSet | None = None) -> np.ndarray:
    """The images that the rows of a batch without pixels count through, uint8 (N, H, W, C): all of `id_set`, then of
    `labelled`, then of `outliers`, as `kood.data.batches` has them."""
    sets = [found.images for found in (id_set, labelled, outliers) if found is not None]
    return np.concatenate(sets) if len(sets) > 1 else np.asarray(sets[0])


def moved_places(augment: Sequence[str], count: int, sides: tuple[int, int], seed):
    """Which rows and columns the augmented images show.

    Args:
        augment: Names of `kood.data.augment`, applied in order; all of them only move pixels.
        count: B, images of the batch.
        sides: (H, W).
        seed: Integer (2,), what the batch with pixels is augmented with.

    Returns:
        {"down": int16 (B, H), "across": int16 (B, W)}; nothing where there is no augmentation.
    """
    if not augment:
        return {}
    down, across = every_place(count, sides)
    # The last one says what its own input shows, and so on back to the image.
    for number in reversed(range(len(augment))):
        move = MOVES[_attribute(augment[number])]
        down, across = move(down, across, sides, tf.random.fold_in(seed, number))
    return {"down": tf.cast(down, tf.int16), "across": tf.cast(across, tf.int16)}


def _attribute(name: str) -> str:
    entry = registry.find("augmentations", name, "data.augment")
    return entry.path if entry.package else entry.attribute
