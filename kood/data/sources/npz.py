"""A NumPy archive: images that have already been read by something else."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from kood.data.image_set import ImageSet
from kood.data.large import filled, is_large
from kood.data.paths import data_path, need
from kood.data.rules import STRETCHED, Framing
from kood.errors import UserError
from kood.files import BROKEN
from kood.text import composed

__all__ = ["npz"]

# More than any classifier here could hold; a larger label is an identifier, not a class.
_MOST_CLASSES = 100_000


def npz(
    image_shape: tuple[int, int, int], *, seed: int, path: str, framing: Framing = STRETCHED
) -> dict[str, ImageSet]:
    """A .npz file: arrays `images` and `labels`, or `x_train`, `y_train`, `x_test` and `y_test`.

    Images are uint8, or float in [0, 1]; (N, H, W, C), channels last, or (N, H, W) for grey. Labels are whole numbers
    from 0, (N,) or (N, 1), and may be left out. `class_names` (strings) may be there; else a class is named by its
    number. Pickled arrays are refused, since reading them can run code.

    Returns:
        {"all"}, or {"train", "test"} where the file has `x_train` and `x_test`.

    Raises:
        UserError: Not a file, not an archive, an array missing or of a wrong kind; the message names it.
    """
    file = data_path(path)
    need(file, "a file", "a file", "give a .npz file")
    arrays = _arrays(file)
    names = _class_names(arrays, file)
    if "images" in arrays:
        keys = {"all": ("images", "labels")}
    elif {"x_train", "x_test"} <= arrays.keys():
        keys = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}
    else:
        raise UserError(
            f"path: {file} has the arrays {sorted(arrays) or 'none'}; it needs `images` (and `labels`), or `x_train` "
            "and `x_test` (and `y_train`, `y_test`)"
        )
    labels = {split: _labels(arrays, x, y, names, file) for split, (x, y) in keys.items()}
    if names is None:
        given = [found for found in labels.values() if found is not None]
        names = tuple(str(k) for k in range(1 + max((int(found.max()) for found in given), default=-1)))
    return {
        split: ImageSet(_images(arrays[x], x, image_shape, file, framing), told, () if told is None else names)
        for (split, (x, _)), told in zip(keys.items(), labels.values(), strict=True)
    }


def reads(source: Any) -> tuple[Path, list[str]]:
    """The folder of a recipe's source, and its one file."""
    file = data_path(source.path)
    return file.parent, [str(file)]


def _arrays(file: Path) -> dict[str, np.ndarray]:
    try:
        loaded = np.load(file, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise UserError(f"path: {file} is a single array; save an archive: np.savez(file, images=..., labels=...)")
        with loaded as archive:
            arrays = {name: _member(archive, name) for name in archive.files}
    except BROKEN as error:
        raise UserError(
            f"path: {file} cannot be read as a .npz archive of plain arrays ({error}); write it with np.savez, without "
            "arrays of Python objects"
        ) from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise UserError(f"path: {name!r} in {file} is no array; write the file with np.savez")
    return arrays


def _member(archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """An array of an archive, a large one a block at a time."""
    of = archive.zip
    member = next((one for one in of.infolist() if one.filename == f"{name}.npy"), None) if of else None
    if of is None or member is None or not is_large(member.file_size):
        return archive[name]
    with of.open(member) as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, columns_first, dtype = header(file)
        if columns_first or dtype.hasobject or not shape:
            return archive[name]
        row = math.prod(shape[1:]) * dtype.itemsize

        def read(rows: slice) -> np.ndarray:
            content = file.read((rows.stop - rows.start) * row)
            if len(content) != (rows.stop - rows.start) * row:
                raise EOFError(f"{name} is cut off")
            return np.frombuffer(content, dtype).reshape(-1, *shape[1:])

        return filled(shape, dtype, read, row)


def _class_names(arrays: dict[str, np.ndarray], file: Path) -> tuple[str, ...] | None:
    if "class_names" not in arrays:
        return None
    names = arrays["class_names"]
    told = tuple(composed(str(name)) for name in names.ravel())
    if names.ndim != 1 or names.dtype.kind != "U" or len(set(told)) != len(told):
        raise UserError(f"path: `class_names` in {file} must be different strings, not {names.dtype} {names.shape}")
    return told


def _images(
    images: np.ndarray, key: str, image_shape: tuple[int, int, int], file: Path, framing: Framing
) -> np.ndarray:
    from kood.data.images import fit_images

    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or 0 in images.shape:
        raise UserError(
            f"path: `{key}` in {file} has shape {images.shape}; it must be (N, H, W, C) channels last, C 1, 3 or 4,"
            " or (N, H, W)"
        )
    floats = images
    if images.dtype.kind == "f":
        images = filled(images.shape, np.uint8, lambda rows: _bytes(floats[rows], key, file), images[:1].nbytes)
    if images.dtype != np.uint8:
        raise UserError(f"path: `{key}` in {file} is {images.dtype}; save it as uint8 of 0..255 or float in [0, 1]")
    return fit_images(images, image_shape, framing)


def _bytes(images: np.ndarray, key: str, file: Path) -> np.ndarray:
    if not np.isfinite(images).all() or images.min() < 0.0 or images.max() > 1.0:
        raise UserError(f"path: `{key}` in {file} is float and must lie in [0, 1] without NaN; or save it as uint8")
    return np.rint(images * 255.0).astype(np.uint8)


def _labels(
    arrays: dict[str, np.ndarray], images_key: str, key: str, names: tuple[str, ...] | None, file: Path
) -> np.ndarray | None:
    if key not in arrays:
        return None
    labels, images = arrays[key], arrays[images_key]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or images.ndim == 0 or len(labels) != len(images):
        raise UserError(
            f"path: `{key}` in {file} must be whole numbers, one for each image, not {labels.dtype} {labels.shape} for "
            f"images {images.shape}"
        )
    most_classes = _MOST_CLASSES if names is None else len(names)
    if len(labels) and (labels.min() < 0 or labels.max() >= most_classes):
        raise UserError(f"path: `{key}` in {file} must count from 0 to at most {most_classes - 1}; it has "
                        f"{labels.min()} to {labels.max()}")  # fmt: skip
    return labels.astype(np.int64)
