"""The threshold, p-values and intervals against their definitions."""

import math

import numpy as np
import pytest
from scipy import stats

from kood.conformal import Calibration, needed_images, p_values, rate_interval, threshold
from kood.errors import UserError


@pytest.mark.parametrize("accept", [0.5, 0.9, 0.95, 0.99])
def test_as_few_images_as_the_guarantee_needs(accept):
    needed = needed_images(accept)
    assert threshold(np.arange(float(needed)), accept) == needed - 1
    with pytest.raises(UserError, match=f"needs at least {needed} calibration images, there are {needed - 1}"):
        threshold(np.arange(needed - 1.0), accept)


def test_p_values_are_counted_with_ties_and_at_the_ends():
    calibration = np.float64([3, 1, 2, 2])
    # By hand: 1 + how many are at least as high, over 5.
    assert p_values(np.float64([0, 1, 2, 2.5, 3, 4]), calibration).tolist() == [1.0, 1.0, 0.8, 0.4, 0.4, 0.2]
    assert p_values(np.float64([7]), np.empty(0)).tolist() == [1.0]


@pytest.mark.parametrize("accept", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("count", [19, 20, 99, 100, 237])
def test_flagged_is_a_small_p_value(accept, count):
    rng = np.random.default_rng(count)
    calibration = rng.integers(0, 50, count).astype("float64")
    scores = np.concatenate([calibration, rng.normal(25, 20, 500)])
    flagged = scores > threshold(calibration, accept)
    np.testing.assert_array_equal(flagged, p_values(scores, calibration) <= 1 - accept + 1e-12)


def test_p_values_of_exchangeable_images_are_valid():
    rng = np.random.default_rng(0)
    found = np.array([p_values(rng.normal(size=1), rng.normal(size=39))[0] for _ in range(4000)])
    for level in (0.05, 0.1, 0.5):
        assert np.mean(found <= level) == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 4000))


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (3, 10), (1, 1), (950, 1000)])
def test_the_interval_is_that_of_clopper_and_pearson(hits, count):
    expected = stats.binomtest(hits, count).proportion_ci(0.95, method="exact")
    assert rate_interval(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_an_interval_of_nothing_is_everything():
    assert rate_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="hits must lie in 0..3"):
        rate_interval(4, 3)


@pytest.mark.parametrize("accept", [0, 1, -0.1, 95, math.nan])
def test_a_share_that_is_none_is_refused(accept):
    for asked in (lambda: threshold(np.arange(100.0), accept), lambda: needed_images(accept)):
        with pytest.raises(ValueError, match="accept must be between 0 and 1; it is"):
            asked()


def test_the_least_share_accepts_the_least_score():
    assert threshold(np.arange(100.0), 1e-12) == 0.0


STRANGE = np.array([np.nan, np.inf, -np.inf])


def test_what_cannot_be_compared_is_out_and_never_lowers_a_threshold():
    calibration = np.arange(100.0)
    decision = Calibration(calibration, np.zeros(100, int), 2, 0.9)
    assert decision.flagged(STRANGE, np.array([0, 1, 1])).all()
    np.testing.assert_array_equal(p_values(STRANGE, calibration), 1 / 101)
    # Among the calibration scores it counts with the highest: the threshold is that of a hundred.
    for strange in STRANGE:
        with_one = np.append(calibration[:99], strange)
        assert threshold(with_one, 0.9) == threshold(np.append(calibration[:99], 1e9), 0.9)
    with pytest.raises(UserError, match="20 of 119 calibration images have a score that is NaN or infinite") as caught:
        threshold(np.append(np.arange(99.0), np.full(20, np.nan)), 0.9)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("by_class", [False, True])
def test_what_has_no_label_is_flagged_and_counts_as_flagged(by_class):
    scores, labels = np.arange(100.0), np.arange(100) % 2
    labels[:20] = -1  # The lowest scores, of what nothing could be said of.
    decision = Calibration(scores, labels, 2, 0.7, by_class)
    known = scores[20:]
    if by_class:  # It belongs to no class.
        assert [group.threshold for group in decision.groups] == [threshold(known[k::2], 0.7) for k in range(2)]
    else:
        assert decision.groups[0].threshold == threshold(np.concatenate([known, np.full(20, np.inf)]), 0.7)
    assert decision.flagged(np.array([0.0, 0.0]), np.array([-1, 0])).tolist() == [True, False]
    p = decision.p_values(np.array([0.0, 0.0]), np.array([-1, 0]))
    assert p[1] == 1.0 and p[0] == (0.0 if by_class else 21 / 101)


def test_each_class_has_the_threshold_of_the_images_that_are_labelled_so():
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 400, p=[0.6, 0.3, 0.1])
    scores = rng.normal(size=400) + 3.0 * labels
    decision = Calibration(scores, labels, 3, 0.9, by_class=True)
    new_labels = rng.choice(3, 200)
    new = rng.normal(size=200) + 3.0 * new_labels
    for k in range(3):
        own, edge = new_labels == k, threshold(scores[labels == k], 0.9)
        assert decision.thresholds[k] == edge and decision.groups[k].classes == (k,)
        np.testing.assert_array_equal(decision.flagged(new, new_labels)[own], new[own] > edge)
        np.testing.assert_array_equal(decision.p_values(new, new_labels)[own], p_values(new[own], scores[labels == k]))
    assert len(Calibration(scores, labels, 3, 0.9).groups) == 1


def test_each_class_is_accepted_as_often_as_promised():
    rng, accepted = np.random.default_rng(1), np.zeros((300, 2))
    for row in accepted:
        labels = rng.choice(2, 120, p=[0.75, 0.25])
        decision = Calibration(rng.normal(size=120) * (1 + 4 * labels), labels, 2, 0.9, by_class=True)
        for k in range(2):
            new = rng.normal(size=500) * (1 + 4 * k)
            row[k] = 1 - decision.flagged(new, np.full(500, k)).mean()
    # At least 0.9, and at most a place among some thirty more.
    assert (accepted.mean(axis=0) > 0.89).all() and (accepted.mean(axis=0) < 0.94).all()


@pytest.mark.parametrize(
    ("counts", "groups"),
    [
        ([50, 50], [0, 1]),
        ([50, 4, 30, 6], [0, 1, 2, 1]),  # Four and six are enough together.
        ([50, 4, 30, 2], [0, 1, 1, 1]),  # Four and two are not: the next one joins.
        ([9, 0, 5, 4], [0, 1, 1, 1]),
        ([5, 3, 2], [0, 0, 0]),
        ([0, 40], [0, 0]),
    ],
)
def test_classes_with_too_few_images_share_a_threshold(counts, groups):
    labels = np.repeat(np.arange(len(counts)), counts)
    decision = Calibration(np.arange(float(len(labels))), labels, len(counts), 0.9, by_class=True)
    assert decision.group_of.tolist() == groups and all(group.images >= 9 for group in decision.groups)
    assert sum(group.images for group in decision.groups) == len(labels)


def test_ties_with_the_threshold_are_counted():
    group = Calibration(np.float64([1, 2, 2, 2, 3] * 10), np.zeros(50, int), 1, 0.5).groups[0]
    assert (group.threshold, group.below, group.tied, group.images) == (2.0, 10, 30, 50)
