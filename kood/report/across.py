"""The tables of many runs, of a matrix or of a comparison, made of what their reports hold."""

from collections.abc import Mapping, Sequence
from typing import Any

from kood.report.comparable import ALIKE, Unlike
from kood.report.paired import DIFFERENCE_NOTE, FOLDS_NOTE
from kood.report.tables import MISSING, Cell, Column, Filled, Table, table_of, words
from kood.report.wording import headings, headline_names, mean_std, override, setting, signed, with_interval

__all__ = ["comparison", "differences", "folds", "label_columns", "matrix", "means_column", "runs_column"]

Rows = Sequence[Mapping[str, Any]]

#: What is shown of a row: heading, part and metric, whether more is better, what a narrow terminal can spare.
_FIGURES = (
    ("ID\nacc", "id", "accuracy", True, 0),
    ("near\nAUROC", "near", "auroc", True, 0),
    ("near\nFPR@95", "near", "fpr_at_ood_tpr", False, 0),
    ("far\nAUROC", "far", "auroc", True, 0),
    ("far\nFPR@95", "far", "fpr_at_ood_tpr", False, 1),
    ("held-out\nAUROC", "held_out", "auroc", True, 0),
    ("held-out\nFPR@95", "held_out", "fpr_at_ood_tpr", False, 1),
)


def label_columns(rows: Rows) -> list[Filled]:
    """The settings that rows differ in, a column each."""
    found: list[Filled] = [
        (words(heading, key), [Cell(override(one["cell"][key]) if key in one["cell"] else MISSING) for one in rows])
        for key, heading in headings(rows).items()
    ]
    return found or [(words("setting"), [Cell(setting({}))] * len(rows))]


def runs_column(rows: Rows, priority: int = 0) -> Filled:
    """How many seeds each row has, and for programs which."""
    seeds = [Cell(str(len(one["seeds"])), " ".join(map(str, one["seeds"]))) for one in rows]
    return Column("n", name="seeds", priority=priority), seeds


def means_column(
    rows: Rows,
    statistics: Sequence[Any],
    heading: str,
    name: str,
    better: bool,
    priority: int,
    compares: bool = True,
) -> Filled:
    """A statistic of each row over its seeds, `better` saying whether more is better."""
    column = Column(
        heading, more_is_better=better, compares=compares, priority=priority, name=name, parts=("mean", "std", "n")
    )
    return column, [Cell(mean_std(of, len(one["seeds"])), of) for of, one in zip(statistics, rows, strict=True)]


def _headline(rows: Rows) -> Filled:
    return words("score"), [Cell(headline_names(one)) for one in rows]


def _figures(rows: Rows, apart: Unlike) -> list[Filled]:
    found = []
    for heading, part, metric, more, spare in _FIGURES:
        if part != "held_out" or any(one.get(part) for one in rows):
            own = [one.get(part, {}).get(metric) for one in rows]
            found.append(means_column(rows, own, heading, f"{part}_{metric}", more, spare, part not in apart.parts))
    return found


def _most(rows: Rows) -> int:
    """How many seeds the row has that has the most."""
    return max((len(one["seeds"]) for one in rows), default=0)


def _apart(rows: Rows, most: int) -> list[Filled]:
    """The distance of each row from the baseline, in all that is the better for more; `most` as `_most`."""
    found: list[Filled] = []
    for heading, part, metric, more, _ in _FIGURES:
        own = [_difference(one, part).get(metric) for one in rows]
        parts: tuple[str, ...] = ("mean", "low", "high", "positive", "significant", "seeds")
        if part == "held_out":  # Counts folds; its seeds are those of the rest.
            parts += ("folds",)
            seeds = [_difference(one, "id").get("accuracy", {}).get("seeds") for one in rows]
            own = [of and {**of, "seeds": n, "folds": of["seeds"]} for of, n in zip(own, seeds, strict=True)]
        if more and (part != "held_out" or any(own)):
            title = " ".join(heading.split())
            column = Column(f"{title}\n- baseline", name=f"{part}_{metric}_difference", parts=parts)
            found.append((column, [Cell(signed(one, most), one) for one in own]))
    return found


