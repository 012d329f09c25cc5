"""What the classifier of a recipe is trained on: outliers, virtual outliers, pure samples, and what decides it."""

import json

import keras
import numpy as np
import pytest

from kood.data import ImageSet
from kood.errors import UserError
from kood.pipeline import cell as whole
from kood.pipeline import classify, diffusion
from kood.pipeline.build import build_classifier, class_weights
from kood.recipe import load
from kood.runs import Result
from tests.conftest import TINY, Cell
from tests.interrupted import Killed

pytestmark = pytest.mark.usefixtures("as_written")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.toml").write_text(TINY)
    return folder


def cell(folder, *settings):
    return Cell(load(folder / "tiny.toml", ['outliers.use=["noise"]', *settings]), folder / "run")


@pytest.fixture
def given(monkeypatch):
    """The arguments of every call of `training_batches`, and the steps it answered."""
    calls = []
    plain = classify.training_batches

    def spy(images, outliers, **settings):
        dataset, steps = plain(images, outliers, **settings)
        calls.append({"images": images, "outliers": outliers, **settings, "found": steps})
        return dataset, steps

    monkeypatch.setattr(classify, "training_batches", spy)
    return calls


@pytest.fixture
def untrained(monkeypatch):
    """Nothing is trained, for tests of what decides a training."""
    monkeypatch.setattr(classify.training, "fit", lambda model, *_, **__: (model, {}))


def only_batched(model, batches, **settings):
    """In place of a training: makes its batches."""
    batches(0)
    return model, {}


class PureStage:
    """Stands for samples of one class each."""

    def __init__(self, count=37):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
        self.set = ImageSet(images, np.arange(count, dtype=np.int64) % 4, tuple("0123"))
        self.facts = {"sha256": self.set.sha256()}

    def images(self):
        return self.set


@pytest.mark.parametrize(
    ("role", "file", "use"),
    [("classifier", "classifier.keras", "noise"), ("diffusion", "denoiser.keras", "label_mixup")],
)
def test_a_kill_before_the_trained_model_is_saved_loses_no_training(tmp_path, monkeypatch, role, file, use):
    (tmp_path / "tiny.toml").write_text(TINY)
    made = cell(tmp_path, f'outliers.use=["{use}"]', "report.tensorboard=true")
    if role == "classifier":
        made.make("noise")
    monkeypatch.setitem(classify.training.fit.__kwdefaults__, "interval", 0.0)
    save = keras.Model.save

    def killed(model, path, *args, **settings):
        if path.name == file:
            raise Killed
        save(model, path, *args, **settings)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(keras.Model, "save", killed)
        made.make(role)
    monkeypatch.setattr("kood.training.loop.feed", lambda _: pytest.fail("it is trained again"))
    result = made.make(role)
    assert (result.folder / file).is_file() and len(result.facts["history"]["loss"]) > 1
    assert not list(result.folder.glob("*checkpoint*"))
    # A folder for each training: one of other settings, or of a fold, is another curve.
    assert [path.name for path in made.work.logs.iterdir()] == [f"{role}-{result.key[:8]}"]


