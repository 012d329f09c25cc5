"""What `kood monitor` prints and writes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kood import report
from kood.conformal import rate_interval
from kood.errors import UserError
from kood.monitor.drift import Drift, stretches
from kood.monitor.stream import Seen
from kood.report.behaviour import thumbnail
from kood.report.drawing import BLUE, GREY, VERMILION, draw
from kood.report.fragments import escaped, figure, row, table, thumbnails
from kood.report.html import shell
from kood.text import clean

__all__ = ["as_data", "print_findings", "verdict", "write_page"]

#: Points of the figure, and the side of a thumbnail before it is enlarged.
POINTS, SIDE = 40, 96


def verdict(found: Drift, level: float, seen: Sequence[Seen]) -> str:
    """The finding in one sentence."""
    if not found.drifts(level):
        return (
            f"No drift: {found.rate:.1%} were flagged where {found.expected:.1%} are expected, which chance explains "
            f"(p = {found.p_value:.2g})."
        )
    first = seen[found.since]
    since = "from the first image on" if found.since == 0 else f"since image {found.since + 1:,} ({clean(first.image)}"
    if found.since:
        since += f", {clean(first.time)})" if first.time else ")"
    return (
        f"Drift: {found.rate:.1%} were flagged where {found.expected:.1%} are expected; {since}, "
        f"{found.rate_since:.1%} (p = {found.p_value:.2g})."
    )


def as_data(found: Drift, level: float, seen: Sequence[Seen], unread: Sequence[str], most: int) -> dict[str, Any]:
    """Everything that was found, as JSON can hold it."""
    return {
        "drift": found.drifts(level),
        "level": level,
        "verdict": verdict(found, level, seen),
        **{key: value for key, value in vars(found).items() if key not in ("since", "interval")},
        "interval": list(found.interval),
        "since": {"place": found.since, **vars(seen[found.since])} if found.drifts(level) else None,
        "unread": list(unread),
        "most_surprising": [vars(one) for one in surprising(seen, most)],
    }


def surprising(seen: Sequence[Seen], most: int) -> list[Seen]:
    """The images that are least like the calibration images, first."""
    return sorted(seen, key=lambda one: (one.p_value, -one.ood_score))[:most]


def _facts(found: Drift, unread: Sequence[str]) -> dict[str, str]:
    """The figures behind the verdict, in words."""
    low, high = found.interval
    return {
        "images": f"{found.images:,}" + (f", and {len(unread):,} that could not be read" if unread else ""),
        "flagged": f"{found.flagged:,}: {found.rate:.2%} (95% interval {low:.2%} to {high:.2%})",
        "expected": f"{found.expected:.2%}",
        "p-value of the rate": f"{found.rate_p_value:.3g}",
        "p-value of a change": f"{found.change_p_value:.3g}",
    }


def print_findings(
    console: Console, found: Drift, level: float, seen: Sequence[Seen], unread: Sequence[str], most: int
) -> None:
    """Prints the verdict and the most surprising images."""
    console.print(Text(verdict(found, level, seen), "bold red" if found.drifts(level) else "bold"))
    facts = Table(box=None, show_header=False, pad_edge=False)
    for name, value in _facts(found, unread).items():
        facts.add_row(name, value)
    console.print(facts)
    table = Table(title="Most surprising", title_justify="left")
    for heading in ("image", "taken for", "OOD score", "p-value", "flagged"):
        table.add_column(heading, overflow="fold")  # Cut off, two long names would be one.
    for one in surprising(seen, most):
        table.add_row(
            Text(clean(one.image)), Text(clean(one.class_name)), f"{one.ood_score:.4g}", f"{one.p_value:.3g}",
            "yes" if one.is_ood else "no",
        )  # fmt: skip
    if most:
        console.print(table)
    for message in unread:
        console.print(Text(clean(message)), soft_wrap=True)


def write_page(
    path: Path, name: str, found: Drift, level: float, seen: Sequence[Seen], unread: Sequence[str], most: int
) -> None:
    """Writes the findings as one HTML page that needs no network."""
    rows = [row(escaped(label), [escaped(value)]) for label, value in _facts(found, unread).items()]
    shown = thumbnails(_extreme(one) for one in surprising(seen, most))
    body = (
        f'<div class="warnings"><p><strong>{escaped(verdict(found, level, seen))}</strong></p></div>'
        + table(["", ""], rows)
        + figure(
            _rates(found, seen), "Share of flagged images over the stream",
            "Each point is one stretch of the stream with its 95% interval; the line is the share that is expected.",
        )
        + f"<h2>Most surprising images</h2>{shown}"
    )  # fmt: skip
    footer = "A p-value of the stream says how often chance alone would look like this; see kood's README."
    report.write_text(path, shell(f"{name} · kood monitor", "kood · what a deployed model met", name, "", body, footer))


def _extreme(one: Seen) -> tuple[bytes | None, str]:
    told = f"{Path(one.image).name}: {one.class_name}, score {one.ood_score:.4g}, p {one.p_value:.3g}"
    try:
        return thumbnail(_small(Path(one.image))), told
    except (UserError, OSError, ValueError):
        return None, told  # A log may name files that are not here.


def _small(file: Path) -> np.ndarray:
    from PIL import Image

    from kood.data.decode import decode_image

    pixels = decode_image(file)
    shown = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3])
    shown.thumbnail((SIDE, SIDE))
    small = np.asarray(shown)
    return small[..., None] if small.ndim == 2 else small


def _rates(found: Drift, seen: Sequence[Seen]) -> bytes:
    flags = np.array([one.is_ood for one in seen])
    edges = stretches(len(flags), POINTS)
    middles, rates, lows, highs = [], [], [], []
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        hits = int(flags[start:end].sum())
        low, high = rate_interval(hits, int(end - start))
        middles.append((start + end) / 2)
        rates.append(100 * hits / (end - start))
        lows.append(rates[-1] - 100 * low)
        highs.append(100 * high - rates[-1])

    def paint(canvas: Any) -> None:
        axes = canvas.subplots()
        axes.errorbar(middles, rates, yerr=[lows, highs], fmt="o", ms=3.5, lw=0.8, color=BLUE, ecolor=GREY)
        axes.axhline(100 * found.expected, color=GREY, lw=1.1, ls=(0, (4, 2)))
        if found.since:
            axes.axvline(found.since, color=VERMILION, lw=1.1)
        axes.set(xlabel="image", ylabel="flagged, %", ylim=(0, None), xlim=(0, len(flags)))

    return draw(7.2, 2.6, paint, "svg")
