"""What a recipe may name: the public things of each room, and those of other packages.

kood's own are read from the source without importing it (`kood.rooms`), so that a recipe is checked, and `kood list`
answers, before Keras is imported, and so that adding a head, a score, a data set or a backbone needs no other file than
its own.

What is not kood's own is named `package.module:attribute`, or by the name under which an installed package announces it
(entry points of the group `kood.heads`, `kood.scores` and so on, one group a room). It is imported, and read with
`inspect`, once it is named or listed.
"""

import contextlib
import difflib
import functools
import hashlib
import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kood.errors import UserError, first_line
from kood.rooms import ROOMS, TABLES, Entry, room, snake
from kood.text import shown

__all__ = [
    "ROOMS", "TABLES", "Entry", "announced", "bring", "find", "imported", "listed", "loaded", "nearest", "needed",
    "obtain", "read_by", "room", "source_of", "things", "versions",
]  # fmt: skip


def nearest(word: str, allowed) -> str:
    """A sentence that offers the nearest allowed spelling, or lists what is allowed.

    Returns:
        `did you mean 'x'? Allowed: ...`, the first half only where something is near.
    """
    allowed = sorted(str(a) for a in allowed)
    if not allowed:
        return "none is allowed."
    lowered = {a.lower(): a for a in allowed}
    close = difflib.get_close_matches(str(word).lower(), lowered, n=1, cutoff=0.5)
    hint = f"did you mean {lowered[close[0]]!r}? " if close else ""
    return f"{hint}Allowed: {', '.join(allowed)}."


#: The rooms that hold classes alone.
CLASSES = ("heads", "outliers")
#: What a score may ask for by the names of its parameters, and its `fit` after features and labels.
OUTPUTS = ("features", "logits", "cosines", "perturbed", "shifted", "rotations")
FITTED_ON = ("logits", "shifted", "kernel", "bias")
#: The outputs for images that were moved by a gradient, and the options without which a score of these is none.
PERTURBATION = {"perturbed": ("epsilon", "temperature"), "shifted": ("epsilon", "pixels")}


def _at(key: str) -> str:
    return f"{key}: " if key else ""


@functools.cache
def announced(room_name: str) -> dict[str, dict[str, str]]:
    """What installed packages announce for a room, read from their entry points; none of them is imported.

    Returns:
        {name in lower case: {"module:attribute": package}}, read once; of more than one none is taken.
    """
    from importlib.metadata import entry_points

    found: dict[str, dict[str, str]] = {}
    for one in entry_points(group=f"kood.{room_name}"):
        package = one.dist.name if one.dist else one.module
        found.setdefault(one.name.lower(), {}).setdefault(f"{one.module}:{one.attr}", package)
    return found


def find(room_name: str, name: str, key: str = "") -> Entry:
    """Looks a name up: in a room, among what packages announce for it, or where it says itself (`module:attribute`).

    A name of kood's own stands for kood's own, whatever a package announces under it.

    Args:
        room_name: A key of `ROOMS`.
        name: The name as the recipe has it; upper and lower case are the same, but not in `module:attribute`.
        key: The recipe key, for the message; "" where whoever catches it names the key.

    Returns:
        Its `Entry`.

    Raises:
        UserError: the room has no such name, or packages announce several things under it, or what is named cannot be
            imported or is nothing for this room.
    """
    if ":" in name:
        return _outside(room_name, name, name, "", key)
    entries = room(room_name)
    if name.lower() in entries:
        return entries[name.lower()]
    others = announced(room_name)
    meant = others.get(name.lower())
    if meant is None:
        raise UserError(f"{_at(key)}there is no {name!r} among the {room_name}; {nearest(name, [*entries, *others])}")
    if len(meant) > 1:
        told = " and ".join(f"{path!r} (package {package})" for path, package in meant.items())
        raise UserError(f"{_at(key)}{name!r} is announced as {told}; write which of these is meant in its place")
    ((path, package),) = meant.items()
    return _outside(room_name, path, name.lower(), package, key)


#: The modules that were imported because something from outside was named.
_outsiders: dict[str, None] = {}


def imported() -> list[str]:
    """The modules from outside that were named so far, which register with Keras what another process may need."""
    return list(_outsiders)


