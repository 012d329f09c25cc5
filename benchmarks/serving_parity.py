"""How far the SavedModel's answers are from the Keras model's, for every score.

    KERAS_BACKEND=jax python benchmarks/serving_parity.py [--backbone resnet8] [--epochs 5] [--scores energy knn ...]

A classifier with a softmax head and one with CosFace learn scikit-learn's digits 0 to 5 at 16 px, and so does one with
a softmax head that tells rotations apart. Every score that they allow is fitted, of the last those of rotations,
exported as `kood run` does, and asked about all digits, known and unknown, and as many noise images, in batches of
another size than the Keras model's. Printed are the largest differences of the probabilities, of the score relative to
max(1, |score|), and the images on which `is_ood` differs; the limit is 1e-5 and no image, and a star marks what is past
it. Exit code 1 where anything is. The last line names kood's scores that no row is of. The images that set the
threshold are not asked about: one of them stands on it, and rounding alone says on which side.

The Keras model runs under the backend that KERAS_BACKEND names. Under TensorFlow features are the same to the bit;
JAX's and torch's convolutions differ from TensorFlow's by about 1e-6 of the features.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from turns import machine

from kood import heads, registry, specs, training
from kood.classifier import Classifier
from kood.conformal import threshold
from kood.data import ImageSet
from kood.data.batches import training_batches
from kood.data.images import fit_images
from kood.outputs import forward_of, run_over, score_rows, softmax
from kood.scorer import Scorer
from kood.serving.publishing import publish
from kood.serving.served import Served

SHAPE, KNOWN, BATCH, LIMIT = (16, 16, 3), 6, 64, 1e-5


def digits() -> tuple[np.ndarray, np.ndarray]:
    """All of scikit-learn's digits in random order, uint8 (N, 16, 16, 3), and their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = (found.images / 16 * 255).astype("uint8")[..., None].repeat(3, axis=-1)
    order = np.random.default_rng(0).permutation(len(images))
    return np.asarray(fit_images(images[order], SHAPE)), found.target[order]


def trained(head: keras.Layer, rotation: float, backbone: str, images: ImageSet, epochs: int) -> Classifier:
    """A classifier that has learnt the images, and their rotations where these have a weight."""
    keras.utils.set_random_seed(0)
    classifier = Classifier(registry.obtain("backbones", backbone)(SHAPE), head, rotation=rotation)
    classifier.build((None, *SHAPE))
    batches, steps = training_batches(images, None, batch_size=BATCH, outliers_per_batch=0, epochs=epochs, seed=0)
    classifier.compile(training.optimizer(steps * epochs, learning_rate=2e-3, weight_decay=1e-4))
    classifier.fit(batches, epochs=epochs, steps_per_epoch=steps, shuffle=False, verbose=0)
    return classifier


def measure(classifier: Classifier, name: str, sets: dict[str, np.ndarray], labels: np.ndarray, folder: Path) -> str:
    """Exports the classifier with a score; the line that tells the differences, with a star where one is too large."""
    forward = forward_of(classifier, [name])
    outputs = {key: run_over(forward, images, BATCH) for key, images in sets.items()}
    scorer = Scorer(name).fit(outputs["train"], labels, classifier.head)
    values = {key: score_rows(scorer, outputs[key], BATCH) for key in ("calibration", "asked")}
    classifier.save(folder / "classifier.keras")
    names = [str(digit) for digit in range(KNOWN)]
    served = Served(name, SHAPE, names, 0.95, values["calibration"].astype("float32"), scorer.state)
    expected = {
        "probabilities": softmax(outputs["asked"]["logits"]),
        "label": outputs["asked"]["logits"].argmax(axis=1),
        "ood_score": values["asked"],
    }
    few = {key: value[:BATCH] for key, value in expected.items()}
    publish(folder / "classifier.keras", folder / "1", served=served, images=sets["asked"][:BATCH], expected=few)
    import tensorflow as tf

    serve = tf.saved_model.load(str(folder / "1")).signatures["serving_default"]
    rows = [serve(images=tf.constant(sets["asked"][at : at + 37])) for at in range(0, len(sets["asked"]), 37)]
    got = {key: np.concatenate([row[key].numpy() for row in rows]) for key in rows[0]}
    probabilities = np.abs(got["probabilities"] - expected["probabilities"]).max()
    score = (np.abs(got["ood_score"] - values["asked"]) / np.maximum(1, np.abs(values["asked"]))).max()
    flags = int(np.sum(got["is_ood"] != (values["asked"] > threshold(served.calibration, 0.95))))
    star = "*" if max(probabilities, score) > LIMIT or flags else " "
    head = type(classifier.head).__name__
    flagged = f"is_ood differs on {flags} of {len(got['is_ood'])}, {got['is_ood'].mean():.0%} flagged"
    return f"{star} {head:8} {name:20} probabilities {probabilities:.1e}  score {score:.1e}  {flagged}"


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", default="resnet8")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--scores", nargs="*")
    arguments = parser.parse_args()
    print(f"{machine()}; {arguments.backbone}, {keras.backend.backend()} float32")
    images, labels = digits()
    known = np.flatnonzero(labels < KNOWN)
    fitted, held = known[:700], known[700:900]
    asked = np.setdiff1d(np.arange(len(images)), held)
    noise = np.random.default_rng(1).integers(0, 256, images.shape, np.uint8)
    sets = {"train": images[fitted], "calibration": images[held], "asked": np.concatenate([images[asked], noise])}
    learnt = ImageSet(images[fitted], labels[fitted], tuple(map(str, range(KNOWN))))
    scorers = [Scorer(name) for name in arguments.scores or registry.room("scores")]
    past, covered = 0, set()
    for head, rotation, own in (
        (heads.Softmax(KNOWN), 0.0, {"kernel", "bias"}),
        (heads.CosFace(KNOWN), 0.0, {"cosines"}),
        (heads.Softmax(KNOWN), 0.5, {"rotations"}),
    ):
        classifier = trained(head, rotation, arguments.backbone, learnt, arguments.epochs)
        for one in scorers:
            moved = {one.inputs[output] for output in one.perturbation}
            if ("rotations" in one.inputs) != bool(rotation) or not one.can_take({"features", "logits", *moved, *own}):
                continue
            with tempfile.TemporaryDirectory() as folder:
                line = measure(classifier, one.name, sets, labels[fitted], Path(folder))
            print(line, flush=True)
            past += line.startswith("*")
            covered.add(specs.name_of(one.name))
    print(f"no row: {', '.join(name for name in registry.room('scores') if name not in covered) or 'none'}")
    return 1 if past else 0


if __name__ == "__main__":
    sys.exit(main())
