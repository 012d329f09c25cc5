"""A detector for other runtimes: the SavedModel as `kood run` publishes it, and every format that Keras exports."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import kood
from kood.attached import bring_layers_of, function_of, kept
from kood.data.copies import distinct
from kood.data.images import normalize
from kood.detector.formats import FORMATS, export
from kood.errors import UserError
from kood.serving.publishing import publish
from kood.serving.served import Served
from kood.text import clean

__all__ = ["write"]


def write(detector: Any, path: Path, format: str | None) -> None:
    """Writes a calibrated `Detector` for a runtime, see `Detector.export`."""
    ends = {"tf_saved_model": path.suffix, **{name: end for end, name in FORMATS.items()}}
    wanted = format or FORMATS.get(path.suffix.lower(), "tf_saved_model")
    if wanted not in ends:
        raise UserError(f"format = {wanted!r}: there is none; formats are {', '.join(ends)}")
    if path.suffix != ends[wanted]:
        raise UserError(f"{clean(path)}: a file of the format {wanted} must end in {ends[wanted]}")
    if format is None and wanted == "tf_saved_model" and path.suffix and not path.suffix[1:].isdecimal():
        raise UserError(f"{clean(path)}: which format is this? End it in {', '.join(FORMATS)}, or give format=...")
    if path.exists() or (wanted == "openvino" and path.with_suffix(".bin").exists()):
        raise UserError(f"{clean(path)}: there is something already; name another path")
    if detector.decision is None:
        raise UserError("the detector has no threshold yet; call calibrate(images) before export")
    if None in detector.image_shape:
        raise UserError("the model takes images of any size; give the detector image_shape=(height, width, channels)")
    bring_layers_of(detector.classifier)
    images, served = _pixels(detector), _served(detector)
    if wanted == "tf_saved_model":
        _saved_model(detector, path, images, served)
    elif detector.is_own:
        export(detector.classifier, served, path, check=normalize(images))
    else:
        export(detector.classifier.for_bytes(), served, path, check=images.astype(np.float32), pixels="0..255")


def _pixels(detector: Any) -> np.ndarray:
    """Pixels of 0..255 to compare on: those of calibration images."""
    some, (low, high) = np.asarray(detector.some), detector.range or (0.0, 255.0)
    if some.dtype != np.uint8 and not detector.takes_bytes:
        if missing := detector.ranges.lacks((low, high)):
            raise UserError(
                f"the detector was calibrated on pixels of {low:g} to {high:g}, and what is served are pixels of "
                f"0..255: make it with {missing} and calibrate it on pixels of 0..255"
            )
        some = (some + 1.0) * 127.5 if detector.is_own else some
    return np.clip(np.rint(some), 0, 255).astype(np.uint8)


def _served(detector: Any) -> Served:
    decision, scorer = detector.decision, detector.scorer
    seen = {use: distinct(found) for use, found in detector.digests.items()}
    return Served(
        scorer.name, tuple(detector.image_shape), list(detector.class_names), decision.accept, decision.scores,
        scorer.state, labels=decision.labels, by_class=decision.by_class, seen=seen,
        preprocess=function_of(detector.classifier), framing=detector.framing,
    )  # fmt: skip


def _saved_model(detector: Any, path: Path, images: np.ndarray, served: Served) -> None:
    outputs = detector.outputs(images)
    answers = detector.answers(outputs)
    model = detector.classifier if detector.is_own else detector.classifier.model
    facts = {"kood": kood.__version__, "attached": {"model": model.name, "notes": detector.told}}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "classifier.keras"
        kept(detector.classifier, file, path)
        expected = {
            "probabilities": answers.probabilities.astype(np.float32), "label": answers.label,
            "ood_score": answers.ood_score.astype(np.float32),
        }  # fmt: skip
        publish(file, path, served=served, images=images, expected=expected, facts=facts)
