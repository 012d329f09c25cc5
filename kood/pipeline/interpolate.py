"""Figure 1: the way from one class to another, drawn from a finished run's diffusion model."""

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from kood import registry
from kood.attached import opened
from kood.data import ImageSet
from kood.data.images import quantize
from kood.data.stored import read_images
from kood.diffusion.label_mixup import interpolation
from kood.diffusion.sampling import ImageSampler, image_sampler, resized, same_start
from kood.errors import UserError, in_words
from kood.outliers.label_mixup import LabelMixup
from kood.process import keras_defaults
from kood.recipe import load
from kood.recipe.messages import explain
from kood.report import StageProgress
from kood.report.sheet import write_sheet
from kood.runs import Result, Run
from kood.text import composed

__all__ = ["draw"]


@keras_defaults()
def draw(
    folder: Path,
    first: str,
    last: str,
    *,
    rows: int = 4,
    columns: int = 9,
    steps: list[int] | None = None,
    seed: int | None = None,
    out: Path | None = None,
    changes: dict[str, Any] | None = None,
    console: Console | None = None,
) -> Path:
    """Samples the way from one class to another and writes it as a contact sheet; one start along each row.

    Where several numbers of steps are asked for, each has its block of rows from the same starts, and a table says what
    it cost and how far its images are from those of the most steps.

    Args:
        folder: `saved/<recipe>`, with a finished diffusion model; of several, the newest is taken.
        rows: Rows, for each number of steps.
        columns: Images in a row, both pure classes included.
        steps: Numbers of sampling steps; not given, the recipe's.
        seed: Of the starts; not given, the recipe's.
        out: A PNG file; not given, one in the run's folder.
        changes: Settings of `outliers.label_mixup` to use in place of the recipe's.

    Returns:
        The file that was written.

    Raises:
        UserError: no run, no diffusion model, no such class, settings that do not go together, a file that cannot be
            written.
    """
    console = console or Console()
    diffusion, train = _model_of(folder)
    recipe = load(folder / "recipe.toml")
    settings = _changed(recipe.outliers.label_mixup, changes or {})
    if settings.push:
        console.print("drawn without outliers.label_mixup.push, for which there is no classifier here", style="yellow")
    names = list(train.class_names)
    ends = [_class_of(first, names, "--from"), _class_of(last, names, "--to")]
    if ends[0] == ends[1]:
        raise UserError(f"--from and --to are both {names[ends[0]]!r}; name two classes")
    out = out or folder / f"outliers_{_slug(names[ends[0]])}_{_slug(names[ends[1]])}.png"
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: give it the ending .png")
    seed = recipe.seed if seed is None else seed
    steps = steps or [settings.sampling_steps]
    with in_words({"; [^;]*$": "; run the recipe again with --fresh"}):
        denoiser = opened(diffusion.folder / "denoiser.keras", key="RUN")
    if settings.guidance != 1 and not denoiser.label_dropout:
        raise UserError(f"--guidance {settings.guidance:g}: this diffusion model learnt no image without a label "
                        "(diffusion.label_dropout = 0); give --guidance 1")  # fmt: skip
    shape = denoiser.image_shape
    train = resized(train, shape)
    try:
        longest = settings.model_copy(update={"sampling_steps": max(steps)})
        sampler = image_sampler(denoiser, shape, longest, seed, mix=settings.mix)
    except ValueError as error:
        raise UserError(f"--steps: {error}") from error

    rng = np.random.default_rng([seed, 0, 2])
    conditions = interpolation(len(names), np.tile(ends, (rows, 1)), columns)
    flat, how = same_start(conditions, shape, rng, train if settings.start == "image" else None)
    images, seconds = _sampled(sampler, flat, how, steps, console)
    shaped = images.reshape(len(steps) * rows, columns, *shape)
    captions = [f"{count} step{'s' * (count > 1)}" for count in steps for _ in range(rows)]
    try:
        write_sheet(out, shaped, np.tile(conditions, (len(steps), 1, 1)), names, captions)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write there: {error.strerror}", exit_code=1) from error
    if len(steps) > 1:
        console.print(_cost(steps, seconds, images))
    return out


def _sampled(
    sampler: ImageSampler,
    condition: np.ndarray,
    how: dict[str, Any],
    steps: list[int],
    console: Console,
) -> tuple[np.ndarray, list[float]]:
    """(uint8 (steps, N, H, W, C), seconds of each), the compiler's time left out where times are compared."""
    images, seconds = [], []
    with StageProgress(console).bar("interpolation", len(steps) * len(condition), unit="image") as bar:
        if len(steps) > 1:
            sampler.with_steps(1).images(condition, **how)
        for done, count in enumerate(steps):
            began = time.monotonic()

            def show(made: int, before: int = done * len(condition)) -> None:
                bar.update(before + made)

            sampled = sampler.with_steps(count).images(condition, **how, progress=show)
            seconds.append(time.monotonic() - began)
            images.append(quantize(sampled))
    return np.stack(images), seconds


def _cost(steps: list[int], seconds: list[float], images: np.ndarray) -> Table:
    """What fewer steps save, and how far they are from the most."""
    table = Table("steps", "images/s", f"mean distance from {max(steps)} steps, of 255 grey levels")
    best = images[int(np.argmax(steps))].astype("float64")
    for count, took, made in zip(steps, seconds, images, strict=True):
        table.add_row(str(count), f"{len(made) / took:.3g}", f"{np.abs(made - best).mean():.1f}")
    return table


def _model_of(folder: Path) -> tuple[Result, ImageSet]:
    """The newest finished diffusion model of a run and the images that it was trained on."""
    run = Run(folder)
    if not (folder / "recipe.toml").is_file():
        raise UserError(f"{folder}: there is no run here; give the folder that `kood run` wrote, saved/<recipe>")
    data = {stage.facts["sets"]["train"]["sha256"]: stage for stage in run.finished("data")}
    for stage in run.finished("diffusion"):
        record = json.loads((stage.folder / "stage.json").read_bytes())
        found = data.get(record["decides"]["train"][0])
        if found is not None:
            return stage, read_images(found.folder, "train", found.facts["sets"]["train"])
    raise UserError(
        f"{folder}: this run has no finished diffusion model; run a recipe with outliers.use = ['label_mixup'] first"
    )


def _changed(settings: LabelMixup, changes: dict[str, Any]) -> LabelMixup:
    given = {**settings.model_dump(), **changes}
    try:
        return LabelMixup.model_validate(given)
    except ValidationError as error:
        lines = explain(error, LabelMixup, given).splitlines()
        raise UserError("\n".join(f"--{line.removeprefix('recipe: ')}" for line in lines)) from error


def _class_of(name: str, names: list[str], option: str) -> int:
    name = composed(name)
    if name in names:
        return names.index(name)
    lowered = [known.lower() for known in names]
    if lowered.count(name.lower()) == 1:
        return lowered.index(name.lower())
    raise UserError(f"{option}: there is no class {name!r}; {registry.nearest(name, names)}")


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", name).strip("-")[:40] or "class"
