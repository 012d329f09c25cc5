"""Set up before anything is imported: quiet, few threads, no accelerator. Then the tiers, and what many tests share."""

import ctypes
import gc
import importlib.machinery
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # Two torch threads on two busy cores are thirty times slower than one.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import pytest

from kood import registry

BACKEND = os.environ["KERAS_BACKEND"]
ROOT = Path(__file__).parents[1]
#: JAX compiles each small operation by itself, and here runs it a few times: a third less time without the passes of
#: LLVM. Those of XLA itself, which change what is computed, stay.
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if BACKEND == "jax":
    os.environ.setdefault("XLA_FLAGS", XLA_FLAGS)
    # The same operations, and the steps of the same small networks, are met in many modules, each of which lets go of
    # its programs: here the next one finds them.
    PROGRAMS = tempfile.TemporaryDirectory(prefix="kood-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = PROGRAMS.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

#: What a test of the quick tier does without.
HEAVY = {"jax", "keras", "keras_cv", "tensorflow", "tensorflow_datasets", "tensorflow_serving", "torch"}


#: The bytes that this process held when it last let go of what was built, and how many more it may hold until the next.
RESIDENT, MORE = [0], 128 * 2**20
#: SavedModels that a module has opened, by what they hold.
OPENED = {}


class NoBackend:
    """Finds the heavy packages and refuses to load them: a module that loads one is left out, and a test fails."""

    def __init__(self):
        self.collecting = True

    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name.partition(".")[0] in HEAVY else None

    def create_module(self, spec):
        if self.collecting:
            pytest.skip(f"loads {spec.name}", allow_module_level=True)
        pytest.fail(f"a test of the quick tier loads {spec.name}: mark it with pytest.mark.keras")

    def exec_module(self, module):
        raise NotImplementedError


def pytest_configure(config):
    config.no_backend = NoBackend() if config.option.markexpr == "quick" else None
    if config.no_backend:
        sys.meta_path.insert(0, config.no_backend)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if collector.config.no_backend and report.skipped:
        report.outcome, report.result = "passed", []
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Marks what is quick; leaves to one backend what proves nothing more under another."""
    if config.no_backend:
        config.no_backend.collecting = False
        for item in items:
            if not any(item.get_closest_marker(name) for name in ("keras", "slow")):
                item.add_marker("quick")
    elif BACKEND != "tensorflow":
        items[:] = [item for item in items if not item.get_closest_marker("one_backend")]


def pytest_collection_finish(session):
    """What the imports left stays to the end: the collector, which kood calls after each stage, passes it over."""
    gc.collect()
    gc.freeze()
    RESIDENT[0] = resident()
    gc.set_threshold(20_000)  # Graphs are traced of many small things; 700 would look through them a thousand times.


@pytest.fixture(autouse=True, scope="module")
def released(request):
    """Lets go of what a module has built, and of the names of modules that it imported from a folder of its own, which
    another process would look for.
    """
    before, modules = registry.imported(), len(sys.modules)
    yield
    for name in set(registry.imported()) - set(before):
        del registry._outsiders[name]
    release(request.module)
    if len(sys.modules) > modules + 50:
        gc.freeze()  # A package that was loaded late stays too, and has more objects than all that the tests build.


@pytest.fixture(autouse=True)
def released_early(request):
    """Lets go of what a module has built before its end, where that is much.

    Not of JAX's programs: compiling them again takes a third of the time of its tests.
    """
    yield
    if BACKEND != "jax" and resident() > RESIDENT[0] + MORE:
        release(request.module)


def resident():
    """The bytes of memory that this process holds; none where the system does not say so."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def release(module):
    """Lets go of models, their graphs and compiled steps, which hold each other."""
    for made in list(vars(module).values()):
        if hasattr(made, "cache_clear"):
            made.cache_clear()
    OPENED.clear()
    if "keras" in sys.modules:
        import keras

        keras.utils.clear_session(free_memory=False)
    if "tensorflow" in sys.modules:
        from tensorflow.python.framework.ops import gradient_registry

        # TensorFlow keeps every custom gradient that it has traced, and with it the graph of the training step.
        for name in list(gradient_registry.list()):
            if name.startswith("CustomGradient-"):
                del gradient_registry._registry[name]
    if BACKEND == "jax" and "jax" in sys.modules:
        import jax

        jax.clear_caches()
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    gc.collect()
    if sys.platform == "linux":  # Many small blocks were freed, and the C library keeps them.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)
    RESIDENT[0] = resident()


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


#: For runs that are about something else: no second classifier to compare with, none to judge the samples.
LEAN = ("--set", "evaluate.baseline=false", "--set", "pure_samples.use=[]")


def kood(*arguments, cwd, **environment):
    """The command line, in a process of its own."""
    command = [sys.executable, "-m", "kood", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def made_once(name, tmp_path_factory, make):
    """A folder that `make` has filled, by one of the workers for all of them, and what it returned.

    Each worker gets a copy, since tests write into it.
    """
    folder = tmp_path_factory.mktemp(name)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return folder, make(folder)
    first = tmp_path_factory.getbasetemp().parent / name
    told = first.with_name(f"{name}.json")
    try:
        first.mkdir()
    except FileExistsError:
        end = time.monotonic() + 900
        while not told.exists():
            assert time.monotonic() < end, f"another worker has not made {first}"
            time.sleep(0.2)
        result = subprocess.CompletedProcess(**json.loads(told.read_text()))
    else:
        result = make(first)
        partial = told.with_suffix(".partial")
        partial.write_text(json.dumps(vars(result)))
        partial.rename(told)
    shutil.copytree(first, folder, dirs_exist_ok=True)
    return folder, result


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder where the tiny recipe has run once, in a process of its own, and what that said."""

    def make(folder):
        (folder / "tiny.toml").write_text(TINY)
        return kood("run", "tiny.toml", cwd=folder)

    folder, result = made_once("finished", tmp_path_factory, make)
    assert result.returncode == 0, result.stderr + result.stdout
    return folder, result


@pytest.fixture(scope="module")
def loaded_once():
    """Opens a SavedModel of the same bytes once a module, or a few times: that and its first answer take long."""
    import hashlib

    import tensorflow as tf

    load = tf.saved_model.load

    def loaded(folder, *args, **settings):
        digest = hashlib.sha256()
        for file in [Path(folder) / "saved_model.pb", *sorted((Path(folder) / "variables").glob("*"))]:
            digest.update(file.read_bytes() if file.is_file() else b"")
        key = digest.hexdigest()
        if key not in OPENED:
            OPENED[key] = load(folder, *args, **settings)
        return OPENED[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.saved_model, "load", loaded)
        yield


@pytest.fixture(scope="module")
def as_written():
    """Runs graphs as they are written, where they are not what is tested: to rewrite one that reads files takes longer
    than to run it."""
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})


@pytest.fixture
def same_graph(monkeypatch):
    """Calibrated anew, a version keeps the graph of the old one, where only what lies beside that is looked at."""
    from kood.serving import publishing

    export = publishing._export

    def copied(source, folder, *given):
        if source.is_dir():
            shutil.copytree(source, folder, ignore=shutil.ignore_patterns("assets.extra"))
        else:
            export(source, folder, *given)

    monkeypatch.setattr(publishing, "_export", copied)


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

    def judged(targets, labels):
        noise = rng.normal(0, 12, (len(targets), 4, 4, 1)) + rng.normal(0, 8, (len(targets), 1, 1, 1))
        images = np.clip(targets[:, None, None, None] + noise, 0, 255).astype("uint8")
        means = images.mean(axis=(1, 2, 3))
        logits = -(((means[:, None] - levels) / 30) ** 2)
        posteriors = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return Judged(images, posteriors, np.stack([means, images.std(axis=(1, 2, 3))], axis=1) / 64, labels)

    labels = {name: np.arange(count) % classes for name, count in (("train", 300), ("held_out", 90), ("pure", 120))}
    moved = {"train": 0.0, "held_out": 0.0, "pure": shift}
    sets = {name: judged(levels[own] + moved[name], own) for name, own in labels.items()}
    if mixed:
        shares = np.zeros((100, classes))
        for row, share in zip(shares, rng.uniform(0.02, 0.98, 100), strict=True):
            lower = rng.integers(classes - 1)  # Neighbours: between others lies another class.
            row[lower : lower + 2] = share, 1 - share
        sets["mixed"] = judged(shares @ levels + shift, shares)
    names = class_names or [f"level {number}" for number in range(classes)]
    found = audit(**sets, class_names=names, feature_space="mean and spread of the grey levels / 64")
    if score_shift is None:
        return found
    return with_shortcut(found, rng.normal(0, 1, 400), rng.normal(score_shift, 1, 400), score="energy")


@pytest.fixture
def new_audit():
    """Makes audits of outlier sets: `new_audit(shift=..., score_shift=...)`, see `make_audit`."""
    return make_audit


def work_alone(recipe, folder, **console):
    """What the stages of one cell are given, in a process by itself on one device."""
    from rich.console import Console

    from kood.backends import Devices
    from kood.pipeline.budget import Budget
    from kood.pipeline.stage import Work
    from kood.pipeline.team import Team
    from kood.report import StageProgress
    from kood.runs import Run

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
        return [self.stages[role].ensure(self.work) for role in roles][-1]

    def train(self):
        """Makes the classifier and what it is exposed to."""
        return self.make(*self.work.recipe.outliers.drawn, "classifier")

    def images(self, name):
        """One of its image sets."""
        return self.stages["data"].images(name)

    def check(self):
        """Refuses what only the data reveal."""
        from kood.pipeline.checks import check

        check(self.work.recipe, self.stages["data"], self.work.devices)


def figures_of(report):
    """A report without what may differ between two runs of one recipe."""
    return {key: value for key, value in report.items() if key not in ("stages", "environment")}


@contextmanager
def handlers_restored():
    """Puts back what is done at the signals that stop a command."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def kood_here(*arguments, cwd):
    """The command line in this process, which has Keras loaded already."""
    from kood import cli

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["kood", *map(str, arguments)])
        patch.setenv("KERAS_BACKEND", BACKEND)  # Some commands set it, for their process alone.
        patch.setattr(sys, "unraisablehook", sys.unraisablehook)
        with handlers_restored(), redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as done:
            cli.main()
    return subprocess.CompletedProcess(arguments, done.value.code or 0, out.getvalue(), err.getvalue())


@pytest.fixture
def invoke(monkeypatch):
    """The same, after which the test stays in that folder."""

    def call(*arguments, cwd):
        monkeypatch.chdir(cwd)
        return kood_here(*arguments, cwd=cwd)

    return call
