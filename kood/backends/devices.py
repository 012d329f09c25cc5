"""One training over several devices: data parallel, with the numbers of one device.

A batch is what the recipe says, however many devices share it: each takes an equal run of its rows. Where the backend
runs one replica of the step for each device (tensorflow, torch), the step and the losses speak of the whole batch
through the functions below; under jax, where one program spans the devices, and on one device, each of them gives back
what it was given.

    total(x)        the sum of x over the replicas
    share(mean)     a mean over equal runs of rows, as this replica's share of the whole batch's mean
    whole(rows)     how many rows the whole batch has, if a replica has so many
    mine(drawn)     this replica's rows of something drawn for the whole batch
    everyone(rows)  the rows of all replicas

Loss terms are shares: their sum over the replicas is the term, and the sum of the replicas' gradients its gradient.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from kood.errors import UserError
from kood.machine import cores

__all__ = [
    "Devices", "accelerated", "agreed", "compiled", "everyone", "exactly", "feed", "generators", "gradient", "mine",
    "obtain", "pieces", "set_generators", "several", "share", "total", "whole",
]  # fmt: skip

_here = import_module(f"kood.backends.{keras.backend.backend()}_devices")

everyone, total = _here.everyone, _here.total


@dataclass(frozen=True)
class Devices:
    """The devices of a run.

    Attributes:
        count: How many, over all processes.
        rank: Number of this process.
        processes: How many processes there are.
    """

    count: int = 1
    rank: int = 0
    processes: int = 1

    @contextlib.contextmanager
    def fitting(self) -> Iterator[None]:
        """Models made inside the block are fitted over all devices; every process must enter it."""
        with _here.fitting(self.count, self.processes), _running("fitting", self):
            yield

    def foreseen(self) -> contextlib.AbstractContextManager[None]:
        """Models made inside the block are of the layers that they have inside `fitting`, and are not fitted."""
        return _running("fitting", self)

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """`compiled` passes of models made inside the block split their rows; every process must give the same rows."""
        with _here.inference(self.count // self.processes), _running("inference", self):
            yield

    def wait(self) -> None:
        """Returns when every process has called it."""
        if self.processes > 1:
            _here.gather(np.zeros(1, "int32"))


#: The devices of the block that runs, for each kind of block.
_now = {"fitting": Devices(), "inference": Devices()}


@contextlib.contextmanager
def _running(what: str, devices: Devices) -> Iterator[None]:
    before, _now[what] = _now[what], devices
    try:
        yield
    finally:
        _now[what] = before


def obtain(wanted: Literal["auto"] | int, *, most: int = 1) -> Devices:
    """Joins the processes that were launched, and finds the devices.

    To be called before the backend computes anything: afterwards a CPU cannot be split into devices any more.

    Args:
        wanted: "auto" for all accelerators, or one device where there is none; or how many over all processes.
        most: The largest number that this process will ever ask for.

    Returns:
        What there is.

    Raises:
        UserError: there are not so many.
    """
    rank, processes = _here.launched()
    if processes > 1:
        there = processes * max(1, _here.accelerators())
        if wanted not in ("auto", there):
            raise UserError(
                f"train.devices = {wanted}: the {processes} processes have {there} devices; "
                'ask for that many, or leave it at "auto"'
            )
        return Devices(there, rank, processes)
    most = max(most, 1 if wanted == "auto" else wanted)
    provided = most == 1 or _here.provide(min(most, cores()))
    local = _here.accelerators()
    if wanted == "auto":
        return Devices(max(1, local))
    if wanted > 1:
        _refuse(wanted, local, provided)
    return Devices(wanted)


def _refuse(wanted: int, local: int, provided: bool) -> None:
    backend = keras.backend.backend()
    if backend == "torch":
        raise UserError(
            f"train.devices = {wanted}: under torch each device has a process of its own; launch them with "
            f"'torchrun --nproc-per-node {wanted} -m kood run RECIPE'"
        )
    if local and wanted > local:
        raise UserError(f"train.devices = {wanted}: the number of accelerators is {local}; ask for at most {local}")
    here = cores()
    if not local and wanted > here:
        raise UserError(
            f"train.devices = {wanted}: there is no accelerator, and the CPU has {here} cores; ask for at most {here}"
        )
    if not local and not provided:
        raise UserError(
            f"train.devices = {wanted}: {backend} already runs on the CPU as on one device; "
            "ask for devices before anything is computed"
        )


def pieces(weight: keras.Variable) -> tuple[Any, ...]:
    """What an optimizer's `update_step` may be given for a weight: itself or, under TensorFlow, what it is made of."""
    return _here.pieces(weight) if hasattr(_here, "pieces") else (weight,)


