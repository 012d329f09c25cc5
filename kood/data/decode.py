"""Image files to pixels, with Pillow: one place that knows rotation flags, palettes, CMYK, 16 bits and animations."""

import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kood.data.large import room, rows_of
from kood.errors import UserError

__all__ = ["decode_image", "decode_images", "decode_readable"]

#: A file, or what one holds.
Source = Path | str | bytes

# Files in flight at once: enough for the threads, few enough that large photographs do not fill the memory.
_CHUNK = 64
_THREADS = 8


class _UnreadableError(UserError):
    """A file that is no image: `why` names it and says what is wrong, the message also how to mend it."""

    def __init__(self, why: str):
        super().__init__(f"path: {why}; mend or remove the file")
        self.why = why


def decode_image(source: Source) -> np.ndarray:
    """One image file as uint8 (h, w, c), c 1 grey, 3 RGB or 4 RGBA.

    EXIF rotation is applied; of an animation the first frame is taken; palettes become colours; CMYK and the like
    become RGB; 16-bit grey is scaled by 255/65535; transparency is kept as alpha, for `images.to_shape` to composite.

    Args:
        source: A path, or the bytes of a file.

    Raises:
        UserError: Not an image, or a damaged one; the message names the file.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            # Straight to pixels where there is nothing to put right: most files of most data sets.
            plain = image.mode in ("L", "RGB") and not image.getexif() and "transparency" not in image.info
            pixels = np.asarray(image if plain else _plain(ImageOps.exif_transpose(image)))
    except (OSError, ValueError, SyntaxError, EOFError, TypeError, Image.DecompressionBombError) as error:
        name = "an image" if isinstance(source, bytes) else str(source)
        raise _UnreadableError(f"{name} cannot be read as an image ({_why(error)})") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _why(error: Exception) -> str:
    """What is wrong with a file; Pillow names the file, or the object that stands for it."""
    from PIL import UnidentifiedImageError

    return "its content is no known image format" if isinstance(error, UnidentifiedImageError) else str(error)


def _plain(image):
    if image.mode in ("L", "RGB", "RGBA") and "transparency" not in image.info:
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode.startswith("I"):
        # Pillow's own conversion to 8 bits clips at 255 instead of scaling.
        from PIL import Image

        wide = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.clip(np.rint(wide * (255.0 / 65535.0)), 0, 255).astype(np.uint8))
    has_alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    return image.convert("RGBA" if has_alpha else "RGB")


def decode_images(sources: Sequence[Source], image_shape: tuple[int, int, int]) -> np.ndarray:
    """Many image files, each brought to `image_shape`, in order.

    Args:
        sources: Paths or bytes.
        image_shape: (H, W, C).

    Returns:
        uint8 (N, H, W, C).

    Raises:
        UserError: As `decode_image` does, for the first file that cannot be read.
    """
    return decode_readable(sources, image_shape, 0)[0]


def decode_readable(
    sources: Sequence[Source], image_shape: tuple[int, int, int], max_bad_images: int
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Many image files, each brought to `image_shape`, in order; those that cannot be read are left out.

    Args:
        sources: Paths or bytes.
        image_shape: (H, W, C).
        max_bad_images: How many may be left out.

    Returns:
        (images, rows, why): uint8 (N, H, W, C); which of the sources they are, (N,); and a message for each of the
        others.

    Raises:
        UserError: More cannot be read; the message names the first of them.
    """
    images = room((len(sources), *image_shape), np.uint8)
    good = np.ones(len(sources), bool)
    why: list[str] = []

    def attempt(source: Source) -> np.ndarray | _UnreadableError:
        try:
            return decode_image(source)
        except _UnreadableError as error:
            return error

    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(sources), _CHUNK):
            found = list(pool.map(attempt, sources[start : start + _CHUNK]))
            for place, one in enumerate(found):
                if isinstance(one, _UnreadableError):
                    good[start + place] = False
                    why.append(one.why)
                    if len(why) > max_bad_images:
                        raise _too_many(one, why, max_bad_images) from one
            decoded = [(start + place, one) for place, one in enumerate(found) if isinstance(one, np.ndarray)]
            for rows, same_shape in _by_shape(decoded):
                images[rows] = _fit(same_shape, image_shape)
    kept = np.flatnonzero(good)
    return (images if len(kept) == len(sources) else rows_of(images, kept)), kept, tuple(why)


def _too_many(last: UserError, why: Sequence[str], most: int) -> UserError:
    if not most:
        return UserError(f"{last}, or set max_bad_images to go on without it")
    told = "; ".join(why[:5]) + ("; ..." if len(why) > 5 else "")
    return UserError(f"path: more files than max_bad_images = {most} cannot be read: {told}; mend or remove them")


def _fit(images: np.ndarray, image_shape: tuple[int, int, int]) -> np.ndarray:
    if images.shape[1:] == tuple(image_shape):
        return images
    from kood.data.images import fit_images

    return fit_images(images, image_shape)


def _by_shape(decoded: Iterable[tuple[int, np.ndarray]]) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    members_of: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    for row, pixels in decoded:
        members_of.setdefault(pixels.shape, []).append((row, pixels))
    for members in members_of.values():
        yield np.array([row for row, _ in members]), np.stack([pixels for _, pixels in members])
