"""Small classifiers, published as the tests of this folder need them."""

import functools
import io
import shutil
import tempfile
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from kood import heads
from kood.classifier import Classifier
from kood.data.rules import Framing
from kood.outputs import forward_of
from kood.scorer import Scorer
from kood.serving import publishing
from kood.serving.served import Served

SHAPE, CLASSES = (8, 8, 3), 4
REWORKED = ("adascale", "ash", "dice", "react", "scale")


def trained(head="CosFace", shape=SHAPE, activation=None, width=6, turns=False):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(inputs)
    backbone = keras.Model(inputs, keras.layers.Dense(width, activation)(keras.layers.Flatten()(x)))
    model = Classifier(backbone, getattr(heads, head)(CLASSES), rotation=0.5 if turns else 0.0)
    model.build((None, *shape))
    return model


def pixels(count=20, seed=0, size=(8, 8), channels=3):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, channels)).astype("uint8")


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


def prepared(tmp_path, head="CosFace", score="msp", undecodable="error", width=6, ground=(255, 255, 255)):
    """What `publish` is given for a classifier and a score; thirteen of twenty images are accepted."""
    # The scores that rework activations are made for features behind a ReLU.
    activation = "relu" if score.partition(":")[0] in REWORKED else None
    model, images = trained(head, activation=activation, width=width, turns=score.startswith("rotation")), pixels()
    model.save(tmp_path / "classifier.keras")
    forward = forward_of(model, [score])
    outputs, train = (
        {k: keras.ops.convert_to_numpy(v) for k, v in forward((of / 127.5 - 1.0).astype("float32")).items()}
        for of in (images, pixels(150, 1))
    )
    scorer = Scorer(score).fit(train, np.arange(150) % CLASSES, model.head)
    values = keras.ops.convert_to_numpy(scorer(outputs))
    logits = outputs["logits"].astype("float64")
    # Nineteen calibration scores between the images' own, so that none ties with one.
    ordered = np.sort(values.astype("float64"))
    calibration = ((ordered[1:] + ordered[:-1]) / 2).astype("float32")
    served = Served(
        score, SHAPE, ["a", "b c", "d\ne", "f"], 0.65, calibration, scorer.state, undecodable, framing=Framing(ground)
    )
    return {
        "classifier_file": tmp_path / "classifier.keras",
        "version_folder": tmp_path / "1",
        "served": served,
        "images": images,
        "expected": {
            "probabilities": np.exp(logits) / np.exp(logits).sum(1, keepdims=True),
            "label": logits.argmax(1),
            "ood_score": values,
        },
        "facts": {"kood": "0", "accuracy": 0.5, "test_images": 20, "near": {"x": 0.75}, "warnings": ["a\nb"]},
    }


@functools.cache
def _published(name, *how):
    """A folder that holds a run of that name, and what it was published from; made once a process."""
    parent = tempfile.TemporaryDirectory()
    run = Path(parent.name) / name
    run.mkdir()
    given = prepared(run, *how)
    return parent, {**given, "differences": publishing.publish(**given)}


def published(run, head="CosFace", score="msp", undecodable="error", ground=(255, 255, 255)):
    """A run's folder with version 1 in it, and what it was published from; the caller may change the folder."""
    parent, given = _published(run.name, head, score, undecodable, 6, ground)
    shutil.copytree(Path(parent.name) / run.name, run, dirs_exist_ok=True)
    return {**given, "classifier_file": run / "classifier.keras", "version_folder": run / "1"}
