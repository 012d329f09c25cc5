"""Which results were measured on the same images, so that their figures compare."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kood.report.aggregate import Cell, group, identity
from kood.report.wording import all_warnings, setting
from kood.text import some_of

__all__ = ["ALIKE", "Unlike", "different_images", "unlike", "warnings_of"]


@dataclass(frozen=True)
class Unlike:
    """What does not compare in a table, since not all of its runs were measured on the same images.

    Attributes:
        parts: Of "id", "near", "far" and "held_out" those whose figures are of different images.
        told: Which sets differ between which rows, a sentence each; nothing where all rows compare.
    """

    parts: frozenset[str] = frozenset()
    told: list[str] = field(default_factory=list)


#: All rows compare.
ALIKE = Unlike()


def different_images(one: Cell, other: Cell) -> list[str]:
    """The image sets that two results were not both measured on: "id", or the names of out-of-distribution sets."""
    first, second = _contents(one), _contents(other)
    return [name for name in {**first, **second} if name not in first or first[name] != second.get(name)]


def _contents(cell: Cell) -> dict[str, Any]:
    found = {name: (of.get("kind"), of.get("sha256")) for name, of in (cell.get("datasets") or {}).items()}
    return {"id": ((cell.get("id_sets") or {}).get("test") or {}).get("sha256"), **found}


def _folds(cell: Cell) -> dict[tuple[str, ...], Any]:
    """The images of each fold of a run, by the classes that it held out."""
    folds = (cell.get("hold_out") or {}).get("folds", [])
    return {tuple(fold["classes"]): fold.get("sha256") for fold in folds}


def unlike(cells: Sequence[Cell]) -> Unlike:
    """What does not compare from row to row of a table: the sets in which `different_images` of a row and the first one
    finds any, and the means over folds where a row and the first one that has folds, or the seeds of a row, have not
    the same.

    Args:
        cells: Results of single runs; those that differ in their seed alone are one row, compared seed by seed.
    """
    parts: set[str] = set()
    told = []
    rows, first = _differing(cells, different_images)
    if rows:
        parts = {_kind(cell, name) for cell in cells for names in rows for name in names} - {""}
        differ = " and ".join(f"of {', '.join(names)} under {some_of(its)}" for names, its in rows.items())
        told.append(
            f"Not all rows are measured on the same images: those {differ} are others than under {first}; "
            "figures on different images do not compare, so no best of them is marked and such rows are not paired"
        )
    with_folds = [cell for cell in cells if _folds(cell)]
    mixed = [
        f"'{setting(labels)}'"
        for labels, runs in group(with_folds)
        if any(_folds(run).keys() != _folds(runs[0]).keys() for run in runs)
    ]
    if mixed:
        parts.add("held_out")
        told.append(
            f"Not all seeds hold out the same classes under {some_of(mixed)}: their held-out figures are means over "
            "different folds, so no best of them is marked"
        )
    if "id" in parts:
        return Unlike(frozenset(parts | {"near", "far", "held_out"}), told)
    rows, first = _differing(with_folds, lambda one, other: ["folds"] if _folds(one) != _folds(other) else [])
    for its in rows.values():
        parts.add("held_out")
        told.append(
            f"Not all rows hold out the same classes and images: the folds under {some_of(its)} are others than under "
            f"{first}; means over different folds do not compare, so no best of them is marked, and only folds that "
            "both rows have are paired"
        )
    return Unlike(frozenset(parts), told)


def _differing(
    cells: Sequence[Cell], differences: Callable[[Cell, Cell], list[str]]
) -> tuple[dict[tuple[str, ...], list[str]], str]:
    """The rows that differ from the first one, by what they differ in, and what the first one is called."""
    (first, base), *others = group(cells) or [({}, [])]
    by_seed = {identity(run.get("seeds")): run for run in base}
    rows: dict[tuple[str, ...], list[str]] = {}
    for labels, runs in others:
        pairs = [(by_seed.get(identity(run.get("seeds")), base[0]), run) for run in runs]
        if found := tuple(dict.fromkeys(name for pair in pairs for name in differences(*pair))):
            rows.setdefault(found, []).append(f"'{setting(labels)}'")
    return rows, f"'{setting(first)}'"


def _kind(cell: Mapping[str, Any], name: str) -> str:
    """The part of the figures that a set counts for; "" where the cell lacks it."""
    return "id" if name == "id" else ((cell.get("datasets") or {}).get(name) or {}).get("kind", "")


def warnings_of(report: Mapping[str, Any]) -> list[str]:
    """What is to be read before the figures of a run, or of a matrix: what of it does not compare, and its warnings."""
    return [*unlike(report.get("cells", [])).told, *all_warnings(report)]
