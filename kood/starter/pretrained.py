"""Which pretrained network a first recipe can begin with, and how fast this machine passes images through it."""

import os
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kood.data.paths import data_path
from kood.errors import UserError, in_words
from kood.process import choose_backend, native_messages_held_back
from kood.text import clean

__all__ = ["SMALLEST", "Pretrained", "pretrained", "tried"]

#: Shorter side of the median image from which on a pretrained network is taken.
SMALLEST = 96
#: The side that such networks are usually given.
SIDE = 224
#: Networks of Keras Applications in the order in which they are taken, and what Keras calls their weights in its cache.
NETWORKS = {
    "EfficientNetV2B0": "efficientnetv2-b0_notop.h5",
    "MobileNetV2": "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
    "ResNet50V2": "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
}
#: Where Keras fetches them.
HOST = "https://storage.googleapis.com/tensorflow/keras-applications/"

#: The options of the command for those of the backbone "file".
_OPTIONS = {"preprocess": "--preprocess", "layer": "--features", "imports": "--import"}
#: What messages call these -> what the command does.
_SAID = {
    r"^model: ": "--backbone: ",
    r"^classifier\.options\.path: ": "--backbone ",
    r"^classifier\.options\.preprocess = '(.*?)'": r"--preprocess \1",
    r"\bpreprocess=\.\.\.": "--preprocess",
    r"\bpreprocess=\"(.*?)\"": r"--preprocess \1",
    r"\bclassifier\.options\.layer = '(.*?)'": r"--features \1",
    r"\bclassifier\.options\.layer\b": "--features",
    r"\bclassifier\.options\.imports\b": "--import",
    r"register it .* pass custom_objects": "name the module that defines or registers it with --import MODULE",
}


@dataclass(frozen=True)
class Pretrained:
    """A pretrained network as a recipe has it.

    Attributes:
        backbone: Its name among the backbones; `options` what else the recipe says.
        size: Height and width of its images.
        why: Where its weights come from, or why it is taken.
        fixed: Whether it takes no other size.
        channels: Of its images, 3 where they are given to it as colours.
        features: Which layer's output its features are, a sentence; "" where its name says all.
    """

    backbone: str
    options: dict[str, Any]
    size: tuple[int, int]
    why: str
    fixed: bool = False
    channels: int = 3
    features: str = ""


def pretrained(file: str | None, side: float, options: Mapping[str, Any]) -> Pretrained | None:
    """The network for images of about so many pixels a side; None where they are small, or it has no weights.

    Args:
        file: A `.keras` file of the user's, or an HDF5 file, which is then taken whatever the images.
        side: Of the shorter.
        options: What else the backbone "file" is to be told of the file.

    Raises:
        UserError: The file is no Keras model of images of 1 or 3 channels; options and no file.
    """
    if file is not None:
        place = data_path(file)
        height, width, channels = _shape_of(place, options.get("imports", ()))
        return Pretrained(
            "file", {"path": str(place), **options}, (height or SIDE, width or SIDE), "the network you gave",
            fixed=bool(height or width), channels=channels,
        )  # fmt: skip
    if options:
        raise UserError(f"{_OPTIONS[next(iter(options))]}: says something of --backbone FILE, and none is given")
    if side < SMALLEST:
        return None
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"
    for name, weights in NETWORKS.items():
        if (home / weights).exists():
            return _of_keras(name, "its ImageNet weights are in Keras's cache")
    if _is_reachable():
        return _of_keras(next(iter(NETWORKS)), "the first run fetches its ImageNet weights")
    return None


def _of_keras(name: str, why: str) -> Pretrained:
    return Pretrained("keras_applications", {"name": name, "weights": "imagenet"}, (SIDE, SIDE), why)


def _is_reachable() -> bool:
    """Whether the weights could be fetched now."""
    try:
        with urllib.request.urlopen(urllib.request.Request(HOST, method="HEAD"), timeout=5):  # noqa: S310  # It is https.
            return True
    except urllib.error.HTTPError:
        return True  # Somebody answered.
    except OSError:
        return False


def _shape_of(file: Path, modules: Sequence[str]) -> tuple[int | None, int | None, int]:
    """(height, width, channels) of the images that a file's network takes, None where it takes any size."""
    choose_backend()
    with in_words(_SAID):
        with native_messages_held_back():
            from kood.attached import bring, image_shape_of, opened

            bring(modules, "classifier.options.imports")
            shape = image_shape_of(opened(file, key="classifier.options.path"))
        if shape[2] not in (1, 3):
            raise UserError(f"--backbone {clean(file)}: takes images of {shape[2]} channels; give a network of grey "
                            "images (1) or of colours (3)")  # fmt: skip
    return shape


def tried(found: Pretrained, channels: int) -> tuple[Pretrained, float]:
    """The network with what it says of its features, and how many seconds an image takes through it here.

    A few batches of noise pass it, the first of which is not counted.

    Raises:
        UserError: The network cannot be made, such as of a file with layers that are not known here; no such backend.
    """
    import numpy as np

    from kood.registry import obtain

    choose_backend()
    with native_messages_held_back():
        from keras.ops import convert_to_numpy

        from kood.backends import compiled
        from kood.outputs import at_once

    shape = (*found.size, channels)
    # Its speed is that of its weights' absence.
    options = found.options | ({"weights": "none"} if "weights" in found.options else {})
    with in_words(_SAID):
        network = obtain("backbones", found.backbone)(shape, **options)
    forward = compiled(network)
    rows, taken = at_once(shape), []
    pixels = np.random.default_rng(0).uniform(-1, 1, (rows, *shape)).astype("float32")
    for _ in range(4):
        begun = time.perf_counter()
        convert_to_numpy(forward(pixels))
        taken.append(time.perf_counter() - begun)
    return replace(found, features=getattr(network, "told", "")), min(taken[1:]) / rows
