"""Intervals against DeLong's formula written out pair by pair, against normal theory, and by their coverage."""

import math

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score

from kood.conformal import rate_interval
from kood.intervals import Difference, auroc_difference, auroc_interval, mean_interval, paired_difference
from kood.metrics import auroc, placements


def rng(seed=0):
    return np.random.default_rng(seed)


def by_pairs(inside, outsides):
    """AUROC and its variance from every pair of an ID and an OOD example."""
    wins = [np.where(o[None] > inside[:, None], 1.0, np.where(o[None] == inside[:, None], 0.5, 0.0)) for o in outsides]
    of_inside = sum(w.mean(axis=1) for w in wins) / len(wins)
    variance = ((of_inside - of_inside.mean()) ** 2).sum() / (len(inside) - 1) / len(inside)
    for w in wins:
        of = w.mean(axis=0)
        variance += ((of - of.mean()) ** 2).sum() / (len(of) - 1) / len(of) / len(wins) ** 2
    return np.mean([w.mean() for w in wins]), variance


def satterthwaite(inside, outsides):
    """The degrees of freedom of that variance."""
    of_inside, of_outsides = placements(inside, outsides)
    parts = [of_inside.var(ddof=1) / len(of_inside)]
    parts += [of.var(ddof=1) / len(of) / len(outsides) ** 2 for of in of_outsides]
    degrees = [len(of) - 1 for of in (of_inside, *of_outsides)]
    return sum(parts) ** 2 / sum(part**2 / one for part, one in zip(parts, degrees, strict=True))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sets", [1, 3])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_an_interval_is_delongs_on_the_logit_scale(tied, sets, level):
    from scipy.stats import t

    inside, outsides = rng().normal(size=60), [rng(k + 1).normal(0.4 + k, size=30 + k) for k in range(sets)]
    if tied:
        inside, outsides = np.rint(inside), [np.rint(o) for o in outsides]
    area, variance = by_pairs(inside, outsides)
    reach = t(satterthwaite(inside, outsides)).ppf((1 + level) / 2) * math.sqrt(variance) / (area * (1 - area))
    middle = math.log(area / (1 - area))
    expected = [1 / (1 + math.exp(-(middle + sign * reach))) for sign in (-1, 1)]
    np.testing.assert_allclose(auroc_interval(inside, outsides, level), expected, rtol=1e-12)


def delong64(inside, outsides, other_inside, other_outsides):
    """DeLong's covariance of two AUROCs, pair by pair, as the paper writes it; for one OOD set."""
    kernel = lambda x, y: 1.0 if y > x else 0.5 if y == x else 0.0  # noqa: E731
    (outside,), (other_outside,) = outsides, other_outsides
    n, m = len(inside), len(outside)
    components = []
    for ids, oods in ((inside, outside), (other_inside, other_outside)):
        psi = np.array([[kernel(x, y) for y in oods] for x in ids])
        components.append((psi.mean(), psi.mean(axis=1), psi.mean(axis=0)))
    (first, v10, v01), (second, w10, w01) = components

    def covariance(a, b, mean_a, mean_b):
        return sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True)) / (len(a) - 1)

    s10 = [[covariance(a, b, p, q) for b, q in ((v10, first), (w10, second))] for a, p in ((v10, first), (w10, second))]
    s01 = [[covariance(a, b, p, q) for b, q in ((v01, first), (w01, second))] for a, p in ((v01, first), (w01, second))]
    contrast = np.array([-1.0, 1.0])
    variance = contrast @ (np.array(s10) / n + np.array(s01) / m) @ contrast
    return second - first, np.sqrt(max(variance, 0.0))


