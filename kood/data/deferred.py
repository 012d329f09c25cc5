"""Images that are made anew whenever they are asked for: large ones, of which an array would fill the memory."""

import functools
import math
import tempfile
import threading
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from kood.data.copies import image_digests, monochrome
from kood.data.decode import decode_readable, decoded
from kood.data.large import Pixels, blocks_of, filled, room, rows_at_once
from kood.data.rules import Framing
from kood.errors import UserError
from kood.text import clean

__all__ = [
    "Deferred", "ImageFiles", "Images", "Made", "Stored", "are_deferred", "chained", "kept", "listed", "made",
]  # fmt: skip

#: Pixels of an image from which on its like are deferred: 128 x 128.
LARGE = 128 * 128
#: Pixels of images that lie in files of their own, as far as there is room.
DECODED = Pixels()


def are_deferred(image_shape: Sequence[int]) -> bool:
    """Whether images (H, W, C) are too large to be kept as an array."""
    return len(image_shape) == 3 and image_shape[0] * image_shape[1] >= LARGE


class Deferred:
    """uint8 (N, H, W, C), indexed along the first axis as an array is; `np.asarray` makes all of them.

    A subclass says in `_make` what the images at some rows are.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, shape: Sequence[int]):
        self.shape: tuple[int, ...] = tuple(shape)

    def _make(self, rows: np.ndarray) -> np.ndarray:
        """The images at int64 (n,) rows, n at least 1."""
        raise NotImplementedError

    def take(self, rows: np.ndarray) -> "Deferred":
        """Those at some rows (n,), still to be made."""
        return Arranged((len(rows), *self.shape[1:]), lambda some: self[rows[some]])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of an array of them."""
        return math.prod(self.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        rows = np.arange(len(self))[index]
        if not np.ndim(rows):
            return self._make(rows[None])[0]
        return self._make(rows) if len(rows) else np.empty((0, *self.shape[1:]), self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = filled(self.shape, self.dtype, self.__getitem__, math.prod(self.shape[1:]))
        return whole if dtype is None else whole.astype(dtype, copy=False)


#: What an image set has: an array, or images that are deferred.
Images = np.ndarray | Deferred


class Made(Deferred):
    """Images that a function makes of their rows.

    Args:
        shape: (N, H, W, C).
        make: int64 (n,) rows to uint8 (n, H, W, C).
    """

    def __init__(self, shape: Sequence[int], make: Callable[[np.ndarray], np.ndarray]):
        super().__init__(shape)
        self._of = make

    def _make(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self._of(rows), self.dtype)


class Arranged(Made):
    """Images of other images, which cost no more than these."""


def _in_pieces(
    starts: Sequence[int], piece: Callable[[int], Images], image_shape: Sequence[int]
) -> Callable[[np.ndarray], np.ndarray]:
    """What makes images that come in pieces: `piece(number)` gives those from the row `starts[number]` on."""

    def make(rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), *image_shape), np.uint8)
        of = np.searchsorted(starts, rows, side="right") - 1
        for number in np.unique(of).tolist():
            own = of == number
            found[own] = piece(number)[rows[own] - starts[number]]
        return found

    return make


def chained(parts: Sequence[Images]) -> Images:
    """Images or features of one shape as one: an array where all are, and in one place where they fit into memory."""
    shape = parts[0].shape[1:]
    if any(isinstance(part, Deferred) for part in parts):
        some = [part for part in parts if len(part)]
        starts = [0, *accumulate(map(len, some))]
        return Arranged((starts[-1], *shape), _in_pieces(starts, some.__getitem__, shape))
    arrays = [np.asarray(part) for part in parts]
    return np.concatenate(arrays, out=room((sum(map(len, arrays)), *shape), arrays[0].dtype))


def made(
    shape: Sequence[int], make: Callable[[np.ndarray], np.ndarray], each: int, *, together: bool = False
) -> Images:
    """What a function makes of rows, as `Made` has it; of small images at once, a block of rows after the other.

    Args:
        shape: (N, H, W, C).
        make: int64 (n,) rows to (n, H, W, C) in 0..255.
        each: Bytes that a value takes while it is made, which decides how many rows are at once.
        together: Whether what a row becomes depends on the rows beside it. Then large images too are always made so
            many at a time, from the first on, and the last so many are kept.
    """
    row_bytes = each * math.prod(shape[1:])
    if are_deferred(shape[1:]):
        if not together:
            return Made(shape, make)
        step = rows_at_once(row_bytes)

        @functools.lru_cache(1)
        def block(number: int) -> np.ndarray:
            return np.asarray(make(np.arange(number * step, min((number + 1) * step, shape[0]))), np.uint8)

        return Made(shape, _in_pieces(range(0, shape[0], step), block, shape[1:]))
    return filled(tuple(shape), np.uint8, lambda some: make(np.arange(some.start, some.stop)), row_bytes)


