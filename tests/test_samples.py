"""The stages that sample from a small diffusion model: mixtures, the judge and its filter, pure samples, stops."""

import hashlib
import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from keras import ops

from kood.data.image_set import ImageSet
from kood.data.images import fit_images
from kood.data.stored import read_images
from kood.diffusion import sampling
from kood.diffusion.collected import Collected
from kood.diffusion.sampling import resized
from kood.errors import UserError
from kood.outputs import Judge
from kood.pipeline import audit as pipeline_audit
from kood.pipeline import outliers
from kood.pipeline.classify import judge_recipe
from kood.pipeline.diffusion import apportioned
from kood.recipe import load
from tests.conftest import TINY, Cell

pytestmark = pytest.mark.usefixtures("as_written")

#: Enough steps that images are more than black and white.
LEARNED = TINY.replace("steps = 20\n", "steps = 300\n", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run's folder with data and a diffusion model in it."""
    folder = tmp_path_factory.mktemp("samples")
    (folder / "tiny.toml").write_text(LEARNED)
    cell_in(folder).make("diffusion")
    return folder


def cell_in(folder, *settings):
    cell = Cell(load(folder / "tiny.toml", settings), folder / "saved", width=200)
    cell.check()
    if "diffusion" in cell.stages and list(folder.glob("saved/stages/diffusion-*")):
        cell.make("diffusion")
    return cell


def outliers_of(stage):
    return np.array(read_images(stage.folder, "outliers", stage.facts).images)


class FakeJudge:
    """Is surer of one image than of another for no reason: by the remainder of the sum of its pixels."""

    asked = 0

    def posteriors(self, images):
        FakeJudge.asked += len(images)
        most = 0.25 + 0.75 * (images.sum(axis=(1, 2, 3), dtype=np.int64) % 97) / 97.0
        rest = (1.0 - most) / 3
        return np.stack([most, rest, rest, rest], axis=1)


@pytest.fixture
def fake_judge(monkeypatch):
    return lambda cell: judged_by(cell, FakeJudge, monkeypatch)


def judged_by(cell, fake, monkeypatch):
    """The cell with a judge that needs no training."""
    monkeypatch.setattr(outliers, "Judge", lambda *_: fake())
    cell["label_mixup"].judge = SimpleNamespace(key="fake", model=lambda: None)
    return cell


SMALL = ("outliers.label_mixup.count=21", "outliers.label_mixup.batch_size=8")


def test_mixtures_are_sampled_and_described(folder):
    cell = cell_in(folder, *SMALL, "outliers.label_mixup.weight=0.75")
    stage = cell.make("label_mixup")
    images, mixtures = outliers_of(stage), np.load(stage.folder / "mixtures.npy")
    assert images.shape == (21, 8, 8, 1) and images.dtype == np.uint8 and len(np.unique(images)) > 20
    np.testing.assert_allclose(np.sort(mixtures, axis=1)[:, -2:], [[0.25, 0.75]] * 21)
    assert stage.facts["drawn"] == stage.facts["kept"] == 21 and stage.facts["drop_rate"] == 0.0
    assert stage.facts["images_per_second"] > 0
    assert sorted(path.name for path in stage.folder.iterdir()) == [
        "mixtures.npy", "outliers.digests.npy", "outliers.images.npy", "sheet.png", "stage.json",
    ]  # fmt: skip
    assert cell.make("label_mixup").cached


def test_what_turns_away_from_a_class_has_no_shares(folder):
    cell = cell_in(folder, *SMALL, "outliers.label_mixup.start=image", "outliers.label_mixup.weight=-1.0")
    stage = cell.make("label_mixup")
    assert len(outliers_of(stage)) == 21 and not (stage.folder / "mixtures.npy").exists()
    assert cell["label_mixup"].shares() is None


@pytest.mark.parametrize(
    "settings",
    [(), ("outliers.label_mixup.start=image",), ("outliers.label_mixup.sampler=ddpm",), ("confidence",)],
)
def test_a_stage_killed_after_some_shards_ends_with_the_same_images(folder, settings, monkeypatch, fake_judge):
    if settings == ("confidence",):
        settings = ("outliers.label_mixup.confidence=[0.3, 0.8]",)
    settings = (*SMALL, "outliers.label_mixup.guidance=1.5", *settings)
    whole = outliers_of(fake_judge(cell_in(folder, *settings)).make("label_mixup"))
    stage = fake_judge(cell_in(folder, *settings)).make("label_mixup")
    assert stage.cached
    kept = {path.name: path.read_bytes() for path in stage.folder.glob("*.npy")}
    (stage.folder / "stage.json").unlink()  # No longer finished: it is made again.

    class KilledError(Exception):
        pass

    taken = Collected.take

    def stopped(self, shards, *settings, **how):
        def some():
            for number, shard in enumerate(shards):
                if number == 2:
                    raise KilledError
                yield shard

        return taken(self, some(), *settings, **how)

    monkeypatch.setattr(Collected, "take", stopped)
    with pytest.raises(KilledError):
        fake_judge(cell_in(folder, *settings)).make("label_mixup")
    partial = stage.folder.with_name(stage.folder.name + ".partial")
    left = {path: path.stat().st_mtime_ns for path in partial.glob("shards/*.npy")}
    assert len(left) == 3
    damaged = sorted(left)[1]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    monkeypatch.setattr(Collected, "take", taken)
    again = fake_judge(cell_in(folder, *settings)).make("label_mixup")
    assert not again.cached and again.folder == stage.folder
    assert {path.name: path.read_bytes() for path in again.folder.glob("*.npy")} == kept
    np.testing.assert_array_equal(outliers_of(again), whole)


def test_an_image_start_begins_with_images_of_the_first_class(folder, monkeypatch):
    starts = []
    start = sampling.Start
    monkeypatch.setattr(sampling, "Start", lambda images, rows: starts.append(rows) or start(images, rows))
    how = ("start=image", "level=0.3", "weight=0", "pairs=all", "sampling_steps=3", "batch_size=64")
    cell = cell_in(folder, "outliers.label_mixup.count=48", *(f"outliers.label_mixup.{one}" for one in how))
    stage = cell.make("label_mixup")
    train, mixtures = cell.images("train"), np.load(stage.folder / "mixtures.npy")
    labels = train.known_labels[starts[0]]
    # All 12 ordered pairs four times; the share of the first class is 0, so each row is one-hot at the second.
    assert (mixtures.max(axis=1) == 1.0).all()
    seconds = mixtures.argmax(axis=1)
    assert np.unique(4 * labels + seconds, return_counts=True)[1].tolist() == [4] * 12
    assert len(np.unique(starts[0])) == 48  # 12 of each class, and a class has more: none was drawn twice.
    # Noised lightly, an image stays closer to its own start than to others.
    images, own = outliers_of(stage).astype(float), np.asarray(train.images).astype(float)[starts[0]]
    distances = np.abs(images[:, None] - own[None]).mean(axis=(2, 3, 4))
    assert np.mean(distances.argmin(axis=1) == np.arange(48)) > 0.8


def test_the_filter_keeps_what_lies_in_its_range_and_says_what_it_dropped(folder, fake_judge):
    low, high = 0.3, 0.7
    everything = outliers_of(fake_judge(cell_in(folder, *SMALL)).make("label_mixup"))
    cell = fake_judge(cell_in(folder, *SMALL, f"outliers.label_mixup.confidence=[{low}, {high}]"))
    stage = cell.make("label_mixup")
    images, facts = outliers_of(stage), stage.facts
    most = FakeJudge().posteriors(images).max(axis=1)
    assert len(images) == facts["kept"] == 21 and ((most >= low) & (most <= high)).all()
    of_all = FakeJudge().posteriors(everything).max(axis=1)
    inside = everything[(of_all >= low) & (of_all <= high)]
    assert 0 < len(inside) < 21
    np.testing.assert_array_equal(images[: len(inside)], inside)  # The first draw is the one without a filter.
    assert facts["drawn"] > 21 and facts["drop_rate"] == pytest.approx(1 - 21 / facts["drawn"])
    assert len(np.load(stage.folder / "mixtures.npy")) == 21


def test_a_push_moves_the_samples_along_the_judges_gradient(folder, fake_judge, monkeypatch):
    monkeypatch.setattr(FakeJudge, "energy_gradient", lambda self: ops.ones_like, raising=False)
    plain = outliers_of(cell_in(folder, *SMALL).make("label_mixup")).astype("float64")
    cell = fake_judge(cell_in(folder, *SMALL, "outliers.label_mixup.push=0.5"))
    stage = cell.make("label_mixup")
    pushed = outliers_of(stage).astype("float64")
    assert (pushed - plain).mean() > 5  # Of 255 grey levels: brighter.
    assert json.loads((stage.folder / "stage.json").read_bytes())["decides"]["judge"] is not None


def test_a_range_that_keeps_nothing_is_one_message(folder, fake_judge):
    cell = fake_judge(cell_in(folder, *SMALL, "outliers.label_mixup.confidence=[0.0, 0.2]"))
    FakeJudge.asked = 0
    with pytest.raises(UserError, match=r"outliers\.label_mixup\.confidence = \[0\.0, 0\.2\] kept 0 of 420") as error:
        cell.make("label_mixup")
    assert error.value.exit_code == 1 and FakeJudge.asked == 420
    assert not list(folder.glob("saved/stages/label_mixup-*.partial/shards"))


def test_a_smoke_run_keeps_all(folder):
    quick = load(folder / "tiny.toml", [*SMALL, "outliers.label_mixup.confidence=[0.0, 0.2]"], quick=True)
    keeps = quick.outliers.label_mixup._filter(FakeJudge())
    assert keeps(np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), dtype=np.uint8)).all()


