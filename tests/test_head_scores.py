"""Scores of a linear head's reworked features and of what is typical of a class, against NumPy float64."""

import keras
import numpy as np
import pytest
from keras import ops

from kood import scores

pytestmark = pytest.mark.backend  # Run once under each Keras backend.

WIDTH, CLASSES = 20, 5


def numbers(tensor):
    return np.asarray(ops.convert_to_numpy(tensor), np.float64)


def activations(count=150, seed=0):
    """Non-negative features around class means, their labels and logits, and the head."""
    rng = np.random.default_rng(seed)
    means = 2 * np.random.default_rng(50).normal(size=(CLASSES, WIDTH))
    labels = rng.integers(CLASSES, size=count)
    features = np.maximum(means[labels] + rng.normal(size=(count, WIDTH)), 0).astype("float32")
    kernel = (means.T / 8 + np.random.default_rng(51).normal(size=(WIDTH, CLASSES)) / 8).astype("float32")
    bias = np.linspace(-1, 1, CLASSES).astype("float32")
    return features, labels, (np.float64(features) @ kernel + bias).astype("float32"), kernel, bias


FEATURES, LABELS, LOGITS, KERNEL, BIAS = activations()
HEAD = {"kernel": KERNEL, "bias": BIAS}
QUERIES = np.concatenate([activations(40, 1)[0], np.random.default_rng(2).exponential(3, (40, WIDTH))]).astype(
    "float32"
)
QUERY_LOGITS = (np.float64(QUERIES) @ KERNEL + BIAS).astype("float32")


def energy64(features, kernel=KERNEL):
    return -np.logaddexp.reduce(np.float64(features) @ kernel + BIAS, axis=1)


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.9])
def test_react(quantile):
    limit = np.quantile(np.float64(FEATURES).ravel(), quantile)
    found = numbers(scores.ReAct(quantile).fit(FEATURES, **HEAD).score(QUERIES))
    np.testing.assert_allclose(found, energy64(np.minimum(QUERIES, limit)), rtol=1e-5)


def shaped64(row, pruned, variant):
    """One row after ASH or SCALE; ties to the first, by a stable sort."""
    row = np.float64(row)
    kept = len(row) - int(np.round(len(row) * pruned))
    largest = np.argsort(-row, kind="stable")[:kept]
    if variant == "B":
        shaped = np.zeros_like(row)
        shaped[largest] = row.sum() / kept
        return shaped
    factor = np.exp(row.sum() / row[largest].sum())
    if variant == "SCALE":
        return factor * row
    shaped = np.zeros_like(row)
    shaped[largest] = factor * row[largest]
    return shaped


@pytest.mark.parametrize("pruned", [0.0, 0.3, 0.65, 0.95])
@pytest.mark.parametrize("variant", ["S", "B", "SCALE"])
def test_shaped_activations(variant, pruned):
    """With zeros that tie, and rows of equal features, where no more than the share may be kept."""
    queries = np.concatenate([QUERIES, np.ones((1, WIDTH), "float32"), np.eye(WIDTH, dtype="float32")[3:4]])
    score = scores.SCALE(pruned) if variant == "SCALE" else scores.ASH(pruned, variant)
    found = numbers(score.fit(FEATURES, **HEAD).score(queries))
    expected = energy64(np.stack([shaped64(row, pruned, variant) for row in queries]))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("score", [scores.ASH(), scores.ASH(variant="B"), scores.SCALE()])
def test_shaping_stays_finite(score):
    """A row of zeros has the bias's energy; negative features, whose sums may cancel, give no NaN."""
    score.fit(FEATURES, **HEAD)
    zero = numbers(score.score(np.zeros((1, WIDTH), "float32")))
    np.testing.assert_allclose(zero, energy64(np.zeros((1, WIDTH))), rtol=1e-6)
    signed = np.random.default_rng(3).normal(size=(50, WIDTH)).astype("float32")
    signed[0], signed[1, :7] = -1, 0
    assert np.isfinite(numbers(score.score(np.concatenate([signed, signed - 2])))).all()


