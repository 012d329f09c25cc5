"""`precision = "auto"`: the faster arithmetic is taken, written down, and kept over a restart."""

import json

import keras
import pytest

from kood import recipe, training
from kood.pipeline import diffusion
from kood.pipeline.precision import faster, seconds_of_a_step
from tests.conftest import Cell

pytestmark = pytest.mark.usefixtures("as_written")


@pytest.mark.parametrize(
    ("float32", "bfloat16", "expected"),
    [(1.0, 10.0, "float32"), (1.0, 0.6, "mixed_bfloat16"), (0.5, 0.5, "float32"), (9.0, None, "float32")],
)
def test_the_faster_is_taken_and_written_down(tmp_path, float32, bfloat16, expected):
    asked = []

    def measure(name):
        asked.append(name)
        if name == "mixed_bfloat16" and bfloat16 is None:
            raise NotImplementedError("no such arithmetic here")
        return {"float32": float32, "mixed_bfloat16": bfloat16}[name]

    found = faster(measure, tmp_path)
    assert found == {"precision": expected, "step_seconds": {"float32": float32, "mixed_bfloat16": bfloat16}}
    assert json.loads((tmp_path / "precision.json").read_bytes()) == found
    assert faster(measure, tmp_path) == found
    assert asked == ["float32", "mixed_bfloat16"]  # Once each: the second call read the file.


@pytest.mark.parametrize("content", ["", "{", "[]", '{"precision": "float8"}', "null"])
def test_a_damaged_note_is_measured_again(tmp_path, content):
    (tmp_path / "precision.json").write_text(content)
    assert faster({"float32": 2.0, "mixed_bfloat16": 1.0}.__getitem__, tmp_path)["precision"] == "mixed_bfloat16"


def test_what_fails_in_float32_fails(tmp_path):
    def measure(name):
        raise ValueError(name)

    with pytest.raises(ValueError, match="float32"):
        faster(measure, tmp_path)
    assert not list(tmp_path.iterdir())


class Killed(BaseException):
    pass


def cell_on(tiny, folder):
    settings = recipe.load(tiny, ["diffusion.precision=auto"])
    return Cell(settings, folder, quiet=True)


def test_a_resumed_run_keeps_the_precision_it_began_with(tiny, tmp_path, monkeypatch):
    seconds = {"float32": 2.0, "mixed_bfloat16": 1.0}
    measured = []

    def measure(model, batches):
        name = model.network.dtype_policy.name
        measured.append((name, len(list(batches))))
        return seconds[name]

    def killed(*_, **__):
        raise Killed

    monkeypatch.setattr(diffusion, "seconds_of_a_step", measure)
    cell = cell_on(tiny, tmp_path)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(training, "fit", killed)
        cell.make("diffusion")
    assert measured == [("float32", 4), ("mixed_bfloat16", 4)]
    seconds["float32"] = 0.5
    stage = cell.make("diffusion")
    assert len(measured) == 2
    assert stage.facts["precision"] == "mixed_bfloat16"
    assert stage.facts["step_seconds"] == {"float32": 2.0, "mixed_bfloat16": 1.0}
    assert stage.facts["steps"] == 20
    model = keras.saving.load_model(stage.folder / "denoiser.keras", compile=False)
    assert model.network.get_layer("block0_dense0").compute_dtype == "bfloat16"


def test_a_step_is_timed_without_the_first(tiny, tmp_path, monkeypatch):
    """On a clock that runs only while a step is under way: the first takes 100 seconds, the others 3, 2 and 4."""
    now, lengths = [0.0], iter([100.0, 3.0, 2.0, 4.0])
    reads = [0]

    def clock():
        reads[0] += 1
        if reads[0] % 2 == 0:
            now[0] += next(lengths)
        return now[0]

    import kood.pipeline.precision as room

    monkeypatch.setattr(room.time, "perf_counter", clock)

    class Counts(keras.callbacks.Callback):
        pass

    class Model:
        def fit(self, batches, *, steps_per_epoch, callbacks, **_):
            for i in range(steps_per_epoch):
                callbacks[0].on_train_batch_begin(i)
                callbacks[0].on_train_batch_end(i, {"loss": 0.1})

    assert seconds_of_a_step(Model(), None) == 2.0


@pytest.mark.keras
def test_processes_that_train_together_take_the_precision_of_the_first(tmp_path, monkeypatch):
    import numpy as np

    from kood.backends import Devices, devices

    # The second of two, where bfloat16 came out slower.
    monkeypatch.setitem(devices._now, "fitting", Devices(2, 1, 2))
    monkeypatch.setattr(devices._here, "gather", lambda mine: np.stack([np.ones_like(mine), mine]))
    found = faster({"float32": 1.0, "mixed_bfloat16": 2.0}.get, tmp_path)
    assert found["precision"] == "mixed_bfloat16"
