"""What fewer sampling steps cost in quality: FID and class content of each sampler, from a finished run's models.

    python benchmarks/sampler_quality.py saved/cifar10_16px [--images 2000] [--guidance 1 2 3]
        [--samplers ddim:50 dpm_solver:15]

Every sampler starts from the same noise under the same labels. FID and KID are against all images of the run's data
that neither the diffusion model nor the judge was trained on (validation, calibration and test), in the judge's
penultimate features, which see no fine texture; KID stands with its standard error. "named" is the share of images that
the judge gives the class they were made for. The first row is as many training images: the floor of both distances.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from turns import keep, machine

# Keras finds what a file names where it has been imported.
import kood.classifier  # noqa: F401
import kood.diffusion.denoiser  # noqa: F401
from kood import registry
from kood.audit.fidelity import frechet_distance, kernel_distance
from kood.data.images import quantize
from kood.data.stored import read_images
from kood.diffusion.sampling import ImageSampler
from kood.outputs import Judge
from kood.runs import Result, Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a folder that `kood run` wrote")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 3.0])
    parser.add_argument("--samplers", nargs="+", default=["ddim:50", "dpm_solver:15"], metavar="NAME:STEPS")
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep the figures for the documentation")
    arguments = parser.parse_args()

    data, diffusion, classifier = stages(Run(arguments.run))
    sets = data.facts["sets"]
    train = read_images(data.folder, "train", sets["train"])
    others = [read_images(data.folder, name, sets[name]) for name in ("validation", "calibration", "test")]
    judge = Judge(keras.saving.load_model(classifier.folder / "classifier.keras", compile=False))
    real = judge.opinions(np.concatenate([one.images for one in others]))[1]

    print(f"{machine()}, {keras.backend.backend()}")
    print(f"{arguments.images} images a row, {len(real)} held-out images, {real.shape[1]} features\n")
    print(f"{'sampler':<16}{'steps':>6}{'guidance':>10}{'images/s':>10}{'FID':>9}{'KID':>18}{'named':>8}")
    some = np.sort(np.random.default_rng(arguments.seed).choice(len(train), arguments.images, replace=False))
    rows = [show("training images", "", "", "", judge, np.asarray(train.images[some]), train.known_labels[some], real)]

    classes = len(train.class_names)
    labels = np.arange(arguments.images) % classes
    condition = np.eye(classes, dtype="float32")[labels]
    shape = train.images.shape[1:]
    noise = np.random.default_rng(arguments.seed).standard_normal((arguments.images, *shape), dtype="float32")
    denoiser = keras.saving.load_model(diffusion.folder / "denoiser.keras", compile=False)
    for guidance in arguments.guidance:
        for wanted in arguments.samplers:
            name, _, steps = wanted.partition(":")
            sampler = ImageSampler(
                denoiser, shape, sampler=registry.obtain("samplers", name), num_steps=int(steps), guidance=guidance,
                batch_size=arguments.batch,
            )  # fmt: skip
            sampler.with_steps(1).images(condition[: arguments.batch], noise=noise)  # Compiles.
            began = time.monotonic()
            images = quantize(sampler.images(condition, noise=noise))
            speed = f"{len(images) / (time.monotonic() - began):.1f}"
            rows.append(show(name, steps, f"{guidance:g}", speed, judge, images, labels, real))
    if arguments.keep:
        learnt = {"training steps": diffusion.facts["steps"], "passes": diffusion.facts["passes"]}
        about = {"images": arguments.images, "held-out images": len(real), "features": real.shape[1], **learnt}
        keep({**row, **about} for row in rows)


def show(
    name: str, steps: str, guidance: str, speed: str, judge: Judge, images: np.ndarray, labels: np.ndarray,
    real: np.ndarray,
) -> dict[str, Any]:  # fmt: skip
    """Measures a set of images, prints its row and returns it."""
    posteriors, features = judge.opinions(images)
    fid, (kid, spread) = frechet_distance(features, real), kernel_distance(features, real)
    error = "-" if spread is None else f"{spread:.4f}"
    named = float(np.mean(posteriors.argmax(1) == labels))
    print(
        f"{name:<16}{steps:>6}{guidance:>10}{speed:>10}{fid:>9.3f}{kid:>11.4f}+-{error:<5}{named:>8.1%}",
        flush=True,
    )
    about = {"sampler": name, "steps": steps, "guidance": guidance, "named": round(named, 4), "FID": round(fid, 4)}
    distance = {"KID": round(kid, 5), "KID error": spread and round(spread, 5)}
    return {"row": " ".join(filter(None, (name, steps, guidance))), **about, **distance}


def stages(run: Run) -> tuple[Result, Result, Result]:
    """The newest data and diffusion stages of a run, and the classifier of its matrix or judge that saw no outliers.

    That of a fold learnt fewer images than the data has, and fewer classes than samples are made of.
    """
    found = {name: next(iter(run.finished(name)), None) for name in ("data", "diffusion")}
    plain = [stage for stage in run.finished("classifier") if saw_real_images_alone(stage)]
    train = found["data"].facts["sets"]["train"]["sha256"] if found["data"] else ""
    own = [stage for stage in plain if decided(stage)["images"] == [train]]
    if not own and any("features" in decided(stage) for stage in plain):
        sys.exit(f"{run.folder}: its classifiers stand on a frozen backbone; they take features, and judge no images")
    if None in found.values() or not own:
        sys.exit(f"{run.folder}: needs a finished diffusion model and a classifier of all classes that saw no outliers")
    return found["data"], found["diffusion"], own[0]


def saw_real_images_alone(stage: Result) -> bool:
    """Whether a classifier was trained with head softmax and neither outliers nor samples."""
    decides = decided(stage)
    return decides["head"]["name"] == "softmax" and decides["exposure"] is None and decides["pure"] is None


def decided(stage: Result) -> dict[str, Any]:
    """What decided a stage's result."""
    return json.loads((stage.folder / "stage.json").read_bytes())["decides"]


if __name__ == "__main__":
    main()