class Stored(Deferred):
    """Images that lie one after the other in a file, of which only those that are asked for are read.

    Mapped into memory they would count as the process's own for as long as the map is there.

    Args:
        file: Open for reading; closed when this goes.
        shape: (N, H, W, C).
        offset: Bytes before the first.
    """

    def __init__(self, file: Any, shape: Sequence[int], offset: int = 0):
        super().__init__(shape)
        self._file, self._offset, self._reading = file, offset, threading.Lock()

    def _make(self, rows: np.ndarray) -> np.ndarray:
        found, each = np.empty((len(rows), *self.shape[1:]), self.dtype), math.prod(self.shape[1:])
        ends = np.flatnonzero(np.diff(rows) != 1) + 1
        for first, end in pairwise([0, *ends.tolist(), len(rows)]):
            with self._reading:
                self._file.seek(self._offset + int(rows[first]) * each)
                self._file.readinto(found[first:end])
        return found


def kept(images: Images) -> Images:
    """Images that cost too much to be made more than once, in a file without a name; others as they are."""
    if not isinstance(images, Made) or isinstance(images, Arranged):
        return images
    file = tempfile.TemporaryFile(prefix="kood-")  # noqa: SIM115 - closed when it goes
    for block in blocks_of(images):
        file.write(block.data)
    file.flush()
    return Stored(file, images.shape)


class ImageFiles(Deferred):
    """Images in files of their own, decoded when they are asked for, many at a time; some are kept decoded.

    Args:
        files: Their places, N.
        digests: uint8 (N, 16), as `kood.data.copies.image_digests` has them of the images.
        image_shape: (H, W, C) that they are brought to.
        plain: As `kood.data.copies.monochrome` has it of the images, where that is known.
    """

    def __init__(
        self, files: Sequence[str], digests: np.ndarray, image_shape: Sequence[int], framing: Framing,
        plain: np.ndarray | None = None,
    ):  # fmt: skip
        super().__init__((len(files), *image_shape))
        self.files, self.digests, self.framing, self.plain = list(files), digests, framing, plain

    def take(self, rows: np.ndarray) -> "ImageFiles":
        """As of `Deferred`."""
        plain = None if self.plain is None else self.plain[rows]
        return ImageFiles([self.files[row] for row in rows], self.digests[rows], self.shape[1:], self.framing, plain)

    def _make(self, rows: np.ndarray) -> np.ndarray:
        """Decodes; `UserError` where a file can no longer be read, or shows other pixels than it did."""
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        missing = DECODED.fill(self.digests[rows], found)
        if not len(missing):
            return found
        files, rows = [self.files[row] for row in rows[missing]], rows[missing]
        images, _, why = decode_readable(files, self.shape[1:], len(files), self.framing)  # type: ignore[arg-type]
        if why:
            raise UserError(f"{clean(why[0])}, and could be when its set was listed; let the files be while a run goes "
                            "on, and start it again", exit_code=1)  # fmt: skip
        other = np.flatnonzero((image_digests(images) != self.digests[rows]).any(axis=1))
        if len(other):
            raise UserError(
                f"{clean(files[other[0]])} shows other pixels than when its set was listed; let the files be while a "
                "run goes on, and start it again, with --fresh where Pillow or TensorFlow was replaced since",
                exit_code=1,
            )
        found[missing] = images
        return found


def listed(
    files: Sequence[str], image_shape: tuple[int, int, int], max_bad_images: int, framing: Framing,
    hashes: np.ndarray | None = None,
) -> tuple[Images, np.ndarray, tuple[str, ...]]:  # fmt: skip
    """As `kood.data.decode.decode_readable`; large images are decoded, looked at and let go again."""
    if not are_deferred(image_shape):
        return decode_readable(files, image_shape, max_bad_images, framing, hashes)
    read, why, digests, plain = [np.empty(0, np.int64)], list[str](), [np.empty((0, 16), np.uint8)], [np.empty(0, bool)]
    for rows, images in decoded(files, image_shape, max_bad_images, framing, why, hashes):
        read.append(rows)
        digests.append(image_digests(images))
        DECODED.keep(digests[-1], images)
        plain.append(monochrome(images))
    rows = np.concatenate(read)
    whole = [files[row] for row in rows]
    return ImageFiles(whole, np.concatenate(digests), image_shape, framing, np.concatenate(plain)), rows, tuple(why)
