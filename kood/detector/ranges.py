"""Whether pixels are in the range that a classifier takes."""

import functools

import keras
import numpy as np
from keras import ops

from kood.attached import PREPROCESSING, Adapted, Wanted, check_range, not_of, other_range, outside, usual_range, wanted
from kood.attached.adapted import ROUNDING
from kood.classifier import Classifier
from kood.data.copies import image_digests

__all__ = ["Ranges"]

#: What a preprocessing takes.
_BYTES = Wanted(0.0, 255.0, "its preprocessing")


class Ranges:
    """The ranges of a classifier's pixels as a user gives them.

    Args:
        classifier: kood's own, or one behind `Adapted`.
        takes_bytes: Whether pixels of 0..255 are given whatever the model takes, since a preprocessing stands between.
    """

    def __init__(self, classifier: keras.Model, takes_bytes: bool):
        self.classifier, self.takes_bytes = classifier, takes_bytes

    def span(self, pixels: np.ndarray) -> tuple[float, float]:
        """The smallest and the largest of the numbers that the model sees of them, where no preprocessing is given."""
        low, high = float(pixels.min()), float(pixels.max())
        if pixels.dtype == np.uint8 and isinstance(self.classifier, Classifier):
            return low / 127.5 - 1.0, high / 127.5 - 1.0
        return low, high

    def digests(self, pixels: np.ndarray) -> np.ndarray:
        """Digests (N, 16) of images, the same where uint8 and floats are the same image to the classifier."""
        if pixels.dtype != np.uint8 and isinstance(self.classifier, Classifier) and not self.takes_bytes:
            pixels = 127.5 * pixels + 127.5
            near = np.rint(pixels)
            pixels = np.where(np.abs(pixels - near) < ROUNDING, near, pixels)
        return image_digests(pixels)

    def wrong(self, pixels: np.ndarray) -> str:
        """What speaks against known images' pixels being what the model takes, a sentence; "" where nothing does."""
        is_bytes = pixels.dtype == np.uint8 or self.takes_bytes
        # What is prepared already would be prepared twice.
        if self.takes_bytes and (wrong := not_of(_BYTES, pixels, ", as they are in files, or leave preprocess out")):
            return wrong
        if not isinstance(self.classifier, Adapted):
            return "" if is_bytes else check_range(self.classifier, pixels)
        given = ops.convert_to_numpy(self.classifier.preprocess(pixels.astype("float32"))) if is_bytes else pixels
        return check_range(self.classifier.model, given)

    def left(self, pixels: np.ndarray, known: tuple[float, float] | None) -> str:
        """What speaks against any pixels: what the model is made for, and the span of known images, where there is one.

        A sentence; "" where nothing does.
        """
        is_bytes = pixels.dtype == np.uint8
        if is_bytes and not (isinstance(self.classifier, Adapted) and self.classifier.preprocess.said == "none"):
            return ""  # They are brought to what the model takes.
        span = self.span(pixels)
        left = outside(self._made_for, span) if self._made_for is not None else ""
        if left or known is None:
            return left
        return other_range(span, known, is_bytes or np.array_equal(pixels, np.rint(pixels)))

    def lacks(self, span: tuple[float, float]) -> str:
        """The argument that would say how pixels of such a span, as a user gives them, are made of those of 0..255 that
        files have; "" where they are these, or what kood's own classifiers take."""
        if self.takes_bytes or not isinstance(self.classifier, Adapted):
            return ""
        found = usual_range(span)
        return "" if found == "0..255" else f"preprocess={repr(found) if found in PREPROCESSING else '...'}"

    @property
    def may_be_others(self) -> bool:
        """Whether pixels of 0..255 go to the model as they are, and its layers do not say that they are for these."""
        is_plain = isinstance(self.classifier, Adapted) and self.classifier.preprocess.said == "none"
        return is_plain and not self.takes_bytes and self._made_for is None

    @functools.cached_property
    def _made_for(self) -> Wanted | None:
        """The range that pixels as a user gives them have to be of, None where nothing says."""
        if self.takes_bytes:
            return _BYTES
        return wanted(self.classifier.model if isinstance(self.classifier, Adapted) else self.classifier)
