"""A score and its options in one string: `ash`, `ash:share=0.8`, `my_package.scores:MyScore:k=3`.

After the name and a colon stand the options that differ from their defaults, sorted by name: numbers, true and false,
and bare words. A spec whose options are all defaults is the name alone, so that equal settings are equal strings.
"""

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from kood import registry
from kood.errors import UserError
from kood.text import shown

__all__ = ["canonical", "defaults", "name_of", "parse", "settings", "told", "written"]

_SPEC = re.compile(r"(?P<name>[^:=,\s]+(?::[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)?)(?::(?P<options>[^:]*=[^:]*))?")
_WORD = re.compile(r"[A-Za-z0-9_.+-]+")


def defaults(entry: registry.Entry) -> dict[str, Any]:
    """The options of a score and their defaults.

    Args:
        entry: Of the room "scores".
    """
    return {name: value for name, value in entry.defaults.items() if name not in ("self", "name")}


def parse(spec: str | Mapping[str, Any], key: str = "") -> tuple[str, dict[str, Any]]:
    """The name of a score and the options that differ from their defaults.

    Args:
        spec: A spec, or a table of a name and options as a recipe has it.
        key: Where it stands, for the message; "" where whoever catches it names the key.

    Returns:
        The name as the registry has it, and {option: value}, sorted.

    Raises:
        UserError: no such score or option, or a value of another type than the option's default.
    """
    at = f"{key}: " if key else ""
    table: dict[str, Any] = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    if not isinstance(table.get("name"), str):
        raise UserError(
            f"{at}found {shown(spec)}; a score is told by its name ('knn', or 'package.module:MyScore' for one of your "
            "own), with options as in 'knn:k=10' or in a table such as { name = 'knn', k = 10 }"
        )
    name, given = _split(table.pop("name"), at)
    given |= table
    entry = registry.find("scores", name, key)
    known, found = defaults(entry), {}
    for option, value in sorted(given.items()):
        if option not in known:
            raise UserError(f"{at}{entry.name} has no option {option!r}; {registry.nearest(option, known)}")
        typed = _typed(value, known[option], f"{at}{entry.name}: {option}")
        if typed != known[option]:
            found[option] = typed
    return entry.name, found


def _split(spec: str, at: str) -> tuple[str, dict[str, Any]]:
    parts = _SPEC.fullmatch(spec.strip())
    options = (parts["options"] or "").split(",") if parts else []
    if parts is None or any(option.count("=") != 1 for option in options if parts["options"]):
        raise UserError(f"{at}{spec!r} is no score with options; write it as knn:k=10 or ash:share=0.8,variant=B")
    own, colon, option = parts["name"].partition(":")
    if colon and own.lower() in registry.room("scores"):
        raise UserError(f"{at}{spec!r}: write the value of {option!r} too, as in {own}:{option}=...")
    pairs = [[part.strip() for part in option.split("=")] for option in options if option]
    found = {name: _read(value) for name, value in pairs}
    if len(found) < len(pairs):
        raise UserError(f"{at}{spec!r} gives an option twice; give it once")
    return parts["name"], found


def _read(text: str) -> Any:
    """A number or a truth value where the text is one, else the text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text


def _typed(value: Any, default: Any, what: str) -> Any:
    """A value of the kind that the default is of; an option without one by default takes any number or word."""
    kinds: dict[Any, tuple[Any, str]] = {
        bool: (bool, "true or false"), int: (int, "a whole number"), float: (int | float, "a number"),
        str: (str | int | float, "a word"),
    }  # fmt: skip
    wanted = next((kind for kind in kinds if isinstance(default, kind)), None)
    allowed, called = kinds[wanted] if wanted else (bool | int | float | str, "a number or a word")
    if not isinstance(value, allowed) or (isinstance(value, bool) and wanted not in (bool, None)):
        raise UserError(f"{what} is {called}; found {shown(value)}")
    value = wanted(value) if wanted else value
    if isinstance(value, str) and not _WORD.fullmatch(value):
        raise UserError(f"{what}: found {shown(value)}; a word is made of letters, digits, '.', '_', '+' and '-'")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{what} is a finite number; found {shown(value)}")
    return value


def canonical(spec: str | Mapping[str, Any], key: str = "", **changes: Any) -> str:
    """The one string that a score with these options has.

    Args:
        spec: As for `parse`.
        key: Likewise.
        **changes: Options in place of those of the spec.

    Raises:
        UserError: as `parse`.
    """
    name, options = parse(spec, key)
    if changes:
        name, options = parse({"name": name, **options, **changes}, key)
    own = ",".join(f"{option}={written(value)}" for option, value in options.items())
    return f"{name}:{own}" if own else name


def written(value: Any) -> str:
    """A value as a spec has it: equal numbers are equal strings.

    Args:
        value: Of an option.
    """
    if isinstance(value, str):
        return value
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value)


def name_of(spec: str) -> str:
    """The name of a score in a spec.

    Raises:
        UserError: as `parse`.
    """
    return parse(spec)[0]


def settings(spec: str, key: str = "") -> Iterable[str]:
    """Every combination of a score's usual values and its defaults, these first; the spec alone if it has options.

    Args:
        spec: As for `parse`.
        key: Likewise.

    Raises:
        UserError: as `parse`; of a usual value too.
    """
    name, options = parse(spec, key)
    entry = registry.find("scores", name)
    if options or not entry.usual:
        return [canonical(spec)]
    values = ([entry.defaults[option], *usual] for option, usual in entry.usual.items())
    combined = (dict(zip(entry.usual, chosen, strict=True)) for chosen in itertools.product(*values))
    given = ({option: value for option, value in one.items() if value is not None} for one in combined)
    return list(dict.fromkeys(canonical(name, key, **one) for one in given))


def told(entry: registry.Entry) -> Iterable[str]:
    """The options of a score as `kood list` shows them: `share=0.9 (usual: 0.65, 0.9)`.

    Args:
        entry: Of the room "scores".
    """
    for name, value in defaults(entry).items():
        usual = ", ".join(map(written, entry.usual.get(name, ())))
        yield (name if value is None else f"{name}={written(value)}") + (f" (usual: {usual})" if usual else "")
