"""The first stage: images brought to the recipe's shape, split, and written down."""

from pathlib import Path
from typing import Any

import numpy as np

from kood.classifier import Classifier
from kood.conformal import refuse_too_few
from kood.data import ImageSet, load_id, load_ood, load_outliers
from kood.data.copies import alike, distinct, image_digests
from kood.data.rules import ground_colour
from kood.data.stored import source_state, write_digests, write_images
from kood.errors import UserError
from kood.pipeline.build import build_classifier, build_network, class_weights, mixed_groups
from kood.pipeline.work import Work
from kood.recipe import Recipe
from kood.runs import Stage
from kood.scorer import linear_weights, rehearse

__all__ = ["check", "prepare_data", "warnings_of"]

#: A smoke run looks at no more images of a set than this.
QUICK_IMAGES = 200


def prepare_data(work: Work) -> Stage:
    """Brings every image set to the recipe's shape, splits the in-distribution one, and writes down what entered."""
    data, limit = work.recipe.data, QUICK_IMAGES if work.recipe.quick else None
    sources = _ood_sources(work.recipe)
    real = sources.get("outliers.real")

    def make(folder: Path) -> dict[str, Any]:
        try:
            return written(folder)
        except UserError:  # The images of a refused recipe are of no use to the next one.
            for file in folder.glob("*.npy"):
                file.unlink()
            raise

    def written(folder: Path) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        parts: dict[str, str] = {}
        skipped: dict[str, list[str]] = {}
        seen: dict[str, np.ndarray] = {}

        def keep(key: str, name: str, images: ImageSet) -> np.ndarray:
            """Writes a set down, and what its source has to say of it."""
            facts[name] = write_images(folder, name, images)
            digests = image_digests(images.images)
            write_digests(folder, name, digests)
            skipped.setdefault(key, []).extend(why for why in images.skipped if why not in skipped[key])
            notes.extend(told for note in images.notes if (told := f"{key}: {note}") not in notes)
            return digests

        with work.progress.stage("data", 1 + len(sources), unit="set") as stage:
            splits = load_id(data)
            notes, warnings = list(splits.notes), list(splits.warnings)
            names = ("train", "validation", "calibration", "test")
            sets = {name: getattr(splits, name) for name in names}
            if limit:  # The training part is cut by `per_class`.
                sets |= {name: _some(sets[name], limit) for name in names if name != "train"}
            digests = [keep("data.id", name, images) for name, images in sets.items()]
            write_digests(folder, "data.id", splits.digests)
            seen["data.id"] = distinct(np.concatenate(digests))
            stage.update(1)
            for done, (key, source) in enumerate(sources.items(), start=2):
                how: dict[str, Any] = {"seed": data.split_seed, "key": key, "ground": ground_colour(data.ground)}
                if key == "outliers.real":
                    parts[key], images = load_outliers(source, data.shape, **how)
                    notes.append(f"{key}: {_taken(parts[key], source.source)}")
                else:
                    images = load_ood(source, data.shape, **how)
                images = _some(images, limit) if limit else images
                found = keep(key, key, images)
                if same := alike(images.images, found):
                    warnings.append(f"{key}: {same}")
                _refuse_shared(key, distinct(found), seen)
                stage.update(done)
        return {
            "sets": facts, "skipped": {key: why for key, why in skipped.items() if why}, "notes": notes,
            "warnings": warnings, "copies": splits.copies, "parts": parts,
        }  # fmt: skip

    decides = {
        "data": data.model_dump(exclude={"augment"}),
        "real": real.model_dump() if real else None,
        "states": {key: source_state(source, key) for key, source in {"data.id": data.id, **sources}.items()},
    }
    told = set(work.seen)
    stage = work.stage("data", decides, make)
    if stage.folder not in told:
        for message in stage.facts["notes"]:
            work.progress.say(message)
        for message in warnings_of(stage):
            work.progress.say(message, style="yellow")
    return stage


def _taken(part: str, source: str) -> str:
    """Which part of its source real outliers are."""
    if part == "all":
        return f"the images of {source!r}, which has one part"
    return f"the {'training' if part == 'train' else part} part of {source!r}"


def warnings_of(stage: Stage) -> list[str]:
    """What speaks against the data, and what was left out because it could not be read, a sentence for each source."""
    return stage.facts["warnings"] + [
        f"{key}: {len(why)} files cannot be read and are left out: " + "; ".join(why[:5]) + ("; ..." if why[5:] else "")
        for key, why in stage.facts.get("skipped", {}).items()
    ]


def _refuse_shared(key: str, digests: np.ndarray, seen: dict[str, np.ndarray]) -> None:
    """No image may stand on two sides of what is compared; test sets may share images with one another."""
    for other, theirs in seen.items():
        together = len(distinct(np.concatenate([digests, theirs])))
        shared, reason = len(digests) + len(theirs) - together, _forbidden(key, other)
        if shared and reason:
            raise UserError(
                f"{key}: {shared} of its {len(digests)} different images are in {other} as well, so {reason}; remove "
                "them from one, or give the two different classes"
            )
    seen[key] = digests


