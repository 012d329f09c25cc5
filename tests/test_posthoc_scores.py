"""TempScale, OpenMax, NCI, GradNorm, Relation, WeiPer and AdaSCALE against their formulas in NumPy float64."""

import numpy as np
import pytest
from keras import ops
from scipy import optimize, stats

from kood import scores
from tests.test_head_scores import (
    BIAS,
    CLASSES,
    FEATURES,
    HEAD,
    KERNEL,
    LABELS,
    LOGITS,
    QUERIES,
    QUERY_LOGITS,
    WIDTH,
    numbers,
    softmax64,
)  # fmt: skip

pytestmark = pytest.mark.backend  # Run once under each Keras backend.

#: Equal logits, a lead that saturates the softmax, negative ones, and none at all; features of zeros and huge ones.
HARD_LOGITS = np.float32([[1] * CLASSES, [300, 0, 0, 0, 0], [-9, -8, -7, -6, -5], [0] * CLASSES])
HARD_FEATURES = np.float32([[0] * WIDTH, [1e4] * WIDTH, [-1] * WIDTH, np.eye(WIDTH)[3]])
EVERY, EVERY_LOGITS = np.concatenate([QUERIES, HARD_FEATURES]), np.concatenate([QUERY_LOGITS, HARD_LOGITS])


@pytest.mark.parametrize("factor", [0.05, 1.0, 20.0])
def test_tempscale(factor):
    """The temperature with the least negative log-likelihood, whatever the logits are multiplied with."""
    logits = (factor * LOGITS).astype("float32")

    def surprise(temperature):
        scaled = np.float64(logits) / temperature
        return (np.logaddexp.reduce(scaled, axis=1) - scaled[np.arange(len(LABELS)), LABELS]).mean()

    best = optimize.minimize_scalar(surprise, bounds=(0.01, 100), method="bounded", options={"xatol": 1e-9}).x
    score = scores.TempScale().fit(FEATURES, LABELS, logits)
    assert score.get_state()["temperature"] == pytest.approx(best, rel=1e-5)
    found = numbers(score.score(EVERY, EVERY_LOGITS))
    p = softmax64(EVERY_LOGITS / score.get_state()["temperature"])
    np.testing.assert_allclose(found, 1 - p.max(axis=1), rtol=1e-4, atol=1e-6)
    # Known to the digits where the maximum rounds to 1.
    sure = np.zeros((30, CLASSES), "float32")
    sure[:, 2] = 20 * score.get_state()["temperature"] + np.arange(30)
    assert np.all(np.diff(numbers(score.score(np.ones((30, WIDTH)), sure))) < 0)


def test_tempscale_at_the_ends_of_its_range():
    """Where every image is labelled rightly the likelihood grows without end; where none is, the other way."""
    logits = np.float32(np.eye(CLASSES))
    for labels, end in ((np.arange(CLASSES), 0.01), ((np.arange(CLASSES) + 1) % CLASSES, 100.0)):
        score = scores.TempScale().fit(np.ones((CLASSES, 2)), labels, logits)
        assert score.get_state()["temperature"] == pytest.approx(end)
        assert np.isfinite(numbers(score.score(np.ones((CLASSES, 2)), logits))).all()
    with pytest.raises(ValueError, match="labels must be from 0 to 4"):
        scores.TempScale().fit(np.ones((2, 2)), [0, 5], logits[:2])


def open_max64(logits, tail, alpha):
    """P(unknown) of the authors' code, one row at a time, with SciPy's Weibull distribution as libMR shifts it."""
    right = LOGITS.argmax(axis=1) == LABELS
    means, fits = [], []
    for k in range(CLASSES):
        own = np.float64(LOGITS)[right & (k == LABELS)]
        means.append(own.mean(axis=0))
        largest = np.sort(np.linalg.norm(own - means[k], axis=1))[-tail:]
        shifted = largest - largest[0] + 10_000

        def surprise(log_shape, shifted=shifted):
            shape = np.exp(log_shape)
            scale = np.exp(np.log(np.mean(np.exp(shape * np.log(shifted / shifted[-1])))) / shape) * shifted[-1]
            return -stats.weibull_min.logpdf(shifted, shape, scale=scale).sum()

        shape = np.exp(optimize.minimize_scalar(surprise, bounds=(5, 16), method="bounded", options={"xatol": 1e-9}).x)
        scale = np.exp(np.log(np.mean(np.exp(shape * np.log(shifted / shifted[-1])))) / shape) * shifted[-1]
        fits.append((largest[0], shape, scale))
    odds = []
    for row in np.float64(logits):
        revised, unknown = row.copy(), 0.0
        for rank, k in enumerate(np.argsort(-row, kind="stable")[:alpha]):
            least, shape, scale = fits[k]
            distance = np.linalg.norm(row - means[k])
            with np.errstate(over="ignore"):
                w = stats.weibull_min.cdf(distance - least + 10_000, shape, scale=scale)
            revised[k] = row[k] * (1 - w * (alpha - rank) / alpha)
            unknown += row[k] - revised[k]
        odds.append(unknown - np.logaddexp.reduce(revised))
    return np.array(odds)


