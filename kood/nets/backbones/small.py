"""Small convolutional networks."""

import keras
from keras import layers

from kood.nets.backbones.parts import checked_image_shape, convolution, ending_in

__all__ = ["small_cnn"]


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
    image_shape = checked_image_shape(image_shape, features=features, groups=groups)
    if not widths or any(width < 1 or width % groups for width in widths):
        raise ValueError(f"widths must be positive multiples of groups={groups}, got {tuple(widths)}")
    image = keras.Input(image_shape, name="image")
    x = image
    for i, width in enumerate(widths):
        x = convolution(width, stride=2 if i == 1 else 1)(x)
        x = layers.GroupNormalization(groups, epsilon=1e-5)(x)
        x = layers.ReLU()(x)
    return ending_in(image, layers.Flatten(data_format="channels_last")(x), features, "small_cnn")
