"""A frozen backbone: each image passes it once, and what is trained on features is what is published."""

import html
import io
import itertools
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers
from rich.console import Console

from kood import heads, pipeline
from kood.classifier import Classifier
from kood.data.batches import views_of
from kood.data.image_set import ImageSet, joined
from kood.detector.measuring import Measuring
from kood.errors import UserError
from kood.intervals import mean_interval
from kood.nets.neck import LEAST, neck, standardize, whole
from kood.pipeline import build, features
from kood.pipeline.cell import Cell
from kood.pipeline.held_out import Fewer, HeldOut, folds_of, notes_of, notes_on
from kood.pipeline.outliers import Outliers
from kood.pipeline.stage import Stage
from kood.recipe import load
from kood.recipe.data_sections import HoldOut
from kood.report import HELD_OUT, print_cell, results
from kood.report.wording import all_warnings, duration
from kood.scorer import Scorer
from tests.conftest import Cell as OneCell
from tests.conftest import work_alone

pytestmark = pytest.mark.usefixtures("as_written")

RECIPE = """
name = "frozen"
[data]
image_shape = [8, 8, 3]
augment = ["flip"]
[data.id]
source = "digits"
classes = [0, 1, 2, 3]
per_class = 100
[data.near.others]
source = "digits"
classes = [7, 8]
count = 80
[classifier]
backbone = "small_cnn"
train = "head"
neck = 16
views = 1
[outliers]
use = ["patch_shuffle"]
count = 60
per_batch = 16
[train]
epochs = 3
[evaluate]
scores = ["msp", "mahalanobis"]
"""


#: For runs that are about something else: no second classifier to compare with, and nothing published.
LEAN = ["evaluate.baseline=false", "serve.export=false"]


