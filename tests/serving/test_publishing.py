"""The SavedModel: the same answers as Keras, published whole or not at all, from any training backend."""

import dataclasses
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from kood.conformal import p_values
from kood.data.images import fit_images, normalize
from kood.data.rules import Framing
from kood.decision import Scored
from kood.errors import UserError
from kood.scorer import Scorer
from kood.serving import publishing
from kood.serving.client import LocalModel, newest_version
from kood.serving.export import recalibrate, write_saved_model
from kood.serving.extras import read_facts, write_extras
from kood.serving.served import Served
from tests.picture_files import decode_images
from tests.serving.models import SHAPE, encoded, pixels, prepared, published

pytestmark = pytest.mark.usefixtures("loaded_once")

OUTPUTS = {"probabilities", "label", "class_name", "ood_score", "is_ood", "p_value", "threshold", "version"}

#: Of logits; with a state; a gradient; options.
KINDS = [("Softmax", "energy"), ("CosFace", "mahalanobis"), ("CosFace", "odin"), ("Softmax", "ash:share=0.4,variant=B")]
#: Of cosines; with a large state; of reworked features.
FURTHER = [("ArcFace", "max_cosine"), ("SphereFace", "knn"), ("Softmax", "react")]
#: What test_formats.py cannot hold in every format, and four passes. Graphs of every other score it does hold.
ONLY_HERE = [("Softmax", "odin"), ("Softmax", "odin:epsilon=0.05,temperature=2"), ("Softmax", "odin_temperature"),
             ("Softmax", "adascale"), ("Softmax", "adascale:pixels=0.3,units=0.5,variant=L"),
             ("CosFace", "rotation"), ("Softmax", "rotation_energy")]  # fmt: skip


