"""The networks that come with Keras, with their weights of ImageNet, for photographs of about 100 px and more."""

import inspect
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras

from kood.errors import UserError
from kood.files import digest_file
from kood.nets.backbones.parts import checked_image_shape, not_had, of_whole_batches, on_top_of, option_path, why
from kood.registry import nearest

__all__ = ["keras_applications"]


def keras_applications(
    image_shape: tuple[int, int, int], name: str = "EfficientNetV2B0", weights: str = "imagenet"
) -> keras.Model:
    """A network of `keras.applications` without its classifier, by default with ImageNet's weights.

    Its last map of features is averaged over the image. It gets the pixels that its own `preprocess_input` makes of
    0..255. Names are those of Keras: "EfficientNetV2B0", "ConvNeXtTiny", "MobileNetV3Small", "ResNet50V2" and others
    (https://keras.io/api/applications). Keras keeps what it has fetched, so a second run needs no network.

    Args:
        image_shape: (H, W, C). One channel is given to the network as all three of its. H and W at least 32 or so,
            which depends on the network.
        name: The network's; upper and lower case are the same.
        weights: "imagenet"; "none" for random ones; or the path of a file with those of the network without its
            classifier, as `model.save_weights` writes it.

    Returns:
        A model from (B, H, W, C) to (B, D).

    Raises:
        ValueError: A size is not positive.
        UserError: Keras has no such network, images are too small for it, or its weights cannot be had or do not fit.
    """
    image_shape = checked_image_shape(image_shape)
    found = _networks()
    key = next((one for one in found if one.lower() == name.lower()), None)
    if key is None:
        raise UserError(f"classifier.options.name: Keras has no network {name!r}; {nearest(name, found)}")
    make, prepare = found[key]
    network = _made(key, make, image_shape, weights)
    prepare = partial(prepare, data_format="channels_last")
    return on_top_of(of_whole_batches(network), image_shape, prepare, "keras_applications")


def _read(weights: str = "imagenet", **_: Any) -> dict[str, Any]:
    file = _file(weights)
    return {} if file is None else {"weights": digest_file(file)}


keras_applications.read = _read  # type: ignore[attr-defined]


def _networks() -> dict[str, tuple[Callable, Callable]]:
    """{name: (what makes it, what prepares its pixels)} of all that Keras has."""
    makes = {name: one for name, one in vars(keras.applications).items() if inspect.isfunction(one)}
    modules = {name: getattr(keras.applications, one.__module__.rpartition(".")[2]) for name, one in makes.items()}
    return {name: (make, modules[name].preprocess_input) for name, make in makes.items()}


def _file(weights: str) -> Path | None:
    """The file of weights, None where Keras's or random ones are asked for."""
    if weights in ("imagenet", "none"):
        return None
    file = option_path("weights", weights)
    if not file.is_file():
        raise UserError(f"classifier.options.weights: there is no file {file}; give 'imagenet', 'none', or a file of "
                        "weights, which model.save_weights(...) writes")  # fmt: skip
    return file


def _made(name: str, make: Callable, image_shape: tuple[int, int, int], weights: str) -> keras.Model:
    file = _file(weights)
    height, width, channels = image_shape
    given = {"imagenet": "imagenet", "none": None}.get(weights, str(file))
    try:
        with warnings.catch_warnings():
            # That weights of 224 px are taken for images of another size, which is what is asked for.
            warnings.filterwarnings("ignore", message=".*input_shape. is undefined or non-square")
            warnings.filterwarnings("error", message="Skipping")  # What a file of weights does not have.
            return make(include_top=False, weights=given, input_shape=(height, width, 3), pooling="avg")
    except Exception as error:  # Whatever lies between here and the weights: a size, a network, a disk.
        least = re.search(r"at least (?:size )?(\d+)x(\d+)", str(error), re.IGNORECASE)
        if least:
            side = int(least[1])
            raise UserError(f"data.image_shape: {name} takes images of {side}x{side} and more, and these are "
                            f"{height}x{width}; set image_shape = {[max(height, side), max(width, side), channels]}, "
                            "or take another network (classifier.options.name)") from error  # fmt: skip
        if file is not None:
            told = "some of its layers are not there" if isinstance(error, Warning) else why(error)
            raise UserError(f"classifier.options.weights: {file} does not fit {name} without its classifier "
                            f"({told}); give what model.save_weights(...) wrote of it") from error  # fmt: skip
        raise not_had("weights", name, error, "the network at the first run, or give a file") from error
