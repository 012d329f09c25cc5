"""JAX: on a CPU, XLA's convolutions and above all their gradients are slow, its matrix products are not."""

import jax
import keras
from keras import ops

from kood.kernels import winograd
from kood.kernels.plain import group_norm

__all__ = ["convolution", "group_norm"]


def convolution(x, kernel, bias):
    """3x3 convolution."""
    _, height, width, _ = x.shape
    fits = not (height % winograd.TILE or width % winograd.TILE)
    if fits and jax.default_backend() == "cpu" and keras.backend.standardize_dtype(x.dtype) == "float32":
        return winograd.convolution(x, kernel) + bias
    return ops.conv(x, kernel, padding="same", data_format="channels_last") + bias