@pytest.mark.slow
def test_pure_samples_as_rows_or_as_images_leave_the_number_of_steps_alone(tmp_path, given, monkeypatch):
    (tmp_path / "tiny.toml").write_text(TINY)
    keys = {}
    for use in ('["id_rows"]+5', "[]", '["id_rows"]', '["augment"]'):
        value, _, per_batch = use.partition("+")
        more = [f"pure_samples.per_batch={per_batch}"] if per_batch else []
        made = cell(tmp_path, f"pure_samples.use={value}", *more)
        made["classifier"].pure = None if value == "[]" else PureStage()
        stage = made.train()
        if not keys:
            assert len(stage.facts["history"]["loss"]) == 2
            monkeypatch.setattr(classify.training, "fit", only_batched)
        keys[use] = stage.key
        batch = given[-1]
        real = len(made.images("train"))
        assert (real, batch["found"]) == (120, 120 // 16)
        assert batch["outliers_per_batch"] == 16 and len(batch["outliers"]) == 24
        if value == '["augment"]':
            assert len(batch["images"]) == real + 37 and batch["labelled"] is None
            expected = np.concatenate([made.images("train").known_labels, np.arange(37) % 4])
            np.testing.assert_array_equal(batch["images"].known_labels, expected)
        else:
            rows = {"[]": 0, '["id_rows"]': 16, '["id_rows"]+5': 5}[use]
            assert len(batch["images"]) == real and batch["labelled_per_batch"] == rows
            assert (batch["labelled"] is None) == (rows == 0)
    assert len(set(keys.values())) == 4


@pytest.mark.slow
def test_an_unexposed_classifier_does_not_depend_on_how_it_would_be_exposed(tmp_path, untrained):
    (tmp_path / "tiny.toml").write_text(TINY)
    folder = tmp_path
    plain = cell(folder, "outliers.use=[]")
    key = plain.train().key
    settings = ("weight=0.1", "begin=0.5", 'reach="head"', "per_batch=9", 'mix="linear"')
    for setting in (f"outliers.{setting}" for setting in settings):
        made = cell(folder, "outliers.use=[]", setting)
        stage = made.train()
        assert (stage.key, stage.cached) == (key, True)
    keys = {made.train().key for made in (
        cell(folder), cell(folder, "outliers.begin=0.5"), cell(folder, 'outliers.reach="head"'),
        cell(folder, 'outliers.use=["virtual"]', "outliers.virtual.queue=4"), cell(folder, 'outliers.mix="linear"'),
        cell(folder, 'outliers.mix="cutmix"'), cell(folder, 'outliers.mix="cutmix"', "outliers.mix_alpha=2.0"),
        cell(folder, 'outliers.use=["cutmix"]'),
        cell(folder, 'outliers.use=["cutmix"]', 'outliers.amplitude="swapped"'),
    )}  # fmt: skip
    assert len(keys - {key}) == 9


def test_balanced_class_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.random.default_rng(0).choice(4, 200, p=[0.6, 0.3, 0.08, 0.02])
    found = class_weights("balanced", labels, tuple("abcd"))
    np.testing.assert_allclose(found, compute_class_weight("balanced", classes=np.arange(4), y=labels))
    given = class_weights({"d": 9, "a": 1, "b": 2, "c": 3}, labels, tuple("abcd"))
    np.testing.assert_allclose(np.divide(given, given[0]), [1, 2, 3, 9])
    for weights in (found, given):
        assert np.mean(np.array(weights)[labels]) == pytest.approx(1.0)
    assert class_weights({"cafe\u0301": 1.0, "b": 2.0}, np.array([0, 1]), ("caf\u00e9", "b"))[1] > 1
    assert class_weights(None, labels, tuple("abcd")) is None


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"a": 1.0, "B": 1.0, "c": 1.0}, r"train.class_weight: there is no class 'B'; did you mean 'b'"),
        ({"a": 1.0, "b": 1.0}, "'c' has no weight; give every class one"),
        ({"a": 1.0}, "'b', 'c' have no weight; give every class one"),
        ("balanced", "the class 'b' has no training image"),
    ],
)
def test_class_weights_that_do_not_fit_the_classes_are_refused(wanted, told):
    with pytest.raises(UserError, match=told):
        class_weights(wanted, np.array([0, 0, 2]), tuple("abc"))


def test_class_weights_decide_the_training_and_nothing_that_is_served(tmp_path, monkeypatch):
    """What they do to a loss is looked at in test_training_steps.py."""
    (tmp_path / "tiny.toml").write_text(TINY)
    folder, trained_by = tmp_path, []
    monkeypatch.setattr(
        classify.training, "fit", lambda model, *_, **__: trained_by.append(model.class_weight) or (model, {})
    )

    def decided(made):
        stage = made.train()
        record = json.loads((stage.folder / "stage.json").read_text())
        model = keras.saving.load_model(stage.folder / "classifier.keras", compile=False)
        assert model.class_weight is None and "class_weight" not in model.get_config()
        return stage, record["decides"]

    plain, without = decided(cell(folder))
    assert "class_weight" not in without and "class_weight" not in without["train"]
    names = cell(folder).images("train").class_names
    table = f"train.class_weight={{ {', '.join(f'{name} = {n}' for n, name in enumerate(names, 1))} }}"
    weighed, with_table = decided(cell(folder, table))
    assert weighed.key != plain.key and with_table["class_weight"] == pytest.approx([0.4, 0.8, 1.2, 1.6])
    balanced, with_balance = decided(cell(folder, "train.class_weight=balanced"))
    assert with_balance["class_weight"] == pytest.approx([1.0] * 4)  # As many images of each class.
    assert trained_by[0] is None and balanced.key != weighed.key
    assert trained_by[1:] == [pytest.approx([0.4, 0.8, 1.2, 1.6]), pytest.approx([1.0] * 4)]


