"""The decision as one file for other runtimes, by Keras's own export: ONNX, LiteRT and OpenVINO.

Always converted by way of TensorFlow, in a process of its own where Keras stands on another backend: of JAX's graphs
and torch's Keras 3.15 loses the names of the outputs, or the free number of images, or needs packages that kood needs
for nothing else. As `python -m kood.detector.formats MODULES PARTS FILE` it is that process.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np

import kood
from kood.attached import handed_over, kept, layers_of
from kood.backends import compiled
from kood.decision import Decision
from kood.errors import UserError
from kood.parity import agreed
from kood.process import keras_defaults, native_messages_held_back, run_on_tensorflow
from kood.scorer import Scorer
from kood.serving.served import Served
from kood.text import clean

__all__ = ["FORMATS", "export"]

#: What Keras calls each format, by how its files end.
FORMATS = {".onnx": "onnx", ".tflite": "litert", ".xml": "openvino"}
#: What converts to it, beside TensorFlow; and what runs it.
CONVERTERS = {"onnx": ("onnx", "tf2onnx"), "litert": (), "openvino": ("openvino",)}
RUNTIMES = {"onnx": "onnxruntime", "litert": "ai_edge_litert", "openvino": "openvino"}
#: Largest difference from the Keras model; of scores relative to the largest of them.
TOLERANCE = 1e-5
#: What is handed over to another process.
CLASSIFIER, SERVED = "classifier.keras", "served.npz"
OUTPUTS = ("probabilities", "label", "ood_score", "p_value", "is_ood", "threshold", "version")

Answers = dict[str, np.ndarray]


def export(
    classifier: keras.Model, served: Served, path: Path, *, check: np.ndarray | None = None, pixels: str = "-1..1"
) -> dict[str, Any]:
    """Writes a decision as a file of another runtime, which answers as the Keras model does or is not written.

    Input `images`: float32 (B, H, W, C) as the classifier takes them. Outputs by their names, as `Decision.call` has
    them. What else is known (class names, score, thresholds, accepted share, range of the pixels, resizing, kood's
    version) is JSON in the file: under the key "kood" in ONNX's metadata and in OpenVINO's `rt_info`; in a `.tflite`
    file, which is a ZIP archive too, as `kood.json` beside `labels.txt`.

    Args:
        served: The rest of it, and how images are to be brought to their shape, for the file to tell.
        path: Of the file, whose ending says the format (`FORMATS`); one that is there is replaced. OpenVINO's weights
            stand beside it in a file ending in `.bin`.
        check: Images as the classifier takes them, (N, H, W, C), to compare on where the runtime is installed.
        pixels: The range of the pixels that the classifier takes, for the file to tell.

    Returns:
        {"format", "files": [Path], "images": how many were compared, "probabilities" and "ood_score": the largest
        differences where any were}.

    Raises:
        UserError: a package that the format needs is not installed, operations that it does not have (such as the
            gradient that ODIN takes), or a file that does not answer as the Keras model does; nothing is written then.
    """
    kind = FORMATS[path.suffix]
    missing = [name for name in CONVERTERS[kind] if find_spec(name) is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise UserError(f"{path}: {' and '.join(missing)} {are} not installed; pip install 'kood[export]'")
    decision = _decision(classifier, served)
    if decision.scored.score.perturbation:
        raise UserError(
            f"{path}: {served.score} takes the gradient of the classifier by its images, which "
            f"{kind} cannot hold; choose another score, or export a SavedModel"
        )
    beside = path.parent / f".export-{path.name}-{os.getpid()}"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        file = beside / path.name
        if keras.backend.backend() == "tensorflow":
            _convert(decision, served.image_shape, file)
        else:
            parts = beside / "parts"
            parts.mkdir()
            kept(classifier, parts / CLASSIFIER, path)
            served.write(parts / SERVED)
            run_on_tensorflow("kood.detector.formats", parts, file, failed=f"{path}: could not be written")
            shutil.rmtree(parts)
        _tell(file, _facts(served, pixels))
        compared = _compare(decision, file, check, path)
        written = sorted(beside.iterdir())  # The weights before what refers to them.
        for one in written:
            one.replace(path.parent / one.name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return {"format": kind, "files": [path.parent / one.name for one in written], **compared}


def _decision(classifier: keras.Model, served: Served) -> Decision:
    return Decision(classifier, Scorer(served.score, served.state), served.decision)


def _convert(decision: Decision, image_shape: Sequence[int], file: Path) -> None:
    """Writes the file; under Keras's TensorFlow backend."""
    kind, images = FORMATS[file.suffix], keras.KerasTensor((None, *image_shape), "float32", name="images")
    logger = logging.getLogger("tf2onnx")
    before = logger.level
    try:
        if kind == "onnx":
            logger.setLevel(logging.CRITICAL)
            from kood.detector import onnx_ops  # noqa: F401
        with warnings.catch_warnings(), native_messages_held_back():
            warnings.simplefilter("ignore")
            from kood.backends.tensorflow import inlined

            with _constants_in_graph(decision.scored.classifier), inlined():
                decision.export(str(file), format=kind, input_signature=[images], verbose=False)
    except Exception as error:  # A converter may raise anything.
        why = f"{file.name}: {kind} cannot hold this model: {clean(error)[:500]}"
        raise UserError(f"{why}{_of_half(decision)}", exit_code=1) from error
    finally:
        logger.setLevel(before)
    strange = sorted({found.decode() for found in re.findall(rb"Flex[A-Z]\w+", file.read_bytes())})
    if kind == "litert" and strange:
        why = f"{file.name}: LiteRT has not these operations: {', '.join(strange)}"
        raise UserError(f"{why}{_of_half(decision)}", exit_code=1)


