"""README's first command, as it stands there, and the figures that its recipe states."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_first_command_runs_and_its_figures_are_those_of_the_recipe(tmp_path):
    # .ci/run has done the rest of the line: the environment and the installation.
    block = re.search(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    command = block[1].strip().split(" && ")[-1]
    recipe = command.removeprefix("kood run ")
    assert recipe != command
    (tmp_path / recipe).parent.mkdir()
    shutil.copy(ROOT / recipe, tmp_path / recipe)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        command.split(), cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    saved = tmp_path / "saved" / Path(recipe).stem
    assert (saved / "1" / "saved_model.pb").is_file() and (saved / "report.html").is_file()
    report = json.loads((saved / "report.json").read_bytes())
    stated = re.search(r"# Figures: near-OOD AUROC ([\d.]+)% \((\w+), which", (ROOT / recipe).read_text())
    assert report["headline_score"].upper() == stated[2].upper()
    low, high = report["intervals"]["near"]
    assert low <= float(stated[1]) / 100 <= high
