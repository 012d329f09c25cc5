"""Kills a run again and again at random moments, starts it again, and compares its end with that of one left alone.

    python -m tests.kills [--kills 100] [--seed 0] [--folder FOLDER]

A small recipe is run once without a kill, for what it must end with and how long it takes. Then it is started over and
over and sent SIGKILL after a random time, until it ends by itself; its report and the answers of its SavedModel must
then be the same, bit for bit, and the next run starts from nothing. After each kill every integer folder must hold a
whole model.

Checkpoints are written at each epoch here, so that a restart loses at most one. Prints a tally of the stages that were
running when the kill came. Exit code 1 where anything differs.
"""

import argparse
import collections
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from kood.serving.client import open_model
from tests.conftest import TINY
from tests.serving.models import encoded

ROOT = Path(__file__).parent.parent
CHILD = (
    "from kood import cli, training; training.fit.__kwdefaults__['interval'] = 0.0; import sys; "
    "sys.argv = ['kood', 'run', 'killed.toml']; cli.main()"
)
#: Longer trainings than elsewhere in the tests, so that kills fall into them too.
RECIPE = TINY.replace("steps = 20\n", "steps = 400\n", 1).replace("epochs = 2", "epochs = 12")


def start(folder: Path) -> subprocess.Popen:
    """The run, in a process group of its own, its output in `log`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "PYTHONUNBUFFERED": "1"}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-c", CHILD], cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def stage(folder: Path) -> str:
    """Which stage the log last named as begun."""
    begun = re.findall(r"^([a-z_]+): (?:started|epoch|step|image|set|\d)", (folder / "log").read_text(), re.MULTILINE)
    return begun[-1] if begun else "loading"


def result(folder: Path) -> dict:
    """What a finished run is compared by."""
    run = folder / "saved" / "killed"
    report = json.loads((run / "report.json").read_bytes())
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), "uint8")
    said = open_model(run).ask([encoded(image) for image in images])
    return {"report": {k: v for k, v in report.items() if k not in ("stages", "environment")}, "said": said}


def half_written(folder: Path) -> list[str]:
    """Integer folders that are not whole models."""
    parts = ("saved_model.pb", "variables/variables.index", "assets.extra/kood.json", "assets.extra/labels.txt")
    versions = [p for p in (folder / "saved" / "killed").glob("*") if p.name.isdecimal()]
    return [str(p) for p in versions if not all((p / part).exists() for part in parts)]


def main() -> int:
    """Runs the harness and prints the tally."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    wrong: list[str] = []
    tally: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "killed.toml").write_text(RECIPE)
        begun = time.monotonic()
        if start(folder).wait():
            print((folder / "log").read_text())
            return 1
        whole, expected = time.monotonic() - begun, result(folder)
        print(f"left alone: {whole:.1f} s", flush=True)
        kills = ends = 0
        while kills < arguments.kills or ends == 0:
            shutil.rmtree(folder / "saved")
            while True:
                process = start(folder)
                # Past the number asked for it is left to end.
                patience = draw.uniform(0.15, 1.0) * whole if kills < arguments.kills else None
                try:
                    code = process.wait(patience)
                except subprocess.TimeoutExpired:
                    tally[stage(folder)] += 1
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    kills += 1
                    wrong += half_written(folder)
                    continue
                if code:
                    wrong.append(f"exit code {code}: {(folder / 'log').read_text()[-500:]}")
                elif result(folder) != expected:
                    wrong.append(f"after {kills} kills the run ended otherwise")
                ends += 1
                break
            print(f"{kills} kills, {ends} runs brought to their end, {len(wrong)} wrong", flush=True)
            if wrong:
                break
    print("killed in: " + ", ".join(f"{name} {count}" for name, count in tally.most_common()))
    for message in wrong:
        print(f"WRONG: {message}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
