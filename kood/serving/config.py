"""What TF Serving is started with: a model list, batching parameters, a compose file."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kood.errors import UserError
from kood.runs import write_atomically
from kood.serving.client import newest_version

__all__ = ["Written", "write_serving_config"]

#: The image that the commands name. One that is older than the TensorFlow that exported may lack operations.
IMAGE = "tensorflow/serving:latest"


@dataclass(frozen=True)
class Written:
    """What was written, and how to start a server with it.

    Attributes:
        files: `models.config`, `batching.config` and `compose.yaml`.
        docker: The command for Docker alone.
        binary: The command for the binary.
    """

    files: list[Path]
    docker: str
    binary: str


def write_serving_config(
    runs: Sequence[Path], folder: Path, *, max_batch: int = 64, wait_microseconds: int = 2000
) -> Written:
    """Writes the files that TF Serving takes to serve runs, each under the name of its folder.

    Args:
        runs: `saved/<recipe>` of each.
        folder: Where the files go.
        max_batch: Requests are joined to batches of at most so many images.
        wait_microseconds: How long a request waits for others.

    Returns:
        The files and the commands.

    Raises:
        UserError: a run without a SavedModel, two of one name, or a name that TF Serving's REST path cannot hold.
    """
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
    texts = {
        "models.config": _models({name: f"/models/{name}" for name in named}),
        "batching.config": _batching(max_batch, wait_microseconds),
        "compose.yaml": _compose(named, folder.resolve()),
        "models.local.config": _models({name: str(base) for name, base in named.items()}),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())
    here = folder.resolve()
    mounts = " ".join(f"-v {_quoted(f'{base}:/models/{name}:ro')}" for name, base in named.items())
    options = "--enable_batching --batching_parameters_file={0}/batching.config --model_config_file={0}/{1}"
    return Written(
        [folder / name for name in texts],
        f"docker run --rm -p 8500:8500 -p 8501:8501 {mounts} -v {_quoted(f'{here}:/config:ro')} {IMAGE} "
        + options.format("/config", "models.config"),
        "tensorflow_model_server --port=8500 --rest_api_port=8501 " + options.format(here, "models.local.config"),
    )


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[\w./:-]+", text, re.ASCII) else "'" + text.replace("'", "'\\''") + "'"


def _string(text: str) -> str:
    """A protobuf text string, which is also a YAML double-quoted one."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _models(paths: dict[str, str]) -> str:
    entries = "".join(
        f"  config {{\n    name: {_string(name)}\n    base_path: {_string(path)}\n"
        '    model_platform: "tensorflow"\n  }\n'
        for name, path in paths.items()
    )
    return f"model_config_list {{\n{entries}}}\n"


def _batching(max_batch: int, wait_microseconds: int) -> str:
    return (
        f"max_batch_size {{ value: {max_batch} }}\nbatch_timeout_micros {{ value: {wait_microseconds} }}\n"
        "max_enqueued_batches { value: 100 }\nnum_batch_threads { value: 2 }\n"
    )


def _compose(named: dict[str, Path], folder: Path) -> str:
    volumes = [f"{base}:/models/{name}:ro" for name, base in named.items()] + [f"{folder}:/config:ro"]
    lines = [
        "services:",
        "  serving:",
        f"    image: {IMAGE}",
        '    ports: ["8500:8500", "8501:8501"]',
        "    command:",
        "      - --model_config_file=/config/models.config",
        "      - --model_config_file_poll_wait_seconds=30",
        "      - --enable_batching",
        "      - --batching_parameters_file=/config/batching.config",
        "    volumes:",
        *(f"      - {_string(volume)}" for volume in volumes),
    ]
    return "\n".join(lines) + "\n"
