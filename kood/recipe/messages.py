"""What is wrong with a recipe, in lines that name the key, what was found and what is allowed."""

import copy
import re
import shlex
from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, ValidationError

from kood import registry
from kood.errors import UserError
from kood.recipe import settings, spelling
from kood.text import shown

__all__ = ["explain"]


def explain(
    error: ValidationError | UserError, root: type[BaseModel], given: dict[str, Any], from_command: Collection[str] = ()
) -> str:
    """One line for each thing that is wrong. What to write instead is told where that is accepted.

    Args:
        given: What it was to be made of.
        from_command: Keys that stand in `--set`; what to write instead is told as the command line takes it.
    """
    if isinstance(error, UserError):
        return str(error)
    problems = error.errors()
    before = {problem["loc"] for problem in problems}

    def write(key: str, value: str) -> str:
        return _write(key, value, from_command) if value and _mends(key, value, root, given, before) else ""

    lines: dict[str, dict[str, bool]] = {}  # Of each key the lines, and whether a line says what to write.
    for problem in problems:
        *path, last = problem["loc"] or ("",)
        if problem["type"] == "literal_error" and isinstance(problem["input"], dict) and _is_branch(last):
            continue  # Of a union of a word and a table; the table's own mistakes are told.
        unknown = problem["type"] == "extra_forbidden"  # Then the last part is a user's word, whatever it looks like.
        location = [part for part in path if not _is_branch(part)] + [last] * (unknown or not _is_branch(last))
        key = ".".join(map(str, location)) or "recipe"
        found, instead = problem["input"], ""
        message = problem["msg"].removeprefix("Value error, ").replace(" after validation", "")
        if unknown:
            message = f"unknown key (found {shown(found)})"
            if allowed := _fields(root, location[:-1]):
                message += f"; {registry.nearest(str(location[-1]), allowed)}"
        elif problem["type"] == "missing":
            message = "is missing; the recipe needs it"
        elif problem["type"] == "literal_error":
            words = re.findall(r"'([^']*)'", problem.get("ctx", {}).get("expected", ""))
            message = f"found {shown(found)}; {registry.nearest(found if isinstance(found, str) else '', words)}"
            if isinstance(found, str) and set(found.replace(" ", "").split(",")) < set(words) and last in (0, "0"):
                instead = write(key.rpartition(".")[0], spelling.instead(found, "list_type"))
                message = message.rstrip(".") + instead if instead else message
        elif problem["type"] != "value_error":
            wanted = "it is a table" if problem["type"] == "model_type" else f"{message[0].lower()}{message[1:]}"
            message = f"found {shown(found)}; {wanted}"
            a_side = last == "image_shape" and isinstance(found, int)
            instead = f"[{found}, {found}, 3]" if a_side else spelling.instead(found, problem["type"])
            instead = write(key, instead)
            message += instead
            if spelling.nothing(found) and problem["type"] != "list_type":
                message += "; TOML has no word for none: leave the key out"
            elif problem["type"] in ("dict_type", "model_type") and not str(found).startswith(("{", "[")):
                fields = _fields(root, location)
                named = f"{key}.NAME" if problem["type"] == "dict_type" else key  # The user's own name stands between.
                message += f"; set one of its keys, such as {named}.{fields[0]}" if fields else ""
        lines.setdefault(key, {})[f"{key}: {message}"] = bool(instead)
    # Of a union each branch has its say; the one that knows what to write was meant.
    return "\n".join(line for its in lines.values() for line, mends in its.items() if mends or not any(its.values()))


def _mends(key: str, value: str, root: type[BaseModel], given: dict[str, Any], before: set[tuple]) -> bool:
    """Whether a setting leaves less that is wrong, and nothing else."""
    tried = copy.deepcopy(given)
    try:
        settings.put_all(tried, key, settings.parse(value), where=key)
        root.model_validate(tried)
    except ValidationError as error:
        return {problem["loc"] for problem in error.errors()} < before
    except UserError:
        return False
    return True


def _write(key: str, value: str, from_command: Collection[str]) -> str:
    """How to write a setting, as it stands in a file or on the command line."""
    if any(key == one or key.startswith(f"{one}.") or one.startswith(f"{key}.") for one in from_command):
        return f"; write --set {shlex.quote(f'{key}={value}')}"
    return f"; write {key.rpartition('.')[2]} = {value}"


def _is_branch(part: Any) -> bool:
    """Pydantic adds the name of a union's branch to the path; a user knows nothing of it."""
    return isinstance(part, str) and (
        "[" in part or part.startswith("constrained-") or part in {"int", "float", "str", "bool", "list", "literal"}
    )


def _fields(root: type[BaseModel], location: list[Any]) -> list[str]:
    """The keys that are allowed at a place of the recipe."""
    model: Any = root
    for part in location:
        if isinstance(model, type) and issubclass(model, BaseModel):
            annotation = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
            arguments = [
                a for a in getattr(annotation, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)
            ]
            model = arguments[0] if arguments else annotation
        # A dict of sections: the user's own name stands between the section and its fields.
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
