"""The last stage: the SavedModel."""

import contextlib
import functools
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np

import kood
from kood import specs
from kood.data.rules import Framing
from kood.data.stored import read_digests
from kood.errors import UserError
from kood.files import damaged, digest_array, digests, write_atomically
from kood.pipeline.attached import Attached
from kood.pipeline.classify import Classifier
from kood.pipeline.evaluation import Evaluation
from kood.pipeline.prepare import Data
from kood.pipeline.stage import Stage, Work
from kood.recipe import Recipe
from kood.runs import key_of
from kood.serving.client import versions
from kood.serving.extras import read_facts
from kood.serving.publishing import publish
from kood.serving.seen import DISTANCE, HASHES
from kood.serving.served import Served

__all__ = ["Export"]

#: In the stage's folder from before the version is in its place: what the stage says of it.
PUBLISHED = "published.json"


class Export(Stage):
    """Publishes the SavedModel as the next integer version, if it answers as the Keras model does.

    What is served decides, not how it came about nor what was measured of it: a run that measures more and serves the
    same publishes nothing.
    """

    kind, version, is_shared = "export", 3, False

    def __init__(self, recipe: Recipe, data: Data, classifier: Classifier | Attached, evaluation: Evaluation):
        super().__init__(recipe)
        self.data, self.classifier, self.evaluation = data, classifier, evaluation

    def decides(self) -> dict[str, Any]:
        served = vars(self._served).copy()
        served |= vars(served.pop("framing"))
        return {
            "format": 3, "classifier": self.classifier.key, "served": _hashed(served), "name": self.recipe.name,
            "expected": _hashed(self.evaluation.arrays("parity")),
        }  # fmt: skip

    def uses(self) -> list[tuple[str, str]]:
        return [("scores", specs.name_of(self.evaluation.headline))]

    def make(self, folder: Path, work: Work) -> dict[str, Any]:
        run, record = work.run, folder / PUBLISHED
        if record.exists():  # Of a process that was killed; its version may have come to its place.
            facts = json.loads(record.read_bytes())
            if not damaged(run.folder / str(facts["version"]), facts["files"]):
                return facts
        version, expected = run.next_version(), self.evaluation.arrays("parity")
        newest = next(reversed(versions(run.folder)), None)
        made_with = {"backend": keras.backend.backend(), "keras": keras.__version__}

        def note(beside: Path, differences: dict[str, float]) -> None:
            facts = {"version": version, "differences": differences, "files": digests(beside)}
            write_atomically(record, json.dumps(facts).encode())

        with work.progress.bar(self.role):
            publish(
                self.classifier.file(folder),
                run.folder / str(version),
                served=self._served,
                images=self.data.images("test").take(np.arange(len(expected["label"]))).images,
                expected=expected,
                facts={**self._card, "kood": kood.__version__, "environment": made_with, "fingerprint": key_of(folder)},
                before=note,
            )
        if newest is not None and "calibrated_from" in _told(newest):
            work.progress.say(
                f"{self.role}: version {version} has this run's own threshold again, no longer that which `kood "
                f"calibrate` gave version {newest.name}",
                style="yellow",
            )
        return json.loads(record.read_bytes())

    def damage(self) -> str:
        if self._followed_by:
            return ""
        found = damaged(self._run_folder / str(self.facts["version"]), self.facts["files"])
        return f"a published model is damaged ({found})" if found else ""

    def says(self) -> list[tuple[str, str]]:
        if not self._followed_by:
            return []
        told = f"version {self.facts['version']} was removed; version {self._followed_by}, calibrated from it, stays"
        return [(f"{self.role}: {told}", "")]

    @property
    def published(self) -> int:
        """The version that the stage published, or where that was removed the one that was calibrated from it."""
        return self._followed_by or self.facts["version"]

    @property
    def _run_folder(self) -> Path:
        return self.folder.parents[1]

    @property
    def _followed_by(self) -> int | None:
        """Where the version was removed, the newest that `kood calibrate` made of it."""
        if (self._run_folder / str(self.facts["version"])).exists():
            return None
        for one in reversed(versions(self._run_folder)):
            told = _told(one)
            if told.get("fingerprint") == self.key and "calibrated_from" in told:
                return int(one.name)
        return None

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
        seen = {use: read_digests(self.data.folder, name) for use, name in used.items()}
        if (hashes := self.data.hashes()) is not None:
            seen |= {HASHES: hashes, DISTANCE: np.array([self.recipe.data.id.near_copies])}
        return seen

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
            "calibration_groups": self.data.groups.get("calibration", {}).get("groups"),
            "threshold_warnings": threshold["warnings"],
            "warnings": [text for text in facts["warnings"] if text not in threshold["warnings"]],
        }


def _told(version: Path) -> dict[str, Any]:
    """What kood wrote of a version; nothing where it wrote none."""
    with contextlib.suppress(UserError):
        return read_facts(version)
    return {}


def _hashed(value: Any) -> Any:
    """A value with digests for its arrays, so that a fingerprint can be made of it."""
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), digest_array(value)]
    if isinstance(value, dict):
        return {key: _hashed(one) for key, one in value.items()}
    return value
