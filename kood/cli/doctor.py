"""What is installed, what works, and what this machine offers."""

import os
import platform
import subprocess
import sys
from importlib import util

from rich.console import Console
from rich.table import Table
from rich.text import Text

import kood
from kood import process
from kood.machine import cores, installed, vector_flags

__all__ = ["report"]

PACKAGES = (
    "keras", "keras-cv", "tensorflow", "numpy", "scikit-learn", "scipy", "typer", "rich", "pydantic", "pillow",
    "matplotlib",
)  # fmt: skip
#: One multiplication on the backend's device, and the devices' names.
PROBES = {
    "tensorflow": "import tensorflow as t; t.ones((2, 2)) @ t.ones((2, 2)); "
    "print([d.name for d in t.config.list_logical_devices()])",
    "jax": "import jax; jax.numpy.ones((2, 2)) @ jax.numpy.ones((2, 2)); print([str(d) for d in jax.devices()])",
    "torch": "import torch; torch.ones(2, 2) @ torch.ones(2, 2); print(['cpu'] + "
    "[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())])",
}


def report(console: Console | None = None) -> bool:
    """Prints versions, backends, devices and CPU features.

    Returns:
        Whether the chosen backend works and every package is there.
    """
    console = console or process.console()
    well = True
    table = Table(title=f"kood {kood.__version__}, Python {platform.python_version()}", title_justify="left")
    for column in ("what", "found", "note"):
        table.add_column(column, overflow="fold")
    for name in PACKAGES:
        version = installed(name)
        table.add_row(name, version or "missing", "" if version else f"pip install {name}")
        well = well and bool(version)
    chosen = os.environ.get("KERAS_BACKEND", "tensorflow")
    for backend, probe in PROBES.items():
        works, note = _probe(backend, probe)
        mark = " (KERAS_BACKEND)" if backend == chosen else ""
        table.add_row(f"backend {backend}{mark}", "works" if works else "does not work", Text(note))
        well = well and (works or backend != chosen)
    if chosen not in PROBES:
        well = False
        table.add_row(Text(f"backend {chosen} (KERAS_BACKEND)"), "unknown", f"use one of {', '.join(PROBES)}")
    table.add_row("cores", str(cores()), vector_flags())
    console.print(table)
    return well


def _probe(backend: str, code: str) -> tuple[bool, str]:
    if util.find_spec(backend) is None:
        return False, f"not installed; pip install 'kood[{backend}]'"
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    output = (result.stdout if result.returncode == 0 else result.stderr).strip().splitlines() or ["no output"]
    return result.returncode == 0, output[-1].strip("[]").replace("'", "")
