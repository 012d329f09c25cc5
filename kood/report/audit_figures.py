"""Figures of the audit of an outlier set, as SVG."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kood.report.drawing import BLUE, DASHES, GREEN, GREY, INK, PALE, VERMILION, as_label, draw

__all__ = ["confusion", "neighbour_distances", "parents_mass", "shortcut_bar"]

#: What the sets of an audit are called where people read of them.
SET_NAMES = {
    "pure": "single-class samples",
    "mixtures": "mixtures",
    "held_out": "real held-out images",
    "train": "real training images",
}


def neighbour_distances(diversity: Mapping[str, Any]) -> bytes:
    """Histograms of the distance to the nearest training image: samples before the real held-out images.

    Returns:
        The image's bytes, SVG.
    """
    edges, counts = diversity["histogram"]["edges"], diversity["histogram"]["counts"]
    yardstick = diversity["sets"]["held_out"]["to_training"]["p01"]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        looks = {"pure": (VERMILION, DASHES[0]), "mixtures": (BLUE, DASHES[1])}
        for name in ("held_out", "pure", "mixtures"):
            if name not in counts:
                continue
            shares = np.asarray(counts[name]) / max(1, sum(counts[name]))
            called = f"{SET_NAMES[name]} ({sum(counts[name])})"
            if name == "held_out":
                axes.stairs(shares, edges, fill=True, color=PALE, label=called)
                axes.stairs(shares, edges, color=GREY, linewidth=0.8)
            else:
                colour, line = looks[name]
                axes.stairs(shares, edges, color=colour, linestyle=line, linewidth=1.6, label=called)
        axes.axvline(yardstick, color=INK, linewidth=1.1, linestyle=(0, (1.2, 1.4)))
        axes.set(xlim=(0, edges[-1]), ylim=(0, None), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("distance to the nearest training image, grey levels of 0..255")
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=1, borderaxespad=0, handlelength=1.6)

    return draw(5.4, 2.7, paint)


def parents_mass(mixtures: Mapping[str, Any]) -> bytes:
    """The judge's mean posterior of the parents against the share of the first in the mixture.

    Args:
        mixtures: The audit's; with more than two parents the share of the second is not told by that of the first.

    Returns:
        The image's bytes, SVG.
    """
    rows = mixtures["by_share"]
    share = [(row["low"] + row["high"]) / 2 for row in rows]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        lines = (
            ("all_parents", "all parents", GREEN, "^"),
            ("first", "first parent", VERMILION, "o"),
            ("second", "second parent", BLUE, "s"),
        )
        ends = np.array([min(row["low"] for row in rows), 1.0])
        axes.plot(ends, ends, color=GREY, linewidth=0.8, linestyle=":", label="their shares in the mixture")
        if mixtures["parents"]["max"] == 2:
            axes.plot(ends, 1 - ends, color=GREY, linewidth=0.8, linestyle=":")
        for index, (key, called, colour, mark) in enumerate(lines):
            values = [row[key] for row in rows]
            axes.plot(share, values, color=colour, linestyle=DASHES[index], marker=mark, markersize=4, label=called)
        axes.set(xlim=ends, ylim=(-0.02, 1.02))
        axes.set_xlabel("λ, the share of the first parent in the mixture")
        axes.set_ylabel("judge's belief")
        axes.grid(axis="y")
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0, handlelength=2.6)

    return draw(5.2, 3.4, paint)


def confusion(counts: Sequence[Sequence[float]], names: Sequence[str]) -> bytes:
    """What the judge calls the samples of each class: a row a class they were made for, in percent of the row.

    Args:
        counts: K rows of K counts.
        names: K class names.

    Returns:
        The image's bytes, SVG.
    """
    table = np.asarray(counts, np.float64)
    totals = table.sum(axis=1, keepdims=True)
    percent = 100 * np.divide(table, totals, out=np.zeros_like(table), where=totals > 0)
    shown = [as_label(name) for name in names]
    shown = [name if len(name) <= 14 else name[:13] + "…" for name in shown]
    classes = len(names)

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        axes.pcolormesh(percent, cmap="Blues", vmin=0, vmax=130, edgecolors="white", linewidth=0.8)
        if classes <= 12:
            for row, column in np.argwhere(percent >= 0.5):
                value = percent[row, column]
                colour = "white" if value > 75 else INK
                place = {"ha": "center", "va": "center", "fontsize": 7.5, "color": colour}
                axes.text(column + 0.5, row + 0.5, f"{value:.0f}", **place)
        places = np.arange(classes) + 0.5
        if max(map(len, shown)) <= 3:
            axes.set_xticks(places, shown)
        else:
            axes.set_xticks(places, shown, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(places, shown)
        axes.tick_params(length=0)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel("the judge's class")
        axes.set_ylabel("made for this class")

    side = 1.5 + 0.34 * min(max(classes, 3), 12)
    return draw(side + 0.2, side, paint)


def shortcut_bar(shortcut: Mapping[str, Any]) -> bytes:
    """The AUROC of the shortcut test as a bar from 0 to 1 with its interval, .5 and the failing level marked.

    Returns:
        The image's bytes, SVG.
    """
    value, (low, high) = shortcut["auroc"], shortcut["interval"]
    level = shortcut["fails_above"]
    colour = VERMILION if shortcut["verdict"] == "failed" else BLUE

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        axes.axvspan(level, 1, ymax=0.62, color=PALE, alpha=0.55, linewidth=0)
        axes.barh(0, value, height=0.5, color=colour)
        axes.plot([low, high], [0, 0], color=INK, linewidth=1.4)
        axes.plot([low, high], [0, 0], "|", color=INK, markersize=9, markeredgewidth=1.4)
        axes.axvline(0.5, ymax=0.62, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
        words = {"ha": "center", "va": "bottom", "fontsize": 8.5}
        axes.text(0.5, 0.5, "0.5: sees no\ndifference", **words)
        axes.text((1 + level) / 2, 0.5, f"above {level:g}: spots\ngenerated images", **words)
        axes.text(0, 0.5, f"AUROC {value:.2f}", va="bottom", ha="left", fontsize=9.5, fontweight="bold", color=colour)
        axes.set(xlim=(0, 1), ylim=(-0.42, 1.05), yticks=[])
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        axes.spines["left"].set_visible(False)

    return draw(5.2, 1.35, paint)
