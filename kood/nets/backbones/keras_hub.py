"""Backbones of KerasHub with the weights that come with them."""

from pathlib import Path
from typing import Any

import keras
from keras import layers

from kood.attached import layers_of
from kood.errors import UserError
from kood.files import digests
from kood.nets.backbones.parts import checked_image_shape, not_had, of_whole_batches, on_top_of, option_path, why
from kood.registry import bring, nearest
from kood.text import clean

__all__ = ["keras_hub"]


def keras_hub(image_shape: tuple[int, int, int], preset: str) -> keras.Model:
    """A backbone of KerasHub with its preset's weights, which the first run fetches.

    Its last map of features, or its tokens, are averaged over the image. Pixels are prepared as the preset's
    `ImageConverter` says; where the network takes images of one size alone, they are brought to it. Presets are those
    of https://keras.io/keras_hub/presets: "resnet_50_imagenet", "vit_base_patch16_224_imagenet" and others.

    Args:
        image_shape: (H, W, C). One channel is given to the network as all three of its.
        preset: KerasHub's name, a handle ("hf://...", "kaggle://..."), or the path of a folder that
            `backbone.save_to_preset` wrote.

    Returns:
        A model from (B, H, W, C) to (B, D). With layers of KerasHub's own it loads where KerasHub is installed.

    Raises:
        ValueError: A size is not positive.
        UserError: KerasHub is not installed, has no such preset of images, or cannot fetch it.
    """
    height, width, channels = checked_image_shape(image_shape)
    network, converter = _fetched(preset)
    if all(type(layer).__module__.startswith("keras.") for _, layer in layers_of(network)):
        # As a plain functional model, which loads without KerasHub.
        network = of_whole_batches(keras.Model(network.inputs[0], network.output, name=network.name))
    own_height, own_width = network.input_shape[1:3]
    seen = own_height or height, own_width or width
    converter.image_size = None  # The recipe's.
    backbone = on_top_of(network, (*seen, channels), lambda pixels: converter(pixels.astype("float32")), "keras_hub")
    if seen == (height, width):
        return backbone
    image = keras.Input((height, width, channels), name="image")
    ways = ("interpolation", "antialias", "crop_to_aspect_ratio", "pad_to_aspect_ratio")
    resized = layers.Resizing(
        *seen, **{way: getattr(converter, way) for way in ways}, data_format="channels_last", name="resized"
    )
    return keras.Model(image, backbone(resized(image)), name="keras_hub")


def _folder(preset: str) -> Path | None:
    """The folder that a preset is, None where it is a name."""
    if "://" in preset:
        return None
    folder = option_path("preset", preset)
    return folder if folder.is_dir() else None


def _read(preset: str, **_: Any) -> dict[str, Any]:
    folder = _folder(preset)
    return {} if folder is None else {"preset": digests(folder)}


keras_hub.read = _read  # type: ignore[attr-defined]


def _fetched(preset: str) -> tuple[keras.Model, Any]:
    """A preset's network and its image converter."""
    try:
        import keras_hub as hub

        bring("keras_hub", "classifier.backbone")  # For processes that read the classifier's file.
    except ImportError as error:
        raise UserError("classifier.backbone: 'keras_hub' needs KerasHub; pip install 'kood[hub]'") from error
    folder, known = _folder(preset), hub.models.Backbone.presets
    if folder is None and "://" not in preset and preset not in known:
        meant = nearest(preset, known).partition("Allowed")[0]
        raise UserError(f"classifier.options.preset: KerasHub has no preset {preset!r}, nor is there such a folder; "
                        f"{meant}https://keras.io/keras_hub/presets lists them")  # fmt: skip
    try:
        network = hub.models.Backbone.from_preset(str(folder or preset), dtype=keras.config.dtype_policy().name)
    except Exception as error:  # Whatever lies between here and the weights: a name, a network, a disk.
        if folder is None:
            raise not_had("preset", preset, error) from error
        raise UserError(f"classifier.options.preset: {clean(folder)} cannot be loaded ({why(error)}); give a folder "
                        "that backbone.save_to_preset(...) wrote") from error  # fmt: skip
    if len(network.inputs) != 1 or len(network.inputs[0].shape) != 4 or len(network.outputs) != 1:
        raise UserError(f"classifier.options.preset: {preset!r} does not take images alone and give one row or map of "
                        "features; name a backbone of images")  # fmt: skip
    try:
        return network, hub.layers.ImageConverter.from_preset(str(folder or preset), dtype="float32")
    except Exception as error:
        raise UserError(f"classifier.options.preset: {preset!r} does not say how its pixels are prepared ({why(error)})"
                        "; save its ImageConverter beside it by save_to_preset") from error  # fmt: skip
