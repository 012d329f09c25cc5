"""Writes the tables and the figures of the documentation from the reports of runs.

    python scripts/figures.py keep saved/NAME/report.json   # what the pages need of it, into docs/figures/
    python scripts/figures.py                               # what stands between the marks in the pages

A table stands between `<!-- figures: NAME -->` and `<!-- end -->`, a figure of a sentence in
`<span title="NAME; FIGURE; ROW"></span>`: the mean of a row over its seeds, or, where `; OTHER ROW` follows, how far it
is from that row in the same seeds, with Student's 95% interval. A row is an arm, or "head, arm", or empty of a single
run. What a file of `benchmarks/` prints is kept by its `--keep`, and its rows have names; a figure is then that of the
row. A test holds the pages against what is kept, so a figure changes in both or in neither.
"""

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from kood.intervals import Difference, paired_difference

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs" / "figures"
MARKED = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
IN_TEXT = re.compile(r'(<span title="(\w+);([^"]*)">).*?(</span>)', re.DOTALL)

Cell = dict[str, Any]

#: What README calls some arms of the ablations.
SHORT = {
    "none": "no outliers", "without rotation": "patch shuffles", "without patch shuffle": "rotations",
    "rotation and patch shuffle": "patch shuffles and rotations",
    "label mixup in place of patch shuffle": "label mixups and rotations", "real outliers": "real outliers",
}  # fmt: skip


def keep(report: dict[str, Any]) -> dict[str, Any]:
    """What the pages need of the report of a matrix, or of a single run."""
    return {
        "recipe": report["recipe"],
        "kood": report["kood"],
        "processor": report["environment"].get("processor"),
        "cells": [
            {
                "cell": cell.get("cell", {}),
                "accuracy": round(cell["id"]["accuracy"], 6),
                "score": cell["headline_score"],
                "near": _mean_of(cell, "near", cell["headline_score"]),
                "far": _mean_of(cell, "far", cell["headline_score"]),
                **({"far_by_knn": _mean_of(cell, "far", "knn")} if "knn" in cell["scores"] else {}),
                "folds": [round(fold["auroc"], 6) for fold in (cell.get("hold_out") or {}).get("folds", [])],
            }
            for cell in report.get("cells", [report])
        ],
    }


def _mean_of(cell: Cell, kind: str, score: str) -> dict[str, float]:
    """The figures of a score, the mean over the sets of a kind."""
    measured = cell["scores"][score]
    names = [name for name, told in cell["datasets"].items() if told["kind"] == kind]
    return {
        key: round(statistics.fmean(measured[name][key] for name in names), 6)
        for key in ("auroc", "fpr_at_ood_tpr")
        if names
    }


#: What is told of a cell, under the heading that it has.
FIGURES: dict[str, Callable[[Cell], float]] = {
    "ID accuracy": lambda cell: cell["accuracy"],
    "near AUROC": lambda cell: cell["near"]["auroc"],
    "near FPR@95 (OOD TPR)": lambda cell: cell["near"]["fpr_at_ood_tpr"],
    "far AUROC": lambda cell: cell["far"]["auroc"],
}
#: Of runs that hold classes out as well.
HELD_OUT: dict[str, Callable[[Cell], float]] = {
    **FIGURES,
    "held-out AUROC": lambda cell: statistics.fmean(cell["folds"]),
}
#: Of what a table is made: its headings, then its rows.
Rows = Iterator[list[str]]


def photographs_table(kept: dict[str, Any]) -> Rows:
    """Each head under each kind of outlier: accuracy, held-out AUROC of each fold, and the distance from none."""
    folds = range(len(kept["cells"][0]["folds"]))
    yield ["head", "arm", "seeds", "accuracy", *(str(k + 1) for k in folds), "mean", "over none", "folds"]
    by_row = _grouped(kept["cells"], "head", "arm")
    shown = None
    for (head, arm), cells in by_row.items():
        auroc = [statistics.fmean(of) for of in zip(*(cell["folds"] for cell in cells), strict=True)]
        apart = [""] * 2
        if arm != "none":
            seeds = {cell["cell"]["seed"]: cell for cell in by_row[head, "none"]}
            pairs = [(cell["folds"], seeds[cell["cell"]["seed"]]["folds"]) for cell in cells]
            more = [statistics.fmean(own[k] - none[k] for own, none in pairs) for k in folds]
            apart = [f"{100 * statistics.fmean(more):+.1f}", str(sum(one >= 0.03 for one in more))]
        accuracy = statistics.fmean(cell["accuracy"] for cell in cells)
        figures = [f"{100 * one:.1f}" for one in (accuracy, *auroc, statistics.fmean(auroc))]
        yield ["" if head == shown else head, arm, str(len(cells)), *figures, *apart]
        shown = head


def photographs_heads(kept: dict[str, Any]) -> Rows:
    """The same of other heads."""
    return photographs_table(kept)


