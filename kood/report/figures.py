"""Figures as SVG: score histograms, ROC curves, training curves, intervals of a matrix."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kood.report.aggregate import group, identity, of_headline
from kood.report.drawing import BLUE, COLOURS, DASHES, GREY, INK, PALE, VERMILION, as_label, draw
from kood.report.wording import COLUMNS, number, percent, sets, setting

__all__ = [
    "drawn_threshold", "matrix_intervals", "pr_curves", "roc_curves", "score_histograms", "thin_curve",
    "training_curves",
]  # fmt: skip


#: Bins of the histograms of scores.
BINS = 60
#: How many times as high as the ID images' highest bar another one is shown.
TALLEST = 4
#: Points of a curve, and stretches of a history, that are drawn at most.
POINTS, STRETCHES = 250, 300


def _values(scores: Mapping[str, Any]) -> dict[str, np.ndarray]:
    flat = {name: np.asarray(values, dtype=np.float64).ravel() for name, values in scores.items()}
    return {name: values[~np.isnan(values)] for name, values in flat.items()}


def _ood_sets(scores: Mapping[str, Any], cell: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, kind) for kind in ("near", "far") for name in sets(cell, kind) if name in scores]


def drawn_threshold(cell: Mapping[str, Any]) -> float | None:
    """The threshold of a result that its histograms of the headline score show; None where it has none, or several."""
    threshold = cell.get("threshold") or {}
    value = threshold.get("value") if threshold.get("score") == cell["headline_score"] else None
    return value if value is not None and math.isfinite(value) else None


def _range(pools: Sequence[np.ndarray], threshold: float | None) -> tuple[float, float]:
    # Fitted distances put a few far images out by orders of magnitude, and infinity is a legal score: the
    # middle 99% of each set decides what is shown, the rest is counted in the outermost bins.
    finite = [pool[np.isfinite(pool)] for pool in pools]
    edges = [np.percentile(pool, (0.5, 99.5)) for pool in finite if pool.size]
    if threshold is not None:
        edges.append(np.array([threshold, threshold]))
    if not edges:
        return 0.0, 1.0
    low, high = float(min(edge[0] for edge in edges)), float(max(edge[1] for edge in edges))
    room = 0.02 * (high - low) or max(abs(low), 1.0) * 0.05
    return low - room, high + room


def score_histograms(scores: Mapping[str, Any], cell: Mapping[str, Any]) -> bytes:
    """Histograms of the headline score: the ID test images against each near and far set, one panel a set.

    Heights are shares of a set's images, so sets of unequal size compare. Scores beyond the shown range are
    counted in the outermost bins; NaN is left out.

    Args:
        scores: {dataset name or "id": scores (N,)}, higher = more OOD.
        cell: The result of the run; names the datasets, the score and the threshold.

    Returns:
        The image's bytes, SVG.
    """
    names = _ood_sets(scores, cell)
    values = _values(scores)
    threshold = drawn_threshold(cell)
    low, high = _range([values["id"], *(values[name] for name, _ in names)], threshold)
    edges = np.linspace(low, high, BINS + 1)

    def shares(pool: np.ndarray) -> np.ndarray:
        inside = np.clip(pool, edges[0], edges[-1])
        return np.histogram(inside, edges)[0] / max(1, pool.size)

    def paint(figure: Any) -> None:
        panels = figure.subplots(max(1, len(names)), 1, sharex=True, squeeze=False)[:, 0]
        id_shares = shares(values["id"])
        for panel, (name, near_or_far) in zip(panels, names or [("", "")], strict=True):
            panel.stairs(id_shares, edges, fill=True, color=PALE, label=f"ID test ({values['id'].size})")
            panel.stairs(id_shares, edges, color=GREY, linewidth=0.8)
            if name:
                colour = VERMILION if near_or_far == "near" else BLUE
                label = as_label(f"{name}, {near_or_far}-OOD ({values[name].size})")
                panel.stairs(shares(values[name]), edges, color=colour, linewidth=1.6, label=label)
            if threshold is not None:
                panel.axvline(threshold, color=INK, linewidth=1.1, linestyle=(0, (4, 2)))
            panel.margins(x=0)
            # A set whose scores are all alike is one high bar, beside which the others would not be seen.
            panel.set_ylim(0, min(panel.get_ylim()[1], TALLEST * max(id_shares.max(), 1 / BINS)))
            panel.set_yticks([])
            panel.spines["left"].set_visible(False)
            panel.legend(loc="lower right", bbox_to_anchor=(1.0, 0.92), ncols=2, borderaxespad=0, handlelength=1.4)
        # Not beside the line, where it would hide a curve.
        dashed = f"; dashed: threshold {number(threshold)}" if threshold is not None else ""
        panels[-1].set_xlabel(as_label(f"{cell['headline_score']} score  (right: more out-of-distribution{dashed})"))

    return draw(5.8, 0.6 + 1.05 * max(1, len(names)), paint)


def thin_curve(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A curve with at most `POINTS` of its own points, evenly spread along its length; both ends stay.

    Args:
        x: Horizontal positions (N,), finite.
        y: Vertical positions (N,), finite.

    Returns:
        The thinned x and y; the same arrays when N is small enough.
    """
    if len(x) <= POINTS:
        return x, y
    along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    wanted = np.linspace(0.0, along[-1], POINTS)
    keep = np.unique(np.concatenate([[0], np.searchsorted(along, wanted).clip(0, len(x) - 1), [len(x) - 1]]))
    return x[keep], y[keep]


