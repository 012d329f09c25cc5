"""The samplers against diffusers, against formulas written out here, and against an exactly solvable case.

In the solvable case the images are Gaussian, N(MEAN, SD^2) in each pixel. Then the best noise predictor is known, and
so is the whole path of the probability-flow equation: x_t = sqrt(a) MEAN + sqrt(a SD^2 + 1 - a) z, with z fixed.
"""

import functools
import math

import keras
import numpy as np
import pytest

from kood.diffusion import samplers, schedule

pytestmark = pytest.mark.backend  # Run once under each Keras backend.

ALL = [samplers.ddpm, samplers.ddim, samplers.dpm_solver]
SHAPE = (3, 2, 4, 1)
MEAN, SD = 0.3, 0.5


def gaussian_predictor(alpha_bar):
    def denoise(x, t):
        a = alpha_bar[t].reshape(-1, 1, 1, 1)
        return np.sqrt(1 - a) * (x - np.sqrt(a) * MEAN) / (a * SD**2 + 1 - a)

    return denoise


def crooked_predictor(x, t):
    """Nothing in particular, but nonlinear, and different at every step and pixel."""
    steps = np.asarray(t).reshape(-1, 1, 1, 1) / 100.0
    return np.tanh(0.7 * x + np.sin(3.0 * steps)) + 0.1 * np.cos(5.0 * x)


def start(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def noises(num_steps, shape=SHAPE, seed=1):
    return np.random.default_rng(seed).standard_normal((num_steps, *shape))


# Against diffusers ---------------------------------------------------------------------------------------------------


def theirs(name, alpha_bar, num_steps, spacing, **config):
    diffusers = pytest.importorskip("diffusers")
    import torch

    scheduler = getattr(diffusers, name)(
        num_train_timesteps=len(alpha_bar), timestep_spacing=spacing, beta_schedule="squaredcos_cap_v2", **config
    )
    # Their own float32 product would hide differences below 1e-3 at the noisy end.
    scheduler.alphas_cumprod = torch.from_numpy(alpha_bar)
    scheduler.set_timesteps(num_steps)
    return scheduler, torch


def run_theirs(scheduler, torch, x, inject=None, **options):
    path = []
    x = torch.from_numpy(x)
    for i, t in enumerate(scheduler.timesteps):
        predicted = torch.from_numpy(crooked_predictor(x.numpy(), np.full(len(x), int(t))))
        if inject is not None:
            inject(i)
        x = scheduler.step(predicted, int(t), x, **{k: v(i) if callable(v) else v for k, v in options.items()})
        x = x.prev_sample
        path.append(x.numpy())
    return path


def run_ours(sampler, alpha_bar, x, num_steps, **options):
    path = []
    sampler(crooked_predictor, alpha_bar, x, num_steps, callback=lambda i, x: path.append(x), **options)
    return path


def assert_same_path(ours, other, **tolerance):
    assert len(ours) == len(other)
    for a, b in zip(ours, other, strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@pytest.mark.parametrize("total", [100, 97])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 10, 30])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("clip", [None, 0.8])
def test_ddpm_equals_diffusers(total, num_steps, spacing, clip, monkeypatch):
    alpha_bar = schedule.cosine(total)
    scheduler, torch = theirs(
        "DDPMScheduler", alpha_bar, num_steps, spacing, clip_sample=clip is not None, clip_sample_range=clip or 1.0
    )
    fresh = noises(num_steps)
    current = {}
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor",
        lambda *args, **kwargs: torch.from_numpy(fresh[current["step"]]),
    )
    reference = run_theirs(scheduler, torch, start(), inject=lambda i: current.update(step=i))
    ours = run_ours(
        samplers.ddpm, alpha_bar, start(), num_steps, spacing=spacing, clip=clip, step_noise=lambda i, x: fresh[i]
    )
    # Theirs adds noise of sd 1e-10 in the last step.
    assert_same_path(ours, reference, rtol=1e-8, atol=1e-8)


