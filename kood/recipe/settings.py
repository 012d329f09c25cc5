"""Settings by dotted key: `--set`, the matrix, and the names that stand for a whole table."""

import shlex
import tomllib
from typing import Any

from kood.errors import UserError
from kood.recipe import spelling

__all__ = ["dropped", "labels", "parse", "put", "put_all", "put_cell", "refuse_covered", "reset"]


#: Keys whose value is a table, or may be one, which a row gives whole; so is one named `group`.
WHOLE = ("evaluate.headline", "train.class_weight")
#: Tables that may be given by name alone.
NAMED = ("head", "train.auxiliary")


def parse(value: str, *, where: str = "--set") -> Any:
    """A value in TOML; bare words are a string.

    Raises:
        UserError: what begins with a quotation mark is no TOML.
    """
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        if value[:1] in {'"', "'", *spelling.LOOKALIKES}:
            told = spelling.value_hint(value) or str(error)
            raise UserError(f"{where}: {value} is not TOML: {told}") from error
        return value


#: What a run has one of, whichever rows its table has.
OF_THE_RUN = ("name", "report", "budget", "quick", "matrix")


def _expand(key: str, value: Any) -> dict[str, Any]:
    """The settings behind one that stands for several: a source of outliers by name."""
    if key == "outliers" and isinstance(value, str | list):
        if value == "pure":
            return {"outliers.use": [], "pure_samples.use": ["audit", "augment"]}
        return {"outliers.use": [] if value == "none" else [value] if isinstance(value, str) else value}
    return {key: value}


def _of_row(key: str, value: Any) -> dict[str, Any]:
    """The settings that a value in the matrix stands for: of a table those that it names, an arm's among them."""
    arm = key == "arm" and isinstance(value, dict)
    table = {inner: one for inner, one in value.items() if inner != "name"} if arm else {key: value}
    return {inner: one for whole, setting in _flat(table).items() for inner, one in _expand(whole, setting).items()}