def _roc(id_scores: np.ndarray, ood_scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # One point a distinct score: images that tie are flagged together or not at all.
    thresholds = np.unique(np.concatenate([id_scores, ood_scores]))[::-1]
    flagged = [pool.size - np.searchsorted(np.sort(pool), thresholds, side="left") for pool in (id_scores, ood_scores)]
    false, true = (np.concatenate([[0], count]) / count[-1] for count in flagged)
    return false, true


def roc_curves(scores: Mapping[str, Any], cell: Mapping[str, Any]) -> bytes:
    """ROC curves of the headline score, one line a dataset; OOD is the positive class.

    Horizontal: share of ID test images flagged. Vertical: share of OOD images caught. The dotted line is
    where 95% of OOD is caught. NaN scores are left out.

    Args:
        scores: {dataset name or "id": scores (N,)}, higher = more OOD.
        cell: The result of the run; names the datasets and gives the AUROC of the legend.

    Returns:
        The image's bytes, SVG.
    """

    def ground(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=PALE, linewidth=1)
        axes.axhline(0.95, color=GREY, linewidth=0.8, linestyle=":")

    labels = ("ID images flagged, %", "OOD images caught, %")
    return _curves(scores, cell, _roc, "auroc", labels, (0, 0.25, 0.5, 0.75, 0.95), "lower right", ground)


def pr_curves(scores: Mapping[str, Any], cell: Mapping[str, Any]) -> bytes:
    """Precision-recall curves of the headline score, one line a dataset; OOD is the positive class.

    Horizontal: share of OOD images caught. Vertical: share of OOD among the flagged images, which depends on how many
    there are of each kind. NaN scores are left out.

    Args, result and errors are those of `roc_curves`; the legend gives the AUPR.
    """

    def points(inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        false, recall = _roc(inside, outside)
        caught, flagged = recall * outside.size, false * inside.size
        return recall, np.where(caught + flagged > 0, caught / np.maximum(caught + flagged, 1), 1.0)

    labels = ("OOD images caught (recall), %", "OOD among the flagged (precision), %")
    return _curves(scores, cell, points, "aupr_out", labels, (0, 0.25, 0.5, 0.75, 1), "lower left", lambda axes: None)


def _curves(
    scores: Mapping[str, Any],
    cell: Mapping[str, Any],
    points: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    metric: str,
    labels: tuple[str, str],
    ticks: Sequence[float],
    place: str,
    ground: Callable[[Any], None],
) -> bytes:
    """A curve for each dataset, made by `points` of the scores of ID and its own, its metric in the legend."""
    names, values = _ood_sets(scores, cell), _values(scores)

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        ground(axes)
        for index, (name, near_or_far) in enumerate(names):
            if not values["id"].size or not values[name].size:
                continue
            axes.plot(
                *thin_curve(*points(values["id"], values[name])),
                color=COLOURS[index % len(COLOURS)],
                linestyle=DASHES[index % len(DASHES)],
                label=as_label(f"{name} ({near_or_far})  {percent(of_headline(cell, name).get(metric))}"),
            )
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", xlabel=labels[0], ylabel=labels[1])
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
        axes.set_yticks(ticks, [f"{100 * tick:g}" for tick in ticks])
        if axes.get_legend_handles_labels()[0]:
            title = f"{COLUMNS[metric][0]}, %"
            axes.legend(loc=place, title=title, alignment="left", handlelength=2.6)

    return draw(5.2, 4.8, paint)


def _thin_history(values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    # Means of equal stretches: a thinned loss must not depend on which noisy steps were kept.
    series = np.array([math.nan if value is None else float(value) for value in values], dtype=np.float64)
    position = np.arange(1, len(series) + 1, dtype=np.float64)
    if len(series) <= STRETCHES:
        return position, series
    stretches = np.array_split(np.arange(len(series)), STRETCHES)
    return (
        np.array([position[stretch].mean() for stretch in stretches]),
        np.array([series[stretch].mean() for stretch in stretches]),
    )


def training_curves(histories: Mapping[str, Mapping[str, Sequence[Any]]]) -> bytes:
    """Training curves: a panel for each stage and term.

    A logarithmic axis where all values are positive and span more than a factor of thirty. Long histories are
    shown as the means of 300 stretches.

    Args:
        histories: {stage: {term: values}}, a value an epoch.

    Returns:
        The image's bytes, SVG.
    """
    panels = [(f"{stage}: {term}", values) for stage, terms in histories.items() for term, values in terms.items()]
    across = min(2, max(1, len(panels)))
    down = max(1, math.ceil(len(panels) / across))

    def paint(figure: Any) -> None:
        grid = figure.subplots(down, across, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        for axes, (title, values) in zip(grid, panels, strict=False):
            position, series = _thin_history(values)
            axes.plot(position, series, color=BLUE, marker="o" if len(series) == 1 else "")
            finite = series[np.isfinite(series)]
            if not finite.size:
                axes.text(0.5, 0.5, "no finite values", transform=axes.transAxes, ha="center", color=GREY)
            elif finite.min() > 0 and finite.max() / finite.min() > 30:
                axes.set_yscale("log")
            axes.set_title(as_label(title))
            axes.grid(axis="y")
            axes.xaxis.get_major_locator().set_params(integer=True, nbins=5)
        for axes in grid[max(0, len(panels) - across) : len(panels)]:
            axes.set_xlabel("epoch")

    return draw(2.7 * across, 1.9 * down + 0.1, paint)


def matrix_intervals(rows: Sequence[Mapping[str, Any]], cells: Sequence[Mapping[str, Any]]) -> bytes:
    """Near and far AUROC of each row of a matrix: the mean, ± one sample standard deviation, and every run.

    A hollow dot is a single run, about whose spread nothing is known.

    Args:
        rows: Rows of `kood.report.aggregate`, in the order in which they shall stand.
        cells: The runs that they were made of.

    Returns:
        The image's bytes, SVG.
    """
    runs = {identity(own): found for own, found in group(cells)}

    def paint(figure: Any) -> None:
        panels = figure.subplots(1, 2, sharey=True)
        for panel, part, colour in zip(panels, ("near", "far"), (VERMILION, BLUE), strict=True):
            for at, row in enumerate(rows):
                single = [of_headline(cell, part).get("auroc") for cell in runs.get(identity(row["cell"]), [])]
                there = [100 * value for value in single if value is not None and math.isfinite(value)]
                if len(there) > 1:
                    panel.plot(there, [at + 0.22] * len(there), "|", color=GREY, markersize=5, markeredgewidth=0.9)
                figure_of = row[part].get("auroc") or {}
                mean, spread = figure_of.get("mean"), figure_of.get("std")
                if mean is None:
                    continue
                panel.errorbar(
                    100 * mean,
                    at,
                    xerr=None if spread is None else 100 * spread,
                    fmt="o" if part == "near" else "s",
                    color=colour,
                    markerfacecolor="white" if spread is None else colour,
                    markersize=5.5,
                    elinewidth=1.6,
                    capsize=3,
                )
            panel.set_title(f"{part}-OOD AUROC, %")
            panel.grid(axis="x")
            panel.margins(x=0.08)
            panel.tick_params(axis="y", length=0)
            panel.spines["left"].set_visible(False)
        panels[0].set_yticks(range(len(rows)), [as_label(setting(row["cell"])) for row in rows])
        panels[0].set_ylim(len(rows) - 0.4, -0.6)

    return draw(7.6, 0.7 + 0.34 * max(2, len(rows)), paint)