def test_ddpm_large_variance_equals_diffusers(monkeypatch):
    alpha_bar = schedule.linear(50)
    scheduler, torch = theirs(
        "DDPMScheduler", alpha_bar, 50, "trailing", clip_sample=False, variance_type="fixed_large"
    )
    fresh = noises(50)
    current = {}
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor",
        lambda *args, **kwargs: torch.from_numpy(fresh[current["step"]]),
    )
    reference = run_theirs(scheduler, torch, start(), inject=lambda i: current.update(step=i))
    ours = run_ours(samplers.ddpm, alpha_bar, start(), 50, variance="fixed_large", step_noise=lambda i, x: fresh[i])
    assert_same_path(ours, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("total", "num_steps", "spacing"),
    [(100, n, "trailing") for n in (1, 2, 10, 25, 100)]
    + [(100, n, "leading") for n in (1, 2, 7, 10, 30, 100)]
    + [(97, 97, "linspace"), (97, 97, "trailing"), (97, 10, "leading")],
)
@pytest.mark.parametrize(("eta", "clip"), [(0.0, None), (0.0, 0.8), (0.6, None), (1.0, 0.8)])
def test_ddim_equals_diffusers_where_both_take_the_same_steps(total, num_steps, spacing, eta, clip):
    alpha_bar = schedule.cosine(total)
    scheduler, torch = theirs(
        "DDIMScheduler", alpha_bar, num_steps, spacing, clip_sample=clip is not None, clip_sample_range=clip or 1.0
    )
    fresh = noises(num_steps)
    reference = run_theirs(
        scheduler,
        torch,
        start(),
        eta=eta,
        use_clipped_model_output=clip is not None,
        variance_noise=lambda i: torch.from_numpy(fresh[i]),
    )
    ours = run_ours(
        samplers.ddim,
        alpha_bar,
        start(),
        num_steps,
        spacing=spacing,
        clip=clip,
        eta=eta,
        step_noise=lambda i, x: fresh[i],
    )
    assert_same_path(ours, reference, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("num_steps", "spacing"), [(30, "trailing"), (10, "linspace")])
def test_ddim_differs_from_diffusers_where_theirs_leaves_its_own_list(num_steps, spacing):
    alpha_bar = schedule.cosine(100)
    scheduler, torch = theirs("DDIMScheduler", alpha_bar, num_steps, spacing, clip_sample=False)
    theirs_next = scheduler.timesteps.numpy()[:-1] - 100 // num_steps
    assert not np.array_equal(theirs_next, scheduler.timesteps.numpy()[1:])
    reference = run_theirs(scheduler, torch, start())
    ours = run_ours(samplers.ddim, alpha_bar, start(), num_steps, spacing=spacing)
    assert np.max(np.abs(ours[-1] - reference[-1])) > 1e-3
    # The list of timesteps is the same; where the steps lead is the difference.
    np.testing.assert_array_equal(scheduler.timesteps.numpy(), steps_visited(samplers.ddim, 100, num_steps, spacing))


@pytest.mark.parametrize("total", [1000, 97])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 10, 20, 30])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_dpm_solver_equals_diffusers(total, num_steps, spacing, clip):
    alpha_bar = schedule.linear(total, start=1e-3, end=0.04)
    # Their dynamic thresholding with a maximum of 1 is clipping to [-1, 1].
    scheduler, torch = theirs(
        "DPMSolverMultistepScheduler",
        alpha_bar,
        num_steps,
        spacing,
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
        thresholding=clip is not None,
        sample_max_value=1.0,
    )
    reference = run_theirs(scheduler, torch, start())
    ours = run_ours(samplers.dpm_solver, alpha_bar, start(), num_steps, spacing=spacing, clip=clip)
    assert_same_path(ours, reference, rtol=1e-3, atol=2e-4)  # their sigmas and samples are float32


def steps_visited(sampler, total, num_steps, spacing):
    seen = []

    def denoise(x, t):
        assert t.shape == (len(x),)
        assert t.dtype == np.int32
        seen.append(int(t[0]))
        assert np.all(t == t[0])
        return np.zeros_like(x)

    sampler(denoise, schedule.linear(total), start(), num_steps, spacing=spacing)
    return seen


# Against formulas written out here -----------------------------------------------------------------------------------


def test_timesteps():
    for sampler in ALL:
        assert steps_visited(sampler, 10, 3, "trailing") == [9, 6, 2]
        assert steps_visited(sampler, 10, 5, "trailing") == [9, 7, 5, 3, 1]
        assert steps_visited(sampler, 10, 10, "trailing") == list(range(9, -1, -1))
        assert steps_visited(sampler, 10, 1, "trailing") == [9]
    for sampler in (samplers.ddpm, samplers.ddim):
        assert steps_visited(sampler, 10, 3, "leading") == [6, 3, 0]
        assert steps_visited(sampler, 10, 4, "linspace") == [9, 6, 3, 0]
        assert steps_visited(sampler, 10, 1, "linspace") == [0]
        assert steps_visited(sampler, 10, 10, "leading") == list(range(9, -1, -1))
    assert steps_visited(samplers.dpm_solver, 10, 2, "leading") == [6, 3]
    assert steps_visited(samplers.dpm_solver, 10, 3, "linspace") == [9, 6, 3]


