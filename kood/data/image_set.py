"""What every data source gives and every stage takes: images with, perhaps, labels."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from kood.data.copies import perceptual_hashes
from kood.data.deferred import Images, chained
from kood.data.large import blocks_of, rows_of
from kood.text import composed

__all__ = ["ImageSet", "Looks", "Splits", "joined"]


@dataclass(frozen=True)
class ImageSet:
    """Images of one shape, with their labels where they have any.

    Args:
        images: uint8 (N, H, W, C), in memory, mapped from a file, or deferred (`kood.data.deferred`) where they are
            large; or float32 (N, D), the features that a frozen backbone gave for them.
        labels: int64 (N,), each an index into `class_names`; or None.
        class_names: One name a class, kept composed (Unicode NFC); empty where there are no labels.
        skipped: Why files of the source are not among the images, a message each.
        notes: What else the source has to say of itself, such as which folders it passed over, a sentence each.
        groups: int64 (N,); images of one number (one patient, one video) stay together when the set is split. None
            where every image stands for itself.
        hashes: uint64 (N,), as `kood.data.copies.perceptual_hashes` has them of the whole pictures, before they were
            brought to the shape; None where these were not asked for, or the images are all that there is.
        files: Names (N,) of the files that the images are in, where hashes were asked for and there are such.

    Raises:
        ValueError: A dtype, shape or label that breaks the above.
    """

    images: Images
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    groups: np.ndarray | None = None
    hashes: np.ndarray | None = None
    files: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(composed(name) for name in self.class_names))
        if (self.images.dtype, self.images.ndim) not in ((np.uint8, 4), (np.float32, 2)):
            raise ValueError(
                f"images must be uint8 (N, H, W, C), or features float32 (N, D), not {self.images.dtype} "
                f"{self.images.shape}"
            )
        for name, dtype in (("groups", "int64"), ("labels", "int64"), ("hashes", "uint64")):
            found = getattr(self, name)
            if found is not None and (found.dtype != dtype or found.shape != (len(self.images),)):
                raise ValueError(f"{name} must be {dtype} ({len(self.images)},), not {found.dtype} {found.shape}")
        labels, classes = self.labels, len(self.class_names)
        if labels is not None and len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(f"labels must lie in 0..{classes - 1}, one for each of class_names")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def is_pixels(self) -> bool:
        """Whether these are pixels; else features."""
        return self.images.ndim == 4

    @property
    def known_labels(self) -> np.ndarray:
        """`labels`; raises `ValueError` where there are none."""
        if self.labels is None:
            raise ValueError("these images have no labels")
        return self.labels

    def take(self, indices: Sequence[int] | np.ndarray) -> "ImageSet":
        """The images (and labels) at `indices`, in that order."""
        rows = np.asarray(indices)
        rows = rows if rows.size else rows.astype(np.int64)
        labels = None if self.labels is None else self.labels[rows]
        groups = None if self.groups is None else self.groups[rows]
        hashes = None if self.hashes is None else self.hashes[rows]
        files = None if self.files is None else self.files[rows]
        images = rows_of(self.images, rows)
        return ImageSet(images, labels, self.class_names, self.skipped, self.notes, groups, hashes, files)

    def sha256(self) -> str:
        """A hexadecimal digest of the content: shape, pixels (or the digest of each image), labels and class names."""
        digest = hashlib.sha256(repr((self.images.shape, self.labels is None, self.class_names)).encode())
        for block in blocks_of(getattr(self.images, "digests", self.images)):
            digest.update(np.ascontiguousarray(block).data)
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        return digest.hexdigest()


def joined(sets: Sequence[ImageSet]) -> ImageSet:
    """Sets of one shape as one, in their order, with their labels where all have the same classes."""
    whole = chained([one.images for one in sets])
    if any(one.labels is None or one.class_names != sets[0].class_names for one in sets):
        return ImageSet(whole)
    return ImageSet(whole, np.concatenate([one.known_labels for one in sets]), sets[0].class_names)


class Looks(NamedTuple):
    """What images show, by their perceptual hashes.

    Attributes:
        hashes: uint64 (N,) of `kood.data.copies.perceptual_hashes`.
        files: Names (N,) of their files; "" where an image has none.
    """

    hashes: np.ndarray
    files: np.ndarray

    @classmethod
    def of(cls, sets: Sequence[ImageSet]) -> "Looks":
        """Those of several sets, one after the other; what has none yet is looked at as it is."""
        hashes = [perceptual_hashes(one.images) if one.hashes is None else one.hashes for one in sets]
        files = [np.full(len(one), "", object) if one.files is None else one.files for one in sets]
        return cls(np.concatenate(hashes), np.concatenate(files))


@dataclass(frozen=True)
class Splits:
    """The in-distribution images by what they are for; no image stands in two of them.

    Args:
        train: What the classifier and the diffusion model learn from.
        validation: What choices are made on.
        calibration: What the threshold is set on; nothing else sees it.
        test: What is reported on; nothing else sees it.
        digests: (N, 16) uint8, different and ascending: every image that the source gave, those left out too.
        looks: The perceptual hashes of these images, and their files, where `near_copies` asks for them.
        copies: Counts of images that are there more than once, see `kood.data.loading.load_id`.
        groups: {"images", "groups"} of each part to measure on whose images stand in groups, see
            `kood.data.splitting.in_groups`.
        notes: What is to be known of the split, a sentence each.
        warnings: What speaks against the data, a sentence each.
    """

    train: ImageSet
    validation: ImageSet
    calibration: ImageSet
    test: ImageSet
    digests: np.ndarray = field(default_factory=lambda: np.empty((0, 16), np.uint8))
    looks: Looks | None = None
    copies: dict[str, int] = field(default_factory=dict)
    groups: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