def generators() -> dict[str, bytes]:
    """States of the backend's own generators, from which Keras draws some dropout under torch; by kind of device.

    What all else draws from are Keras's seed generators.
    """
    return _here.generators() if hasattr(_here, "generators") else {}


def set_generators(states: Mapping[str, bytes]) -> None:
    """Sets them to what `generators` gave, perhaps on a machine of other devices or under another backend."""
    if hasattr(_here, "set_generators"):
        _here.set_generators(states)


def exactly() -> contextlib.AbstractContextManager[None]:
    """A context in which the backend computes in the precision it is asked for, as `compiled` and `gradient` do, though
    the caller has opened one of torch's that lowers it."""
    return _here.exactly() if hasattr(_here, "exactly") else contextlib.nullcontext()


def several() -> bool:
    """Whether models made here are fitted over more than one device."""
    return _now["fitting"].count > 1


def share(mean):
    """A mean over this replica's rows as its share of the mean over the whole batch."""
    replicas = _here.place()[1]
    return mean if replicas == 1 else mean / replicas


def whole(rows):
    """The number of rows of the whole batch, of which this replica has so many."""
    return rows * _here.place()[1]


def mine(drawn):
    """This replica's rows of what was drawn for the whole batch.

    Every replica draws the same numbers for all rows, so a row meets the number that it meets on one device.
    """
    place, replicas = _here.place()
    if replicas == 1:
        return drawn
    rows = ops.shape(drawn)[0] // replicas
    return drawn[place * rows : (place + 1) * rows]


def feed(dataset: Any) -> Any:
    """The rows of this process of every batch; TensorFlow's strategy deals them by itself."""
    rank, processes = _now["fitting"].rank, _now["fitting"].processes
    if processes == 1 or keras.backend.backend() == "tensorflow":
        return dataset

    def part(batch):
        rows = {name: value.shape[0] // processes for name, value in batch.items()}
        return {name: value[rank * rows[name] : (rank + 1) * rows[name]] for name, value in batch.items()}

    return dataset.map(part)


def accelerated() -> bool:
    """Whether the backend computes on an accelerator."""
    return _here.accelerators() > 0


def agreed(number: int) -> int:
    """The first process's number, where several fit together."""
    if _now["fitting"].processes == 1:
        return number
    return int(_here.gather(np.asarray([number], "int32"))[0, 0])


def compiled(model: keras.Model) -> Callable[[Any], Any]:
    """The model's forward pass in inference mode, traced once for each shape.

    Inside `Devices.inference` each device computes an equal run of the rows; rows that do not divide are filled up and
    cut off again.

    Returns:
        A function of the model's inputs; NumPy arrays or tensors in, tensors out.
    """
    forward, local = import_module(f"kood.backends.{keras.backend.backend()}").forward(model)
    processes = _now["inference"].processes
    if local * processes == 1:
        return forward

    def split(inputs):
        count = len(keras.tree.flatten(inputs)[0])
        filled = -(-count // (local * processes)) * local * processes
        inputs = keras.tree.map_structure(lambda rows: _filled(rows, filled - count), inputs)
        if processes > 1:
            rank, each = _now["inference"].rank, filled // processes
            outputs = forward(keras.tree.map_structure(lambda rows: rows[rank * each : (rank + 1) * each], inputs))
            outputs = keras.tree.map_structure(_of_all_processes, outputs)
        else:
            outputs = forward(inputs)
        return keras.tree.map_structure(lambda rows: rows[:count], outputs) if filled > count else outputs

    return split


def gradient(model: keras.Model, of: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The gradient by a model's inputs of something made of its outputs, traced once for each shape.

    Every process computes it for all rows.

    Args:
        of: Takes the model's outputs and answers a number a row, (B,).

    Returns:
        A function of the model's inputs (B, ...), NumPy array or tensor: d sum(of(model(inputs))) / d inputs, a tensor
        of their shape.
    """
    return import_module(f"kood.backends.{keras.backend.backend()}").gradient(model, of)


def _filled(rows, missing):
    return ops.concatenate([rows, ops.repeat(rows[-1:], missing, axis=0)]) if missing else rows


def _of_all_processes(rows):
    stacked = _here.gather(ops.convert_to_numpy(rows))
    return ops.convert_to_tensor(stacked.reshape(-1, *stacked.shape[2:]))
