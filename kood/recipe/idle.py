"""Settings that do nothing where they stand."""

from collections.abc import Iterator
from typing import Any

from kood import registry
from kood.recipe import settings
from kood.recipe.model import Recipe
from kood.section import Section
from kood.text import some_of

__all__ = ["idle_settings"]


def idle_settings(recipe: Recipe) -> list[str]:
    """Settings that no cell of a recipe has a use for, though a cell has the part that they are of; a sentence each.

    Defaults are not looked at, since a recipe that kood prints has them all, nor are tables of what is not in use, so
    that `--set outliers=none` needs nothing else. A smoke run, whose lengths are not the user's, has none. Before them
    stands what a table of the command line took away from the recipe's file.
    """
    found: dict[str, list[str]] = {}
    if recipe.report.baseline and not recipe.matrix:
        found["report.baseline"] = ["it names a row of a matrix, and there is none; add [matrix], or remove it"]
    cells = [] if recipe.quick or recipe.attach is not None else [cell for _, cell in recipe.cells()]
    for key, table in settings.dropped(recipe._given, recipe.matrix).items():
        values = [cell.value(key) for cell in cells if _uses(cell, key)]
        if values and recipe.value(key) not in values:  # A default that was written down is there all the same.
            found[key] = [f"every cell of the matrix sets {table} as a whole; give it in each row, or remove it"]
    for cell in cells:
        for key, why in _settings(cell):
            found.setdefault(key, []).append(why)
    return [*_reset(recipe), *(f"{key} has no effect: {reasons[0]}" for key, reasons in found.items() if all(reasons))]


def _reset(recipe: Recipe) -> Iterator[str]:
    """What a setting of the command line that gives a whole table took away from the file; a sentence each."""
    for key, leaves in recipe.taken.items():
        # A default that was written down is there all the same; rows of a matrix have none.
        gone = [leaf for leaf, value in leaves.items() if key == "matrix" or value != recipe.value(leaf)]
        if gone:
            one, are = "name" if key in settings.NAMED else "KEY", "is" if len(gone) == 1 else "are"
            yield (f"--set {key} gives the whole table, so {some_of(gone)} of the recipe's file {are} left out; write "
                   f"--set {key}.{one}=... to change single keys")  # fmt: skip


def _uses(recipe: Recipe, key: str) -> bool:
    """Whether a recipe has a use for the table that a setting is in."""
    section, _, inner = key.partition(".")
    table, outliers = inner.partition(".")[0], recipe.outliers
    return section != "outliers" or bool(outliers.use) and table not in {*outliers.tables} - {*outliers.sources}


