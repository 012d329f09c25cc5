"""What may be larger than memory: past a size it lies in a file without a name, which goes when the object does.

Such files are in the folder for temporary files (`TMPDIR`).
"""

import contextlib
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

__all__ = ["Blobs", "Pixels", "ahead", "blocks_of", "filled", "is_large", "room", "rows_at_once", "rows_of"]

#: Bytes past which an array is kept on disk.
IN_MEMORY = 512 * 2**20
#: Bytes of decoded pixels that are kept, and the share of what is free in the folder for temporary files.
_KEPT, _OF_FREE = 2 * 2**30, 0.25
#: Bytes that are worked on at once.
_BLOCK = 32 * 2**20


def is_large(size: int) -> bool:
    """Whether so many bytes are kept on disk."""
    return size > IN_MEMORY


def room(shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> np.ndarray:
    """An array to fill, in memory or mapped."""
    kind = np.dtype(dtype)
    if not is_large(math.prod(shape) * kind.itemsize):
        return np.empty(shape, kind)
    with tempfile.TemporaryFile(prefix="kood-") as file:
        return np.memmap(file, kind, "w+", shape=shape)


def filled(
    shape: tuple[int, ...], dtype: np.typing.DTypeLike, make: Callable[[slice], np.ndarray], row_bytes: int
) -> np.ndarray:
    """An array, in memory or mapped, made a block of rows at a time.

    `make` answers the rows of a slice; a row costs `row_bytes` while it is made, which decides how many are at once.
    """
    whole = room(shape, dtype)
    step = rows_at_once(row_bytes)
    for start in range(0, shape[0], step):
        rows = slice(start, min(start + step, shape[0]))
        whole[rows] = make(rows)
    return whole


def rows_at_once(row_bytes: int) -> int:
    """How many rows are worked on at once, each of which costs so many bytes."""
    return max(1, _BLOCK // max(1, row_bytes))


def ahead(make: Callable[[slice], Any], count: int, step: int) -> Generator[Any, None, None]:
    """What a function makes of so many rows in order, `step` at a time; the next ones while those before are used."""
    with ThreadPoolExecutor(1) as pool:
        due = pool.submit(make, slice(0, step))
        for start in range(step, count + step, step):
            ready = due.result()
            if start < count:
                due = pool.submit(make, slice(start, start + step))
            yield ready


def blocks_of(array: Any) -> Iterator[np.ndarray]:
    """The rows of an array in order, a block at a time."""
    step = rows_at_once(math.prod(array.shape[1:]) * array.dtype.itemsize)
    for start in range(0, len(array), step):
        yield np.asarray(array[start : start + step])


def rows_of(array: Any, rows: np.ndarray) -> Any:
    """`array[rows]`, copied a block at a time; of what is deferred nothing is made yet."""
    if not isinstance(array, np.ndarray):
        return array.take(rows)
    each = math.prod(array.shape[1:]) * array.dtype.itemsize
    if not is_large(len(rows) * each):
        return np.asarray(array[rows])
    return filled((len(rows), *array.shape[1:]), array.dtype, lambda some: array[rows[some]], each)


class Blobs(Sequence[bytes]):
    """Strings of bytes in their order, taken one at a time and kept in a file once they are many."""

    def __init__(self, blobs: Iterable[bytes] = ()):
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY, prefix="kood-")  # noqa: SIM115 - closed when it goes
        self._ends = [0]
        for blob in blobs:
            self.append(blob)

    def append(self, blob: bytes) -> None:
        """Adds one at the end."""
        self._file.seek(0, os.SEEK_END)
        self._file.write(blob)
        self._ends.append(self._ends[-1] + len(blob))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place):
        place = range(len(self))[place]
        self._file.seek(self._ends[place])
        return self._file.read(self._ends[place + 1] - self._ends[place])


class Pixels:
    """Images that need not be decoded again, in a file, found by their digests; what there is no room for is not kept.

    Args:
        most: Bytes to keep.
    """

    def __init__(self, most: int = _KEPT):
        self._most, self._end = most, 0
        self._at: dict[tuple[bytes, tuple[int, ...]], int] = {}
        self._file: Any = None
        self._using = threading.Lock()

    def keep(self, digests: np.ndarray, images: np.ndarray) -> None:
        """Keeps uint8 images (n, H, W, C) under their digests (n, 16)."""
        # A full disk is no error here, since what is not kept is decoded again.
        with self._using, contextlib.suppress(OSError):
            most = min(self._most, int(_OF_FREE * (shutil.disk_usage(tempfile.gettempdir()).free + self._end)))
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="kood-", buffering=0)  # noqa: SIM115 - closed when it goes
            for digest, image in zip(digests, images, strict=True):
                key = digest.tobytes(), image.shape
                if key not in self._at and self._end + image.nbytes <= most:
                    self._file.seek(self._end)
                    if self._file.write(np.ascontiguousarray(image).data) == image.nbytes:
                        self._at[key] = self._end
                        self._end += image.nbytes

    def fill(self, digests: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Reads those that are kept into images (n, H, W, C), by digests (n, 16); answers which rows are not."""
        missing = []
        with self._using:
            for row, digest in enumerate(digests):
                at = self._at.get((digest.tobytes(), images.shape[1:]))
                if at is None:
                    missing.append(row)
                else:
                    self._file.seek(at)
                    self._file.readinto(images[row])
        return np.array(missing, np.int64)
