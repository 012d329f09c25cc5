"""The SavedModel: the same answers as Keras, published whole or not at all, from any training backend."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from kood import heads
from kood.classifier import Classifier
from kood.data.images import fit_images
from kood.errors import UserError
from kood.outputs import forward_of
from kood.scorer import Scorer
from kood.serving import publishing
from kood.serving.client import answer_files, newest_version

SHAPE, CLASSES = (8, 8, 3), 4


def trained(head="CosFace"):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE)
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(inputs)
    backbone = keras.Model(inputs, keras.layers.Dense(6)(keras.layers.Flatten()(x)))
    model = Classifier(backbone, getattr(heads, head)(CLASSES))
    model.build((None, *SHAPE))
    return model


def pixels(count=20, seed=0, size=(8, 8)):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3)).astype("uint8")


def prepared(tmp_path, head="CosFace", score="msp"):
    """What `publish` is given for a classifier and a score."""
    model, images = trained(head), pixels()
    model.save(tmp_path / "classifier.keras")
    forward = forward_of(model, [score])
    outputs, train = (
        {k: keras.ops.convert_to_numpy(v) for k, v in forward((of / 127.5 - 1.0).astype("float32")).items()}
        for of in (images, pixels(150, 1))
    )
    scorer = Scorer(score).fit(train, np.arange(150) % CLASSES, model.head)
    state_file = None
    if scorer.state:
        state_file = tmp_path / "state.npz"
        np.savez(state_file, **scorer.state)
    values = keras.ops.convert_to_numpy(scorer(outputs))
    logits = outputs["logits"].astype("float64")
    return {
        "classifier_file": tmp_path / "classifier.keras",
        "version_folder": tmp_path / "1",
        "score": score,
        "state_file": state_file,
        "threshold": float(np.sort(values)[12:14].mean()),
        "image_shape": SHAPE,
        "class_names": ["a", "b c", "d\ne", "f"],
        "images": images,
        "expected": {
            "probabilities": np.exp(logits) / np.exp(logits).sum(1, keepdims=True),
            "label": logits.argmax(1),
            "ood_score": values,
        },
    }


CASES = [("Softmax", "energy"), ("CosFace", "msp"), ("ArcFace", "max_cosine"), ("AdaCos", "entropy"),
         ("Softmax", "vim"), ("CosFace", "mahalanobis"), ("SphereFace", "knn"), ("Softmax", "ash"), ("Softmax", "dice"),
         ("Softmax", "react"), ("Softmax", "scale"), ("Softmax", "fdbd"), ("CosFace", "klmatching"),
         ("Softmax", "nnguide"), ("CosFace", "relativemahalanobis"), ("CosFace", "residual"),
         ("CosFace", "angular_energy"), ("Softmax", "gen"), ("Softmax", "odin_temperature"),
         ("Softmax", "odin"), ("CosFace", "odin")]  # fmt: skip


@pytest.mark.parametrize(("head", "score"), CASES)
def test_the_saved_model_answers_as_keras_does(tmp_path, head, score):
    given = prepared(tmp_path, head, score)
    differences = publishing.publish(**given)
    assert differences["images"] == 20 and differences["probabilities"] < 1e-5
    model = tf.saved_model.load(str(tmp_path / "1"))
    serve, normalized = model.signatures["serving_default"], model.signatures["normalized"]
    for count in (1, 5, 20):
        got = {k: v.numpy() for k, v in serve(images=tf.constant(given["images"][:count])).items()}
        assert set(got) == {"probabilities", "label", "ood_score", "is_ood"}
        np.testing.assert_allclose(got["probabilities"], given["expected"]["probabilities"][:count], atol=1e-5)
        np.testing.assert_allclose(got["ood_score"], given["expected"]["ood_score"][:count], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(got["label"], given["expected"]["label"][:count])
        assert got["label"].dtype == np.int64 and got["is_ood"].dtype == np.bool_
    again = normalized(images=tf.constant(given["images"] / 127.5 - 1.0, tf.float32))
    np.testing.assert_allclose(again["ood_score"], got["ood_score"], rtol=1e-4, atol=1e-5)
    # The threshold lies above the 13th smallest of twenty scores.
    assert got["is_ood"].sum() == 7
    assert (tmp_path / "1" / "assets.extra" / "labels.txt").read_text() == "a\nb c\nd e\nf\n"


def test_any_size_is_resized_as_the_training_images_were(tmp_path):
    given = prepared(tmp_path)
    publishing.publish(**given)
    serve = tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"]
    large = pixels(3, size=(21, 13))
    got = serve(images=tf.constant(large))
    same = serve(images=tf.constant(fit_images(large, SHAPE)))
    for name in got:
        np.testing.assert_array_equal(got[name], same[name])


def test_a_model_that_disagrees_is_not_published(tmp_path):
    given = prepared(tmp_path)
    given["expected"]["ood_score"] = given["expected"]["ood_score"] + 0.01
    with pytest.raises(UserError, match="does not answer as the Keras model does.*ood_score") as caught:
        publishing.publish(**given)
    assert caught.value.exit_code == 1
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


def test_a_failed_export_leaves_nothing(tmp_path):
    given = prepared(tmp_path)
    given["classifier_file"].write_bytes(b"no model")
    with pytest.raises((UserError, ValueError, OSError)):
        publishing.publish(**given)
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


def test_the_export_process_does_the_same(tmp_path, monkeypatch):
    given = prepared(tmp_path, "CosFace", "mahalanobis")
    monkeypatch.setattr(publishing.keras.backend, "backend", lambda: "jax")
    assert publishing.publish(**given)["probabilities"] < 1e-5


def test_newest_version(tmp_path):
    with pytest.raises(UserError, match="no SavedModel"):
        newest_version(tmp_path)
    for name in ("2", "10", "x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").write_bytes(b"")
    (tmp_path / "11").mkdir()
    assert newest_version(tmp_path) == tmp_path / "10"
    assert newest_version(tmp_path / "2") == tmp_path / "2"


def test_the_client_answers_what_it_can(tmp_path):
    import io

    from PIL import Image
    from rich.console import Console

    publishing.publish(**prepared(tmp_path))
    good = tmp_path / "[red] good.png"
    Image.fromarray(pixels(1)[0]).save(good)
    Image.fromarray(pixels(1, size=(40, 30))[0]).convert("L").save(tmp_path / "grey.jpg")
    (tmp_path / "bad.png").write_bytes(b"not an image")
    console = Console(file=io.StringIO(), width=300)
    unread = answer_files(tmp_path, [good, tmp_path / "bad.png", tmp_path / "none.png", tmp_path / "grey.jpg"], console)
    output = console.file.getvalue()
    assert unread == 2
    assert "bad.png cannot be read" in output and "none.png cannot be read" in output and "Traceback" not in output
    assert "[red] good.png" in output and "grey.jpg" in output


def test_predict_needs_no_training_stack(tmp_path):
    publishing.publish(**prepared(tmp_path))
    code = (
        "import sys; from pathlib import Path; from kood.serving.client import answer_files; "
        "answer_files(Path(sys.argv[1]), []); "
        "print([m for m in ('kood.classifier', 'kood.pipeline', 'kood.nets') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, env=os.environ
    )
    assert result.stdout.strip() == "[]"
