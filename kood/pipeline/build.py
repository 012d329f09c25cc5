"""From a recipe to untrained networks."""

from collections.abc import Sequence

import keras

from kood import registry, training
from kood.classifier import Classifier
from kood.data.classes import class_indices
from kood.errors import UserError
from kood.recipe import Recipe
from kood.virtual import VirtualOutliers

__all__ = ["build_classifier", "build_network", "mixed_groups"]


def build_network(recipe: Recipe, num_classes: int, precision: str = "float32") -> keras.Model:
    """The denoiser's network, untrained."""
    settings = recipe.diffusion
    with training.precision(precision):
        network = registry.obtain("denoisers", settings.denoiser)
        return _built("diffusion.options", network, recipe.data.shape, num_classes, **settings.options)


def build_classifier(
    recipe: Recipe,
    num_classes: int,
    precision: str | None = None,
    *,
    steps: int = 0,
    seed: int = 0,
    exposed: bool = True,
) -> Classifier:
    """The untrained classifier of a recipe.

    Args:
        recipe: The recipe.
        num_classes: K.
        precision: Another than the recipe's.
        steps: Steps of the whole training, of which the recipe says at which share exposure begins.
        seed: Decides the virtual outliers.
        exposed: Whether with what exposure to outliers needs; without it, the same backbone and head alone.
    """
    with training.precision(precision or recipe.train.precision):
        backbone = registry.obtain("backbones", recipe.classifier.backbone)
        backbone = _built("classifier.options", backbone, recipe.data.shape, **recipe.classifier.options)
    head = _built("head", registry.obtain("heads", recipe.head.name), num_classes, **recipe.head.options())
    settings, options = recipe.outliers, {}
    if exposed and settings.exposes:
        options = {
            "exposure": registry.find("losses", settings.exposure, "outliers.exposure").attribute,
            "exposure_weight": settings.weight,
            "exposure_begin": round(settings.begin * steps),
            "reach": settings.reach,
        }
        if "virtual" in settings.use:
            given = settings.virtual.model_dump()
            options["virtual"] = _built(
                "outliers.virtual", VirtualOutliers, num_classes, settings.per_batch, seed=seed, **given
            )
    model = Classifier(backbone, head, name="classifier", **options)
    model.build((None, *recipe.data.shape))
    return model


def mixed_groups(recipe: Recipe, class_names: Sequence[str]) -> list[list[int]] | None:
    """The groups of classes that label mixup mixes, by number; None where any may meet."""
    groups = recipe.outliers.label_mixup.groups
    try:
        return [class_indices(group, class_names) for group in groups] if groups else None
    except ValueError as error:
        raise UserError(f"outliers.label_mixup.groups: {error}") from error


def _built(key: str, make, *arguments, **options):
    """Calls a network or head; what it refuses is the recipe's fault."""
    try:
        return make(*arguments, **options)
    except (ValueError, TypeError) as error:
        raise UserError(f"{key}: {error}") from error
