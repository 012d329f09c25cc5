"""What a source of image files lists before any of them is opened: parts, classes, groups."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from kood.data.classes import drawn
from kood.data.image_set import ImageSet
from kood.data.rules import STRETCHED, Framing
from kood.errors import UserError
from kood.text import clean, composed, some_of

__all__ = [
    "TESTED", "Listed", "Listing", "check_parts", "group_keys", "group_numbers", "labelled", "part_of", "read_listed",
    "same_but_for_capitals",
]  # fmt: skip

#: Parts of out-of-distribution images; the first of them that a source has is tested on, and no other.
TESTED = ("test", "all", "validation", "train")
#: How the parts of a data set are called.
_SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Listing:
    """One part.

    Attributes:
        labels: int64 (N,), indices into `names`; zeros where there are no classes.
        names: One name a class, composed; the same in every part. Empty where there are no classes.
        groups: int64 (N,), as `ImageSet` has them; or None.
    """

    files: list[str]
    labels: np.ndarray
    names: tuple[str, ...]
    groups: np.ndarray | None = None


@dataclass(frozen=True)
class Listed:
    """A source as it lies.

    Attributes:
        parts: Some of "train", "validation" and "test"; or "all".
        notes: What the source has to say, a sentence each.
        lone: Which part "all" is, where it is the only one of a source that names its parts.
    """

    parts: dict[str, Listing]
    notes: tuple[str, ...] = ()
    lone: str | None = None

    @property
    def files(self) -> list[str]:
        """Those of all parts."""
        return [file for part in self.parts.values() for file in part.files]


def part_of(name: str) -> str | None:
    """Which part a folder or a word of a table stands for, in any of the usual spellings; None where it is no part."""
    return next((part for part, spellings in _SPELLINGS.items() if name.strip().lower() in spellings), None)


def check_parts(parts: Collection[str], where: str) -> None:
    """Raises `UserError` where `where`, a source, has several parts and none to train on."""
    if len(parts) > 1 and "train" not in parts:
        raise UserError(f"path: {where} has {' and '.join(sorted(parts))} but no train; add train, or "
                        "take one of them with `split`")  # fmt: skip


def labelled(
    parts: Mapping[str, tuple[list[str], list[str] | None]],
    where: Mapping[str, str],
    keys: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Listing]:
    """Files and the names of their classes as listings that count the same classes.

    Classes are sorted by name; those of "train" count, or of all parts where it is not there.

    Args:
        parts: (files, the class of each) by part; None in place of the classes where there are none.
        where: What each part is called in a message.
        keys: What the images of one group have in common, by part; not given, every image stands for itself.

    Raises:
        UserError: classes in one part and none in another; a class that the training part lacks.
    """
    first = "train" if "train" in parts else next(iter(parts))
    counted = [parts[first]] if "train" in parts else parts.values()
    place = {name: index for index, name in enumerate(sorted({composed(n) for _, told in counted for n in told or ()}))}
    groups, listings = group_numbers(keys or {}), {}
    for part, (files, told) in parts.items():
        if (told is None) != (parts[first][1] is None):
            having, lacking = (first, part) if told is None else (part, first)
            raise UserError(
                f"path: {clean(where[having])} has class folders and {clean(where[lacking])} none; sort both alike"
            )
        classes = [composed(name) for name in told or ()]
        unknown = sorted(set(classes) - place.keys())
        if unknown:
            raise UserError(f"path: {clean(where[part])} has classes that {clean(where[first])} lacks: "
                            f"{some_of(map(clean, unknown))}")  # fmt: skip
        labels = np.zeros(len(files), np.int64) if told is None else np.array([place[one] for one in classes], np.int64)
        listings[part] = Listing(files, labels, tuple(place), groups.get(part))
    return listings


def same_but_for_capitals(listings: Mapping[str, Listing]) -> list[str]:
    """A sentence, where there are classes whose names differ in capitals alone: perhaps they were meant for one."""
    names = next(iter(listings.values())).names
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(name.casefold(), []).append(name)
    told = [" and ".join(map(clean, some)) for some in alike.values() if len(some) > 1]
    if not told:
        return []
    return [
        f"classes whose names differ in capitals alone are taken for different ones ({some_of(told)}); give them one "
        "name where they are one"
    ]


def read_listed(
    listed: Listed,
    image_shape: tuple[int, int, int],
    *,
    seed: int,
    classes: Sequence[int | str] | None = None,
    count: int | None = None,
    split: str | None = None,
    max_bad_images: int = 0,
    framing: Framing = STRETCHED,
    hashed: bool = False,
) -> dict[str, ImageSet]:
    """The images of a listing; only the files that `classes`, `count` and `split` leave are decoded.

    The options are those of every source (`kood.data.sources`). The part of a `split` goes under its name, even where
    it is the only one.

    Returns:
        An image set for each part.

    Raises:
        UserError: an unknown class, more files that cannot be read than `max_bad_images`.
    """
    from kood.data.deferred import listed as images_of

    parts = {split: listed.parts[split]} if split in listed.parts else listed.parts
    if split is not None and split == listed.lone:
        parts = {split: listed.parts["all"]}
    draw = np.random.default_rng([seed, 0xF01D])
    sets = {}
    for name, part in parts.items():
        rows, labels, names = drawn(part.labels, part.names, classes, count, draw)
        files, hashes = [part.files[row] for row in rows], np.zeros(len(rows), np.uint64) if hashed else None
        images, read, skipped = images_of(files, image_shape, max_bad_images, framing, hashes)
        groups = None if part.groups is None else part.groups[rows[read]]
        looks = (None, None) if hashes is None else (hashes[read], np.array(files, object)[read])
        given = labels[read] if names else None
        sets[name] = ImageSet(images, given, names, skipped, listed.notes, groups, *looks)
    return sets


def group_keys(group: Mapping[str, int | str], files: Sequence[str], *, above: int = 0) -> list[str]:
    """The key of each file.

    Args:
        group: {"folder": N}, whose key is the name of the N-th folder on the way to the file; or {"pattern": REGEX},
            whose key is what the first group of the pattern matched in the file's path, or the whole match where it has
            no group.
        files: Paths relative to the source's folder, with "/" between their parts.
        above: Folders at the beginning of each path that do not count, those of the part and the class.

    Raises:
        UserError: a file that is not so deep or that the pattern does not match; a group of another kind.
    """
    if "column" in group:
        raise UserError("group.column: only a table has columns; write group = { folder = 1 } or { pattern = ... }")
    keys: list[str] = []
    if "pattern" in group:
        pattern = re.compile(composed(str(group["pattern"])))
        for file in files:
            found = pattern.search(composed(file))
            key = found and found[1 if pattern.groups else 0]
            if key is None:
                raise UserError(f"group.pattern: {clean(file)} does not match {str(group['pattern'])!r}; mend the "
                                "pattern or the name")  # fmt: skip
            keys.append(key)
        return keys
    place, below = above + int(group["folder"]) - 1, "the class folder" if above else "the source's folder"
    for file in files:
        folders = PurePosixPath(file).parts[:-1]
        if place >= len(folders):
            raise UserError(f"group.folder: {clean(file)} does not lie {group['folder']} folders below {below}; lower "
                            "`folder` or move the file")  # fmt: skip
        keys.append(composed(folders[place]))
    return keys


def group_numbers(keys: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """{part: keys of its images} as numbers, int64, which are equal where the keys are, across the parts."""
    numbers: dict[str, int] = {}
    return {part: np.array([numbers.setdefault(key, len(numbers)) for key in found], np.int64)
            for part, found in keys.items()}  # fmt: skip
