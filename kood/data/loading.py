"""From the data part of a recipe to images: finding the source, checking its options, choosing and splitting.

The recipe's `Source` and `Data` are duck-typed, so that anything with the same attributes will do.
"""

import zlib
from typing import Any

import numpy as np

from kood import registry
from kood.data.classes import select_classes
from kood.data.image_set import ImageSet, Splits
from kood.data.rules import WHITE, Colour, ground_colour
from kood.errors import UserError, under

__all__ = ["load_id", "load_ood", "load_source"]

_ROOM = "datasets"
# What a source may leave to `load_id` and `load_ood`, which do it for every source alike.
_DONE_HERE = ("classes", "count", "split")


def load_source(
    spec: Any, image_shape: tuple[int, int, int], *, seed: int, key: str, ground: Colour = WHITE, **options: Any
) -> dict[str, ImageSet]:
    """Call the source that `spec` names with the options that `spec` sets.

    Options the source does not know are an error, except `classes`, `count` and `split`: a source that takes them
    uses them to read less, and for all others `load_id` and `load_ood` choose afterwards.

    Args:
        spec: Has the attributes `source`, `path`, `root`, `name`, `max_bad_images`, `classes`, `count` and `split`;
            None means not given.
        image_shape: (H, W, C) of the images wanted.
        seed: Decides all that is random about the source.
        key: Where the recipe has `spec`, such as "data.far.noise"; it begins every message.
        ground: What is seen through transparency, where the source may have any.
        **options: Values that stand in for those of `spec`; None takes an option away.

    Returns:
        Image sets under "train" and "test" where the source has an official split, else one under "all".

    Raises:
        UserError: An unknown source, an option it does not take, one it needs, or whatever the source reports.
    """
    entry = registry.find(_ROOM, spec.source, f"{key}.source")
    known = ("path", "root", "name", "max_bad_images", *_DONE_HERE)
    given = {option: getattr(spec, option) for option in known} | options
    given = {option: value for option, value in given.items() if value is not None}
    for option in given:
        if option not in entry.parameters and option not in _DONE_HERE:
            raise UserError(f"{key}.{option}: the source {spec.source!r} takes no {option!r}; remove it")
    for option in entry.required:
        if option not in given and option not in ("image_shape", "seed"):
            raise UserError(
                f"{key}.{option}: the source {spec.source!r} needs it; add {option} = ... (`kood list datasets` says "
                "what each source takes)"
            )
    given["ground"] = ground
    accepted = {option: value for option, value in given.items() if option in entry.parameters}
    with under(key):
        return registry.obtain(_ROOM, spec.source)(tuple(image_shape), seed=seed, **accepted)


def load_ood(spec: Any, image_shape: tuple[int, int, int], *, seed: int, key: str, ground: Colour = WHITE) -> ImageSet:
    """One out-of-distribution set: its test images where it has any, then `classes`, then `count` drawn at random.

    Args:
        spec: As for `load_source`; `spec.split` overrides the choice of "test".
        image_shape: (H, W, C) of the images wanted.
        seed: Decides what is drawn.
        key: Where the recipe has `spec`.
        ground: As for `load_source`.

    Returns:
        An `ImageSet` of at least one image, labelled as the source is.

    Raises:
        UserError: As `load_source` does; a split the source does not have; more images asked for than there are.
    """
    entry = registry.find(_ROOM, spec.source, f"{key}.source")
    wanted = {"split": spec.split or "test"} if "split" in entry.parameters else {}
    sets = load_source(spec, image_shape, seed=seed, key=key, ground=ground, **wanted)
    if spec.split is not None:
        chosen = _official(sets, spec.split, key)
    else:
        chosen = next(sets[name] for name in ("test", "all", "train") if name in sets)
    chosen = _chosen(chosen, spec, key)
    if len(chosen) == 0:
        raise UserError(f"{key}: the source {spec.source!r} gave no images; check its path and classes")
    # Files that a source drew and could not read are part of the number.
    if spec.count is None or len(chosen) <= spec.count <= len(chosen) + len(chosen.skipped):
        return chosen
    if spec.count > len(chosen):
        raise UserError(
            f"{key}.count: {spec.count} images asked for, {len(chosen)} there; write at most {len(chosen)}, or "
            "remove it to take all"
        )
    draw = _generator(seed, "count")
    return chosen.take(np.sort(draw.choice(len(chosen), spec.count, replace=False)))


