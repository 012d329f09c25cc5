"""Every module loads where what only POSIX has is missing, as on Windows."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "kood").rglob("*.py"))
MODULES = ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog", "readline", "posix")
NAMES = {
    "os": (
        "fork", "forkpty", "getuid", "geteuid", "getgid", "getegid", "getpgid", "setsid", "killpg", "sched_getaffinity",
        "sched_setaffinity", "uname", "getloadavg", "mkfifo", "chown", "fchown", "chroot", "sysconf", "statvfs", "nice",
        "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "wait", "waitid", "WNOHANG", "sync", "posix_fadvise",
        "pread", "pwrite", "sendfile", "fchmod", "getpriority", "setpriority", "lchown",
    ),
    "signal": (
        "SIGALRM", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGQUIT", "setitimer", "getitimer",
        "ITIMER_REAL", "alarm", "pause", "pthread_sigmask", "sigwait",
    ),
    "select": ("poll", "epoll"),
    "time": ("tzset", "clock_gettime"),
}  # fmt: skip

LOADS = """
import importlib, sys
import keras, numpy, scipy, sklearn, tensorflow, typer, matplotlib, pydantic  # What others need is theirs.
for package in ("tensorflow_datasets", "keras_cv", "rich.progress", "PIL.Image",
                "matplotlib.figure", "grpc", "scipy.stats"):
    try:
        importlib.import_module(package)
    except Exception:
        pass
for module in {modules!r}:
    sys.modules[module] = None
for module, names in {names!r}.items():
    for name in names:
        if hasattr(importlib.import_module(module), name):
            delattr(sys.modules[module], name)
for module in {kood!r}:
    importlib.import_module(module)
from kood import machine, process
from kood.runs import Run
from pathlib import Path
assert machine.cores() > 0 and machine.processor()
told = []
run = Run(Path({folder!r}))
run.on_damage = told.append
with run.held():
    assert run.is_held()
assert "no file locks" in told[0], told
process.stop_on_signals()
try:
    process._stop(2, None)
except process.Stopped:
    print("stopped")
"""


@pytest.mark.keras
@pytest.mark.slow
def test_every_module_loads_and_a_run_is_held_without_posix(tmp_path):
    theirs = {
        "kood.__main__",
        "kood.backends.jax",
        "kood.backends.jax_devices",
        "kood.backends.torch",
        "kood.backends.torch_devices",
    }
    theirs |= {"kood.kernels.torch", "kood.data.augment.keras_cv_layers"}
    names = [".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for f in FILES]
    code = LOADS.format(
        modules=MODULES, names=NAMES, kood=[n for n in names if n not in theirs], folder=str(tmp_path / "run")
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0 and done.stdout.strip().endswith("stopped"), done.stderr[-2000:]


def guarded(tree):
    """The lines within reach of a question whether the system has a thing."""
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.IfExp) and "hasattr" in ast.unparse(node.test):
            lines |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def unasked(file):
    """What a file uses of what only POSIX has without asking whether it is there."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    safe = guarded(tree)
    for node in ast.walk(tree):
        of = node.value.id if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) else ""
        if of in NAMES and node.attr in NAMES[of] and node.lineno not in safe:
            yield node.lineno, ast.unparse(node)
        if isinstance(node, ast.Import) and file.name != "runs.py":  # That one asks whether it is there.
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name in MODULES)


def test_what_only_posix_has_is_asked_for_before_it_is_used(tmp_path):
    assert len(FILES) > 200
    assert not {str(file.relative_to(ROOT)): found for file in FILES if (found := list(unasked(file)))}
    (tmp_path / "bad.py").write_text("import os, fcntl\nos.fork()\nif hasattr(os, 'nice'):\n    os.nice(1)\n")
    assert list(unasked(tmp_path / "bad.py")) == [(1, "fcntl"), (2, "os.fork")]
