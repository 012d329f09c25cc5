"""Image files to pixels, with Pillow, by the rules of `kood.data.rules`."""

import functools
import io
import math
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from kood.data.copies import perceptual_hashes
from kood.data.large import room, rows_of
from kood.data.rules import MIRRORED, STRETCHED, UPSIDE_DOWN, Framing, orientation_in, reduction
from kood.errors import UserError
from kood.machine import release_memory

__all__ = ["decode_image", "decode_readable", "decoded", "decoding", "opened", "orientation_of"]

#: A file, or what one holds.
Source = Path | str | bytes

#: Formats that Pillow only names or hands to another program, which a file could so start.
OUTSIDE = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
#: Formats whose grey pixels of more than 8 bits are known to begin at black and to end at white.
_WIDE = ("JPEG2000", "PNG", "PPM", "TIFF")
#: TIFF's tags for how many bits a number has, for which end is white, and for what kind of number it is.
_BITS, _POLARITY, _KIND = 258, 262, 339

#: Bytes that decoding may take at once, whatever the number of threads; a file that needs more is decoded alone.
IN_FLIGHT = 512 * 2**20
#: Bytes a pixel and channel: Pillow's copy, NumPy's, TensorFlow's, and float32 to resize.
_EACH = 8
#: Bytes of a file after which the freed memory is given back.
_TRIMMED = 64 * 2**20
#: Pixels of an image up to which it waits for others of its shape, to be resized with them, so many at once.
_SMALL = 2**18
_CHUNK = 32
_THREADS = 8


class _UnreadableError(UserError):
    """A file that is no image: `why` names it and says what is wrong, the message also how to mend it."""

    def __init__(self, why: str, fix: str = "mend or remove the file"):
        super().__init__(f"path: {why}; {fix}")
        self.why = why


class _Memory:
    """Bytes that are shared out among threads, in turn."""

    def __init__(self) -> None:
        # A file is opened in turn too: some formats make room for their pixels when they are opened.
        self.turn = threading.Lock()
        self._taken = 0
        self._given = threading.Condition()

    def take(self, size: int) -> None:
        """Waits until there is room, or nothing else in flight."""
        with self._given:
            self._given.wait_for(lambda: not self._taken or self._taken + size <= IN_FLIGHT)
            self._taken += size

    def give(self, size: int) -> None:
        """Lets others have it."""
        with self._given:
            self._taken -= size
            self._given.notify_all()


_memory = _Memory()


def decode_image(source: Source, size: tuple[int, int] | None = None) -> np.ndarray:
    """One image file as uint8 (h, w, c), c 1 grey, 3 RGB or 4 RGBA; alpha is for `images.to_shape` to composite.

    Args:
        source: A path, or the bytes of a file.
        size: (H, W) that it will be resized to, so that a large JPEG may be reduced while it is decoded.

    Raises:
        UserError: Not an image, or a damaged one; the message names the file.
    """
    with decoding(source, size) as (pixels, _):
        return pixels


@contextmanager
def decoding(
    source: Source, size: tuple[int, int] | None = None, framing: Framing = STRETCHED
) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """As `decode_image`, for work on the pixels whose memory is part of what decoding may take at once.

    `framing` says how it will be brought to `size`.

    Yields:
        The pixels, and the (height, width) that they have unreduced.
    """
    taken = 0
    try:
        try:
            with _memory.turn:
                image = opened(source)
                orientation = orientation_of(image)
                height, width = image.size if orientation >= 5 else image.size[::-1]
                reducible = image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")
                how = (framing.resize, framing.antialias)
                by = reduction(height, width, size, *how) if size and reducible else 1
                _memory.take(cost := _cost(image, by))
                taken = cost
            with image:
                pixels = _pixels(image, orientation, by)
            del image  # Its own copy of the pixels goes with it.
        # Each of Pillow's formats has its own way to fail on a damaged file.
        except Exception as error:
            from PIL import Image, UnidentifiedImageError

            name = "an image" if isinstance(source, bytes) else str(source)
            why = str(error) or type(error).__name__
            if isinstance(error, UnidentifiedImageError):  # Whose own words name the file, or what stands for it.
                why = "its content is no known image format"
            if isinstance(error, Image.DecompressionBombError):
                found, most = re.findall(r"\d+", str(error))[:2]
                why = f"it has {int(found):,} pixels, and {int(most):,} are the most that are read"
                raise _UnreadableError(f"{name} is too large ({why})", "make it smaller, or remove the file") from error
            raise _UnreadableError(f"{name} cannot be read as an image ({why})") from error
        yield pixels, (height, width) if by > 1 else pixels.shape[:2]
    finally:
        if taken > _TRIMMED:
            release_memory()
        _memory.give(taken)


