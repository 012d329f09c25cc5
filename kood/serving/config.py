"""What TF Serving is started with: a model list, a compose file, and batching parameters where they are asked for."""

import csv
import io
import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kood.errors import UserError
from kood.files import refuse_file, write_atomically
from kood.serving.client import newest_version, refuse_unnumbered, versions
from kood.template import filled

__all__ = ["Written", "write_serving_config"]

#: The image that the commands name. One that is older than the TensorFlow that exported may lack operations.
IMAGE = "tensorflow/serving:latest"
#: Images of the largest request that `kood predict` sends; one of more than a batch is taken in parts.
LARGEST = 4096


@dataclass(frozen=True)
class Written:
    """What was written, and the commands that start a server with it: Docker alone, the binary, the compose file."""

    files: list[Path]
    docker: str
    binary: str
    compose: str


def write_serving_config(
    runs: Sequence[Path], folder: Path, *, max_batch: int = 1, wait_microseconds: int = 2000
) -> Written:
    """Writes the files that TF Serving takes to serve runs, each under the name of its folder.

    Args:
        runs: `saved/<recipe>` of each, or the newest version in it.
        max_batch: Requests are joined to batches of at most so many images; 1 joins none. Those that are joined fail
            together.
        wait_microseconds: How long a request waits for others.

    Raises:
        UserError: a run without a SavedModel, a version that is not the newest or whose folder is no number, two of one
            name, a name that TF Serving's REST path cannot hold, or the folder is a file.
    """
    refuse_file(folder, "--to")
    named: dict[str, Path] = {}
    joined = max_batch > 1
    for run in runs:
        base = run.resolve()
        if (version := newest_version(base)) == base:
            refuse_unnumbered(version)
            base = base.parent
            if (newest := versions(base)[-1]) != version:
                raise UserError(f"{run}: TF Serving serves the newest version, {newest.name}; give it or {base}")
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
        "compose.yaml": _filled("compose.yaml", image=IMAGE, volumes=volumes, joined=joined),
        "models.local.config": _filled("models.config", paths={name: str(base) for name, base in named.items()}),
    }
    if joined:
        # A full queue refuses what comes, so it holds two of the largest requests.
        largest, queued = max(max_batch, LARGEST), max(100, math.ceil(2 * LARGEST / max_batch))
        texts["batching.config"] = _filled(
            "batching.config", max_batch=max_batch, largest=largest, queued=queued, wait_microseconds=wait_microseconds
        )
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())
    mounts = " ".join(f"--mount {shlex.quote(_mount(source, target))}" for target, source in volumes.items())
    return Written(
        [folder / name for name in texts],
        f"docker run --rm -p 8500:8500 -p 8501:8501 {mounts} {IMAGE} {_options('/config', 'models.config', joined)}",
        "tensorflow_model_server --port=8500 --rest_api_port=8501 "
        + _options(str(here), "models.local.config", joined),
        f"docker compose -f {shlex.quote(str(folder / 'compose.yaml'))} up",
    )


def _options(folder: str, models: str, joined: bool) -> str:
    batching = {"batching_parameters_file": "batching.config"} if joined else {}
    files = {**batching, "model_config_file": models}
    given = (f"--{option}={shlex.quote(f'{folder}/{file}')}" for option, file in files.items())
    return " ".join([*["--enable_batching"] * joined, *given])


def _mount(source: str, target: str) -> str:
    """A value of docker's `--mount`, which is a line of CSV; `--volume` has no way to write a colon."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(["type=bind", f"source={source}", f"target={target}", "readonly"])
    return line.getvalue()


def _filled(template: str, **values: Any) -> str:
    # A string of JSON is also one of protobuf's text format and a YAML double-quoted one.
    quoted = partial(json.dumps, ensure_ascii=False)
    return filled("kood.serving", template, {"quoted": quoted}, **values)
