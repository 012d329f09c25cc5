"""The process that a command runs in: which backend, what native libraries may say, how it is stopped and ends."""

import atexit
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from kood import registry
from kood.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Stopped", "alone", "choose_backend", "console", "keras_defaults", "native_messages_held_back", "on_tensorflow",
    "quiet", "run_on_tensorflow", "settle", "stop_on_signals", "through_proxy",
]  # fmt: skip

#: Below so many columns a width is a mistake, such as the 0 of a container without a terminal, or leaves a table none.
NARROWEST = 40
#: What gRPC looks for, in its order; it reads no capital letters.
GRPC_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")


def console(width: int = 120) -> "Console":
    """A console for results: as wide as the terminal, or so wide where there is none.

    A log has no width of its own; Rich would take 80 and break names in two.
    """
    from rich.console import Console

    return Console(width=width if shutil.get_terminal_size((0, 0)).columns < NARROWEST else None)


def _columns() -> int | None:
    """The width that COLUMNS asks for, where that is one."""
    asked = os.environ.get("COLUMNS", "")
    return int(asked) if asked.isascii() and asked.isdecimal() and int(asked) >= NARROWEST else None


def settle() -> None:
    """Sets aside what a notebook, a container or a login script exports and a command cannot work with.

    For a process that is kood's own: a program that uses kood as a library keeps its environment and its warnings.
    """
    # Pillow says so of a picture of 9,500x9,500 pixels, without its name; it is read all the same.
    warnings.filterwarnings("ignore", r"Image size \(\d+ pixels\) exceeds limit")
    # A notebook's points into the notebook's own packages, and Keras imports Matplotlib; a command opens no window.
    os.environ["MPLBACKEND"] = "agg"
    if _columns() is None:
        os.environ.pop("COLUMNS", None)
    for stream in (sys.stdout, sys.stderr):
        # A name that the encoding lacks is spelled out, not the end of the command.
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def through_proxy(url: str) -> str:
    """What to tell of the proxy that a request goes through, to stand behind the reason why it failed.

    Args:
        url: What is asked for; of the scheme "grpc", as gRPC finds its proxy, else as `urllib` does.

    Returns:
        The variable, the proxy without user and password, and what to do; "" where there is no proxy.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    names: tuple[str, ...]
    if parts.scheme == "grpc":
        names, spared = GRPC_PROXIES, any(host.endswith(one) for one in _spared_by_grpc())
    else:
        names, spared = (f"{parts.scheme}_proxy", f"{parts.scheme}_proxy".upper()), bool(proxy_bypass(host))
    name = next((one for one in names if os.environ.get(one)), "")
    proxy = os.environ.get(name, "") or getproxies().get(parts.scheme, "")
    if not proxy or spared:
        return ""
    place = proxy.rpartition("@")[2].rpartition("//")[2].rstrip("/")
    return (
        f" (asked through the proxy {place} of {name or 'the system'}; if {host} is to be reached without it, add it "
        "to no_proxy)"
    )


def _spared_by_grpc() -> list[str]:
    """The ends of the hosts that gRPC asks directly."""
    listed = next(filter(None, map(os.environ.get, ("no_grpc_proxy", "no_proxy"))), "")
    return [one.strip() for one in listed.split(",") if one.strip()]


def quiet() -> None:
    """Settles what TensorFlow says and takes, before it is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # A run compiles the forward pass of several models, which TensorFlow takes for one compiled too often.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


def on_tensorflow() -> None:
    """Settles a command that needs TensorFlow whatever the backend: TensorFlow imports Keras, and that its backend."""
    quiet()
    os.environ["KERAS_BACKEND"] = "tensorflow"


def choose_backend() -> None:
    """Decides the backend before Keras is imported."""
    quiet()
    backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if backend not in ("tensorflow", "jax", "torch"):
        raise UserError(f"KERAS_BACKEND={backend}: {registry.nearest(backend, ['tensorflow', 'jax', 'torch'])}")
    if find_spec(backend) is None:
        raise UserError(f"KERAS_BACKEND={backend}: {backend} is not installed; pip install 'kood[{backend}]'")


