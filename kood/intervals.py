"""How sure a figure is: the interval of one, and of the difference between two over several seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from kood.metrics import placements, standard_error

__all__ = ["FEWEST_SEEDS", "Difference", "auroc_interval", "mean_interval", "paired_difference"]

#: From fewer seeds nothing is called significant.
FEWEST_SEEDS = 3
_RESAMPLES = 2000
#: Images that resamples draw at once.
_AT_ONCE = 2**20


@dataclass(frozen=True)
class Difference:
    """How much higher one arm's figure is than another's, seed by seed.

    Attributes:
        mean: Over the seeds, in the unit of the figures.
        low: Lower end of its interval; None where there is but one seed and no images to resample.
        high: Upper end.
        seeds: How many.
        positive: In how many of them it is above 0.
        significant: Whether the interval leaves 0 out, from `FEWEST_SEEDS` seeds or more.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int
    positive: int

    @property
    def significant(self) -> bool:
        if self.low is None or self.high is None or self.seeds < FEWEST_SEEDS:
            return False
        return self.low > 0 or self.high < 0


def auroc_interval(inside, outsides, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of an AUROC, or of the unweighted mean of several against the same ID examples.

    With A the AUROC and s its standard error by DeLong, from the variances of `kood.metrics.placements`,

        logit(A) -+ z s / (A (1 - A)),    z the normal quantile of (1 + level) / 2,

    taken back by the logistic function, so that it stays within (0, 1); where A is 0 or 1, or s is 0, it begins as
    (A, A). Where all n examples of a kind have one placement (all pairs separated, or all tied, as saturated scores
    are), the variance of that kind is 0 and says nothing. Of n alike, the exact binomial bound leaves the share
    r = 1 - ((1 - level) / 2)^(1 / n) for examples that were not met, and these may stand anywhere: (low, high) becomes
    (low (1 - r), 1 - (1 - high) (1 - r)). Of both kinds the larger r is taken, over several OOD sets its mean with
    their AUROCs as weights for the lower end, and with what is left of them for the upper one. So the interval has a
    width always, and that of the negated scores is this one mirrored. It tells how another draw of as many images would
    vary, not how another training would.

    Source: DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837; the log-odds as in Pepe 2003, The Statistical
    Evaluation of Medical Tests, section 5.2; the bound is Clopper and Pearson's 1934, Biometrika 26:404.

    Args:
        inside: (N,) scores of the ID examples, higher for OOD; infinities allowed.
        outsides: (M,) those of each OOD set.
        level: Coverage, in (0, 1).

    Returns:
        Lower and upper end, fractions.

    Raises:
        ValueError: A level outside (0, 1), no OOD set, fewer than two examples of a kind, NaN, or what is no
            one-dimensional array of real numbers.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1; it is {level!r}.")
    inside, outsides = _scores(inside), [_scores(one) for one in outsides]
    sizes = [one.size for one in (inside, *outsides)]
    if not outsides or min(sizes) < 2:
        raise ValueError(f"An interval needs two or more ID examples and as many of each OOD set; there are {sizes}.")
    of_inside, of_outsides = placements(inside, outsides)
    areas = np.array([of.mean() for of in of_outsides])
    low = high = area = float(areas.mean())
    if 0.0 < area < 1.0:
        error = standard_error(of_inside, of_outsides)
        reach = NormalDist().inv_cdf((1 + level) / 2) * error / (area * (1 - area))
        middle = np.log(area / (1 - area))
        low, high = (float(1 / (1 + np.exp(-end))) for end in (middle - reach, middle + reach))
    unmet, among_id = [_unmet(of, level) for of in of_outsides], _unmet(of_inside, level)
    lower, upper = (
        max(among_id, float(np.average(unmet, weights=share))) if share.any() else 0.0 for share in (areas, 1.0 - areas)
    )
    return low * (1.0 - lower), 1.0 - (1.0 - high) * (1.0 - upper)


def mean_interval(shares: Sequence[float], level: float = 0.95) -> dict[str, Any]:
    """The mean of a few shares, and Student's interval of it.

    mean +- t s / sqrt(n), with s the sample standard deviation and t the quantile of Student's distribution with n - 1
    degrees of freedom, cut off at 0 and 1.

    Args:
        shares: In [0, 1], n of them.
        level: Confidence, in (0, 1).

    Returns:
        {"mean", "std", "n", "interval": [low, high]}; where n is 1, "std" and "interval" are None.

    Raises:
        ValueError: no shares.
    """
    if not len(shares):
        raise ValueError("there are no shares to take the mean of")
    mean, count = float(np.mean(shares)), len(shares)
    if count == 1:
        return {"mean": mean, "std": None, "n": 1, "interval": None}
    from scipy.special import stdtrit

    std = float(np.std(shares, ddof=1))
    half = float(stdtrit(count - 1, (1 + level) / 2)) * std / math.sqrt(count)
    return {"mean": mean, "std": std, "n": count, "interval": [max(0.0, mean - half), min(1.0, mean + half)]}


def _scores(values) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "fiub"):
        raise ValueError(f"Scores are real numbers (N,); these are {values.dtype} of shape {values.shape}.")
    undefined = int(np.isnan(values).sum()) if values.size else 0
    if undefined:
        raise ValueError(f"{undefined} of {len(values)} scores are NaN.")
    return values.astype(np.float64)


