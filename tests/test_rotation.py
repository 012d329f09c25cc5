"""Rotation prediction: its loss and scores against NumPy, its training, and what it refuses."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image

from kood import heads, pipeline, scores, training
from kood.classifier import Classifier
from kood.data import ImageSet
from kood.data.batches import training_batches
from kood.detector.measuring import Measuring
from kood.errors import UserError
from kood.outputs import forward_of, outputs_of, rotations_of
from kood.recipe import load
from kood.rotation import rotated, surprise
from kood.scorer import Scorer, applicable
from kood.serving.client import LocalModel
from tests.conftest import TINY, Cell
from tests.interrupted import KillAfter, Killed

pytestmark = pytest.mark.usefixtures("as_written")

SHAPE, CLASSES = (6, 6, 2), 3
ONE_SLOW = [pytest.mark.one_backend, pytest.mark.slow]


def numbers(tensor):
    return np.asarray(ops.convert_to_numpy(tensor), np.float64)


def backbone(normalized=False):
    image = keras.Input(SHAPE)
    x = keras.layers.Conv2D(5, 3, activation="tanh")(image)
    if normalized:
        x = keras.layers.BatchNormalization(momentum=0.5)(x)
    return keras.Model(image, keras.layers.Dense(7)(keras.layers.Flatten()(x)))


def classifier(head="Softmax", normalized=False, **options):
    keras.utils.set_random_seed(4)
    made = Classifier(backbone(normalized), getattr(heads, head)(CLASSES), **{"rotation": 0.5, **options})
    made.build((None, *SHAPE))
    return made


def pictures(count=12, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, *SHAPE)).astype("float32")


def batch(rows=12, outliers=4, seed=0):
    rng = np.random.default_rng(seed)
    is_outlier = rng.permutation(np.arange(rows) < outliers).astype("float32")
    label = np.eye(CLASSES, dtype="float32")[rng.integers(0, CLASSES, rows)] * (1 - is_outlier[:, None])
    return {"image": pictures(rows, seed), "label": label, "is_outlier": is_outlier}


def surprise64(model, images):
    """(B, 4) -ln p of the right rotation, from the network's features in float64."""
    kernel, bias = map(numbers, model.rotation_head.weights)
    found = np.zeros((len(images), 4))
    for quarters in range(4):
        turned = np.rot90(images, quarters, axes=(1, 2)).copy()
        logits = numbers(model.backbone(turned)) @ kernel + bias
        found[:, quarters] = np.log(np.exp(logits).sum(axis=1)) - logits[:, quarters]
    return found


@pytest.mark.backend
@pytest.mark.parametrize("quarters", range(4))
def test_images_turn_as_numpy_turns_them(quarters):
    images = pictures()
    np.testing.assert_array_equal(
        ops.convert_to_numpy(rotated(images, quarters)), np.rot90(images, quarters, axes=(1, 2))
    )


@pytest.mark.backend
@pytest.mark.parametrize("quarters", range(4))
def test_surprise_is_exact_where_the_right_one_is_sure_and_where_it_is_not(quarters):
    logits = np.random.default_rng(1).normal(0, 3, (40, 4)).astype("float32")
    logits[:20, quarters] += np.linspace(0, 60, 20)
    logits[20:30, quarters] -= np.linspace(0, 300, 10)
    z = logits.astype("float64")
    others = np.delete(z, quarters, axis=1) - z[:, [quarters]]
    expected = np.logaddexp(0, np.logaddexp.reduce(others, axis=1))
    found = numbers(surprise(ops.convert_to_tensor(logits), quarters))
    np.testing.assert_allclose(found, expected, rtol=3e-5)
    assert expected.min() < 1e-20 and expected.max() > 200


