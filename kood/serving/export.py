"""Writes the SavedModel; always runs on Keras's TensorFlow backend.

Called in this process where that is the backend already, else as `python -m kood.serving.export SPEC` in a process of
its own: a `.keras` file written under JAX or torch loads under TensorFlow, and the graph is then plain TensorFlow.
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kood import registry
from kood.classifier import Classifier
from kood.data.images import normalize, to_shape
from kood.outputs import perturbed_logits
from kood.scorer import Scorer

__all__ = ["Decision", "write_saved_model"]


class Decision(keras.layers.Layer):
    """The whole decision in one graph: pixels -> probabilities, label, score, flag.

    Args:
        classifier: A `Classifier`.
        score: Name of the score.
        state: Arrays of a fitted score, or None.
        threshold: Above it an image is flagged.
        image_shape: (H, W, C) that the classifier was trained on.
    """

    def __init__(self, classifier, score, state, threshold, image_shape, **kwargs):
        super().__init__(**kwargs)
        self.classifier = classifier
        self.score = Scorer(score, state)
        self._perturbed = perturbed_logits(classifier) if "perturbed" in self.score.inputs else None
        self.image_shape = tuple(image_shape)
        self.threshold = self.add_weight(
            name="threshold",
            shape=(),
            dtype="float32",
            trainable=False,
            initializer=keras.initializers.Constant(threshold),
        )

    def call(self, images):
        """Decides on images that are already in [-1, 1] and of the trained shape."""
        outputs = self.classifier(images, training=False)
        if self._perturbed is not None:
            outputs["perturbed"] = self._perturbed(images)
        ood_score = tf.cast(self.score(outputs), tf.float32)
        label = keras.ops.top_k(outputs["logits"], 1)[1][:, 0]
        return {
            "probabilities": keras.ops.softmax(outputs["logits"]),
            "label": tf.cast(label, tf.int64),
            "ood_score": ood_score,
            "is_ood": ood_score > self.threshold,
        }


def write_saved_model(
    classifier: Classifier, folder: Path, *, score: str, state: dict[str, np.ndarray] | None, threshold: float,
    image_shape: tuple[int, int, int],
) -> None:  # fmt: skip
    """Writes a SavedModel with two signatures that give `probabilities`, `label`, `ood_score` and `is_ood`.

    `serving_default` takes `images`, uint8 pixels (B, h, w, C) of any size; `normalized` takes `images`, float32
    (B, H, W, C) in [-1, 1], of the trained size.

    Args:
        classifier: The trained classifier, loaded under the TensorFlow backend.
        folder: Where to write; must not exist.
        score: Name of the score.
        state: Arrays of a fitted score, or None.
        threshold: Above it an image is flagged.
        image_shape: (H, W, C) that the classifier was trained on.
    """
    decision = Decision(classifier, score, state, threshold, image_shape)
    height, width, channels = image_shape
    decision(tf.zeros((1, *image_shape)))  # Builds it; an unbuilt layer cannot be exported.
    archive = keras.export.ExportArchive()
    archive.track(decision)
    decide = archive.add_endpoint(
        "normalized",
        decision.call,
        input_signature=[tf.TensorSpec((None, height, width, channels), tf.float32, name="images")],
    )

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, channels), tf.uint8, name="images")])
    def pixels(images):
        return decide(normalize(to_shape(images, image_shape)))

    pixels.get_concrete_function()
    archive.add_endpoint("serving_default", pixels)
    archive.write_out(str(folder), verbose=False)


def main(spec_file: str) -> None:
    """Writes the SavedModel that a JSON file asks for."""
    spec = json.loads(Path(spec_file).read_text())
    state = None
    if spec["state"]:
        with np.load(spec["state"], allow_pickle=False) as arrays:
            state = dict(arrays)
    write_saved_model(
        keras.saving.load_model(spec["classifier"], compile=False),
        Path(spec["folder"]),
        score=spec["score"],
        state=state,
        threshold=spec["threshold"],
        image_shape=tuple(spec["image_shape"]),
    )


if __name__ == "__main__":
    registry.obtain("heads", "softmax")  # Importing the room registers every head with Keras.
    main(sys.argv[1])
