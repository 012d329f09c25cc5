"""Settings by dotted key: `--set`, the matrix, and the names that stand for a whole table."""

import tomllib
from typing import Any

from kood.errors import UserError

__all__ = ["expand", "labels", "parse", "put"]


def parse(value: str) -> Any:
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return value


def expand(key: str, value: Any) -> tuple[str, Any]:
    """`head = "arcface"` and `outliers = ["noise"]` stand for the key that names them."""
    if key == "head" and isinstance(value, str):
        return key, {"name": value}
    if key == "outliers" and isinstance(value, str):
        return "outliers.use", [] if value == "none" else [value]
    if key == "outliers" and isinstance(value, list):
        return "outliers.use", value
    return key, value


def put(tree: dict[str, Any], key: str, value: Any, *, where: str) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise UserError(f"{where}: {key!r} goes through {parent!r}, which is no table")
    tree[last] = value


def labels(values: list[Any]) -> list[str]:
    def short(value: Any) -> str:
        if isinstance(value, dict):
            return str(value.get("name") or value.get("use") or value)
        if isinstance(value, list):
            return "+".join(map(str, value)) or "none"
        return str(value)

    named = [short(value) for value in values]
    if len(set(named)) == len(named):
        return named
    return [
        " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else repr(value) for value in values
    ]
