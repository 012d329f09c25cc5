"""The noise schedules against written-out formulas and against diffusers."""

import math

import numpy as np
import pytest

from kood.diffusion import schedule


def test_linear_is_the_running_product_of_one_minus_beta():
    betas = [1e-4 + (0.02 - 1e-4) * t / 999 for t in range(1000)]
    expected, product = [], 1.0
    for beta in betas:
        product *= 1.0 - beta
        expected.append(product)
    np.testing.assert_allclose(schedule.linear(), expected, rtol=1e-12)


@pytest.mark.parametrize("num_steps", [1, 2, 50, 1000])
def test_cosine_is_the_running_product_of_one_minus_clipped_beta(num_steps):
    def f(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    expected, product = [], 1.0
    for t in range(num_steps):
        product *= 1.0 - min(1.0 - f((t + 1) / num_steps) / f(t / num_steps), 0.999)
        expected.append(product)
    np.testing.assert_allclose(schedule.cosine(num_steps), expected, rtol=1e-11)


def test_cosine_follows_the_squared_cosine_except_at_the_bounded_end():
    alpha_bar = schedule.cosine(1000)
    u = np.arange(1, 1001) / 1000
    curve = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(alpha_bar[:-1], curve[:-1], rtol=1e-9)
    assert alpha_bar[-1] == pytest.approx(alpha_bar[-2] * 0.001)


@pytest.mark.keras
@pytest.mark.parametrize(("ours", "theirs"), [(schedule.linear, "linear"), (schedule.cosine, "squaredcos_cap_v2")])
def test_equal_to_diffusers(ours, theirs):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule=theirs)
    # Theirs is a float32 product of a thousand factors.
    np.testing.assert_allclose(ours(1000), scheduler.alphas_cumprod.numpy(), rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(ours(1000), scheduler.alphas_cumprod.numpy(), atol=2e-6)


@pytest.mark.parametrize("make", [schedule.linear, schedule.cosine])
@pytest.mark.parametrize("num_steps", [1, 2, 10, 4000])
def test_shape_dtype_and_range(make, num_steps):
    alpha_bar = make(num_steps)
    assert alpha_bar.shape == (num_steps,)
    assert alpha_bar.dtype == np.float64
    assert np.all((alpha_bar > 0) & (alpha_bar < 1))
    assert np.all(np.diff(alpha_bar) < 0)


def test_one_linear_step_uses_the_start():
    assert schedule.linear(1, start=0.25, end=0.5).tolist() == [0.75]


def test_numpy_integers_are_accepted():
    assert schedule.cosine(np.int64(7)).shape == (7,)


@pytest.mark.parametrize("make", [schedule.linear, schedule.cosine])
@pytest.mark.parametrize("num_steps", [0, -1, 2.5, "10", None])
def test_bad_number_of_steps(make, num_steps):
    with pytest.raises(ValueError, match="num_steps"):
        make(num_steps)


@pytest.mark.parametrize(
    ("start", "end"), [(0.0, 0.02), (-0.1, 0.02), (0.02, 0.01), (0.1, 1.0), (math.nan, 0.02), (0.1, math.nan)]
)
def test_bad_betas(start, end):
    with pytest.raises(ValueError, match="betas"):
        schedule.linear(10, start=start, end=end)


def test_underflow_is_an_error_not_a_zero():
    with pytest.raises(ValueError, match="underflows"):
        schedule.linear(1000, start=0.9, end=0.99)
