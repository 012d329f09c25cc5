"""The time budget of a run: shares, what is left out, and what a run that is short of time leaves behind."""

import json
import math
from types import SimpleNamespace

import keras
import pytest

from kood import pipeline
from kood.errors import UserError
from kood.pipeline import matrix
from kood.pipeline.budget import Budget, OutOfTimeError
from kood.pipeline.diffusion import Diffusion
from kood.recipe import load
from kood.training import timing

pytestmark = pytest.mark.usefixtures("as_written")

RECIPE = """
name = "short"
[data]
image_shape = [8, 8, 1]
[data.id]
source = "digits"
classes = [0, 1, 2]
validation = 0.2
calibration = 0.2
[data.near.others]
source = "digits"
classes = [7, 8]
[diffusion]
options = { width = 16, depth = 1 }
steps = 20
[outliers]
use = ["label_mixup"]
count = 16
per_batch = 8
[outliers.label_mixup]
sampling_steps = 2
batch_size = 8
[pure_samples]
audit_count = 16
sampling_steps = 2
[train]
epochs = 2
[evaluate]
scores = ["msp"]
[serve]
export = false
"""
LEAN = ["evaluate.baseline=false", "pure_samples.use=[]"]
MATRIX = '[matrix]\nseed = [0, 1]\noutliers = ["none", "label_mixup"]\n'


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def recipe(tmp_path):
    def written(*overrides, matrix=False):
        (tmp_path / "short.toml").write_text(RECIPE + MATRIX * matrix)
        return load(tmp_path / "short.toml", overrides)

    return written


def test_shares_of_a_single_run(recipe):
    loaded = recipe("budget.minutes=10", "head=arcface")
    budget = Budget(loaded, 0.0)
    assert budget.of("diffusion", loaded) == 0.4 * 600
    # Samples to train on and to be audited by.
    assert budget.of("label_mixup", loaded) == budget.of("pure_audit", loaded) == pytest.approx(0.1 * 600 / 2)
    # The classifier, its baseline and the judge; a quarter is kept for the rest.
    assert budget.of("classifier", loaded) == pytest.approx(0.5 * 0.75 * 600 / 3)
    softmax = recipe("budget.minutes=10", "head=softmax")  # Whose baseline is the judge.
    assert Budget(softmax, 0.0).of("classifier", softmax) == pytest.approx(0.5 * 0.75 * 600 / 2)
    alone = recipe("budget.minutes=10", "outliers.use=[]", "pure_samples.use=[]")
    assert Budget(alone, 0.0).of("classifier", alone) == pytest.approx(0.75 * 600)
    for name in ("data", "evaluate", "export"):
        assert budget.of(name, loaded) is None


def test_folds_have_their_part_of_the_time(recipe):
    folds = "data.hold_out.folds=2"
    loaded = recipe("budget.minutes=10", "head=arcface", folds)
    budget = Budget(loaded, 0.0)
    assert budget.of("diffusion", loaded) == pytest.approx(0.4 * 600 / 3)
    assert budget.of("label_mixup", loaded) == budget.of("pure_audit", loaded) == pytest.approx(0.1 * 600 / 3 / 2)
    # The classifier, its baseline and the judge, and a classifier in each fold.
    assert budget.of("classifier", loaded) == pytest.approx(0.5 * 0.75 * 600 / 5)
    judged = recipe("budget.minutes=10", "head=arcface", folds, "outliers.label_mixup.confidence=[0.2, 0.9]")
    assert Budget(judged, 0.0).of("classifier", judged) == pytest.approx(0.5 * 0.75 * 600 / 7)