@pytest.mark.parametrize("decimals", [0, 1, 8])
@pytest.mark.parametrize(("n", "m"), [(2, 2), (40, 25), (3, 60)])
def test_auroc_difference_is_delongs(decimals, n, m):
    rng = np.random.default_rng(n + decimals)
    shared, more = rng.normal(size=n), rng.normal(size=m) + 1
    scores = [
        (np.round(shared + rng.normal(size=n), decimals), [np.round(more + rng.normal(size=m), decimals)])
        for _ in range(2)
    ]
    scores[1][1][0][0] = np.inf
    scores[0][0][-1] = -np.inf
    expected = delong64(*scores[0], *scores[1])
    np.testing.assert_allclose(auroc_difference(*scores), expected, atol=1e-12)
    reverse = auroc_difference(scores[1], scores[0])
    np.testing.assert_allclose(reverse, (-expected[0], expected[1]), atol=1e-12)


@pytest.mark.slow
def test_auroc_difference_over_sets_agrees_with_a_paired_bootstrap():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=150)
    sizes = (80, 200)
    inside = [hard + rng.normal(size=150), hard + 0.5 * rng.normal(size=150)]
    shared = [rng.normal(size=m) + shift for m, shift in zip(sizes, (0.8, 2.0), strict=True)]
    outside = [[one + rng.normal(size=len(one)) for one in shared] for _ in range(2)]

    def difference(ids, oods):
        aurocs = [
            np.mean([roc_auc_score([0] * 150 + [1] * len(o), np.concatenate([inside[k][ids], outside[k][s][o]]))
                     for s, o in enumerate(oods)])
            for k in range(2)
        ]  # fmt: skip
        return aurocs[1] - aurocs[0]

    drawn = [difference(rng.integers(150, size=150), [rng.integers(m, size=m) for m in sizes]) for _ in range(600)]
    found, error = auroc_difference(*((inside[k], outside[k]) for k in range(2)))
    np.testing.assert_allclose(found, difference(np.arange(150), [np.arange(m) for m in sizes]), atol=1e-12)
    assert abs(error / np.std(drawn) - 1) < 0.12


def test_auroc_difference_of_equal_and_of_opposite_scores():
    inside, outside = np.arange(5.0), [np.arange(5.0) + 10]
    assert auroc_difference((inside, outside), (inside, outside)) == (0.0, 0.0)
    assert auroc_difference((inside, outside), (-inside, [-outside[0]])) == (-1.0, 0.0)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (([1.0, 2], [[1.0, 2]]), ([1.0, 2, 3], [[1.0, 2]])),
        (([1.0, 2], [[1.0, 2]]), ([1.0, 2], [[1.0, 2], [1.0, 2]])),
        (([1.0, 2], []), ([1.0, 2], [])),
        (([1.0], [[1.0, 2]]), ([1.0], [[1.0, 2]])),
    ],
)
def test_auroc_difference_needs_the_same_examples(first, second):
    with pytest.raises(ValueError, match="same ID examples|no OOD set"):
        auroc_difference(first, second)


def test_auroc_difference_refuses_nan():
    with pytest.raises(ValueError, match="NaN"):
        auroc_difference(([1.0, 2], [[1.0, 2]]), ([1.0, float("nan")], [[1.0, 2]]))


def test_placements_average_to_the_auroc():
    inside, outsides = (
        np.rint(rng().normal(size=50)),
        [np.rint(rng(2).normal(size=31)), np.array([np.inf, -np.inf, 0.0])],
    )
    of_inside, of_outsides = placements(inside, outsides)
    for outside, of in zip(outsides, of_outsides, strict=True):
        is_ood = np.repeat([False, True], [len(inside), len(outside)])
        assert math.isclose(of.mean(), auroc(np.concatenate([inside, outside]), is_ood))
    assert math.isclose(of_inside.mean(), np.mean([of.mean() for of in of_outsides]))


def test_a_perfect_detector_is_not_certain():
    low, high = auroc_interval(np.arange(20.0), [np.arange(20.0, 30.0)])
    # Ten pairs in a row: the exact (Clopper-Pearson) lower end of 10 successes in 10.
    assert high == 1.0 and math.isclose(low, 0.025 ** (1 / 10))
    low, high = auroc_interval(np.arange(20.0, 30.0), [np.arange(20.0)])
    assert low == 0.0 and math.isclose(high, 1 - 0.025 ** (1 / 10))


