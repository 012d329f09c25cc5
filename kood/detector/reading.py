"""A classifier over images of any kind, a batch at a time."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from kood.attached import Adapted, adapted, opened, too_small
from kood.backends import compiled, gradient
from kood.classifier import Classifier
from kood.data.image_set import ImageSet
from kood.data.images import normalize
from kood.data.rules import Framing, Resize
from kood.detector.agreement import disagreement
from kood.detector.images import Batch, batches
from kood.detector.passing import Known, Passed
from kood.detector.ranges import Ranges
from kood.detector.trying import tried
from kood.errors import UserError, first_line
from kood.files import refuse_not_utf_8
from kood.outputs import Outputs, at_once, forward_of, run_batches
from kood.scorer import Scorer
from kood.text import clean, composed

__all__ = ["COMPILED", "Reading"]

#: What is done with known images, whose range says whether they are what the model takes, and whose labels count; and
#: with those that need none.
KNOWN, PERHAPS = ("fit", "calibrate", "id"), ("fit", "calibrate")
#: What is compiled of the model once it is asked.
COMPILED = ("_normal", "_raw", "_plain")


class Reading:
    """A classifier: images of any kind in, its outputs out, those that some scores ask for among them.

    The arguments are those of `Detector`.
    """

    def __init__(
        self,
        model: keras.Model | str | Path,
        class_names: Sequence[str] | None = None,
        features: str | None = None,
        preprocess: Any = None,
        *,
        image_shape: tuple[int, int, int] | None = None,
        resize: Resize = "stretch",
        antialias: bool = True,
        batch_size: int = 64,
    ):
        if isinstance(model, str | Path):
            model = opened(Path(model))
        if batch_size < 1:
            raise UserError(f"batch_size = {batch_size}: give a number from 1 on")
        self.classifier = adapted(model, features, preprocess)
        self.takes_bytes = preprocess is not None
        taken = self.classifier.taken if isinstance(self.classifier, Adapted) else self.classifier.head
        self.num_classes = int(taken.num_classes)
        self.class_names = (
            [str(k) for k in range(self.num_classes)] if class_names is None else list(map(str, class_names))
        )
        if len(self.class_names) != self.num_classes:
            raise UserError(
                f"class_names: there are {len(self.class_names)}, and the model tells {self.num_classes} classes "
                "apart; give one name for each of its outputs, in their order"
            )
        refuse_not_utf_8(self.class_names, "class_names", "class")
        twice = [name for name, count in Counter(map(composed, self.class_names)).items() if count > 1]
        if twice:
            raise UserError(f"class_names: {clean(twice[0])!r} stands there twice; give each output a name of its own")
        #: (H, W, C) that the model says, None where it takes any.
        self._own = (
            self.classifier.taken.image_shape
            if isinstance(self.classifier, Adapted)
            else tuple(self.classifier.backbone.input_shape[1:])
        )
        self.image_shape = self._shape(image_shape)
        self.framing = Framing(resize=resize, antialias=antialias)
        self.batch_size = min(int(batch_size), at_once(self.image_shape))
        #: Digests (N, 16) of the pixels of known images, by use.
        self.digests: dict[str, np.ndarray] = {}
        #: Whether images of `fit` were tried under other preprocessings, so that those of `calibrate` need not be.
        self._fit_tried = False
        #: Whether they came from files, so that those of `calibrate` need not be told of as well.
        self._fit_read = False
        #: The smallest and the largest value among them.
        self.range: tuple[float, float] | None = None
        #: (H, W, C) of images that a model of any size was seen to leave something of.
        self._taken_sizes: set[tuple[int, ...]] = set()
        #: Whether it was seen to have a gradient by its pixels.
        self._has_slope = False
        #: What takes the outputs, by name.
        self.scorers: dict[str, Scorer] = {}

    def _shape(self, given: tuple[int, int, int] | None) -> tuple[int | None, int | None, int]:
        if given is not None and len(given) != 3:
            raise UserError(f"image_shape = {tuple(given)}: give (height, width, channels)")
        if given is not None and any(mine not in (None, its) for mine, its in zip(self._own, given, strict=True)):
            raise UserError(
                f"image_shape: the model takes {self._own}, not {tuple(given)}; leave it out, or give the model's"
            )
        if given is None:
            return self._own
        height, width, channels = map(int, given)
        return height, width, channels

    @property
    def takes_any_size(self) -> bool:
        """Whether the model does not say how large its images are."""
        return None in self._own

    # Images -> outputs.

    def outputs(self, images: Any) -> Outputs:
        """What the classifier gives for images.

        Args:
            images: As the class takes them.

        Returns:
            {"features": (N, D), "logits": (N, K), "cosines": (N, K) where there are any}, float32, and what else the
            scores ask for.
        """
        return self._run(self._batches(images)).outputs

    def _batches(
        self, images: Any, labels: Any = None, use: str = "images", shown: str | None = None
    ) -> Iterator[Batch]:
        """Batches of images, looked at for what is done with them, which may be `shown` by another name."""
        shown = use if shown is None else shown
        if isinstance(images, ImageSet):
            images, labels = images.images, images.labels if labels is None else labels
        labelled = use in KNOWN
        found = batches(
            images, self.image_shape, batch_size=self.batch_size, framing=self.framing,
            labels=labels if labelled else None, class_names=self.class_names if labelled else None,
            labelled=labelled, perhaps=use in PERHAPS, shown=shown,
        )  # fmt: skip
        # A fit begins anew, and so does a calibration where nothing was fitted.
        is_first = use == "fit" or (use == "calibrate" and "trained" not in self.digests)
        before = None if is_first else self.range
        for number, batch in enumerate(found):
            if number == 0 and self.takes_any_size:
                self._refuse_small(batch.pixels.shape[1:], shown)
            wrong = self.ranges.wrong(batch.pixels) if use in KNOWN and number == 0 else ""
            if wrong := wrong or self.ranges.left(batch.pixels, before):
                raise UserError(f"{shown}: {wrong}")
            if number == 0 and self.moving:
                self._refuse_to_move(batch.pixels, before, shown)
                if use in KNOWN:
                    self.need_slope(batch.pixels, shown)
            yield batch

    def _refuse_small(self, shape: tuple[int, ...], use: str) -> None:
        """Raises `UserError` where the model leaves nothing of images (H, W, C)."""
        if shape not in self._taken_sizes and isinstance(self.classifier, Adapted):
            if too_small(self.classifier.model, shape):
                raise UserError(f"{use}: the model leaves nothing of images {shape}; give larger ones (image_shape)")
            self._taken_sizes.add(shape)

    @property
    def moving(self) -> list[str]:
        """The scores that move pixels."""
        return [name for name, one in self.scorers.items() if one.perturbation]

    def _refuse_to_move(self, pixels: np.ndarray, known: tuple[float, float] | None, use: str) -> None:
        """Raises `UserError` where it is not known how far a score's step is in the units of these pixels."""
        low, high = known or self.ranges.span(pixels)
        if pixels.dtype != np.uint8 and (missing := self.ranges.lacks((low, high))):
            raise UserError(
                f"{use}: {self.moving[0]} moves pixels of 0..255, and these lie in {low:g} to {high:g}; make "
                f"the detector with {missing} and give pixels of 0..255"
            )

    def need_slope(self, pixels: np.ndarray, use: str) -> None:
        """Raises `UserError` where a score moves pixels by a gradient that the classifier does not have.

        Args:
            pixels: (n, H, W, C) as a user gives them; not of one black image, where there may be none by chance.
            use: What begins the message.
        """
        if not self.moving or self._has_slope:
            return
        slope, why = gradient(self.classifier, lambda outputs: ops.max(outputs["logits"], axis=-1)), ""
        try:
            found = slope(self._normalized(pixels))
            self._has_slope = found is not None and bool(ops.any(found != 0))
        except Exception as error:  # Each backend's own.
            why = f" ({first_line(error)})"
        if not self._has_slope:
            raise UserError(
                f"{use}: {self.moving[0]} moves pixels by a gradient, and the model has none by its pixels, as "
                f"where it or its preprocessing makes whole numbers of them{why}; name another score"
            )

    @functools.cached_property
    def ranges(self) -> Ranges:
        """Whether pixels are in the range that the classifier takes."""
        return Ranges(self.classifier, self.takes_bytes)

    def _noted(self, found: Iterable[Batch], known: Known) -> Iterator[Batch]:
        """Keeps of known images what tells them again, and some of them."""
        for batch in found:
            known.note(batch, self.ranges)
            yield batch

    def suits(
        self,
        use: str,
        given: np.ndarray | None,
        labels: np.ndarray | None,
        some: Sequence[tuple[np.ndarray, int]] = (),
        wrong: str = "",
    ) -> list[str]:
        """Whether known images are what the model was trained on: by their labels, and under other preprocessings.

        Args:
            use: What begins the message.
            given: (N,) what the model labels them as, where they have passed it.
            labels: (N,) their classes, where they have any.
            some: A few of them, each with its class, which are tried under other preprocessings where nothing says that
                its own is right, or something that it is wrong.
            wrong: What speaks against them already.

        Returns:
            What there is to say of a preprocessing that may be the right one, a sentence or none.

        Raises:
            UserError: they are not.
        """
        if not wrong and given is not None and labels is not None:
            wrong = disagreement(given, labels, self.class_names, self.takes_any_size)
        better = doubt = ""
        if (wrong or self.ranges.may_be_others) and len({pixels.shape for pixels, _ in some}) == 1:
            pixels, classes = (np.stack(values) for values in zip(*some, strict=True))
            if isinstance(self.classifier, Adapted):
                seen = tried(self.classifier, pixels, classes, self.class_names, self.batch_size)
                better, doubt = seen.refusal, seen.doubt
                if better and not wrong:
                    wrong = f"the model labels {seen.own.right:.0%} of {seen.images} known images rightly"
            if pixels.shape[-1] == 3 and (pixels == pixels[..., :1]).all():
                better += "; these images are grey, and the model takes colour"
        if wrong:
            raise UserError(f"{use}: {wrong}{better}")
        return [doubt] if doubt else []

    def _run(self, found: Iterable[Batch]) -> Passed:
        """Passes images through the classifier."""
        if isinstance(self.classifier, Adapted):
            self.classifier.preprocess.need()  # Here, since a graph makes another error of it.
        classes: list[np.ndarray] = []
        files: list[str] = []
        passed = Passed({})

        def pixels() -> Iterator[np.ndarray]:
            for batch in found:
                if batch.labels is not None:
                    classes.append(batch.labels)
                files.extend(batch.files or ())
                passed.unreadable += batch.unreadable
                yield batch.pixels

        passed.outputs = run_batches(self._pass, pixels(), self.batch_size)
        if not passed.outputs:
            raise UserError("there is no image to look at")
        passed.labels, passed.files = np.concatenate(classes) if classes else None, files or None
        return passed

    def _pass(self, pixels: np.ndarray) -> dict:
        """One forward pass over pixels as a user gives them."""
        # How far a score moves a pixel is in units of [-1, 1]; such scores are given pixels of 0..255 alone.
        moves = any(scorer.perturbation for scorer in self.scorers.values())
        if pixels.dtype == np.uint8 or self.takes_bytes or isinstance(self.classifier, Classifier) or moves:
            return self._normal(self._normalized(pixels))
        return self._raw(pixels)

    def _normalized(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels as a user gives them in [-1, 1]."""
        if isinstance(self.classifier, Classifier) and pixels.dtype != np.uint8 and not self.takes_bytes:
            return pixels
        return normalize(pixels.astype(np.float32))

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles take: not what was compiled, which is compiled again."""
        return {name: value for name, value in vars(self).items() if name not in COMPILED}

    @functools.cached_property
    def _normal(self) -> Callable:
        return forward_of(self.classifier, list(self.scorers))

    @functools.cached_property
    def _raw(self) -> Callable:
        return compiled(self.classifier.taken)
