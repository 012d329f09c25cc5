"""The losses against NumPy float64, at hard values too."""

import inspect
import math

import keras
import numpy as np
import pytest
from keras import ops

from kood import losses

pytestmark = pytest.mark.backend  # Run once under each Keras backend.

EXPOSURES = [name for name in losses.__all__ if name.endswith("_exposure")]
HARD = np.array(
    [
        [0, 0, 0, 0],
        [1e4, 1e4, 1e4, 1e4],
        [1e4, -1e4, 0, 0],
        [-1e4, -1e4, -1e4, -1e4],
        [1e-4, -1e-4, 0, 0],
        [3, 1, 0, -2],
        [50, 49.99, 50, 50.01],
    ],
    "float32",
)


def numbers(tensor):
    assert keras.backend.standardize_dtype(tensor.dtype) == "float32"
    return np.asarray(ops.convert_to_numpy(tensor), np.float64)


def gradient(function, x):
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        x = tf.convert_to_tensor(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = ops.sum(function(x))
        return np.asarray(ops.convert_to_numpy(tape.gradient(total, x)), np.float64)
    if backend == "jax":
        import jax

        found = jax.grad(lambda value: ops.sum(function(value)))(ops.convert_to_tensor(x))
        return np.asarray(ops.convert_to_numpy(found), np.float64)
    x = ops.convert_to_tensor(x).detach().requires_grad_()
    ops.sum(function(x)).backward()
    return np.asarray(ops.convert_to_numpy(x.grad), np.float64)


def log_softmax64(logits):
    logits = np.float64(logits)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def random_logits(scale=3.0):
    return (scale * np.random.default_rng(0).normal(size=(50, 7))).astype("float32")


@pytest.mark.parametrize("logits", [HARD, random_logits(), random_logits(1e4)], ids=["hard", "random", "large"])
def test_outlier_exposure_is_the_divergence_from_uniform(logits):
    expected = -math.log(logits.shape[1]) - log_softmax64(logits).mean(axis=1)
    found = numbers(losses.outlier_exposure(logits))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=5e-7)
    assert np.all(found >= 0)
    assert found.shape == (len(logits),)


@pytest.mark.parametrize("logits", [HARD, random_logits(), random_logits(1e4)], ids=["hard", "random", "large"])
def test_outlier_exposure_of_mixtures_is_the_divergence_from_their_shares(logits):
    """And up to the entropy of the shares the cross-entropy that MixOE writes."""
    rows, classes = logits.shape
    rng = np.random.default_rng(3)
    share = rng.uniform(size=(rows, 1))
    share[:3, 0] = 0, 1, 0.5
    labels = (share * np.eye(classes)[rng.integers(classes, size=rows)]).astype("float32")
    target = np.float64(labels) + (1 - np.float64(labels).sum(axis=1, keepdims=True)) / classes
    entropy = -(target * np.log(np.where(target > 0, target, 1))).sum(axis=1)
    cross_entropy = -(target * log_softmax64(logits)).sum(axis=1)
    found = numbers(losses.outlier_exposure(logits, labels))
    np.testing.assert_allclose(found, cross_entropy - entropy, rtol=1e-5, atol=1e-6)
    assert np.all(found >= 0)
    expected = np.exp(log_softmax64(logits)) - target
    loss = lambda x: losses.outlier_exposure(x, labels)  # noqa: E731
    np.testing.assert_allclose(gradient(loss, logits), expected, atol=5e-7)
    nothing = numbers(losses.outlier_exposure(logits, 0 * labels))
    np.testing.assert_allclose(nothing, numbers(losses.outlier_exposure(logits)), rtol=1e-6, atol=1e-6)


def test_outlier_exposure_is_zero_where_the_softmax_is_the_share():
    target = np.array([[0.6, 0.2, 0.2], [1 / 3] * 3], "float32")
    labels = np.array([[0.4, 0, 0], [0, 0, 0]], "float32")
    assert numbers(losses.outlier_exposure(np.log(target), labels)).max() < 1e-6
    certain = numbers(losses.outlier_exposure(np.array([[80.0, 0, 0]], "float32"), np.array([[1.0, 0, 0]])))
    assert certain[0] < 1e-6


def test_outlier_exposure_is_never_negative_and_zero_at_equal_logits():
    for classes in (2, 3, 10, 100, 1000):
        for level in (0.0, 1.0, -7.3, 1e4, -1e4):
            assert numbers(losses.outlier_exposure(np.full((1, classes), level, "float32")))[0] < 5e-7
        nearly = 1e-4 * np.random.default_rng(classes).normal(size=(100, classes)).astype("float32")
        assert numbers(losses.outlier_exposure(nearly)).min() >= 0


@pytest.mark.parametrize("logits", [HARD, random_logits(), random_logits(1e-4)], ids=["hard", "random", "small"])
def test_outlier_exposure_has_the_gradient_softmax_minus_uniform(logits):
    """Also where the value rounds to 0, and a clipped loss would have none."""
    expected = np.exp(log_softmax64(logits)) - 1 / logits.shape[1]
    np.testing.assert_allclose(gradient(losses.outlier_exposure, logits), expected, atol=2e-7)


