"""The decision in `keras.ops`: what a classifier says of pixels -> score -> p-value, label and flag.

One model of two layers, the same under every backend, in the served graph and in what other runtimes read: `Scored`
knows the classifier and its score and nothing of a calibration, `Decide` the calibration and nothing of a classifier.
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from kood.conformal import Calibration
from kood.outputs import further_for
from kood.scorer import Scorer

__all__ = ["UNKNOWN", "Decide", "Decision", "Scored", "judged"]

#: Of float32. Compared with it, NaN and infinities are told apart from numbers in every runtime.
LARGEST = float(np.finfo(np.float32).max)
#: What is answered of a file that could not be decoded, and of an image whose pixels, probabilities or score are NaN or
#: infinite, which no threshold can judge; numbers that JSON can write.
UNKNOWN = {"probabilities": 0.0, "label": -1, "ood_score": LARGEST, "is_ood": True, "p_value": 0.0}


class _Held(keras.layers.Layer):
    """A layer in float32 that holds arrays, as variables: constants stand in a graph's own file, of 2 GB at most."""

    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})

    def hold(self, name: str, array: np.ndarray) -> keras.Variable:
        """An array as a weight that nothing trains."""
        return self.add_weight(
            name=name, shape=array.shape, dtype=array.dtype.name, trainable=False, autocast=False,
            initializer=lambda shape, dtype: ops.convert_to_tensor(array, dtype),
        )  # fmt: skip


class Scored(_Held):
    """A classifier and its score: pixels -> what does not depend on a calibration.

    Args:
        classifier: A built model whose `call(pixels, training=False)` answers {"features", "logits"[, "cosines"]},
            float32.
        scorer: The score, fitted where it has to be.
    """

    def __init__(self, classifier: keras.Model, scorer: Scorer, **kwargs):
        super().__init__(**kwargs)
        self.classifier = classifier
        # One of its own, since a score is placed once.
        self.score = Scorer(scorer.name, scorer.state)
        self.score.place(self.hold)

    def call(self, images):
        """`probabilities` (B, K), `label` and `ood_score` (B,) of pixels as the classifier takes them."""
        outputs = self.classifier(images, training=False)
        # Made here, where a compiled graph has the weights that it was given.
        further = further_for(self.classifier, [self.score])
        return self.of({**outputs, **{name: make(images, outputs) for name, make in further.items()}})

    def of(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """As `call`, of the classifier's outputs."""
        return {
            "probabilities": ops.softmax(outputs["logits"]),
            # OpenVINO reads no argmax that Keras writes.
            "label": ops.cast(ops.top_k(outputs["logits"], 1)[1][:, 0], "int32"),
            "ood_score": ops.cast(self.score(outputs), "float32"),
        }


class Decide(_Held):
    """A calibration: score and label -> p-value, threshold and flag, as `kood.conformal.Calibration` has them.

    In float32, calibration scores and thresholds as well as scores. Counted by comparison, which every runtime has:
    (B, n) comparisons with n calibration scores.

    Args:
        calibration: The calibration scores and what is decided by them.
        version: What every answer says that it comes from.

    Raises:
        UserError: too few calibration scores for the accepted share.
    """

    def __init__(self, calibration: Calibration, version: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.version = version
        scores, groups = calibration.judged(calibration.scores, calibration.labels), calibration.groups

        def numbers(values):
            # A number stands in for infinity, of which some runtimes make NaN: no score is above it.
            return np.clip(values, -LARGEST, LARGEST).astype("float32")

        self.threshold = self.hold("threshold", numbers(calibration.thresholds))
        self.calibration = self.hold("calibration", numbers(scores))
        self.sizes = self.hold("sizes", np.array([group.images for group in groups], "float32")[calibration.group_of])
        self._by_class = len(groups) > 1
        if self._by_class:
            self.group_of = self.hold("group_of", calibration.group_of.astype("int32"))
            self.groups = self.hold("groups", calibration.groups_of(calibration.labels).astype("int32"))

    def call(self, answer, images):
        """What is told of each image.

        Args:
            answer: {"probabilities": (B, K), "label": (B,), "ood_score": (B,)}, as `Scored` answers.
            images: (B, ...) what it was answered of; an image with a pixel that is NaN or infinite is not judged.

        Returns:
            The answer with `is_ood` (B,) bool, `p_value` and `threshold` (B,) float32 and `version` (B,) int32;
            `UNKNOWN` in the rows that cannot be judged.
        """
        score, finite = answer["ood_score"], _finite(answer["ood_score"])
        for values in (answer["probabilities"], images):
            finite = ops.logical_and(finite, ops.all(_finite(values), axis=tuple(range(1, len(values.shape)))))
        # Of NaN the largest may stand anywhere.
        label = ops.where(finite, ops.cast(answer["label"], "int32"), 0)
        threshold = ops.take(self.threshold, label, axis=0)
        as_high = ops.expand_dims(self.calibration, 0) >= ops.expand_dims(score, 1)
        if self._by_class:
            group = ops.expand_dims(ops.take(self.group_of, label, axis=0), 1)
            as_high = ops.logical_and(as_high, ops.expand_dims(self.groups, 0) == group)
        known = ops.sum(ops.cast(as_high, "float32"), axis=1)
        told = {
            **answer,
            "label": label,
            "is_ood": score > threshold,
            "p_value": (1.0 + known) / (1.0 + ops.take(self.sizes, label, axis=0)),
        }
        return {**judged(finite, told), "threshold": threshold, "version": ops.zeros_like(label) + self.version}


class Decision(keras.Model):
    """The whole decision: pixels as the model takes them -> probabilities, label, score, p-value, flag.

    Args:
        outputs: A built model whose `call(pixels, training=False)` answers {"features": (B, D), "logits": (B, K)[,
            "cosines": (B, K)]}, float32: a `kood.classifier.Classifier`, or another one taken apart.
        scorer: The score, fitted where it has to be.
        calibration: What decides.

    Raises:
        UserError: too few calibration scores for the accepted share.
    """

    def __init__(self, outputs: keras.Model, scorer: Scorer, calibration: Calibration, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.scored = Scored(outputs, scorer)
        self.decide = Decide(calibration)
        self.calibrated = calibration
        # Nothing waits for a shape: every weight is there.
        self.built = self.scored.built = self.decide.built = True

    def call(self, images, training=False):
        """The answers; `training` changes none.

        Args:
            images: float32 (B, H, W, C) as the classifier takes them.

        Returns:
            {"probabilities": (B, K), "label": int32 (B,), "ood_score", "p_value", "threshold": float32 (B,), "is_ood":
            bool (B,), "version": int32 (B,)}; `UNKNOWN` for images that cannot be judged.
        """
        images = ops.cast(images, "float32")
        return self.decide(self.scored(images), images)


def judged(known, told: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of the known rows (B,), and `UNKNOWN` of the others."""
    rows = dict(told)
    for name, nothing in UNKNOWN.items():
        value = told[name]
        mask = ops.expand_dims(known, 1) if len(value.shape) == 2 else known
        rows[name] = ops.where(mask, value, ops.cast(nothing, value.dtype))
    return rows


def _finite(values):
    return ops.abs(values) <= LARGEST
