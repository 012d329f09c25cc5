"""What `kood monitor` prints and writes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from kood import report
from kood.conformal import rate_interval
from kood.data.rules import Framing
from kood.errors import UserError
from kood.monitor.drift import Drift, stretches
from kood.monitor.judge import Finding, Watched
from kood.monitor.stream import Seen
from kood.report.behaviour import thumbnail
from kood.report.drawing import BLUE, GREY, VERMILION, draw
from kood.report.html import render
from kood.report.tables import Column, Table, row, words
from kood.report.terminal import print_table, say
from kood.text import clean

__all__ = ["as_data", "print_findings", "verdict", "write_page"]

#: Points of the figure, and the side of a thumbnail before it is enlarged.
POINTS, SIDE = 40, 96


def verdict(watched: Watched, level: float) -> str:
    """The finding in one sentence, and a second one where calibration images stand in groups."""
    doubts = (
        f" The calibration images of version {clean(version)} stand in {groups:,} groups and are counted as "
        "independent, so drift is called more often than the level says."
        for version, groups in watched.grouped.items()
    )
    return _found(watched, level) + "".join(doubts)


def _found(watched: Watched, level: float) -> str:
    one = watched.clearest
    found, several = one.drift, len(watched.findings) > 1
    at_most, of = "at most " if found.tied else "", f" of {one.name}" if several else ""
    if not watched.drifts(level):
        told = f"{found.rate:.1%} were flagged where {at_most}{found.expected:.1%} are expected, which chance explains"
        if several:
            told = f"none of {len(watched.findings)} thresholds flags more or fewer images than chance explains"
        return f"No drift: {told}, and p-values are as expected (p = {watched.p_value:.2g})."
    if found.flags_p_value > level / len(watched.findings):
        return (
            f"Drift: {_share_at(found)}{clean(of)}, though {found.rate:.1%} were flagged where {at_most}"
            f"{found.expected:.1%} are expected (p = {watched.p_value:.2g})."
        )
    first = one.seen[found.since]
    since = "from the first image on" if found.since == 0 else f"since image {found.since + 1:,} ({clean(first.image)}"
    if found.since:
        since += f", {clean(first.time)})" if first.time else ")"
    return (
        f"Drift: {found.rate:.1%}{clean(of)} were flagged where {at_most}{found.expected:.1%} are expected; {since}, "
        f"{found.rate_since:.1%} (p = {watched.p_value:.2g})."
    )


def _share_at(found: Drift) -> str:
    """Where the p-values are farthest from what is expected, in words."""
    moved = found.shift
    return f"{moved.share:.1%} have a p-value of at most {moved.at:.2g} where {moved.at:.1%} are expected"


def as_data(watched: Watched, level: float, most: int) -> dict[str, Any]:
    """Everything that was found, as JSON can hold it; of a single threshold its figures stand at the top too."""
    streams = [_stream(one, level / len(watched.findings)) for one in watched.findings]
    return {
        "drift": watched.drifts(level),
        "level": level,
        "verdict": verdict(watched, level),
        **(streams[0] if len(streams) == 1 else {"images": watched.images, "flagged": watched.flagged}),
        "p_value": watched.p_value,
        "streams": streams,
        "known": watched.known,
        "left_out": list(watched.left_out),
        "unread": list(watched.unread),
        "most_surprising": [vars(one) for one in surprising(watched.seen, most)],
    }


def _stream(one: Finding, level: float) -> dict[str, Any]:
    found = one.drift
    since = _since(found, level)
    return {
        "version": one.version,
        "classes": list(one.classes),
        "threshold": one.threshold,
        "accept": one.accept,
        **{key: value for key, value in vars(found).items() if key not in ("since", "interval", "shift")},
        "interval": list(found.interval),
        "rate_since": found.rate_since if since else found.rate,
        **{f"shift_{key}": value for key, value in vars(found.shift).items()},
        "p_value": found.p_value,
        "since": {"place": since, **vars(one.seen[since])} if found.drifts(level) else None,
    }


def _since(found: Drift, level: float) -> int:
    """Where the flags change, if they drift at a level; the test of p-values takes the stream as a whole, from 0 on."""
    return found.since if found.flags_p_value <= level else 0


def surprising(seen: Sequence[Seen], most: int) -> list[Seen]:
    """The images that are least like the calibration images, first; those without a p-value before all."""
    return sorted(seen, key=lambda one: (_finite(one.p_value, -1.0), -_finite(one.ood_score, math.inf)))[:most]


def _finite(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise


def _facts(one: Finding, several: bool) -> Table:
    """The figures behind a verdict, in words."""
    found = one.drift
    low, high = found.interval
    facts = {
        "images": f"{found.images:,}",
        "flagged": f"{found.flagged:,}: {found.rate:.2%} (95% interval {low:.2%} to {high:.2%})",
        "expected": f"{'at most ' if found.tied else ''}{found.expected:.2%}",
        "p-value: share flagged": f"{found.rate_p_value:.3g}",
        "p-value: change point": f"{found.change_p_value:.3g}",
        "p-values": _share_at(found),
        "p-value: KS test": f"{found.shift.p_value:.3g}",
    }
    if found.tied:
        facts["at the threshold"] = f"{found.tied:,}; accepted, and for the tests their order is drawn"
    rows = [row(*fact) for fact in facts.items()]
    return Table((words(""), words("")), rows, one.name if several else "")


def _surprising(images: Sequence[Seen]) -> Table:
    columns = (words("image"), words("taken for"), *map(Column, ("OOD score", "p-value", "flagged")))
    rows = [
        row(one.image, one.class_name, f"{one.ood_score:.4g}", f"{one.p_value:.3g}", "yes" if one.is_ood else "no")
        for one in images
    ]
    return Table(columns, rows, "Most surprising")


def _left_out(watched: Watched) -> list[str]:
    """What is not part of the findings, a sentence each."""
    told = list(watched.left_out)
    if watched.known:
        told.append(f"{watched.known:,} images that the model, its score or its threshold was made with")
    if watched.unread:
        told.append(f"{len(watched.unread):,} that could not be read")
    return told


def print_findings(console: Console, watched: Watched, level: float, most: int) -> None:
    """Prints the verdict and the most surprising images."""
    say(console, verdict(watched, level), "bold red" if watched.drifts(level) else "bold")
    for one in watched.findings:
        print_table(console, _facts(one, len(watched.findings) > 1))
    for told in _left_out(watched):
        say(console, f"left out: {told}", whole=True)
    if most:
        print_table(console, _surprising(surprising(watched.seen, most)))
    for message in watched.unread:
        say(console, message, whole=True)


def write_page(path: Path, name: str, watched: Watched, level: float, most: int, framing: Framing) -> None:
    """Writes the findings as one HTML page that needs no network; `framing` is the model's."""
    several, each = len(watched.findings) > 1, level / len(watched.findings)
    html = render(
        "monitor.html",
        recipe=name,
        about="",
        verdict=verdict(watched, level),
        findings=[(_facts(one, several), _rates(one.drift, one.seen, each)) for one in watched.findings],
        left_out=_left_out(watched),
        shown=[_extreme(one, framing) for one in surprising(watched.seen, most)],
    )
    report.write_text(path, html)