def photographs_finetuned(kept: dict[str, Any]) -> Rows:
    """Each arm: accuracy, far AUROC, held-out AUROC of each fold, and how often it is above none in fold and seed."""
    folds = range(len(kept["cells"][0]["folds"]))
    told = ("ID accuracy", "far AUROC", "held-out AUROC")
    yield ["arm", *told, *(f"fold {k + 1}" for k in folds), "over none", "above none"]
    by_arm = _by_arm(kept)
    none = {cell["cell"]["seed"]: cell["folds"] for cell in by_arm["none"]}
    for arm, cells in by_arm.items():
        auroc = [statistics.fmean(of) for of in zip(*(cell["folds"] for cell in cells), strict=True)]
        row = [arm, *(_spread(map(HELD_OUT[name], cells)) for name in told), *(f"{100 * one:.1f}" for one in auroc)]
        more = [own - its for cell in cells for own, its in zip(cell["folds"], none[cell["cell"]["seed"]], strict=True)]
        above = [f"{100 * statistics.fmean(more):+.1f}", f"{sum(one > 0 for one in more)} of {len(more)}"]
        yield [*row, *([""] * 2 if arm == "none" else above)]


def ablations_16px(kept: dict[str, Any]) -> Rows:
    """Each arm: its figures, mean and sample standard deviation over seeds, and how far it is from none of the seed."""
    against = ["near, against none", "far, against none", "accuracy, against none"]
    yield ["arm", *FIGURES, *against, "of the way to real"]
    by_arm = _by_arm(kept)
    for arm, cells in by_arm.items():
        row = [arm, *(_spread(map(figure, cells)) for figure in FIGURES.values())]
        if arm == "none":
            row += [""] * 4
        else:
            for name in ("near AUROC", "far AUROC", "ID accuracy"):
                row.append(_told(_apart(by_arm, "none", arm, name)))
            to_real = [_apart(by_arm, "none", one, "near AUROC").mean for one in (arm, "real outliers")]
            row.append(f"{to_real[0] / to_real[1]:.0%}")
        yield row


def leaderboard_16px(kept: dict[str, Any]) -> Rows:
    """Each training, the best near AUROC first, by the scores that validation images chose; and against softmax."""
    told = {**FIGURES, "far by KNN": lambda cell: cell["far_by_knn"]["auroc"]}
    yield ["training", "score", *told, "near, against softmax", "accuracy, against softmax"]
    by_arm = _by_arm(kept)
    near = {arm: statistics.fmean(map(FIGURES["near AUROC"], cells)) for arm, cells in by_arm.items()}
    for arm, cells in sorted(by_arm.items(), key=lambda one: -near[one[0]]):
        scores = ", ".join(dict.fromkeys(cell["score"] for cell in cells))
        row = [arm, scores, *(_spread(map(figure, cells)) for figure in told.values())]
        against = [_told(_apart(by_arm, "softmax", arm, name)) for name in ("near AUROC", "ID accuracy")]
        yield [*row, *([""] * 2 if arm == "softmax" else against)]


def ablations_16px_short(kept: dict[str, Any]) -> Rows:
    """What README shows of it, each arm by what it has."""
    told = ("near AUROC", "far AUROC", "ID accuracy")
    yield ["", *told]
    by_arm = _by_arm(kept)
    for arm, shown in SHORT.items():
        yield [shown, *(_spread(map(FIGURES[name], by_arm[arm])) for name in told)]


def digits_controls(kept: dict[str, Any]) -> Rows:
    """Each kind of outlier: accuracy, near and far, mean and sample standard deviation over seeds."""
    yield ["outliers", *FIGURES]
    for (name,), cells in _grouped(kept["cells"], "outliers").items():
        yield [name, *(_spread(map(figure, cells)) for figure in FIGURES.values())]


def _by_arm(kept: dict[str, Any]) -> dict[str, list[Cell]]:
    return {arm: cells for (arm,), cells in _grouped(kept["cells"], "arm").items()}


def _apart(by_arm: dict[str, list[Cell]], baseline: str, arm: str, name: str) -> Difference:
    """How far a figure of an arm is from that of another in the same seeds."""
    figure, other = HELD_OUT[name], {cell["cell"]["seed"]: cell for cell in by_arm[baseline]}
    pairs = [(figure(other[cell["cell"]["seed"]]), figure(cell)) for cell in by_arm[arm]]
    return paired_difference(*map(list, zip(*pairs, strict=True)))


def _told(more: Difference) -> str:
    """A difference in points, its 95% interval over the seeds, and in how many of them it is above 0."""
    return f"{_more(more)}, {more.positive} of {more.seeds}"


def _more(more: Difference) -> str:
    low, high = (f"{100 * (more.mean if end is None else end):+.1f}" for end in (more.low, more.high))
    return f"{100 * more.mean:+.1f} [{low}, {high}]"


