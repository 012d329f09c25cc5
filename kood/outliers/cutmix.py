"""A rectangle of one training image in another."""

import numpy as np

from kood.data.deferred import made
from kood.outliers.pairs import PairSource

__all__ = ["Cutmix"]


class Cutmix(PairSource):
    """Outliers that are a training image with a rectangle of another of a different class (arXiv 1905.04899).

    The rectangle lies at the same place in both images and has the share 1 - w of the area: about H sqrt(1 - w) by
    W sqrt(1 - w) pixels, the height rounded up or down and the width to the nearest pixel, whichever comes closest
    to the area, so that it is off by half a column of the rectangle at most. The paper draws the centre anywhere and
    cuts off what lies beyond the border, which leaves less of the second image than was asked; here the place is
    uniform among those where the whole rectangle fits. Something of both images is always left: one pixel at least.

    The pairs are those that `pixel_mixup` draws, and so are the shares, of the w asked for, from which the rectangle of
    whole pixels may differ.
    """

    resembles, version = "pixel_mixup", 2

    def joined(self, images, first, second, weights, rng):
        """The first ones with a rectangle of the second; `ValueError` where they have fewer than two pixels."""
        height, width = images.shape[1:3]
        if height * width < 2:
            raise ValueError("cutmix needs images of at least two pixels")
        high, wide = _rectangles(height, width, 1.0 - weights)
        tops, lefts = rng.integers(0, height - high + 1), rng.integers(0, width - wide + 1)
        rows, columns = np.arange(height), np.arange(width)
        in_rows = (rows >= tops[:, None]) & (rows < (tops + high)[:, None])
        in_columns = (columns >= lefts[:, None]) & (columns < (lefts + wide)[:, None])

        def cut(part: np.ndarray) -> np.ndarray:
            inside = in_rows[part, :, None] & in_columns[part, None, :]
            return np.where(inside[..., None], images[second[part]], images[first[part]])

        return made((len(first), *images.shape[1:]), cut, 4)


def _rectangles(height: int, width: int, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Heights and widths in whole pixels of rectangles of these shares of the area, at least a pixel and never all."""
    area = np.clip(shares * (height * width), 1, height * width - 1)
    side = height * np.sqrt(shares)
    high = np.clip(np.stack([np.floor(side), np.ceil(side)]), 1, height)
    wide = np.clip(np.rint(area / high), 1, np.where(high == height, max(1, width - 1), width))
    high = np.where((wide == width) & (high == height), height - 1, high)  # Only where there is but one column.
    nearest = np.abs(high * wide - area).argmin(axis=0)[None]
    high, wide = (np.take_along_axis(sides, nearest, axis=0)[0].astype(np.int64) for sides in (high, wide))
    return high, wide
