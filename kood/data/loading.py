"""From the data part of a recipe to images: finding the source, checking its options, choosing and splitting.

The recipe's `Source` and `Data` are duck-typed, so that anything with the same attributes will do.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kood import registry
from kood.data.classes import select_classes
from kood.data.dealing import generator
from kood.data.image_set import ImageSet, Splits
from kood.data.listing import TESTED, check_parts
from kood.data.rules import STRETCHED, Framing
from kood.data.splitting import Splitting
from kood.errors import UserError, under
from kood.files import refuse_not_utf_8
from kood.text import clean

__all__ = ["load_id", "load_ood", "load_outliers", "load_source"]

_ROOM = "datasets"
# What a source may leave to `load_id` and `load_ood`, which do it for every source alike.
_DONE_HERE = ("classes", "count", "split")


def load_source(
    spec: Any, image_shape: tuple[int, int, int], *, seed: int, key: str, framing: Framing = STRETCHED,
    hashed: bool = False, **options: Any,
) -> dict[str, ImageSet]:  # fmt: skip
    """Call the source that `spec` names with the options that `spec` sets.

    Options the source does not know are an error, except `classes`, `count` and `split`: a source that takes them
    uses them to read less, and for all others `load_id` and `load_ood` choose afterwards.

    Args:
        spec: Has the attributes `source`, `path`, `root`, `name`, `max_bad_images`, `classes`, `count` and `split`;
            None means not given.
        image_shape: (H, W, C) of the images wanted.
        seed: Decides all that is random about the source.
        key: Where the recipe has `spec`, such as "data.far.noise"; it begins every message.
        hashed: Whether the perceptual hashes of whole pictures are wanted; not every source has such.
        **options: Values that stand in for those of `spec`; None takes an option away.

    Returns:
        Image sets under "train", "test" and perhaps "validation" where the source has an official split, else one under
        "all". Numbers of `groups` mean the same in all of them.

    Raises:
        UserError: An unknown source, an option it does not take, one it needs, or whatever the source reports.
    """
    entry = registry.find(_ROOM, spec.source, f"{key}.source")
    known = ("path", "root", "name", "max_bad_images", "columns", "group", *_DONE_HERE)
    given = {option: _plain(getattr(spec, option, None)) for option in known} | options
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
    given |= {"framing": framing, **vars(framing), "hashed": hashed}
    accepted = {option: value for option, value in given.items() if option in entry.parameters}
    with under(key):
        found = registry.obtain(_ROOM, spec.source)(tuple(image_shape), seed=seed, **accepted)
    if not isinstance(found, dict) or not all(isinstance(part, ImageSet) for part in found.values()):
        raise UserError(f"{key}.source: {spec.source!r} is to give a dictionary of kood.data.image_set.ImageSet")
    return found


def _plain(value: Any) -> Any:
    """A table of the recipe as a dictionary of what it says; anything else as it is."""
    return value.model_dump(exclude_none=True) if hasattr(value, "model_dump") else value


def load_ood(
    spec: Any, image_shape: tuple[int, int, int], *, seed: int, key: str, framing: Framing = STRETCHED,
    hashed: bool = False,
) -> ImageSet:  # fmt: skip
    """One out-of-distribution set: its test images where it has any, then `classes`, then `count` drawn at random.

    The arguments are those of `load_source`; `spec.split` overrides the choice of "test".

    Returns:
        At least one image, labelled as the source does.

    Raises:
        UserError: As `load_source` does; a split the source does not have; more images asked for than there are.
    """
    return _load_part(spec, image_shape, TESTED, seed, key, framing, hashed)[1]


def load_outliers(
    spec: Any, image_shape: tuple[int, int, int], *, seed: int, key: str = "outliers.real",
    framing: Framing = STRETCHED, hashed: bool = False,
) -> tuple[str, ImageSet]:  # fmt: skip
    """Real outliers to train on: as `load_ood`, but of the source's training images; its test part stays unseen.

    Returns:
        The part that was taken ("train", "all" where the source has one part, "test" where it has no other), and its
        images.
    """
    return _load_part(spec, image_shape, ("train", "all", "validation", "test"), seed, key, framing, hashed)


def _load_part(
    spec: Any, image_shape: tuple[int, int, int], order: Sequence[str], seed: int, key: str, framing: Framing,
    hashed: bool,
) -> tuple[str, ImageSet]:  # fmt: skip
    """The part that the recipe names, else the first of `order` that there is."""
    entry = registry.find(_ROOM, spec.source, f"{key}.source")
    wanted: dict[str, Any] = {"split": spec.split or order[0]} if "split" in entry.parameters else {}
    sets = load_source(spec, image_shape, seed=seed, key=key, framing=framing, hashed=hashed, **wanted)
    part = spec.split or next(name for name in order if name in sets)
    chosen = _chosen(_official(sets, part, key), spec, key)
    if len(chosen) == 0:
        raise UserError(f"{key}: the source {spec.source!r} gave no images; check its path and classes")
    # Files that a source drew and could not read are part of the number.
    if spec.count is None or len(chosen) <= spec.count <= len(chosen) + len(chosen.skipped):
        return part, chosen
    if spec.count > len(chosen):
        raise UserError(
            f"{key}.count: {spec.count} images asked for, {len(chosen)} there; write at most {len(chosen)}, or "
            "remove it to take all"
        )
    draw = generator(seed, "count")
    return part, chosen.take(np.sort(draw.choice(len(chosen), spec.count, replace=False)))


def load_id(data: Any, *, key: str = "data.id") -> Splits:
    """The in-distribution images, split once and for all: the same recipe gives the same split everywhere.

    The test part is the source's own where it has one, else the share `test` of all images. Validation (where the
    source has no such part either) and calibration are shares of what remains, then `per_class` limits the training
    images alone. Every share is drawn class by class (round(share n) images of each class; fewer than `FEW` are
    rounded up or down by chance, and one at least is tested on), with `data.split_seed`. `count` draws so many images,
    in the classes' proportions, before splitting; where the source has its own test part, `count` is about the training
    part. Labels are renumbered 0..K-1 in the order of `classes`.

    Copies (images with the same pixels, or near ones where `near_copies` says so) and the groups of the source stay
    together: in one part where parts are drawn, and out of what is drawn where one of them stands in a part of the
    source's own. Of copies in the calibration part one stays, since what a threshold promises counts different images.

    Args:
        data: Has `image_shape`, `ground`, `resize`, `split_seed` and `id`, which is as for `load_source` with
            `validation`, `calibration`, `test`, `per_class` and `near_copies` besides.
        key: Where the recipe has `data.id`.

    Returns:
        `Splits` whose parts share one `class_names`. Where all classes are rare, `calibration` may be empty as
        `validation` may. Its `copies` counts "images", how many of them are "different", how many had a copy in another
        part ("apart") if images were dealt out one by one, how many have one under another label ("other_label"), and
        how many stay out of the calibration part ("left_out_of_calibration") and, for the sake of the source's own
        parts, out of all parts ("left_out").

    Raises:
        UserError: As `load_source` does; a source without labels; several parts and none to train on; images that are
            all equal; a class too small to have its share of every part.
    """
    spec, seed = data.id, data.split_seed
    hashed = spec.near_copies is not None
    sets = load_source(spec, data.image_shape, seed=seed, key=key, framing=Framing.of(data), hashed=hashed, count=None)
    if spec.split is not None:
        sets = {"all": _official(sets, spec.split, key)}
    with under(key):
        check_parts(sets, clean(spec.path or spec.source))
    if any(found.labels is None for found in sets.values()):
        raise UserError(
            f"{key}.source: {spec.source!r} gives images without labels; in-distribution images need one each"
        )
    sets = {name: _chosen(found, spec, key) for name, found in sets.items()}
    drawn_from = "all" if "all" in sets else "train"
    refuse_not_utf_8(sets[drawn_from].class_names, key, "class")
    for name in (drawn_from, *({"test"} & sets.keys())):
        _need_images(sets[name], spec, key, name)
    if "test" not in sets and spec.test <= 0:
        raise UserError(f"{key}.test: the source {spec.source!r} has no test images of its own; write test = 0.2")
    return Splitting(sets, drawn_from, spec, seed, key).splits()


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


def _need_images(found: ImageSet, spec: Any, key: str, part: str) -> None:
    for label in np.setdiff1d(np.arange(len(found.class_names)), found.known_labels):
        where = "" if part == "all" else f" in the {part} part"
        if unread := len(found.skipped):
            where += f" (its files may be among the {unread:,} that cannot be read)"
        # A class that is not asked for by name has images in another part.
        fix = "take its images out of the others" if spec.classes is None else "remove it from `classes`"
        raise UserError(f"{key}: the class {found.class_names[label]!r} has no images{where}; add some, or {fix}")
