"""What is the same in `keras.ops` on more than one backend."""

import keras
from keras import ops

from kood.kernels import winograd

__all__ = ["convolution", "group_norm"]


def convolution(x, kernel, bias, winograd_from=None):
    """3x3 convolution; of so many channels or more, in float32, by Winograd's filtering, nowhere where not given."""
    single = keras.backend.standardize_dtype(x.dtype) == "float32"
    if winograd_from is not None and single and winograd.pays(x, winograd_from):
        return winograd.convolution(x, kernel) + bias
    return ops.conv(x, kernel, padding="same", data_format="channels_last") + bias


def group_norm(x, groups, gamma, beta, epsilon, modulation=None):
    """Group normalisation with all that varies by example and channel worked out first.

    The variance is the mean square less the squared mean: one pass over the map instead of two, at the price of digits
    where a group's mean is hundreds of times its spread.
    """
    channels = x.shape[-1]

    def over_group(values):  # (B, C) -> (B, C): each channel's value replaced by the mean over its group
        size = channels // groups
        return ops.repeat(ops.mean(ops.reshape(values, (-1, groups, size)), axis=-1), size, axis=-1)

    x32 = ops.cast(x, "float32")
    mean = over_group(ops.mean(x32, axis=(1, 2)))
    square = over_group(ops.mean(ops.square(x32), axis=(1, 2)))
    spread = ops.rsqrt(ops.maximum(square - ops.square(mean), 0.0) + epsilon)
    scale = ops.cast(gamma, "float32") * spread
    shift = ops.cast(beta, "float32") - mean * scale
    if modulation is not None:
        modulation = ops.cast(modulation, "float32")
        gain = 1.0 + modulation[:, :channels]
        scale, shift = gain * scale, gain * shift + modulation[:, channels:]
    scale = ops.cast(ops.reshape(scale, (-1, 1, 1, channels)), x.dtype)
    shift = ops.cast(ops.reshape(shift, (-1, 1, 1, channels)), x.dtype)
    return x * scale + shift
