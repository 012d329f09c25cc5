"""TensorFlow Datasets that have been prepared on this computer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kood.data.classes import class_indices, drawn
from kood.data.image_set import ImageSet
from kood.data.large import Blobs
from kood.data.paths import data_path
from kood.data.rules import STRETCHED, Framing
from kood.errors import UserError

__all__ = ["dtd", "places365", "svhn", "tfds"]

#: What TFDS calls the sources that have a name of their own here.
_NAMES = {"svhn": "svhn_cropped", "dtd": "dtd", "places365": "places365_small"}


def _prepared(
    name: str,
    image_shape: tuple[int, int, int],
    seed: int,
    path: str | None,
    classes: Sequence[int | str] | None,
    count: int | None,
    split: str | None,
    framing: Framing,
    hashed: bool = False,
    test: str | None = None,
) -> dict[str, ImageSet]:
    """A TensorFlow Dataset that has been prepared, by its name as TFDS spells it, with configuration and version where
    needed ("imagenet_resized/64x64"). `path` is TFDS's data folder; `test` its split to test on: not given, that of
    this name, else its validation split.

    Raises:
        UserError: TFDS is missing, it knows no such name, the data set has not been prepared, or has no images.
    """
    from kood.data.decode import decode_readable

    builder = _builder(name, path)
    features = builder.info.features
    if "image" not in features:
        raise UserError(f"name: the TensorFlow Dataset {name!r} has no `image`, only {', '.join(sorted(features))}")
    has_labels = "label" in features and hasattr(features["label"], "names")
    class_names = tuple(features["label"].names) if has_labels else ()
    if classes is not None:
        # Before anything is read: places365 alone is 29 GB.
        class_indices(classes, class_names)
    draw = np.random.default_rng([seed, 0x7FD5])
    sets = {}
    for part, tfds_split in _parts(builder, split, test, name).items():
        files, all_labels = _read(builder, tfds_split, has_labels)
        rows, labels, names = drawn(all_labels, class_names, classes, count, draw)
        chosen = files if len(rows) == len(files) else Blobs(files[row] for row in rows)
        hashes = np.zeros(len(chosen), np.uint64) if hashed else None
        images = decode_readable(chosen, image_shape, 0, framing, hashes)[0]
        sets[part] = ImageSet(images, labels if has_labels else None, names, hashes=hashes)
    return sets


def reads(source: Any) -> tuple[Path, list[str]]:
    """The folder in which TFDS has prepared a recipe's source, and its files."""
    folder = Path(_builder(_NAMES.get(source.source.lower(), source.name), source.path).data_dir)
    return folder, sorted(str(file) for file in folder.rglob("*") if file.is_file())


def _builder(name: str, path: str | None):
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError("source: this needs TensorFlow Datasets; pip install tensorflow-datasets") from error
    folder = None if path is None else str(data_path(path))
    try:
        builder = tensorflow_datasets.builder(name, data_dir=folder)
    except (tensorflow_datasets.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise UserError(f"name: TensorFlow Datasets cannot give {name!r} ({first_line})") from error
    if not builder.info.splits:
        where = "" if folder is None else f", data_dir={folder!r}"
        raise UserError(
            f"source: the TensorFlow Dataset {name!r} is not prepared in {builder.data_dir}; prepare it where there "
            f'is a network: python -c "import tensorflow_datasets as tfds; tfds.load({name!r}{where})"; or give '
            'the images as files: source = "folder", path = ...'
        )
    return builder


def _parts(builder, split: str | None, test: str | None, name: str) -> dict[str, str]:
    """{our split: theirs}, only those wanted."""
    theirs = list(builder.info.splits)
    test = test or ("test" if "test" in theirs else "validation")
    parts = {"train": "train", "test": test} if {"train", test} <= set(theirs) else {}
    if not parts:
        if len(theirs) != 1:
            raise UserError(f"name: {name!r} has the splits {', '.join(theirs)}, not train and test or one alone")
        return {"all": theirs[0]}
    return {split: parts[split]} if split in parts else parts


def _read(builder, split: str, has_labels: bool) -> tuple[Blobs, np.ndarray]:
    """The encoded images and the labels of a split, in TFDS's fixed order; nothing is decoded."""
    import tensorflow_datasets

    rows = builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders={"image": tensorflow_datasets.decode.SkipDecoding()},
        read_config=tensorflow_datasets.ReadConfig(interleave_cycle_length=1),
    )
    files = Blobs()
    labels: list[int] = []
    for one in tensorflow_datasets.as_numpy(rows):
        files.append(one["image"])
        labels.append(int(one["label"]) if has_labels else 0)
    return files, np.array(labels, np.int64)


def tfds(image_shape, *, seed, name, path=None, classes=None, count=None, split=None, framing=STRETCHED, hashed=False):
    """Any TensorFlow Dataset with an `image` feature, by its TFDS name; it must have been prepared beforehand."""
    return _prepared(name, image_shape, seed, path, classes, count, split, framing, hashed)


def svhn(image_shape, *, seed, path=None, classes=None, count=None, split=None, framing=STRETCHED):
    """SVHN: house numbers, 73,257 training and 26,032 test images of 32x32 in colour, 10 classes (Netzer et al., 2011).

    The 531,131 extra images are not used.
    """
    return _prepared(_NAMES["svhn"], image_shape, seed, path, classes, count, split, framing)


def dtd(image_shape, *, seed, path=None, classes=None, count=None, split=None, framing=STRETCHED, hashed=False):
    """DTD: describable textures, 47 classes, 1,880 training and 1,880 test photographs (arXiv:1311.3618)."""
    return _prepared(_NAMES["dtd"], image_shape, seed, path, classes, count, split, framing, hashed)


def places365(image_shape, *, seed, path=None, classes=None, count=None, split=None, framing=STRETCHED, hashed=False):
    """Places365 (small): scenes of 256x256, 365 classes; its 36,500 validation images are "test" (Zhou et al., 2017).

    The official test images have no labels and are not used.
    """
    return _prepared(_NAMES["places365"], image_shape, seed, path, classes, count, split, framing, hashed, "validation")