def test_trailing_never_runs_past_the_last_step():
    # arange(100, 0, -100 / 29) has 30 elements; the thirtieth would be the index -1.
    for num_steps in range(1, 101):
        visited = steps_visited(samplers.ddim, 100, num_steps, "trailing")
        assert len(visited) == num_steps
        assert visited[0] == 99
        assert min(visited) >= 0
        assert all(a > b for a, b in zip(visited, visited[1:], strict=False))


def test_ddpm_over_all_steps_is_algorithm_2_of_the_paper():
    betas = np.linspace(0.01, 0.3, 12)
    alpha_bar = np.cumprod(1 - betas)
    fresh = noises(12)
    x = start()
    for i, t in enumerate(range(11, -1, -1)):
        eps = crooked_predictor(x, np.full(len(x), t))
        mean = (x - betas[t] / math.sqrt(1 - alpha_bar[t]) * eps) / math.sqrt(1 - betas[t])
        before = alpha_bar[t - 1] if t else 1.0
        x = mean + math.sqrt(betas[t] * (1 - before) / (1 - alpha_bar[t])) * fresh[i]
    ours = samplers.ddpm(crooked_predictor, alpha_bar, start(), 12, step_noise=lambda i, x: fresh[i])
    np.testing.assert_allclose(ours, x, rtol=1e-11, atol=1e-12)


def test_ddim_is_equation_12_of_the_paper():
    alpha_bar = schedule.cosine(40)
    fresh, nodes, eta = noises(4), [39, 29, 19, 9], 0.7
    x = start()
    for i, t in enumerate(nodes):
        a = alpha_bar[t]
        b = alpha_bar[nodes[i + 1]] if i < 3 else 1.0
        eps = crooked_predictor(x, np.full(len(x), t))
        sigma = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
        image = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
        x = math.sqrt(b) * image + math.sqrt(1 - b - sigma**2) * eps + sigma * fresh[i]
    ours = samplers.ddim(crooked_predictor, alpha_bar, start(), 4, eta=eta, step_noise=lambda i, x: fresh[i])
    np.testing.assert_allclose(ours, x, rtol=1e-10, atol=1e-12)


