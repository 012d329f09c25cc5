"""Pairs of images of different classes, and the shares in which they meet."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from kood.outliers import OutlierSource, Rows

Alpha = Annotated[float, Field(gt=0.0, le=1000.0)]


class PairSource(OutlierSource):
    """A source that makes one image of two.

    Attributes:
        weight: Share w of the first image: a number, "uniform" or "beta".
        alpha: Parameter of Beta(alpha, alpha).
    """

    weight: Annotated[float, Field(ge=0.0, lt=1.0)] | Literal["uniform", "beta"] = 0.5
    alpha: Alpha = 1.0

    @model_validator(mode="after")
    def _check(self):
        if self.weight == 0.0:
            raise ValueError(
                "weight = 0 leaves the first image out: what remains is a plain training image, no outlier"
            )
        return self

    def draw(self, count, rng, train):
        """Joins training images two by two; `ValueError` where they are of fewer than two classes."""
        first, second = pairs_of(train.known_labels, count, rng)
        weights = np.full(count, self.weight)
        if isinstance(self.weight, str):
            weights = rng.beta(*((1.0, 1.0) if self.weight == "uniform" else (self.alpha, self.alpha)), size=count)
        shares, rows = np.zeros((count, len(train.class_names)), np.float32), np.arange(count)
        shares[rows, train.known_labels[first]] = weights
        shares[rows, train.known_labels[second]] = 1.0 - weights
        return Rows(self.joined(train.images, first, second, weights, rng), count, shares)

    def joined(self, images, first, second, weights, rng):
        """The outliers that are made of images two by two.

        Args:
            images: uint8 (M, H, W, C).
            first: Integer (N,), the rows of one image of each.
            second: Those of the other.
            weights: (N,), the first one's share w.
            rng: Decides what else is drawn.

        Returns:
            uint8 (N, H, W, C).
        """
        raise NotImplementedError


def pairs_of(labels: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws the first image uniformly over all, the second uniformly over those of other classes.

    Args:
        labels: Integer (N,).
        count: How many pairs.
        rng: Decides them.

    Returns:
        Rows (count,) twice.

    Raises:
        ValueError: fewer than two classes.
    """
    order = np.argsort(labels, kind="stable")
    values, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    if len(values) < 2:
        raise ValueError(f"a mixture is of two classes; there is {len(values)}")
    first = rng.integers(len(labels), size=count)
    own = np.searchsorted(values, labels[first])
    # Rows sorted by class form a ring; from the end of one's own class, any step less than all the others' number
    # lands on another class, each of its images with the same chance.
    others = len(labels) - sizes[own]
    steps = np.floor(rng.random(count) * others).astype(np.int64)
    return first, order[(starts[own] + sizes[own] + steps) % len(labels)]
