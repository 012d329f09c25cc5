"""Backbones of KerasCV with the weights that come with them, for photographs of about 100 px and more."""

import keras

from kood.errors import UserError
from kood.nets.backbones.parts import checked_image_shape, ending_in, not_had, of_whole_batches, on_top_of

__all__ = ["pretrained"]


def pretrained(
    image_shape: tuple[int, int, int], preset: str = "resnet50_v2_imagenet", features: int | None = None
) -> keras.Model:
    """A KerasCV backbone with its preset's weights, which the first run fetches; training goes on from them.

    Its last map of features is averaged over the image. Images are brought to the pixel values of 0..255 that KerasCV's
    backbones take. Presets are KerasCV's: "resnet50_v2_imagenet", "efficientnetv2_s_imagenet",
    "mobilenet_v3_small_imagenet" and others.

    Args:
        image_shape: (H, W, 3); most presets shrink the image 32 times, so H and W should be 64 or more.
        preset: KerasCV's name of the architecture and its weights.
        features: Length D of the feature vector through a last dense layer; None for the pooled channels.

    Returns:
        A model from (B, H, W, 3) to (B, D).

    Raises:
        ValueError: A size is not positive, images are not in colour.
        UserError: KerasCV is not installed, knows no such preset, or cannot fetch it.
    """
    image_shape = checked_image_shape(image_shape, features=features)
    if image_shape[2] != 3:
        raise ValueError(f"pretrained backbones see colour: image_shape must end in 3, got {image_shape}")
    network = _fetched(preset)
    # As a plain functional model, which loads without KerasCV wherever its layers are Keras's own.
    plain = keras.Model(network.inputs[0], network.outputs[-1], name=network.name)
    backbone = on_top_of(of_whole_batches(plain), image_shape, lambda pixels: pixels, "pretrained")
    return ending_in(backbone.input, backbone.output, features, "pretrained")


pretrained.version = 2  # type: ignore[attr-defined]


def _fetched(preset: str) -> keras.Model:
    try:
        from keras_cv import models
    except ImportError as error:
        raise UserError("classifier.backbone: 'pretrained' needs KerasCV; pip install keras-cv") from error
    try:
        return models.Backbone.from_preset(preset)
    except Exception as error:  # Whatever lies between here and the weights: a name, a network, a disk.
        raise not_had("preset", preset, error) from error
