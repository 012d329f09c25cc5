"""How fast image files become features: kood's data and features stages against a bare `model.predict` over tf.data.

    python benchmarks/feature_extraction.py FOLDER BACKBONE.keras [--layer features] [--size 224] [--rounds 3]

Both decode, resize and pass the same files of a folder of class folders through the same network, under the Keras
backend in use (`KERAS_BACKEND`), A B A B, after a pass that is not counted. A figure is the median over the rounds.
kood's resize is antialiased and its decoding exact; the bare pipeline is Keras's `image_dataset_from_directory`, in
batches of 32. Of kood's stages "data" decodes every image, which finds broken files and copies, and keeps the pixels as
far as there is room; "features" passes them, and decodes again what was not kept. A run does both, so "kood" is both,
with nothing kept from the round before, and `share` is the bare time over that: 1 is as fast.
"""

import argparse
import os
import statistics
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from turns import in_turn, keep, machine

from kood.backends import compiled
from kood.data import deferred
from kood.data.large import Pixels
from kood.data.rules import STRETCHED
from kood.outputs import at_once, run_over
from kood.registry import obtain


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("backbone", type=Path)
    parser.add_argument("--layer")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="keep the figures for the documentation")
    arguments = parser.parse_args()
    shape = (arguments.size, arguments.size, 3)
    files = sorted(
        str(file) for file in arguments.folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png")
    )
    print(f"{machine()}; {len(files):,} files at {arguments.size} px, {keras.backend.backend()} float32")
    backbone = obtain("backbones", "file")(shape, path=str(arguments.backbone), layer=arguments.layer)
    forward = compiled(backbone)

    images: list[deferred.Images] = []

    def data(_: int) -> None:
        deferred.DECODED = Pixels()
        images[:] = [deferred.listed(files, shape, 0, STRETCHED)[0]]

    def features(_: int) -> None:
        run_over(lambda some: {"features": forward(some)}, images[0], at_once(shape))

    given = keras.saving.load_model(arguments.backbone, compile=False)
    bare = keras.Model(given.inputs, given.get_layer(arguments.layer).output) if arguments.layer else given

    def predict(_: int) -> None:
        pixels = keras.utils.image_dataset_from_directory(
            arguments.folder, labels=None, image_size=shape[:2], batch_size=32, shuffle=False, verbose=False
        )
        bare.predict(pixels, verbose=0)

    taken = in_turn({"data": data, "features": features, "bare": predict}, arguments.rounds)
    taken["kood"] = list(map(sum, zip(taken["data"], taken["features"], strict=True)))
    seconds = {name: statistics.median(of) for name, of in taken.items()}
    for name, of in seconds.items():
        print(f"{name}: {len(files) / of:.1f} images/s")
    print(f"share: {seconds['bare'] / seconds['kood']:.2f}")
    if arguments.keep:
        rates = {name: round(len(files) / of, 2) for name, of in seconds.items()}
        keep([{"row": keras.backend.backend(), "files": len(files), **rates}])


if __name__ == "__main__":
    main()
