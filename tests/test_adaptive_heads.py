"""CurricularFace and AdaFace: what they keep of the training, and their margins, against NumPy float64."""

import keras
import numpy as np
import pytest
from keras import ops

from kood import heads
from tests.test_heads import CLASSES, WIDTH, answer, cosines64, gradient, made, numbers, on_circle, target64

pytestmark = pytest.mark.backend  # Run once under each Keras backend.

#: What a backend computes is the same at each.
MOMENTA = [0.5, *(pytest.param(one, marks=pytest.mark.one_backend) for one in (0.0, 0.99))]
FOLLOWED = {"CurricularFace": ["t"], "AdaFace": ["length_mean", "length_std"]}


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def kept(head):
    return [float(ops.convert_to_numpy(getattr(head, name))) for name in FOLLOWED[type(head).__name__]]


def batch(rows, seed=0, soft=True):
    """Features of many lengths, and labels of every kind: one-hot, mixed, all-zero."""
    rng = np.random.default_rng(seed)
    features = (rng.normal(size=(rows, WIDTH)) * rng.uniform(0.2, 3, size=(rows, 1))).astype("float32")
    labels = np.eye(CLASSES, dtype="float32")[rng.integers(CLASSES, size=rows)]
    if soft:
        labels[::3] = rng.dirichlet(np.ones(CLASSES), size=len(labels[::3]))
    labels[1::4] = 0
    return features, labels


# What both have in common


@pytest.mark.parametrize("name", FOLLOWED)
def test_nothing_moves_without_a_labelled_row_without_labels_and_without_training(name):
    head = made(name)
    features, labels = batch(12)
    head(features, labels, training=True)
    before = kept(head)
    head(features, np.zeros((12, CLASSES), "float32"), training=True)
    head(features, np.full(12, -1), training=True)
    head(features, labels, training=False)
    head(features, labels)
    head(features, training=True)
    assert kept(head) == before and all(before)
    assert [w.name for w in head.non_trainable_variables] == FOLLOWED[name]
    assert [w.name for w in head.trainable_variables] == ["prototypes"]


@pytest.mark.parametrize("name", FOLLOWED)
def test_outliers_take_no_part(name):
    features, labels = batch(13)
    mixed, alone = made(name), made(name)
    alone.set_weights([ops.convert_to_numpy(w) for w in mixed.weights])
    together = numbers(mixed(features, labels, training=True))
    apart = numbers(alone(features[labels.any(axis=1)], labels[labels.any(axis=1)], training=True))
    np.testing.assert_allclose(kept(mixed), kept(alone), rtol=1e-6)
    np.testing.assert_allclose(together[labels.any(axis=1)], apart, atol=1e-5)
    np.testing.assert_allclose(together[~labels.any(axis=1)], answer(mixed, features)[~labels.any(axis=1)], atol=1e-5)


@pytest.mark.parametrize("name", FOLLOWED)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_batch_that_overflowed_leaves_what_is_kept(name, value):
    head = made(name)
    features, labels = batch(12, soft=False)
    head(features, labels, training=True)
    before = kept(head)
    features[0, 0] = value
    head(features, labels, training=True)
    assert kept(head) == before and np.isfinite(before).all()


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_is_kept_survives_saving(name, tmp_path):
    inputs = keras.Input((WIDTH,))
    head = getattr(heads, name)(CLASSES, momentum=0.5)
    model = keras.Model(inputs, head(inputs))
    head(*batch(12), training=True)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras").layers[-1]
    assert kept(again) == kept(head) and all(kept(head))
    features, labels = batch(9, seed=1)
    np.testing.assert_array_equal(numbers(again(features, labels)), numbers(head(features, labels)))


@pytest.mark.parametrize("name", FOLLOWED)
def test_two_classes(name):
    head = getattr(heads, name)(2, scale=4)
    features, _ = batch(8)
    labels = np.array([0, 1, 0, 1, 1, -1, 0, 1])
    logits = numbers(head(features, labels, training=True))
    assert logits.shape == (8, 2) and np.isfinite(logits).all()
    np.testing.assert_allclose(logits[5], numbers(head(features))[5], atol=1e-6)


# CurricularFace