def _extreme(one: Seen, framing: Framing) -> tuple[bytes | None, str]:
    from kood.data.decode import decode_image

    told = f"{Path(one.image).name}: {one.class_name}, score {one.ood_score:.4g}, p {one.p_value:.3g}"
    try:
        pixels = decode_image(Path(one.image))
        if pixels.shape[-1] == 4:
            from kood.data.images import fit_images  # Imports TensorFlow, which a log needs for nothing else.

            pixels = fit_images(pixels[None], (*pixels.shape[:2], 3), framing)[0]
        return thumbnail(pixels, SIDE), told
    except (UserError, OSError, ValueError):
        return None, told  # A log may name files that are not here.


def _rates(found: Drift, seen: Sequence[Seen], level: float) -> bytes:
    flags = np.array([one.is_ood for one in seen])
    edges = stretches(len(flags), POINTS)
    hits, sizes = np.add.reduceat(flags.astype(np.int64), edges[:-1]), np.diff(edges)
    lows, highs = np.transpose([rate_interval(int(hit), int(size)) for hit, size in zip(hits, sizes, strict=True)])
    rates, middles = hits / sizes, (edges[:-1] + edges[1:]) / 2
    bars = 100 * np.stack([rates - lows, highs - rates])

    def paint(canvas: Any) -> None:
        axes = canvas.subplots()
        axes.errorbar(middles, 100 * rates, yerr=bars, fmt="o", ms=3.5, lw=0.8, color=BLUE, ecolor=GREY)
        axes.axhline(100 * found.expected, color=GREY, lw=1.1, ls=(0, (4, 2)))
        if since := _since(found, level):
            axes.axvline(since, color=VERMILION, lw=1.1)
        axes.set(xlabel="image", ylabel="flagged, %", ylim=(0, None), xlim=(0, len(flags)))

    return draw(7.2, 2.6, paint)