@pytest.mark.backend
@pytest.mark.parametrize("told", [0, 4])
@pytest.mark.parametrize("head", ["Softmax", "ArcFace", "CIDER"])
def test_the_loss_is_the_mean_over_rows_and_rotations(head, told):
    """Whether the classifier is told how many outliers a batch has or not; these count for nothing."""
    exposure = "cosine_exposure" if head == "CIDER" else "outlier_exposure"
    model, data = classifier(head, exposure=exposure, rotation=0.7, outlier_rows=told), batch()
    plain = Classifier(model.backbone, model.head, exposure=exposure)
    terms = {name: float(numbers(value)) for name, value in model.loss_terms(data).items()}
    own = {name: float(numbers(value)) for name, value in plain.loss_terms(data).items()}
    inside = data["is_outlier"] == 0
    np.testing.assert_allclose(terms.pop("rotation"), 0.7 * surprise64(model, data["image"])[inside].mean(), rtol=1e-5)
    assert terms.keys() == own.keys()
    for name, value in own.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-5, err_msg=name)
    assert set(model.terms) == {*own, "rotation"}


@pytest.mark.backend
def test_no_more_images_pass_than_are_to_be_turned():
    seen = []

    class Watching(keras.layers.Layer):
        def call(self, x):
            seen.append(x.shape[0])
            return x

    image = keras.Input(SHAPE)
    watched = keras.Model(image, keras.layers.Dense(4)(keras.layers.Flatten()(Watching()(image))))
    for told, expected in ((4, 12 + 3 * 8), (0, 12 + 3 * 12)):
        model = Classifier(watched, heads.Softmax(CLASSES), exposure="outlier_exposure", rotation=1, outlier_rows=told)
        model.build((None, *SHAPE))
        seen.clear()
        model.loss_terms(batch())
        assert seen == [expected]


def stepped(model, data):
    """What a step of plain descent moves."""
    before = [numbers(weight) for weight in model.trainable_weights]
    model.compile(keras.optimizers.SGD(1.0))
    rows = training_batches_of(data)
    model.fit(rows, epochs=1, steps_per_epoch=1, shuffle=False, verbose=0)
    return [old - numbers(new) for old, new in zip(before, model.trainable_weights, strict=True)]


def training_batches_of(data):
    import tensorflow as tf

    return tf.data.Dataset.from_tensors({key: tf.constant(value) for key, value in data.items()}).repeat()


@pytest.mark.backend
def test_its_gradient_moves_the_backbone_and_its_own_head_but_not_the_other():
    data, found = batch(outliers=0), {}
    for weight in (0.5, 1.5):
        model = classifier(rotation=weight)
        found[weight] = stepped(model, data)
    of = {id(weight) for weight in (*model.backbone.trainable_weights, *model.rotation_head.trainable_weights)}
    for weight, less, more in zip(model.trainable_weights, found[0.5], found[1.5], strict=True):
        assert (np.abs(more - less).max() > 1e-5) == (id(weight) in of), weight.path
    # Against the difference quotient of the term, along a random way.
    model = classifier(rotation=1.0)
    way = [np.random.default_rng(9).normal(size=weight.shape) for weight in model.backbone.trainable_weights]
    start = [numbers(weight) for weight in model.backbone.trainable_weights]
    ends = []
    for sign in (1, -1):
        for weight, at, to in zip(model.backbone.trainable_weights, start, way, strict=True):
            weight.assign(at + sign * 1e-2 * to)
        ends.append(surprise64(model, data["image"]).mean())
    slope = (ends[0] - ends[1]) / 2e-2
    moved = [more - less for more, less in zip(found[1.5], found[0.5], strict=True)][: len(way)]
    # Descent goes along minus the gradient, and the step above is old - new: the gradient itself.
    np.testing.assert_allclose(sum((one * to).sum() for one, to in zip(moved, way, strict=True)), slope, rtol=2e-2)
    assert abs(slope) > 1e-2


@pytest.mark.backend
@pytest.mark.parametrize("head", ["Softmax", "AdaCos"])
def test_the_task_is_learned_and_survives_a_file(head, tmp_path):
    model = classifier(head, exposure="outlier_exposure", outlier_rows=4)
    model.compile(keras.optimizers.Adam(5e-3))
    upright = batch()
    upright["image"] += np.linspace(-1, 1, 6, dtype="float32")[:, None, None]  # Dark above, light below.
    told = model.fit(training_batches_of(upright), epochs=40, steps_per_epoch=1, shuffle=False, verbose=0).history
    assert told["rotation"][-1] < 0.5 * told["rotation"][0] and told["cross_entropy"][-1] < told["cross_entropy"][0]
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert (again.rotation, again.outlier_rows) == (0.5, 4)
    for name, value in forward_of(model, ["rotation"])(pictures()).items():
        other = forward_of(again, ["rotation"])(pictures())[name]
        np.testing.assert_array_equal(ops.convert_to_numpy(value), ops.convert_to_numpy(other))


