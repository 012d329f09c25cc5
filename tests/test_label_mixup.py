"""Label mixup against its definition, with a linear "denoiser" whose every answer is known."""

import numpy as np
import pytest
from keras import ops

from kood.diffusion import label_mixup, samplers, schedule

pytestmark = pytest.mark.backend  # Run once under each Keras backend.


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("weight", [0.5, 0.9, "uniform", "beta"])
def test_mixtures_are_mixtures(classes, weight):
    rows = label_mixup.mixtures(400, 5, classes=classes, weight=weight, alpha=0.5, rng=rng())
    assert rows.shape == (400, 5) and rows.dtype == np.float32
    np.testing.assert_allclose(rows.sum(1), 1.0, atol=1e-6)
    assert (rows >= 0).all() and ((rows > 0).sum(1) <= classes).all()
    if weight == 0.9:
        np.testing.assert_allclose(np.sort(rows, 1)[:, -1], 0.9, atol=1e-6)
        np.testing.assert_allclose(np.sort(rows, 1)[:, -2], 0.1 / (classes - 1), atol=1e-6)
    if weight == 0.5 and classes == 2:
        assert (((rows > 0).sum(1) == 2) & np.isclose(rows.max(1), 0.5)).all()


def test_every_class_and_pair_is_as_frequent_as_any_other():
    rows = label_mixup.mixtures(60_000, 4, rng=rng()) > 0
    pairs = (rows.astype(int).T @ rows)[np.triu_indices(4, 1)]
    assert np.abs(pairs / 10_000 - 1).max() < 0.05


def test_beta_and_uniform_have_their_moments():
    uniform = label_mixup.mixtures(40_000, 2, weight="uniform", rng=rng())[:, 0]
    narrow = label_mixup.mixtures(40_000, 2, weight="beta", alpha=8.0, rng=rng())[:, 0]
    assert abs(uniform.var() - 1 / 12) < 2e-3
    assert abs(narrow.var() - 1 / (4 * 17)) < 1e-3  # Beta(a, a) has variance 1 / (4 (2a + 1)).


def test_groups_say_which_classes_meet():
    rows = label_mixup.mixtures(3000, 6, groups=[[0, 3], [1, 4, 5]], weight=0.8, rng=rng())
    members = {tuple(np.flatnonzero(row)) for row in rows}
    assert members == {(0, 3), (1, 4, 5)}
    np.testing.assert_allclose(rows.max(1), 0.8, atol=1e-6)
    assert abs(np.mean(rows[:, 0] > 0) - 0.5) < 0.05 and abs(np.mean(rows[rows[:, 0] > 0][:, 0] > 0.5) - 0.5) < 0.05
    for wrong in ([[0]], [[1, 1]], [list(range(7))]):
        with pytest.raises(ValueError, match="group"):
            label_mixup.mixtures(3, 6, groups=wrong, rng=rng())


@pytest.mark.parametrize(("classes", "total"), [(1, 5), (6, 5), (2, 1)])
def test_impossible_mixtures(classes, total):
    with pytest.raises(ValueError, match="classes"):
        label_mixup.mixtures(3, total, classes=classes, rng=rng())


def curved(inputs):
    """e = image + (condition . [1, 10, 100])^2 + step; not linear in the condition, so the two ways to mix differ."""
    level = ops.sum(inputs["condition"] * np.array([1.0, 10.0, 100.0], "float32"), axis=-1) ** 2
    return inputs["image"] + (level + ops.cast(inputs["step"], "float32"))[:, None, None, None]


@pytest.mark.parametrize("guidance", [1.0, 0.0, 2.5])
def test_both_ways_to_mix_and_guidance(guidance):
    condition = np.array([[0.25, 0.75, 0], [0, 1, 0], [0.2, 0.3, 0.5]], "float32")
    image = rng().normal(size=(3, 2, 2, 1)).astype("float32")
    step = np.array([4, 4, 4], "int32")
    levels = np.array([1.0, 10.0, 100.0])
    expected = {
        "condition": (condition @ levels) ** 2 + 4,
        "prediction": condition @ (levels**2) + 4,
    }
    for mix, value in expected.items():
        denoise = label_mixup.noise_predictor(curved, condition, mix=mix, guidance=guidance)
        got = ops.convert_to_numpy(denoise(ops.convert_to_tensor(image), ops.convert_to_tensor(step)))
        want = image + (4 + guidance * (value - 4))[:, None, None, None]
        np.testing.assert_allclose(got, want, rtol=1e-5)


class Recorded:
    """Stands in for a denoiser and counts what it is asked."""

    alpha_bar = schedule.cosine(40)

    def __init__(self):
        self.rows = []

    def __call__(self, inputs, training=False):
        self.rows.append(inputs["image"].shape[0])
        return 0.1 * inputs["image"] + inputs["condition"][:, :1, None, None]


@pytest.fixture
def plain_forward(monkeypatch):
    monkeypatch.setattr(label_mixup, "compiled", lambda model: model)


@pytest.mark.parametrize("sampler", [samplers.ddim, samplers.ddpm, samplers.dpm_solver])
def test_blocks_have_one_shape_and_are_reproducible(sampler, plain_forward):
    condition = label_mixup.mixtures(11, 3, rng=rng())
    model, done = Recorded(), []
    how = {"sampler": sampler, "num_steps": 3, "seed": 5, "batch_size": 4, "clip": None}
    images = label_mixup.sample(model, condition, (2, 2, 1), progress=done.append, **how)
    assert images.shape == (11, 2, 2, 1) and images.dtype == np.float32 and np.isfinite(images).all()
    assert set(model.rows) == {4} and done == [4, 8, 11]
    np.testing.assert_array_equal(images, label_mixup.sample(Recorded(), condition, (2, 2, 1), **how))
    # A shorter job gives the same first images: a block knows nothing of those before it.
    np.testing.assert_array_equal(images[:4], label_mixup.sample(Recorded(), condition[:4], (2, 2, 1), **how))
    assert len(np.unique(images[:, 0, 0, 0])) == 11
    other = label_mixup.sample(Recorded(), condition, (2, 2, 1), **{**how, "seed": 6})
    assert not np.array_equal(images, other)


def test_given_start_noise_is_used(plain_forward):
    condition = label_mixup.sweep(3, columns=4, rows=2, rng=rng()).reshape(8, 3)
    noise = np.repeat(rng().normal(size=(2, 2, 2, 1)), 4, axis=0)
    got = label_mixup.sample(
        Recorded(), condition, (2, 2, 1), sampler=samplers.ddim, num_steps=3, noise=noise, clip=None, batch_size=3
    )
    one = samplers.ddim(
        label_mixup.noise_predictor(Recorded(), condition[5:6]),
        Recorded.alpha_bar,
        ops.convert_to_tensor(noise[5:6].astype("float32")),
        3,
    )
    np.testing.assert_allclose(got[5:6], ops.convert_to_numpy(one), rtol=1e-5)


def test_a_sweep_goes_from_class_to_class():
    conditions = label_mixup.sweep(4, columns=5, rows=3, rng=rng())
    assert conditions.shape == (3, 5, 4)
    np.testing.assert_allclose(conditions.sum(-1), 1.0, atol=1e-6)
    for row in conditions:
        first, last = row[0].argmax(), row[-1].argmax()
        assert first != last and row[0].max() == row[-1].max() == 1.0
        np.testing.assert_allclose(row[:, last], [0, 0.25, 0.5, 0.75, 1], atol=1e-6)
