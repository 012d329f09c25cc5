"""Group keys: what the images of one patient, one video or one burst have in common."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np

from kood.errors import UserError
from kood.text import clean, composed

__all__ = ["group_keys", "group_numbers"]


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