def test_the_judge_is_the_softmax_classifier_without_outliers_and_is_trained_once(folder, monkeypatch):
    cell = cell_in(folder, "outliers.label_mixup.confidence=[0.2, 0.8]", "pure_samples.use=['augment']")
    judged = cell.make("judge")
    assert not judged.cached and cell["classifier"].result is None
    assert judge_recipe(cell.work.recipe).train == cell.work.recipe.train
    # The cell of a matrix with head softmax and no outliers is the same stage.
    stage = cell_in(folder, "head=softmax", "outliers=none", "outliers.per_batch=5", "outliers.weight=0.25").train()
    assert stage.cached and stage.folder == judged.folder
    # Under a softmax head it is the baseline as well.
    assert cell_in(folder, "head=softmax").make("baseline_classifier").folder == judged.folder
    # Asked by another cell, it is found.
    assert cell_in(folder, "head=cosface", "outliers.label_mixup.pairs=confused").make("judge").cached
    asked = Judge(cell["judge"].model())
    images = np.asarray(cell.images("validation").images)
    probabilities, features = asked.posteriors(images), asked.opinions(images)[1]
    assert probabilities.shape == (len(images), 4) and len(features) == len(images)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    # One image at a time, with other rows to fill the batch, gives the same.
    np.testing.assert_allclose(asked.posteriors(images[3:4]), probabilities[3:4], atol=1e-6)
    monkeypatch.setattr(asked, "_batch_size", 5)
    np.testing.assert_allclose(asked.posteriors(images), probabilities, atol=1e-6)