def test_a_fold_is_left_out_where_it_would_not_be_finished(recipe):
    clock = Clock()
    budget = Budget(recipe("budget.minutes=10", "outliers.use=[]", "pure_samples.use=[]", "data.hold_out.folds=2"),
                    clock=clock)  # fmt: skip
    budget.note("classifier", "a", 60.0)
    budget.note("evaluate", "a", 10.0)
    budget.note("export", "a", 100.0)  # Nothing is published of a fold.
    folds = budget.for_folds()
    clock.now += 600 - 70
    folds.afford("classifier")
    clock.now += 1
    with pytest.raises(OutOfTimeError, match="classifier: 1 min 9 s were left for it"):
        folds.afford("classifier")
    clock.now += 69
    for name in ("classifier", "patch_shuffle"):
        budget.afford(name)  # What is no fold is made.
        with pytest.raises(OutOfTimeError, match="the 10 minutes were up"):
            folds.afford(name)
    folds.afford("evaluate")


def test_a_fold_that_is_begun_is_finished_before_the_next(recipe):
    clock = Clock()
    folds = Budget(recipe("budget.minutes=10", "data.hold_out.folds=3"), clock=clock).for_folds()
    folds.note("classifier", "a", 60.0)
    for key in ("whole", "first fold"):
        folds.note("diffusion", key, 60.0)
    clock.now += 600 - 60
    folds.afford("classifier")
    with pytest.raises(OutOfTimeError, match="diffusion: 1 min 0 s were left for it, and it was to take 2 min 0 s"):
        folds.afford("diffusion")


def test_a_matrix_without_diffusion_models_keeps_no_time_for_them(recipe):
    clock = Clock()
    loaded = recipe("budget.minutes=10", "outliers.use=[]", "pure_samples.use=[]", "matrix.seed=[0, 1]")
    budget = Budget(loaded, clock=clock)
    budget.note("classifier", "a", 60.0)
    clock.now += 600 - 60
    budget.afford("classifier")


def test_a_matrix_trains_its_classifiers_whole_and_shares_among_its_diffusion_models(recipe):
    loaded = recipe("budget.minutes=10", matrix=True)
    cell = loaded.cells()[1][1]
    assert Budget(loaded, 0.0).of("classifier", cell) is None
    assert Budget(loaded, 0.0).of("diffusion", cell) == 0.4 * 600 / 2  # One a seed.
    shared = recipe("budget.minutes=10", "diffusion.seed=0", matrix=True)
    assert Budget(shared, 0.0).of("diffusion", shared.cells()[1][1]) == 0.4 * 600


def test_each_set_of_training_images_has_a_diffusion_model(recipe):
    settings = ("budget.minutes=10", "diffusion.seed=0", "outliers.use=['label_mixup']")
    axes = {"data.id.count": 2, "data.split_seed": 2, "data.near.others.count": 1, "train.batch_size": 1}
    for axis, models in axes.items():
        arms = ", ".join(f"{{ name = '{count}', {axis} = {count} }}" for count in (40, 50))
        loaded = recipe(*settings, f"matrix.arm=[{arms}]")
        assert Budget(loaded, 0.0).of("diffusion", loaded.cells()[1][1]) == 0.4 * 600 / models


def test_without_minutes_everything_is_affordable(recipe):
    loaded = recipe()
    budget = Budget(loaded, -1e9)
    assert math.isinf(budget.left) and budget.deadline() is None and budget.facts() == {}
    for name in ("diffusion", "label_mixup", "classifier"):
        assert budget.of(name, loaded) is None
        budget.afford(name)


def test_what_a_stage_took_decides_whether_there_is_time_for_another(recipe):
    clock = Clock()
    budget = Budget(recipe("budget.minutes=10", "diffusion.seed=0", matrix=True), clock=clock)
    budget.afford("classifier")
    budget.note("classifier", "a", 90.0)  # Which compiled.
    budget.note("classifier", "a", 60.0)
    budget.note("evaluate", "a", 10.0)
    # Half of the time is kept for the diffusion model and its samples until it is there.
    clock.now = 100.0 + 600 - 300 - 69
    with pytest.raises(OutOfTimeError, match="classifier: 69 s were left for it, and it was to take 70 s|1 min"):
        budget.afford("classifier")
    budget.afford("diffusion")
    budget.note("diffusion", "a", 200.0)
    budget.note("diffusion", "a", 0.0)  # Found again by another cell.
    budget.afford("classifier")
    clock.now = 100.0 + 600 - 70
    budget.afford("classifier")
    clock.now += 1
    with pytest.raises(OutOfTimeError):
        budget.afford("classifier")
    budget.afford("evaluate")
    clock.now = 701.0
    with pytest.raises(OutOfTimeError, match="the 10 minutes were up"):
        budget.afford("label_mixup")
    with pytest.raises(OutOfTimeError, match="the 10 minutes were up"):
        budget.afford("data")
    for name in ("evaluate", "audit", "shortcut", "baseline", "decision_cost", "export"):
        budget.afford(name)  # What was trained is measured.


