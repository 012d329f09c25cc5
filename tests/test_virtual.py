"""Virtual outliers: queues, Gaussians and draws against NumPy float64."""

import keras
import numpy as np
import pytest
from keras import ops

from kood import training
from kood.virtual import VirtualOutliers

pytestmark = pytest.mark.backend  # Run once under each Keras backend.

CLASSES, DIMENSION = 3, 4


def layer(rows=7, queue=5, candidates=20, classes=CLASSES, dimension=DIMENSION, seed=1):
    made = VirtualOutliers(classes, rows, queue=queue, candidates=candidates, seed=seed)
    made.build((None, dimension))
    return made


def numbers(tensor):
    return np.asarray(ops.convert_to_numpy(tensor))


def batch(rng, size, outliers=0.3, classes=CLASSES, dimension=DIMENSION):
    own = rng.integers(classes, size=size)
    outlier = rng.random(size) < outliers
    labels = np.eye(classes)[own] * ~outlier[:, None]
    features = rng.normal(size=(size, dimension))
    return features.astype("float32"), own, labels.astype("float32"), outlier.astype("float32")


class Queues:
    """The same in plain Python."""

    def __init__(self, queue, classes=CLASSES):
        self.kept = [[] for _ in range(classes)]
        self.queue = queue

    def keep(self, features, own, outlier):
        for row, k, out in zip(features, own, outlier, strict=True):
            if not out:
                self.kept[k] = (self.kept[k] + [row])[-self.queue :]


@pytest.mark.parametrize("size", [1, 6, 40])
def test_a_queue_holds_the_latest_features_of_its_class(size):
    rng, made, plain = np.random.default_rng(0), layer(), Queues(5)
    for _ in range(12):
        features, own, labels, outlier = batch(rng, size)
        made.keep(features, labels, outlier)
        plain.keep(features, own, outlier)
        kept, filled, place = numbers(made.features), numbers(made.filled), numbers(made.place)
        for k in range(CLASSES):
            assert filled[k] == len(plain.kept[k])
            ring = np.roll(kept[k], -place[k], axis=0) if filled[k] == 5 else kept[k, : filled[k]]
            np.testing.assert_array_equal(ring, np.array(plain.kept[k]).reshape(-1, DIMENSION))
        assert float(numbers(made.ready())) == (min(map(len, plain.kept)) == 5)


def test_a_batch_of_outliers_changes_nothing():
    made = layer()
    before = [numbers(w) for w in made.weights]
    made.keep(np.ones((6, DIMENSION), "float32"), np.zeros((6, CLASSES), "float32"), np.ones(6, "float32"))
    for old, new in zip(before, made.weights, strict=True):
        np.testing.assert_array_equal(old, numbers(new))


