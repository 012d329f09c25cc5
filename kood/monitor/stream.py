"""What a deployed model met: answers read from a file, or asked for image by image."""

import datetime
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kood.errors import UserError
from kood.serving.answers import Answer, answers, listed
from kood.serving.client import LocalModel

__all__ = ["Seen", "asked", "logged"]


@dataclass(frozen=True)
class Seen:
    """One image of a stream, and what the model said of it.

    Attributes:
        image: Its file.
        time: When, ISO 8601, or "".
        class_name: What it was taken for.
        ood_score: Higher = more out-of-distribution.
        p_value: Conformal p-value.
        is_ood: Whether it was flagged.
    """

    image: str
    time: str
    class_name: str
    ood_score: float
    p_value: float
    is_ood: bool


def asked(version: Path, folder: Path) -> tuple[list[Seen], list[str]]:
    """A folder's images in the order in which they were last written, as a SavedModel answers them.

    Args:
        version: The SavedModel.
        folder: The images.

    Returns:
        (what was seen, why files could not be read).

    Raises:
        UserError: no images, or no SavedModel of kood.
    """
    times = {file: _written(file) for file in map(Path, listed([folder]))}
    files = sorted(times, key=lambda file: (times[file], str(file)))
    found = list(answers(LocalModel(version), files))
    return _sorted_out((answer, _iso(times[answer.file])) for answer in found)


def _written(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0  # A link to nothing; reading it says so.


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def _sorted_out(found: Iterable[tuple[Answer, str]]) -> tuple[list[Seen], list[str]]:
    seen, unread = [], []
    for answer, time in found:
        if answer.said is None:
            unread.append(answer.error)
            continue
        told = {key: answer.said[key] for key in ("class_name", "ood_score", "p_value", "is_ood")}
        seen.append(Seen(str(answer.file), time, **told))
    return seen, unread


def logged(file: Path) -> tuple[list[Seen], list[str]]:
    """Answers as `kood predict --json` prints them, one JSON object a line, in order; `time` may be added to each.

    Args:
        file: The file.

    Returns:
        (what was seen, why files could not be read).

    Raises:
        UserError: the file cannot be read, or a line is not such an answer.
    """
    seen: list[Seen] = []
    unread: list[str] = []
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    _take(line, f"{file}, line {number}", seen, unread)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error})") from error
    return seen, unread


def _take(line: str, where: str, seen: list[Seen], unread: list[str]) -> None:
    try:
        row = json.loads(line)
        if "error" in row:
            unread.append(str(row["error"]))
            return
        if not isinstance(row["is_ood"], bool):
            raise TypeError("is_ood must be true or false")
        score, p_value = float(row["ood_score"]), float(row["p_value"])
        if not 0 <= p_value <= 1:
            raise ValueError(f"p_value must lie in 0..1, not {p_value}")
        seen.append(
            Seen(
                str(row.get("image", "")),
                str(row.get("time", "")),
                str(row.get("class_name", "")),
                score,
                p_value,
                row["is_ood"],
            )  # fmt: skip
        )
    except (ValueError, KeyError, TypeError) as error:
        what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{where}: this is no answer as `kood predict --json` prints them ({what})") from error