@pytest.fixture
def recipe(tmp_path):
    def written(*overrides, more=""):
        (tmp_path / "frozen.toml").write_text(RECIPE + more)
        return load(tmp_path / "frozen.toml", overrides)

    return written


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The report and the folder of one run with folds, and how often the backbone was passed."""
    folder = tmp_path_factory.mktemp("frozen")
    (folder / "frozen.toml").write_text(RECIPE + '[data.hold_out]\nfolds = [[0], ["1", 3]]\n')
    return pipeline.run(folder / "frozen.toml", saved=folder), folder


@pytest.mark.backend
def test_the_published_model_says_what_was_measured_on_features(finished):
    result, folder = finished
    recipe = load(folder / "frozen.toml")
    work = work_alone(recipe, folder / "frozen")
    made = Cell(recipe)
    for stage in made.stages:
        stage.ensure(work)
    folds = [fold for _, fold in made.folds(result["headline_score"])]
    for fold in folds:
        for stage in fold.stages:
            stage.ensure(work)
    trained = [made.classifier, made.unexposed, *(fold.classifier for fold in folds)]
    assert all(stage.result.cached for stage in trained) and len({stage.folder for stage in trained}) == 4
    features, images = made.learned.images("test").images, made.data.images("test").images / np.float32(127.5) - 1
    for stage in trained:
        all_of_it, after = stage.model(), stage.measured()[1]
        assert all_of_it.backbone.input_shape == (None, 8, 8, 3)
        assert all_of_it.count_params() == stage.facts["parameters"]
        found, expected = after(features), all_of_it(images)
        for name in ("features", "logits"):
            np.testing.assert_allclose(*(keras.ops.convert_to_numpy(of[name]) for of in (found, expected)), atol=1e-5)
    # What they share is written down once, with what is published.
    (whole_one,) = (folder / "frozen" / "stages").glob("*/classifier.keras")
    assert whole_one.parent == made.export.folder
    published = keras.saving.load_model(whole_one, compile=False)(images)
    mine = made.classifier.model()(images)
    np.testing.assert_allclose(*(keras.ops.convert_to_numpy(of["logits"]) for of in (published, mine)), atol=1e-5)
    assert result["version"] == 1  # Publishing holds it against the measured answers too.


@pytest.mark.backend
def test_standardized_features_have_mean_0_and_variance_1(finished):
    _, folder = finished
    (stage,) = (folder / "frozen" / "stages").glob("features-*")
    features = np.load(stage / "train.images.npy").astype("float64")
    made = neck(features.shape[1])
    standardize(made, features.mean(axis=0), features.var(axis=0))
    found = keras.ops.convert_to_numpy(made(features.astype("float32")))
    variance = np.maximum(features.var(axis=0), LEAST * features.var(axis=0).mean())
    np.testing.assert_allclose(found, (features - features.mean(axis=0)) / np.sqrt(variance), atol=1e-4)


@pytest.mark.backend
def test_features_that_never_vary_are_not_blown_up():
    made = neck(3)
    standardize(made, np.array([1.0, 2.0, 3.0]), np.zeros(3))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(made(np.array([[1.0, 3.0, 3.0]], "float32"))), [[0, 1, 0]])


@pytest.mark.backend
def test_nothing_moves_a_frozen_backbone():
    image = keras.Input((4, 4, 3))
    x = layers.BatchNormalization()(layers.Conv2D(5, 3)(image))
    backbone = keras.Model(image, layers.GlobalAveragePooling2D()(x))
    backbone.trainable = False
    made = whole(backbone, neck(5, 7))
    assert {one.path for one in made.trainable_variables} == {
        one.path for one in made.get_layer("neck").trainable_variables
    }
    pixels = np.random.default_rng(0).normal(size=(6, 4, 4, 3)).astype("float32")
    before = [keras.ops.convert_to_numpy(one) for one in backbone.variables]
    made(pixels, training=True)
    for one, other in zip(before, backbone.variables, strict=True):
        np.testing.assert_array_equal(one, keras.ops.convert_to_numpy(other))


@pytest.mark.backend
def test_views_follow_the_seed_and_keep_the_labels():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), "uint8")
    images = ImageSet(pixels, np.arange(5) % 2, ("a", "b"))
    seen = views_of(images, 3, ["flip"], seed=1)
    assert seen.known_labels.tolist() == [0, 1, 0, 1, 0] * 3
    turned = 0
    for view, image in zip(seen.images, np.tile(pixels, (3, 1, 1, 1)), strict=True):
        same, mirrored = (view == image).all(), (view == image[:, ::-1]).all()
        assert same or mirrored
        turned += not same
    assert 0 < turned < 15
    np.testing.assert_array_equal(seen.images, views_of(images, 3, ["flip"], seed=1).images)
    assert (seen.images != views_of(images, 3, ["flip"], seed=2).images).any()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (['outliers.mix="linear"'], "outliers.mix = 'linear' mixes pixels"),
        (['pure_samples.use=["augment"]'], "pure_samples.use trains on samples"),
        (["data.augment=[]"], "classifier.views = 1: views are made by data.augment"),
        (['evaluate.scores=["odin"]'], "score 'odin' moves pixels by a gradient"),
        (['evaluate.scores=["adascale"]'], "score 'adascale' moves pixels by a gradient"),
        (['classifier.train="all"'], 'neck = 16: only what stands after a frozen backbone has it; add train = "head"'),
        (['classifier.train="body"'], "classifier.train"),
        (["data.hold_out.classes=1.0"], "data.hold_out.classes"),
        (["data.hold_out.folds=0"], "folds = 0: give a number from 1 to 100, or a list of lists of class names"),
        (["data.hold_out.folds=[[]]"], "folds = [[]]: give a number"),
        (
            ["data.hold_out.folds=2", 'outliers.use=["label_mixup"]', "outliers.label_mixup.groups=[['0',1]]"],
            "outliers.label_mixup.groups: name the classes, since without those that data.hold_out holds out a number",
        ),
    ],
)
def test_what_a_frozen_backbone_cannot_do_is_refused(recipe, overrides, told):
    with pytest.raises(UserError) as refused:
        recipe(*overrides)
    assert told in str(refused.value) and "\n" not in str(refused.value)


# What makes which stage again ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_table_passes_no_image_again_and_tells_the_differences_over_folds(tmp_path, recipe):
    arms = """