def test_a_queue_has_no_more_places_than_its_class_has_images():
    rng, counts = np.random.default_rng(4), (3, 90, 1)
    made, plain = VirtualOutliers(CLASSES, 7, queue=5, candidates=20, counts=counts), [[], [], []]
    made.build((None, DIMENSION))
    limits = [3, 5, 1]
    for _ in range(9):
        features, own, labels, outlier = batch(rng, 6)
        made.keep(features, labels, outlier)
        for row, k, out in zip(features, own, outlier, strict=True):
            plain[k] = plain[k] if out else (plain[k] + [row])[-limits[k] :]
        assert float(numbers(made.ready())) == (list(map(len, plain)) == limits)
    assert numbers(made.ready()) == 1.0
    kept = [np.float64(rows) for rows in plain]
    apart = np.concatenate([rows - rows.mean(axis=0) for rows in kept])
    expected = apart.T @ apart / sum(limits)
    expected += (1e-4 + 1e-6 * np.trace(expected)) * np.eye(DIMENSION)
    means, covariance = made.gaussians()
    np.testing.assert_allclose(numbers(means), [rows.mean(axis=0) for rows in kept], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(numbers(covariance), expected, rtol=1e-4, atol=1e-5)
    assert np.isfinite(numbers(made.draw())).all()
    assert VirtualOutliers.from_config(made.get_config()).limits.tolist() == limits


def test_a_class_without_an_image_is_neither_waited_for_nor_drawn():
    rng, counts, means = np.random.default_rng(5), (0, 90, 2), 1000.0 * np.arange(CLASSES)
    made = VirtualOutliers(CLASSES, 5, queue=4, candidates=20, counts=counts)
    made.build((None, DIMENSION))
    for own in ([1, 1, 2], [1, 1, 2]):
        assert numbers(made.ready()) == 0.0
        features = (means[own][:, None] + rng.normal(size=(3, DIMENSION))).astype("float32")
        features, labels = np.concatenate([features, features[:1]]), np.eye(CLASSES)[[*own, 0]].astype("float32")
        labels[3] = 0.0  # An outlier, whose label says the first class as much as any.
        made.keep(features, labels, np.array([0, 0, 0, 1], "float32"))
    assert numbers(made.ready()) == 1.0 and numbers(made.filled).tolist() == [0, 4, 2]
    kept = np.float64(numbers(made.features))
    apart = np.concatenate([kept[1] - kept[1].mean(axis=0), kept[2, :2] - kept[2, :2].mean(axis=0)])
    expected = apart.T @ apart / 6
    expected += (1e-4 + 1e-6 * np.trace(expected)) * np.eye(DIMENSION)
    np.testing.assert_allclose(numbers(made.gaussians()[1]), expected, rtol=1e-3, atol=1e-3)
    drawn = np.rint(numbers(made.draw()).mean(axis=1) / 1000)
    assert drawn.shape == (5,) and set(drawn) == {1, 2}
    assert VirtualOutliers(CLASSES, 5, queue=4, candidates=20).limits.tolist() == [4] * CLASSES


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="other backends take arrays to the device themselves")
def test_they_are_drawn_where_an_array_cannot_meet_a_tensor():
    import torch

    with keras.device("meta"):  # Of an accelerator, whose tensors are no arrays either, there may be none here.
        made = VirtualOutliers(CLASSES, 7, queue=5, candidates=20, counts=(3, 90, 1))
        made.build((None, DIMENSION))
        made.features._value = torch.nn.Parameter(torch.zeros((CLASSES, 5, DIMENSION), device="meta"), False)
        assert [one.device.type for one in made.gaussians()] == ["meta", "meta"]


def full(made, rng, spread=1.0):
    shape = made.features.shape
    mixing = np.tril(rng.normal(size=(shape[-1], shape[-1])))
    values = spread * (rng.normal(size=shape) @ mixing + 3 * rng.normal(size=(shape[0], 1, shape[-1])))
    made.features.assign(values.astype("float32"))
    made.filled.assign(np.full(shape[0], shape[1], "int32"))
    return np.float64(values.astype("float32"))


def reference(values):
    means = values.mean(axis=1)
    classes, queue, dimension = values.shape
    covariance = np.zeros((dimension, dimension))
    for k in range(classes):
        for row in values[k]:
            covariance += np.outer(row - means[k], row - means[k]) / (classes * queue)
    return means, covariance + (1e-4 + 1e-6 * np.trace(covariance)) * np.eye(dimension)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 300.0])
def test_means_and_covariance(spread):
    made = layer(queue=30)
    expected_means, expected = reference(full(made, np.random.default_rng(2), spread))
    means, covariance = made.gaussians()
    np.testing.assert_allclose(numbers(means), expected_means, rtol=1e-5, atol=1e-6 * spread)
    np.testing.assert_allclose(numbers(covariance), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("rows", "classes"), [(3, 3), (7, 3), (60, 3)])
