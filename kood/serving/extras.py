"""What lies beside a SavedModel in `assets.extra`: class names, facts, a model card, warm-up requests."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kood.errors import UserError
from kood.files import BROKEN
from kood.serving.served import Served
from kood.template import filled
from kood.text import some_of

__all__ = ["read_facts", "read_seen", "write_extras"]

#: The digests of the images that a version was made of; without pixels, and of no use but to know one again.
SEEN = "images.npz"

#: What `kood.json` says of every version.
NEEDED = {
    "accept", "antialias", "by_class", "calibration_images", "class_names", "ground", "groups", "image_shape", "resize",
    "score", "threshold", "undecodable",
}  # fmt: skip

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
    except BROKEN as error:
        raise UserError(f"{file} cannot be read ({error}); run the recipe again", exit_code=1) from error


def write_extras(folder: Path, name: str, served: Served, facts: Mapping[str, Any]) -> None:
    """Writes `assets.extra` of a SavedModel.

    Args:
        name: The name that TF Serving knows the model by.
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
    return filled(
        "kood.serving", "model_card.md", {"percent": lambda share: f"{100 * share:.1f}%"},
        facts=facts, attached=facts.get("attached"), threshold=_thresholds(facts),
        shares=any(len(group["classes"]) > 1 for group in facts["groups"]),
    )  # fmt: skip


def _thresholds(facts: Mapping[str, Any]) -> str:
    """The threshold, or that of each class, in words."""
    groups = facts["groups"]
    if len(groups) == 1:
        return f"{groups[0]['threshold']:.6g}"
    names = facts["class_names"]
    each = (f"{some_of(names[k] for k in group['classes'])}: {group['threshold']:.6g}" for group in groups)
    return f"the threshold of the class that it is labelled as ({some_of(each, most=20)})"
