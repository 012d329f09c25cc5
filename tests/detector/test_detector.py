"""The detector around a classifier that exists: what it answers, what it refuses, its file and its SavedModel."""

import copy
import io
import itertools
import json
import pickle
import re
import zipfile

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image

import kood
from kood import heads
from kood.attached import adapted
from kood.classifier import Classifier
from kood.data import ImageSet
from kood.data.images import fit_images, normalize
from kood.data.rules import Framing
from kood.detector import Detector, formats
from kood.detector.agreement import disagreement
from kood.detector.evaluate import evaluate
from kood.detector.images import Batch
from kood.detector.passing import Aside, Known
from kood.detector.ranges import Ranges
from kood.detector.trying import TRIED, tried
from kood.errors import UserError
from kood.outputs import score_rows
from kood.serving.client import LocalModel
from kood.serving.extras import read_facts

pytestmark = pytest.mark.backend  # Run once under each Keras backend.

K = 3


def images(count, seed, mixed=False):
    """uint8 (n, 8, 8, 3): class k is bright in channel k; a mixture in two of them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, K, count)
    pixels = rng.integers(0, 60, (count, 8, 8, 3))
    for row, label in enumerate(labels):
        pixels[row, :, :, label] += 160
        if mixed:
            pixels[row, :, :, (label + 1) % K] += 150
    return pixels.astype("uint8"), labels


def built(last="softmax", units=K):
    """Means of the channels in 0..1, ten times, are the logits."""
    inputs = keras.Input((8, 8, 3))
    found = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    found = keras.layers.Dense(6, activation="relu", name="hidden")(found)
    model = keras.Model(inputs, keras.layers.Dense(units, activation=last, name="top")(found))
    hidden = np.zeros((3, 6), "float32")
    hidden[np.arange(3), np.arange(3)] = 1
    hidden[:, 3:] = np.random.default_rng(0).normal(size=(3, 3)) * 0.1
    model.get_layer("hidden").set_weights([hidden, np.full(6, 0.1, "float32")])
    model.get_layer("top").set_weights([20 * np.eye(6, units, dtype="float32"), np.zeros(units, "float32")])
    return model


@pytest.fixture(scope="module")
def model():
    return built()


@pytest.fixture(scope="module")
def detector(model):
    made = Detector(model, "energy", ["red", "green", "blue"])
    return made.calibrate(*images(99, 3), accept=0.9)


def test_answers_are_those_of_the_logits_and_the_calibration_scores(model, detector):
    pixels, labels = images(60, 4)
    answers = detector.predict(pixels)
    probabilities = np.asarray(ops.convert_to_numpy(model(pixels.astype("float32"))), "float64")
    np.testing.assert_allclose(answers.probabilities, probabilities, atol=1e-5)
    assert (answers.label == labels).all() and (answers.class_name == np.array(["red", "green", "blue"])[labels]).all()

    def energy(some):
        weights = [w.astype("float64") for name in ("hidden", "top") for w in model.get_layer(name).get_weights()]
        hidden = np.maximum(some.astype("float64").mean(axis=(1, 2)) / 255 @ weights[0] + weights[1], 0)
        return -np.logaddexp.reduce(hidden @ weights[2] + weights[3], axis=1)

    known, scores = np.sort(energy(images(99, 3)[0])), energy(pixels)
    np.testing.assert_allclose(answers.ood_score, scores, atol=1e-4)
    np.testing.assert_allclose(answers.threshold, known[90 - 1], atol=1e-4)  # ceil(100 * 0.9) of 99.
    clear = np.abs(scores - known[89]) > 1e-3
    np.testing.assert_array_equal(answers.is_ood[clear], (scores > known[89])[clear])
    apart = np.abs(known[:, None] - scores).min(axis=0) > 1e-4
    p_values = (1 + (known[:, None] >= scores).sum(axis=0)) / 100
    np.testing.assert_allclose(answers.p_value[apart], p_values[apart], atol=1e-12)
    assert len(answers) == 60


def first_pixel(dtype, inside):
    """A classifier whose first logit is the value of the first pixel, as a whole number."""
    pixels = keras.Input((4, 4, 1), dtype=dtype)
    whole = ops.cast(pixels, inside) if inside else pixels
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1.0)(whole))
    model = keras.Model(pixels, keras.layers.Dense(2, use_bias=False)(flat))
    model.set_weights([np.eye(16, 2, dtype="float32")])
    return model


@pytest.mark.parametrize(
    ("dtype", "inside"), [("uint8", None), pytest.param("int32", None, marks=pytest.mark.slow), ("float32", "int32")]
)
def test_a_model_that_makes_integers_of_its_pixels_gets_each_as_it_is(dtype, inside, tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (256, 4, 4, 1)).astype("uint8")
    pixels[:, 0, 0, 0], pixels[:, 0, 1, 0] = np.arange(256), 0
    detector = Detector(first_pixel(dtype, inside), "max_logit").calibrate(pixels, accept=0.9)
    np.testing.assert_array_equal(detector.predict(pixels).ood_score, -np.arange(256.0))
    np.testing.assert_array_equal(detector.predict(pixels.astype("float32")).ood_score, -np.arange(256.0))
    detector.export(tmp_path / "1")
    files = []
    for image in pixels[::5]:
        file = io.BytesIO()
        Image.fromarray(image[..., 0]).save(file, "PNG")
        files.append(file.getvalue())
    served = LocalModel(tmp_path / "1").ask(files)
    np.testing.assert_array_equal([answer["ood_score"] for answer in served], -np.arange(256.0)[::5])


def test_every_way_to_give_images_gives_the_same_answers(detector, tmp_path):
    import tensorflow as tf

    pixels, labels = images(30, 5)
    wanted = detector.predict(pixels)
    for row, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        folder = tmp_path / "known" / ["red", "green", "blue"][label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{row:02}.png")
    by_class = np.argsort(np.array(["red", "green", "blue"])[labels], kind="stable")
    ways = {
        "float": pixels.astype("float32"),
        "tensor": ops.convert_to_tensor(pixels.astype("float32")),
        "dataset": tf.data.Dataset.from_tensor_slices((pixels, labels)).batch(7),
        "generator": (pixels[start : start + 4] for start in range(0, 30, 4)),
    }
    for name, given in ways.items():
        np.testing.assert_allclose(detector.predict(given).ood_score, wanted.ood_score, atol=1e-5, err_msg=name)
    files = detector.predict(tmp_path / "known")
    np.testing.assert_allclose(files.ood_score, wanted.ood_score[by_class], atol=1e-5)
    figures = detector.evaluate(str(tmp_path / "known"), near={"mixed": images(20, 6, mixed=True)[0]})
    assert figures["id"] == {"accuracy": 1.0, "ece": figures["id"]["ece"], "images": 30}
    assert figures["scores"]["energy"]["mixed"] == figures["scores"]["energy"]["near"]
    table, plain, others = (tmp_path / name for name in ("known.csv", "plain.txt", "others.csv"))
    lines = [f"known/{path.parent.name}/{path.name}" for path in sorted((tmp_path / "known").rglob("*.png"))]
    table.write_text("".join(f"{line},{line.split('/')[1]}\n" for line in lines))
    plain.write_text("\n".join(lines))
    others.write_text("".join(f"{line},cat\n" for line in lines))
    for file in (table, plain, others):
        np.testing.assert_allclose(detector.predict(file).ood_score, wanted.ood_score[by_class], atol=1e-5)
    assert detector.evaluate(table)["id"] == figures["id"] == detector.evaluate(plain, labels=labels[by_class])["id"]
    with pytest.raises(UserError, match=r"images: .*others\.csv has classes that are none of .*: cat; the"):
        detector.evaluate(others)
    beside = "".join(f"{row},{line},1,cat\n" for row, line in enumerate(["known/none.png", *lines, lines[0]]))
    table.write_text(f"id,image,label,class_name\n{beside}")
    told = detector.predict(table)
    assert told.files == [str(tmp_path / line) for line in [*lines, lines[0]]] and len(told.unreadable) == 1
    table.write_text("id,image,x\n" + "".join(f"1,{line},\n" for line in lines))
    assert detector.evaluate(table, labels=labels[by_class])["id"] == figures["id"]
    table.write_text("known/none.png,red\n")
    with pytest.raises(UserError, match=r"^images: line 1 of .*known\.csv "):
        detector.predict(table)


@pytest.mark.one_backend
def test_files_that_keras_reads_otherwise_are_told_of_once(model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    files, labels = [tmp_path / f"{row}.png" for row in range(40)], images(40, 3)[1]
    for row, (file, image) in enumerate(zip(files, images(40, 3)[0], strict=True)):
        one = Image.fromarray(image)
        (one.convert("RGBA") if row < 3 else one).save(file, exif=exif if row in (3, 30) else None)
    made = Detector(model, "energy").fit(files[:20], labels[:20])
    turned, transparent = made.warnings
    assert turned.startswith("images: 1 of 20 files looked at are turned upright as their EXIF says")
    assert transparent.startswith("images: 3 of 20 files looked at are transparent")
    assert made.calibrate(files[20:], accept=0.9).warnings == [turned, transparent]
    (turned,) = Detector(model, "energy").calibrate(files[20:], accept=0.9).warnings
    assert turned.startswith("images: 1 of 20 files looked at are turned")
    assert Detector(model, "energy").calibrate(images(40, 3)[0], accept=0.9).warnings == []


def test_what_is_predicted_needs_no_class_of_the_models(detector, tmp_path):
    import tensorflow as tf

    pixels, _ = images(12, 5)
    wanted = detector.predict(pixels)
    for row, image in enumerate(pixels):
        folder = tmp_path / ("cats" if row < 6 else "dogs")
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{row:02}.png")
    (tmp_path / "dogs" / "05.png").write_bytes(b"no image")
    told = detector.predict(tmp_path)
    np.testing.assert_allclose(told.ood_score, wanted.ood_score, atol=1e-5)
    assert len(told.files) == 12 and told.files[6].endswith("06.png")
    assert len(told.unreadable) == 1 and "05.png" in told.unreadable[0]
    others = tf.data.Dataset.from_tensor_slices((pixels, np.arange(12) + 90)).batch(5)
    np.testing.assert_allclose(detector.predict(others).ood_score, wanted.ood_score, atol=1e-5)
    figures = detector.evaluate(images(30, 6), near={"dataset": others}, far={"folder": tmp_path})
    assert figures["scores"]["energy"]["dataset"] == figures["scores"]["energy"]["folder"]
    # Known images of folders by date, say, are known images all the same.
    again = Detector(detector.classifier.model, "energy").calibrate(tmp_path, accept=0.9)
    assert len(again.decision.scores) == 12 and "1 files cannot be read" in again.warnings[0]


def test_a_lens_that_is_covered_is_flagged_and_not_refused(detector):
    black = np.zeros((4, 8, 8, 3), "float32")
    black[1:] = np.random.default_rng(0).integers(0, 2, (3, 8, 8, 3))
    assert len(detector.predict(black)) == 4
    with pytest.raises(UserError, match="give pixels of the same range"):
        detector.predict(black + 0.3)


def test_another_fit_begins_anew(model):
    made = Detector(model).fit(*images(100, 1)).calibrate(*images(60, 2))
    first = made.choice
    with pytest.raises(UserError, match="fit has seen 100 of these 100"):
        made.calibrate(*images(100, 1))
    assert len(made.decision.scores) == 60  # What was there stays.
    made.fit(*images(100, 5))
    with pytest.raises(UserError, match="call calibrate"):
        made.predict(images(5, 6)[0])
    made.calibrate(*images(100, 1)).fit(*images(100, 1))
    assert made.choice == first and made.digests.keys() == {"trained"}


@pytest.mark.one_backend
def test_a_fit_that_fails_leaves_nothing_to_calibrate(model):
    pixels, labels = images(100, 1)
    made = Detector(model).fit(pixels, labels).calibrate(*images(60, 2))
    with pytest.raises(UserError, match="give at least 10 images"):
        made.fit(pixels[:4], labels[:4])
    with pytest.raises(UserError, match="is chosen by fit"):
        made.calibrate(*images(60, 2))


@pytest.mark.one_backend
def test_a_fit_that_one_named_score_refuses_has_fitted_no_other(model):
    pixels, labels = images(100, 1)
    made = Detector(model, "mahalanobis", scores=["mahalanobis", "she"])
    with pytest.raises(UserError, match="she"):  # It needs images of each class.
        made.fit(pixels[labels < 2], labels[labels < 2])
    with pytest.raises(UserError, match=r"mahalanobis is fitted to known images; call fit\(images\) first"):
        made.calibrate(*images(60, 2))
    made.fit(pixels, labels).calibrate(*images(60, 2))


def test_no_more_than_a_few_batches_are_in_memory(model):
    held = []

    def given():
        for start in range(40):
            held.append(start)
            yield images(16, start)[0]

    made = Detector(model, "energy", batch_size=16)
    known = made.outputs(given())
    assert len(known["logits"]) == 640 and len(held) == 40


def test_large_images_pass_a_few_at_a_time(model):
    pooled = keras.layers.GlobalAveragePooling2D()(pixels := keras.Input((None, None, 3)))
    any_size = keras.Model(pixels, keras.layers.Dense(K)(pooled))
    sizes = {side: Detector(any_size, "msp", image_shape=(side, side, 3)).batch_size for side in (64, 224, 1024)}
    assert sizes == {64: 64, 224: 10, 1024: 8} and Detector(model, "msp", batch_size=5).batch_size == 5


def test_a_score_is_chosen_on_images_that_are_set_aside(model):
    made = Detector(model).fit(*images(200, 1))
    assert made.choice.by[made.score] == max(made.choice.by.values()) and len(made.choice.by) > 5
    assert made.choice.sets == ["pixel_mixup", "patch_shuffle", "pictures"]
    against = "validation images from pixel mixups, patch shuffles and drawn pictures (mean AUROC"
    assert any(line.startswith(f"Score: {made.score}, which best tells {against}") for line in made.told)
    figures = made.calibrate(*images(60, 2)).evaluate(images(50, 3), far={"mixed": images(40, 4, mixed=True)[0]})
    assert figures["headline_score"] == made.score and figures["validation"] == made.choice.by
    assert set(figures["scores"]) == set(made.scorers) and figures["threshold"]["calibration_images"] == 60
    again = Detector(model).fit(*images(200, 1))
    assert again.choice == made.choice


def leaves(value):
    """The numbers in nested tables and lists, in order."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from leaves(one)
    elif not isinstance(value, str | None):
        yield value


