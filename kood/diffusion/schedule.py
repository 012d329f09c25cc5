"""Noise schedules: the cumulative signal power alpha-bar over the steps of the diffusion.

A noised image is `x_t = sqrt(alpha_bar[t]) * image + sqrt(1 - alpha_bar[t]) * noise`, with t = 0 the least noisy step
and t = num_steps - 1 the noisiest. alpha-bar is kept in float64: at the noisy end of the cosine schedule it is about
2e-9, and a float32 product of a thousand factors has lost its last digits long before.
"""

import operator

import numpy as np

__all__ = ["linear", "cosine"]


def linear(num_steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> np.ndarray:
    """Betas that grow linearly: `beta[t] = start + (end - start) * t / (num_steps - 1)`.

    `alpha_bar[t]` is the product of `1 - beta[s]` over all s <= t. The defaults are made for 1000 steps; with fewer
    steps and the same betas the last step is still far from pure noise.

    Args:
        num_steps: Number of diffusion steps T, at least 1.
        start: Beta of the first step, in (0, 1).
        end: Beta of the last step, in [start, 1).

    Returns:
        alpha-bar, shape (T,), float64, strictly decreasing, in (0, 1).

    Raises:
        ValueError: An argument is outside its range.

    Source: Ho et al., "Denoising Diffusion Probabilistic Models", arXiv 2006.11239, section 4.
    """
    num_steps = _checked_steps(num_steps)
    if not 0.0 < start <= end < 1.0:
        raise ValueError(f"betas must satisfy 0 < start <= end < 1, got start={start}, end={end}")
    return _cumulative(np.linspace(start, end, num_steps, dtype=np.float64))


def cosine(num_steps: int = 1000) -> np.ndarray:
    """alpha-bar that falls as a squared cosine, so that information is destroyed evenly over the steps.

    With `f(u) = cos((u + s) / (1 + s) * pi / 2) ** 2` and s = 0.008, the betas are
    `beta[t] = min(1 - f((t + 1) / T) / f(t / T), 0.999)`, and `alpha_bar[t]` is the product of `1 - beta[s]` over all
    s <= t. The bound keeps the last step from being singular.

    Args:
        num_steps: Number of diffusion steps T, at least 1.

    Returns:
        alpha-bar, shape (T,), float64, strictly decreasing, in (0, 1).

    Raises:
        ValueError: `num_steps` is not a positive integer.

    Source: Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", arXiv 2102.09672, section 3.2.
    """
    num_steps = _checked_steps(num_steps)
    offset = 0.008
    edges = np.arange(num_steps + 1, dtype=np.float64) / num_steps
    signal = np.cos((edges + offset) / (1.0 + offset) * (np.pi / 2.0)) ** 2
    return _cumulative(np.minimum(1.0 - signal[1:] / signal[:-1], 0.999))


def _cumulative(betas: np.ndarray) -> np.ndarray:
    alpha_bar = np.cumprod(1.0 - betas)
    if alpha_bar[-1] <= 0.0:
        raise ValueError(f"alpha-bar underflows to 0 after {len(betas)} steps: use fewer steps or smaller betas")
    return alpha_bar


def whole_number(num_steps: int) -> int:
    """Any kind of integer as Python's; `ValueError` for what is none."""
    try:
        return operator.index(num_steps)
    except TypeError:
        raise ValueError(f"num_steps must be an integer, got {num_steps!r}") from None


def _checked_steps(num_steps: int) -> int:
    steps = whole_number(num_steps)
    if steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {steps}")
    return steps
