"""What only the data reveal of a recipe."""

import contextlib
import weakref
from collections.abc import Callable, Iterator

import keras
import numpy as np

from kood import specs
from kood.backends import Devices
from kood.classifier import Classifier
from kood.conformal import refuse_too_few
from kood.data import ImageSet
from kood.detector.measuring import Measuring
from kood.errors import UserError, first_line
from kood.pipeline.build import build_classifier, build_head, build_network, class_weights, frozen_backbone
from kood.pipeline.held_out import HeldOut, folds_of
from kood.pipeline.prepare import Data, Rows
from kood.recipe import Recipe
from kood.scorer import linear_weights, rehearse

__all__ = ["check", "check_batches", "check_scores"]


def check_batches(recipe: Recipe, devices: int) -> None:
    """Refuses, by `UserError`, batches that so many devices cannot share evenly."""
    for made_of in _batches(recipe):
        if sum(made_of.values()) % devices:
            settings = " and ".join(f"{key} = {rows}" for key, rows in made_of.items())
            raise UserError(
                f"{settings}: {devices} devices cannot share {sum(made_of.values())} rows evenly; make it a multiple "
                f"of {devices}, or set train.devices"
            )


def _batches(recipe: Recipe) -> Iterator[dict[str, int]]:
    """The settings that each batch is made of, and how many of its rows each gives."""
    outliers, pure = recipe.outliers, recipe.pure_samples
    exposed = {"outliers.per_batch": outliers.per_batch} if outliers.exposes else {}
    labelled = {"pure_samples.per_batch": pure.per_batch or outliers.per_batch} if "id_rows" in pure.use else {}
    for table in ("train", "fine_tuning") if recipe.classifier.train == "last" else ("train",):
        inside = {f"{table}.batch_size": getattr(recipe, table).batch_size}
        if recipe.train.auxiliary.name == "rotation":  # In-distribution rows are dealt out by themselves to be turned.
            yield inside | labelled
        yield inside | exposed | labelled
    if outliers.layers:
        yield exposed
    if recipe.needs_diffusion:
        yield {"diffusion.batch_size": recipe.diffusion.batch_size}


def check_scores(recipe: Recipe, train: ImageSet, obtain: Callable[[], keras.Model]) -> None:
    """A score that the recipe names must be one that so many images and so wide a feature can determine.

    Args:
        train: What scores are fitted on.
        obtain: Gives the classifier; not called where the recipe names no score.

    Raises:
        UserError: one cannot be fitted, or the classifier cannot give it.
    """
    settings, classes = recipe.evaluate, len(train.class_names)
    named = {settings.headline: "evaluate.headline"} if settings.headline != "auto" else {}
    named |= dict.fromkeys(settings.scores or [], "evaluate.scores")
    if not named:
        return
    for name, key in named.items() if settings.tune else ():
        specs.settings(name, key)  # Of one from outside the usual values may be none that it takes.
    classifier = obtain()
    if isinstance(classifier, Classifier):
        width, head = classifier.backbone.output_shape[-1], classifier.head
    else:
        measuring = Measuring(classifier, scores=list(named), key=next(iter(named.values())))
        width, head = measuring.outputs(train.take(np.arange(1)))["features"].shape[1], classifier.head
    counts = tuple(np.bincount(train.known_labels, minlength=classes).tolist())
    for name, key in named.items():
        try:
            rehearse(name, counts, width, type(head).__name__, bool(linear_weights(head)), key)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(
                f"{key}: {name} cannot be fitted to the {len(train)} training images of {classes} classes in data.id, "
                f"with {width} features each: {error} Give it more images or "
                "another backbone, or name another score (kood list scores)"
            ) from error


#: What has been read back; the cells of a matrix share a frozen backbone.
_read_back = weakref.WeakSet[keras.Layer]()