def _settings(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Keys that differ from their defaults, and why each does nothing; "" where it does something."""
    outliers, pure, train, data = recipe.outliers, recipe.pure_samples, recipe.train, recipe.data
    classifier, tuning, serve, budget = recipe.classifier, recipe.fine_tuning, recipe.serve, recipe.budget

    def moved(key: str, section: Section, is_idle: Any, why: str) -> Iterator[tuple[str, str]]:
        name = key.rpartition(".")[2]
        if getattr(section, name) != type(section).model_fields[name].get_default(call_default_factory=True):
            yield key, why if is_idle else ""

    augment = [*data.augment, *(train.augment or []), *(tuning.augment or [])]
    named = {registry.find("augmentations", name).name for name in augment}
    yield from moved("data.pictures", data, "pixmix" not in named,
        'only the augmentation "pixmix" mixes them in; add it to data.augment, or remove data.pictures')  # fmt: skip
    frozen, tunes = classifier.is_frozen, classifier.train == "last"
    used = "fine_tuning" if tunes and tuning.augment is not None else "data" if train.augment is None else "train"
    unseen = (frozen or used != "data") and not classifier.views and not recipe.needs_diffusion
    yield from moved("data.augment", data, unseen,
        'classifier.train = "head" learns from each image once, as it is; set classifier.views = 1 or more, or remove '
        "it" if frozen else f"{used}.augment stands in its place; remove one of them")  # fmt: skip
    if train.augment:
        yield from moved("train.augment", train, frozen or used == "fine_tuning",
            'classifier.train = "head" learns from the views that data.augment makes; name augmentations there and set '
            "classifier.views, or remove it" if frozen else
            "fine_tuning.augment stands in its place; remove one of them")  # fmt: skip
    yield from moved("classifier.frozen_statistics", classifier,
        classifier.backbone == "small_cnn" and not classifier.neck,
        'the backbone "small_cnn" keeps no statistics of batches and has no dropout; remove it')  # fmt: skip
    yield from moved("serve.undecodable", serve, not serve.export,
        "only a SavedModel is asked for files that cannot be decoded, and serve.export = false writes none; remove "
        "it")  # fmt: skip
    for name in ("diffusion", "sampling") if recipe.needs_diffusion else ():
        yield from moved(f"budget.{name}", budget, budget.minutes is None,
            "there is no time to share; set budget.minutes, or remove it")  # fmt: skip
    yield from moved("train.auxiliary.weight", train.auxiliary, train.auxiliary.name == "none",
        'there is nothing that it weighs; set train.auxiliary.name = "rotation", or remove it')  # fmt: skip
    for name in type(tuning).model_fields:
        none = tunes and name != "epochs" and not tuning.epochs
        yield from moved(f"fine_tuning.{name}", tuning, none or not tunes,
            "fine_tuning.epochs = 0 fine-tunes nothing; raise it, or remove the others" if none else
            f'only classifier.train = "last" fine-tunes, and it is "{classifier.train}"; set it, or empty the table '
            "(fine_tuning = {})")  # fmt: skip
    if data.hold_out is not None:
        yield from moved("data.hold_out.classes", data.hold_out, not isinstance(data.hold_out.folds, int),
            "data.hold_out.folds names the classes of each fold; remove it")  # fmt: skip
    if outliers.use:
        sources = outliers.drawn
        yield "outliers.use: exposure to them", "" if outliers.exposes else (
            "outliers.weight = 0 keeps them out of every training; raise it, or set outliers.use = []")  # fmt: skip
        yield from moved("outliers.reach", outliers, not sources,
            f"{' and '.join(outliers.use)} outliers are features, which teach the head alone; remove it")  # fmt: skip
        counted = not all(source.count for source in sources.values()) or (pure.trains and not pure.count)
        yield from moved("outliers.count", outliers, not counted,
            "each source that draws images has a count of its own; remove it" if sources else
            f"{' and '.join(outliers.use)} outliers are not drawn before training; remove it")  # fmt: skip
        yield from moved("outliers.mix_alpha", outliers, outliers.mix == "none",
            'outliers.mix = "none" mixes nothing; set outliers.mix = "linear" or "cutmix", or remove it')  # fmt: skip
        yield from moved("outliers.amplitude", outliers, all(source.is_texture for source in sources.values()),
            f"{' and '.join(outliers.use)} outliers have no amplitudes to swap; name another source in outliers.use, "
            "or remove it")  # fmt: skip
        yield from moved("outliers.target", outliers, not any(source.has_shares for source in sources.values()),
            f"{' and '.join(outliers.use)} outliers are mixtures of no classes; name another source in outliers.use, "
            "such as label_mixup or pixel_mixup, or remove it")  # fmt: skip
        for table, source in sources.items():
            own = not registry.find("outliers", outliers.named(table)).package  # Others mean their words.
            if own and {"alpha", "weight"} <= type(source).model_fields.keys():
                yield from moved(f"outliers.{table}.alpha", source, getattr(source, "weight", "") != "beta",
                    f'only weight = "beta" draws from Beta(alpha, alpha); set outliers.{table}.weight = "beta", or '
                    "remove it")  # fmt: skip
    for table, sampling in recipe.samplings.items():
        yield from moved(f"{table}.level", sampling, sampling.start == "noise",
            f'only images begin at a level; set {table}.start = "image", or remove it')  # fmt: skip
    if recipe.samples_pure:
        yield from moved("pure_samples.count", pure, not pure.trains,
            'nothing is trained on them; set pure_samples.audit_count for the audit, or add "augment" or "id_rows" to '
            "pure_samples.use")  # fmt: skip
        yield from moved("pure_samples.audit_count", pure, "audit" not in pure.use,
            'only the audit samples them; add "audit" to pure_samples.use, or remove it')  # fmt: skip
        yield from moved("pure_samples.per_batch", pure, "id_rows" not in pure.use,
            'only rows beside the images have a number in each batch; add "id_rows" to pure_samples.use, or remove '
            "it")  # fmt: skip
