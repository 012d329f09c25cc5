"""Has what a model meets changed, and since when: tests that know how few calibration images there were."""

from dataclasses import dataclass

import numpy as np
from scipy.special import xlogy

from kood.conformal import Shift, law_of_flags, rank, rate_interval, tail_of_flags

__all__ = ["TESTS", "Drift", "Ties", "drift", "stretches"]

#: Places at which a change is looked for; streams that are simulated at a time to say how often chance does as much,
#: and how many of them that do so are enough to say it.
PLACES, STREAMS, ENOUGH = 200, 1999, 20
#: Tests of a stream whose p-values are tested too: of its rate, of a change, and of these.
TESTS = 3


@dataclass(frozen=True)
class Ties:
    """Calibration scores that are equal to the threshold, for streams in which scores equal it too.

    Attributes:
        below: How many calibration scores are below the threshold.
        tied: How many are equal to it.
        at: (m,) bool, which images of the stream have a score equal to it.
    """

    below: int
    tied: int
    at: np.ndarray


@dataclass(frozen=True)
class Drift:
    """What a stream's flags, and its p-values, say.

    Attributes:
        images: How many images.
        flagged: How many of them were flagged.
        rate: Share of them.
        interval: 95% interval of the rate, Clopper and Pearson's.
        expected: Share that is flagged where the stream is as the calibration images were; at most this share where
            scores tie with the threshold.
        tied: How many images have the very score that is the threshold.
        rate_p_value: How often chance alone gives a rate as far off as this one.
        change_p_value: How often chance alone gives a change as clear as the clearest here.
        since: Place of the first image after the clearest change, from 0; 0 where the whole stream is off.
        rate_since: Share flagged from there on.
        shift: What the p-values say of the whole stream.
    """

    images: int
    flagged: int
    rate: float
    interval: tuple[float, float]
    expected: float
    tied: int
    rate_p_value: float
    change_p_value: float
    since: int
    rate_since: float
    shift: Shift

    @property
    def p_value(self) -> float:
        """Of all tests together: the smallest times their number, at most 1 (Bonferroni)."""
        return min(self.flags_p_value, TESTS * self.shift.p_value)

    @property
    def flags_p_value(self) -> float:
        """What the flags have part in that."""
        return min(1.0, TESTS * min(self.rate_p_value, self.change_p_value))

    def drifts(self, level: float) -> bool:
        """Whether the tests together say so at a level."""
        return self.p_value <= level


def drift(
    flags: np.ndarray,
    calibration_images: int,
    accept: float,
    ties: Ties,
    shift: Shift,
    *,
    streams: int = STREAMS,
    seed: int = 0,
) -> Drift:
    """Tests whether a stream's images are flagged as often as images like the calibration images would be.

    The number flagged of m is beta-binomial then (`kood.conformal.law_of_flags`): the rate's p-value is twice its
    smaller tail. For a change, the statistic is the largest log-likelihood ratio, over places t, of one rate from t on
    against the expected one, m_t KL(rate_t || expected); its p-value is the share of streams simulated under the same
    law that reach it, with the one observed counted in.

    They are simulated in blocks, after Besag and Clifford's sequential test (1991, Biometrika 78): once a block ends
    with `ENOUGH` that reach it there are no more, and a p-value of at most a stays as rare as a. Nor are there more
    where the rate's p-value is below all that more could give, since the smaller of both counts.

    That law is one of scores that never tie. Where several calibration scores are equal to the threshold (saturated or
    rounded ones), images of the stream that are equal to it too are accepted, all of them, and fewer are flagged than
    the law says. For the tests the order among equals is drawn, as smoothed conformal p-values do (Vovk et al. 2005,
    section 2.4): each equal score has a uniform number, the threshold has that of the place it stands at among its
    equals, and an equal score of the stream counts as flagged where its number is larger. Then the law is exact again.

    Args:
        flags: (m,) bool, in order of time, m at least 1.
        calibration_images: n.
        accept: Share that the threshold accepts.
        shift: What `kood.conformal.shift` finds of the stream's p-values: at a high accepted share most of what changes
            moves no image past the threshold.
        streams: How many are simulated at most, at least 1: the p-value of a change is never below 1 / (streams + 1).
        seed: Of the simulation, and of the order among equals.
    """
    place = rank(calibration_images, accept)
    rng = np.random.default_rng(seed)
    count, counted = len(flags), _untied(flags, ties, place, rng)
    flagged = int(counted.sum())
    beyond = calibration_images + 1 - place
    fewer = float(law_of_flags(count, calibration_images, accept).pmf(np.arange(flagged + 1)).sum())
    rate_p_value = min(1.0, 2 * min(fewer, tail_of_flags(flagged, count, calibration_images, accept)))
    expected = beyond / (calibration_images + 1)
    edges = stretches(count, PLACES)
    sizes = np.diff(edges)
    found = np.add.reduceat(counted.astype(np.int64), edges[:-1])
    clear = _clearness(found[None], sizes, expected)[0]
    clearest = int(np.argmax(clear))
    made = as_clear = 0
    while made < streams and (not made or (as_clear < ENOUGH and rate_p_value > 1 / (1 + streams))):
        some = min(STREAMS, streams - made)
        chances = rng.beta(beyond, place, size=(some, 1))
        simulated = _clearness(rng.binomial(sizes[None], chances), sizes, expected).max(axis=1)
        # Sums of the same numbers in another order may differ in the last digit.
        as_clear += int(np.sum(simulated >= clear[clearest] * (1 - 1e-12)))
        made += some
    since = int(edges[clearest])
    return Drift(
        images=count,
        flagged=int(flags.sum()),
        rate=float(flags.mean()),
        interval=rate_interval(int(flags.sum()), count),
        expected=expected,
        tied=int(np.sum(ties.at)),
        rate_p_value=rate_p_value,
        change_p_value=(1 + as_clear) / (1 + made),
        since=since,
        rate_since=float(flags[since:].mean()),
        shift=shift,
    )


def _untied(flags: np.ndarray, ties: Ties, place: int, rng: np.random.Generator) -> np.ndarray:
    """The flags, with the order among scores equal to the threshold drawn."""
    # The number of the j-th smallest of e uniform ones.
    among = place - ties.below
    edge = rng.beta(among, ties.tied + 1 - among)
    return flags | (np.asarray(ties.at, bool) & (rng.random(len(flags)) > edge))


def stretches(count: int, most: int) -> np.ndarray:
    """The edges, both ends included, of at most `most` stretches of about equal length of so many images."""
    return np.unique(np.linspace(0, count, min(count, most) + 1).round().astype(np.int64))


def _clearness(flagged: np.ndarray, sizes: np.ndarray, expected: float) -> np.ndarray:
    """The log-likelihood ratio (S, L) of a rate of its own from each block on, of streams (S, L) of flagged images."""
    hits = np.cumsum(flagged[:, ::-1], axis=1)[:, ::-1].astype(np.float64)
    of = np.cumsum(sizes[::-1])[::-1].astype(np.float64)
    rate = hits / of
    return of * (xlogy(rate, rate / expected) + xlogy(1 - rate, (1 - rate) / (1 - expected)))
