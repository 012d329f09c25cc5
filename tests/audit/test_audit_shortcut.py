"""The shortcut test: DeLong's interval against its definition pair by pair, against resampling, and its verdicts."""

import math

import numpy as np
import pytest
from scipy import stats

from kood.audit.shortcut import FAILS_ABOVE, auroc_interval, shortcut_test


def delong_by_definition(id_, ood, level):
    pairs = np.array([[1.0 if x > y else 0.5 if x == y else 0.0 for y in id_] for x in ood])
    w, v = pairs.mean(axis=1), pairs.mean(axis=0)
    area = pairs.mean()
    variance = sum((w - area) ** 2) / (len(w) - 1) / len(w) + sum((v - area) ** 2) / (len(v) - 1) / len(v)
    z = stats.norm.ppf((1 + level) / 2)
    logit, step = math.log(area / (1 - area)), z * math.sqrt(variance) / (area * (1 - area))
    return area, variance, [1 / (1 + math.exp(-(logit + sign * step))) for sign in (-1, 1)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("ties", [False, True])
def test_the_interval_is_delongs(rng, level, ties):
    id_, ood = rng.normal(0, 1, 40), rng.normal(0.7, 1.5, 25)
    if ties:
        id_, ood = np.round(id_), np.round(ood)
    _, _, expected = delong_by_definition(id_, ood, level)
    assert auroc_interval(id_, ood, level) == pytest.approx(expected, rel=1e-9)


def test_the_variance_is_that_of_resampling(rng):
    id_, ood = rng.normal(0, 1, 120), rng.normal(0.8, 1, 150)
    area, variance, _ = delong_by_definition(id_, ood, 0.95)
    drawn = []
    for _ in range(4000):
        x, y = rng.choice(ood, 150), rng.choice(id_, 120)
        drawn.append(stats.mannwhitneyu(x, y).statistic / (150 * 120))
    assert np.mean(drawn) == pytest.approx(area, abs=0.003)
    assert np.std(drawn) == pytest.approx(math.sqrt(variance), rel=0.06)


def test_the_interval_covers_as_often_as_it_says(rng):
    # Two unit Gaussians d apart have AUROC Phi(d / sqrt 2).
    true = stats.norm.cdf(1.5 / math.sqrt(2))
    inside = 0
    for _ in range(1000):
        low, high = auroc_interval(rng.normal(0, 1, 30), rng.normal(1.5, 1, 40))
        inside += low <= true <= high
    assert 0.93 <= inside / 1000 <= 0.975


def test_only_the_order_counts():
    id_, ood = np.array([0.1, 0.5, 0.5, 0.9]), np.array([0.4, 0.5, 0.95])
    expected = auroc_interval(id_, ood)
    assert auroc_interval(np.exp(20 * id_), np.exp(20 * ood)) == pytest.approx(expected)
    with_infinity = np.array([0.1, 0.5, 0.5, 0.9]), np.array([0.4, 0.5, np.inf])
    assert auroc_interval(*with_infinity) == pytest.approx(expected)
    high_to_low = auroc_interval(-id_, -ood)
    assert high_to_low == pytest.approx((1 - expected[1], 1 - expected[0]))


@pytest.mark.parametrize(("n", "m"), [(2, 2), (10, 400), (500, 500)])
def test_pairs_that_all_come_out_alike_leave_doubt(n, m):
    # No failure in k trials: the exact binomial bound, as SciPy gives it.
    k = min(n, m)
    chance = stats.binomtest(k, k).proportion_ci(0.95, method="exact").low
    low, high = auroc_interval(np.zeros(n), np.ones(m))
    assert (low, high) == (pytest.approx(chance), 1.0)
    assert auroc_interval(np.ones(n), np.zeros(m)) == (0.0, pytest.approx(1 - chance))
    low, high = auroc_interval(np.ones(n), np.ones(m))
    assert (low, high) == (pytest.approx(0.5 - (1 - chance) / 2), pytest.approx(0.5 + (1 - chance) / 2))


@pytest.mark.parametrize(
    ("id_", "ood", "message"),
    [
        ([], [1.0, 2.0], "scores_id must be at least 2 scores"),
        ([1.0, 2.0], [1.0], "scores_ood must be at least 2 scores"),
        ([1.0, np.nan], [1.0, 2.0], "1 of 2 scores_id are NaN"),
        ([[1.0, 2.0]], [1.0, 2.0], "scores_id must be at least 2"),
        (["a", "b"], [1.0, 2.0], "must be real numbers"),
    ],
)
def test_what_has_no_interval_is_refused(id_, ood, message):
    with pytest.raises(ValueError, match=message):
        auroc_interval(np.array(id_), np.array(ood))
    with pytest.raises(ValueError, match=message):
        shortcut_test(np.array(id_), np.array(ood), score="msp")


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_is_a_fraction(level):
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        auroc_interval([0.0, 1.0], [0.0, 1.0], level)


@pytest.mark.parametrize(
    ("shift", "count", "verdict", "words"),
    [
        (1.5, 800, "failed", "has learnt to spot generated images instead of images between classes"),
        (0.3, 4000, "slight", "a little stranger"),
        (0.0, 800, "passed", "does not care that an image is generated"),
        (-1.0, 800, "reversed", "more ordinary than real ones"),
        (0.4, 12, "undecided", "cannot tell"),
        (0.6, 200, "undecided", "cannot tell"),
    ],
)
def test_verdicts(rng, shift, count, verdict, words):
    id_, pure = rng.normal(0, 1, count), rng.normal(shift, 1, count)
    found = shortcut_test(id_, pure, score="energy")
    area, _, interval = delong_by_definition(id_, pure, 0.95) if count <= 800 else (None, None, found["interval"])
    assert found["interval"] == pytest.approx(interval, rel=1e-9)
    if area is not None:
        assert found["auroc"] == pytest.approx(area, rel=1e-12)
    assert found["verdict"] == verdict
    assert words in found["sentence"]
    assert (found["n_id"], found["n_pure"], found["score"]) == (count, count, "energy")
    low, high = found["interval"]
    assert low < found["auroc"] < high
    assert (low > FAILS_ABOVE) == (verdict == "failed")


def test_a_detector_that_separates_perfectly_fails_and_few_images_do_not_decide():
    assert shortcut_test(np.zeros(50), np.ones(50), score="msp")["verdict"] == "failed"
    assert shortcut_test(np.zeros(3), np.ones(3), score="msp")["verdict"] == "undecided"
    assert shortcut_test(np.zeros(50), np.zeros(50), score="msp")["verdict"] == "passed"
