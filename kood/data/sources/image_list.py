"""Images named in a list: how OpenOOD and the benchmarks after it say which images entered."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kood.data.image_set import ImageSet
from kood.data.listing import Listed, Listing, group_keys, group_numbers, read_listed
from kood.data.paths import data_path, existing_in, need, root_of
from kood.data.rules import STRETCHED, Framing
from kood.errors import UserError
from kood.text import composed

__all__ = ["image_list"]

#: Where a list of each split stands in for it in `path`.
_PLACE = "{split}"


def image_list(
    image_shape: tuple[int, int, int],
    *,
    seed: int,
    path: str,
    root: str | None = None,
    split: str | None = None,
    max_bad_images: int = 0,
    group: Mapping[str, int | str] | None = None,
    framing: Framing = STRETCHED,
    hashed: bool = False,
) -> dict[str, ImageSet]:
    """A text file that names one image a line, `FILE LABEL`, as OpenOOD's image lists do.

    FILE is relative to `root` (the list's own folder where not given); LABEL is a whole number, negative for images
    without a class, and everything after the last blank of the line. Blank lines are passed over. A class is named
    after the folder that all of its images lie in, where there is one and no other class has it, else by its number.
    "{split}" in `path` stands for "train" and "test", of which each then has a list of its own.

    Returns:
        {"train", "test"} where the path has a place for the split, else {"all"}; where labels are negative they are
        None.

    Raises:
        UserError: No such list or folder, a line that is not as above, some labels negative and some not, a class
            number without images, a class of the test list that the training list lacks, a file outside `root`, more
            files that cannot be read than `max_bad_images`, a file that has no group.
    """
    return read_listed(listed_lists(path, root, group), image_shape, seed=seed, split=split,
                       max_bad_images=max_bad_images, framing=framing, hashed=hashed)  # fmt: skip


def reads(source: Any) -> tuple[Path, list[str]]:
    """The folder of a recipe's source, its lists and the images that they name."""
    lists, folder = _lists(source.path, source.root)
    return folder, [str(file) for one in lists.values() for file in (one, *_read(one, folder)[0])]


def listed_lists(path: str, root: str | None = None, group: Mapping[str, int | str] | None = None) -> Listed:
    """The files of a list, or of one for each split, with their classes and groups; no image is opened.

    Raises:
        UserError: As `image_list` does.
    """
    lists, folder = _lists(path, root)
    read = {name: _read(file, folder) for name, file in lists.items()}
    groups = group and group_numbers({
        name: group_keys(group, [file.relative_to(folder).as_posix() for file in files])
        for name, (files, _) in read.items()
    })  # fmt: skip
    first, *_ = lists
    files, labels = read[first]
    names = () if labels is None else _class_names(files, labels)
    parts = {}
    for name, (files, labels) in read.items():
        if (labels is None) == bool(names):
            raise UserError(f"path: of {lists[first]} and {lists[name]} one has classes and the other none")
        if labels is not None and labels.max() >= len(names):
            raise UserError(f"path: {lists[name]} has the class {labels.max()}, which {lists[first]} lacks")
        of_files = np.zeros(len(files), np.int64) if labels is None else labels
        parts[name] = Listing(list(map(str, files)), of_files, names, groups[name] if groups else None)
    return Listed(parts)


def _lists(path: str, root: str | None) -> tuple[dict[str, Path], Path]:
    """The list of each part, and the folder that its files are relative to."""
    names = ("train", "test") if _PLACE in path else ("all",)
    lists = {name: data_path(path.replace(_PLACE, name)) for name in names}
    return lists, root_of(lists[names[0]], root, "list")


def _read(file: Path, folder: Path) -> tuple[list[Path], np.ndarray | None]:
    need(file, "a file", "a list", "give a text file of lines FILE LABEL")
    try:
        lines = composed(file.read_text(encoding="utf-8-sig")).splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"path: {file} is no text file ({error}); give one of lines FILE LABEL") from error
    names, labels = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        try:
            labels.append(int(np.int64(int(label))))
        except (ValueError, OverflowError):
            name = ""
        if not name.strip():
            shown = line.strip()[:200]
            raise UserError(f"path: line {number} of {file} is not FILE LABEL, LABEL a whole number: {shown!r}")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"path: line {number} of {file} names a file outside of {folder}: {name!r}")
        names.append(name.strip())
    if not names:
        raise UserError(f"path: {file} names no image")
    files, given = existing_in(folder, names), np.array(labels, np.int64)
    if (given < 0).all():
        return files, None
    if (given < 0).any():
        raise UserError(f"path: {file} has images with a class and images without; keep either")
    return files, given


def _class_names(files: list[Path], labels: np.ndarray) -> tuple[str, ...]:
    present = np.unique(labels)
    if len(present) != present[-1] + 1:
        missing = int(np.flatnonzero(present != np.arange(len(present)))[0])
        raise UserError(
            f"path: the classes of a list are numbered from 0 without a gap; there is no image of {missing}"
        )
    folders: list[set[str]] = [set() for _ in present]
    for file, label in zip(files, labels, strict=True):
        folders[label].add(file.parent.name)
    names = [next(iter(found)) if len(found) == 1 else str(label) for label, found in enumerate(folders)]
    return tuple(names) if len(set(names)) == len(names) else tuple(str(label) for label in present)
