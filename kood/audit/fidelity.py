"""How near a set of images is to another as a whole: FID and KID on features that the caller gives.

Both depend on the feature space, so a figure without the name of its space says nothing, and figures of two spaces
do not compare. The published figures are for features of Inception v3, which these functions accept like any others.
"""

import numpy as np

__all__ = ["frechet_distance", "kernel_distance"]

#: Rows of the kernel matrix held at a time: (1024 x 1024) float64 is 8 MiB.
_TILE = 1024


def frechet_distance(features_a, features_b) -> float:
    r"""Fréchet distance between Gaussians fitted to two sets of features, the formula of FID.

    ||m_a - m_b||^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2)), with means m and covariances S (divisor N - 1).

    No matrix square root is formed. With the centred features factored as Q R, S = R' R / (N - 1), and the trace of
    the square root is the sum of the singular values of R_a R_b' over the root of both divisors: the same number in a
    symmetric form, which stays exact where covariances are singular (constant features, fewer images than
    dimensions). All in float64.

    The estimate is biased upwards, the more so the fewer the images: compare only figures of equally many.

    Args:
        features_a: (N, D) real numbers, N at least 2.
        features_b: (M, D), M at least 2.

    Returns:
        The distance in squared units of the features, at least 0; 0 up to rounding for equal sets.

    Reference: Heusel et al. 2017, arXiv:1706.08500.
    """
    a, b = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    factor_a, factor_b = (
        np.linalg.qr(rows - mean, mode="r") / np.sqrt(len(rows) - 1) for rows, mean in ((a, mean_a), (b, mean_b))
    )
    root = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    spread = np.square(factor_a).sum() + np.square(factor_b).sum() - 2 * root
    return max(0.0, float(np.square(mean_a - mean_b).sum() + spread))


def _tile_sum(x: np.ndarray, y: np.ndarray) -> float:
    """Sum of the cubic kernel over all pairs of rows."""
    kernel = x @ y.T
    kernel /= x.shape[1]
    kernel += 1.0
    flat = kernel.ravel()
    return float(np.dot(flat * flat, flat))


def _sum(x: np.ndarray, y: np.ndarray) -> float:
    """Sum of the kernel over all pairs of rows, a tile at a time."""
    starts = [(i, j) for i in range(0, len(x), _TILE) for j in range(0, len(y), _TILE)]
    return sum(_tile_sum(x[i : i + _TILE], y[j : j + _TILE]) for i, j in starts)


def _within(x: np.ndarray) -> float:
    """Mean of the kernel over pairs of different rows."""
    own = (np.square(x).sum(axis=1) / x.shape[1] + 1.0) ** 3
    return (_sum(x, x) - float(own.sum())) / (len(x) * (len(x) - 1))


def _unbiased(x: np.ndarray, y: np.ndarray) -> float:
    return _within(x) + _within(y) - 2 * _sum(x, y) / (len(x) * len(y))


def kernel_distance(features_a, features_b, *, subsets: int = 10, seed: int = 0) -> tuple[float, float | None]:
    """Squared maximum mean discrepancy under the cubic polynomial kernel, the formula of KID.

    With k(x, y) = (x.y / D + 1)^3: the mean of k over pairs of different rows of a, plus the same of b, less twice
    its mean over pairs across. The estimate is unbiased, so figures of unequally many images compare, and sets of one
    distribution give about 0, often a little below. (A set held against itself lies below 0: the pairs across then
    hold each row with itself, and those within do not.) Memory is bounded: the kernel is summed tile by tile.

    The value uses all images. Its standard error is that of the mean over disjoint random subsets, of which each has
    its own estimate: sample standard deviation / sqrt(subsets). The mean over subsets varies more than the
    value from all images does, so the error is on the safe side.

    Args:
        features_a: (N, D) real numbers, N at least 2.
        features_b: (M, D), M at least 2.
        subsets: How many subsets at most, at least 2; fewer where a set has less than two images for each.
        seed: Of the shuffle that makes the subsets; the value itself does not depend on it.

    Returns:
        The unbiased estimate from all images, which may be slightly negative, and the standard error of the mean over
        disjoint subsets; None where there are fewer than two subsets.

    Reference: Bińkowski et al. 2018, arXiv:1801.01401.
    """
    a, b = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    value = _unbiased(a, b)
    possible = min(subsets, len(a) // 2, len(b) // 2)
    if possible < 2:
        return value, None
    size = min(len(a), len(b)) // possible
    rng = np.random.default_rng(seed)
    order_a, order_b = rng.permutation(len(a)), rng.permutation(len(b))
    estimates = [
        _unbiased(a[order_a[start : start + size]], b[order_b[start : start + size]])
        for start in range(0, possible * size, size)
    ]
    return value, float(np.std(estimates, ddof=1) / np.sqrt(possible))
