"""What makes the pixels that a model takes of those of files, 0..255."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from kood import registry
from kood.attached.watching import Shape, image_shape_of
from kood.classifier import Classifier
from kood.errors import UserError
from kood.text import clean

__all__ = ["PREPROCESSING", "Preprocess", "function_named", "preprocess_of", "preprocessing_for"]

#: How pixels are made of 0..255: as they are; x / 255; 2 x / 255 - 1; BGR less ImageNet's mean; x / 255 less its mean
#: over its deviation. The last three are `keras.applications.imagenet_utils.preprocess_input`'s tf, caffe and torch.
PREPROCESSING = ("none", "0..1", "-1..1", "caffe", "torch")

_MEAN, _DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
_BGR_MEAN = np.array([103.939, 116.779, 123.68])


@keras.saving.register_keras_serializable(package="kood")
class Preprocess(keras.layers.Layer):
    """Pixels of 0..255 made into what a model takes.

    Args:
        mode: One of `PREPROCESSING`; a layer; a function of tensors; or "module:function", which is not imported here,
            as a file may name what it likes: `preprocess_of` does that for whoever says it.
        named: "module:function", by which a function was named.

    Raises:
        UserError: another word.
    """

    def __init__(self, mode: Any = "none", named: str | None = None, **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs})
        if isinstance(mode, str) and mode not in PREPROCESSING and ":" not in mode:
            raise UserError(f"preprocess = {mode!r}: give one of {', '.join(PREPROCESSING)}, or module:function")
        self.mode, self._named = mode, named

    @property
    def said(self) -> str:
        """One of `PREPROCESSING`, "module:function", or the name of the layer; "<...>" of what has no name."""
        if isinstance(self.mode, str):
            return self.mode
        if isinstance(self.mode, keras.Layer):
            return self.mode.name
        if self._named is not None:
            return self._named
        module, name = self.mode.__module__, getattr(self.mode, "__qualname__", type(self.mode).__qualname__)
        # A partial function, a method of an object or a callable one has the name of what it was made of.
        named = functools.reduce(lambda at, part: getattr(at, part, None), name.split("."), sys.modules.get(module))
        return f"{module}:{name}" if named == self.mode else f"<{module}:{name}>"

    def call(self, pixels):
        """float32 (B, H, W, C) of what the model takes, of (B, H, W, C) in 0..255."""
        self.need()
        pixels = ops.cast(pixels, "float32")
        if not isinstance(self.mode, str):
            return ops.cast(self.mode(pixels), "float32")
        match self.mode:
            case "0..1":
                return pixels * np.float32(1 / 255)
            case "-1..1":  # As `kood.data.images.normalize`, to the bit.
                return (2.0 * pixels - 255.0) * np.float32(1 / 255)
            case "caffe":
                return ops.flip(pixels, axis=-1) - ops.convert_to_tensor(_BGR_MEAN, "float32")
            case "torch":
                less = pixels - ops.convert_to_tensor(255 * _MEAN, "float32")
                return less * ops.convert_to_tensor(1 / (255 * _DEVIATION), "float32")
        return pixels

    def need(self) -> None:
        """Raises `UserError` where it is a function that a file named, and nobody has given it again."""
        if ":" in self.said and isinstance(self.mode, str):
            raise UserError(f"preprocess: pixels are prepared by {self.mode}, which is not loaded from a file by "
                            f"itself; if you trust it, give preprocess={self.mode!r}")  # fmt: skip

    def get_config(self):
        """The mode, the layer's own config, or the name of the function.

        Raises:
            UserError: a function that has no name of its own.
        """
        if isinstance(self.mode, keras.Layer):
            return {**super().get_config(), "mode": keras.saving.serialize_keras_object(self.mode)}
        if "<" in self.said:
            raise UserError(f"preprocess: {self.said} cannot be kept in a file; give a function that has a name in a "
                            "module, or a Keras layer")  # fmt: skip
        return {**super().get_config(), "mode": self.said}

    @classmethod
    def from_config(cls, config):
        """The layer that `get_config` describes; a function stays a name."""
        if isinstance(config.get("mode"), dict):
            config = {**config, "mode": keras.saving.deserialize_keras_object(config["mode"])}
        return cls(**config)


def preprocessing_for(channels: int) -> list[str]:
    """Those of `PREPROCESSING` that images of so many channels can have: two are of colours."""
    return [mode for mode in PREPROCESSING if channels == 3 or mode not in ("caffe", "torch")]


def preprocess_of(given: Any, model: keras.Model) -> Preprocess:
    """How a model's pixels are prepared.

    Args:
        given: One of `PREPROCESSING`, "module:function", a function or a layer; None for none, or for -1..1 where the
            model is kood's own.

    Raises:
        UserError: a word that is none of these or not for images of so many channels; a function that cannot be
            imported, or fails.
    """
    if isinstance(given, Preprocess):
        return given
    channels = image_shape_of(model)[2]
    if isinstance(given, str) and given in PREPROCESSING and given not in preprocessing_for(channels):
        raise UserError(f"preprocess = {given!r}: it is for images of 3 channels, not {channels}")
    if given is None:
        return Preprocess("-1..1" if isinstance(model, Classifier) else "none")
    named = given if isinstance(given, str) and ":" in given else None
    if named is not None:
        given = function_named(named)
    if not isinstance(given, str) and not callable(given):
        raise UserError(f"preprocess: give one of {', '.join(PREPROCESSING)}, a function or a Keras layer, not "
                        f"{type(given).__name__}")  # fmt: skip
    made = Preprocess(given, named)
    if callable(given):
        _try(made, image_shape_of(model))
    return made


def _try(preprocess: Preprocess, shape: Shape) -> None:
    """Refuses, by `UserError`, a function that fails in a graph, where it is served."""
    pixels = keras.KerasTensor((None, *shape), "float32")
    try:
        # A layer that was built while a graph is tried would keep what it is made of there.
        preprocess.mode(ops.zeros((1, *(side or 224 for side in shape))))
        rank = len(preprocess.compute_output_spec(pixels).shape)
        told = "" if rank == 4 else f"it gives {rank} axes, not (batch, height, width, channels)"
    except Exception as error:  # Whatever somebody's function raises.
        told = f"{type(error).__name__}: {clean(error).rpartition('Error encountered: ')[2][:200]}"
    if told:
        raise UserError(f"preprocess = {preprocess.said!r}: fails on pixels of {pixels.shape} ({told}); write it with "
                        "keras.ops, which every backend and the served graph can compute")  # fmt: skip


def function_named(name: str) -> Callable:
    """The function that "module:function" names, imported.

    Raises:
        UserError: there is none.
    """
    try:
        found = registry.loaded(name, name)
    except UserError as error:
        raise UserError(f"preprocess = {name!r}: there is no such function ({error}); give module:function") from error
    if not callable(found):
        raise UserError(f"preprocess = {name!r}: this is {type(found).__name__}, not a function")
    return found
