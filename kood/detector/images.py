"""Images from wherever they come, in batches of one size: nothing asks for all of them in memory."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from kood.attached.pixels import check_shape
from kood.attached.watching import Shape
from kood.data.files import PassedOver, files_under
from kood.data.large import ahead
from kood.data.listing import Listing, part_of
from kood.data.paths import data_path, need
from kood.data.rules import STRETCHED, Framing
from kood.data.sources.table import NO_RECIPE, TABLES, listed_files, listed_table, other_columns
from kood.errors import UserError, in_words
from kood.text import clean, composed, some_of

__all__ = ["Batch", "are_files", "batches", "count_of", "parted", "regrouped"]

#: Words of a dictionary's element for the images and for their classes.
_KEYS = ("image", "label")
#: `tf.data`'s cardinality of a dataset that never ends.
_INFINITE = -1


@dataclass(frozen=True)
class Batch:
    """Some images.

    Attributes:
        pixels: uint8 or float32 (n, H, W, C), n at least 1.
        labels: int64 (n,), or None.
        files: The n files they come from, or None.
        unreadable: A message for each file that could not be read since the batch before.
    """

    pixels: np.ndarray
    labels: np.ndarray | None = None
    files: list[str] | None = None
    unreadable: tuple[str, ...] = ()


def batches(
    images: Any,
    shape: Shape,
    *,
    batch_size: int,
    framing: Framing = STRETCHED,
    labels: Any = None,
    class_names: Sequence[str] | None = None,
    labelled: bool = True,
    perhaps: bool = False,
    shown: str = "images",
) -> Iterator[Batch]:
    """Batches of images, all of `batch_size` but the last, with progress on the error stream where it is a terminal.

    Args:
        images: An array or tensor (N, H, W, C); a `tf.data.Dataset`, `keras.utils.PyDataset`, data loader, generator or
            other iterable of batches or single images, each x, (x, y) or {"image": x, "label": y}; a folder; a file,
            a list of files, or a table of lines FILE or FILE,LABEL. Files are decoded a batch at a time, the next one
            while the batch before is used.
        shape: (H, W, C) of the model, None where it takes any size; files are brought to it.
        labels: (N,) the class of each image, or (N, K) one-hot; in place of those that come with the images.
        class_names: The model's classes, in order: then class folders and a table's labels are matched with them, and
            a label is one of them or its number. Without them files have no labels, and all images in a folder and in
            the folders in it are taken, as `kood predict` takes them.
        labelled: Whether labels that come with the images count; those of out-of-distribution images mean nothing here.
        perhaps: Whether a folder may have class folders that are all none of the model's classes, and then no labels.

    Raises:
        UserError: images of another rank, size or number of channels, NaN in them, labels that do not fit, no images
            at all, none of the files can be read, a dataset that never ends; at the latest when such a batch is due.
    """
    names = None if class_names is None else [composed(name) for name in class_names]
    given = None if labels is None else _numbers(_array(labels), names, 0)
    named = are_files(images)
    files, own = _files(images, names, perhaps, given is None) if named else ([], None)
    total = len(files) if named else count_of(images)
    if given is not None and total is not None and len(given) != total:
        raise UserError(f"labels: there are {len(given):,} labels for {total:,} images; give one an image")
    if _is_array(images):
        check_shape(shape, tuple(images.shape))
    if named:
        parts = _of_files(files, own if given is None else given, _whole(shape, files), batch_size, framing)
    else:
        parts = _of_rows(_rows(images, batch_size), shape, names, given, labelled)
    return _watched(regrouped(parts, batch_size), total, shown)


def _watched(found: Iterable[Batch], count: int | None, what: str) -> Iterator[Batch]:
    """Batches as they come, with progress on the error stream where that is a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=count)
        for batch in found:
            yield batch
            progress.advance(task, len(batch.pixels))


def count_of(images: Any) -> int | None:
    """The number of images that are no files, None where only going through them tells.

    Args:
        images: As `batches` takes them.

    Raises:
        UserError: a dataset that never ends.
    """
    if _is_array(images):
        return int(images.shape[0]) if len(images.shape) else 0
    if hasattr(images, "as_numpy_iterator"):
        count = int(images.cardinality())
        if count == _INFINITE:
            raise UserError("images: this dataset never ends; leave repeat() out, or take some of it by take(count)")
        return count if count >= 0 and not _is_batched(images) else None
    return None


