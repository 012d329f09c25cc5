"""Every training by every score, the best near AUROC first."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kood.intervals import mean_interval
from kood.report.across import label_columns, means_column, runs_column
from kood.report.aggregate import Cell as Run
from kood.report.aggregate import by_score, group, statistic
from kood.report.comparable import ALIKE, Unlike
from kood.report.paired import Scores, intervals
from kood.report.tables import MISSING, Cell, Column, Table, table_of
from kood.report.wording import percent

__all__ = ["FIRST", "entries", "table"]

Entry = Mapping[str, Any]

#: So many entries are printed.
FIRST = 20
#: Stands behind the headline score of a training.
CHOSEN = " ◂"
_FIGURES = (
    ("near\nAUROC", "near", "auroc", True, 0),
    ("near\nFPR@95", "near", "fpr_at_ood_tpr", False, 1),
    ("far\nAUROC", "far", "auroc", True, 0),
    ("far\nFPR@95", "far", "fpr_at_ood_tpr", False, 2),
)


def entries(cells: Sequence[Run], scores_of: Callable[[Run, str], Scores]) -> list[dict[str, Any]]:
    """One entry for each setting and score, sorted by near AUROC; ties by far, and what has none last.

    Args:
        cells: Results of single runs, each with "cost".
        scores_of: The scores of a run's images by a score, by set; None where they cannot be had.

    Returns:
        [{"cell": settings without the seed, "score" as `kood.report.aggregate.by_score` calls it, "specs": those that
        its runs measured it by, "chosen": whether it is the headline score of every run, "seeds", "near" and "far":
        {"auroc": S with "low" and "high", "fpr_at_ood_tpr": S}, "accuracy": S, "minutes": S of training,
        "milliseconds": S an image}], S being {"mean", "std", "n"} of `kood.report.aggregate.statistic`.
        Bounds are those of Student's 95% interval over the seeds, or of one seed DeLong's over the test images.
    """
    found = []
    for setting, runs in group(cells):
        for score, having in by_score(runs):
            costs = [(run["cost"], spec) for run, spec in having if "cost" in run]
            found.append({
                "cell": setting,
                "score": score,
                "specs": list(dict.fromkeys(spec for _, spec in having)),
                "chosen": len(having) == len(runs) and all(run["headline_score"] == spec for run, spec in having),
                "seeds": [seed for run in runs for seed in run["seeds"]],
                **{kind: _figures(having, kind, scores_of) for kind in ("near", "far")},
                "accuracy": statistic(run["id"].get("accuracy") for run, _ in having),
                "minutes": statistic(cost["training_seconds"] / 60 for cost, _ in costs),
                "milliseconds": statistic(cost["milliseconds"].get(spec) for cost, spec in costs),
            })  # fmt: skip
    return sorted(found, key=lambda one: [-_mean(one, kind) for kind in ("near", "far")])


def _mean(entry: Entry, kind: str) -> float:
    mean = entry[kind]["auroc"]["mean"]
    return -1.0 if mean is None else mean


def _figures(runs: Sequence[tuple[Run, str]], kind: str, scores_of: Callable[[Run, str], Scores]) -> dict[str, Any]:
    own = [run["scores"][spec].get(kind) or {} for run, spec in runs]
    auroc = statistic(one.get("auroc") for one in own)
    bounds = None
    if auroc["n"] == 1:
        bounds = next((b for run, spec in runs if (b := intervals(run, scores_of(run, spec)).get(kind))), None)
    elif auroc["n"]:
        bounds = mean_interval([one["auroc"] for one in own if one.get("auroc") is not None])["interval"]
    low, high = bounds or (None, None)
    rate = statistic(one.get("fpr_at_ood_tpr") for one in own)
    return {"auroc": {**auroc, "low": low, "high": high}, "fpr_at_ood_tpr": rate}


def table(found: Sequence[Entry], most: int | None = None, apart: Unlike = ALIKE, notes: Sequence[str] = ()) -> Table:
    """The leaderboard as a table.

    Args:
        found: What `entries` gave.
        most: How many are shown; all where not given.
    """
    scores = []
    for one in found:
        specs, chosen = ", ".join(one["specs"]), one["chosen"]
        scores.append(Cell(specs + CHOSEN * chosen, {"": one["score"], "specs": specs, "chosen": chosen}))
    score = Column("score", words=True, parts=("", "specs", "chosen"))
    places = [Cell(str(place), place) for place in range(1, len(found) + 1)]
    columns = [*label_columns(found), (score, scores), (Column("place"), places), runs_column(found, 3)]
    for heading, kind, metric, more, spare in _FIGURES:
        own = [one[kind][metric] for one in found]
        columns.append(means_column(found, own, heading, f"{kind}_{metric}", more, spare, kind not in apart.parts))
        if metric == "auroc":
            column = Column("95%\ninterval", priority=2, name=f"{kind}_auroc", parts=("low", "high"))
            columns.append((column, [Cell(_interval(of), of) for of in own]))
    accuracies = [one["accuracy"] for one in found]
    columns.append(means_column(found, accuracies, "ID\nacc", "id_accuracy", True, 1, "id" not in apart.parts))
    for heading, key, name in (
        ("training\nminutes", "minutes", "training_minutes"), ("ms an\nimage", "milliseconds", "milliseconds_an_image")
    ):  # fmt: skip
        column = Column(heading, more_is_better=False, priority=1, name=name, parts=("mean", "std", "n"))
        columns.append((column, [Cell(_short(one[key]["mean"]), one[key]) for one in found]))
    told = [*(f"{text}." for text in apart.told), *_notes(found[:most], len(found)), *notes]
    return table_of(columns, "Leaderboard", told).first(most)


def _short(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3g}"


def _interval(figure: Mapping[str, Any]) -> str:
    return MISSING if figure["low"] is None else f"[{percent(figure['low'])}, {percent(figure['high'])}]"


def _notes(shown: Sequence[Entry], of: int) -> list[str]:
    several = any(len(one["seeds"]) > 1 for one in shown)
    aurocs = [one[kind]["auroc"] for one in shown for kind in ("near", "far")]
    counts = {auroc["n"] for auroc in aurocs if auroc["low"] is not None}
    over = ["over seeds (Student)"] if max(counts, default=1) > 1 else []
    over += ["over test images (DeLong)"] if min(counts, default=1) == 1 else []
    notes = [
        "Percent; mean ± sample standard deviation over n seeds." if several else "Percent.",
        "Sorted by near AUROC, the mean over near sets; ties by far AUROC.",
        "So sorted by test images it says what did best here, and is no way to choose.",
        f"{CHOSEN.strip()}: the headline score of every run, chosen on validation images where the recipe names none.",
        f"95% interval {', of one seed '.join(over)}.",
        "FPR@95: ID flagged when 95% of OOD is caught.",
        "Training: of the classifier and of what it is exposed to.",
        "ms an image: its forward passes and the score, in batches, on the machine that measured.",
    ]
    more = f"The first {len(shown)} of {of}; all stand in report.html and leaderboard.csv."
    return [*notes, more] if len(shown) < of else notes
