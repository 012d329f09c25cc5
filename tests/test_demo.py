"""`kood demo`: what the page says of a picture is what the model says, beside the nearest known images."""

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kood import demo
from kood.data.image_set import ImageSet
from kood.demo import Known, answered, known_of, page_of, show
from kood.errors import UserError
from kood.runs import Run
from kood.serving.answers import answers
from kood.serving.client import LocalModel, newest_version
from kood.serving.extras import read_facts

pytestmark = pytest.mark.one_backend


@pytest.fixture(scope="module")
def run(finished):
    return finished[0] / "saved" / "tiny"


@pytest.fixture(scope="module")
def known(run):
    return known_of(run, 1)


@pytest.fixture(scope="module")
def train(run):
    (data,) = Run(run).finished("data")
    return np.load(data.folder / "train.images.npy"), np.load(data.folder / "train.labels.npy")


def normal(images):
    return tf.constant(images.astype("float32") / 127.5 - 1)


def test_the_nearest_known_images(run, known, train):
    """Against every pair in float64, by the features of the classifier that was published."""
    images, labels = train
    assert len(known) == len(images)
    rng = np.random.default_rng(0)
    asked = np.concatenate([images[:3], rng.integers(0, 256, (2, 8, 8, 1), "uint8")])
    served = tf.saved_model.load(str(run / "1")).signatures["normalized"](images=normal(images))["probabilities"]
    trained = [keras.saving.load_model(file) for file in run.glob("stages/classifier-*/classifier.keras")]
    (published,) = (
        one for one in trained if np.allclose(keras.ops.softmax(one(normal(images))["logits"]), served, atol=1e-5)
    )
    features = [np.float64(published(normal(of))["features"]) for of in (asked, images)]
    one, other = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in features)
    cosines = one @ other.T
    for row, near in zip(cosines, known.nearest(asked, count=4), strict=True):
        np.testing.assert_allclose([each.cosine for each in near], np.sort(row)[::-1][:4], atol=1e-5)
    for number, (itself, *_) in enumerate(known.nearest(images[:3])):
        assert itself.cosine == pytest.approx(1.0, abs=1e-5)
        np.testing.assert_array_equal(itself.image, images[number])
        assert itself.class_name == str(labels[number])  # The tiny recipe's digits are classes 0 to 3.


def test_many_known_images_are_taken_evenly(known, train):
    images, labels = train
    times = -(-2500 // len(images))
    many = ImageSet(np.tile(images, (times, 1, 1, 1)), np.tile(labels, times), ("0", "1", "2", "3"))
    assert len(Known(known._classifier, many)) == 2000


def test_a_picture_is_answered_as_predict_does(run, known, train, tmp_path):
    model, facts = LocalModel(run / "1"), read_facts(run / "1")
    Image.fromarray(train[0][0, ..., 0]).save(tmp_path / "known.png")
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 30, 3), "uint8")).save(tmp_path / "noise.png")
    for name in ("known.png", "noise.png"):
        (plain,) = answers(model, [tmp_path / name])
        found = answered(model, facts, known, tmp_path / name)
        assert found.verdict.startswith("refused" if plain.said["is_ood"] else "accepted")
        assert dict(found.rows)["class"] == plain.said["class_name"]
        assert float(dict(found.rows)["p-value"]) == pytest.approx(plain.said["p_value"], rel=1e-2)
        assert len(found.near) == 6
        assert answered(model, facts, None, tmp_path / name).near == []
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert "broken.png" in answered(model, facts, known, tmp_path / "broken.png").verdict


def test_a_version_alone_has_no_known_images(run, tmp_path):
    shutil.copytree(run / "1", tmp_path / "alone" / "1")
    assert known_of(tmp_path / "alone", 1) is None


def published_again(run, version, **told):
    """The first version under another number, of which its facts say something else."""
    shutil.copytree(run / "1", run / f"{version}")
    file = run / f"{version}" / "assets.extra" / "kood.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | told))


def stage_again(run, kind, decides=None, **facts):
    """A finished stage once more, which says something else of itself."""
    (first, *_) = Run(run).finished(kind)
    again = run / "stages" / f"{kind}-{len(list(run.glob(f'stages/{kind}-*'))):016d}"
    shutil.copytree(first.folder, again)
    record = json.loads((again / "stage.json").read_text())
    record["decides"] |= decides or {}
    record["facts"] |= facts
    (again / "stage.json").write_text(json.dumps(record))


