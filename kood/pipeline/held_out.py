"""The images of a run less some classes, which then stand for what a deployed model will meet."""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kood import registry
from kood.data import ImageSet
from kood.data.copies import image_digests, numbered
from kood.data.image_set import joined
from kood.errors import UserError
from kood.files import fingerprint
from kood.pipeline.features import OutlierFeatures
from kood.pipeline.outliers import Outliers
from kood.pipeline.prepare import PARTS, Rows
from kood.pipeline.stage import Stage
from kood.recipe.data_sections import HoldOut
from kood.report import HELD_OUT, fold_figures, fold_means, score_arrays
from kood.text import some_of

__all__ = ["Fewer", "HeldOut", "folds_of", "notes_of", "notes_on", "told_folds"]

#: The images of the classes that are held out.
NEAR = f"data.near.{HELD_OUT}"
#: A fold that is exposed to a smaller share of the outliers of a run than this is told of.
MOST = 0.9
#: How often folds are dealt anew where two of them are alike.
TRIES = 100


class HeldOut(Rows):
    """The images of a run, or what a frozen backbone gives for them, without some classes; these are a near set.

    All images of the classes that are held out are tested on, since none was learned from; but for those whose pixels a
    class that stays has as well.

    Args:
        held: The names of the classes.
    """

    def __init__(self, rows: Rows, held: Sequence[str]):
        self.rows, self.held = rows, tuple(held)
        names = rows.images("train").class_names
        self._out = np.array([name in self.held for name in names])
        self._names = tuple(name for name in names if name not in self.held)
        #: The new number of each class that stays.
        self._number = np.cumsum(~self._out) - 1

    @property
    def frozen(self) -> Stage | None:
        """As of `Rows`."""
        return self.rows.frozen

    @property
    def groups(self) -> dict[str, dict[str, int]]:
        """As of `Rows`: those of all classes."""
        return self.rows.groups

    @property
    def numbers(self) -> np.ndarray:
        """The numbers that the classes that are held out have among all."""
        return np.flatnonzero(self._out)

    def images(self, name: str) -> ImageSet:
        """As of `Rows`; of the in-distribution parts what has a class that stays, and the near set."""
        if name == NEAR:
            if not sum(map(len, self._tested)):
                raise UserError(f"data.hold_out: {self.note}, so there are none to test on; mend the labels")
            parts = zip(PARTS, self._tested, strict=True)
            return joined([ImageSet(self.rows.images(part).take(rows).images) for part, rows in parts])
        found = self.rows.images(name)
        return self._kept(found) if name in PARTS else found

    @functools.cached_property
    def _held(self) -> list[np.ndarray]:
        """Which rows of each part have a class that is held out."""
        return [self._out[self.rows.images(part).known_labels] for part in PARTS]

    @functools.cached_property
    def _tested(self) -> list[np.ndarray]:
        """The rows of each part that are tested on."""
        images = numbered(np.concatenate([image_digests(self.rows.shown(part).images) for part in PARTS]))
        held = np.concatenate(self._held)
        tested = held & ~np.isin(images, images[~held])
        return [np.flatnonzero(its) for its in np.split(tested, np.cumsum([len(its) for its in self._held])[:-1])]

    @property
    def _copies(self) -> int:
        """How many rows of the classes that are held out are not."""
        return sum(int(its.sum()) for its in self._held) - sum(map(len, self._tested))

    @property
    def note(self) -> str:
        """What of the classes that are held out is not tested on, and why, in words; "" where all is."""
        told = "images of classes that are held out have the pixels of some that stay, and are not tested on"
        return f"{self._copies:,} {told}" if self._copies else ""

    def seen(self) -> ImageSet:
        """As of `Rows`."""
        return self._kept(self.rows.seen())

    def _kept(self, images: ImageSet) -> ImageSet:
        rows = np.flatnonzero(~self._out[images.known_labels])
        kept = images.take(rows)
        return ImageSet(kept.images, self._number[kept.known_labels], self._names)

    def names(self, kind: str) -> list[str]:
        """As of `Rows`: the images of the classes that are held out are the one near set."""
        return [HELD_OUT] if kind == "near" else []

    def digest(self, *names: str) -> list[str]:
        """As of `Rows`."""
        return [self._digest(name) for name in names]

    def _digest(self, name: str) -> str:
        if name == NEAR:
            return fingerprint(self.rows.digest(*PARTS), self.held, *([self._copies] if self._copies else []))
        (whole,) = self.rows.digest(name)
        return fingerprint(whole, self.held) if name in PARTS else whole


