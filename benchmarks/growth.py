"""Whether memory, open files and time stay in bounds: over more images, many epochs, many samples, many predictions.

    python benchmarks/growth.py [--images 10000] [--factors 1 4 16] [--epochs 50] [--samples 100000]
                                [--predictions 100000] [--parts images epochs samples predictions]

Every part is `kood` in a process of its own, which this one looks at every fifth of a second: memory that no file backs
(RssAnon and RssShmem), open files, threads and child processes.

- images: a folder of files of 16 px is read, split, trained on for an epoch and measured, at each factor. What is past
  8 MiB lies on disk here instead of past 512, so that these sets are as large ones. Told are the seconds of each stage
  and the peak; time should grow with the images, memory should not.
- epochs, samples, predictions: one long training; one long sampling; one `kood predict`. Told is the level in the
  second fifth of the time and in the last: what leaks makes a difference.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from turns import keep, machine

CLASSES = 4
SMALLER = "from kood.data import large; large.IN_MEMORY = 8 * 2**20; "
START = "import sys; from kood import cli; sys.argv = ['kood', *sys.argv[1:]]; cli.main()"

RECIPE = """
[data]
image_shape = [16, 16, 3]
[data.id]
source = "folder"
path = "images"
[data.far.uniform]
source = "uniform"
count = {count}
[classifier]
backbone = "small_cnn"
[outliers]
use = []
[train]
epochs = {epochs}
batch_size = 128
[evaluate]
scores = ["energy", "mahalanobis", "vim"]
[serve]
export = false
"""
SAMPLES = """
[data]
image_shape = [8, 8, 1]
[data.id]
source = "digits"
[data.far.uniform]
source = "uniform"
count = 200
[diffusion]
options = {{ width = 64, depth = 1 }}
steps = 200
[outliers]
use = ["label_mixup"]
[outliers.label_mixup]
count = {count}
sampling_steps = 10
[pure_samples]
use = []
[evaluate]
baseline = false
[train]
epochs = 1
[serve]
export = {export}
"""


@dataclass
class Watched:
    """What a process was seen to hold, look by look."""

    seconds: float = 0.0
    memory: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    children: list[int] = field(default_factory=list)

    def levels(self) -> dict[str, list[float]]:
        """The level in the second fifth and in the last."""
        levels = {}
        for name, seen in (
            ("MiB", self.memory), ("files", self.files), ("threads", self.threads), ("children", self.children)
        ):  # fmt: skip
            fifth = max(1, len(seen) // 5)
            early, late = statistics.median(seen[fifth : 2 * fifth]), statistics.median(seen[-fifth:])
            levels[name] = [round(early), round(late)]
        return levels

    def told(self) -> str:
        """The same in words."""
        lines = [f"{name} {early} -> {late}" for name, (early, late) in self.levels().items()]
        return f"{self.seconds:.1f} s; " + ", ".join(lines)


def watch(arguments: list[str], folder: Path, before: str = "", since: str = "", until: str = "\0") -> Watched:
    """Runs kood and looks at it; with `since` and `until`, from the moment its output holds the one to the other."""
    seen = Watched()
    begun = time.monotonic()
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", before + START, *arguments], cwd=folder, stdout=out, stderr=subprocess.STDOUT,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        while process.poll() is None:
            time.sleep(0.2)
            told = (folder / "out").read_text(errors="replace")
            if since not in told or until in told:
                continue
            try:
                look(process.pid, seen)
            except (FileNotFoundError, ProcessLookupError):
                break
    seen.seconds = time.monotonic() - begun
    if process.wait():
        raise SystemExit((folder / "out").read_text(errors="replace"))
    return seen


def look(pid: int, seen: Watched) -> None:
    """One look at a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    if "RssAnon" not in status:
        return  # It has ended.
    seen.memory.append(sum(int(status[name].split()[0]) for name in ("RssAnon", "RssShmem")) / 1024)
    seen.files.append(len(list(Path(f"/proc/{pid}/fd").iterdir())))
    seen.threads.append(int(status["Threads"]))
    children = Path(f"/proc/{pid}/task/{pid}/children")
    seen.children.append(len(children.read_text().split()) if children.exists() else 0)


