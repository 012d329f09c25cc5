"""Whether a batch of pixels lies where a model expects it, and has the shape that it takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from kood.attached.preprocessing import Preprocess
from kood.attached.watching import Shape, fed, image_shape_of, layers_of, watched
from kood.classifier import Classifier
from kood.errors import UserError

__all__ = [
    "Wanted", "check_range", "check_shape", "in_files", "not_of", "other_range", "outside", "usual_range", "wanted",
]  # fmt: skip

#: (lowest, highest) of pixels that people give to models, and what first layers make of them.
_GIVEN = ((0.0, 255.0), (0.0, 1.0), (-1.0, 1.0))
_MADE = ((0.0, 1.0), (-1.0, 1.0), (-2.1, 2.6), (0.0, 255.0), (-115.0, 140.0))
#: How far the ends may lie from those, in widths of the range: an adapted normalization has its own.
_NEAR = 0.5
#: How much nearer the range has to lie than the next one: MNIST's normalization of 0..1 would do as well for -1..1.
_CLEARLY = 0.1
#: How far pixels may lie outside of their range, in widths of it: resizing overshoots, and edges are where it does.
_OVER = 0.25
#: The ranges that known images are held to be of, the first that holds theirs: in files, divided by 255, normalized by
#: ImageNet, less ImageNet's mean. How far known images overshoot, in widths of their own span, and of how many times
#: their size other images may be where theirs is none of these.
_USUAL = {
    "0..1": (0.0, 1.0), "-1..1": (-1.0, 1.0), "torch": (-2.12, 2.64), "0..255": (0.0, 255.0),
    "caffe": (-123.68, 151.061), "16 bits": (0.0, 65535.0),
}  # fmt: skip
_OWN, _TIMES = 0.1, 3.0
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
        why: What says so, as the subject of a sentence.
    """

    low: float
    high: float
    why: str

    @property
    def range(self) -> str:
        """In words, "0..255"."""
        return f"{self.low:g}..{self.high:g}"


def wanted(model: keras.Model) -> Wanted | None:
    """The range of pixels that a model's first layers are made for, None where they do not say.

    Three images of one colour pass up to the first layer that learns. What reaches it is an affine function of the
    pixels where they are rescaled or normalized, by whatever layer or operation, and the range is the one that this
    function brings to 0..1, -1..1, ImageNet's normalization or 0..255, clearly nearer than any other.
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
    (far, low, high), (next_far, *_) = sorted(
        (min((abs(first - bottom) + abs(last - top)) / (top - bottom) for bottom, top in _MADE), low, high)
        for first, last, low, high in ends
    )[:2]
    why = f"what its first layers make of them ({scale:.3g} x {offset:+.3g})"
    return Wanted(low, high, why) if far <= min(_NEAR, next_far - _CLEARLY) else None


def check_range(model: keras.Model, pixels: np.ndarray) -> str:
    """What is wrong with the range of some pixels for a model, "" where nothing is.

    First against what its first layers are made for (`wanted`). Where these say nothing, against its first batch
    normalization, which remembers the variance of its input: where the batch's lies outside of 1/30 to 30 times that,
    in the median over channels, and the same pixels brought from 0..1 or -1..1 to 0..255, or back, are far nearer,
    then they were brought to the wrong range. A batch that is dark or nearly flat is not refused for that.

    Args:
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
    return not_of(
        expected, pixels, ", or how they are made of 0..255 with preprocess="
        + (repr(expected.range) if found == "0..255" else "...") if expected.high < 255
        else ", as they are in files, and leave preprocess out"
    )  # fmt: skip


def not_of(expected: Wanted, pixels: np.ndarray, fix: str) -> str:
    """What speaks against known images' pixels being of the range that a model is made for, "" where nothing does.

    Args:
        pixels: (B, H, W, C), as they are given.
        fix: What else mends it than pixels of this range.

    Returns:
        One sentence.
    """
    found = _range_of(pixels)
    if found == "" or _fits(expected, pixels, found):
        return ""
    return (f"the model is made for pixels of {expected.range}, by {expected.why}, and these lie in "
            f"{_extent(pixels)}{_WORDS[found]}; give pixels of {expected.range}{fix}")  # fmt: skip


def outside(expected: Wanted, span: tuple[float, float]) -> str:
    """What speaks against pixels that leave the range of those a model is made for, "" where they stay in it.

    Args:
        expected: That range; a quarter of its width beyond is let pass, as resizing overshoots.
        span: The smallest and the largest number of some pixels.

    Returns:
        One sentence.
    """
    if _within(span, (expected.low, expected.high)):
        return ""
    return (
        f"the model is made for pixels of {expected.range}, by {expected.why}, and these lie in {span[0]:.3g} to "
        f"{span[1]:.3g}; give pixels of {expected.range}"
    )


