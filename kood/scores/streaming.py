"""Sums, principal directions, quantiles and selections over rows, block by block.

Each block is brought to float64 by itself, so that N rows on disk (`np.memmap`) take no more memory than one block.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np

#: Rows that are brought to float64 at once.
BLOCK = 8192
#: Rows and numbers of a row past which, where there are more of both, principal directions would take an hour and more,
#: and gigabytes.
LARGEST = 8192


def blocks(*arrays) -> Iterator[tuple[np.ndarray, ...]]:
    """The same rows of arrays of equal length, block by block; floats as float64, whole numbers as they are."""
    for start in range(0, len(arrays[0]), BLOCK):
        rows = [np.asarray(values[start : start + BLOCK]) for values in arrays]
        yield tuple(block if block.dtype.kind in "iu" else block.astype(np.float64) for block in rows)


def mean_row(values):
    """Mean (D,) of the rows of (N, D)."""
    return sum(block.sum(axis=0) for (block,) in blocks(values)) / len(values)


def class_sums(values, index, classes):
    """Sums (classes, D) of the rows of each class."""
    sums = np.zeros((classes, values.shape[1]))
    for block, own in blocks(values, index):
        np.add.at(sums, own, block)
    return sums


def principal(parts: Iterable[np.ndarray], count: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (R,), ascending, and eigenvectors (D, R) of the sum of x x^T over rows x.

    R is D, or the number of the rows where that is at most D / 2: these take no more memory than the sum, and their
    singular vectors less time than its eigenvectors, a tenth where there are D / 4 of them. Of more rows they take as
    long or longer.

    Args:
        parts: The rows in blocks (n, D), float64.
        count: How many there are in all.
        width: D.

    Raises:
        ValueError: More than `LARGEST` rows of more than `LARGEST` numbers.
    """
    if min(count, width) > LARGEST:
        raise ValueError(
            f"The principal directions of {count:,} images of {width:,} features would take hours; take features that "
            f"are pooled, not flattened, or up to {LARGEST:,} images."
        )
    if 2 * count <= width:
        sizes, directions = np.linalg.svd(np.concatenate([*parts]), full_matrices=False)[1:]
        return np.square(sizes[::-1]), directions[::-1].T
    gram = np.zeros((width, width))
    for block in parts:
        gram += block.T @ block
    return np.linalg.eigh(gram)


def spread(rows, limit):
    """Which of `rows` rows to keep where no more than `limit` are wanted: all, or as many at equal distances."""
    return np.arange(rows) if rows <= limit else np.linspace(0, rows - 1, limit).round().astype(np.int64)


def quantile(values, share):
    """The quantile of all values of (N, D), exactly `np.quantile`'s, from counts alone.

    The order of floating-point numbers is that of their bits, so the value of a rank is found 16 bits at a time, each
    time by counting; memory does not grow with N.
    """
    place = share * (values.size - 1)
    lower = _of_rank(values, math.floor(place))
    upper = _of_rank(values, math.ceil(place)) if place > math.floor(place) else lower
    return np.quantile([lower, upper], place - math.floor(place))


def _of_rank(values, rank):
    """The value that `rank` values come before."""
    prefix = np.uint64(0)
    for shift in (48, 32, 16, 0):
        counts = np.zeros(1 << 16, np.int64)
        for (block,) in blocks(values):
            keys = _ordered(block)
            if shift < 48:
                keys = keys[keys >> np.uint64(shift + 16) == prefix]
            counts += np.bincount(((keys >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64), minlength=1 << 16)
        before = np.cumsum(counts)
        digit = int(np.searchsorted(before, rank, side="right"))
        rank -= int(before[digit - 1]) if digit else 0
        prefix = (prefix << np.uint64(16)) | np.uint64(digit)
    negative = not prefix >> np.uint64(63)
    bits = ~prefix if negative else prefix ^ np.uint64(1 << 63)
    return np.array([bits]).view(np.float64)[0]


def _ordered(values):
    """The bits of float64 values as whole numbers of the same order, flat; -0 as 0."""
    bits = np.ascontiguousarray(values + 0.0).view(np.uint64).ravel()
    return np.where(bits >> np.uint64(63), ~bits, bits | np.uint64(1 << 63))
