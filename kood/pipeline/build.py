"""From a recipe to untrained networks."""

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np

from kood import registry, training
from kood.classifier import Classifier
from kood.data.classes import class_indices
from kood.diffusion.denoiser import Denoiser
from kood.errors import UserError, first_line
from kood.nets.backbones.parts import refuse_apart
from kood.nets.neck import neck, whole
from kood.recipe import Recipe
from kood.text import composed

__all__ = [
    "backbone_weights", "build_backbone", "build_classifier", "build_denoiser", "build_head", "build_network",
    "class_weights", "frozen_backbone", "network_of", "said_of",
]  # fmt: skip


def build_network(recipe: Recipe, num_classes: int, precision: str = "float32") -> keras.Model:
    """The denoiser's network, untrained."""
    settings = recipe.diffusion
    with training.precision(precision):
        network = registry.obtain("denoisers", settings.denoiser)
        made = _built("diffusion.options", keras.Model, network, recipe.drawn_shape, num_classes, **settings.options)
    refuse_apart("diffusion.denoiser", made)
    return made


def build_denoiser(recipe: Recipe, num_classes: int, precision: str, seed: int) -> Denoiser:
    """The diffusion model, untrained."""
    keras.utils.set_random_seed(seed)
    settings, network = recipe.diffusion, build_network(recipe, num_classes, precision)
    return Denoiser(
        network, schedule=settings.schedule, num_steps=settings.num_steps, prediction=settings.prediction,
        label_dropout=settings.label_dropout, seed=seed, min_snr=settings.min_snr, name="denoiser",
    )  # fmt: skip


def network_of(recipe: Recipe) -> dict[str, Any]:
    """What decides the network under the head, for fingerprints: of files that options name the bytes."""
    network = recipe.classifier
    read = registry.read_by("backbones", network.backbone, network.options)
    return {**network.model_dump(exclude={"views"}), "options": network.options | read}


def build_backbone(recipe: Recipe, precision: str = "float32") -> keras.Model:
    """The backbone as it comes: untrained, or with the weights that its name stands for."""
    with training.precision(precision):
        backbone = registry.obtain("backbones", recipe.classifier.backbone)
        return _built("classifier.options", keras.Model, backbone, recipe.data.shape, **recipe.classifier.options)


def frozen_backbone(recipe: Recipe) -> keras.Model:
    """The backbone of a recipe that trains the head alone; the same one for all cells of a matrix.

    One without weights of its own is drawn by `data.split_seed`, so that all seeds learn from the same features.
    """
    key = json.dumps([keras.backend.backend(), network_of(recipe), recipe.data.shape, recipe.data.split_seed])
    if key not in _frozen:
        _frozen.clear()
        keras.utils.set_random_seed(recipe.data.split_seed)
        _frozen[key] = build_backbone(recipe)
        _frozen[key].trainable = False
    return _frozen[key]


def said_of(backbone: keras.Model) -> list[str]:
    """What a backbone says of itself: which layer's output its features are, where it was cut out of a network."""
    return [backbone.told] if getattr(backbone, "told", None) else []


#: The last one that was asked for.
_frozen: dict[str, keras.Model] = {}


def build_head(recipe: Recipe, num_classes: int) -> keras.layers.Layer:
    """The untrained head."""
    head = registry.obtain("heads", recipe.head.name)
    return _built("head", keras.layers.Layer, head, num_classes, **recipe.head.options())


def build_classifier(
    recipe: Recipe,
    num_classes: int,
    precision: str | None = None,
    *,
    steps: int = 0,
    seed: int = 0,
    exposed: bool = True,
    class_weight: Sequence[float] | None = None,
    counts: Sequence[int] | None = None,
) -> Classifier:
    """The untrained classifier of a recipe; of images, or of the features of a frozen backbone.

    Args:
        precision: Another than the recipe's.
        steps: Steps of the whole training, of which the recipe says at which share exposure begins.
        seed: Decides the outliers that are drawn in training.
        exposed: Whether with what exposure to outliers needs; without it, the same backbone and heads alone.
        class_weight: How much each class counts in the cross-entropy; all alike where not given.
        counts: How many training images each class has.
    """
    precision = precision or recipe.train.precision
    if recipe.classifier.is_frozen:
        with training.precision(precision):
            backbone = neck(frozen_backbone(recipe).output_shape[-1], recipe.classifier.neck)
    else:
        backbone = build_backbone(recipe, precision)
        if recipe.classifier.begins_frozen:
            with training.precision(precision):
                backbone = whole(backbone, neck(backbone.output_shape[-1], recipe.classifier.neck))
    head = build_head(recipe, num_classes)
    settings, options = recipe.outliers, {}
    if exposed and settings.exposes:
        loss = registry.find("losses", settings.exposure, "outliers.exposure")
        if loss.package:
            _refuse_wrong_loss(f"outliers.exposure: {settings.exposure!r}", loss, num_classes)
        options = {
            "exposure": loss.name,
            "exposure_weight": settings.weight,
            # At least the last step exposes.
            "exposure_begin": min(round(settings.begin * steps), max(0, steps - 1)),
            "reach": settings.reach,
        }
        for name, source in settings.layers.items():
            known = {"counts": counts} if "counts" in inspect.signature(source.layer).parameters else {}
            options["virtual"] = _built(
                f"outliers.{name}", keras.layers.Layer, source.layer, num_classes, settings.per_batch, seed,
                **known,
            )  # fmt: skip
    if recipe.train.auxiliary.name == "rotation":
        options["rotation"] = recipe.train.auxiliary.weight
        options["outlier_rows"] = settings.per_batch if exposed and settings.exposes and settings.drawn else 0
    if recipe.classifier.frozen_statistics and not recipe.classifier.is_frozen:
        options["frozen_statistics"] = True
    else:
        refuse_apart("classifier.backbone", backbone)
    model = Classifier(backbone, head, name="classifier", class_weight=class_weight, **options)
    model.build(backbone.input_shape)
    if exposed and settings.exposes:
        for name in settings.layers:
            if registry.find("outliers", settings.named(name)).package:
                _refuse_wrong_features(f"outliers.{name}: the source {settings.named(name)!r}", model)
    return model


