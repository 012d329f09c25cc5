"""The few operations for which a backend has a faster way than `keras.ops`, the same mathematics.

    convolution(x, kernel, bias, training=False)                3x3, stride 1, zero padding
    group_norm(x, groups, gamma, beta, epsilon, modulation)     see `kood.nets.layers.ModulatedGroupNorm`

Maps are (B, H, W, C) on every backend, kernels (3, 3, C, D). What is written here was measured to be faster where it
stands; the figures are with it.
"""

import keras

match keras.backend.backend():
    case "torch":
        from kood.kernels.torch import convolution, group_norm
    case "jax" | "tensorflow":
        from kood.kernels.plain import convolution, group_norm
    case other:
        raise ImportError(f"kood runs on tensorflow, jax or torch; KERAS_BACKEND is {other!r}")

__all__ = ["convolution", "group_norm"]
