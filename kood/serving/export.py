"""Writes the SavedModel; always runs on Keras's TensorFlow backend.

Called in this process where that is the backend already, else as `python -m kood.serving.export MODULES SOURCE FOLDER
SERVED VERSION` in a process of its own: a `.keras` file written under JAX or torch loads under TensorFlow, and the
graph is then plain TensorFlow. What is TensorFlow's in it are the files, the resizing and the names of the classes. The
modules are those from outside that the classifier may be made of: Keras finds what they register once they are
imported.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from kood.attached import handed_over, opened  # The room registers with Keras what a file may hold.
from kood.data.images import normalize, to_shape
from kood.data.rules import Framing
from kood.decision import Decide, Scored, judged
from kood.process import keras_defaults
from kood.scorer import Scorer
from kood.serving.encoded import decode_files
from kood.serving.served import Served

__all__ = ["Endpoints", "export", "recalibrate", "write_saved_model"]


class Endpoints(tf.Module):
    """The whole decision in one graph: images -> probabilities, class, score, p-value, flag.

    Args:
        scored: A function: float32 (B, H, W, C) in [-1, 1] -> {"probabilities", "label", "ood_score"}.
        served: Shape, class names, calibration and what becomes of undecodable files.
        version: What every answer says that it comes from.
        holders: Layers or loaded models whose variables these functions read; they are saved with it.
    """

    def __init__(self, scored: Callable, served: Served, version: int, *holders: Any):
        super().__init__()
        height, width, channels = shape = served.image_shape
        normal = tf.TensorSpec((None, height, width, channels), tf.float32, name="images")
        sized = tf.TensorSpec((None, None, None, channels), tf.uint8, name="images")
        self.holders = holders
        self.scored = tf.function(scored, input_signature=[normal])
        judge = Decide(served.decision, version)
        self.kept = [variable.value for variable in judge.variables]
        # Label -1 has no name. Looked up and not selected, since not every runtime selects among strings.
        names = tf.constant(["", *served.names])

        def named(rows):
            return {**rows, "class_name": tf.gather(names, rows["label"] + 1)}

        # What is kood's own has no control flow of Python's that AutoGraph would have to rewrite.
        @tf.function(input_signature=[normal], autograph=False)
        def decide(images):
            rows = judge(self.scored(images), images)
            return named({**rows, **{name: tf.cast(rows[name], tf.int64) for name in ("label", "version")}})

        @tf.function(input_signature=[sized], autograph=False)
        def pixels(images):
            return decide(normalize(to_shape(images, shape, served.framing)))

        decode = _decoder(tuple(shape), served.framing)
        files = tf.TensorSpec((None,), tf.string, name="image_bytes")

        @tf.function(input_signature=[files], autograph=False)
        def marked(image_bytes):
            images, decoded = decode(image_bytes)
            return {**named(judged(decoded, decide(normalize(images)))), "decoded": decoded}

        @tf.function(input_signature=[files], autograph=False)
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
def _decoder(shape: tuple[int, int, int], framing: Framing) -> Callable:
    """Decodes files in a graph; traced once a process, which takes longer than all the rest of a SavedModel."""
    files = tf.TensorSpec((None,), tf.string, name="image_bytes")

    def decode(image_bytes):
        return decode_files(image_bytes, shape, framing)

    return tf.function(decode, input_signature=[files], autograph=False)


def write_saved_model(classifier: keras.Model, folder: Path, served: Served, version: int = 0) -> None:
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
        classifier: Loaded under the TensorFlow backend: kood's own, or another's behind `kood.attached.Adapted`.
        folder: Where to write; must not exist.
        version: What every answer says that it comes from.
    """
    scored = Scored(classifier, Scorer(served.score, served.state))
    scored(tf.zeros((1, *served.image_shape)))  # Builds it, outside any graph.
    variables = [variable.value for variable in scored.variables]
    Endpoints(scored.call, served, version, variables).save(folder)


def recalibrate(old: Path, folder: Path, served: Served, version: int = 0) -> None:
    """As `write_saved_model`, with the classifier and the score of a SavedModel that kood wrote; no layer is needed."""
    loaded = tf.saved_model.load(str(old))
    Endpoints(loaded.scored, served, version, loaded.holders).save(folder)


@keras_defaults()
def export(source: Path, folder: Path, served: Served, version: int) -> None:
    """Writes the SavedModel of a `.keras` file, or of another SavedModel of kood's under another calibration."""
    if source.is_dir():
        recalibrate(source, folder, served, version)
    else:
        classifier = opened(source, key="classifier")
        if served.preprocess is not None:
            classifier.prepare_by(served.preprocess)
        write_saved_model(classifier, folder, served, version)


def main(source: str, folder: str, served: str, version: str) -> None:
    """Writes the SavedModel of a classifier that was handed over."""
    export(Path(source), Path(folder), Served.read(Path(served)), int(version))


if __name__ == "__main__":
    handed_over(main)