def test_confused_pairs_come_from_the_judge(folder, monkeypatch):
    class Confuses:
        def posteriors(self, images):
            assert len(images) == validation  # Held-out images.
            return np.tile([[0.0, 0.5, 0.5, 0.0]], (len(images), 1))

    cell = cell_in(folder, "outliers.label_mixup.pairs=confused", "outliers.label_mixup.count=300")
    validation = len(cell.images("validation"))
    mixtures = np.load(judged_by(cell, Confuses, monkeypatch).make("label_mixup").folder / "mixtures.npy") > 0
    # Images of 0 and 3 are taken for 1 and 2; those of 1 and 2 for each other. {0, 3} never meet.
    assert not (mixtures[:, 0] & mixtures[:, 3]).any()
    assert abs(np.mean(mixtures[:, 1] & mixtures[:, 2]) - 1 / 3) < 0.1


@pytest.mark.parametrize(
    ("use", "names"),
    [(["audit"], ["pure_audit"]), (["id_rows"], ["pure"]), (["augment", "audit"], ["pure", "pure_audit"])],
)
def test_pure_samples_are_labelled_and_balanced(folder, use, names):
    cell = cell_in(folder, f"pure_samples.use={use}", "pure_samples.count=18", "pure_samples.audit_count=11",
                   "pure_samples.batch_size=8", "pure_samples.sampling_steps=4")  # fmt: skip
    assert {"pure", "pure_audit"} & set(cell.stages) == set(names)
    stages = [cell.make(name) for name in names]
    for name, stage in zip(names, stages, strict=True):
        pure = read_images(stage.folder, "pure", stage.facts)
        assert len(pure) == {"pure": 18, "pure_audit": 11}[name] and pure.images.shape[1:] == (8, 8, 1)
        assert pure.class_names == cell.images("train").class_names and pure.sha256() == stage.facts["sha256"]
        assert np.ptp(np.bincount(pure.known_labels, minlength=4)) <= 1
        assert not (np.diff(pure.known_labels) >= 0).all()  # Shuffled.
    if len(stages) == 2:
        first, second = (read_images(s.folder, "pure", s.facts).images for s in stages)
        digests = [{hashlib.md5(image.tobytes()).digest() for image in images} for images in (first, second)]
        assert not digests[0] & digests[1]


