"""What a model's pixels are: how they are made of 0..255, and whether a batch lies where the model expects it."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import keras
import numpy as np
from keras import ops

from kood.attached.watching import Shape, image_shape_of, layers_of, watched
from kood.classifier import Classifier
from kood.errors import UserError
from kood.text import clean

__all__ = [
    "PREPROCESSING", "Preprocess", "Wanted", "check_range", "check_shape", "function_named", "preprocess_of",
    "preprocessing_for", "wanted",
]  # fmt: skip

#: How pixels are made of 0..255: as they are; x / 255; 2 x / 255 - 1; BGR less ImageNet's mean; x / 255 less its mean
#: over its deviation. The last three are `keras.applications.imagenet_utils.preprocess_input`'s tf, caffe and torch.
PREPROCESSING = ("none", "0..1", "-1..1", "caffe", "torch")

_MEAN, _DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
_BGR_MEAN = np.array([103.939, 116.779, 123.68])

#: (lowest, highest) of pixels that people give to models, and what first layers make of them.
_GIVEN = ((0.0, 255.0), (0.0, 1.0), (-1.0, 1.0))
_MADE = ((0.0, 1.0), (-1.0, 1.0), (-2.1, 2.6), (0.0, 255.0), (-115.0, 140.0))
#: How far the ends may lie from those, in widths of the range: an adapted normalization has its own.
_NEAR = 0.5
#: The first batch normalization's variance against that of its input: outside of these, pixels are of another scale
#: where some other reading of them is nearer by so many times, and not above the upper end of what is right.
_RIGHT, _NEARER, _HIGHEST = (1 / 30, 30.0), 8.0, 10.0
#: Least deviation of pixels that say something, in parts of 0..1: a batch that is nearly flat does not.
_FLAT = 0.05
#: Images of a batch that are measured.
_MEASURED = 64


@dataclass(frozen=True)
class Wanted:
    """The pixels that a model's first layers are made for.

    Attributes:
        low: The lowest.
        high: The highest.
        why: What says so, as the subject of a sentence.
    """

    low: float
    high: float
    why: str

    @property
    def range(self) -> str:
        """In words, "0..255"."""
        return f"{self.low:g}..{self.high:g}"


@keras.saving.register_keras_serializable(package="kood")
class Preprocess(keras.layers.Layer):
    """Pixels of 0..255 made into what a model takes.

    Args:
        mode: One of `PREPROCESSING`; a layer; a function of tensors; or "module:function", which is not imported here,
            as a file may name what it likes: `preprocess_of` does that for whoever says it.

    Attributes:
        mode: As given.

    Raises:
        UserError: another word.
    """

    def __init__(self, mode: Any = "none", **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs})
        if isinstance(mode, str) and mode not in PREPROCESSING and ":" not in mode:
            raise UserError(f"preprocess = {mode!r}: give one of {', '.join(PREPROCESSING)}, or module:function")
        self.mode = mode

    @property
    def said(self) -> str:
        """One of `PREPROCESSING`, "module:function", or the name of the layer."""
        if isinstance(self.mode, str):
            return self.mode
        if isinstance(self.mode, keras.Layer):
            return self.mode.name
        return f"{self.mode.__module__}:{getattr(self.mode, '__qualname__', type(self.mode).__qualname__)}"

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
        model: The classifier.

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
    if isinstance(given, str) and ":" in given:
        given = function_named(given)
    if not isinstance(given, str) and not callable(given):
        raise UserError(f"preprocess: give one of {', '.join(PREPROCESSING)}, a function or a Keras layer, not "
                        f"{type(given).__name__}")  # fmt: skip
    made = Preprocess(given)
    if callable(given):
        _try(made, image_shape_of(model))
    return made


def _try(preprocess: Preprocess, shape: Shape) -> None:
    """Refuses, by `UserError`, a function that fails in a graph, where it is served."""
    pixels = keras.KerasTensor((None, *shape), "float32")
    try:
        rank = len(preprocess.compute_output_spec(pixels).shape)
        told = "" if rank == 4 else f"it gives {rank} axes, not (batch, height, width, channels)"
    except Exception as error:  # Whatever somebody's function raises.
        told = f"{type(error).__name__}: {clean(error).rpartition('Error encountered: ')[2][:200]}"
    if told:
        raise UserError(f"preprocess = {preprocess.said!r}: fails on pixels of {pixels.shape} ({told}); write it with "
                        "keras.ops, which every backend and the served graph can compute")  # fmt: skip


def wanted(model: keras.Model) -> Wanted | None:
    """The range of pixels that a model's first layers are made for, None where they do not say.

    Three images of one colour pass up to the first layer that learns. What reaches it is an affine function of the
    pixels where they are rescaled or normalized, by whatever layer or operation, and the range is the one that this
    function brings to 0..1, -1..1, ImageNet's normalization or 0..255.
    """
    if isinstance(model, Classifier):
        return Wanted(-1.0, 1.0, "kood's own classifier")
    levels = np.array([0.0, 1.0, 255.0])
    pixels = np.ones((3, *(n or 64 for n in image_shape_of(model))), "float32") * levels[:, None, None, None]
    reached = _reaching(model, pixels.astype("float32"), _learns)
    if reached is None or getattr(reached[1], "shape", (0,))[0] != 3 or len(reached[1].shape) not in (2, 4):
        return None
    rows = ops.convert_to_numpy(ops.cast(reached[1], "float32")).astype("float64")
    if rows.shape[-1] != pixels.shape[-1]:
        return None
    # Away from any padding; of pooled pixels there are no others.
    middle = rows if rows.ndim == 2 else rows[:, rows.shape[1] // 2, rows.shape[2] // 2]
    scale, offset = middle[1] - middle[0], middle[0]
    if not np.allclose(middle[2], 255 * scale + offset, rtol=1e-2, atol=1e-2):
        return None
    scale, offset = float(np.mean(scale)), float(np.mean(offset))
    if np.isclose(scale, 1.0) and np.isclose(offset, 0.0):
        return None
    ends = [(scale * low + offset, scale * high + offset, low, high) for low, high in _GIVEN]
    far, low, high = min(
        ((abs(first - bottom) + abs(last - top)) / (top - bottom), low, high)
        for first, last, low, high in ends
        for bottom, top in _MADE
    )
    why = f"what its first layers make of them ({scale:.3g} x {offset:+.3g})"
    return Wanted(low, high, why) if far <= _NEAR else None


def check_range(model: keras.Model, pixels: np.ndarray) -> str:
    """What is wrong with the range of some pixels for a model, "" where nothing is.

    First against what its first layers are made for (`wanted`). Where these say nothing, against its first batch
    normalization, which remembers the variance of its input: where the batch's lies outside of 1/30 to 30 times that,
    in the median over channels, and the same pixels brought from 0..1 or -1..1 to 0..255, or back, are far nearer,
    then they were brought to the wrong range. A batch that is dark or nearly flat is not refused for that.

    Args:
        model: A model of images.
        pixels: (B, H, W, C) as the model would be given them; uint8 counts as 0..255 whatever is in it.

    Returns:
        One sentence.
    """
    whole = pixels.dtype == np.uint8
    if not whole and not np.isfinite(pixels).all():
        return "the pixels hold NaN or infinite numbers; mend or remove these images"
    found = _range_of(pixels)
    if found == "":
        return ""
    expected = wanted(model)
    if expected is None:
        return _measured(model, pixels, found)
    if _fits(expected, pixels, found):
        return ""
    fix = f"give pixels of {expected.range}" + (
        ", or how they are made of 0..255 with preprocess=..." if expected.high < 255
        else ", as they are in files, and leave preprocess out"
    )  # fmt: skip
    return (f"the model is made for pixels of {expected.range}, by {expected.why}, and these lie in "
            f"{_extent(pixels)}{_WORDS[found]}; {fix}")  # fmt: skip


def check_shape(model_shape: Shape, shape: tuple[int, ...]) -> None:
    """Raises `UserError` where images of a shape are none that a model takes.

    Args:
        model_shape: (H, W, C), None where the model takes any.
        shape: That of a batch.
    """
    wants = f"({', '.join('any' if n is None else str(n) for n in model_shape)})"
    if len(shape) != 4:
        hint = {3: "add the axis of one image by images[None], or that of one channel by images[..., None]",
                2: "one grey image becomes a batch by image[None, ..., None]"}.get(len(shape), "give (batch, height, "
                "width, channels)")  # fmt: skip
        raise UserError(f"images: the model takes batches of {wants}, and these have the shape {shape}; {hint}")
    height, width, channels = model_shape
    if shape[3] != channels:
        hint = f"convert them to {'grey' if channels == 1 else 'RGB' if channels == 3 else f'{channels} channels'}"
        if shape[1] == channels:
            hint = "they seem to have the channels first; move these to the end by numpy.moveaxis(images, 1, -1)"
        raise UserError(f"images: the model takes {wants} (height, width, channels), and these are {shape[1:]}; {hint}")
    if height not in (None, shape[1]) or width not in (None, shape[2]):
        raise UserError(f"images: the model takes {wants} (height, width, channels), and these are {shape[1:]}; resize "
                        f"them, as by keras.ops.image.resize(images, ({height or shape[1]}, {width or shape[2]}), "
                        "antialias=True)")  # fmt: skip


class _Reached(BaseException):
    """Ends a forward pass; no `Exception`, which Keras would wrap in another."""


def _reaching(
    model: keras.Model, pixels: np.ndarray, is_it: Callable[[keras.Layer], bool]
) -> tuple[keras.Layer, Any] | None:
    """The first layer called that is such a one, and its input; None where none is, or the model fails before."""
    found: list[tuple[keras.Layer, Any]] = []

    def seen(layer, given, gave):
        if is_it(layer):  # An inner layer ends before the one around it.
            found.append((layer, given))
            raise _Reached

    try:
        with watched([layer for _, layer in layers_of(model)], seen):
            model(ops.convert_to_tensor(pixels), training=False)
    except _Reached:
        return found[0]
    except Exception:  # It does not take such images, which is for others to say.
        return None
    return None


def _learns(layer: keras.Layer) -> bool:
    return bool(layer.weights) and not isinstance(layer, keras.layers.Normalization) and any(
        len(weight.shape) for weight in layer.weights
    )  # fmt: skip


def _range_of(pixels: np.ndarray) -> str:
    """Which range pixels lie in, a key of `_WORDS`; "" where they do not say."""
    if pixels.dtype == np.uint8:
        return "0..255"
    low, high = float(pixels.min()), float(pixels.max())
    if low < -20:
        return "caffe"
    if high > 20:
        return "0..255"
    if np.array_equal(pixels, np.rint(pixels)) and low >= 0:
        return ""  # All but black, in whole numbers.
    if high > 3:
        return "0..255"
    return "0..1" if low >= 0 else "-1..1" if low >= -1.05 and high <= 1.05 else "torch"


#: What brings pixels back to 0..255, about.
_BACK: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "0..1": lambda x: 255 * x,
    "-1..1": lambda x: 127.5 * (x + 1),
    "torch": lambda x: 255 * (0.225 * x + 0.45),
}
_WORDS = {
    "0..255": ", as they are in files",
    "0..1": ", as if they had been divided by 255 already",
    "-1..1": ", as if they had been brought to -1..1 already",
    "torch": ", as if they had been normalized already",
    "caffe": ", as if ImageNet's mean had been taken off already",
}


def _fits(expected: Wanted, pixels: np.ndarray, found: str) -> bool:
    low, high = float(pixels.min()), float(pixels.max())
    if expected.high == 255:
        return found == "0..255"
    # Resizing may overshoot a little.
    return found in ("0..1", "-1..1", "torch") and low >= expected.low - 0.5 and high <= expected.high + 0.5


def _extent(pixels: np.ndarray) -> str:
    return f"{float(pixels.min()):.3g}..{float(pixels.max()):.3g}"


def _measured(model: keras.Model, pixels: np.ndarray, found: str) -> str:
    """`check_range` by the first batch normalization."""
    pixels = pixels[:_MEASURED].astype("float32")
    unit = 255.0 if found in ("0..255", "caffe") else 1.0
    if pixels.std() < _FLAT * unit:
        return ""
    own = _spread(model, pixels)
    if own is None or _RIGHT[0] <= own <= _RIGHT[1]:
        return ""
    pixels = pixels + np.float32(115 if found == "caffe" else 0)  # About; where they lie does not change the variance.
    others = {"0..255": _BACK[found](pixels)} if found in _BACK else {
        mode: ops.convert_to_numpy(Preprocess(mode)(pixels))
        for mode in ("0..1", "-1..1", "torch") if mode != "torch" or pixels.shape[-1] == 3
    }  # fmt: skip
    spreads = {name: _spread(model, other) or np.inf for name, other in others.items()}
    nearest = min(spreads, key=lambda name: abs(np.log(spreads[name])))
    other = spreads[nearest]
    if (own < 1 and other > _HIGHEST) or max(other, 1 / other) * _NEARER > max(own, 1 / own):
        return ""
    fix = f"give pixels of {nearest}" if found in _BACK else f'give preprocess="{nearest}"'
    kind = "normalized pixels" if nearest == "torch" else f"pixels of {nearest}"
    return (f"the input of the model's first batch normalization varies {own:.2g} times as much as in the model's "
            f"training, and with {kind} {other:.2g} times; these lie in {_extent(pixels)}{_WORDS[found]}; {fix}, or "
            "say how they are prepared with preprocess=...")  # fmt: skip


def _spread(model: keras.Model, pixels: np.ndarray) -> float | None:
    """Median over channels of the variance of the first batch normalization's input over what it remembers.

    None where there is no such layer, or one that has learnt nothing.
    """
    reached = _reaching(model, pixels, lambda layer: isinstance(layer, keras.layers.BatchNormalization))
    if reached is None:
        return None
    layer, given = reached
    mean, variance = (ops.convert_to_numpy(value) for value in (layer.moving_mean, layer.moving_variance))
    rows = np.moveaxis(ops.convert_to_numpy(ops.cast(given, "float32")), layer.axis, -1).astype("float64")
    if not mean.any() and (variance == 1).all():
        return None
    ratio = rows.var(axis=tuple(range(rows.ndim - 1))) / np.maximum(variance, 1e-12)
    return float(max(np.median(ratio), 1e-12)) if np.isfinite(ratio).all() else None


def function_named(name: str) -> Callable:
    """The function that "module:function" names, imported.

    Raises:
        UserError: there is none.
    """
    module, _, inner = name.partition(":")
    try:
        found = reduce(getattr, inner.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"preprocess = {name!r}: there is no such function ({clean(error)}); give module:function, the "
                        "module being one that Python finds") from error  # fmt: skip
    if not callable(found):
        raise UserError(f"preprocess = {name!r}: this is {type(found).__name__}, not a function")
    return found
