"""The in-distribution images by what they are for: copies and groups found, parts dealt out, and what is said of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kood.data.copies import alike, connected, distinct, image_digests, near_pairs, numbered
from kood.data.dealing import FEW, deal, draw_count, draw_per_class
from kood.data.image_set import ImageSet, Looks, Splits
from kood.errors import UserError
from kood.text import clean, some_of

__all__ = ["Splitting", "in_groups"]

#: Images are said to stand in groups where these may make a variance so many times as large: intervals that count them
#: as independent are 5% too narrow then. The few copies of most sets do not.
_DESIGN_EFFECT = 1.1


class Splitting:
    """The sets of a source, one of which is dealt out; rows are numbered through all of them, that one's first."""

    def __init__(self, sets: dict[str, ImageSet], drawn_from: str, spec: Any, seed: int, key: str):
        self.train = sets[drawn_from]
        self.own = {name: found for name, found in sets.items() if name != drawn_from}
        self.spec, self.seed, self.key = spec, seed, key
        self.labels, self.names = self.train.known_labels, self.train.class_names
        if not spec.stratify:
            self.labels, self.names = np.zeros_like(self.labels), ("all",)
        every = self.every = [self.train, *self.own.values()]
        self.all_labels = np.concatenate([found.known_labels for found in every])
        ends = np.cumsum([len(found) for found in every])
        self.own_rows = {name: np.arange(*ends[place : place + 2]) for place, name in enumerate(self.own)}
        self.digests_of = [image_digests(found.images) for found in every]
        self.digests = np.concatenate(self.digests_of)
        count = len(self.digests)
        self.looks = links = None
        if spec.near_copies is not None:
            self.looks = Looks.of(every)
            links = _near(self.looks.hashes, spec.near_copies)
        #: For every row the first one that is a copy of it, and the first one that stays with it.
        self.copies = connected(count, [numbered(self.digests)], links)
        self.grouped = any(found.groups is not None for found in every)
        self.units = connected(count, [self.copies, _groups(every)]) if self.grouped else self.copies
        if count > 1 and not numbered(self.digests).any():
            height, width, _ = self.train.images.shape[1:]
            raise UserError(f"{key}: all {count} images are equal at {height} x {width} pixels; check its path")

    def splits(self) -> Splits:
        """The parts, and what is to be said of them."""
        rows, left_out = self._unseen(np.arange(len(self.train)))
        unseen = rows
        if self.spec.count is not None:
            rows = draw_count(self.labels, rows, self.spec.count, self.seed, self.key)
        parts = self._dealt(rows, self.units)
        self._need_rows(parts, rows, unseen)
        if self.spec.per_class is not None:
            parts["train"] = draw_per_class(self.train.known_labels, parts["train"], self.spec.per_class, self.seed)
        untrained = self._untrained(parts["train"])
        once = parts["calibration"]
        once = once[np.sort(np.unique(self.copies[once], return_index=True)[1])]
        counts = self._counts(rows, left_out)
        counts["left_out_of_calibration"] = len(parts["calibration"]) - len(once)
        placed = {**parts, "calibration": once}
        found = {name: self.train.take(its) for name, its in placed.items()} | self.own
        measured = {name: its for name, its in (placed | self.own_rows).items() if name != "train"}
        groups = {name: told for name, its in measured.items() if (told := in_groups(self.units[its]))}
        notes, warnings = self._said(counts, left_out)
        warnings += untrained
        return Splits(
            **found, digests=distinct(self.digests), looks=self.looks, copies=counts, groups=groups, notes=tuple(notes),
            warnings=tuple(warnings),
        )  # fmt: skip

    def _unseen(self, rows: np.ndarray) -> tuple[np.ndarray, dict[str, tuple[int, int]]]:
        """The rows of which nothing stands in a part of the source's own; and for each of those parts, how many copies
        and how many others left for it."""
        left_out = {}
        for name, its in self.own_rows.items():
            leaves = np.isin(self.units[rows], self.units[its])
            copies = int(np.isin(self.copies[rows], self.copies[its]).sum())
            left_out[name] = copies, int(leaves.sum()) - copies
            rows = rows[~leaves]
        return rows, left_out

    def _dealt(self, rows: np.ndarray, units: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of each part that is drawn."""
        spec, parts = self.spec, {}
        shares = (spec.calibration, 0.0 if "validation" in self.own else spec.validation)
        pairs = np.unique(np.stack([self.labels[rows], units[rows]]), axis=1)
        expected = np.bincount(pairs[0], minlength=len(self.names)).astype(float)
        if "test" not in self.own:
            sizes = np.bincount(self.labels[rows], minlength=len(self.names))
            # Each class is learned and tested on. A rare one need not be in all of the others, but chance has to have
            # what to give them.
            others = sum(((share > 0) & (share * sizes >= FEW)).astype(int) for share in shares)
            leave = 1 + np.maximum(others, 1)
            parts["test"], rows = deal(self.labels, units, rows, (spec.test,), self.seed, "test", leave, least=1)
            expected *= 1.0 - spec.test
        parts["calibration"], validation, parts["train"] = deal(
            self.labels, units, rows, shares, self.seed, "calibration and validation", expected=expected
        )
        return parts if "validation" in self.own else {**parts, "validation": validation}

    def _counts(self, rows: np.ndarray, left_out: dict[str, tuple[int, int]]) -> dict[str, int]:
        sizes = np.bincount(self.copies, minlength=len(self.copies))
        copied = sizes[self.copies] > 1
        apart = sum(copies for copies, _ in left_out.values())
        other_label = 0
        if copied.any():
            part_of = np.empty(len(self.train), np.int64)
            alone = self._dealt(rows, np.arange(len(self.copies)))
            for number, its in enumerate(alone.values()):
                part_of[its] = number
            apart += _in_several(self.copies[rows], part_of[rows])
            other_label = _in_several(self.copies, self.all_labels)
        return {
            "images": len(self.copies),
            "different": int((sizes > 0).sum()),
            "apart": apart,
            "other_label": other_label,
            "left_out": sum(map(sum, left_out.values())),
        }

    def _first_torn(self) -> str:
        """The first two files that are copies under two labels, where the images lie in files of their own."""
        files = [file for found in self.every for file in getattr(found.images, "files", ())]
        torn = np.flatnonzero(self.all_labels != self.all_labels[self.copies])
        if len(files) != len(self.all_labels) or not len(torn):
            return ""
        return f", such as {clean(files[self.copies[torn[0]]])} and {clean(files[torn[0]])}"

    def _said(self, counts: dict[str, int], left_out: dict[str, tuple[int, int]]) -> tuple[list[str], list[str]]:
        """Notes and warnings, a sentence each."""
        same = (alike(found.images, its) for found, its in zip(self.every, self.digests_of, strict=True))
        copies, thinned = counts["images"] - counts["different"], counts["left_out_of_calibration"]
        height, width, _ = self.train.images.shape[1:]
        near = self.spec.near_copies
        what = f"the same pixels at {height} x {width}" + (
            "" if near is None else f", or perceptual hashes that differ in at most {near} bits"
        )
        notes, warnings = list[str](), list(dict.fromkeys(filter(None, same)))
        if copies:
            have = int((np.bincount(self.copies)[self.copies] > 1).sum())
            warnings.append(
                f"{have:,} of {counts['images']:,} images have copies among the others ({what}); dealt out one by one, "
                f"{counts['apart']:,} of them would have a copy in another part, so copies stay in one part"
                + (f", and {thinned:,} are left out of the calibration part" if thinned else "")
            )
        if other := counts["other_label"]:
            warnings.append(
                f"{other:,} images have a copy under another label{self._first_torn()}; at least one of the labels is "
                "wrong"
            )
        for name, (of_copies, of_groups) in left_out.items():
            own = f"the source's own {name} part"
            if of_copies:
                warnings.append(f"{of_copies:,} images are copies of images in {own} and left out of the others")
            if of_groups:
                notes.append(f"{of_groups:,} images belong together with some in {own} and are left out of the others")
        both = together = 0
        if {"validation", "test"} <= self.own_rows.keys():
            held, test = self.own_rows["validation"], self.own_rows["test"]
            both, together = (int(np.isin(one[held], one[test]).sum()) for one in (self.copies, self.units))
        if both:
            warnings.append(
                f"{both:,} images of the source's own validation part are in its test part as well, so choices are "
                "made on test images"
            )
        if together > both:
            warnings.append(
                f"{together - both:,} images of the source's own validation part belong together with some in its "
                "test part, so choices are made on groups that are tested on"
            )
        if "validation" in self.own:
            images = len(self.own["validation"])
            notes.append(f"the source's own validation part ({images:,} images) is taken, and no other is drawn")
        if self.grouped:
            units = len(np.unique(self.units))
            whole = "" if together else ", each of which stays in one part"
            notes.append(f"the images stand in {units:,} groups{whole}")
        return [f"{self.key}: {text}" for text in notes], [f"{self.key}: {text}" for text in warnings]

    def _untrained(self, rows: np.ndarray) -> list[str]:
        """A warning of the classes of which none of the training images is, as may be where classes are not dealt out
        one by one; refuses to train on fewer than two."""
        names = self.train.class_names
        there = np.bincount(self.train.known_labels[rows], minlength=len(names)) > 0
        missing = [repr(name) for name, found in zip(names, there, strict=True) if not found]
        if not missing:
            return []
        told = f"{self.key}: {len(missing):,} of {len(names):,} classes have no training image ({some_of(missing)})"
        if there.sum() < 2:
            raise UserError(
                f"{told}, so there is nothing to tell apart; add images, or lower `validation`, `calibration`, `test`"
            )
        return [
            f"{told}: nothing of them is learned, and the figures hold their images all the same; add images, drop the "
            "classes, or write stratify = true"
        ]

    def _need_rows(self, parts: dict[str, np.ndarray], drawn: np.ndarray, unseen: np.ndarray) -> None:
        """Every class needs training rows, and one more that chance may give to another part; `unseen` are those of
        which nothing stands in the source's own parts, `drawn` those of them that were dealt out."""
        left = np.bincount(self.labels[parts["train"]], minlength=len(self.names))
        rows = np.setdiff1d(drawn, parts.get("test", []))
        apart = np.unique(np.stack([self.labels[rows], self.units[rows]]), axis=1)[0]
        units_left = np.bincount(apart, minlength=len(self.names))
        for label, name in enumerate(self.names):
            if left[label] and units_left[label] > 1:
                continue
            units = self.units[unseen][self.labels[unseen] == label]
            dealt = np.count_nonzero(self.labels[drawn] == label)
            if dealt < len(units):
                raise UserError(
                    f"{self.key}.count: {self.spec.count} images hold {dealt} of the {len(units):,} of the class "
                    f"{name!r}, too few for a share of every part of the split; raise `count`, or lower "
                    "`validation`, `calibration` and `test`"
                )
            every = self.units[: len(self.labels)][self.labels == label]
            images, lower = len(every), ", or lower `near_copies`" if self.spec.near_copies else ""
            if images > len(units):
                reached = [part for part, its in self.own_rows.items() if np.isin(every, self.units[its]).any()]
                own = " or ".join(reached)
                raise UserError(
                    f"{self.key}: {images - len(units):,} of the {images:,} training images of the class {name!r} are "
                    f"left out, because they are copies of images in the source's own {own} part or belong together "
                    f"with some, and {len(units):,} {'is' if len(units) == 1 else 'are'} too few for every part; take "
                    f"those images out of one of the two, add others, or drop the class{lower}"
                )
            together = len(np.unique(units))
            parted = "" if together == len(units) else f" in {together} groups or sets of copies, which stay together"
            raise UserError(
                f"{self.key}: the class {name!r} has too few images ({len(units)}{parted}) for a share of every "
                "part of the split; add images, drop the class, lower `validation`, `calibration` and `test`"
                f"{lower}, or write `stratify = false`"
            )


def _near(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Links between images whose perceptual hashes are near; what is of one colour has none.

    Copies of other proportions are framed otherwise, so a file's hash is of its whole picture.
    """
    rows = np.flatnonzero(hashes)
    return rows[near_pairs(hashes[rows], distance)]


def _groups(sets: Sequence[ImageSet]) -> np.ndarray:
    """The groups of all sets; what has none is one by itself, numbered above all others."""
    given = [found.groups for found in sets]
    above = 1 + max((int(groups.max()) for groups in given if groups is not None and len(groups)), default=-1)
    ends = np.cumsum([len(found) for found in sets])
    alone = np.split(above + np.arange(ends[-1]), ends[:-1])
    return np.concatenate([own if groups is None else groups for own, groups in zip(alone, given, strict=True)])


def in_groups(units: np.ndarray) -> dict[str, int]:
    """{"images", "groups"} of images in so large groups that they are not to be counted as independent; {} of others.

    Where the images of a group are all alike, a variance is sum(m^2) / n times as large as that of n independent images
    (m the groups' sizes): Kish's design effect.

    Source: Kish 1965, Survey Sampling, chapter 5.

    Args:
        units: (N,); images of one number belong together.
    """
    sizes = np.unique(units, return_counts=True)[1]
    told = {"images": len(units), "groups": len(sizes)}
    # One pair of copies makes no groups, however few the images are.
    return told if len(units) - len(sizes) > 1 and (sizes**2).sum() > _DESIGN_EFFECT * len(units) else {}


def _in_several(units: np.ndarray, kinds: np.ndarray) -> int:
    """How many rows belong to a unit whose rows are of more than one kind."""
    _, unit = np.unique(units, return_inverse=True)
    kinds_of = np.bincount(np.unique(np.stack([unit, kinds]), axis=1)[0])
    return int((kinds_of[unit] > 1).sum())
