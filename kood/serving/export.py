"""Writes the SavedModel; always runs on Keras's TensorFlow backend.

Called in this process where that is the backend already, else as `python -m kood.serving.export CLASSIFIER FOLDER
SERVED VERSION MODULE...` in a process of its own: a `.keras` file written under JAX or torch loads under TensorFlow,
and the graph is then plain TensorFlow. The modules are those from outside that the classifier may be made of: Keras
finds what they register once they are imported.
"""

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kood import registry
from kood.classifier import Classifier
from kood.data.images import normalize, to_shape
from kood.data.rules import Colour
from kood.outputs import perturbed_for
from kood.process import keras_defaults
from kood.scorer import Scorer
from kood.serving.encoded import decode_files
from kood.serving.served import Served

__all__ = ["Decision", "recalibrate", "write_saved_model"]

#: What is answered of a file that could not be decoded, and of an image whose pixels, probabilities or score are NaN or
#: infinite, which no threshold can judge; numbers that JSON can write.
UNKNOWN = {
    "probabilities": 0.0, "label": -1, "ood_score": float(np.finfo(np.float32).max), "is_ood": True, "p_value": 0.0,
}  # fmt: skip


class Scored(keras.layers.Layer):
    """The classifier and its score in one layer: images in [-1, 1] -> what does not depend on a calibration."""

    def __init__(self, classifier: Classifier, served: Served, **kwargs):
        super().__init__(**kwargs)
        self.classifier = classifier
        self.score = Scorer(served.score, served.state)
        self.score.place(self._variable)
        self._perturbed = perturbed_for(classifier, [self.score])

    def _variable(self, name: str, array: np.ndarray):
        """An array of the score as a variable; constants stand in the graph's own file, of 2 GB at most."""
        return self.add_weight(
            name=name, shape=array.shape, dtype=array.dtype.name, trainable=False, autocast=False,
            initializer=lambda shape, dtype: keras.ops.convert_to_tensor(array, dtype),
        )  # fmt: skip

    def call(self, images):
        """`probabilities` (B, K), `label` and `ood_score` (B,) of images of the trained shape."""
        outputs = self.classifier(images, training=False)
        outputs |= {name: logits(images) for name, logits in self._perturbed.items()}
        return {
            "probabilities": keras.ops.softmax(outputs["logits"]),
            "label": tf.cast(keras.ops.top_k(outputs["logits"], 1)[1][:, 0], tf.int64),
            "ood_score": tf.cast(self.score(outputs), tf.float32),
        }


class Decision(tf.Module):
    """The whole decision in one graph: images -> probabilities, class, score, p-value, flag.

    Args:
        scored: A function: float32 (B, H, W, C) in [-1, 1] -> {"probabilities", "label", "ood_score"}.
        served: Shape, class names, calibration and what becomes of undecodable files.
        version: What every answer says that it comes from.
        holders: Layers or loaded models whose variables `scored` reads; they are saved with it.
    """

    def __init__(self, scored: Callable, served: Served, version: int, *holders: Any):
        super().__init__()
        height, width, channels = shape = served.image_shape
        normal = tf.TensorSpec((None, height, width, channels), tf.float32, name="images")
        self.holders = holders
        self.scored = tf.function(scored, input_signature=[normal])
        decision = served.decision
        thresholds = tf.Variable(decision.thresholds, trainable=False, name="threshold", dtype=tf.float32)
        order = np.argsort(decision.scores, kind="stable")
        scores = decision.judged(decision.scores, decision.labels)[order].astype("float32")
        calibration = tf.Variable(scores, trainable=False, name="calibration")
        its_group = tf.constant(decision.groups_of(decision.labels)[order], tf.int32)
        class_group = tf.constant(decision.group_of, tf.int32)
        sizes = tf.constant([float(group.images) for group in decision.groups])
        self.kept = (thresholds, calibration)
        # Label -1 has no name. Looked up and not selected, since not every runtime selects among strings.
        names, one_for_all = tf.constant(["", *served.names]), len(decision.groups) == 1

        def answered(known, told):
            rows = _where(known, told)
            return {**rows, "class_name": tf.gather(names, rows["label"] + 1)}

        @tf.function(input_signature=[normal])
        def decide(images):
            answer = self.scored(images)
            score, label = answer["ood_score"], answer["label"]
            threshold = tf.gather(thresholds, label)
            # Counted by comparison, which every runtime has.
            as_high = calibration[tf.newaxis, :] >= score[:, tf.newaxis]
            group = tf.gather(class_group, label)
            if not one_for_all:
                as_high = tf.logical_and(as_high, its_group[tf.newaxis, :] == group[:, tf.newaxis])
            known = tf.reduce_sum(tf.cast(as_high, tf.float32), axis=1)
            told = {
                **answer,
                "is_ood": score > threshold,
                "p_value": (1.0 + known) / (1.0 + tf.gather(sizes, group)),
            }
            finite = tf.math.is_finite(score)
            for values, axes in ((answer["probabilities"], [1]), (images, [1, 2, 3])):
                finite = tf.logical_and(finite, tf.reduce_all(tf.math.is_finite(values), axis=axes))
            return {
                **answered(finite, told),
                "threshold": threshold,
                "version": tf.zeros_like(label) + tf.constant(version, tf.int64),
            }

        @tf.function(input_signature=[tf.TensorSpec((None, None, None, channels), tf.uint8, name="images")])
        def pixels(images):
            return decide(normalize(to_shape(images, shape)))

        decode = _decoder(tuple(shape), tuple(served.ground))
        files = tf.TensorSpec((None,), tf.string, name="image_bytes")

        @tf.function(input_signature=[files])
        def marked(image_bytes):
            images, decoded = decode(image_bytes)
            return {**answered(decoded, decide(normalize(images))), "decoded": decoded}

        @tf.function(input_signature=[files])
        def strict(image_bytes):
            images, decoded = decode(image_bytes)
            first = tf.reduce_sum(tf.math.cumprod(tf.cast(decoded, tf.int32)))
            message = tf.strings.format("image_bytes[{}] cannot be decoded as PNG, JPEG, WebP, BMP or GIF", first)
            with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(decoded), [message])]):
                return decide(normalize(tf.identity(images)))

        # Behind a function, since saving traces whatever it finds a second time and would keep both.
        self.endpoints = lambda: {
            "serving_default": pixels,
            "normalized": decide,
            "encoded": marked if served.undecodable == "mark" else strict,
            "encoded_marked": marked,
        }

    def save(self, folder: Path) -> None:
        """Writes it as a SavedModel."""
        signatures = {name: endpoint.get_concrete_function() for name, endpoint in self.endpoints().items()}
        tf.saved_model.save(self, str(folder), signatures=signatures)


