"""A backbone that learns: at a rate of its own, by frozen statistics, and after the head."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from kood import heads, pipeline, training
from kood.classifier import Classifier
from kood.data import ImageSet
from kood.data.batches import training_batches
from kood.errors import UserError
from kood.files import fingerprint
from kood.nets.neck import neck, whole
from kood.pipeline.build import backbone_weights
from kood.pipeline.cell import Cell
from kood.pipeline.prepare import Data
from kood.recipe import load
from tests.conftest import work_alone
from tests.interrupted import KillAfter, Killed
from tests.test_stage_keys import TUNING

pytestmark = pytest.mark.usefixtures("as_written")

RECIPE = """
name = "tuned"
[data]
image_shape = [8, 8, 3]
[data.id]
source = "digits"
classes = [0, 1, 2, 3]
per_class = 40
[data.near.others]
source = "digits"
classes = [7, 8]
count = 40
[classifier]
backbone = "small_cnn"
train = "last"
neck = 8
[outliers]
use = ["patch_shuffle"]
count = 40
per_batch = 8
[train]
epochs = 2
batch_size = 16
[fine_tuning]
epochs = 1
batch_size = 16
[evaluate]
scores = ["msp"]
baseline = false
[serve]
export = false
accept = 0.9
"""


@pytest.fixture
def recipe(tmp_path):
    def written(*overrides):
        (tmp_path / "tuned.toml").write_text(RECIPE)
        return load(tmp_path / "tuned.toml", overrides)

    return written


def numbers(weights):
    return [ops.convert_to_numpy(one).astype("float64") for one in weights]


def backbone():
    image = keras.Input((4, 4, 1))
    x = layers.BatchNormalization(momentum=0.5)(layers.Conv2D(3, 3)(image))
    return keras.Model(image, layers.GlobalAveragePooling2D()(x))


def classifier(**options):
    keras.utils.set_random_seed(3)
    made = Classifier(backbone(), heads.AdaCos(3), **options)
    made.build((None, 4, 4, 1))
    return made


def fit(model, folder, *, share=1.0, name="adamw", epochs=2, callbacks=(), **settings):
    rng = np.random.default_rng(0)
    images = ImageSet(rng.integers(0, 256, (24, 4, 4, 1)).astype("uint8"), np.arange(24) % 3, tuple("abc"))

    def batches(first):
        return training_batches(images, None, batch_size=8, outliers_per_batch=0, epochs=epochs, seed=1,
                                first_epoch=first)[0]  # fmt: skip

    slower = len(model.backbone.trainable_variables)
    model.compile(training.optimizer(3 * epochs, name=name, learning_rate=0.01, share=share, slower=slower, **settings))
    return training.fit(model, batches, epochs=epochs, steps_per_epoch=3, folder=folder, callbacks=callbacks,
                        interval=0.0)[0]  # fmt: skip


# Two rates -----------------------------------------------------------------------------------------------------------


def stepped(name, weight, gradients, rate, decay):
    """The steps of SGD with Nesterov momentum 0.9, or of AdamW, in float64."""
    first = second = np.zeros_like(weight)
    for step, gradient in enumerate(gradients, start=1):
        weight = weight - rate * decay * weight
        if name == "sgd":
            first = 0.9 * first - rate * gradient
            weight = weight + 0.9 * first - rate * gradient
        else:
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            correction = np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            weight = weight - rate * correction * first / (np.sqrt(second) + 1e-7)  # Keras's place of the epsilon.
    return weight


@pytest.mark.backend
@pytest.mark.parametrize("share", [0.25, 0.0])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_first_weights_follow_a_share_of_the_rate(name, share):
    rng = np.random.default_rng(0)
    given = [rng.normal(size=(4, 3)) for _ in range(3)]
    weights = [keras.Variable(one.astype("float32")) for one in given]
    chosen = training.optimizer(None, name=name, learning_rate=0.1, weight_decay=0.05, share=share, slower=2, ema=0.5)
    # As a checkpoint has it.
    chosen = keras.optimizers.deserialize(keras.optimizers.serialize(chosen))
    gradients = rng.normal(size=(3, 3, 4, 3))
    for step in gradients:
        chosen.apply([ops.convert_to_tensor(one.astype("float32")) for one in step], weights)
    for at, (weight, found) in enumerate(zip(given, numbers(weights), strict=True)):
        rate = 0.1 * (share if at < 2 else 1.0)
        np.testing.assert_allclose(found, stepped(name, weight, gradients[:, at], rate, 0.05), rtol=2e-5, atol=2e-6)


@pytest.mark.backend
def test_the_weights_of_the_backbone_stand_first(tmp_path, recipe):
    made = classifier()
    (tmp_path / "all.toml").write_text(RECIPE.replace('train = "last"\nneck = 8', ""))
    count = backbone_weights(made, load(tmp_path / "all.toml"))
    assert [one.path for one in made.trainable_variables[:count]] == [
        one.path for one in made.backbone.trainable_variables
    ]
    inner, after = backbone(), neck(3, 5)
    made = Classifier(whole(inner, after), heads.AdaCos(3))
    made.build((None, 4, 4, 1))
    count = backbone_weights(made, recipe())
    assert made.trainable_variables[:count] == inner.trainable_variables and count == 4
    read = Classifier.from_config(made.get_config())
    read.build((None, 4, 4, 1))
    assert [one.shape for one in read.trainable_variables] == [one.shape for one in made.trainable_variables]


# Frozen statistics ---------------------------------------------------------------------------------------------------


@pytest.mark.backend
@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_statistics_stay_and_the_weights_learn(tmp_path, frozen):
    made = classifier(frozen_statistics=frozen)
    (normal,) = (layer for layer in made.backbone.layers if isinstance(layer, layers.BatchNormalization))
    before = numbers([normal.moving_mean, normal.moving_variance, *made.backbone.trainable_variables])
    scale = numbers([made.head.scale])
    made = fit(made, tmp_path)
    after = numbers([normal.moving_mean, normal.moving_variance, *made.backbone.trainable_variables])
    assert [bool((one == other).all()) for one, other in zip(before, after, strict=True)][:2] == [frozen] * 2
    assert all((one != other).any() for one, other in zip(before[2:], after[2:], strict=True))
    assert (numbers([made.head.scale])[0] != scale[0]).all()  # What a head fits in training it goes on fitting.
    assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(made)).frozen_statistics == frozen


@pytest.mark.backend
def test_under_rate_0_and_frozen_statistics_a_backbone_is_frozen(tmp_path):
    made = classifier(frozen_statistics=True)
    before, head = numbers(made.backbone.weights), numbers(made.head.weights)
    made = fit(made, tmp_path, share=0.0, weight_decay=0.1, ema=0.5)
    for one, other in zip(before, numbers(made.backbone.weights), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-6)  # The moving average rounds.
    assert (numbers(made.head.weights)[0] != head[0]).any()


@pytest.mark.backend
@pytest.mark.parametrize("name", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
def test_a_killed_training_of_two_rates_goes_on_as_if_it_had_not_been(tmp_path, name):
    settings = {"name": name, "share": 0.3, "weight_decay": 0.01, "ema": 0.9, "clip_norm": 1.0, "epochs": 4}
    expected = numbers(fit(classifier(frozen_statistics=True), tmp_path / "whole", **settings).weights)
    with pytest.raises(Killed):
        fit(classifier(frozen_statistics=True), tmp_path / "killed", callbacks=[KillAfter(1)], **settings)
    found = numbers(fit(classifier(frozen_statistics=True), tmp_path / "killed", **settings).weights)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


# The head first ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run's folder: what tests have in common is made once."""
    return tmp_path_factory.mktemp("tuned") / "saved"


