"""Which trainings keep their images on the device."""

from collections.abc import Callable, Sequence

import numpy as np

from kood.backends import resides
from kood.data import ImageSet
from kood.data.resident import only_move, pixels_of
from kood.recipe import Recipe

__all__ = ["resident_images"]


def resident_images(
    recipe: Recipe,
    augment: Sequence[str | Callable],
    id_set: ImageSet,
    outliers: ImageSet | None = None,
    labelled: ImageSet | None = None,
) -> np.ndarray | None:
    """The images of a training that go to the device before it, so that its batches need not have any.

    Args:
        recipe: Of the training.
        augment: Augmentations of the training.
        id_set: As for `kood.data.batches.training_batches`, and likewise the others.
        outliers: Likewise.
        labelled: Likewise.

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
