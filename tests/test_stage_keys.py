"""Each key of a recipe makes those stages again whose results it decides, and no others; nothing is trained here."""

import importlib
import sys
import typing

import numpy as np
import pytest
from pydantic import BaseModel

from kood import registry
from kood.data import ImageSet
from kood.data.stored import write_digests
from kood.files import fingerprint
from kood.machine import VARIABLES
from kood.pipeline import make
from kood.pipeline.environment import environment
from kood.pipeline.outliers import Outliers
from kood.pipeline.prepare import Data
from kood.recipe import Recipe, load
from kood.runs import Result, Run
from tests.conftest import work_alone

#: Everything in use, so that every setting has something to decide.
WHOLE = """
name = "whole"
[data]
image_shape = [8, 8, 1]
augment = ["pixmix"]
[data.id]
source = "digits"
[data.pictures]
source = "digits"
[data.near.one]
source = "digits"
[data.far.two]
source = "blobs"
[data.validation_ood.three]
source = "digits"
[outliers]
use = ["label_mixup", "pixel_mixup", "cutmix", "noise", "patch_shuffle", "amplitude_swap", "virtual", "real"]
[outliers.real]
source = "digits"
[pure_samples]
use = ["audit", "id_rows"]
"""

SAMPLED = {"label_mixup", "pure_audit", "pure"}
MADE = {"pixel_mixup", "cutmix", "patch_shuffle", "amplitude_swap"}
PUBLISHED = {"evaluate", "export"}
#: The exposed classifier, and what comes of it.
EXPOSED = {"classifier", "baseline", "shortcut", *PUBLISHED}
#: All classifiers.
UNEXPOSED = {"baseline_classifier", "validation"}
TRAINED = {"judge", *UNEXPOSED, "audit", *EXPOSED}
DIFFUSED = {"diffusion", *SAMPLED, "audit", *EXPOSED}
ALL = {"data", "noise", "real", *MADE, *DIFFUSED, *TRAINED}
#: All but the noise, which is made of nothing.
OF_THE_IMAGES = ALL - {"noise", "real"}
#: Figures of validation images and of test images.
MEASURED = {"validation", "baseline", "shortcut", *PUBLISHED}

NOTHING: set[str] = set()
SOURCE = {
    "source": '"npz"', "path": '"other"', "root": '"other"', "name": '"other"', "classes": "[1, 2]", "count": "5",
    "split": '"train"', "max_bad_images": "3", "columns.file": '"other"', "columns.label": '"other"',
    "columns.split": '"other"',
}  # fmt: skip


def of_source(key, changed):
    return {f"{key}.{name}": (value, changed) for name, value in SOURCE.items()}


def of_sampling(key, changed):
    values = {
        "guidance": "2.0", "sampler": '"ddim"', "sampling_steps": "7", "clip": "0.0", "start": '"image"',
        "level": "0.5", "batch_size": "64",
    }  # fmt: skip
    return {f"{key}.{name}": (value, changed) for name, value in values.items()}


