"""Somebody's Keras classifier as kood's own are: images in [-1, 1] -> features, logits."""

from typing import Any

import keras
from keras import ops

from kood.attached.apart import take_apart
from kood.attached.preprocessing import preprocess_of
from kood.classifier import Classifier
from kood.errors import UserError

__all__ = ["ROUNDING", "Adapted", "adapted", "function_of"]

#: As far from a whole number of 0..255 pixels come back from [-1, 1], by float32's rounding alone.
ROUNDING = 1e-3


@keras.saving.register_keras_serializable(package="kood")
class Adapted(keras.Model):
    """A finished classifier behind kood's convention, so that all that measures or serves one takes any.

    Images in [-1, 1] become pixels of 0..255, then what the model takes, then its features and logits.

    Args:
        model: Any Keras classifier that `kood.attached.apart.take_apart` can take apart.
        features: The layer whose outputs are the features; the input of the last dense layer where not given.
        preprocess: What makes the model's pixels of pixels of 0..255, as
            `kood.attached.preprocessing.preprocess_of` takes it.
        takes_bytes: Whether it takes pixels of 0..255 itself in place of [-1, 1].

    Raises:
        UserError: the model cannot be taken apart.
    """

    def __init__(self, model, features=None, preprocess=None, takes_bytes=False, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.model = model
        self.features_layer = features
        self.takes_bytes = takes_bytes
        self.taken = take_apart(model, features)
        self.preprocess = preprocess_of(preprocess, model)
        self.built = True

    @property
    def head(self):
        """What lends its kernel and bias to scores; without any where the head is not linear."""
        return self.taken.way.head

    @property
    def is_angular(self) -> bool:
        """Whether it gives cosines."""
        return self.taken.way.cosines

    def call(self, images, training=False):
        """As `Classifier.call`; always in inference mode.

        Args:
            images: (B, H, W, C) in [-1, 1].
        """
        return self.taken(self.preprocess(images if self.takes_bytes else _bytes(images)), training=False)

    def for_bytes(self) -> "Adapted":
        """The same classifier, its weights too, for pixels of 0..255."""
        return Adapted(self.model, self.features_layer, self.preprocess, takes_bytes=True, name=self.name)

    def prepare_by(self, preprocess: Any) -> None:
        """Names the preprocessing again: a file may say that it is a function, and not import one.

        Args:
            preprocess: As the class takes it, from whoever trusts it.
        """
        self.preprocess = preprocess_of(preprocess, self.model)

    def get_config(self):
        """The arguments, so that `from_config` makes the same classifier."""
        return {
            **super().get_config(),
            "model": keras.saving.serialize_keras_object(self.model),
            "features": self.features_layer,
            "preprocess": keras.saving.serialize_keras_object(self.preprocess),
            "takes_bytes": self.takes_bytes,
        }

    @classmethod
    def from_config(cls, config):
        """The classifier that `get_config` describes."""
        config = dict(config)
        for part in ("model", "preprocess"):
            config[part] = keras.saving.deserialize_keras_object(config[part])
        return cls(**config)


def _bytes(images):
    """[-1, 1] -> 0..255. A whole number comes back as it was, for models that make integers of their pixels."""
    pixels = (ops.cast(images, "float32") + 1.0) * 127.5
    less = ops.stop_gradient(ops.round(pixels) - pixels)
    return pixels + ops.where(ops.abs(less) < ROUNDING, less, 0.0)


def adapted(model: keras.Model, features: str | None = None, preprocess: Any = None) -> keras.Model:
    """A classifier that takes images in [-1, 1]: kood's own as it is, any other behind `Adapted`.

    Args:
        features: As for `Adapted`; nothing to choose of kood's own.
        preprocess: As for `Adapted`; kood's own take images in [-1, 1].

    Raises:
        UserError: as for `Adapted`.
    """
    if isinstance(model, Classifier) and len(model.backbone.input_shape) == 2:
        return model  # What stands after a frozen backbone.
    if isinstance(model, Classifier):
        take_apart(model, features)
        if preprocess not in (None, "none", "-1..1"):
            raise UserError(f"preprocess = {preprocess!r}: a kood classifier has its own; leave preprocess out")
    if isinstance(model, Classifier | Adapted):
        return model
    return Adapted(model, features, preprocess, name="adapted")


def function_of(classifier: keras.Model) -> str | None:
    """The user's own function that makes an attached classifier's pixels, "module:function"; None where there is none.

    A file names it and does not import it: whoever loads one again, and trusts it, calls `Adapted.prepare_by`.
    """
    said = classifier.preprocess.said if isinstance(classifier, Adapted) else ""
    return said if ":" in said else None
