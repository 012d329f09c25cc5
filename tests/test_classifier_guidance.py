"""The push away from what a classifier knows, against NumPy."""

import numpy as np
import pytest
from keras import ops

from kood.diffusion import samplers, schedule
from kood.diffusion.label_mixup import away_from

pytestmark = pytest.mark.backend  # Run once under each Keras backend.

ALPHA_BAR = schedule.cosine(50)


def some(seed, count=4):
    return np.random.default_rng(seed).standard_normal((count, 3, 2, 2)).astype("float32")


def numbers(tensor):
    return ops.convert_to_numpy(tensor).astype("float64")


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_the_formula(strength):
    image, noise, slope, step = some(0), some(1), some(2), np.array([0, 7, 30, 49], "int32")
    slope[1] = 0.0  # No direction: no push.
    seen = []

    def gradient(clean):
        seen.append(numbers(clean))
        return ops.convert_to_tensor(slope)

    push = away_from(gradient, ALPHA_BAR, strength)
    got = numbers(push(lambda x, t: ops.convert_to_tensor(noise))(ops.convert_to_tensor(image), step))
    a = ALPHA_BAR[step][:, None, None, None]
    clean = (np.float64(image) - np.sqrt(1 - a) * noise) / np.sqrt(a)
    np.testing.assert_allclose(seen[0], np.clip(clean, -1, 1), rtol=1e-4, atol=1e-4)
    size = np.sqrt((np.float64(slope) ** 2).mean(axis=(1, 2, 3), keepdims=True))
    way = np.divide(slope, size, out=np.zeros_like(np.float64(slope)), where=size > 0)
    np.testing.assert_allclose(got, noise - strength * np.sqrt(a * (1 - a)) * way, rtol=1e-5, atol=1e-6)
    moved = (np.float64(image) - np.sqrt(1 - a) * got) / np.sqrt(a) - clean
    np.testing.assert_allclose(moved, strength * (1 - a) * way, atol=2e-3 * np.abs(clean).max())


def test_samples_move_along_the_gradient():
    denoise = lambda x, t: 0.5 * x  # noqa: E731
    up = away_from(ops.ones_like, ALPHA_BAR, 0.2)
    noise = ops.convert_to_tensor(some(3))
    plain, pushed = (numbers(samplers.ddim(d, ALPHA_BAR, noise, 10, clip=1.0)) for d in (denoise, up(denoise)))
    assert (pushed >= plain - 1e-6).all() and (pushed - plain).mean() > 0.02


def test_samples_from_noise_in_numpy():
    push = away_from(lambda clean: 0.1 * clean, ALPHA_BAR, 0.3)
    found = samplers.ddim(push(lambda x, t: 0.1 * ops.convert_to_tensor(x)), ALPHA_BAR, some(0), 4)
    expected = samplers.ddim(push(lambda x, t: 0.1 * x), ALPHA_BAR, ops.convert_to_tensor(some(0)), 4)
    np.testing.assert_allclose(numbers(found), numbers(expected), rtol=1e-5, atol=1e-5)
