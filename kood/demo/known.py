"""The images that a run's classifier has learned from, and which of them are nearest to another one."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kood.attached import Adapted, function_of, opened
from kood.classifier import Classifier
from kood.data.deferred import Images
from kood.data.image_set import ImageSet
from kood.data.stored import read_images
from kood.outputs import at_once, outputs_of
from kood.runs import Run

__all__ = ["Known", "Near", "known_of"]

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
        UserError: the classifier's file cannot be opened.
        OSError: another one cannot be read.
    """
    stages = Run(run)
    data = next(iter(stages.finished("data")), None)
    exports = stages.finished("export")
    # A calibration publishes the same classifier under another number.
    exported = next((one for one in exports if one.facts["version"] == version), next(iter(exports), None))
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
