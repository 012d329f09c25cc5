"""TensorFlow: plain `keras.ops`, but for a convolution on a CPU."""

import tensorflow as tf

from kood.kernels import plain
from kood.kernels.plain import group_norm

__all__ = ["convolution", "group_norm"]


def convolution(x, kernel, bias, *, training=False):
    """3x3 convolution.

    With 160 channels, forward and backward together take 30 ms by Winograd's filtering against 46 on a 4 x 4 map, 52
    against 123 on 8 x 8; with 80 channels 36 against 26, and forward alone the plain one is the faster (batch 128, two
    AVX2 cores).
    """
    pays = training and not tf.config.list_physical_devices("GPU")
    return plain.convolution(x, kernel, bias, 128 if pays else None)
