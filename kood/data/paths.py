"""Paths as a recipe writes them."""

import os
import re
from pathlib import Path

from kood.errors import UserError

__all__ = ["data_path"]

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
    return Path(_VARIABLE.sub(lambda match: os.environ[match[1] or match[2]], path)).expanduser().absolute()
