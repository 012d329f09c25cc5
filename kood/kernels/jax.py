"""JAX: convolution as nine matrix products where XLA's own is slow."""

from keras import ops

from kood.kernels.tensorflow import group_norm

__all__ = ["convolution", "group_norm"]


def convolution(x, kernel, bias):
    """3x3 convolution."""
    return ops.conv(x, kernel, padding="same", data_format="channels_last") + bias
