"""Files a reader or another program can rely on: whole or absent, and strict JSON."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kood.files import write_atomically

__all__ = ["strict", "write_bytes", "write_json", "write_text"]


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all (`kood.files.write_atomically`); missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8, whole or not at all (see `write_bytes`)."""
    write_bytes(path, text.encode("utf-8"))


def strict(value: Any) -> Any:
    """A copy of `value` that strict JSON can hold.

    NaN and the infinities, which JSON has no word for, become None; tuples and arrays become lists; NumPy
    scalars become Python numbers. The order of keys is kept.

    Args:
        value: Any nesting of mappings, sequences, strings, numbers, booleans, None and NumPy values.

    Returns:
        The same nesting of dict, list, str, int, float, bool and None.

    Raises:
        TypeError: If something else is in it, or a key is not a string.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    elif isinstance(value, Path):
        value = str(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"a key of a JSON object must be a string, not {key!r}")
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def write_json(path: Path, obj: Any) -> None:
    """Writes `obj` as strict JSON (RFC 8259), whole or not at all.

    Keys keep the order given; floats are written with the fewest digits that read back as the same float64;
    NaN and the infinities become null; text outside ASCII is escaped, so that any encoding reads the file
    alike.

    Args:
        path: Where the file shall stand. Missing folders are made.

    Raises:
        TypeError: If `obj` holds something JSON has no form for.
    """
    text = json.dumps(strict(obj), indent=2, allow_nan=False, ensure_ascii=True)
    write_text(path, text + "\n")
