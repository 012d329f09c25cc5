"""The judge: a classifier trained on real images alone, asked which classes are close and what a sample shows."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import ops

from kood.evaluate import run_over, softmax
from kood.pipeline.classify import train_classifier
from kood.pipeline.work import Work
from kood.recipe import Recipe
from kood.recipe.outlier_sections import Outliers, PureSamples
from kood.recipe.sections import Head
from kood.runs import Stage
from kood.steps import compiled, gradient

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
        self._classifier = classifier
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
        return self.opinions(images)[0]

    def features(self, images: np.ndarray) -> np.ndarray:
        """The features under the head.

        Args:
            images: uint8 (N, H, W, C).

        Returns:
            (N, D) float32.
        """
        return self.opinions(images)[1]

    def energy_gradient(self) -> Callable:
        """The gradient of the energy -logsumexp(logits) by the images: where to go to leave what the judge knows.

        Returns:
            A function: (B, H, W, C) float32 in [-1, 1] -> the same shape.
        """
        return gradient(self._classifier, lambda outputs: -ops.logsumexp(outputs["logits"], axis=-1))

    def opinions(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Posteriors and features, from one forward pass.

        Args:
            images: uint8 (N, H, W, C).

        Returns:
            (N, K) float64 and (N, D) float32.
        """
        outputs = run_over(self._forward, np.asarray(images), self._batch_size)
        return softmax(outputs["logits"].astype("float64")), outputs["features"]
