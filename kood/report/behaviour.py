"""How the classifier behaves, in figures: its reliability, its features, the images its score is most wrong about."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kood.metrics import calibration_bins, expected_calibration_error
from kood.report.drawing import BLUE, COLOURS, GREY, INK, PALE, VERMILION, as_label, draw
from kood.report.wording import number, percent

__all__ = ["Behaviour", "Extreme", "embedding", "reliability", "thumbnail"]

#: Marks of the out-of-distribution sets in the map of features; those in distribution are dots.
MARKS = ("x", "+", "^", "v", "s", "D", "1", "2")
#: Classes that get a colour of their own; more could not be told apart.
CLASSES = 10
#: Pixels to which the longer side of a thumbnail is brought at least, by whole factors.
THUMBNAIL = 64


@dataclass(frozen=True)
class Extreme:
    """An image that the headline score is very wrong about.

    Attributes:
        image: uint8 (H, W, C).
        actual: Its class, "" where it has none of the classifier's.
    """

    image: np.ndarray
    score: float
    predicted: str
    actual: str = ""

    @property
    def told(self) -> str:
        """What is said of it beside the image."""
        return f"score {number(self.score)}, called {self.predicted}" + (f", is {self.actual}" if self.actual else "")


@dataclass(frozen=True)
class Behaviour:
    """What the figures are drawn of.

    Attributes:
        confidence: (N,) probability of the predicted class of the in-distribution test images.
        correct: (N,) whether it is right.
        planes: {set: (n, 2)} features on two axes; the in-distribution set is "id".
        classes: (n,) class of each point of "id".
        extremes: {set: images}, of "id" those with the highest scores, of others those with the lowest.
    """

    confidence: np.ndarray
    correct: np.ndarray
    planes: Mapping[str, np.ndarray] = field(default_factory=dict)
    classes: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    class_names: Sequence[str] = ()
    extremes: Mapping[str, Sequence[Extreme]] = field(default_factory=dict)


def reliability(confidence: np.ndarray, correct: np.ndarray) -> bytes:
    """Reliability diagram: accuracy against confidence, and under it how many images are so confident.

    Args:
        confidence: (N,) probability of the predicted class.
        correct: (N,) whether it is right.

    Returns:
        The image's bytes, SVG.
    """
    counts, mean, accuracy = calibration_bins(confidence, correct)
    error = expected_calibration_error(confidence, correct)
    there, edges = counts > 0, np.linspace(0.0, 1.0, len(counts) + 1)

    def paint(figure: Any) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 2)))
        upper.stairs(np.where(there, accuracy, 0.0), edges, fill=True, color=PALE)
        upper.plot(mean[there], accuracy[there], "o-", color=BLUE, markersize=4, label=f"ECE {percent(error)}%")
        upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy, %")
        upper.set_yticks([0, 0.5, 1], ["0", "50", "100"])
        upper.legend(loc="upper left", handlelength=1.6)
        lower.stairs(counts / counts.sum(), edges, fill=True, color=VERMILION)
        lower.set(ylim=(0, None), xlabel="confidence, %", ylabel="share, %")
        lower.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
        lower.set_yticks(lower.get_yticks(), [f"{100 * tick:.0f}" for tick in lower.get_yticks()])
        lower.set_ylim(bottom=0)

    return draw(4.6, 4.6, paint)


def embedding(behaviour: Behaviour, near: Sequence[str]) -> bytes:
    """The features of some images on the two axes along which the in-distribution features vary most.

    In-distribution images are dots, one colour a class for the first ten classes; near and far sets are marks of
    their own, near ones in vermilion and far ones in ink.

    Args:
        near: Which of its sets are near.

    Returns:
        The image's bytes, SVG.
    """
    planes = {name: np.pad(p, ((0, 0), (0, max(0, 2 - p.shape[1])))) for name, p in behaviour.planes.items()}
    colours = [*COLOURS, GREY, INK, "#8b5a2b", "#4b0082"]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        inside = planes.get("id", np.zeros((0, 2)))
        for label in np.unique(behaviour.classes):
            own = behaviour.classes == label
            name = behaviour.class_names[label] if label < len(behaviour.class_names) else str(label)
            coloured = label < CLASSES
            style = {"color": colours[label] if coloured else PALE, "label": as_label(name) if coloured else None}
            axes.plot(*inside[own, :2].T, "o", markersize=2.6, alpha=0.75, markeredgewidth=0, **style)
        outside = [name for name in planes if name != "id"]
        for index, name in enumerate(outside):
            colour = VERMILION if name in near else INK
            mark = MARKS[index % len(MARKS)]
            axes.plot(
                *planes[name][:, :2].T, mark, color=colour, markersize=4, alpha=0.5, markeredgewidth=0.8,
                label=as_label(f"{name} ({'near' if name in near else 'far'})"),
            )  # fmt: skip
        axes.set(xticks=[], yticks=[], xlabel="first principal component", ylabel="second")
        if planes:
            figure.legend(loc="outside right upper", handlelength=1.2, markerscale=1.4)

    return draw(7.0, 4.6, paint)


def thumbnail(image: np.ndarray, most: int | None = None) -> bytes:
    """An image as PNG, small ones enlarged by a whole factor, their pixels kept square.

    Args:
        image: uint8 (H, W, C), C 1 or 3.
        most: Pixels to which the longer side is reduced first; not reduced where not given.
    """
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    if most is not None:
        picture.thumbnail((most, most))
    factor = max(1, -(-THUMBNAIL // max(picture.size)))
    out = io.BytesIO()
    picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST).save(out, "PNG")
    return out.getvalue()
