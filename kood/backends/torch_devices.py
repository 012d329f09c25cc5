"""Several devices under torch: one process a device, as `torchrun` starts them."""

import atexit
import contextlib
import os
from datetime import timedelta

import numpy as np
import torch
from torch import distributed

__all__ = [
    "accelerators", "everyone", "exactly", "fitting", "gather", "generators", "inference", "launched", "place",
    "provide", "set_generators", "total",
]  # fmt: skip

#: A rank may wait long for another one that reads a checkpoint or compiles.
PATIENCE = timedelta(hours=2)

#: Kinds of devices that Keras computes on.
_AUTOCAST = ("cpu", "cuda", "mps", "xpu")

_fitting = False


@contextlib.contextmanager
def exactly():
    """A context of its own precision, whatever `torch.autocast` is open around it."""
    with contextlib.ExitStack() as stack:
        for kind in _AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def launched():
    """This process's rank and the number of processes, as torchrun's variables say; the first call joins them."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    if not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        else:
            # Gloo's threads, still there when Python ends, now and then abort a process that has done its work.
            atexit.register(_part)
        distributed.init_process_group(timeout=PATIENCE)
    return distributed.get_rank(), distributed.get_world_size()


def _part():
    if distributed.is_initialized():
        distributed.destroy_process_group()


def accelerators():
    """How many this process uses: Keras computes on one."""
    return min(1, torch.cuda.device_count())


def provide(count):
    """A process computes on one device."""
    return count == 1


@contextlib.contextmanager
def fitting(count, processes):
    """A context in which models are made and fitted over all processes."""
    global _fitting  # noqa: PLW0603  Inference on one process must not wait for the others.
    before, _fitting = _fitting, processes > 1
    try:
        yield
    finally:
        _fitting = before


def inference(count):
    """A process computes on one device."""
    return contextlib.nullcontext()


def place():
    """Which process this is, and how many fit together."""
    return (distributed.get_rank(), distributed.get_world_size()) if _fitting else (0, 1)


def total(values):
    """Sum over the processes; gradients flow through it."""
    return _Total.apply(values) if _fitting else values


class _Total(torch.autograd.Function):
    """The sum's gradient is the sum of the gradients that the processes send back."""

    @staticmethod
    def forward(context, values):
        return _summed(values)

    @staticmethod
    def backward(context, gradient):
        return _summed(gradient)


def _summed(values):
    values = values.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(values)
    return values


def everyone(rows):
    """The rows of all processes, one after another; no gradient flows through it."""
    return torch.cat(_gathered(rows.detach().contiguous())) if _fitting else rows


def summed_up(tensors):
    """Sums of many tensors over the processes, sent as one."""
    if not _fitting:
        return tensors
    present = [tensor for tensor in tensors if tensor is not None]
    flat = _summed(torch.cat([tensor.reshape(-1) for tensor in present]))
    parts = iter(flat.split([tensor.numel() for tensor in present]))
    return [None if tensor is None else next(parts).view_as(tensor) for tensor in tensors]


def gather(array):
    """An array of every process, stacked."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.stack(_gathered(torch.as_tensor(np.ascontiguousarray(array)).to(device))).cpu().numpy()


def generators():
    """The state of torch's own generator on each kind of device that there is."""
    return {kind: of.get_rng_state().numpy().tobytes() for kind, of in _kinds().items()}


def set_generators(states):
    """Sets them; a kind of device that is named and not here is passed over."""
    for kind, of in _kinds().items():
        if kind in states:
            of.set_rng_state(torch.frombuffer(bytearray(states[kind]), dtype=torch.uint8))


def _kinds():
    return {"cpu": torch, "cuda": torch.cuda} if torch.cuda.is_available() else {"cpu": torch}


def _gathered(mine):
    """A tensor of every process."""
    parts = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, mine)
    return parts
