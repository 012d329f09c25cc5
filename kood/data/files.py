"""Which files of a folder are images."""

import os
from pathlib import Path

__all__ = ["SUFFIXES", "files_under"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")


def files_under(root: Path) -> list[Path]:
    """Every image file in a folder and the folders in it, sorted; what begins with a dot is passed over."""
    found = []
    for here, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        found += [
            Path(here, name) for name in sorted(names) if not name.startswith(".") and name.lower().endswith(SUFFIXES)
        ]
    return found
