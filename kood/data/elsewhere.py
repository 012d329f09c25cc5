"""Files of which Keras's own loaders make other pixels: a classifier that learnt from those sees images otherwise."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kood.data.decode import opened, orientation_of
from kood.errors import UserError

__all__ = ["TRANSPARENT", "TURNED", "otherwise", "read_otherwise"]

TRANSPARENT, TURNED = "transparent", "turned by EXIF"

#: Files that are opened to see.
_LOOKED_AT = 400
#: What each kind is for us and for Keras, and what to do where it learnt from Keras's.
_SAID = {
    TURNED: (
        "are turned upright as their EXIF says, which Keras's loaders (image_dataset_from_directory) do not do, so "
        "a model that was trained on them as they are stored labels them worse: train it on upright copies, or give a "
        "kood.Detector the loader's dataset"
    ),
    TRANSPARENT: (
        "are transparent and laid over white (data.ground in a recipe); Keras's loaders drop the transparency and show "
        "the colours below it, so a model that was trained on these labels them worse: give copies without "
        "transparency, or a kood.Detector the loader's dataset"
    ),
}


def otherwise(kinds: Mapping[str, int], looked_at: int) -> list[str]:
    """A sentence for each kind of files that Keras's loaders read otherwise, and how many of those looked at are so.

    Args:
        kinds: How many are `TRANSPARENT` and how many `TURNED`; others do not count.
    """
    return [f"images: {n:,} of {looked_at:,} files looked at {said}" for kind, said in _SAID.items()
            if (n := kinds.get(kind, 0))]  # fmt: skip


def read_otherwise(files: Sequence[str]) -> list[str]:
    """`otherwise` of some files, spread evenly; their pixels are not decoded."""
    spread = np.unique(np.linspace(0, len(files) - 1, min(len(files), _LOOKED_AT)).astype(int))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(_kinds, (files[row] for row in spread)))
    return otherwise({kind: sum(kind in one for one in found) for kind in _SAID}, len(found))


def _kinds(file: str) -> tuple[str, ...]:
    try:
        with opened(file) as image:
            found = {TRANSPARENT: image.has_transparency_data, TURNED: orientation_of(image) > 1}
    except (UserError, OSError, ValueError):
        return ()  # Whoever reads it says so.
    return tuple(kind for kind, is_it in found.items() if is_it)