def test_a_deadline_ends_what_will_not_be_finished(recipe, monkeypatch):
    clock = Clock()
    budget = Budget(recipe("budget.minutes=10", matrix=True), clock=clock)
    deadline = budget.deadline()
    deadline.set_params({"epochs": 10})
    deadline.set_model(keras.Model(name="classifier"))
    monkeypatch.setattr("kood.pipeline.budget.time.monotonic", clock)
    deadline.on_train_begin()
    clock.now += 200  # The first epoch compiles, and tells nothing of the others.
    deadline.on_epoch_end(0)
    clock.now += 40
    deadline.on_epoch_end(1)  # 8 more take 320 s, and 360 are left.
    clock.now += 60
    with pytest.raises(OutOfTimeError, match="classifier: 7 more epochs"):
        deadline.on_epoch_end(2)
    clock.now = 701.0
    with pytest.raises(OutOfTimeError, match="the time is up after 3 of 10 epochs"):
        deadline.on_train_batch_end(0)


@pytest.mark.parametrize(("first", "after", "calls"), [(140.0, 1.0, 53), (140.0, 30.0, 3), (500.0, 1.0, 2)])
def test_the_call_that_compiles_is_no_pace(first, after, calls):
    clock = Clock()
    budget = timing.TimeBudget(192.0, 0.1, clock, since=clock())
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)], name="denoiser")
    model.compile("sgd")
    budget.set_model(model)
    budget.on_train_begin()
    made = 0
    while not budget.over:
        budget.on_train_batch_begin(made)
        clock.now += after if made else first
        budget.on_train_batch_end(made, {"loss": 1.0})
        made += 1
    assert made == calls


def test_a_schedule_that_leaves_images_is_warned_of(recipe):
    for name, steps, left in (("linear", 200, "36%"), ("linear", 500, "8%"), ("linear", 1000, ""), ("cosine", 100, "")):
        stage = Diffusion(recipe(f"diffusion.schedule='{name}'", f"diffusion.num_steps={steps}"), None)
        stage.result = SimpleNamespace(facts={"steps": 5000, "passes": 50.0, "timed": False})
        assert len(stage.warnings) == bool(left)
        assert not left or f"after {steps} steps {left} of an image is left" in stage.warnings[0]


def test_a_diffusion_model_that_had_little_time_is_warned_of(recipe):
    stage = Diffusion(recipe("budget.minutes=10"), None)
    for passes, timed, warned in ((0.03, True, True), (9.9, True, True), (10.0, True, False), (0.03, False, False)):
        stage.result = SimpleNamespace(facts={"steps": 5000, "passes": passes, "timed": timed})
        assert len(stage.warnings) == len(stage.says()) == warned
        assert not warned or f"5000 steps, in which each image was seen {passes:g} times" in stage.warnings[0]
    for minutes, budget, raised in (
        (None, 10, "budget.minutes or budget.diffusion"),
        (1, None, "diffusion.minutes"),
        (1, 10, "diffusion.minutes or budget.minutes or budget.diffusion"),
    ):
        made = recipe(*([] if budget is None else [f"budget.minutes={budget}"]))
        stage = Diffusion(made.changed(diffusion={"minutes": minutes}), None)
        stage.result = SimpleNamespace(facts={"steps": 5000, "passes": 1.0, "timed": True})
        assert f"; raise {raised}, or take a smaller denoiser" in stage.warnings[0]


