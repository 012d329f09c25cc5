"""Where the outliers of a training come from, one file a source: a file's `__all__` is what `outliers.use` may name.

A source is a class whose fields are its table of a recipe, under its own name in small letters with underscores. Its
outliers are rows: of images, the shares of the classes that they are mixtures of where they are some, and what the
report is to tell of them. There are two kinds of source.

`OutlierSource` draws its rows before training, by `draw(count, rng, ...)`. What else it is given it says by the names
of the parameters after these:

    train, validation, real       `kood.data.ImageSet`: two parts of the in-distribution images, and `outliers.real`
    shape                         (H, W, C) of the images
    denoiser                      the diffusion model; the run trains one where a source asks for it
    judge                         a classifier trained on real images alone; likewise
    seeds                         purpose -> a seed, for draws that are repeated piece by piece after a kill
    folder                        what is left there is found again after a kill; it is gone when the rows are kept
    show                          called with the number of rows so far and figures by name, for the display
    over                          whether the time for drawing is up; then what there is will do: a source that takes
                                  it is slow, and gets a share of a run's time budget (`budget.sampling`)

What is drawn is looked at before it is kept: other pixels, another number of rows or other shares are refused, and so
are images that the detector is tested on. An option is refused that is called as what else decides the rows is: the
first six of these where the source is given them, `seed`, `backend`, `version` and the like.

`FeatureSource` makes a layer that follows the classifier through its training and draws from its features. A classifier
has one of them: `outliers.use` names no two.

Importing a source file imports nothing heavy: the recipe reads its fields.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from kood import registry
from kood.data.large import blocks_of
from kood.section import Positive, Section

__all__ = ["FeatureSource", "OutlierSource", "Rows"]

#: What a source may be given.
GIVEN = ("train", "validation", "real", "shape", "denoiser", "judge", "seeds", "folder", "show", "over")
#: What decides its rows beside its options, under names of the same table: of what it is given, and of the rest.
DECIDING = (*GIVEN[:6], "backend", "quick", "seconds", "seed", "variables", "version", "versions")
#: Outliers of a smoke run, at most.
SMOKE = 64


@dataclass
class Rows:
    """Outliers.

    Attributes:
        images: uint8 (N, H, W, C), an array or deferred; or blocks of it that hold N images together.
        count: N, as many as were asked for; a source that takes `over` or `real` may give fewer.
        shares: (N, K) float32, of which class in what share each is, at least 0 and of the sum 1; None where that says
            nothing.
        facts: What the report tells of them (JSON); in words, by `OutlierSource.notes`.
        sheet: Images (rows, columns, H, W, C) uint8 to look at, and the mixture (rows, columns, K) each shows; a row's
            ends are named by those of its first and last.
        made_of: (N, M), of which classes the M training images are that each was made of; not given, those that it has
            a share of, if it has shares.
    """

    images: Any
    count: int
    shares: np.ndarray | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    sheet: tuple[np.ndarray, np.ndarray] | None = None
    made_of: np.ndarray | None = None

    @property
    def blocks(self) -> Iterable[np.ndarray]:
        """The images, a piece at a time."""
        return blocks_of(self.images) if hasattr(self.images, "shape") else self.images


class _Source(Section):
    #: Which of `kood.detector.choosing.PROXIES` its outliers resemble, "" where it is none: a proxy of the kind that
    #: was trained on does not judge what exposure did.
    resembles: ClassVar[str] = ""
    #: Raised by one when its code changes what it draws, so that what older code drew is not taken for it.
    version: ClassVar[int] = 1

    def check(self, recipe: Any) -> None:
        """Refuses what contradicts the rest of a recipe, by a `ValueError` that begins with the key."""

    def check_signature(self) -> None:
        """Refuses, by `ValueError`, a method that cannot be called as a run calls it."""

    def check_images(self, train: Any, validation: Any) -> None:
        """Refuses what the images forbid, `kood.data.ImageSet` both, by `UserError`."""

    def smoke(self) -> dict[str, Any]:
        """The settings that a smoke run has in place of its own."""
        return {}


class FeatureSource(_Source):
    """A source whose outliers are features."""

    def layer(self, num_classes: int, rows: int, seed: int) -> Any:
        """The layer that draws, see `kood.classifier.Classifier`.

        Args:
            num_classes: K.
            rows: Outliers that it draws for each batch.
            seed: Decides them.

        One that has a parameter `counts` besides is given how many training images each class has, K numbers; None
        where they are not known yet.
        """
        raise NotImplementedError


class OutlierSource(_Source):
    """A source whose outliers are images.

    Attributes:
        count: How many images; not given, `outliers.count`.
    """

    #: Whether its images show nothing and are exposed to for their texture, which then stays as it is.
    is_texture: ClassVar[bool] = False

    #: Whether its rows may have shares of classes.
    has_shares: ClassVar[bool] = True

    #: (count, rng, what it is given) -> `Rows`.
    draw: ClassVar[Callable[..., Rows]]

    count: Positive | None = None

    def notes(self, facts: Mapping[str, Any]) -> list[str]:
        """What the report tells of how its images were drawn, given what it told of itself: a sentence each."""
        return []

    def smoke(self) -> dict[str, Any]:
        """Few images."""
        return {"count": min(self.count or SMOKE, SMOKE)}

    @property
    def needs(self) -> tuple[str, ...]:
        """What `draw` is given beside the number and the generator."""
        return tuple(inspect.signature(type(self).draw).parameters)[3:]

    @property
    def is_slow(self) -> bool:
        """Whether it ends when the time for drawing is up."""
        return "over" in self.needs

    def check_signature(self) -> None:
        """Refuses a `draw` that asks for what no source is given, and options that its result would not be told by."""
        asked = tuple(inspect.signature(type(self).draw).parameters) if hasattr(self, "draw") else ()
        if len(asked) < len(("self", "count", "rng")):
            raise ValueError(f"{type(self).__name__} needs a method draw(count, rng, ...), see kood.outliers")
        for name in asked[3:]:
            if name not in GIVEN:
                raise ValueError(f"{type(self).__name__}.draw asks for {name!r}; {registry.nearest(name, GIVEN)}")
        for name in type(self).model_fields:
            if name in DECIDING and (name in asked or name not in GIVEN):
                raise ValueError(f"{type(self).__name__} has the option {name!r}, a name under which something else "
                                 "decides what is drawn; rename it")  # fmt: skip
