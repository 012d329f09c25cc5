"""Each row of a table against a baseline row, seed by seed: how much better, and how sure that is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from kood.intervals import FEWEST_SEEDS, auroc_interval, paired_difference
from kood.metrics import placements
from kood.report.aggregate import Cell, group, identity, in_groups, of_headline
from kood.report.comparable import different_images
from kood.report.folds import as_cells
from kood.report.wording import sets

__all__ = ["DIFFERENCE_NOTE", "FOLDS_NOTE", "Scores", "differences", "intervals", "score_arrays"]

#: {set: (N,)} of a cell's headline score, the in-distribution test images as "id"; None where they cannot be had.
Scores = Mapping[str, np.ndarray] | None

FOLDS_NOTE = (
    "Held-out AUROC: the mean over folds, paired by fold, with intervals over the folds, which share most images."
)
DIFFERENCE_NOTE = (
    "Differences are paired by seed; (n=…): only so many seeds were paired. 95% intervals (Student's) over seeds and "
    f"test images; with one seed, over images alone. ‡: {FEWEST_SEEDS} seeds or more (for held-out AUROC: folds), and "
    "the interval excludes 0."
)


def score_arrays(file: Any, score: str) -> dict[str, np.ndarray]:
    """The arrays of one score out of an open `scores.npz` of an evaluation, by the name of their set."""
    ending = f"/{score}"
    return {key.removesuffix(ending): file[key] for key in file.files if key.endswith(ending)}


def intervals(cell: Cell, scores: Scores) -> dict[str, list[float]]:
    """95% confidence intervals of the headline score's AUROC: of each set, and of the means "near" and "far".

    Returns:
        {set: [low, high]}; sets too small for one are left out.
    """
    if not scores:
        return {}
    members = {name: [name] for name in cell.get("datasets", {})}
    members |= {kind: sets(cell, kind) for kind in ("near", "far")}
    found = {}
    for name, parts in members.items():
        outsides = [scores[part] for part in parts if part in scores]
        if outsides and len(outsides) == len(parts) and min(map(len, [scores["id"], *outsides])) > 1:
            found[name] = list(auroc_interval(scores["id"], outsides))
    return found


def differences(
    cells: Sequence[Cell],
    against: Callable[[dict[str, Any]], dict[str, Any]],
    scores_of: Callable[[Cell], Scores],
    correct_of: Callable[[Cell], np.ndarray | None],
) -> list[dict[str, Any] | None]:
    """For each setting of `aggregate.group`, in its order, the paired differences from its baseline.

    Args:
        against: Gives the labels of the row that a row of these labels is compared with.
        correct_of: Gives whether each of its in-distribution test images is labelled rightly, bool (N,); None where
            that cannot be had.

    Returns:
        {"baseline": labels, "near", "far": {"auroc": D}, "id": {"accuracy": D}, "held_out": {"auroc": D, "folds":
        [{"classes", "auroc": D}]} where both held the same classes out} with D the fields of
        `kood.intervals.Difference` and "significant", over seeds and images; of "held_out" as a whole over folds, of
        which "seeds" then counts; nothing is significant of images that stand in groups. None for a baseline itself, or
        where a row has no cell of the same seed, measured on the same images, beside it.
    """
    settings = group(cells)
    by_setting = {identity(setting): runs for setting, runs in settings}
    rows: list[dict[str, Any] | None] = []
    for setting, runs in settings:
        baseline = against(setting)
        beside = {_seed(run): run for run in by_setting.get(identity(baseline), [])}
        pairs = [(beside[_seed(run)], run) for run in runs if _seed(run) in beside]
        pairs = [pair for pair in pairs if not different_images(*pair)]
        if identity(baseline) == identity(setting) or not pairs:
            rows.append(None)
            continue
        row: dict[str, Any] = {"baseline": baseline}
        for kind in ("near", "far"):
            found = _auroc_difference(pairs, kind, scores_of)
            if found is not None:
                row[kind] = {"auroc": found}
        row["id"] = {"accuracy": _accuracy_difference(pairs, correct_of)}
        if folds := _fold_differences(pairs, scores_of):
            row["held_out"] = folds
        rows.append(row)
    return rows


def _fold_differences(pairs: Sequence[tuple[Cell, Cell]], scores_of: Callable[[Cell], Scores]) -> dict[str, Any]:
    """The differences fold by fold, of those that all runs have, and of their means over the runs from fold to fold."""
    both = [(as_cells(base), as_cells(run)) for base, run in pairs]
    told, means = [], []
    for classes in both[0][0]:
        runs = [(base[classes], run[classes]) for base, run in both if classes in base and classes in run]
        runs = [pair for pair in runs if not different_images(*pair)]
        if len(runs) < len(pairs):
            continue
        told.append({"classes": list(classes), "auroc": _auroc_difference(runs, "near", scores_of)})
        means.append([float(np.mean([of_headline(pair[side], "near")["auroc"] for pair in runs])) for side in (0, 1)])
    return {"auroc": _told(paired_difference(*zip(*means, strict=True)), pairs), "folds": told} if told else {}


def _seed(cell: Cell) -> Any:
    return identity(cell.get("seeds"))


def _auroc_difference(
    pairs: Sequence[tuple[Cell, Cell]], kind: str, scores_of: Callable[[Cell], Scores]
) -> dict[str, Any] | None:
    first, second = ([of_headline(pair[side], kind).get("auroc") for pair in pairs] for side in (0, 1))
    if None in first or None in second:
        return None
    images = [_change(*(_placements(each, kind, scores_of(each)) for each in pair)) for pair in pairs]
    return _told(paired_difference(first, second, None if None in images else images), pairs)


def _accuracy_difference(
    pairs: Sequence[tuple[Cell, Cell]], correct_of: Callable[[Cell], np.ndarray | None]
) -> dict[str, Any]:
    first, second = ([pair[side]["id"]["accuracy"] for pair in pairs] for side in (0, 1))
    changed: list[tuple[np.ndarray, list]] = []
    for base, run in pairs:
        right, now_right = correct_of(base), correct_of(run)
        if right is not None and now_right is not None:
            changed.append((now_right.astype(np.float64) - right, []))
    return _told(paired_difference(first, second, changed if len(changed) == len(pairs) else None), pairs)


def _change(one: Any, other: Any) -> Any:
    """The difference of two arms' placements, None where either's scores are not at hand."""
    if one is None or other is None:
        return None
    return other[0] - one[0], [b - a for a, b in zip(one[1], other[1], strict=True)]


def _placements(run: Cell, kind: str, scores: Scores) -> tuple[np.ndarray, list[np.ndarray]] | None:
    names = sorted(sets(run, kind))  # The other run may have them in another order.
    if scores is None or "id" not in scores or not all(name in scores for name in names):
        return None
    return placements(scores["id"], [scores[name] for name in names])


def _told(difference: Any, pairs: Sequence[tuple[Cell, Cell]]) -> dict[str, Any]:
    # The interval counts test images as independent, which those that stand in groups are not.
    grouped = any(in_groups(run, "test") for pair in pairs for run in pair)
    return {**asdict(difference), "significant": difference.significant and not grouped}