def made_of(recipe, folder):
    cell, work = Cell(recipe), work_alone(recipe, folder)
    for stage in cell.stages:
        stage.ensure(work)
    return cell


@pytest.mark.backend
def test_no_epoch_leaves_the_classifier_as_the_head_was_trained(saved, recipe):
    last = made_of(recipe("fine_tuning.epochs=0"), saved)
    head = made_of(recipe('classifier.train="head"'), saved)
    assert head.classifier.result.cached and head.classifier.folder == last.classifier.begun[0].folder
    images = last.data.images("test").images / np.float32(127.5) - 1
    for name in ("features", "logits"):
        found, expected = (cell.classifier.model()(images)[name] for cell in (last, head))
        np.testing.assert_allclose(ops.convert_to_numpy(found), ops.convert_to_numpy(expected), atol=1e-5)
    assert last.evaluation.facts["id"]["accuracy"] == head.evaluation.facts["id"]["accuracy"]


def test_the_second_part_begins_with_the_first_and_moves_the_backbone(saved, recipe):
    overrides = [
        "fine_tuning.learning_rate=0.0001",
        "classifier.frozen_statistics=true",
        "classifier.backbone_rate=0.1",
    ]
    cell = made_of(recipe(*overrides), saved)
    first, last = cell.classifier.begun[0].model(), cell.classifier.model()
    moved = [float(np.abs(one - other).max()) for one, other in
             zip(numbers(first.weights), numbers(last.weights), strict=True)]  # fmt: skip
    assert len(moved) > 8 and 0 < max(moved) < 0.02
    assert cell.learned.frozen is cell.learned and cell.classifier.data.frozen is None
    published = cell.classifier.measured()[1]
    images = cell.data.images("test").images / np.float32(127.5) - 1
    np.testing.assert_array_equal(*(ops.convert_to_numpy(one(images)["logits"]) for one in (published, last)))


