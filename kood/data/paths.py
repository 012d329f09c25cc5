"""Paths as a recipe writes them."""

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from kood.errors import UserError
from kood.text import clean, composed, masked

__all__ = ["KERAS_FILE", "data_path", "existing_in", "need", "need_file", "refuse_url", "root_of", "what_is_at"]

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+", re.IGNORECASE)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def data_path(path: str, called: str = "path") -> Path:
    """The absolute path a recipe means: `~` and $VARIABLES expanded, the rest relative to the current folder.

    Raises:
        UserError: An environment variable that is not set, or a URL; the message begins with what the path is `called`.
    """
    refuse_url(path, f"{called} = ")
    for match in _VARIABLE.finditer(path):
        name = match[1] or match[2]
        if not os.environ.get(name):
            raise UserError(
                f"{called} = {path!r}: the environment variable {name} is not set; set it (export {name}=/some/folder) "
                "or write the whole path"
            )
    return existing(Path(_VARIABLE.sub(lambda match: os.environ[match[1] or match[2]], path)).expanduser().absolute())


def refuse_url(path: str | Path, before: str = "") -> None:
    """Raises `UserError` where a path is a URL, and no file by that name; the message begins with `before`."""
    if _URL.match(str(path)) and not os.path.lexists(path):
        url = masked(_URL.sub(r"\1://", str(path), count=1))  # A Path has one slash of two.
        raise UserError(f"{before}{clean(url)}: URLs are not fetched; download what is there, and give its path")


def what_is_at(path: Path) -> str:
    """In words: "a folder", "a file", "a pipe or a device", "" for nothing, as at names that are too long."""
    kinds = {"a folder": os.path.isdir, "a file": os.path.isfile, "a pipe or a device": os.path.exists}
    return next((kind for kind, is_such in kinds.items() if is_such(path)), "")


def need(path: Path, kind: str, called: str, hint: str) -> None:
    """Raises `UserError` where something else than `kind`, a word of `what_is_at`, is at a source's path, or nothing.

    The message says that it is not `called`, and ends with `hint`.
    """
    at = what_is_at(path)
    if at != kind:
        found = f"is {at}, not {called}" if at else f"does not exist (relative paths start at {clean(Path.cwd())})"
        raise UserError(f"path: {clean(path)} {found}; {hint}")


#: What `need_file` asks for where a model is to be.
KERAS_FILE = "give a .keras file, which model.save(...) writes"


def need_file(path: Path, key: str, fix: str) -> None:
    """Raises `UserError` where there is no file; the message begins with `key` and ends with `fix`."""
    if not path.is_file():
        raise UserError(f"{key}: {clean(path)} {'is a folder' if path.is_dir() else 'does not exist'}; {fix}")


def root_of(file: Path, root: str | None, called: str) -> Path:
    """The folder that the files named in a list or a table are relative to: its own where `root` is not given.

    Raises:
        UserError: It is no folder.
    """
    folder = file.parent if root is None else data_path(root, "root")
    if what_is_at(folder) != "a folder":
        raise UserError(f"root: {clean(folder)} is no folder; give the one that the {called}'s files are relative to")
    return folder


def existing(path: Path, listings: dict[Path, dict[str, str]] | None = None) -> Path:
    """The path itself where it is there, else the one whose names differ from it in their Unicode form alone.

    Where neither is there it comes back as it is. `listings` keeps what folders hold, {composed name: name} of each,
    from one call to the next.
    """
    if str(path).isascii() or os.path.lexists(path):
        return path
    listings = {} if listings is None else listings
    above = existing(path.parent, listings)
    for form in ("NFC", "NFD"):
        if os.path.lexists(above / unicodedata.normalize(form, path.name)):
            return above / unicodedata.normalize(form, path.name)
    if above not in listings:
        try:
            names = os.listdir(above)  # noqa: PTH208
        except OSError:
            names = []
        listings[above] = {composed(name): name for name in sorted(names, reverse=True)}
    return above / listings[above].get(composed(path.name), path.name)


def existing_in(folder: Path, names: Iterable[str]) -> list[Path]:
    """`existing` of many files, relative to a folder that is there or absolute, without reading any folder twice."""
    listings: dict[Path, dict[str, str]] = {}
    return [folder / name if name.isascii() else existing(folder / name, listings) for name in names]