def _refuse_wrong_loss(named: str, loss: registry.Entry, num_classes: int) -> None:
    """Refuses a loss from outside that is not a number for each row: another shape would spread over the batch."""
    rows = num_classes + 1
    outputs = np.random.default_rng(0).uniform(-1.0, 1.0, (rows, num_classes)).astype("float32")
    labels = {"labels": keras.ops.zeros((rows, num_classes))} if "labels" in loss.parameters else {}
    try:
        of = registry.obtain("losses", loss.path)
        found = keras.ops.convert_to_tensor(of(keras.ops.convert_to_tensor(outputs), **labels))
    except Exception as error:  # Whatever a stranger's loss does.
        raise UserError(f"{named} fails on {loss.parameters[0]} {outputs.shape} ({first_line(error)})") from error
    dtype, shape = keras.backend.standardize_dtype(found.dtype), tuple(found.shape)
    if shape != (rows,) or "float" not in dtype:
        raise UserError(f"{named} gives {dtype} {shape} for {loss.parameters[0]} {outputs.shape}; a loss of outliers "
                        f"is one number a row, ({rows},)")  # fmt: skip


def _refuse_wrong_features(source: str, model: Classifier) -> None:
    """Refuses a layer from outside that draws other rows than the features of a classifier, which is as it was then."""
    layer = model.virtual
    before = [keras.ops.convert_to_numpy(one) for one in layer.variables]
    drawn, width = keras.ops.convert_to_numpy(layer.draw()), model.backbone.output_shape[-1]
    for variable, value in zip(layer.variables, before, strict=True):
        variable.assign(value)
    if drawn.ndim != 2 or drawn.shape[-1] != width or drawn.dtype.kind != "f":
        raise UserError(f"{source} gave features {drawn.dtype} {drawn.shape}; floats (n, {width}) are asked for")
    if not np.isfinite(drawn).all():
        raise UserError(f"{source} gave features that are not finite, which no training survives")


def backbone_weights(model: Classifier, recipe: Recipe) -> int:
    """How many of a classifier's weights are its backbone's; they stand before those of the neck and the head."""
    after = model.backbone.get_layer("neck").trainable_variables if recipe.classifier.begins_frozen else []
    return len(model.backbone.trainable_variables) - len(after)


def class_weights(
    wanted: Literal["balanced"] | Mapping[str, float] | None, labels: np.ndarray, class_names: Sequence[str]
) -> list[float] | None:
    """How much each class counts in the cross-entropy, so that the mean over the training images is 1.

    "balanced" is n / (K n_c) for the n_c of the n images that are of class c, as scikit-learn has it.

    Args:
        wanted: `train.class_weight`.
        labels: Integer (n,), the classes of the training images.
        class_names: Of all K classes, composed as those of an image set are.

    Returns:
        K weights; None where none are wanted.

    Raises:
        UserError: the table names a class that is none, leaves one out, or has a negative weight; or a class has no
            image to balance.
    """
    if wanted is None:
        return None
    counts = np.bincount(labels, minlength=len(class_names))
    if wanted == "balanced":
        if not counts.all():
            raise UserError(
                f"train.class_weight = 'balanced': the class {class_names[int(counts.argmin())]!r} has no training "
                "image; add images, or drop the class"
            )
        return [len(labels) / (len(class_names) * int(count)) for count in counts]
    given = {composed(name): weight for name, weight in wanted.items()}
    try:
        class_indices(list(given), class_names)
    except UserError as error:
        raise UserError(f"train.class_weight: {str(error).removeprefix('classes: ')}") from error
    left_out = [name for name in class_names if name not in given]
    if left_out:
        have = "has" if len(left_out) == 1 else "have"
        raise UserError(f"train.class_weight: {', '.join(map(repr, left_out))} {have} no weight; give every class one")
    weights = np.array([given[name] for name in class_names], "float64")
    return (weights * (len(labels) / (weights * counts).sum())).tolist()


def _built(key: str, kind: type, make, *arguments, **options):
    """Calls a network or head; what it refuses is the recipe's fault, and so is what is none."""
    try:
        made = make(*arguments, **options)
    except UserError:  # It names the key itself.
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f"{key}: {error}") from error
    if not isinstance(made, kind):
        raise UserError(f"{key}: {make.__name__!r} gives a {type(made).__name__} and no keras {kind.__name__}")
    return made
