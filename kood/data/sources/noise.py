"""Synthetic far-out-of-distribution images: the noise sets of outlier exposure (Hendrycks et al., arXiv:1812.04606).

All are drawn in [-1, 1] and rounded to 0..255, without labels; each is made by its own stream of `seed`.
"""

import math
from collections.abc import Callable

import numpy as np

from kood.data.image_set import ImageSet
from kood.data.large import filled

__all__ = ["blobs", "gaussian", "rademacher", "uniform"]


def _bytes(count: int, image_shape: tuple[int, int, int], draw: Callable[[int], np.ndarray]) -> dict[str, ImageSet]:
    """Images that are drawn in [-1, 1], some after the others."""

    def drawn(rows: slice) -> np.ndarray:
        return np.clip(np.rint((draw(rows.stop - rows.start) + 1.0) * 127.5), 0, 255)

    return {"all": ImageSet(filled((count, *image_shape), np.uint8, drawn, 32 * math.prod(image_shape)))}


def gaussian(image_shape: tuple[int, int, int], *, seed: int, count: int = 1000) -> dict[str, ImageSet]:
    """Gaussian noise: every value from N(0, 0.5^2), clipped to [-1, 1]."""
    draw = np.random.default_rng([seed, 1])
    return _bytes(count, image_shape, lambda rows: draw.normal(scale=0.5, size=(rows, *image_shape)))


def uniform(image_shape: tuple[int, int, int], *, seed: int, count: int = 1000) -> dict[str, ImageSet]:
    """Uniform noise: every value from 0..255 with equal chance."""
    draw = np.random.default_rng([seed, 2])
    return {"all": ImageSet(draw.integers(0, 256, (count, *image_shape), dtype=np.uint8))}


def rademacher(image_shape: tuple[int, int, int], *, seed: int, count: int = 1000) -> dict[str, ImageSet]:
    """Rademacher noise: every value -1 or 1 with equal chance."""
    draw = np.random.default_rng([seed, 3])
    return {"all": ImageSet(draw.integers(0, 2, (count, *image_shape), dtype=np.uint8) * np.uint8(255))}


def blobs(image_shape: tuple[int, int, int], *, seed: int, count: int = 1000) -> dict[str, ImageSet]:
    """Blobs: coarse shapes with definite edges, made of blurred and thresholded noise.

    Every value is 1 with chance 0.7, else 0; an image is blurred over height, width and channels by a Gaussian of 1.5
    pixels (edges repeated, cut off at four standard deviations); values under 0.75 become 0; [0, 1] becomes [-1, 1].
    """
    from scipy.ndimage import gaussian_filter

    draw = np.random.default_rng([seed, 4])

    def blurred(rows: int) -> np.ndarray:
        images = (draw.random((rows, *image_shape), dtype=np.float32) < 0.7).astype(np.float32)
        images = gaussian_filter(images, sigma=(0.0, 1.5, 1.5, 1.5), mode="nearest", truncate=4.0)
        images[images < 0.75] = 0.0
        return images * 2.0 - 1.0

    return _bytes(count, image_shape, blurred)
