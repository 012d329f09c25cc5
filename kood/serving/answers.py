"""Image files -> a model's answers, in batches, and the ways to print them."""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from kood.data.files import PassedOver, files_under
from kood.data.paths import refuse_url
from kood.data.sources.table import NO_RECIPE, TABLES, listed_files
from kood.errors import UserError, in_words
from kood.serving.client import Model, prepared
from kood.text import clean

__all__ = ["Answer", "answers", "listed", "print_answers"]

#: Columns of every output, in order.
COLUMNS = (
    "image", "label", "class_name", "probability", "ood_score", "p_value", "is_ood", "threshold", "version", "error",
)  # fmt: skip

#: Rows of one printed table: its columns are as wide as the widest of so many.
PAGE = 500

_THREADS = 4


@dataclass(frozen=True)
class Answer:
    """What a model says of an image file, as `Model.ask` has it; None, and why, where it could not be read."""

    file: Path
    said: dict[str, Any] | None
    error: str = ""

    @property
    def row(self) -> dict[str, Any]:
        """The answer as plain data, JSON can write it."""
        if self.said is None:
            return {"image": str(self.file), "error": self.error}
        return {"image": str(self.file), **{name: self.said[name] for name in COLUMNS if name in self.said}}


def listed(paths: Iterable[Path], passed: PassedOver | None = None) -> list[str]:
    """The image files that paths stand for: a file is itself, a folder every image in it and the folders in it, sorted,
    and a table (`TABLES`) the files that its lines name.

    `passed` counts what lies in the folders and is no image.

    Raises:
        UserError: a folder without images, a table that is none or names no file that is there, a URL.
    """
    files: list[str] = []
    passed = PassedOver() if passed is None else passed
    for path in paths:
        if not path.is_dir():
            refuse_url(path)
            with in_words({"^path: ": "", **NO_RECIPE}):
                files += listed_files(str(path)) if path.suffix.lower() in TABLES else [str(path)]
            continue
        found = files_under(path, passed, links=True)
        if not found:
            raise UserError(f"{path}: there are no images in this folder" + "".join(f"; {n}" for n in passed.notes()))
        files += found
    return files


def answers(model: Model, files: Sequence[Path | str], batch_size: int = 32) -> Iterator[Answer]:
    """Asks a model about image files, so many at once; memory holds a batch or two of them.

    Yields:
        An answer for each file, in order.

    Raises:
        UserError: the model does not answer.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(files), batch_size):
            chunk = [Path(file) for file in files[start : start + batch_size]]
            read = list(pool.map(_read, chunk))
            sent = [place for place, (_, error) in enumerate(read) if not error]
            said = dict(zip(sent, model.ask([read[place][0] for place in sent]) if sent else [], strict=True))
            # What the graph could not decode, Pillow perhaps can; else it says why not.
            again = {place: _read(chunk[place], anyhow=True) for place, answer in said.items() if answer is None}
            for place, (data, error) in again.items():
                read[place] = (data, error or "the model cannot decode it")
                if data:
                    said[place] = next(iter(model.ask([data])))
            for place, file in enumerate(chunk):
                answer = said.get(place)
                yield Answer(file, answer, "" if answer else read[place][1])


def _read(file: Path, anyhow: bool = False) -> tuple[bytes, str]:
    try:
        return prepared(file, anyhow=anyhow), ""
    except UserError as error:
        return b"", str(error)


def print_answers(
    found: Iterable[Answer], count: int, *, console: Console, style: str = "table", title: str = ""
) -> int:
    """Prints answers as they come, with progress on the error stream where that is a terminal.

    Args:
        style: "table", with a title; "json", one object a line; or "csv" with a header.

    Returns:
        How many files could not be read; the others are answered all the same.
    """
    unread: list[str] = []
    show = {
        "table": partial(_tables, console, title, unread),
        "json": partial(_json, console.file),
        "csv": partial(_csv, console.file),
    }
    watched = Console(stderr=True)
    with Progress(console=watched, transient=True, disable=not watched.is_terminal) as progress:

        def noted() -> Iterator[Answer]:
            for answer in progress.track(found, total=count, description="images"):
                if answer.said is None:
                    unread.append(answer.error)
                yield answer

        show[style](noted())
    return len(unread)


def _tables(console: Console, title: str, unread: Sequence[str], found: Iterator[Answer]) -> None:
    page: list[Answer] = []

    def show() -> None:
        if page:
            console.print(_table(page, title))
            page.clear()

    try:
        for answer in found:
            if answer.said is not None:
                page.append(answer)
            if len(page) == PAGE:
                show()
    finally:  # What was answered before a server fails has been paid for.
        show()
        for message in unread:
            console.print(Text(clean(message)), soft_wrap=True)


def _table(page: Sequence[Answer], title: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for heading in ("image", "label", "probability", "OOD score", "p-value", "is OOD", "threshold", "version"):
        table.add_column(heading, overflow="fold")  # Cut off, two long names would be one.
    for answer in page:
        said: dict[str, Any] = answer.said or {}
        table.add_row(
            Text(clean(str(answer.file))),
            Text(clean(said["class_name"] or str(said["label"]))),
            *(_figure(said[name], form) for name, form in (("probability", ".3f"), ("ood_score", ".4g"))),
            _figure(said["p_value"], ".3g"),
            "[bold]yes[/bold]" if said["is_ood"] else "no",
            _figure(said.get("threshold"), ".4g"),
            str(said.get("version", "—")),
        )
    return table


def _figure(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "—"


def _json(file: IO[str], found: Iterator[Answer]) -> None:
    for answer in found:
        # A server may answer NaN, for which JSON has no word.
        row = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in answer.row.items()}
        file.write(json.dumps(row, allow_nan=False) + "\n")
        file.flush()


def _csv(file: IO[str], found: Iterator[Answer]) -> None:
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()

    def text(value: str) -> str:
        # In a file a name is the image's own, to the last blank; but csv puts no quotes around a lone \r.
        return clean(value) if file.isatty() else value.replace("\r", "\\r")

    for answer in found:
        row = {name: (str(value).lower() if isinstance(value, bool) else value) for name, value in answer.row.items()}
        writer.writerow({name: text(value) if isinstance(value, str) else value for name, value in row.items()})