def test_the_figures_are_those_of_a_run():
    inputs = keras.Input((8, 8, 3))
    backbone = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs))
    classifier = Classifier(backbone, heads.Softmax(K))
    classifier.build((None, 8, 8, 3))
    classifier.head.set_weights([6 * np.eye(3, K, dtype="float32"), np.zeros(K, "float32")])
    sets = {name: ImageSet(pixels, labels.astype("int64"), ("a", "b", "c")) for name, (pixels, labels) in {
        "train": images(90, 1), "calibration": images(60, 2), "test": images(80, 3)}.items()}  # fmt: skip
    outside = ImageSet(images(50, 4, mixed=True)[0])
    whole = evaluate(
        classifier, **sets, validation=None, near={"mixed": outside}, far={}, names=["knn:k=5", "msp"],
        headline="knn:k=5", accept=0.9,
    )  # fmt: skip
    made = Detector(classifier, "knn:k=5", ("a", "b", "c"), scores=["knn:k=5", "msp"])
    made.fit(sets["train"]).calibrate(sets["calibration"], accept=0.9)
    figures = made.evaluate(sets["test"], near={"mixed": outside})
    assert figures["scores"].keys() == {"knn:k=5", "msp"}
    assert list(leaves(figures)) == pytest.approx(list(leaves(whole.figures)), abs=1e-5)
    # Floats of kood's own classifiers are in [-1, 1]; bytes are brought there.
    float_ = made.predict(sets["test"].images.astype("float32") / 127.5 - 1)
    np.testing.assert_allclose(float_.ood_score, made.predict(sets["test"].images).ood_score, atol=1e-5)


@pytest.mark.parametrize("last, units, kind", [("sigmoid", 1, "two"), (None, K, "logits")])
def test_one_unit_and_bare_logits(last, units, kind):
    made = Detector(built(last, units), "max_logit" if kind == "two" else "msp")
    pixels, labels = images(99, 3)
    outputs = made.calibrate(pixels).outputs(pixels)
    assert outputs["logits"].shape == (99, 2 if kind == "two" else K)
    if kind == "two":
        assert (outputs["logits"].sum(axis=1) == 0).all()
    else:
        assert (made.predict(pixels).label == labels).all()


def test_the_file_holds_all_of_it(model, detector, tmp_path):
    pixels, _ = images(40, 7)
    fitted = Detector(model, "mahalanobis", ["r", "g", "b"], by := None).fit(*images(120, 1))
    assert by is None
    fitted.calibrate(*images(80, 2), by_class=True)
    for made in (detector, fitted):
        made.save(tmp_path / "one.kood")
        again = Detector.load(tmp_path / "one.kood")
        before, after = made.predict(pixels), again.predict(pixels)
        for name in vars(before):
            mine, its = np.asarray(getattr(before, name)), np.asarray(getattr(after, name))
            if mine.dtype.kind in "Ob":
                np.testing.assert_array_equal(mine, its)
            else:
                np.testing.assert_allclose(mine, its, atol=1e-6)
        assert again.class_names == made.class_names and again.decision.accept == made.decision.accept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.kood"]
    with pytest.raises(UserError, match="fit has seen 120 of these 120 images"):
        Detector.load(tmp_path / "one.kood").calibrate(*images(120, 1))


