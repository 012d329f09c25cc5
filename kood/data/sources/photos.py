"""Patches of real photographs, there without a download."""

import numpy as np

from kood.data.image_set import ImageSet
from kood.data.rules import STRETCHED, Framing

__all__ = ["photo_patches"]


def photo_patches(
    image_shape: tuple[int, int, int], *, seed: int, count: int = 1000, framing: Framing = STRETCHED
) -> dict[str, ImageSet]:
    """Random square patches of the two photographs that come with scikit-learn (no download).

    A patch's side is drawn uniformly between the larger of H and W (or the photograph's own height, where that is
    less) and the photograph's height, its place uniformly; it is then brought to H x W. They have no labels.
    """
    from sklearn.datasets import load_sample_images

    from kood.data.images import fit_images

    photographs, draw = load_sample_images().images, np.random.default_rng([seed, 0x9407])
    patches = np.empty((count, *image_shape), np.uint8)
    for row in range(count):
        photograph = photographs[draw.integers(len(photographs))]
        longest = min(photograph.shape[:2])
        side = draw.integers(min(max(image_shape[:2]), longest), longest + 1)
        top = draw.integers(photograph.shape[0] - side + 1)
        left = draw.integers(photograph.shape[1] - side + 1)
        patch = np.asarray(photograph[top : top + side, left : left + side])
        patches[row] = fit_images(patch[None], image_shape, framing)[0]
    return {"all": ImageSet(patches)}
