"""What a recipe may name: the public things of each room, read from the source without importing it.

A room's file lists its public names in a literal `__all__`. The registry reads that list, the parameters and the first
docstring line with `ast`, so that a recipe is checked, and `kood list` answers, before Keras is imported, and so that
adding a head, a score, a data set or a backbone needs no other file than its own.
"""

import ast
import difflib
import functools
import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kood.errors import UserError

__all__ = ["ROOMS", "Entry", "find", "nearest", "obtain", "room", "things", "versions"]

PACKAGE = Path(__file__).parent

#: Each room a recipe chooses from, and the file or the folder of files that holds it.
ROOMS = {
    "heads": "heads",
    "scores": "scores",
    "losses": "losses",
    "backbones": "nets/backbones",
    "denoisers": "nets/denoisers",
    "samplers": "diffusion/samplers",
    "datasets": "data/sources",
    "augmentations": "data/augment",
    "outliers": "outliers",
}
#: The room whose things have tables of the recipe, which are named as the recipe's other keys are.
TABLES = "outliers"


@dataclass(frozen=True)
class Entry:
    """One public thing of a room.

    Attributes:
        name: The name a recipe uses: the Python name in lower case, with underscores in the room of `TABLES`.
        attribute: The Python name.
        module: The dotted module that defines it.
        parameters: Parameter names, in order, without `self`.
        required: The parameters that have no default.
        fitted_on: The parameters of its method `fit` that have no default, where it has one.
        summary: First line of its docstring.
        bases: The classes of its room that it derives from, nearest first.
    """

    name: str
    attribute: str
    module: str
    parameters: tuple[str, ...]
    required: tuple[str, ...]
    summary: str
    fitted_on: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        """The parameters that a recipe may give; the others follow from its data."""
        given = ("image_shape", "num_classes", "seed", "name", "dtype", "kwargs", "ground")
        return tuple(parameter for parameter in self.parameters if parameter not in given)


def _files(place: str) -> list[Path]:
    path = PACKAGE / place
    if path.is_dir():
        return sorted(file for file in path.rglob("*.py") if file.name != "__init__.py")  # That one only passes on.
    return [path.with_suffix(".py")]


def _parameters(arguments: ast.arguments) -> tuple[tuple[str, ...], tuple[str, ...]]:
    positional = [a.arg for a in arguments.posonlyargs + arguments.args if a.arg not in ("self", "cls")]
    keyword = [a.arg for a in arguments.kwonlyargs]
    required = positional[: len(positional) - len(arguments.defaults)]
    required += [name for name, default in zip(keyword, arguments.kw_defaults, strict=True) if default is None]
    return tuple(positional + keyword), tuple(required)


def _defined(tree: ast.Module) -> dict[str, ast.ClassDef | ast.FunctionDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}


def _rows(tree: ast.Module, defined: dict[str, ast.ClassDef | ast.FunctionDef]) -> dict[str, tuple]:
    """Parameters, required ones and summary of each `NAME = row(make, summary, **fixed)`, see `kood.data.sources`."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "row":
            make, summary = node.value.args
            fixed = {keyword.arg for keyword in node.value.keywords}
            asked = _parameters(defined[ast.unparse(make)].args)  # type: ignore[union-attr]
            left, required = (tuple(name for name in names if name not in fixed) for names in asked)
            found[ast.unparse(node.targets[0])] = left, required, ast.literal_eval(summary)
    return found


def _bases(node: ast.ClassDef, defined: dict[str, ast.ClassDef | ast.FunctionDef]) -> list[ast.ClassDef]:
    found: list[ast.ClassDef] = []
    for name in (base.id for base in node.bases if isinstance(base, ast.Name)):
        base = defined.get(name)
        if isinstance(base, ast.ClassDef) and base is not node:
            found += [base, *_bases(base, defined)]
    return found


def _of_method(lineage: list[ast.ClassDef], name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The parameters of a method, from the nearest class that has it."""
    for base in lineage:
        method = next((m for m in base.body if isinstance(m, ast.FunctionDef) and m.name == name), None)
        if method is not None:
            return _parameters(method.args)
    return (), ()


