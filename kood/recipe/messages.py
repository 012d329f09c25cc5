"""What is wrong with a recipe, in lines that name the key, what was found and what is allowed."""

import re
from typing import Any

from pydantic import BaseModel, ValidationError

from kood import registry
from kood.errors import UserError

__all__ = ["explain"]


def explain(error: ValidationError | UserError, root: type[BaseModel]) -> str:
    """One line for each thing that is wrong."""
    if isinstance(error, UserError):
        return str(error)
    lines = []
    for problem in error.errors():
        *path, last = problem["loc"] or ("",)
        unknown = problem["type"] == "extra_forbidden"  # Then the last part is a user's word, whatever it looks like.
        location = [part for part in path if not _is_branch(part)] + [last] * (unknown or not _is_branch(last))
        key = ".".join(map(str, location)) or "recipe"
        found = problem["input"]
        message = problem["msg"].removeprefix("Value error, ")
        if unknown:
            allowed = _fields(root, location[:-1])
            message = f"unknown key (found {_shown(found)}); {registry.nearest(str(location[-1]), allowed)}"
        elif problem["type"] == "missing":
            message = "is missing; the recipe needs it"
        elif problem["type"] == "literal_error":
            words = re.findall(r"'([^']*)'", problem.get("ctx", {}).get("expected", ""))
            message = f"found {_shown(found)}; {registry.nearest(str(found), words)}"
        elif problem["type"] != "value_error":
            message = f"found {_shown(found)}; {message[0].lower()}{message[1:]}"
        line = f"{key}: {message}"
        if line not in lines:
            lines.append(line)
    return "\n".join(lines)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_branch(part: Any) -> bool:
    """Pydantic adds the name of a union's branch to the path; a user knows nothing of it."""
    return isinstance(part, str) and (
        "[" in part or part in {"int", "float", "str", "bool", "list", "literal", "constrained-float"}
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