@pytest.mark.slow
@pytest.mark.backend
# That a backend resumes under frozen statistics is held by test_fine_tuning.py.
@pytest.mark.parametrize("frozen_statistics", [False, pytest.param(True, marks=ONE_SLOW)])
def test_a_killed_training_goes_on_as_if_it_had_not_been(tmp_path, frozen_statistics):
    rng = np.random.default_rng(0)
    images = ImageSet(rng.integers(0, 256, (24, *SHAPE)).astype("uint8"), np.arange(24) % 3, tuple("abc"))
    outliers = ImageSet(rng.integers(0, 256, (10, *SHAPE)).astype("uint8"))

    def fit(folder, callbacks=()):
        model = classifier(
            "AdaCos", True, exposure="outlier_exposure", outlier_rows=3, frozen_statistics=frozen_statistics
        )
        model.compile(training.optimizer(12, learning_rate=0.01, weight_decay=0.01, clip_norm=1.0, ema=0.9))

        def batches(first):
            return training_batches(
                images, outliers, batch_size=8, outliers_per_batch=3, epochs=4, seed=1,
                first_epoch=first, augment=["flip"],
            )[0]  # fmt: skip

        return training.fit(model, batches, epochs=4, steps_per_epoch=3, folder=folder, callbacks=callbacks,
                            interval=0.0)[0]  # fmt: skip

    expected = [ops.convert_to_numpy(one) for one in fit(tmp_path / "whole").weights]
    with pytest.raises(Killed):
        fit(tmp_path / "killed", [KillAfter(1)])
    for one, other in zip(fit(tmp_path / "killed").weights, expected, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(one), other)


# Scores --------------------------------------------------------------------------------------------------------------


@pytest.mark.backend
@pytest.mark.parametrize("head", ["Softmax", "CosFace"])
def test_the_scores_of_a_classifier(head):
    model, images = classifier(head), pictures(20, 3)
    outputs = forward_of(model, ["rotation_energy", "msp"])(images)
    np.testing.assert_allclose(numbers(outputs["rotations"]), surprise64(model, images), rtol=1e-4)
    logits = numbers(outputs["logits"])
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    uneven = (-np.log(CLASSES) - log_p).mean(axis=1)  # KL(uniform || p)
    mean = surprise64(model, images).mean(axis=1)
    np.testing.assert_allclose(numbers(Scorer("rotation")(outputs)), mean, rtol=1e-4)
    np.testing.assert_allclose(numbers(Scorer("rotation_energy")(outputs)), mean - uneven, rtol=1e-4, atol=1e-5)