def load_id(data: Any, *, key: str = "data.id") -> Splits:
    """The in-distribution images, split once and for all: the same recipe gives the same split everywhere.

    The test part is the source's own where it has one, else the share `test` of all images. Validation and
    calibration are shares of what remains, then `per_class` limits the training images alone. Every share is drawn
    class by class (round(share n) images of each class, at least one), with `data.split_seed`. `count` draws so many
    images, in the classes' proportions, before splitting; where the source has its own test part, `count` is about
    the training part. Labels are renumbered 0..K-1 in the order of `classes`.

    Args:
        data: Has `image_shape`, `ground`, `split_seed` and `id`, which is as for `load_source` with `validation`,
            `calibration`, `test` and `per_class` besides.
        key: Where the recipe has `data.id`.

    Returns:
        `Splits` whose parts share one `class_names`. Only `validation` may be empty, where its share is 0.

    Raises:
        UserError: As `load_source` does; a source without labels; a class too small to stand in every part.
    """
    spec, seed = data.id, data.split_seed
    sets = load_source(spec, data.image_shape, seed=seed, key=key, ground=ground_colour(data.ground), count=None)
    if spec.split is not None:
        sets = {"all": _official(sets, spec.split, key)}
    if any(found.labels is None for found in sets.values()):
        raise UserError(
            f"{key}.source: {spec.source!r} gives images without labels; in-distribution images need one each"
        )
    sets = {name: _chosen(found, spec, key) for name, found in sets.items()}
    for found in sets.values():
        _need_images(found, key)
    train = sets["all"] if "all" in sets else sets["train"]
    rows = np.arange(len(train))
    if spec.count is not None:
        rows = _draw_count(train.known_labels, spec.count, seed, key)
    if "all" in sets:
        if spec.test <= 0:
            raise UserError(f"{key}.test: the source {spec.source!r} has no test images of its own; write test = 0.2")
        test_rows, rows = _deal(train.known_labels, rows, (spec.test,), seed, "test")
        test = train.take(test_rows)
    else:
        test = sets["test"]
    calibration_rows, validation_rows, remaining = _deal(
        train.known_labels, rows, (spec.calibration, spec.validation), seed, "calibration and validation"
    )
    _need_rows(train, remaining, key)
    if spec.per_class is not None:
        remaining = _draw_per_class(train.known_labels, remaining, spec.per_class, seed)
    return Splits(train.take(remaining), train.take(validation_rows), train.take(calibration_rows), test)


def _official(sets: dict[str, ImageSet], split: str, key: str) -> ImageSet:
    if split not in sets:
        has = "no official split" if "all" in sets else f"only {' and '.join(sorted(sets))}"
        raise UserError(f"{key}.split: there is no {split!r} part, the source has {has}; remove `split`")
    return sets[split]


def _chosen(found: ImageSet, spec: Any, key: str) -> ImageSet:
    if spec.classes is None or "classes" in registry.find(_ROOM, spec.source, f"{key}.source").parameters:
        return found
    with under(key):
        return select_classes(found, spec.classes)


def _generator(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


def _by_class(labels: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    return [rows[labels[rows] == label] for label in np.unique(labels[rows])]


def _deal(labels: np.ndarray, rows: np.ndarray, shares: tuple[float, ...], seed: int, purpose: str) -> list[np.ndarray]:
    """The rows drawn for each share, then those left, all ascending: round(share n) of each class's n rows, at least
    one where the share is not 0."""
    draw = _generator(seed, purpose)
    hands: list[list[np.ndarray]] = [[rows[:0]] for _ in range(len(shares) + 1)]
    for members in _by_class(labels, rows):
        sizes = [max(1, round(share * len(members))) if share > 0 else 0 for share in shares]
        parts = np.split(draw.permutation(members), np.cumsum(sizes))
        for hand, part in zip(hands, parts, strict=True):
            hand.append(part)
    return [np.sort(np.concatenate(hand)) for hand in hands]


def _draw_per_class(labels: np.ndarray, rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    draw = _generator(seed, "per_class")
    return np.sort(np.concatenate([draw.permutation(members)[:most] for members in _by_class(labels, rows)]))


def _draw_count(labels: np.ndarray, count: int, seed: int, key: str) -> np.ndarray:
    """`count` rows in the classes' proportions, the odd ones to the largest remainders."""
    if count > len(labels):
        raise UserError(f"{key}.count: {count} images asked for, {len(labels)} there; write at most {len(labels)}")
    draw = _generator(seed, "count")
    classes = _by_class(labels, np.arange(len(labels)))
    exact = np.array([count * len(members) / len(labels) for members in classes])
    sizes = np.floor(exact).astype(int)
    sizes[np.argsort(sizes - exact, kind="stable")[: count - sizes.sum()]] += 1
    return np.sort(
        np.concatenate([draw.permutation(members)[:size] for members, size in zip(classes, sizes, strict=True)])
    )


def _need_images(found: ImageSet, key: str) -> None:
    counts = np.bincount(found.known_labels, minlength=len(found.class_names))
    for name, images in zip(found.class_names, counts, strict=True):
        if images == 0:
            raise UserError(f"{key}: the class {name!r} has no images; remove it from `classes` or add images")


def _need_rows(train: ImageSet, rows: np.ndarray, key: str) -> None:
    left = np.bincount(train.known_labels[rows], minlength=len(train.class_names))
    for name, images, all_images in zip(
        train.class_names, left, np.bincount(train.known_labels, minlength=len(train.class_names)), strict=True
    ):
        if images == 0:
            raise UserError(
                f"{key}: the class {name!r} has too few images ({all_images}) to stand in every part of the split; "
                "add images, drop the class, or lower `validation`, `calibration` and `test`"
            )
