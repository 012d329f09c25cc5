"""Which files of a folder are images."""

import os
import stat
from pathlib import Path

from kood.errors import UserError

__all__ = ["SUFFIXES", "USUAL", "files_under", "images_among"]

#: Those that most images have.
USUAL = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")

#: Those of every format that Pillow reads by itself, without another program (`decode.OUTSIDE`).
SUFFIXES = (
    *USUAL, ".apng", ".avif", ".avifs", ".blp", ".bw", ".cur", ".dcx", ".dds", ".dib", ".fit", ".fits", ".flc", ".fli",
    ".ftc", ".ftu", ".gbr", ".icb", ".icns", ".ico", ".iim", ".im", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe",
    ".jpf", ".jpx", ".mpo", ".msp", ".pbm", ".pcd", ".pcx", ".pfm", ".pgm", ".pnm", ".ppm", ".psd", ".pxr", ".qoi",
    ".ras", ".rgb", ".rgba", ".sgi", ".tga", ".vda", ".vst", ".xbm", ".xpm",
)  # fmt: skip


def files_under(root: Path) -> list[str]:
    """The paths of all image files in a folder and the folders in it, sorted; what begins with a dot is passed over.

    As strings: of a million files, `Path` objects would take three times the memory. Links to folders are not followed.
    A link that leads nowhere is among the files, so that whoever reads it can say so; a pipe or a device is not, as it
    would never end.

    Raises:
        UserError: a folder that cannot be read.
    """
    found: list[str] = []
    waiting = [str(root)]
    while waiting:
        files, inner = images_among(waiting.pop())
        found += files
        waiting += reversed(inner)
    return found


def images_among(folder: str | Path, *, links: bool = False) -> tuple[list[str], list[str]]:
    """What lies in a folder itself: its image files and the folders in it, each sorted, as `files_under` takes them.

    Args:
        folder: Where to look.
        links: Whether a link to a folder is one of the folders.

    Raises:
        UserError: a folder that cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            shown = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
            files = [e.path for e in shown if e.name.lower().endswith(SUFFIXES) and _may_be_read(e)]
            return files, [e.path for e in shown if _is_folder(e, links)]
    except OSError as error:
        raise UserError(f"path: {folder} cannot be read ({error.strerror})") from error


def _is_folder(entry: os.DirEntry, links: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=links)
    except OSError:
        return False  # A link to itself.


def _may_be_read(entry: os.DirEntry) -> bool:
    if entry.is_file(follow_symlinks=False):
        return True
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return True  # A link to nothing, or to itself.
