"""Several devices under TensorFlow: one replica of the model a device, in one process or in several.

`tf.distribute.MirroredStrategy` within a process; `MultiWorkerMirroredStrategy` over the processes that TF_CONFIG
names.
"""

import contextlib
import functools
import json
import os
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = [
    "accelerators", "everyone", "fitting", "gather", "inference", "launched", "pieces", "place", "placed",
    "provide", "total",
]  # fmt: skip

_workers: tf.distribute.Strategy | None = None


def launched():
    """This process's rank and the number of processes, as TF_CONFIG says; the first call joins them."""
    global _workers  # noqa: PLW0603  TensorFlow allows one such strategy a process.
    cluster = json.loads(os.environ.get("TF_CONFIG") or "{}")
    named = [
        (kind, number)
        for kind in ("chief", "worker")
        for number in range(len(cluster.get("cluster", {}).get(kind, [])))
    ]
    if len(named) < 2:
        return 0, 1
    if _workers is None:
        _workers = tf.distribute.MultiWorkerMirroredStrategy()
    return named.index((cluster["task"]["type"], int(cluster["task"]["index"]))), len(named)


def accelerators():
    """How many this process sees."""
    return len(tf.config.list_logical_devices("GPU"))


def provide(count):
    """Splits the CPU into so many devices; False where TensorFlow already runs on it as it is."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:
        return len(tf.config.list_logical_devices("CPU")) >= count
    return True


@functools.cache  # Two strategies over the same devices would number their collective operations alike.
def _local(count):
    """A strategy over devices of this process alone; None where it would be one."""
    if count == 1:
        return None
    kind = "GPU" if accelerators() else "CPU"
    return tf.distribute.MirroredStrategy([device.name for device in tf.config.list_logical_devices(kind)[:count]])


def _scope(strategy):
    return strategy.scope() if strategy is not None else contextlib.nullcontext()


def fitting(count, processes):
    """A context in which models are made and fitted over all devices."""
    return _scope(_workers if processes > 1 else _local(count))


def inference(count):
    """A context in which models are made whose forward pass splits over devices of this process."""
    return _scope(_local(count))


def _replica():
    """The replica whose step is traced; None where there is but one, or none is traced."""
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return None
    return tf.distribute.get_replica_context()


def place():
    """Which replica this is, and how many there are."""
    replica = _replica()
    return (0, 1) if replica is None else (replica.replica_id_in_sync_group, replica.num_replicas_in_sync)


def total(values):
    """Sum over the replicas; gradients flow through it."""
    return values if _replica() is None else _total(values)


@tf.custom_gradient
def _total(values):
    return _summed(values), _summed


def _summed(values):
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def placed():
    """A context that says where a worker with one device computes, which its collective operations ask a tensor."""
    strategy: Any = tf.distribute.get_strategy()
    devices = strategy.extended.worker_devices if tf.distribute.has_strategy() else []
    return tf.device(devices[0]) if len(devices) == 1 else contextlib.nullcontext()


def summed_up(tensors):
    """Sums of many tensors over the replicas; None stays None."""
    if _replica() is None:
        return tensors
    sums = iter(_summed([tensor for tensor in tensors if tensor is not None]))
    return [None if tensor is None else next(sums) for tensor in tensors]


def everyone(rows):
    """The rows of all replicas, one after another."""
    replica = _replica()
    # A copy, since a batch's own rows may have no place (see `placed`).
    return rows if replica is None else replica.all_gather(tf.identity(rows), axis=0)


def pieces(weight):
    """What an optimizer's `update_step` may be given for a weight: TensorFlow's variable, or that of a replica."""
    return weight.value, *tf.distribute.get_strategy().experimental_local_results(weight.value)


def gather(array):
    """An array of every process, stacked."""
    return np.asarray(_gathered(tf.constant(array)))


@tf.function
def _gathered(array):
    strategy: Any = _workers

    def rows():
        with placed():
            return tf.distribute.get_replica_context().all_gather(tf.identity(array[None]), axis=0)

    stacked = strategy.run(rows)
    first = strategy.experimental_local_results(stacked)[0]
    return first[:: strategy.num_replicas_in_sync // launched()[1]]
