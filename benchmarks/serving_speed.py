"""What the decision costs on top of the classifier, and what `kood predict` costs on top of TensorFlow and the network.

    python benchmarks/serving_speed.py [--backbone resnet18] [--size 32] [--rounds 5] [--scores max_logit knn ...]

Answers: for each score and batch size, the SavedModel's `serving_default` against the same graph without a score, a
name, a p-value or a flag (pixels in, probabilities out), and against OpenVINO on the signature `normalized` where it is
installed; all in one process, A B A B, after two calls that are not counted. A figure is the median over the rounds of
images/s; `overhead` is time with the decision over time without, less 1.

Predict: the whole command on a folder of PNG files against `import tensorflow` in a process of its own plus the forward
passes over as many images, measured within the same run.

Weights and images are random; speed does not depend on them. KNN and Mahalanobis hold `--fitted` features.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from PIL import Image
from turns import machine

from kood import heads, registry
from kood.classifier import Classifier
from kood.data.images import normalize, to_shape
from kood.outputs import outputs_of
from kood.scorer import Scorer
from kood.serving.export import write_saved_model
from kood.serving.extras import write_extras
from kood.serving.publishing import write_single_signature
from kood.serving.served import Served

CLASSES = 10
SCORES = ["msp", "max_logit", "energy", "max_cosine", "cosine_margin", "mahalanobis", "knn"]


def classifier_of(backbone: str, size: int, angular: bool) -> Classifier:
    """A classifier with random weights."""
    keras.utils.set_random_seed(0)
    shape = (size, size, 3)
    head = heads.ArcFace(CLASSES, scale=16.0) if angular else heads.Softmax(CLASSES)
    built = Classifier(registry.obtain("backbones", backbone)(shape), head)
    built.build((None, *shape))
    return built


def rate(call, rows: int, seconds: float) -> float:
    """Images/s of a call on `rows` images, repeated for about so many seconds."""
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        call()
        calls += 1
    return rows * calls / (time.perf_counter() - start)


def openvino_of(version: Path):
    """The network in OpenVINO, in float32; None where it is not installed."""
    try:
        import openvino
    except ImportError:
        return None
    single = version.with_name(version.name + "-single")
    write_single_signature(version, single)
    core = openvino.Core()
    return core.compile_model(core.read_model(str(single)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure of each round")
    parser.add_argument("--fitted", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=1000, help="for kood predict")
    parser.add_argument("--scores", nargs="*", default=SCORES)
    arguments = parser.parse_args()
    print(f"{machine()}; {arguments.backbone} at {arguments.size} px, TensorFlow float32")
    shape = (arguments.size, arguments.size, 3)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, *shape), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.scores:
            classifier = classifier_of(arguments.backbone, arguments.size, "cosine" in name)
            version = Path(folder, "run" + name, "1")
            known = outputs_of(classifier, rng.integers(0, 256, (512, *shape), np.uint8), 64)
            repeats = -(-arguments.fitted // 512)
            fitted = {key: np.tile(value, (repeats, 1))[: arguments.fitted] for key, value in known.items()}
            fitted = {key: value + rng.normal(0, 1e-2, value.shape).astype("float32") for key, value in fitted.items()}
            scorer = Scorer(name).fit(fitted, np.arange(arguments.fitted) % CLASSES, classifier.head)
            calibration = rng.normal(size=2500)
            served = Served(name, shape, [str(k) for k in range(CLASSES)], 0.95, calibration, scorer.state)
            write_saved_model(classifier, version, served)
            write_extras(version, "run", served, {})
            loaded = tf.saved_model.load(str(version))
            decide = loaded.signatures["serving_default"]

            @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)])
            def bare(pixels, classifier=classifier):
                return keras.ops.softmax(classifier(normalize(to_shape(pixels, shape)), training=False)["logits"])

            compiled = openvino_of(version)
            for rows in (1, 64):
                tensor = tf.constant(images[:rows])
                pixels = images[:rows].astype("float32") / np.float32(127.5) - np.float32(1)
                calls = {"bare": lambda t=tensor, b=bare: b(t), "kood": lambda t=tensor, d=decide: d(images=t)}
                if compiled is not None:
                    calls["openvino"] = lambda p=pixels, c=compiled: c([p])
                for call in calls.values():
                    call(), call()
                found: dict[str, list[float]] = {key: [] for key in calls}
                for _ in range(arguments.rounds):
                    for key, call in calls.items():
                        found[key].append(rate(call, rows, arguments.seconds))
                middle = {key: statistics.median(values) for key, values in found.items()}
                ratio = statistics.median(b / k for b, k in zip(found["bare"], found["kood"], strict=True))
                line = f"{name:14} batch {rows:2}: bare {middle['bare']:7.1f}/s, decision {middle['kood']:7.1f}/s, "
                line += f"overhead {ratio - 1:+.1%}"
                if compiled is not None:
                    beside = middle["kood"] / middle["openvino"]
                    line += f"; OpenVINO {middle['openvino']:7.1f}/s, decision / OpenVINO {beside:.2f}"
                print(line, flush=True)
        predict(Path(folder, "run" + arguments.scores[0]), arguments.images, arguments.rounds, rng)


def predict(run: Path, count: int, rounds: int, rng: np.random.Generator) -> None:
    """Times `kood predict` against the import and the forward passes."""
    pictures = run / "pictures"
    pictures.mkdir()
    loaded = tf.saved_model.load(str(run / "1"))
    shape = loaded.signatures["normalized"].structured_input_signature[1]["images"].shape[1:]
    images = rng.integers(0, 256, (count, *shape), np.uint8)
    for place, image in enumerate(images):
        Image.fromarray(image).save(pictures / f"{place:05}.png")
    whole, imports, passes = [], [], []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import tensorflow"], check=True, capture_output=True)
        imports.append(time.perf_counter() - start)
        start = time.perf_counter()
        for first in range(0, count, 32):
            loaded.signatures["serving_default"](images=tf.constant(images[first : first + 32]))
        passes.append(time.perf_counter() - start)
        start = time.perf_counter()
        command = [sys.executable, "-m", "kood", "predict", str(run), str(pictures), "--json"]
        subprocess.run(command, check=True, capture_output=True)
        whole.append(time.perf_counter() - start)
    ratio = statistics.median(w / (i + p) for w, i, p in zip(whole, imports, passes, strict=True))
    parts = {"whole": whole, "import tensorflow": imports, "forward passes": passes}
    told = ", ".join(f"{name} {statistics.median(values):.2f} s" for name, values in parts.items())
    print(f"kood predict, {count} images: {told}; whole / (import + passes) {ratio:.2f}")


if __name__ == "__main__":
    main()
