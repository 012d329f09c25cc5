"""The data sets that Keras downloads by itself."""

from collections.abc import Callable

import numpy as np

from kood.data.image_set import ImageSet
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


def cifar10(image_shape: tuple[int, int, int], *, seed: int) -> dict[str, ImageSet]:
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 in colour, ten classes (Krizhevsky, 2009).

    Args:
        image_shape: (H, W, C) of the images wanted.
        seed: Not used; nothing here is random.

    Returns:
        {"train", "test"}.

    Raises:
        UserError: The download fails.
    """
    from keras.datasets import cifar10 as module

    place = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "cifar-10-batches-py-target_archive"
    return _sets(module.load_data, image_shape, _CIFAR10, *place)


def cifar100(image_shape: tuple[int, int, int], *, seed: int) -> dict[str, ImageSet]:
    """CIFAR-100: 50,000 training and 10,000 test images of 32x32 in colour, 100 classes (Krizhevsky, 2009).

    Args:
        image_shape: (H, W, C) of the images wanted.
        seed: Not used; nothing here is random.

    Returns:
        {"train", "test"}.

    Raises:
        UserError: The download fails.
    """
    from keras.datasets import cifar100 as module

    place = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "cifar-100-python-target_archive"
    return _sets(module.load_data, image_shape, _CIFAR100, *place)


def mnist(image_shape: tuple[int, int, int], *, seed: int) -> dict[str, ImageSet]:
    """MNIST: 60,000 training and 10,000 test digits of 28x28 in grey, ten classes (LeCun et al., 1998).

    Args:
        image_shape: (H, W, C) of the images wanted.
        seed: Not used; nothing here is random.

    Returns:
        {"train", "test"}.

    Raises:
        UserError: The download fails.
    """
    from keras.datasets import mnist as module

    place = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz", "mnist.npz"
    return _sets(module.load_data, image_shape, _DIGITS, *place)


def fashion_mnist(image_shape: tuple[int, int, int], *, seed: int) -> dict[str, ImageSet]:
    """Fashion-MNIST: 60,000 training and 10,000 test garments of 28x28 in grey, ten classes (arXiv:1708.07747).

    Args:
        image_shape: (H, W, C) of the images wanted.
        seed: Not used; nothing here is random.

    Returns:
        {"train", "test"}.

    Raises:
        UserError: The download fails.
    """
    from keras.datasets import fashion_mnist as module

    place = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/*-ubyte.gz (four files)", "fashion-mnist/"
    return _sets(module.load_data, image_shape, _FASHION, *place)


def _sets(
    load: Callable, image_shape: tuple[int, int, int], class_names: tuple[str, ...], address: str, file: str
) -> dict[str, ImageSet]:
    import keras

    from kood.data.images import fit_images

    try:
        loaded = load()
    # Keras reports a failed download as a bare Exception; a damaged file as whatever its reader raises.
    except Exception as error:
        raise UserError(
            f"source: Keras could not download or read the data ({error}{through_proxy(address)}). Without a network, "
            f"fetch {address} elsewhere"
            f' and put it at ~/.keras/datasets/{file}; or give the images as files: source = "folder", path = ...'
        ) from error
    sets = {}
    for split, (images, labels) in zip(("train", "test"), loaded, strict=True):
        pixels = np.asarray(images)
        if pixels.ndim == 3:
            pixels = pixels[..., None]
        elif keras.config.image_data_format() == "channels_first":
            pixels = np.moveaxis(pixels, 1, -1)
        pixels = np.ascontiguousarray(pixels)
        sets[split] = ImageSet(fit_images(pixels, image_shape), labels.reshape(-1).astype(np.int64), class_names)
    return sets
