"""Images named in a table with the names of their classes: the CSV that people keep beside their images."""

import csv
import io
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np

from kood.data.files import SUFFIXES
from kood.data.image_set import ImageSet
from kood.data.listing import Listed, group_keys, labelled, part_of, read_listed, same_but_for_capitals
from kood.data.paths import data_path, existing_in, need, root_of
from kood.data.rules import STRETCHED, Framing
from kood.errors import UserError
from kood.text import clean, composed, masked

__all__ = ["table"]

#: Files that end so are tables, where a file may be something else as well.
TABLES = (".csv", ".tsv", ".txt")

#: What its messages say where no recipe is at hand to be mended.
WITHOUT_RECIPE = {
    r"write columns = (.*), or call it so$": r"call one of them so in the first line, or write columns = \1 into a "
    "recipe of your own",
    r"; write columns = (.*)$": r"; call the others otherwise in the first line, or write columns = \1 into a "
    "recipe of your own",
    r", or set `root`$": "",
    r"set `root` to the folder that": "put the table into the folder that",
}
#: The same for commands beside which there is no recipe at all.
NO_RECIPE = {**WITHOUT_RECIPE, r", or write columns = .* into a recipe of your own$": ""}
#: What stands between the fields, in the order in which they are tried: a comma stands in names more often.
_DELIMITERS = ("\t", ";", ",", "|")
#: The first line by which Excel says what stands between the fields.
_SEP = re.compile(r'"?sep=(?P<delimiter>[^\w" \0\r\n])"?(?=[\r\n])', re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
#: How the columns are called where the recipe does not say.
_CALLED = {
    "file": ("file", "filename", "file_name", "filepath", "file_path", "path", "image", "image_path", "image_name",
             "image_file", "img", "img_path"),
    "label": ("label", "labels", "class", "class_name", "classname", "label_name", "category", "target"),
    "split": ("split", "subset", "partition"),
}  # fmt: skip


def table(
    image_shape: tuple[int, int, int],
    *,
    seed: int,
    path: str,
    root: str | None = None,
    columns: Mapping[str, str] | None = None,
    classes: Sequence[int | str] | None = None,
    count: int | None = None,
    split: str | None = None,
    max_bad_images: int = 0,
    group: Mapping[str, int | str] | None = None,
    framing: Framing = STRETCHED,
    hashed: bool = False,
) -> dict[str, ImageSet]:
    """A CSV or TSV file with one image a line, `FILE,LABEL`, LABEL being the name of a class.

    UTF-8 or UTF-16; fields are separated by commas, semicolons, tabs or bars, which is found from the file or told by
    Excel's first line `sep=;`, and may be in double quotes. The first line may name the columns. Where it does, a
    column called split (or subset, or partition) says the part of each image: train, validation or test in any usual
    spelling. Without it there are two columns, or one of files alone. Empty lines are passed over.

    FILE is relative to `root` (the table's own folder where not given); "\\" in it counts as "/". `columns` says how
    the first line calls {"file", "label", "split"}, as many as are not found by themselves. `group` may be {"column":
    NAME} as well: images with one value in that column.

    Returns:
        "train", "validation" and "test" where the table's column of parts has several, else {"all"}; without a column
        of labels they are None.

    Raises:
        UserError: No such file or folder, no table, columns that cannot be told apart, an empty label, an unknown part,
            a file that is not there or is named twice, each with the number of the line; more files that cannot be read
            than `max_bad_images`, a file that has no group.
    """
    listed = listed_table(path, root, columns, group, max_bad_images)
    return read_listed(listed, image_shape, seed=seed, classes=classes, count=count, split=split,
                       max_bad_images=max_bad_images, framing=framing, hashed=hashed)  # fmt: skip


def reads(source: Any) -> tuple[Path, list[str]]:
    """The folder of a recipe's source, and the files that it takes."""
    columns, group = (
        {key: value for key, value in dict(getattr(source, option, None) or {}).items() if value is not None}
        for option in ("columns", "group")
    )
    listed = listed_table(source.path, source.root, columns, group or None, source.max_bad_images or 0)
    file = data_path(source.path)
    return root_of(file, source.root, "table"), [str(file), *listed.files]


class _Row(NamedTuple):
    """A line of the table: its number, counted from 1, and its fields."""

    line: int
    fields: list[str]


def listed_table(
    path: str,
    root: str | None = None,
    columns: Mapping[str, str] | None = None,
    group: Mapping[str, int | str] | None = None,
    max_bad_images: int = 0,
) -> Listed:
    """The files of a table by part, with their classes and groups; no image is opened.

    Raises:
        UserError: As `table` does; more than `max_bad_images` files are missing.
    """
    file = data_path(path)
    folder = root_of(file, root, "table")
    header, rows = _rows(file)
    given = {f"columns.{kind}": (kind, name) for kind, name in (columns or {}).items()}
    if group is not None and "column" in group:
        given["group.column"] = "group", str(group["column"])
    places = _places(file, header, rows, given)
    names = [_name(file, row, row.fields[places["file"]], folder) for row in rows]
    files = [str(file) for file in existing_in(folder, names)]
    _check_files(file, rows, files, max_bad_images)
    labels = _told(file, rows, places["label"], "label") if "label" in places else None
    parts = _parts(file, rows, places.get("split"))
    of_part = {part: np.flatnonzero(parts == part) for part in ("train", "validation", "test") if part in parts}
    told, lone = [], None
    if len(of_part) < 2:
        lone = next(iter(of_part), None)
        told += [f"{part} is the only part: all its images are taken as one set" for part in of_part]
        of_part = {"all": np.arange(len(rows))}
    keys = None
    if group is not None:
        by_column = "group" in places
        outside = [] if by_column else [at for at, name in enumerate(names) if name.startswith(("/", "../"))]
        if outside:
            raise _at(file, rows[outside[0]].line, f"names {clean(names[outside[0]])}, which is outside of "
                      f"{clean(folder)}, from where its folders count; set `root` to a folder above all files",
                      option="group")  # fmt: skip
        shared = _told(file, rows, places["group"], header[places["group"]]) if by_column else group_keys(group, names)
        keys = {part: [shared[row] for row in at] for part, at in of_part.items()}
    unused = [name or "one without a name" for place, name in enumerate(header) if place not in places.values()]
    if unused:
        told.append(f"columns passed over: {', '.join(map(clean, unused))}")
    listings = labelled(
        {part: ([files[row] for row in at], None if labels is None else [labels[row] for row in at])
         for part, at in of_part.items()},
        {part: f"the part {part} of {file}" for part in of_part},
        keys,
    )  # fmt: skip
    return Listed(listings, (*told, *same_but_for_capitals(listings)), lone)


def listed_files(path: str) -> list[str]:
    """The files of a table, line by line, for what needs them alone: its other columns may hold anything.

    A file may be named again, and be missing, as among files that are given one by one.

    Raises:
        UserError: No table, not one column of files, a line that names none; none of the files is there.
    """
    file = data_path(path)
    header, rows = _rows(file)
    place = _place_of_files(file, header, rows)
    names = [_name(file, row, row.fields[place], file.parent) for row in rows]
    files = [str(one) for one in existing_in(file.parent, names)]
    if not any(map(os.path.isfile, files)):
        _refuse_missing(file, [(row.line, one) for row, one in zip(rows, files, strict=True)])
    return files


def other_columns(path: str, kinds: Collection[str] = ("label",)) -> list[tuple[bool, list[str]]]:
    """Of each column of a table beside that of its files, whether it is to hold one of `kinds`, and its values once.

    Raises:
        UserError: As `listed_files`.
    """
    file = data_path(path)
    header, rows = _rows(file)
    files, width = _place_of_files(file, header, rows), len(rows[0].fields)
    return [
        (any(header[at].lower() in _CALLED[kind] for kind in kinds) if header else width == 2,
         sorted({row.fields[at] for row in rows} - {""}))
        for at in range(width) if at != files
    ]  # fmt: skip


def _at(file: Path, line: int, what: str, option: str = "path") -> UserError:
    return UserError(f"{option}: line {line} of {clean(file)} {what}")


def _rows(file: Path) -> tuple[list[str], list[_Row]]:
    """The names of the columns, empty where the table does not say, and its lines."""
    need(file, "a file", "a table", "give a CSV or TSV file of lines FILE,LABEL")
    content = file.read_bytes()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = composed(content.decode(encoding))
    except UnicodeDecodeError as error:
        raise UserError(
            f"path: {clean(file)} is no UTF-8 text ({error.reason} at byte {error.start}); save it as CSV UTF-8"
        ) from error
    told = _SEP.match(text)
    if told is not None:
        text = text[told.end() :]  # Its line break stays, so that lines count as they stand in the file.
    rows = _parsed(text, told["delimiter"] if told is not None else _delimiter(text), file)
    if not rows:
        raise UserError(f"path: {clean(file)} names no image; give lines FILE,LABEL")
    width = len(rows[0].fields)
    odd = next((row for row in rows if len(row.fields) != width), None)
    if odd is not None:
        raise _at(file, odd.line, f"has {len(odd.fields)} fields and line {rows[0].line} has {width}; put a name with "
                  "a comma in it into double quotes")  # fmt: skip
    if any(map(_is_file, rows[0].fields)):
        return [], rows
    if width == 1 and _is_file(rows[-1].fields[0].rpartition(" ")[0].rstrip()):
        raise _at(file, rows[-1].line, "has a blank between file and label; write a comma there, or "
                  'source = "image_list" where the labels are numbers')  # fmt: skip
    if len(rows) == 1:
        raise UserError(f"path: {clean(file)} names no image; its only line has no file that ends in "
                        f"{', '.join(SUFFIXES)}")  # fmt: skip
    return rows[0].fields, rows[1:]


def _is_file(field: str) -> bool:
    return field.lower().endswith(SUFFIXES)


def _parsed(text: str, delimiter: str, file: Path, most: int | None = None) -> list[_Row]:
    rows: list[_Row] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    line = 1
    try:
        for fields in reader:
            told = [field.strip() for field in fields]
            if any(told):
                rows.append(_Row(line, told))
            line = reader.line_num + 1
            if len(rows) == most:
                break
    except csv.Error as error:
        raise _at(file, line, f"cannot be read as a table ({error})") from error
    return rows


def _delimiter(text: str) -> str:
    """The one that gives every line of the beginning the same number of fields, one of them a file.

    Not `csv.Sniffer`, which knows nothing of files: of 3,000 random tables it took 11 apart wrongly, this one none.
    """
    found = []
    for delimiter in _DELIMITERS:
        try:
            rows = _parsed(text, delimiter, Path(), most=100)
        except UserError:
            continue
        even = len({len(row.fields) for row in rows}) == 1 and len(rows[0].fields) > 1
        has_file = bool(rows) and any(map(_is_file, rows[-1].fields)) and len(rows[-1].fields) > 1
        found.append((even and has_file, even, has_file, delimiter))
    # Of equals the first; a table of one column has none, and is read the same with any.
    best = max(found, key=lambda one: one[:3], default=(False, False, False, ","))
    return best[3] if any(best[:3]) else ","


def _places(file: Path, header: list[str], rows: list[_Row], given: Mapping[str, tuple[str, str]]) -> dict[str, int]:
    """Which column holds what: "file", and perhaps "label", "split" and "group".

    `given` says what a column holds and its name, by the recipe's key; `header` is empty where the table has none.
    """
    shown = ", ".join(map(clean, header)) or "no line that names its columns"
    places: dict[str, int] = {}
    for key, (kind, name) in given.items():
        wanted = composed(name)
        if header.count(wanted) != 1:
            many = "two columns" if wanted in header else "no column"
            raise UserError(f"{key}: {clean(file)} has {many} {clean(name)!r}; it has {shown}")
        places[kind] = header.index(wanted)
    fields = rows[0].fields
    if not header:
        if len(fields) > 2:
            raise _unnamed(file, len(fields))
        at = _place_of_files(file, header, rows)
        return {"file": at, **({"label": 1 - at} if len(fields) == 2 else {})}
    for kind in (kind for kind in _CALLED if kind not in places):
        found = _called(file, header, fields, kind, places.values())
        if found is not None:
            places[kind] = found
    rest = [at for at in range(len(header)) if at not in places.values()]
    if "label" not in places and "file" in places and len(rest) == 1:
        return {**places, "label": rest[0]}
    lacking = "file" if "file" not in places else "label" if "label" not in places and rest else ""
    if lacking:
        raise _lacking(file, header, lacking)
    return places


def _place_of_files(file: Path, header: list[str], rows: list[_Row]) -> int:
    """Which column holds the files; of two without names the first."""
    fields = rows[0].fields
    if header:
        found = _called(file, header, fields, "file", ())
        if found is None:
            raise _lacking(file, header, "file")
        return found
    of_files = [at for at, field in enumerate(fields) if _is_file(field)]
    if len(of_files) > 1 and len(fields) > 2:
        raise _unnamed(file, len(fields))
    return of_files[0]


def _called(file: Path, header: list[str], fields: list[str], kind: str, taken: Collection[int]) -> int | None:
    """The column that is called as one of a kind; None where there is none, or it is taken."""
    found = [at for at, name in enumerate(header) if name.lower() in _CALLED[kind] and at not in taken]
    if kind == "file":
        of_files = [at for at, field in enumerate(fields) if _is_file(field) and at not in taken]
        found = [at for at in found if at in of_files] or found or of_files
    if len(found) > 1:
        several = ", ".join(clean(header[at]) for at in found)
        raise UserError(f"path: {clean(file)} has several columns that may be the {kind} ({several}); write "
                        f"columns = {{ {kind} = {clean(header[found[0]])!r} }}")  # fmt: skip
    return found[0] if found else None


def _unnamed(file: Path, columns: int) -> UserError:
    return UserError(f"path: {clean(file)} has {columns} columns and no line that names them; begin it with such a "
                     "line: file,label,split")  # fmt: skip


def _lacking(file: Path, header: list[str], kind: str) -> UserError:
    return UserError(f"path: {clean(file)} has the columns {', '.join(map(clean, header))}, and none is called {kind}; "
                     f"write columns = {{ {kind} = ... }}, or call it so")  # fmt: skip


def _told(file: Path, rows: list[_Row], place: int, kind: str) -> list[str]:
    empty = next((row for row in rows if not row.fields[place]), None)
    if empty is not None:
        raise _at(file, empty.line, f"has an empty {kind}; fill it in or remove the line")
    return [row.fields[place] for row in rows]


def _name(file: Path, row: _Row, field: str, folder: Path) -> str:
    """A file as the table names it, relative to `folder` where it lies in it, "/" between its parts."""
    if not field:
        raise _at(file, row.line, "names no file; name one or remove the line")
    if _URL.match(field):
        raise _at(file, row.line, f"names the URL {clean(masked(field))}; URLs are not fetched: download the images, "
                  "and name their files")  # fmt: skip
    if "\0" in field:
        raise _at(file, row.line, f"has a character that no file name has: {clean(field)}")
    if PureWindowsPath(field).drive and "\\" in field:
        raise _at(file, row.line, f"names a file of a Windows drive ({clean(field)}); name it relative to "
                  f"{clean(folder)}, or set `root`")  # fmt: skip
    as_it_is = "\\" not in field or os.path.exists(folder / field)  # noqa: PTH110
    name = os.path.normpath(field if as_it_is else field.replace("\\", "/"))
    return name.removeprefix(os.path.join(os.path.normpath(folder), ""))  # noqa: PTH118


def _check_files(file: Path, rows: list[_Row], files: list[str], may_miss: int) -> None:
    seen: dict[str, int] = {}
    missing: list[tuple[int, str]] = []
    for row, path in zip(rows, files, strict=True):
        if path in seen:
            raise _at(file, row.line, f"names {clean(path)} again, as line {seen[path]} does; keep one of them")
        seen[path] = row.line
        if not os.path.isfile(path):  # noqa: PTH113
            missing.append((row.line, path))
    if len(missing) > may_miss:
        _refuse_missing(file, missing)


def _refuse_missing(file: Path, missing: list[tuple[int, str]]) -> None:
    line, path = missing[0]
    more = f" ({len(missing) - 1:,} more lines name files that are not there)" if len(missing) > 1 else ""
    raise _at(file, line, f"names {clean(path)}, which does not exist{more}; mend the line, or set `root` to the "
              "folder that the files are relative to")  # fmt: skip


def _parts(file: Path, rows: list[_Row], place: int | None) -> np.ndarray:
    """The part of each row, "" without a column of parts."""
    if place is None:
        return np.zeros(len(rows), "U1")
    parts = []
    for row, word in zip(rows, _told(file, rows, place, "part"), strict=True):
        part = part_of(word)
        if part is None:
            raise _at(file, row.line, f"has the part {clean(word)!r}; write train, validation or test, or call the "
                      "column otherwise")  # fmt: skip
        parts.append(part)
    return np.array(parts)
