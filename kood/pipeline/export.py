"""The last stage: the SavedModel."""

import functools
from pathlib import Path
from typing import Any

import keras
import numpy as np

import kood
from kood import specs
from kood.data.rules import STRETCHED, Framing
from kood.data.stored import read_digests
from kood.files import damaged, digest_array, digests
from kood.pipeline.attached import Attached
from kood.pipeline.classify import Classifier
from kood.pipeline.evaluation import Evaluation
from kood.pipeline.prepare import Data
from kood.pipeline.stage import Stage, Work
from kood.recipe import Recipe
from kood.serving.publishing import publish
from kood.serving.served import Served

__all__ = ["Export"]


class Export(Stage):
    """Publishes the SavedModel as the next integer version, if it answers as the Keras model does.

    What is published decides, not how it came about: a run that measures more and serves the same publishes nothing.

    Args:
        recipe: Of the cell.
        data: Its images.
        classifier: What is published.
        evaluation: What chose its score and set its threshold.
    """

    kind, version, is_shared = "export", 3, False

    def __init__(self, recipe: Recipe, data: Data, classifier: Classifier | Attached, evaluation: Evaluation):
        super().__init__(recipe)
        self.data, self.classifier, self.evaluation = data, classifier, evaluation

    def decides(self) -> dict[str, Any]:
        served = vars(self._served).copy()
        served |= vars(served.pop("framing"))
        # What is not given decides nothing.
        usual = {"preprocess": None, "resize": STRETCHED.resize, "antialias": STRETCHED.antialias}
        served = {name: value for name, value in served.items() if name not in usual or value != usual[name]}
        return {
            "format": 3, "classifier": self.classifier.key, "served": _hashed(served),
            "expected": _hashed(self.evaluation.arrays("parity")), "card": repr(self._card),
        }  # fmt: skip

    def uses(self) -> list[tuple[str, str]]:
        return [("scores", specs.name_of(self.evaluation.headline))]

    def make(self, folder: Path, work: Work) -> dict[str, Any]:
        version, expected = work.run.next_version(), self.evaluation.arrays("parity")
        made_with = {"backend": keras.backend.backend(), "keras": keras.__version__}
        with work.progress.bar(self.role):
            differences = publish(
                self.classifier.file(folder),
                work.run.folder / str(version),
                served=self._served,
                images=self.data.images("test").take(np.arange(len(expected["label"]))).images,
                expected=expected,
                facts={**self._card, "kood": kood.__version__, "environment": made_with},
            )
        return {"version": version, "differences": differences, "files": digests(work.run.folder / str(version))}

    def damage(self) -> str:
        published = self.folder.parents[1] / str(self.facts["version"])
        found = damaged(published, self.facts["files"])
        return f"a published model is damaged ({found})" if found else ""

    @functools.cached_property
    def _served(self) -> Served:
        data, serve, held = self.recipe.data, self.recipe.serve, self.evaluation.arrays("calibration")
        names = self.classifier.labelled(self.data.images("train")).class_names
        return Served(
            self.evaluation.headline, data.shape, list(names), serve.accept,
            held["scores"], self.evaluation.arrays("state") or None, serve.undecodable, held["labels"], serve.by_class,
            self._seen, Framing.of(data), self.classifier.function,
        )  # fmt: skip

    @property
    def _seen(self) -> dict[str, np.ndarray]:
        """Digests of the images that the model must not be calibrated or watched on, by what the run did with them."""
        used = {"trained": "train", "chosen": "validation", "calibrated": "calibration"}
        return {use: read_digests(self.data.folder, name) for use, name in used.items()}

    @property
    def _card(self) -> dict[str, Any]:
        """What the model card tells beside the threshold."""
        facts, train = self.evaluation.facts, self.data.facts["sets"]["train"]
        measured, threshold = facts["scores"][facts["headline_score"]], facts["threshold"]
        near, far = (
            {name: measured[name]["auroc"] for name in getattr(self.recipe.data, kind)} for kind in ("near", "far")
        )
        return {
            "recipe": self.recipe.name,
            **self.classifier.card,
            "trained_on": {key: train[key] for key in ("images", "sha256")},
            "accuracy": facts["id"]["accuracy"],
            "classes": facts["classes"],
            "test_images": facts["id"]["images"],
            "near": near,
            "far": far,
            "accepted": {
                "images": facts["id"]["images"],
                "rate": threshold["accepted_id_test"],
                "interval": threshold["accepted_id_test_interval"],
            },
            "threshold_warnings": threshold["warnings"],
            "warnings": [text for text in facts["warnings"] if text not in threshold["warnings"]],
        }


def _hashed(value: Any) -> Any:
    """A value with digests for its arrays, so that a fingerprint can be made of it."""
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), digest_array(value)]
    if isinstance(value, dict):
        return {key: _hashed(one) for key, one in value.items()}
    return value
