"""A run that is killed at random moments ends as one left alone; `python -m tests.kills` tries for longer."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_killed_runs_end_alike():
    # In this order by this seed.
    stages = ["--stages", "label_mixup,classifier,export", "--seed", "2"]
    command = [sys.executable, "-m", "tests.kills", "--kills", "3", *stages]
    result = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "killed in: " in result.stdout
