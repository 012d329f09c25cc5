"""Pixel averages of two training images: the control for label mixup that has the same parents."""

import numpy as np

from kood.data.deferred import made
from kood.outliers.pairs import PairSource

__all__ = ["PixelMixup"]


class PixelMixup(PairSource):
    """Outliers that are pixel averages of two training images of different classes (arXiv 1710.09412).

    A mixture of the images a and b is round(w a + (1 - w) b). The first image is drawn uniformly over all, the second
    uniformly over those of other classes; the shares are w and 1 - w of their classes.
    """

    resembles, version = "pixel_mixup", 2

    def joined(self, images, first, second, weights, rng):
        """Their averages."""
        shares = weights.astype(np.float32).reshape(-1, 1, 1, 1)

        def mixed(part: np.ndarray) -> np.ndarray:
            own = shares[part]
            return np.rint(own * images[first[part]] + (np.float32(1.0) - own) * images[second[part]])

        # Two float32 copies and what they come from.
        return made((len(first), *images.shape[1:]), mixed, 12)
