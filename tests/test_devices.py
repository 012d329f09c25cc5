"""Several devices give the numbers of one; a training goes on under another backend.

Processes speak over loopback only, end within a time limit, and are killed where they do not.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest

from kood import backends
from kood.errors import UserError
from kood.pipeline.checks import check_batches
from kood.recipe import load
from tests import training_probe
from tests.conftest import LEAN, XLA_FLAGS
from tests.training_probe import MODELS

ROOT = Path(__file__).parents[1]
BACKENDS = ["tensorflow", "jax", "torch"]
PATIENCE = 900.0


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environments(backend, processes):
    """The variables of each process, as the backend's own launcher sets them."""
    address = f"127.0.0.1:{free_port()}"
    if processes == 1:
        return [{}]
    match backend:
        case "jax":
            each = [{"KERAS_DISTRIBUTION_PROCESS_ID": str(rank)} for rank in range(processes)]
            same = {
                "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
                "KERAS_DISTRIBUTION_NUM_PROCESSES": str(processes),
                "JAX_COORDINATOR_BIND_ADDRESS": address,
            }
        case "torch":
            host, port = address.split(":")
            each = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
            same = {"WORLD_SIZE": str(processes), "MASTER_ADDR": host, "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
        case _:
            cluster = {"worker": [f"127.0.0.1:{free_port()}" for _ in range(processes)]}
            tasks = [{"type": "worker", "index": rank} for rank in range(processes)]
            each = [{"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})} for task in tasks]
            same = {}
    return [{**same, **mine} for mine in each]


def launch(backend, arguments, processes=1, code=0):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed: pip install 'kood[{backend}]'")
    started = [
        subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env={**os.environ, "XLA_FLAGS": XLA_FLAGS, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT), **mine},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        for mine in environments(backend, processes)
    ]
    try:
        end = time.monotonic() + PATIENCE
        said = [process.communicate(timeout=max(1.0, end - time.monotonic()))[0] for process in started]
    finally:
        for process in started:
            process.kill()  # SIGTERM is caught under jax.distributed.
            process.wait()
    assert [process.returncode for process in started] == [code] * processes, "\n".join(said)[-3000:]
    return said


RESUMED = ("ArcFace", "denoiser")


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A folder of what each backend has made, once, in one process of its own.

    TensorFlow makes `start` and stops trainings half-way in `stopped`; the others resume copies of these. Each writes
    the numbers of one device to `BACKEND-0.npz` and, where one process can have two, of these to `BACKEND-two-0.npz`.
    """
    folder, made = tmp_path_factory.mktemp("probed"), set()
    start, stopped = folder / "start", folder / "stopped"
    start.mkdir()

    def probe(backend):
        if backend in made:
            return folder
        commands = [("train", 1, folder / backend, start, *MODELS)]
        if backend != "torch":
            commands.append(("train", 2, folder / f"{backend}-two", start, *MODELS))
        if backend == "tensorflow":
            commands = [("make", start), *commands, ("stop", stopped, start, *RESUMED)]
        else:
            probe("tensorflow")
            shutil.copytree(stopped, folder / f"resumed-{backend}")
            commands.append(("resume", folder / f"resumed-{backend}", start, *RESUMED))
        words = [str(word) for command in commands for word in (*command, "+")]
        launch(backend, ["tests.training_probe", *words])
        made.add(backend)
        return folder

    return probe


def read(path):
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "processes", "models"),
    # In two processes the same programs run as in one, where a backend has both.
    [("tensorflow", 1, MODELS), ("jax", 1, MODELS), ("torch", 2, MODELS),
     ("tensorflow", 2, ("AdaFace",)), ("jax", 2, ("AdaFace",))],
)  # fmt: skip
def test_two_devices_give_the_numbers_of_one(probed, tmp_path, backend, processes, models):
    folder = probed(backend)
    one = read(folder / f"{backend}-0.npz")
    expected = {key: value for key, value in one.items() if key.split("/")[0] in {*models, "sample"}}
    if processes == 1:
        ranks = [read(folder / f"{backend}-two-0.npz")]
    else:
        command = ["train", "2", str(tmp_path / "out"), str(folder / "start"), *models]
        launch(backend, ["tests.training_probe", *command], processes)
        ranks = [read(tmp_path / f"out-{rank}.npz") for rank in range(processes)]
    kinds = {key.split("/")[0] for key in expected}
    assert kinds == {*models, "sample"} and len(expected) > 15 * len(models)
    for found in ranks:
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            # Sums in another order, over two steps.
            np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-5, err_msg=key)
            np.testing.assert_array_equal(found[key], ranks[0][key], err_msg=key)
    # The sampler's images are images, and different ones.
    assert expected["sample"].std(axis=0).mean() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_stopped_training_goes_on_under_another_backend(probed, tmp_path, backend):
    made = probed(backend)
    folder = made / f"resumed-{backend}"
    for name in RESUMED:
        found = json.loads((folder / f"{name}.json").read_bytes())
        whole = json.loads((made / "stopped" / "whole" / f"{name}.json").read_bytes())
        assert found["backends"] == ["tensorflow", backend] and not found["cached"]
        history, expected = found["history"]["loss"], whole["history"]["loss"]
        assert (
            history[:2] == expected[:2] and len(history) == len(expected) == 4
        )  # The first two are not trained again.
        numbers = read(Path(found["folder"]) / "numbers.npz")
        reference = read(Path(whole["folder"]) / "numbers.npz")
        assert numbers["iterations"] == reference["iterations"] == 8
        if name == "denoiser":  # Noise is each backend's own, but the count of draws goes on.
            np.testing.assert_array_equal(numbers["seed"], reference["seed"])
            np.testing.assert_allclose(history[2:], expected[2:], rtol=0.5)
        else:  # Nothing is drawn, so the numbers are those of one backend within rounding.
            np.testing.assert_allclose(history, expected, rtol=1e-4)
            for key, value in reference.items():
                np.testing.assert_allclose(numbers[key], value, rtol=1e-3, atol=2e-4, err_msg=key)
    # And the first finds the whole stages.
    shutil.copytree(folder, tmp_path / "copy")
    command = ["resume", str(tmp_path / "copy"), str(made / "start"), *RESUMED]
    if keras.backend.backend() == "tensorflow":
        training_probe.main([command])
    else:
        launch("tensorflow", ["tests.training_probe", *command])
    for name in RESUMED:
        again = json.loads((tmp_path / "copy" / f"{name}.json").read_bytes())
        assert again["cached"] and again["backends"] == ["tensorflow", backend]


@pytest.mark.slow
def test_a_recipe_on_two_devices_of_tensorflow_gives_the_figures_of_one(tiny, tmp_path):
    """With steps of an epoch that divide, of which one device makes many in a call."""
    settings = [*LEAN, "--set", "train.batch_size=32", "--set", 'evaluate.scores=["msp","mahalanobis"]']
    made = []
    for devices in (1, 2):
        arguments = ["kood", "run", str(tiny), *settings, "--set", f"train.devices={devices}"]
        launch("tensorflow", [*arguments, "--saved", str(tmp_path / str(devices))])
        made.append(json.loads((tmp_path / str(devices) / "tiny" / "report.json").read_bytes()))
    one, two = ([report["scores"][name]["far"]["auroc"] for name in ("msp", "mahalanobis")] for report in made)
    np.testing.assert_allclose(one, two, atol=1e-3)
    assert made[0]["id"]["accuracy"] == pytest.approx(made[1]["id"]["accuracy"], abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_two_processes_run_a_recipe_as_one_does(tiny, tmp_path, backend):
    few = 'evaluate.scores=["msp","mahalanobis"]'  # Of logits, and fitted to features.
    settings = [*LEAN, "--set", 'outliers.use=["label_mixup"]', "--set", "data.id.per_class=16", "--set", few]
    reports = {}
    # Under JAX that it ends and leaves one model; that numbers are the same stands above.
    for processes in (1, 2) if backend == "torch" else (2,):
        arguments = ["kood", "run", str(tiny), *settings, "--saved", str(tmp_path / str(processes))]
        said = launch(backend, arguments, processes)
        assert "Report:" in said[0]
        folder = tmp_path / str(processes) / "tiny"
        reports[processes] = json.loads((folder / "report.json").read_bytes())
        assert sorted(p.name for p in folder.iterdir() if p.name.isdecimal()) == ["1"]
        assert not (folder / ".team").exists() and not list(folder.glob("stages/*.partial"))
    assert "Report:" not in said[1] and "classifier" not in said[1]
    assert {stage["backend"] for stage in reports[2]["stages"].values()} == {backend}
    if backend == "jax":
        return
    assert reports[2]["stages"].keys() == reports[1]["stages"].keys()
    made = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes) / "tiny" / "stages"
        made[processes] = [next(folder.glob(f"{name}-*")) for name in ("diffusion", "label_mixup")]
    # How many devices there were is no part of what a stage is.
    assert [stage.name for stage in made[1]] == [stage.name for stage in made[2]]
    (first, images), (second, others) = made[1], made[2]
    losses = [json.loads((s / "stage.json").read_bytes())["facts"]["history"]["loss"] for s in (first, second)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    levels = np.abs(np.load(images / "outliers.images.npy").astype(int) - np.load(others / "outliers.images.npy"))
    assert levels.mean() < 0.05 and levels.max() <= 2  # Of 256.
    # Nothing is made a second time.
    launch(backend, arguments, 2)
    again = json.loads((tmp_path / "2" / "tiny" / "report.json").read_bytes())
    assert all(stage["cached"] for stage in again["stages"].values())


@pytest.mark.slow
def test_processes_that_train_for_a_time_train_by_one_clock(tiny, tmp_path):
    command = ["tests.training_probe", "timed", str(tmp_path / "out"), str(tiny), "diffusion={minutes=0.03}"]
    # A process that leaves while it is joined to the others may be aborted by the threads that join it.
    said = launch("torch", command, 2)
    assert ["joined at the end: False" in one for one in said] == [True, True], said
    first, second = (read(tmp_path / f"out-{rank}.npz") for rank in range(2))
    assert first.keys() == second.keys() and len(first) > 5
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key], err_msg=key)


@pytest.mark.backend
def test_one_device_without_accelerators_unless_asked():
    assert backends.obtain("auto") == backends.obtain(1) == backends.Devices(1, 0, 1)


@pytest.mark.backend
def test_more_devices_than_there_are_is_one_message():
    many = 10_000
    with pytest.raises(UserError, match=r"train\.devices = 10000: ") as caught:
        backends.obtain(many)
    assert caught.value.exit_code == 2
    if keras.backend.backend() == "torch":
        assert "torchrun --nproc-per-node 10000 -m kood run" in str(caught.value)
    else:
        assert f"the CPU has {len(os.sched_getaffinity(0))} cores" in str(caught.value)


@pytest.mark.backend
def test_on_one_device_nothing_is_changed():
    values = keras.ops.ones((4, 2))
    assert all(f(values) is values for f in (backends.total, backends.everyone, backends.mine, backends.share))
    assert backends.whole(4) == 4 and backends.agreed(3) == 3 and backends.feed(values) is values


def test_batches_that_do_not_divide_are_one_message(tiny):
    recipe = load(tiny)
    check_batches(recipe, 2)
    with pytest.raises(UserError, match=r"train\.batch_size = 16 and outliers\.per_batch = 16: 3 devices.*32 rows"):
        check_batches(recipe, 3)
    with pytest.raises(UserError, match=r"diffusion\.batch_size = 32: 3 devices.*multiple of 3"):
        check_batches(load(tiny, ["train.batch_size=20"]), 3)
    turning = ["train.auxiliary=rotation", "train.batch_size=15", "outliers.per_batch=15"]
    check_batches(load(tiny, turning[1:]), 2)
    with pytest.raises(UserError, match=r"train\.batch_size = 15: 2 devices cannot share 15 rows"):
        check_batches(load(tiny, turning), 2)
    alone = load(tiny, ["outliers.use=[]", "train.batch_size=9"])
    check_batches(alone, 3)
    with pytest.raises(UserError, match=r"train\.batch_size = 9: 2 devices"):
        check_batches(alone, 2)


def test_the_number_of_devices_is_a_number_or_auto(tiny):
    assert load(tiny).train.devices == "auto" and load(tiny, ["train.devices=2"]).train.devices == 2
    for wrong in ("0", "-1", "1.5", '"all"', "true"):
        with pytest.raises(UserError, match="devices"):
            load(tiny, [f"train.devices={wrong}"])
