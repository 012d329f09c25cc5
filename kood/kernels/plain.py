"""JAX and TensorFlow: `keras.ops`, but for some convolutions on a CPU."""

import keras
from keras import ops

from kood.kernels import winograd

__all__ = ["convolution", "group_norm"]


def _winograd_from(training):
    """From how many channels on Winograd's filtering pays; None where it never does.

    Under JAX XLA's convolutions and above all their gradients are slow on a CPU, its matrix products are not. Forward
    and backward together take 15 ms by Winograd's filtering against 45 on an 8 x 8 map of 80 channels, 15 against 30 on
    4 x 4 with 160, 35 against 85 on 16 x 16 with 64; forward alone 13 against 17, 9 against 15, 18 against 21 (batch
    128, two AVX2 cores; the last, batch 64).

    Under TensorFlow with 160 channels, forward and backward together take 30 ms against 46 on a 4 x 4 map, 52 against
    123 on 8 x 8; with 80 channels 36 against 26, and forward alone the plain one is the faster (as above, batch 128).
    """
    if keras.backend.backend() == "jax":
        import jax

        return 16 if jax.default_backend() == "cpu" else None
    import tensorflow as tf

    return 128 if training and not tf.config.list_physical_devices("GPU") else None


def convolution(x, kernel, bias, *, training=False):
    """3x3 convolution; in float32 by Winograd's filtering where this pays."""
    least = _winograd_from(training)
    if least and keras.backend.standardize_dtype(x.dtype) == "float32" and winograd.pays(x, least):
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
