"""Choosing classes of an image set by name or number."""

import difflib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kood.data.image_set import ImageSet
from kood.errors import UserError
from kood.text import composed, some_of

__all__ = ["class_indices", "drawn", "select_classes"]


def class_indices(classes: Sequence[int | str], class_names: Sequence[str]) -> list[int]:
    """The positions of the classes asked for, in the order asked, in `class_names`, those that the source has.

    `classes` are names, or numbers counting from 0 in the source's own order.

    Raises:
        UserError: An unknown name (the nearest spelling is given), a number out of range, a class named twice, an
            empty list, a source without classes, or a number that is also the name of another class.
    """
    if not class_names:
        raise UserError("classes: this source has no classes; remove `classes`")
    if not classes:
        raise UserError("classes: the list is empty; name at least one class, or remove it to take all")
    names = [composed(name) for name in class_names]
    chosen = [_index(wanted, names) for wanted in classes]
    for position, index in enumerate(chosen):
        if index in chosen[:position]:
            raise UserError(f"classes: {class_names[index]!r} is named twice")
    return chosen


def _index(wanted: int | str, names: list[str]) -> int:
    if isinstance(wanted, str):
        wanted = composed(wanted)
        if wanted in names:
            return names.index(wanted)
        lowered = {name.lower(): name for name in reversed(names)}
        near = difflib.get_close_matches(wanted.lower(), list(lowered), n=1, cutoff=0.5)
        hint = f"did you mean {lowered[near[0]]!r}?" if near else f"it has {some_of(map(repr, names), 12)}"
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


def _relabelled(
    classes: Sequence[int | str], labels: np.ndarray, class_names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Which rows are of `classes`, their labels in the order of `classes`, and the names of these."""
    chosen = class_indices(classes, class_names)
    renumbered = np.full(len(class_names), -1, np.int64)
    renumbered[chosen] = np.arange(len(chosen))
    rows = np.flatnonzero(renumbered[labels] >= 0)
    return rows, renumbered[labels[rows]], tuple(class_names[index] for index in chosen)


def drawn(
    labels: np.ndarray,
    names: tuple[str, ...],
    classes: Sequence[int | str] | None,
    count: int | None,
    draw: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """What `classes` and then `count` leave of a part: the rows, ascending, their labels, and the names of these.

    Raises:
        UserError: an unknown class.
    """
    rows = np.arange(len(labels))
    if classes is not None:
        rows, labels, names = _relabelled(classes, labels, names)
    if count is not None and count < len(rows):
        some = np.sort(draw.choice(len(rows), count, replace=False))
        rows, labels = rows[some], labels[some]
    return rows, labels, names


def select_classes(image_set: ImageSet, classes: Sequence[int | str]) -> ImageSet:
    """Only the images of `classes`, relabelled 0..K-1 in the order of `classes`.

    Raises:
        UserError: As `class_indices` does.
    """
    if image_set.labels is None:
        raise UserError("classes: this source has no labels; remove `classes`")
    rows, labels, class_names = _relabelled(classes, image_set.labels, image_set.class_names)
    return replace(image_set.take(rows), labels=labels, class_names=class_names)