@pytest.mark.parametrize(
    ("head", "score"), [*KINDS, *(pytest.param(*one, marks=pytest.mark.slow) for one in (*FURTHER, *ONLY_HERE))]
)
def test_the_saved_model_answers_as_keras_does(tmp_path, head, score):
    given = published(tmp_path / "run", head, score)
    assert given["differences"]["images"] == 20 and given["differences"]["probabilities"] < 1e-5
    model = tf.saved_model.load(str(given["version_folder"]))
    serve, normalized = model.signatures["serving_default"], model.signatures["normalized"]
    for count in (1, 5, 20):
        got = {k: v.numpy() for k, v in serve(images=tf.constant(given["images"][:count])).items()}
        assert set(got) == OUTPUTS
        np.testing.assert_allclose(got["probabilities"], given["expected"]["probabilities"][:count], atol=1e-5)
        np.testing.assert_allclose(got["ood_score"], given["expected"]["ood_score"][:count], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(got["label"], given["expected"]["label"][:count])
        assert got["label"].dtype == np.int64 and got["is_ood"].dtype == np.bool_
        assert [name.decode() for name in got["class_name"]] == [given["served"].names[at] for at in got["label"]]
        assert got["p_value"].dtype == np.float32
    again = normalized(images=tf.constant(given["images"] / 127.5 - 1.0, tf.float32))
    np.testing.assert_allclose(again["ood_score"], got["ood_score"], rtol=1e-5, atol=1e-5)
    # The threshold is the 13th of 19 calibration scores, which stand between twenty scores.
    assert got["is_ood"].sum() == 7
    np.testing.assert_allclose(got["p_value"], p_values(got["ood_score"], given["served"].calibration), atol=1e-6)
    np.testing.assert_array_equal(got["is_ood"], got["p_value"] <= 1 - 0.65 + 1e-6)
    assert (given["version_folder"] / "assets.extra" / "labels.txt").read_text() == "a\nb c\nd e\nf\n"


def test_any_size_is_resized_as_the_training_images_were(tmp_path):
    published(tmp_path / "run")
    serve = tf.saved_model.load(str(tmp_path / "run" / "1")).signatures["serving_default"]
    large = pixels(3, size=(21, 13))
    got = serve(images=tf.constant(large))
    same = serve(images=tf.constant(fit_images(large, SHAPE)))
    for name in got:
        np.testing.assert_array_equal(got[name], same[name])


@pytest.mark.slow
def test_images_are_cropped_as_the_training_images_were(tmp_path):
    """How they are padded is looked at in test_rules.py, as every way is."""
    ground = (9, 200, 77)
    given = prepared(tmp_path)
    given["served"] = dataclasses.replace(given["served"], framing=Framing(ground, "crop"))
    publishing.publish(**given)
    signatures, framing = tf.saved_model.load(str(tmp_path / "1")).signatures, Framing(ground, "crop")
    large = pixels(3, size=(21, 13))
    files = [encoded(one, kind) for one, kind in zip(large, ("PNG", "JPEG", "PNG"), strict=True)]
    files += [encoded(pixels(1, size=(5, 30), channels=4)[0]), encoded(pixels(1, size=(40, 9), channels=1)[0, ..., 0])]
    for got, fitted in (
        (signatures["serving_default"](images=tf.constant(large)), fit_images(large, SHAPE, framing)),
        (signatures["encoded"](image_bytes=tf.constant(files)), decode_images(files, SHAPE, framing)),
    ):
        same = signatures["serving_default"](images=tf.constant(fitted))
        for name in same:
            np.testing.assert_array_equal(got[name], same[name])
    answers = LocalModel(tmp_path / "1").ask(files)
    np.testing.assert_allclose([one["ood_score"] for one in answers], got["ood_score"], rtol=1e-6)
    assert read_facts(tmp_path / "1")["resize"] == "crop"
    card = (tmp_path / "1" / "assets.extra" / "model_card.md").read_text()
    assert "Images are cropped in the middle and resized" in card


def test_padded_images_are_told_of(tmp_path):
    served = Served("msp", SHAPE, ["a", "b"], 0.5, np.float64([-1.0, 0.0, 1.0]), framing=Framing(resize="pad"))
    write_extras(tmp_path, "run", served, {})
    assert "Images are padded and" in (tmp_path / "assets.extra" / "model_card.md").read_text()
    assert read_facts(tmp_path)["resize"] == "pad"


def test_a_model_that_disagrees_is_not_published(tmp_path):
    given = prepared(tmp_path)
    given["expected"]["ood_score"] = given["expected"]["ood_score"] + 0.01
    with pytest.raises(UserError, match="does not answer as the Keras model does.*ood_score") as caught:
        publishing.publish(**given)
    assert caught.value.exit_code == 1
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


@pytest.mark.one_backend  # Of the others it is written in another process.
def test_a_graph_that_calls_python_is_not_published(tmp_path, monkeypatch):
    """In the process that wrote it, it answers; TensorFlow's table of Python functions is there alone."""

    def called(images):
        return tf.ensure_shape(tf.numpy_function(normalize, [images], tf.float32), images.shape)

    monkeypatch.setattr("kood.serving.export.normalize", called)
    with pytest.raises(UserError, match=r"^.*1: its graph holds \w*PyFunc.*keras\.ops; it is not published$"):
        publishing.publish(**prepared(tmp_path))
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("dtype", "most"), [("mixed_float16", 1e-2), pytest.param("bfloat16", 5e-2, marks=pytest.mark.slow)]
)
def test_half_precision_may_be_rounded_otherwise(dtype, most, tmp_path):
    """Another backend rounds it in other places; what is further off than that is refused as ever."""
    given = prepared(tmp_path)
    classifier = keras.saving.load_model(given["classifier_file"], compile=False)
    classifier.backbone.layers[1].dtype_policy = keras.DTypePolicy(dtype)
    classifier.save(given["classifier_file"])
    expected = given["expected"]["ood_score"]
    given["expected"]["ood_score"] = expected + 1.5 * most * np.abs(expected).max(initial=1.0)
    with pytest.raises(UserError, match="does not answer as the Keras model does.*ood_score"):
        publishing.publish(**given)
    given["expected"]["ood_score"] = expected + 0.5 * most
    publishing.publish(**given)


def test_a_failed_export_leaves_nothing(tmp_path):
    given = prepared(tmp_path)
    given["classifier_file"].write_bytes(b"no model")
    with pytest.raises((UserError, ValueError, OSError)):
        publishing.publish(**given)
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


