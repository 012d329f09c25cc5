"""The classifier: a backbone, a head, and the loss terms of outlier exposure."""

import inspect

import keras
from keras import ops

from kood import losses as loss_functions
from kood.heads import AngularHead
from kood.steps import TrainStep, everyone, total, whole

__all__ = ["Classifier"]


@keras.saving.register_keras_serializable(package="kood")
class Classifier(TrainStep):
    """Backbone and head, trained on in-distribution rows and, where there are any, outlier rows of one batch.

    The loss of a batch with in-distribution rows I and outlier rows O is

        mean over I of cross_entropy(margin logits, label)  +  weight * mean over O of exposure(logits or cosines),

    each mean over its own kind's rows. With the KL exposure this is Hendrycks et al. 2019 (arXiv 1812.04606).

    Args:
        backbone: Model, images (B, H, W, C) in [-1, 1] -> features (B, D).
        head: Layer of `kood.heads`, features -> logits (B, K).
        exposure: Name of a function of `kood.losses` that ends in `_exposure`, or None.
        exposure_weight: Its weight.
    """

    def __init__(self, backbone, head, exposure=None, exposure_weight=0.5, **kwargs):
        super().__init__(**kwargs)
        self.backbone = backbone
        self.head = head
        self.exposure = exposure
        self.exposure_weight = exposure_weight
        self.watch("cross_entropy", *(["exposure"] if exposure else []))
        if exposure:
            self._exposure = getattr(loss_functions, exposure)
            self._exposure_input = next(iter(inspect.signature(self._exposure).parameters))

    @property
    def is_angular(self) -> bool:
        """Whether the head has cosines."""
        return isinstance(self.head, AngularHead)

    def call(self, images, training=False):
        """Features, logits without margin and, for an angular head, cosines, all float32.

        Args:
            images: (B, H, W, C) in [-1, 1].
            training: Whether layers run in training mode.

        Returns:
            {"features": (B, D), "logits": (B, K), "cosines": (B, K) where the head has them}.
        """
        features = ops.cast(self.backbone(images, training=training), "float32")
        outputs = {"features": features, "logits": self.head(features)}
        if self.is_angular:
            outputs["cosines"] = self.head.cosines(features)
        return outputs

    def losses(self, batch, training=False):
        """The terms of one batch.

        Args:
            batch: {"image": (B, H, W, C), "label": (B, K), all-zero rows for outliers, "is_outlier": (B,)}.
            training: Whether layers run in training mode.

        Returns:
            {"cross_entropy": scalar, "exposure": scalar, already weighted, where there is an exposure}.
        """
        features = ops.cast(self.backbone(batch["image"], training=training), "float32")
        logits = self._logits(features, batch["label"], training)
        outlier = ops.cast(batch["is_outlier"], "float32")
        terms = {"cross_entropy": _mean(loss_functions.cross_entropy(logits, batch["label"]), 1.0 - outlier)}
        if self.exposure:
            rows = self._exposure(logits if self._exposure_input == "logits" else self.head.cosines(features))
            terms["exposure"] = self.exposure_weight * _mean(rows, outlier)
        return terms

    def _logits(self, features, label, training):
        if training and whole(1) > 1 and self.head.non_trainable_variables:
            # What such a head keeps comes from the statistics of a batch: those of the whole one.
            self.head(everyone(ops.stop_gradient(features)), everyone(label), training=True)
            training = False
        return self.head(features, label, training=training)

    def build(self, input_shape):
        """Builds the head on the backbone's features."""
        if not self.head.built:
            self.head.build(self.backbone.output_shape)
        self.built = True

    def get_config(self):
        """The arguments, so that `from_config` makes the same classifier."""
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "head": keras.saving.serialize_keras_object(self.head),
            "exposure": self.exposure,
            "exposure_weight": self.exposure_weight,
        }

    @classmethod
    def from_config(cls, config):
        """The classifier that `get_config` describes."""
        config = dict(config)
        for part in ("backbone", "head"):
            config[part] = keras.saving.deserialize_keras_object(config[part])
        return cls(**config)


def _mean(rows, weight):
    """Mean of the rows that count, of the whole batch; zero where none does."""
    return ops.sum(rows * weight) / ops.maximum(total(ops.sum(weight)), 1.0)