@pytest.mark.parametrize(("n", "m"), [(2, 2), (10, 400), (500, 500)])
def test_pairs_that_all_come_out_alike_leave_doubt(n, m):
    from scipy.stats import binomtest

    # No failure in k trials: the exact binomial bound, as SciPy gives it.
    chance = binomtest(min(n, m), min(n, m)).proportion_ci(0.95, method="exact").low
    assert auroc_interval(np.zeros(n), [np.ones(m)]) == (pytest.approx(chance), 1.0)
    assert auroc_interval(np.ones(n), [np.zeros(m)]) == (0.0, pytest.approx(1 - chance))
    assert auroc_interval(np.ones(n), [np.ones(m)]) == pytest.approx((0.5 * chance, 1 - 0.5 * chance))
    # A tied set and a separated one of the same size, half each.
    low, high = auroc_interval(np.ones(n), [np.ones(m), np.full(m, 2.0)])
    assert (low, high) == pytest.approx((0.75 * chance, 1 - 0.25 * chance))


def test_one_kind_all_alike_widens_delongs_interval():
    outside = np.repeat([0.0, 1.0], [36, 4])
    low, high = auroc_interval(np.zeros(20), [outside])
    area, error = 0.55, math.sqrt(outside.var(ddof=1) / 4 / 40)
    reach, chance = 2.022690920 * error / (area * (1 - area)), 0.025 ** (1 / 20)
    ends = [1 / (1 + math.exp(-(math.log(area / (1 - area)) + sign * reach))) for sign in (-1, 1)]
    assert (low, high) == pytest.approx((ends[0] * chance, 1 - (1 - ends[1]) * chance))


@pytest.mark.parametrize("kind", ["untied", "tied", "all alike", "one kind alike", "infinite"])
def test_only_the_order_counts_and_negated_scores_are_mirrored(kind):
    inside, outsides = np.array([0.1, 0.5, 0.6, 0.9]), [np.array([0.4, 0.7, 0.95]), np.array([0.2, 0.3])]
    if kind == "tied":
        inside[2] = 0.5
        outsides[0][1] = 0.5
    elif kind == "all alike":
        inside, outsides = np.ones(4), [np.ones(3), np.ones(2)]
    elif kind == "one kind alike":
        inside = np.full(4, 0.4)
    elif kind == "infinite":
        inside[3] = outsides[0][2] = np.inf
    low, high = auroc_interval(inside, outsides)
    assert 0 < low < high < 1
    assert auroc_interval(np.exp(20 * inside), [np.exp(20 * o) for o in outsides]) == pytest.approx((low, high))
    assert auroc_interval(-inside, [-o for o in outsides]) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(
    ("inside", "outsides", "level", "message"),
    [
        ([0.0], [[1.0, 2.0]], 0.95, "two or more"),
        ([0.0, 1.0], [[1.0]], 0.95, "two or more"),
        ([0.0, 1.0], [], 0.95, "no OOD set"),
        ([0.0, math.nan], [[1.0, 2.0]], 0.95, "NaN"),
        ([0.0, 1.0], [[1.0, 2.0]], 1.0, "level"),
        ([0.0, 1.0], [[1.0, 2.0]], 0, "level must be between 0 and 1"),
        ([0.0, 1.0], [[1.0, 2.0]], 95, "level"),
        ([[0.0, 1.0]], [[1.0, 2.0]], 0.95, r"real numbers \(N,\)"),
        (["a", "b"], [[1.0, 2.0]], 0.95, "real numbers"),
    ],
)
def test_wrong_input_is_refused(inside, outsides, level, message):
    with pytest.raises(ValueError, match=message):
        auroc_interval(inside, outsides, level)


def test_the_variance_is_that_of_resampling():
    draw = rng()
    inside, outside = np.rint(2 * draw.normal(size=120)), np.rint(2 * draw.normal(0.8, size=150))
    _, variance = by_pairs(inside, [outside])
    drawn = [placements(draw.choice(inside, 120), [draw.choice(outside, 150)])[1][0].mean() for _ in range(4000)]
    assert math.isclose(np.std(drawn), math.sqrt(variance), rel_tol=0.06)