def test_dpm_solver_is_algorithm_2_of_the_paper():
    alpha_bar = schedule.cosine(40)
    nodes = [39, 29, 19, 9]
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    lam = np.log(alpha / sigma)
    x, images = start(), []
    for i, t in enumerate(nodes):
        images.append((x - sigma[t] * crooked_predictor(x, np.full(len(x), t))) / alpha[t])
        if i == 3:
            x = images[-1]
            break
        s = nodes[i + 1]
        h = lam[s] - lam[t]
        d = images[-1]
        if i:
            r = (lam[t] - lam[nodes[i - 1]]) / h
            d = (1 + 1 / (2 * r)) * images[-1] - 1 / (2 * r) * images[-2]
        x = sigma[s] / sigma[t] * x - alpha[s] * (math.exp(-h) - 1) * d
    ours = samplers.dpm_solver(crooked_predictor, alpha_bar, start(), 4)
    np.testing.assert_allclose(ours, x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_dpm_solver_with_one_or_two_steps_is_ddim(num_steps):
    alpha_bar = schedule.cosine(100)
    np.testing.assert_allclose(
        samplers.dpm_solver(crooked_predictor, alpha_bar, start(), num_steps),
        samplers.ddim(crooked_predictor, alpha_bar, start(), num_steps),
        rtol=1e-9,
        atol=1e-12,
    )


def test_ddim_with_eta_1_is_ddpm():
    alpha_bar, fresh = schedule.cosine(100), noises(20)
    options = {"step_noise": lambda i, x: fresh[i]}
    np.testing.assert_allclose(
        samplers.ddim(crooked_predictor, alpha_bar, start(), 20, eta=1.0, **options),
        samplers.ddpm(crooked_predictor, alpha_bar, start(), 20, **options),
        rtol=1e-8,
        atol=1e-10,
    )


@pytest.mark.parametrize("sampler", ALL)
def test_one_step_is_the_image_that_the_prediction_implies(sampler):
    alpha_bar = schedule.linear(10)
    x = start()
    eps = crooked_predictor(x, np.full(len(x), 9))
    expected = (x - math.sqrt(1 - alpha_bar[9]) * eps) / math.sqrt(alpha_bar[9])
    np.testing.assert_allclose(sampler(crooked_predictor, alpha_bar, x, 1), expected, rtol=1e-12)


@pytest.mark.parametrize("sampler", ALL)
def test_perfect_prediction_returns_the_image(sampler):
    alpha_bar = schedule.cosine(50)
    image = np.random.default_rng(5).uniform(-1, 1, SHAPE)

    def denoise(x, t):
        a = alpha_bar[t].reshape(-1, 1, 1, 1)
        return (x - np.sqrt(a) * image) / np.sqrt(1 - a)

    np.testing.assert_allclose(sampler(denoise, alpha_bar, start(), 13), image, atol=1e-9)


@pytest.mark.parametrize("sampler", ALL)
def test_clip_bounds_the_image_and_nothing_is_clipped_unasked(sampler):
    alpha_bar = schedule.cosine(100)
    far = 50 * start()
    assert np.max(np.abs(sampler(crooked_predictor, alpha_bar, far, 10))) > 10
    clipped = sampler(crooked_predictor, alpha_bar, far, 10, clip=0.5)
    assert np.max(np.abs(clipped)) == pytest.approx(0.5)


# Against the solvable case -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [schedule.linear, schedule.cosine])
def test_ddim_with_many_steps_recovers_the_gaussian(make):
    alpha_bar = make(1000)
    z = start((20_000, 1, 1, 1))
    z = (z - z.mean()) / z.std()
    # The path of the exact solution starts at this x, not quite at z.
    a = alpha_bar[-1]
    x = np.sqrt(a) * MEAN + np.sqrt(a * SD**2 + 1 - a) * z
    images = samplers.ddim(gaussian_predictor(alpha_bar), alpha_bar, x, 1000)
    np.testing.assert_allclose(images, MEAN + SD * z, atol=0.02)
    assert images.mean() == pytest.approx(MEAN, abs=1e-3)
    assert images.std() == pytest.approx(SD, rel=0.01)


def test_ddpm_with_many_steps_recovers_the_gaussian():
    alpha_bar = schedule.cosine(500)
    images = samplers.ddpm(gaussian_predictor(alpha_bar), alpha_bar, start((20_000, 1, 1, 1)), 500, seed=3)
    assert images.mean() == pytest.approx(MEAN, abs=4 * SD / math.sqrt(20_000))
    assert images.std() == pytest.approx(SD, rel=0.03)


@pytest.mark.parametrize(("sampler", "order"), [(samplers.ddim, 1), (samplers.dpm_solver, 2)])
def test_order_of_convergence(sampler, order):
    # On a grid uniform in lambda from -4 to 2, up to the last grid point: the step from there to alpha-bar 1 is of
    # first order in every solver and has nothing to do with the number of steps before it.
    z = start((5, 1, 1, 1))

    def error(intervals):
        lam = np.linspace(2.0, -4.0, intervals + 1)
        alpha_bar = 1 / (1 + np.exp(-2 * lam))
        path = []
        a = alpha_bar[-1]
        x = np.sqrt(a) * MEAN + np.sqrt(a * SD**2 + 1 - a) * z
        sampler(gaussian_predictor(alpha_bar), alpha_bar, x, intervals + 1, callback=lambda i, x: path.append(x))
        a = alpha_bar[0]
        return np.max(np.abs(path[-2] - (np.sqrt(a) * MEAN + np.sqrt(a * SD**2 + 1 - a) * z)))

    errors = [error(n) for n in (40, 80, 160, 320)]
    orders = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert orders[-1] == pytest.approx(order, abs=0.15)
    assert orders == pytest.approx([order] * 3, abs=0.4)


def test_dpm_solver_needs_fewer_steps_than_ddim():
    alpha_bar = schedule.cosine(1000)
    denoise = gaussian_predictor(alpha_bar)
    fine = samplers.ddim(denoise, alpha_bar, start(), 1000)

    def distance(sampler):
        return np.max(np.abs(sampler(denoise, alpha_bar, start(), 20) - fine))

    assert distance(samplers.dpm_solver) < 0.5 * distance(samplers.ddim)


# Arrays, randomness, errors ------------------------------------------------------------------------------------------


def keras_predictor(x, t):
    x = keras.ops.convert_to_tensor(x)  # as every Keras model does
    steps = keras.ops.reshape(keras.ops.cast(t, "float32") / 100.0, (-1, 1, 1, 1))
    return keras.ops.tanh(0.7 * x + keras.ops.sin(3.0 * steps)) + 0.1 * keras.ops.cos(5.0 * x)


@pytest.mark.parametrize("sampler", ALL)
def test_tensors_and_numpy_give_the_same_images(sampler):
    alpha_bar = schedule.cosine(100)
    fresh = noises(10)
    options = {} if sampler is samplers.dpm_solver else {"step_noise": lambda i, x: fresh[i]}
    expected = sampler(crooked_predictor, alpha_bar, start(), 10, clip=2.0, **options)
    if options:
        options = {"step_noise": lambda i, x: keras.ops.convert_to_tensor(fresh[i], "float32")}
    tensor = keras.ops.convert_to_tensor(start(), "float32")
    for noise in (tensor, start().astype("float32")):
        images = sampler(keras_predictor, alpha_bar, noise, 10, clip=2.0, **options)
        assert keras.ops.is_tensor(images)
        assert keras.backend.standardize_dtype(images.dtype) == "float32"
        np.testing.assert_allclose(keras.ops.convert_to_numpy(images), expected, atol=1e-4)


@pytest.mark.parametrize("sampler", ALL)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numpy_keeps_its_dtype_and_the_start_is_left_alone(sampler, dtype):
    x = start().astype(dtype)
    before = x.copy()
    images = sampler(lambda x, t: x * np.float32(0.1), schedule.cosine(50), x, 5)
    assert isinstance(images, np.ndarray)
    assert images.dtype == dtype
    np.testing.assert_array_equal(x, before)


def test_the_index_handed_to_a_tensor_predictor_is_an_int32_tensor():
    def denoise(x, t):
        assert keras.ops.is_tensor(t)
        assert keras.backend.standardize_dtype(t.dtype) == "int32"
        assert tuple(t.shape) == (3,)
        return x * 0.0

    samplers.ddim(denoise, schedule.cosine(10), keras.ops.convert_to_tensor(start(), "float32"), 2)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("sampler", [samplers.ddpm, lambda *args, **kwargs: samplers.ddim(*args, eta=1.0, **kwargs)])
def test_seed(sampler, as_tensor):
    alpha_bar = schedule.cosine(20)
    x = start().astype("float32")
    denoise = crooked_predictor
    if as_tensor:
        x, denoise = keras.ops.convert_to_tensor(x), keras_predictor

    def images(seed):
        return keras.ops.convert_to_numpy(sampler(denoise, alpha_bar, x, 5, seed=seed))

    np.testing.assert_array_equal(images(1), images(1))
    assert not np.array_equal(images(1), images(2))
    generator = keras.random.SeedGenerator(7)
    first, second = images(generator), images(generator)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, images(keras.random.SeedGenerator(7)))