def curricular64(t, cosine, labels, margin, scale, momentum=None):
    """t and the logits, row by row as the paper writes them; a mixed row's target is its largest label."""
    taking_part, target = labels.any(axis=1), labels.argmax(axis=1)
    if momentum is not None and taking_part.any():
        mean = np.mean([cosine[i, target[i]] for i in range(len(cosine)) if taking_part[i]])
        t = momentum * t + (1 - momentum) * mean
    logits = cosine.copy()
    for i in np.flatnonzero(taking_part):
        border = target64("ArcFace", cosine[i, target[i]], margin)
        for j in range(cosine.shape[1]):
            c, share = cosine[i, j], labels[i, j]
            of_others = c * (t + c) if j != target[i] and c > border else c
            logits[i, j] += share * (target64("ArcFace", c, margin) - c) + (labels[i].sum() - share) * (of_others - c)
    return t, scale * logits


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("margin", [0.0, 0.5, 2.0])
def test_curricularface_matches_float64_over_several_batches(margin, momentum):
    head = made("CurricularFace", margin=margin, scale=20, momentum=momentum)
    t, hard = 0.0, 0
    for seed in range(4):
        features, labels = batch(40, seed)
        cosine = cosines64(features, numbers(head.prototypes))
        t, expected = curricular64(t, cosine, labels, margin, 20, momentum)
        np.testing.assert_allclose(numbers(head(features, labels, training=True)), expected, atol=1e-4)
        assert kept(head)[0] == pytest.approx(t, abs=1e-6)
        np.testing.assert_allclose(answer(head, features, labels), expected, atol=1e-4)
        hard += (expected != curricular64(10.0, cosine, labels, margin, 20)[1]).sum()
    assert 0 < hard < 4 * 40 * CLASSES


def official(cosine, classes, t, margin, scale):
    """One-hot rows by masks, in the order of the published code, with the target's logit in the comparison."""
    rows = np.arange(len(cosine))
    own = cosine[rows, classes][:, None]
    t = 0.01 * own.mean() + 0.99 * t
    with_margin = own * np.cos(margin) - np.sqrt(1 - own**2) * np.sin(margin)
    with_margin = np.where(own > np.cos(np.pi - margin), with_margin, own - np.sin(np.pi - margin) * margin)
    logits = np.where(cosine > with_margin, cosine * (t + cosine), cosine)
    logits[rows, classes] = with_margin[:, 0]
    return t, scale * logits


def test_curricularface_on_one_hot_rows_is_the_published_one():
    rng = np.random.default_rng(3)
    head, t = made("CurricularFace", scale=64), 0.0
    for _ in range(3):
        features = rng.normal(size=(50, WIDTH)).astype("float32")
        classes = rng.integers(CLASSES, size=50)
        t, expected = official(cosines64(features, numbers(head.prototypes)), classes, t, 0.5, 64)
        np.testing.assert_allclose(numbers(head(features, classes, training=True)), expected, atol=3e-4)
        assert kept(head)[0] == pytest.approx(t, abs=1e-6)


def test_curricularface_where_every_other_class_is_at_its_hardest():
    """The feature opposite to its own prototype and on another one: cos = -1 and 1."""
    prototypes = np.zeros((WIDTH, 3), "float32")
    prototypes[0] = [1, -1, -1]
    head = made("CurricularFace", prototypes, scale=1)
    head.t.assign(0.25)
    features = np.float32([[-3] + [0] * (WIDTH - 1), [5] + [0] * (WIDTH - 1), [0] * WIDTH])
    logits = answer(head, features, np.array([0, 0, 0]))
    continued = -1 - 0.5 * np.sin(0.5)
    expected = [[continued, 1.25, 1.25], [np.cos(0.5), -1, -1], [-np.sin(0.5), 0, 0]]
    np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_no_gradient_flows_through_t_or_the_choice_of_hard_classes():
    features, labels = batch(16, seed=4, soft=False)
    head = made("CurricularFace", scale=3, momentum=0.0)
    prototypes = numbers(head.prototypes)
    weight = np.random.default_rng(5).normal(size=labels.shape).astype("float32")
    head(features, labels, training=True)
    t = kept(head)[0]
    found = gradient(lambda x: ops.multiply(head(x, labels, training=True), weight), features)

    def total(x):
        return (weight * curricular64(t, cosines64(x, prototypes), labels, 0.5, 3)[1]).sum(1)

    steps = 1e-6 * np.eye(WIDTH)
    expected = np.stack([(total(features + step) - total(features - step)) / 2e-6 for step in steps], axis=1)
    np.testing.assert_allclose(found, expected, atol=2e-3)


# AdaFace