class Fewer:
    """The outliers of a run that no image of the classes that are held out is in; for `Classifier` they are `Outliers`.

    Args:
        outliers: All of them, of a stage that serves fewer classes.
        held: The numbers of the classes.
    """

    def __init__(self, outliers: Outliers | OutlierFeatures, held: np.ndarray, classes: int):
        self.outliers, self._held = outliers, held
        self._stay = np.setdiff1d(np.arange(classes), held)
        self.kind, self._rows = outliers.kind, outliers.made_without(held)

    @property
    def note(self) -> str:
        """How many of them there are, where these are clearly fewer than the run has; else ""."""
        count, every = len(self._rows), len(self.outliers.exposed(0))
        return f"{count:,} of {every:,} of {self.kind}" if count < MOST * every else ""

    @property
    def facts(self) -> dict[str, Any]:
        """What decides a classifier that is exposed to them."""
        return {"sha256": fingerprint(self.outliers.facts["sha256"], self._held.tolist())}

    def exposed(self, seed: int) -> ImageSet:
        """As of `Outliers`."""
        return self.outliers.exposed(seed).take(self._rows)

    def shares(self) -> np.ndarray | None:
        """As of `Outliers`."""
        shares = self.outliers.shares()
        return None if shares is None else shares[self._rows][:, self._stay]


def folds_of(settings: HoldOut, names: Sequence[str], seed: int) -> list[tuple[str, ...]]:
    """The classes that each fold holds out, in the order of the classes; no two folds hold the same ones out.

    Drawn ones go through all classes before any is held out again, as far as folds differ.

    Raises:
        UserError: a class that is none, or fewer than two left to tell apart.
    """
    if isinstance(settings.folds, list):
        for fold in settings.folds:
            for name in fold:
                if name not in names:
                    raise UserError(
                        f"data.hold_out.folds: {name!r} is no class of data.id; {registry.nearest(name, names)}"
                    )
        folds = [tuple(name for name in names if name in fold) for fold in settings.folds]
    else:
        count = settings.held(len(names))
        drawn = _drawn(min(settings.folds, math.comb(len(names), count)), count, len(names), seed)
        folds = [tuple(names[number] for number in fold) for fold in drawn]
    for held in folds:
        if len(names) - len(held) < 2:
            raise UserError(f"data.hold_out: without {', '.join(map(repr, held))} data.id has "
                            f"{len(names) - len(held)} of its {len(names)} classes left, and a classifier needs 2; "
                            "hold out fewer")  # fmt: skip
    return list(dict.fromkeys(folds))


def _drawn(folds: int, count: int, classes: int, seed: int) -> list[tuple[int, ...]]:
    """So many different sets of `count` classes, by their numbers; no more than there are."""
    rng = np.random.default_rng(seed)
    for _ in range(TRIES):
        found = _dealt(folds, count, classes, rng)
        if len(set(found)) == folds:
            return found
    # Nearly all that there are: of those that are left, one of the classes that were held out least.
    found = []
    while len(found) < folds:
        held = Counter(number for fold in found for number in fold)
        order = sorted(range(classes), key=lambda number: (held[number], rng.random()))
        others = (tuple(sorted(one)) for one in itertools.combinations(order, count))
        found.append(next(one for one in others if one not in found))
    return found


