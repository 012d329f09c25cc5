"""What is kept of images while they pass a classifier."""

from dataclasses import dataclass, field

import numpy as np

from kood.outputs import Outputs

__all__ = ["Known", "Passed"]


@dataclass
class Passed:
    """What became of images that passed the classifier.

    Attributes:
        outputs: Of those that could be read.
        labels: (N,) their classes, where they have any.
        files: The N files they come from, of files.
        unreadable: A message for each file that could not be read.
    """

    outputs: Outputs
    labels: np.ndarray | None = None
    files: list[str] | None = None
    unreadable: list[str] = field(default_factory=list)


@dataclass
class Known:
    """What is kept of known images.

    Attributes:
        digests: Of the pixels of each, in order.
        low: The smallest of the numbers that the model sees of them, where no preprocessing is given.
        high: The largest.
        some: The first few.
    """

    digests: list[bytes] = field(default_factory=list)
    low: float = np.inf
    high: float = -np.inf
    some: list[np.ndarray] = field(default_factory=list)

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest number."""
        return self.low, self.high
