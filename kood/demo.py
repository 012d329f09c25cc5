"""A local page to drop pictures on: what a run's model says of them, and which known images are nearest."""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from kood.attached import Adapted, function_of, opened
from kood.classifier import Classifier
from kood.data.deferred import Images, listed
from kood.data.image_set import ImageSet
from kood.data.rules import Framing
from kood.data.stored import read_images
from kood.errors import UserError
from kood.outputs import at_once, outputs_of
from kood.process import native_messages_held_back
from kood.runs import Run
from kood.serving.answers import answers
from kood.serving.client import LocalModel, Model, newest_version
from kood.serving.extras import read_facts
from kood.text import clean

__all__ = ["Answered", "Known", "answered", "known_of", "page_of", "show"]

#: At most so many known images are compared with, evenly taken.
MOST = 2000


class Near(NamedTuple):
    """A known image that is near to another one.

    Attributes:
        image: uint8 (H, W, C).
        class_name: Its class.
        cosine: Of the angle between both images' features, in [-1, 1].
    """

    image: np.ndarray
    class_name: str
    cosine: float


class Known:
    """Known images by the features that a classifier has of them.

    Args:
        classifier: kood's own, or one that kood is attached to.
        images: Labelled images that it knows.
    """

    def __init__(self, classifier: Classifier | Adapted, images: ImageSet):
        self._classifier = classifier
        self._images = images.take(np.unique(np.linspace(0, len(images) - 1, MOST).round().astype(int)))
        self._features = self._directions(self._images.images)

    def __len__(self) -> int:
        return len(self._images)

    def nearest(self, images: Images, count: int = 6) -> list[list[Near]]:
        """The nearest known images, by the cosine between features.

        Args:
            images: uint8 (N, H, W, C).
            count: How many.

        Returns:
            For each image up to `count` of them, the nearest first.
        """
        cosines = self._directions(images) @ self._features.T
        return [[self._near(place, row[place]) for place in np.argsort(-row, kind="stable")[:count]] for row in cosines]

    def _near(self, place: int, cosine: float) -> Near:
        labels = self._images.labels
        name = "" if labels is None else self._images.class_names[labels[place]]
        return Near(np.asarray(self._images.images[place : place + 1])[0], name, float(np.clip(cosine, -1.0, 1.0)))

    def _directions(self, images: Images) -> np.ndarray:
        features = outputs_of(self._classifier, images, at_once(images.shape[1:]))["features"]
        return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def known_of(run: Path, version: int) -> Known | None:
    """What a run's folder still has of the classifier that it published and of its training images.

    Args:
        run: `saved/<recipe>`.
        version: A version in it.

    Returns:
        None if it has not both, as where a version was copied to, or if the classifier's pixels are made by a function
        of its owner's, which a file names and nobody imports.

    Raises:
        UserError: the classifier's file cannot be opened, or the version cannot be read.
        OSError: another one cannot be read.
    """
    facts = read_facts(run / str(version))
    images = facts.get("trained_on", {}).get("sha256")
    # A calibration publishes the classifier of an earlier version, which may be gone, under a later number.
    while (older := facts.get("calibrated_from", "")).isdecimal() and int(older) < version:
        version, facts = int(older), read_facts(run / older) if (run / older).exists() else {}
    stages = Run(run)
    data = next((one for one in stages.finished("data") if one.facts["sets"]["train"]["sha256"] == images), None)
    exported = next((one for one in stages.finished("export") if one.facts["version"] == version), None)
    if data is None or exported is None:
        return None
    key: Any = json.loads((exported.folder / "stage.json").read_bytes())["decides"]["classifier"]
    places = [exported.folder, *run.glob(f"stages/*-{key}")]
    file = next((file for place in places for file in place.glob("*.keras")), None)
    if file is None:
        return None
    classifier: Any = opened(file)
    if function_of(classifier):
        return None
    return Known(classifier, read_images(data.folder, "train", data.facts["sets"]["train"]))


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
    shaped = listed([str(file)], tuple(facts["image_shape"]), 0, Framing.read(facts))[0]
    return Answered(verdict, rows, known.nearest(shaped)[0])


def show(run: Path, *, port: int | None = None, open_browser: bool = True, console: Console | None = None) -> None:
    """Serves the page on this machine alone, until it is stopped; the copies that it keeps of pictures go with it.

    Args:
        run: `saved/<recipe>`, or one of its versions.
        port: Where; a free one from 7860 if not given.
        open_browser: Whether to open it.
        console: Where to print.

    Raises:
        UserError: Gradio is not installed, there is no SavedModel, or the port is taken.
    """
    console = console or Console()
    with tempfile.TemporaryDirectory(prefix="kood-demo-") as pictures:
        gradio = _gradio(pictures)
        version = newest_version(run)
        model, facts = LocalModel(version), read_facts(version)
        try:
            known = known_of(version.parent, int(version.name)) if version.name.isdecimal() else None
        except (OSError, UserError) as error:
            known = None
            console.print(f"the known images cannot be shown: {clean(error)}", style="yellow", markup=False)
        if known is not None:
            console.print(f"{len(known):,} known images to compare with")
        page = page_of(gradio, str(facts["name"]), lambda file: answered(model, facts, known, file), known is not None)
        plain = gradio.themes.Default(font="sans-serif", font_mono="monospace")  # Its own would be fetched.
        try:
            page.launch(
                server_name="127.0.0.1", server_port=port, inbrowser=open_browser, share=False, quiet=True,
                show_error=True, prevent_thread_lock=True, footer_links=[], theme=plain,
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"--port {port}: {error}") from error
        console.print(f"{page.local_url} (Ctrl+C ends it)")
        page.block_thread()


def _gradio(pictures: str) -> Any:
    """Gradio, which keeps a copy of each picture that it is given or shows in this folder."""
    os.environ["GRADIO_TEMP_DIR"] = pictures  # Read once, when it is imported.
    try:
        with native_messages_held_back():
            import gradio
    except ImportError as error:
        raise UserError("kood demo needs Gradio: pip install 'kood[demo]'") from error
    return gradio


def page_of(gradio: Any, name: str, ask: Callable[[Path], Answered], has_known: bool = True) -> Any:
    """The page, of Gradio; `ask` answers a picture's file, with the nearest known images where it has any."""
    with gradio.Blocks(title=f"kood: {name}", analytics_enabled=False) as page:
        gradio.Markdown(f"# {name}\nDrop a picture. It stays on this machine.")
        with gradio.Row():
            # Of any other mode it would be converted and saved anew, its alpha and its 16 bits lost.
            picture = gradio.Image(
                type="filepath", image_mode=None, label="picture", sources=["upload", "clipboard"], height=330
            )
            with gradio.Column():
                verdict = gradio.Textbox(label="verdict", interactive=False)
                figures = gradio.Dataframe(headers=["figure", "value"], label="what the model says", interactive=False)
        nearest, none = "Nearest known images: class, and cosine between the features", "No known images to show"
        gradio.Markdown(nearest if has_known else none)
        near = gradio.Gallery(label="nearest known images", show_label=False, columns=6, height=220, visible=has_known)

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
