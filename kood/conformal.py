"""The decision: split conformal prediction on calibration scores, for all classes at once or for each by itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import beta, betabinom, ks_2samp

from kood.errors import UserError
from kood.numbers import between

__all__ = [
    "Calibration", "Group", "Shift", "clearly_more", "comparable", "doubted", "law_of_flags", "needed_images",
    "p_values", "rank", "rate_interval", "refuse_too_few", "shift", "tail_of_flags", "threshold",
]  # fmt: skip

#: How seldom images like the calibration images are doubted.
_DOUBT = 1e-3


def needed_images(accept: float) -> int:
    """The fewest calibration images that can guarantee an accepted share: the smallest n with ceil((n + 1) a) <= n."""
    return math.ceil(round(between("accept", accept) / (1 - accept), 9))


def rank(count: int, accept: float) -> int:
    """Which of so many calibration scores, counted from the smallest, is the threshold: ceil((count + 1) accept).

    More than `count` where there are too few for this share.
    """
    return max(1, math.ceil(round((count + 1) * between("accept", accept), 9)))


def comparable(scores: np.ndarray) -> np.ndarray:
    """The scores, float64, with plus infinity for each that is no number to compare: NaN or infinite.

    Such a score says nothing of its image. As the largest of all it is flagged under every threshold, and among the
    calibration scores it raises the threshold as any image does that will be flagged.
    """
    scores = np.asarray(scores, np.float64)
    return np.where(np.isfinite(scores), scores, np.inf)


def threshold(values: np.ndarray, accept: float) -> float:
    """The score above which an image is flagged.

    With n calibration scores it is the ceil((n + 1) accept)-th smallest: a new in-distribution image, exchangeable
    with them, is accepted with probability at least `accept` (Vovk et al. 2005; arXiv 2107.07511, section 1).

    Args:
        values: (n,) scores of in-distribution images that nothing else saw; NaN and infinite ones count as flagged.
        accept: Share to accept, in (0, 1).

    Returns:
        The threshold, a finite number; scores equal to it are accepted.

    Raises:
        ValueError: a share outside (0, 1).
        UserError: too few images for this share, or too many of them without a finite score.
    """
    refuse_too_few(len(values), accept)
    ordered = np.sort(comparable(values))
    found = float(ordered[rank(len(ordered), accept) - 1])
    if not math.isfinite(found):
        raise UserError(
            f"{int(np.isinf(ordered).sum())} of {len(ordered)} calibration images have a score that is NaN or infinite,"
            f" so no threshold accepts {accept:g} of such images; choose another score, or look at those images",
            exit_code=1,
        )
    return found


def refuse_too_few(
    count: int, accept: float, copies: int = 0, key: str = "serve.accept", fix: str = "raise data.id.calibration"
) -> None:
    """Raises where so many calibration images cannot guarantee an accepted share.

    Args:
        count: How many different ones there are.
        accept: The share.
        copies: How many more there are that are copies of these.
        key: What messages call the share.
        fix: What gives more images.

    Raises:
        UserError: with the number that it takes.
    """
    if rank(count, accept) > count:
        but = f" ({copies} more are copies of them, which say nothing new)" if copies else ""
        raise UserError(
            f"{key} = {accept} needs at least {needed_images(accept)} calibration images, "
            f"there are {count}{but}; {fix} or lower {key}"
        )


def p_values(scores: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """Conformal p-values: how common a score as high as this is among in-distribution images.

    (1 + how many of n calibration scores are at least as high) / (n + 1). Of an in-distribution image, exchangeable
    with those, it is at most a with probability at most a. A score is above `threshold(calibration, accept)` exactly
    where its p-value is at most 1 - accept. NaN and infinite scores count as higher than all others.

    Source: Vovk et al. 2005; arXiv 2107.07511.

    Args:
        scores: (N,).
        calibration: (n,) scores of in-distribution images that nothing else saw.

    Returns:
        (N,) float64 in [1 / (n + 1), 1].
    """
    ordered = np.sort(comparable(calibration))
    as_high = len(ordered) - np.searchsorted(ordered, comparable(scores), side="left")
    return (1 + as_high) / (len(ordered) + 1)


def law_of_flags(count: int, images: int, accept: float) -> Any:
    """How many images are flagged of so many that are like the calibration images: a frozen `scipy.stats.betabinom`.

    With n calibration scores and the threshold at the k-th smallest, k = ceil((n + 1) accept), the chance that a new
    image like them is flagged is itself random, Beta(n + 1 - k, k), by the choice of the calibration images; so the
    number flagged is beta-binomial. Where scores tie with the threshold, fewer are.

    Source: Vovk 2012, arXiv:1209.2673.

    Args:
        count: Of how many.
        images: n, enough for the share.
        accept: Share that the threshold accepts.
    """
    place = rank(images, accept)
    return betabinom(count, images + 1 - place, place)


def tail_of_flags(flagged: int, count: int, images: int, accept: float) -> float:
    """How often chance alone flags as many of so many images like the calibration images, or more; `law_of_flags`."""
    # A sum of the law itself: one less the other tail would be 0 below 1e-16.
    return min(1.0, float(law_of_flags(count, images, accept).pmf(np.arange(flagged, count + 1)).sum()))


def clearly_more(flagged: int, count: int, images: int, accept: float, tests: int) -> bool:
    """Whether more images are flagged than the choice of calibration images and of these explains (`tail_of_flags`): by
    chance alone in one of twenty times at most for any of so many tests together (Bonferroni)."""
    return tail_of_flags(flagged, count, images, accept) <= 0.05 / tests


@dataclass(frozen=True)
class Shift:
    """Where the p-values of some images are farthest from those of images like the calibration images.

    Attributes:
        p_value: How often chance alone puts them as far apart.
        at: The place; of images like the calibration images the share `at` has a p-value of at most that.
        share: The share of these images that has.
    """

    p_value: float
    at: float
    share: float


def shift(scores: np.ndarray, p_values: np.ndarray, count: int, accept: float) -> Shift:
    """Tests whether images' p-values are those of images like the calibration images.

    The scores of both are exchangeable then, and a p-value says between which of the n calibration scores an image's
    own lies, so two samples are compared by Kolmogorov and Smirnov's statistic, each side by itself: twice the smaller
    p-value, by its large-sample law with Hodges' correction. An image whose score ties with calibration scores has the
    p-value of the lowest of these. That hides shifts to smaller p-values and makes none up; for the other side it
    counts as if it were as high as the next higher score of the images is, below which all that it ties with must lie.

    Source: Hodges 1958, Arkiv foer Matematik 3, equation 5.3, as in `scipy.stats.ks_2samp`.

    Args:
        scores: (m,) of the images, m at least 1.
        p_values: (m,) theirs; 0 or NaN for what cannot be judged, which counts as the most common of what is flagged.
        count: n.
        accept: Share that the threshold accepts.

    Raises:
        ValueError: no images.
    """
    given, scores = np.asarray(p_values, np.float64), comparable(scores)
    if given.ndim != 1 or given.shape != scores.shape or not len(given):
        raise ValueError(f"p-values and scores must be filled arrays (m,); their shapes are {given.shape}, "
                         f"{scores.shape}")  # fmt: skip
    is_judged = given > 0
    places = np.clip(np.rint(np.where(is_judged, given, 0) * (count + 1)), 1, count + 1)
    order = np.argsort(-scores, kind="stable")
    before = np.searchsorted(-scores[order], -scores[order], side="left")
    lowest = np.concatenate([[1.0], np.maximum.accumulate(places[order])])[before]
    places[~is_judged] = count + 1 - rank(count, accept)
    known = np.arange(1, count + 1) + 0.5
    sides = [(places, ks_2samp(places, known, "greater", method="asymp")),
             (lowest, ks_2samp(lowest, known, "less", method="asymp"))]  # fmt: skip
    _, found = min(sides, key=lambda side: side[1].pvalue)
    at = math.floor(found.statistic_location)
    return Shift(min(1.0, 2 * float(found.pvalue)), at / (count + 1), float(np.mean(places <= at)))


@dataclass(frozen=True)
class Group:
    """Classes that share a threshold.

    Attributes:
        classes: Which, by number.
        threshold: Scores above it are flagged.
        images: How many calibration images it was set on.
        below: How many of these have a score below the threshold.
        tied: How many have the very score that is the threshold; one, where scores do not tie.
    """

    classes: tuple[int, ...]
    threshold: float
    images: int
    below: int
    tied: int


@dataclass(frozen=True)
class Calibration:
    """Calibration scores, and all that is decided by them.

    By class, each predicted class has a threshold of its own, set on the calibration images that were predicted as it
    (Mondrian conformal prediction, Vovk et al. 2005, section 4.5): an image like the known ones that is labelled k is
    accepted with probability at least `accept`, whichever k. Classes that too few calibration images are labelled as
    share one threshold, with the smallest of the others where even together they are too few; of these the promise
    holds for all together.

    Args:
        scores: (n,) scores of in-distribution images that nothing else saw.
        labels: (n,) what these were labelled as, in 0..K-1; -1 for what nothing could be said of, which is flagged
            whatever its score. By class it belongs to no threshold.
        num_classes: K.
        accept: Share to accept, in (0, 1).
        by_class: Whether by class, or under one threshold for all.

    Raises:
        UserError: too few images, when a threshold is first asked for.
    """

    scores: np.ndarray
    labels: np.ndarray
    num_classes: int
    accept: float
    by_class: bool = False

    @cached_property
    def group_of(self) -> np.ndarray:
        """(K,) int64: which threshold each class has, counted in the order of the classes."""
        shared = np.zeros(self.num_classes, np.int64)
        if not self.by_class:
            return shared
        counts = np.bincount(self.labels[self.labels >= 0], minlength=self.num_classes)
        order = np.argsort(counts, kind="stable")
        needed = needed_images(self.accept)
        few = int(np.searchsorted(counts[order], needed))
        if few:
            # Together they need as many as one class would.
            enough = np.flatnonzero(np.cumsum(counts[order]) >= needed)
            few = max(few, int(enough[0]) + 1 if len(enough) else self.num_classes)
        own = np.arange(self.num_classes)
        own[order[:few]] = order[:few].min() if few else 0
        return np.unique(own, return_inverse=True)[1].astype(np.int64)

    def groups_of(self, labels: np.ndarray) -> np.ndarray:
        """(N,) int64: which threshold images of these labels are compared with; -1 where with none."""
        return np.where(np.asarray(labels) >= 0, self.group_of[labels], -1 if self.group_of.any() else 0)

    def judged(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The scores (N,), plus infinity for each that is no number to compare or has no label."""
        return np.where(np.asarray(labels) >= 0, comparable(scores), np.inf)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The thresholds, each with its classes."""
        found, scores = [], self.judged(self.scores, self.labels)
        for number in range(int(self.group_of.max()) + 1):
            values = scores[self.groups_of(self.labels) == number]
            edge = threshold(values, self.accept)
            classes = tuple(np.flatnonzero(self.group_of == number).tolist())
            below, tied = int(np.sum(values < edge)), int(np.sum(values == edge))
            found.append(Group(classes, edge, len(values), below, tied))
        return tuple(found)

    @property
    def thresholds(self) -> np.ndarray:
        """(K,) float64: of each class, equal where they share one."""
        return np.array([group.threshold for group in self.groups])[self.group_of]

    def flagged(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Which images are out-of-distribution: (N,) bool, of their scores (N,) and labels (N,).

        What cannot be compared with the threshold, NaN or infinite, is.
        """
        return self.judged(scores, labels) > self.thresholds[labels]

    def p_values(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """(N,) p-values among the calibration images of the same threshold, see `p_values`; 0 where there is none."""
        scores, found = self.judged(scores, labels), np.zeros(len(scores))
        mine, theirs = self.groups_of(labels), self.groups_of(self.labels)
        known = self.judged(self.scores, self.labels)
        for number in np.unique(mine[mine >= 0]):
            found[mine == number] = p_values(scores[mine == number], known[theirs == number])
        return found


def doubted(
    scores: np.ndarray,
    p_values: np.ndarray,
    flags: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[Group],
    accept: float,
) -> str:
    """What is strange about images for a new calibration, by what the decision before says of them.

    They may have drifted, and they may be of no known class, which nobody here can tell apart. So much is said: that
    far fewer are accepted than of images like the calibration images (`law_of_flags`), or that their p-values are
    others (`shift`): of images like those once in a thousand times.

    Args:
        scores: (m,) of the images.
        p_values: (m,) theirs under the decision before, 0 for what cannot be judged.
        flags: (m,) bool, which of them it flags.
        labels: (m,) what they are labelled as; -1 for what nothing could be said of.
        groups: Its thresholds.
        accept: Share that it accepts.

    Returns:
        One sentence, of the threshold under which it is clearest; "" where nothing is strange.
    """
    fewer, moved = list[tuple[float, str]](), list[tuple[float, str]]()
    for group in groups:
        own = np.isin(labels, group.classes) if len(groups) > 1 else np.ones(len(labels), bool)
        count, flagged = int(own.sum()), int(flags[own].sum())
        if not count:
            continue
        these = "Of these images" if len(groups) == 1 else f"Of {count:,} of these images"
        fewer.append((
            tail_of_flags(flagged, count, group.images, accept),
            f"{these} the old threshold accepts {1 - flagged / count:.1%} where {accept:.1%} are expected: make sure "
            "that they are of the model's classes",
        ))  # fmt: skip
        one = shift(scores[own], p_values[own], group.images, accept)
        why = "they are of the model's classes" if one.share > one.at else "the model has not seen them"
        moved.append((
            one.p_value,
            f"{these} {one.share:.1%} have a p-value of at most {one.at:.2g} under the old threshold where "
            f"{one.at:.1%} are expected: make sure that {why}",
        ))  # fmt: skip
    # That fewer are accepted is the plainer thing to say.
    for p_value, said in (min(fewer, default=(1.0, "")), min(moved, default=(1.0, ""))):
        if 2 * len(fewer) * p_value <= _DOUBT:
            return said
    return ""


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
        ValueError: hits outside 0..count, or a level outside (0, 1).
    """
    between("level", level)
    if not 0 <= hits <= count:
        raise ValueError(f"hits must lie in 0..{count}, not {hits}")
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, count - hits + 1))
    high = 1.0 if hits == count else float(beta.ppf(1 - tail, hits + 1, count - hits))
    return low, high
