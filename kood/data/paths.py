"""Paths as a recipe writes them."""

import os
import re
import unicodedata
from pathlib import Path

from kood.errors import UserError
from kood.text import composed

__all__ = ["data_path", "existing"]

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def data_path(path: str) -> Path:
    """The absolute path a recipe means: `~` and $VARIABLES expanded, the rest relative to the current folder.

    Raises:
        UserError: An environment variable that is not set.
    """
    for match in _VARIABLE.finditer(path):
        name = match[1] or match[2]
        if not os.environ.get(name):
            raise UserError(
                f"path = {path!r}: the environment variable {name} is not set; set it (export {name}=/some/folder) "
                "or write the whole path"
            )
    return existing(Path(_VARIABLE.sub(lambda match: os.environ[match[1] or match[2]], path)).expanduser().absolute())


def existing(path: Path) -> Path:
    """The path itself where it is there, else the one whose names differ from it in their Unicode form alone.

    Args:
        path: Any; where neither is there it comes back as it is.
    """
    if str(path).isascii() or os.path.lexists(path):
        return path
    above = existing(path.parent)
    for form in ("NFC", "NFD"):
        if os.path.lexists(above / unicodedata.normalize(form, path.name)):
            return above / unicodedata.normalize(form, path.name)
    try:
        names = os.listdir(above)  # noqa: PTH208
    except OSError:
        names = []
    return above / min((name for name in names if composed(name) == composed(path.name)), default=path.name)
