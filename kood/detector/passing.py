"""What is kept of images while they pass a classifier."""

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from kood.data.copies import whole
from kood.detector.images import Batch
from kood.detector.ranges import Ranges
from kood.detector.trying import TRIED
from kood.outputs import Outputs

__all__ = ["Aside", "Known", "Passed", "among", "seen_before", "unreadable"]

#: Known images that an export is compared on.
_KEPT = 16
#: Of the images that scores are fitted on, one of so many is set aside to choose one on, and how many at most: of more
#: images each is one of twice as many, and so on.
_ASIDE_EACH, _ASIDE_MOST = 5, 256


@dataclass
class Passed:
    """What became of images that passed the classifier.

    Attributes:
        outputs: Of those that could be read.
        labels: (N,) their classes, where they have any.
        files: The N files they come from, of files.
        unreadable: A message for each file that could not be read.
    """

    outputs: Outputs
    labels: np.ndarray | None = None
    files: list[str] | None = None
    unreadable: list[str] = field(default_factory=list)


@dataclass
class Known:
    """What is kept of known images.

    Attributes:
        range: The smallest and the largest of the numbers that the model sees of them, where no preprocessing is given.
        some: The first few.
        labelled: Some from all over, (H, W, C), each with its class, by its place.
        files: Those that images were read from.
    """

    range: tuple[float, float] = (np.inf, -np.inf)
    some: list[np.ndarray] = field(default_factory=list)

    labelled: dict[int, tuple[np.ndarray, int]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    _digests: list[np.ndarray] = field(default_factory=list)
    _each: int = 1
    _passed: int = 0

    def note(self, batch: Batch, ranges: Ranges) -> None:
        """Keeps of a batch what tells its images again, their span, and some of them."""
        self._digests.append(ranges.digests(batch.pixels))
        self.files += batch.files or ()
        low, high = ranges.span(batch.pixels)
        self.range = min(low, self.range[0]), max(high, self.range[1])
        if not self.some:
            self.some.append(batch.pixels[:_KEPT])
        if batch.labels is not None:
            self._keep(batch.pixels, batch.labels)

    @property
    def digests(self) -> np.ndarray:
        """Of the pixels of each, in order, (N, 16) uint8."""
        return np.concatenate(self._digests)

    def _keep(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        """Keeps one image of so many of all that come, so that as many as may be are kept of however many."""
        start, self._passed = self._passed, self._passed + len(pixels)
        for place in _drawn(start, len(pixels), self._each):
            self.labelled[place] = pixels[place - start].copy(), int(labels[place - start])
        while len(self.labelled) > TRIED:
            self._each *= 2
            self.labelled = {place: one for place, one in self.labelled.items() if _drawn(place, 1, self._each)}


class Aside:
    """What is set aside of images while they pass: some from all over, however many come and in whatever order."""

    def __init__(self) -> None:
        self._at: dict[int, Batch] = {}
        self._each = _ASIDE_EACH

    @property
    def kept(self) -> list[Batch]:
        """The images, each as a batch."""
        return [*self._at.values()]

    def of(self, found: Iterable[Batch]) -> Generator[Batch, None, None]:
        """The other images, those among them that were set aside and are too many after all."""
        start = 0
        for batch in found:
            places = _drawn(start, len(batch.pixels), self._each)
            self._at |= {place: _rows(batch, np.array([place - start])) for place in places}
            others = np.setdiff1d(np.arange(start, start + len(batch.pixels)), places) - start
            start += len(batch.pixels)
            yield replace(_rows(batch, others), unreadable=batch.unreadable)
            while len(self._at) > _ASIDE_MOST:
                self._each *= 2
                yield from [self._at.pop(place) for place in [*self._at] if not _drawn(place, 1, self._each)]


def _drawn(start: int, count: int, each: int) -> list[int]:
    """The places that are drawn of `count` from `start` on: one of each so many, and of twice as many one of these.

    Every so many-th place would leave whole classes out where images come in turns of their classes.
    """
    first = start - start % each
    numbers = np.random.PCG64(0).advance(first).random_raw(-(-(start + count - first) // each) * each)
    places = first + np.arange(0, len(numbers), each) + numbers.reshape(-1, each).argmin(axis=1)
    return places[(places >= start) & (places < start + count)].tolist()


def _rows(batch: Batch, rows: np.ndarray) -> Batch:
    return Batch(batch.pixels[rows], None if batch.labels is None else batch.labels[rows])


def unreadable(passed: Passed, where: str) -> list[str]:
    """A sentence of the files that could not be read, if there are any."""
    if not passed.unreadable:
        return []
    told = f"{len(passed.unreadable):,} files cannot be read and are left out: {passed.unreadable[0]}"
    return [f"{where}: {told}"]


def among(digests: np.ndarray, others: np.ndarray) -> int:
    """How many of some digests (N, 16) are among others (M, 16)."""
    return int(np.isin(whole(digests), whole(others)).sum())


def seen_before(sets: Mapping[str, np.ndarray], digests: Mapping[str, np.ndarray]) -> list[str]:
    """A warning of each set whose images are not new, with how many are not and where they were before.

    Args:
        sets: Digests of each set's images, those of the known ones as "id".
        digests: Those of known images, by use.
    """
    uses = {
        "trained": "known images that fit has seen",
        "calibrated": "known images that calibrate has set the threshold on",
    }
    seen = {which: digests[use] for use, which in uses.items() if use in digests}
    told = []
    for where, its in sets.items():
        known = {} if where == "id" else {"known images of this evaluation": sets["id"]}
        counts = {which: among(its, some) for which, some in {**seen, **known}.items()}
        found = " and ".join(f"{count:,} are {which}" for which, count in counts.items() if count)
        if found and where == "id":
            told.append(
                f"the known images: of {len(its):,} images {found}; figures on them promise more than new images will "
                "give, so give images that nothing has seen"
            )
        elif found:
            told.append(
                f"{where!r}: of {len(its):,} images {found}; no image is both known and out-of-distribution, so "
                "figures on this set say little of new images: give others"
            )
    return told
