"""A hook of MkDocs: writes the reference from the code, where a page asks for it."""

import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import typer
from griffe import Docstring, DocstringSectionKind, Parser
from pydantic import BaseModel

from kood import metrics as figures
from kood import registry
from kood.cli import app
from kood.diffusion import schedule
from kood.recipe import Recipe
from kood.scores import ON_REQUEST

#: What an example gives for a parameter of this name.
GIVEN = {
    "features": 'rng.normal(size=(200, 8)).astype("float32")',
    "logits": 'rng.normal(size=(200, 3)).astype("float32")',
    "cosines": 'rng.uniform(-1, 1, (200, 3)).astype("float32")',
    "perturbed": 'rng.normal(size=(200, 3)).astype("float32")',
    "shifted": "1.01 * features + 0.1",
    "rotations": 'rng.exponential(size=(200, 4)).astype("float32")',
    "labels": "np.arange(200) % 3",
    "kernel": 'rng.normal(size=(8, 3)).astype("float32")',
    "bias": 'np.zeros(3, "float32")',
    "scores": "rng.normal(size=200)",
    "is_ood": "np.arange(200) >= 150",
    "predictions": "np.zeros(200, int)",
    "confidence": "rng.uniform(size=200)",
    "correct": "rng.uniform(size=200) < 0.8",
    "inside": "rng.normal(size=40)",
    "outside": "1 + rng.normal(size=20)",
    "outsides": "[1 + rng.normal(size=20), 2 + rng.normal(size=30)]",
    "first": "(rng.normal(size=40), [1 + rng.normal(size=20)])",
    "second": "(rng.normal(size=40), [2 + rng.normal(size=20)])",
    "denoise": "lambda x, t: 0.1 * x",
    "alpha_bar": "kood.diffusion.schedule.linear()",
    "noise": 'rng.normal(size=(2, 8, 8, 3)).astype("float32")',
}
#: What stands in the call itself.
IN_CALL = {"num_classes": "num_classes=3", "num_steps": "num_steps=10"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts what the code says in the place of `{{ recipe }}`, `{{ commands }}` and so on, or the name of a room."""
    pages = {"recipe": recipe, "commands": commands, "names": names, "measured": measured}
    pages |= {name: partial(room, name) for name in ROOMS}
    for mark, written in pages.items():
        if f"{{{{ {mark} }}}}" in markdown:
            markdown = markdown.replace(f"{{{{ {mark} }}}}", "\n".join(written()))
    return markdown


def _of_room(name: str) -> Iterator[tuple[str, str]]:
    for entry in registry.room(name).values():
        yield entry.module, entry.attribute


#: Where the public names of each part of a page are: (module, name).
ROOMS: dict[str, Callable[[], Iterable[tuple[str, str]]]] = {
    **{name: partial(_of_room, name) for name in registry.ROOMS},
    "metrics": lambda: [("kood.metrics", name) for name in figures.__all__],
    "schedules": lambda: [("kood.diffusion.schedule", name) for name in schedule.__all__],
}
#: What begins the examples of a room.
PUBLIC = {
    "heads": "kood.heads", "losses": "kood.losses", "scores": "kood.scores", "metrics": "kood.metrics",
    "samplers": "kood.diffusion.samplers", "schedules": "kood.diffusion.schedule",
}  # fmt: skip


#: The rooms whose names stand with the recipe's keys, and which of these take them.
NAMED = {
    "backbones": "`classifier.backbone`, with `classifier.options`",
    "denoisers": "`diffusion.denoiser`, with `diffusion.options`",
    "datasets": "`source` in the tables of `[data]` and in `[outliers.real]`, with the keys beside it",
    "augmentations": "`data.augment`, `train.augment` and `fine_tuning.augment`",
    "outliers": "`outliers.use`, with the keys of `[outliers.NAME]`",
}
#: The bounds of a number in a JSON schema, and how they are written.
LOW, HIGH = {"minimum": "≤", "exclusiveMinimum": "<"}, {"maximum": "≤", "exclusiveMaximum": "<"}


def room(name: str) -> Iterator[str]:
    """Every public name of a room, for mkdocstrings to write out, and an example of it."""
    for module, attribute in ROOMS[name]():
        yield f"::: {module}.{attribute}\n    options: {{members: false, heading: {attribute}}}\n"
        if name in PUBLIC:
            yield f"```python\n{example(name, attribute)}\n```\n"


def example(room_name: str, attribute: str) -> str:
    """How a public name is called, lines of Python that run as they are.

    Args:
        room_name: A key of `PUBLIC`.
        attribute: The name.
    """
    path = f"{PUBLIC[room_name]}.{attribute}"
    *modules, last = path.split(".")
    thing = getattr(importlib.import_module(".".join(modules)), last)
    needed = _required(thing)
    if room_name == "heads":
        lines = [
            f"head = {path}({', '.join(IN_CALL.get(name, name) for name in needed)})",
            "logits = head(features, labels)  # (200, 3); no margin without labels",
        ]
        needed = ["features", "labels"]
    elif inspect.isclass(thing):
        learnt = [name for name in inspect.signature(thing.fit).parameters if name in GIVEN]
        asked = [name for name in inspect.signature(thing.score).parameters if name in GIVEN]
        given = [name if name in ("features", "labels") else f"{name}={name}" for name in learnt]
        lines = [
            f"score = {path}().fit({', '.join(given)})",
            f"score.score({', '.join(f'{name}={name}[:5]' for name in asked)})  # (5,)",
        ]
        needed = list(dict.fromkeys([*learnt, *asked]))
    else:
        lines = [f"{path}({', '.join(IN_CALL.get(name, name) for name in needed)})"]
    given_here = GIVEN | ({"labels": 'np.eye(3, dtype="float32")[np.arange(200) % 3]'} if room_name == "losses" else {})
    told = [f"{name} = {given_here[name]}" for name in needed if name in given_here]
    drawn = ["rng = np.random.default_rng(0)"] if any("rng." in line for line in told) else []
    numpy = ["import numpy as np"] if any("np." in line for line in [*drawn, *told]) else []
    return "\n".join([*numpy, "import kood", "", *drawn, *told, *lines])


def _required(thing: Callable) -> list[str]:
    several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [
        name
        for name, one in inspect.signature(thing).parameters.items()
        if one.default is one.empty and one.kind not in several
    ]


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


def names() -> Iterator[str]:
    """A heading and a table of names for each room that a recipe chooses from and `python.md` does not show."""
    for room_name, key in NAMED.items():
        yield from (f"### {room_name.capitalize()}", "", f"Values of {key}.", "")
        yield from ("| name | options | |", "|---|---|---|")
        for name, entry in sorted(registry.room(room_name).items()):
            defaults = entry.defaults
            options = ", ".join(
                f"`{one} = {_toml(defaults[one])}`" if defaults.get(one) is not None else f"`{one}`"
                for one in (() if room_name == "augmentations" else entry.options)
            )
            yield f"| `{name}` | {_cell(options)} | {_cell(entry.summary)} |"
        yield ""


def measured() -> Iterator[str]:
    """Which scores a run measures by itself, as far as its classifier has what they need, and which on request."""
    own = [name for name in sorted(registry.room("scores")) if name not in ON_REQUEST]
    yield f"Measured by themselves, where the head and the recipe allow it: {_listed(own)}."
    yield ""
    yield f"Measured where a recipe names them: {_listed(sorted(ON_REQUEST))}."


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
            f"`{' '.join(['kood', name, *command.collect_usage_pieces(own)])}`",
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
    yield from (f"## {title}", "", told, "", "| key | default | allowed | |", "|---|---|---|---|")
    required = schema.get("required", ())
    for key in model.model_fields:
        if key in keys and key in said:
            default = "" if key in required else schema["properties"][key].get("default")
            shown = "" if default in (None, "") or isinstance(default, dict) else f"`{_toml(default)}`"
            allowed = allowed_values(schema["properties"][key])
            yield f"| `{key}` | {_cell(shown)} | {_cell(allowed)} | {_cell(said.get(key, ''))} |"
    yield ""


def allowed_values(schema: Mapping[str, Any]) -> str:
    """What the schema of a key allows: words, a range of n, a whole number, or of x, any; else what kind of thing."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(filter(None, map(allowed_values, schema["anyOf"]))))
    if "enum" in schema:
        return _listed(f'"{one}"' for one in schema["enum"])
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return _range(schema, "n" if kind == "integer" else "x")
    if kind == "array":
        length = f" of {schema['maxItems']}" if "maxItems" in schema else ""
        return f"list{length}: {allowed_values(schema['items'])}"
    return {"null": "", "boolean": "`true`, `false`", "string": "text"}.get(str(kind), "table")


def _range(schema: Mapping[str, Any], letter: str) -> str:
    low = next((f"{_number(schema[key])} {sign} " for key, sign in LOW.items() if key in schema), "")
    high = next((f" {sign} {_number(schema[key])}" for key, sign in HIGH.items() if key in schema), "")
    return f"{low}{letter}{high}"


def _number(bound: float) -> str:
    return f"{int(bound):,}" if bound == int(bound) else str(bound)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


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
    value = list(value) if isinstance(value, tuple) else value
    return f'"{value}"' if isinstance(value, str) else str(value).replace("'", '"')


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