def run_on_tensorflow(module: str, *arguments: Any, failed: str) -> None:
    """Runs a module of kood in a process of its own, whose Keras stands on TensorFlow and on the CPU.

    That one does its work by `kood.attached.handed_over`, which knows the modules from outside that this one does.

    Args:
        *arguments: What it is given, as words.
        failed: What to say where it fails, before the last lines that it wrote.

    Raises:
        UserError: it failed; exit code 1.
    """
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    # What this process finds that one finds, whatever a notebook or a script has put into its path.
    environment["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    # This process may hold the accelerator's memory; that one needs none of it.
    environment["CUDA_VISIBLE_DEVICES"] = "-1"
    result = subprocess.run(
        [sys.executable, "-m", module, ",".join(registry.imported()), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        tail = "\n".join(result.stderr.strip().splitlines()[-5:])
        raise UserError(f"{failed}:\n{tail}", exit_code=1)


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
    with contextlib.ExitStack() as open_files:
        try:
            sys.stderr.flush()
            sink = open_files.enter_context(tempfile.TemporaryFile())
            kept = os.dup(2)
        except (OSError, AttributeError):  # No error stream, or nowhere to keep anything: a disk for reading only.
            sink = None
        if sink is None:
            yield
            return
        os.dup2(sink.fileno(), 2)
        try:
            yield
        except UserError:  # Says itself what is wrong.
            raise
        except BaseException:
            sink.seek(0)
            os.write(kept, sink.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


class Stopped(BaseException):
    """SIGINT, SIGTERM or SIGHUP, raised where the program stands, so that whatever is open is closed on the way out."""


def _stop(number, frame) -> None:
    # Where Python runs inside a native library or a finaliser, the exception is swallowed; so it is raised again.
    if hasattr(signal, "SIGALRM"):  # Windows has none.
        signal.signal(signal.SIGALRM, lambda *_: _raise_stopped(number))
        signal.setitimer(signal.ITIMER_REAL, 2.0, 2.0)
    _raise_stopped(number)


def _hang_up(number, frame) -> None:
    for stream in (1, 2):
        try:
            os.write(stream, b"")
        except OSError:  # The terminal is gone, and what is said on the way out would fail in place of the run's end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    _stop(number, frame)


def _raise_stopped(number) -> None:
    raise Stopped(number)


def _swallowed(lost) -> None:
    # Another stop follows one that is swallowed, so there is nothing to tell of it.
    if not isinstance(lost.exc_value, Stopped):
        sys.__unraisablehook__(lost)


def stop_on_signals() -> None:
    """From here on SIGINT, SIGTERM and, where nothing ignores it as `nohup` does, SIGHUP raise `Stopped`."""
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    hangup = getattr(signal, "SIGHUP", None)  # Of a terminal that was closed; Windows has none.
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        signal.signal(hangup, _hang_up)
    sys.unraisablehook = _swallowed


def alone(work: Callable[[], object]) -> NoReturn:
    """Does the work of a process that is kood's own and ends it: nothing comes after this.

    What Python and its libraries registered with `atexit` is run, then the process is gone. The destructors of native
    libraries never run: those of TensorFlow, JAX and torch now and then find a thread that still works and abort a
    process whose files are all written.

    Args:
        work: What to do. Its `SystemExit` is the exit code, or a message and 1, as Python has it; other exceptions are
            Python's to show.
    """
    ended: list[int] = []
    # Python runs these in reverse order, so this one comes last only if it is registered before the libraries load.
    atexit.register(_leave, ended)
    try:
        work()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
    ended.append(code)
    sys.exit(code)


def _leave(ended: list[int]) -> None:
    if not ended:
        return
    logging.shutdown()
    code = ended[0]
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or 120  # As Python ends where what was said could not be written.
        except (ValueError, AttributeError):
            continue  # Closed, or never there.
    os._exit(code)