def _is_array(images: Any) -> bool:
    return hasattr(images, "shape") and hasattr(images, "dtype")


def are_files(images: Any) -> bool:
    """Whether images are given as a folder, a file or several files."""
    if isinstance(images, list | tuple):
        return bool(images) and all(isinstance(one, str | Path) for one in images)
    return isinstance(images, str | Path)


def _is_batched(dataset: Any) -> bool:
    return parted(dataset.element_spec)[0].shape.rank != 3


def parted(element: Any) -> tuple[Any, Any]:
    """Images and labels of an element, the latter None where it has none."""
    if isinstance(element, dict):
        if _KEYS[0] not in element:
            raise UserError(f"images: a dataset of dictionaries needs the key {_KEYS[0]!r}; these have "
                            f"{some_of(map(str, element))}")  # fmt: skip
        return element[_KEYS[0]], element.get(_KEYS[1])
    if isinstance(element, list | tuple):
        if not 1 <= len(element) <= 3:
            raise UserError(f"images: a batch is images, or (images, labels); this one has {len(element)} parts")
        return element[0], element[1] if len(element) > 1 else None
    return element, None


def _files(images: Any, names: list[str] | None, perhaps: bool, its_own: bool) -> tuple[list[str], np.ndarray | None]:
    """The files that a folder, a file or a list of files means, and their classes where names are given.

    Those of a table only if `its_own` count.
    """
    if isinstance(images, list | tuple):
        return [str(one) for one in images], None
    path = Path(images).expanduser()
    if path.is_file():
        if path.suffix.lower() in TABLES:
            return _in_table(path, names, perhaps, its_own)
        return [str(path)], None
    if names is None:  # They show whatever they show, however they lie.
        folder, passed = data_path(str(path)), PassedOver()
        need(folder, "a folder", "a folder", "give a folder of images")
        if not (found := files_under(folder, passed, links=True)):
            raise UserError(f"images: there are none in {clean(folder)}" + "".join(f"; {n}" for n in passed.notes()))
        return found, None
    from kood.data.sources.folder import listed_splits

    listed = listed_splits(str(path))
    if len(listed.parts) > 1:
        raise UserError(f"images: {clean(path)} has {' and '.join(listed.parts)}; give the folder of one of them")
    (part,) = listed.parts.values()
    if not part.names and not perhaps:
        raise UserError(f"images: {clean(path)} has no class folders, which say what the images show; sort them into "
                        "one a class")  # fmt: skip
    return part.files, _numbered(part, names, perhaps, f"{clean(path)} has class folders")


def _in_table(path: Path, names: list[str] | None, perhaps: bool, its_own: bool) -> tuple[list[str], np.ndarray | None]:
    """The files that a table names, and their classes where they need some and it has any.

    Where names are given, neither what may be labels nor what may be a split is passed over.
    """
    with in_words({"^path: ": "images: ", **NO_RECIPE}):
        if names is None:
            return listed_files(str(path)), None
        columns = other_columns(str(path), ("label", "split"))
        for _, values in columns:  # However a column is called that says so: some images are kept for something else.
            found = {part_of(one) for one in values}
            parts = [part for part in ("train", "validation", "test") if part in found]
            if len(parts) > 1:
                raise UserError(f"images: {clean(path)} has {' and '.join(parts)}; give a table of one of them")
        fits = any(_may_be_classes(values, names) for _, values in columns)
        if not its_own or (perhaps and not fits and not any(called and values for called, values in columns)):
            return listed_files(str(path)), None
        listed = listed_table(str(path))
    (part,) = listed.parts.values()
    own = _numbered(part, names, perhaps and not fits, f"{clean(path)} has classes") if part.names else None
    return part.files, own


def _may_be_classes(values: list[str], names: list[str]) -> bool:
    """Whether a column names a class of the model's, or most of it are numbers of these: more numbers are of others."""
    known = {" ".join(name.split()).casefold() for name in names}
    fitting = [one for one in values if " ".join(one.split()).casefold() in known
               or (one.isdecimal() and int(one) < len(names))]  # fmt: skip
    return bool(fitting) and (2 * len(fitting) >= len(values) or not all(map(str.isdecimal, fitting)))