def test_audited_samples_are_of_the_classes_as_often_as_validation_images(folder):
    # As ever where the classes are of about one size.
    np.testing.assert_array_equal(apportioned(11, [7, 7, 7, 7]), np.arange(11) % 4)
    assert np.bincount(apportioned(1000, [14, 0, 1, 5]), minlength=4).tolist() == [700, 0, 50, 250]
    assert np.bincount(apportioned(10, [2, 1, 1])).tolist() == [5, 3, 2]
    cell = cell_in(folder)
    pure, images = cell["pure_audit"], cell.images("validation")

    def sizes(labels):
        held = ImageSet(images.images[np.zeros(len(labels), int)], np.array(labels), images.class_names)
        pure.data = SimpleNamespace(images=lambda name: held, digest=lambda *names: list(names))
        return pure.decides().get("sizes")

    assert sizes([0, 1, 2, 3]) is None and sizes(np.repeat(np.arange(4), [5, 5, 4, 4])) is None
    assert sizes(np.repeat(np.arange(4), [9, 9, 3, 0])) == [9, 9, 3, 0]


def test_pure_samples_from_images_start_from_their_own_class(folder):
    cell = cell_in(folder, "pure_samples.use=['augment']", "pure_samples.start=image", "pure_samples.level=0.02",
                   "pure_samples.sampling_steps=1", "pure_samples.count=12")  # fmt: skip
    stage = cell.make("pure")
    pure, train = read_images(stage.folder, "pure", stage.facts), cell.images("train")
    pixels = np.asarray(train.images).astype(float)
    for image, label in zip(np.asarray(pure.images).astype(float), pure.known_labels, strict=True):
        nearest = np.abs(pixels - image).mean(axis=(1, 2, 3)).argmin()
        assert train.known_labels[nearest] == label