def _check_reads_back(key: str, name: str, made: keras.Layer) -> None:
    """What a network is made of must be known to Keras, or its file could not be read once it is trained."""
    if made in _read_back:
        return
    try:
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(made))
    except Exception as error:  # Whatever a stranger's `get_config` and `from_config` do.
        raise UserError(
            f"{key}: {name!r} could not be read back from a file ({first_line(error)[:200]}); decorate its "
            "classes with @keras.saving.register_keras_serializable() and give each a get_config"
        ) from error
    _read_back.add(made)


def _check_images(recipe: Recipe, rows: Rows, copies: int = 0) -> None:
    """What the images of a run must do, and those of each of its folds."""
    train = rows.images("train")
    for source in recipe.outliers.sources.values():
        source.check_images(train, rows.images("validation"))
    refuse_too_few(len(rows.images("calibration")), recipe.serve.accept, copies)
    if recipe.attach is not None:
        return
    learned = {"train": len(train) * (1 + recipe.classifier.views)}
    if recipe.classifier.train == "last":
        learned["fine_tuning"] = len(train)
    for table, count in learned.items():
        rows_at_once = getattr(recipe, table).batch_size
        if rows_at_once > count:
            raise UserError(f"{table}.batch_size: {rows_at_once} is more than the {count} training images; lower it to "
                            f"at most {count}, or give more images")  # fmt: skip


def _check_folds(recipe: Recipe, data: Data, classifier: Classifier) -> None:
    """Refuses what only a fold forbids: it has fewer images, and its head fewer classes."""
    if recipe.data.hold_out is None:
        return
    for held in folds_of(recipe.data.hold_out, data.images("train").class_names, recipe.data.split_seed):
        rows = HeldOut(data, held)
        train = rows.images("train")
        try:
            _check_images(recipe, rows)
            build_head(recipe, len(train.class_names))
            check_scores(recipe, train, lambda: classifier)
        except UserError as error:
            raise UserError(f"data.hold_out: without {', '.join(map(repr, held))}: {error}") from error


def check(recipe: Recipe, data: Data, devices: Devices) -> None:
    """Refuses, before the first training step, what only the data can reveal.

    Args:
        devices: Those that share a batch.

    Raises:
        UserError: a recipe that the data do not suit.
    """
    train, validation = data.images("train"), data.images("validation")
    classes = train.class_names
    if len(classes) < 2:
        raise UserError(f"data.id: has {len(classes)} class; a classifier needs at least 2")
    for setting, chooses in (("headline = 'auto'", recipe.evaluate.headline == "auto"), ("tune", recipe.evaluate.tune)):
        if chooses and len(validation) == 0:
            asked = recipe.data.id.validation
            mend = f" = {asked:g} gives none of so few; raise it, lower data.id.calibration, or add images"
            raise UserError(
                f"evaluate.{setting} chooses on validation images"
                + (f", and data.id.validation{mend}" if asked else "; raise data.id.validation")
            )
    copies = data.facts["copies"].get("left_out_of_calibration", 0)
    _check_images(recipe, data, copies)
    if recipe.attach is not None:
        return
    check_batches(recipe, devices.count)
    class_weights(recipe.train.class_weight, train.known_labels, classes)
    frozen = recipe.classifier.is_frozen
    with contextlib.nullcontext() if frozen else devices.foreseen():  # A frozen backbone need not be fit for it.
        classifier = build_classifier(recipe, len(classes))
    _check_reads_back("head.name", recipe.head.name, classifier.head)
    backbone = frozen_backbone(recipe) if frozen else classifier.backbone
    _check_reads_back("classifier.backbone", recipe.classifier.backbone, backbone)
    check_scores(recipe, train, lambda: classifier)
    _check_folds(recipe, data, classifier)
    if recipe.needs_diffusion:
        with devices.foreseen():
            network = build_network(recipe, len(classes))
        _check_reads_back("diffusion.denoiser", recipe.diffusion.denoiser, network)
