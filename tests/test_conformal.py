"""The threshold, p-values and intervals against their definitions."""

import math

import numpy as np
import pytest
from scipy import stats

from kood.conformal import needed_images, p_values, rate_interval, threshold
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
