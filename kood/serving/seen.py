"""Images that a version has seen, known again by their pixels: it must not be calibrated or watched on them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kood.data.copies import image_digests
from kood.serving.extras import ground_of, read_seen

__all__ = ["RECALIBRATED", "UNKNOWN", "USED", "Seen", "firsts"]

#: What a run does with its images, as `Served.seen` names it: training, choices on validation images, the threshold.
USED = ("trained", "chosen", "calibrated")
#: What is said of a version that does not say what it was made of.
UNKNOWN = (
    "{} does not say which images it was made of, as versions of an older kood do not; make sure that none is here"
)
#: Images that `kood calibrate` set a later threshold on.
RECALIBRATED = "recalibrated"


class Seen:
    """The images that a version was made of.

    Args:
        version: Its folder.
        facts: Its `kood.json`.

    Raises:
        UserError: what it kept of them is damaged.
    """

    def __init__(self, version: Path, facts: Mapping[str, Any]):
        self._known = read_seen(version)
        height, width, channels = facts["image_shape"]
        self._shape, self._ground = (height, width, channels), ground_of(facts)

    def __bool__(self) -> bool:
        """Whether the version says which images it was made of; those of an older kood do not."""
        return any(use in self._known for use in USED)

    def digests(self, files: Sequence[Path | str]) -> np.ndarray:
        """(N, 16) uint8: digests of files' pixels, as the version's classifier is shown them; 0 where none can be read.

        Two files with the same pixels have the same digest, whatever their names and formats.
        """
        from kood.data.decode import decode_readable

        found = np.zeros((len(files), 16), np.uint8)
        images, rows, _ = decode_readable(files, self._shape, len(files), self._ground)
        found[rows] = image_digests(images)
        return found

    def among(self, digests: np.ndarray, uses: Iterable[str]) -> np.ndarray:
        """(N,) bool: which of the images the version has seen in one of these ways."""
        found = np.zeros(len(digests), bool)
        for use in uses:
            if use in self._known:
                found |= np.isin(_words(digests), _words(self._known[use]))
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
        return {**self._known, use: np.unique(np.concatenate([*known, digests]), axis=0)}


def firsts(digests: np.ndarray) -> np.ndarray:
    """(N,) bool: one of each set of images with the same digest, the first; what could not be read is no copy."""
    first = np.zeros(len(digests), bool)
    first[np.unique(_words(digests), return_index=True)[1]] = True
    return first | ~digests.any(axis=1)


def _words(digests: np.ndarray) -> np.ndarray:
    """Digests (N, 16) as (N,) values that can be compared."""
    return np.ascontiguousarray(digests).view("V16").ravel()
