"""Many cells -> one row for each setting: mean and sample standard deviation over its seeds."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

__all__ = [
    "aggregate",
    "by_score",
    "group",
    "in_groups",
    "identity",
    "of_headline",
    "rows_of",
    "specs_of",
    "statistic",
]

Cell = Mapping[str, Any]
One = TypeVar("One", bound=Cell)
Row = dict[str, Any]


def statistic(values: Iterable[float | None]) -> dict[str, float | int | None]:
    """Mean, sample standard deviation and number of the values that are there.

    mean = sum(x) / n; std = sqrt(sum((x - mean)^2) / (n - 1)), so that a few seeds are not made to look too
    certain.

    Args:
        values: Figures; None, NaN and infinite ones do not count.

    Returns:
        {"mean": float or None when n = 0, "std": float or None when n < 2, "n": int}.
    """
    there = [float(value) for value in values if value is not None and math.isfinite(value)]
    if not there:
        return {"mean": None, "std": None, "n": 0}
    spread = float(np.std(there, ddof=1)) if len(there) > 1 else None
    return {"mean": float(np.mean(there)), "std": spread, "n": len(there)}


def identity(value: Any) -> str:
    """Overrides as one string, equal for equal overrides in whatever order."""
    return json.dumps(value, sort_keys=True, default=str)


def group(cells: Sequence[One]) -> list[tuple[dict[str, Any], list[One]]]:
    """Cells that differ in nothing but their seed, together.

    A cell that appears twice, the same overrides with the same seeds, counts once: repeating a figure is no
    second measurement.

    Args:
        cells: Results of single runs, each with its overrides under "cell".

    Returns:
        (overrides without "seed", cells) for each setting, in the order in which the settings first appear.
    """
    groups: dict[str, tuple[dict[str, Any], list[One]]] = {}
    seen: set[str] = set()
    for cell in cells:
        own = identity([cell.get("cell") or {}, cell.get("seeds")])
        if own in seen:
            continue
        seen.add(own)
        setting = {key: value for key, value in (cell.get("cell") or {}).items() if key != "seed"}
        groups.setdefault(identity(setting), (setting, []))[1].append(cell)
    return list(groups.values())


def _union(mappings: Iterable[Mapping[str, Any] | None]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping or {}))


def _metrics(figures: Sequence[Mapping[str, float | None] | None]) -> dict[str, Any]:
    return {name: statistic((one or {}).get(name) for one in figures) for name in _union(figures)}


def in_groups(run: Cell, *parts: str) -> bool:
    """Whether images of one of these parts stand in groups, which intervals count as independent."""
    return not set(parts).isdisjoint(run.get("groups") or {})


def of_headline(cell: Cell, name: str) -> Any:
    """The figures of a run's headline score on a set, or "near" or "far"; {} where there are none."""
    return cell.get("scores", {}).get(cell.get("headline_score"), {}).get(name) or {}


def specs_of(run: Cell) -> dict[str, str]:
    """{score as it was asked for: the spec that was measured}, which differ where its options were chosen."""
    return {name: one["chosen"] for name, one in (run.get("tuned") or {}).items()}


def by_score(runs: Sequence[Cell]) -> list[tuple[str, list[tuple[Cell, str]]]]:
    """The scores of the runs of one setting, each with the runs that have it and the spec that each measured it by.

    A score whose options each run chose for itself is one score all the same. It is called by its spec where that is
    the same in all of them, else as it was asked for.
    """
    names: dict[str, None] = {}
    for run in runs:
        asked = {spec: name for name, spec in specs_of(run).items()}
        names |= {asked.get(spec, spec): None for spec in run.get("scores") or {}}
    found = []
    for name in names:
        having = [(run, specs_of(run).get(name, name)) for run in runs]
        having = [(run, spec) for run, spec in having if spec in (run.get("scores") or {})]
        specs = {spec for _, spec in having}
        found.append((name if len(specs) > 1 else specs.pop(), having))
    return found


def _held_out(runs: Sequence[Cell]) -> Row:
    """The means over the folds of each run, averaged over the runs; empty where no classes were held out."""
    means = [run["hold_out"]["mean"] for run in runs if (run.get("hold_out") or {}).get("mean")]
    if not means:
        return {}
    folds: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for run in runs:
        for one in (run.get("hold_out") or {}).get("folds", []):
            folds.setdefault(tuple(one["classes"]), []).append(one)
    told = [
        {
            "classes": list(classes), "images": its[0]["images"], "auroc": statistic(one["auroc"] for one in its),
            "interval": its[0]["auroc_interval"] if len(runs) == 1 else None,
        }
        for classes, its in folds.items()
    ]  # fmt: skip
    return {"held_out": _metrics([{name: of["mean"] for name, of in one.items()} for one in means]), "folds": told}


def aggregate(cells: Sequence[Cell]) -> list[Row]:
    """The table of a matrix: one row for each setting, averaged over its seeds.

    A score or dataset that only some of a setting's cells have is averaged over those, and its "n" says how
    many they are; scores are those of `by_score`. "near" and "far" are those of each cell's own headline score,
    which is chosen without looking at the test sets and so may differ from seed to seed; "headline_score" then
    lists them all.

    Args:
        cells: Results of single runs, in the order in which the rows shall stand.

    Returns:
        Rows {"cell": overrides without "seed", "seeds": [...], "id": {"accuracy": S}, "headline_score": str
        or list, "near": {metric: S}, "far": {metric: S}, "scores": {score: {dataset, near or far: {metric:
        S}}}} where S is {"mean", "std", "n"} (see `statistic`); where classes were held out also "held_out":
        {metric: S} of the means over folds, and "folds": [{"classes", "images", "auroc": S, "interval" of the only
        run}]. All figures are fractions.
    """
    rows: list[Row] = []
    for setting, runs in group(cells):
        chosen = list(dict.fromkeys(run["headline_score"] for run in runs if run.get("headline_score")))
        scores: dict[str, Any] = {}
        for score, having in by_score(runs):
            of_score = [run["scores"][spec] or {} for run, spec in having]
            scores[score] = {name: _metrics([one.get(name) for one in of_score]) for name in _union(of_score)}
        rows.append(
            {
                "cell": setting,
                "seeds": [seed for run in runs for seed in run.get("seeds", [])],
                "id": {"accuracy": statistic(run.get("id", {}).get("accuracy") for run in runs)},
                "headline_score": chosen[0] if len(chosen) == 1 else chosen,
                "near": _metrics([of_headline(run, "near") for run in runs]),
                "far": _metrics([of_headline(run, "far") for run in runs]),
                "scores": scores,
                **_held_out(runs),
            }
        )
    return rows


def rows_of(report: Mapping[str, Any]) -> list[Row]:
    """The rows of a matrix report as they are shown: of its table, which is made of its cells where it has none."""
    return report.get("table") or aggregate(report.get("cells", []))
