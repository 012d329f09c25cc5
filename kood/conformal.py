"""Split conformal prediction: a threshold with a guarantee, p-values, and how sure a realised rate is."""

import math

import numpy as np
from scipy.stats import beta

from kood.errors import UserError

__all__ = ["needed_images", "p_values", "rank", "rate_interval", "refuse_too_few", "threshold"]


def needed_images(accept: float) -> int:
    """The fewest calibration images that can guarantee an accepted share: the smallest n with ceil((n + 1) a) <= n."""
    return math.ceil(round(accept / (1 - accept), 9))


def rank(count: int, accept: float) -> int:
    """Which of so many calibration scores, counted from the smallest, is the threshold: ceil((count + 1) accept).

    More than `count` where there are too few for this share.
    """
    return math.ceil(round((count + 1) * accept, 9))


def threshold(values: np.ndarray, accept: float) -> float:
    """The score above which an image is flagged.

    With n calibration scores it is the ceil((n + 1) accept)-th smallest: a new in-distribution image, exchangeable
    with them, is accepted with probability at least `accept` (Vovk et al. 2005; arXiv 2107.07511, section 1).

    Args:
        values: (n,) scores of in-distribution images that nothing else saw.
        accept: Share to accept, in (0, 1).

    Returns:
        The threshold; scores equal to it are accepted.

    Raises:
        UserError: too few images for this share.
    """
    refuse_too_few(len(values), accept)
    return float(np.sort(values)[rank(len(values), accept) - 1])


def refuse_too_few(count: int, accept: float) -> None:
    """Raises where so many calibration images cannot guarantee an accepted share.

    Raises:
        UserError: with the number that it takes.
    """
    if rank(count, accept) > count:
        raise UserError(
            f"serve.accept = {accept} needs at least {needed_images(accept)} calibration images, "
            f"there are {count}; raise data.id.calibration or lower serve.accept"
        )


def p_values(scores: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """Conformal p-values: how common a score as high as this is among in-distribution images.

    (1 + how many of n calibration scores are at least as high) / (n + 1). Of an in-distribution image, exchangeable
    with those, it is at most a with probability at most a. A score is above `threshold(calibration, accept)` exactly
    where its p-value is at most 1 - accept.

    Source: Vovk et al. 2005; arXiv 2107.07511.

    Args:
        scores: (N,).
        calibration: (n,) scores of in-distribution images that nothing else saw.

    Returns:
        (N,) float64 in [1 / (n + 1), 1].
    """
    ordered = np.sort(calibration)
    as_high = len(ordered) - np.searchsorted(ordered, scores, side="left")
    return (1 + as_high) / (len(ordered) + 1)


def rate_interval(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a rate by Clopper and Pearson: it covers the rate at least so often, whatever it is.

    Source: Clopper and Pearson 1934, Biometrika 26.

    Args:
        hits: How often it happened.
        count: Of how many; (0, 1) where there were none.
        level: Coverage.

    Returns:
        (low, high).

    Raises:
        ValueError: hits outside 0..count.
    """
    if not 0 <= hits <= count:
        raise ValueError(f"hits must lie in 0..{count}, not {hits}")
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, count - hits + 1))
    high = 1.0 if hits == count else float(beta.ppf(1 - tail, hits + 1, count - hits))
    return low, high
