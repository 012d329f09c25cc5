"""The commands about recipes: what makes a run, and what a recipe may say."""

import re
import time
from itertools import takewhile
from pathlib import Path
from typing import Annotated

import typer

from kood import registry, specs
from kood.errors import UserError
from kood.process import choose_backend, console, native_messages_held_back, quiet
from kood.text import clean

__all__ = ["commands"]

commands = typer.Typer()

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file, or one of `kood list recipes`.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated.")
]
OtherData = Annotated[
    bool,
    typer.Option("--other-data", help="Go on in a run folder of other classes or data; its report is kept beside."),
]
OodImages = Annotated[
    list[str] | None,
    typer.Option("--ood", metavar="FOLDER|CSV", help="Images of no such class, to test on; may be repeated."),
]
Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import", metavar="MODULE", help="A module with layers or functions of the model's; may be repeated."
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Make every stage again, whatever is there.")]
Saved = Annotated[Path, typer.Option("--saved", metavar="FOLDER", help="Where run folders go.")]


@commands.command()
def run(
    recipe: RecipeFile,
    settings: Settings = None,
    fresh: Fresh = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Smoke run, in saved/NAME-quick: everything small, figures mean nothing.")
    ] = False,
    any_backend: Annotated[
        bool, typer.Option("--any-backend", help="Take stages that another backend made, and go on with its half ones.")
    ] = False,
    other_data: OtherData = False,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1e6,
            help="Fit the run into this time: lengths are cut, cells that there is no time for are left out and named.",
        ),
    ] = None,
    saved: Saved = Path("saved"),
) -> None:
    """Run a recipe: train, make outliers, measure, write a SavedModel and a report."""
    from kood.recipe import load

    began = time.monotonic()
    if minutes is not None:
        settings = [*(settings or ()), f"budget.minutes={float(minutes)}"]
    choose_backend()
    with native_messages_held_back():  # A package that it names may load Keras.
        loaded = load(recipe, settings or (), quick=quick)  # A wrong one is refused before Keras takes its seconds.
    with native_messages_held_back():
        from kood import pipeline

    pipeline.run(
        loaded, fresh=fresh, any_backend=any_backend, other_data=other_data, began=began, saved=saved,
        console=console(),
    )  # fmt: skip


@commands.command()
def new(
    id_images: Annotated[
        str,
        typer.Option("--id", metavar="FOLDER|CSV", help="Your images: one sub-folder a class, or lines FILE,LABEL."),
    ],
    ood: OodImages = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Of the recipe; the folder's if not given.")] = None,
    minutes: Annotated[float, typer.Option(help="About how long a run may take here.")] = 30.0,
    backbone: Annotated[
        str | None, typer.Option(metavar="FILE", help="A pretrained network to begin with, a .keras or HDF5 file.")
    ] = None,
    preprocess: Annotated[
        str | None, typer.Option(metavar="NAME", help="What it takes: none (0..255), 0..1, -1..1, caffe, torch.")
    ] = None,
    features: Annotated[
        str | None, typer.Option(metavar="LAYER", help="Its features; the input of its last dense layer if not given.")
    ] = None,
    imports: Imports = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a recipe of that name.")] = False,
) -> None:
    """Write a recipe for your own images, every choice with its reason."""
    from kood.starter import new_recipe

    options = {"preprocess": preprocess, "layer": features, "imports": imports}
    new_recipe(
        id_images, ood or (), name=name, minutes=minutes, force=force, backbone=backbone,
        options={key: value for key, value in options.items() if value},
    )  # fmt: skip


