"""What kood's own training step and pipeline cost: its fit against a bare `model.fit` of the same network.

    python benchmarks/training_throughput.py [--backbone resnet20] [--size 32] [--images 2048] [--rounds 5]
    python benchmarks/training_throughput.py --backbone resnet18 --batch 512 --images 50000 --precision mixed_bfloat16 \
        --augment flip crop --backends jax         # what a GPU does; with --outliers 256 in every batch

Each installed backend runs in a process of its own. Within it the two sides train in turn, A B A B, after one round
that is not counted; a figure is the median over the rounds of images a second, and the ratio kood / bare (1 means
that kood costs nothing). The bare side is a Keras functional model with a dense layer, cross-entropy, the same
optimizer and a plain tf.data pipeline over the same arrays. Both make as many steps a call (`steps_per_execution`) as
a recipe that names none gets. Throughput differs between machines; the ratio is what counts. Outliers count as images
on both sides; augmentations and images that lie on the device (`--resident`, as `train.resident` of a recipe) are
kood's alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from importlib.util import find_spec

from turns import in_turn

from kood.machine import cores, vector_flags

BACKENDS = ("tensorflow", "jax", "torch")


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Both sides under the backend of this process."""
    import keras
    import numpy as np
    import tensorflow as tf

    from kood import heads, registry, training
    from kood.backends import resides
    from kood.classifier import Classifier
    from kood.data import ImageSet
    from kood.data.batches import training_batches
    from kood.data.resident import only_move, pixels_of

    size, classes, batch, beside = arguments.size, 10, arguments.batch, arguments.outliers
    rng = np.random.default_rng(0)
    steps = arguments.images // batch
    count = steps * (batch + beside)
    pixels = rng.integers(0, 256, (count, size, size, 3), dtype="uint8")
    labels = rng.integers(0, classes, count)
    images = ImageSet(pixels[: steps * batch], labels[: steps * batch], tuple(map(str, range(classes))))
    outliers = ImageSet(pixels[steps * batch :]) if beside else None
    backbone = registry.obtain("backbones", arguments.backbone)

    def optimizer():
        return training.optimizer(
            steps * (arguments.rounds + 1), learning_rate=1e-3, weight_decay=1e-4, precision=arguments.precision
        )

    with training.precision(arguments.precision):
        trunk, its_trunk = backbone((size, size, 3)), backbone((size, size, 3))
    ours = Classifier(trunk, heads.Softmax(classes), exposure="outlier_exposure" if beside else None)
    ours.build((None, size, size, 3))
    per_call = training.steps_per_call(steps)
    ours.compile(optimizer(), steps_per_execution=per_call)

    bare = keras.Model(its_trunk.input, keras.layers.Dense(classes, dtype="float32")(its_trunk.output))
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    bare.compile(optimizer(), loss=loss, steps_per_execution=per_call)
    plain = (
        tf.data.Dataset.from_tensor_slices((pixels, np.eye(classes, dtype="float32")[labels]))
        .shuffle(count)
        .batch(batch + beside, drop_remainder=True)
        .map(lambda x, y: (tf.cast(x, tf.float32) / 127.5 - 1.0, y), tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )
    wanted = {"auto": "auto", "true": True, "false": False}[arguments.resident]
    held = pixels_of(images, outliers) if resides(wanted, pixels.shape) and only_move(arguments.augment) else None
    settings = {
        "batch_size": batch, "outliers_per_batch": beside, "epochs": 1,
        "augment": arguments.augment, "resident": held is not None,
    }  # fmt: skip

    def fit_ours(number: int) -> None:
        batches, _ = training_batches(images, outliers, seed=number, **settings)
        ours.fit(batches, epochs=1, steps_per_epoch=steps, shuffle=False, verbose=0)

    def fit_bare(_: int) -> None:
        bare.fit(plain, verbose=0)

    with ours.holding(held):
        seconds = in_turn({"kood": fit_ours, "bare": fit_bare}, arguments.rounds)
    speeds = {name: count / statistics.median(values) for name, values in seconds.items()}
    return {**speeds, "resident": held is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet20")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--outliers", type=int, default=0, help="outlier rows beside those of a batch")
    parser.add_argument("--precision", default="float32", choices=("float32", "mixed_bfloat16", "mixed_float16"))
    parser.add_argument("--resident", default="auto", choices=("auto", "true", "false"))
    parser.add_argument("--augment", nargs="*", default=[])
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=BACKENDS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(arguments)))
        return
    print(
        f"{arguments.backbone}, {arguments.size} px, batch {arguments.batch} + {arguments.outliers} outliers, "
        f"{arguments.precision}, {cores()} cores, {vector_flags()}"
    )
    print(f"{'backend':<12}{'kood images/s':>15}{'bare images/s':>15}{'ratio':>8}  images")
    for backend in arguments.backends:
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
        ratio, lie = speed["kood"] / speed["bare"], "on the device" if speed["resident"] else "in batches"
        print(f"{backend:<12}{speed['kood']:>15.0f}{speed['bare']:>15.0f}{ratio:>8.2f}  {lie}")


if __name__ == "__main__":
    main()
