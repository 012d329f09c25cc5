"""`kood attach`: a run without training, around a classifier that exists."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kood import pipeline
from kood.attached import bring, image_shape_of, opened
from kood.data.elsewhere import otherwise
from kood.errors import UserError, in_words
from kood.pipeline.attached import outputs_named
from kood.recipe import Recipe, checked
from kood.starter import Survey, literal, named, slug_of, source_of, survey
from kood.starter.choices import FEWEST
from kood.starter.pretrained import SIDE
from kood.text import clean

__all__ = ["attach", "recipe_for"]

#: How many times as large as the model's, or as small, images are said to be made smaller, or larger.
RESIZED = 2.0
#: One file in so many may turn out to be unreadable, where not all were looked at.
UNREADABLE = 100

#: How messages about images begin.
_PATH = r"^(?:path: )?"
#: How messages call what a recipe has, and the library's arguments, -> the options of the command.
_SAID = {
    r"^kood attach .*?: (?=(?:serve|evaluate|data|attach)\.)": "",
    r"^model: ": "MODEL: ",
    r"\bdata\.(id|near\.[\w.-]+)\.path\b": r"data.\1",
    r"\braise data\.id\.calibration\b": "give more images with --id",
    r"\bdata\.near\.([\w-]+(?:\.[\w-]+)*)": r"--ood \1",
    r"\bdata\.id\b": "--id",
    r"\bdata\.resize\b(?: =)?": "--resize",
    r"\bdata\.antialias\b(?: =)?": "--antialias",
    r"\bserve\.accept\b(?: =)?": "--accept",
    r"\bserve\.by_class\b": "--by-class",
    r"\bevaluate\.(?:headline|scores)\b": "--score",
    r"\battach\.model\b": "MODEL",
    r"\battach\.classes\b": "--classes",
    r"\battach\.imports\b": "--import",
    r"\b(preprocess|features) ?= ?(['\"])(.*?)\2": r"--\1 \3",
    r"\b(preprocess|features)=\.\.\.": r"--\1",
    r"\bleave (preprocess|features) out\b": r"leave --\1 out",
    r"\(preprocess\)": "(--preprocess)",
    r"\(image_shape\)": "(--size)",
    r"register it .* pass custom_objects": "name the module that defines or registers it with --import MODULE",
    r"give the class names in the order of the model's outputs": r"\g<0> (--classes FILE)",
    r"--set name=\.\.\.": "--name NAME",
    r"the class 'all' has too few images": "there are too few images",
    r", drop the class, lower `validation`.*": "",
    r" or another backbone": "",
    r", or set max_bad_images to go on without it": "",
    r"more files than max_bad_images = (\d+)": r"more than \1 files",
}


def attach(model: Path, **options: Any) -> dict[str, Any]:
    """Makes a run of a classifier that exists: its scores, a threshold, a report, a SavedModel.

    Args:
        **options: Those of `recipe_for`, and of `kood.pipeline.run`.

    Returns:
        What `report.json` holds.

    Raises:
        UserError: the model cannot be taken apart, or its outputs are not the classes of the images.
    """
    of_run = ("console", "saved", "fresh", "other_data", "began")
    running = {key: options.pop(key) for key in of_run if key in options}
    with in_words(_SAID):
        recipe, told = recipe_for(model, **options)
        if told and (console := running.get("console")):
            console.print(told, soft_wrap=True)
        return pipeline.run(recipe, **running)


def recipe_for(
    model: Path,
    *,
    known: str,
    ood: Sequence[str] = (),
    accept: float = 0.95,
    by_class: bool = False,
    score: str = "auto",
    scores: Sequence[str] | None = None,
    classes: Path | None = None,
    preprocess: str = "none",
    features: str | None = None,
    size: int | None = None,
    resize: str = "stretch",
    antialias: bool | None = None,
    imports: Sequence[str] = (),
    name: str | None = None,
) -> tuple[Recipe, str]:
    """The recipe of such a run, which `kood run` takes too, and what to say of it.

    Args:
        known: Images of the model's classes: a folder with one sub-folder a class, or a table of lines FILE,LABEL. Half
            of them are tested on, the others fit scores, choose one and set the threshold; or the parts of its own.
        ood: Folders or tables of images of no such class, to test on.
        accept: Share of known images to accept.
        by_class: Whether each class has a threshold of its own.
        score: The score that decides; "auto" chooses.
        scores: Those to measure; all that apply where not given.
        classes: The class of each output, see `kood.recipe.sections.Attach`.
        preprocess: See there.
        features: See there.
        size: Side of the images, for a model that takes any.
        resize: What becomes of images of other proportions, see `kood.recipe.data_sections.Data`.
        antialias: See there; done, and said, where not given.
        imports: See there.
        name: Names the folder under `saved/`; the model's file where not given.

    Raises:
        UserError: a file or a folder that is not there, or not what is needed; an option that has no such value.
    """
    bring(imports, "attach.imports")
    if classes is not None:
        outputs_named(literal(str(classes)))
    shape, is_any = _image_shape(model, size)
    with in_words({_PATH: "--id: "}):
        place = literal(known)
        found = survey(place, to_learn=True)
    if not found.names:
        raise UserError(f"--id {clean(known)}: has no class folders; give one sub-folder for each class of the model")
    parts: dict[str, Any] = {**_source(place, found), "test": 0.5, "validation": 0.2, "calibration": 0.4}
    if min(found.learnable) < FEWEST:
        parts["stratify"] = False
    data: dict[str, Any] = {
        "image_shape": list(shape),
        "resize": resize,
        "antialias": antialias is not False,
        "id": parts,
    }
    with in_words({_PATH: "--ood: "}):
        outside = {slug: _source(one, survey(one)) for slug, one in named(ood).items()}
    if outside:
        data["near"] = outside
    evaluate = {"headline": score, **({"scores": list(scores)} if scores else {})}
    attached = {
        "model": str(literal(str(model))), "preprocess": preprocess, "imports": list(imports),
        **({"classes": str(literal(str(classes)))} if classes else {}), **({"features": features} if features else {}),
    }  # fmt: skip
    given = {
        "name": slug_of(name, given=True) if name else slug_of(model.stem, given=False),
        "data": data, "attach": attached, "evaluate": evaluate, "serve": {"accept": accept, "by_class": by_class},
    }  # fmt: skip
    lines = [_side(shape) if is_any and size is None else "", _resized(found, shape, antialias)]
    lines += otherwise(found.kinds, len(found.shapes))
    return checked(given, f"kood attach {clean(model)}"), "\n".join(filter(None, lines))


def _side(shape: tuple[int, int, int]) -> str:
    """What is assumed of a model that does not say the size of its images."""
    return f"images: {shape[0]} x {shape[1]}, since the model takes any size; --size gives that which it was trained on"


def _resized(found: Survey, shape: tuple[int, int, int], antialias: bool | None) -> str:
    """What resizing may cost, a sentence; "" where images hardly are, or where antialiasing has been decided on."""
    by = float(np.median((found.shapes / shape[:2]).max(axis=1))) if len(found.shapes) else 1.0
    if by < 1 / RESIZED:
        return (
            f"images: made {1 / by:.1f} times larger, to {shape[0]} x {shape[1]}, which blurs them; a model that was "
            "trained on sharp ones labels them worse"
        )
    if by < RESIZED or antialias is not None:
        return ""
    return (
        f"images: made {by:.1f} times smaller, with antialiasing; for a model that was trained without, as on images "
        "from Keras's image_dataset_from_directory, give --no-antialias"
    )


def _source(place: Path, found: Survey) -> dict[str, Any]:
    """The table of a recipe that says where images are; of many, a few that cannot be read do not stop the run."""
    table = source_of(place, found)
    spare = 0 if found.looked_at >= found.files else found.files // UNREADABLE
    return {**table, "max_bad_images": most} if (most := max(found.bad_at_most, spare)) else table


def _image_shape(file: Path, size: int | None) -> tuple[tuple[int, int, int], bool]:
    """(H, W, C) of the images, and whether the model takes any size."""
    height, width, channels = image_shape_of(opened(file))
    if size is not None and not ((height or size) == (width or size) == size):
        raise UserError(f"--size {size}: the model takes {height} x {width} pixels; leave it out")
    return (height or size or SIDE, width or size or SIDE, channels), None in (height, width)
