"""Keras layers of the denoisers. Import this before loading a saved denoiser: it registers the layers by name.

Their arguments are numbers and words alone, which Keras writes into a file by itself.
"""

import math

import keras
from keras import layers, ops

from kood import kernels
from kood.backends import Dropout

__all__ = [
    "Convolution", "DepthToSpace", "ModulatedGroupNorm", "Modulation", "SelfAttention", "SpaceToDepth", "StepEmbedding",
]  # fmt: skip


@keras.saving.register_keras_serializable(package="kood")
class StepEmbedding(layers.Layer):
    """Sines and cosines of the step: (B,) in [0, 1] -> (B, size).

    With i from 0 to size / 2 - 1 the angles are `1000 * step / 10000 ** (2 i / size)`; cosines first, then sines. The
    factor 1000 gives the range of the usual thousand integer steps.

    Args:
        size: Length of the embedding, even.

    Source: Vaswani et al., arXiv 1706.03762, section 3.5; Ho et al., arXiv 2006.11239.
    """

    def __init__(self, size: int, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def call(self, step):
        half = self.size // 2
        frequencies = ops.exp(ops.arange(half, dtype="float32") * (-math.log(10000.0) / half))
        angles = 1000.0 * ops.expand_dims(ops.cast(step, "float32"), -1) * frequencies
        return ops.concatenate([ops.cos(angles), ops.sin(angles)], axis=-1)

    def compute_output_shape(self, step_shape):
        return (*step_shape, self.size)


@keras.saving.register_keras_serializable(package="kood")
class Modulation(layers.Layer):
    """Scale and shift that depend on the example: (B, C) -> (B, C).

    `y = (1 + s) * x + b`, with s and b the two halves of `modulation` (B, 2 C).

    Source: Perez et al., "FiLM", arXiv 1709.07871.
    """

    def call(self, x, modulation):
        channels = x.shape[-1]
        return x * (1.0 + modulation[:, :channels]) + modulation[:, channels:]

    def compute_output_shape(self, x_shape, modulation_shape):
        return x_shape


@keras.saving.register_keras_serializable(package="kood")
class ModulatedGroupNorm(layers.Layer):
    """Group normalisation with an affine map that may depend on the example: (B, H, W, C) -> (B, H, W, C).

    `y = (1 + s) * (gamma * (x - mean) / sqrt(var + epsilon) + beta) + b`, with mean and variance over a group of
    channels and all pixels of one image, and s, b the two halves of `modulation` (B, 2 C), both 0 without it.
    Statistics are float32. How it is computed is the backend's own (`kood.kernels`).

    Args:
        groups: Number of groups; must divide C.
        epsilon: Added to the variance.

    Source: Wu & He, arXiv 1803.08494; the scale and shift: Dhariwal & Nichol, arXiv 2105.05233.
    """

    def __init__(self, groups: int, epsilon: float = 1e-5, **kwargs):
        super().__init__(**kwargs)
        self.groups = groups
        self.epsilon = epsilon

    def build(self, x_shape, modulation_shape=None):
        channels = x_shape[-1]
        if channels % self.groups:
            raise ValueError(f"groups={self.groups} does not divide the {channels} channels")
        self.gamma = self.add_weight(shape=(channels,), initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=(channels,), initializer="zeros", name="beta")
        self.built = True

    def call(self, x, modulation=None):
        gamma, beta = ops.convert_to_tensor(self.gamma), ops.convert_to_tensor(self.beta)
        return kernels.group_norm(x, self.groups, gamma, beta, self.epsilon, modulation)

    def compute_output_shape(self, x_shape, modulation_shape=None):
        return x_shape


@keras.saving.register_keras_serializable(package="kood")
class Convolution(layers.Layer):
    """3x3 convolution with stride 1 and zero padding: (B, H, W, C) -> (B, H, W, channels).

    What `keras.layers.Conv2D(channels, 3, padding="same")` computes, in the backend's fastest way (`kood.kernels`).

    Args:
        channels: Channels of the result.
        kernel_initializer: Name of the Keras initializer of the kernel (3, 3, C, channels).
    """

    def __init__(self, channels: int, kernel_initializer: str = "he_normal", **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, x_shape):
        shape = (3, 3, x_shape[-1], self.channels)
        self.kernel = self.add_weight(shape=shape, initializer=self.kernel_initializer, name="kernel")
        self.bias = self.add_weight(shape=(self.channels,), initializer="zeros", name="bias")
        self.built = True

    def call(self, x, training=False):
        kernel, bias = ops.convert_to_tensor(self.kernel), ops.convert_to_tensor(self.bias)
        return kernels.convolution(x, kernel, bias, training=bool(training))

    def compute_output_shape(self, x_shape):
        return (*x_shape[:-1], self.channels)


def group_count(channels: int) -> int:
    """Groups of a normalisation: at most 32, of at least 4 channels each; a number that divides the channels."""
    return next(n for n in range(min(32, max(channels // 4, 1)), 0, -1) if channels % n == 0)


@keras.saving.register_keras_serializable(package="kood")
class ResidualBlock(layers.Layer):
    """Residual block of a U-Net under a context vector: (B, H, W, C), (B, D) -> (B, H, W, C).

    Norm, SiLU, convolution, norm with scale and shift from the context, SiLU, dropout, convolution (zero at the start),
    plus the input.

    Args:
        channels: C.
        dropout: Rate, in [0, 1).
        recompute: In training, keep the input alone and compute what the gradient needs again on the way back.

    Source: Dhariwal & Nichol, arXiv 2105.05233; Karras et al., arXiv 2206.00364; recomputation: Chen et al., arXiv
    1604.06174.
    """

    def __init__(self, channels: int, dropout: float = 0.0, recompute: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.dropout = dropout
        self.recompute = recompute
        options = {"dtype": self.dtype_policy}
        self.drop = Dropout(dropout, name="drop", **options) if dropout else None
        self.norm0 = ModulatedGroupNorm(group_count(channels), name="norm0", **options)
        self.conv0 = Convolution(channels, name="conv0", **options)
        self.modulation = layers.Dense(2 * channels, name="modulation", **options)
        self.norm1 = ModulatedGroupNorm(group_count(channels), name="norm1", **options)
        self.conv1 = Convolution(channels, kernel_initializer="zeros", name="conv1", **options)

    def build(self, x_shape, context_shape):
        self.modulation.build(context_shape)
        self.norm0.build(x_shape)
        self.norm1.build(x_shape, (*context_shape[:-1], 2 * self.channels))
        self.conv0.build(x_shape)
        self.conv1.build(x_shape)
        if self.drop is not None:
            self.drop.build(x_shape)
        self.built = True

    def call(self, x, context, training=False):
        arguments = [x, context]
        if self.drop is not None and training:
            # Drawn outside the part that may run twice, so that both times see the same draw. By a layer, which several
            # devices know how to share.
            arguments.append(self.drop(ops.ones_like(x), training=True))

        def block(x, context, kept=None):
            # Said aloud: on the way back nothing is left of what Keras knows during a call.
            h = self.conv0(ops.silu(self.norm0(x)), training=training)
            h = ops.silu(self.norm1(h, self.modulation(context)))
            if kept is not None:
                h = h * kept
            return x + self.conv1(h, training=training)

        return (keras.remat(block) if self.recompute and training else block)(*arguments)

    def compute_output_shape(self, x_shape, context_shape):
        return x_shape


@keras.saving.register_keras_serializable(package="kood")
class SelfAttention(layers.Layer):
    """Self-attention among the pixels of a map: (B, H, W, C) -> (B, H, W, C), zero at the start.

    `softmax(Q K^T / sqrt(C / heads)) V` per head, and an output matrix. Keras's MultiHeadAttention works on more axes
    than needed here and is slower on a CPU.

    Args:
        heads: Number of heads; must divide C.

    Source: Vaswani et al., arXiv 1706.03762, section 3.2.
    """

    def __init__(self, heads: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.heads = heads

    def build(self, x_shape):
        channels = x_shape[-1]
        if channels % self.heads:
            raise ValueError(f"heads={self.heads} does not divide the {channels} channels")
        self.queries = self.add_weight(shape=(channels, channels), name="queries")
        self.keys = self.add_weight(shape=(channels, channels), name="keys")
        self.values = self.add_weight(shape=(channels, channels), name="values")
        self.output_kernel = self.add_weight(shape=(channels, channels), initializer="zeros", name="output_kernel")
        self.output_bias = self.add_weight(shape=(channels,), initializer="zeros", name="output_bias")
        self.built = True

    def call(self, x):
        height, width, channels = x.shape[1:]
        pixels, size = height * width, channels // self.heads
        flat = ops.reshape(x, (-1, channels))

        def per_head(rows):
            rows = ops.transpose(ops.reshape(rows, (-1, pixels, self.heads, size)), (0, 2, 1, 3))
            return ops.reshape(rows, (-1, pixels, size))

        kernel = ops.concatenate([self.queries * size**-0.5, self.keys, self.values], axis=1)
        q, k, v = (per_head(rows) for rows in ops.split(ops.matmul(flat, kernel), 3, axis=1))
        weights = ops.matmul(q, ops.transpose(k, (0, 2, 1)))
        weights = ops.cast(ops.softmax(ops.cast(weights, "float32"), axis=-1), x.dtype)
        y = ops.matmul(weights, v)
        y = ops.transpose(ops.reshape(y, (-1, self.heads, pixels, size)), (0, 2, 1, 3))
        y = ops.matmul(ops.reshape(y, (-1, channels)), self.output_kernel) + self.output_bias
        return ops.reshape(y, (-1, height, width, channels))

    def compute_output_shape(self, x_shape):
        return x_shape


class _Fold(layers.Layer):
    def __init__(self, size: int, **kwargs):
        super().__init__(**kwargs)
        self.size = size


@keras.saving.register_keras_serializable(package="kood")
class SpaceToDepth(_Fold):
    """Folds squares of pixels into channels: (B, H, W, C) -> (B, H / size, W / size, size * size * C).

    Args:
        size: Side of the squares, at least 2; must divide H and W.
    """

    def call(self, x):
        return ops.space_to_depth(x, self.size, data_format="channels_last")


@keras.saving.register_keras_serializable(package="kood")
class DepthToSpace(_Fold):
    """The inverse of `SpaceToDepth`: (B, H, W, size * size * C) -> (B, H * size, W * size, C).

    Args:
        size: Side of the squares, at least 2; its square must divide the number of channels.
    """

    def call(self, x):
        return ops.depth_to_space(x, self.size, data_format="channels_last")
