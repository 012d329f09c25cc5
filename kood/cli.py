"""The command line: parses, sets the process up, calls the pipeline. Imports nothing heavy at load."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from kood import registry, specs
from kood.errors import UserError
from kood.process import Stopped, choose_backend, console, native_messages_held_back, quiet, settle, stop_on_signals
from kood.text import clean, masked

__all__ = ["app", "main"]

app = typer.Typer(
    name="kood",
    help="Image classifiers that know what they do not know.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file; `kood list recipes` shows some.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated.")
]
OtherData = Annotated[
    bool,
    typer.Option("--other-data", help="Go on in a run folder of other classes or data; its report is kept beside."),
]
Saved = Annotated[Path, typer.Option("--saved", metavar="FOLDER", help="Where run folders go.")]


@app.command()
def run(
    recipe: RecipeFile,
    settings: Settings = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Make every stage again, whatever is there.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Smoke run: everything small, figures mean nothing.")] = False,
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


@app.command()
def new(
    id_images: Annotated[
        str,
        typer.Option("--id", metavar="FOLDER|CSV", help="Your images: one sub-folder a class, or lines FILE,LABEL."),
    ],
    ood: Annotated[
        list[str] | None,
        typer.Option("--ood", metavar="FOLDER|CSV", help="Images of no such class, to test on; may be repeated."),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Of the recipe; the folder's if not given.")] = None,
    minutes: Annotated[float, typer.Option(help="About how long a run may take here.")] = 30.0,
    backbone: Annotated[
        str | None, typer.Option(metavar="FILE", help="A pretrained network to begin with, a .keras file.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a recipe of that name.")] = False,
) -> None:
    """Write a recipe for your own images, every choice with its reason."""
    from kood.starter import new_recipe

    new_recipe(id_images, ood or (), name=name, minutes=minutes, force=force, backbone=backbone)


@app.command()
def attach(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A Keras classifier, saved as a .keras file.")],
    id_images: Annotated[
        str,
        typer.Option(
            "--id",
            metavar="FOLDER|CSV",
            help="Images of its classes that it was not trained on: one sub-folder a class, or lines FILE,LABEL.",
        ),
    ],
    ood: Annotated[
        list[str] | None,
        typer.Option("--ood", metavar="FOLDER|CSV", help="Images of no such class, to test on; may be repeated."),
    ] = None,
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
    imports: Annotated[
        list[str] | None,
        typer.Option("--import", metavar="MODULE", help="A module with layers of the model's; may be repeated."),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Of the run; the model's file if not given.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Make every stage again, whatever is there.")] = False,
    other_data: OtherData = False,
    saved: Saved = Path("saved"),
) -> None:
    """Give a classifier that you have a reject option: nothing is trained, a report and a SavedModel are written."""
    began = time.monotonic()
    choose_backend()
    with native_messages_held_back():
        from kood.attach import attach as attach_to

    attach_to(
        model, known=id_images, ood=ood or (), accept=accept, by_class=by_class, score=score, classes=classes,
        preprocess=preprocess, features=features, size=size, resize=resize, imports=imports or (), name=name,
        fresh=fresh, other_data=other_data, began=began, saved=saved, console=console(),
    )  # fmt: skip


@app.command()
def show(recipe: RecipeFile, settings: Settings = None) -> None:
    """Print a recipe complete, with every default, and the cells of its matrix."""
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


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(metavar="|".join([*registry.ROOMS, "recipes"]), help="What to list.")],
) -> None:
    """List the names a recipe may use."""
    from rich.table import Table
    from rich.text import Text

    if what == "recipes":
        rows = [(path.name, _first_comment(path)) for path in sorted(Path("recipes").glob("*.toml"))]
        if not rows:
            raise UserError("there is no folder 'recipes' with TOML files here; run this where kood's recipes lie")
    elif what in registry.ROOMS:
        rows = []
        with native_messages_held_back():
            entries = registry.listed(what)
        for entry in entries:
            takes = entry.options if what in ("heads", "datasets", "backbones", "denoisers", "outliers") else ()
            if what == "scores":
                takes = tuple(specs.told(entry))
            source = f" (package {entry.package})" if entry.package else ""
            rows.append((entry.name, entry.summary + source + (f" [{', '.join(takes)}]" if takes else "")))
    else:
        raise UserError(f"kood list {what}: {registry.nearest(what, [*registry.ROOMS, 'recipes'])}")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", overflow="fold")
    table.add_column(overflow="fold")
    for name, summary in rows:
        table.add_row(Text(clean(name)), Text(clean(summary)))
    console().print(table)


@app.command()
def predict(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="saved/<recipe>, or one of its versions.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE|FOLDER...", help="Image files, and folders of them.")],
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Ask a TF Serving at http://HOST:8501 or grpc://HOST:8500; RUN is its name. USER:PASSWORD@ before "
            "HOST is used and never printed.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header.")] = False,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Images asked about at once.")] = 32,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for each answer of a server.")] = 60.0,
) -> None:
    """Ask a run's SavedModel, or a TF Serving, about images."""
    if as_json and as_csv:
        raise UserError("--json and --csv: choose one")
    quiet()
    from kood.data.files import PassedOver
    from kood.serving.address import Address
    from kood.serving.answers import answers, listed, print_answers
    from kood.serving.client import open_model

    title = Address.of(url).shown if url else str(run_folder)
    passed = PassedOver()
    files = listed(images, passed)
    for note in passed.notes():
        typer.echo(note, err=True)
    model = open_model(run_folder, url, timeout)
    style = "json" if as_json else "csv" if as_csv else "table"
    found = answers(model, files, batch)
    if print_answers(found, len(files), style=style, title=title, console=console()):
        raise typer.Exit(1)


