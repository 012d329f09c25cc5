"""A hook of MkDocs: writes the reference from the code, where a page asks for it."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import typer
from griffe import Docstring, DocstringSectionKind, Parser
from pydantic import BaseModel

from kood import registry
from kood.cli import app
from kood.recipe import Recipe


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts what the code says in the place of `{{ recipe }}`, `{{ commands }}` or the name of a room."""
    pages = {"recipe": recipe, "commands": commands} | {name: partial(room, name) for name in registry.ROOMS}
    for mark, written in pages.items():
        if f"{{{{ {mark} }}}}" in markdown:
            markdown = markdown.replace(f"{{{{ {mark} }}}}", "\n".join(written()))
    return markdown


def room(name: str) -> Iterator[str]:
    """Every public name of a room, for mkdocstrings to write out."""
    for entry in registry.room(name).values():
        yield f"::: {entry.module}.{entry.attribute}\n    options: {{members: false, heading: {entry.attribute}}}\n"


def recipe() -> Iterator[str]:
    """A heading and a table of keys for each table of a recipe."""
    models = [one for name, field in Recipe.model_fields.items() for one in _tables(name, field.annotation)]
    yield from _table("The top of a recipe", Recipe, set(Recipe.model_fields) - {name for name, _ in models})
    before: dict[type[BaseModel], str] = {}
    while models:
        name, model = models.pop(0)
        if model in before:
            yield from (f"## `[{name}]`", "", f"The keys of `[{before[model]}]`.", "")
            continue
        before[model] = name
        yield from _table(f"`[{name}]`", model, set(model.model_fields))
        models[:0] = [
            one for key, field in model.model_fields.items() for one in _tables(f"{name}.{key}", field.annotation)
        ]


def commands() -> Iterator[str]:
    """A heading, the usage and a table of options for each command."""
    top = typer.main.get_command(app)
    context = top.make_context("kood", [], resilient_parsing=True)
    for name in top.list_commands(context):
        command = top.get_command(context, name)
        if command.hidden:
            continue
        own = command.make_context(name, [], parent=context, resilient_parsing=True)
        yield from (
            f"## kood {name}",
            "",
            command.help or "",
            "",
            f"`{command.get_usage(own).removeprefix('Usage: ')}`",
            "",
        )
        rows = [one.get_help_record(own) for one in command.get_params(own)]
        rows = [row for row in rows if row and row[0] != "--help"]
        if rows:
            yield from ("| | |", "|---|---|")
            yield from (f"| {_cell(f'`{first}`')} | {_cell(second)} |" for first, second in rows)
        yield ""


def _table(title: str, model: type[BaseModel], keys: set[str]) -> Iterator[str]:
    schema = model.model_json_schema()
    told, said = _docstring(model)
    yield from (f"## {title}", "", told, "", "| key | default | |", "|---|---|---|")
    required = schema.get("required", ())
    for key in model.model_fields:
        if key in keys and key in said:
            default = "" if key in required else schema["properties"][key].get("default")
            shown = "" if default in (None, "") or isinstance(default, dict) else f"`{_toml(default)}`"
            yield f"| `{key}` | {_cell(shown)} | {_cell(said.get(key, ''))} |"
    yield ""


def _docstring(model: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """What a table is, and what each of its keys is, those it has from another table included."""
    told, said = "", {}
    for one in reversed([one for one in model.__mro__ if issubclass(one, BaseModel) and one.__doc__]):
        for section in Docstring(one.__doc__, parser=Parser.google).parse():
            if section.kind is DocstringSectionKind.attributes:
                said |= {each.name: each.description for each in section.value}
            elif section.kind is DocstringSectionKind.text:
                told = section.value
    return told, said


def _tables(name: str, annotation: Any) -> list[tuple[str, type[BaseModel]]]:
    """The table that a key holds, if it holds one; tables of names end in `.NAME`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [(name, annotation)]
    several = ".NAME" if getattr(annotation, "__origin__", None) is dict else ""
    return [one for inner in getattr(annotation, "__args__", ()) for one in _tables(name + several, inner)]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value).replace("'", '"')


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
