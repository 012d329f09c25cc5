"""The data sets that Keras downloads by itself."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kood.data.image_set import ImageSet
from kood.data.rules import STRETCHED, Framing
from kood.errors import UserError
from kood.process import through_proxy

__all__ = ["cifar10", "cifar100", "fashion_mnist", "mnist"]

_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100 = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl",
    "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair",
    "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin",
    "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp",
    "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain",
    "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck",
    "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket",
    "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel",
    "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor",
    "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip
_FASHION = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_DIGITS = tuple(str(digit) for digit in range(10))
#: Where each data set comes from, and what Keras calls its files in its folder of data sets.
_PLACES = {
    "cifar10": ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "cifar-10-batches-py-target_archive"),
    "cifar100": ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "cifar-100-python-target_archive"),
    "mnist": ("https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz", "mnist.npz"),
    "fashion_mnist": (
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/*-ubyte.gz (four files)", "fashion-mnist/",
    ),
}  # fmt: skip


def reads(source: Any) -> tuple[Path, list[str]]:
    """Keras's folder of data sets, and the files of a recipe's source in it; fetched first where there are none yet.

    Otherwise a run would find other files after it than before it.
    """
    name = source.source.lower()
    if not _cached(name)[1]:
        _loaded(name)
    return _cached(name)


def _cached(name: str) -> tuple[Path, list[str]]:
    home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    # Keras falls back on the second where it cannot write to the first. It unpacks an archive anew at each call, so
    # what is unpacked says nothing.
    folder = (home if os.access(home, os.W_OK) else Path("/tmp/.keras")) / "datasets"
    place = folder / _PLACES[name][1]
    return folder, sorted(str(file) for file in (place, *place.rglob("*")) if file.is_file())


def _loaded(name: str):
    import keras

    load: Callable = getattr(keras.datasets, name).load_data
    address, file = _PLACES[name]
    try:
        return load()
    # Keras reports a failed download as a bare Exception; a damaged file as whatever its reader raises.
    except Exception as error:
        raise UserError(
            f"source: Keras could not download or read the data ({error}{through_proxy(address)}). Without a network, "
            f"fetch {address} elsewhere"
            f' and put it at ~/.keras/datasets/{file}; or give the images as files: source = "folder", path = ...'
        ) from error


def _sets(
    data_set: str, class_names: tuple[str, ...], image_shape: tuple[int, int, int], framing: Framing
) -> dict[str, ImageSet]:
    """A data set of Keras's, downloaded at its first use: {"train", "test"}.

    Raises:
        UserError: The download fails.
    """
    import keras

    from kood.data.images import fit_images

    sets = {}
    for split, (images, labels) in zip(("train", "test"), _loaded(data_set), strict=True):
        pixels = np.asarray(images)
        if pixels.ndim == 3:
            pixels = pixels[..., None]
        elif keras.config.image_data_format() == "channels_first":
            pixels = np.moveaxis(pixels, 1, -1)
        pixels = fit_images(np.ascontiguousarray(pixels), image_shape, framing)
        sets[split] = ImageSet(pixels, labels.reshape(-1).astype(np.int64), class_names)
    return sets


def cifar10(image_shape: tuple[int, int, int], *, seed: int, framing: Framing = STRETCHED) -> dict[str, ImageSet]:
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 in colour, ten classes (Krizhevsky, 2009)."""
    return _sets("cifar10", _CIFAR10, image_shape, framing)


def cifar100(image_shape: tuple[int, int, int], *, seed: int, framing: Framing = STRETCHED) -> dict[str, ImageSet]:
    """CIFAR-100: 50,000 training and 10,000 test images of 32x32 in colour, 100 classes (Krizhevsky, 2009)."""
    return _sets("cifar100", _CIFAR100, image_shape, framing)


def mnist(image_shape: tuple[int, int, int], *, seed: int, framing: Framing = STRETCHED) -> dict[str, ImageSet]:
    """MNIST: 60,000 training and 10,000 test digits of 28x28 in grey, ten classes (LeCun et al., 1998)."""
    return _sets("mnist", _DIGITS, image_shape, framing)


def fashion_mnist(image_shape: tuple[int, int, int], *, seed: int, framing: Framing = STRETCHED) -> dict[str, ImageSet]:
    """Fashion-MNIST: 60,000 training and 10,000 test garments of 28x28 in grey, ten classes (arXiv:1708.07747)."""
    return _sets("fashion_mnist", _FASHION, image_shape, framing)