def test_steps_that_do_not_fit_below_the_level_are_refused(folder):
    for key in ("outliers.label_mixup", "pure_samples"):
        with pytest.raises(UserError, match=rf"{key}\.sampling_steps \(15\) is above the 10 steps"):
            load(folder / "tiny.toml", [f"{key}.start=image", f"{key}.level=0.18", f"{key}.sampling_steps=15"])


def test_confused_pairs_need_validation_images(folder):
    with pytest.raises(UserError, match=r"data\.id\.validation"):
        cell_in(folder, "outliers.label_mixup.pairs=confused", "data.id.validation=0.0", "evaluate.headline=msp")


def test_a_recipe_without_label_mixup_can_still_sample(folder):
    cell = cell_in(folder, "outliers=pure")
    assert cell.work.recipe.needs_diffusion and cell.work.recipe.audits and cell.work.recipe.needs_judge
    assert json.loads((cell["diffusion"].folder / "stage.json").read_bytes())["stage"] == "diffusion"
    assert judge_recipe(cell.work.recipe).pure_samples.trains is False


# Drawn smaller -------------------------------------------------------------------------------------------------------

SMALLER = ("diffusion.image_shape=[4,4,1]", "diffusion.steps=60", *SMALL)


@pytest.mark.backend
@pytest.mark.parametrize("start", ["noise", pytest.param("image", marks=pytest.mark.slow)])
def test_what_is_drawn_smaller_is_enlarged(tmp_path, start, fake_judge):
    (tmp_path / "tiny.toml").write_text(LEARNED)
    settings = (*SMALLER, f"outliers.label_mixup.start={start}", "outliers.label_mixup.level=0.02",
                "outliers.label_mixup.sampling_steps=1", "outliers.label_mixup.confidence=[0.4, 0.72]",
                "pure_samples.use=['augment']", f"pure_samples.start={start}", "pure_samples.level=0.02",
                "pure_samples.sampling_steps=1", "pure_samples.count=12")  # fmt: skip
    cell = fake_judge(cell_in(tmp_path, *settings))
    diffusion = cell.make("diffusion")
    assert diffusion.facts["image_shape"] == [4, 4, 1]
    model, train = cell["diffusion"].denoiser(), cell.images("train")
    assert model.image_shape == (4, 4, 1)
    stage, pure = cell.make("label_mixup"), cell.make("pure")
    drawn = outliers_of(stage)
    assert drawn.shape == (21, 8, 8, 1) and stage.facts["enlarged"] == [[4, 4], [8, 8]]
    assert any("4 x 4 pixels and enlarged to 8 x 8" in note for note in cell["label_mixup"].source.notes(stage.facts))
    # The judge was asked about what is kept.
    most = FakeJudge().posteriors(drawn).max(axis=1)
    assert ((most >= 0.4) & (most <= 0.72)).all() and stage.facts["drawn"] > 21
    made = read_images(pure.folder, "pure", pure.facts)
    assert made.images.shape == (12, 8, 8, 1)
    # Nothing finer than four by four pixels shows in either: made smaller and enlarged again, they are much the same.
    for images in (drawn, np.asarray(made.images)):
        again = fit_images(fit_images(images, (4, 4, 1)), (8, 8, 1)).astype(float)
        assert np.abs(again - images).mean() < 0.4 * np.abs(again - np.asarray(train.images)[: len(images)]).mean()
    if start == "image":  # At a level next to none it is the training image that it began as.
        enlarged = resized(resized(train, (4, 4, 1)), (8, 8, 1)).images.astype(float)
        for image, label in zip(np.asarray(made.images), made.known_labels, strict=True):
            assert train.known_labels[np.abs(enlarged - image).mean(axis=(1, 2, 3)).argmin()] == label