def test_an_interval_covers_the_true_area_about_as_often_as_it_says():
    true, covered = 0.5 * (1 + math.erf(1.0 / 2)), 0  # Normals one apart: P(X < Y) = Phi(1 / sqrt 2).
    for trial in range(400):
        draw = rng(trial)
        low, high = auroc_interval(draw.normal(size=60), [draw.normal(1.0, size=60)], 0.9)
        covered += low <= true <= high
    assert 0.86 < covered / 400 < 0.94


@pytest.mark.parametrize("sizes", [(10, 500), (500, 10)])
def test_few_examples_of_one_kind_are_covered_too(sizes):
    true, covered, draw = 0.75, 0, rng(3)
    for _ in range(1000):
        low, high = auroc_interval(draw.normal(size=sizes[0]), [draw.normal(0.95387, size=sizes[1])])
        covered += low <= true <= high
    assert covered / 1000 > 0.93


@pytest.mark.parametrize("sizes", [(30, 40), (200, 100), (20, 500)])
@pytest.mark.parametrize("kind", ["rounded", "saturated", "rare", "rare and none", "none at all"])
def test_an_interval_of_tied_scores_covers_no_less_often_than_it_says(kind, sizes):
    """Two values each, of which one may be rare or never met; or normal scores, rounded or cut off."""

    def drawn(draw, count, ood):
        if kind in ("rounded", "saturated"):
            values = draw.normal(ood, size=count)
            return np.rint(values) if kind == "rounded" else np.maximum(values, 2.0)
        share = {"rare": (0.02, 0.1), "rare and none": (0.0, 0.05), "none at all": (0.0, 0.0)}[kind][ood]
        return (draw.random(count) < share).astype(float)

    many = [drawn(rng(k), 400_000, k) for k in range(2)]
    true = placements(many[0], [many[1]])[1][0].mean()
    draw, covered, trials = rng(9), 0, 1500
    for _ in range(trials):
        low, high = auroc_interval(drawn(draw, sizes[0], 0), [drawn(draw, sizes[1], 1)])
        assert high - low > 0.004
        covered += low <= true <= high
    assert covered / trials > 0.92


# Differences ---------------------------------------------------------------------------------------------------------


def test_the_interval_over_seeds_is_students():
    first, apart = rng().normal(0.7, 0.01, size=7), rng(1).normal(0.02, 0.01, size=7)
    found = paired_difference(first, first + apart)
    expected = scipy.stats.ttest_1samp(apart, 0.0).confidence_interval(0.95)
    np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-9)
    assert math.isclose(found.mean, apart.mean()) and found.seeds == 7 and found.positive == (apart > 0).sum()
    assert found.significant == (expected.low > 0 or expected.high < 0)


def test_half_widths_of_seeds_and_images_add_in_squares():
    apart, inside = rng(5).normal(0.1, 0.05, size=4), rng(6).normal(0.0, 0.4, size=30)
    found = paired_difference(np.zeros(4), apart, [(inside, [])] * 4)
    each = [scipy.stats.ttest_1samp(one, 0.0).confidence_interval(0.95) for one in (apart, inside)]
    half = math.hypot(*((one.high - one.low) / 2 for one in each))
    np.testing.assert_allclose([found.low, found.high], apart.mean() + half * np.array([-1, 1]), rtol=1e-9)


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("count", [3, 5])
def test_nothing_is_seldom_called_significant(count, noise):
    """Where the arms do not differ: seeds vary by .02, images by `noise`, each seed's own and all seeds' together."""
    draw, called, trials = rng(11), 0, 2000
    for _ in range(trials):
        together = draw.normal(0, noise, size=40)
        images = [(together + draw.normal(0, noise, size=40), []) for _ in range(count)]
        apart = draw.normal(0, 0.02, size=count) + [inside.mean() for inside, _ in images]
        called += paired_difference(np.zeros(count), apart, images if noise else None).significant
    assert called / trials < 0.06