#: Of a run that trains nothing; `tests/test_attach.py` asks what these make again.
ATTACHED = {f"attach.{key}" for key in ("classes", "features", "imports", "model", "preprocess")}
#: Of a frozen backbone and of classes that are held out; `tests/test_frozen.py` asks what these make again.
FROZEN = {"classifier.neck", "classifier.train", "classifier.views", "data.hold_out.classes", "data.hold_out.folds"}
#: Another value of each setting of the second part of a training.
TUNING = {
    "epochs": "2", "batch_size": "8", "learning_rate": "0.5", "warmup": "0.5", "optimizer": '"sgd"',
    "weight_decay": "0.5", "augment": '["flip"]', "clip_norm": "0.5", "ema": "0.5",
}  # fmt: skip
#: Recipe key -> another value, and the stages that are made again. {...} in a key stands for a name of the user's.
KEYS: dict[str, tuple[str, set[str]]] = {
    "name": ('"other"', {"export"}),  # Servers know the model by it; the folder is another one.
    "seed": ("1", ALL - {"data"}),
    "quick": ("true", ALL),  # What a smoke run left is never taken for a result.
    "matrix": ("{ seed = [0] }", NOTHING),
    "data.image_shape": ("[8, 8, 3]", ALL),
    "data.ground": ('"grey"', ALL - {"noise"}),
    "data.resize": ('"pad"', ALL - {"noise"}),
    "data.antialias": ("false", {"data", "export"}),  # Nothing is made smaller here: the images stay.
    **of_source("data.id", OF_THE_IMAGES),
    "data.id.group.folder": ("1", OF_THE_IMAGES),
    "data.id.group.pattern": ('"(.*)_"', OF_THE_IMAGES),
    "data.id.group.column": ('"patient"', OF_THE_IMAGES),
    "data.id.validation": ("0.2", OF_THE_IMAGES),
    "data.id.calibration": ("0.2", OF_THE_IMAGES),
    "data.id.test": ("0.3", OF_THE_IMAGES),
    "data.id.per_class": ("20", OF_THE_IMAGES),
    "data.id.near_copies": ("4", OF_THE_IMAGES),
    "data.id.stratify": ("false", OF_THE_IMAGES),
    # What more is measured changes nothing that is served.
    **of_source("data.near.{}", {"data", "evaluate"}),
    **of_source("data.far.{}", {"data", "evaluate"}),
    **of_source("data.pictures", {"data", *DIFFUSED, *TRAINED}),
    **of_source("data.validation_ood.{}", {"data", "validation", "baseline", *PUBLISHED}),
    "data.augment": ('["flip"]', DIFFUSED | TRAINED),
    "data.split_seed": ("1", ALL - {"noise"}),
    "diffusion.image_shape": ("[4, 4, 1]", DIFFUSED),
    "diffusion.denoiser": ('"unet"', DIFFUSED),
    "diffusion.options": ("{ width = 32 }", DIFFUSED),
    "diffusion.schedule": ('"linear"', DIFFUSED),
    "diffusion.num_steps": ("900", DIFFUSED),
    "diffusion.prediction": ('"v"', DIFFUSED),
    "diffusion.label_dropout": ("0.2", DIFFUSED),
    "diffusion.min_snr": ("5.0", DIFFUSED),
    "diffusion.steps": ("7", DIFFUSED),
    "diffusion.epochs": ("7.0", DIFFUSED),
    "diffusion.minutes": ("7.0", DIFFUSED),
    "diffusion.batch_size": ("64", DIFFUSED),
    "diffusion.learning_rate": ("0.1", DIFFUSED),
    "diffusion.ema": ("0.5", DIFFUSED),
    "diffusion.clip_norm": ("2.0", DIFFUSED),
    "diffusion.precision": ('"mixed_bfloat16"', DIFFUSED),
    "diffusion.seed": ("7", DIFFUSED),
    "outliers.use": ('["noise", "real", "label_mixup"]', EXPOSED),
    "outliers.exposure": ('"energy_exposure"', EXPOSED),
    "outliers.target": ('"parents"', EXPOSED),
    "outliers.weight": ("0.7", EXPOSED),
    "outliers.begin": ("0.5", EXPOSED),
    "outliers.reach": ('"head"', EXPOSED),
    "outliers.per_batch": ("32", EXPOSED),
    "outliers.mix": ('"linear"', EXPOSED),
    "outliers.mix_alpha": ("2.0", NOTHING),  # No mix is asked for.
    "outliers.amplitude": ('"swapped"', EXPOSED),
    "outliers.count": ("70", {"label_mixup", "pure", *MADE, "noise", "real", "audit", *EXPOSED}),
    **of_sampling("outliers.label_mixup", {"label_mixup", "audit", *EXPOSED}),
    "outliers.label_mixup.count": ("70", {"label_mixup", "audit", *EXPOSED}),
    "outliers.label_mixup.classes": ("3", {"label_mixup", "audit", *EXPOSED}),
    "outliers.label_mixup.pairs": ('"all"', {"label_mixup", "audit", *EXPOSED}),
    "outliers.label_mixup.groups": ("[[0, 1]]", {"label_mixup", "audit", *EXPOSED}),
    "outliers.label_mixup.weight": ("0.4", {"label_mixup", "audit", *EXPOSED}),
    "outliers.label_mixup.alpha": ("2.0", {"label_mixup", "audit", *EXPOSED}),
    "outliers.label_mixup.mix": ('"prediction"', {"label_mixup", "audit", *EXPOSED}),
    "outliers.label_mixup.push": ("0.1", {"label_mixup", "audit", *EXPOSED}),
    "outliers.label_mixup.confidence": ("[0.1, 0.9]", {"label_mixup", "audit", *EXPOSED}),
    "outliers.pixel_mixup.count": ("70", {"pixel_mixup", *EXPOSED}),
    "outliers.pixel_mixup.weight": ("0.4", {"pixel_mixup", *EXPOSED}),
    "outliers.pixel_mixup.alpha": ("2.0", {"pixel_mixup", *EXPOSED}),
    "outliers.cutmix.count": ("70", {"cutmix", *EXPOSED}),
    "outliers.cutmix.weight": ("0.4", {"cutmix", *EXPOSED}),
    "outliers.cutmix.alpha": ("2.0", {"cutmix", *EXPOSED}),
    "outliers.noise.count": ("70", {"noise", *EXPOSED}),
    "outliers.noise.kind": ('"uniform"', {"noise", *EXPOSED}),
    "outliers.noise.scale": ("0.4", {"noise", *EXPOSED}),
    "outliers.patch_shuffle.count": ("70", {"patch_shuffle", *EXPOSED}),
    "outliers.patch_shuffle.grid": ("4", {"patch_shuffle", *EXPOSED}),
    "outliers.amplitude_swap.count": ("70", {"amplitude_swap", *EXPOSED}),
    "outliers.virtual.queue": ("70", EXPOSED),
    "outliers.virtual.candidates": ("70", EXPOSED),
    **of_source("outliers.real", {"data", "real", *EXPOSED}),
    "pure_samples.use": ('["audit", "augment"]', EXPOSED),
    **of_sampling("pure_samples", {"pure", "pure_audit", "audit", *EXPOSED}),
    "pure_samples.count": ("70", {"pure", *EXPOSED}),
    "pure_samples.audit_count": ("70", {"pure_audit", "audit", "shortcut"}),
    "pure_samples.per_batch": ("32", EXPOSED),
    "head.name": ('"arcface"', EXPOSED | UNEXPOSED),  # The judge has a head of its own.
    **{f"head.{name}": (value, EXPOSED | UNEXPOSED) for name, value in {
        "margin": "0.4", "scale": "9.0", "sub_centers": "2", "momentum": "0.5", "h": "0.5", "temperature": "0.5",
        "dispersion_weight": "0.25",
    }.items()},
    "classifier.backbone": ('"resnet18"', TRAINED),
    "classifier.options": ("{ features = 8 }", TRAINED),
    "classifier.backbone_rate": ("0.5", TRAINED),
    "classifier.frozen_statistics": ("true", TRAINED),
    # `tests/test_fine_tuning.py` asks what these make again where there is a second part.
    **{f"fine_tuning.{key}": (value, NOTHING) for key, value in TUNING.items()},
    "train.epochs": ("7", TRAINED),
    "train.batch_size": ("32", TRAINED),
    "train.optimizer": ('"sgd"', TRAINED),
    "train.learning_rate": ("0.1", TRAINED),
    "train.warmup": ("0.1", TRAINED),
    "train.weight_decay": ("0.1", TRAINED),
    "train.augment": ('["flip"]', TRAINED),
    "train.auxiliary.name": ('"rotation"', TRAINED),
    "train.auxiliary.weight": ("0.25", TRAINED),
    "train.clip_norm": ("1.0", TRAINED),
    "train.ema": ("0.5", TRAINED),
    "train.precision": ('"mixed_bfloat16"', TRAINED),
    "train.steps_per_execution": ("2", TRAINED),  # By rounding: the compiler joins the steps.
    "train.devices": ("1", NOTHING),
    "train.resident": ("true", NOTHING),
    "train.class_weight": ('"balanced"', TRAINED),
    # With the same headline the same is served.
    "evaluate.scores": ('["msp", "energy"]', {"evaluate", "validation", "baseline"}),
    "evaluate.headline": ('"energy"', MEASURED),
    "evaluate.tune": ("true", {"evaluate", "validation", "baseline"}),
    "evaluate.baseline": ("false", NOTHING),
    "evaluate.batch_size": ("64", MEASURED),  # By rounding.
    "budget.minutes": ("30.0", DIFFUSED | TRAINED),
    "budget.diffusion": ("0.5", NOTHING),  # Shares of no time.
    "budget.sampling": ("0.2", NOTHING),
    "serve.export": ("false", NOTHING),
    "serve.accept": ("0.9", PUBLISHED),
    "serve.by_class": ("true", PUBLISHED),
    "serve.undecodable": ('"mark"', {"export"}),
    "report.baseline": ('{ head = "softmax" }', NOTHING),
    "report.leaderboard": ("true", NOTHING),
    "report.tensorboard": ("true", NOTHING),
}  # fmt: skip

