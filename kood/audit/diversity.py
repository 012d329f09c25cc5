"""Are the samples new images, and different ones? Distances to the nearest training image and to each other.

A distance is the root mean square difference of two rows over their numbers: for uint8 images, in grey levels of
0..255, whatever the image's size; for features, in units of the feature space.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kood.data.copies import distinct, image_digests, whole

__all__ = ["MEMORISED_RATIO", "copies", "duplicates", "histograms", "memorised", "nearest", "spread"]

#: A sample is called memorised below this ratio of its first to its second distance to the training images.
MEMORISED_RATIO = 1 / 3
#: Bytes of the matrix of distances held at a time, and of the queries in it; with its order and a copy of references, a
#: search takes six times as many.
_BYTES = 32 * 2**20
#: Neighbours beyond those asked for that the fast pass hands to the exact one.
_SPARE = 14


# Its own, not scikit-learn's NearestNeighbors: of 2,000 images of 3,072 values among 20,000 it takes 3.8 s on a core
# against 6.1, and copies are exactly 0 apart, where that search finds none of 50 float copies at 0.
def nearest(queries, references=None, *, neighbours: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The nearest references of each query and their distances, by exact search in bounded memory.

    Squared distances are formed by blocked matrix products in float32; the nearest few are measured again, as
    differences in float64, so equal rows are exactly 0 apart. Where rounding could have hidden a nearer reference, the
    query is searched again in float64.

    Args:
        queries: (N, ...) images or features, finite.
        references: (M, ...) of the same shape; None for the queries themselves, each without itself.
        neighbours: How many, k; there are as many references.

    Returns:
        Distances (N, k), float64, ascending, root mean square (see the module), and the references' indices (N, k).
        Of references equally far any may come first.
    """
    among = references is None
    q, r = (rows.reshape(len(rows), -1) for rows in (queries, queries if among else references))
    found, indices = np.empty((len(q), neighbours)), np.empty((len(q), neighbours), np.int64)
    rows = np.arange(len(q))
    for precision in (np.float32, np.float64):
        candidates, bounds = _candidates(q, r, rows, min(neighbours + _SPARE, len(r) - among), among, precision)
        for row, known in zip(rows, candidates, strict=True):
            squares = np.square(r[known] - q[row].astype(np.float64)).sum(axis=1)
            order = np.argsort(squares, kind="stable")[:neighbours]
            found[row], indices[row] = squares[order], known[order]
        rows = rows[found[rows, -1] > np.maximum(bounds, 0.0)]
        if not len(rows):
            break
    return np.sqrt(found / q.shape[1]), indices


def _candidates(q, r, rows: np.ndarray, keep: int, among: bool, precision: Any) -> tuple[np.ndarray, np.ndarray]:
    """The references (N, keep) that this precision has as the nearest of these queries, and the squared distances (N,)
    up to which no other one can have been missed."""
    tile = max(1, _BYTES // (8 * (q.shape[1] + 1)))
    block = max(1, _BYTES // (np.dtype(precision).itemsize * max(min(tile, len(r)), q.shape[1] + 1)))
    # Distances do not change when all is moved, and rounding is least about the middle; whole numbers stay whole.
    centre = r.mean(axis=0, dtype=np.float64)
    centre = np.rint(centre) if r.dtype.kind in "iub" else centre
    rough, candidates = np.full((len(rows), keep), np.inf), np.zeros((len(rows), keep), np.int64)
    own_lengths, longest = np.empty(len(rows)), 0.0
    for first in range(0, len(r), tile):
        right = (r[first : first + tile] - centre).astype(precision)
        lengths = np.square(right).sum(axis=1, dtype=np.float64)
        longest = max(longest, float(lengths.max()))
        # (x, 1).(-2 y, |y|^2) is |x - y|^2 short of |x|^2, which is the same for all of a query's references.
        right = np.concatenate([-2 * right, lengths[:, None].astype(precision)], axis=1)
        for start in range(0, len(rows), block):
            part = slice(start, start + block)
            left = np.ones((len(rows[part]), q.shape[1] + 1), precision)
            left[:, :-1] = q[rows[part]] - centre
            own_lengths[part] = np.square(left[:, :-1]).sum(axis=1, dtype=np.float64)
            short = left @ right.T
            if among:
                own = rows[part] - first
                inside = np.flatnonzero((own >= 0) & (own < short.shape[1]))
                short[inside, own[inside]] = np.inf
            columns = np.argpartition(short, min(keep, short.shape[1]) - 1, axis=1)[:, :keep]
            values = np.concatenate([rough[part], np.take_along_axis(short, columns, axis=1)], axis=1)
            known = np.concatenate([candidates[part], columns + first], axis=1)
            best = np.argpartition(values, keep - 1, axis=1)[:, :keep]
            rough[part], candidates[part] = (np.take_along_axis(x, best, axis=1) for x in (values, known))
    if keep == len(r) - among:
        return candidates, np.full(len(rows), np.inf)
    # The error of a dot product of n terms is at most n u times the product of the lengths (n u small).
    slack = 2 * (q.shape[1] + 4) * float(np.finfo(precision).eps) * (own_lengths + longest)
    return candidates, rough.max(axis=1) + own_lengths - slack


def memorised(to_training: np.ndarray) -> np.ndarray:
    """Which samples are near-copies of one training image.

    The rule of Gu et al.: the distance to the nearest training image is less than a third of that to the second
    nearest. Being scaled by its surroundings it does not take a smooth image, which is near to many, for a copy. A
    sample that equals a training image counts in any case, be that image twice in the training set.

    Args:
        to_training: (N, 2) distances to the nearest two training images, from `nearest`.

    Returns:
        (N,) booleans.

    Reference: Gu et al. 2023, arXiv:2310.02664, section 2. Carlini et al. 2023, arXiv:2301.13188, divide by the
    mean distance to more neighbours to the same end.
    """
    first, second = np.transpose(to_training)
    return (first == 0) | (first < MEMORISED_RATIO * second)


def copies(samples, references) -> int:
    """How many samples equal a reference exactly, number for number."""
    return int(np.isin(whole(image_digests(samples)), whole(image_digests(references))).sum())


def duplicates(samples) -> int:
    """How many samples equal an earlier one exactly, number for number: 2 for a, b, a, a."""
    return len(samples) - len(distinct(image_digests(samples)))


def spread(distances: np.ndarray) -> dict[str, float]:
    """The 1st percentile, median and largest of nearest distances (N,), and how many: {"n", "p01", "median", "max"}."""
    p01, median = np.percentile(distances, (1, 50))
    return {"n": distances.size, "p01": float(p01), "median": float(median), "max": float(distances.max())}


def histograms(distances: Mapping[str, np.ndarray], bins: int = 40) -> dict[str, Any]:
    """Counts of several sets of distances over the same bins, from 0 to the largest distance.

    Returns:
        {"edges": bins + 1 numbers, "counts": {name: bins whole numbers}}.
    """
    largest = max(spread(values)["max"] for values in distances.values())
    edges = np.linspace(0.0, largest or 1.0, bins + 1)
    counts = {name: np.histogram(values, edges)[0].tolist() for name, values in distances.items()}
    return {"edges": edges.tolist(), "counts": counts}
