"""Image files in folders: how users bring their own data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kood.data.files import USUAL, PassedOver, files_under, images_among
from kood.data.image_set import ImageSet
from kood.data.listing import Listed, group_keys, labelled, part_of, read_listed, same_but_for_capitals
from kood.data.paths import data_path, need
from kood.data.rules import STRETCHED, Framing
from kood.errors import UserError
from kood.text import clean, composed, some_of

__all__ = ["folder"]


def folder(
    image_shape: tuple[int, int, int],
    *,
    seed: int,
    path: str,
    classes: Sequence[int | str] | None = None,
    count: int | None = None,
    split: str | None = None,
    max_bad_images: int = 0,
    group: Mapping[str, int | str] | None = None,
    framing: Framing = STRETCHED,
    hashed: bool = False,
) -> dict[str, ImageSet]:
    """Your own images: path/CLASS/*.png, path/train/CLASS and path/test/CLASS, or path/*.png without classes.

    Files of every format that Pillow reads by itself are taken, by their suffix (`kood.data.files.SUFFIXES`), in upper
    or lower case. Others are passed over and counted, and so are the folders of operating systems, storage boxes and
    tools (`@eaDir`, `$RECYCLE.BIN`, `__MACOSX`, ...) and whatever begins with a dot. Folders within a class's folder
    belong to the class. Classes and files are sorted by name. The parts may be called train or training, test or
    testing, and validation, val, valid or dev, in any capitals. Only the files that `classes`, `count` and `split`
    leave are decoded. Folders of a `group` count from the class folder.

    Returns:
        "train", "validation" and "test" where the folder has several of them, else {"all"}; without class folders the
        labels are None.

    Raises:
        UserError: No such folder, no images in it, images beside class folders, folders beside those of the parts, two
            folders for one part, more files that cannot be read than `max_bad_images`, a file that
            has no group.
    """
    return read_listed(listed_splits(path, group), image_shape, seed=seed, classes=classes, count=count, split=split,
                       max_bad_images=max_bad_images, framing=framing, hashed=hashed)  # fmt: skip


def reads(source: Any) -> tuple[Path, list[str]]:
    """The folder of a recipe's source, and the files that it takes."""
    return data_path(source.path), listed_splits(source.path).files


def listed_splits(path: str | Path, group: Mapping[str, int | str] | None = None) -> Listed:
    """The files of a folder by part, with their classes and groups; no file is opened.

    Raises:
        UserError: As `folder` does.
    """
    root = data_path(str(path))
    need(root, "a folder", "a folder", "give a folder of images")
    passed = PassedOver()
    loose, inner = images_among(root, links=True, passed=passed)
    folders = _part_folders(root, inner)
    told: list[str] = []
    lone = part_of(_name(inner[0])) if len(inner) == 1 and not loose else None
    if folders and loose:
        told.append(
            f"{len(loose):,} image{'s' * (len(loose) > 1)} beside {some_of(map(_name, folders.values()))} passed over"
        )
    if len(folders) == 1:
        told.append(f"{_name(next(iter(folders.values())))} is the only part: all its images are taken as one set")
        (lone, place), *_ = folders.items()
        folders = {"all": place}
    where = folders or {"all": str(root)}
    parts = {}
    for part, place in where.items():
        among = images_among(place, links=True, passed=passed) if folders else (loose, inner)
        parts[part] = _files_and_classes(place, *among, passed, told, is_grouped=group is not None)
    keys = None if group is None else {
        part: group_keys(group, [file.removeprefix(str(root)).lstrip("/") for file in files],
                         above=bool(folders) + (classes is not None))
        for part, (files, classes) in parts.items()
    }  # fmt: skip
    listings = labelled(parts, where, keys)
    told += same_but_for_capitals(listings)
    return Listed(listings, (*passed.notes(), *dict.fromkeys(told)), lone)


def on_disk(path: str | Path) -> dict[str, str]:
    """{the name of a class, composed: how the disk has it} of a folder as `folder` takes it, of all its parts; the
    training part's where several have a class.

    One name has several spellings, and who sorts names as the disk has them numbers them otherwise.
    """
    root = data_path(str(path))
    _, inner = images_among(root, links=True)
    parts = _part_folders(root, inner)
    each = [images_among(parts[part], links=True)[1] for part in sorted(parts, key="train".__eq__)] or [inner]
    return {composed(name): name for entries in each for name in (Path(entry).name for entry in entries)}


def _part_folders(root: Path, inner: list[str]) -> dict[str, str]:
    """{part: its folder}; empty where the folders are classes."""
    found = {entry: part for entry in inner if (part := part_of(_name(entry)))}
    if len(found) == 1 and not images_among(next(iter(found)), links=True)[1]:
        return {}  # No classes in it: it may be one, or the only folder of images.
    others = [entry for entry in inner if entry not in found]
    if found and others:
        beside = " and ".join(map(_name, found))
        raise UserError(f"path: {clean(root)} has folders beside {beside} ({some_of(map(_name, others))}); move them "
                        f"out of it, or rename {beside} where that is a class")  # fmt: skip
    folders: dict[str, str] = {}
    for entry, part in found.items():
        if part in folders:
            raise UserError(
                f"path: {clean(root)} has two folders for {part}, {_name(folders[part])} and {_name(entry)}; keep one"
            )
        folders[part] = entry
    return {part: folders[part] for part in ("train", "validation", "test") if part in folders}


def _files_and_classes(
    root: str, files: list[str], inner: list[str], passed: PassedOver, told: list[str], is_grouped: bool
) -> tuple[list[str], list[str] | None]:
    """The files of a part and the class of each, None where it has none."""
    if inner and files:
        raise UserError(
            f"path: {clean(root)} has images ({_name(files[0])}) beside class folders ({_name(inner[0])}); keep either"
        )
    if not inner:
        if not files:
            raise UserError(
                f"path: {clean(root)} has no images; files must end in {', '.join(USUAL)} or the like{_but(passed)}"
            )
        return files, None
    files, classes, deeper = [], [], dict[str, list[str]]()
    for class_folder in inner:
        found = files_under(class_folder, passed)
        if not found:
            raise UserError(
                f"path: the class folder {clean(class_folder)} has no images; fill it or remove it{_but(passed)}"
            )
        below = (file.removeprefix(class_folder).lstrip("/").partition("/") for file in found)
        if within := {folder for folder, is_deeper, _ in below if is_deeper}:
            deeper[_name(class_folder)] = sorted(map(_name, within))
        files += found
        classes += [composed(Path(class_folder).name)] * len(found)
    told += _one_level_too_high(inner) or ([] if is_grouped else _deeper(deeper, len(inner)))
    return files, classes


def _deeper(folders: Mapping[str, Sequence[str]], classes: int) -> list[str]:
    """A note of the classes that take images out of folders within theirs, which may have been meant for others.

    Where each of all classes has the same, as in Tiny ImageNet, that is how they are kept.
    """
    if len(folders) == classes and len({*map(tuple, folders.values())}) == 1 or not folders:
        return []
    some = some_of(f"{name}/{one}" for name, within in folders.items() for one in within)
    return [f"images in folders within a class's folder are taken as of that class: {some}"]


def _one_level_too_high(classes: list[str]) -> list[str]:
    """A warning where all classes hold the same folders, two or more: perhaps those are the classes, or parts."""
    same: set[str] = set()
    for one in classes:
        inside = {_name(entry) for entry in images_among(one)[1]}
        if len(inside) < 2 or same not in (set(), inside):
            return []
        same = inside
    who = f"the classes {some_of(map(_name, classes))} all hold" if len(classes) > 1 else f"{_name(classes[0])} holds"
    hint = "if those are classes, give the path one level lower"
    if all(map(part_of, same)):
        hint = "if those are parts, " + (
            "sort them as PART/CLASS" if len(classes) > 1 else f"give {_name(classes[0])} as the path"
        )
    held = f"{'the same folders' if len(classes) > 1 else 'folders'} ({some_of(sorted(same))})"
    return [f"{who} {held}, whose images are taken together; {hint}"]


def _name(entry: str) -> str:
    return clean(composed(Path(entry).name))


def _but(passed: PassedOver) -> str:
    return "".join(f" ({note})" for note in passed.notes())
