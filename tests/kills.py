"""Kills a run again and again at random moments, starts it again, and compares its end with that of one left alone.

    python -m tests.kills [--kills 100] [--seed 0] [--folder FOLDER] [--stages STAGE,...]

A small recipe is run once without a kill, for what it must end with and how long each of its stages takes. Then it is
started over and over and sent SIGKILL at a random moment of a stage drawn at random, of all or of those named, until it
ends by itself; its report and the answers of its SavedModel must then be the same, bit for bit, and the next run starts
from nothing. After each kill every integer folder must hold a whole model.

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
from tests.conftest import TINY, figures_of
from tests.serving.models import encoded

ROOT = Path(__file__).parent.parent
CHILD = (
    "from kood import cli, training; training.fit.__kwdefaults__['interval'] = 0.0; import sys; "
    "sys.argv = ['kood', 'run', 'killed.toml']; cli.main()"
)
#: Longer trainings than elsewhere in the tests, so that kills fall into them too.
RECIPE = (
    TINY.replace("steps = 20\n", "steps = 400\n", 1)
    .replace("epochs = 2", "epochs = 12")
    .replace("count = 40\nsampling_steps = 4", "count = 1500\nsampling_steps = 8")
    # One of each kind of stage, and of each kind of score: of logits, of cosines, and two with a state.
    + '[evaluate]\nbaseline = false\nscores = ["energy", "max_cosine", "knn", "mahalanobis"]\n'
    + "[pure_samples]\nuse = []\n"
)
#: What runs before the first stage and after the last, of which the log says nothing.
FIRST, LAST = "loading", "report"


def start(folder: Path) -> subprocess.Popen:
    """The run, in a process group of its own, its output in `log`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "PYTHONUNBUFFERED": "1"}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-c", CHILD], cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def stage(folder: Path) -> str:
    """Which stage the log last named as begun."""
    text = (folder / "log").read_text(errors="replace")
    if re.search(r"^export: (done|already)", text, re.MULTILINE):
        return LAST
    begun = re.findall(r"^([a-z_]+): (?:started|epoch|step|image|set)", text, re.MULTILINE)
    return begun[-1] if begun else FIRST


def watched(process: subprocess.Popen, folder: Path) -> dict[str, float]:
    """How many seconds each stage took of a run that is left to end."""
    taken: dict[str, float] = collections.defaultdict(float)
    before = time.monotonic()
    while process.poll() is None:
        time.sleep(0.01)
        now = time.monotonic()
        taken[stage(folder)] += now - before
        before = now
    return dict(taken)


def killed(process: subprocess.Popen, folder: Path, target: str, delay: float) -> str | None:
    """Kills a run so long after a stage has begun; the stage that then ran, or None where the run ended before."""
    while stage(folder) != target:
        if process.poll() is not None:
            return None
        time.sleep(0.005)
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        found = stage(folder)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return found
    return None


def result(folder: Path) -> dict:
    """What a finished run is compared by."""
    run = folder / "saved" / "killed"
    report = json.loads((run / "report.json").read_bytes())
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), "uint8")
    said = open_model(run).ask([encoded(image) for image in images])
    return {"report": figures_of(report), "said": said}


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
    parser.add_argument("--stages", type=lambda text: text.split(","))
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    wrong: list[str] = []
    tally: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "killed.toml").write_text(RECIPE)
        alone = start(folder)
        taken = watched(alone, folder)
        if alone.returncode:
            print((folder / "log").read_text())
            return 1
        expected = result(folder)
        print("left alone: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in taken.items()), flush=True)
        kills = ends = 0
        while kills < arguments.kills or ends == 0:
            shutil.rmtree(folder / "saved")
            while True:
                process = start(folder)
                if kills < arguments.kills:  # Past the number asked for it is left to end.
                    target = draw.choice(arguments.stages or list(taken))
                    found = killed(process, folder, target, draw.uniform(0.0, taken[target]))
                    if found is not None:
                        tally[found] += 1
                        kills += 1
                        wrong += half_written(folder)
                        continue
                if code := process.wait():
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
