"""What the decision costs beside the forward pass: one graph of pixels -> answers against the outputs alone.

    python benchmarks/decision_cost.py [--backbone resnet18] [--size 32] [--images 10000] [--rounds 5] [--scores ...]

Under the Keras backend in use (`KERAS_BACKEND`), both compiled, on the same batches of pixels, A B A B, after a pass
that is not counted. A figure is the median over the rounds; `share` is the time of the decision over that of the
outputs, less 1. Weights and pixels are random; speed does not depend on them. Scores that are fitted hold `--fitted`
images' features, the calibration `--calibration` scores, by class. Scores of rotations take four forward passes, those
of moved images a backward one as well.
"""

import argparse
import os
import statistics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from turns import in_turn, keep, machine

from kood import heads, registry
from kood.backends import compiled
from kood.classifier import Classifier
from kood.conformal import Calibration
from kood.decision import Decision
from kood.outputs import forward_of, run_over
from kood.scorer import Scorer

CLASSES = 10
SCORES = [
    "msp", "energy", "gen", "mahalanobis", "vim", "knn", "ash", "tempscale", "openmax", "nci", "gradnorm", "relation",
    "weiper", "odin", "adascale", "rotation",
]  # fmt: skip


def read(call, batches) -> None:
    """A call on every batch, results read back."""
    for batch in batches:
        keras.tree.map_structure(keras.ops.convert_to_numpy, call(batch))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fitted", type=int, default=10_000)
    parser.add_argument("--calibration", type=int, default=2_500)
    parser.add_argument("--scores", nargs="*", default=SCORES)
    parser.add_argument("--keep", action="store_true", help="keep the figures for the documentation")
    arguments = parser.parse_args()
    print(
        f"{machine()}; {arguments.backbone} at {arguments.size} px, "
        f"{keras.backend.backend()} float32, {arguments.images:,} images in batches of {arguments.batch}"
    )
    keras.utils.set_random_seed(0)
    shape, rng = (arguments.size, arguments.size, 3), np.random.default_rng(0)
    classifier = Classifier(
        registry.obtain("backbones", arguments.backbone)(shape), heads.Softmax(CLASSES), rotation=0.5
    )
    classifier.build((None, *shape))
    few = rng.uniform(-1, 1, (8, arguments.batch, *shape)).astype("float32")
    batches = [few[number % len(few)] for number in range(arguments.images // arguments.batch)]
    moved = [name for name in arguments.scores if Scorer(name).perturbation]
    known = run_over(forward_of(classifier, moved), rng.integers(0, 256, (512, *shape), np.uint8), arguments.batch)
    fitted = {name: np.resize(value, (arguments.fitted, value.shape[1])) for name, value in known.items()}
    fitted = {name: value + rng.normal(0, 1e-2, value.shape).astype("float32") for name, value in fitted.items()}
    labels = np.arange(arguments.fitted) % CLASSES
    # Each is labelled rightly, as some scores ask for.
    fitted["logits"] = (rng.normal(size=(arguments.fitted, CLASSES)) + 20 * np.eye(CLASSES)[labels]).astype("float32")
    outputs = compiled(classifier)
    for name in arguments.scores:
        scorer = Scorer(name).fit(fitted, labels, classifier.head)
        calibration = Calibration(
            rng.normal(size=arguments.calibration), np.arange(arguments.calibration) % CLASSES, CLASSES, 0.95, True
        )
        calls = {"outputs": outputs, "decision": compiled(Decision(classifier, scorer, calibration))}
        sides = {
            key: lambda number, call=call: read(call, batches if number else batches[:2]) for key, call in calls.items()
        }
        found = in_turn(sides, arguments.rounds)
        middle = {key: statistics.median(values) for key, values in found.items()}
        share = statistics.median(d / o for o, d in zip(found["outputs"], found["decision"], strict=True)) - 1
        print(
            f"{name:14} outputs {middle['outputs']:6.2f} s, decision {middle['decision']:6.2f} s, share {share:+.1%}",
            flush=True,
        )
        if arguments.keep:
            keep([{"row": name, "share": round(share, 4)}])


if __name__ == "__main__":
    main()