def test_a_calibration_has_the_known_images_of_the_classifier_that_it_publishes(run, known, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    run = tmp_path / "run"
    (export,) = Run(run).finished("export")
    mine = json.loads((export.folder / "stage.json").read_text())["decides"]["classifier"]
    others = [file.parent.name.rpartition("-")[2] for file in run.glob("stages/classifier-*/classifier.keras")]
    published_again(run, 2)
    stage_again(run, "export", {"classifier": next(key for key in others if key != mine)}, version=2)
    published_again(run, 3, calibrated_from="1")
    published_again(run, 4, calibrated_from="3")
    assert not np.allclose(known_of(run, 2)._features, known._features, atol=1e-3)
    for version in (1, 3, 4):
        np.testing.assert_allclose(known_of(run, version)._features, known._features, atol=1e-5)
    shutil.rmtree(run / "1")
    np.testing.assert_allclose(known_of(run, 4)._features, known._features, atol=1e-5)
    shutil.rmtree(run / "3")
    assert known_of(run, 4) is None  # What it was calibrated from, nobody knows.


def test_known_images_are_those_that_the_version_was_trained_on(run, known, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    run = tmp_path / "run"
    (data,) = Run(run).finished("data")
    train = {**data.facts["sets"]["train"], "sha256": "of other images", "class_names": list("wxyz")}
    stage_again(run, "data", sets={**data.facts["sets"], "train": train})
    assert Run(run).finished("data")[0].facts["sets"]["train"]["class_names"] == list("wxyz")
    near = known_of(run, 1).nearest(known._images.images[:1])
    assert near[0][0].class_name == known.nearest(known._images.images[:1])[0][0].class_name
    shutil.rmtree(data.folder)
    assert known_of(run, 1) is None


def test_the_page_shows_it(run, known, train, tmp_path):
    gradio = pytest.importorskip("gradio", reason="pip install 'kood[demo]'")
    Image.fromarray(train[0][0, ..., 0]).save(tmp_path / "known.png")
    model, facts = LocalModel(run / "1"), read_facts(run / "1")
    page = page_of(gradio, "tiny", lambda file: answered(model, facts, known, file))
    (ask,) = (one.fn for one in page.fns.values() if one.api_name == "ask")
    (picture,) = (one for one in page.blocks.values() if isinstance(one, gradio.Image))
    Image.fromarray(np.full((8, 8, 4), 90, "uint8")).save(tmp_path / "clear.png")
    given = SimpleNamespace(path=str(tmp_path / "clear.png"), url=None, orig_name="clear.png")
    assert picture.preprocess(given) == given.path  # As it was dropped.
    verdict, rows, tiles = ask(str(tmp_path / "known.png"))
    assert verdict and [row[0] for row in rows][:2] == ["class", "probability"] and len(tiles) == 6
    assert ask(None) == ("", [], [])
    text, *nothing = ask(str(tmp_path / "gone.png"))
    assert "gone.png" in text and nothing == [[], []]


def test_the_page_asks_about_the_file_and_says_whether_it_has_known_images():
    for has_known, told in ((True, "Nearest known images"), (False, "No known images to show")):
        page_of(gradio := MagicMock(), "tiny", lambda file: None, has_known)
        assert gradio.Image.call_args.kwargs["image_mode"] is None  # Else Gradio asks about a copy of its own.
        assert told in str(gradio.Markdown.call_args) and gradio.Gallery.call_args.kwargs["visible"] == has_known


def test_copies_of_pictures_go_with_the_page(run, monkeypatch):
    kept = []

    def launch(**settings):
        kept.append(Path(os.environ["GRADIO_TEMP_DIR"]))
        (kept[0] / "dropped.png").write_bytes(b"somebody's picture")
        assert settings["show_error"]  # Gradio's own, of a file that is no picture.
        raise OSError("the port is taken")

    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace(themes=SimpleNamespace(Default=lambda **given: None)))
    monkeypatch.setattr(demo, "page_of", lambda *given: SimpleNamespace(launch=launch))
    with pytest.raises(UserError, match="--port 80: the port is taken"):
        show(run, port=80)
    assert kept and not kept[0].exists()


def test_without_gradio_it_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install 'kood\[demo\]'"):
        show(run)


def test_a_folder_without_a_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", sys)
    with pytest.raises(UserError, match="there is no SavedModel here"):
        show(Path(tmp_path))


def test_a_misspelt_run_is_named(run):
    with pytest.raises(UserError, match=r"tinny: there is no SavedModel here.*; did you mean 'tiny'\?"):
        newest_version(run.parent / "tinny")