@pytest.mark.parametrize(("tail", "alpha"), [(20, 3), (5, 1), (1000, CLASSES)])
def test_openmax(tail, alpha):
    found = numbers(scores.OpenMax(tail, alpha).fit(FEATURES, LABELS, LOGITS).score(EVERY, EVERY_LOGITS))
    np.testing.assert_allclose(found, open_max64(EVERY_LOGITS, tail, alpha), rtol=2e-3, atol=2e-3)


def test_openmax_of_few_classes_and_images():
    """One image a class, whose distance is 0: what is further off is unknown at once; alpha above the classes."""
    logits = np.float32(9 * np.eye(2))
    score = scores.OpenMax(alpha=10).fit(np.ones((2, 3)), [0, 1], logits)
    same, other = numbers(score.score(np.ones((2, 3)), np.concatenate([logits[:1], logits[:1] + 1])))
    # A Weibull distribution of one point is 1 - 1/e there.
    kept = 9 * np.exp(-1)
    assert same == pytest.approx(9 - kept - np.logaddexp(kept, 0), abs=1e-3)
    assert other == pytest.approx(10 + 0.5 - np.logaddexp(0, 0.5), abs=1e-3)
    # Distances that are all equal: no answer may hang on the last digit of a logit.
    equal = np.float32([[20, 5, 0], [20, -5, 0], [0, 9, 0], [0, 0, 9]])
    score = scores.OpenMax().fit(np.ones((4, 3)), [0, 0, 1, 2], equal)
    last = np.float32([20, np.nextafter(np.float32(5), np.float32(6)), 0])
    found = numbers(score.score(np.ones((2, 3)), np.stack([equal[0], last])))
    assert found[0] == pytest.approx(found[1], abs=1e-3)
    with pytest.raises(ValueError, match="OpenMax needs an image of every class.*none of 1"):
        scores.OpenMax().fit(np.ones((1, 3)), [0], logits[:1])
    for wrong in ({"tail": 0}, {"alpha": 1.5}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a whole number"):
            scores.OpenMax(**wrong)


@pytest.mark.parametrize("alpha", [0.0, 0.0001, 0.1])
def test_nci(alpha):
    mean = np.float64(FEATURES).mean(axis=0)
    untied = EVERY_LOGITS + np.linspace(0, 0.1, CLASSES, dtype="float32")  # Of equal logits any may be the largest.
    expected = []
    for x, logits in zip(np.float64(EVERY), untied, strict=True):
        w = np.float64(KERNEL)[:, logits.argmax()]
        expected.append(-w @ (x - mean) / np.linalg.norm(x - mean) - alpha * np.abs(x).sum())
    score = scores.NCI(alpha).fit(FEATURES, **HEAD)
    np.testing.assert_allclose(numbers(score.score(EVERY, untied)), expected, rtol=1e-5, atol=1e-5)
    at_mean = score.get_state()["mean"][None]
    assert np.isfinite(numbers(score.score(at_mean, at_mean @ KERNEL + BIAS))).all()
    with pytest.raises(ValueError, match="alpha"):
        scores.NCI(-0.1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 30.0])
def test_gradnorm(temperature):
    """The gradient by central differences of the loss, of every weight."""
    score = scores.GradNorm(temperature).fit(FEATURES, **HEAD)
    x = np.concatenate(
        [QUERIES[:8], HARD_FEATURES[:1], np.float32(0.1 * np.random.default_rng(3).normal(size=(2, WIDTH)))]
    )
    kernel, step = np.float64(KERNEL), 1e-5

    def loss(weights):
        scaled = (np.float64(x) @ weights + BIAS) / temperature
        return (np.logaddexp.reduce(scaled, axis=1, keepdims=True) - scaled).mean(axis=1)

    norm = 0.0
    for d, k in np.ndindex(*kernel.shape):
        moved = np.zeros_like(kernel)
        moved[d, k] = step
        norm = norm + np.abs(loss(kernel + moved) - loss(kernel - moved)) / (2 * step)
    found = numbers(score.score(x, (np.float64(x) @ KERNEL + BIAS).astype("float32")))
    np.testing.assert_allclose(found, -norm, rtol=1e-4, atol=1e-6)
    whole = -np.abs(np.float64(EVERY)).sum(axis=1)
    whole = whole * np.abs(softmax64(EVERY_LOGITS / temperature) - 1 / CLASSES).sum(axis=1) / temperature
    np.testing.assert_allclose(numbers(score.score(EVERY, EVERY_LOGITS)), whole, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="temperature"):
        scores.GradNorm(0)


