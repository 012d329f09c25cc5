"""A stream's answers, each judged by the calibration of the version, and of the threshold, that it was given under."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kood.conformal import shift
from kood.errors import UserError
from kood.monitor.drift import STREAMS, TESTS, Drift, Ties, drift
from kood.monitor.stream import Met, Seen, by_version
from kood.serving.client import newest_version, versions
from kood.serving.extras import read_facts

__all__ = ["Finding", "Watched", "judge", "judge_log"]

#: Streams that are simulated at most, of all thresholds that drift together, and how many times as many as an alarm
#: takes: with fewer, chance would decide it.
MOST, SPARE = 10**6 - 1, 10

#: A version's folder, its `kood.json`, and its answers by the number of their threshold.
_Answers = tuple[str, Mapping[str, Any], Mapping[int, Sequence[Seen]]]


@dataclass(frozen=True)
class Finding:
    """What was found of the answers given under one threshold.

    Attributes:
        version: Which version gave them; its folder's name.
        classes: The classes that have this threshold; empty where all have. It accepts the share `accept`.
        seen: The images, in order; `drift` what the tests say of them.
    """

    version: str
    classes: tuple[str, ...]
    threshold: float
    accept: float
    seen: Sequence[Seen]
    drift: Drift

    @property
    def name(self) -> str:
        """The version, and the classes where they are not all."""
        return f"version {self.version}" + (f", {', '.join(self.classes)}" if self.classes else "")


@dataclass(frozen=True)
class Watched:
    """All that was found of a stream.

    Attributes:
        findings: One for each threshold that answers were given under.
        unread: Why files could not be read.
        known: How many images were left out because the model was made of them.
        left_out: What else was, and what else there is to say, a sentence each.
        grouped: In how many groups the calibration images of a version stand, by its name: tests count them as
            independent.
    """

    findings: tuple[Finding, ...]
    unread: Sequence[str]
    known: int
    left_out: Sequence[str]
    grouped: Mapping[str, int] = field(default_factory=dict)

    @property
    def seen(self) -> list[Seen]:
        """Every image that was judged."""
        return [one for finding in self.findings for one in finding.seen]

    @property
    def images(self) -> int:
        """How many."""
        return sum(finding.drift.images for finding in self.findings)

    @property
    def flagged(self) -> int:
        """How many of them were flagged."""
        return sum(finding.drift.flagged for finding in self.findings)

    @property
    def clearest(self) -> Finding:
        """The finding with the smallest p-value."""
        return min(self.findings, key=lambda finding: finding.drift.p_value)

    @property
    def p_value(self) -> float:
        """Of all findings together (Bonferroni): the smallest times their number, at most 1."""
        return min(1.0, len(self.findings) * self.clearest.drift.p_value)

    def drifts(self, level: float) -> bool:
        """Whether they say so at a level."""
        return self.p_value <= level


def judge(met: Met, version: Path, facts: Mapping[str, Any], level: float) -> Watched:
    """Judges answers of one version, told by its folder and its `kood.json`, finely enough for a level."""
    return _watched(met, [(version.name, facts, _by_threshold(met.seen, facts))], met.told, level)


def judge_log(met: Met, run: Path, file: Path, level: float) -> Watched:
    """Judges logged answers of a file, each by the version that it says it was given under.

    Where `run` is a version and not a run's folder, its answers alone count.

    Args:
        run: `saved/<recipe>`, or one of its versions.
        level: What they are judged finely enough for.

    Raises:
        UserError: no answer can be judged: their versions are not there, had another threshold, or are not named
            though there are several.
    """
    newest = newest_version(run)
    asked_for = newest if newest.samefile(run) else None
    base = newest.parent
    found, left_out = list[_Answers](), list[str]()
    # No answer names a folder whose name is no number.
    named = asked_for is None or asked_for.name.isdecimal()
    for version, seen in (by_version(met.seen) if named else {None: met.seen}).items():
        folder = (asked_for or _only(base, file, len(seen))) if version is None else base / str(version)
        if asked_for is not None and folder != asked_for:
            left_out.append(f"{len(seen):,} answers of version {version}: only those of {asked_for} were asked for")
            continue
        if not (folder / "saved_model.pb").is_file():
            left_out.append(f"{len(seen):,} answers of version {version}: {folder} is not there")
            continue
        facts = read_facts(folder)
        by_threshold = _by_threshold(seen, facts)
        own = sum(map(len, by_threshold.values()))
        found += [(folder.name, facts, by_threshold)] if own else []
        if own < len(seen):
            left_out.append(
                f"{len(seen) - own:,} answers that say version {folder.name} have a class or a threshold that {folder} "
                "does not have: they are another model's"
            )
    if not found:
        raise UserError(f"--data {file}: no answer in it can be judged: {'; '.join(left_out)}")
    return _watched(met, found, left_out, level)


def _only(base: Path, file: Path, answers: int) -> Path:
    """The version of answers that name none, where there is but one."""
    first, *others = versions(base)
    if others:
        names = ", ".join(path.name for path in (first, *others))
        raise UserError(
            f"--data {file}: {answers:,} answers do not say which version gave them, and {base} has {names}; name the "
            f"one that did: kood monitor {first}"
        )
    return first


def _by_threshold(seen: Sequence[Seen], facts: Mapping[str, Any]) -> dict[int, list[Seen]]:
    """The answers that are a version's, by the number of the threshold that they were given under."""
    names, edges = [str(name) for name in facts["class_names"]], _edges(facts)
    group_of = {names[k]: number for number, group in enumerate(facts["groups"]) for k in group["classes"]}
    found: dict[int, list[Seen]] = {}
    for one in seen:
        if (number := _group(one, edges, group_of)) is not None:
            found.setdefault(number, []).append(one)
    return dict(sorted(found.items()))


