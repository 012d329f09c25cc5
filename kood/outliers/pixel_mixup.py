"""Pixel averages of two training images: the control for label mixup that has the same parents."""

import math

import numpy as np

from kood.data.deferred import made
from kood.outliers import Rows
from kood.outliers.pairs import PairSource, pairs_of, shares_of, weights_of

__all__ = ["PixelMixup"]


class PixelMixup(PairSource):
    """Outliers that are pixel averages of two training images of different classes (arXiv 1710.09412).

    A mixture of the images a and b is round(w a + (1 - w) b). The first image is drawn uniformly over all, the second
    uniformly over those of other classes; the shares are w and 1 - w of their classes.
    """

    def draw(self, count, rng, train):
        """Mixes training images; `ValueError` where they are of fewer than two classes."""
        pairs = pairs_of(train.known_labels, count, rng)
        drawn = weights_of(self.weight, self.alpha, count, rng)
        images, weights = train.images, drawn.astype(np.float32).reshape(-1, 1, 1, 1)

        def mixed(part: np.ndarray) -> np.ndarray:
            first, second = (images[rows[part]] for rows in pairs)
            return np.rint(weights[part] * first + (np.float32(1.0) - weights[part]) * second)

        # Two float32 copies and what they come from.
        mixtures = made((count, *images.shape[1:]), mixed, 12 * math.prod(images.shape[1:]))
        return Rows(mixtures, count, shares_of(train.known_labels, pairs, drawn, len(train.class_names)))
