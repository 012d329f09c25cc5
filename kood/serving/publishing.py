"""Exports a classifier, checks the result against it, and only then gives it its version number."""

import contextlib
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kood.data.deferred import Images
from kood.errors import UserError
from kood.files import folder_to_disk
from kood.process import run_on_tensorflow
from kood.serving.client import saved_graph, strange_operations
from kood.serving.extras import read_facts, write_extras
from kood.serving.served import Served

__all__ = ["publish", "publish_calibrated", "write_single_signature"]

#: Largest difference from the Keras model that float32 arithmetic on another backend explains; and what that of layers
#: in half precision does, about ten roundings.
TOLERANCE = 1e-4
HALF = {"bfloat16": 5e-2, "float16": 1e-2}
#: Pixels that it is asked about at once, 256 images of 64 x 64 or less; and fewest images.
PIXELS, FEWEST = 2**20, 8


def publish(
    classifier_file: Path,
    version_folder: Path,
    *,
    served: Served,
    images: Images,
    expected: dict[str, np.ndarray],
    facts: Mapping[str, Any] | None = None,
    before: Callable[[Path, dict[str, float]], None] | None = None,
) -> dict[str, float]:
    """Writes a SavedModel that a polling TF Serving never sees half of.

    It is written beside its place, loaded back, asked about held-out images, compared with what the Keras model said
    of them, and renamed into place.

    Args:
        classifier_file: The trained classifier, a `.keras` file of any backend.
        version_folder: `saved/<recipe>/<integer>`.
        images: uint8 (N, H, W, C) to compare on.
        expected: {"probabilities": (N, K), "label": (N,), "ood_score": (N,)} of the Keras model.
        facts: For the model card and `kood.json`, see `write_extras`.
        before: Called once it is whole, before it is renamed, with its folder and what is returned.

    Returns:
        {output: largest absolute difference}, and "images": N.

    Raises:
        UserError: the export failed, disagrees, or needs more than its graph; nothing is published then.
    """
    with _written(classifier_file, version_folder, served, facts or {}) as beside:
        # Functions of Python would answer here: TensorFlow keeps them in this process, and in no file.
        if strange := strange_operations(beside):
            raise UserError(
                f"{version_folder}: its graph holds {', '.join(strange)}, which reaches beyond it, to Python or files; "
                "write preprocess and layers with keras.ops; it is not published"
            )
        differences = _compare(beside, images, expected, served, _tolerance(classifier_file))
        if before is not None:
            before(beside, differences)
    return differences


def publish_calibrated(version: Path, version_folder: Path, served: Served, facts: Mapping[str, Any]) -> None:
    """Publishes the classifier and the score of a version again under another calibration, that of `served`.

    What `facts` do not name stays as the old version has it; the others are as for `publish`.

    Raises:
        UserError: kood did not write the old version.
    """
    known = {**read_facts(version), **facts, "calibration_groups": None, "threshold_warnings": []}
    # What the old threshold did to each class.
    gone = ("accepted", "accepted_interval")
    known["classes"] = [{k: v for k, v in one.items() if k not in gone} for one in known.get("classes", [])]
    with _written(version, version_folder, served, known):
        pass


@contextlib.contextmanager
def _written(source: Path, folder: Path, served: Served, facts: Mapping[str, Any]) -> Iterator[Path]:
    """A version beside its place, which takes its place at the end, or goes where anything fails.

    Its name is the same in each process, so that the next one removes what a killed one left.
    """
    beside = folder.parent / f".export-{folder.name}"
    # Answers name their version; 0 where the folder is not named by a number.
    version = int(folder.name) if folder.name.isdecimal() else 0
    shutil.rmtree(beside, ignore_errors=True)
    try:
        _export(source, beside, served, version)
        write_extras(beside, folder.resolve().parent.name, served, facts)
        yield beside
        folder_to_disk(beside)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_single_signature(version: Path, folder: Path, signature: str = "normalized") -> None:
    """Copies a SavedModel so that one of its signatures is `serving_default` and the only one.

    For runtimes that read nothing else, such as OpenVINO, which also lacks the operation that resizes images.

    Raises:
        UserError: there is something at `folder`, or no such signature.
    """
    if folder.exists():
        raise UserError(f"{folder}: there is something already; name another folder")
    graph = saved_graph(version)
    signatures = graph.meta_graphs[0].signature_def
    if signature not in signatures:
        known = ", ".join(sorted(name for name in signatures if not name.startswith("__")))
        raise UserError(f"{version}: there is no signature {signature}; there are {known}")
    chosen = type(signatures[signature])()
    chosen.CopyFrom(signatures[signature])
    for name in list(signatures):
        del signatures[name]
    signatures["serving_default"].CopyFrom(chosen)
    # From this TensorFlow's Python would take the signatures that are gone.
    graph.meta_graphs[0].ClearField("object_graph_def")
    shutil.copytree(version, folder)
    (folder / "saved_model.pb").write_bytes(graph.SerializeToString())


def _export(source: Path, folder: Path, served: Served, version: int) -> None:
    """Writes the SavedModel of a `.keras` file, or of another SavedModel of kood's under another calibration."""
    import keras

    if keras.backend.backend() == "tensorflow":
        from kood.serving.export import export

        export(source, folder, served, version)
        return
    # Keras's own export writes JAX's graphs so that TensorFlow needs XLA to read them, and torch's not at all (3.15).
    parts = folder.with_name(f"{folder.name}.npz")
    try:
        served.write(parts)
        run_on_tensorflow(
            "kood.serving.export", source, folder, parts, version,
            failed=f"{folder.parent}: the SavedModel could not be written",
        )  # fmt: skip
    finally:
        parts.unlink(missing_ok=True)


def _tolerance(classifier_file: Path) -> float:
    """How far the answers may differ, by the precisions that the file's layers name."""
    with zipfile.ZipFile(classifier_file) as archive:
        config = archive.read("config.json").decode()
    return next((most for dtype, most in HALF.items() if re.search(f'"(mixed_)?{dtype}"', config)), TOLERANCE)


def _compare(
    folder: Path, images: Images, expected: dict[str, np.ndarray], served: Served, tolerance: float
) -> dict[str, float]:
    import tensorflow as tf

    from kood.parity import agreed  # Brings Keras, which a new threshold needs later, and in silence.

    serve = tf.saved_model.load(str(folder)).signatures["serving_default"]
    rows = max(FEWEST, PIXELS // (images.shape[1] * images.shape[2]))
    parts = [serve(images=tf.constant(images[start : start + rows])) for start in range(0, len(images), rows)]
    got = {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}
    who = f"{folder.parent}: the SavedModel"
    return agreed(got, expected, served.decision, tolerance, who=who, undone="published")