def _spread(values: Iterable[float]) -> str:
    """Mean and sample standard deviation, in percent, on one line wherever it stands."""
    of = [100 * value for value in values]
    return f"{statistics.fmean(of):.1f}\u00a0±\u00a0{statistics.stdev(of):.1f}"


def _grouped(cells: list[Cell], *keys: str) -> dict[tuple, list[Cell]]:
    """The cells by the settings of these names."""
    found: dict[tuple, list[Cell]] = {}
    for cell in cells:
        found.setdefault(tuple(cell["cell"][key] for key in keys), []).append(cell)
    return found


def decision_cost(kept: dict[str, Any]) -> Rows:
    """Each score: what its decision takes beside the forward pass."""
    yield ["score", "time beside the forward pass"]
    for row in kept["rows"]:
        yield [f"`{row['row']}`", f"{row['share']:+.0%}"]


def feature_extraction(kept: dict[str, Any]) -> Rows:
    """Each backend: images a second of a bare loop and of kood's stages."""
    yield ["backend", "bare", "features stage", "data and features stages", "kood / bare"]
    for row in kept["rows"]:
        speeds = [f"{row[name]:.1f} images/s" for name in ("bare", "features", "kood")]
        yield [row["row"], *speeds, f"{row['kood'] / row['bare']:.2f}"]


def sampler_quality(kept: dict[str, Any]) -> Rows:
    """Each sampler: how far its images are from real ones, and how many are what they were made for."""
    yield ["sampler", "steps", "guidance", "FID", "KID", "named"]
    for row in kept["rows"]:
        distance = f"{row['KID']:.3f} ± {row['KID error']:.3f}"
        yield [row["sampler"], row["steps"], row["guidance"], f"{row['FID']:.2f}", distance, f"{row['named']:.0%}"]


def unet_throughput(kept: dict[str, Any]) -> Rows:
    """Each backend: images a second, against a bare loop and against the peer's faster memory layout."""
    yield ["", "training", "bare loop", "kood / bare", "kood / peer", "sampling", "kood / peer"]
    peer = {what: max(row[what] for row in kept["rows"] if "bare" not in row) for what in ("train", "sample")}
    for row in kept["rows"]:
        speeds = {what: f"{row[what]:.0f}" for what in ("train", "bare", "sample") if what in row}
        over = {what: f"{row[what] / peer[what]:.2f}" for what in peer}
        if "bare" in row:
            bare = [speeds["bare"], f"{row['train'] / row['bare']:.2f}", over["train"]]
            yield [f"kood, {row['row']}", speeds["train"], *bare, speeds["sample"], over["sample"]]
        else:
            yield [row["row"], speeds["train"], "", "", "", speeds["sample"], ""]


TABLES = {
    table.__name__: table
    for table in (
        photographs_table,
        photographs_heads,
        photographs_finetuned,
        ablations_16px,
        ablations_16px_short,
        leaderboard_16px,
        digits_controls,
        decision_cost,
        feature_extraction,
        sampler_quality,
        unet_throughput,
    )  # fmt: skip
}


def markdown(table: Rows) -> list[str]:
    """The lines of a table."""
    heads, *rows = (f"| {' | '.join(row)} |" for row in table)
    return [heads, "|---" * (heads.count("|") - 1) + "|", *rows]


def in_text(kept: dict[str, Any], said: str) -> str:
    """A figure of a sentence, of what its mark says after the report's name."""
    name, row, *other = (word.strip() for word in said.split(";"))
    if "rows" in kept:
        (figure,) = (one[name] for one in kept["rows"] if one["row"] == row)
        return figure if isinstance(figure, str) else f"{figure:,.0f}" if abs(figure) >= 10 else f"{figure:.2g}"
    keys = [key for key in ("head", "arm") if key in kept["cells"][0]["cell"]]
    by_row = {", ".join(row): cells for row, cells in _grouped(kept["cells"], *keys).items()}
    if other:
        return _more(_apart(by_row, other[0], row, name))
    return f"{100 * statistics.fmean(map(HELD_OUT[name], by_row[row])):.1f}"


def written(page: str) -> str:
    """A page with its tables and figures made anew."""

    def kept(name: str) -> dict[str, Any]:
        return json.loads((KEPT / f"{name.removesuffix('_short')}.json").read_text(encoding="utf-8"))

    def table(mark: re.Match) -> str:
        return mark[1] + "".join(f"{line}\n" for line in markdown(TABLES[mark[2]](kept(mark[2])))) + mark[3]

    page = MARKED.sub(table, page)
    return IN_TEXT.sub(lambda mark: f"{mark[1]}{in_text(kept(mark[2]), mark[3])}{mark[4]}", page)


def main(arguments: list[str]) -> None:
    """See the module."""
    if arguments[:1] == ["keep"]:
        for file in arguments[1:]:
            kept = keep(json.loads(Path(file).read_text(encoding="utf-8")))
            (KEPT / f"{kept['recipe']}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