@functools.cache
def _decoder(shape: tuple[int, int, int], ground: Colour) -> Callable:
    """Decodes files in a graph; traced once a process, which takes longer than all the rest of a SavedModel."""
    files = tf.TensorSpec((None,), tf.string, name="image_bytes")
    return tf.function(lambda image_bytes: decode_files(image_bytes, shape, ground), input_signature=[files])


def _where(known, told):
    """What is told of the known rows, and `UNKNOWN` of the others."""
    rows = {}
    for name, value in told.items():
        mask = known[:, tf.newaxis] if len(value.shape) == 2 else known
        rows[name] = tf.where(mask, value, tf.constant(UNKNOWN[name], value.dtype)) if name in UNKNOWN else value
    return rows


def write_saved_model(classifier: Classifier, folder: Path, served: Served, version: int = 0) -> None:
    """Writes a SavedModel with four signatures.

    All give `probabilities` (B, K), `label`, `class_name`, `ood_score`, `is_ood`, `p_value`, `threshold` and `version`
    (B,). An image with a pixel, or with probabilities or a score, that is NaN or infinite is marked as what cannot be
    decoded is.

    - `serving_default`: `images`, uint8 pixels (B, h, w, C) of any size.
    - `normalized`: `images`, float32 (B, H, W, C) in [-1, 1], of the trained size.
    - `encoded`: `image_bytes`, string (B,), PNG, JPEG, WebP, BMP or GIF files. One that cannot be decoded is an error
      that names its index, or is marked, as the recipe says.
    - `encoded_marked`: the same, and whatever cannot be decoded is marked: `decoded` false, `label` -1, an empty name,
      probabilities 0, the largest score, p-value 0, flagged.

    Args:
        classifier: The trained classifier, loaded under the TensorFlow backend.
        folder: Where to write; must not exist.
        served: What else the graph holds.
        version: What every answer says that it comes from.
    """
    scored = Scored(classifier, served)
    scored(tf.zeros((1, *served.image_shape)))  # Builds it, outside any graph.
    variables = [variable.value for variable in scored.variables]
    Decision(scored.call, served, version, variables).save(folder)


def recalibrate(old: Path, folder: Path, served: Served, version: int = 0) -> None:
    """As `write_saved_model`, with the classifier and the score of a SavedModel that kood wrote; no layer is needed."""
    loaded = tf.saved_model.load(str(old))
    Decision(loaded.scored, served, version, loaded.holders).save(folder)


@keras_defaults()
def main(classifier: str, folder: str, served: str, version: str, *modules: str) -> None:
    """Writes the SavedModel of a `.keras` file."""
    for module in modules:
        importlib.import_module(module)
    model = keras.saving.load_model(classifier, compile=False)
    write_saved_model(model, Path(folder), Served.read(Path(served)), int(version))


if __name__ == "__main__":
    registry.obtain("heads", "softmax")  # Importing the room registers every head with Keras.
    main(*sys.argv[1:])
