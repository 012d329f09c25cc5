"""The last stage: the SavedModel."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np

import kood
from kood.data.rules import ground_colour
from kood.data.stored import read_digests
from kood.pipeline.work import Work
from kood.runs import Stage, damaged, digests
from kood.serving.publishing import publish
from kood.serving.served import Served

__all__ = ["export_model"]


def export_model(work: Work) -> Stage:
    """Publishes the SavedModel as the next integer version, if it answers as the Keras model does.

    What is published decides, not how it came about: a run that measures more and serves the same publishes nothing.
    """
    evaluated, classifier = work.stages["evaluate"], work.stages["classifier"]
    with np.load(evaluated.folder / "parity.npz", allow_pickle=False) as arrays:
        expected = dict(arrays)
    with np.load(evaluated.folder / "calibration.npz", allow_pickle=False) as arrays:
        held = dict(arrays)
    served = Served(
        evaluated.facts["headline_score"], work.recipe.data.shape, list(work.data("train").class_names),
        work.recipe.serve.accept, held["scores"], _state(evaluated.folder), work.recipe.serve.undecodable,
        held["labels"], work.recipe.serve.by_class, _seen(work), ground_colour(work.recipe.data.ground),
    )  # fmt: skip
    card = _card(work)

    def make(_: Path) -> dict[str, Any]:
        version = work.run.next_version()
        with work.progress.stage("export"):
            differences = publish(
                classifier.folder / "classifier.keras",
                work.run.folder / str(version),
                served=served,
                images=np.asarray(work.data("test").images[: len(expected["label"])]),
                expected=expected,
                facts={**card, **_made_with()},
            )
        return {"version": version, "differences": differences, "files": digests(work.run.folder / str(version))}

    decides = {
        "format": 3, "classifier": classifier.key, "served": _hashed(vars(served)), "expected": _hashed(expected),
        "card": repr(card),
    }  # fmt: skip
    stage = work.stage("export", decides, make, awaited=False)
    damage = damaged(work.run.folder / str(stage.facts["version"]), stage.facts["files"])
    if damage:
        work.run.on_damage(f"export: a published model is damaged ({damage}) and is published as the next version")
        shutil.rmtree(stage.folder)
        stage = work.stage("export", decides, make, awaited=False)
    return stage


def _hashed(value: Any) -> Any:
    """A value with digests for its arrays, so that a fingerprint can be made of it."""
    if isinstance(value, np.ndarray):
        content = hashlib.sha256(np.ascontiguousarray(value).data).hexdigest()
        return [str(value.dtype), list(value.shape), content]
    if isinstance(value, dict):
        return {key: _hashed(one) for key, one in value.items()}
    return value


def _state(folder: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a fitted headline score; None for a plain one."""
    file = folder / "state.npz"
    if not file.exists():
        return None
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def _seen(work: Work) -> dict[str, np.ndarray]:
    """Digests of the images that the model must not be calibrated or watched on, by what the run did with them."""
    used = {"trained": "train", "chosen": "validation", "calibrated": "calibration"}
    return {use: read_digests(work.stages["data"].folder, name) for use, name in used.items()}


def _card(work: Work) -> dict[str, Any]:
    """What the model card tells beside the threshold."""
    facts, train = work.stages["evaluate"].facts, work.stages["data"].facts["sets"]["train"]
    measured, threshold = facts["scores"][facts["headline_score"]], facts["threshold"]
    near, far = (
        {name: measured[name]["auroc"] for name in getattr(work.recipe.data, kind)} for kind in ("near", "far")
    )
    return {
        "recipe": work.recipe.name,
        "head": work.recipe.head.name,
        "backbone": work.recipe.classifier.backbone,
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


def _made_with() -> dict[str, Any]:
    """What the model card tells of the programs that made it."""
    return {
        "kood": kood.__version__,
        "environment": {"backend": keras.backend.backend(), "keras": keras.__version__},
    }