def test_the_least_likely_draws_are_taken(rows, classes):
    made, rng = layer(rows=rows, queue=30, candidates=25), np.random.default_rng(3)
    means, covariance = reference(full(made, rng))
    factor, z = np.linalg.cholesky(covariance), rng.normal(size=(classes, 25, DIMENSION))
    draws = means[:, None] + np.einsum("de,kne->knd", factor, z)
    inverse, (_, logdet) = np.linalg.inv(covariance), np.linalg.slogdet(covariance)
    apart = draws - means[:, None]
    density = -0.5 * (np.einsum("knd,de,kne->kn", apart, inverse, apart) + logdet + DIMENSION * np.log(2 * np.pi))
    each = -(-rows // classes)
    order = np.argsort(density, axis=1)[:, :each]
    expected = np.take_along_axis(draws, order[..., None], axis=1).transpose(1, 0, 2).reshape(-1, DIMENSION)[:rows]
    found = numbers(made.unlikeliest(*(np.float32(x) for x in (means, factor, z))))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_draws_have_the_stated_distribution():
    """One candidate a row is a plain draw; many candidates are far out, each class's around its own mean."""
    made, rng = layer(rows=CLASSES * 4000, queue=60, candidates=4000), np.random.default_rng(4)
    means, covariance = reference(full(made, rng))
    drawn = numbers(made.draw()).reshape(4000, CLASSES, DIMENSION)
    centres = drawn.mean(axis=0)
    nearest = np.abs(centres[:, None] - means[None]).sum(-1).argmin(axis=1)
    assert sorted(nearest) == [0, 1, 2]
    spread = np.sqrt(np.diag(covariance))
    assert (np.abs(centres - means[nearest]) < 5 * spread / np.sqrt(4000)).all()
    apart = (drawn - centres).reshape(-1, DIMENSION)
    np.testing.assert_allclose(apart.T @ apart / len(apart), covariance, atol=0.06 * np.abs(covariance).max())

    few = layer(rows=CLASSES, queue=60, candidates=4000)
    few.features.assign(made.features)
    apart = numbers(few.draw())[:, None] - means[None]
    lengths = np.einsum("kcd,de,kce->kc", apart, np.linalg.inv(covariance), apart).min(axis=1)
    assert lengths.min() > 13  # The largest of 4000 draws of chi-squared with 4 degrees of freedom: median 22.8.


def test_few_rows_come_from_classes_at_random():
    made = layer(rows=2, classes=6, dimension=2, queue=4)
    values = np.zeros((6, 4, 2)) + 1000.0 * np.arange(6)[:, None, None]
    made.features.assign(values.astype("float32"))
    found = np.rint(np.array([numbers(made.draw())[:, 0] for _ in range(60)]) / 1000)
    assert (found[:, 0] != found[:, 1]).all() and set(found.ravel()) == set(range(6))


def test_draws_follow_the_seed_and_move_on():
    first, again, other = layer(), layer(), layer(seed=2)
    for made in (first, again, other):
        full(made, np.random.default_rng(5))
    one = numbers(first.draw())
    np.testing.assert_array_equal(one, numbers(again.draw()))
    assert (one != numbers(first.draw())).any() and (one != numbers(other.draw())).any()


@pytest.mark.parametrize("values", ["zero", "huge", "flat", "nan"])
def test_hard_features_give_finite_draws(values):
    made = layer(rows=6, queue=4, dimension=24)
    rng = np.random.default_rng(6)
    kept = {
        "zero": np.zeros((CLASSES, 4, 24)),
        "huge": 1e4 * rng.normal(size=(CLASSES, 4, 24)),
        "flat": np.repeat(1e3 * rng.normal(size=(CLASSES, 4, 1)), 24, axis=2),  # One direction of 24.
        "nan": np.full((CLASSES, 4, 24), np.nan),
    }[values]
    made.features.assign(kept.astype("float32"))
    drawn = numbers(made.draw())
    assert drawn.shape == (6, 24) and (values == "nan" or np.isfinite(drawn).all())
    assert np.isfinite(numbers(made.gaussians()[1])).all()


def test_configuration_round_trip_and_refusals():
    made = layer(rows=9, queue=8, candidates=11, seed=4)
    again = VirtualOutliers.from_config(made.get_config())
    assert again.get_config() == made.get_config()
    with training.precision("mixed_bfloat16"):
        assert VirtualOutliers(3, 2).compute_dtype == "float32"
    for wrong in ({"classes": 1}, {"rows": 0}, {"queue": 1}):
        with pytest.raises(ValueError, match="at least"):
            layer(**wrong)
    with pytest.raises(ValueError, match="raise candidates to 14"):
        layer(rows=40, candidates=13)
