"""What kood's own training step and pipeline cost: its fit against a bare `model.fit` of the same network.

    python benchmarks/training_throughput.py [--backbone resnet20] [--size 32] [--images 2048] [--rounds 5]

Each installed backend runs in a process of its own. Within it the two sides train in turn, A B A B, after one round
that is not counted; a figure is the median over the rounds of images a second, and the ratio kood / bare (1 means
that kood costs nothing). The bare side is a Keras functional model with a dense layer, cross-entropy, the same
optimizer and a plain tf.data pipeline over the same arrays. Throughput differs between machines; the ratio is what
counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec

from kood.machine import cores, vector_flags

BACKENDS = ("tensorflow", "jax", "torch")


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Both sides under the backend of this process."""
    import keras
    import numpy as np
    import tensorflow as tf

    from kood import heads, registry, training
    from kood.classifier import Classifier
    from kood.data import ImageSet
    from kood.data.batches import training_batches

    size, classes, batch = arguments.size, 10, arguments.batch
    rng = np.random.default_rng(0)
    count = arguments.images // batch * batch
    images = ImageSet(
        rng.integers(0, 256, (count, size, size, 3)).astype("uint8"),
        rng.integers(0, classes, count),
        tuple(map(str, range(classes))),
    )
    steps, rounds = count // batch, arguments.rounds + 1
    backbone = registry.obtain("backbones", arguments.backbone)

    ours = Classifier(backbone((size, size, 3)), heads.Softmax(classes))
    ours.build((None, size, size, 3))
    ours.compile(
        training.optimizer(steps * rounds, learning_rate=1e-3, weight_decay=1e-4),
        steps_per_execution=training.steps_per_call(steps),
    )

    trunk = backbone((size, size, 3))
    bare = keras.Model(trunk.input, keras.layers.Dense(classes)(trunk.output))
    bare.compile(
        training.optimizer(steps * rounds, learning_rate=1e-3, weight_decay=1e-4),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
    )
    labels = np.eye(classes, dtype="float32")[images.labels]
    plain = (
        tf.data.Dataset.from_tensor_slices((images.images, labels))
        .shuffle(count)
        .batch(batch, drop_remainder=True)
        .map(lambda x, y: (tf.cast(x, tf.float32) / 127.5 - 1.0, y), tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )
    ids = {"num_classes": classes, "batch_size": batch, "outliers_per_batch": 0, "epochs": 1}

    def fit_ours(number: int) -> None:
        ours.fit(training_batches(images, None, seed=number, **ids)[0], steps_per_epoch=steps, shuffle=False, verbose=0)

    def fit_bare(_: int) -> None:
        bare.fit(plain, verbose=0)

    seconds: dict[str, list[float]] = {"kood": [], "bare": []}
    for number in range(rounds):
        for name, fit in (("kood", fit_ours), ("bare", fit_bare)):
            start = time.perf_counter()
            fit(number)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: count / statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet20")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(arguments)))
        return
    print(f"{arguments.backbone}, {arguments.size} px, batch {arguments.batch}, {cores()} cores, {vector_flags()}")
    print(f"{'backend':<12}{'kood images/s':>15}{'bare images/s':>15}{'ratio':>8}")
    for backend in BACKENDS:
        if find_spec(backend) is None:
            print(f"{backend:<12}not installed")
            continue
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        result = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--here"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            sys.exit(f"{backend}: {result.stderr.strip().splitlines()[-1]}")
        speed = json.loads(result.stdout.strip().splitlines()[-1])
        ratio = speed["kood"] / speed["bare"]
        print(f"{backend:<12}{speed['kood']:>15.0f}{speed['bare']:>15.0f}{ratio:>8.2f}")


if __name__ == "__main__":
    main()