def bring(module: str, where: str) -> Any:
    """Imports a module from outside that the user names, and keeps its name for `imported`.

    Args:
        where: What begins the message.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        found = importlib.import_module(module)
    except Exception as error:  # Whatever a stranger's module does when it is imported.
        raise UserError(f"{where}: the module {module!r} cannot be imported ({first_line(error)}); install its "
                        "package, or name its folder in PYTHONPATH") from error  # fmt: skip
    _outsiders[module] = None
    return found


def _outside(room_name: str, path: str, name: str, package: str, key: str) -> Entry:
    """The entry of a thing that is not kood's, under the name that a recipe has for it."""
    found = _loaded(room_name, path, key)
    module, _, attribute = path.partition(":")
    if room_name == TABLES:
        name = snake(attribute) if ":" in name else name
        if name in room(room_name):
            raise UserError(f"{_at(key)}{path!r} would have the table of kood's own source {name!r}; rename the class")
    if room_name == "scores":
        _check_score(found, path, key)
    asked = _signature(found)
    fit = needed(getattr(found, "fit", None)) if room_name == "scores" else ()
    defaults = {name: one.default for name, one in asked.items() if one.default is not one.empty}
    fields = tuple(getattr(found, "model_fields", ()))
    return Entry(
        name, attribute, module, fields or tuple(asked), () if fields else needed(found),
        (inspect.getdoc(found) or "").split("\n", 1)[0].strip(),
        fit,
        tuple(base.__name__ for base in getattr(found, "__mro__", ())[1:] if base.__module__.startswith("kood.")),
        defaults, {option: values for option, values in getattr(found, "usual", {}).items() if option in defaults},
        getattr(found, "learns", True) is not False, package or module,
    )  # fmt: skip


def _signature(found: Any) -> Mapping[str, inspect.Parameter]:
    """The named parameters of a function or class; of a class those of its `__init__`, since Keras's layers have a
    `__new__`, which some Pythons ask first."""
    try:
        asked = inspect.signature(found.__init__ if inspect.isclass(found) else found).parameters
    except (TypeError, ValueError):
        return {}
    return {n: p for n, p in asked.items() if n != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def needed(found: Any) -> tuple[str, ...]:
    """The parameters of a function or class that have no default, without `self`."""
    return tuple(n for n, p in _signature(found).items() if p.default is p.empty)


def _check_score(found: Any, path: str, key: str) -> None:
    """Refuses what is no score, or asks for what no score is given."""
    is_class = inspect.isclass(found)
    methods = ("fit", "score", "get_state", "from_state", "place")
    missing = [name for name in methods if is_class and not hasattr(found, name)]
    if missing:
        raise UserError(f"{_at(key)}the class {path!r} is no score, since it has no {' and no '.join(missing)}; "
                        "derive it from kood.scores.fitting.Fitted")  # fmt: skip
    asked = needed(found.score if is_class else found)
    fitted_on = needed(found.fit)[2:] if is_class else ()
    for where, names, given in (
        ("its `score`" if is_class else "it", asked, OUTPUTS), ("its `fit`", fitted_on, FITTED_ON)
    ):  # fmt: skip
        for name in names:
            if name not in given:
                raise UserError(f"{_at(key)}{path!r} is no score, since {where} asks for {name!r}; "
                                f"{nearest(name, given)} An option has a default.")  # fmt: skip
    # What a class inherits may be of options that it does not have.
    usual = getattr(found, "__dict__", {}).get("usual", {})
    options = [name for name, one in _signature(found).items() if one.default is not one.empty]
    if not isinstance(usual, Mapping) or not all(isinstance(values, list | tuple) for values in usual.values()):
        raise UserError(f"{_at(key)}{path!r}: `usual` is {{option: (value, ...)}}; found {shown(usual)}")
    for option in usual:
        if option not in options:
            raise UserError(f"{_at(key)}{path!r}: `usual` names {option!r}, which is no option of it; "
                            f"{nearest(option, options)}")  # fmt: skip
    for output in PERTURBATION.keys() & asked:
        deciding = PERTURBATION[output]
        if without := [option for option in deciding if option not in _signature(found)]:
            raise UserError(f"{_at(key)}{path!r} asks for {output}, which its options {' and '.join(deciding)} decide; "
                            f"it has no {' and no '.join(without)}")  # fmt: skip


def loaded(path: str, where: str) -> Any:
    """What `module:attribute` names, imported.

    Args:
        path: The module and, after a colon, the attribute; dots lead into it.
        where: What begins the message.

    Raises:
        UserError: the module cannot be imported, or has no such attribute.
    """
    module, _, attribute = path.partition(":")
    found = bring(module, where)
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name, thing in vars(found).items() if callable(thing) and not name.startswith("_")]
            raise UserError(f"{where}: {module!r} has no {attribute!r}; {nearest(attribute, public)}")
        found = getattr(found, part)
    source_of(found, module)  # Of the files as they are imported; a run may see them edited.
    return found


#: What modules from outside were imported as, and the digests of their files.
_digests: dict[str, tuple[Any, str]] = {}