@app.command()
def calibrate(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="saved/<recipe>, or one of its versions.")],
    data: Annotated[
        list[Path],
        typer.Option(
            "--data",
            metavar="FOLDER",
            help="Images of the known classes, as in use, that the model has not seen; may be repeated.",
        ),
    ],
    accept: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Share of such images to accept; as it was if not given.")
    ] = None,
    check: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the images kept to see what the threshold does.")
    ] = 0.2,
    by_class: Annotated[
        bool | None,
        typer.Option(
            "--by-class/--one-threshold",
            show_default=False,
            help="A threshold for each class that the model labels, or one for all; as it was if not given.",
        ),
    ] = None,
) -> None:
    """Set the threshold anew on your own images, without training: writes the next version, keeps the old one.

    The images must be unseen. A classifier is surer of what it was trained on than of what it will meet, so a threshold
    set on such images accepts less than it promises. What the model was trained, chosen or calibrated on by its run is
    left out, and counted.
    """
    quiet()
    from kood.serving.calibrate import calibrate as set_anew

    done = set_anew(run_folder, data, accept=accept, check=check, by_class=by_class)
    for answer in done.unread:
        typer.echo(answer.error, err=True)
    for line in done.told():
        typer.echo(line)
    if done.unread:
        raise typer.Exit(1)


