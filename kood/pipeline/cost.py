"""The stage that times the decision by each score, for the leaderboard."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kood.data.images import normalize
from kood.detector.measuring import Measuring
from kood.outputs import Outputs, at_once, forward_of, further_for
from kood.pipeline.classify import Classifier
from kood.pipeline.evaluation import Evaluation
from kood.pipeline.prepare import Rows
from kood.pipeline.stage import Stage
from kood.pipeline.work import Work
from kood.recipe import Recipe

__all__ = ["DecisionCost"]

#: A figure is the median of so many passes, after one that compiles.
ROUNDS = 5


class DecisionCost(Stage):
    """Milliseconds an image of each score that was measured: its forward passes and the score itself.

    Test images in one batch, the compiled passes and the score as an evaluation takes it. A measurement, which another
    machine does not repeat: it is made once.

    Args:
        recipe: Of the cell.
        data: Its images.
        classifier: What is measured.
        evaluation: By which scores.
    """

    kind, version, is_shared = "decision_cost", 1, False

    def __init__(self, recipe: Recipe, data: Rows, classifier: Classifier, evaluation: Evaluation):
        super().__init__(recipe)
        self.data, self.classifier, self.evaluation = data, classifier, evaluation

    def decides(self) -> dict[str, Any]:
        return {
            "classifier": self.classifier.key,
            "scores": list(self.evaluation.facts["scores"]),
            "images": self.data.digest("train", "validation", "test"),
            "batch_size": self.recipe.evaluate.batch_size,
        }

    def make(self, folder: Path, work: Work) -> dict[str, Any]:
        names, batch_size = list(self.evaluation.facts["scores"]), self.recipe.evaluate.batch_size
        with work.progress.bar(self.role, len(names), unit="score") as bar:
            rows, part = self.classifier.measured()
            measuring = Measuring(part, scores=names, batch_size=batch_size, key="evaluate.scores")
            measuring.fit_scores(rows.images("train"), rows.images("validation"))
            model = self.classifier.model()
            test = self.data.images("test").images
            images = normalize(np.asarray(test[: min(len(test), batch_size, at_once(test.shape[1:]))]))
            passes: dict[tuple[str, ...], tuple[float, Outputs]] = {}
            found = {}
            for done, (name, scorer) in enumerate(measuring.scorers.items(), start=1):
                further = tuple(further_for(model, [scorer]))
                if further not in passes:
                    passes[further] = _timed(forward_of(model, [name]), images)
                took, outputs = passes[further]
                scorer.place()
                found[name] = 1000.0 * (took + _timed(scorer, outputs)[0]) / len(images)
                bar.update(done)
        return {"milliseconds": found, "images": len(images)}


def _timed(call: Callable, given: Any) -> tuple[float, Any]:
    """Seconds of a call, its result read back, and the result."""
    took, result = [], None
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        result = keras.tree.map_structure(keras.ops.convert_to_numpy, call(given))
        took.append(time.perf_counter() - start)
    return statistics.median(took[1:]), result
