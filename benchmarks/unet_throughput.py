"""What the U-Net costs: kood's training and sampling against bare loops and against diffusers' `UNet2DModel`.

    python benchmarks/unet_throughput.py [--size 16] [--patch 2] [--width 80] [--batch 128] [--backends torch jax]

Sides, each in a process of its own that waits while another works, in turn, A B C A B C, after a round not counted:

- kood: `kood.training.fit` of the `Denoiser` (v-prediction, AdamW, clipping, EMA), data pipeline included;
- bare: a loop written by hand in the backend's own words over the same network: same loss, same optimizer mathematics;
- diffusers: `UNet2DModel` on torch in such a loop, on NCHW and on channels_last memory, of which the better counts.

Both networks work on the same maps: diffusers gets the image with its pixels folded into channels. It has the same
width at the first level, attention at the same maps and class embeddings; its blocks per level and the width of the
deeper level are chosen so that its parameters come nearest to kood's (both counts are printed). Sampling is
DPM-Solver++ in both, `DPMSolverMultistepScheduler` there, as many steps, no guidance.

`--precision` is that of kood's network, in its own training and in the bare loop, and `--resident` kood's alone, as
`train.resident` of a recipe. 35 M parameters at 32 px, as a GPU is asked for them:

    python benchmarks/unet_throughput.py --size 32 --patch 2 --width 184 --multipliers 1 2 2 --batch 512 --steps 40 \
        --precision mixed_bfloat16 --backends jax

A figure is images a second, the median over the rounds. A round of kood's training begins with half a second of its
own, as each epoch does: on a fast machine four steps are too few (`--steps 40`). Figures differ between machines; the
ratios are what counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec

from turns import keep, machine

from kood.machine import cores

BACKENDS = ("torch", "tensorflow", "jax")
#: Each process and what it can be asked for.
SIDES = {
    **dict.fromkeys(BACKENDS, ("kood", "bare", "sample")),
    "diffusers": ("train NCHW", "train channels_last", "sample NCHW", "sample channels_last"),
}


class Worker:
    """A process that does one round of one side when asked."""

    def __init__(self, name: str, arguments: list[str], threads: int):
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": str(threads)}
        environment["KERAS_BACKEND"] = "torch" if name == "diffusers" else name
        command = [sys.executable, __file__, *arguments, "--worker", name]
        self.name = name
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the process)
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors
        )
        self.facts: dict = {}

    def ready(self) -> None:
        """Waits until it has built its networks, and keeps what it says of them."""
        self.facts = self._answer()

    def ask(self, side: str) -> float:
        """Images a second of one round."""
        self.process.stdin.write(side + "\n")
        self.process.stdin.flush()
        return self._answer()["speed"]

    def stop(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict:
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self.errors.seek(0)
        sys.exit(f"{self.name}: {(self.errors.read().strip().splitlines() or ['ended'])[-1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--patch", type=int, default=2)
    parser.add_argument("--width", type=int, default=80)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4, help="training steps a round; a fast machine wants forty")
    parser.add_argument("--sampling-steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=BACKENDS)
    parser.add_argument("--precision", default="float32", choices=("float32", "mixed_bfloat16"))
    parser.add_argument("--resident", default="auto", choices=("auto", "true", "false"))
    parser.add_argument("--multipliers", type=int, nargs="+", default=[1, 2], help="of the width, one a level")
    parser.add_argument("--keep", action="store_true", help="keep the figures for the documentation")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        from unet_sides import serve

        serve(arguments)
        return
    threads = cores()
    names = [name for name in (*arguments.backends, "diffusers") if find_spec(name) is not None]
    workers = [Worker(name, sys.argv[1:], threads) for name in names]
    for worker in workers:
        worker.ready()
    speeds: dict[tuple[str, str], list[float]] = {}
    for number in range(arguments.rounds + 1):
        for worker in workers:
            for side in SIDES[worker.name]:
                speed = worker.ask(side)
                print(f"round {number}: {worker.name} {side}: {speed:.1f}", file=sys.stderr, flush=True)
                if number:
                    speeds.setdefault((worker.name, side), []).append(speed)
    for worker in workers:
        worker.stop()
    found = {key: statistics.median(values) for key, values in speeds.items()}
    report(arguments, {worker.name: worker.facts for worker in workers}, found)


def report(arguments: argparse.Namespace, facts: dict[str, dict], found: dict[tuple[str, str], float]) -> None:
    """Prints the machine, a table and the ratios."""
    print(machine())
    print(
        f"{arguments.size} px, patch {arguments.patch}, width {arguments.width}, batch {arguments.batch}, "
        f"DPM-Solver++ in {arguments.sampling_steps} steps, {arguments.rounds} rounds; images a second"
    )
    for name, said in facts.items():
        print(f"{name}: {said['parameters']:,} parameters, {said['about']}")
    peer = {
        what: max((found[key] for key in found if key[0] == "diffusers" and key[1].startswith(what)), default=None)
        for what in ("train", "sample")
    }
    rows = []
    print(f"\n{'backend':<12}{'kood':>8}{'bare':>8}{'ratio':>8}{'/diffusers':>12}{'sampling':>10}{'/diffusers':>12}")
    for name, said in facts.items():
        if name == "diffusers":
            continue
        train, bare, sample = (found[name, side] for side in SIDES[name])
        against = [
            f"{speed / peer[what]:.2f}" if peer[what] else "-" for what, speed in (("train", train), ("sample", sample))
        ]
        print(f"{name:<12}{train:>8.0f}{bare:>8.0f}{train / bare:>8.2f}{against[0]:>12}{sample:>10.0f}{against[1]:>12}")
        told = {"train": round(train, 1), "bare": round(bare, 1), "sample": round(sample, 1)}
        rows.append({"row": name, **told, **said})
    if peer["train"]:
        for side in SIDES["diffusers"]:
            print(f"diffusers {side:<24}{found['diffusers', side]:>8.0f}")
        for memory in ("NCHW", "channels_last"):
            told = {what: round(found["diffusers", f"{what} {memory}"], 1) for what in ("train", "sample")}
            rows.append({"row": f"diffusers {memory}", **told, **facts["diffusers"]})
    if arguments.keep:
        keep(rows)
    ours = [name for name in facts if name != "diffusers"]
    for what, side in (("train", "kood"), ("sample", "sample")):
        best = max(ours, key=lambda name: found[name, side])
        if peer[what]:
            print(f"best backend, {what}: {best}, {found[best, side] / peer[what]:.2f} times diffusers")


if __name__ == "__main__":
    main()
