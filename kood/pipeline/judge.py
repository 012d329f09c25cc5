"""The judge: a classifier trained on real images alone, asked which classes are close and what a sample shows."""

from pathlib import Path

import keras
import numpy as np

from kood.data.images import normalize
from kood.pipeline.classify import train_classifier
from kood.pipeline.work import Work
from kood.recipe import Recipe
from kood.recipe.outlier_sections import Outliers, PureSamples
from kood.recipe.sections import Head
from kood.runs import Stage
from kood.steps import compiled

__all__ = ["Judge", "judge_recipe", "train_judge"]


def judge_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the judge: the same classifier, with head softmax, no outliers and no samples to train on.

    It is the cell "softmax, none" of a matrix, to the letter, so that the two are one training.
    """
    return recipe.model_copy(update={"head": Head(), "outliers": Outliers(), "pure_samples": PureSamples()})


def train_judge(work: Work) -> Stage:
    """Trains the judge, where no cell of the run has trained this classifier already."""
    inner = work.beside(judge_recipe(work.recipe))
    work.stages["judge"] = train_classifier(inner, [], shown="judge")
    return work.stages["judge"]


class Judge:
    """What a trained softmax classifier says of images.

    Args:
        classifier: A `Classifier`, or the file that holds one.
        batch_size: Images a forward pass; every batch is filled up to this size, so that one shape is compiled.
    """

    def __init__(self, classifier: keras.Model | Path, batch_size: int = 256):
        if isinstance(classifier, Path):
            classifier = keras.saving.load_model(classifier, compile=False)
        self._forward = compiled(classifier)
        self._batch_size = batch_size

    @classmethod
    def of(cls, work: Work) -> "Judge":
        """The judge that `train_judge` trained."""
        return cls(work.stages["judge"].folder / "classifier.keras", work.recipe.evaluate.batch_size)

    def posteriors(self, images: np.ndarray) -> np.ndarray:
        """The probability of each class: softmax of the logits.

        Args:
            images: uint8 (N, H, W, C).

        Returns:
            (N, K) float64, rows sum to 1.
        """
        logits = self._run(images, "logits").astype("float64")
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)

    def features(self, images: np.ndarray) -> np.ndarray:
        """The features under the head.

        Args:
            images: uint8 (N, H, W, C).

        Returns:
            (N, D) float32.
        """
        return self._run(images, "features")

    def _run(self, images: np.ndarray, output: str) -> np.ndarray:
        parts = []
        for start in range(0, len(images), self._batch_size):
            pixels = normalize(np.asarray(images[start : start + self._batch_size]))
            filled = np.zeros((self._batch_size, *pixels.shape[1:]), "float32")
            filled[: len(pixels)] = pixels
            parts.append(keras.ops.convert_to_numpy(self._forward(filled)[output])[: len(pixels)])
        return np.concatenate(parts)
