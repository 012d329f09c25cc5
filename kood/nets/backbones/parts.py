"""What the backbones are made of, and the checks of their arguments. Weights are He-normal (arXiv 1502.01852)."""

import keras
from keras import layers

from kood.backends import BatchNormalization


def convolution(width: int, kernel: int = 3, stride: int = 1) -> layers.Layer:
    """Without a bias: every convolution here is followed by a normalisation, which has its own."""
    return layers.Conv2D(
        width,
        kernel,
        strides=stride,
        padding="same",
        data_format="channels_last",
        use_bias=False,
        kernel_initializer="he_normal",
    )


def pointwise(x: keras.KerasTensor, width: int, stride: int) -> keras.KerasTensor:
    """A 1x1 convolution of every stride-th pixel."""
    # Picking the pixels first is the same as a strided convolution, whose gradient oneDNN 3.12 (under torch 2.13, on
    # CPUs without AVX-512) computes past the end of its memory where there are fewer than 8 channels.
    # The mean of one pixel and not its maximum, whose gradient XLA scatters pixel by pixel.
    seen = layers.AveragePooling2D(1, strides=stride, data_format="channels_last")(x) if stride > 1 else x
    return convolution(width, kernel=1)(seen)


def normalisation() -> layers.Layer:
    # Keras's default momentum of 0.99 needs about 500 steps to forget the initial statistics; short runs have fewer.
    return BatchNormalization(momentum=0.9, epsilon=1e-5)


def checked_image_shape(image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    shape = tuple(image_shape)
    if len(shape) != 3 or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(f"image_shape must be three positive integers (H, W, C), got {image_shape!r}")
    return shape


def check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
