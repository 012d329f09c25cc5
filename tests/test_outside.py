"""Names from other packages: one is installed in a folder, with what it announces, and runs as kood's own does."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kood import registry
from kood.errors import UserError

ROOT = Path(__file__).parents[1]

PARTS = '''
"""What the package has."""

import keras
import numpy as np
from keras import ops

from kood.data.image_set import ImageSet
from kood.heads import Softmax
from kood.outliers import FeatureSource, OutlierSource, Rows
from kood.outliers.pixel_mixup import PixelMixup
from kood.scores.fitting import Fitted


@keras.saving.register_keras_serializable(package="theirs")
class Sharp(Softmax):
    """Logits that are sharper by a factor."""

    def __init__(self, num_classes, factor=2.0, **kwargs):
        super().__init__(num_classes, **kwargs)
        self.factor = factor

    def call(self, features, labels=None, training=None):
        return self.factor * super().call(features, labels, training)

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable(package="theirs")
class Margins(Softmax):
    """A margin for each class, under names that kood's heads have for other options."""

    def __init__(self, num_classes, margin=(0.1, 0.2), temperature=1.0, momentum="none", **kwargs):
        super().__init__(num_classes, **kwargs)
        if temperature > 1000:
            raise ValueError(f"temperature must be at most 1000; it is {temperature}.")
        self.margin, self.temperature, self.momentum = list(margin), temperature, momentum

    def get_config(self):
        own = {"margin": self.margin, "temperature": self.temperature, "momentum": self.momentum}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="theirs")
class Moved(Softmax):
    """Logits of weights that it moves by itself."""

    learns = False


class Unknown(Softmax):
    """Of which Keras does not know."""


@keras.saving.register_keras_serializable(package="theirs")
class Scaled(keras.layers.Layer):
    """A layer of the network below."""

    def call(self, images):
        return 0.5 * images


class Unregistered(Scaled):
    """One of which Keras does not know."""


def unreadable(image_shape):
    """A network that no file gives back."""
    inputs = keras.Input(image_shape)
    return keras.Model(inputs, keras.layers.Flatten()(Unregistered()(inputs)))


def small(image_shape, width=12):
    """A small network."""
    inputs = keras.Input(image_shape)
    x = keras.layers.Flatten()(Scaled()(inputs))
    return keras.Model(inputs, keras.layers.Dense(width, activation="relu")(x))


class Deviation(Fitted):
    """Distance to the mean feature."""

    STATE = ("mean", "power")
    usual = {"power": (1, 3)}

    def __init__(self, power=2):
        super().__init__()
        if power < 1:
            raise ValueError(f"power must be at least 1; it is {power}.")
        self.power = power

    def restored(self):
        self.power = int(self.state["power"])

    def fit(self, features, labels=None, logits=None):
        self.state = {"mean": np.asarray(features).mean(axis=0).astype("float32"), "power": np.array(self.power)}
        return self

    def score(self, features, logits=None):
        apart = ops.abs(self.checked(features, len(self.array("mean"))) - self.fitted("mean"))
        return ops.sum(apart**self.power, axis=-1)


class Misfitted(Deviation):
    """Of which `fit` asks for what is none of a classifier's."""

    def fit(self, features, labels, kernal):
        return self


class Misread(Deviation):
    """Likewise its `score`."""

    def score(self, featurs):
        return featurs


def misread(logit, factor=1.0):
    """Likewise a function."""
    return logit


def still(perturbed):
    """Of perturbed logits, without what decides the perturbation."""
    return perturbed[:, 0]


class Lost(Deviation):
    """Of which `fit` fails."""

    def fit(self, features, labels):
        raise KeyError("theirs")


class Apart(Fitted):
    """Of which the state names no option."""

    STATE = ("mean",)

    def __init__(self, power=2.0):
        super().__init__()
        self.by = power

    def fit(self, features, labels):
        return self.keep(mean=np.asarray(features).mean(axis=0))

    def score(self, features):
        return ops.sum(ops.abs(self.checked(features, len(self.array("mean"))) - self.fitted("mean")) ** self.by, -1)


class Settled(Deviation):
    """Without the option that the usual values of what it derives from are of."""

    def __init__(self):
        super().__init__(power=3)


class Forgetful(Apart):
    """Which is read back without its options."""

    @classmethod
    def from_state(cls, state):
        return super().from_state(state)


class Unread(Apart):
    """Which is not read back."""

    @classmethod
    def from_state(cls, state):
        raise KeyError("theirs")