[matrix]
seed = [0, 1]
arm = [{ name = "none", outliers = "none" }, { name = "shuffled", outliers.use = ["patch_shuffle"] }]
"""
    more = '[data.hold_out]\nfolds = [[0], ["1", 3]]\n[report]\nbaseline = { arm = "none" }\n' + arms
    recipe(more=more)
    result = pipeline.run(tmp_path / "frozen.toml", LEAN, saved=tmp_path)
    assert [cell["stages"]["features"]["cached"] for cell in result["cells"]] == [False, True, True, True]
    assert len(list((tmp_path / "frozen" / "stages").glob("features-*"))) == 1
    # The seeds draw their own outliers.
    assert len(list((tmp_path / "frozen" / "stages").glob("patch_shuffle_features-*"))) == 2
    none, shuffled = result["table"]
    assert none["difference"] is None
    apart = shuffled["difference"]["held_out"]
    for number, fold in enumerate(apart["folds"]):
        pairs = [
            [cell["hold_out"]["folds"][number]["auroc"] for cell in result["cells"] if cell["cell"]["arm"] == arm]
            for arm in ("none", "shuffled")
        ]
        assert fold["auroc"]["mean"] == pytest.approx(np.mean(pairs[1]) - np.mean(pairs[0]))
        assert fold["auroc"]["low"] is not None and fold["auroc"]["seeds"] == 2
    assert apart["auroc"]["mean"] == pytest.approx(np.mean([fold["auroc"]["mean"] for fold in apart["folds"]]))
    page = (tmp_path / "frozen" / "report.html").read_text()
    assert "held-out AUROC" in page and "fold by fold" in page


@pytest.mark.one_backend
def test_features_pass_in_batches_of_one_size():
    classifier, sizes = Classifier(neck(5), heads.Softmax(3), name="classifier"), []
    classifier.build((None, 5))
    measuring = Measuring(classifier, scores=["msp"], batch_size=8)
    forward = measuring._normal
    measuring.__dict__["_normal"] = lambda rows: sizes.append(len(rows)) or forward(rows)
    draw = np.random.default_rng(0)
    sets = {name: ImageSet(draw.random((count, 5), np.float32)) for name, count in (("a", 3), ("b", 8), ("c", 19))}
    found = measuring.measure(sets)
    assert set(sizes) == {8} and [len(found.scores[name]["msp"]) for name in "abc"] == [3, 8, 19]


@pytest.mark.parametrize(
    ("override", "remade"),
    [
        ("classifier.neck=8", {"classifier"}),
        pytest.param("classifier.views=2", {"features", "classifier"}, marks=pytest.mark.slow),
        ("classifier.options={features=12}", {"features", "patch_shuffle_features", "classifier"}),
        # What more is measured passes the backbone, and nothing is trained or published.
        ("data.far.more={source='digits',classes=[9],count=20}", {"data", "features"}),
        ('data.hold_out={folds=[["0"]]}', set()),
    ],
)
def test_a_key_makes_again_what_it_decides(finished, tmp_path, recipe, monkeypatch, override, remade):
    first, folder = finished
    recipe()
    measures, passed, whole_pass = remade == {"data", "features"}, [], features.image_batches
    monkeypatch.setattr(
        features, "image_batches", lambda some, rows: passed.append(len(some)) or whole_pass(some, rows)
    )
    result = pipeline.run(
        tmp_path / "frozen.toml", [*LEAN, override, f"serve.export={str(measures).lower()}"], saved=folder
    )
    again = {name for name, stage in result["stages"].items() if not stage["cached"]}
    assert again & {"data", "features", "patch_shuffle", "patch_shuffle_features", "classifier", "export"} == remade
    assert result["version"] == (1 if measures else None)
    if measures:
        assert passed == [20]  # The other sets, their views and the proxies have passed before.
        assert result["scores"]["mahalanobis"]["others"] == first["scores"]["mahalanobis"]["others"]


def test_a_set_that_is_moved_or_renamed_goes_by_its_new_name(tmp_path):
    for text, names in (
        (RECIPE, {"near": ["others"]}),
        (RECIPE.replace("near.others", "near.strangers"), {"near": ["strangers"]}),
        (RECIPE.replace("near.others", "far.others"), {"far": ["others"]}),
    ):
        (tmp_path / "frozen.toml").write_text(text)
        cell = OneCell(load(tmp_path / "frozen.toml", LEAN), tmp_path / "run")
        cell.make("features")
        found = {kind: cell["features"].names(kind) for kind in ("near", "far")}
        assert {kind: its for kind, its in found.items() if its} == names


def test_a_head_begins_as_its_seed_says_whoever_made_the_features(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr("kood.training.fit", lambda model, *_, **__: (model, {}))
    begun = {}
    for seed in (0, 1):
        cell = OneCell(recipe(*LEAN, "outliers.use=[]", f"seed={seed}"), tmp_path / "run")
        cell.make("features")
        for process in ("the same", "another"):
            folder = tmp_path / f"{seed} {process}"
            folder.mkdir()
            if process == "another":
                build._frozen.clear()
            cell["classifier"].make(folder, cell.work)
            kept = keras.saving.load_model(folder / "after_features.keras", compile=False)
            begun[seed, process] = keras.ops.convert_to_numpy(kept.head.trainable_weights[0])
        np.testing.assert_array_equal(begun[seed, "the same"], begun[seed, "another"])
    assert (begun[0, "another"] != begun[1, "another"]).any()


# Classes held out ----------------------------------------------------------------------------------------------------


class Given:
    """Rows of four classes, two of each in every part."""

    frozen = None

    def images(self, name):
        start = {"train": 0, "validation": 8, "calibration": 16, "test": 24}.get(name, 32)
        pixels = np.arange(start, start + 8, dtype=np.uint8).reshape(8, 1, 1, 1)
        return ImageSet(pixels, np.repeat(np.arange(4), 2), ("a", "b", "c", "d"))

    shown = images

    def seen(self):
        return self.images("train")

    def digest(self, *names):
        return [f"{name} of all" for name in names]


def test_images_of_a_class_held_out_are_in_no_part_and_all_are_tested_on():
    view = HeldOut(Given(), ("b", "d"))
    for name, start in (("train", 0), ("validation", 8), ("calibration", 16), ("test", 24)):
        kept = view.images(name)
        assert kept.images.ravel().tolist() == [start, start + 1, start + 4, start + 5]
        assert kept.class_names == ("a", "c") and kept.known_labels.tolist() == [0, 0, 1, 1]
    assert view.seen().images.ravel().tolist() == [0, 1, 4, 5]
    near = view.sets("near")[HELD_OUT]
    assert sorted(near.images.ravel().tolist()) == [at + of for at in (0, 8, 16, 24) for of in (2, 3, 6, 7)]
    assert view.sets("far") == view.sets("validation_ood") == {}
    other = HeldOut(Given(), ("b", "c"))
    assert view.digest("train") != other.digest("train") and view.digests("near") != other.digests("near")


class Torn(Given):
    """What a backbone gives for such rows; some of "b" have the pixels of others, in the same part and in another."""

    def images(self, name):
        rows = super().images(name)
        return ImageSet(rows.images.reshape(-1, 1).astype(np.float32), rows.labels, rows.class_names)

    def shown(self, name):
        rows = super().images(name)
        pixels = rows.images.copy()
        pixels[2] = {"train": 0, "validation": 7, "calibration": 3}.get(name, pixels[2])
        return ImageSet(pixels, rows.labels, rows.class_names)


def test_what_a_class_that_stays_has_too_is_not_tested_on():
    view = HeldOut(Torn(), ("b",))
    near = view.sets("near")[HELD_OUT]
    # Of the first of each part those of "train" and "validation" go; that of "calibration" is an image of "b" again.
    assert near.images.dtype == np.float32 and near.images.ravel().tolist() == [3, 11, 18, 19, 26, 27]
    assert view.note == "2 images of classes that are held out have the pixels of some that stay, and are not tested on"
    assert view.digests("near") != HeldOut(Given(), ("b",)).digests("near")
    whole = HeldOut(Torn(), ("a", "b", "d"))
    assert len(whole.sets("near")[HELD_OUT]) == 24 and not whole.note
    assert whole.digests("near") == HeldOut(Given(), ("a", "b", "d")).digests("near")


def test_a_fold_without_images_of_its_own_is_refused():
    class Twice(Given):
        def shown(self, name):
            rows = self.images(name)
            return ImageSet(rows.images // 4, rows.labels, rows.class_names)

    with pytest.raises(
        UserError, match=r"^data\.hold_out: 8 images of .*, so there are none to test on; mend the labels"
    ):
        HeldOut(Twice(), ("b",)).images(f"data.near.{HELD_OUT}")


class Drawn:
    """Five outliers of classes 0..3, as `kood.pipeline.outliers.Outliers` has them."""

    kind = "drawn"

    def __init__(self, folder, needs=("train",), swapped=False):
        self.facts = {"sha256": "drawn", "images": 5}
        self.folder, self.source, self.is_swapped = folder, SimpleNamespace(needs=needs), swapped

    def exposed(self, seed):
        return ImageSet(np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1))

    shares, serves_fewer, made_without = Outliers.shares, Outliers.serves_fewer, Outliers.made_without


def test_outliers_made_of_a_class_held_out_are_left_out(tmp_path):
    pairs = np.array([[0, 1], [1, 2], [2, 3], [3, 0], [0, 2]])
    shares = np.zeros((5, 4), np.float32)
    shares[np.arange(5)[:, None], pairs] = [0.25, 0.75]
    for name, of in (("made_of.npy", pairs), ("mixtures.npy", shares)):
        folder = tmp_path / name
        folder.mkdir()
        np.save(folder / name, of)
        drawn = Drawn(folder)
        assert drawn.serves_fewer() and not Drawn(folder, swapped=True).serves_fewer()
        assert not Drawn(folder, needs=("train", "denoiser")).serves_fewer()
        fewer = Fewer(drawn, np.array([1]), 4)
        assert fewer.exposed(0).images.ravel().tolist() == [2, 3, 4]
        assert fewer.facts["sha256"] != Fewer(drawn, np.array([2]), 4).facts["sha256"]
    np.testing.assert_array_equal(fewer.shares(), [[0, 0.25, 0.75], [0.75, 0, 0.25], [0.25, 0.75, 0]])
    # What says nothing of its classes is drawn again, unless no training image is in it.
    (tmp_path / "none").mkdir()
    assert not Drawn(tmp_path / "none").serves_fewer() and Drawn(tmp_path / "none", needs=("shape",)).serves_fewer()
    whole = Fewer(Drawn(tmp_path / "none", needs=("shape",)), np.array([1]), 4)
    assert len(whole.exposed(0)) == 5
    # A fold tells of those that it is exposed to fewer of.
    told = notes_of(None, [[fewer], [whole], [object()]], SimpleNamespace(result=None), [])
    assert len(told) == 1 and f"is in (3 of 5 of {fewer.kind});" in told[0]
    assert not notes_of(None, [[whole]], SimpleNamespace(result=None), [])


def test_folds_hold_each_class_out_about_as_often():
    names = [f"class {number}" for number in range(10)]
    folds = folds_of(HoldOut(classes=0.3, folds=10), names, seed=3)
    assert all(len(set(fold)) == 3 for fold in folds)
    counts = [sum(name in fold for fold in folds) for name in names]
    assert len(folds) == 10 and counts == [3] * 10
    assert folds != folds_of(HoldOut(classes=0.3, folds=10), names, seed=4)
    assert folds_of(HoldOut(classes=0.01, folds=1), names, seed=0) and len(folds[0]) == 3


@pytest.mark.parametrize(
    ("classes", "share", "asked", "made"), [(6, 0.3, 5, 5), (6, 0.3, 15, 15), (6, 0.3, 40, 15), (4, 0.25, 7, 4)]
)
def test_folds_differ_from_one_another(classes, share, asked, made):
    names, settings = [f"class {number}" for number in range(classes)], HoldOut(classes=share, folds=asked)
    for seed in range(40):
        folds = folds_of(settings, names, seed)
        assert len(set(folds)) == len(folds) == made
        counts = [sum(name in fold for fold in folds) for name in names]
        assert max(counts) - min(counts) <= 1
        notes = notes_on(settings, folds, names)
        assert any(f"{made} folds are made where {asked}" in one for one in notes) == (made < asked)
        assert any("held out in several folds" in one for one in notes) == (max(counts) > 1)


def test_what_is_odd_about_folds_is_told():
    names, drawn = list("abcdef"), HoldOut(classes=0.3, folds=40)
    fewer, several = notes_on(drawn, folds_of(drawn, names, 0), names)
    assert fewer == (
        "data.hold_out: 15 folds are made where 40 are asked for, since 6 classes can be held out 2 at a time in no "
        "more ways"
    )
    assert several == (
        "data.hold_out: some classes are held out in several folds, since 15 folds of 2 are more than the 6 classes: "
        "a, b, c, d, e and 1 more"
    )
    given = HoldOut(folds=[["a", "b"], ["b", "a"], ["c", "b"]])
    assert notes_on(given, folds_of(given, names, 0), names) == [
        "data.hold_out: 2 folds are made where 3 are asked for, since the others name the same classes again",
        "data.hold_out: some classes are held out in several folds: b",
    ]
    plain = HoldOut(folds=[["a", "b"], ["c"]])
    assert notes_on(plain, folds_of(plain, names, 0), names) == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"folds": [["a"], ["e"]]}, "data.hold_out.folds: 'e' is no class of data.id; Allowed: "),
        ({"folds": [["a", "b", "c"]]}, "data.hold_out: without 'a', 'b', 'c' data.id has 1 of its 4 classes left"),
        ({"classes": 0.9}, "classes left, and a classifier needs 2; hold out fewer"),
    ],
)
def test_folds_that_leave_no_classifier_are_refused(settings, told):
    with pytest.raises(UserError) as refused:
        folds_of(HoldOut(**settings), ("a", "b", "c", "d"), 0)
    assert told in str(refused.value)


@pytest.mark.backend
def test_the_report_tells_each_fold_and_their_mean(finished):
    result, folder = finished
    told = result["hold_out"]
    assert [one["classes"] for one in told["folds"]] == [["0"], ["1", "3"]]
    aurocs = [one["auroc"] for one in told["folds"]]
    assert told["mean"]["auroc"]["mean"] == pytest.approx(np.mean(aurocs))
    assert all(one["auroc_interval"][0] <= one["auroc"] <= one["auroc_interval"][1] for one in told["folds"])
    assert {one["score"] for one in told["folds"]} == {result["headline_score"]}
    assert told["scores"][result["headline_score"]] == pytest.approx(np.mean(aurocs))
    assert set(told["scores"]) == {"msp", "mahalanobis"}
    line = result["stages"]["folds"]
    assert line["seconds"] > 0 and line["cached"] is False and line["backend"] == result["backend"]
    console = Console(file=io.StringIO(), width=400)
    print_cell(console, result)
    assert f", folds {duration(line['seconds'])}" in console.file.getvalue()
    table = results.held_out(result)
    assert [row.cells[0].text for row in table.rows] == ["0", "1, 3", "mean"]
    assert "Classes held out" in (folder / "frozen" / "report.html").read_text()


def test_a_fold_that_fails_leaves_the_report_of_the_others(tmp_path, recipe, monkeypatch):
    ensure = Stage.ensure

    def failing(self, work):
        if isinstance(getattr(self, "data", None), HeldOut) and self.data.held == ("0",) and self.kind == "classifier":
            raise UserError("it is late", exit_code=1)
        return ensure(self, work)

    fit = Scorer.fit

    def unfitted(self, outputs, labels, head):
        if self.name == "knn" and outputs["logits"].shape[1] == 3:
            raise UserError("evaluate.scores: knn cannot be fitted: they are few", exit_code=1)
        return fit(self, outputs, labels, head)

    monkeypatch.setattr(Scorer, "fit", unfitted)
    monkeypatch.setattr(Stage, "ensure", failing)
    recipe(more='[data.hold_out]\nfolds = [["0"], ["1"]]\n')
    settings = ["outliers.use=[]", "serve.export=false", "evaluate.scores=['msp','knn']", "evaluate.headline='msp'"]
    result = pipeline.run(tmp_path / "frozen.toml", settings, saved=tmp_path)
    assert [one["classes"] for one in result["hold_out"]["folds"]] == [["1"]]
    missing = "data.hold_out: without '1': evaluate.scores: knn cannot be fitted: they are few"
    assert [note for note in result["notes"] if "knn" in note] == [missing]
    assert set(result["scores"]) == {"msp", "knn"} and set(result["hold_out"]["scores"]) == {"msp"}
    told = "data.hold_out: the fold without '0' was left out: it is late"
    page = html.unescape((tmp_path / "frozen" / "report.html").read_text())
    assert told in all_warnings(result) and told in page


def test_folds_that_no_time_is_left_for_are_left_out(tmp_path, recipe, monkeypatch):
    ensure = Stage.ensure

    def slow(self, work):
        result = ensure(self, work)
        if self.kind == "evaluate":
            work.budget.began -= 3600
        return result

    monkeypatch.setattr(Stage, "ensure", slow)
    recipe(more='[data.hold_out]\nfolds = [["0"], ["1"]]\n')
    settings = [*LEAN, "outliers.use=[]", "budget.minutes=30"]
    told = pipeline.run(tmp_path / "frozen.toml", settings, saved=tmp_path)
    assert told["hold_out"]["folds"] == []
    assert [(one["classes"], one["why"]) for one in told["hold_out"]["left_out"]] == [
        (["0"], "the 30 minutes were up"), (["1"], "the 30 minutes were up"),
    ]  # fmt: skip
    page = (tmp_path / "frozen" / "report.html").read_text()
    assert "the fold without &#39;0&#39; was left out: the 30 minutes were up" in page


def test_copies_under_another_label_are_no_unknown_images(tmp_path, recipe):
    pixels = np.random.default_rng(0).integers(0, 256, (240, 8, 8, 3), np.uint8)
    labels = np.arange(240) % 3
    pixels[1:30:3] = pixels[0:30:3]  # Ten of "1" are "0" as well.
    np.savez(tmp_path / "torn.npz", images=pixels, labels=labels)
    recipe(more='[data.hold_out]\nfolds = [["1"]]\n')
    settings = [*LEAN, "outliers.use=[]", f"data.id={{source='npz',path='{tmp_path / 'torn.npz'}'}}"]
    told = pipeline.run(tmp_path / "frozen.toml", [*settings, "train.epochs=1", "serve.accept=0.8"], saved=tmp_path)
    assert told["hold_out"]["folds"][0]["images"] == 70
    assert "data.hold_out: without '1': 10 images of classes that are held out have" in " ".join(told["notes"])


def test_folds_need_calibration_images_enough_before_anything_is_trained(tmp_path, recipe):
    recipe(more='[data.hold_out]\nfolds = [["0", "1"]]\n')
    with pytest.raises(UserError) as refused:
        pipeline.run(tmp_path / "frozen.toml", ["serve.accept=0.98"], saved=tmp_path)
    assert (
        "data.hold_out: without '0', '1': serve.accept = 0.98 needs at least 49 calibration images, there are "
        in str(refused.value)
    )
    assert not list(tmp_path.glob("frozen/stages/features-*"))


@pytest.mark.parametrize(
    ("folds", "settings", "told"),
    [
        # sqrt(2) ln(K - 1) is no scale of two classes.
        ('[["0", "1"]]', ["head=arcface"], "without '0', '1': head: sqrt(2) ln(num_classes - 1), the automatic sc"),
        (
            '[["2"]]', ["outliers.use=['label_mixup']", "outliers.label_mixup.groups=[['1','2']]"],
            "without '2': outliers.label_mixup.groups: ",
        ),
        ('[["0"]]', ["classifier.views=0", "train.batch_size=350"], "without '0': train.batch_size: 350 is "),
        ('[["0"]]', ["classifier.train='last'", "fine_tuning.batch_size=350"], "without '0': fine_tuning.batch_size: "),
        ('[["0"]]', ["evaluate.scores=['knn:k=350']"], "without '0': evaluate.scores: knn:k=350 cannot be fitted to"),
    ],
)  # fmt: skip
def test_what_only_a_fold_forbids_is_told_before_anything_is_trained(tmp_path, recipe, folds, settings, told):
    recipe(more=f"[data.hold_out]\nfolds = {folds}\n")
    with pytest.raises(UserError) as refused:
        pipeline.run(tmp_path / "frozen.toml", [*LEAN, *settings], saved=tmp_path)
    assert f"data.hold_out: {told}" in str(refused.value) and refused.value.exit_code == 2
    assert not list(tmp_path.glob("frozen/stages/*"))
    # It is the fold alone that forbids it.
    recipe(more="")
    loaded = load(tmp_path / "frozen.toml", [*LEAN, *settings])
    OneCell(loaded, tmp_path / "whole").check()


@pytest.mark.slow
def test_a_run_on_pixels_holds_classes_out_too(tmp_path, recipe):
    settings = ['classifier={backbone="small_cnn"}', "outliers.use=[]", "serve.export=false"]
    recipe(settings[0], more="[data.hold_out]\nclasses = 0.25\nfolds = 1\n")
    result = pipeline.run(tmp_path / "frozen.toml", settings, saved=tmp_path)
    (fold,) = result["hold_out"]["folds"]
    assert len(fold["classes"]) == 1 and 0.5 < fold["auroc"] <= 1.0


def test_the_interval_of_a_mean_is_students():
    found = mean_interval([0.6, 0.7, 0.8])
    # t of 2 degrees of freedom at 97.5% is 4.302653.
    half = 4.302653 * 0.1 / np.sqrt(3)
    assert found["interval"] == pytest.approx([0.7 - half, 0.7 + half], abs=1e-6) and found["std"] == pytest.approx(0.1)
    assert mean_interval([0.9, 1.0, 1.0])["interval"][1] == 1.0
    assert mean_interval([1.0, 1.0]) == {"mean": 1.0, "std": 0.0, "n": 2, "interval": None}
    assert mean_interval([0.5]) == {"mean": 0.5, "std": None, "n": 1, "interval": None}
    with pytest.raises(ValueError, match="no shares"):
        mean_interval([])


def test_sets_are_joined_with_their_labels():
    first, second = (ImageSet(np.full((2, 3), value, np.float32), np.array([0, 1]), ("a", "b")) for value in (1, 2))
    both = joined([first, second])
    assert both.images[:, 0].tolist() == [1, 1, 2, 2] and both.known_labels.tolist() == [0, 1, 0, 1]
    assert joined([first, ImageSet(second.images)]).labels is None


def test_a_kill_costs_no_more_features_than_a_piece(tmp_path, recipe, monkeypatch):
    made = recipe(*LEAN, "evaluate.batch_size=16")

    def run_until_it_trains(name):
        work = work_alone(made, tmp_path / name)
        for stage in itertools.takewhile(lambda one: one.kind != "classifier", Cell(made).stages):
            stage.ensure(work)

    run_until_it_trains("whole")
    passed, whole_pass = [], features.image_batches

    def counted(images, rows):
        passed.append(len(images))
        if len(passed) == 5 and not (tmp_path / "killed" / "on").exists():
            (tmp_path / "killed" / "on").touch()
            raise KeyboardInterrupt
        return whole_pass(images, rows)

    monkeypatch.setattr(features, "PIECE", 90)
    monkeypatch.setattr(features, "image_batches", counted)
    (tmp_path / "killed").mkdir()
    with pytest.raises(KeyboardInterrupt):
        run_until_it_trains("killed")
    begun = sum(passed[:4])
    run_until_it_trains("killed")
    found, expected = (next((tmp_path / name / "stages").glob("features-*")) for name in ("killed", "whole"))
    of_features = {file.name for file in expected.glob("*.images.npy")}
    assert of_features == {file.name for file in found.glob("*.images.npy")} and not (found / "pieces").exists()
    for name in of_features:
        assert (found / name).read_bytes() == (expected / name).read_bytes()
    # Each image once: what was passed before the kill is not passed again.
    sizes = sum(len(np.load(file)) for file in [*found.glob("*.images.npy")])
    outliers = next((tmp_path / "killed" / "stages").glob("patch_shuffle_features-*"))
    assert begun + sum(passed[5:]) == sizes + len(np.load(outliers / "outliers.images.npy"))


@pytest.mark.slow
def test_a_killed_pass_goes_on_in_batches_of_another_size(tmp_path, recipe, monkeypatch):
    passed, whole_pass = [], features.image_batches

    def killed(images, rows):
        passed.append(len(images))
        if len(passed) == 3:
            raise KeyboardInterrupt
        return whole_pass(images, rows)

    monkeypatch.setattr(features, "PIECE", 90)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(features, "image_batches", killed)
        OneCell(recipe(*LEAN, "evaluate.batch_size=16"), tmp_path / "run").make("features")
    assert passed[:2] == [96, 96]
    found, whole = (
        OneCell(recipe(*LEAN, "evaluate.batch_size=10"), tmp_path / name).make("features") for name in ("run", "whole")
    )
    assert found.key == whole.key
    for file in whole.folder.glob("*.images.npy"):
        np.testing.assert_allclose(np.load(found.folder / file.name), np.load(file), atol=1e-5)