def _dealt(folds: int, count: int, classes: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """So many sets of `count` classes, dealt out of one order of all of them after the other; some may be alike."""
    waiting, found = list[int](), list[tuple[int, ...]]()
    for _ in range(folds):
        drawn: list[int] = []
        while len(drawn) < count:
            if not any(one not in drawn for one in waiting):
                waiting += rng.permutation(classes).tolist()
            drawn.append(waiting.pop(next(at for at, one in enumerate(waiting) if one not in drawn)))
        found.append(tuple(sorted(drawn)))
    return found


def notes_on(settings: HoldOut, folds: Sequence[Sequence[str]], names: Sequence[str]) -> list[str]:
    """What there is to know of the folds, a sentence each: that there are fewer than were asked for, and that classes
    stand in several of them.
    """
    notes, is_drawn = [], isinstance(settings.folds, int)
    if len(folds) < settings.asked:
        why = f"{len(names)} classes can be held out {len(folds[0])} at a time in no more ways"
        why = why if is_drawn else "the others name the same classes again"
        notes.append(f"data.hold_out: {len(folds)} folds are made where {settings.asked} are asked for, since {why}")
    held = Counter(name for fold in folds for name in fold)
    often = [name for name in names if held[name] > 1]
    if often:
        why = (
            f", since {len(folds)} folds of {len(folds[0])} are more than the {len(names)} classes" if is_drawn else ""
        )
        notes.append(f"data.hold_out: some classes are held out in several folds{why}: {some_of(often)}")
    return notes


def notes_of(data: Rows, outliers: Iterable[Sequence[Any]], evaluation: Stage, scores: Collection[str]) -> list[str]:
    """What there is to know of one fold, a sentence each: which of its images are not tested on, how many fewer
    outliers it is exposed to, and why it was not measured by each of the run's scores.

    Args:
        outliers: What it is exposed to, by source.
        evaluation: By which scores it was measured, where it was.
    """
    notes = [data.note] if isinstance(data, HeldOut) and data.note else []
    fewer = [one[-1].note for one in outliers if one and isinstance(one[-1], Fewer) and one[-1].note]
    if fewer:
        notes.append(
            "of the outliers of the run it is exposed to those that no image of these classes is in "
            f"({', '.join(fewer)}); compare it with folds that are exposed to as many"
        )
    if evaluation.result is not None:
        facts = evaluation.facts
        missing = [name for name in scores if HELD_OUT not in facts["scores"].get(name, {})]
        told = [*facts["warnings"], *facts["notes"]]
        notes += [text for text in told if any(f" {name} " in f" {text}" for name in missing)]
    return notes


def told_folds(folds: Sequence[Any], left_out: Sequence[dict[str, Any]], run: Path) -> dict[str, Any]:
    """What the report tells of folds: each one's figures, and their mean with its interval.

    Args:
        folds: Pairs of the classes that were held out and the evaluation without them.
        left_out: {"classes", "why"} of those that were not finished.
    """
    told = []
    for held, evaluation in folds:
        facts, score, threshold = evaluation.facts, evaluation.headline, evaluation.facts["threshold"]
        file, data = evaluation.folder / "scores.npz", evaluation.data
        with np.load(file, allow_pickle=False) as arrays:
            figures = fold_figures(score_arrays(arrays, score))
        told.append({
            "classes": list(held), "score": score, **figures,
            "accepted": threshold["accepted_id_test"], "accepted_interval": threshold["accepted_id_test_interval"],
            "accuracy": facts["id"]["accuracy"], "scores_file": file.relative_to(run).as_posix(),
            "sha256": {"id": data.digest("test")[0], **data.digests("near")},
        })  # fmt: skip
    found = [evaluation.facts["scores"] for _, evaluation in folds]
    by_score = {
        name: float(np.mean([one[name][HELD_OUT]["auroc"] for one in found]))
        for name in (found[0] if found else {})
        if all(HELD_OUT in one.get(name, {}) for one in found)
    }
    return {"folds": told, "mean": fold_means(told), "scores": by_score, "left_out": list(left_out)}