class Unplaced:
    """With the four methods that say something, and no other."""

    def fit(self, features, labels):
        return self

    def score(self, features):
        return features[:, 0]

    def get_state(self):
        return {"nothing": np.zeros(1)}

    @classmethod
    def from_state(cls, state):
        return cls()


def whole(logits):
    """One number for all images."""
    return ops.max(logits)


def centred(logits):
    """Of which the mean of the batch is taken."""
    return ops.max(logits, axis=-1) - ops.mean(logits)


def misnamed(logits, factor=1.0):
    """Of which the usual values are of no option."""
    return logits[:, 0]


misnamed.usual = {"factr": (1.0, 2.0)}


def mistabled(logits, factor=1.0):
    """Of which they are no table of lists."""
    return logits[:, 0]


mistabled.usual = {"factor": 2.0}


def mistyped(logits, factor=1.0):
    """Of which one is none that the option takes."""
    return logits[:, 0]


mistyped.usual = {"factor": (1.0, "two")}


def flatness(logits, factor=1.0):
    """Minus the spread of the logits."""
    return -factor * ops.std(ops.cast(logits, "float32"), axis=-1)


def flat(logits):
    """Variance of the logits of outliers."""
    return ops.var(logits, axis=-1)


def in_columns(logits):
    """Variances as a column."""
    return ops.var(logits, axis=-1, keepdims=True)


def averaged(logits):
    """One number for all rows."""
    return ops.mean(logits)


def by_class(cosines, labels=None):
    """A number of each class."""
    return cosines if labels is not None else ops.mean(cosines, axis=-1)


def counted(logits):
    """Whole numbers."""
    return ops.argmax(logits, axis=-1)


def lost(logits):
    """It fails."""
    raise KeyError("theirs")


def shared(cosines, labels):
    """A loss that takes the labels."""
    return ops.sum(cosines * (1.0 - labels), axis=-1)


def flatter(logits, label):
    """A loss that asks for what it is not given."""
    return ops.var(logits, axis=-1)


class Fog(OutlierSource):
    """Grey images.

    Attributes:
        level: Their grey.
    """

    level: int = 120

    def draw(self, count, rng, shape):
        return Rows(np.full((count, *shape), self.level, np.uint8), count)


class FogBank(Fog):
    """Not announced."""


class Misdrawn(Fog):
    """Its `draw` asks for what no source is given."""

    def draw(self, count, rng, trian):
        return Rows(trian.images[:count], count)


class Greedy(Fog):
    """It asks for all that there is."""

    def draw(
        self, count, rng, train, validation, real, shape, denoiser, judge, seeds, folder, show, over
    ):
        assert min(len(train), len(validation), len(real), *shape) > 0 and not over()
        assert denoiser.image_shape == shape and judge.posteriors(train.images[:2]).shape == (2, 2)
        folder.mkdir()
        show(seeds("anything") % 2)
        return super().draw(count, rng, shape)


class Undrawn(OutlierSource):
    """It has no `draw`."""


class Seeded(Fog):
    """With an option under whose name the run's own seed decides."""

    seed: int = 0


class Shaped(Fog):
    """Likewise the shape that it is given."""

    shape: str = "round"


class Trained(Fog):
    """With an option under whose name others are given something, and it is not."""

    train: int = 3


class Images(FeatureSource):
    """Called as the images that a classifier is exposed to."""


class Cloud(FeatureSource):
    """Features that are drawn somehow."""


class Drizzle(Fog):
    """Takes its time."""

    def draw(self, count, rng, shape, over):
        return super().draw(count, rng, shape)


class Halves(PixelMixup):
    """Mixtures of its own."""


class Noise(Fog):
    """Called as one of kood's own."""


class Drawn(Fog):
    """Called as what the table of all sources says of them."""


class Weight(Fog):
    """Called as a key of that table."""


def corners(image_shape, *, seed, count=240):
    """Images that are bright in one of two corners."""
    rng, labels = np.random.default_rng(seed), np.arange(count) % 2
    images = rng.integers(0, 60, (count, *image_shape))
    images[labels == 0, :3, :3] += 150
    images[labels == 1, -3:, -3:] += 150
    return {"all": ImageSet(images.astype("uint8"), labels.astype("int64"), ("low", "high"))}


def count(image_shape):
    """No network."""
    return 3


def listed(image_shape, *, seed):
    """No data source."""
    return []


def dimmed(images, seed):
    """Darker images."""
    return 0.9 * images - 0.1
