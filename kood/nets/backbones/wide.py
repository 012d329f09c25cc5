"""Wide residual networks for images of about 32 px (Zagoruyko and Komodakis 2016, arXiv 1605.07146)."""

import keras
from keras import layers

from kood.backends import Dropout
from kood.nets.backbones.parts import checked_image_shape, convolution, ending_in, normalisation, pointwise, pooled

__all__ = ["wrn28_10", "wrn40_2"]

#: Filters of the first convolution, whatever the width.
STEM = 16


def wrn40_2(
    image_shape: tuple[int, int, int], features: int | None = None, width: int = 32, dropout: float = 0.0
) -> keras.Model:
    """WRN-40-2: six blocks at each of 32, 64 and 128 filters, the usual network of outlier exposure at 32 px.

    Blocks as in `wrn28_10`. 2,247,664 parameters at (32, 32, 3), of which 2,242,256 trainable.

    Args:
        image_shape: (H, W, C), H and W at least 4.
        features: Length D of the feature vector through a last dense layer; None for the pooled 4 * width.
        width: Filters of the first stage, 16 times the widening factor; the others have 2 and 4 times as many.
        dropout: Share of the activations between a block's convolutions that is dropped in training, in [0, 1).

    Returns:
        A model from (B, H, W, C) to (B, D).

    Raises:
        ValueError: A size is not positive, the image is too small, or `dropout` is outside [0, 1).

    Source: Zagoruyko and Komodakis 2016, arXiv 1605.07146; Hendrycks et al. 2019 (arXiv 1812.04606) for its use.
    """
    return _wide("wrn40_2", image_shape, features, width, blocks=6, dropout=dropout)


def wrn28_10(
    image_shape: tuple[int, int, int], features: int | None = None, width: int = 160, dropout: float = 0.0
) -> keras.Model:
    """WRN-28-10: four blocks at each of 160, 320 and 640 filters.

    A block normalises and rectifies before each of its two 3x3 convolutions (pre-activation); where the number of
    filters or the size changes, a 1x1 convolution of the rectified input is its shortcut. After the last block once
    more normalisation and ReLU, then the mean over the image. 36.5 M parameters, as published; 36,490,736 at
    (32, 32, 3) without a head, of which 36,472,784 trainable.

    Args:
        image_shape: (H, W, C), H and W at least 4.
        features: Length D of the feature vector through a last dense layer; None for the pooled 4 * width.
        width: Filters of the first stage, 16 times the widening factor; the others have 2 and 4 times as many.
        dropout: Share of the activations between a block's convolutions that is dropped in training, in [0, 1).

    Returns:
        A model from (B, H, W, C) to (B, D).

    Raises:
        ValueError: A size is not positive, the image is too small, or `dropout` is outside [0, 1).

    Source: Zagoruyko and Komodakis 2016, arXiv 1605.07146.
    """
    return _wide("wrn28_10", image_shape, features, width, blocks=4, dropout=dropout)


def _wide(
    name: str, image_shape: tuple[int, int, int], features: int | None, width: int, blocks: int, dropout: float
) -> keras.Model:
    image_shape = checked_image_shape(image_shape, width=width, features=features)
    if min(image_shape[:2]) < 4:
        raise ValueError(f"{name} halves the image twice: H and W must be at least 4")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be a share, from 0 to below 1; it is {dropout!r}")
    image = keras.Input(image_shape, name="image")
    x = convolution(STEM)(image)
    for stage in range(3):
        for block in range(blocks):
            x = _block(x, width * 2**stage, stride=2 if stage and not block else 1, dropout=dropout)
    x = layers.ReLU()(normalisation()(x))
    return ending_in(image, pooled(x), features, name)


def _block(x: keras.KerasTensor, width: int, stride: int, dropout: float) -> keras.KerasTensor:
    rectified = layers.ReLU()(normalisation()(x))
    shortcut = x
    if stride > 1 or x.shape[-1] != width:
        shortcut = pointwise(rectified, width, stride)
    x = layers.ReLU()(normalisation()(convolution(width, stride=stride)(rectified)))
    if dropout:
        x = Dropout(dropout)(x)
    return layers.Add()([convolution(width)(x), shortcut])
