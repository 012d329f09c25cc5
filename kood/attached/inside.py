"""One layer of a model, seen while the model runs."""

from typing import Any

import keras

from kood.attached.taken import only
from kood.attached.watching import layer_named, watched

__all__ = ["Inside"]


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
            answer = self.model(pixels, training=training)
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
