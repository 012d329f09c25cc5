"""How sure a figure is: the interval of one, and of the difference between two over several seeds."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kood.metrics import placements
from kood.numbers import between

__all__ = [
    "FEWEST_SEEDS", "Difference", "auroc_difference", "auroc_interval", "mean_interval", "paired_difference",
]  # fmt: skip

#: Half the width of an interval of figures that rounding alone sets apart: they say nothing of how far others lie.
_NOTHING = 1e-12
#: From fewer seeds nothing is called significant.
FEWEST_SEEDS = 3


@dataclass(frozen=True)
class Difference:
    """How much higher one arm's figure is than another's, seed by seed.

    Attributes:
        mean: Over the seeds, in the unit of the figures.
        low: Lower end of its interval; None of one seed without images, and of seeds without that all differ alike.
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

        logit(A) -+ t s / (A (1 - A)),    t Student's quantile of (1 + level) / 2,

    taken back by the logistic function, so that it stays within (0, 1); where A is 0 or 1, or s is 0, it begins as
    (A, A). The degrees of freedom are Welch's and Satterthwaite's of the parts v_k that s^2 is the sum of, one of each
    kind of n_k examples: (sum v_k)^2 / sum(v_k^2 / (n_k - 1)). Where all n examples of a kind have one placement (all
    pairs separated, or all tied, as saturated scores are), the variance of that kind is 0 and says nothing. Of n alike,
    the exact binomial bound leaves the share r = 1 - ((1 - level) / 2)^(1 / n) for examples that were not met, and
    these may stand anywhere: (low, high) becomes (low (1 - r), 1 - (1 - high) (1 - r)). Of both kinds the larger r is
    taken, over several OOD sets its mean with their AUROCs as weights for the lower end, and with what is left of them
    for the upper one. So the interval has a width always, and that of the negated scores is this one mirrored. It tells
    how another draw of as many images would vary, not how another training would. Ten examples of one kind beside many
    of the others are few all the same: at A = 0.9 it misses one time in ten.

    Source: DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837; the log-odds as in Pepe 2003, The Statistical
    Evaluation of Medical Tests, section 5.2; the degrees of freedom are Satterthwaite's 1946, Biometrics Bulletin
    2:110; the bound is Clopper and Pearson's 1934, Biometrika 26:404.

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
    between("level", level)
    of_inside, of_outsides = placements(inside, outsides)
    sizes = [len(of) for of in (of_inside, *of_outsides)]
    if min(sizes) < 2:
        raise ValueError(f"An interval needs two or more ID examples and as many of each OOD set; there are {sizes}.")
    areas = np.array([of.mean() for of in of_outsides])
    low = high = area = float(areas.mean())
    if 0.0 < area < 1.0:
        reach = _reach(_parts(of_inside, of_outsides), level) / (area * (1 - area))
        middle = np.log(area / (1 - area))
        low, high = (float(1 / (1 + np.exp(-end))) for end in (middle - reach, middle + reach))
    unmet, among_id = [_unmet(of, level) for of in of_outsides], _unmet(of_inside, level)
    lower, upper = (
        max(among_id, float(np.average(unmet, weights=share))) if share.any() else 0.0 for share in (areas, 1.0 - areas)
    )
    return low * (1.0 - lower), 1.0 - (1.0 - high) * (1.0 - upper)


def auroc_difference(first, second) -> tuple[float, float]:
    """How much more AUROC one score has than another on the same examples, and the standard error of that.

    A score's AUROC here is the unweighted mean over one or more OOD sets, all against the same ID examples. With
    V(x) the share of the other kind that example x is on the right side of, ties counting half, and d(x) the
    difference of the two scores' V, averaged over the OOD sets for an ID example, the variance is

        var(d over ID) / N  +  sum over the S sets of var(d over that set's M examples) / (M S^2),

    sample variances: the method of DeLong, DeLong and Clarke-Pearson 1988 (Biometrics 44), which knows that both
    scores saw the same examples.

    Args:
        first: (inside, [outside, ...]), scores (N,) of the ID examples and (M,) of each OOD set, higher for OOD;
            infinities allowed.
        second: The same examples in the same order, by the other score.

    Returns:
        AUROC of `second` less that of `first`, and its standard error.

    Raises:
        ValueError: unequal examples, NaN, fewer than two examples of a kind, or no OOD set.
    """
    one, other = placements(*first), placements(*second)
    shapes = [[of.shape for of in (inside, *outsides)] for inside, outsides in (one, other)]
    if shapes[0] != shapes[1] or min(shapes[0]) < (2,):
        raise ValueError(
            "both scores need the same ID examples and equal OOD sets, of two examples at least; their shapes are "
            f"{shapes[0]} and {shapes[1]}."
        )
    of_inside, of_outsides = other[0] - one[0], [b - a for a, b in zip(one[1], other[1], strict=True)]
    variance = sum(its for its, _ in _parts(of_inside, of_outsides))
    return float(np.mean([of.mean() for of in of_outsides])), math.sqrt(variance)


def _parts(of_inside, of_outsides) -> list[tuple[float, int]]:
    """What DeLong's variance of an AUROC is the sum of, from its `placements`, or that of a difference from the
    difference of two's: a part of each kind of examples, with its degrees of freedom."""
    kinds = [(1, of_inside), *((len(of_outsides) ** 2, of) for of in of_outsides)]
    return [(float(of.var(ddof=1)) / len(of) / weight, len(of) - 1) for weight, of in kinds]


