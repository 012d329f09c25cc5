"""Writes the SavedModel; always runs on Keras's TensorFlow backend.

Called in this process where that is the backend already, else as `python -m kood.serving.export SOURCE FOLDER SERVED
VERSION` in a process of its own: a `.keras` file written under JAX or torch loads under TensorFlow, and the graph is
then plain TensorFlow. What is TensorFlow's in it are the files, the resizing and the names of the classes.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from kood import registry
from kood.data.images import normalize, to_shape
from kood.data.rules import Colour
from kood.detector.decision import Decide, Scored, judged, outputs_model
from kood.process import keras_defaults
from kood.scorer import Scorer
from kood.serving.encoded import decode_files
from kood.serving.served import Served

__all__ = ["Endpoints", "export", "recalibrate", "write_saved_model"]


class Endpoints(tf.Module):
    """The whole decision in one graph: images -> probabilities, class, score, p-value, flag.

    Args:
        scored: A function: float32 (B, H, W, C) as the classifier takes them -> {"probabilities", "label",
            "ood_score"}.
        prepared: A function: float32 (B, H, W, C) of 0..255 -> as the classifier takes them.
        served: Shape, class names, calibration and what becomes of undecodable files.
        version: What every answer says that it comes from.
        holders: Layers or loaded models whose variables these functions read; they are saved with it.
    """

    def __init__(self, scored: Callable, prepared: Callable, served: Served, version: int, *holders: Any):
        super().__init__()
        height, width, channels = shape = served.image_shape
        normal = tf.TensorSpec((None, height, width, channels), tf.float32, name="images")
        self.holders = holders
        self.scored = tf.function(scored, input_signature=[normal])
        self.prepared = tf.function(prepared, input_signature=[normal])
        judge = Decide(served.decision, version)
        self.kept = [variable.value for variable in judge.variables]
        # Label -1 has no name. Looked up and not selected, since not every runtime selects among strings.
        names = tf.constant(["", *served.names])

        def named(rows):
            return {**rows, "class_name": tf.gather(names, rows["label"] + 1)}

        @tf.function(input_signature=[normal])
        def decide(images):
            rows = judge(self.scored(images), images)
            return named({**rows, **{name: tf.cast(rows[name], tf.int64) for name in ("label", "version")}})

        @tf.function(input_signature=[tf.TensorSpec((None, None, None, channels), tf.uint8, name="images")])
        def pixels(images):
            return decide(self.prepared(to_shape(images, shape)))

        decode = _decoder(tuple(shape), tuple(served.ground))
        files = tf.TensorSpec((None,), tf.string, name="image_bytes")

        @tf.function(input_signature=[files])
        def marked(image_bytes):
            images, decoded = decode(image_bytes)
            return {**named(judged(decoded, decide(self.prepared(images)))), "decoded": decoded}

        @tf.function(input_signature=[files])
        def strict(image_bytes):
            images, decoded = decode(image_bytes)
            first = tf.reduce_sum(tf.math.cumprod(tf.cast(decoded, tf.int32)))
            message = tf.strings.format("image_bytes[{}] cannot be decoded as PNG, JPEG, WebP, BMP or GIF", first)
            with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(decoded), [message])]):
                return decide(self.prepared(tf.identity(images)))

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


def write_saved_model(classifier: keras.Model, folder: Path, served: Served, version: int = 0) -> None:
    """Writes a SavedModel with four signatures.

    All give `probabilities` (B, K), `label`, `class_name`, `ood_score`, `is_ood`, `p_value`, `threshold` and `version`
    (B,). An image with a pixel, or with probabilities or a score, that is NaN or infinite is marked as what cannot be
    decoded is.

    - `serving_default`: `images`, uint8 pixels (B, h, w, C) of any size.
    - `normalized`: `images`, float32 (B, H, W, C) of the trained size, as the classifier takes them; kood's own take
      [-1, 1].
    - `encoded`: `image_bytes`, string (B,), PNG, JPEG, WebP, BMP or GIF files. One that cannot be decoded is an error
      that names its index, or is marked, as the recipe says.
    - `encoded_marked`: the same, and whatever cannot be decoded is marked: `decoded` false, `label` -1, an empty name,
      probabilities 0, the largest score, p-value 0, flagged.

    Args:
        classifier: The trained classifier, loaded under the TensorFlow backend: kood's own, or any that
            `kood.detector.decision.outputs_model` takes.
        folder: Where to write; must not exist.
        served: What else the graph holds.
        version: What every answer says that it comes from.
    """
    scored, prepared = (
        Scored(outputs_model(classifier, served.features), Scorer(served.score, served.state)),
        served.prepare(),
    )
    scored(prepared(tf.zeros((1, *served.image_shape))))  # Builds it, outside any graph.
    variables = [variable.value for variable in scored.variables]
    Endpoints(scored.call, prepared, served, version, variables).save(folder)


def recalibrate(old: Path, folder: Path, served: Served, version: int = 0) -> None:
    """As `write_saved_model`, with the classifier and the score of a SavedModel that kood wrote; no layer is needed.

    What makes its pixels is taken from there too; before it was a part of the graph it was `normalize`.
    """
    loaded = tf.saved_model.load(str(old))
    Endpoints(loaded.scored, getattr(loaded, "prepared", normalize), served, version, loaded.holders).save(folder)


@keras_defaults()
def export(source: Path, folder: Path, served: Served, version: int) -> None:
    """Writes the SavedModel of a `.keras` file, or of another SavedModel of kood's under another calibration."""
    if source.is_dir():
        recalibrate(source, folder, served, version)
    else:
        write_saved_model(keras.saving.load_model(source, compile=False), folder, served, version)


if __name__ == "__main__":
    registry.obtain("heads", "softmax")  # Importing the room registers every head with Keras.
    export(Path(sys.argv[1]), Path(sys.argv[2]), Served.read(Path(sys.argv[3])), int(sys.argv[4]))
