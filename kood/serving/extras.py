"""What lies beside a SavedModel in `assets.extra`: class names, facts, a model card, warm-up requests."""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kood.errors import UserError
from kood.serving.served import Served

__all__ = ["read_facts", "read_seen", "write_extras"]

#: The digests of the images that a version was made of; without pixels, and of no use but to know one again.
SEEN = "images.npz"

#: What `kood.json` says of every version.
NEEDED = {
    "accept", "antialias", "by_class", "calibration_images", "class_names", "ground", "groups", "image_shape", "resize",
    "score", "threshold", "undecodable",
}  # fmt: skip

#: What nobody here can know.
OF_A_STRANGER = "; which images a model was trained on that was trained elsewhere, kood cannot know"

#: What becomes of images of another shape, in words.
_RESIZED = {"stretch": "stretched", "crop": "cropped in the middle and resized", "pad": "padded and resized"}

#: Rows of the requests that TF Serving warms up with; 1 is what is asked most, 32 compiles nothing of its own.
WARM_UP_ROWS = (1, 32)


def read_facts(version: Path) -> dict[str, Any]:
    """What kood wrote of a SavedModel: the content of `assets.extra/kood.json`.

    Raises:
        UserError: kood did not write this SavedModel, or the file is damaged.
    """
    file = version / "assets.extra" / "kood.json"
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); `kood run` writes it beside each SavedModel") from error
    if not isinstance(facts, dict) or not facts.keys() >= NEEDED:
        raise UserError(f"{file}: this is not what this version of kood writes there; run the recipe again")
    return facts


def read_seen(version: Path) -> dict[str, np.ndarray]:
    """The digests of the images that a version was trained, chosen and calibrated on, as `Served.seen` has them.

    Raises:
        UserError: the file is damaged or gone.
    """
    file = version / "assets.extra" / SEEN
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} cannot be read ({error}); run the recipe again", exit_code=1) from error


def write_extras(folder: Path, name: str, served: Served, facts: Mapping[str, Any]) -> None:
    """Writes `assets.extra` of a SavedModel.

    Args:
        folder: The SavedModel.
        name: The name that TF Serving knows the model by.
        served: What the graph holds.
        facts: What else is known: `accuracy`, `trained_on`, `near`, `far`, `accepted`, `warnings`, ... (JSON).
    """
    extra = folder / "assets.extra"
    extra.mkdir(exist_ok=True)
    known = {
        **facts,
        "name": name,
        "score": served.score,
        "image_shape": list(served.image_shape),
        **vars(served.framing),
        "class_names": served.names,
        "accept": served.accept,
        "threshold": served.threshold,
        "by_class": served.by_class,
        "groups": [vars(group) for group in served.decision.groups],
        "calibration_images": len(served.calibration),
        "undecodable": served.undecodable,
    }
    np.savez_compressed(extra / SEEN, allow_pickle=False, **served.seen)
    (extra / "labels.txt").write_text("".join(f"{label}\n" for label in served.names), encoding="utf-8")
    (extra / "kood.json").write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (extra / "model_card.md").write_text(_card(known), encoding="utf-8")
    _write_warm_up(extra / "tf_serving_warmup_requests", name, served.image_shape)


def _write_warm_up(file: Path, name: str, image_shape: tuple[int, int, int]) -> None:
    import tensorflow as tf
    from PIL import Image
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    height, width, channels = image_shape
    grey = io.BytesIO()
    Image.new("L" if channels == 1 else "RGB", (width, height), 128 if channels == 1 else (128,) * 3).save(grey, "PNG")
    with tf.io.TFRecordWriter(str(file)) as writer:
        for rows in WARM_UP_ROWS:
            for signature, key, value in (
                ("serving_default", "images", tf.fill((rows, *image_shape), tf.constant(128, tf.uint8))),
                ("encoded", "image_bytes", tf.fill((rows,), grey.getvalue())),
            ):
                request = predict_pb2.PredictRequest()
                request.model_spec.name = name
                request.model_spec.signature_name = signature
                request.inputs[key].CopyFrom(tf.make_tensor_proto(value.numpy()))
                log = prediction_log_pb2.PredictLog(request=request)
                writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())


