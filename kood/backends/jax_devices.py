"""Several devices under JAX: one program over a mesh of them, in one process or in several.

`keras.distribution.DataParallel` splits a batch by rows; to the program it stays one batch, so sums, statistics and
random draws are those of the whole. Processes are joined by `jax.distributed`.
"""

import contextlib
import os
from pathlib import Path

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils

__all__ = ["accelerators", "everyone", "fitting", "gather", "inference", "launched", "place", "provide", "total"]

_joined = False


def launched():
    """This process's rank and the number of processes, as the environment says; the first call joins them.

    KERAS_DISTRIBUTION_JOB_ADDRESSES, _NUM_PROCESSES and _PROCESS_ID where they are set; else, with
    JAX_COORDINATOR_ADDRESS, what JAX finds out from the cluster.
    """
    global _joined  # noqa: PLW0603  A process joins once.
    if not _joined and os.environ.get("KERAS_DISTRIBUTION_JOB_ADDRESSES"):
        keras.distribution.initialize()
        _joined = True
    elif not _joined and os.environ.get("JAX_COORDINATOR_ADDRESS"):
        jax.distributed.initialize()
        _joined = True
    return (jax.process_index(), jax.process_count()) if _joined else (0, 1)


def accelerators():
    """How many this process sees."""
    return jax.local_device_count() if jax.default_backend() != "cpu" else 0


def provide(count):
    """Splits the CPU into so many devices; False where JAX already runs on it as it is."""
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):  # JAX refuses both ways at once.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", count)
    return jax.device_count("cpu") >= count


def _over(devices):
    if len(devices) == 1:
        return contextlib.nullcontext()
    names = [f"{device.platform}:{device.id}" for device in devices]
    return keras.distribution.DataParallel(devices=names, auto_shard_dataset=False).scope()


def keep_programs():
    """Lets JAX keep what it compiles for an accelerator in a folder of the user, so that no run compiles it again.

    Where JAX_COMPILATION_CACHE_DIR or the program that kood is part of names a folder, it stays; one that cannot be
    written is done without. Not on a CPU: JAX would load a program of one processor on another that lacks its
    instructions, and kood's compile about as fast as they load.
    """
    if not accelerators() or jax.config.values.get("jax_compilation_cache_dir"):
        return
    above = os.environ.get("XDG_CACHE_HOME", "")
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: a user without a home.
        folder = (Path(above) if Path(above).is_absolute() else Path.home() / ".cache") / "kood" / "jax"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            jax.config.update("jax_compilation_cache_dir", str(folder))


def fitting(count, processes):
    """A context in which models are made and fitted over all devices."""
    keep_programs()
    return _over(jax.devices()[:count])


def inference(count):
    """A context in which models are made whose forward pass splits over devices of this process."""
    keep_programs()
    return _over(jax.local_devices()[:count])


def place():
    """To the program there is one batch, wherever its rows lie."""
    return 0, 1


def total(values):
    """The values: the program's sums are of the whole batch."""
    return values


def everyone(rows):
    """The rows: the program has all of them."""
    return rows


def gather(array):
    """An array of every process, stacked."""
    return np.asarray(multihost_utils.process_allgather(array))
