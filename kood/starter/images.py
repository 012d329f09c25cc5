"""What a user's folder of images holds, and what this machine offers."""

import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kood.data.decode import decoding
from kood.data.sources.folder import Listing, listed_splits
from kood.errors import UserError
from kood.machine import cores
from kood.text import clean

__all__ = ["Machine", "Survey", "survey"]

#: Files that are opened to see what the images are like.
LOOKED_AT = 400

#: A size at which one sees whether an image is grey.
_ENOUGH = (64, 64)


@dataclass(frozen=True)
class Survey:
    """What is in a folder of images.

    Attributes:
        names: The classes, empty where the folder has none.
        train: Images of each class that can be trained on.
        test: Images of each class in a test part of its own; empty where there is none.
        shapes: (n, 2) heights and widths of the images looked at.
        grey: Whether all of these are grey.
        unreadable: Files among them that are no images, with the reason.
    """

    names: tuple[str, ...]
    train: tuple[int, ...]
    test: tuple[int, ...]
    shapes: np.ndarray
    grey: bool
    unreadable: tuple[tuple[Path, str], ...]

    @property
    def bad_at_most(self) -> int:
        """How many files may turn out to be unreadable: those seen where all were looked at, else twice their share."""
        files, seen = sum(self.train) + sum(self.test), len(self.shapes) + len(self.unreadable)
        return len(self.unreadable) if seen >= files else math.ceil(2 * len(self.unreadable) * files / seen)


@dataclass(frozen=True)
class Machine:
    """What a run will have.

    Attributes:
        cores: CPU cores that this process may use.
        accelerator: Whether an NVIDIA GPU or a TPU is in sight.
    """

    cores: int
    accelerator: bool

    @classmethod
    def here(cls) -> "Machine":
        """This one; no framework is asked, so a GPU that none of them can use counts too."""
        seen = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None or Path("/dev/accel0").exists()
        return cls(cores(), seen)


def survey(folder: Path, *, looked_at: int = LOOKED_AT) -> Survey:
    """Counts the images of a folder and looks at some of them, spread evenly over it.

    Args:
        folder: path/CLASS/*.png, path/train/CLASS and path/test/CLASS, or path/*.png.
        looked_at: How many files are opened at most.

    Returns:
        A `Survey`.

    Raises:
        UserError: As the data source `folder` does; or none of the files looked at is an image.
    """
    if not folder.is_dir():
        raise UserError(f"{clean(folder)}: {'is a file, not a folder' if folder.exists() else 'does not exist'}; "
                        "give a folder with one sub-folder of images for each class")  # fmt: skip
    splits = listed_splits(folder)
    files, labels, names = splits["train" if "train" in splits else "all"]
    spread = np.unique(np.linspace(0, len(files) - 1, min(len(files), looked_at)).astype(int))
    with ThreadPoolExecutor(8) as pool:
        looks = list(pool.map(_look, [files[i] for i in spread]))
    bad = tuple((Path(files[i]), look) for i, look in zip(spread, looks, strict=True) if isinstance(look, str))
    good = [look for look in looks if not isinstance(look, str)]
    if not good:
        raise UserError(f"{clean(folder)}: none of {len(looks)} files looked at can be read as an image; the first: "
                        f"{clean(bad[0][1])}")  # fmt: skip
    test = _counts(splits["test"]) if "test" in splits else ()
    shapes = np.array([(height, width) for height, width, _ in good])
    return Survey(names, _counts((files, labels, names)), test, shapes, all(grey for _, _, grey in good), bad)


def _counts(listing: Listing) -> tuple[int, ...]:
    files, labels, names = listing
    return tuple(int(n) for n in np.bincount(labels, minlength=len(names))) if names else (len(files),)


def _look(file: str) -> tuple[int, int, bool] | str:
    """Height, width and whether it is grey, or why it is no image."""
    try:
        with decoding(file, _ENOUGH) as (pixels, (height, width)):
            colours = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1]
            return height, width, bool((colours == colours[..., :1]).all())
    except UserError as error:
        return str(error).removeprefix("path: ")