def opened(source: Source):
    """A file as Pillow opens it, undecoded."""
    from PIL import Image

    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats())


@functools.cache
def _formats() -> list[str]:
    from PIL import Image

    Image.init()
    # Some formats have no mark of their own and try whatever comes: those that have one go first.
    usual = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")
    return [one for one in sorted(Image.ID, key=lambda name: name not in usual) if one not in OUTSIDE]


def orientation_of(image) -> int:
    """The orientation by which a file that `opened` gave is still to be turned, 1 to 8."""
    if image.format in ("JPEG", "MPO"):
        blocks = (data for name, data in image.applist if name == "APP1" and data.startswith(b"Exif\0\0"))
        return orientation_in(next(blocks, b""))
    # Pillow itself turns a TIFF.
    return 1 if image.format == "TIFF" else orientation_in(image.info.get("exif", b""))


def _cost(image, by: int) -> int:
    """Bytes that decoding and resizing take."""
    whole = image.width * image.height
    channels = {"1": 1, "L": 1, "RGB": 3}.get(image.mode, 4)
    # A progressive JPEG keeps all its coefficients, 16 bits each, until the last is read.
    return _EACH * channels * (whole // by**2) + (2 * channels * whole if image.info.get("progressive") else 0)


def _pixels(image, orientation: int, by: int) -> np.ndarray:
    if by > 1:
        image.draft(None, (image.width // by, image.height // by))
    if image.format == "TIFF":
        # Pillow would turn a TIFF by these.
        for key in ("xmp", "XML:com.adobe.xmp"):
            image.info.pop(key, None)
    pixels = _plain(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in MIRRORED:
        pixels = pixels[:, ::-1]
    return pixels[::-1] if orientation in UPSIDE_DOWN else pixels


def _plain(image) -> np.ndarray:
    """Whatever Pillow makes of a file, as grey, RGB or RGBA of 8 bits."""
    key, mode = image.info.get("transparency"), image.mode
    tags = image.tag_v2 if image.format == "TIFF" else {}
    bits, is_wide = tags.get(_BITS, (16,))[0], mode.startswith("I")
    if 2 in tags.get(_KIND, ()) or (is_wide and (image.format not in _WIDE or bits > 16)):
        why = "its pixels are whole numbers of no known range, as those with a sign and those of 32 bits are"
        raise ValueError(f"{why}; save it with 8 or 16 bits, without a sign")
    # A GIF is colour to the graph even where all its colours are grey.
    if mode == "RGBA" or (key is None and (mode == "RGB" or (mode == "L" and image.format != "GIF"))):
        return np.asarray(image)
    if mode == "F":
        raise ValueError("its pixels are floating-point numbers of no known range; save it with 8 or 16 bits")
    if is_wide:
        # Pillow leaves the 12 bits of a TIFF as they are, and one whose white is 0 too.
        wide, most = np.asarray(image), 4095 if bits == 12 else 65535
        return _of_16_bits(most - wide if tags.get(_POLARITY) == 0 else wide, most, key)
    stored = image.tile[0].args if image.format == "PNG" and image.tile else None
    if stored == "RGB;16B" and key is not None:
        raise ValueError("it has a transparent colour of 16 bits; save it with an alpha channel")
    if stored in ("L;2", "L;4") and key is not None:
        # The pixels are spread over 0..255, the transparent value is as the file has it.
        image.info["transparency"] = min(key * (85 if stored == "L;2" else 17), 255)
    if mode == "1" and key is None:
        return np.asarray(image.convert("L"))
    return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def _of_16_bits(wide: np.ndarray, most: int, key: int | None) -> np.ndarray:
    # Pillow's own conversion to 8 bits clips at 255 instead of scaling.
    narrow = np.rint(wide * np.float32(255 / most)).astype(np.uint8)
    if key is None:
        return narrow
    return np.stack([narrow, narrow, narrow, np.where(wide == key, 0, 255).astype(np.uint8)], axis=-1)


def decode_readable(
    sources: Sequence[Source], image_shape: tuple[int, int, int], max_bad_images: int, framing: Framing = STRETCHED,
    hashes: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:  # fmt: skip
    """Many image files, each brought to `image_shape`, in order; those that cannot be read are left out.

    Args:
        max_bad_images: How many may be left out.
        hashes: uint64 (N,), which is given the perceptual hash of each whole picture, before it is brought there.

    Returns:
        (images, rows, why): uint8 (N, H, W, C); which of the sources they are, (N,); and a message for each of the
        others.

    Raises:
        UserError: More cannot be read; the message names the first of them.
    """
    images, read, why = room((len(sources), *image_shape), np.uint8), [np.empty(0, np.int64)], list[str]()
    for rows, block in decoded(sources, image_shape, max_bad_images, framing, why, hashes):
        images[rows] = block
        read.append(rows)
    kept = np.concatenate(read)
    return (images if len(kept) == len(sources) else rows_of(images, kept)), kept, tuple(why)


def decoded(
    sources: Sequence[Source], image_shape: tuple[int, int, int], max_bad_images: int, framing: Framing, why: list[str],
    hashes: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """`decode_readable`, a block of files at a time.

    The arguments are those of it; `why` is given a message for each file that is left out.

    Yields:
        Which of the sources could be read, int64 (n,), and their images, uint8 (n, H, W, C).
    """
    reading = threading.Lock()

    def attempt(place: np.integer) -> np.ndarray | _UnreadableError:
        with reading:
            source = sources[int(place)]
        try:
            with decoding(source, image_shape[:2], framing) as (pixels, _):
                if hashes is not None:
                    hashes[place] = perceptual_hashes(pixels[None], framing.ground)[0]
                if pixels.shape[0] * pixels.shape[1] <= _SMALL:
                    return pixels
                return _fit(pixels[None], image_shape, framing)[0]
        except _UnreadableError as error:
            return error

    with ThreadPoolExecutor(_THREADS) as pool:

        def begun(start: int) -> tuple[np.ndarray, list[Future]]:
            places = np.arange(start, min(start + _CHUNK, len(sources)))
            return places, [pool.submit(attempt, place) for place in places]

        due = begun(0)
        while due[1]:
            places, ahead = due
            found = [one.result() for one in ahead]
            good = [one for one in found if not isinstance(one, _UnreadableError)]
            for one in found:
                if isinstance(one, _UnreadableError):
                    why.append(one.why)
                    if len(why) > max_bad_images:
                        raise _too_many(one, why, max_bad_images) from one
            read = places[[not isinstance(one, _UnreadableError) for one in found]]
            block, fitting = np.empty((len(good), *image_shape), np.uint8), []
            for shape in {pixels.shape for pixels in good}:
                alike = [row for row, pixels in enumerate(good) if pixels.shape == shape]
                step = max(1, _SMALL // math.prod(shape[:2]))
                for rows in (alike[at : at + step] for at in range(0, len(alike), step)):
                    together = np.stack([good[row] for row in rows])
                    fitting.append((rows, pool.submit(_fit, together, image_shape, framing)))
            due = begun(int(places[-1]) + 1)  # While what becomes of this one is used.
            for rows, one in fitting:
                block[rows] = one.result()
            yield read, block


def _too_many(last: UserError, why: Sequence[str], most: int) -> UserError:
    if not most:
        return UserError(f"{last}, or set max_bad_images to go on without it")
    told = "; ".join(why[:5]) + ("; ..." if len(why) > 5 else "")
    return UserError(f"path: more files than max_bad_images = {most} cannot be read: {told}; mend or remove them")


def _fit(images: np.ndarray, image_shape: tuple[int, int, int], framing: Framing) -> np.ndarray:
    if images.shape[1:] == tuple(image_shape):
        return images
    from kood.data.images import fit_images

    return fit_images(images, image_shape, framing)
