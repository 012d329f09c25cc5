"""Training images in pieces that have changed places."""

from typing import Annotated

import numpy as np
from pydantic import Field

from kood.data.deferred import Images, made
from kood.outliers import OutlierSource, Rows

__all__ = ["PatchShuffle"]


class PatchShuffle(OutlierSource):
    """Outliers that are training images cut into patches that change places.

    Each training image is taken as often as any other, or once more; see `shuffled` for what becomes of it.

    Attributes:
        grid: Patches along each side.
    """

    resembles, has_shares = "patch_shuffle", False

    grid: Annotated[int, Field(ge=2, le=64)] = 2

    def draw(self, count, rng, train):
        """Shuffles training images; `ValueError` where the grid is finer than their pixels."""
        images = train.images
        rows = np.concatenate([rng.permutation(len(images)) for _ in range(-(-count // len(images)))])[:count]
        drawn = shuffled(images, rows, rng=rng, grid=self.grid)
        return Rows(drawn, count, made_of=train.known_labels[rows, None])

    def check(self, recipe):
        """Refuses more patches than there are pixels."""
        high, wide = recipe.data.shape[:2]
        if self.grid > min(high, wide):
            raise ValueError(
                f"outliers.patch_shuffle.grid is {self.grid}, but images of {high}x{wide} pixels have at most "
                f"{min(high, wide)} patches a side"
            )


def shuffled(images: Images, rows: np.ndarray | None = None, *, rng: np.random.Generator, grid: int = 2) -> Images:
    """Each image cut into grid x grid patches that change places; never all of them back in their own.

    Rows and columns that do not divide evenly stay where they are, at the bottom and the right.

    Args:
        images: uint8 (N, H, W, C).
        rows: int (M,), which of them, in what order; not given, all.
        rng: Decides the permutations.
        grid: Patches along each side, at least 2.

    Returns:
        uint8 (M, H, W, C).

    Raises:
        ValueError: A grid below 2 or finer than the pixels.
    """
    height, width, channels = images.shape[1:]
    if not 2 <= grid <= min(height, width):
        raise ValueError(f"grid must lie in 2..{min(height, width)} for images of {height}x{width}, not {grid}")
    rows = np.arange(len(images)) if rows is None else rows
    high, wide = height // grid, width // grid
    orders = rng.permuted(np.tile(np.arange(grid * grid), (len(rows), 1)), axis=1)
    while (same := (orders == np.arange(grid * grid)).all(axis=1)).any():
        orders[same] = rng.permuted(orders[same], axis=1)

    def moved(some: np.ndarray) -> np.ndarray:
        whole = images[rows[some]]
        cut = whole[:, : high * grid, : wide * grid].reshape(-1, grid, high, grid, wide, channels)
        patches = cut.transpose(0, 1, 3, 2, 4, 5).reshape(-1, grid * grid, high, wide, channels)
        there = np.take_along_axis(patches, orders[some, :, None, None, None], axis=1)
        there = there.reshape(-1, grid, grid, high, wide, channels).transpose(0, 1, 3, 2, 4, 5)
        whole[:, : high * grid, : wide * grid] = there.reshape(-1, high * grid, wide * grid, channels)
        return whole

    return made((len(rows), height, width, channels), moved, 4)
