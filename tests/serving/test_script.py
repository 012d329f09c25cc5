"""The script that checks a real TF Serving: what it says with one and without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.serving.models import pixels, published
from tests.serving.server import Server

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "check_tf_serving.sh"


def called(folder, *arguments, **environment):
    """The script, with `kood` and `python` of this environment in a folder of its own on the path."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name, command in (("kood", "-m kood"), ("python", "")):
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
        (tools / name).chmod(0o755)
    path = f"{tools}:/usr/bin:/bin"
    return subprocess.run(
        ["bash", SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


def test_without_a_server_it_says_so(tmp_path):
    assert called(tmp_path).returncode == 2
    (tmp_path / "image.png").write_bytes(b"")
    result = called(tmp_path, tmp_path, tmp_path / "image.png")
    if "Docker image" in result.stdout:
        pytest.skip("there is a Docker here")
    assert result.returncode == 3 and "no TF Serving here" in result.stderr and "Nothing was checked" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("spoilt", [False, True])
def test_with_a_server_it_compares(tmp_path, spoilt):
    published(tmp_path / "run")
    Image.fromarray(pixels(1)[0]).save(tmp_path / "image.png")
    served = tmp_path / "run"
    if spoilt:
        # Another model under the same name answers otherwise.
        served = tmp_path / "other" / "run"
        published(served, head="Softmax", score="energy")
    # The server itself runs in this process, which has loaded TensorFlow already.
    (tmp_path / "tools").mkdir()
    stand_in = tmp_path / "tools" / "tensorflow_model_server"
    stand_in.write_text(f"""#!/bin/sh
[ "$1" = --version ] && echo "stands in for TF Serving" && exit
echo "$@" >"{tmp_path}/asked"
exec sleep 600
""")
    stand_in.chmod(0o755)
    with Server(served) as server:
        rest, grpc = (url.rpartition(":")[2] for url in (server.rest_url, server.grpc_url))
        ports = {"REST_PORT": rest, "GRPC_PORT": grpc}
        result = called(tmp_path, tmp_path / "run", tmp_path / "image.png", **ports)
    assert (tmp_path / "asked").read_text().split() == [
        f"--port={grpc}", f"--rest_api_port={rest}", "--model_name=run", f"--model_base_path={tmp_path / 'run'}",
    ]  # fmt: skip
    if spoilt:
        assert result.returncode == 1 and "REST: " in result.stderr and ", here " in result.stderr
    else:
        assert result.returncode == 0, result.stderr
        assert "TF Serving: stands in for TF Serving" in result.stdout
        assert "REST: the same answer" in result.stdout and "gRPC: the same answer" in result.stdout