'''

ANNOUNCED = """
[kood.heads]
sharp = theirs.parts:Sharp
[kood.backbones]
their_small = theirs.parts:small
[kood.scores]
Deviation = theirs.parts:Deviation
[kood.losses]
flat = theirs.parts:flat
[kood.datasets]
corners = theirs.parts:corners
[kood.augmentations]
dimmed = theirs.parts:dimmed
[kood.outliers]
fog = theirs.parts:Fog
"""

RECIPE = """
head = "theirs.parts:Sharp"
[data]
image_shape = [8, 8, 1]
augment = ["theirs.parts:dimmed"]
[data.id]
source = "theirs.parts:corners"
calibration = 0.2
[data.near.again]
source = "digits"
count = 40
[data.far.uniform]
source = "uniform"
count = 40
[outliers]
use = ["fog", "theirs.parts:FogBank"]
exposure = "theirs.parts:flat"
per_batch = 8
count = 24
[outliers.fog_bank]
level = 77
[classifier]
backbone = "theirs.parts:small"
options = { width = 10 }
[train]
epochs = 1
batch_size = 16
[evaluate]
scores = ["msp", "deviation:power=3", { name = "theirs.parts:flatness", factor = 2.0 }]
headline = "deviation:power=3"
baseline = false
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as `pip install --target` leaves it, and a recipe that names what is in it."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "site" / "theirs").mkdir(parents=True)
    (folder / "site" / "theirs" / "__init__.py").write_text("")
    (folder / "site" / "theirs" / "parts.py").write_text(PARTS)
    (folder / "site" / "theirs" / "broken.py").write_text("raise RuntimeError('no licence\\nfound')")
    told = folder / "site" / "theirs-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text(ANNOUNCED)
    (folder / "theirs.toml").write_text(RECIPE)
    (folder / "free.toml").write_text(RECIPE.replace("scores = [", "# "))
    return folder


def kood(*arguments, cwd, **environment):
    """The command line in a process that has the package."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{cwd / 'site'}", "COLUMNS": "200", **environment}
    command = [sys.executable, "-m", "kood", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def site(place, monkeypatch):
    """The package in this process, as long as the test runs; further ones by the names of their folders."""

    def add(*names):
        for name in names:
            monkeypatch.syspath_prepend(place / name)
        registry.announced.cache_clear()

    add("site")
    yield add
    for name in [name for name in sys.modules if name.partition(".")[0] == "theirs"]:
        del sys.modules[name]
    registry.announced.cache_clear()


@pytest.mark.keras
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_a_run_of_what_another_package_has(invoke, place, backend, request):
    saved = ("--saved", f"saved_{backend}")
    result = kood("run", "theirs.toml", *saved, cwd=place, KERAS_BACKEND=backend)
    assert result.returncode == 0, result.stderr + result.stdout
    run = place / f"saved_{backend}" / "theirs"
    report = json.loads((run / "report.json").read_bytes())
    assert set(report["scores"]) == {"msp", "deviation:power=3", "theirs.parts:flatness:factor=2"}
    assert report["headline_score"] == "deviation:power=3" and report["id"]["accuracy"] > 0.5
    assert {"fog", "fog_bank"} <= set(report["stages"]) and (run / "1" / "saved_model.pb").exists()
    # This process has neither the package nor, where it was another's, the backend: the graph needs nothing of theirs.
    assert "theirs" not in sys.modules
    from PIL import Image

    Image.new("L", (8, 8), 30).save(place / "one.png")
    asked = invoke("predict", run, "one.png", "--json", cwd=place)
    assert asked.returncode == 0 and json.loads(asked.stdout)["label"] in (0, 1)
    compared = invoke("compare", run, "--score", "theirs.parts:flatness:factor=2", cwd=place)
    assert compared.returncode == 0 and "Comparison by theirs.parts:flatness:factor=2" in compared.stdout
    if backend == "jax":
        return
    # Another process reads the classifier's file: this one, once it has the package.
    request.getfixturevalue("site")
    again = invoke("run", "theirs.toml", *saved, "--set", "evaluate.headline=msp", cwd=place)
    assert again.returncode == 0, again.stderr
    assert json.loads((run / "report.json").read_bytes())["stages"]["classifier"]["cached"]


@pytest.mark.keras
def test_the_complete_recipe_can_be_read_back(invoke, place, site):
    shown = invoke("show", "theirs.toml", cwd=place)
    assert shown.returncode == 0 and "[outliers.fog_bank]\nlevel = 77" in shown.stdout
    (place / "again.toml").write_text(shown.stdout)
    again = invoke("show", "again.toml", cwd=place)
    assert again.stdout == shown.stdout


@pytest.mark.keras
def test_what_is_announced_is_listed_with_its_package(invoke, place, site, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    heads, scores, sources = (invoke("list", room, cwd=place).stdout for room in ("heads", "scores", "outliers"))
    assert "Logits that are sharper by a factor. (package theirs) [factor]" in heads
    assert "Distance to the mean feature. (package theirs) [power=2 (usual: 1, 3)]" in scores
    assert "Grey images. (package theirs) [count, level]" in sources and "FogBank" not in sources
    assert "[count, guidance, sampler, " in sources and "[count, source, path, " in sources  # Of what they derive from.


@pytest.fixture
def here(place, site):
    """The recipe without scores, where the package is."""
    return place / "free.toml"


@pytest.mark.keras
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("head=theirs.parts:Nope", "head: name: 'theirs.parts:Nope': 'theirs.parts' has no 'Nope'; "),
        ("head=theirs.parts:flat", "is no class, and can be none of the heads"),
        ("head=nowhere:Head", "head: name: 'nowhere:Head': the module 'nowhere' cannot be imported (ModuleNotFound"),
        ("head=theirs.broken:Head", "cannot be imported (RuntimeError: no licence); install its package"),
        ("head.factr=2.0", "takes no 'factr'; did you mean 'factor'"),
        ("head=theirs.parts:Unknown", "head.name: 'theirs.parts:Unknown' could not be read back from a file"),
        (
            "classifier={backbone='theirs.parts:unreadable'}",
            "classifier.backbone: 'theirs.parts:unreadable' could not be",
        ),
        ("classifier={backbone='theirs.parts:unreadable',train='head'}", "classifier.backbone: 'theirs.parts:unreadab"),
        ("classifier.backbone=theirs.parts:flat", "takes no 'width'"),
        ("classifier={backbone='theirs.parts:count'}", "classifier.options: 'count' gives a int and no keras Model"),
        ("data.far.uniform={source='theirs.parts:nothing'}", "has no 'nothing'"),
        (
            "data.far.uniform={source='theirs.parts:listed'}",
            "data.far.uniform.source: 'theirs.parts:listed' is to give",
        ),
        ("data.augment=['theirs.parts:nothing']", "has no 'nothing'"),
        ("outliers={use=['theirs.parts:Sharp']}", "is no outlier source; derive it from kood.outliers.OutlierSource"),
        ("outliers={use=['theirs.parts:Noise']}", "would have the table of kood's own source 'noise'"),
        ("outliers={use=['theirs.parts:Drawn']}", "would have the table outliers.drawn, which means something else"),
        ("outliers={use=['theirs.parts:Weight']}", "would have the table outliers.weight, which means"),
        ("outliers={use=['theirs.parts:Images']}", "would have the table outliers.images, which means"),
        ("outliers={use=['theirs.parts:Fog','fog']}", "a source is listed twice"),
        ("outliers={use=['theirs.parts:FogBank'],fog_bank={levl=1}}", "outliers.fog_bank.levl: unknown key"),
        ("outliers={use=['fog'],fog={level=1.5}}", "outliers.fog.level: found 1.5"),
        ("outliers.exposure=theirs.parts:corners", "its first parameter is neither logits nor cosines"),
        ("evaluate.headline=deviation:power=0", "evaluate.headline: deviation:power=0: power must be at least 1"),
        ("evaluate.headline=theirs.parts:Sharp", "is no score, since it has no fit"),
        ("evaluate.headline=deviation:pow=1", "deviation has no option 'pow'; did you mean 'power'"),
        ("evaluate={scores=['ash:share=1.5']}", "evaluate.scores: ash:share=1.5: share must be a fraction"),
        ("evaluate={scores=['gen:gamma=0']}", "evaluate.scores: gen:gamma=0: gamma must be above 0"),
        ("evaluate.headline=knn:k=400", "evaluate.headline: knn:k=400 cannot be fitted to the"),
        (
            "evaluate={tune=true,headline='theirs.parts:mistyped'}",
            "evaluate.headline: theirs.parts:mistyped: factor is a number; found 'two'",
        ),
    ],
)
def test_what_is_wrong_is_one_message_before_any_training(here, tmp_path, setting, message):
    from kood.recipe import load
    from tests.conftest import Cell

    with pytest.raises(UserError) as caught:
        recipe = load(here, [setting])
        assert recipe.outliers.sources
        Cell(recipe, tmp_path / "saved", width=200).check()
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.keras
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("evaluate.headline=theirs.parts:misread", "is no score, since it asks for 'logit'; did you mean 'logits'"),
        ("evaluate.scores=['theirs.parts:Misread']", "since its `score` asks for 'featurs'; did you mean 'features'"),
        ("evaluate.headline=theirs.parts:Misfitted", "since its `fit` asks for 'kernal'; did you mean 'kernel'"),
        ("evaluate.headline=theirs.parts:still", "decide; it has no epsilon and no temperature"),
        ("evaluate.headline=theirs.parts:Unplaced", "is no score, since it has no place; derive it from kood.scores"),
        ("evaluate.headline=theirs.parts:misnamed", "`usual` names 'factr', which is no option of it; did you mean"),
        ("evaluate.headline=theirs.parts:mistabled", "`usual` is {option: (value, ...)}; found {'factor': 2.0}"),
        ("outliers={use=['theirs.parts:Misdrawn']}", "Misdrawn.draw asks for 'trian'; did you mean 'train'"),
        ("outliers={use=['theirs.parts:Undrawn']}", "Undrawn needs a method draw(count, rng, ...)"),
        ("outliers={use=['theirs.parts:Seeded']}", "Seeded has the option 'seed', a name under which something else"),
        ("outliers={use=['theirs.parts:Shaped']}", "Shaped has the option 'shape', a name under which something else"),
        ("outliers={use=['virtual','theirs.parts:Cloud']}", "use: 'virtual' and 'cloud' each draw features as the"),
        ("outliers={use=['theirs.parts:Cloud','fog','virtual']}", "use: 'cloud' and 'virtual' each draw features as"),
        ("outliers.exposure=theirs.parts:flatter", "exposure: 'theirs.parts:flatter' asks for 'label'"),
    ],
)  # fmt: skip
def test_what_cannot_be_called_is_told_when_the_recipe_is_checked(here, setting, message):
    from kood.recipe import load

    with pytest.raises(UserError) as caught:
        load(here, [setting])
    assert message in str(caught.value) and "\n" not in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.keras
@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("in_columns", " gives float32 (3, 1) for logits (3, 2); a loss of outliers is one number a row, (3,)"),
        ("averaged", " gives float32 () for logits (3, 2); a loss of outliers is one number a row, (3,)"),
        ("by_class", " gives float32 (3, 2) for cosines (3, 2); a loss of outliers is one number a row, (3,)"),
        ("counted", " gives int32 (3,) for logits (3, 2); a loss of outliers is one number a row, (3,)"),
        ("lost", " fails on logits (3, 2) (KeyError: 'theirs')"),
        ("flat", ""),
        ("shared", ""),
    ],
)
def test_a_loss_that_is_not_one_number_a_row_is_refused_when_the_training_is_built(here, loss, said):
    from kood.pipeline.build import build_classifier
    from kood.recipe import load

    recipe = load(here, [f"outliers.exposure=theirs.parts:{loss}", "head={name='arcface',scale=4.0}"])
    if not said:
        assert build_classifier(recipe, 2).exposure == f"theirs.parts:{loss}"
        assert build_classifier(recipe, 2, exposed=False).exposure is None
        return
    with pytest.raises(UserError) as caught:
        build_classifier(recipe, 2)
    told = f"outliers.exposure: 'theirs.parts:{loss}'{said}"
    assert str(caught.value).replace("int64", "int32") == told and caught.value.exit_code == 2


@pytest.mark.keras
def test_a_head_that_learns_nothing_needs_a_neck_on_a_frozen_backbone(here):
    from kood.recipe import load

    frozen = ['classifier.train="head"', "data.augment=[]"]
    assert load(here, frozen).classifier.is_frozen
    with pytest.raises(UserError, match="'theirs.parts:Moved' has no weights that learn, nor has a frozen backbone"):
        load(here, [*frozen, "head=theirs.parts:Moved"])
    assert load(here, [*frozen, "head=theirs.parts:Moved", "classifier.neck=4"]).classifier.neck == 4


@pytest.mark.keras
def test_options_of_a_head_are_its_own_to_judge_whatever_they_are_called(here, tmp_path, recwarn):
    from kood.pipeline.build import build_head
    from kood.recipe import load

    given = "head={name='theirs.parts:Margins',margin=[0.1,0.3],temperature=500.0,momentum='slow'}"
    recipe = load(here, [given])
    (tmp_path / "again.toml").write_text(recipe.to_toml())
    again = load(tmp_path / "again.toml")
    assert again.head == recipe.head and not recwarn.list
    head = build_head(again, 2)
    assert (head.margin, head.temperature, head.momentum) == ([0.1, 0.3], 500.0, "slow")
    with pytest.raises(UserError, match="head: temperature must be at most 1000; it is 2000"):
        build_head(load(here, [given.replace("500.0", "2000.0")]), 2)
    for wrong, told in (
        ("{name='arcface',margin=[0.1,0.3]}", "head.margin: found [0.1, 0.3]"),
        ("{name='LogitNorm',temperature=500.0}", "head.temperature: found 500.0"),
        ("{name='nope',margin=[0.1]}", "there is no 'nope' among the heads"),
    ):
        with pytest.raises(UserError) as caught:
            load(here, [f"head={wrong}"])
        assert told in str(caught.value)


@pytest.mark.keras
def test_a_source_is_given_all_that_it_may_ask_for(here, tmp_path, site):
    import inspect

    from kood.outliers import GIVEN
    from kood.recipe import load
    from tests.conftest import Cell

    asked = inspect.signature(registry.obtain("outliers", "theirs.parts:Greedy").draw).parameters
    assert tuple(asked)[3:] == GIVEN
    use = "outliers={use=['real','theirs.parts:Greedy'],real={source='gaussian',count=20},count=20}"
    small = [
        "diffusion.steps=4",
        "diffusion.options={width=8,depth=1}",
        "data.id.validation=0.2",
        "pure_samples.use=[]",
    ]
    cell = Cell(load(here, [use, *small]), tmp_path / "saved")
    assert cell.make("diffusion", "judge", "greedy").facts["images"] == 20


@pytest.mark.keras
def test_every_option_of_a_source_decides_its_result(here, tmp_path):
    from kood.recipe import load
    from tests.conftest import Cell

    keys = {
        Cell(load(here, [f"outliers={{use=['theirs.parts:Trained'],trained={{train={number}}}}}"]), tmp_path / "saved")
        .make("trained").key
        for number in (3, 4)
    }  # fmt: skip
    assert len(keys) == 2


@pytest.mark.keras
def test_a_slow_source_has_a_share_of_the_time(here):
    from kood.pipeline.budget import Budget
    from kood.recipe import load

    recipe = load(here, ["outliers={use=['fog','theirs.parts:Drizzle']}", "budget.minutes=10"])
    budget = Budget(recipe, 0.0)
    assert budget.of("drizzle", recipe) == pytest.approx(0.1 * 600) and budget.of("fog", recipe) is None
    assert budget.of("classifier", recipe) == pytest.approx(0.9 * 0.75 * 600)


@pytest.mark.keras
def test_a_source_that_derives_from_koods_own_has_a_version_of_its_own(site):
    named = ("outliers", "theirs.parts:Halves")
    halves = registry.obtain(*named)
    source = registry.source_of(halves, "theirs.parts")
    said = registry.versions(named)["outliers/halves"]
    assert said == ["theirs.parts:Halves", 1, source, 2]  # 2 is what it inherits.
    halves.version = 2
    assert registry.versions(named)["outliers/halves"] == ["theirs.parts:Halves", 2, source, 2]
    assert registry.versions(("outliers", "fog"))["outliers/fog"] == ["theirs.parts:Fog", 1, source]


@pytest.mark.keras
def test_cells_of_a_matrix_have_the_tables_that_they_use(here):
    from kood.recipe import load

    recipe = load(here, ['matrix={outliers=["none","noise",["fog","theirs.parts:FogBank"]],head=["softmax","sharp"]}'])
    cells = [cell for _, cell in recipe.cells()]
    assert [list(cell.outliers.sources) for cell in cells[::2]] == [[], ["noise"], ["fog", "fog_bank"]]
    assert cells[-1].outliers.fog_bank.level == 77 and cells[-1].head.name == "sharp"


def announcing(place, package, names):
    """Makes a package that has no code and announces names."""
    told = place / package / f"{package}-1.0.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text(names)


@pytest.mark.keras
def test_a_name_of_koods_own_is_not_taken_over(invoke, place, site, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    announcing(place, "shadow", "[kood.heads]\nSoftmax = theirs.parts:Sharp\n")
    site("shadow")
    shown = invoke("show", "theirs.toml", "--set", "head={name='softmax',factor=2.0}", cwd=place)
    assert shown.returncode == 2 and "'softmax' takes no 'factor'" in shown.stderr
    assert invoke("show", "theirs.toml", "--set", "head=softmax", cwd=place).returncode == 0
    told = invoke("list", "heads", cwd=place).stdout
    assert "refused, since kood has one of this name; name it as 'theirs.parts:Sharp' (package shadow)" in told


@pytest.mark.keras
def test_a_name_that_two_packages_announce_is_refused(invoke, place, site, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    also = "[kood.heads]\nSHARP = theirs.parts:Moved\n[kood.outliers]\nfog = theirs.parts:Drizzle\n"
    announcing(place, "fork", f"{also}[kood.losses]\nflat = theirs.parts:flat\n")
    for folder in ("fork", "site"):  # Whichever Python finds first.
        site(folder)
        for room, name, paths in (
            ("heads", "sharp", ("theirs.parts:Sharp", "theirs.parts:Moved")),
            ("outliers", "fog", ("theirs.parts:Fog", "theirs.parts:Drizzle")),
        ):
            with pytest.raises(UserError) as caught:
                registry.find(room, name, "its.key")
            said = str(caught.value)
            assert said.startswith(f"its.key: '{name}' is announced as ") and "which of these is meant" in said
            assert all(f"'{path}' (package {by})" in said for path, by in zip(paths, ("theirs", "fork"), strict=True))
            assert registry.find(room, paths[1]).path == paths[1]
        assert registry.find("losses", "flat").path == "theirs.parts:flat"  # Both mean the same.
    shown = invoke("show", "theirs.toml", cwd=place)
    assert shown.returncode == 2 and "'fog' is announced as" in shown.stderr and "Traceback" not in shown.stderr
    heads = invoke("list", "heads", cwd=place).stdout
    assert heads.count("'sharp' is announced as 'theirs.parts:") == 2


@pytest.mark.keras
@pytest.mark.slow
def test_the_version_and_the_place_of_what_is_named_decide_its_results(place):
    code = """
import sys
from kood import registry
print(registry.versions(("heads", "sharp"), ("heads", "theirs.parts:Sharp"), ("heads", "Softmax"), ("scores", "ash")))
print(registry.source_of(registry.obtain("heads", "sharp"), "theirs.parts"))
registry.obtain("heads", "sharp").version = 3
print(registry.versions(("heads", "SHARP")))
print(registry.imported())
"""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{place / 'site'}"}
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    first, source, *others = found.stdout.splitlines()
    sharp = f"['theirs.parts:Sharp', 1, '{source}']"
    assert (
        len(source) == 64
        and first == f"{{'heads/sharp': {sharp}, 'heads/theirs.parts:Sharp': {sharp}, 'scores/ash': 2}}"
    )
    assert others == [f"{{'heads/sharp': ['theirs.parts:Sharp', 3, '{source}']}}", "['theirs.parts']"]


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """asked(body, rows=80) asks a score of somebody's, `body` on the logits, about a set."""

    def ask(body, rows=80):
        import numpy as np

        from kood.outputs import score_rows
        from kood.scorer import Scorer

        code = f"import numpy as np\nfrom keras import ops\ntimes = [0]\n\ndef theirs(logits):\n    {body}\n"
        (tmp_path / "scores_of_theirs.py").write_text(code)
        sys.modules.pop("scores_of_theirs", None)
        importlib.invalidate_caches()
        logits = np.random.default_rng(0).standard_normal((rows, 4), np.float32)
        return score_rows(Scorer("scores_of_theirs:theirs"), {"logits": logits}, 32), logits

    registry._loaded.cache_clear()
    monkeypatch.syspath_prepend(tmp_path)
    yield ask
    sys.modules.pop("scores_of_theirs", None)
    registry._loaded.cache_clear()


@pytest.mark.keras
@pytest.mark.parametrize(
    "body",
    [
        "return ops.max(logits, axis=1) - ops.mean(logits)",
        "return np.asarray(logits).max(axis=1).argsort().argsort()",
        "return np.asarray(logits)[:, 0] + np.random.default_rng().normal(size=len(logits))",
        "return np.asarray(logits)[:, 0] + np.random.default_rng(0).normal(size=len(logits))",
        "return np.full(len(logits), times.append(0) or len(times))",
        "return np.asarray(logits)[:, 0] + 1e-3 * np.arange(len(logits))",
    ],
)
@pytest.mark.parametrize("rows", [80, 3])
def test_a_score_of_an_image_that_is_not_of_the_image_alone_is_refused(asked, body, rows):
    with pytest.raises(
        UserError, match=r"evaluate\.scores: scores_of_theirs:theirs gives one image \S+ and then \S+: it"
    ):
        asked(body, rows)


@pytest.mark.keras
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return ops.max(logits)", "gives float32 () for a batch of 8; a score is one number an image, (8,)"),
        ("return ops.max(logits, axis=1, keepdims=True)", "gives float32 (8, 1) for a batch of 8; a score is"),
        ("return logits", "gives float32 (8, 4) for a batch of 8; a score is"),
        ("return np.asarray(logits)[:-1, 0]", "gives float32 (7,) for a batch of 8; a score is"),
        ("return [str(row) for row in logits]", "for a batch of 8; a score is"),
        ("return logits[7]['a']", "fails on a batch of 8 ("),
        ("raise KeyError('a')", "fails on a batch of 8 (KeyError: 'a')"),
    ],
)
def test_a_score_that_is_no_number_an_image_is_refused_by_its_name(asked, body, said):
    with pytest.raises(UserError) as caught:
        asked(body)
    assert str(caught.value).startswith("evaluate.scores: scores_of_theirs:theirs ") and said in str(caught.value)


@pytest.mark.keras
@pytest.mark.parametrize(
    "body",
    [
        "return -ops.max(logits, axis=1)",
        "return 1.0 - 1e-9 * np.asarray(logits, 'float64').max(axis=1)",
        "return np.where(np.asarray(logits)[:, 0] > 0, np.nan, np.inf)",
        "return [float(row.max()) for row in np.asarray(logits)]",
        "return np.asarray(logits).argmax(axis=1)",
        "return ops.logsumexp(logits @ np.random.default_rng(0).normal(size=(4, 4)).astype('float32'), axis=1)",
    ],
)
def test_a_score_of_the_image_alone_is_taken(asked, body):
    values, logits = asked(body)
    assert values.shape == (80,)
    if body == "return -ops.max(logits, axis=1)":
        assert (values == -logits.max(axis=1)).all()


@pytest.mark.keras
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("theirs.parts:whole", "evaluate.headline: theirs.parts:whole gives float32 () for a batch of 8"),
        ("theirs.parts:centred", "evaluate.headline: theirs.parts:centred gives one image "),
        ("theirs.parts:Lost", "evaluate.headline: theirs.parts:Lost cannot be fitted to the"),
        ("theirs.parts:Forgetful:power=3", "evaluate.headline: theirs.parts:Forgetful:power=3 gives one image "),
        ("theirs.parts:Unread", "evaluate.headline: theirs.parts:Unread cannot be read back from its state (KeyError"),
    ],
)
def test_what_a_score_gives_or_cannot_be_fitted_to_is_told_before_any_training(here, tmp_path, setting, said):
    from kood.recipe import load
    from tests.conftest import Cell

    with pytest.raises(UserError) as caught:
        Cell(load(here, [f"evaluate.headline={setting}"]), tmp_path / "saved", width=200).check()
    assert str(caught.value).startswith(said) and caught.value.exit_code == 2
    assert setting != "theirs.parts:Lost" or "KeyError: 'theirs'" in str(caught.value)


@pytest.mark.keras
@pytest.mark.parametrize("name", ["theirs.parts:Apart", "theirs.parts:Apart:power=3.5", "deviation:power=3"])
def test_a_fitted_score_is_read_back_with_its_options(site, name):
    import numpy as np

    from kood.outputs import score_rows
    from kood.scorer import Scorer

    drawn = np.random.default_rng(0)
    outputs = {key: drawn.standard_normal((50, 4), np.float32) for key in ("features", "logits")}
    scorer = Scorer(name).fit(outputs, np.arange(50) % 4, None)
    apart = np.abs(outputs["features"] - outputs["features"].mean(axis=0)) ** scorer.options.get("power", 2)
    for one in (scorer, Scorer(name, scorer.state)):
        np.testing.assert_allclose(score_rows(one, outputs, 16), apart.sum(axis=1), rtol=1e-5)


@pytest.mark.keras
def test_a_score_that_answers_otherwise_once_it_is_read_back_is_refused(site):
    import numpy as np

    from kood.outputs import score_rows
    from kood.scorer import Scorer

    outputs = {key: np.random.default_rng(0).standard_normal((50, 4), np.float32) for key in ("features", "logits")}
    assert len(score_rows(Scorer("theirs.parts:Forgetful").fit(outputs, np.zeros(50), None), outputs, 16)) == 50
    scorer = Scorer("theirs.parts:Forgetful:power=3").fit(outputs, np.zeros(50), None)
    with pytest.raises(UserError, match="once it is read back: not all that it answers by is in the state"):
        score_rows(scorer, outputs, 16)


@pytest.mark.keras
def test_usual_values_that_are_inherited_for_an_option_that_is_not_there_count_for_nothing(site):
    from kood import specs

    assert list(specs.settings("deviation")) == ["deviation", "deviation:power=1", "deviation:power=3"]
    assert list(specs.settings("theirs.parts:Settled")) == ["theirs.parts:Settled"]