def _difference(row: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    return (row.get("difference") or {}).get(part) or {}


def matrix(rows: Rows, apart: Unlike = ALIKE) -> Table:
    """One row for each setting: means over its seeds."""
    chosen = {headline_names(one) for one in rows}
    headline = [f"Headline score: {name}." for name in chosen if len(chosen) == 1]
    own = [_headline(rows)] if len(chosen) > 1 else []
    columns = [*label_columns(rows), runs_column(rows), *_figures(rows, apart), *own]
    return table_of(columns, notes=_notes(rows, *headline))


def _notes(rows: Rows, *headline: str) -> list[str]:
    """What the figures of rows are, and which rows lack some."""
    several = any(len(one["seeds"]) > 1 for one in rows)
    return [
        "Percent; mean ± sample standard deviation over n seeds." if several else "Percent; n runs.",
        *headline,
        "FPR@95: ID flagged when 95% of OOD is caught.",
        *_incomplete(rows),
    ]


def _incomplete(rows: Rows) -> list[str]:
    """Which sets not all runs of a row have figures of."""
    told = []
    for one in rows:
        found: dict[str, int] = {}
        for figures in one["scores"].values():
            for name in figures.keys() - {"near", "far"}:
                found[name] = max(found.get(name, 0), *(of["n"] for of in figures[name].values()), 0)
        few = {name: n for name, n in sorted(found.items()) if n < len(one["seeds"])}
        told += [
            f"{setting(one['cell'])}: {name} has figures in {n} of {len(one['seeds'])} runs." for name, n in few.items()
        ]
    return told


def differences(rows: Rows) -> Table | None:
    """The rows against their baseline, in a table of its own: beside the figures it would fit no terminal.

    Args:
        rows: Rows of `kood.report.aggregate` with "difference"; None where no row has one.
    """
    most, rows = _most(rows), [one for one in rows if one.get("difference")]
    if not rows:
        return None
    changed = [
        {key: value for key, value in one["difference"]["baseline"].items() if value != one["cell"].get(key)}
        for one in rows
    ]
    baselines = [setting(one) if len(headings(rows)) > 1 else ", ".join(map(override, one.values())) for one in changed]
    columns = [*label_columns(rows), *_apart(rows, most)]
    title = "Against the baseline"
    if len(set(baselines)) == 1:
        title += f" {baselines[0]}"
    else:
        columns.append((words("baseline"), [Cell(text) for text in baselines]))
    return table_of(columns, title, ["Percentage points.", *_apart_notes(rows)])


def _apart_notes(rows: Rows) -> list[str]:
    return [DIFFERENCE_NOTE, *([FOLDS_NOTE] if any(_difference(one, "held_out") for one in rows) else [])]


def folds(rows: Rows) -> Table | None:
    """Each fold of each row, and where there are differences, that from the same fold of the baseline.

    Args:
        rows: Rows of `kood.report.aggregate`, which may have "difference"; None where no classes were held out.
    """
    pairs = [(one, fold) for one in rows for fold in one.get("folds") or []]
    if not pairs:
        return None
    columns = label_columns([one for one, _ in pairs])
    columns.append((words("held out"), [Cell(", ".join(fold["classes"])) for _, fold in pairs]))
    columns.append((Column("images", priority=1), [Cell(str(fold["images"])) for _, fold in pairs]))
    told = [
        with_interval(fold["auroc"]["mean"], fold["interval"])
        if fold["interval"]
        else mean_std(fold["auroc"], len(one["seeds"]))
        for one, fold in pairs
    ]
    figures = [Cell(text, fold["auroc"]) for text, (_, fold) in zip(told, pairs, strict=True)]
    columns.append((Column("AUROC", name="auroc", parts=("mean", "std", "n")), figures))
    apart = [_of_fold(one, fold["classes"]) for one, fold in pairs]
    if any(apart):
        parts = ("mean", "low", "high", "significant", "seeds")
        column = Column("AUROC\n- baseline", name="auroc_difference", parts=parts)
        columns.append((column, [Cell(signed(one, _most(rows)), one) for one in apart]))
    notes = [
        "Percent, by the headline score.",
        "[95% confidence interval], of several seeds mean ± standard deviation.",
    ]
    return table_of(columns, "Classes held out, fold by fold", [*notes, *([DIFFERENCE_NOTE] if any(apart) else [])])


def _of_fold(one: Mapping[str, Any], classes: Sequence[str]) -> Mapping[str, Any] | None:
    told = _difference(one, "held_out").get("folds", [])
    return next((fold["auroc"] for fold in told if fold["classes"] == classes), None)


def comparison(rows: Rows, apart: Unlike = ALIKE, notes: Sequence[str] = ()) -> Table:
    """All that is told of rows in one table, for a file, which has room for it.

    Args:
        rows: Rows of `kood.report.aggregate`, which may have "difference".
    """
    paired = any("difference" in one for one in rows)
    own = [*label_columns(rows), runs_column(rows), _headline(rows), *_figures(rows, apart)]
    return table_of(
        [*own, *(_apart(rows, _most(rows)) if paired else [])],
        notes=[*_notes(rows), *(_apart_notes(rows) if paired else []), *(f"{text}." for text in apart.told), *notes],
    )
