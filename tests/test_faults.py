"""Disks that are full or for reading only, in a mount namespace of the test's own.

`python -m pytest -m slow` runs them. They need `unshare` and a kernel that lets a user mount a tmpfs in a namespace,
and are skipped where that is not so.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import TINY, figures_of, kood

MAY_MOUNT = (
    shutil.which("unshare") is not None
    and subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode == 0
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not MAY_MOUNT, reason="this user cannot make a mount namespace")]

ROOT = Path(__file__).parents[1]
KOOD = f'"{sys.executable}" -m kood'
#: One of each kind of stage.
RECIPE = TINY + '[evaluate]\nbaseline = false\nscores = ["msp", "mahalanobis"]\n[pure_samples]\nuse = []\n'


def script(text, folder):
    """Runs a script in a mount namespace of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    command = ["unshare", "-Urm", "bash", "-c", text]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def figures(file):
    return figures_of(json.loads(file.read_bytes()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run, and pictures."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "tiny.toml").write_text(RECIPE)
    result = kood("run", "tiny.toml", cwd=folder)
    assert result.returncode == 0, result.stderr
    (folder / "pictures").mkdir()
    for seed in range(30):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), "uint8")
        Image.fromarray(pixels).save(folder / "pictures" / f"{seed}.png")
    return folder


def test_a_run_goes_on_once_a_full_disk_has_room(folder, tmp_path):
    """Full when most of it is there; where it fails at once is told by the limit in test_pipeline.py."""
    (tmp_path / "tiny.toml").write_text(RECIPE)
    result = script(
        f"""
        mkdir disk && mount -t tmpfs -o size=1000k none disk && cp tiny.toml disk && cd disk
        {KOOD} run tiny.toml >../out 2>../err; echo $? >../code; ls saved/tiny saved/tiny/stages >../there
        mount -o remount,size=90m none . && {KOOD} run tiny.toml && cp saved/tiny/report.json ..
        """,
        tmp_path,
    )
    assert result.returncode == 0, result.stderr
    told = (tmp_path / "err").read_text()
    assert (tmp_path / "code").read_text() == "1\n"
    assert told.startswith("kood: saved/tiny: cannot write there (No space left on device)")
    assert len(told.splitlines()) == 1
    there = (tmp_path / "there").read_text().split()
    assert not [name for name in there if name.isdecimal()] and [name for name in there if "diffusion-" in name]
    assert figures(tmp_path / "report.json") == figures(folder / "saved" / "tiny" / "report.json")


REFUSED = [
    "run tiny.toml", "run tiny.toml --set seed=4", "run tiny.toml --set name=other",
    "calibrate saved/tiny --data pictures --accept 0.5", "single-signature saved/tiny saved/single",
    "serving-config saved/tiny --to saved/config", "monitor saved/tiny --data pictures --to saved/watched",
    "interpolate saved/tiny --from 0 --to 1",
]  # fmt: skip
READING = ["predict saved/tiny pictures", "monitor saved/tiny --data pictures"]
#: One process for all of them: each command line of its input as `kood` is called with it, and what that ended in.
EACH = """
import contextlib, io, json, sys
from kood import cli
said = {}
for line in sys.stdin.read().splitlines():
    sys.argv, err = ["kood", *line.split()], io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            cli.main()
            code = 0
        except SystemExit as done:
            code = done.code or 0
    said[line] = code, err.getvalue()
print("SAID" + json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(folder):
    """The exit code and the errors of each command where nothing can be written below saved/."""
    (folder / "each.py").write_text(EACH)
    (folder / "commands").write_text("\n".join([*REFUSED, *READING]))
    result = script(
        f'mount --bind saved saved && mount -o remount,bind,ro saved && "{sys.executable}" each.py <commands', folder
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.partition("SAID")[2])


@pytest.mark.parametrize("command", REFUSED)
def test_what_cannot_be_written_is_one_message(said, command):
    code, told = said[command]
    assert code == 1 and told.startswith("kood: ") and "saved/" in told and "Read-only file system" in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize("command", READING)
def test_what_only_reads_needs_no_writing(said, command):
    code, told = said[command]
    assert code == 0, told