@pytest.mark.parametrize("pruned", [0.0, 0.5, 0.9])
def test_dice(pruned):
    contribution = np.float64(FEATURES).mean(axis=0)[:, None] * np.float64(KERNEL)
    sparse = np.where(contribution > np.quantile(contribution.ravel(), pruned), np.float64(KERNEL), 0)
    found = numbers(scores.DICE(pruned).fit(FEATURES, **HEAD).score(QUERIES))
    np.testing.assert_allclose(found, energy64(QUERIES, sparse), rtol=1e-5)


@pytest.mark.parametrize("name", ["ReAct", "ASH", "SCALE", "DICE"])
def test_shares_that_are_none_are_refused(name):
    for wrong in (-0.1, 1.0, 90, float("nan")):
        with pytest.raises(ValueError, match="must be a fraction"):
            getattr(scores, name)(wrong)
    with pytest.raises(ValueError, match="kernel must have the shape"):
        getattr(scores, name)().fit(FEATURES, kernel=KERNEL.T, bias=BIAS)


def test_ash_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="variant"):
        scores.ASH(variant="P")
    for score in (scores.ASH(0.99), scores.SCALE(0.99)):
        with pytest.raises(ValueError, match="leaves none"):
            score.fit(FEATURES, **HEAD)


@pytest.mark.parametrize("block", [7, 8192])
@pytest.mark.parametrize("k", [1, 10, 150])
def test_nnguide(k, block, monkeypatch):
    monkeypatch.setattr(scores.NNGuide, "BLOCK", block)

    def unit(x):
        length = np.linalg.norm(np.float64(x), axis=1, keepdims=True)
        return np.float64(x) / np.where(length > 0, length, 1)

    queries = np.concatenate([QUERIES, 0 * QUERIES[:1]])
    logits = np.concatenate([QUERY_LOGITS, BIAS[None]])
    products = unit(queries) @ (unit(FEATURES) * -energy64(FEATURES)[:, None]).T
    expected = np.sort(products, axis=1)[:, -k:].mean(axis=1) * np.logaddexp.reduce(-np.float64(-logits), axis=1)
    found = numbers(scores.NNGuide(k, share=1.0).fit(FEATURES, LABELS, LOGITS).score(queries, logits))
    np.testing.assert_allclose(found, -expected, rtol=1e-5, atol=1e-5)
    # Of the share that OpenOOD keeps, 1%, there are fewer than k here, and k are kept.
    few = products[:, np.linspace(0, len(FEATURES) - 1, max(k, round(0.01 * len(FEATURES)))).round().astype(int)]
    expected = np.sort(few, axis=1)[:, -k:].mean(axis=1) * np.logaddexp.reduce(-np.float64(-logits), axis=1)
    found = numbers(scores.NNGuide(k).fit(FEATURES, LABELS, LOGITS).score(queries, logits))
    np.testing.assert_allclose(found, -expected, rtol=1e-5, atol=1e-5)


def test_nnguide_refuses_what_it_cannot_use():
    with pytest.raises(ValueError, match="needs the logits"):
        scores.NNGuide().fit(FEATURES, LABELS)
    with pytest.raises(ValueError, match="fewer than k=10"):
        scores.NNGuide(10).fit(FEATURES[:9], LABELS[:9], LOGITS[:9])
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="share must be a fraction"):
            scores.NNGuide(share=share)


def test_the_defaults_are_the_authors():
    """ASH-S prunes 0.90 and SCALE 0.85; k and the share of NNGuide, and the k of KNN, are those of OpenOOD v1.5."""
    made = {name: vars(getattr(scores, name)()) for name in ("ASH", "SCALE", "DICE", "NNGuide", "KNN")}
    assert (made["ASH"]["share"], made["ASH"]["variant"]) == (0.9, "S") and made["SCALE"]["share"] == 0.85
    assert made["DICE"]["share"] == 0.9 and made["KNN"]["k"] == 50
    assert (made["NNGuide"]["k"], made["NNGuide"]["share"]) == (100, 0.01)
    for score, share, variant in ((scores.ASH(), 0.9, "S"), (scores.SCALE(), 0.85, "SCALE")):
        expected = energy64(np.stack([shaped64(row, share, variant) for row in np.abs(QUERIES)]))
        found = numbers(score.fit(FEATURES, **HEAD).score(np.abs(QUERIES)))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def softmax64(logits):
    logits = np.float64(logits)
    return np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))