@pytest.mark.parametrize("name", ["it.kood", "1"])
def test_what_load_would_not_run_is_not_saved(tmp_path, name):
    inputs = keras.Input((8, 8, 3))
    scaled = keras.layers.Lambda(lambda pixels: pixels / 255.0, name="scale")(inputs)
    last = keras.layers.Dense(K, activation="softmax")(keras.layers.GlobalAveragePooling2D()(scaled))
    made = Detector(keras.Model(inputs, last), "energy").calibrate(images(99, 3)[0])
    with pytest.raises(UserError, match=rf"{name}: .* Python code \(the Lambda layer 'scale'\), which is not run"):
        (made.save if name == "it.kood" else made.export)(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.one_backend
@pytest.mark.parametrize("ending", [".onnx", ".tflite"])
def test_an_export_of_half_precision_says_why_it_fails_and_the_way_out_leads_out(tmp_path, ending):
    pytest.importorskip("tf2onnx" if ending == ".onnx" else "ai_edge_litert", reason="comes with kood[export]")
    keras.utils.set_random_seed(1)
    model = keras.Sequential([
        keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(8, 3, activation="relu"),
        keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(K, activation="softmax"),
    ])  # fmt: skip
    for layer in model.layers:
        layer.dtype_policy = "mixed_float16"
    pixels = images(99, 3)[0]
    with pytest.raises(UserError, match=r'are of float16, .* set layer.dtype_policy = "float32" for each'):
        Detector(model, "energy").calibrate(pixels).export(tmp_path / f"it{ending}")
    assert not list(tmp_path.iterdir())
    for layer in model.layers:
        layer.dtype_policy = "float32"
    Detector(model, "energy").calibrate(pixels).export(tmp_path / f"it{ending}")


def unregistered(pixels):
    return pixels / 255.0


def test_an_export_of_a_function_that_is_not_registered_names_it(tmp_path):
    inputs = keras.Input((8, 8, 3))
    found = keras.layers.GlobalAveragePooling2D()(keras.layers.Lambda(unregistered)(inputs))
    made = Detector(keras.Model(inputs, keras.layers.Dense(K, activation="softmax")(found)), "energy")
    with pytest.raises(UserError, match="has the custom layer or function 'unregistered'; register it"):
        made.calibrate(images(99, 3)[0]).export(tmp_path / "1")


@pytest.mark.one_backend  # That each backend's is written and served is held below, and the framing is no backend's.
@pytest.mark.parametrize("resize, antialias", [pytest.param("crop", True, marks=pytest.mark.slow), ("pad", False)])
def test_files_of_other_proportions(model, tmp_path, resize, antialias):
    made = Detector(model, "energy", ["r", "g", "b"], resize=resize, antialias=antialias).calibrate(
        *images(99, 3), accept=0.9
    )
    wide = np.concatenate([images(6, 4)[0], images(6, 5)[0]], axis=2)
    files = [tmp_path / f"{row}.png" for row in range(6)]
    for file, image in zip(files, wide, strict=True):
        Image.fromarray(image).save(file)
    framing = Framing(resize=resize, antialias=antialias)
    wanted = made.predict(fit_images(wide, (8, 8, 3), framing)).ood_score
    np.testing.assert_array_equal(made.predict(files).ood_score, wanted)
    made.save(tmp_path / "one.kood")
    again = Detector.load(tmp_path / "one.kood")
    assert again.framing == framing
    np.testing.assert_array_equal(again.predict(files).ood_score, wanted)
    made.export(tmp_path / "1")
    answers = LocalModel(tmp_path / "1").ask([file.read_bytes() for file in files])
    np.testing.assert_allclose([one["ood_score"] for one in answers], wanted, atol=1e-4)
    assert Framing.read(read_facts(tmp_path / "1")) == framing


def test_a_way_to_resize_that_there_is_not_is_named(model):
    with pytest.raises(UserError, match="resize = 'squash': give one of stretch, crop, pad"):
        Detector(model, resize="squash")


@pytest.mark.one_backend
@pytest.mark.parametrize("name", ["it.keras", "it.h5", "it.ONNX", "it.tflite", "it.xml", "serving/1", "folder"])
def test_a_name_of_another_kind_of_file_is_refused(detector, tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"give a name that ends in \.kood"):
        detector.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    for fine in ("plain", "v1.2", "it.detector"):
        detector.save(tmp_path / fine)
        assert Detector.load(tmp_path / fine).score == detector.score


@pytest.mark.one_backend
def test_warnings_of_classes_are_told(model):
    made = Detector(model, "msp", ["r", "g", "b"]).calibrate(*images(99, 3), by_class=True, accept=0.97)
    pixels, labels = images(150, 4)
    strange = np.where((labels == 1)[:, None, None, None], images(150, 5, mixed=True)[0], pixels)
    told = " ".join(made.evaluate((strange, labels))["warnings"])
    plain = Detector(model, "msp", ["r", "g", "b"]).calibrate(*images(99, 3))
    told += " ".join(plain.evaluate((strange, labels))["warnings"])
    assert "thresholds by class: " in told and "a threshold for each class helps (" in told
    assert "a training on more of them helps" in told and "data.id" not in told


@keras.saving.register_keras_serializable(package="elsewhere")
class Doubled(keras.layers.Layer):
    def call(self, x):
        return 2 * x


def test_a_strangers_file_runs_nothing(tmp_path):
    inputs = keras.Input((8, 8, 3))
    found = keras.layers.GlobalAveragePooling2D()(keras.layers.Lambda(lambda x: x * 1.0)(inputs))
    keras.Model(inputs, keras.layers.Dense(2)(found)).save(tmp_path / "code.keras")
    with pytest.raises(UserError, match=r"code\.keras cannot be loaded: .*Lambda.*not run"):
        Detector(tmp_path / "code.keras", "msp")
    found = keras.layers.GlobalAveragePooling2D()(Doubled()(inputs))
    made = Detector(keras.Model(inputs, keras.layers.Dense(2)(found)), "msp")
    made.save(tmp_path / "own.kood")
    keras.saving.get_custom_objects().pop("elsewhere>Doubled")
    # Keras finds a class by its module as well, which a stranger has not.
    with zipfile.ZipFile(tmp_path / "own.kood") as file:
        parts = {name: file.read(name) for name in file.namelist()}
    (tmp_path / "inner.keras").write_bytes(parts["classifier.keras"])
    with zipfile.ZipFile(tmp_path / "inner.keras") as file:
        inner = {name: file.read(name) for name in file.namelist()}
    inner["config.json"] = inner["config.json"].replace(__name__.encode(), b"nowhere.known")
    with zipfile.ZipFile(tmp_path / "inner.keras", "w") as file:
        for name, content in inner.items():
            file.writestr(name, content)
    parts["classifier.keras"] = (tmp_path / "inner.keras").read_bytes()
    with zipfile.ZipFile(tmp_path / "own.kood", "w") as file:
        for name, content in parts.items():
            file.writestr(name, content)
    with pytest.raises(UserError, match=r"custom layer or function 'Doubled'.*custom_objects"):
        Detector.load(tmp_path / "own.kood")
    assert Detector.load(tmp_path / "own.kood", custom_objects={"Doubled": Doubled}).score == "msp"
    keras.saving.register_keras_serializable(package="elsewhere")(Doubled)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (1, "kood 0.*, in an older format than this kood's; fit and save it again"),
        (99, "kood 0.*, in a newer format than this kood's; update kood"),
    ],
)
def test_a_file_of_another_format_says_what_to_do(model, tmp_path, number, told):
    Detector(model, "msp").save(tmp_path / "it.kood")
    with zipfile.ZipFile(tmp_path / "it.kood") as file, zipfile.ZipFile(tmp_path / "other.kood", "w") as other:
        for name in file.namelist():
            content = file.read(name)
            if name == "detector.json":
                content = json.dumps(json.loads(content) | {"format": number}).encode()
            other.writestr(name, content)
    with pytest.raises(UserError, match=f"other.kood was saved by {told}"):
        Detector.load(tmp_path / "other.kood")


