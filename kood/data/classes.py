"""Choosing classes of an image set by name or number."""

import difflib
from collections.abc import Sequence

import numpy as np

from kood.data.image_set import ImageSet
from kood.data.large import rows_of
from kood.errors import UserError
from kood.text import composed

__all__ = ["class_indices", "relabel", "select_classes"]


def class_indices(classes: Sequence[int | str], class_names: Sequence[str]) -> list[int]:
    """The positions in `class_names` of the classes asked for, in the order asked.

    Args:
        classes: Names, or numbers counting from 0 in the source's own order.
        class_names: The names the source has.

    Raises:
        UserError: An unknown name (the nearest spelling is given), a number out of range, a class named twice, an
            empty list, a source without classes, or a number that is also the name of another class.
    """
    if not class_names:
        raise UserError("classes: this source has no classes; remove `classes`")
    if not classes:
        raise UserError("classes: the list is empty; name at least one class, or remove it to take all")
    chosen = [_index(wanted, class_names) for wanted in classes]
    for position, index in enumerate(chosen):
        if index in chosen[:position]:
            raise UserError(f"classes: {class_names[index]!r} is named twice")
    return chosen


def _index(wanted: int | str, class_names: Sequence[str]) -> int:
    names = [composed(name) for name in class_names]
    if isinstance(wanted, str):
        wanted = composed(wanted)
        if wanted in names:
            return names.index(wanted)
        lowered = {name.lower(): name for name in reversed(names)}
        near = difflib.get_close_matches(wanted.lower(), list(lowered), n=1, cutoff=0.5)
        hint = f"did you mean {lowered[near[0]]!r}?" if near else f"it has {_listed(names)}"
        raise UserError(f"classes: there is no class {wanted!r}; {hint}")
    if not 0 <= wanted < len(names):
        raise UserError(
            f"classes: {wanted} is out of range; the {len(names)} classes are numbered 0 to {len(names) - 1}"
        )
    if str(wanted) in names and names[wanted] != str(wanted):
        raise UserError(
            f"classes: {wanted} could be class number {wanted} (named {names[wanted]!r}) or the class named "
            f'"{wanted}"; write the name, as a string'
        )
    return wanted


def _listed(names: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def relabel(
    classes: Sequence[int | str], labels: np.ndarray, class_names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The images of `classes` and what they are called when only those are left.

    Args:
        classes: As for `class_indices`.
        labels: int64 (N,), indices into `class_names`.
        class_names: The names the source has.

    Returns:
        (rows, labels, class_names): which images stay, ascending; their labels 0..K-1 in the order of `classes`; and
        the K names.

    Raises:
        UserError: As `class_indices` does.
    """
    chosen = class_indices(classes, class_names)
    renumbered = np.full(len(class_names), -1, np.int64)
    renumbered[chosen] = np.arange(len(chosen))
    rows = np.flatnonzero(renumbered[labels] >= 0)
    return rows, renumbered[labels[rows]], tuple(class_names[index] for index in chosen)


def select_classes(image_set: ImageSet, classes: Sequence[int | str]) -> ImageSet:
    """Only the images of `classes`, relabelled 0..K-1 in the order of `classes`.

    Raises:
        UserError: As `class_indices` does.
    """
    if image_set.labels is None:
        raise UserError("classes: this source has no labels; remove `classes`")
    rows, labels, class_names = relabel(classes, image_set.labels, image_set.class_names)
    groups = None if image_set.groups is None else image_set.groups[rows]
    return ImageSet(rows_of(image_set.images, rows), labels, class_names, image_set.skipped, image_set.notes, groups)
