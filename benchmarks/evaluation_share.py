"""How much of an evaluation is the network's forward pass, and how much everything else.

    python benchmarks/evaluation_share.py [--backbone resnet18] [--size 32] [--images 36000] [--train 50000]

Evaluates an untrained classifier on random images under the backend that KERAS_BACKEND names, as a run does: every
score that is measured by default, the fitted ones fitted on the training images, the headline chosen on validation
images, the threshold set, all metrics taken. A quarter of the images are the in-distribution test set, the others four
OOD sets. The share is the time outside of forward passes over the time within (0.15 means that scores, fits and metrics
cost 15% of what the network does). What is compiled beforehand is not counted on either side.
"""

import argparse
import time

import numpy as np
from turns import machine

OOD_SETS = 4


def main() -> None:
    """Prints the seconds and the share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--images", type=int, default=36_000)
    parser.add_argument("--train", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=256)
    arguments = parser.parse_args()

    import keras

    from kood import heads, registry
    from kood.classifier import Classifier
    from kood.data import ImageSet
    from kood.detector import measuring
    from kood.detector.evaluate import evaluate
    from kood.outputs import at_once

    shape, classes = (arguments.size, arguments.size, 3), 10
    rng = np.random.default_rng(0)
    names = tuple(map(str, range(classes)))

    def images(count: int) -> ImageSet:
        pixels = rng.integers(0, 256, (count, *shape), dtype="uint8")
        return ImageSet(pixels, np.arange(count) % classes, names)

    classifier = Classifier(registry.obtain("backbones", arguments.backbone)(shape), heads.Softmax(classes))
    classifier.build((None, *shape))
    inside, seen = 0.0, 0
    compiled = measuring.forward_of(classifier)
    rows = min(arguments.batch, at_once(shape))  # As many as are passed at once.
    compiled(np.zeros((rows, *shape), "float32"))

    def forward(pixels):
        nonlocal inside, seen
        start = time.perf_counter()
        outputs = {name: keras.ops.convert_to_numpy(value) for name, value in compiled(pixels).items()}
        inside, seen = inside + time.perf_counter() - start, seen + len(pixels)
        return outputs

    measuring.forward_of = lambda *_: forward
    quarter, rest = arguments.images // 4, (arguments.images - arguments.images // 4) // OOD_SETS
    sets = {f"ood {number}": images(rest) for number in range(OOD_SETS)}
    train, test = images(arguments.train), images(quarter)
    validation, calibration = images(arguments.train // 20), images(arguments.train // 20)
    start = time.perf_counter()
    result = evaluate(
        classifier, train=train, validation=validation, calibration=calibration, test=test,
        near=dict(list(sets.items())[:2]), far=dict(list(sets.items())[2:]), batch_size=arguments.batch,
    )  # fmt: skip
    whole = time.perf_counter() - start
    print(f"{machine()}; {keras.backend.backend()}")
    print(
        f"{arguments.backbone} at {arguments.size} px, {quarter + OOD_SETS * rest:,} test and {arguments.train:,} "
        f"training images, {len(result.figures['scores'])} scores: {whole:.1f} s"
    )
    print(
        f"forward passes {inside:.1f} s ({seen / inside:,.0f} images/s), everything else {whole - inside:.1f} s, "
        f"share {whole / inside - 1:.3f}"
    )


if __name__ == "__main__":
    main()
