"""Residual networks for small images (He et al., arXiv 1512.03385)."""

import keras
from keras import layers

from kood.nets.backbones.parts import checked_image_shape, convolution, ending_in, normalisation, pointwise, pooled

__all__ = ["resnet8", "resnet18", "resnet20"]


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
    image_shape = checked_image_shape(image_shape, width=widths[0], features=features)
    smallest = 2 ** (len(widths) - 1)
    if min(image_shape[:2]) < smallest:
        raise ValueError(f"{name} halves the image {len(widths) - 1} times: H and W must be at least {smallest}")
    image = keras.Input(image_shape, name="image")
    x = layers.ReLU()(normalisation()(convolution(widths[0])(image)))
    for stage, width in enumerate(widths):
        for block in range(blocks):
            x = _block(x, width, stride=2 if stage and not block else 1)
    return ending_in(image, pooled(x), features, name)


def _block(x: keras.KerasTensor, width: int, stride: int) -> keras.KerasTensor:
    shortcut = x
    if stride > 1 or x.shape[-1] != width:
        shortcut = normalisation()(pointwise(x, width, stride))
    x = layers.ReLU()(normalisation()(convolution(width, stride=stride)(x)))
    x = normalisation()(convolution(width)(x))
    return layers.ReLU()(layers.Add()([x, shortcut]))
