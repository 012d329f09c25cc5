"""Image files in folders: how users bring their own data."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kood.data.files import USUAL, files_under, images_among
from kood.data.image_set import ImageSet
from kood.data.rules import WHITE, Colour
from kood.errors import UserError

__all__ = ["folder"]


def folder(
    image_shape: tuple[int, int, int],
    *,
    seed: int,
    path: str,
    classes: Sequence[int | str] | None = None,
    count: int | None = None,
    split: str | None = None,
    max_bad_images: int = 0,
    ground: Colour = WHITE,
) -> dict[str, ImageSet]:
    """Your own images: path/CLASS/*.png, path/train/CLASS and path/test/CLASS, or path/*.png without classes.

    Files of every format that Pillow reads by itself are taken, by their suffix (`kood.data.files.SUFFIXES`), in upper
    or lower case; others are passed over, and so is whatever begins with a dot. Folders within a class's folder belong
    to the class. Classes and files are sorted by name. Only the files that `classes`, `count` and `split` leave are
    decoded.

    Args:
        image_shape: (H, W, C) of the images wanted; files of any size are resized to it.
        seed: Decides which files `count` draws.
        path: The folder; `~` and $VARIABLES are expanded.
        classes: Only these, in this order.
        count: At most so many files of each split, drawn at random.
        split: Only this one, where the folder has `train` and `test`.
        max_bad_images: How many files of each split may be left out because they cannot be read.
        ground: What is seen through transparency, (red, green, blue).

    Returns:
        {"train", "test"} where the folder has both, else {"all"}; without class folders the labels are None.

    Raises:
        UserError: No such folder, no images in it, images beside class folders, one of `train` and `test` without the
            other, more files that cannot be read than `max_bad_images`.
    """
    from kood.data.classes import relabel
    from kood.data.decode import decode_readable
    from kood.data.paths import data_path

    root = data_path(path)
    if not root.is_dir():
        found = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(f"path: {root} {found}; give a folder of images (relative paths start at {Path.cwd()})")
    listed = listed_splits(root)
    if split in listed:
        listed = {split: listed[split]}
    draw = np.random.default_rng([seed, 0xF01D])
    sets = {}
    for name, (files, all_labels, all_names) in listed.items():
        rows, labels, class_names = np.arange(len(files)), all_labels, all_names
        if classes is not None:
            rows, labels, class_names = relabel(classes, all_labels, all_names)
        if count is not None and count < len(rows):
            drawn = np.sort(draw.choice(len(rows), count, replace=False))
            rows, labels = rows[drawn], labels[drawn]
        images, read, skipped = decode_readable([files[row] for row in rows], image_shape, max_bad_images, ground)
        sets[name] = ImageSet(images, labels[read] if class_names else None, class_names, skipped)
    return sets


#: Files, their labels and the names of their classes.
Listing = tuple[list[str], np.ndarray, tuple[str, ...]]


def listed_splits(root: Path) -> dict[str, Listing]:
    """The files of a folder, their labels and the names of their classes, by split; no file is opened."""
    found = images_among(root, links=True)
    inside = {Path(entry).name for entry in found[1]}
    if not inside & {"train", "test"}:
        return {"all": _listed(root, *found)}
    if inside >= {"train", "test"}:
        if inside != {"train", "test"}:
            others = ", ".join(sorted(inside - {"train", "test"}))
            raise UserError(f"path: {root} has folders beside train and test ({others}); move them out of it")
        train, test = (_listed(part, *images_among(part, links=True)) for part in (root / "train", root / "test"))
        unknown = sorted(set(test[2]) - set(train[2]))
        if bool(train[2]) != bool(test[2]):
            having, lacking = ("train", "test") if train[2] else ("test", "train")
            raise UserError(f"path: {root}/{having} has class folders and {root}/{lacking} none; sort both alike")
        if unknown:
            raise UserError(f"path: {root}/test has classes that {root}/train lacks: {', '.join(unknown)}")
        # The test labels count the classes of the training folder, whichever of them the test folder has.
        places = np.array([train[2].index(name) for name in test[2]], np.int64)
        labels = places[test[1]] if len(places) else test[1]
        return {"train": train, "test": (test[0], labels, train[2])}
    here = next(iter(inside & {"train", "test"}))
    if images_among(root / here, links=True)[1]:
        missing = "test" if here == "train" else "train"
        raise UserError(f"path: {root} has {here} but no {missing}; add {missing}, or give {root / here} as the path")
    return {"all": _listed(root, *found)}


def _listed(root: Path, files: list[str], inner: list[str]) -> Listing:
    folders = [Path(entry) for entry in inner]
    if folders and files:
        raise UserError(
            f"path: {root} has images ({Path(files[0]).name}) beside class folders ({folders[0].name}); keep either"
        )
    if not folders:
        if not files:
            raise UserError(f"path: {root} has no images; files must end in {', '.join(USUAL)} or the like")
        return files, np.zeros(len(files), np.int64), ()
    inside: list[str] = []
    labels: list[int] = []
    for label, class_folder in enumerate(folders):
        found = files_under(class_folder)
        if not found:
            raise UserError(f"path: the class folder {class_folder} has no images; fill it or remove it")
        inside += found
        labels += [label] * len(found)
    return inside, np.array(labels, np.int64), tuple(entry.name for entry in folders)