def _reach(parts: Sequence[tuple[float, int]], level: float) -> float:
    """Half the width of Student's interval under a variance of such parts."""
    from scipy.special import stdtrit

    variance = sum(its for its, _ in parts)
    if not variance:
        return 0.0
    # By their shares of it: the square of a tiny variance may be 0.
    freedom = 1 / sum((its / variance) ** 2 / degrees for its, degrees in parts)
    return float(stdtrit(freedom, (1 + level) / 2)) * math.sqrt(variance)


def mean_interval(shares: Sequence[float], level: float = 0.95) -> dict[str, Any]:
    """The mean of a few shares, and Student's interval of it.

    mean +- t s / sqrt(n), with s the sample standard deviation and t the quantile of Student's distribution with n - 1
    degrees of freedom, cut off at 0 and 1.

    Args:
        shares: In [0, 1], n of them.
        level: Confidence, in (0, 1).

    Returns:
        {"mean", "std", "n", "interval": [low, high]}; where n is 1, "std" and "interval" are None, and the latter too
        where all are equal: as they do not differ, they say nothing of how far others would.

    Raises:
        ValueError: no shares, or a level outside (0, 1).
    """
    between("level", level)
    if not len(shares):
        raise ValueError("there are no shares to take the mean of")
    mean, count = float(np.mean(shares)), len(shares)
    if count == 1:
        return {"mean": mean, "std": None, "n": 1, "interval": None}
    half = _half_width(np.asarray(shares, np.float64), level)
    interval = [max(0.0, mean - half), min(1.0, mean + half)] if half > _NOTHING else None
    return {"mean": mean, "std": float(np.std(shares, ddof=1)), "n": count, "interval": interval}


def _half_width(values: np.ndarray, level: float) -> float:
    """Of Student's interval of the mean of two values or more."""
    from scipy.special import stdtrit

    return float(stdtrit(len(values) - 1, (1 + level) / 2)) * float(values.std(ddof=1)) / math.sqrt(len(values))


def _unmet(placed: np.ndarray, level: float) -> float:
    """The share of a kind that may differ from examples that are all alike; 0 where they are not."""
    return 1.0 - ((1.0 - level) / 2) ** (1.0 / len(placed)) if np.ptp(placed) == 0 else 0.0


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    images: Sequence[tuple[np.ndarray, Sequence[np.ndarray]]] | None = None,
    *,
    level: float = 0.95,
) -> Difference:
    """The mean over seeds of second less first, and its interval over seeds and, where given, images.

    With d the S differences and, for each kind of images (those in distribution, and each of K OOD sets), c_i the mean
    over the seeds of how much the placement of image i differs between the arms (AUROC to first order, which is what
    DeLong's variance is made of),

        mean(d) -+ sqrt(t_{S-1}^2 var(d) / S + sum over kinds t_{n-1}^2 w^2 var(c) / n),

    where var is the sample variance, n the number of images, w = 1 in distribution and 1 / K of an OOD set, and t_f the
    quantile of Student's distribution with f degrees of freedom: the half widths of seeds and of images alone, added in
    squares, which covers no less than it says where few seeds make one of them far less certain than the others. The
    test images are the same for all seeds, so more seeds do not make these more certain. Where all n images of a kind
    change alike, as where none does, r = 1 - ((1 - level) / 2)^(1 / n) of those that were not met may change by 1
    either way: both ends move on by w r. Of one image alone nothing is known, and its kind adds nothing. With one seed
    the interval is about the images alone.

    Source: Zou and Donner 2008, Statistics in Medicine 27:1693 (MOVER); the bound as in `auroc_interval`.

    Args:
        first: (S,) figures of one arm.
        second: (S,) those of another, for the same seeds.
        images: For each seed the difference of the two arms' `kood.metrics.placements`: (N,) of the ID images and (M,)
            of each OOD set, in the same order for every seed. Of an accuracy: (N,) whether an image is labelled
            rightly, 1 or 0, less the same of the other arm, and no OOD set.
        level: Coverage, in (0, 1).

    Returns:
        A `Difference`.

    Raises:
        ValueError: No figures, unequal numbers of them or of images, figures that are not finite, or a level outside
            (0, 1).
    """
    between("level", level)
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.ndim != 1 or one.shape != other.shape or not one.size:
        raise ValueError(
            f"Both arms need one figure for each of the same seeds; the shapes are {one.shape}, {other.shape}."
        )
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise ValueError("A figure is NaN or infinite.")
    if images is not None and len(images) != len(one):
        raise ValueError(f"There are {len(one)} seeds but images of {len(images)}.")
    differences = other - one
    count, mean = len(differences), float(differences.mean())
    squares = [_half_width(differences, level) ** 2] if count > 1 else []
    unmet = 0.0
    for weight, changes in _kinds(images or []):
        squares.append((weight * _half_width(changes, level)) ** 2)
        unmet += weight * _unmet(changes, level)
    reach = math.sqrt(sum(squares)) + unmet
    low, high = (mean - reach, mean + reach) if reach > _NOTHING else (None, None)
    return Difference(mean, low, high, count, int((differences > 0).sum()))


def _kinds(images: Sequence[tuple[np.ndarray, Sequence[np.ndarray]]]) -> Iterator[tuple[float, np.ndarray]]:
    """The weight of each kind of two images or more, and what each of its images changes, in the mean over seeds."""
    kinds = [(1.0, [inside for inside, _ in images])] if images else []
    sets = list(zip(*(outsides for _, outsides in images), strict=True))
    for weight, each in (*kinds, *((1.0 / len(sets), one) for one in sets)):
        changes = np.stack(each).astype(np.float64).mean(axis=0)
        if len(changes) > 1:
            yield weight, changes