def packed_otherwise():
    """An archive that says that its file is packed in a way that nobody knows."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as file:
        file.writestr("detector.json", "{}")
    content = bytearray(whole.getvalue())
    content[content.find(b"PK\x01\x02") + 10] = 99
    return bytes(content)


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + b"\0" * 18, b"not a zip", packed_otherwise()])
def test_a_damaged_file_is_one_message(tmp_path, content):
    (tmp_path / "bad.kood").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.kood is no detector that kood saved"):
        Detector.load(tmp_path / "bad.kood")
    with pytest.raises(UserError, match="does not exist"):
        Detector.load(tmp_path / "none.kood")


@pytest.mark.parametrize(
    ("version", "told"),
    [("99.1.0", "loaded: Keras 99.1.0 saved it, and here is .*; upgrade keras: "), (keras.__version__, "loaded: Could"),
     (None, "loaded: Could")],
)  # fmt: skip
def test_a_file_of_a_newer_keras_is_called_that(tmp_path, version, told):
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("config.json", '{"module": "keras.layers", "class_name": "Unheard", "config": {}}')
        archive.writestr("model.weights.h5", b"")
        archive.writestr("metadata.json", json.dumps({"keras_version": version} if version else {}))
    with pytest.raises(UserError, match=told) as raised:
        Detector(tmp_path / "m.keras", "msp")
    assert ("upgrade" in str(raised.value)) == (version == "99.1.0")


def test_wrong_input_is_refused_with_the_fix(model, detector):
    pixels, labels = images(99, 3)
    small = (pixels / 255).astype("float32")
    for wrong, message in (
        (lambda: detector.predict(small), "these pixels lie in 0 to .* known images in 0 to"),
        (lambda: Detector(model, "msp").calibrate(small), r"made for pixels of 0\.\.255"),
        (lambda: Detector(model, "msp").calibrate(pixels, (labels + 1) % K), "if the classes stand in another order"),
        (
            lambda: Detector(model, "msp").calibrate(pixels[:18]),
            "^accept = 0.95 needs at least 19 calibration images, there are 18; give more images or lower accept$",
        ),
        (lambda: Detector(model, "msp").calibrate(pixels[:18], by_class=True), "^accept = .* give more images"),
        (lambda: Detector(model, class_names=["a", "b", "\udce9"]), r"class_names: the name '\\udce9' is not UTF-8"),
        (lambda: Detector(model, class_names=["a", "b", "a"]), "class_names: 'a' stands there twice"),
        (
            lambda: detector.evaluate(pixels, near=[pixels], labels=labels),
            r'^evaluate: near: give images by name, near=\{"name": images\}, not list$',
        ),
        (lambda: Detector(model, "msp").calibrate(np.repeat(pixels[:5], 10, axis=0)), "at least 19 .* there are 5"),
        (lambda: Detector(model, "msp").calibrate(pixels, accept=1.0), "write a share between 0 and 1"),
        (lambda: Detector(model).calibrate(pixels), 'score = "auto" is chosen by fit'),
        (lambda: Detector(model, "knn").calibrate(pixels), "call fit"),
        (lambda: Detector(model, "msp").predict(pixels), "call calibrate"),
        (lambda: Detector(model, "max_cosine"), "score: this head cannot give max_cosine"),
        (lambda: Detector(model, "nothing"), "score: there is no 'nothing' among the scores"),
        (lambda: Detector(model, class_names=["a"]), "there are 1, and the model tells 3 classes apart"),
        (lambda: Detector(model, image_shape=(9, 9, 3)), r"the model takes \(8, 8, 3\)"),
        (lambda: Detector("none.keras"), "none.keras does not exist"),
        (lambda: detector.evaluate(pixels), "have no labels"),
        (lambda: Detector(None), "a keras.Model is needed, not NoneType"),
        (lambda: Detector(model, image_shape=(8, 8)), r"image_shape = \(8, 8\): give \(height, width, channels\)"),
        (lambda: Detector(model, batch_size=0), "batch_size = 0: give a number from 1 on"),
        (lambda: Detector(model, "msp").calibrate(pixels, accept="0.9"), "write a share between 0 and 1"),
        (lambda: detector.evaluate((pixels, labels), near={"id": pixels}), "'id' cannot name a set"),
        (lambda: detector.predict(np.empty((0, 8, 8, 3), "uint8")), "images: there are none"),
        (lambda: Detector(model).fit(pixels[:3]), "too few|cannot be fitted|cannot choose"),
    ):
        try:
            wrong()
        except UserError as error:
            assert re.search(message, str(error)), (message, str(error))
        else:
            pytest.fail(f"nothing says that {message}")


@pytest.mark.one_backend
def test_images_that_fit_has_seen_are_known_again_as_numbers_of_another_kind(model):
    pixels, labels = images(60, 3)
    floats = pixels.astype("float32")
    for fitted, again in ((pixels, floats), (floats, pixels), (pixels, floats.astype("float64"))):
        fit = Detector(model, "energy").fit(fitted, labels)
        with pytest.raises(UserError, match="fit has seen 60 of these 60 images"):
            fit.calibrate(again, labels)
        fit.calibrate(floats + 0.25, accept=0.9)  # Of these nobody knows what they were.


@pytest.mark.one_backend
def test_a_classifier_of_koods_knows_bytes_again_in_its_own_range():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    backbone = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(inputs)))
    own = Classifier(backbone, heads.Softmax(K))
    pixels, _ = images(60, 3)
    for given in (normalize(pixels), (pixels / 255 * 2 - 1).astype("float32")):
        with pytest.raises(UserError, match="fit has seen 60 of these 60 images"):
            Detector(own, "energy").fit(pixels).calibrate(given)


@pytest.mark.one_backend
def test_an_evaluation_tells_of_images_that_are_not_new(model, tmp_path):
    pixels, labels = images(300, 3)
    made = Detector(model, "energy").fit(pixels[:100], labels[:100]).calibrate(pixels[100:200], labels[100:200])
    outside = images(50, 5, mixed=True)[0]

    def told(known, near=outside, far=outside):
        return made.evaluate(known, near={"one": near}, far={"two": far})["warnings"]

    fresh = pixels[200:], labels[200:]
    usual = told(fresh)
    assert not any("known images" in text for text in usual)
    first, *others = told((pixels[90:230], labels[90:230]))
    assert first == (
        "the known images: of 140 images 10 are known images that fit has seen and 100 are known images that calibrate "
        "has set the threshold on; figures on them promise more than new images will give, so give images that nothing "
        "has seen"
    )
    assert not any("that nothing has seen" in text for text in others)
    mixed = np.concatenate([outside, pixels[:3], pixels[200:205]])
    made.save(tmp_path / "it.kood")
    made = Detector.load(tmp_path / "it.kood")
    for known in (fresh, ImageSet(*fresh, tuple(made.class_names))):
        near, far, *_ = told(known, mixed, mixed.astype("float32")[10:])
        assert near.startswith(
            "'one': of 58 images 3 are known images that fit has seen and 5 are known images of this evaluation; "
        )
        assert far.startswith("'two': of 48 images 3 are known images that fit")


BEYOND = {
    "16 bits": lambda x: 257 * x, "twice": lambda x: 2 * x, "a hundred times": lambda x: 100 * x,
    "negative": lambda x: x - 300, "one huge number": lambda x: 0 * x + 1e9,
}  # fmt: skip


def silent():
    """As `built`, of pixels of 0..255, without a first layer that says so."""
    inputs = keras.Input((8, 8, 3))
    found = keras.layers.Dense(K, name="top")(keras.layers.GlobalAveragePooling2D()(inputs))
    model = keras.Model(inputs, found)
    model.get_layer("top").set_weights([0.1 * np.eye(3, K, dtype="float32"), np.zeros(K, "float32")])
    return model


@pytest.mark.parametrize("make", [built, pytest.param(silent, marks=pytest.mark.one_backend)])
@pytest.mark.parametrize("prepared", [False, pytest.param(True, marks=pytest.mark.one_backend)])
def test_floats_of_another_range_are_refused_by_whatever_takes_images(make, prepared):
    def new():
        return Detector(make(), "energy", preprocess="none" if prepared else None)

    pixels, labels = images(99, 3)
    pixels = pixels.astype("float32")
    fitted = new().fit(pixels[:40], labels[:40])
    ready = new().calibrate(pixels, labels)
    for kind, change in BEYOND.items():
        given = change(pixels)
        uses = [ready.predict, lambda g: fitted.calibrate(g[40:]), lambda g: ready.evaluate((g, labels)),
                lambda g: ready.evaluate((pixels, labels), near={"others": g})]  # fmt: skip
        if make is built or prepared:  # Else nothing says anything before the first images.
            uses += [lambda g: new().fit(g, labels), lambda g: new().calibrate(g, labels)]
        for number, use in enumerate(uses):
            with pytest.raises(UserError, match="give pixels of") as caught:
                use(given)
            assert "\n" not in str(caught.value), (kind, number)
    # Later batches count too.
    late = np.concatenate([pixels, pixels[:64], 2 * pixels])
    with pytest.raises(UserError, match="give pixels of"):
        ready.predict(late)


@pytest.mark.one_backend
@pytest.mark.parametrize("preprocess", ["none", "0..1", "-1..1", "torch", "caffe", lambda x: x / 255])
def test_pixels_that_are_prepared_already_are_not_prepared_again(preprocess):
    pixels, labels = images(99, 3)
    floats = pixels.astype("float32")
    wrong = "made for pixels of 0..255, by its preprocessing, .* already; .* in files, or leave preprocess out"
    for call, how in itertools.product(("fit", "calibrate"), ("0..1", "-1..1", "torch")):
        with pytest.raises(UserError, match=f"{call}: .*{wrong}"):
            getattr(Detector(silent(), "energy", preprocess=preprocess), call)(PREPARED[how](floats))
    # Dark images in whole numbers may be any.
    Detector(silent(), "energy", preprocess=preprocess).calibrate(np.minimum(floats, 3))


@pytest.mark.one_backend
@pytest.mark.parametrize("preprocess", ["none", "-1..1"])
def test_a_classifier_of_koods_with_a_preprocessing_takes_pixels_of_files_alone(preprocess):
    inputs = keras.Input((8, 8, 3))
    backbone = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(inputs)))
    own, pixels = Classifier(backbone, heads.Softmax(K)), images(60, 3)[0]
    made = Detector(own, "energy", preprocess=preprocess)
    with pytest.raises(UserError, match="brought to -1..1 already; .* or leave preprocess out"):
        made.calibrate(normalize(pixels))
    made.calibrate(pixels.astype("float32"))
    Detector(own, "energy").calibrate(normalize(pixels))


@pytest.mark.one_backend
def test_dark_known_images_refuse_no_bright_one():
    pixels, labels = images(99, 3)
    dark = (pixels / 10.0).astype("float32")
    made = Detector(silent(), "energy").calibrate(dark)
    assert len(made.predict(pixels.astype("float32"))) == 99
    # Where nothing was fitted a calibration begins anew: here the range was mistaken.
    made.calibrate(dark / 255).calibrate(dark)
    assert len(made.predict(pixels.astype("float32"))) == 99
    with pytest.raises(UserError, match="known images in 0 to"):
        made.calibrate(dark / 255).predict(pixels)


@pytest.mark.one_backend
def test_images_that_are_strange_to_the_threshold_before_are_told_of(model):
    made = Detector(model, "msp", ["r", "g", "b"]).calibrate(images(150, 3)[0])
    made.calibrate(images(200, 4)[0])
    assert made.warnings == []
    made.calibrate(images(200, 5, mixed=True)[0])
    assert [re.sub(r"\d+\.\d%", "x%", said) for said in made.warnings] == [
        "Of these images the old threshold accepts x% where x% are expected: make sure that they are of the model's "
        "classes"
    ]
    made.fit(*images(60, 1))
    assert made.calibrate(images(200, 4)[0]).warnings == []  # There is none before.


def test_labels_by_chance_are_told_from_labels_that_are_right():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    names = ["a", "b", "c", "d"]
    assert disagreement(labels, labels, names) == ""
    assert "as chance would" in disagreement(rng.integers(0, 4, 200), labels, names)
    assert "'a' as 'b'" in disagreement((labels + 1) % 4, labels, names)
    half = np.where(rng.random(200) < 0.5, labels, rng.integers(0, 4, 200))
    assert disagreement(half, labels, names) == ""
    # A thousand classes with an image each: any order of them would fit.
    many = np.arange(500)
    right = np.where(rng.random(500) < 0.8, many, rng.integers(0, 1000, 500))
    assert disagreement(right, many, [str(k) for k in range(1000)]) == ""
    # Of four images all right is no chance, though four say little; half of ten is.
    few = np.array([0, 1, 0, 1])
    assert disagreement(few, few, names[:2]) == ""
    assert "as chance would" in disagreement(np.arange(10) % 4 // 2, np.arange(10) % 2, names[:2])
    assert disagreement(np.empty(0, int), np.empty(0, int), names) == "" == disagreement(labels, labels, ["one"])


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_another_order_is_found_of_images_in_turns_of_their_classes(classes):
    labels, names = np.arange(200) % classes, [str(k) for k in range(classes)]
    assert "if the classes stand in another order" in disagreement((labels + 1) % classes, labels, names)
    assert disagreement(labels, labels, names) == ""


def labelled_by(chances, images, seed=0):
    """(given, labels) of a model that gives images of each class the classes with such chances."""
    draw, classes = np.random.default_rng(seed), len(chances)
    given = [draw.choice(classes, images, p=one / one.sum()) for one in chances]
    return np.concatenate(given), np.repeat(np.arange(classes), images)


@pytest.mark.parametrize(("classes", "images", "pairs"), [(10, 24, 1), (10, 60, 1), (100, 20, 1), (100, 12, 5)])
def test_a_few_classes_that_are_exchanged_are_found_among_many(classes, images, pairs):
    chances, order = np.full((classes, classes), 0.1 / classes) + 0.9 * np.eye(classes), np.arange(classes)
    order[: 2 * pairs] = order[: 2 * pairs] ^ 1
    given, labels = labelled_by(chances, images)
    names = [str(k) for k in range(classes)]
    told = disagreement(given, order[labels], names)
    assert f"of the known images of {2 * pairs} classes rightly" in told and "'0' as '1', '1' as '0'" in told
    assert disagreement(given, labels, names) == ""


@pytest.mark.parametrize(("classes", "images"), [(10, 25), (10, 100), (100, 10), (100, 20)])
@pytest.mark.parametrize("alike", [0.0, 0.05])
def test_a_weak_model_that_takes_a_class_for_another_as_often_is_in_its_right_order(classes, images, alike):
    own = np.eye(classes)
    chances = (
        np.full((classes, classes), 0.2 / classes) + (0.4 - alike) * own + (0.4 + alike) * own[np.arange(classes) ^ 1]
    )
    names = [str(k) for k in range(classes)]
    refused = sum(disagreement(*labelled_by(chances, images, seed), names) != "" for seed in range(20))
    assert refused <= 2


def test_a_class_that_is_mostly_called_by_an_output_without_images_is_not_exchanged():
    # Of a thousand outputs, as "screen" for "monitor"; the nine other classes are right.
    labels = np.repeat(np.arange(10), 50)
    given = np.where(labels == 3, 700, labels)
    assert disagreement(given, labels, [str(k) for k in range(1000)]) == ""


def told_of(*parts):
    """What speaks against (given, label, count) triples."""
    given, labels = (np.repeat([part[at] for part in parts], [part[2] for part in parts]) for at in (0, 1))
    return disagreement(given, labels, ["a", "b", "c"])


def test_unbalanced_classes_that_are_told_apart_are_no_chance():
    assert told_of((1, 0, 2), (0, 0, 27), (1, 1, 1)) == ""
    assert told_of((1, 0, 3), (0, 0, 25), (1, 1, 2)) == "" == told_of((1, 0, 9), (0, 0, 86), (1, 1, 4), (0, 1, 1))
    # One answer for all: 2 missed images say little, and 5 much.
    assert told_of((0, 0, 28), (0, 1, 2)) == ""
    assert "labels 95 of 100 known images rightly, as chance would (95.0%)" in told_of((0, 0, 95), (0, 1, 5))
    # Three classes of equal size.
    third = [(k, n, 3 if k == n == 0 or (k, n) == (0, 1) else 2) for n in range(3) for k in range(3)]
    assert "labels 7 of 20" in told_of(*third)
    assert "labels 90 of 240" in told_of(*((k, n, 30 if k == n else 25) for n in range(3) for k in range(3)))


@pytest.mark.one_backend
@pytest.mark.parametrize("side", [8, None])
def test_labels_by_chance_of_a_model_of_any_size_name_the_size(side):
    inputs = keras.Input((side, side, 3))
    found = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    blind = keras.Model(inputs, keras.layers.Dense(K, kernel_initializer="zeros")(found))
    with pytest.raises(UserError, match=r"fit: .*as chance would") as raised:
        Detector(blind, image_shape=(8, 8, 3)).fit(*images(60, 1))
    assert ("the size of the images, for it takes any (image_shape)" in str(raised.value)) == (side is None)


@pytest.mark.parametrize("preprocess", [None, pytest.param("-1..1", marks=pytest.mark.one_backend)])
def test_the_saved_model_answers_as_the_detector(tmp_path, preprocess):
    import tensorflow as tf

    inner = built()
    if preprocess:  # The same model without its own preprocessing.
        inputs = keras.Input((8, 8, 3))
        rest = keras.layers.Rescaling(127.5, 127.5)(inputs)
        inner = keras.Model(inputs, inner(rest))
    made = Detector(inner, "knn:k=3", ["r", "g", "b"], preprocess=preprocess).fit(*images(60, 1))
    made.calibrate(*images(99, 2), by_class=True)
    made.export(tmp_path / "flowers" / "1")
    pixels, _ = images(40, 3)
    answers = made.predict(pixels)
    served = tf.saved_model.load(str(tmp_path / "flowers" / "1")).signatures["serving_default"](
        images=tf.constant(pixels)
    )
    np.testing.assert_allclose(served["ood_score"].numpy(), answers.ood_score, atol=1e-5)
    np.testing.assert_allclose(served["probabilities"].numpy(), answers.probabilities, atol=1e-5)
    sure = np.abs(answers.ood_score - answers.threshold) > 1e-5
    np.testing.assert_array_equal(served["is_ood"].numpy()[sure], answers.is_ood[sure])
    assert [name.decode() for name in served["class_name"].numpy()] == list(answers.class_name)
    card = json.loads((tmp_path / "flowers" / "1" / "assets.extra" / "kood.json").read_text())
    assert card["score"] == "knn:k=3" and card["name"] == "flowers" and card["by_class"]
    with pytest.raises(UserError, match="there is something already"):
        made.export(tmp_path / "flowers" / "1")
    with pytest.raises(UserError, match="which format is this"):
        made.export(tmp_path / "flowers.pb")
    with pytest.raises(UserError, match="call calibrate"):
        Detector(inner, "msp", preprocess=preprocess).export(tmp_path / "two" / "1")


@pytest.mark.one_backend  # From each backend: see test_formats.py.
@pytest.mark.parametrize("ending", [".onnx", ".tflite", pytest.param(".xml", marks=pytest.mark.slow)])
def test_the_files_of_other_runtimes_take_the_pixels_that_the_detector_takes(tmp_path, ending):
    inputs = keras.Input((8, 8, 3))
    learned = keras.layers.Normalization()
    learned.adapt(images(50, 9)[0].astype("float32"))  # What it keeps are tensors and no weights of the graph.
    found = keras.layers.GlobalAveragePooling2D()(learned(inputs))
    model = keras.Model(inputs, keras.layers.Dense(K, activation="softmax", name="top")(found))
    model.get_layer("top").set_weights([3 * np.eye(3, K, dtype="float32"), np.zeros(K, "float32")])
    made = Detector(model, "knn:k=3", ["r", "g", "b"]).fit(*images(60, 1)).calibrate(*images(99, 2))
    made.export(tmp_path / f"it{ending}")
    pixels, _ = images(20, 3)
    run = formats._runtime(tmp_path / f"it{ending}")
    got, answers = run(pixels.astype("float32")), made.predict(pixels)
    np.testing.assert_allclose(got["ood_score"], answers.ood_score, atol=1e-5)
    np.testing.assert_allclose(got["probabilities"], answers.probabilities, atol=1e-5)
    np.testing.assert_array_equal(got["label"], answers.label)
    sure = np.abs(answers.ood_score - answers.threshold) > 1e-5
    np.testing.assert_array_equal(got["is_ood"][sure], answers.is_ood[sure])
    # The model is as it was.
    np.testing.assert_allclose(made.predict(pixels).ood_score, answers.ood_score, atol=1e-6)


def unit(pixels):
    return pixels / 255


def test_a_function_of_pixels_is_given_again(tmp_path):
    inputs = keras.Input((8, 8, 3))
    inner = built()
    made = Detector(keras.Model(inputs, inner(keras.layers.Rescaling(255.0)(inputs))), "msp", preprocess=unit)
    made.calibrate(images(60, 1)[0]).save(tmp_path / "one.kood")
    pixels, _ = images(20, 2)
    with pytest.raises(UserError, match=r"^preprocess: pixels are prepared by .*:unit, which is not loaded"):
        Detector.load(tmp_path / "one.kood").predict(pixels)
    again = Detector.load(tmp_path / "one.kood", preprocess=unit)
    np.testing.assert_allclose(again.predict(pixels).ood_score, made.predict(pixels).ood_score, atol=1e-6)


def test_a_function_of_pixels_is_not_given_where_the_file_names_none(detector, tmp_path):
    inner = built()
    others = {"own": detector, "mode": Detector(inner, "msp", preprocess="0..1")}
    backbone = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D()])
    others["kood"] = Detector(Classifier(backbone, heads.Softmax(K)), "msp")
    for name, made in others.items():
        made.save(tmp_path / f"{name}.kood")
        with pytest.raises(UserError, match=rf"{name}\.kood: preprocess: this file names no function; leave"):
            Detector.load(tmp_path / f"{name}.kood", preprocess=unit)


def test_an_export_that_cannot_be_written_is_one_message(detector, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "1", tmp_path / "file" / "one.onnx"):
        with pytest.raises(UserError, match="cannot be written: "):
            detector.export(path)


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("it.onnx", "coreml", "format = 'coreml': there is none; formats are tf_saved_model, onnx, litert, openvino"),
        ("it.xml", "onnx", "a file of the format onnx must end in .onnx"),
        ("it.ONNX", None, "a file of the format onnx must end in .onnx"),
        ("it.pt", None, "which format is this"),
    ],
)
def test_a_format_that_there_is_not(detector, tmp_path, name, format, message):
    with pytest.raises(UserError, match=message) as caught:
        detector.export(tmp_path / name, format=format)
    assert caught.value.exit_code == 2 and not list(tmp_path.iterdir())


def test_pixels_that_are_not_what_is_served_are_not_exported(tmp_path):
    inputs = keras.Input((8, 8, 3))
    found = keras.layers.GlobalAveragePooling2D()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(K, name="top")(found))
    model.get_layer("top").set_weights([20 * np.eye(3, K, dtype="float32"), np.zeros(K, "float32")])
    pixels, labels = images(99, 3)
    made = Detector(model, "msp").calibrate((pixels / 255).astype("float32"), labels)
    with pytest.raises(UserError, match=r"preprocess='0\.\.1'"):
        made.export(tmp_path / "one" / "1")
    assert list(tmp_path.iterdir()) == []


PREPARED = {
    "0..1": lambda x: x / 255, "-1..1": lambda x: x / 127.5 - 1, "torch": lambda x: (x / 255 - 0.45) / 0.225,
    "caffe": lambda x: x[..., ::-1] - [103.9, 116.8, 123.7], "...": lambda x: 257.0 * x,
}  # fmt: skip


@pytest.mark.one_backend
@pytest.mark.parametrize("how", PREPARED)
def test_pixels_prepared_beforehand_are_neither_exported_nor_moved(tmp_path, how):
    """The graph is given pixels of 0..255, and a step is so much of these."""
    pixels, labels = images(99, 3)
    given = PREPARED[how](pixels.astype("float32")).astype("float32")
    wanted = f"make it with preprocess={how!r}" if how != "..." else "make it with preprocess=..."
    with pytest.raises(UserError, match=re.escape(wanted)):
        Detector(silent(), "msp").calibrate(given).export(tmp_path / "one" / "1")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="moves pixels of 0..255, and these lie in") as caught:
        Detector(silent(), "odin").calibrate(given)
    assert wanted.removeprefix("make it with ") in str(caught.value)
    Detector(silent(), "odin").calibrate(pixels.astype("float32")).predict(given * 0)


@pytest.mark.parametrize(
    "whole", [keras.ops.round, lambda pixels: keras.ops.cast(keras.ops.cast(pixels, "uint8"), "float32")]
)
def test_whole_numbers_have_no_gradient_to_be_moved_by(whole):
    """TensorFlow gives none, JAX zeros, torch an error."""
    with pytest.raises(UserError, match=r"^calibrate: odin moves pixels by a gradient, and the model has none by its"):
        Detector(silent(), "odin", preprocess=whole).calibrate(images(99, 3)[0])


@pytest.mark.one_backend
def test_a_score_is_chosen_on_images_from_all_over(model):
    """However many there are, and however they are ordered; and no image is both fitted on and chosen on."""
    pixels, labels = images(4500, 1)
    order = np.argsort(labels, kind="stable")
    made = Detector(model).fit(pixels[order], labels[order])
    assert 128 < made.choice.images <= 256
    mixed = Detector(model).fit(pixels, labels).choice
    assert mixed.images == made.choice.images
    assert all(abs(auroc - mixed.by[name]) < 0.1 for name, auroc in made.choice.by.items() if name != "knn")
    fitted = Detector(model, "knn:k=1").fit(pixels[order], labels[order])
    assert len(fitted.scorers["knn:k=1"].state["bank"]) == 4500
    assert len(made.scorers["knn"].state["bank"]) == 4500 - made.choice.images


def in_turns(count, classes, size=64):
    """Batches of images that say which they are, in turns of their classes."""
    labels = np.arange(count) % classes
    pixels = np.arange(4 * count).astype("uint8").reshape(count, 2, 2, 1)
    return [Batch(pixels[at : at + size], labels[at : at + size]) for at in range(0, count, size)]


@pytest.mark.one_backend
@pytest.mark.parametrize("classes", [2, 4, 5, 10, 20, 34, 55, 89, 100])
@pytest.mark.parametrize("count", [1000, 5000])
def test_no_class_is_set_aside_whole_where_classes_come_in_turns(count, classes):
    aside = Aside()
    fitted = np.bincount(np.concatenate([one.labels for one in aside.of(in_turns(count, classes))]), minlength=classes)
    kept = np.bincount(np.concatenate([one.labels for one in aside.kept]), minlength=classes)
    assert (fitted + kept == np.bincount(np.arange(count) % classes)).all() and fitted.min() > 0.2 * count / classes
    assert kept.sum() == (200 if count == 1000 else 250)
    assert classes > 10 or kept.min() > 0.4 * kept.mean()
    # Batches of another size draw the same.
    again = Aside()
    list(again.of(in_turns(count, classes, 7)))
    assert [one.pixels.tolist() for one in again.kept] == [one.pixels.tolist() for one in aside.kept]


@pytest.mark.one_backend
@pytest.mark.parametrize("classes", [2, 4, 8])
def test_images_of_every_class_pass_under_other_preprocessings(classes):
    known, inputs = Known(), keras.Input((2, 2, 1))
    ranges = Ranges(keras.Model(inputs, keras.layers.Dense(classes)(keras.layers.Flatten()(inputs))), False)
    for batch in in_turns(1000, classes):
        known.note(batch, ranges)
    assert TRIED / 2 < len(known.labelled) <= TRIED
    assert {label for _, label in known.labelled.values()} == set(range(classes))


@pytest.mark.one_backend
def test_a_score_of_every_class_is_fitted_where_classes_come_in_turns():
    """With five classes in turns every fifth image is of one of them."""
    inputs = keras.Input((4, 4, 5))
    means = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    five = keras.Model(inputs, keras.layers.Dense(5, name="top")(means))
    five.get_layer("top").set_weights([20 * np.eye(5, dtype="float32"), np.zeros(5, "float32")])
    labels = np.arange(250) % 5
    pixels = np.random.default_rng(0).integers(0, 60, (250, 4, 4, 5))
    pixels[np.arange(250), ..., labels] += 160
    made = Detector(five, scores=["she", "energy"]).fit(pixels.astype("uint8"), labels)
    assert made.choice.by.keys() == {"she", "energy"} and "pixel_mixup" in made.choice.sets


def breaks(count=5):
    return np.zeros((count, 8, 8, 3), "uint8")


def standardized():
    """A model that answers NaN for an image of one colour."""
    pixels = keras.Input((8, 8, 3))
    less = pixels - ops.mean(pixels, axis=(1, 2, 3), keepdims=True)
    found = keras.layers.GlobalAveragePooling2D()(less / ops.std(pixels, axis=(1, 2, 3), keepdims=True))
    model = keras.Model(pixels, keras.layers.Dense(K, name="top")(found))
    model.get_layer("top").set_weights([3 * np.eye(3, K, dtype="float32"), np.zeros(K, "float32")])
    return model


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch alone has such a context")
@pytest.mark.parametrize("score", ["vim", "odin", "weiper"])
def test_answers_are_those_of_float32_whatever_context_is_open(model, score):
    import torch

    known, rest, new = images(60, 1), images(40, 2), images(9, 3)[0]
    plain = Detector(model, score=score).fit(*known).calibrate(*rest)
    with torch.autocast("cpu", torch.bfloat16):
        made = Detector(model, score=score).fit(*known).calibrate(*rest)
        answers = [made.predict(new), plain.predict(new)]
    for one in answers:
        np.testing.assert_array_equal(one.ood_score, plain.predict(new).ood_score)
        np.testing.assert_array_equal(one.probabilities, plain.predict(new).probabilities)


@pytest.mark.one_backend
def test_a_measurement_takes_nothing_from_the_detector():
    made = Detector(standardized()).fit(*images(100, 1)).calibrate(*images(60, 2))
    before, scorers = made.predict(images(20, 3)[0]), list(made.scorers)
    for far in (breaks(), np.concatenate([breaks(1), images(20, 4)[0]])):
        with pytest.raises(UserError, match=f"{re.escape(made.score)}|is NaN for"):
            made.evaluate(images(50, 5), far={"black": far})
    assert list(made.scorers) == scorers
    np.testing.assert_array_equal(made.predict(images(20, 3)[0]).ood_score, before.ood_score)
    assert made.predict(breaks()).is_ood.all()


@pytest.mark.one_backend
def test_what_is_nan_has_no_figures_and_what_decides_none_at_all(model, monkeypatch):
    def some(scorer, outputs, batch_size):
        found = np.array(score_rows(scorer, outputs, batch_size))
        found[: (scorer.name, len(found)) in (("msp", 9), ("energy", 8), ("energy", 60))] = np.nan
        return found

    monkeypatch.setattr("kood.detector.measuring.score_rows", some)
    made = Detector(model, "energy", scores=["energy", "msp"]).calibrate(images(60, 2)[0])
    told = "1 of 60 calibration images have no finite energy and count as flagged"
    assert made.warnings == [told]
    near, far = {"one": images(9, 3)[0], "two": images(7, 4)[0]}, {"three": images(10, 6)[0]}
    figures = made.evaluate(images(50, 5), near, far)
    assert {*figures["scores"]["msp"]} == {"two", "three", "far"} and "near" in figures["scores"]["energy"]
    assert [text for text in figures["warnings"] if "msp" in text or "finite" in text] == [
        told, "msp is NaN for 1 of 9 images of 'one', so it has no figures of these, nor means over them"
    ]  # fmt: skip
    with pytest.raises(UserError, match="energy is NaN for 1 of 8 images of 'odd', and it is the score that decides"):
        made.evaluate(images(50, 5), {"odd": images(8, 3)[0]})
    assert made.calibrate(images(61, 2)[0]).warnings == []


@pytest.mark.one_backend
def test_another_fit_begins_anew_with_other_pixels():
    pixels, labels = images(100, 1)
    made = Detector(silent()).fit((pixels / 255).astype("float32"), labels)
    made.fit(pixels.astype("float32"), labels)
    assert made.range[1] > 100 and made.choice.images == 20


@pytest.mark.one_backend
def test_a_detector_that_was_loaded_leaves_out_what_the_one_that_was_saved_does(model, tmp_path):
    made = Detector(model).fit(*images(300, 1))
    made.save(tmp_path / "it.kood")
    for one in (made, Detector.load(tmp_path / "it.kood")):
        one.fit(*images(40, 1))
        assert any("knn" in text for text in one.told) and "knn" not in one.scorers
        assert not any("knn" in text for text in one.warnings)  # Nobody named it.


@pytest.mark.one_backend
def test_a_file_beside_openvinos_is_not_written_over(detector, tmp_path):
    (tmp_path / "it.bin").write_text("mine")
    with pytest.raises(UserError, match="there is something already"):
        detector.export(tmp_path / "it.xml")
    assert (tmp_path / "it.bin").read_text() == "mine"


@pytest.mark.one_backend
def test_an_evaluation_takes_several_files_and_the_labels_that_it_is_given(detector, tmp_path):
    pixels, labels = images(30, 7)
    files = []
    for number in range(3):
        files.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(images(3, 8, mixed=True)[0][number]).save(files[-1])
    figures = detector.evaluate((pixels, labels), near={"files": tuple(files)})
    assert set(figures["scores"]["energy"]) >= {"files"}
    wrong = ImageSet(pixels, (labels + 1) % K, ("red", "green", "blue"))
    right = detector.evaluate(wrong, labels=labels)["id"]["accuracy"]
    assert right == detector.evaluate((pixels, labels))["id"]["accuracy"] > 0.9
    with pytest.raises(UserError, match="evaluate: known is a pair"):
        detector.evaluate((pixels, labels), labels=labels)


@pytest.mark.one_backend
def test_an_evaluation_takes_what_a_batch_may_be_and_no_labels_of_other_images(detector):
    pixels, labels = images(60, 7)
    others = images(20, 8, mixed=True)[0]
    plain = detector.evaluate((pixels, labels), near={"others": others})
    weighed = detector.evaluate((pixels, labels, np.ones(60)), near={"others": (others,)})
    named = detector.evaluate((pixels, labels), near={"others": (others, np.array(["cow"] * 20))})
    far = detector.evaluate((pixels, labels), near={"others": (others, np.arange(20) + 1000)})
    assert plain == weighed == named == far
    with pytest.raises(UserError, match=r"a batch is images, or \(images, labels\); this one has 4 parts"):
        detector.evaluate((pixels, labels, labels, labels))


@pytest.mark.one_backend
def test_a_set_may_be_called_as_what_is_done_with_known_images(detector):
    known, others = images(60, 7), images(20, 8, mixed=True)[0]
    dark = np.zeros((20, 8, 8, 3), "float32") + 0.5
    plain = detector.evaluate(known, near={"one": (others, np.full(20, 7))}, far={"two": others})
    called = detector.evaluate(known, near={"fit": (others, np.full(20, 7))}, far={"calibrate": others})
    for before, after in (("one", "fit"), ("two", "calibrate")):
        assert plain["scores"]["energy"][before] == called["scores"]["energy"][after]
    # Such images are held against the known ones, as others are.
    for where in ("one", "fit"):
        with pytest.raises(UserError, match=f"{where}: these pixels lie in 0.5 to 0.5, and those of the known images"):
            detector.evaluate(known, near={where: dark})


@pytest.mark.parametrize("last", ["sigmoid", "log_softmax", "softmax"])
@pytest.mark.parametrize("score", ["energy", "max_logit", "vim:dim=2"])
def test_neither_of_two_classes_is_strange_for_what_stands_for_its_logits(last, score):
    """Sure images of both are less so than one in between, whatever the model answers in place of logits."""
    pixels = keras.Input((8, 8, 3))
    found = keras.layers.GlobalAveragePooling2D(name="pool")(keras.layers.Rescaling(1 / 255)(pixels))
    model = keras.Model(pixels, keras.layers.Dense(1 if last == "sigmoid" else 2, activation=last, name="top")(found))
    kernel = 20 * np.array([[-1], [1], [0]] if last == "sigmoid" else [[1, 0], [0, 1], [0, 0]], "float32")
    model.get_layer("top").set_weights([kernel, np.zeros(kernel.shape[1], "float32")])
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    known = rng.integers(0, 60, (200, 8, 8, 3))
    known[np.arange(200), ..., labels] += 160
    known = known.astype("uint8")
    explained = last == "sigmoid" or score.startswith("vim")
    detector = Detector(model, score, features=None if explained else "pool").fit(known[:100]).calibrate(known[100:])
    values = detector.predict(known).ood_score
    between = detector.predict(np.full((1, 8, 8, 3), 110, "uint8")).ood_score[0]
    assert between > max(np.median(values[labels == k]) for k in (0, 1))


@pytest.mark.one_backend
def test_warnings_are_those_of_the_last_time(model, tmp_path):
    pixels, labels = images(99, 3)
    Image.fromarray(pixels[0]).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no image")
    made = Detector(model, "energy").calibrate(pixels[:60])
    known = pixels[60:], labels[60:]
    assert any("cannot be read" in text for text in made.evaluate(known, {"x": tmp_path})["warnings"])
    assert not any("cannot be read" in text for text in made.evaluate(known, {"y": pixels[:5] // 2})["warnings"])
    made.calibrate(np.concatenate([pixels[:60], pixels[:5]]))
    assert any("5 calibration images are copies" in text for text in made.warnings)
    assert made.calibrate(pixels[:60]).warnings == []


@pytest.mark.one_backend
def test_a_further_score_that_was_never_fitted_is_said_and_no_error(model):
    pixels, labels = images(99, 3)
    made = Detector(model, "energy", scores="all").calibrate(pixels[:60])
    figures = made.evaluate((pixels[60:], labels[60:]))
    assert "knn" not in figures["scores"] and any("not fitted, so not measured" in t for t in figures["warnings"])
    named = Detector(model, "energy", scores=["energy", "knn"]).calibrate(pixels[:60])
    with pytest.raises(UserError, match=r"knn: fitted to known images; call fit\(images\) first"):
        named.evaluate((pixels[60:], labels[60:]))


@pytest.mark.one_backend
def test_numbers_of_numpy_are_saved_as_numbers(tmp_path):
    pooled = keras.layers.GlobalAveragePooling2D()(pixels := keras.Input((None, None, 3)))
    model = keras.Model(pixels, keras.layers.Dense(K)(pooled))
    made = Detector(model, "energy", image_shape=tuple(np.array([8, 8, 3])), batch_size=np.int64(8))
    made.calibrate(images(99, 3)[0], accept=np.float32(0.9), by_class=np.False_).save(tmp_path / "it.kood")
    assert Detector.load(tmp_path / "it.kood").decision.accept == pytest.approx(0.9)


def test_a_model_goes_on_being_used_beside_its_detector():
    model, (pixels, labels) = built(), images(99, 3)
    made = Detector(model, "energy").calibrate(pixels)
    before = made.predict(pixels).ood_score
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.evaluate(pixels, labels, verbose=0)
    np.testing.assert_array_equal(made.predict(pixels).ood_score, before)
    model.get_layer("top").set_weights([10 * np.eye(6, K, dtype="float32"), np.zeros(K, "float32")])
    assert np.abs(made.predict(pixels).ood_score - before).min() > 0.1


@pytest.mark.one_backend
def test_images_that_a_model_of_any_size_leaves_nothing_of():
    rest = [keras.layers.Conv2D(4, 5), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(K)]
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 7, strides=8), *rest])
    with pytest.raises(UserError, match=r"calibrate: the model leaves nothing of images \(8, 8, 3\); give larger ones"):
        Detector(model, "energy").calibrate(images(40, 1)[0])
    large = images(40, 1)[0].repeat(8, axis=1).repeat(8, axis=2)
    assert np.isfinite(Detector(model, "energy").calibrate(large, accept=0.8).predict(large).ood_score).all()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_of_a_detector_that_has_answered_answers_alike(detector, copied):
    some = images(9, 4)[0]
    expected = detector.predict(some)
    np.testing.assert_array_equal(copied(detector).predict(some).ood_score, expected.ood_score)


def test_public_names_are_loaded_when_used():
    assert kood.Detector is Detector and callable(kood.run)
    assert kood.metrics.auroc([0.1, 0.9], [False, True]) == 1.0
    assert (
        {"Detector", "run", "heads", "losses", "scores", "metrics", "diffusion"} == set(kood.__all__) <= set(dir(kood))
    )
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kood.nothing  # noqa: B018


@pytest.mark.one_backend
class TestOtherPixels:
    """A model of pixels of 0..1 without a layer that says so, and known images of 0..255."""

    @staticmethod
    def of_0_to_1(last=lambda means: means, scale=4):
        inputs = keras.Input((8, 8, 3))
        found = last(keras.layers.GlobalAveragePooling2D()(inputs))
        model = keras.Model(inputs, keras.layers.Dense(K, activation="softmax", name="top")(found))
        model.get_layer("top").set_weights([scale * np.eye(3, dtype="float32"), np.zeros(3, "float32")])
        return model

    @staticmethod
    def hard(count, seed):
        """A quarter of the labels is another's."""
        pixels, labels = images(count, seed)
        return pixels, np.where(np.random.default_rng(seed).random(count) < 0.25, (labels + 1) % K, labels)

    @pytest.mark.parametrize(("call", "dtype"), [("fit", "uint8"), ("calibrate", "uint8"), ("fit", "float32")])
    def test_as_many_right_and_less_sure_is_told_with_both_figures(self, call, dtype):
        made = Detector(self.of_0_to_1(), "energy")
        pixels, labels = self.hard(160, 1)
        getattr(made, call)(pixels.astype(dtype), labels)
        (said,) = [one for one in made.told if "preprocess" in one]
        wanted = r"preprocess '0\.\.1' (\S+)% of 40 known images .* (\S+)%, and as they are (\S+)%, at (\S+)%; name"
        right, sure, own, its = map(float, re.search(wanted, said).groups())
        assert right == own < 90 and sure < 90 and its > 99
        made.calibrate(*self.hard(160, 2))
        assert len([one for one in made.told if "preprocess" in one]) == 1

    def test_far_more_right_is_refused(self):
        def bent(means):
            """The third channel saturates in 0..255."""
            return ops.concatenate([means[:, :2], ops.tanh(means[:, 2:])], axis=1)

        def even(means):
            """The second class has the darkest pixels of -1..1 too."""
            return ops.concatenate([means[:, :1] + 0.3, 0.9 * ops.abs(means[:, 1:2]), means[:, 2:]], axis=1)

        def odd(means):
            """The third class is none in 0..1, which is nothing in 0..255."""
            return ops.concatenate([means[:, :2], means[:, 2:] - 1.1 * ops.tanh(means[:, 2:])], axis=1)

        pixels, labels = images(160, 1)
        whole, ones, halves = pixels.astype("float32"), pixels / np.float32(255), pixels / np.float32(127.5) - 1
        for given, last, better in (
            (pixels, bent, r"'0\.\.1'"), (whole, bent, r"'0\.\.1'"), (halves, even, r"'none' of pixels of 0\.\.255"),
            (ones, odd, r"'none' of pixels of 0\.\.255"),
        ):  # fmt: skip
            told = rf"^fit: the model labels .* rightly; with preprocess = {better} it labels"
            with pytest.raises(UserError, match=told):
                Detector(self.of_0_to_1(last, 20), "energy").fit(given, labels)

    def test_labels_by_chance_are_refused_with_what_would_be_right(self):
        pixels, labels = images(160, 1)
        grey = pixels.mean(axis=3, keepdims=True).repeat(3, axis=3).astype("uint8")
        for given, last, better in (
            (pixels, ops.tanh, r"with preprocess = '0\.\.1' it labels \d+% of \d+ rightly"),
            (grey, lambda means: means, "these images are grey, and the model takes colour"),
        ):
            with pytest.raises(UserError, match=rf"^fit: the model labels .* as chance would .*; {better}$"):
                Detector(self.of_0_to_1(last, 20), "energy").fit(given, labels)

    def test_images_of_one_class_say_nothing_of_other_pixels(self):
        """A model that names one class whatever it is given labels all of them rightly."""
        pixels, labels = images(60, 1)
        model = self.of_0_to_1()
        model.get_layer("top").set_weights([-4 * np.eye(3, dtype="float32"), np.array([0, 3, 0], "float32")])
        seen = tried(adapted(model), pixels[labels == 1], labels[labels == 1], ["a", "b", "c"], 64)
        assert seen.own.right == 0 and seen.refusal == "" == seen.doubt

    def test_nothing_is_told_where_it_says_which_it_takes_or_is_right(self, model):
        for made in (Detector(model, "energy"), Detector(self.of_0_to_1(), "energy", preprocess="0..1")):
            assert not [one for one in made.calibrate(*self.hard(160, 1)).told if "preprocess" in one]
        made = Detector(self.of_0_to_1(), "energy").calibrate(*images(160, 1))  # All are right, and as sure.
        assert not [one for one in made.told if "preprocess" in one]
