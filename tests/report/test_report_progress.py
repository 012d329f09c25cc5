"""Progress: sparse lines in a pipe, a bar in a terminal."""

import math
import re

import numpy as np
import pytest

from kood.report import StageProgress, fit_callback


def run(total, updates, terms=None, **options):
    def show(console):
        with StageProgress(console).bar("classifier", total=total, **options) as stage:
            for completed in updates:
                stage.update(completed, terms or {"loss": 0.123456})

    return show


@pytest.mark.parametrize("total", [1, 2, 7, 8, 10, 30, 1000, 100_000])
def test_a_pipe_gets_about_ten_lines_first_and_last_among_them(capture, total):
    lines = capture(run(total, range(1, total + 1))).splitlines()
    assert len(lines) <= 10
    assert len(lines) >= min(total, 8) + 1
    assert lines[0] == f"classifier: started, {total} epoch{'s' if total > 1 else ''}"
    assert lines[1].startswith(f"classifier: epoch 1/{total}")
    assert lines[-2] == f"classifier: epoch {total}/{total}  loss 0.1235"
    assert re.fullmatch(r"classifier: done in \d+\.\d s  loss 0\.1235", lines[-1])


def test_within_an_epoch_a_pipe_stays_silent(capture):
    lines = capture(run(2, [0.25, 0.5, 0.75])).splitlines()
    assert len(lines) == 2


def test_without_a_total_lines_thin_out(capture):
    lines = capture(run(None, range(1, 100_000))).splitlines()
    assert [int(n) for line in lines if (n := re.sub(r"\D", "", line.split("  ")[0])) and "epoch" in line] == [
        1, 2, 4, 8, 16, 32, 64, 128,
    ]  # fmt: skip


def test_a_budget_in_time_has_the_rest_of_it_left(capture):
    # Compilation before the first second would make the pace of a training in minutes absurd.
    lines = capture(run(1500, [1], unit="second", pace=1.0)).splitlines()
    assert lines[1].startswith("classifier: second 1/1500, 24 min 59 s left")


def test_units(capture):
    def show(console):
        with StageProgress(console).bar("outliers", total=4, unit="image") as stage:
            stage.update(4)

    lines = capture(show).splitlines()
    assert lines[0] == "outliers: started, 4 images"
    assert re.fullmatch(r"outliers: done in \d+\.\d s", lines[-1])


def test_cached(capture):
    text = capture(lambda console: StageProgress(console).cached("diffusion", "[red]saved[/red]/digits"))
    assert text == "diffusion: already there, not run again  [red]saved[/red]/digits\n"


def test_no_name_in_a_line_speaks_to_the_terminal(capture):
    def show(console):
        StageProgress(console).say("data.id: 1 files cannot be read: /x/\x1b]0;t\x07\x1b[2J.png", style="yellow")

    told = capture(show, force_terminal=True, color_system=None, width=100)
    assert told == "data.id: 1 files cannot be read: /x/\\x1b]0;t\\x07\\x1b[2J.png\n"


def test_long_lines_are_not_broken(capture):
    terms = {f"a_rather_long_term_{i}": 1 / 3 for i in range(12)}
    lines = capture(run(2, [1, 2], terms)).splitlines()
    assert len(lines) == 4
    assert all("a_rather_long_term_11 0.3333" in line for line in lines[1:])


def test_a_failure_is_told_and_passed_on(capture):
    def show(console):
        with pytest.raises(RuntimeError, match="boom"), StageProgress(console).bar("classifier", total=3) as stage:
            stage.update(1.5)
            raise RuntimeError("boom")

    lines = capture(show).splitlines()
    assert re.fullmatch(r"classifier: failed after \d\.\d s at epoch 2/3", lines[-1])
    assert not any("done" in line for line in lines)


def test_an_interrupt_is_told_and_the_terminal_given_back(capture):
    def show(console):
        with pytest.raises(KeyboardInterrupt), StageProgress(console).bar("classifier", total=3):
            raise KeyboardInterrupt

    assert "classifier: stopped after" in capture(show)
    text = capture(show, force_terminal=True)
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1


def test_a_terminal_gets_a_bar_and_one_line_that_stays(capture):
    def show(console):
        progress = StageProgress(console)
        with progress.bar("[red]stage[/red]", total=30) as stage:
            stage.update(2.5, {"loss": math.nan, "\x1b[31mterm": 1.0})
            progress.live.refresh()
        with progress.bar("second") as stage:
            stage.update(1)

    text = capture(show, force_terminal=True, color_system=None, width=100)
    assert "epoch 3/30" in text
    assert "loss nan" in text
    assert r"\x1b[31mterm 1" in text
    assert "\x1b[31m" not in text
    assert "[red]stage[/red]: done in" in text
    assert "second: done in" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 2


def test_stages_may_nest(capture):
    def show(console):
        progress = StageProgress(console)
        with progress.bar("matrix", total=2, unit="cell") as outer:
            with progress.bar("classifier", total=3) as inner:
                inner.update(3)
            outer.update(1)

    for options in ({}, {"force_terminal": True}):
        text = capture(show, **options)
        assert text.index("classifier: done") < text.index("matrix: done")


def test_terms_of_any_kind(capture):
    lines = capture(run(1, [1], {"np": np.float32(0.5), "int": 3, "text": "[b]", "none": None})).splitlines()
    assert lines[-1].endswith("np 0.5  int 3  text [b]  none None")


class Recorder:
    def __init__(self):
        self.updates = []

    def update(self, completed, terms=None):
        self.updates.append((completed, dict(terms or {})))


@pytest.mark.keras
@pytest.mark.parametrize("every", [0.0, 1e9])
def test_fit_callback(every):
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    recorder = Recorder()
    x = np.zeros((8, 2), "float32")
    callbacks = [fit_callback(recorder, every=every)]
    history = model.fit(x, x[:, :1], batch_size=2, epochs=2, verbose=0, validation_split=0.25, callbacks=callbacks)
    completed = [completed for completed, _ in recorder.updates]
    if every:
        assert completed == [1, 2]
    else:
        assert completed == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    last = recorder.updates[-1][1]
    assert last["loss"] == pytest.approx(history.history["loss"][-1])
    assert set(last) == {"loss", "val_loss"}