#: What a key needs beside it to be a valid recipe.
NEEDS = {
    **{f"head.{key}": f'head.name="{head}"' for key, head in (
        ("margin", "arcface"), ("scale", "arcface"), ("sub_centers", "subcenterarcface"), ("momentum", "adaface"),
        ("h", "adaface"), ("temperature", "logitnorm"),
    )},
    "head.dispersion_weight": ["head=cider", "outliers.use=['noise']"],  # Virtual outliers teach it nothing.
    "report.leaderboard": "matrix={seed=[0]}",
    "train.auxiliary.weight": "train.auxiliary='rotation'",
    "outliers.target": "outliers.use=['label_mixup','noise']",
    "report.baseline": "matrix={head=['softmax','arcface']}",
}  # fmt: skip


def leaves(model, above=""):
    """Every key of a recipe, names of the user's own as {}."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *typing.get_args(field.annotation)]
        (inner,) = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)] or [None]
        if inner is None:
            yield above + name
        else:
            yield from leaves(inner, f"{above}{name}.{'{}.' if typing.get_origin(field.annotation) is dict else ''}")


def test_every_key_of_a_recipe_has_its_line_here():
    missing = set(leaves(Recipe)) - set(KEYS) - ATTACHED - FROZEN
    assert not missing, f"add to KEYS which stages these make again: {sorted(missing)}"
    assert not set(KEYS) - set(leaves(Recipe))


@pytest.fixture
def stages(tmp_path, monkeypatch):
    """stages("key=value", ...) -> {stage: its key} of a run in which every stage stands for what decides it."""

    def data_of(settings):
        """Which parts of `data` each set comes from."""
        sets = dict.fromkeys(("train", "validation", "calibration", "test"), settings["data"]["id"])
        for kind in ("near", "far", "validation_ood"):
            sets |= {f"data.{kind}.{name}": spec for name, spec in settings["data"][kind].items()}
        every = {name: settings["data"].get(name) for name in ("image_shape", "ground", "resize", "split_seed")}
        return {name: {"sha256": fingerprint(one, every, settings["quick"]), "images": 50, "class_names": ["a", "b"]}
                for name, one in {**sets, "outliers.real": settings["real"],
                                  "data.pictures": settings["data"].get("pictures")}.items()}  # fmt: skip

    def stand_in(_, name, decides, make):
        key = fingerprint(name, decides)
        run.decided[name] = decides
        folder = tmp_path / f"{name}-{key}"
        folder.mkdir(exist_ok=True)
        facts = {"sha256": key, "images": 50, "warnings": [], "notes": [], "version": 1, "files": {}, "skipped": {}}
        facts |= {"passes": 10, "steps": 5000, "timed": False}
        if name == "data":
            facts |= {"sets": data_of(decides), "groups": {}}
            np.save(folder / "used.hashes.npy", np.empty(0, np.uint64))
            for part in ("train", "validation", "calibration"):
                write_digests(folder, part, np.frombuffer(facts["sets"][part]["sha256"].encode(), np.uint8)[None, :16])
        if name == "evaluate":
            asked = decides["evaluate"]["headline"]
            facts |= {"headline_score": "msp" if asked == "auto" else asked, "id": {"accuracy": 1.0, "images": 50}}
            figures = {name: {"auroc": decides["near"].get(name, decides["far"].get(name))} for name in ("one", "two")}
            facts["scores"] = dict.fromkeys(("msp", "energy", facts["headline_score"]), figures)
            facts["classes"] = []
            facts["threshold"] = {"warnings": [], "accepted_id_test": 1.0, "accepted_id_test_interval": [0.0, 1.0]}
            served = fingerprint(*(decides[part] for part in ("classifier", "accept", "id", "validation_ood")),
                                 asked, decides["evaluate"]["batch_size"])  # fmt: skip
            chosen = fingerprint(
                *(decides[part] for part in ("classifier", "id", "validation_ood")), decides["evaluate"]
            )
            np.savez(folder / "validation.npz", scores=np.frombuffer(chosen.encode(), np.uint8))
            np.savez(folder / "parity.npz", label=np.arange(3))
            np.savez(folder / "calibration.npz", scores=np.frombuffer(served.encode(), np.uint8), labels=np.arange(3))
        if name == "baseline":
            facts |= dict.fromkeys(("validation_auroc", "validation_accuracy", "exposed_validation_auroc",
                                    "exposed_validation_accuracy"), 0.5)  # fmt: skip
        return Result(folder, facts, 0.0, cached=True)

    monkeypatch.setattr(Run, "ensure", stand_in)
    monkeypatch.setattr(
        Data, "images", lambda *_: ImageSet(np.zeros((50, 8, 8, 1), "uint8"), np.arange(50) % 2, ("a", "b"))
    )
    monkeypatch.setattr(make, "check", lambda *_: None)
    monkeypatch.setattr(make, "summarize", lambda _, cell: {stage.role: stage.key for stage in cell.made})
    (tmp_path / "whole.toml").write_text(WHOLE)

    def run(*overrides):
        run.decided = {}
        keys, _ = make.make_cell(work_alone(load(tmp_path / "whole.toml", overrides), tmp_path / "saved"))
        return keys

    return run


def test_everything_is_in_use(stages):
    assert set(stages()) == ALL
    assert stages() == stages()


@pytest.mark.parametrize(
    ("settings", "still"), [((), NOTHING), (("outliers.label_mixup.confidence=[0.2,0.9]",), {"judge"})]
)
def test_what_only_serves_what_is_left_out_is_not_made(stages, monkeypatch, settings, still):
    some = Data.images
    monkeypatch.setattr(Data, "images", lambda *of: some(*of).take(np.arange(0 if of[1] == "validation" else 50)))
    audited, compared = {"judge", "pure_audit", "audit", "shortcut"}, {*UNEXPOSED, "baseline"}
    assert set(stages(*settings)) == ALL - audited - compared | still


@pytest.mark.parametrize("key", list(KEYS))
def test_a_key_decides_exactly_what_it_changes(stages, key):
    value, changed = KEYS[key]
    needs = NEEDS.get(key, [])
    needs = [needs] if isinstance(needs, str) else needs
    names = {
        "data.near.{}": "data.near.one",
        "data.far.{}": "data.far.two",
        "data.validation_ood.{}": "data.validation_ood.three",
    }
    for pattern, own in names.items():
        key = key.replace(pattern, own)
    before, after = stages(*needs), stages(*needs, f"{key}={value}")
    both = before.keys() & after.keys()
    assert {name for name in both if before[name] != after[name]} == changed & both
    assert after.keys() - before.keys() == ({"decision_cost"} if key == "report.leaderboard" else NOTHING)


@pytest.mark.parametrize(
    ("room", "name", "changed"),
    [
        ("heads", "softmax", TRAINED),
        ("backbones", "small_cnn", TRAINED),
        ("losses", "outlier_exposure", EXPOSED),
        ("scores", "msp", MEASURED),
        ("denoisers", "mlp", DIFFUSED),
        ("samplers", "dpm_solver", {*SAMPLED, "audit", *EXPOSED}),
        ("augmentations", "flip", DIFFUSED | TRAINED),
        ("outliers", "virtual", EXPOSED),
        ("outliers", "noise", {"noise", *EXPOSED}),
        ("datasets", "blobs", {"data"}),
    ],
)
def test_a_thing_whose_code_changed_makes_again_what_uses_it(stages, monkeypatch, room, name, changed):
    before = stages("data.augment=['flip']")
    monkeypatch.setattr(registry.obtain(room, name), "version", 9, raising=False)
    after = stages("data.augment=['flip']")
    assert {name for name in ALL if before[name] != after[name]} == changed


#: One thing of each room that a package of the user's has; `{change}` stands where its code is changed.
MINE = '''
"""What a user has."""

import keras

from kood.heads import Softmax
from kood.outliers import OutlierSource

class Head(Softmax):
    """A head."""

class Fog(OutlierSource):
    """A source."""

    def draw(self, count, rng, shape):
        return {change}

def backbone(image_shape):
    """A network."""
    return {change}

def denoiser(image_shape, num_classes):
    """A network."""
    return {change}

def loss(logits):
    """A loss."""
    return {change}

def score(logits):
    """A score."""
    return {change}

def sampler(denoise, alpha_bar, noise, num_steps):
    """A sampler."""
    return {change}

def images(image_shape, *, seed):
    """A data set."""
    return {change}

def dimmed(images, seed):
    """An augmentation."""
    return {change}
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """mine(change) writes the module `mine_of_keys`; so does mine(change, fresh=True) as a new process finds it."""
    monkeypatch.syspath_prepend(tmp_path / "site")

    def write(change, fresh=False):
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / "mine_of_keys.py").write_text(MINE.replace("{change}", change))
        importlib.invalidate_caches()
        if fresh:
            sys.modules.pop("mine_of_keys", None)

    yield write
    sys.modules.pop("mine_of_keys", None)


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        (["head='mine_of_keys:Head'"], EXPOSED | UNEXPOSED),
        (["classifier.backbone='mine_of_keys:backbone'"], TRAINED),
        (["outliers.exposure='mine_of_keys:loss'"], EXPOSED),
        (["evaluate.headline='mine_of_keys:score'", "report.leaderboard=true", "matrix={seed=[0]}"],
         MEASURED | {"decision_cost"}),
        (["evaluate.scores=['mine_of_keys:score']"], {"evaluate", "validation", "baseline"}),
        (["diffusion.denoiser='mine_of_keys:denoiser'"], DIFFUSED),
        (["outliers.label_mixup.sampler='mine_of_keys:sampler'"], {"label_mixup", "audit", *EXPOSED}),
        (["data.augment=['mine_of_keys:dimmed']"], DIFFUSED | TRAINED),
        (["outliers.use=['mine_of_keys:Fog']"], {"fog", *EXPOSED}),
        (["data.far.two.source='mine_of_keys:images'"], {"data"}),
    ],
)  # fmt: skip
def test_code_from_outside_that_changed_makes_again_what_uses_it(stages, mine, settings, changed):
    mine("None", fresh=True)
    before = stages(*settings)
    mine("0")  # As long as it is imported, the old one is what runs.
    assert stages(*settings) == before
    mine("0", fresh=True)
    after = stages(*settings)
    assert {name for name in before if before[name] != after[name]} == changed & before.keys()
    mine("None", fresh=True)
    assert stages(*settings) == before


def test_the_file_that_defines_what_a_module_passes_on_decides_too(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "passes_on").mkdir()
    (tmp_path / "passes_on" / "__init__.py").write_text("from passes_on.parts import loss")

    def digest(code):
        (tmp_path / "passes_on" / "parts.py").write_text(f"def loss(logits):\n    return {code}\n")
        for name in [name for name in sys.modules if name.partition(".")[0] == "passes_on"]:
            del sys.modules[name]
        importlib.invalidate_caches()
        return registry.source_of(registry.loaded("passes_on:loss", ""), "passes_on")

    assert digest("logits") == digest("logits") != digest("-logits")


def test_outliers_of_the_same_pixels_and_other_shares_train_anew_where_the_shares_are_learned(stages, monkeypatch):
    found = {}
    for target in ("uniform", "parents"):
        for share in (0.5, 0.25):
            monkeypatch.setattr(Outliers, "shares", lambda _, share=share: np.full((50, 2), share))
            found[target, share] = stages(f"outliers.target={target!r}", "outliers.use=['label_mixup']")["classifier"]
    assert found["uniform", 0.5] == found["uniform", 0.25]
    assert found["parents", 0.5] != found["parents", 0.25]


def test_a_headline_with_options_is_a_score_of_the_room(stages):
    keys = stages("evaluate.headline='knn:k=5'")
    assert keys["shortcut"] != stages()["shortcut"] == stages("evaluate.headline='msp'")["shortcut"]


def test_a_score_that_is_added_is_measured(stages, monkeypatch):
    before, room = stages(), registry.room
    more = {**room("scores"), "new": room("scores")["msp"]}
    monkeypatch.setattr(registry, "room", lambda name: more if name == "scores" else room(name))
    after = stages()
    assert {"evaluate", "validation"} <= {name for name in ALL if before[name] != after[name]}


def test_other_spellings_decide_nothing(stages):
    assert stages("evaluate.headline='MSP'") == stages("evaluate.headline='msp'")
    assert stages("evaluate.scores=['MSP','Energy']") == stages("evaluate.scores=['msp','energy']")


def test_variables_that_change_arithmetic_decide_what_a_backend_computes(stages, monkeypatch):
    for name in VARIABLES["tensorflow"]:
        monkeypatch.delenv(name, raising=False)
    before = stages()
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    after = stages()
    assert {name for name in ALL if before[name] != after[name]} == DIFFUSED | TRAINED
    assert environment()["NVIDIA_TF32_OVERRIDE"] == "0"
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    assert stages() == before and "NVIDIA_TF32_OVERRIDE" not in environment()


def test_of_a_backbones_file_the_bytes_decide_and_not_the_path(stages, tmp_path):
    one, other = tmp_path / "one.keras", tmp_path / "other.keras"

    def keys(path):
        return stages('classifier.backbone="file"', f"classifier.options={{path='{path}'}}")

    one.write_bytes(b"some bytes")
    other.write_bytes(b"some bytes")
    before = keys(one)
    assert keys(other) == before
    one.write_bytes(b"other bytes")
    after = keys(one)
    assert {name for name in before if before[name] != after[name]} == TRAINED


def test_the_code_that_a_backbones_file_imports_decides_too(stages, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "one.keras").write_bytes(b"some bytes")

    def keys(code, imports):
        (tmp_path / "layers_of_this_recipe.py").write_text(code)
        sys.modules.pop("layers_of_this_recipe", None)
        importlib.invalidate_caches()
        return stages(
            'classifier.backbone="file"', f"classifier.options={{path='{tmp_path / 'one.keras'}', imports={imports}}}"
        )

    before, without = keys("width = 1", ["layers_of_this_recipe"]), keys("width = 1", [])
    assert stages.decided["classifier"]["classifier"]["options"]["imports"] == []
    after = keys("width = 2", ["layers_of_this_recipe"])
    assert {name for name in before if before[name] != after[name]} == TRAINED
    assert keys("width = 2", []) == without
    assert keys("width = 1", ["layers_of_this_recipe"]) == before
