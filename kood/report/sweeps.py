"""A metric against whatever number a matrix varied: the share of a mixture, how many outliers, sampling steps."""

from collections.abc import Mapping, Sequence
from typing import Any

from kood.report.aggregate import identity
from kood.report.drawing import COLOURS, DASHES, as_label, draw
from kood.report.wording import setting
from kood.text import clean

__all__ = ["METRICS", "swept", "sweep_figure"]

#: What is drawn: title, where a row of the table has it.
METRICS = (
    ("near-OOD AUROC, %", ("near", "auroc")),
    ("far-OOD AUROC, %", ("far", "auroc")),
    ("ID accuracy, %", ("id", "accuracy")),
)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def swept(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that take two or more values in the table's rows, all of them numbers.

    Args:
        rows: Rows of `kood.report.aggregate`.

    Returns:
        Matrix keys, in order of appearance.
    """
    keys = dict.fromkeys(key for row in rows for key in row["cell"])
    found = []
    for key in keys:
        values = [_number(row["cell"][key]) for row in rows if key in row["cell"]]
        if None not in values and len(set(values)) > 1:
            found.append(key)
    return found


def sweep_figure(rows: Sequence[Mapping[str, Any]], key: str) -> bytes:
    """Near and far AUROC and ID accuracy against a key, one line for each setting of the others.

    A mark is the mean over the seeds, its bar one sample standard deviation.

    Args:
        rows: Rows of `kood.report.aggregate`.
        key: One of `swept`.

    Returns:
        The image's bytes, SVG.
    """
    lines: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    names: dict[str, str] = {}
    for row in rows:
        value = _number(row["cell"].get(key))
        if value is not None:
            others = {one: label for one, label in row["cell"].items() if one != key}
            lines.setdefault(identity(others), []).append((value, row))
            names[identity(others)] = setting(others) if others else "mean over seeds"

    def paint(figure: Any) -> None:
        panels = figure.subplots(len(METRICS), 1, sharex=True)
        for panel, (title, (part, metric)) in zip(panels, METRICS, strict=True):
            for index, (own, points) in enumerate(lines.items()):
                there = [
                    (x, row.get(part, {}).get(metric) or {}) for x, row in sorted(points, key=lambda point: point[0])
                ]
                there = [(x, one) for x, one in there if one.get("mean") is not None]
                panel.errorbar(
                    [x for x, _ in there],
                    [100 * one["mean"] for _, one in there],
                    yerr=[100 * (one.get("std") or 0.0) for _, one in there],
                    color=COLOURS[index % len(COLOURS)],
                    linestyle=DASHES[index % len(DASHES)],
                    marker="o",
                    markersize=4,
                    capsize=2.5,
                    label=as_label(names[own]),
                )
            panel.set_title(title)
            panel.grid(axis="y")
        panels[-1].set_xlabel(as_label(clean(key)))
        if len(lines) > 1:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=1)

    return draw(5.4, 5.6 + 0.2 * (len(lines) if len(lines) > 1 else 0), paint)