def _card(facts: Mapping[str, Any]) -> str:
    percent = "{:.1f}%".format
    height, width, channels = facts["image_shape"]
    lines = [
        f"# {facts['name']}",
        "",
        f"An image classifier with a reject option, made by kood {facts.get('kood', '')}".rstrip() + ".",
        "",
        "## Intended use",
        "",
        f"Labelling images as one of {len(facts['class_names'])} classes, and flagging those of no such class. Images "
        f"are {_RESIZED[facts['resize']]} to {height} x {width} pixels, {'grey' if channels == 1 else 'colour'}"
        f"{'' if facts['antialias'] else ', without antialiasing'}. "
        "Flagged images want a person's look or another model; the label of one is not to be relied on. What it was "
        "not measured on, it may not catch.",
        "",
        "Classes: " + ", ".join(facts["class_names"]),
        "",
        "## Threshold",
        "",
        f"An image is flagged where its {facts['score']} score is above {_thresholds(facts)}. By split conformal "
        f"prediction on {facts['calibration_images']:,} images, one like them is accepted with probability at least "
        f"{percent(100 * facts['accept'])}{_for_each(facts)}. Its "
        f"p-value is at most {1 - facts['accept']:.4g} where it is flagged. This holds for images that the model was "
        f"neither trained nor calibrated on{OF_A_STRANGER if 'attached' in facts else ''}.",
    ]
    accepted = facts.get("accepted")
    if accepted:
        low, high = accepted["interval"]
        lines += [
            "",
            f"Of {accepted['images']:,} images that the threshold was not set on, {percent(100 * accepted['rate'])} "
            f"were accepted (95% interval {percent(100 * low)} to {percent(100 * high)}).",
        ]
    lines += ["", "## Figures", ""]
    if "accuracy" in facts:
        lines.append(f"- Accuracy on {facts['test_images']:,} test images: {percent(100 * facts['accuracy'])}")
    for kind in ("near", "far"):
        lines += [
            f"- AUROC, {kind} out-of-distribution set {name}: {percent(100 * auroc)}"
            for name, auroc in facts.get(kind, {}).items()
        ]
    attached, made_with = facts.get("attached"), facts.get("trained_on")
    lines += ["", "## Classifier" if attached else "## Training", ""]
    if attached:
        lines.append(f"- {attached['model']}, trained before and elsewhere")
        lines += [f"- {note}" for note in attached["notes"]]
    if made_with:
        images = f"{made_with['images']:,} images, SHA-256 {made_with['sha256']}"
        lines.append(f"- Scores that are fitted, on {images}" if attached else f"- {images}")
    lines += [f"- {key}: {value}" for key, value in facts.get("environment", {}).items()]
    warnings = [*facts.get("threshold_warnings", []), *facts.get("warnings", [])]
    lines += [f"- Warning: {' '.join(text.split())}" for text in warnings]
    return "\n".join(lines) + "\n"


def _for_each(facts: Mapping[str, Any]) -> str:
    """For whom the promise holds, where thresholds are by class."""
    if not facts["by_class"] or len(facts["groups"]) == 1:
        return ""
    shares = any(len(group["classes"]) > 1 for group in facts["groups"])
    together = "; of classes that share a threshold, for all of them together" if shares else ""
    return f", whichever class it is labelled as{together}"


def _thresholds(facts: Mapping[str, Any]) -> str:
    """The threshold, or that of each class, in words."""
    groups = facts["groups"]
    if len(groups) == 1:
        return f"{groups[0]['threshold']:.6g}"
    names = facts["class_names"]
    each = (f"{' and '.join(names[k] for k in group['classes'])} {group['threshold']:.6g}" for group in groups)
    return f"the threshold of the class that it is labelled as ({', '.join(each)})"
