"""Known images under other preprocessings, for a model whose layers do not say which pixels they are made for."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from kood.attached import Adapted, in_files, preprocessing_for
from kood.attached.preprocessing import Preprocess
from kood.backends import compiled
from kood.conformal import rate_interval
from kood.detector.agreement import disagreement
from kood.outputs import run_batches, softmax

__all__ = ["TRIED", "Tried", "tried"]

#: Known images that are tried, at most.
TRIED = 64
#: By how much one preprocessing has to label more of them rightly to speak against another; and to be worth a note, or
#: by how much less its mean largest probability has to lie above its accuracy.
_BETTER, _NOTED = 0.2, 0.05


@dataclass(frozen=True)
class _Found:
    """What a model says of images under one preprocessing: how many it labels rightly, and its mean largest
    probability."""

    given: np.ndarray
    right: float
    sure: float

    @property
    def too_sure(self) -> float:
        return max(0.0, self.sure - self.right)


@dataclass(frozen=True)
class Tried:
    """What a model says of known images, under the preprocessing that it has and under others.

    Attributes:
        own: Under its own.
        others: Under the others, those that label these images by chance or by another order left out; none for images
            of one class, all of which a model that says nothing else labels rightly.
        images: How many there are.
        of: What the others are preprocessings of, where these are other pixels than were given.
    """

    own: _Found
    others: dict[str, _Found]
    images: int
    of: str = ""

    @property
    def refusal(self) -> str:
        """Another preprocessing that lets the model label far more of the images rightly, in words; "" for none."""
        best = max(self.others, key=lambda mode: self.others[mode].right, default=None)
        if best is None:
            return ""
        found, own = self.others[best].right, self.own.right
        if found < own + _BETTER or rate_interval(round(found * self.images), self.images)[0] < own:
            return ""
        return f"; with preprocess = {best!r}{self.of} it labels {found:.0%} of {self.images} rightly"

    @property
    def doubt(self) -> str:
        """Another preprocessing that labels as many or more, and clearly more or far less overconfidently; "" for none.

        Pixels of 0..255 for a network of 0..1 make logits 255 times as large: many labels stay, and the probabilities
        say nothing more. Pixels that somebody brought to another range are doubted for no less than that.
        """
        if self.of:
            return ""
        own = self.own
        as_good = {
            mode: found
            for mode, found in self.others.items()
            if found.right >= own.right
            and (found.right >= own.right + _NOTED or found.too_sure <= own.too_sure - _NOTED)
        }
        if not as_good:
            return ""
        mode = max(as_good, key=lambda one: (as_good[one].right, -as_good[one].too_sure))
        found = as_good[mode]
        return (
            f"under preprocess {mode!r} {found.right:.1%} of {self.images} known images are labelled rightly, at a "
            f"mean largest probability of {found.sure:.1%}, and as they are {own.right:.1%}, at {own.sure:.1%}; name "
            "it if the model was trained on such pixels"
        )


def tried(classifier: Adapted, pixels: np.ndarray, labels: np.ndarray, names: Sequence[str], rows: int) -> Tried:
    """Passes known images through a model under its own preprocessing and the named ones.

    Args:
        pixels: (N, H, W, C), as large as the model takes them: uint8, or floats of 0..255, 0..1 or -1..1, which the
            named ones are given as files have them. Of others nothing but the model's own is tried.
        labels: (N,) their classes.
    """
    forward = compiled(classifier.taken)

    def found(prepare: Preprocess, pixels: np.ndarray) -> _Found:
        parts = (pixels[start : start + rows] for start in range(0, len(pixels), rows))
        prepared = (keras.ops.convert_to_numpy(prepare(part)) for part in parts)
        logits = run_batches(forward, prepared, rows)["logits"].astype("float64")
        given = logits.argmax(axis=1)
        return _Found(given, float(np.mean(given == labels)), float(softmax(logits).max(axis=1).mean()))

    own = classifier.preprocess
    whole = in_files(pixels)
    modes = preprocessing_for(pixels.shape[-1]) if len(np.unique(labels)) > 1 else ()
    others = {} if whole is None else {
        mode: found(Preprocess(mode), whole) for mode in modes if whole is not pixels or mode != own.said
    }  # fmt: skip
    return Tried(
        found(own, pixels), {mode: one for mode, one in others.items() if not disagreement(one.given, labels, names)},
        len(labels), "" if whole is pixels else " of pixels of 0..255",
    )  # fmt: skip
