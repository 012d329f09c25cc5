"""Whether a model answers each image by itself, and always alike."""

from typing import Any

import keras
import numpy as np
from keras import ops

from kood.attached.seen import Seen, array, name_of
from kood.attached.watching import image_shape_of, layers_of
from kood.backends import accelerated
from kood.text import clean

__all__ = ["unsteady", "unsteady_of"]

#: The random images that pass a second time: none in its old place, and more of one kind than of the other.
_AGAIN = [2, 0, 1]
#: How far what a model says of an image may lie from what it says the next time, in parts of the row's largest number:
#: in float32, on an accelerator, and where a layer computes in half precision. A batch's statistics and dropout change
#: most of it.
_STEADY, _STEADY_TENSOR, _STEADY_HALF = 1e-3, 3e-2, 0.1
#: Numbers of each image that are kept of each layer's output, at most, to find the first that differs.
_SAMPLED = 4096

#: What `Seen.rows` gives.
Rows = tuple[list[np.ndarray], list[np.ndarray]]


def unsteady(model: keras.Model) -> str:
    """What speaks against a model answering each image by itself and always alike, a sentence; "" where nothing does.

    A batch normalization that is called with `training=True` normalizes by the batch, and so an image's answer depends
    on its company; a dropout that is always on draws anew for each pass. Four random images pass, then three of them in
    another order, and, where these have other answers, the four again. Answers, and what goes into the last dense layer
    and comes from it, have to agree as exactly as the model computes.

    Args:
        model: A model of images, a classifier or not.

    Raises:
        UserError: it takes no images, or fails on them.
    """
    seen = Seen(model, None)
    return unsteady_of(seen, seen.run(image_shape_of(model)))


def unsteady_of(seen: Seen, answer: Any) -> str:
    """`unsteady`, of a model that has been run."""
    first, pixels, again = seen.rows(answer), seen.pixels, Seen(seen.model, seen.named)
    try:
        second = again.rows(again.pass_again(pixels[_AGAIN]))
    except Exception as error:  # Whatever a model of somebody's raises.
        return (f"it answers {len(pixels)} images and fails on {len(_AGAIN)} of them ({type(error).__name__}: "
                f"{clean(error)[:300]}); make it take batches of any size")  # fmt: skip
    most = _STEADY_TENSOR if accelerated() else _STEADY
    if any(layer.compute_dtype in ("float16", "bfloat16") for _, layer in layers_of(seen.model)):
        most = _STEADY_HALF
    if _agree(first, second, _AGAIN, most):
        return ""
    whole = list(range(len(pixels)))
    if not _agree(first, again.rows(again.pass_again(pixels)), whole, most):
        where = _differing(again, whole, pixels, most)
        return (f"answers differ from pass to pass{where}; what draws at random, such as a dropout, has to do so in "
                "training alone: call it without training=True, and save the model again")  # fmt: skip
    where = _differing(again, _AGAIN, pixels, most)
    return (f"answers depend on the other images of a batch{where}; a layer is called with training=True, or takes the "
            "batch's own mean: call it without, and save the model again")  # fmt: skip


def _agree(first: Rows, second: Rows, order: list[int], most: float) -> bool:
    """Whether a pass says of images in some order what the first said; a softmax of large logits shows their
    rounding."""
    size = max((float(np.abs(rows[np.isfinite(rows)]).max(initial=0.0)) for rows in first[1][-1:]), default=0.0)
    for ones, others, so_far in zip(first, second, (most * (1 + size), most), strict=True):
        if len(ones) != len(others):
            return False
        if not all(_same(one[order], other, so_far) for one, other in zip(ones, others, strict=True)):
            return False
    return True


def _same(one: np.ndarray, other: np.ndarray, most: float) -> bool:
    if one.shape != other.shape:
        return False
    rows = np.isfinite(one).all(axis=1) & np.isfinite(other).all(axis=1)
    largest = np.abs(one[rows]).max(axis=1, keepdims=True, initial=0.0)
    return bool((np.abs(one[rows] - other[rows]) <= most * largest).all())


def _differing(seen: Seen, order: list[int], pixels: np.ndarray, most: float) -> str:
    """The first layer called whose output is another where images pass in some order, in words; "" for none."""

    def outputs(rows: np.ndarray) -> list[tuple[keras.Layer, np.ndarray]]:
        found: list[tuple[keras.Layer, np.ndarray]] = []

        def keep(layer: keras.Layer, gave: Any) -> None:
            if ops.is_tensor(gave) and len(gave.shape) > 1 and gave.shape[0] == len(rows):
                flat = array(gave).reshape(len(rows), -1)
                found.append((layer, flat[:, :: -(-flat.shape[1] // _SAMPLED)]))

        seen.pass_again(rows, keep)
        return found

    for (layer, one), (other, its) in zip(outputs(pixels), outputs(pixels[order]), strict=False):
        if layer is other and not _same(one[order], its, most):
            return f", first in what its layer {name_of(layer)} ({type(layer).__name__}) gives"
    return ""
