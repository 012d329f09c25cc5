"""What a training writes down, and what a report says of where it ran."""

import csv
import hashlib
import subprocess

import keras
import numpy as np
import pytest

from kood import training
from kood.pipeline.environment import environment, origin_of
from kood.training.tracking import EpochLog
from tests.interrupted import KillAfter, Killed

pytestmark = pytest.mark.backend  # Run once under each Keras backend.


def model(rate=0.1):
    keras.utils.set_random_seed(0)
    made = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    made.compile(optimizer=training.optimizer(8, learning_rate=rate), loss="mse")
    return made


def fit(folder, epochs=4, interval=0.0, callback=None, **options):
    import tensorflow as tf

    data = tf.data.Dataset.from_tensors((np.ones((4, 2), "float32"), np.ones((4, 1), "float32"))).repeat()
    folder.mkdir(exist_ok=True)
    return training.fit(
        model(), lambda _: data, epochs=epochs, steps_per_epoch=2, folder=folder, interval=interval,
        callbacks=[callback], log=folder / "history.csv", **options,
    )  # fmt: skip


def rows(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_every_epoch_is_a_line(tmp_path):
    _, history = fit(tmp_path)
    found = rows(tmp_path / "history.csv")
    assert [row["epoch"] for row in found] == ["1", "2", "3", "4"]
    assert list(found[0]) == ["epoch", "seconds", "learning_rate", "loss"]
    np.testing.assert_allclose([float(row["loss"]) for row in found], history["loss"])
    # Along a half cosine over 8 steps, after 2, 4, 6 and 8 of them.
    expected = 0.05 * (1 + np.cos(np.pi * np.array([2, 4, 6, 8]) / 8))
    np.testing.assert_allclose([float(row["learning_rate"]) for row in found], expected, atol=1e-6)
    assert all(0 <= float(row["seconds"]) < 60 for row in found)


@pytest.mark.parametrize("interval", [0.0, 1e9])
def test_a_resumed_training_has_each_epoch_once(tmp_path, interval):
    whole = fit(tmp_path / "whole")[1]
    with pytest.raises(Killed):
        fit(tmp_path / "cut", interval=interval, callback=KillAfter(2))
    assert len(rows(tmp_path / "cut" / "history.csv")) >= 2
    with (tmp_path / "cut" / "history.csv").open("a") as out:
        out.write("4,0.1")  # Killed in the middle of a line.
    fit(tmp_path / "cut", interval=interval)
    found = rows(tmp_path / "cut" / "history.csv")
    assert [row["epoch"] for row in found] == ["1", "2", "3", "4"]
    np.testing.assert_allclose([float(row["loss"]) for row in found], whole["loss"], rtol=1e-6)


def test_a_line_cut_short_is_not_kept(tmp_path):
    file = tmp_path / "history.csv"
    file.write_text("epoch,seconds,learning_rate,loss\n1,0.1,0.1,2.0\n2,0.1\n")
    EpochLog(file, first=2).on_train_begin()
    assert file.read_text() == "epoch,seconds,learning_rate,loss\n1,0.1,0.1,2.0\n"


def test_a_kill_as_a_training_goes_on_leaves_the_lines_of_before(tmp_path, monkeypatch):
    file = tmp_path / "history.csv"
    file.write_text("epoch,loss\n1,2.0\n2,1.0\n")

    class Dying:
        def writerows(self, rows):
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(csv, "writer", lambda _: Dying())
        EpochLog(file, first=2).on_train_begin()
    assert [row["epoch"] for row in rows(file)] == ["1", "2"]


def events(folder):
    import tensorflow as tf
    from tensorflow.core.util import event_pb2

    files = sorted(folder.iterdir(), key=lambda file: int(file.name.split(".")[3]))
    return [[event_pb2.Event.FromString(r.numpy()) for r in tf.data.TFRecordDataset(str(file))] for file in files]


def test_event_files_have_the_same_figures(tmp_path):
    _, history = fit(tmp_path, board=tmp_path / "board")
    ((version, begun, *epochs),) = events(tmp_path / "board")
    assert begun.session_log.status == begun.session_log.START and begun.step == 1  # Takes back what was here before.
    assert version.file_version == "brain.Event:2" and [event.step for event in epochs] == [1, 2, 3, 4]
    told = [{value.tag: value.simple_value for value in event.summary.value} for event in epochs]
    assert set(told[0]) == {"loss", "learning_rate", "seconds"}
    np.testing.assert_allclose([one["loss"] for one in told], history["loss"], rtol=1e-6)


def test_a_resumed_training_takes_back_the_epochs_it_makes_again(tmp_path):
    with pytest.raises(Killed):
        fit(tmp_path, callback=KillAfter(1), board=tmp_path / "board")
    fit(tmp_path, board=tmp_path / "board")
    first, second = events(tmp_path / "board")
    assert [event.step for event in first[2:]] == [1, 2]
    begun = second[1]
    assert begun.session_log.status == begun.session_log.START and begun.step == 3
    assert [event.step for event in second[2:]] == [3, 4]


def test_the_environment_names_what_decides_the_figures():
    found = environment()
    assert {"python", "keras", "tensorflow", "numpy", "scikit-learn", "kood", "backend", "device", "processor"} <= set(
        found
    )
    assert found["backend"] == keras.backend.backend() in found and found["keras"] == keras.__version__
    assert all(isinstance(value, str) and value for value in found.values())


def git(folder, *arguments):
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def test_the_origin_of_a_run(tmp_path):
    recipe = tmp_path / "a.toml"
    recipe.write_bytes(b"seed = 1\n")
    found = origin_of(recipe, ["seed=2", "train.epochs=3"])
    assert found["recipe_sha256"] == hashlib.sha256(b"seed = 1\n").hexdigest()
    assert found["overrides"] == "seed=2 train.epochs=3" and found["started"].endswith("+00:00")
    assert "overrides" not in origin_of(recipe)


def test_the_revision_of_the_recipes_repository(tmp_path):
    recipe = tmp_path / "a.toml"
    recipe.write_text("seed = 1\n")
    git(tmp_path, "init", "-q")
    assert "git" not in origin_of(recipe)  # No commit yet.
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "x")
    head = subprocess.run(["git", "-C", tmp_path, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert origin_of(recipe)["git"] == head.stdout.strip()
    recipe.write_text("seed = 2\n")
    assert origin_of(recipe)["git"] == head.stdout.strip() + " with changes"
    # A stranger's repository names a program to run at every status.
    hook = tmp_path / "hook.sh"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    git(tmp_path, "config", "core.fsmonitor", str(hook))
    assert "with changes" in origin_of(recipe)["git"] and not (tmp_path / "ran").exists()


def test_no_git_is_no_failure(tmp_path, monkeypatch):
    recipe = tmp_path / "a.toml"
    recipe.write_text("")
    monkeypatch.setenv("PATH", "")
    assert "git" not in origin_of(recipe)