def test_klmatching():
    p, predicted = softmax64(LOGITS), LOGITS.argmax(axis=1)
    typical = [p[predicted == k].mean(axis=0) for k in np.unique(predicted)]
    q = softmax64(QUERY_LOGITS)
    expected = np.min([(q * np.log(q / d)).sum(axis=1) for d in typical], axis=0)
    found = numbers(scores.KLMatching().fit(FEATURES, None, LOGITS).score(QUERIES, QUERY_LOGITS))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


def test_klmatching_of_confident_posteriors():
    """One class never predicted; leads of hundreds of nats, where probabilities and typical posteriors are 0."""
    logits = np.zeros((4, 3), "float32")
    logits[:2, 0], logits[2:, 1] = 400, 8
    score = scores.KLMatching().fit(np.ones((4, 2)), None, logits)
    assert score.get_state()["log_typical"].shape == (2, 3)
    same = numbers(score.score(np.ones((4, 2)), logits))
    np.testing.assert_allclose(same, 0, atol=1e-12)
    near = np.zeros((1, 3), "float32")
    near[0, 1] = 8.25  # A divergence of 2e-5, which a difference of entropies would lose to rounding.
    p, d = softmax64(near), softmax64(logits[2:3])
    expected = (p * np.log(p / d)).sum()
    assert 1e-6 < expected < 1e-4
    np.testing.assert_allclose(numbers(score.score(np.ones((1, 2)), near)), expected, rtol=1e-3)
    away = numbers(score.score(np.ones((1, 2)), np.array([[0, 0, 300]], "float32")))
    np.testing.assert_allclose(away, 8 + np.log1p(2 * np.exp(-8.0)), rtol=1e-5)


def test_she():
    right = LOGITS.argmax(axis=1) == LABELS
    patterns = np.stack([np.float64(FEATURES)[right & (k == LABELS)].mean(axis=0) for k in range(CLASSES)])
    expected = -(np.float64(QUERIES) * patterns[QUERY_LOGITS.argmax(axis=1)]).sum(axis=1)
    found = numbers(scores.SHE().fit(FEATURES, LABELS, LOGITS).score(QUERIES, QUERY_LOGITS))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert 0 < right.sum() < len(right)


def test_she_needs_every_class_right_once():
    logits = LOGITS.copy()
    logits[:, 3] = -99
    with pytest.raises(ValueError, match="none of 1 of the .* classes; .* name another score"):
        scores.SHE().fit(FEATURES, LABELS, logits)
    with pytest.raises(ValueError, match="150 features but 7"):
        scores.SHE().fit(FEATURES, LABELS, LOGITS[:7])


def test_fdbd():
    w, mean = np.float64(KERNEL), np.float64(FEATURES).mean(axis=0)
    expected = []
    for x, logits in zip(np.float64(QUERIES), np.float64(QUERY_LOGITS), strict=True):
        y = logits.argmax()
        distances = [(logits[y] - logits[c]) / np.linalg.norm(w[:, y] - w[:, c]) for c in range(CLASSES) if c != y]
        expected.append(-np.mean(distances) / np.linalg.norm(x - mean))
    found = numbers(scores.FDBD().fit(FEATURES, **HEAD).score(QUERIES, QUERY_LOGITS))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_fdbd_at_the_mean_is_finite_and_equal_classes_are_refused():
    score = scores.FDBD().fit(FEATURES, **HEAD)
    mean = score.get_state()["mean"][None]
    assert np.isfinite(numbers(score.score(mean, mean @ KERNEL + BIAS))).all()
    same = KERNEL.copy()
    same[:, 3] = same[:, 1]
    with pytest.raises(ValueError, match="Classes 1 and 3 have equal weights"):
        scores.FDBD().fit(FEATURES, kernel=same, bias=BIAS)
    with pytest.raises(ValueError, match="at least 2 classes"):
        scores.FDBD().fit(FEATURES, kernel=KERNEL[:, :1], bias=BIAS[:1])