def test_one_seed_without_images_has_no_interval_and_two_are_never_significant():
    assert paired_difference([0.5], [0.9]) == Difference(0.9 - 0.5, None, None, 1, 1)
    assert not paired_difference([0.5], [0.9]).significant
    assert not paired_difference([0.5, 0.5], [0.9, 0.9]).significant


def test_seeds_that_all_differ_alike_say_nothing_of_others():
    for first, second in ((0.5, 0.9), (0.5, 0.5), (0.1 + 0.2, 0.3)):
        found = paired_difference([first] * 3, [second] * 3)
        assert (found.low, found.high, found.significant) == (None, None, False)


def test_images_widen_the_interval_as_delong_says():
    draw = rng(3)
    inside, outside = draw.normal(size=4000), draw.normal(1.0, size=3000)
    other_inside, other_outside = inside + draw.normal(size=4000), outside + draw.normal(size=3000)
    one, other = placements(inside, [outside]), placements(other_inside, [other_outside])
    images = (other[0] - one[0], [other[1][0] - one[1][0]])
    change = images[0].mean()
    error = math.sqrt(images[0].var(ddof=1) / 4000 + images[1][0].var(ddof=1) / 3000)
    alone = paired_difference([0.0], [change], [images])
    np.testing.assert_allclose([alone.low, alone.high], change + 1.96 * error * np.array([-1, 1]), atol=2e-3 * error)
    # The same images for every seed: more seeds of equal differences do not make the images more certain.
    many = paired_difference([0.0] * 9, [change] * 9, [images] * 9)
    assert math.isclose(many.low, alone.low) and math.isclose(many.high, alone.high)


def test_several_sets_weigh_alike_and_one_image_adds_nothing():
    sets = [rng(k).normal(0.1, 0.5, size=5000 * (k + 1)) for k in range(2)]
    inside = rng(7).normal(0.1, 0.2, size=8000)
    found = paired_difference([0.0], [0.1], [(inside, sets)])
    error = math.sqrt(inside.var(ddof=1) / 8000 + sum(one.var(ddof=1) / len(one) for one in sets) / 4)
    assert math.isclose(found.high - found.low, 2 * 1.96 * error, rel_tol=2e-3)
    with_one = paired_difference([0.0], [0.1], [(inside, [*sets, np.array([0.3])])])
    error = math.sqrt(inside.var(ddof=1) / 8000 + sum(one.var(ddof=1) / len(one) for one in sets) / 9)
    assert math.isclose(with_one.high - with_one.low, 2 * 1.96 * error, rel_tol=2e-3)


def test_images_that_all_change_alike_may_be_followed_by_others():
    """As of two classifiers that are wrong of the same images: of 300 alike, 1.2% may differ by the exact bound."""
    found = paired_difference([0.9] * 3, [0.9] * 3, [(np.zeros(300), [])] * 3)
    share = 1 - scipy.stats.beta.ppf(0.025, 300, 1)
    np.testing.assert_allclose([found.low, found.high], [-share, share], rtol=1e-9)
    one = np.zeros(316)
    one[5] = -1.0  # A single image that one arm loses, under each of three seeds.
    assert not paired_difference([0.9] * 3, [0.9 - 1 / 316] * 3, [(one, [])] * 3).significant


def test_differences_repeat_and_refuse_what_does_not_pair():
    first, second = rng().random(5), rng(1).random(5)
    assert paired_difference(first, second) == paired_difference(first, second)
    for arguments, message in (
        (([], []), "one figure"), (([0.1], [0.1, 0.2]), "one figure"), (([0.1], [math.nan]), "NaN"),
        (([0.1], [0.2], []), "images of 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            paired_difference(*arguments)


@pytest.mark.parametrize("level", [95, 1.0, 0, -0.5, math.nan])
def test_a_level_that_is_no_share_is_refused(level):
    for asked in (
        lambda: mean_interval([0.5, 0.6, 0.7], level),
        lambda: paired_difference([0.5, 0.6, 0.4], [0.6, 0.71, 0.52], level=level),
        lambda: rate_interval(3, 10, level),
    ):
        with pytest.raises(ValueError, match="level must be between 0 and 1; it is"):
            asked()