def test_rates_rise_over_the_warmup_and_follow_what_is_further_on():
    budget = timing.TimeBudget(100.0, 0.4, warmup=0.2)
    assert [budget.rate(share) for share in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.0, 0.2, 0.4, 0.2, 0.0])
    assert timing.TimeBudget(100.0, 0.4).rate(0.0) == 0.4


@pytest.mark.slow
def test_a_matrix_short_of_time_leaves_a_report_of_what_there_is(tmp_path, recipe, monkeypatch):
    recipe(matrix=True)
    done = []
    made = matrix.make_cell

    def late(work):
        if done:
            work.budget.began = -1e9  # From the second cell on the time is up.
        done.append(work)
        return made(work)

    monkeypatch.setattr(matrix, "make_cell", late)
    result = pipeline.run(tmp_path / "short.toml", [*LEAN, "budget.minutes=30"], saved=tmp_path)
    assert [cell["cell"] for cell in result["cells"]] == [{"seed": "0", "outliers": "none"}]
    assert len(result["left_out"]) == 3 and {one["why"] for one in result["left_out"]} == {"the 30 minutes were up"}
    assert result["budget"]["minutes"] == 30
    page = (tmp_path / "short" / "report.html").read_text()
    assert "Cells left out" in page and "seed 1, outliers label_mixup" in page


@pytest.mark.slow
def test_a_matrix_that_is_killed_has_written_its_table(tmp_path, recipe, monkeypatch):
    recipe(matrix=True)
    made, cells = matrix.make_cell, []

    def killed(work):
        cells.append(work)
        if len(cells) == 2:
            raise KeyboardInterrupt
        return made(work)

    monkeypatch.setattr(matrix, "make_cell", killed)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(tmp_path / "short.toml", LEAN, saved=tmp_path)
    left = json.loads((tmp_path / "short" / "report.json").read_bytes())
    assert len(left["cells"]) == len(left["table"]) == 1
    assert [one["why"] for one in left["left_out"]] == ["the run has not come to it"] * 3


@pytest.mark.slow
def test_a_single_run_is_cut_to_its_time_and_taken_up_again(tmp_path, recipe):
    recipe()
    endless = ["diffusion.steps=1000000", "train.epochs=1000000", "outliers.count=2000000"]
    settings = [*LEAN, "budget.minutes=0.2", *endless]
    result = pipeline.run(tmp_path / "short.toml", settings, saved=tmp_path)
    stages = result["stages"]
    assert 1 <= stages["classifier"]["epochs"] < 1000000 and 1 <= stages["diffusion"]["steps"] < 1000000
    assert 8 <= stages["label_mixup"]["kept"] < stages["label_mixup"]["wanted"] == 2000000
    again = pipeline.run(tmp_path / "short.toml", settings, saved=tmp_path)
    assert all(stage["cached"] for stage in again["stages"].values())


@pytest.mark.slow
def test_what_nothing_cut_short_is_taken_by_a_run_with_a_budget(tmp_path, recipe):
    recipe()
    whole = pipeline.run(tmp_path / "short.toml", LEAN, saved=tmp_path)
    short = pipeline.run(tmp_path / "short.toml", [*LEAN, "budget.minutes=5"], saved=tmp_path)
    assert all(stage["cached"] for stage in short["stages"].values())
    assert short["scores"] == whole["scores"]


def test_shares_that_leave_no_time_are_refused(recipe):
    with pytest.raises(UserError, match="budget: diffusion and sampling take 110% of the time"):
        recipe("budget.diffusion=0.6", "budget.sampling=0.5")


def test_the_pace_leaves_the_first_call_out():
    clock = Clock()
    pace = timing.Pace(8, clock)
    assert pace.facts == {}
    clock.now += 50
    for first, last in ((0, 4), (5, 9), (10, 14)):
        pace.on_train_batch_begin(first)
        clock.now += 2
        pace.on_train_batch_end(last, {"loss": 1.0})
        if last == 4:
            pace.on_epoch_end(0)
            assert pace.facts == {}
    pace.on_epoch_end(1)
    assert pace.facts == {"images_per_second": 8 * 10 / 4}
