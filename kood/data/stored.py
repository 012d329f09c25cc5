"""Image sets as files: what one stage writes and the others map into memory."""

import importlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kood import registry
from kood.data.copies import distinct
from kood.data.deferred import ImageFiles, Images, Stored, are_deferred
from kood.data.image_set import ImageSet
from kood.data.large import blocks_of
from kood.data.rules import Framing
from kood.errors import under
from kood.files import file_state, fingerprint, write_atomically

__all__ = ["read_digests", "read_images", "source_state", "write_blocks", "write_digests", "write_images"]

#: Ends the name of the file that lists a set's images.
_LIST = ".files.json"


def write_images(folder: Path, name: str, image_set: ImageSet) -> dict[str, Any]:
    """Writes a set as `.npy` files in a folder, whose names begin with `name`; of images in files the list of these.

    Returns:
        What `read_images` needs beside the files, as JSON: the number of images, the class names and the content's
        SHA-256.
    """
    if isinstance(files := image_set.images, ImageFiles):
        if image_set.labels is not None:
            np.save(folder / f"{name}.labels.npy", image_set.labels)
        known = {"files": files.files, "digests": files.digests.tobytes().hex(), "framing": vars(files.framing)}
        (folder / f"{name}{_LIST}").write_text(json.dumps({"image_shape": files.shape[1:], **known}))
        facts = {"images": len(files), "class_names": list(image_set.class_names), "sha256": image_set.sha256()}
    else:
        facts = write_blocks(folder, name, blocks_of(files), count=len(files), labels=image_set.labels,
                             image_shape=files.shape[1:], class_names=image_set.class_names)  # fmt: skip
    return facts | ({"skipped": list(image_set.skipped)} if image_set.skipped else {})


def write_blocks(
    folder: Path,
    name: str,
    blocks: Iterable[np.ndarray],
    *,
    count: int,
    image_shape: tuple[int, ...],
    labels: np.ndarray | None = None,
    class_names: tuple[str, ...] = (),
    dtype: np.typing.DTypeLike = np.uint8,
) -> dict[str, Any]:
    """Writes a set that comes in pieces, as `write_images` does one that is whole; memory holds one piece.

    Args:
        name: Begins the files' names.
        blocks: uint8 (n, H, W, C) each, or float32 (n, D) of features.
        count: How many images they hold together.
        image_shape: (H, W, C), or (D,).
        labels: int64 (count,), or None.

    Raises:
        ValueError: The blocks hold another number of images.
    """

    def content() -> Iterator[bytes | memoryview]:
        kind, header, written = np.lib.format.dtype_to_descr(np.dtype(dtype)), io.BytesIO(), 0
        shape = (count, *image_shape)
        np.lib.format.write_array_header_1_0(header, {"descr": kind, "fortran_order": False, "shape": shape})
        yield header.getvalue()
        for block in blocks:
            yield np.ascontiguousarray(block, dtype).data
            written += len(block)
        if written != count:
            raise ValueError(f"{name}: {written} images came where {count} were announced")

    write_atomically(folder / f"{name}.images.npy", content())
    if labels is not None:
        np.save(folder / f"{name}.labels.npy", labels)
    whole = ImageSet(_images(folder, name), labels, class_names)
    return {"images": count, "class_names": list(class_names), "sha256": whole.sha256()}


def read_images(folder: Path, name: str, facts: dict[str, Any]) -> ImageSet:
    """Reads a set that `write_images` wrote, and returned `facts` of; the pixels are mapped or deferred, not loaded."""
    labels = folder / f"{name}.labels.npy"
    return ImageSet(
        _images(folder, name), np.load(labels, allow_pickle=False) if labels.exists() else None,
        tuple(facts["class_names"]),
    )  # fmt: skip


def _images(folder: Path, name: str) -> Images:
    listed = folder / f"{name}{_LIST}"
    if not listed.exists():
        path = folder / f"{name}.images.npy"
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        return Stored(path.open("rb"), mapped.shape, mapped.offset) if are_deferred(mapped.shape[1:]) else mapped
    told = json.loads(listed.read_bytes())
    digests = np.frombuffer(bytes.fromhex(told["digests"]), np.uint8).reshape(-1, 16)
    return ImageFiles(told["files"], digests, told["image_shape"], Framing.read(told["framing"]))


def write_digests(folder: Path, name: str, digests: np.ndarray) -> None:
    """Writes which images a set holds, (N, 16) uint8 of `kood.data.copies.image_digests`, as NAME.digests.npy."""
    np.save(folder / f"{name}.digests.npy", distinct(digests))


def read_digests(folder: Path, name: str) -> np.ndarray:
    """Reads what `write_digests` wrote: (M, 16) uint8, different and ascending by their bytes."""
    return np.load(folder / f"{name}.digests.npy", allow_pickle=False)


def source_state(source: Any, key: str, *, placed: bool = False) -> str | None:
    """A hash of the files that a source reads: names, sizes, times and places on the disk, without reading them.

    Which files those are says the source itself (`reads`, as `kood.data.sources` has it). Of a link the file behind it
    counts. A file that is rewritten with its size and its time of change as they were has another `ctime`.

    Args:
        placed: Whether the folder that they are in counts as well, as where what is written down are their places.

    Returns:
        The hash, or None where the source reads no files, or lacks an option that says which.

    Raises:
        UserError: no such source, or it cannot say which files it reads: what cannot be told cannot be known again.
    """
    entry = registry.find("datasets", source.source, f"{key}.source")
    reads = getattr(importlib.import_module(entry.module), "reads", None)
    if reads is None or any(getattr(source, option, "") is None for option in entry.required):
        return None
    with under(key):
        folder, files = reads(source)
    names = files if placed else [file.removeprefix(str(folder)) for file in files]
    return fingerprint([[name, *file_state(Path(file))] for name, file in zip(names, files, strict=True)])