@pytest.mark.backend
def test_rotation_energy_at_large_logits_and_of_sure_rotations():
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(50, 7)) * np.geomspace(1e-3, 300, 50)[:, None]).astype("float32")
    rotations = np.geomspace(1e-12, 200, 200).reshape(50, 4).astype("float32")
    z = logits.astype("float64")
    uneven = np.logaddexp.reduce(z, axis=1) - z.mean(axis=1) - np.log(7)
    found = numbers(scores.rotation_energy(logits, rotations))
    np.testing.assert_allclose(found, rotations.astype("float64").mean(axis=1) - uneven, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(numbers(scores.rotation(rotations)), rotations.astype("float64").mean(axis=1), rtol=1e-6)
    with pytest.raises(ValueError, match="There are 50 logits but 1 rotations"):
        scores.rotation_energy(logits, rotations[:1])


@pytest.mark.backend
def test_images_are_turned_only_where_a_score_asks():
    model, images = classifier(), pictures()
    assert "rotations" not in forward_of(model, ["msp", "knn"])(images)
    assert forward_of(model, ["msp", "rotation"])(images)["rotations"].shape == (12, 4)
    assert "rotation_logits" not in outputs_of(classifier(rotation=0), np.zeros((2, *SHAPE), "uint8"), 2)
    assert {"rotation", "rotation_energy"}.isdisjoint(applicable(["features", "logits", "rotation_logits"]))
    assert (Scorer("rotation").passes, Scorer("rotation_energy").passes, Scorer("msp").passes) == (4, 4, 1)
    outputs = forward_of(model)(images)
    turned = numbers(rotations_of(model)(images, outputs))
    # Of an image that is turned, another rotation is the right one.
    quarter = np.rot90(images, 1, axes=(1, 2)).copy()
    logits = numbers(forward_of(model)(quarter)["rotation_logits"])
    np.testing.assert_allclose(turned[:, 1], np.log(np.exp(logits).sum(axis=1)) - logits[:, 1], rtol=1e-4)


# Recipes -------------------------------------------------------------------------------------------------------------

TURNING = (
    "train.auxiliary=rotation", 'outliers.use=["patch_shuffle"]', "outliers.patch_shuffle.count=40",
    "pure_samples.use=[]", 'evaluate.scores=["msp","rotation","rotation_energy"]',
)  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "name", "weight"),
    [
        ((), "none", 0.5),
        (("train.auxiliary=rotation",), "rotation", 0.5),
        (("train.auxiliary=none",), "none", 0.5),
        (("train.auxiliary={name='rotation',weight=2.0}",), "rotation", 2.0),
        (("train.auxiliary=rotation", "train.auxiliary.weight=0.25"), "rotation", 0.25),
    ],
)
def test_how_a_recipe_names_it(tiny, settings, name, weight):
    told = load(tiny, settings).train.auxiliary
    assert (told.name, told.weight) == (name, weight)


def test_the_file_may_name_it_and_the_command_line_its_weight(tiny):
    tiny.write_text(TINY.replace("[train]", '[train]\nauxiliary = "rotation"'))
    assert load(tiny, ["train.auxiliary.weight=2"]).train.auxiliary.weight == 2.0
    tiny.write_text(tiny.read_text() + '[matrix]\n"train.auxiliary" = ["none", "rotation"]\n')
    cells = load(tiny).cells()
    assert [labels["train.auxiliary"] for labels, _ in cells] == ["none", "rotation"]
    assert [cell.train.auxiliary.name for _, cell in cells] == ["none", "rotation"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("train.auxiliary=rotatoin",), "train.auxiliary.name: found 'rotatoin'; did you mean 'rotation'?"),
        (("train.auxiliary={name='rotation',wieght=1}",), "train.auxiliary.wieght: unknown key"),
        (("train.auxiliary={name='rotation',weight=0.0}",), "train.auxiliary.weight"),
        (("train.auxiliary=rotation", "data.image_shape=[8,6,1]"), r"data.image_shape = \[8, 6, 1\] is not square"),
        (("train.auxiliary=rotation", "classifier.train=head", "outliers.use=[]"),
         'sees each image once; set classifier.train = "last" or "all"'),
        (('evaluate.scores=["msp","rotation"]',), 'made of rotations.*set train.auxiliary = "rotation"'),
        (("evaluate.headline=rotation_energy",), 'made of rotations.*set train.auxiliary = "rotation"'),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(tiny, settings, told):
    with pytest.raises(UserError, match=told) as caught:
        load(tiny, settings)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.backend
def test_what_is_no_square_image_is_refused_by_the_classifier():
    for shape in ((4, 6, 1), (5,)):
        inputs = keras.Input(shape)
        model = Classifier(keras.Model(inputs, keras.layers.Flatten()(inputs)), heads.Softmax(2), rotation=1.0)
        with pytest.raises(ValueError, match="square images"):
            model.build((None, *shape))


