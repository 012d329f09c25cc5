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

    Returns:
        As many keys.

    Raises:
        UserError: a file that is not so deep or that the pattern does not match; a group of another kind.
    """
    if "column" in group:
        raise UserError("group.column: only a table has columns; write group = { folder = 1 } or { pattern = ... }")
    if "pattern" in group:
        pattern = re.compile(composed(str(group["pattern"])))
        keys = [_matched(pattern, composed(file)) for file in files]
        missing = f"does not match {str(group['pattern'])!r}; mend the pattern or the name"
    else:
        place = above + int(group["folder"]) - 1
        folders = [PurePosixPath(file).parts[:-1] for file in files]
        keys = [composed(parts[place]) if place < len(parts) else None for parts in folders]
        below = "the class folder" if above else "the source's folder"
        missing = f"does not lie {group['folder']} folders below {below}; lower `folder` or move the file"
    kind = "pattern" if "pattern" in group else "folder"
    for file, key in zip(files, keys, strict=True):
        if key is None:
            raise UserError(f"group.{kind}: {clean(file)} {missing}")
    return [key for key in keys if key is not None]


def _matched(pattern: re.Pattern[str], file: str) -> str | None:
    found = pattern.search(file)
    return found and found[1 if pattern.groups else 0]


def group_numbers(keys: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Keys as numbers, int64, which are equal where the keys are, across the parts of a source.

    Args:
        keys: {part: the key of each of its images}.
    """
    numbers: dict[str, int] = {}
    return {part: np.array([numbers.setdefault(key, len(numbers)) for key in found], np.int64)
            for part, found in keys.items()}  # fmt: skip