@pytest.mark.slow
def test_heads_are_shared_and_folds_do_both_parts(tmp_path):
    more = '[data.hold_out]\nfolds = [["0"]]\n[matrix]\n"classifier.train" = ["head", "last"]\n'
    (tmp_path / "both.toml").write_text(RECIPE + more)
    result = pipeline.run(tmp_path / "both.toml", saved=tmp_path)
    head, last = (cell["stages"] for cell in result["cells"])
    assert not head["classifier"]["cached"] and last["classifier_head"]["cached"] and not last["classifier"]["cached"]
    assert last["features"]["cached"] and not result["failed"]
    stages = [folder.name.split("-")[0] for folder in (tmp_path / "tuned" / "stages").iterdir()]
    assert stages.count("fine_tuned") == 2 and stages.count("classifier") == 2  # One of a fold.


@pytest.mark.parametrize(
    ("override", "again"),
    [
        *((f"fine_tuning.{key}={value}", False) for key, value in TUNING.items()),
        ("classifier.backbone_rate=0.5", False),
        ("classifier.frozen_statistics=true", False),
        ("train.epochs=3", True),
        ("classifier.neck=4", True),
    ],
)
def test_the_first_part_is_made_again_only_for_what_decides_it(recipe, override, again):
    def keys(made):
        head, last = made.classifier.begun[0], made.classifier
        for stage in (made.learned, made.data):
            stage.result = type("Made", (), {"key": "k", "facts": {"sets": {"train": {"sha256": "s"}}}})
        for source in made.exposed_to.values():
            for stage in source:
                stage.result = type("Made", (), {"facts": {"sha256": "s"}})
        head.result = type("Made", (), {"key": fingerprint(head.decides())})
        return head.decides(), last.decides()

    (head, last), (other_head, other_last) = keys(Cell(recipe())), keys(Cell(recipe(override)))
    assert (head != other_head) == again and last != other_last


def test_neither_part_is_trained_for_a_comparison_that_is_left_out(recipe, monkeypatch):
    monkeypatch.setattr(Data, "images", lambda _, name: ImageSet(np.zeros((0, 8, 8, 3), "uint8")))
    made = Cell(recipe("evaluate.baseline=true"))
    made.data.result = type("Made", (), {"facts": {"sets": {}}})
    left_out = {stage.role for stage in made.stages if stage.applies()}
    assert left_out == {"baseline_classifier_head", "baseline_classifier", "validation", "baseline"}


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (['classifier.train="head"', "classifier.backbone_rate=0.1"], "backbone_rate: under train"),
        (['classifier.train="head"', "classifier.frozen_statistics=true"], "frozen_statistics: under train"),
        (["classifier.backbone_rate=1.5"], "classifier.backbone_rate"),
        (["classifier.backbone_rate=-0.1"], "classifier.backbone_rate"),
        (["fine_tuning.epochs=-1"], "fine_tuning.epochs"),
        (['fine_tuning.augment=["flop"]'], "fine_tuning"),
        (['outliers.mix="linear"'], "outliers.mix"),
        (['pure_samples.use=["augment"]'], "pure_samples.use"),
        (["classifier.views=1"], "classifier.views = 1: views are made by data.augment"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(recipe, overrides, told):
    with pytest.raises(UserError) as refused:
        recipe(*overrides)
    assert told in str(refused.value) and "\n" not in str(refused.value) and refused.value.exit_code == 2


def test_a_batch_that_is_larger_than_the_set_is_refused_before_any_training(tmp_path, recipe):
    recipe()
    with pytest.raises(UserError, match="fine_tuning.batch_size: 4096 is more than the") as refused:
        pipeline.run(tmp_path / "tuned.toml", ["fine_tuning.batch_size=4096"], saved=tmp_path)
    assert refused.value.exit_code == 2 and not (tmp_path / "tuned").exists()


def test_under_a_budget_both_parts_have_their_share(recipe):
    from kood.pipeline.budget import FIRST, Budget

    last = recipe("budget.minutes=10")
    budget = Budget(last)
    both = [budget.of(kind, last) for kind in ("classifier", "fine_tuned")]
    alone = Budget(recipe("budget.minutes=10", 'classifier.train="head"')).of("classifier", last)
    assert both == pytest.approx([FIRST * alone, (1 - FIRST) * alone])