def _flat(table: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys, so that a row changes the settings it names and no others.

    A head that is named stays whole, as options are one head's; so does a table that is a value, one of names with a
    dot in them, and an empty one, which empties.
    """
    flat: dict[str, Any] = {}
    for key, value in table.items():
        whole = f"{above}{key}"
        nested = isinstance(value, dict) and value and not (whole == "head" and "name" in value)
        nested = nested and whole not in WHOLE and key != "group" and not any("." in inner for inner in value)
        flat |= _flat(value, f"{whole}.") if nested else {whole: value}
    return flat


def put_all(tree: dict[str, Any], key: str, value: Any, *, where: str) -> None:
    """Sets a key, or what it stands for."""
    for one, setting in _expand(key, value).items():
        put(tree, one, setting, where=where)


def put_cell(tree: dict[str, Any], choice: dict[str, Any]) -> None:
    """Sets what a cell of the matrix takes of every key: what holds others first, so that no order of keys decides.

    Args:
        tree: The recipe, as TOML has it.
        choice: {key of the matrix: value}.

    Raises:
        UserError: two keys set one thing, so one of them would have no say, or a key is not a row's to set.
    """
    settings = [(row, *one) for row, value in choice.items() for one in _of_row(row, value).items()]
    by: dict[str, str] = {}
    for row, one, value in settings:
        for leaf in _leaves(one, value):
            if leaf.partition(".")[0] in OF_THE_RUN:
                raise UserError(f"matrix.{row}: {leaf} is the whole run's, so no row can have its own; give it outside "
                                "of [matrix]")  # fmt: skip
            if by.setdefault(leaf, row) != row:
                raise UserError(f"matrix: {by[leaf]!r} and {row!r} both set {leaf} in one cell, and one of them would "
                                "do nothing; leave it to one of them")  # fmt: skip
    for _, one, value in sorted(settings, key=lambda setting: setting[1].count(".")):
        put(tree, one, value, where="matrix")


def refuse_covered(key: str, value: str, matrix: Any) -> None:
    """Refuses a setting of the command line that every cell of a matrix sets to something else.

    Args:
        key: Of `--set KEY=VALUE`.
        value: As it stands there.
        matrix: {key: values}, with what the command line made of it.

    Raises:
        UserError: it would have no say.
    """
    parsed = parse(value)
    given = _given_by(key, parsed)
    for row, values in matrix.items() if isinstance(matrix, dict) else ():
        for leaf in given if isinstance(values, list) and values else ():
            if all(any(f"{leaf}.".startswith(f"{one}.") for one in _of_row(row, cell)) for cell in values):
                word = f'"{parsed}"' if parsed == value else value
                instead = f"matrix.{row}=[{word if row in (key, f'{key}.name') else '...'}]"
                raise UserError(f"--set {key}: every cell of the matrix sets {leaf}, so this would do nothing; write "
                                f"--set {shlex.quote(instead)}")  # fmt: skip


def dropped(given: dict[str, Any], matrix: dict[str, list[Any]]) -> dict[str, str]:
    """Settings that each value of a matrix leaves out of the table that they are in, and which it sets as a whole.

    Args:
        given: What a TOML file says.
        matrix: {key: values}.

    Returns:
        {dotted key: that table}.
    """
    found = {}
    for leaf in [leaf for key, value in given.items() if key != "matrix" for leaf in _leaves(key, value)]:
        for row, values in matrix.items():
            above = [[one for one in _of_row(row, cell) if leaf.startswith(f"{one}.")] for cell in values]
            if all(above) and not any(leaf in _given_by(row, cell) for cell in values):
                found[leaf] = above[0][0]
    return found


def reset(file: dict[str, Any], key: str, value: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a file that a setting of the command line took away, since it gives their table whole.

    An empty table, which empties, and what is a value though it is a table, take away what was meant.

    Args:
        file: What the TOML file says.
        key: Of `--set KEY=VALUE`.
        value: As it was read.
        given: The file with all settings of the command line.

    Returns:
        {dotted key: what the file says}.
    """
    named = key in NAMED and isinstance(value, str)
    if not named and (not isinstance(value, dict) or not value or key in WHOLE or key.endswith(".group")):
        return {}
    before, after = (_found(tree, key) for tree in (file, given))
    if not isinstance(before, dict):
        return {}
    now = _leaves(key, after)
    # A leaf may have become a table, or a table one leaf.
    return {leaf: _found(file, leaf) for leaf in _leaves(key, before)
            if not any(f"{leaf}.".startswith(f"{one}.") or one.startswith(f"{leaf}.") for one in now)}  # fmt: skip


def _found(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _given_by(key: str, value: Any) -> list[str]:
    """The dotted keys that a setting, or what it stands for, gives values to."""
    return [leaf for one, setting in _of_row(key, value).items() for leaf in _leaves(one, setting)]


def _leaves(key: str, value: Any) -> list[str]:
    """The dotted keys that a setting gives values to."""
    if isinstance(value, dict) and value:
        return [leaf for inner, one in value.items() for leaf in _leaves(f"{key}.{inner}", one)]
    return [f"{key}.name" if key in NAMED else key]


def put(tree: dict[str, Any], key: str, value: Any, *, where: str) -> None:
    *parents, last = key.split(".", 1 if key.startswith("matrix.") else -1)  # Its own keys are dotted.
    for depth, parent in enumerate(parents, start=1):
        if isinstance(tree.get(parent), str) and ".".join(parents[:depth]) in NAMED:
            tree[parent] = {"name": tree[parent]}
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise UserError(f"{where}: {key!r} goes through {parent!r}, which is no table")
    tree[last] = value


def labels(values: list[Any]) -> list[str]:
    def short(value: Any) -> str:
        if isinstance(value, dict):
            return short(value.get("name") or value.get("use") or str(value))
        if isinstance(value, list):
            return "+".join(map(str, value)) or "none"
        return str(value)

    def full(value: Any) -> str:
        options = value.items() if isinstance(value, dict) and {"name", "use"} & value.keys() else ()
        return " ".join([short(value), *(f"{key}={option}" for key, option in options if key not in ("name", "use"))])

    for told in (short, full):
        named = [told(value) for value in values]
        if len(set(named)) == len(named):
            return named
    return list(map(repr, values))
