"""Exports a classifier, checks the result against it, and only then gives it its version number."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np

from kood.errors import UserError

__all__ = ["publish"]

#: Largest difference from the Keras model that float32 arithmetic on another backend explains.
TOLERANCE = 1e-4


def publish(
    classifier_file: Path,
    version_folder: Path,
    *,
    score: str,
    state_file: Path | None,
    threshold: float,
    image_shape: tuple[int, int, int],
    class_names: list[str],
    images: np.ndarray,
    expected: dict[str, np.ndarray],
) -> dict[str, float]:
    """Writes a SavedModel that a polling TF Serving never sees half of.

    It is written beside its place, loaded back, asked about held-out images, compared with what the Keras model said
    of them, and renamed into place.

    Args:
        classifier_file: The trained classifier, a `.keras` file of any backend.
        version_folder: `saved/<recipe>/<integer>`.
        score: Name of the score.
        state_file: `.npz` with the arrays of a fitted score, or None.
        threshold: Above it an image is flagged.
        image_shape: (H, W, C) that the classifier was trained on.
        class_names: Written to `assets.extra/labels.txt`, one a line, in the order of the labels.
        images: uint8 (N, H, W, C) to compare on.
        expected: {"probabilities": (N, K), "label": (N,), "ood_score": (N,)} of the Keras model.

    Returns:
        {output: largest absolute difference}, and "images": N.

    Raises:
        UserError: the export failed or disagrees; nothing is published then.
    """
    beside = version_folder.parent / f".export-{version_folder.name}-{os.getpid()}"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        _export(classifier_file, beside, score, state_file, threshold, image_shape)
        extra = beside / "assets.extra"
        extra.mkdir(exist_ok=True)
        names = [" ".join(str(name).split()) for name in class_names]
        (extra / "labels.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        differences = _compare(beside, images, expected, threshold)
        beside.rename(version_folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return differences


def _export(classifier_file, folder, score, state_file, threshold, image_shape) -> None:
    if keras.backend.backend() == "tensorflow":
        from kood.serving.export import write_saved_model

        state = None
        if state_file is not None:
            with np.load(state_file, allow_pickle=False) as arrays:
                state = dict(arrays)
        classifier = keras.saving.load_model(classifier_file, compile=False)
        write_saved_model(classifier, folder, score=score, state=state, threshold=threshold, image_shape=image_shape)
        return
    spec = folder.with_name(folder.name + ".json")
    try:
        spec.write_text(
            json.dumps(
                {
                    "classifier": str(classifier_file.resolve()),
                    "folder": str(folder.resolve()),
                    "score": score,
                    "state": str(state_file.resolve()) if state_file else None,
                    "threshold": threshold,
                    "image_shape": list(image_shape),
                }
            )
        )
        environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
        # The training process may hold the accelerator's memory; the export needs none of it.
        environment["CUDA_VISIBLE_DEVICES"] = "-1"
        result = subprocess.run(
            [sys.executable, "-m", "kood.serving.export", str(spec)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        spec.unlink(missing_ok=True)
    if result.returncode:
        tail = "\n".join(result.stderr.strip().splitlines()[-5:])
        raise UserError(f"{folder.parent}: the SavedModel could not be written:\n{tail}", exit_code=1)


def _compare(folder: Path, images: np.ndarray, expected: dict[str, np.ndarray], threshold: float) -> dict[str, float]:
    import tensorflow as tf

    serve = tf.saved_model.load(str(folder)).signatures["serving_default"]
    got = {name: value.numpy() for name, value in serve(images=tf.constant(images)).items()}
    differences = {
        name: float(np.max(np.abs(got[name] - expected[name]), initial=0.0)) for name in ("probabilities", "ood_score")
    }
    spread = float(np.max(np.abs(expected["ood_score"]), initial=1.0))
    # A tie between two classes, or a score on the threshold, may fall either way within the tolerance.
    top = np.sort(expected["probabilities"], axis=1)
    clear = top[:, -1] - top[:, -2] > TOLERANCE if top.shape[1] > 1 else np.full(len(top), True)
    sure = np.abs(expected["ood_score"] - threshold) > TOLERANCE * spread
    wrong = {
        "probabilities": differences["probabilities"] > TOLERANCE,
        "ood_score": differences["ood_score"] > TOLERANCE * spread,
        "label": bool(np.any(got["label"][clear] != expected["label"][clear])),
        "is_ood": bool(np.any(got["is_ood"][sure] != (expected["ood_score"] > threshold)[sure])),
    }
    if any(wrong.values()):
        outputs = ", ".join(name for name, value in wrong.items() if value)
        raise UserError(
            f"{folder.parent}: the SavedModel does not answer as the Keras model does ({outputs}; largest differences "
            f"{differences}); it was not published",
            exit_code=1,
        )
    return {**differences, "images": len(images)}