def tell(arguments: argparse.Namespace, what: str, seen: Watched) -> None:
    """Prints what a part came to, and keeps it if that is asked for."""
    print(f"{what}: {seen.told()}", flush=True)
    if arguments.keep:
        first, last = seen.levels()["MiB"]
        keep([{"row": what, "early MiB": first, "late MiB": last}])


def pictures(folder: Path, count: int, size: int, channels: int, classes: int) -> None:
    """Writes random image files, in class folders where there are classes."""
    rng = np.random.default_rng(0)
    for place in range(count):
        here = folder / str(place % classes) if classes else folder
        here.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 64, (size, size, channels)).astype("uint8") + np.uint8(40 * (place % CLASSES))
        Image.fromarray(pixels.squeeze()).save(here / f"{place}.bmp")


def images(arguments: argparse.Namespace) -> None:
    """Time and memory over the number of images."""
    first: dict[str, float] = {}
    for factor in arguments.factors:
        with tempfile.TemporaryDirectory() as name:
            folder, count = Path(name), arguments.images * factor
            pictures(folder / "images", count, 16, 3, CLASSES)
            (folder / "growth.toml").write_text(RECIPE.format(count=count // 4, epochs=1))
            seen = watch(["run", "growth.toml"], folder, SMALLER)
            stages = json.loads((folder / "saved/growth/report.json").read_bytes())["stages"]
            taken = {stage: stages[stage]["seconds"] for stage in ("data", "classifier", "evaluate")}
            now = {**taken, "memory": max(seen.memory)}
            first = first or now
            times = ", ".join(f"{k} {v:.1f} s ({v / first[k]:.1f}x)" for k, v in taken.items())
            peak = f"peak {now['memory']:.0f} MiB ({now['memory'] / first['memory']:.2f}x)"
            print(f"{count:,} images ({factor}x): {times}; {peak}", flush=True)
            if arguments.keep:
                keep([{"row": f"{count:,} images", "peak MiB": round(now["memory"])}])


def epochs(arguments: argparse.Namespace) -> None:
    """Memory over many epochs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures(folder / "images", arguments.images // 2, 16, 3, CLASSES)
        (folder / "growth.toml").write_text(RECIPE.format(count=100, epochs=arguments.epochs))
        seen = watch(["run", "growth.toml"], folder, SMALLER, since="classifier: epoch", until="classifier: done")
        tell(arguments, f"{arguments.epochs} epochs", seen)


def samples(arguments: argparse.Namespace) -> None:
    """Memory over many samples."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "growth.toml").write_text(SAMPLES.format(count=arguments.samples, export="false"))
        seen = watch(["run", "growth.toml"], folder, SMALLER, since="label_mixup: started", until="label_mixup: done")
        tell(arguments, f"{arguments.samples:,} samples", seen)


def predictions(arguments: argparse.Namespace) -> None:
    """Memory over many predictions; the files are links to a thousand."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "growth.toml").write_text(SAMPLES.format(count=100, export="true"))
        watch(["run", "growth.toml"], folder)
        pictures(folder / "few", 1000, 8, 1, 0)
        (folder / "many").mkdir()
        for place in range(arguments.predictions):
            os.link(folder / "few" / f"{place % 1000}.bmp", folder / "many" / f"{place:07}.bmp")
        seen = watch(["predict", "saved/growth", "many", "--csv"], folder, since="000")
        told = len((folder / "out").read_text().splitlines()) - 1
        tell(arguments, f"{told:,} predictions", seen)


PARTS = {part.__name__: part for part in (images, epochs, samples, predictions)}


def main() -> None:
    """Runs the parts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--factors", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--predictions", type=int, default=100_000)
    parser.add_argument("--keep", action="store_true", help="keep the figures for the documentation")
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    arguments = parser.parse_args()
    print(f"{machine()}; KERAS_BACKEND={os.environ.get('KERAS_BACKEND', 'tensorflow')}")
    for part in arguments.parts:
        PARTS[part](arguments)


if __name__ == "__main__":
    main()
