"""The page: a picture goes in, what a run's model says of it comes out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from kood.data.deferred import listed
from kood.demo.known import Known, Near, known_of
from kood.errors import UserError
from kood.process import native_messages_held_back
from kood.serving.answers import answers
from kood.serving.client import LocalModel, Model, newest_version
from kood.serving.extras import framing_of, read_facts

__all__ = ["Answered", "answered", "page_of", "show"]


@dataclass(frozen=True)
class Answered:
    """What is shown of one picture.

    Attributes:
        verdict: In words: its class, or that it is refused, or why it could not be read.
        rows: (what, figure) of each figure.
        near: The nearest known images.
    """

    verdict: str
    rows: list[tuple[str, str]] = field(default_factory=list)
    near: list[Near] = field(default_factory=list)


def answered(model: Model, facts: dict[str, Any], known: Known | None, file: Path) -> Answered:
    """Asks a model about a picture.

    Args:
        model: Who answers.
        facts: What kood wrote beside it, `kood.serving.extras.read_facts`.
        known: The images that it knows, where they are at hand.
        file: The picture.

    Raises:
        UserError: the model does not answer.
    """
    (answer,) = answers(model, [file])
    said = answer.said
    if said is None:
        return Answered(answer.error)
    verdict = f"refused: this is none of the {len(facts['class_names'])} classes" if said["is_ood"] else "accepted"
    rows = [
        ("class", said["class_name"] or str(said["label"])),
        ("probability", f"{said['probability']:.3f}"),
        (f"score ({facts['score']})", f"{said['ood_score']:.4g}"),
        ("p-value", f"{said['p_value']:.3g}"),
        *([("threshold", f"{said['threshold']:.4g}")] if "threshold" in said else []),
    ]
    if known is None:
        return Answered(verdict, rows)
    shaped = listed([str(file)], tuple(facts["image_shape"]), 0, framing_of(facts))[0]
    return Answered(verdict, rows, known.nearest(shaped)[0])


def show(run: Path, *, port: int | None = None, open_browser: bool = True, console: Console | None = None) -> None:
    """Serves the page on this machine alone, until it is stopped.

    Args:
        run: `saved/<recipe>`, or one of its versions.
        port: Where; a free one from 7860 if not given.
        open_browser: Whether to open it.
        console: Where to print.

    Raises:
        UserError: Gradio is not installed, there is no SavedModel, or the port is taken.
    """
    try:
        with native_messages_held_back():
            import gradio
    except ImportError as error:
        raise UserError("kood demo needs Gradio: pip install 'kood[demo]'") from error
    console = console or Console()
    version = newest_version(run)
    model, facts = LocalModel(version), read_facts(version)
    try:
        known = known_of(version.parent, int(version.name) if version.name.isdecimal() else 0)
    except (OSError, UserError) as error:
        known = None
        console.print(f"the known images cannot be shown: {error}", style="yellow", markup=False)
    if known is not None:
        console.print(f"{len(known):,} known images to compare with")
    page = page_of(gradio, str(facts["name"]), lambda file: answered(model, facts, known, file))
    plain = gradio.themes.Default(font="sans-serif", font_mono="monospace")  # Its own would be fetched.
    try:
        page.launch(
            server_name="127.0.0.1", server_port=port, inbrowser=open_browser, share=False, quiet=True,
            prevent_thread_lock=True, footer_links=[], theme=plain,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"--port {port}: {error}") from error
    console.print(f"{page.local_url} (Ctrl+C ends it)")
    page.block_thread()


def page_of(gradio: Any, name: str, ask: Callable[[Path], Answered]) -> Any:
    """The page, of Gradio; `ask` answers a picture's file."""
    with gradio.Blocks(title=f"kood: {name}", analytics_enabled=False) as page:
        gradio.Markdown(f"# {name}\nDrop a picture. It stays on this machine.")
        with gradio.Row():
            picture = gradio.Image(type="filepath", label="picture", sources=["upload", "clipboard"], height=330)
            with gradio.Column():
                verdict = gradio.Textbox(label="verdict", interactive=False)
                figures = gradio.Dataframe(headers=["figure", "value"], label="what the model says", interactive=False)
        gradio.Markdown("Nearest known images: class, and cosine between the features")
        near = gradio.Gallery(show_label=False, columns=6, height=220)

        def shown(file: str | None) -> tuple[str, list[list[str]], list[tuple[Any, str]]]:
            if file is None:
                return "", [], []
            try:
                found = ask(Path(file))
            except UserError as error:
                return str(error), [], []
            tiles = [(one.image.squeeze(), f"{one.class_name}, {one.cosine:.2f}") for one in found.near]
            return found.verdict, [list(row) for row in found.rows], tiles

        picture.change(shown, picture, [verdict, figures, near], api_name="ask")
    return page
