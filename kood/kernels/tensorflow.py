"""TensorFlow: plain `keras.ops`, but for a convolution on a CPU."""

import keras
import tensorflow as tf
from keras import ops

from kood.kernels import winograd
from kood.kernels.plain import group_norm

__all__ = ["convolution", "group_norm"]


def convolution(x, kernel, bias):
    """3x3 convolution."""
    _, height, width, _ = x.shape
    fits = not (height % winograd.TILE or width % winograd.TILE)
    if fits and not tf.config.list_physical_devices("GPU") and keras.backend.standardize_dtype(x.dtype) == "float32":
        return winograd.convolution(x, kernel) + bias
    return ops.conv(x, kernel, padding="same", data_format="channels_last") + bias
