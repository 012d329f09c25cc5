"""Synthetic far-out-of-distribution images: the noise sets of outlier exposure (Hendrycks et al., arXiv:1812.04606).

All are drawn in [-1, 1] and rounded to 0..255, without labels; each is made by its own stream of `seed`.
"""

import numpy as np

from kood.data.image_set import ImageSet

__all__ = ["blobs", "gaussian", "rademacher", "uniform"]


def _bytes(images: np.ndarray) -> dict[str, ImageSet]:
    return {"all": ImageSet(np.clip(np.rint((images + 1.0) * 127.5), 0, 255).astype(np.uint8))}


def gaussian(image_shape: tuple[int, int, int], *, seed: int, count: int = 1000) -> dict[str, ImageSet]:
    """Gaussian noise: every value from N(0, 0.5^2), clipped to [-1, 1]."""
    return _bytes(np.random.default_rng([seed, 1]).normal(scale=0.5, size=(count, *image_shape)))


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
    images = (draw.random((count, *image_shape), dtype=np.float32) < 0.7).astype(np.float32)
    images = gaussian_filter(images, sigma=(0.0, 1.5, 1.5, 1.5), mode="nearest", truncate=4.0)
    images[images < 0.75] = 0.0
    return _bytes(images * 2.0 - 1.0)
