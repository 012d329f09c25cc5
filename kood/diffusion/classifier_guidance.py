"""Sampling away from what a classifier knows.

Classifier guidance (Dhariwal and Nichol 2021, arXiv 2105.05233) adds to each step the gradient of a classifier's
log-probability. Here it is the gradient of its energy, E = -logsumexp(logits), which is minus its log-density up to a
constant (Liu et al. 2020, arXiv 2010.03759), so that samples leave what the classifier has seen. GOOD (arXiv
2510.17131) does so with a text-to-image model.
"""

from collections.abc import Callable

import numpy as np
from keras import ops

__all__ = ["away_from"]

#: Below this root mean square a gradient has no direction.
SMALLEST = 1e-12


def away_from(gradient: Callable, alpha_bar: np.ndarray, strength: float) -> Callable[[Callable], Callable]:
    """Turns the function that a sampler calls into one that is pushed along a gradient.

    With e the predicted noise, a = alpha_bar[t] and x0 = (x - sqrt(1 - a) e) / sqrt(a) the predicted clean image,
    clipped to [-1, 1], g = gradient(x0) and r = g / rms(g), the root mean square over each image: the noise becomes
    e - w sqrt(a (1 - a)) r, which moves x0 by w (1 - a) r. So w is how far, of a range of 2, the early steps move the
    pixels of the clean image, and the push fades as the image clears. The paper's guidance scales the gradient itself,
    whose size differs from classifier to classifier.

    Args:
        gradient: (B, H, W, C) clean images -> the gradient by them, of the same shape.
        alpha_bar: (T,) the schedule's cumulative alpha-bar.
        strength: w, at least 0.

    Returns:
        A function: denoise -> pushed denoise, each (image (B, H, W, C), step (B,)) -> noise (B, H, W, C).
    """
    levels = ops.convert_to_tensor(np.asarray(alpha_bar, "float32"))

    def push(denoise: Callable) -> Callable:
        def pushed(image, step):
            noise = denoise(image, step)
            signal = ops.take(levels, ops.cast(step, "int32"))[:, None, None, None]
            spread = ops.sqrt(1.0 - signal)
            clean = ops.clip((image - spread * noise) / ops.sqrt(signal), -1.0, 1.0)
            found = ops.cast(gradient(clean), "float32")
            size = ops.sqrt(ops.mean(ops.square(found), axis=(1, 2, 3), keepdims=True))
            return noise - strength * ops.sqrt(signal) * spread * found / ops.maximum(size, SMALLEST)

        return pushed

    return push
