"""Classifier backbones: images (B, H, W, C) in [-1, 1] to features (B, D), without a head.

Every backbone is a functional `keras.Model`, so it saves to `.keras` and loads without this package. Weights are
He-normal (He et al., arXiv 1502.01852).
"""

import keras
from keras import layers

__all__ = ["small_cnn", "resnet8", "resnet20", "resnet18"]


def small_cnn(
    image_shape: tuple[int, int, int], features: int = 64, widths: tuple[int, ...] = (16, 32, 32), groups: int = 8
) -> keras.Model:
    """Small CNN with group normalisation, for digits of 8 to 32 px.

    3x3 convolutions of 16, 32 (stride 2) and 32 filters, each followed by group normalisation and ReLU, then a dense
    layer to the features. There is no activation after the dense layer: behind a ReLU all features are non-negative, so
    no two of them stand at more than 90 degrees and an angular head loses half of its range. Group normalisation makes
    no difference between training and inference and does not mix the rows of a batch, so outliers in the batch leave
    the statistics of the others alone. 46,960 parameters at (8, 8, 1).

    Args:
        image_shape: (H, W, C).
        features: Length D of the feature vector.
        widths: Filters of the convolutions; the second one has stride 2.
        groups: Groups of the normalisation; must divide every width.

    Returns:
        A model from (B, H, W, C) to (B, features).

    Raises:
        ValueError: A size is not positive, or `groups` does not divide a width.
    """
    image_shape = _checked_image_shape(image_shape)
    _check_positive(features=features, groups=groups)
    if not widths or any(width < 1 or width % groups for width in widths):
        raise ValueError(f"widths must be positive multiples of groups={groups}, got {tuple(widths)}")
    image = keras.Input(image_shape, name="image")
    x = image
    for i, width in enumerate(widths):
        x = _convolution(width, stride=2 if i == 1 else 1)(x)
        x = layers.GroupNormalization(groups, epsilon=1e-5)(x)
        x = layers.ReLU()(x)
    x = layers.Flatten(data_format="channels_last")(x)
    x = layers.Dense(features, kernel_initializer="he_normal", name="features")(x)
    return keras.Model(image, x, name="small_cnn")


def resnet8(image_shape: tuple[int, int, int], features: int | None = None, width: int = 16) -> keras.Model:
    """ResNet-8 for images of about 32 px: one block at each of 16, 32 and 64 filters.

    As `resnet20` with one block a stage; not in the paper, but the common smallest member of its CIFAR family. 78,064
    parameters at (32, 32, 3), of which 77,392 trainable.

    Args:
        image_shape: (H, W, C), H and W at least 4.
        features: Length D of the feature vector through a last dense layer; None for the pooled 4 * width.
        width: Filters of the first stage; the others have 2 and 4 times as many.

    Returns:
        A model from (B, H, W, C) to (B, D).

    Raises:
        ValueError: A size is not positive, or the image is too small.

    Source: He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385, section 4.2.
    """
    return _residual("resnet8", image_shape, features, (width, 2 * width, 4 * width), blocks=1)


def resnet20(image_shape: tuple[int, int, int], features: int | None = None, width: int = 16) -> keras.Model:
    """ResNet-20 for images of about 32 px: three blocks at each of 16, 32 and 64 filters.

    The CIFAR network of the paper (0.27 M parameters with its 10-way softmax layer), except for the shortcuts: where
    the number of filters changes they are 1x1 convolutions (option B) instead of zero padding (option A), which adds
    2,752 weights. 273,392 parameters at (32, 32, 3), of which 271,824 trainable.

    Args:
        image_shape: (H, W, C), H and W at least 4.
        features: Length D of the feature vector through a last dense layer; None for the pooled 4 * width.
        width: Filters of the first stage; the others have 2 and 4 times as many.

    Returns:
        A model from (B, H, W, C) to (B, D).

    Raises:
        ValueError: A size is not positive, or the image is too small.

    Source: He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385, section 4.2.
    """
    return _residual("resnet20", image_shape, features, (width, 2 * width, 4 * width), blocks=3)


def resnet18(image_shape: tuple[int, int, int], features: int | None = None, width: int = 64) -> keras.Model:
    """ResNet-18 for images of about 32 px: two blocks at each of 64, 128, 256 and 512 filters.

    The ImageNet network of the paper with a 3x3 convolution of stride 1 and no max-pooling at its start, as is usual at
    32 px (OpenOOD's ResNet-18 32x32). 11.17 M trainable parameters with a 10-way softmax layer; without it 11,178,432
    at (32, 32, 3), of which 11,168,832 trainable.

    Args:
        image_shape: (H, W, C), H and W at least 8.
        features: Length D of the feature vector through a last dense layer; None for the pooled 8 * width.
        width: Filters of the first stage; the others have 2, 4 and 8 times as many.

    Returns:
        A model from (B, H, W, C) to (B, D).

    Raises:
        ValueError: A size is not positive, or the image is too small.

    Source: He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385, table 1.
    """
    return _residual("resnet18", image_shape, features, (width, 2 * width, 4 * width, 8 * width), blocks=2)


def _residual(
    name: str, image_shape: tuple[int, int, int], features: int | None, widths: tuple[int, ...], blocks: int
) -> keras.Model:
    image_shape = _checked_image_shape(image_shape)
    _check_positive(width=widths[0], features=1 if features is None else features)
    smallest = 2 ** (len(widths) - 1)
    if min(image_shape[:2]) < smallest:
        raise ValueError(f"{name} halves the image {len(widths) - 1} times: H and W must be at least {smallest}")
    image = keras.Input(image_shape, name="image")
    x = layers.ReLU()(_normalisation()(_convolution(widths[0])(image)))
    for stage, width in enumerate(widths):
        for block in range(blocks):
            x = _block(x, width, stride=2 if stage and not block else 1)
    x = layers.GlobalAveragePooling2D(data_format="channels_last", name="pooled")(x)
    if features is not None:
        x = layers.Dense(features, kernel_initializer="he_normal", name="features")(x)
    return keras.Model(image, x, name=name)


def _block(x: keras.KerasTensor, width: int, stride: int) -> keras.KerasTensor:
    shortcut = x
    if stride > 1 or x.shape[-1] != width:
        # Every stride-th pixel, then a convolution of 1 pixel: the same as a strided one, whose gradient oneDNN 3.12
        # (under torch 2.13, on CPUs without AVX-512) computes past the end of its memory where there are fewer than 8
        # channels.
        seen = layers.MaxPooling2D(1, strides=stride, data_format="channels_last")(x) if stride > 1 else x
        shortcut = _normalisation()(_convolution(width, kernel=1)(seen))
    x = layers.ReLU()(_normalisation()(_convolution(width, stride=stride)(x)))
    x = _normalisation()(_convolution(width)(x))
    return layers.ReLU()(layers.Add()([x, shortcut]))


def _convolution(width: int, kernel: int = 3, stride: int = 1) -> layers.Layer:
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


def _normalisation() -> layers.Layer:
    # Keras's default momentum of 0.99 needs about 500 steps to forget the initial statistics; short runs have fewer.
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)


def _checked_image_shape(image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    shape = tuple(image_shape)
    if len(shape) != 3 or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(f"image_shape must be three positive integers (H, W, C), got {image_shape!r}")
    return shape


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