def inverse_on_range(covariance):
    variances, directions = np.linalg.eigh(covariance)
    kept = variances > 1e-10 * variances[-1]
    return directions[:, kept] / variances[kept] @ directions[:, kept].T


def relative_mahalanobis(features, labels, queries):
    """The definition as it stands, in float64."""

    def squares(center, inverse):
        return np.einsum("bd,de,be->b", queries - center, inverse, queries - center)

    means = {label: features[label == labels].mean(axis=0) for label in np.unique(labels)}
    within = features - np.stack([means[label] for label in labels])
    inverse = inverse_on_range(within.T @ within / len(features))
    nearest = np.min([squares(mean, inverse) for mean in means.values()], axis=0)
    whole = features - features.mean(axis=0)
    return nearest - squares(features.mean(axis=0), inverse_on_range(whole.T @ whole / len(features)))


@pytest.mark.parametrize("case", ["plain", "dead", "constant", "scales", "more classes", "class left out", "one class"])
def test_relative_mahalanobis(case):
    draw = np.random.default_rng(4)
    classes = {"more classes": 3 * WIDTH, "one class": 1}.get(case, CLASSES)
    labels = draw.integers(0, classes, 400)
    means = 2 * draw.normal(size=(classes, WIDTH))
    features = means[labels] + draw.normal(size=(400, WIDTH))
    if case == "dead":
        features[:, 1] = 1.5
    elif case == "constant":  # within each class: it lies outside of the one covariance's range and inside the other's
        features[:, 1] = means[labels, 1]
    elif case == "scales":
        features *= np.logspace(-3, 1, WIDTH)
    elif case == "class left out":
        labels[labels == 1] = 2
    features = np.float64(np.float32(features))
    queries = np.float64(np.float32(features[:60] + features.std(axis=0) * draw.normal(size=(60, WIDTH))))
    expected = relative_mahalanobis(features, labels, queries)
    score = scores.RelativeMahalanobis().fit(features, labels)
    found = score.score(queries)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    np.testing.assert_allclose(numbers(found), expected, rtol=1e-5, atol=1e-5)
    if case == "one class":
        assert not numbers(found).any()


def test_relative_mahalanobis_does_not_cancel():
    draw = np.random.default_rng(5)
    labels = draw.integers(0, 3, 4000)
    features = draw.normal(size=(4000, 256)) + np.eye(256)[labels]
    # Far off in a direction that tells no classes apart, where both distances are large and differ by little.
    queries = np.float64(np.float32(features[:40] + 300 * draw.normal(size=(40, 1)) * np.eye(256)[9]))
    expected = relative_mahalanobis(features, labels, queries)
    assert np.abs(expected).max() < 100
    # Two distances of up to 5e5 in float32 would be off by some hundredths.
    np.testing.assert_allclose(
        numbers(scores.RelativeMahalanobis().fit(features, labels).score(queries)), expected, atol=1e-3
    )


@pytest.mark.parametrize("with_head", [True, False])
def test_residual(with_head):
    origin = (
        -np.linalg.pinv(np.float64(KERNEL).T) @ np.float64(BIAS) if with_head else np.float64(FEATURES).mean(axis=0)
    )
    directions = np.linalg.svd(np.float64(FEATURES) - origin)[2]
    expected = np.linalg.norm((np.float64(QUERIES) - origin) @ directions[6:].T, axis=1)
    found = numbers(scores.Residual(6).fit(FEATURES, **(HEAD if with_head else {})).score(QUERIES))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert keras.backend.standardize_dtype(scores.Residual(6).fit(FEATURES).score(QUERIES).dtype) == "float32"