@commands.command()
def attach(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A Keras classifier, saved as a .keras or HDF5 file.")],
    id_images: Annotated[
        str,
        typer.Option(
            "--id",
            metavar="FOLDER|CSV",
            help="Images of its classes that it was not trained on: one sub-folder a class, or lines FILE,LABEL.",
        ),
    ],
    ood: OodImages = None,
    accept: Annotated[float, typer.Option(metavar="SHARE", help="Share of known images to accept.")] = 0.95,
    by_class: Annotated[bool, typer.Option("--by-class", help="A threshold for each class that it labels.")] = False,
    score: Annotated[str, typer.Option(metavar="NAME", help="The score that decides; auto chooses one.")] = "auto",
    classes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The class of each output: a name a line, or JSON {name: number}."),
    ] = None,
    preprocess: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What the model takes: none (0..255), 0..1, -1..1, caffe, torch, module:function."
        ),
    ] = "none",
    features: Annotated[
        str | None, typer.Option(metavar="LAYER", help="Its features; the input of its last dense layer if not given.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, max=1024, help="Side of the images, if it takes any.")] = None,
    resize: Annotated[
        str, typer.Option(metavar="HOW", help="Images of other proportions: stretch, crop (the middle), pad.")
    ] = "stretch",
    antialias: Annotated[
        bool | None,
        typer.Option(
            "--antialias/--no-antialias",
            help="Of images that are made smaller; not for a model of image_dataset_from_directory's.",
        ),
    ] = None,
    imports: Imports = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Of the run; the model's file if not given.")] = None,
    fresh: Fresh = False,
    other_data: OtherData = False,
    saved: Saved = Path("saved"),
) -> None:
    """Give a classifier that you have a reject option: nothing is trained, a report and a SavedModel are written."""
    began = time.monotonic()
    _refuse_at_once(model, accept, name)
    choose_backend()
    with native_messages_held_back():
        from kood.attach import attach as attach_to

    attach_to(
        model, known=id_images, ood=ood or (), accept=accept, by_class=by_class, score=score, classes=classes,
        preprocess=preprocess, features=features, size=size, resize=resize, antialias=antialias, imports=imports or (),
        name=name, fresh=fresh, other_data=other_data, began=began, saved=saved, console=console(),
    )  # fmt: skip


def _refuse_at_once(model: Path, accept: float, name: str | None) -> None:
    """Refuses what needs no look into the model, before Keras takes its seconds."""
    from pydantic import ValidationError

    from kood.data.paths import KERAS_FILE, need_file
    from kood.recipe.messages import explain
    from kood.recipe.sections import Serve
    from kood.starter import slug_of

    need_file(model, "MODEL", KERAS_FILE)
    try:
        Serve(accept=accept)
    except ValidationError as error:
        raise UserError(f"--{explain(error, Serve, {'accept': accept})}") from error
    if name:
        slug_of(name, given=True)


@commands.command()
def show(recipe: RecipeFile, settings: Settings = None) -> None:
    """Print a recipe with every default (not keys that are off), and how many cells its matrix has."""
    from rich.syntax import Syntax

    from kood.recipe import load

    quiet()
    with native_messages_held_back():
        loaded = load(recipe, settings or ())
    shown = console()
    if shown.is_terminal:
        shown.print(Syntax(loaded.to_toml(), "toml", word_wrap=True))
    else:
        typer.echo(loaded.to_toml())  # As it is: broken at a width it would not be a recipe any more.
    cells = loaded.cells()
    if loaded.matrix:
        typer.echo(f"# {len(cells)} cells")


@commands.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(metavar="|".join([*registry.ROOMS, "recipes"]), help="What to list.")],
) -> None:
    """List the names a recipe may use."""
    from rich.table import Table
    from rich.text import Text

    if what == "recipes":
        from kood.recipe import shipped

        own = {path.name: path for path in sorted(Path("recipes").glob("*.toml"))}
        others = {name: path for name, path in shipped().items() if path.name not in own}
        rows = [(name, _first_sentence(path)) for name, path in {**own, **others}.items()]
    elif what in registry.ROOMS:
        rows = []
        with native_messages_held_back():
            entries = registry.listed(what)
        for entry in entries:
            takes = entry.options if what in ("heads", "datasets", "backbones", "denoisers") else ()
            if what == "scores":
                takes = tuple(specs.told(entry))
            elif what == registry.TABLES:
                takes = entry.parameters
            source = f" (package {entry.package})" if entry.package else ""
            rows.append((entry.name, entry.summary + source + (f" [{', '.join(takes)}]" if takes else "")))
        rows.sort()
    else:
        raise UserError(f"kood list {what}: {registry.nearest(what, [*registry.ROOMS, 'recipes'])}")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", overflow="fold")
    table.add_column(overflow="fold")
    for name, summary in rows:
        table.add_row(Text(clean(name)), Text(clean(summary)))
    console().print(table)


@commands.command()
def schema() -> None:
    """Print the JSON schema of a recipe."""
    import json

    from kood.recipe import Recipe

    typer.echo(json.dumps(Recipe.model_json_schema(), indent=2))


@commands.command()
def doctor() -> None:
    """Say what is installed, which backends work, and what this machine offers."""
    from kood.cli.doctor import report

    if not report():
        raise typer.Exit(1)


def _first_sentence(path: Path) -> str:
    """What a recipe's first comment says, to the end of the sentence; of one without an end its first line."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip("# ") for line in takewhile(lambda line: line.startswith("#") and "kood run" not in line, lines)]
    whole = re.match(r".*?\.(?= |$)", " ".join(said))
    return whole[0] if whole else "".join(said[:1])
