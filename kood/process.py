"""The process that a command runs in: which backend, what native libraries may say, how it is stopped."""

import contextlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from kood import registry
from kood.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Stopped", "choose_backend", "console", "keras_defaults", "native_messages_held_back", "quiet", "stop_on_signals",
]  # fmt: skip


def console(width: int = 120) -> "Console":
    """A console for results: as wide as the terminal, or so wide where there is none.

    A log has no width of its own; Rich would take 80 and break names in two.
    """
    from rich.console import Console

    found = Console()
    return found if found.is_terminal or "COLUMNS" in os.environ else Console(width=width)


def quiet() -> None:
    """Settles what TensorFlow says and takes, before it is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # A run compiles the forward pass of several models, which TensorFlow takes for one compiled too often.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


def choose_backend() -> None:
    """Decides the backend before Keras is imported."""
    quiet()
    backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if backend not in ("tensorflow", "jax", "torch"):
        raise UserError(f"KERAS_BACKEND={backend}: {registry.nearest(backend, ['tensorflow', 'jax', 'torch'])}")
    if find_spec(backend) is None:
        raise UserError(f"KERAS_BACKEND={backend}: {backend} is not installed; pip install 'kood[{backend}]'")


@contextlib.contextmanager
def keras_defaults() -> Iterator[None]:
    """Inside, Keras is set as it comes, whatever `keras.json`, the environment or a caller's code made of it.

    Of its global settings these decide figures: the default float type and dtype policy, the order of an image's axes,
    the epsilon of its losses and optimizers, and limits to the length of a training. What was set is restored.
    """
    from keras import config

    plain = {
        "floatx": "float32", "dtype_policy": "float32", "image_data_format": "channels_last", "epsilon": 1e-7,
        "max_epochs": None, "max_steps_per_epoch": None,
    }  # fmt: skip
    before = {name: getattr(config, name)() for name in plain}

    def put(settings: dict[str, Any]) -> None:
        for name, value in settings.items():
            getattr(config, f"set_{name}")(value)

    put(plain)
    try:
        yield
    finally:
        put(before)


@contextlib.contextmanager
def native_messages_held_back() -> Iterator[None]:
    """Keeps what native libraries write to the error stream while they load, and shows it only if loading fails.

    TensorFlow 2.21 greets with messages that no log level silences (tensorflow/tensorflow issue 100442).
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        except BaseException:
            sink.seek(0)
            os.write(kept, sink.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


class Stopped(BaseException):
    """SIGINT or SIGTERM, raised where the program stands, so that whatever is open is closed on the way out."""


def _stop(number, frame) -> None:
    # Where Python runs inside a native library or a finaliser, the exception is swallowed; so it is raised again.
    signal.signal(signal.SIGALRM, lambda *_: _raise_stopped(number))
    signal.setitimer(signal.ITIMER_REAL, 2.0, 2.0)
    _raise_stopped(number)


def _raise_stopped(number) -> None:
    raise Stopped(number)


def stop_on_signals() -> None:
    """From here on SIGINT and SIGTERM raise `Stopped`."""
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
