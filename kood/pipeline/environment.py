"""What a run ran on and what it was started with: enough to say why two figures differ."""

import datetime
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import keras

import kood
from kood.machine import arithmetic, cores, installed, processor, vector_flags
from kood.text import masked

__all__ = ["environment", "origin_of", "versions"]


def environment() -> dict[str, str]:
    """Versions, the backend's device, the processor, and the variables that change what the backend computes."""
    packages = ["keras", "tensorflow", "numpy", "scikit-learn"]
    backend = keras.backend.backend()
    if backend not in packages:
        packages.insert(1, backend)
    versions = {name: installed(name) or "unknown" for name in packages}
    return {
        "python": platform.python_version(),
        **versions,
        "kood": kood.__version__,
        "backend": backend,
        "device": _device(backend),
        "processor": f"{processor()} {vector_flags()}".strip(),
        **arithmetic(backend),
    }


def versions() -> dict[str, str]:
    """What decides a result beside its key: the versions of kood, of Keras and of its backend."""
    backend = keras.backend.backend()
    return {"kood": kood.__version__, **{name: installed(name) or "unknown" for name in ("keras", backend)}}


def origin_of(recipe: Path | None, overrides: Sequence[str] = ()) -> dict[str, str]:
    """What a run was started with.

    Returns:
        {"started": UTC, "recipe_sha256", "overrides" where there are any, "git" where the recipe lies in a repository}.
    """
    found = {"started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    if overrides:
        found["overrides"] = masked(" ".join(overrides))
    if recipe is None:
        return found
    found["recipe_sha256"] = hashlib.sha256(recipe.read_bytes()).hexdigest()
    revision = _git(recipe.absolute().parent, "rev-parse", "HEAD")
    if revision:
        changed = _git(recipe.absolute().parent, "status", "--porcelain", "--untracked-files=no")
        found["git"] = revision + (" with changes" if changed else "")
    return found


def _git(folder: Path, *arguments: str) -> str:
    """What git answers, nothing where there is no git or no repository."""
    # A repository's own settings could name programs to run.
    harmless = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "core.pager=cat")
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *harmless, *arguments],
            capture_output=True, text=True, timeout=5, check=False, env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _device(backend: str) -> str:
    plain = f"{platform.machine()}, {cores()} CPU cores"
    module = sys.modules.get(backend)
    try:
        match backend:
            case "torch" if module is not None and module.cuda.is_available():
                return ", ".join(module.cuda.get_device_name(i) for i in range(module.cuda.device_count()))
            case "jax" if module is not None and module.default_backend() != "cpu":
                return ", ".join(device.device_kind for device in module.devices())
            case "tensorflow" if module is not None:
                found = [module.config.experimental.get_device_details(one).get("device_name", "GPU")
                         for one in module.config.list_physical_devices("GPU")]  # fmt: skip
                return ", ".join(found) or plain
    except RuntimeError:
        return plain
    return plain