def test_the_size_that_is_drawn_decides_the_diffusion_model_unless_it_is_that_of_the_data(folder):
    keys = {}
    for shape in ("none", "[8,8,1]", "[4,4,1]"):
        settings = () if shape == "none" else (f"diffusion.image_shape={shape}",)
        keys[shape] = json.dumps(Cell(load(folder / "tiny.toml", settings), folder / "saved")["diffusion"].decides())
    assert keys["none"] == keys["[8,8,1]"] != keys["[4,4,1]"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["diffusion.image_shape=[9,8,1]"], r"diffusion\.image_shape = \[9, 8, 1\]: what is drawn is enlarged to data"),
        (["diffusion.image_shape=[4,4,3]"], r"give a height and a width up to these, and 1 channels"),
        (["diffusion.image_shape=[4,4]"], r"diffusion\.image_shape"),
        (
            ["diffusion.image_shape=[4,4,1]", "outliers.label_mixup.push=0.1"],
            r"push = 0\.1 moves images of data\.image",
        ),
    ],
)
def test_sizes_that_cannot_be_drawn_are_refused(folder, settings, told):
    with pytest.raises(UserError, match=told) as refused:
        load(folder / "tiny.toml", settings)
    assert "\n" not in str(refused.value)


class Answers:
    """A judge that knows nothing."""

    def __init__(self, *given):
        pass

    def opinions(self, images):
        return np.full((len(images), 4), 0.25), np.asarray(images, "float32").reshape(len(images), -1)[:, :3]


@pytest.fixture
def audited(folder, tmp_path, monkeypatch):
    """Audits so many images as samples of one class each and, where there are some, as outliers."""

    def audited(count=None, mixed=0, judge=Answers):
        monkeypatch.setattr(pipeline_audit, "Judge", judge)
        settings = ["data.augment=['FLIP', 'crop']", "outliers.use=['pixel_mixup']"]
        cell = Cell(load(folder / "tiny.toml", settings), folder / "saved", width=200)
        data = cell["data"]
        parts, shown = SimpleNamespace(images=data.images), SimpleNamespace(progress=SimpleNamespace(bar=nullcontext))
        train = data.images("train")
        pure = SimpleNamespace(images=lambda: train.take(np.arange(count or len(train))))
        drawn = SimpleNamespace(
            kind="label_mixup", source=SimpleNamespace(needs=["denoiser"]), shares=lambda: None,
            images=lambda: train.take(np.arange(mixed)),
        )  # fmt: skip
        known = SimpleNamespace(model=lambda: None)
        stage = pipeline_audit.Audit(cell.work.recipe, parts, known, pure, [drawn] if mixed else [])
        return stage.make(tmp_path, shown)

    return audited


def test_the_audit_is_told_how_the_images_of_the_diffusion_model_were_augmented(audited):
    told = " ".join(audited()["diversity"]["sentences"])
    assert "looked for both ways round" in told and "learnt images under crop too" in told


def test_one_image_cannot_be_audited(audited):
    assert audited(2, 2)["diversity"]["sets"]["mixtures"]["n"] == 2
    for counts, key in (((1, 2), "pure_samples.audit_count"), ((2, 1), "outliers.label_mixup.count")):
        with pytest.raises(UserError, match=f"^{key}: one image was sampled, and an audit compares two") as refused:
            audited(*counts)
        assert refused.value.exit_code == 1


@pytest.mark.parametrize("name", ["logits", "features"])
def test_a_judge_that_gives_no_numbers_is_told(monkeypatch, name):
    said = {"logits": np.ones((2, 4), "float32"), "features": np.ones((2, 3), "float32")}
    said[name][1, 2] = np.nan
    monkeypatch.setattr("kood.outputs.compiled", lambda model: None)
    monkeypatch.setattr("kood.outputs.run_over", lambda *given: said)
    with pytest.raises(UserError, match="the judge, .* gives NaN or infinity .*; lower train.learning_rate") as told:
        Judge(None).posteriors(np.zeros((2, 8, 8, 1), np.uint8))
    assert told.value.exit_code == 1
