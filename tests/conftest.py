"""Set up before anything is imported: quiet, few threads, no accelerator."""

import os
import signal
import subprocess
import sys

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # Two torch threads on two busy cores are thirty times slower than one.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import pytest

TINY = """
seed = 3

[data]
image_shape = [8, 8, 1]

[data.id]
source = "digits"
classes = [0, 1, 2, 3]
per_class = 30

[data.near.other_digits]
source = "digits"
classes = [8, 9]
count = 60

[data.far.uniform]
source = "uniform"
count = 60

[diffusion]
options = { width = 32, depth = 1 }
steps = 20
batch_size = 32
num_steps = 50

[outliers]
use = ["label_mixup", "noise"]
per_batch = 16

[outliers.label_mixup]
count = 40
sampling_steps = 4

[outliers.noise]
count = 24

[head]
name = "arcface"
margin = 0.2
scale = 8.0

[train]
epochs = 2
batch_size = 16
"""


@pytest.fixture
def tiny(tmp_path):
    """A recipe file that runs in seconds."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def make_audit(*, classes=3, shift=0.0, score_shift=0.0, mixed=True, class_names=None, seed=0):
    """Audits made-up images: a class is a grey level; samples are as real images are, moved by `shift` levels.

    The judge knows the class by the mean grey level, softly, so mixtures of two levels lie between them.
    """
    import numpy as np

    from kood.audit import Judged, audit, with_shortcut

    rng = np.random.default_rng(seed)
    levels = np.linspace(40, 215, classes)

    def judged(targets):
        noise = rng.normal(0, 12, (len(targets), 4, 4, 1)) + rng.normal(0, 8, (len(targets), 1, 1, 1))
        images = np.clip(targets[:, None, None, None] + noise, 0, 255).astype("uint8")
        means = images.mean(axis=(1, 2, 3))
        logits = -(((means[:, None] - levels) / 30) ** 2)
        posteriors = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return Judged(images, posteriors, np.stack([means, images.std(axis=(1, 2, 3))], axis=1) / 64)

    labels = {name: np.arange(count) % classes for name, count in (("train", 300), ("held_out", 90), ("pure", 120))}
    train, held_out = judged(levels[labels["train"]]), judged(levels[labels["held_out"]])
    pure = judged(levels[labels["pure"]] + shift)
    options = {}
    if mixed:
        shares = np.zeros((100, classes))
        for row, share in zip(shares, rng.uniform(0.02, 0.98, 100), strict=True):
            lower = rng.integers(classes - 1)  # Neighbours: between others lies another class.
            row[lower : lower + 2] = share, 1 - share
        options = {"mixed": judged(shares @ levels + shift), "mixtures": shares}
    names = class_names or [f"level {number}" for number in range(classes)]
    found = audit(
        pure, labels["pure"], held_out, labels["held_out"], train.images, train.features, class_names=names,
        feature_space="mean and spread of the grey levels / 64", **options,
    )  # fmt: skip
    if score_shift is None:
        return found
    return with_shortcut(found, rng.normal(0, 1, 400), rng.normal(score_shift, 1, 400), score="energy")


@pytest.fixture
def new_audit():
    """Makes audits of outlier sets: `new_audit(shift=..., score_shift=...)`, see `make_audit`."""
    return make_audit


def work_alone(recipe, folder, **console):
    """What the stages of one cell are given, in a process by itself on one device."""
    import io

    from rich.console import Console

    from kood.pipeline.budget import Budget
    from kood.pipeline.team import Team
    from kood.pipeline.work import Work
    from kood.report import StageProgress
    from kood.runs import Run
    from kood.steps import Devices

    shown = StageProgress(Console(**{"file": io.StringIO(), **console}))
    return Work(recipe, Team(Devices(), Run(folder)), shown, Devices(), Budget(recipe))


class Cell:
    """The stages of one cell, to be made one by one, in a process by itself; its data are there at once.

    Attributes:
        work: What they are made with.
        stages: All of them, by their roles.
    """

    def __init__(self, recipe, folder, **console):
        from kood.pipeline import cell

        self.work = work_alone(recipe, folder, **console)
        self.stages = {stage.role: stage for stage in cell.Cell(recipe).stages}
        self.make("data")

    def __getitem__(self, role):
        return self.stages[role]

    def make(self, *roles):
        """Makes stages in this order and returns what the last of them left."""
        return [self.stages[role].obtain(self.work) for role in roles][-1]

    def train(self):
        """Makes the classifier and what it is exposed to."""
        return self.make(*self.work.recipe.outliers.drawn, "classifier")

    def images(self, name):
        """One of its image sets."""
        return self.stages["data"].images(name)

    def check(self):
        """Refuses what only the data reveal."""
        from kood.pipeline.checks import check

        check(self.work.recipe, self.stages["data"], self.work.devices.count)


def figures_of(report):
    """A report without what may differ between two runs of one recipe."""
    return {key: value for key, value in report.items() if key not in ("stages", "environment")}


@pytest.fixture
def invoke(monkeypatch, capsys):
    """The command line in this process, which has Keras loaded already."""
    from kood import cli

    def call(*arguments, cwd):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["kood", *map(str, arguments)])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with pytest.raises(SystemExit) as done:
                cli.main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        output = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, done.value.code or 0, output.out, output.err)

    return call