@pytest.mark.parametrize("block", [7, 8192])
@pytest.mark.parametrize(("power", "threshold"), [(1, 0.03), (4, 0.0), (0.5, 0.3)])
def test_relation(power, threshold, block, monkeypatch):
    monkeypatch.setattr(scores.Relation, "BLOCK", block)

    def unit(x):
        length = np.linalg.norm(np.float64(x), axis=1, keepdims=True)
        return np.float64(x) / np.where(length > 0, length, 1)

    relation = np.maximum(unit(EVERY) @ unit(FEATURES).T, 0) * (softmax64(EVERY_LOGITS) @ softmax64(LOGITS).T)
    expected = -np.where(relation > threshold, relation**power, 0).mean(axis=1)
    score = scores.Relation(power, threshold).fit(FEATURES, LABELS, LOGITS)
    np.testing.assert_allclose(numbers(score.score(EVERY, EVERY_LOGITS)), expected, rtol=1e-4, atol=1e-6)
    few = np.linspace(0, len(FEATURES) - 1, 4).round().astype(int)
    limited = scores.Relation(power, threshold, limit=4).fit(FEATURES, LABELS, LOGITS)
    expected = -np.where(relation > threshold, relation**power, 0)[:, few].mean(axis=1)
    np.testing.assert_allclose(numbers(limited.score(EVERY, EVERY_LOGITS)), expected, rtol=1e-4, atol=1e-6)
    score.place()
    np.testing.assert_array_equal(
        numbers(score.score(EVERY, EVERY_LOGITS)),
        numbers(scores.Relation.from_state(score.get_state()).score(EVERY, EVERY_LOGITS)),
    )


@pytest.mark.parametrize("wrong", [{"power": 0}, {"threshold": 1.0}, {"limit": 0}])
def test_relation_refuses_impossible_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        scores.Relation(**wrong)


def shares64(values, edges):
    """Share of each row's values in each bin; of those outside of all bins none."""
    return (
        np.stack([np.histogram(row[(row >= edges[0]) & (row < edges[-1])], edges)[0] for row in values])
        / (values.shape[1])
    )


def divergence64(values, known, bins, width, lift):
    """As the authors' code: the image's density smoothed over replicated ends, that of the known images not."""
    edges = np.linspace(known.min(), known.max(), bins + 1).astype("float32").astype("float64")
    edges[-1] = np.nextafter(np.float32(known.max()), np.float32(np.inf))
    left = (width - 1) // 2
    padded = np.pad(shares64(values, edges), [(0, 0), (left, width - 1 - left)], mode="edge")
    q = np.stack([padded[:, i : i + width].mean(axis=1) for i in range(bins)], axis=1) + lift
    p = shares64(known, edges).mean(axis=0) + lift
    p, q = p / p.sum(), q / q.sum(axis=1, keepdims=True)
    return (p * np.log(p / q)).sum(axis=1) + (q * np.log(q / p)).sum(axis=1)


@pytest.mark.parametrize(("bins", "smoothing", "perturbed_smoothing"), [(100, 20, 20), (30, 5, 1), (8, 4, 7)])
def test_weiper(bins, smoothing, perturbed_smoothing):
    score = scores.WeiPer(
        repeats=6, bins=bins, smoothing=smoothing, perturbed_smoothing=perturbed_smoothing, perturbed_weight=2.5,
        msp_weight=0.3, seed=4,
    ).fit(FEATURES, **HEAD)  # fmt: skip
    perturbed = np.float64(score.get_state()["kernel"])
    # The noise has the share of each class's weights that it is said to have, and is not the same twice.
    noise = (perturbed - np.tile(KERNEL, 6)).reshape(WIDTH, 6, CLASSES)
    share = np.linalg.norm(noise, axis=0) / np.linalg.norm(np.float64(KERNEL), axis=0)
    np.testing.assert_allclose(share, 2.1, rtol=1e-5)
    assert np.abs(noise[:, 0] - noise[:, 1]).min(axis=0).max() > 1e-4
    queries = np.delete(EVERY, len(QUERIES) + 1, axis=0)
    own, known = (np.float64(x) @ perturbed + np.tile(BIAS, 6) for x in (queries, FEATURES))
    each = [softmax64(own[:, i : i + CLASSES]).max(axis=1) for i in range(0, 6 * CLASSES, CLASSES)]
    expected = -0.3 * np.mean(each, axis=0)
    expected += divergence64(np.float64(queries), np.float64(FEATURES), bins, smoothing, 0.01)
    expected += 2.5 * divergence64(own, known, bins, perturbed_smoothing, 0.025)
    np.testing.assert_allclose(numbers(score.score(queries)), expected, rtol=1e-3, atol=1e-3)
    assert np.isfinite(numbers(score.score(EVERY))).all()


