"""The rooms of kood that a recipe names things of, read from the source without importing it.

A room's file lists its public names in a literal `__all__`. That list, the parameters and the first docstring line are
read with `ast`.
"""

import ast
import contextlib
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["ROOMS", "TABLES", "Entry", "room", "snake"]

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
        bases: The classes of kood's that it derives from, nearest first.
        defaults: The defaults of the other parameters, where they are written as literals.
        usual: {parameter: values that are usually tried}, of a score that has some.
        learns: Whether it has weights that a training moves; False of a head that says so.
        package: What it comes from, where that is not kood: the name of an installed package, or of a module.
    """

    name: str
    attribute: str
    module: str
    parameters: tuple[str, ...]
    required: tuple[str, ...]
    summary: str
    fitted_on: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict, hash=False)
    usual: Mapping[str, tuple] = field(default_factory=dict, hash=False)
    learns: bool = True
    package: str = ""

    @property
    def path(self) -> str:
        """Where it is, `module:attribute`."""
        return f"{self.module}:{self.attribute}"

    @property
    def options(self) -> tuple[str, ...]:
        """The parameters that a recipe may give; the others follow from its data."""
        given = ["image_shape", "num_classes", "seed", "dtype", "kwargs", "framing", "ground", "resize", "antialias",
                 "hashed"]  # fmt: skip
        if self.defaults.get("name") is None:  # A layer's own; one with another default chooses something.
            given.append("name")
        return tuple(parameter for parameter in self.parameters if parameter not in given)


def _files(place: str) -> list[Path]:
    path = PACKAGE / place
    if path.is_dir():
        return sorted(file for file in path.rglob("*.py") if file.name != "__init__.py")  # That one only passes on.
    return [path.with_suffix(".py")]


def _parameters(arguments: ast.arguments) -> dict[str, ast.expr | None]:
    """The default of each parameter but `self`, None where it has none."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults + arguments.kw_defaults
    every = zip([*positional, *arguments.kwonlyargs], defaults, strict=True)
    return {one.arg: default for one, default in every if one.arg not in ("self", "cls")}


def _required(parameters: Mapping[str, ast.expr | None]) -> tuple[str, ...]:
    return tuple(name for name, default in parameters.items() if default is None)


def _literals(parameters: Mapping[str, ast.expr | None]) -> dict[str, Any]:
    """The defaults that are written as literals."""
    found = {}
    for name, default in parameters.items():
        with contextlib.suppress(ValueError):
            if default is not None:
                found[name] = ast.literal_eval(default)
    return found


def _assigned(nodes: list[ast.stmt], target: str) -> Any:
    """The literal that is assigned to a name or to `name.attribute`; nothing where there is none."""
    for node in nodes:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == target:
            return ast.literal_eval(node.value)
    return {}


@functools.cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _class(file: Path, name: str) -> tuple[Path, ast.ClassDef] | None:
    """A class of kood's under the name that a file has for it, and the file that defines it."""
    for node in _tree(file).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return file, node
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE.name:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _class(_file(node.module or ""), alias.name)
    return None


def _file(module: str) -> Path:
    place = PACKAGE.parent.joinpath(*module.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _bases(file: Path, node: ast.ClassDef) -> list[ast.ClassDef]:
    found: list[ast.ClassDef] = []
    for name in (base.id for base in node.bases if isinstance(base, ast.Name)):
        if base := _class(file, name):
            found += [base[1], *_bases(*base)]
    return found


def _method(lineage: list[ast.ClassDef], name: str) -> ast.arguments:
    """The arguments of a method, from the nearest class that has it."""
    every = (m.args for base in lineage for m in base.body if isinstance(m, ast.FunctionDef) and m.name == name)
    return next(every, ast.arguments([], [], None, [], [], None, []))


def _entries(file: Path) -> list[Entry]:
    tree = _tree(file)
    module = ".".join(("kood", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    defined = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    entries = []
    for attribute in _assigned(tree.body, "__all__"):
        node = defined.get(attribute)
        if node is None:
            continue
        fitted_on: tuple[str, ...] = ()
        bases: list[ast.ClassDef] = []
        learns = True
        if isinstance(node, ast.FunctionDef):
            arguments, usual = node.args, _assigned(tree.body, f"{attribute}.usual")
        else:
            bases = _bases(file, node)
            arguments = _method([node, *bases], "__init__")
            said = [s for one in (node, *bases) for s in one.body]
            usual, learns = _assigned(said, "usual"), _assigned(said, "learns") is not False
            fitted_on = _required(_parameters(_method([node, *bases], "fit")))
        parameters = _parameters(arguments)
        asked = tuple(parameters), _required(parameters)
        summary = (ast.get_docstring(node) or "").split("\n", 1)[0].strip()
        names = tuple(base.name for base in bases)
        name = attribute.lower()
        if ROOMS[TABLES] == file.relative_to(PACKAGE).parent.as_posix():
            name = snake(attribute)
            fields = [s for one in (*reversed(bases), node) for s in one.body if isinstance(s, ast.AnnAssign)]
            own = [s for s in fields if not ast.unparse(s.annotation).startswith("ClassVar")]
            asked = tuple(dict.fromkeys(ast.unparse(field.target) for field in own)), ()
        defaults = _literals(parameters)
        entries.append(Entry(name, attribute, module, *asked, summary, fitted_on, names, defaults, usual, learns))
    return entries


def snake(attribute: str) -> str:
    """A class's name as the recipe's keys are written."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", attribute).lower()


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
    return {entry.name: entry for file in _files(ROOMS[name]) for entry in _entries(file)}
