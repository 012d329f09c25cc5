"""Which files of a folder are images, and what lies there for another reason."""

import os
from collections import Counter
from pathlib import Path

from kood.errors import UserError
from kood.text import clean

__all__ = ["SUFFIXES", "USUAL", "PassedOver", "files_under", "images_among"]

#: Those that most images have.
USUAL = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")

#: Those of every format that Pillow reads by itself, without another program (`decode.OUTSIDE`).
SUFFIXES = (
    *USUAL, ".apng", ".avif", ".avifs", ".blp", ".bw", ".cur", ".dcx", ".dds", ".dib", ".fit", ".fits", ".flc", ".fli",
    ".ftc", ".ftu", ".gbr", ".icb", ".icns", ".ico", ".iim", ".im", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe",
    ".jpf", ".jpx", ".mpo", ".msp", ".pbm", ".pcd", ".pcx", ".pfm", ".pgm", ".pnm", ".ppm", ".psd", ".pxr", ".qoi",
    ".ras", ".rgb", ".rgba", ".sgi", ".tga", ".vda", ".vst", ".xbm", ".xpm",
)  # fmt: skip

#: Folders that operating systems, storage boxes and tools make, in lower case; those that begin with a dot are others.
SYSTEM_FOLDERS = frozenset({
    "@eadir", "@tmp", "@recycle", "@recently-snapshot", "@snapshot", "@snapshots", "@sharesnap", "@sharebin",
    "@transcode", "@__thumb", "#recycle", "#snapshot", "#snapshots", "~snapshot", "$recycle.bin", "$extend",
    "recycler", "recycled", "system volume information", "found.000", "__macosx", "temporary items",
    "network trash folder", "lost+found", "__pycache__",
})  # fmt: skip

#: So many kinds of what is passed over are named.
_NAMED = 8


class PassedOver:
    """What a listing does not take, counted as it goes: `folders` by name, and `files` by suffix, in lower case.

    Files that begin with a dot count as "hidden".
    """

    def __init__(self) -> None:
        self.folders: Counter[str] = Counter()
        self.files: Counter[str] = Counter()

    def notes(self) -> tuple[str, ...]:
        """A sentence for the folders and one for the files, where there are any, the most frequent first."""
        return tuple(
            f"{found.total():,} {kind if found.total() > 1 else kind[:-1]} passed over: {_counted(found)}"
            for kind, found in (("folders", self.folders), ("files", self.files))
            if found
        )


def _counted(found: Counter[str]) -> str:
    kinds = sorted(found.items(), key=lambda kind: (-kind[1], kind[0]))
    rest = sum(number for _, number in kinds[_NAMED:])
    named = [f"{number:,} {clean(name)}" for name, number in kinds[:_NAMED]]
    return ", ".join([*named, *([f"{rest:,} others"] if rest else [])])


def files_under(root: str | Path, passed: PassedOver | None = None, *, links: bool = False) -> list[str]:
    """The paths of all image files in a folder and the folders in it, sorted.

    As strings: of a million files, `Path` objects would take three times the memory. What begins with a dot is passed
    over, and so are the folders of `SYSTEM_FOLDERS` and links to folders, under `links` only those further down. A link
    that leads nowhere is among the files, so that whoever reads it can say so; a pipe or a device is not, as it would
    never end. `passed` counts what is passed over.

    Raises:
        UserError: a folder that cannot be read.
    """
    found: list[str] = []
    waiting = [str(root)]
    while waiting:
        files, inner = images_among(waiting.pop(), links=links, passed=passed)
        links = False
        found += files
        waiting += reversed(inner)
    return found


def images_among(
    folder: str | Path, *, links: bool = False, passed: PassedOver | None = None
) -> tuple[list[str], list[str]]:
    """What lies in a folder itself: its image files and the folders in it, each sorted, as `files_under` takes them.

    With `links`, a link to a folder is one of the folders.

    Raises:
        UserError: a folder that cannot be read.
    """
    passed, files, folders = passed or PassedOver(), [], []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                hidden, suffix = entry.name.startswith("."), os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
                # A link that leads nowhere, or to itself, is read as a file is, and whoever reads it says so.
                nowhere = entry.is_symlink() and not os.path.exists(entry)  # noqa: PTH110
                if not nowhere and entry.is_dir():
                    if hidden or entry.name.lower() in SYSTEM_FOLDERS:
                        passed.folders[entry.name] += 1
                    elif entry.is_symlink() and not links:
                        passed.folders[f"{entry.name} (a link)"] += 1
                    else:
                        folders.append(entry.path)
                elif hidden:
                    passed.files["hidden"] += 1
                elif suffix in SUFFIXES and (nowhere or entry.is_file()):
                    files.append(entry.path)
                else:
                    passed.files[suffix or "without a suffix"] += 1
    except OSError as error:
        raise UserError(f"path: {folder} cannot be read ({error.strerror})") from error
    return files, folders