def test_weiper_is_drawn_from_its_seed():
    one, same, other = (scores.WeiPer(repeats=3, seed=seed).fit(FEATURES, **HEAD) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.get_state()["kernel"], same.get_state()["kernel"])
    assert (one.get_state()["kernel"] != other.get_state()["kernel"]).all()
    for wrong in ({"delta": 0}, {"repeats": 0}, {"bins": 2.5}, {"smoothing": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            scores.WeiPer(**wrong)
    # However many values are counted at once.
    wide = scores.WeiPer(repeats=2000, bins=5).fit(FEATURES, **HEAD)
    assert np.isfinite(np.asarray(ops.convert_to_numpy(wide.score(QUERIES)))).all()


def moved(features, seed):
    """Features of images that were moved: above and below those of the images."""
    return (features + np.random.default_rng(seed).normal(size=features.shape)).astype("float32")


def ada_scale64(features, shifted, *, least=0.75, most=0.85, units=0.05, shifted_units=0.01, weight=10.0, variant="A"):
    """One row after the other, by sorts and loops."""

    def change(x, moved):
        order = np.argsort(-x, kind="stable")
        few, fewer = (max(1, int(WIDTH * share)) for share in (units, shifted_units))
        return np.maximum(moved, 0)[order[:few]].sum() + weight * np.abs(x - moved)[order[:fewer]].sum()

    known = [change(*rows) for rows in zip(np.float64(FEATURES), np.float64(moved(FEATURES, 6)), strict=True)]
    answers = []
    for x, other in zip(np.float64(features), np.float64(shifted), strict=True):
        larger = np.mean(np.array(known) > change(x, other))
        left_out = round(WIDTH * (least + (most - least) * larger))
        active = -np.sort(-np.maximum(x, 0))
        largest = active[: max(1, WIDTH - left_out)].sum()
        ratio = min(active.sum() / largest, 50.0) if largest > 0 else 1.0
        logits = (np.exp(ratio) * x) @ KERNEL + BIAS if variant == "A" else ratio**2 * (x @ KERNEL + BIAS)
        answers.append(-np.logaddexp.reduce(logits))
    return np.array(answers)


@pytest.mark.parametrize("variant", ["A", "L"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"least": 0.0, "most": 0.99},
        {"units": 0.5, "shifted_units": 0.4, "weight": 0.0},
        {"units": 0.1, "weight": 1.0},
    ],
)
def test_adascale(variant, settings):
    score = scores.AdaSCALE(variant=variant, **settings)
    score.fit(FEATURES, LABELS, LOGITS, shifted=moved(FEATURES, 6), **HEAD)
    shifted = moved(EVERY, 7)
    found, expected = numbers(score.score(EVERY, shifted)), ada_scale64(EVERY, shifted, variant=variant, **settings)
    # An image whose change equals a known one to float32's rounding may be counted on either side of it.
    assert np.mean(np.isclose(found, expected, rtol=2e-5, atol=1e-4)) > 0.97 and np.isfinite(found).all()


def test_adascale_scales_less_what_changes_more():
    score = scores.AdaSCALE(least=0.1, most=0.9)
    score.fit(FEATURES, LABELS, LOGITS, shifted=moved(FEATURES, 6), **HEAD)
    still, shaken = (numbers(score.score(QUERIES, QUERIES + change)) for change in (0.0, 9.0))
    expected = np.log(np.abs(still)).mean() - np.log(np.abs(shaken)).mean()
    assert expected > 0.5 and len(score.get_state()["known"]) == len(FEATURES)


@pytest.mark.parametrize(
    "wrong",
    [{"least": 0.9}, {"most": 1.0}, {"units": 1.0}, {"shifted_units": -0.1}, {"weight": -1}, {"variant": "S"},
     {"pixels": 1.5}, {"epsilon": -0.1}],
)  # fmt: skip
def test_adascale_refuses_impossible_settings(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}|most must be above least"):
        scores.AdaSCALE(**wrong)
    with pytest.raises(ValueError, match="shifted must have the shape"):
        scores.AdaSCALE().fit(FEATURES, shifted=FEATURES[1:], **HEAD)