def test_outliers_are_mixed_with_images_as_the_recipe_says(folder, given):
    made = cell(folder, 'outliers.mix="cutmix"', "outliers.mix_alpha=0.5")
    stage = made.train()
    assert (given[-1]["mix"], given[-1]["mix_alpha"]) == ("cutmix", 0.5)
    assert np.isfinite(stage.facts["history"]["exposure"]).all()


def test_swapped_outliers_have_the_amplitudes_of_training_images(tmp_path, given, untrained):
    (tmp_path / "tiny.toml").write_text(TINY)
    keys, both = [], 'outliers.use=["patch_shuffle", "noise"]'
    for settings in ([], ['outliers.amplitude="swapped"'], ['outliers.amplitude="swapped"', "seed=9"]):
        made = cell(tmp_path, "train.epochs=1", both, "outliers.patch_shuffle.count=20", *settings)
        keys.append(made.train().key)
    own, swapped, other = (given[call]["outliers"].images.astype(float) for call in (0, len(given) // 3, -1))
    assert len(set(keys)) == 3 and len(own) == len(swapped) == 44
    # A shuffle keeps the sum of its image, whose own brightness then goes with its amplitudes.
    assert (own[:20] != swapped[:20]).any() and (swapped[:20] != other[:20]).any()
    sums = {int(image.sum()) for image in np.asarray(made.images("train").images).astype(int)}
    assert all(min(abs(image.sum() - one) for one in sums) <= 32 for image in swapped[:20] if image.max() < 255)
    np.testing.assert_array_equal(own[20:], swapped[20:])


def test_an_amplitude_swap_is_a_source_of_its_own(folder):
    made = cell(folder, 'outliers.use=["amplitude_swap"]', "outliers.amplitude_swap.count=50")
    stage = made.make(*made.work.recipe.outliers.drawn)
    swapped = np.load(stage.folder / "outliers.images.npy")
    assert swapped.shape == (50, 8, 8, 1)
    assert not {row.tobytes() for row in swapped} & {row.tobytes() for row in np.asarray(made.images("train").images)}


def test_virtual_outliers_need_no_images_and_stay_behind(tmp_path, given, monkeypatch):
    (tmp_path / "tiny.toml").write_text(TINY)
    folder = tmp_path
    made = cell(folder, 'outliers.use=["virtual"]', "outliers.virtual.queue=4", "outliers.begin=0.4")
    stage = made.train()
    assert given[-1]["outliers"] is None and given[-1]["outliers_per_batch"] == 0  # Of which the pace counts none.
    first, second = stage.facts["history"]["exposure"]
    assert first < second and second > 0  # It begins at step 6 of 14, in the first epoch of 7.
    model = keras.saving.load_model(stage.folder / "classifier.keras", compile=False)
    assert model.virtual is None and model.exposure is None and model.count_params() == stage.facts["parameters"]
    assert not made["classifier"].outliers
    monkeypatch.setattr(classify.training, "fit", only_batched)
    plain = cell(folder, "outliers.use=[]").train()
    assert plain.facts["parameters"] == stage.facts["parameters"]


def trained_to(exposed):
    """In place of a training: how far exposure came in it."""

    def fit(model, batches, **settings):
        if model.exposed is not None:
            model.exposed.assign(exposed)
        return model, {}

    return fit


@pytest.mark.parametrize(
    ("settings", "exposed", "told"),
    [
        (("outliers.use=['virtual']",), 1, "was never exposed to virtual outliers, since not every class had filled "
         "its queue when the training ended; raise train.epochs, or lower outliers.virtual.queue"),
        (("outliers.use=['virtual', 'noise']", "outliers.begin=0.5"), 0, "was never exposed to outliers, since it "
         "ended before outliers.begin = 0.5 of its time; lower outliers.begin, or raise train.epochs"),
        (("outliers.use=['virtual']",), 2, None),
        (("outliers.use=[]",), 0, None),
        (("outliers.use=['noise']", "outliers.weight=0.0"), 0, None),
    ],
)  # fmt: skip
def test_outliers_that_no_step_was_exposed_to_are_told_of(tmp_path, monkeypatch, settings, exposed, told):
    (tmp_path / "tiny.toml").write_text(TINY)
    monkeypatch.setattr(classify.training, "fit", trained_to(exposed))
    made = cell(tmp_path, *settings)
    made.train()
    stage = made["classifier"]
    assert stage.warnings == ([f"classifier: {told}"] if told else [])
    if "'virtual'" in settings[0]:
        assert stage.notes == ["outliers.virtual.queue = 200: 4 of 4 classes are learnt from fewer rows, 30 at least, "
                               "and have queues of as many places"]  # fmt: skip
    stage.result.facts["epochs"] = 0.4
    assert stage.warnings[0].startswith("classifier: the time was enough for 0.4 of 2 epochs, so it has not seen every")
    assert all(one.replace(", or lower outliers.virtual.queue", "").endswith("give the run more minutes")
               for one in stage.warnings)  # fmt: skip


def test_what_was_not_trained_was_not_meant_to_be_exposed(tmp_path, monkeypatch):
    (tmp_path / "tiny.toml").write_text(TINY)
    monkeypatch.setattr(classify.training, "fit", trained_to(1))
    for epochs, told in ((0, None), (1, "classifier: was never exposed to virtual outliers in fine-tuning, since not")):
        made = cell(tmp_path, "outliers.use=['virtual']", "classifier.train=last", f"fine_tuning.epochs={epochs}")
        made.make("features", "classifier_head", "classifier")
        first, whole = made["classifier_head"].warnings, made["classifier"].warnings
        assert first[0].startswith("classifier_head: was never exposed to virtual outliers, since not every class")
        assert len(whole) == bool(told) and all(one.startswith(told) and "raise fine_tuning" in one for one in whole)


@pytest.mark.parametrize(
    ("settings", "role", "steps", "told"),
    [
        (["train.ema=0.9999"], "classifier", 48, "train.ema = 0.9999: after 48 steps 100% of the averaged weights, "
         "which are kept, are those that the training began with; set train.ema = 0.9 or lower, or train for more"),
        (["train.ema=0.995"], "classifier", 400, "train.ema = 0.995: after 400 steps 14% of "),
        (["train.ema=0.9"], "classifier", 3, "that the training began with; train for more steps"),
        (["train.ema=0.995"], "classifier", 800, None),
        ([], "classifier", 3, None),
        (["train.ema=0.9999"], "baseline_classifier", 48, None),  # It is told once.
        (["train.ema=0.9999", "classifier.train=last"], "classifier_head", 48, "train.ema = 0.9999: "),
        (["train.ema=0.9999", "classifier.train=last"], "classifier", 48, "train.ema = 0.9999: "),
        (["train.ema=0.5", "fine_tuning.ema=0.9999", "classifier.train=last"], "classifier", 48, "fine_tuning.ema = "),
        (["diffusion.ema=0.9999", "outliers.use=['label_mixup']"], "diffusion", 800,
         "diffusion.ema = 0.9999: after 800 steps 92% of"),
        (["diffusion.ema=0.995", "outliers.use=['label_mixup']"], "diffusion", 800, None),
    ],
)  # fmt: skip
def test_an_average_that_still_is_the_network_as_it_began_is_told_of(tmp_path, settings, role, steps, told):
    (tmp_path / "tiny.toml").write_text(TINY)
    for quick in (False, True):
        recipe = load(tmp_path / "tiny.toml", ['outliers.use=["noise"]', *settings], quick=quick)
        stage = next(stage for stage in whole.Cell(recipe).stages if stage.role == role)
        facts = {"averaged": steps, "steps": steps, "passes": 99.0, "timed": False}
        stage.result = Result(tmp_path, facts, 0.0, False)
        assert len(stage.warnings) == bool(told and not quick)
        assert all(told in one for one in stage.warnings)


@pytest.mark.parametrize("ema", ["", "train.ema=0.9"])
def test_how_long_weights_were_averaged_is_kept(tmp_path, monkeypatch, ema):
    (tmp_path / "tiny.toml").write_text(TINY)
    made = cell(tmp_path, "outliers.use=[]", *filter(None, [ema]))

    def fit(model, *_, **__):
        model.optimizer.iterations.assign(7)
        return model, {}

    monkeypatch.setattr(classify.training, "fit", fit)
    made.train()
    assert made["classifier"].facts.get("averaged") == (7 if ema else None)


def test_exposure_begins_before_the_last_step(folder):
    for begin, steps, expected in ((0.97, 15, 14), (0.4, 15, 6), (0.0, 15, 0), (0.9, 1, 0)):
        recipe = load(folder / "tiny.toml", ['outliers.use=["noise"]', f"outliers.begin={begin}"])
        assert build_classifier(recipe, 4, steps=steps).exposure_begin == expected


def test_too_few_candidates_are_the_recipes_fault(folder):
    made = cell(folder, 'outliers.use=["virtual"]', "outliers.virtual.candidates=3")
    with pytest.raises(UserError, match=r"outliers.virtual: candidates is 3.*raise candidates to 4"):
        made.check()


def test_patch_shuffles_take_each_image_equally_often(folder):
    made = cell(folder, 'outliers.use=["patch_shuffle"]', "outliers.patch_shuffle.count=300")
    stage = made.make(*made.work.recipe.outliers.drawn)
    shuffled = np.load(stage.folder / "outliers.images.npy")
    sums = np.sort(made.images("train").images.reshape(120, -1).astype(int).sum(axis=1))
    found = np.sort(shuffled.reshape(300, -1).astype(int).sum(axis=1))
    # A shuffle keeps the sum of an image: 300 of 120 are each of them two times or three.
    assert set(found) == set(sums)
    times = np.array([(found == s).sum() / (sums == s).sum() for s in set(sums)])
    assert times.min() >= 2 and times.max() <= 3


def test_real_outliers_are_drawn_down_to_the_number_of_the_others(folder):
    settings = ['outliers.use=["real"]', 'outliers.real={source="digits", classes=[6]}']
    several = {}
    for count, expected in ((50, 50), (100_000, 181)):
        made = cell(folder, *settings, f"outliers.count={count}")
        stage = made.make(*made.work.recipe.outliers.drawn)
        several[count] = np.load(stage.folder / "outliers.images.npy")
        assert several[count].shape == (expected, 8, 8, 1)
    everything = {image.tobytes() for image in several[100_000]}
    assert len({image.tobytes() for image in several[50]} & everything) == len({i.tobytes() for i in several[50]})


@pytest.mark.slow
def test_images_reside_where_the_recipe_lets_them(tmp_path, given, monkeypatch):
    """On a CPU only when asked to, and the classifier is the same; what needs the pixels on the host has them there."""
    (tmp_path / "tiny.toml").write_text(TINY)
    found = {}
    for resident in ("true", "false", "auto"):
        if resident == "auto":
            monkeypatch.setattr(classify.training, "fit", only_batched)
        made = cell(tmp_path, f"train.resident={resident}", 'data.augment=["flip","crop"]')
        made.work.run.folder = tmp_path / resident
        made["classifier"].pure = PureStage()
        stage = made.train()
        found[resident] = stage.key, keras.saving.load_model(stage.folder / "classifier.keras", compile=False)
        assert given[-1]["resident"] == (resident == "true")
    assert len({key for key, _ in found.values()}) == 1
    for one, other in zip(found["true"][1].get_weights(), found["false"][1].get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    for setting in ('train.augment=["flip","blur"]', 'outliers.mix="linear"'):
        made = cell(tmp_path, "train.resident=true", setting)
        made.train()
        assert given[-1]["resident"] is False


def test_the_diffusion_model_s_images_reside_too(folder, monkeypatch):
    calls, plain = [], diffusion.labelled_batches

    def spy(*arguments, **settings):
        calls.append(settings["resident"])
        return plain(*arguments, **settings)

    monkeypatch.setattr(diffusion, "labelled_batches", spy)
    made = cell(folder, "train.resident=true", "diffusion.steps=3")
    diffusion.Diffusion(made.work.recipe, made["data"]).ensure(made.work)
    assert calls == [True]