def _numbered(part: Listing, names: list[str], perhaps: bool, what: str) -> np.ndarray | None:
    """The classes of a listing as numbers of the model's; None of others where it may have these."""
    if perhaps and set(names).isdisjoint(part.names):
        return None
    unknown = [name for name in part.names if name not in names]
    if unknown:
        raise UserError(f"images: {what} that are none of the model's classes: {some_of(map(clean, unknown))}; the "
                        f"classes are {some_of(map(clean, names))}")  # fmt: skip
    return np.array([names.index(name) for name in part.names], np.int64)[part.labels]


def _whole(shape: Shape, files: list[str]) -> tuple[int, int, int]:
    """The shape that files are brought to."""
    height, width, channels = shape
    if height is None or width is None:
        raise UserError(
            f"images: files are brought to one size, and the model takes any; say to which ({clean(files[0])})"
        )
    if channels not in (1, 3):
        raise UserError(f"images: files are brought to 1 channel or 3, and the model takes {channels}; give arrays")
    return height, width, channels


def _of_files(
    files: list[str], labels: np.ndarray | None, shape: tuple[int, int, int], batch_size: int, framing: Framing
) -> Generator[Batch, None, None]:
    from kood.data.decode import decode_readable

    def decoded(rows: slice) -> Batch:
        some = files[rows]
        pixels, read, why = decode_readable(some, shape, len(some), framing)
        own = None if labels is None else labels[rows][read]
        return Batch(pixels, own, [some[row] for row in read], why)

    return ahead(decoded, len(files), batch_size)


def _rows(images: Any, batch_size: int) -> Iterator[Any]:
    """The elements of a source that is no file."""
    if _is_array(images):
        return (images[start : start + batch_size] for start in range(0, int(images.shape[0]), batch_size))
    if hasattr(images, "as_numpy_iterator"):
        if not _is_batched(images):
            # TensorFlow batches images of one size alone.
            images = images.batch(batch_size if parted(images.element_spec)[0].shape.is_fully_defined() else 1)
        return images.as_numpy_iterator()
    if hasattr(images, "num_batches") and hasattr(images, "__getitem__"):  # Keras's own never ends by itself.
        return (images[number] for number in range(images.num_batches))
    if not isinstance(images, Iterable) or isinstance(images, dict):
        raise UserError(f"images: {type(images).__name__} is none of: an array, a dataset, an iterable of batches, a "
                        "folder, a list of files")  # fmt: skip
    return iter(images)


def _of_rows(
    elements: Iterator[Any], shape: Shape, names: list[str] | None, given: np.ndarray | None, labelled: bool
) -> Generator[Batch, None, None]:
    start = 0
    for element in elements:
        found, own = parted(element)
        own, pixels = own if labelled else None, _array(found)
        if pixels.ndim == 3 and pixels.shape[2] == shape[2]:  # One image; else a batch without channels.
            pixels, own = pixels[None], None if own is None else _array(own)[None]
        check_shape(shape, pixels.shape)
        if not len(pixels):
            continue
        pixels, end = _numbers_of_pixels(pixels, start), start + len(pixels)
        if given is not None:
            if end > len(given):
                raise UserError(
                    f"labels: there are {len(given):,} labels for {end:,} images or more; give one an image"
                )
            own = given[start:end]
        elif own is not None:
            own = _numbers(_array(own), names, start)
            if len(own) != len(pixels):
                raise UserError(
                    f"labels: a batch has {len(own):,} labels for {len(pixels):,} images; give one an image"
                )
        start = end
        yield Batch(pixels, own)
    if given is not None and start < len(given):
        raise UserError(f"labels: there are {len(given):,} labels for {start:,} images; give one an image")