@app.command()
def monitor(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="saved/<recipe>, or one of its versions.")],
    data: Annotated[
        Path, typer.Option("--data", metavar="FOLDER|JSONL", help="Images, or answers of `kood predict --json`.")
    ],
    level: Annotated[
        float, typer.Option(min=1e-6, max=0.5, help="Chance of calling drift where there is none.")
    ] = 0.01,
    most: Annotated[int, typer.Option(min=0, max=1000, help="How many of the most surprising images to show.")] = 12,
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write monitor.json and monitor.html there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether the images that a model meets are still those it was calibrated for, and since when not.

    Each answer is judged by the version and the threshold that it was given under. Images of a folder that the model
    was trained, chosen or calibrated on are left out, and counted: it knows them better than what it meets.
    """
    quiet()
    from kood.monitor import monitor as watch

    _, unread = watch(run_folder, data, level=level, most=most, to=to, as_json=as_json, console=console())
    if to is not None and not as_json:
        typer.echo(f"Written: {to / 'monitor.json'}, {to / 'monitor.html'}")
    if unread:
        raise typer.Exit(1)


@app.command(name="serving-config")
def serving_config(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs to serve, each under its folder's name.")],
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the files go.")] = Path("serving"),
    max_batch: Annotated[int, typer.Option(min=1, help="Requests are joined to batches of at most so many.")] = 64,
    wait: Annotated[int, typer.Option(min=0, help="Microseconds that a request waits for others.")] = 2000,
) -> None:
    """Write what TF Serving is started with: model list, batching parameters, compose file; print the commands."""
    from kood.serving.config import write_serving_config

    written = write_serving_config(runs, to, max_batch=max_batch, wait_microseconds=wait)
    for file in written.files:
        typer.echo(f"Written: {file}")
    typer.echo(f"\nWith Docker:\n  {written.docker}\nor: {written.compose}")
    typer.echo(f"\nWith the binary:\n  {written.binary}")


@app.command(name="single-signature")
def single_signature(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="saved/<recipe>, or one of its versions.")],
    to: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the copy goes.")],
    signature: Annotated[str, typer.Option(metavar="NAME", help="Which signature.")] = "normalized",
) -> None:
    """Copy a SavedModel with one signature, for runtimes that read only serving_default, such as OpenVINO."""
    quiet()
    with native_messages_held_back():
        from kood.serving.client import newest_version
        from kood.serving.publishing import write_single_signature
    write_single_signature(newest_version(run_folder), to, signature)
    typer.echo(f"Written: {to}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Finished runs, saved/<recipe>.")],
    baseline: Annotated[
        str | None,
        typer.Option(metavar="ROW", help="What the other rows are compared with; the first if not given."),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:OPTION=VALUE,...]", help="One score for all, in place of the headline score of each."
        ),
    ] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER|FILE", help="Write compare.md, .tex and .csv there, or one of them.")
    ] = None,
    form: Annotated[
        Literal["table", "markdown", "latex", "csv"], typer.Option("--format", help="How to print them.")
    ] = "table",
) -> None:
    """Lay finished runs side by side, with paired differences and how sure they are."""
    from kood.compare import compare_runs

    compare_runs(runs, baseline=baseline, score=score, to=to, form=form)


@app.command()
@app.command("outliers", hidden=True, deprecated=True)  # Its name before.
def interpolate(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="saved/<recipe>, with a diffusion model.")],
    first: Annotated[str, typer.Option("--from", metavar="CLASS", help="The class that rows begin with.")],
    last: Annotated[str, typer.Option("--to", metavar="CLASS", help="The class that they end with.")],
    rows: Annotated[int, typer.Option(min=1, max=100, help="Rows, each from a start of its own.")] = 4,
    columns: Annotated[int, typer.Option(min=2, max=100, help="Images in a row.")] = 9,
    steps: Annotated[
        str | None, typer.Option(metavar="N[,N...]", help="Sampling steps; of several, each has its rows.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(min=0.0, max=20.0, help="Guidance; 1 is none.")] = None,
    mix: Annotated[str | None, typer.Option(metavar="condition|prediction", help="What is mixed.")] = None,
    sampler: Annotated[str | None, typer.Option(help="`kood list samplers`.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the starts.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Where it goes; in RUN if not given.")] = None,
) -> None:
    """Draw the way from one class to another, sampled from a run's diffusion model: one start along each row.

    What is not given is as the run's recipe has it.
    """
    chosen = _step_counts(steps)
    choose_backend()
    with native_messages_held_back():
        from kood.pipeline.interpolate import draw

    changes = {"guidance": guidance, "mix": mix, "sampler": sampler}
    written = draw(
        run_folder, first, last, rows=rows, columns=columns, steps=chosen, seed=seed, out=out,
        changes={key: value for key, value in changes.items() if value is not None},
    )  # fmt: skip
    typer.echo(f"Written: {written}")


def _step_counts(text: str | None) -> list[int]:
    """The numbers of `--steps`, none where it is not given."""
    parts = [] if text is None else [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= 10_000 for part in parts):
        raise UserError(f"--steps {text}: write one number above 0, or several with commas, such as 5,15,50")
    return list(dict.fromkeys(int(part) for part in parts))


@app.command()
def schema() -> None:
    """Print the JSON schema of a recipe."""
    import json

    from kood.recipe import Recipe

    typer.echo(json.dumps(Recipe.model_json_schema(), indent=2))


@app.command()
def doctor() -> None:
    """Say what is installed, which backends work, and what this machine offers."""
    from kood.doctor import report

    if not report():
        raise typer.Exit(1)


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def main() -> None:
    """Runs the command line; every error a user can mend is one message and an exit code."""
    settle()
    stop_on_signals()
    try:
        app()
    except UserError as error:
        typer.echo(f"kood: {masked(str(error))}", err=True)
        sys.exit(error.exit_code)
    except Stopped as stop:
        if hasattr(signal, "setitimer"):  # Windows has neither this nor SIGPIPE.
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        typer.echo("kood: stopped; the same command goes on where this one was", err=True)
        sys.exit(128 + stop.args[0])
    except BrokenPipeError:
        # Whoever read the output has enough of it, as `head` does; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + getattr(signal, "SIGPIPE", 13))
    except Exception as error:
        if os.environ.get("KOOD_TRACEBACK"):
            raise
        if isinstance(error, OSError) and error.filename and error.strerror:
            typer.echo(f"kood: {error.filename}: {error.strerror}", err=True)
        else:
            typer.echo(f"kood: {type(error).__name__}: {masked(str(error))} (KOOD_TRACEBACK=1 shows where)", err=True)
        sys.exit(1)