def other_range(span: tuple[float, float], known: tuple[float, float], whole: bool = False) -> str:
    """What speaks against pixels being in the range of known images, "" where nothing does.

    Known images are held to be of the first usual range that holds theirs (0..1, -1..1, normalized by ImageNet, 0..255,
    less ImageNet's mean, 16 bits), so that dark ones refuse no bright one, and other pixels may leave that by a quarter
    of its width. Of no usual range, they may be three times as large.

    Args:
        span: The smallest and the largest number of some pixels.
        known: Those of the known images.
        whole: Whether the pixels are whole numbers: such small ones are of dark images, others of 0..1 or normalized.

    Returns:
        One sentence.
    """
    usual = _USUAL.get(usual_range(known))
    size, its = (max(map(abs, ends)) for ends in (span, known))
    is_small = 0 < size <= 1.5 or (span[0] < -1 and size <= 3 and known[0] >= 0)
    if (whole or its <= 30 or not is_small) and (size <= _TIMES * its if usual is None else _within(span, usual)):
        return ""
    return (
        f"these pixels lie in {span[0]:g} to {span[1]:g}, and those of the known images in {known[0]:g} to "
        f"{known[1]:g}; give pixels of the same range"
    )


def usual_range(known: tuple[float, float]) -> str:
    """Which of the usual ranges known images are held to be of, by their span: "0..1", "-1..1", "torch", "0..255",
    "caffe" or "16 bits"; "" where it is none of them."""
    return next((name for name, ends in _USUAL.items() if _holds(ends, known)), "")


def _within(span: tuple[float, float], ends: tuple[float, float]) -> bool:
    over = _OVER * (ends[1] - ends[0])
    return span[0] >= ends[0] - over and span[1] <= ends[1] + over


def _holds(ends: tuple[float, float], known: tuple[float, float]) -> bool:
    """Whether known images are of a range; whatever is taken off of it, some of 0..255 less a mean is below -20."""
    over = _OWN * (known[1] - known[0])
    return known[0] >= ends[0] - over and known[1] <= ends[1] + over and (ends[0] > -20 or known[0] < -20)


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
            model(fed(model, ops.convert_to_tensor(pixels)), training=False)
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
    if not _within((low, high), (-123.68, 255.0)):
        return "16 bits" if low >= 0 and 1000 < high <= 65535 else "beyond"
    if low < -20 and (high < 200 or low < -255 * _OVER):  # Else an edge of bright pixels overshoots.
        return "caffe"
    is_whole = low >= 0 and np.array_equal(pixels, np.rint(pixels))
    if high > 20 or (high > 3 and not is_whole):
        return "0..255"
    if is_whole:
        return ""  # All but black, in whole numbers.
    return "0..1" if low >= 0 else "-1..1" if low >= -1.05 and high <= 1.05 else "torch"


#: What brings pixels back to 0..255, about.
_BACK: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "0..1": lambda x: 255 * x,
    "-1..1": lambda x: 127.5 * (x + 1),
    "torch": lambda x: 255 * (0.225 * x + 0.45),
    "16 bits": lambda x: x / 257,
    "beyond": lambda x: 255 * ((x - x.min()) / (x.max() - x.min())),
}
_WORDS = {
    "0..255": ", as they are in files",
    "0..1": ", as if they had been divided by 255 already",
    "-1..1": ", as if they had been brought to -1..1 already",
    "torch": ", as if they had been normalized already",
    "caffe": ", as if ImageNet's mean had been taken off already",
    "16 bits": ", as in files of 16 bits",
    "beyond": "",
}


def in_files(pixels: np.ndarray) -> np.ndarray | None:
    """Pixels as files have them, 0..255, of such pixels or of those that were brought to 0..1 or -1..1; else None."""
    found = _range_of(pixels)
    if found == "0..255":
        return pixels
    return _BACK[found](pixels) if found in ("0..1", "-1..1") else None


def _fits(expected: Wanted, pixels: np.ndarray, found: str) -> bool:
    if not _within((float(pixels.min()), float(pixels.max())), (expected.low, expected.high)):
        return False
    return (found == "0..255") == (expected.high == 255)


def _extent(pixels: np.ndarray) -> str:
    return f"{float(pixels.min()):.3g}..{float(pixels.max()):.3g}"


def _measured(model: keras.Model, pixels: np.ndarray, found: str) -> str:
    """`check_range` by the first batch normalization."""
    pixels = pixels[:_MEASURED].astype("float32")
    unit = 1.0 if found in ("0..1", "-1..1", "torch") else 255.0
    if pixels.std() < _FLAT * unit:
        return ""
    own = _spread(model, pixels)
    if own is None or _RIGHT[0] <= own <= _RIGHT[1]:
        return ""
    pixels = pixels + np.float32(115 if found == "caffe" else 0)  # About; where they lie does not change the variance.
    files = _BACK[found](pixels) if found in _BACK else pixels
    modes = ("0..1", "-1..1", "torch") if unit == 255.0 else ()
    others = {mode: ops.convert_to_numpy(Preprocess(mode)(files)) for mode in modes
              if mode != "torch" or pixels.shape[-1] == 3}  # fmt: skip
    if found in _BACK:
        others["0..255"] = files
    spreads = {name: _spread(model, other) or np.inf for name, other in others.items()}
    nearest = min(spreads, key=lambda name: abs(np.log(spreads[name])))
    other = spreads[nearest]
    if (own < 1 and other > _HIGHEST) or max(other, 1 / other) * _NEARER > max(own, 1 / own):
        return ""
    kind = "normalized pixels" if nearest == "torch" else f"pixels of {nearest}"
    fix = f"give {kind}" if found in _BACK else f'give preprocess="{nearest}"'
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