@pytest.mark.backend
def test_a_classifier_without_it_refuses_its_scores(tiny):
    plain = classifier(rotation=0)
    with pytest.raises(UserError, match="cannot give rotation; it can give"):
        Measuring(plain, scores=["rotation"])
    assert {"rotation", "rotation_energy"} <= set(Measuring(classifier()).scorers)
    assert {"rotation", "rotation_energy"}.isdisjoint(Measuring(plain).scorers)


def test_scores_are_fitted_on_one_pass_of_each_image(monkeypatch):
    """None of them is offered rotations, so that the three further passes would be in vain."""
    measuring = Measuring(classifier(), class_names=["a", "b", "c"], scores=["rotation", "mahalanobis", "tempscale"])
    pixels = np.random.default_rng(2).integers(0, 256, (30, *SHAPE), "uint8")
    known = ImageSet(pixels, np.arange(30) % 3, ("a", "b", "c"))
    monkeypatch.setattr("kood.outputs.rotations_of", lambda *_: pytest.fail("images are rotated"))
    measuring.fit_scores(known, known)
    assert measuring.scorers["mahalanobis"].is_ready and measuring.scorers["tempscale"].is_ready


@pytest.mark.backend
@pytest.mark.parametrize("train", ["all", pytest.param("last", marks=ONE_SLOW)])
def test_a_cell_trains_with_it(tiny, tmp_path, train):
    more = [f"classifier.train={train}", "fine_tuning.epochs=1", "fine_tuning.batch_size=16", "evaluate.baseline=false"]
    cell = Cell(load(tiny, [*TURNING, *more, "evaluate.headline=rotation"]), tmp_path / "saved")
    cell.check()
    cell.make(*(role for role in cell.stages if role not in ("data", "evaluate", "export")))
    history = cell["classifier"].facts["history"]
    assert np.isfinite(history["rotation"]).all() and "exposure" in history
    model = cell["classifier"].model()
    assert model.rotation == 0.5
    if train == "last":
        assert "rotation" not in cell["classifier_head"].facts["history"]
    facts = cell.make("evaluate").facts
    assert set(facts["scores"]) >= {"rotation", "rotation_energy"} and facts["headline_score"] == "rotation"
    images = cell.images("test").images[:20]
    forward = forward_of(model, ["rotation"])(images.astype("float32") / 127.5 - 1)
    with np.load(cell["evaluate"].folder / "scores.npz") as kept:
        np.testing.assert_allclose(kept["id/rotation"][:20], numbers(forward["rotations"]).mean(axis=1), rtol=1e-4)


@pytest.mark.usefixtures("loaded_once")
@pytest.mark.slow
def test_what_is_published_answers_as_it_was_evaluated(tiny, tmp_path, invoke):
    """The whole way: run, folds, report, the SavedModel and `kood predict`."""
    tiny.write_text(TINY + '\n[data.hold_out]\nfolds = [["0"]]\n')
    settings = [*TURNING, "evaluate.headline=rotation_energy", "evaluate.baseline=false", "serve.accept=0.9"]
    pipeline.run(tiny, settings, saved=tmp_path / "saved")
    run = tmp_path / "saved" / "tiny"
    report = json.loads((run / "report.json").read_text())
    assert report["headline_score"] == report["hold_out"]["folds"][0]["score"] == "rotation_energy"
    assert [note for note in report["notes"] if "takes 4 forward passes of each served image" in note]
    (data,) = (run / "stages").glob("data-*")
    evaluated = run / Path(report["scores_file"]).parent
    with np.load(evaluated / "scores.npz") as kept:
        expected = kept["id/rotation_energy"][:8]
    files = []
    for number, image in enumerate(np.load(data / "test.images.npy")[:8]):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(image[..., 0]).save(files[-1])
    answers = LocalModel(run / "1").ask([file.read_bytes() for file in files])
    np.testing.assert_allclose([one["ood_score"] for one in answers], expected, rtol=1e-4, atol=1e-5)
    shown = invoke("predict", run, *files, "--json", cwd=tmp_path).stdout
    lines = [line for line in shown.splitlines() if line.startswith("{")]  # The run has printed its report before.
    np.testing.assert_allclose([json.loads(one)["ood_score"] for one in lines], expected, rtol=1e-4, atol=1e-5)