@pytest.mark.parametrize("logits", [HARD, random_logits(), random_logits(1e4)], ids=["hard", "random", "large"])
def test_cross_entropy(logits):
    classes = logits.shape[1]
    rng = np.random.default_rng(1)
    soft = rng.dirichlet(np.ones(classes), size=len(logits)).astype("float32")
    hard = np.eye(classes, dtype="float32")[rng.integers(classes, size=len(logits))]
    for labels in (soft, hard, 0 * hard, hard.astype("int64")):
        expected = -(np.float64(labels) * log_softmax64(logits)).sum(axis=1)
        np.testing.assert_allclose(numbers(losses.cross_entropy(logits, labels)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.outlier_exposure])
def test_labels_of_other_shapes_are_refused(loss):
    for shape in ((6,), (6, 3), (6, 1)):
        with pytest.raises(ValueError, match="labels must be rows"):
            loss(np.zeros((6, 4), "float32"), np.zeros(shape, "float32"))
    with pytest.raises(ValueError, match="There are 6 logits but 1 labels"):
        loss(np.zeros((6, 4), "float32"), np.zeros((1, 4), "float32"))


@pytest.mark.parametrize("margin", [-1.0, -0.2, 0.0, 0.3, 1.0])
def test_cosine_exposure(margin):
    cosines = np.random.default_rng(2).uniform(-1, 1, size=(40, 6)).astype("float32")
    cosines[0], cosines[1], cosines[2] = 1, -1, margin
    excess = np.maximum(0, np.float64(cosines) - margin)
    loss = lambda x: losses.cosine_exposure(x, margin)  # noqa: E731
    np.testing.assert_allclose(numbers(loss(cosines)), (excess**2).sum(axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient(loss, cosines), 2 * excess, atol=1e-6)


def test_cosine_exposure_lowers_what_evening_out_leaves():
    equal = np.full((1, 4), 0.9, "float32")
    assert np.abs(gradient(losses.outlier_exposure, equal)).max() < 1e-6
    assert gradient(losses.cosine_exposure, equal).min() > 1


@pytest.mark.parametrize("margin", [-1.5, 1.5, float("nan")])
def test_cosine_exposure_refuses_what_is_no_cosine(margin):
    with pytest.raises(ValueError, match="margin"):
        losses.cosine_exposure(np.zeros((1, 2), "float32"), margin)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0])
@pytest.mark.parametrize("margin", [None, -5.0, 0.0, 3])
@pytest.mark.parametrize("logits", [HARD[:1], HARD[4:], random_logits()], ids=["zero", "hard", "random"])
def test_energy_exposure(logits, margin, temperature):
    energy = -temperature * np.logaddexp.reduce(np.float64(logits) / temperature, axis=1)
    border = -temperature * math.log(logits.shape[1]) if margin is None else margin
    excess = np.maximum(0, border - energy)
    found = numbers(losses.energy_exposure(logits, margin, temperature))
    np.testing.assert_allclose(found, excess**2, rtol=1e-5, atol=1e-5)
    softmax = np.exp(log_softmax64(logits / temperature))
    clear = np.abs(border - energy) > 1e-4  # at the border itself rounding decides
    expected = 2 * excess[:, None] * softmax
    slope = gradient(lambda x: losses.energy_exposure(x, margin, temperature), logits)
    np.testing.assert_allclose(slope[clear], expected[clear], rtol=1e-4, atol=1e-5)


def test_energy_exposure_is_finite_at_large_logits():
    assert np.isfinite(numbers(losses.energy_exposure(HARD))).all()
    assert np.isfinite(gradient(losses.energy_exposure, HARD)).all()


@pytest.mark.parametrize("temperature", [0, -1, float("nan")])
def test_energy_exposure_refuses_a_temperature_not_above_zero(temperature):
    with pytest.raises(ValueError, match="temperature"):
        losses.energy_exposure(HARD, temperature=temperature)


@pytest.mark.parametrize("name", EXPOSURES)
def test_exposures_are_called_alike(name):
    """One needed parameter, which says by its name what the exposure acts on."""
    parameters = list(inspect.signature(getattr(losses, name)).parameters.values())
    assert parameters[0].name in ("logits", "cosines")
    assert all(p.default is not inspect.Parameter.empty for p in parameters[1:])


@pytest.mark.parametrize("name", EXPOSURES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_exposures_are_float32_rows_with_finite_gradients(name, dtype):
    function = getattr(losses, name)
    values = ops.cast(np.array([[1, -1, 0.5], [0, 0, 0], [1, 1, 1], [-1, -1, -1]], "float32"), dtype)
    found = numbers(function(values))
    assert found.shape == (4,) and np.all(found >= 0)
    assert np.isfinite(gradient(function, values)).all()


@pytest.mark.parametrize("name", sorted(losses.__all__))
def test_no_rows_have_no_losses(name):
    none = np.zeros((0, 3), "float32")
    function = getattr(losses, name)
    found = numbers(function(none, none) if name == "cross_entropy" else function(none))
    assert found.shape == (0,)
