"""A detector in one file: a zip of its classifier, its decision, and what tells the images that it was made of."""

import json
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import kood
from kood.attached import function_of, kept, opened
from kood.conformal import Calibration
from kood.detector.choosing import Choice
from kood.errors import UserError
from kood.files import BROKEN
from kood.scorer import Scorer
from kood.text import clean

__all__ = ["read", "write"]

CLASSIFIER, FACTS, ARRAYS = "classifier.keras", "detector.json", "arrays.npz"
FORMAT = 2
#: Attributes that are kept as they are.
PLAIN = ("takes_bytes", "doubts", "chooses", "every", "named")
#: What files of other kinds end in, which nothing could tell from a detector by their names.
OTHERS = (".keras", ".h5", ".hdf5", ".pb", ".onnx", ".tflite", ".xml", ".pt", ".pth")


def write(detector: Any, path: Path) -> None:
    """Writes a `Detector` to a file, which appears whole or not at all.

    Raises:
        UserError: the name is one of another kind of file; it cannot be written there; the classifier cannot be saved,
            or holds Python code, which `read` would not run.
    """
    if path.suffix.lower() in OTHERS or path.name.isdecimal() or path.is_dir():
        other = "how a SavedModel is named" if path.name.isdecimal() else "the name of another format"
        raise UserError(
            f"{clean(path)}: this is {'a folder' if path.is_dir() else other}; give a name that ends in .kood, or call "
            "export for runtimes"
        )
    decision, choice = detector.decision, detector.choice
    facts = {
        "format": FORMAT, "kood": kood.__version__, "class_names": detector.class_names,
        "image_shape": list(detector.image_shape), "resize": detector.framing.resize,
        "antialias": detector.framing.antialias, "batch_size": detector.batch_size,
        "range": detector.range, "choice": choice and vars(choice), "scores": list(detector.scorers),
        "decision": decision and {"accept": decision.accept, "by_class": decision.by_class},
        **{name: getattr(detector, name) for name in PLAIN},
    }  # fmt: skip
    arrays = {
        f"state/{name}/{key}": value
        for name, scorer in detector.scorers.items()
        for key, value in (scorer.state or {}).items()
    }
    arrays |= {f"seen/{use}": found for use, found in detector.digests.items()}
    arrays["some"] = detector.some
    if decision is not None:
        arrays |= {"scores": decision.scores, "labels": decision.labels}
    beside = path.with_name(f".{path.name}.partial")
    try:
        with tempfile.TemporaryDirectory() as folder:
            model, numbers = Path(folder) / CLASSIFIER, Path(folder) / ARRAYS
            kept(detector.classifier, model, path)
            np.savez(numbers, allow_pickle=False, **arrays)
            with zipfile.ZipFile(beside, "w") as file:
                for part in (model, numbers):
                    file.write(part, part.name)
                file.writestr(FACTS, json.dumps(facts, ensure_ascii=False))
        beside.replace(path)
    except OSError as error:
        raise UserError(f"{clean(path)}: cannot be written: {error.strerror}", exit_code=1) from error
    finally:
        beside.unlink(missing_ok=True)


def read(kind: type, path: Path, custom_objects: Mapping[str, Any] | None = None, preprocess: Any = None) -> Any:
    """Reads a `Detector` back; nothing that a stranger wrote into the file is run.

    Args:
        kind: `Detector`.
        custom_objects: Layers and functions of the user's own, by name.
        preprocess: What makes the classifier's pixels, where the file names a function.

    Raises:
        UserError: it is no such file, it is damaged, it holds a layer that is not known here, or `preprocess` is given
            and it names no function.
    """
    if not path.is_file():
        raise UserError(f"{clean(path)} does not exist; give a file that Detector.save wrote")
    try:
        with zipfile.ZipFile(path) as file, tempfile.TemporaryDirectory() as folder:
            facts = json.loads(file.read(FACTS))
            for part in (CLASSIFIER, ARRAYS):
                (Path(folder) / part).write_bytes(file.read(part))
            with np.load(Path(folder) / ARRAYS, allow_pickle=False) as found:
                arrays = dict(found)
            if facts["format"] != FORMAT:
                newer = facts["format"] > FORMAT
                age, mend = ("a newer", "update kood") if newer else ("an older", "fit and save it again")
                raise UserError(f"{clean(path)} was saved by kood {facts['kood']}, in {age} format than this kood's; "
                                f"{mend}")  # fmt: skip
            classifier = opened(Path(folder) / CLASSIFIER, custom_objects, shown=path)
        if preprocess is not None:
            if function_of(classifier) is None:
                raise UserError(f"{clean(path)}: preprocess: this file names no function; leave preprocess out")
            classifier.prepare_by(preprocess)
        return _made(kind, classifier, facts, arrays)
    except UserError:
        raise
    except (*BROKEN, TypeError) as error:
        raise UserError(f"{clean(path)} is no detector that kood saved, or it is damaged ({error})") from error


def _made(kind: type, classifier: Any, facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    choice = facts["choice"]
    shape = tuple(facts["image_shape"])
    detector = kind(
        classifier, choice["score"] if choice else "auto", facts["class_names"], scores=facts["scores"] or None,
        image_shape=None if None in shape else shape, resize=facts["resize"],
        antialias=facts["antialias"], batch_size=facts["batch_size"],
    )  # fmt: skip
    for name in PLAIN:
        setattr(detector, name, facts[name])
    detector.choice = Choice(**choice) if choice else None
    detector.range = tuple(facts["range"]) if facts["range"] else None
    for name in detector.scorers:
        state = {key.rpartition("/")[2]: value for key, value in arrays.items() if key.startswith(f"state/{name}/")}
        if state:
            detector.scorers[name] = Scorer(name, state)
    detector.digests = {key.removeprefix("seen/"): its for key, its in arrays.items() if key.startswith("seen/")}
    detector.some = arrays["some"]
    if facts["decision"]:
        detector.decision = Calibration(
            arrays["scores"], arrays["labels"], len(facts["class_names"]), **facts["decision"]
        )
    return detector