def _unmet(placed: np.ndarray, level: float) -> float:
    """The share of a kind that may differ from examples that are all alike; 0 where they are not."""
    return 1.0 - ((1.0 - level) / 2) ** (1.0 / len(placed)) if np.ptp(placed) == 0 else 0.0


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    images: Sequence[tuple[np.ndarray, Sequence[np.ndarray]]] | None = None,
    *,
    level: float = 0.95,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> Difference:
    """The mean over seeds of second less first, and its bootstrap interval over seeds and, where given, images.

    A resample draws S seeds of the S with replacement and takes d + sqrt(S / (S - 1)) (mean of the drawn differences
    - d), d being the mean of all: without the root the bootstrap of a few seeds is too narrow by that factor. Where
    images are given, it also draws as many ID images and as many of each OOD set as there are, the same for every seed
    and both arms, and adds the mean over the drawn seeds of how much their mean placements change: AUROC to first
    order, which is what DeLong's variance is made of. The interval holds the middle `level` of the resamples. With one
    seed it is about the images alone. Three seeds remain three: read such an interval as a rough one.

    Args:
        first: (S,) figures of one arm.
        second: (S,) those of another, for the same seeds.
        images: For each seed the difference of the two arms' `kood.metrics.placements`: (N,) of the ID images and (M,)
            of each OOD set, in the same order for every seed.
        level: Coverage, in (0, 1).
        resamples: How many.
        seed: Of the draws.

    Returns:
        A `Difference`.

    Raises:
        ValueError: No figures, unequal numbers of them or of images, or figures that are not finite.
    """
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.ndim != 1 or one.shape != other.shape or not one.size:
        raise ValueError(
            f"Both arms need one figure for each of the same seeds; the shapes are {one.shape}, {other.shape}."
        )
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise ValueError("A figure is NaN or infinite.")
    if images is not None and len(images) != len(one):
        raise ValueError(f"There are {len(one)} seeds but images of {len(images)}.")
    differences, rng = other - one, np.random.default_rng(seed)
    count, mean = len(differences), float(differences.mean())
    drawn = rng.integers(count, size=(resamples, count))
    resampled = np.full(resamples, mean)
    if count > 1:
        resampled += np.sqrt(count / (count - 1)) * (differences[drawn].mean(axis=1) - mean)
    if images is not None:
        resampled += np.take_along_axis(_image_part(images, resamples, rng), drawn, axis=1).mean(axis=1)
    low = high = None
    if count > 1 or images is not None:
        low, high = (float(end) for end in np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2]))
    return Difference(mean, low, high, count, int((differences > 0).sum()))


def _image_part(
    images: Sequence[tuple[np.ndarray, Sequence[np.ndarray]]], resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """(resamples, S): how much each seed's difference changes when the images are drawn anew."""
    kinds = [np.stack([inside for inside, _ in images])]
    kinds += [np.stack(sets) for sets in zip(*(outsides for _, outsides in images), strict=True)]
    change = np.zeros((resamples, len(images)))
    for weight, values in zip([1.0] + [1.0 / (len(kinds) - 1)] * (len(kinds) - 1), kinds, strict=True):
        centred = (values - values.mean(axis=1, keepdims=True)).T  # (images, S)
        count = len(centred)
        for start in range(0, resamples, step := max(1, _AT_ONCE // count)):
            rows = min(step, resamples - start)
            drawn = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
            # How often each image was drawn.
            times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
            change[start : start + rows] += weight * (times @ centred) / count
    return change