def source_of(found: Any, module: str) -> str:
    """A digest of the code of what is not kood's, which people change until it is right.

    It is of the file of the module, and of the one that defines a class or function which that module passes on, as
    they were when this process first named them: an edited file changes nothing of what is imported. What these import
    in turn is not in it.

    Args:
        found: The thing, or the module itself.
        module: The module that it is named in.

    Returns:
        Hexadecimal digits; "" of what is kood's and where there is nothing to read.
    """
    defined = [found.__module__] if inspect.isclass(found) or inspect.isfunction(found) else []
    names = [name for name in dict.fromkeys([module, *defined]) if name.partition(".")[0] != "kood"]
    told = "".join(map(_digest_of, names))
    if names and not told:
        with contextlib.suppress(OSError, TypeError):  # A notebook keeps what was typed into it.
            told = inspect.getsource(found)
    return hashlib.sha256(told.encode()).hexdigest() if told else ""


def _digest_of(name: str) -> str:
    """The digest of a module's file, read once for each import of the module."""
    module = sys.modules.get(name)
    spec, known = getattr(module, "__spec__", None), _digests.get(name)
    if known is None or known[0] is not spec:
        try:
            known = spec, hashlib.sha256(Path(getattr(module, "__file__", None) or "").read_bytes()).hexdigest()
        except OSError:  # It has none, or lies in an archive.
            known = spec, ""
        _digests[name] = known
    return known[1]


@functools.cache
def _loaded(room_name: str, path: str, key: str) -> Any:
    """`loaded`, and of the kind that a room holds."""
    found = loaded(path, f"{_at(key)}{path!r}")
    if not (inspect.isclass(found) if room_name in CLASSES else callable(found)):
        wanted = "class" if room_name in CLASSES else "class and no function"
        raise UserError(f"{_at(key)}{path!r} is no {wanted}, and can be none of the {room_name}")
    return found


def obtain(room_name: str, name: str, key: str = ""):
    """Imports the thing that a recipe names.

    Returns:
        The class or function.

    Raises:
        UserError: as `find`.
    """
    entry = find(room_name, name, key or room_name)
    return functools.reduce(getattr, entry.attribute.split("."), importlib.import_module(entry.module))


def listed(room_name: str) -> list[Entry]:
    """What a recipe may name: kood's own, then what packages announce; of what cannot be had, the summary says why."""
    found = list(room(room_name).values())
    others = announced(room_name).items()
    for name, path, package in ((name, *one) for name, meant in others for one in meant.items()):
        try:
            if name in room(room_name):
                raise UserError(f"refused, since kood has one of this name; name it as {path!r}")
            found.append(find(room_name, name))
        except UserError as error:
            module, _, attribute = path.partition(":")
            found.append(Entry(name, attribute, module, (), (), str(error), package=package))
    return found


def things(room_name: str) -> dict[str, Any]:
    """Everything in a room, imported, for the room's `__init__` to pass on.

    Returns:
        {Python name: class or function}.
    """
    return {entry.attribute: obtain(room_name, name) for name, entry in room(room_name).items()}


def read_by(room_name: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a thing's options stand for, where these name files: the bytes decide a result, and not where they lie.

    Whatever reads files that its options name has an attribute `read`, a function of the options.

    Args:
        options: What the recipe gives.

    Returns:
        {option: digest of what it names}, for the fingerprint in place of the option; empty of most.
    """
    read = getattr(obtain(room_name, name), "read", None)
    return read(**options) if read else {}


def versions(*things: tuple[str, str]) -> dict[str, Any]:
    """Which versions of things a result depends on, for its fingerprint.

    Whatever a recipe names gets an attribute `version` with the next number when its code changes what it gives, so
    that results of older code are not taken for it. A class from outside has one of its own, whatever it derives from;
    of its code `source_of` tells, and the version what changes elsewhere.

    Args:
        *things: Room and recipe name of each.

    Returns:
        {"room/name": version}, of those that are past their first; of what is not kood's always [path, version, digest
        of its code], since the name that a package announces may come to stand for another thing, and the version that
        it inherits, where that is past its first.
    """
    found: dict[str, Any] = {}
    for room_name, name in things:
        entry, thing = find(room_name, name), obtain(room_name, name)
        version, inherited = getattr(thing, "version", 1), 1
        if entry.package and inspect.isclass(thing):
            version, inherited = vars(thing).get("version", 1), getattr(super(thing, thing), "version", 1)
        if entry.package:
            told = [entry.path, version, source_of(thing, entry.module), *([inherited] if inherited != 1 else [])]
            found[f"{room_name}/{entry.name}"] = told
        elif version != 1:
            found[f"{room_name}/{entry.name}"] = version
    return found
