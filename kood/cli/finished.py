"""The commands about finished runs: asked, calibrated, watched, served, compared, drawn."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from kood.errors import UserError
from kood.process import choose_backend, console, native_messages_held_back, on_tensorflow
from kood.text import clean

__all__ = ["commands"]

commands = typer.Typer()

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="saved/<recipe>, or one of its versions.")]


@commands.command()
def predict(
    run_folder: RunFolder,
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE|FOLDER|CSV...", help="Image files, folders of them, and tables that name them."),
    ],
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
    on_tensorflow()
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


@commands.command()
def calibrate(
    run_folder: RunFolder,
    data: Annotated[
        list[Path],
        typer.Option(
            "--data",
            metavar="FOLDER|CSV",
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
    choose_backend()
    from kood.serving.calibrate import calibrate as set_anew

    done = set_anew(run_folder, data, accept=accept, check=check, by_class=by_class)
    for answer in done.unread:
        typer.echo(clean(answer.error), err=True)
    for line in done.told:
        typer.echo(line)
    if done.unread:
        raise typer.Exit(1)


@commands.command()
def monitor(
    run_folder: RunFolder,
    data: Annotated[
        Path, typer.Option("--data", metavar="FOLDER|CSV|JSONL", help="Images, or answers of `kood predict --json`.")
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
    on_tensorflow()
    from kood.monitor import monitor as watch

    _, unread = watch(run_folder, data, level=level, most=most, to=to, as_json=as_json, console=console())
    if to is not None and not as_json:
        typer.echo(f"Written: {to / 'monitor.json'}, {to / 'monitor.html'}")
    if unread:
        raise typer.Exit(1)


@commands.command(name="serving-config")
def serving_config(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs to serve, each under its folder's name.")],
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the files go.")] = Path("serving"),
    max_batch: Annotated[
        int,
        typer.Option(
            min=1, help="Join requests to batches of at most so many images; they then fail together. 1 joins none."
        ),
    ] = 1,
    wait: Annotated[
        int, typer.Option(min=0, help="Microseconds that a request waits for others, where they are joined.")
    ] = 2000,
) -> None:
    """Write model list and compose file for TF Serving, with --max-batch batching parameters; say how to start it."""
    from kood.serving.config import write_serving_config

    written = write_serving_config(runs, to, max_batch=max_batch, wait_microseconds=wait)
    for file in written.files:
        typer.echo(f"Written: {file}")
    typer.echo(f"\nWith Docker:\n  {written.docker}\nor: {written.compose}")
    typer.echo(f"\nWith the binary:\n  {written.binary}")


@commands.command(name="single-signature")
def single_signature(
    run_folder: RunFolder,
    to: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the copy goes.")],
    signature: Annotated[str, typer.Option(metavar="NAME", help="Which signature.")] = "normalized",
) -> None:
    """Copy a SavedModel with one signature, for runtimes that read only serving_default, such as OpenVINO."""
    on_tensorflow()
    with native_messages_held_back():
        from kood.serving.client import newest_version
        from kood.serving.publishing import write_single_signature
    write_single_signature(newest_version(run_folder), to, signature)
    typer.echo(f"Written: {to}")


@commands.command()
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


@commands.command()
def interpolate(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="saved/<recipe>, with a diffusion model.")],
    first: Annotated[str, typer.Option("--from", metavar="CLASS", help="The class that rows begin with.")],
    last: Annotated[str, typer.Option("--to", metavar="CLASS", help="The class that they end with.")],
    rows: Annotated[int, typer.Option(min=1, max=100, help="Rows, each from a start of its own.")] = 4,
    columns: Annotated[int, typer.Option(min=2, max=100, help="Images in a row.")] = 9,
    steps: Annotated[
        str | None, typer.Option(metavar="N[,N...]", help="Sampling steps; of several, each has its rows.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(min=0.0, max=20.0, help="Guidance, above 0; 1 is none.")] = None,
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


@commands.command()
def demo(
    run_folder: RunFolder,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Where; a free one if not given.")] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open it in the browser.")] = True,
) -> None:
    """Serve a page on this machine to drop pictures on: class, score, p-value, verdict, the nearest known images."""
    from kood.serving.client import newest_version

    newest_version(run_folder)  # A wrong one is refused before Keras takes its seconds.
    choose_backend()
    with native_messages_held_back():
        from kood.demo import show as show_page
    show_page(run_folder, port=port, open_browser=browser, console=console())