def adaface64(state, features, prototypes, labels, margin, scale, h=0.333, momentum=None):
    """The running moments and the logits, by angles; `state` is None before the first batch."""
    cosine, length = cosines64(features, prototypes), np.linalg.norm(np.float64(features), axis=1)
    own = length[labels.any(axis=1)]
    if momentum is not None and len(own) > 1:
        now = np.array([own.mean(), own.std(ddof=1)])
        state = now if state is None else momentum * state + (1 - momentum) * now
    quality = np.zeros(len(length))
    if state is not None:
        quality = np.clip((length - state[0]) * h / state[1], -1, 1)
    angle = np.clip(np.arccos(cosine) - margin * quality[:, None], 0, np.pi)
    target = np.cos(angle) - (margin * quality + margin)[:, None]
    return state, scale * (cosine + labels * (target - cosine))


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize(("margin", "h"), [(0.0, 0.333), (0.4, 0.333), (0.4, 5.0), (2.0, 0.5)])
def test_adaface_matches_float64_over_several_batches(margin, h, momentum):
    head = made("AdaFace", margin=margin, scale=20, h=h, momentum=momentum)
    prototypes, state = numbers(head.prototypes), None
    for seed in range(4):
        features, labels = batch(40, seed)
        if seed == 3:
            features *= 4  # Beside the running mean most of these are long.
        state, expected = adaface64(state, features, prototypes, labels, margin, 20, h, momentum)
        np.testing.assert_allclose(numbers(head(features, labels, training=True)), expected, atol=2e-4)
        np.testing.assert_allclose(kept(head), state, rtol=1e-5)
        np.testing.assert_allclose(answer(head, features, labels), expected, atol=2e-4)


@pytest.mark.parametrize("quality", [-1.0, -0.6, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("margin", [0.4, 2.0])
def test_adaface_over_the_whole_circle(margin, quality):
    """From ArcFace's cos(theta + m) over CosFace's margin to both at once; falling, and no help anywhere."""
    angles = np.concatenate([np.linspace(0, np.pi, 2001), [1e-5, np.pi - 1e-5, margin, np.pi - margin]])
    features, prototypes, labels = on_circle(np.sort(angles))
    head = made("AdaFace", prototypes, margin=margin, scale=1, h=0.5)
    head.length_mean.assign(1.0 - 0.2 * quality)
    head.length_std.assign(0.1)
    found = answer(head, features, labels)[:, 0]
    turned = np.clip(np.sort(angles) - margin * quality, 0, np.pi)
    np.testing.assert_allclose(found, np.cos(turned) - margin * (1 + quality), atol=5e-6)
    # A length is good to 1e-7, and a tenth of it makes half a unit of q.
    assert np.all(np.diff(found) <= 5e-6)
    assert np.all(found <= answer(head, features)[:, 0] + 5e-6)


def test_adaface_follows_the_unit_of_the_features():
    features, labels = batch(24)
    small, large = made("AdaFace", scale=8), made("AdaFace", scale=8)
    large.set_weights([ops.convert_to_numpy(w) for w in small.weights])
    for _ in range(2):
        one = numbers(small(features, labels, training=True))
        other = numbers(large(np.float32(1e6) * features, labels, training=True))
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(1e6 * np.array(kept(small)), kept(large), rtol=1e-5)


def test_adaface_takes_a_batch_of_one_row_and_one_of_equal_lengths():
    features, labels = batch(6, soft=False)
    labels[0] = np.eye(CLASSES)[0]
    head = made("AdaFace", scale=1)
    head(features[:1], labels[:1], training=True)
    assert kept(head) == [0, 0]
    zero = numbers(head(np.zeros((4, WIDTH), "float32"), np.arange(4), training=True))
    assert kept(head) == [0, 0]
    np.testing.assert_allclose(zero[np.arange(4), np.arange(4)], -0.4, atol=1e-6)
    equal = np.eye(WIDTH, dtype="float32")[:4] * 2
    logits = numbers(head(equal, np.arange(4), training=True))
    assert kept(head) == [2, 0]
    cosine = cosines64(equal, numbers(head.prototypes))
    np.testing.assert_allclose(logits, cosine - 0.4 * np.eye(CLASSES)[:4], atol=1e-6)


def test_adaface_of_lengths_beyond_a_float32_square():
    features, labels = batch(12, soft=False)
    head = made("AdaFace", scale=1)
    head(features * np.float32(1e30), labels, training=True)
    assert np.isfinite(kept(head)).all()
    assert np.isfinite(numbers(head(features, labels, training=True))).all()


def test_no_gradient_flows_through_the_length():
    features, labels = batch(16, seed=6, soft=False)
    head = made("AdaFace", scale=3)
    head(features, labels, training=True)
    found = gradient(lambda x: ops.square(head(x, labels, training=True)), features)
    np.testing.assert_allclose((found * features).sum(axis=1), 0, atol=1e-4)
    assert np.abs(found).max() > 0.1