def _edges(facts: Mapping[str, Any]) -> list[float]:
    # The graph holds float32.
    return [float(np.float32(group["threshold"])) for group in facts["groups"]]


def _watched(met: Met, found: Sequence[_Answers], left_out: Sequence[str], level: float) -> Watched:
    """What is found of answers, by as many streams as it takes to say so at a level."""
    count = sum(len(by_threshold) for _, _, by_threshold in found)
    needed = TESTS * count / level
    if needed > MOST + 1:
        left_out = [
            *left_out,
            f"changes that the rate of the whole stream does not show: for --level {level:g} of {TESTS * count:,} "
            f"tests {needed:,.0f} streams would have to be simulated, and at most {MOST:,} are; raise --level",
        ]
    streams, left, findings = max(STREAMS, math.ceil(SPARE * needed)), MOST, list[Finding]()
    for version, facts, by_threshold in found:
        for number, own in by_threshold.items():
            # What is no alarm takes few of them; alarms that are many are the same verdict as one.
            findings.append(_finding(version, facts, number, own, min(streams, max(STREAMS, left))))
            left -= streams if findings[-1].drift.drifts(level / count) else 0
    grouped = {version: int(groups) for version, facts, _ in found if (groups := facts.get("calibration_groups"))}
    return Watched(tuple(findings), met.unread, met.known, left_out, grouped)


def _finding(version: str, facts: Mapping[str, Any], number: int, own: Sequence[Seen], streams: int) -> Finding:
    """What is found of the answers that were given under one of a version's thresholds."""
    accept, group, edge = float(facts["accept"]), facts["groups"][number], _edges(facts)[number]
    at = np.array([float(np.float32(one.ood_score)) == edge for one in own])
    ties = Ties(int(group["below"]), int(group["tied"]), at)
    scores, p_values = (np.array([getattr(one, key) for one in own]) for key in ("ood_score", "p_value"))
    flags, images = np.array([one.is_ood for one in own]), int(group["images"])
    moved = shift(scores, p_values, images, accept)
    tested = drift(flags, images, accept, ties, moved, streams=streams)
    classes = tuple(str(facts["class_names"][k]) for k in group["classes"]) if len(facts["groups"]) > 1 else ()
    return Finding(version, classes, edge, accept, own, tested)


def _group(one: Seen, edges: Sequence[float], group_of: Mapping[str, int]) -> int | None:
    """Which threshold an answer was given under, by its own word, or else by its class; None where it is none of them.

    What is labelled as no class, since nothing in it can be compared, counts with the first.
    """
    said = None if one.threshold is None else float(np.float32(one.threshold))
    if said is not None and said not in edges:
        return None
    if said is not None and edges.count(said) == 1 and one.class_name:
        return edges.index(said) if group_of.get(one.class_name, -1) in (-1, edges.index(said)) else None
    if len(edges) == 1 or (not one.class_name and one.is_ood):
        return 0
    return group_of.get(one.class_name)
