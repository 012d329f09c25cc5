"""The folds of a run, which held classes out: what each says, and each as the result of a run of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

from kood import metrics
from kood.intervals import auroc_interval, mean_interval

__all__ = ["HELD_OUT", "as_cells", "by_score", "figures", "means"]

#: What the images of the classes that were held out are called.
HELD_OUT = "held_out"
#: The figures of a fold that the report gives the mean of.
METRICS = ("auroc", "fpr_at_ood_tpr", "fpr_at_id_tpr", "accepted", "accuracy")


def figures(scores: Mapping[str, Any]) -> dict[str, Any]:
    """What a score's values say of a fold.

    Args:
        scores: Values of the test images "id" and of those of `HELD_OUT`, (N,) and (M,).

    Returns:
        {"images": M, "auroc", "fpr_at_ood_tpr", "fpr_at_id_tpr", "auroc_interval": [low, high], None where there are
        too few images for one}.
    """
    inside, outside = scores["id"], scores[HELD_OUT]
    found = metrics.summary(*metrics.joined(inside, outside))
    sure = min(len(inside), len(outside)) > 1
    return {
        "images": len(outside),
        **{name: found[name] for name in METRICS if name in found},
        "auroc_interval": list(auroc_interval(inside, [outside])) if sure else None,
    }


def means(folds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over folds of each figure, and its interval (`kood.intervals.mean_interval`); {} of none."""
    return {name: mean_interval([one[name] for one in folds]) for name in METRICS} if folds else {}


def by_score(held: Mapping[str, Any], score: str, values: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """The folds of a run by another score than its headline score; None where one was not measured by it.

    Args:
        held: `hold_out` of a run.
        values: Of each fold its values by set.
    """
    if any(one is None or not {"id", HELD_OUT} <= set(one) for one in values):
        return None
    told = [{**fold, "score": score, **figures(one)} for fold, one in zip(held["folds"], values, strict=True) if one]
    return {**held, "folds": told, "mean": means(told)}


def as_cells(cell: Mapping[str, Any]) -> dict[tuple[str, ...], dict[str, Any]]:
    """Each fold of a run as the result of one whose near set is what the fold held out, by its classes."""
    found = {}
    for fold in (cell.get("hold_out") or {}).get("folds", []):
        auroc = {"auroc": fold["auroc"]}
        found[tuple(fold["classes"])] = {
            **{key: cell.get(key) for key in ("seeds", "folder", "groups")},
            "headline_score": fold["score"], "scores": {fold["score"]: {HELD_OUT: auroc, "near": auroc}},
            "scores_file": fold["scores_file"], "id_sets": {"test": {"sha256": fold["sha256"]["id"]}},
            "datasets": {HELD_OUT: {"kind": "near", "sha256": fold["sha256"][HELD_OUT]}},
        }  # fmt: skip
    return found