@pytest.mark.parametrize("sampler", [samplers.ddpm, functools.partial(samplers.ddim, eta=0.5)])
def test_fresh_noise_is_drawn_within_a_compiled_function(sampler):
    def sample(noise):
        return sampler(keras_predictor, schedule.cosine(20), noise, 4, seed=7)

    noise, run = keras.ops.convert_to_tensor(start(), "float32"), sample
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        run = tf.function(sample)
    elif keras.backend.backend() == "jax":
        import jax

        run = jax.jit(sample)
    expected = keras.ops.convert_to_numpy(sample(noise))
    for _ in range(2):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(run(noise)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", ALL)
def test_images_have_the_dtype_of_the_noise(sampler):
    images = sampler(lambda x, t: np.float64(0.1) * x.astype("float64"), schedule.cosine(50), np.float32(start()), 5)
    assert images.dtype == "float32"
    half = keras.ops.convert_to_tensor(start(), "float16")
    images = sampler(lambda x, t: 0.1 * keras.ops.cast(x, "float32"), schedule.cosine(50), half, 5)
    assert keras.backend.standardize_dtype(images.dtype) == "float16"
    with pytest.raises(ValueError, match="noise must be floating-point numbers, got int64"):
        sampler(crooked_predictor, schedule.cosine(50), np.ones(SHAPE, "int64"), 5)


@pytest.mark.parametrize("zeros", [np.zeros, keras.ops.zeros])
def test_the_fresh_noise_differs_between_steps(zeros):
    alpha_bar = np.array([0.5, 0.4, 0.3, 0.2])
    path = []

    def denoise(x, t):
        # Then the image is 0, and nothing is seen but the noises of the steps.
        return x / math.sqrt(1 - alpha_bar[int(t[0])])

    samplers.ddpm(denoise, alpha_bar, zeros(SHAPE), 4, callback=lambda i, x: path.append(keras.ops.convert_to_numpy(x)))
    # One noise used twice would make these two proportional.
    correlation = np.corrcoef(path[0].ravel(), (path[1] - path[0]).ravel())[0, 1]
    assert abs(correlation) < 0.95
    assert np.std(path[0]) > 0.1


def test_ddim_without_eta_draws_nothing():
    def forbidden(i, x):
        raise AssertionError("no noise is needed")

    given = crooked_predictor, schedule.cosine(20), start(), 5
    np.testing.assert_array_equal(samplers.ddim(*given, step_noise=forbidden), samplers.ddim(*given))


@pytest.mark.parametrize("sampler", ALL)
def test_callback_sees_every_step_in_order(sampler):
    seen = []
    images = sampler(
        crooked_predictor, schedule.cosine(20), start(), 5, callback=lambda i, x: seen.append((i, x.copy()))
    )
    assert [i for i, _ in seen] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(seen[-1][1], images)


@pytest.mark.parametrize("sampler", ALL)
@pytest.mark.parametrize("num_steps", [0, -3, 21, 2.5, None])
def test_bad_number_of_steps(sampler, num_steps):
    with pytest.raises(ValueError, match="num_steps"):
        sampler(crooked_predictor, schedule.cosine(20), start(), num_steps)


def test_dpm_solver_leaves_room_for_the_node_at_zero():
    for spacing in ("leading", "linspace"):
        samplers.dpm_solver(crooked_predictor, schedule.cosine(20), start(), 19, spacing=spacing)
        with pytest.raises(ValueError, match="between 1 and 19"):
            samplers.dpm_solver(crooked_predictor, schedule.cosine(20), start(), 20, spacing=spacing)


@pytest.mark.parametrize("sampler", ALL)
@pytest.mark.parametrize(
    "alpha_bar",
    [
        [],
        [[0.9, 0.5]],
        0.5,
        [0.9, math.nan, 0.1],
        [0.9, 0.5, 0.0],
        [1.0, 0.5],
        [0.1, 0.5, 0.9],
        [0.9, 0.5, 0.5],
    ],
)
def test_bad_alpha_bar(sampler, alpha_bar):
    with pytest.raises(ValueError, match="alpha_bar"):
        sampler(crooked_predictor, alpha_bar, start(), 1)


@pytest.mark.parametrize("sampler", ALL)
@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"spacing": "karras"}, "spacing"),
        ({"clip": 0.0}, "clip"),
        ({"clip": -1.0}, "clip"),
        ({"clip": math.nan}, "clip"),
        ({"clip": math.inf}, "clip"),
    ],
)
def test_bad_options(sampler, options, word):
    with pytest.raises(ValueError, match=word):
        sampler(crooked_predictor, schedule.cosine(20), start(), 5, **options)


def test_bad_options_of_one_sampler():
    for eta in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="eta"):
            samplers.ddim(crooked_predictor, schedule.cosine(20), start(), 5, eta=eta)
    with pytest.raises(ValueError, match="variance"):
        samplers.ddpm(crooked_predictor, schedule.cosine(20), start(), 5, variance="learned")


@pytest.mark.parametrize("sampler", ALL)
def test_wrong_shapes(sampler):
    with pytest.raises(ValueError, match=r"\(B, H, W, C\)"):
        sampler(crooked_predictor, schedule.cosine(20), start((4, 4)), 5)
    with pytest.raises(ValueError, match=r"\(B, H, W, C\)"):
        sampler(crooked_predictor, schedule.cosine(20), [[0.0]], 5)
    with pytest.raises(ValueError, match="denoise must return"):
        sampler(lambda x, t: x[..., 0], schedule.cosine(20), start(), 5)


def test_a_seed_below_zero_is_one_of_its_own():
    alpha_bar, noise = schedule.cosine(20), np.random.default_rng(0).standard_normal((1, 4, 4, 1))
    found = [samplers.ddpm(lambda x, t: x, alpha_bar, noise, 3, seed=seed) for seed in (-3, -3, 3)]
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
