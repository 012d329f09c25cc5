"""What a deployed model met: answers read from a file, or asked for image by image."""

import datetime
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kood.data.files import PassedOver
from kood.errors import UserError
from kood.serving.answers import Answer, listed
from kood.serving.seen import RECALIBRATED, USED
from kood.serving.seen import Seen as Known

__all__ = ["Met", "Seen", "asked", "logged"]


@dataclass(frozen=True)
class Seen:
    """One image of a stream, and what the model said of it.

    Attributes:
        image: Its file.
        time: When, ISO 8601, or "".
        class_name: What it was taken for.
        ood_score: Higher = more out-of-distribution.
        p_value: Conformal p-value.
        is_ood: Whether it was flagged; what has no finite score or p-value is.
        threshold: What it was compared with; None where the answer does not say.
        version: Which version answered; None likewise.
    """

    image: str
    time: str
    class_name: str
    ood_score: float
    p_value: float
    is_ood: bool
    threshold: float | None = None
    version: int | None = None


@dataclass(frozen=True)
class Met:
    """A stream.

    Attributes:
        seen: The images, in order.
        unread: Why files could not be read.
        known: How many images are not among them because the model was trained, chosen or calibrated on them.
        told: What lies in the folder and is no image, a sentence each.
    """

    seen: list[Seen]
    unread: list[str]
    known: int = 0
    told: tuple[str, ...] = ()


def asked(version: Path, folder: Path, facts: Mapping[str, Any]) -> Met:
    """The images of a folder, or of a table, in the order in which they were last written, as a SavedModel answers.

    Images that the version, told by its folder and its `kood.json`, was made of are left out: it knows them better than
    what it meets.

    Raises:
        UserError: no images, or no SavedModel of kood; a table of answers.
    """
    if folder.is_file():
        _refuse_answers(folder)
    passed = PassedOver()
    files = [Path(file) for file in listed([folder], passed)]
    times = {file: _written(file) for file in files}
    files.sort(key=lambda file: (times[file], str(file)))
    known = Known(version, facts)
    found, unread, digests = known.ask(files)
    old = known.among(digests, (*USED, RECALIBRATED))
    new = [_of(answer, times[answer.file]) for answer, one in zip(found, old, strict=True) if not one]
    return Met(new, [answer.error for answer in unread], int(old.sum()), passed.notes())


def _refuse_answers(table: Path) -> None:
    with table.open("rb") as lines:
        first = lines.readline(4096).decode("utf-8", "replace").strip().split(",")
    if {"image", "ood_score", "p_value"} <= set(first):
        raise UserError(f"{table}: these are answers as `kood predict --csv` prints them; give those of --json")


def _written(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0  # A link to nothing; reading it says so.


def _of(answer: Answer, seconds: float) -> Seen:
    time, said = datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds"), answer.said or {}
    told = {key: said[key] for key in ("class_name", "ood_score", "p_value", "is_ood")}
    return Seen(str(answer.file), time, **told, threshold=said.get("threshold"), version=said.get("version"))


def logged(file: Path) -> Met:
    """Answers as `kood predict --json` prints them, one JSON object a line, in order; `time` may be added to each.

    Raises:
        UserError: the file cannot be read, or a line is not such an answer.
    """
    met = Met([], [])
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    _take(line, f"{file}, line {number}", met)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error})") from error
    return met


def _take(line: str, where: str, met: Met) -> None:
    try:
        row = json.loads(line)
        if "error" in row:
            met.unread.append(str(row["error"]))
            return
        if not isinstance(row["is_ood"], bool):
            raise TypeError("is_ood must be true or false")
        # Strict JSON has no word for NaN but null.
        score, p_value = (math.nan if row[name] is None else float(row[name]) for name in ("ood_score", "p_value"))
        if not (math.isnan(p_value) or 0 <= p_value <= 1):
            raise ValueError(f"p_value must lie in 0..1, not {p_value}")
        image, time, class_name = (str(row.get(name, "")) for name in ("image", "time", "class_name"))
        flagged = row["is_ood"] or not (math.isfinite(score) and math.isfinite(p_value))
        threshold = None if row.get("threshold") is None else float(row["threshold"])
        version = row.get("version")
        if isinstance(version, bool) or not isinstance(version, int | None):
            raise TypeError(f"version must be a whole number, not {version!r}")
        met.seen.append(Seen(image, time, class_name, score, p_value, flagged, threshold, version))
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{where}: this is no answer as `kood predict --json` prints them ({what})") from error


def by_version(seen: Iterable[Seen]) -> dict[int | None, list[Seen]]:
    """The images by the version that answered, in order of the versions."""
    found: dict[int | None, list[Seen]] = {}
    for one in seen:
        found.setdefault(one.version, []).append(one)
    return dict(sorted(found.items(), key=lambda pair: -1 if pair[0] is None else pair[0]))
