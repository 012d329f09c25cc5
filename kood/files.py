"""Files as the rest of the house wants them: known by their bytes, and written whole or not at all."""

import errno
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kood.errors import UserError
from kood.text import clean

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "damaged", "digest_array", "digest_file", "digests", "file_state", "fingerprint", "folder_to_disk", "no_room",
    "refuse_file", "refuse_not_utf_8", "to_disk", "write_atomically",
]  # fmt: skip

#: What reading an archive (.npz, .keras, .kood) raises where a byte of it is not as it was written: RuntimeError where
#: it says that it is encrypted, or packed in a way of the future; MemoryError for an array without end.
BROKEN = (OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)
#: What a file system says that does not do what it is asked.
CANNOT = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY)
#: A disk without room, a quota or a limit reached, a disk that is for reading only.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def fingerprint(*parts: Any) -> str:
    """A short hash of plain data.

    Args:
        *parts: Anything JSON can write; dictionaries are hashed in the order of their sorted keys.

    Returns:
        16 hexadecimal digits of the SHA-256 of its canonical JSON.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_array(values: "np.ndarray") -> str:
    """SHA-256 of an array's numbers, in hexadecimal; neither its shape nor its kind is in it."""
    return hashlib.sha256(values.data if values.flags.c_contiguous else values.tobytes()).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, by its path there."""
    return {str(p.relative_to(folder)): digest_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def damaged(folder: Path, files: dict[str, str]) -> str:
    """What is wrong with the first file that is not as `digests` found it, "" where all are."""
    for file, digest in files.items():
        try:
            if digest_file(folder / file) != digest:
                return f"{folder / file} has changed"
        except FileNotFoundError:
            return f"{folder / file} is missing"
        except OSError as error:
            return f"{folder / file} cannot be read: {error.strerror}"
    return ""


def refuse_file(folder: Path, option: str) -> None:
    """Raises where files are to go into a folder that is a file, or lies in one, before any work is done.

    Args:
        folder: Where they go; it need not be there.
        option: What says so, "--to".

    Raises:
        UserError: it cannot be a folder.
    """
    there = next((one for one in (folder, *folder.parents) if one.exists()), folder)
    if there.exists() and not there.is_dir():
        raise UserError(f"{option} {clean(folder)}: {clean(there)} is a file; name a folder")


def refuse_not_utf_8(names: Iterable[str], where: str, what: str = "folder") -> None:
    """Raises where a name is not UTF-8, as names on a disk need not be, before any work is done.

    TensorFlow writes neither a file nor a word whose name is of other bytes, and a recipe holds none.

    Args:
        names: Of classes or folders.
        where: What begins the message.
        what: Is to be renamed.

    Raises:
        UserError: one is not.
    """
    for name in names:
        if name != name.encode("utf-8", "replace").decode():
            raise UserError(
                f"{clean(where)}: the name '{clean(name)}' is not UTF-8, which a recipe and a SavedModel have to be; "
                f"rename the {what}"
            )


def write_atomically(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Writes a file beside its place, flushes it to the disk, and renames it there.

    Args:
        path: Where it goes.
        content: What it holds, at once or in pieces.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            to_disk(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def to_disk(file: int) -> None:
    """Flushes an open file to the disk, where the file system can."""
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in CANNOT:
            raise


def folder_to_disk(folder: Path) -> None:
    """Flushes every file in a folder to the disk, as `to_disk`, before the folder is renamed into its place."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                to_disk(file.fileno())


def file_state(file: Path) -> tuple[int, ...]:
    """What changes with a file, as far as that is known without reading it; nothing where it is missing."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def no_room(error: Exception) -> str:
    """The system's words for why nothing can be written; "" where something else went wrong."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return error.strerror or ""
    # TensorFlow's own errors, and those of libraries that wrap the system's, have the words alone.
    return next((told for told in map(os.strerror, NO_ROOM) if told in str(error)), "")
