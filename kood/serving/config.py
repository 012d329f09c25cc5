"""What TF Serving is started with: a model list, batching parameters, a compose file."""

import csv
import io
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kood.errors import UserError
from kood.files import refuse_file, write_atomically
from kood.serving.client import newest_version
from kood.template import filled

__all__ = ["Written", "write_serving_config"]

#: The image that the commands name. One that is older than the TensorFlow that exported may lack operations.
IMAGE = "tensorflow/serving:latest"


@dataclass(frozen=True)
class Written:
    """What was written, and the commands that start a server with it: Docker alone, the binary, the compose file."""

    files: list[Path]
    docker: str
    binary: str
    compose: str


def write_serving_config(
    runs: Sequence[Path], folder: Path, *, max_batch: int = 64, wait_microseconds: int = 2000
) -> Written:
    """Writes the files that TF Serving takes to serve runs, each under the name of its folder.

    Args:
        runs: `saved/<recipe>` of each.
        folder: Where the files go.
        max_batch: Requests are joined to batches of at most so many images.
        wait_microseconds: How long a request waits for others.

    Raises:
        UserError: a run without a SavedModel, two of one name, a name that TF Serving's REST path cannot hold, or the
            folder is a file.
    """
    refuse_file(folder, "--to")
    named: dict[str, Path] = {}
    for run in runs:
        base = run.resolve()
        if newest_version(base) == base:
            base = base.parent
        name = base.name
        if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
            raise UserError(
                f"{run}: TF Serving names models by letters, digits, - _ and dots; rename the folder {name!r}"
            )
        if named.get(name, base) != base:
            raise UserError(f"{run}: {named[name]} has the same name {name}; rename one of them")
        named[name] = base
    folder.mkdir(parents=True, exist_ok=True)
    here = folder.resolve()
    volumes = {f"/models/{name}": str(base) for name, base in named.items()} | {"/config": str(here)}
    texts = {
        "models.config": _filled("models.config", paths={name: f"/models/{name}" for name in named}),
        "batching.config": _filled("batching.config", max_batch=max_batch, wait_microseconds=wait_microseconds),
        "compose.yaml": _filled("compose.yaml", image=IMAGE, volumes=volumes),
        "models.local.config": _filled("models.config", paths={name: str(base) for name, base in named.items()}),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())
    mounts = " ".join(f"--mount {shlex.quote(_mount(source, target))}" for target, source in volumes.items())
    return Written(
        [folder / name for name in texts],
        f"docker run --rm -p 8500:8500 -p 8501:8501 {mounts} {IMAGE} " + _options("/config", "models.config"),
        "tensorflow_model_server --port=8500 --rest_api_port=8501 " + _options(str(here), "models.local.config"),
        f"docker compose -f {shlex.quote(str(folder / 'compose.yaml'))} up",
    )


def _options(folder: str, models: str) -> str:
    files = {"batching_parameters_file": "batching.config", "model_config_file": models}
    given = (f"--{option}={shlex.quote(f'{folder}/{file}')}" for option, file in files.items())
    return " ".join(["--enable_batching", *given])


def _mount(source: str, target: str) -> str:
    """A value of docker's `--mount`, which is a line of CSV; `--volume` has no way to write a colon."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(["type=bind", f"source={source}", f"target={target}", "readonly"])
    return line.getvalue()


def _filled(template: str, **values: Any) -> str:
    # A string of JSON is also one of protobuf's text format and a YAML double-quoted one.
    quoted = partial(json.dumps, ensure_ascii=False)
    return filled("kood.serving", template, {"quoted": quoted}, **values)