def test_what_a_killed_process_left_goes_with_the_next(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    given = prepared(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.getpid", lambda: 1)
        patch.setattr(publishing.shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(publishing, "write_extras", interrupted)
        publishing.publish(**given)
    assert len(list(tmp_path.glob(".export-1*"))) == 1
    publishing.publish(**given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "classifier.keras"]


@pytest.mark.slow
def test_the_export_process_does_the_same(tmp_path, monkeypatch):
    given = prepared(tmp_path, "CosFace", "mahalanobis")
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    assert publishing.publish(**given)["probabilities"] < 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "classifier.keras"]


def test_newest_version(tmp_path):
    with pytest.raises(UserError, match="no SavedModel"):
        newest_version(tmp_path)
    for name in ("2", "10", "x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").write_bytes(b"")
    (tmp_path / "11").mkdir()
    assert newest_version(tmp_path) == tmp_path / "10"
    assert newest_version(tmp_path / "2") == tmp_path / "2"


def test_what_lies_beside_the_model(tmp_path):
    given = published(tmp_path / "run")
    extra = tmp_path / "run" / "1" / "assets.extra"
    facts = read_facts(tmp_path / "run" / "1")
    assert facts["name"] == "run" and facts["score"] == "msp" and facts["calibration_images"] == 19
    assert facts["threshold"] == given["served"].threshold and facts["class_names"] == ["a", "b c", "d e", "f"]
    card = (extra / "model_card.md").read_text()
    for told in ("# run", "a, b c, d e, f", "at least 65.0%", "20 test images: 50.0%", "set x: 75.0%", "Warning: a b"):
        assert told in card
    with pytest.raises(UserError, match="kood.json cannot be read"):
        read_facts(tmp_path)
    (extra / "kood.json").write_text("[1]")
    with pytest.raises(UserError, match="not what this version of kood writes there; run the recipe again"):
        read_facts(tmp_path / "run" / "1")
    (extra / "kood.json").write_text(json.dumps({name: said for name, said in facts.items() if name != "groups"}))
    with pytest.raises(UserError, match="not what this version of kood writes there; run the recipe again"):
        read_facts(tmp_path / "run" / "1")


def test_warm_up_requests_are_answered(tmp_path):
    published(tmp_path / "run")
    model = tf.saved_model.load(str(tmp_path / "run" / "1"))
    file = tmp_path / "run" / "1" / "assets.extra" / "tf_serving_warmup_requests"
    asked = []
    for record in tf.data.TFRecordDataset(str(file)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        assert request.model_spec.name == "run"
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        answer = model.signatures[request.model_spec.signature_name](**{k: tf.constant(v) for k, v in inputs.items()})
        asked.append((request.model_spec.signature_name, len(answer["label"])))
    assert sorted(asked) == [("encoded", 1), ("encoded", 32), ("serving_default", 1), ("serving_default", 32)]


def test_files_are_answered_as_their_pixels(tmp_path):
    given = published(tmp_path / "run")
    signatures = tf.saved_model.load(str(tmp_path / "run" / "1")).signatures
    files = [encoded(image) for image in given["images"]]
    expected = signatures["serving_default"](images=tf.constant(given["images"]))
    for name in ("encoded", "encoded_marked"):
        got = signatures[name](image_bytes=tf.constant(files))
        for output in OUTPUTS:
            np.testing.assert_array_equal(got[output], expected[output])
    assert got["decoded"].numpy().all()
    assert len(signatures["encoded"](image_bytes=tf.constant([], tf.string))["label"]) == 0


def test_an_undecodable_file_is_named_or_marked(tmp_path):
    files = tf.constant([encoded(pixels(1)[0]), b"no image", encoded(pixels(1)[0])[:99], b""])
    published(tmp_path / "run")
    signatures = tf.saved_model.load(str(tmp_path / "run" / "1")).signatures
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"image_bytes\[1\] cannot be decoded"):
        signatures["encoded"](image_bytes=files)
    published(tmp_path / "lenient", undecodable="mark")
    lenient = tf.saved_model.load(str(tmp_path / "lenient" / "1")).signatures
    for signature in (signatures["encoded_marked"], lenient["encoded"], lenient["encoded_marked"]):
        got = {name: value.numpy() for name, value in signature(image_bytes=files).items()}
        assert got["decoded"].tolist() == [True, False, False, False]
        assert got["label"][1:].tolist() == [-1] * 3 and got["class_name"][1:].tolist() == [b""] * 3
        assert got["is_ood"][1:].all() and (got["p_value"][1:] == 0).all() and (got["probabilities"][1:] == 0).all()
        assert np.isfinite(got["ood_score"]).all() and got["probabilities"][0].sum() == pytest.approx(1, abs=1e-6)


def test_another_calibration_changes_nothing_else(tmp_path, monkeypatch):
    given = published(tmp_path / "run", head="CosFace", score="mahalanobis")
    served = given["served"]
    other = Served(served.score, served.image_shape, served.class_names, 0.5, np.float64([-1e9, 0.0, 1e9]))
    flushed = set()
    monkeypatch.setattr("os.fsync", lambda file: flushed.add(os.fstat(file).st_ino))
    publishing.publish_calibrated(tmp_path / "run" / "1", tmp_path / "run" / "2", other, {"accepted": None})
    assert flushed >= {file.stat().st_ino for file in (tmp_path / "run" / "2").rglob("*") if file.is_file()}
    # And once more, from a version that was itself written again.
    publishing.publish_calibrated(tmp_path / "run" / "2", tmp_path / "run" / "3", other, {})
    images = tf.constant(given["images"])
    was = tf.saved_model.load(str(tmp_path / "run" / "1")).signatures["serving_default"](images=images)
    for version in ("2", "3"):
        got = tf.saved_model.load(str(tmp_path / "run" / version)).signatures["serving_default"](images=images)
        for name in OUTPUTS - {"is_ood", "p_value", "threshold", "version"}:
            np.testing.assert_array_equal(got[name], was[name])
        assert set(got["version"].numpy()) == {int(version)} and set(was["version"].numpy()) == {1}
        assert set(got["threshold"].numpy()) == {0.0}
        np.testing.assert_allclose(got["p_value"], p_values(got["ood_score"], other.calibration))
        np.testing.assert_array_equal(got["is_ood"], got["ood_score"] > 0.0)
        assert read_facts(tmp_path / "run" / version)["accuracy"] == 0.5
    sizes = [sum(f.stat().st_size for f in (tmp_path / "run" / v).rglob("*") if f.is_file()) for v in "23"]
    assert sizes[1] < 1.1 * sizes[0]


@pytest.mark.parametrize("score", [pytest.param("knn", marks=pytest.mark.slow), "nnguide"])
def test_what_a_score_was_fitted_on_is_saved_once_beside_the_graph(tmp_path, score, monkeypatch):
    """A bank of 5 MB, in one block (of one score) and in three: the graph's own file holds none of it."""
    rows = 13_000
    given = prepared(tmp_path, "Softmax", score, width=100)
    files = {}
    for name, block in (("one", 32_768), ("three", 5_000))[score == "nnguide" :]:
        monkeypatch.setattr("kood.scores.neighbours._Neighbours.BLOCK", block)
        state = {**given["served"].state, "bank": np.resize(given["served"].state["bank"], (rows, 100))}
        served = dataclasses.replace(given["served"], state=state)
        assert state["bank"].nbytes > 5e6
        scorer = Scorer(score, state)
        classifier = keras.saving.load_model(given["classifier_file"], compile=False)
        outputs = classifier(given["images"] / np.float32(127.5) - 1.0)
        write_saved_model(classifier, tmp_path / name, served)
        recalibrate(tmp_path / name, tmp_path / f"{name} again", served)
        for folder in (tmp_path / name, tmp_path / f"{name} again"):
            assert (folder / "saved_model.pb").stat().st_size < 700_000
            assert sum(f.stat().st_size for f in (folder / "variables").iterdir()) < 1.1 * state["bank"].nbytes
            got = tf.saved_model.load(str(folder)).signatures["serving_default"](images=tf.constant(given["images"]))
            np.testing.assert_allclose(got["ood_score"], scorer(outputs), rtol=1e-5, atol=1e-5)
        files[name] = got["ood_score"]
    np.testing.assert_allclose(files.get("one", files["three"]), files["three"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("head", "score"), [("Softmax", "vim"), ("CosFace", "mahalanobis"), ("CosFace", "relativemahalanobis"),
                        ("Softmax", "residual"), ("Softmax", "dice"), ("Softmax", "fdbd"), ("CosFace", "klmatching"),
                        ("Softmax", "react"), ("Softmax", "nci"), ("CosFace", "openmax"), ("Softmax", "weiper")]
)  # fmt: skip
def test_every_fitted_array_is_a_variable(tmp_path, head, score):
    given = prepared(tmp_path, head, score)
    served = given["served"]
    model = keras.saving.load_model(given["classifier_file"], compile=False)
    scored = Scored(model, Scorer(served.score, served.state))
    own = {id(v) for v in scored.variables} - {id(v) for v in scored.classifier.variables}
    arrays = [array for array in served.state.values() if array.ndim]
    assert arrays and len(own) == len(arrays)
    graph = tf.function(scored.call).get_concrete_function(tf.TensorSpec((None, *SHAPE)))
    constants = [tf.make_ndarray(n.attr["value"].tensor) for n in graph.graph.as_graph_def().node if n.op == "Const"]
    assert all(one.size <= 1 for one in constants if one.dtype.kind == "f")


def test_one_signature_alone(tmp_path):
    given = published(tmp_path / "run")
    publishing.write_single_signature(tmp_path / "run" / "1", tmp_path / "one")
    signatures = tf.saved_model.load(str(tmp_path / "one")).signatures
    assert list(signatures) == ["serving_default"]
    got = signatures["serving_default"](images=tf.constant(given["images"] / 127.5 - 1.0, tf.float32))
    np.testing.assert_allclose(got["ood_score"], given["expected"]["ood_score"], rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="there is something already"):
        publishing.write_single_signature(tmp_path / "run" / "1", tmp_path / "one")
    with pytest.raises(UserError, match="no signature other; there are encoded"):
        publishing.write_single_signature(tmp_path / "run" / "1", tmp_path / "two", "other")
    assert not (tmp_path / "two").exists()


def test_what_is_served_goes_through_npz(tmp_path):
    served = prepared(tmp_path, "Softmax", "vim", "mark")["served"]
    served.write(tmp_path / "served.npz")
    again = Served.read(tmp_path / "served.npz")
    assert (again.score, again.image_shape, again.names, again.accept, again.undecodable, again.threshold) == (
        served.score, served.image_shape, served.names, served.accept, served.undecodable, served.threshold,
    )  # fmt: skip
    assert again.state.keys() == served.state.keys()
    plain = dataclasses.replace(prepared(tmp_path)["served"], framing=Framing(resize="pad"))
    plain.write(tmp_path / "served.npz")
    again = Served.read(tmp_path / "served.npz")
    assert again.state is None and again.framing == plain.framing == Framing((255, 255, 255), "pad")


@pytest.mark.slow
def test_predict_needs_no_training_stack(tmp_path):
    published(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path; from kood.serving.client import open_model; "
        "open_model(Path(sys.argv[1])); "
        "print([m for m in ('kood.classifier', 'kood.pipeline', 'kood.nets') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, check=True, env=os.environ
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("score", ["max_logit", "energy", "mahalanobis", "msp"])
@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
def test_what_cannot_be_judged_is_flagged_and_named_nothing(tmp_path, score, strange):
    given = published(tmp_path / "run", "Softmax", score)
    normalized = tf.saved_model.load(str(given["version_folder"])).signatures["normalized"]
    images = (given["images"][:3] / 127.5 - 1.0).astype("float32")
    images[1, 3, 3, 0] = strange
    got = {name: value.numpy() for name, value in normalized(images=tf.constant(images)).items()}
    assert got["is_ood"][1] and all(np.isfinite(got[name]).all() for name in ("probabilities", "ood_score", "p_value"))
    assert (got["label"][1], got["class_name"][1], got["p_value"][1]) == (-1, b"", 0.0)
    plain = normalized(images=tf.constant(images[[0, 2]]))
    for name, values in got.items():
        np.testing.assert_array_equal(values[[0, 2]], plain[name])


def test_thresholds_by_class_are_in_the_graph(tmp_path):
    given = prepared(tmp_path)
    rng = np.random.default_rng(0)
    labels, one = rng.integers(0, 4, 60), given["served"]
    calibration = rng.choice(np.float64(given["expected"]["ood_score"]), 60)
    served = Served(one.score, one.image_shape, one.class_names, 0.65, calibration, labels=labels, by_class=True)
    publishing.publish(**{**given, "served": served, "version_folder": tmp_path / "7"})
    serve = tf.saved_model.load(str(tmp_path / "7")).signatures["serving_default"]
    got = {name: value.numpy() for name, value in serve(images=tf.constant(given["images"])).items()}
    scores, given_labels = got["ood_score"].astype("float64"), got["label"]
    assert len(served.decision.groups) == 4 and len(set(served.decision.thresholds)) > 1 and set(got["version"]) == {7}
    np.testing.assert_array_equal(got["threshold"], served.decision.thresholds[given_labels].astype("float32"))
    np.testing.assert_array_equal(got["is_ood"], scores > got["threshold"])
    for row, (score, label) in enumerate(zip(scores, given_labels, strict=True)):
        own = calibration[labels == label].astype("float32")
        assert got["p_value"][row] == pytest.approx((1 + np.sum(own >= np.float32(score))) / (1 + len(own)))
    facts = read_facts(tmp_path / "7")
    assert facts["by_class"] and facts["threshold"] is None and len(facts["groups"]) == 4
    card = (tmp_path / "7" / "assets.extra" / "model_card.md").read_text()
    assert "the threshold of the class that it is labelled as" in card and "whichever class" in card