def _forbidden(key: str, other: str) -> str:
    """Why two sets may not share an image; "" where they may."""
    if other == "data.id":
        return "the detector would be wrong to flag them, and wrong to accept them"
    if key == "outliers.real":
        if other.startswith("data.validation_ood."):
            return "choices would be made on images that the classifier was trained on"
        return "the detector would be tested on images that it was trained on"
    if key.startswith("data.validation_ood."):
        return "" if other.startswith("data.validation_ood.") else "choices would be made on test images"
    return ""


def _ood_sources(recipe: Recipe) -> dict[str, Any]:
    """The out-of-distribution sets by their recipe keys."""
    kinds = ("near", "far", "validation_ood")  # Each is checked against those before it.
    sources = {f"data.{kind}.{name}": s for kind in kinds for name, s in getattr(recipe.data, kind).items()}
    if recipe.outliers.real is not None and "real" in recipe.outliers.use:
        sources["outliers.real"] = recipe.outliers.real
    return sources


def _some(images: ImageSet, most: int) -> ImageSet:
    if len(images) <= most:
        return images
    return images.take(np.sort(np.random.default_rng(0).choice(len(images), most, replace=False)))


def _check_batches(recipe: Recipe, devices: int) -> None:
    made_of = {"train.batch_size": recipe.train.batch_size}
    if recipe.outliers.exposes:
        made_of["outliers.per_batch"] = recipe.outliers.per_batch
    if "id_rows" in recipe.pure_samples.use:
        made_of["pure_samples.per_batch"] = recipe.pure_samples.per_batch or recipe.outliers.per_batch
    _check_rows(made_of, devices)
    if recipe.outliers.exposes and "virtual" in recipe.outliers.use:
        _check_rows({"outliers.per_batch": recipe.outliers.per_batch}, devices)
    if recipe.needs_diffusion:
        _check_rows({"diffusion.batch_size": recipe.diffusion.batch_size}, devices)


def _check_rows(made_of: dict[str, int], devices: int) -> None:
    if sum(made_of.values()) % devices:
        settings = " and ".join(f"{key} = {rows}" for key, rows in made_of.items())
        raise UserError(
            f"{settings}: {devices} devices cannot share {sum(made_of.values())} rows evenly; make it a multiple of "
            f"{devices}, or set train.devices"
        )


def _check_scores(work: Work, classifier: Classifier, classes: int) -> None:
    """A score that the recipe names must be one that so many images and so wide a feature can determine."""
    settings, train = work.recipe.evaluate, work.data("train")
    named = {settings.headline.lower(): "evaluate.headline"} if settings.headline.lower() != "auto" else {}
    named |= {name.lower(): "evaluate.scores" for name in settings.scores or []}
    width, head = classifier.backbone.output_shape[-1], classifier.head
    counts = tuple(np.bincount(train.known_labels, minlength=classes).tolist())
    for name, key in named.items():
        try:
            rehearse(name, counts, width, type(head).__name__, bool(linear_weights(head)))
        except ValueError as error:
            raise UserError(
                f"{key}: {name} cannot be fitted to the {len(train)} training images of {classes} classes in data.id, "
                f"with {width} features each: {error} Give it more images or "
                "another backbone, or name another score (kood list scores)"
            ) from error


def check(work: Work) -> None:
    """What only data can reveal is refused before the first training step."""
    recipe, classes = work.recipe, work.data("train").class_names
    if len(classes) < 2:
        raise UserError(f"data.id: has {len(classes)} class; a classifier needs at least 2")
    if "label_mixup" in recipe.outliers.use and recipe.outliers.label_mixup.classes > len(classes):
        raise UserError(
            f"outliers.label_mixup.classes is {recipe.outliers.label_mixup.classes}, but data.id has {len(classes)}"
        )
    if recipe.evaluate.headline == "auto" and len(work.data("validation")) == 0:
        raise UserError("evaluate.headline = 'auto' chooses on validation images; set data.id.validation above 0")
    copies = work.stages["data"].facts["copies"].get("left_out_of_calibration", 0)
    refuse_too_few(len(work.data("calibration")), recipe.serve.accept, copies)
    _check_batches(recipe, work.devices.count)
    class_weights(recipe.train.class_weight, work.data("train").known_labels, classes)
    _check_scores(work, build_classifier(recipe, len(classes)), len(classes))
    if "label_mixup" in recipe.outliers.use:
        groups = mixed_groups(recipe, classes)
        confused = recipe.outliers.label_mixup.pairs == "confused" and groups is None
        if confused and len(work.data("validation")) == 0:
            raise UserError("outliers.label_mixup.pairs = 'confused' asks validation images; set data.id.validation "
                            "above 0")  # fmt: skip
    if recipe.needs_diffusion:
        build_network(recipe, len(classes))