def regrouped(parts: Generator[Batch, None, None], batch_size: int) -> Iterator[Batch]:
    """The same rows in batches of one size, but for the last.

    A full batch waits for another row, so that files that cannot be read at the very end belong to some batch.
    """
    waiting: list[Batch] = []
    unreadable: list[str] = []
    try:
        for part in parts:
            unreadable += part.unreadable
            if waiting and len(part.pixels) and (part.labels is None) != (waiting[0].labels is None):
                raise UserError("labels: some batches have labels and some have none; give them with all or with none")
            start = 0
            while start < len(part.pixels):
                room = batch_size - sum(len(one.pixels) for one in waiting)
                if not room:
                    yield _joined(waiting, unreadable)
                    waiting, unreadable, room = [], [], batch_size
                waiting.append(_cut(part, slice(start, start + room)))
                start += room
        if waiting:
            yield _joined(waiting, unreadable)
        else:
            raise UserError(f"images: none of the {len(unreadable):,} files can be read; {unreadable[0]}" if unreadable
                            else "images: there are none; give at least one")  # fmt: skip
    finally:
        parts.close()


def _joined(parts: list[Batch], unreadable: list[str]) -> Batch:
    pixels = [part.pixels for part in parts]
    sizes = dict.fromkeys(str(one.shape[1:]) for one in pixels)
    if len(sizes) > 1:
        raise UserError(f"images: they have several sizes ({some_of(sizes)}); resize them to one")
    labels = [part.labels for part in parts if part.labels is not None]
    files = [file for part in parts for file in part.files or ()]
    if len(parts) == 1:
        return replace(parts[0], unreadable=tuple(unreadable))
    return Batch(np.concatenate(pixels), np.concatenate(labels) if labels else None, files or None, tuple(unreadable))


def _cut(batch: Batch, rows: slice) -> Batch:
    labels, files = batch.labels, batch.files
    return Batch(batch.pixels[rows], labels if labels is None else labels[rows], files and files[rows])


def _array(rows: Any) -> np.ndarray:
    """A NumPy array of an array or tensor of any backend."""
    return np.asarray(rows.detach().cpu() if hasattr(rows, "detach") else rows)


def _numbers_of_pixels(pixels: np.ndarray, start: int) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind in "iu":
        if pixels.size and not 0 <= pixels.min() <= pixels.max() <= 255:
            raise UserError(f"images: whole numbers must lie in 0..255; these lie in {pixels.min()}..{pixels.max()}")
        return pixels.astype(np.uint8)
    if pixels.dtype.kind not in "fV":  # bfloat16 is a kind of its own to NumPy.
        raise UserError(f"images: pixels are numbers, and these are {pixels.dtype}; give uint8 of 0..255 or floats")
    numbers = pixels.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(numbers).reshape(len(numbers), -1).all(axis=1))
    if len(bad):
        raise UserError(f"images: image {start + bad[0]:,} holds NaN or infinite pixels; mend or remove it")
    return numbers


def _numbers(labels: np.ndarray, names: list[str] | None, start: int) -> np.ndarray:
    """int64 (n,) of labels that are numbers, one-hot rows or names."""
    if labels.dtype.kind in "SUO" and names is not None and labels.ndim == 1:
        said = [composed(one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one)) for one in labels]
        unknown = [one for one in said if one not in names]
        if unknown:
            raise UserError(f"labels: {some_of(map(clean, dict.fromkeys(unknown)))} are none of the model's classes, "
                            f"{some_of(map(clean, names))}")  # fmt: skip
        return np.array([names.index(one) for one in said], np.int64)
    if labels.dtype.kind not in "iufb":
        raise UserError(f"labels: they are {labels.dtype}; give the numbers of the classes")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2:
        if names is not None and labels.shape[1] != len(names):
            raise UserError(f"labels: they have {labels.shape[1]} columns, and the model {len(names)} classes; give "
                            "one-hot rows of these")  # fmt: skip
        soft = np.flatnonzero((labels != (labels == 1)).any(axis=1) | ((labels == 1).sum(axis=1) != 1))
        if len(soft):
            raise UserError(f"labels: row {start + soft[0]:,} is not one-hot; give the number of one class an image")
        return labels.argmax(axis=1).astype(np.int64)
    if labels.ndim != 1:
        raise UserError(f"labels: they have the shape {labels.shape}; give (N,) or one-hot (N, K)")
    most = np.inf if names is None else len(names) - 1
    wrong = np.flatnonzero(~((labels >= 0) & (labels <= most) & (labels == np.rint(labels))))
    if len(wrong):
        allowed = "a whole number from 0" + ("" if names is None else f" to {most}")
        raise UserError(f"labels: the label of image {start + wrong[0]:,} is {labels[wrong[0]]}; give {allowed}")
    return labels.astype(np.int64)
