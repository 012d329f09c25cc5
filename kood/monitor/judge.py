"""A stream's answers, each judged by the calibration of the version, and of the threshold, that it was given under."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kood.conformal import shift
from kood.errors import UserError
from kood.monitor.drift import Drift, Ties, drift
from kood.monitor.stream import Met, Seen, by_version
from kood.serving.client import newest_version, versions
from kood.serving.extras import read_facts

__all__ = ["Finding", "Watched", "judge", "judge_log"]


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
    """

    findings: tuple[Finding, ...]
    unread: Sequence[str]
    known: int
    left_out: Sequence[str]

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


def judge(met: Met, version: Path, facts: Mapping[str, Any]) -> Watched:
    """Judges answers of one version, told by its folder and its `kood.json`."""
    return Watched(tuple(_findings(met.seen, version.name, facts)), met.unread, met.known, met.told)


def judge_log(met: Met, run: Path, file: Path) -> Watched:
    """Judges logged answers of a file, each by the version that it says it was given under.

    Where `run` is a version and not a run's folder, its answers alone count.

    Raises:
        UserError: no answer can be judged: their versions are not there, had another threshold, or are not named
            though there are several.
    """
    newest = newest_version(run)
    asked_for = newest if newest == run else None
    base = newest.parent
    found, left_out = [], []
    for version, seen in by_version(met.seen).items():
        folder = (asked_for or _only(base, file, len(seen))) if version is None else base / str(version)
        if asked_for is not None and folder != asked_for:
            left_out.append(f"{len(seen):,} answers of version {version}: only those of {asked_for} were asked for")
            continue
        if not (folder / "saved_model.pb").is_file():
            left_out.append(f"{len(seen):,} answers of version {version}: {folder} is not there")
            continue
        facts = read_facts(folder)
        judged = _findings(seen, folder.name, facts)
        found += judged
        own = sum(len(one.seen) for one in judged)
        if own < len(seen):
            left_out.append(
                f"{len(seen) - own:,} answers that say version {folder.name} have a class or a threshold that {folder} "
                "does not have: they are another model's"
            )
    if not found:
        raise UserError(f"--data {file}: no answer in it can be judged: {'; '.join(left_out)}")
    return Watched(tuple(found), met.unread, met.known, left_out)


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


def _findings(seen: Sequence[Seen], version: str, facts: Mapping[str, Any]) -> list[Finding]:
    """What is found of the answers that are this version's, for each of its thresholds that there are some of."""
    accept, groups = float(facts["accept"]), facts["groups"]
    names = [str(name) for name in facts["class_names"]]
    edges = [float(np.float32(group["threshold"])) for group in groups]
    group_of = {names[k]: number for number, group in enumerate(groups) for k in group["classes"]}
    found = []
    for number, group in enumerate(groups):
        own = [one for one in seen if _group(one, edges, group_of) == number]
        if not own:
            continue
        at = np.array([float(np.float32(one.ood_score)) == edges[number] for one in own])
        ties = Ties(int(group["below"]), int(group["tied"]), at)
        scores, p_values = (np.array([getattr(one, key) for one in own]) for key in ("ood_score", "p_value"))
        moved = shift(scores, p_values, int(group["images"]), accept)
        tested = drift(np.array([one.is_ood for one in own]), int(group["images"]), accept, ties=ties, shift=moved)
        classes = tuple(names[k] for k in group["classes"]) if len(groups) > 1 else ()
        found.append(Finding(version, classes, edges[number], accept, own, tested))
    return found


def _group(one: Seen, edges: Sequence[float], group_of: Mapping[str, int]) -> int | None:
    """Which threshold an answer was given under, by its own word, or else by its class; None where it is none of them.

    What is labelled as no class, since nothing in it can be compared, counts with the first.
    """
    # The graph holds float32.
    said = None if one.threshold is None else float(np.float32(one.threshold))
    if said is not None and said not in edges:
        return None
    if said is not None and edges.count(said) == 1 and one.class_name:
        return edges.index(said) if group_of.get(one.class_name, -1) in (-1, edges.index(said)) else None
    if len(edges) == 1 or (not one.class_name and one.is_ood):
        return 0
    return group_of.get(one.class_name)
