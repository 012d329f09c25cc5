"""`kood attach`: a run without training, around a classifier that exists."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kood import pipeline
from kood.attached import image_shape_of, opened
from kood.errors import UserError
from kood.recipe import Recipe, checked
from kood.starter import named, slug_of, source_of, survey
from kood.text import clean

__all__ = ["attach", "recipe_for"]

#: The side of images for a model that takes any.
SIDE = 224
#: Fewest images of each class that every part gets some of.
FEWEST = 8


def attach(model: Path, **options: Any) -> dict[str, Any]:
    """Makes a run of a classifier that exists: its scores, a threshold, a report, a SavedModel.

    Args:
        model: Its `.keras` file.
        **options: Those of `recipe_for`, and of `kood.pipeline.run`.

    Returns:
        What `report.json` holds.

    Raises:
        UserError: the model cannot be taken apart, or its outputs are not the classes of the images.
    """
    running = {key: options.pop(key) for key in ("console", "saved", "fresh", "began") if key in options}
    return pipeline.run(recipe_for(model, **options), **running)


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
    name: str | None = None,
) -> Recipe:
    """The recipe of such a run, which `kood run` takes too.

    Args:
        model: The `.keras` file.
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
        name: Names the folder under `saved/`; the model's file where not given.
    """
    shape = _image_shape(model, size)
    found, place = survey(Path(known)), Path(known)
    if not found.names:
        raise UserError(f"--id {clean(known)}: has no class folders; give one sub-folder for each class of the model")
    fewest = min(found.train)
    parts: dict[str, Any] = {**source_of(place, found), "test": 0.5, "validation": 0.2, "calibration": 0.4}
    if fewest < FEWEST:
        parts["stratify"] = False
    data: dict[str, Any] = {"image_shape": list(shape), "id": parts}
    outside = {slug: source_of(one, survey(one)) for slug, one in named(ood).items()}
    if outside:
        data["near"] = outside
    evaluate = {"headline": score, **({"scores": list(scores)} if scores else {})}
    attached = {
        "model": str(model), "preprocess": preprocess,
        **({"classes": str(classes)} if classes else {}), **({"features": features} if features else {}),
    }  # fmt: skip
    given = {
        "name": slug_of(name, given=True) if name else slug_of(model.stem, given=False),
        "data": data, "attach": attached, "evaluate": evaluate, "serve": {"accept": accept, "by_class": by_class},
    }  # fmt: skip
    return checked(given, f"kood attach {clean(model)}")


def _image_shape(file: Path, size: int | None) -> tuple[int, int, int]:
    height, width, channels = image_shape_of(opened(file))
    if size is not None and not ((height or size) == (width or size) == size):
        raise UserError(f"--size {size}: the model takes {height} x {width} pixels; leave it out")
    return height or size or SIDE, width or size or SIDE, channels
