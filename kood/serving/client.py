"""Asks a SavedModel about image files, without the training stack."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kood.errors import UserError

__all__ = ["answer_files", "newest_version"]


def newest_version(folder: Path) -> Path:
    """The SavedModel that TF Serving would take: the highest integer under a run's folder.

    Args:
        folder: `saved/<recipe>`, or a version itself.

    Returns:
        The version's folder.

    Raises:
        UserError: there is none.
    """
    if (folder / "saved_model.pb").is_file():
        return folder
    versions = []
    if folder.is_dir():
        versions = [p for p in folder.iterdir() if p.name.isdecimal() and (p / "saved_model.pb").is_file()]
    if not versions:
        raise UserError(f"{folder}: there is no SavedModel here; `kood run` writes saved/<recipe>/<integer>")
    return max(versions, key=lambda path: int(path.name))


def answer_files(folder: Path, files: Iterable[Path], console: Console | None = None) -> int:
    """Prints what a run's SavedModel says of image files.

    Args:
        folder: `saved/<recipe>`, or a version itself.
        files: Image files.
        console: Where to print.

    Returns:
        How many files could not be read; the others are answered all the same.

    Raises:
        UserError: there is no SavedModel.
    """
    from kood.data.decode import decode_images

    console = console or Console()
    version = newest_version(folder)
    serve, image_shape, names = _load(version)
    table = Table("image", "label", "probability", "OOD score", "is OOD", title=str(version), title_justify="left")
    unread = []
    for file in files:
        try:
            pixels = decode_images([file], image_shape)
        except UserError as error:
            unread.append(str(error).removeprefix("path: "))
            continue
        answer = serve(pixels)
        label = int(answer["label"][0])
        table.add_row(
            escape(str(file)),
            escape(names[label] if label < len(names) else str(label)),
            f"{float(answer['probabilities'][0, label]):.3f}",
            f"{float(answer['ood_score'][0]):.4g}",
            "[bold]yes[/bold]" if bool(answer["is_ood"][0]) else "no",
        )
    if table.row_count:
        console.print(table)
    for message in unread:
        console.print(message, markup=False, highlight=False, soft_wrap=True)
    return len(unread)


def _load(version: Path) -> tuple[Any, tuple[int, int, int], list[str]]:
    model = tf.saved_model.load(str(version))
    try:
        height, width, channels = model.signatures["normalized"].structured_input_signature[1]["images"].shape[1:]
        signature = model.signatures["serving_default"]
    except (KeyError, ValueError) as error:
        raise UserError(f"{version}: this SavedModel was not written by kood") from error
    labels = version / "assets.extra" / "labels.txt"
    names = labels.read_text(encoding="utf-8").splitlines() if labels.is_file() else []

    def serve(pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in signature(images=tf.constant(pixels)).items()}

    # Kept so that the model lives as long as its signature does.
    serve.model = model  # type: ignore[attr-defined]
    return serve, (height, width, channels), names