@contextlib.contextmanager
def _constants_in_graph(model: keras.Model) -> Iterator[None]:
    """Tensors that layers keep beside their weights are arrays meanwhile, such as what `Normalization` has learned: a
    graph takes a tensor from outside, and tf2onnx makes an input of it."""
    kept = [
        (vars(layer), name, value)
        for _, layer in layers_of(model)
        for name, value in vars(layer).items()
        if keras.ops.is_tensor(value) and not isinstance(value, keras.Variable)
    ]
    for own, name, value in kept:
        own[name] = keras.ops.convert_to_numpy(value)
    try:
        yield
    finally:
        for own, name, value in kept:
            own[name] = value


def _facts(served: Served, pixels: str) -> dict[str, Any]:
    return {
        "kood": kood.__version__,
        "score": served.score,
        "image_shape": list(served.image_shape),
        "class_names": served.class_names,
        "accept": served.accept,
        "thresholds": served.decision.thresholds.tolist(),
        "version": 0,
        "pixels": pixels,
        "resize": served.framing.resize,
        "antialias": served.framing.antialias,
    }


def _tell(file: Path, facts: dict[str, Any]) -> None:
    """Puts into the file what is known beside the graph."""
    kind, text = FORMATS[file.suffix], json.dumps(facts, ensure_ascii=False)
    if kind == "onnx":
        import onnx

        model = onnx.load(file)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        onnx.helper.set_model_props(model, {"kood": text})
        onnx.save(model, file)
        try:
            onnx.checker.check_model(file)
        except onnx.checker.ValidationError as error:
            said = clean(error)[:500]
            raise UserError(f"{file.name}: ONNX has not the operations of this model: {said}", exit_code=1) from error
    elif kind == "openvino":
        import openvino

        whole = openvino.Core().read_model(file)
        whole.set_rt_info(text, "kood")
        openvino.save_model(whole, file.with_name(f"named-{file.name}"), compress_to_fp16=False)
        del whole
        for one in (file, file.with_suffix(".bin")):
            one.with_name(f"named-{one.name}").replace(one)
    else:
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr("kood.json", text)
            archive.writestr("labels.txt", "".join(f"{name}\n" for name in facts["class_names"]))


def _compare(decision: Decision, file: Path, check: np.ndarray | None, path: Path) -> dict[str, Any]:
    runtime = RUNTIMES[FORMATS[file.suffix]]
    if check is None or not len(check) or find_spec(runtime) is None:
        return {"images": 0}
    images = np.asarray(check, np.float32)
    expected = {name: keras.ops.convert_to_numpy(value) for name, value in compiled(decision)(images).items()}
    try:
        with native_messages_held_back():
            got = _runtime(file)(images)
    except Exception as error:  # A runtime may raise anything.
        raise UserError(f"{path}: {runtime} cannot run it: {clean(error)[:500]}", exit_code=1) from error
    try:
        return agreed(got, expected, decision.calibrated, TOLERANCE, who=f"{path}: {runtime}", undone="written")
    except UserError as error:
        raise UserError(f"{error}{_of_half(decision)}", error.exit_code) from error


def _of_half(decision: Decision) -> str:
    """The likely cause where an export fails of a model that computes in half precision, and the way out; else ""."""
    found = {layer.compute_dtype for _, layer in layers_of(decision.scored.classifier)} & {"float16", "bfloat16"}
    if not found:
        return ""
    return (
        f"; layers of the model are of {' and '.join(sorted(found))}, which this runtime rounds otherwise or has not: "
        'set layer.dtype_policy = "float32" for each of them, make a detector of that model, and calibrate it'
    )


def _runtime(file: Path) -> Callable[[np.ndarray], Answers]:
    """What answers by the file, on the CPU and in float32."""
    kind = FORMATS[file.suffix]
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return lambda images: dict(zip(names, session.run(None, {"images": images}), strict=True))
    if kind == "openvino":
        import openvino

        # It would take bfloat16 where the processor has it.
        model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

        def answer(images):
            told = model({"images": images})
            return {name: told[name] for name in OUTPUTS}

        return answer
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file))
    runner = interpreter.get_signature_runner()
    return lambda images: dict(runner(images=images))


@keras_defaults()
def main(parts: str, file: str) -> None:
    """Writes the file of a decision that was handed over, without pickles."""
    classifier = keras.saving.load_model(Path(parts) / CLASSIFIER, compile=False)
    served = Served.read(Path(parts) / SERVED)
    if served.preprocess is not None:
        classifier.prepare_by(served.preprocess)
    _convert(_decision(classifier, served), served.image_shape, Path(file))


if __name__ == "__main__":
    handed_over(main)