def _entries(file: Path, tree: ast.Module, elsewhere: dict[str, ast.ClassDef | ast.FunctionDef]) -> list[Entry]:
    module = ".".join(("kood", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    defined = _defined(tree)
    exported: list[str] = []
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "__all__" for target in statement.targets
        ):
            exported = ast.literal_eval(statement.value)
    entries, rows = [], _rows(tree, defined)
    for attribute in exported:
        if attribute in rows:
            entries.append(Entry(attribute.lower(), attribute, module, *rows[attribute]))
            continue
        node = defined.get(attribute)
        if node is None:
            continue
        parameters: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
        fitted_on: tuple[str, ...] = ()
        bases: list[ast.ClassDef] = []
        if isinstance(node, ast.FunctionDef):
            parameters = _parameters(node.args)
        else:
            bases = _bases(node, {**elsewhere, **defined})
            parameters = _of_method([node, *bases], "__init__")
            fitted_on = _of_method([node, *bases], "fit")[1]
        summary = (ast.get_docstring(node) or "").split("\n", 1)[0].strip()
        names = tuple(base.name for base in bases)
        name = attribute.lower()
        if ROOMS[TABLES] == file.relative_to(PACKAGE).parent.as_posix():
            name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", attribute).lower()
            fields = [s for one in (*reversed(bases), node) for s in one.body if isinstance(s, ast.AnnAssign)]
            parameters = tuple(field.target.id for field in fields), ()  # type: ignore[union-attr]
        entries.append(Entry(name, attribute, module, *parameters, summary, fitted_on, names))
    return entries


@functools.cache
def room(name: str) -> dict[str, Entry]:
    """The public things of a room, by the name a recipe uses, in the order of their files.

    Args:
        name: A key of `ROOMS`.

    Returns:
        {recipe name: `Entry`}.

    Raises:
        KeyError: no such room.
    """
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in _files(ROOMS[name])}
    elsewhere = {thing: node for tree in trees.values() for thing, node in _defined(tree).items()}
    return {entry.name: entry for file, tree in trees.items() for entry in _entries(file, tree, elsewhere)}


def nearest(word: str, allowed) -> str:
    """A sentence that offers the nearest allowed spelling, or lists what is allowed.

    Args:
        word: What was found.
        allowed: The allowed words.

    Returns:
        `did you mean 'x'? Allowed: ...`, the first half only where something is near.
    """
    allowed = sorted(str(a) for a in allowed)
    close = difflib.get_close_matches(str(word).lower(), allowed, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Allowed: {', '.join(allowed)}."


def find(room_name: str, name: str, key: str) -> Entry:
    """Looks a name up in a room.

    Args:
        room_name: A key of `ROOMS`.
        name: The name as the recipe has it; upper and lower case are the same.
        key: The recipe key, for the message.

    Returns:
        Its `Entry`.

    Raises:
        UserError: the room has no such name.
    """
    entries = room(room_name)
    entry = entries.get(name.lower())
    if entry is None:
        raise UserError(f"{key}: there is no {name!r} among the {room_name}; {nearest(name, entries)}")
    return entry


def obtain(room_name: str, name: str, key: str = ""):
    """Imports the thing that a recipe names.

    Args:
        room_name: A key of `ROOMS`.
        name: The name as the recipe has it.
        key: The recipe key, for the message.

    Returns:
        The class or function.

    Raises:
        UserError: the room has no such name.
    """
    entry = find(room_name, name, key or room_name)
    return getattr(importlib.import_module(entry.module), entry.attribute)


def things(room_name: str) -> dict[str, Any]:
    """Everything in a room, imported, for the room's `__init__` to pass on.

    Args:
        room_name: A key of `ROOMS`.

    Returns:
        {Python name: class or function}.
    """
    return {entry.attribute: obtain(room_name, entry.name) for entry in room(room_name).values()}


def versions(*things: tuple[str, str]) -> dict[str, int]:
    """Which versions of things a result depends on, for its fingerprint.

    Whatever a recipe names gets an attribute `version` with the next number when its code changes what it gives, so
    that results of older code are not taken for it.

    Args:
        *things: Room and recipe name of each.

    Returns:
        {"room/name": version}, of those that are past their first.
    """
    found = {f"{room}/{name.lower()}": getattr(obtain(room, name), "version", 1) for room, name in things}
    return {name: version for name, version in found.items() if version != 1}
