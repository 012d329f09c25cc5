"""A classifier that was taken apart: its features, its logits, and the head between them; or one layer of a model."""

from dataclasses import dataclass, field
from typing import Any, Literal

import keras
from keras import ops

from kood.attached.watching import Shape, fed, layer_named, watched

__all__ = ["Answers", "Inside", "Linear", "Taken", "Unknown", "Way", "only", "pooled"]

Answers = Literal["softmax", "log_softmax", "logits", "sigmoid", "outputs"]


class Linear:
    """The last dense layer of a model, as a head whose logits are `features @ kernel + bias`.

    Args:
        layer: A layer with a kernel (..., D, K), all dimensions before these being 1, and a bias (K,) or none.
        binary: Whether its one logit z stands for two classes, whose logits are -z / 2 and z / 2: their softmax is the
            sigmoid, and neither class is further from nothing than the other, as for energies they must not be.
    """

    def __init__(self, layer: keras.Layer, binary: bool = False):
        self._layer, self._binary = layer, binary

    @property
    def kernel(self) -> Any:
        """float32 (D, K)."""
        kernel = ops.convert_to_tensor(self._layer.kernel)
        return self._of_classes(ops.cast(ops.reshape(kernel, kernel.shape[-2:]), "float32"))

    @property
    def bias(self) -> Any:
        """float32 (K,), zeros where the layer has none."""
        bias = getattr(self._layer, "bias", None)
        if bias is None:
            return self._of_classes(ops.zeros(tuple(self._layer.kernel.shape)[-1:], "float32"))
        return self._of_classes(ops.cast(ops.convert_to_tensor(bias), "float32"))

    def __call__(self, features: Any) -> Any:
        """Logits float32 (B, K) of features (B, D)."""
        return ops.matmul(ops.cast(features, "float32"), self.kernel) + self.bias

    def _of_classes(self, weight: Any) -> Any:
        return ops.concatenate([-weight / 2, weight / 2], axis=-1) if self._binary else weight


class Unknown:
    """A head that is not linear in the features, so that no score can rework its logits."""


@dataclass
class Way:
    """How a model's outputs come about; a plain object, so that Keras does not count its layers twice.

    Attributes:
        head: What has the attributes `kernel` (D, K) and `bias` (K,), or neither where the head is not linear.
        answers: What the model itself gives: "softmax", "log_softmax", "logits", "sigmoid" of one unit, or a dictionary
            of "outputs".
        dense: The layer whose input are the features, and which gives the logits; None where the answer tells these.
        named: The layer whose output are the features instead.
        binary: Whether one logit stands for two classes.
        cosines: Whether the model gives cosines.
        normalized: What its output "logits" is in place of logits, if it is: "softmax" or "log_softmax".
        told: What was found, a sentence each.
    """

    head: Any
    answers: Answers
    dense: keras.Layer | None = None
    named: keras.Layer | None = None
    binary: bool = False
    cosines: bool = False
    normalized: Literal["", "softmax", "log_softmax"] = ""
    told: list[str] = field(default_factory=list)


class Taken(keras.Model):
    """A classifier that answers features and logits; `take_apart` makes it.

    The weights are the model's own. It runs in inference mode, whatever is asked for.

    Args:
        model: The classifier.
        way: How its outputs come about.
        num_classes: K.
        image_shape: (H, W, C), None where the model takes any.
    """

    def __init__(self, model: keras.Model, way: Way, num_classes: int, image_shape: Shape):
        super().__init__(name=f"{model.name}_apart", dtype="float32")
        self.model = model
        self.num_classes = num_classes
        self.image_shape = image_shape
        self.way = way
        self.built = True

    def call(self, pixels, training=False):
        """Features and logits, and cosines where the model gives them, all float32.

        Args:
            pixels: (B, H, W, C) as the model takes them.

        Returns:
            {"features": (B, D), "logits": (B, K), "cosines": (B, K) where there are any}.
        """
        way, caught = self.way, {}

        def keep(layer, given, gave):
            caught[id(layer)] = given, gave

        with watched([layer for layer in (way.dense, way.named) if layer is not None], keep):
            answer = self.model(fed(self.model, ops.cast(pixels, "float32")), training=False)
        if way.answers == "outputs":
            names = [name for name in ("features", "logits", "cosines") if name in answer]
            found = {name: ops.cast(answer[name], "float32") for name in names}
            return {**found, "logits": _logits_of(found["logits"], way.normalized)} if way.normalized else found
        if way.dense is None:
            logits = _logits_of(ops.cast(only(answer), "float32"), way.answers)
        else:
            below = pooled(caught[id(way.dense)][0])
            logits = Linear(way.dense, way.binary)(below)
        features = below if way.named is None else pooled(caught[id(way.named)][1])
        return {"features": features, "logits": logits}


@keras.saving.register_keras_serializable(package="kood")
class Inside(keras.Layer):
    """What a layer within a model is given, or gives, for a model that is no graph of layers to be cut there.

    Args:
        model: Any Keras model of images.
        layer: The layer's name or path, as `kood.attached.watching.layer_named` takes it; None for the model's answer,
            of several that of the name "features".
        given: Whether its input is meant, and not its output.
    """

    def __init__(self, model: keras.Model, layer: str | None = None, given: bool = False, **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.model, self.layer, self.given = model, layer, given
        self.built = True

    def call(self, pixels, training=False):
        """The rows or the map of (B, H, W, C) as the model takes them."""
        seen: list[Any] = []

        def keep(layer, given, gave):
            seen.append(given if self.given else gave)

        watching = [] if self.layer is None else [layer_named(self.model, self.layer)]
        with watched(watching, keep):
            answer = self.model(fed(self.model, pixels), training=training)
        if watching:
            return seen[-1]
        return answer["features"] if isinstance(answer, dict) and "features" in answer else only(answer)

    def get_config(self):
        """The arguments, so that `from_config` makes the same layer."""
        model = keras.saving.serialize_keras_object(self.model)
        return {**super().get_config(), "model": model, "layer": self.layer, "given": self.given}

    @classmethod
    def from_config(cls, config):
        """The layer that `get_config` describes."""
        return cls(**{**config, "model": keras.saving.deserialize_keras_object(config["model"])})


def _logits_of(answer: Any, answers: str) -> Any:
    """Logits of an answer, for probabilities or their logarithms those of the mean 0.

    Probabilities tell logits but for a number that all share. Those of a linear layer that was trained with a softmax
    have a mean near 0, since what it learns adds up to 0 over the classes; with their log-sum-exp at 0 no energy would
    say anything. The smallest probabilities count as the smallest normal number.
    """
    if answers not in ("softmax", "log_softmax"):
        return answer
    logarithms = ops.log(ops.maximum(answer, 1.2e-38)) if answers == "softmax" else answer
    return logarithms - ops.mean(logarithms, axis=-1, keepdims=True)


def only(answer: Any) -> Any:
    """The one output of a list or a dictionary that has one."""
    rows = list(answer.values()) if isinstance(answer, dict) else answer
    return rows[0] if isinstance(rows, list | tuple) and len(rows) == 1 else answer


def pooled(rows: Any) -> Any:
    """float32 (B, D): the mean over whatever positions lie between."""
    rows = ops.cast(rows, "float32")
    return ops.mean(rows, axis=tuple(range(1, len(rows.shape) - 1))) if len(rows.shape) > 2 else rows
