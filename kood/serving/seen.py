"""Images that a version has seen, known again by their pixels: it must not be calibrated or watched on them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kood.data.copies import distinct, image_digests, near_others, whole
from kood.data.rules import Framing
from kood.serving.answers import Answer, answers
from kood.serving.client import LocalModel
from kood.serving.extras import read_seen

__all__ = ["DISTANCE", "HASHES", "RECALIBRATED", "USED", "Seen", "firsts"]

#: What a run does with its images, as `Served.seen` names it: training, choices on validation images, the threshold.
USED = ("trained", "chosen", "calibrated")
#: Images that `kood calibrate` set a later threshold on.
RECALIBRATED = "recalibrated"
#: Perceptual hashes of what it was made of, and the bits in which those of near copies differ at most, where a run
#: looked for such.
HASHES, DISTANCE = "hashes", "near_copies"


class Seen:
    """The images that a version was made of, told by its folder and its `kood.json`.

    Raises:
        UserError: what it kept of them is damaged or gone.
    """

    def __init__(self, version: Path, facts: Mapping[str, Any]):
        self._version, self._known = version, read_seen(version)
        self._looks: np.ndarray | None = None
        height, width, channels = facts["image_shape"]
        self._shape, self._framing = (height, width, channels), Framing.read(facts)

    def ask(self, files: Sequence[Path | str]) -> tuple[list[Answer], list[Answer], np.ndarray]:
        """The version's answers of files that can be read, those of the others, and the former's digests.

        Digests are (N, 16) uint8. Two files with the same pixels have the same one, whatever their names and formats; 0
        where only the graph can read one. Each file is decoded twice: an answer is of what the graph makes of it, as in
        use, and a digest of what training makes of it, by which the version knows its images.
        """
        from kood.data.decode import decoded

        found: dict[bool, list[Answer]] = {True: [], False: []}
        for answer in answers(LocalModel(self._version), files):
            found[answer.said is not None].append(answer)
        read = found[True]
        digests = np.zeros((len(read), 16), np.uint8)
        self._looks = np.zeros(len(read), np.uint64) if HASHES in self._known else None
        read_again = [answer.file for answer in read]
        for rows, images in decoded(read_again, self._shape, len(read), self._framing, [], self._looks):
            digests[rows] = image_digests(images)
        return read, found[False], digests

    def near(self) -> np.ndarray:
        """Rows of the images that were asked about last that are near copies of what the version was made of.

        None where the run did not look for near copies (`data.id.near_copies`).
        """
        if self._looks is None:
            return np.empty(0, np.int64)
        return np.flatnonzero(near_others(self._looks, self._known[HASHES], int(self._known[DISTANCE][0])) >= 0)

    def among(self, digests: np.ndarray, uses: Iterable[str]) -> np.ndarray:
        """(N,) bool: which of the images the version has seen in one of these ways."""
        found = np.zeros(len(digests), bool)
        for use in uses:
            if use in self._known:
                found |= np.isin(whole(digests), whole(self._known[use]))
        return found & digests.any(axis=1)

    def count(self, digests: np.ndarray, uses: Iterable[str]) -> dict[str, int]:
        """How many of the images it has seen, by how; an image that it has seen in two ways counts for the first."""
        left, counts = np.ones(len(digests), bool), {}
        for use in uses:
            own = self.among(digests, (use,)) & left
            left &= ~own
            if own.any():
                counts[use] = int(own.sum())
        return counts

    def with_more(self, use: str, digests: np.ndarray) -> dict[str, np.ndarray]:
        """What a version made of this one knows, with further images in it."""
        known = [self._known[use]] if use in self._known else []
        return {**self._known, use: distinct(np.concatenate([*known, digests]))}


def firsts(digests: np.ndarray) -> np.ndarray:
    """(N,) bool: one of each set of images with the same digest, the first; what could not be read is no copy."""
    first = np.zeros(len(digests), bool)
    first[np.unique(whole(digests), return_index=True)[1]] = True
    return first | ~digests.any(axis=1)
