"""What there is to see of a model's layers while it runs."""

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from kood.attached.taken import Linear, pooled
from kood.attached.watching import LAST, Shape, fed, held_in, layers_of, probe, watched
from kood.errors import UserError
from kood.text import clean

__all__ = ["Seen", "array", "name_of"]


class Seen:
    """What was seen of a model's layers while it ran.

    Attributes:
        pixels: The random images that it ran on.
        named: The layer whose output is kept, or None.
        last: The layers called last, the innermost alone.
        dense: The dense layer called last, or None.
        below: Its input; `above` its output.
        output: The output of `named`, None where it was not called.
        output_first: Whether that is a map with its channels first.
    """

    def __init__(self, model: keras.Model, named: keras.Layer | None):
        self.model, self.named = model, named
        self.last: deque[keras.Layer] = deque(maxlen=LAST)
        self.dense: keras.Layer | None = None
        self.below = self.output = None
        self.output_first = False
        self.above: Any = None
        self._looked_at: Callable[[keras.Layer, Any], None] | None = None
        #: The shape of the map that the last layer with a data format gave, where its channels come first.
        self._first: tuple[int, ...] | None = None

    def run(self, shape: Shape) -> Any:
        """The model's answer on random images."""
        with self._watched():
            self.pixels, answer = probe(self.model, shape)
        return answer

    def pass_again(self, pixels: np.ndarray, looked_at: Callable[[keras.Layer, Any], None] | None = None) -> Any:
        """The model's answer on images that have passed it already.

        Args:
            looked_at: Called with each layer that holds no others, and its output.
        """
        self._looked_at = looked_at
        with self._watched():
            return self.model(fed(self.model, ops.convert_to_tensor(pixels)), training=False)

    def _watched(self) -> contextlib.AbstractContextManager:
        layers = [layer for _, layer in layers_of(self.model)]
        self._outer = {id(layer) for layer in layers if next(held_in(vars(layer)), None) is not None}
        return watched(layers, self._saw)

    def _saw(self, layer: keras.Layer, given: Any, gave: Any) -> None:
        if id(layer) not in self._outer:
            self.last.append(layer)
            if getattr(layer, "data_format", None) is not None and len(getattr(gave, "shape", ())) > 2:
                self._first = tuple(gave.shape) if layer.data_format == "channels_first" else None
            if self._looked_at is not None:
                self._looked_at(layer, gave)
        if layer is self.named:
            self.output, self.output_first = gave, self.is_first(gave)
        if _is_dense(layer, given, gave):
            self.dense, self.below, self.above = layer, given, gave

    def is_first(self, rows: Any) -> bool:
        """Whether what was given last is a map with its channels first, whose mean over positions would be none."""
        # Layers without a data format keep the shape, or have moved the channels.
        return self._first is not None and tuple(getattr(rows, "shape", ())) == self._first

    def refuse(self, why: str, fix: str) -> UserError:
        """The message for a model that cannot be taken apart."""
        return UserError(f"model: {clean(self.model.name)} cannot be taken apart: {why}; its last layers are "
                         f"{self.names(LAST)}; {fix}")  # fmt: skip

    def names(self, count: int) -> str:
        """So many of the layers called last, and their kinds."""
        last = [f"{clean(layer.name)} ({type(layer).__name__})" for layer in self.last]
        return ", ".join(last[-count:]) or "none"

    def tell(self) -> tuple[np.ndarray, np.ndarray]:
        """The features under the last dense layer and the logits above it, as arrays."""
        features = pooled(self.below)
        return array(features), array(Linear(self.dense)(features))

    def rows(self, answer: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """What the model says of each image, arrays (B, D): its answer; the named features, and what `tell` tells."""

        def each(found: Any) -> list[np.ndarray]:
            tensors = [one for one in keras.tree.flatten(found) if hasattr(one, "shape") and len(one.shape)]
            return [array(one).reshape(len(one), -1) for one in tensors]

        return each(answer), [*each(self.output), *(() if self.dense is None else self.tell())]


def name_of(layer: keras.Layer | None) -> str:
    """A layer's name in quotes, for a message."""
    return repr(clean(getattr(layer, "name", "")))


def array(rows: Any) -> np.ndarray:
    """float64 of a tensor."""
    return np.asarray(ops.convert_to_numpy(ops.cast(rows, "float32")), "float64")


def _is_dense(layer: keras.Layer, given: Any, gave: Any) -> bool:
    """Whether a layer has multiplied the last axis of its input by a kernel (D, K), or by one (1, ..., D, K)."""
    shape = tuple(getattr(getattr(layer, "kernel", None), "shape", ()))
    if len(shape) < 2 or any(n != 1 for n in shape[:-2]) or not hasattr(given, "shape") or not hasattr(gave, "shape"):
        return False
    return (given.shape[-1], gave.shape[-1]) == shape[-2:]
