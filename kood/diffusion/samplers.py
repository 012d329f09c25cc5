"""Samplers of a diffusion model: from pure noise to images, given a function that predicts the noise.

Every sampler here walks down a list of timesteps and takes, at each of them, a linear step

    x  <-  c_x * x  +  c_image * image  +  c_previous * previous_image  +  c_noise * fresh_noise

where `image = (x - sqrt(1 - alpha_bar[t]) * denoise(x, t)) / sqrt(alpha_bar[t])` is the clean image that the predicted
noise implies, and `previous_image` the one of the step before. The samplers differ only in the four coefficients, which
are computed beforehand in float64. The target of a step is the next timestep of the list; after the last one alpha-bar
is 1, so the result is a clean image.

The functions are pure and know nothing of the network: `x` may be a NumPy array (float64 included) or a tensor of the
Keras backend in use.

Spacings of the timesteps (names and formulas of Lin et al., arXiv 2305.08891, table 2):

- "trailing": starts at the noisiest step T - 1 and goes down in steps of T / num_steps, rounded.
- "leading": multiples of `T // num_steps`, from 0 up; never reaches the noisiest step.
- "linspace": evenly from T - 1 to 0, both included, rounded.

With num_steps = 1 the last two leave only t = 0, which is no place to start from noise; the results are what the
formulas say, and "trailing" is the one to use with few steps.

`dpm_solver` ends in a step to alpha-bar 1 that a node at t = 0 would waste, so with "leading" and "linspace" it spreads
num_steps + 1 nodes and leaves out the one at 0, as Hugging Face diffusers does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kood.diffusion.schedule import whole_number

__all__ = ["ddpm", "ddim", "dpm_solver"]

Array = Any  # a NumPy array or a tensor of the Keras backend in use
Denoise = Callable[[Array, Array], Array]
StepNoise = Callable[[int, Array], Array]
Callback = Callable[[int, Array], object]


def ddpm(
    denoise: Denoise,
    alpha_bar: np.ndarray,
    noise: Array,
    num_steps: int,
    *,
    spacing: str = "trailing",
    clip: float | None = None,
    variance: str = "fixed_small",
    seed: Any = 0,
    step_noise: StepNoise | None = None,
    callback: Callback | None = None,
) -> Array:
    """Ancestral sampling: each step draws from the Gaussian posterior q(x_next | x, image).

    With a = alpha_bar[t], b = alpha_bar of the next timestep and beta = 1 - a / b:
    mean = sqrt(b) beta / (1 - a) image + sqrt(a / b) (1 - b) / (1 - a) x. The variance is (1 - b) / (1 - a) beta
    ("fixed_small", the posterior's own) or beta ("fixed_large"). The last step, to alpha-bar 1, adds no noise.

    Args:
        denoise: `denoise(x, t)` returns the noise predicted in x; t is an int32 (B,) array of indices into alpha_bar.
        alpha_bar: Cumulative alpha-bar, shape (T,), strictly decreasing, in (0, 1); see `kood.diffusion.schedule`.
        noise: Where to start, shape (B, H, W, C), standard normal. A tensor, or NumPy (the result is NumPy if
            `denoise` returns NumPy, otherwise a tensor).
        num_steps: Number of calls of `denoise`, from 1 to T.
        spacing: "trailing", "leading" or "linspace".
        clip: A positive bound c to clip the predicted image to [-c, c] in each step, or None not to.
        variance: "fixed_small" or "fixed_large".
        seed: An int or a `keras.random.SeedGenerator` for the fresh noise. The same int gives the same images; NumPy
            arrays and tensors draw from different generators.
        step_noise: `step_noise(i, x)` returns the fresh noise of step i (from 0), instead of drawing it from `seed`.
        callback: Called as `callback(i, x)` after step i, for progress.

    Returns:
        Images, shape (B, H, W, C), of the kind and dtype of `noise`.

    Raises:
        ValueError: An argument is outside its range, or `denoise` returns another shape than it was given.

    Source: Ho et al., arXiv 2006.11239, equations 6 and 7.
    """
    if variance not in ("fixed_small", "fixed_large"):
        raise ValueError(f"variance must be 'fixed_small' or 'fixed_large', got {variance!r}")
    steps = []
    for t, now, after in _transitions(alpha_bar, num_steps, spacing):
        beta = 1.0 - now / after
        spread = beta if variance == "fixed_large" else (1.0 - after) / (1.0 - now) * beta
        c_x = np.sqrt(now / after) * (1.0 - after) / (1.0 - now)
        c_image = np.sqrt(after) * beta / (1.0 - now)
        steps.append(_Step(t, now, c_x, c_image, c_noise=np.sqrt(spread) if after < 1.0 else 0.0))
    fresh_noise = step_noise or _fresh_noise(seed)
    return _run(denoise, noise, steps, clip=clip, fresh_noise=fresh_noise, callback=callback)


def ddim(
    denoise: Denoise,
    alpha_bar: np.ndarray,
    noise: Array,
    num_steps: int,
    *,
    spacing: str = "trailing",
    clip: float | None = None,
    eta: float = 0.0,
    seed: Any = 0,
    step_noise: StepNoise | None = None,
    callback: Callback | None = None,
) -> Array:
    """Denoising diffusion implicit model: deterministic with eta = 0, ancestral sampling with eta = 1.

    With a = alpha_bar[t], b = alpha_bar of the next timestep and
    sigma = eta sqrt((1 - b) / (1 - a)) sqrt(1 - a / b):
    x_next = sqrt(b) image + sqrt(1 - b - sigma^2) (x - sqrt(a) image) / sqrt(1 - a) + sigma fresh_noise.
    Where the image is clipped, the noise direction follows from the clipped image (`use_clipped_model_output=True` in
    diffusers).

    diffusers' DDIMScheduler steps to t - T // num_steps instead of the next timestep of its own list. The two are the
    same with "leading", with "trailing" where num_steps divides T, and with any spacing where num_steps = T; elsewhere
    theirs skips or repeats part of the noise schedule, and this function does not.

    Args:
        denoise: `denoise(x, t)` returns the noise predicted in x; t is an int32 (B,) array of indices into alpha_bar.
        alpha_bar: Cumulative alpha-bar, shape (T,), strictly decreasing, in (0, 1); see `kood.diffusion.schedule`.
        noise: Where to start, shape (B, H, W, C), standard normal. A tensor, or NumPy (the result is NumPy if
            `denoise` returns NumPy, otherwise a tensor).
        num_steps: Number of calls of `denoise`, from 1 to T.
        spacing: "trailing", "leading" or "linspace".
        clip: A positive bound c to clip the predicted image to [-c, c] in each step, or None not to.
        eta: Share of fresh noise, in [0, 1].
        seed: An int or a `keras.random.SeedGenerator` for the fresh noise; not used with eta = 0.
        step_noise: `step_noise(i, x)` returns the fresh noise of step i (from 0), instead of drawing it from `seed`.
        callback: Called as `callback(i, x)` after step i, for progress.

    Returns:
        Images, shape (B, H, W, C), of the kind and dtype of `noise`.

    Raises:
        ValueError: An argument is outside its range, or `denoise` returns another shape than it was given.

    Source: Song et al., "Denoising Diffusion Implicit Models", arXiv 2010.02502, equations 12 and 16.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must be between 0 and 1, got {eta}")
    steps = []
    for t, now, after in _transitions(alpha_bar, num_steps, spacing):
        sigma = eta * np.sqrt((1.0 - after) / (1.0 - now) * (1.0 - now / after))
        direction = np.sqrt(max(1.0 - after - sigma**2, 0.0) / (1.0 - now))
        c_image = np.sqrt(after) - direction * np.sqrt(now)
        steps.append(_Step(t, now, direction, c_image, c_noise=sigma))
    fresh_noise = step_noise or _fresh_noise(seed)
    return _run(denoise, noise, steps, clip=clip, fresh_noise=fresh_noise, callback=callback)


def dpm_solver(
    denoise: Denoise,
    alpha_bar: np.ndarray,
    noise: Array,
    num_steps: int,
    *,
    spacing: str = "trailing",
    clip: float | None = None,
    callback: Callback | None = None,
) -> Array:
    """DPM-Solver++ (2M): a second-order multistep solver of the probability-flow equation.

    With alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar), lambda = log(alpha / sigma), h the growth of lambda in
    this step and r = h_before / h:
    D = (1 + 1 / (2 r)) image - 1 / (2 r) previous_image and
    x_next = sigma_next / sigma x + alpha_next (1 - exp(-h)) D. The first step, which has no step before it, and the
    last, where h is infinite, are of first order: D = image. So num_steps = 1 and 2 are plain DDIM.

    Args:
        denoise: `denoise(x, t)` returns the noise predicted in x; t is an int32 (B,) array of indices into alpha_bar.
        alpha_bar: Cumulative alpha-bar, shape (T,), strictly decreasing, in (0, 1); see `kood.diffusion.schedule`.
        noise: Where to start, shape (B, H, W, C), standard normal. A tensor, or NumPy (the result is NumPy if
            `denoise` returns NumPy, otherwise a tensor).
        num_steps: Number of calls of `denoise`, from 1 to T ("trailing") or T - 1 ("leading", "linspace").
        spacing: "trailing", "leading" or "linspace".
        clip: A positive bound c to clip the predicted image to [-c, c] in each step, or None not to.
        callback: Called as `callback(i, x)` after step i, for progress.

    Returns:
        Images, shape (B, H, W, C), of the kind and dtype of `noise`.

    Raises:
        ValueError: An argument is outside its range, or `denoise` returns another shape than it was given.

    Source: Lu et al., "DPM-Solver++", arXiv 2211.01095, algorithm 2.
    """
    steps = []
    h_before = None
    for t, now, after in _transitions(alpha_bar, num_steps, spacing, without_zero=True):
        h = np.inf if after == 1.0 else 0.5 * (np.log(after / (1.0 - after)) - np.log(now / (1.0 - now)))
        gain = -np.sqrt(after) * np.expm1(-h)
        extrapolation = 0.0 if h_before is None or np.isinf(h) else 0.5 * h / h_before
        c_x = np.sqrt((1.0 - after) / (1.0 - now))
        steps.append(_Step(t, now, c_x, gain * (1.0 + extrapolation), c_previous=-gain * extrapolation))
        h_before = h
    return _run(denoise, noise, steps, clip=clip, fresh_noise=None, callback=callback)


@dataclass(frozen=True)
class _Step:
    """Coefficients of one step, as Python floats: a NumPy float64 would turn float32 arrays into float64."""

    t: int
    alpha_bar: float
    c_x: float
    c_image: float
    c_previous: float = 0.0
    c_noise: float = 0.0

    def __post_init__(self):
        for name in ("alpha_bar", "c_x", "c_image", "c_previous", "c_noise"):
            object.__setattr__(self, name, float(getattr(self, name)))


def _run(
    denoise: Denoise,
    noise: Array,
    steps: list[_Step],
    *,
    clip: float | None,
    fresh_noise: StepNoise | None,
    callback: Callback | None,
) -> Array:
    if clip is not None and not 0.0 < clip < float("inf"):
        raise ValueError(f"clip must be a positive number or None, got {clip}")
    shape = getattr(noise, "shape", None)
    if shape is None or len(shape) != 4:
        raise ValueError(f"noise must be an array of shape (B, H, W, C), got {shape if shape is not None else noise!r}")
    if "float" not in str(noise.dtype):
        raise ValueError(f"noise must be floating-point numbers, got {noise.dtype}")
    x = noise
    previous: Array = None
    for i, step in enumerate(steps):
        xp = _ops(x)
        predicted = denoise(x, xp.full((xp.shape(x)[0],), step.t, dtype="int32"))
        if tuple(predicted.shape) != tuple(x.shape):
            raise ValueError(
                f"denoise must return the shape it is given, {tuple(x.shape)}, not {tuple(predicted.shape)}"
            )
        x, predicted = _alike(x, predicted)
        image = (x - (1.0 - step.alpha_bar) ** 0.5 * predicted) * (1.0 / step.alpha_bar**0.5)
        if clip is not None:
            image = _ops(image).clip(image, -float(clip), float(clip))
        stepped = step.c_image * image
        if step.c_x:
            stepped = stepped + step.c_x * x
        if step.c_previous:
            stepped = stepped + step.c_previous * previous
        if step.c_noise and fresh_noise is not None:
            stepped = stepped + step.c_noise * _alike(x, fresh_noise(i, x))[1]
        x, previous = stepped, image
        if callback is not None:
            callback(i, x)
    return x


def _transitions(
    alpha_bar: np.ndarray, num_steps: int, spacing: str, *, without_zero: bool = False
) -> list[tuple[int, float, float]]:
    """(t, alpha-bar at t, alpha-bar after the step) of each step."""
    values = _checked_alpha_bar(alpha_bar)
    nodes = _timesteps(len(values), num_steps, spacing, without_zero)
    now = values[nodes]
    return [(int(t), a, b) for t, a, b in zip(nodes, now, np.append(now[1:], 1.0), strict=True)]


def _timesteps(total: int, num_steps: int, spacing: str, without_zero: bool) -> np.ndarray:
    """Indices into alpha-bar, strictly decreasing, shape (num_steps,)."""
    count = whole_number(num_steps)
    if spacing not in ("trailing", "leading", "linspace"):
        raise ValueError(f"spacing must be 'trailing', 'leading' or 'linspace', got {spacing!r}")
    spread = count + 1 if without_zero and spacing != "trailing" else count
    most = total - (spread - count)
    if not 1 <= count <= most:
        raise ValueError(f"num_steps must be between 1 and {most} for {total} diffusion steps, got {count}")
    if spacing == "trailing":
        # The rounding error of the step length can make arange one element too long.
        return np.round(np.arange(total, 0, -total / count))[:count].astype(np.int64) - 1
    if spacing == "leading":
        nodes = np.arange(spread) * (total // spread)
    else:
        nodes = np.linspace(0, total - 1, spread).round().astype(np.int64)
    return nodes[::-1][:count]


def _checked_alpha_bar(alpha_bar: np.ndarray) -> np.ndarray:
    values = np.asarray(alpha_bar, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"alpha_bar must have shape (T,) with T >= 1, got {values.shape}")
    if not (np.all(values > 0.0) and np.all(values < 1.0)):
        raise ValueError("alpha_bar must lie strictly between 0 and 1 (NaN is refused as well)")
    if not np.all(np.diff(values) < 0.0):
        raise ValueError("alpha_bar must be strictly decreasing: index 0 is the least noisy step")
    return values


def _fresh_noise(seed: Any) -> StepNoise:
    """Standard normal noise like x.

    Of an int each step has a seed of its own: a bare one would repeat its draw at each, and a generator, which is a
    variable, cannot be made within a compiled function.
    """

    def draw(step: int, x: Array) -> Array:
        own: Any = seed
        if isinstance(seed, (int, np.integer)):
            numbers = np.random.SeedSequence([abs(int(seed)), int(seed < 0), step])
            if isinstance(x, np.ndarray):
                return np.random.default_rng(numbers).standard_normal(x.shape)
            own = int(numbers.generate_state(1)[0])
        import keras

        dtype = keras.backend.standardize_dtype(x.dtype)
        drawn = keras.random.normal(keras.ops.shape(x), dtype=dtype, seed=own)
        return keras.ops.convert_to_numpy(drawn) if isinstance(x, np.ndarray) else drawn

    return draw


def _ops(x: Array) -> Any:
    """What computes on x: NumPy, or `keras.ops`, which names its functions alike."""
    if isinstance(x, np.ndarray):
        return np
    import keras

    return keras.ops


def _alike(x: Array, predicted: Array) -> tuple[Array, Array]:
    """Both in the dtype of x; as tensors where one is, and where x is none in the dtype of that one."""
    if isinstance(x, np.ndarray) and isinstance(predicted, np.ndarray):
        return x, predicted.astype(x.dtype, copy=False)
    import keras

    tensor = predicted if isinstance(x, np.ndarray) else x
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    return keras.ops.convert_to_tensor(x, dtype=dtype), keras.ops.convert_to_tensor(predicted, dtype=dtype)
