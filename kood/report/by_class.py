"""Figures of each true class: what a good figure over all classes may hide."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kood.report.fragments import escaped, row, table
from kood.report.wording import number, percent, with_interval

__all__ = ["FEW", "TITLE", "WORST", "blocks", "columns", "is_below", "note", "section"]

#: More classes than this are not all shown at once, but the worst of them.
FEW = 30
#: How many those are.
WORST = 10

TITLE = "By class"
NOTE = (
    "Percent of the ID test images of each true class, with 95% intervals: given their class (accuracy), and called "
    "in-distribution (accepted). AUROC: against the means of the near and far sets."
)
#: Stands behind a share of accepted images that is clearly below the promise.
BELOW = " ↓"

Column = tuple[str, Callable[[Mapping[str, Any]], str]]


def blocks(classes: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """What to show of the classes: (heading, classes), all in their order, or of many the worst by each figure."""
    if len(classes) <= FEW:
        return [("", list(classes))]
    return [
        (
            f"The {WORST} of {len(classes)} classes with the {what}",
            sorted(classes, key=lambda one: (one.get(figure) is None, one.get(figure)))[:WORST],
        )
        for figure, what in (("accepted", "smallest share accepted"), ("accuracy", "lowest accuracy"))
    ]


def columns(cell: Mapping[str, Any], *, sure: bool = True) -> list[Column]:
    """Heading and content of each column after the name; those that the cell has nothing for are left out.

    Args:
        cell: The result of one run.
        sure: With the intervals.
    """
    classes, threshold = cell["classes"], cell.get("threshold") or {}
    accept = threshold.get("accept")

    def share(figure: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda one: with_interval(one.get(figure), one.get(f"{figure}_interval") if sure else None)

    found: list[Column] = [
        ("images", lambda one: str(one.get("images", "—"))),
        ("accuracy", share("accuracy")),
        ("accepted", lambda one: share("accepted")(one) + (BELOW if is_below(one, accept) else "")),
    ]
    for kind in ("near", "far"):
        if any(kind in (one.get("auroc") or {}) for one in classes):
            found.append((f"{kind}\nAUROC", _against(kind)))
    if threshold.get("by_class"):
        values = {name: one["value"] for one in threshold["thresholds"] for name in one["classes"]}
        found.append(("threshold", lambda one: number(values.get(one["name"]))))
    return found


def _against(kind: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda one: percent((one.get("auroc") or {}).get(kind))


def is_below(one: Mapping[str, Any], accept: float | None) -> bool:
    """Whether the interval of a class's accepted share leaves out the share that the threshold promises."""
    interval = one.get("accepted_interval")
    return accept is not None and interval is not None and interval[1] < accept


def note(cell: Mapping[str, Any]) -> str:
    """What stands under the figures."""
    accept = (cell.get("threshold") or {}).get("accept")
    below = sum(is_below(one, accept) for one in cell["classes"])
    if not below or accept is None:
        return NOTE
    many = "1 class" if below == 1 else f"{below} classes"
    return f"{NOTE}{BELOW}: the whole interval is below the {100 * accept:g}% that are promised ({many})."


def section(cell: Mapping[str, Any]) -> str:
    """The figures by class as a section of report.html, "" for results without them."""
    classes = cell.get("classes")
    if not classes:
        return ""
    parts = [f"<h2>{TITLE}</h2>"]
    for heading, some in blocks(classes):
        parts.append((f"<h3>{escaped(heading)}</h3>" if heading else "") + _table(cell, some))
    parts.append(f'<p class="note">{escaped(note(cell))}</p>')
    if len(classes) > FEW:
        parts.append(
            f"<details><summary>All {len(classes)} classes</summary><div>{_table(cell, classes)}</div></details>"
        )
    return "".join(parts)


def _table(cell: Mapping[str, Any], classes: Sequence[Mapping[str, Any]]) -> str:
    shown = columns(cell)
    accept = (cell.get("threshold") or {}).get("accept")
    rows = [
        row(
            escaped(one["name"]),
            [escaped(content(one)) for _, content in shown],
            "below" if is_below(one, accept) else "",
        )
        for one in classes
    ]
    return table(["class", *(heading.replace("\n", "<br>") for heading, _ in shown)], rows)
