"""Finished runs side by side: one table, paired differences from a baseline, and files for a paper.

What a run's folder holds may come from a stranger: it is read as JSON and as plain arrays, and what it says is printed
with everything neutralised that a terminal, Markdown or LaTeX would take for an instruction.
"""

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
from pydantic import AliasPath, BaseModel, Field, ValidationError
from rich.console import Console

import kood
from kood import process, report, specs
from kood.errors import UserError
from kood.files import BROKEN
from kood.registry import nearest
from kood.report.across import comparison, folds
from kood.report.aggregate import group, in_groups
from kood.report.comparable import unlike
from kood.report.formats import ENDINGS, FORMATS
from kood.report.tables import Table
from kood.report.terminal import print_table
from kood.report.wording import GROUPED_NOTE, SMOKE, setting
from kood.text import clean, some_of

__all__ = ["compare_runs"]

#: What of a recipe's data decides no image that is measured.
_NO_IMAGES = ("data.augment", "data.pictures", "data.hold_out", "data.validation_ood")


def compare_runs(
    folders: Sequence[Path],
    *,
    baseline: str | None = None,
    score: str | None = None,
    to: Path | None = None,
    form: str = "table",
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Prints the runs' table and writes it where asked.

    Args:
        folders: Runs' folders, `saved/<recipe>`; the cells of a matrix are rows of their own.
        baseline: The row that the others are compared with: its name as printed, or a part that no other row has.
        score: One score for all rows; each has its own headline score where not given.
        to: A folder for compare.md, compare.tex and compare.csv, or one file that ends so.
        form: How it is printed: "table", or as one of `kood.report.formats.FORMATS`.

    Returns:
        The rows, as `kood.report.aggregate` gives them, with "difference".

    Raises:
        UserError: a folder without a report that can be read, runs measured on different images, a score that a run
            lacks, no such row, or a place that cannot be written.
    """
    console = console or process.console(140)
    cells = [cell for folder, name in zip(folders, _names(folders), strict=True) for cell in _cells(folder, name)]
    # As it stands where a run has it: the package that a score is from need not be here.
    there = score is not None and any(score in (*cell["scores"], *report.specs_of(cell)) for cell in cells)
    wanted = score if score is None or there else specs.canonical(score, "--score")
    with_folds = [cell for cell in cells if cell.get("hold_out")]
    for cell in cells:
        different = report.different_images(cells[0], cell)
        if different:
            raise UserError(
                f"{clean(cell['cell']['run'])}: measured on other images than {clean(cells[0]['cell']['run'])} "
                f"({', '.join(map(clean, different))}); compare runs with the same "
                f"{_other_data(cells[0]['folder'], cell['folder']) or 'data.id, data.near and data.far'}"
            )
        if score is not None:
            spec = report.specs_of(cell).get(f"{wanted}", wanted)
            if spec not in cell["scores"]:
                raise UserError(f"--score: {_name(cell['cell'])} was not measured by {score!r}; "
                                f"{nearest(score, map(clean, cell['scores']))}")  # fmt: skip
            cell["headline_score"] = spec
            if held := cell.get("hold_out"):
                values = [_values(cell["folder"], fold["scores_file"], f"{spec}") for fold in held["folds"]]
                cell["hold_out"] = report.folds_by_score(held, f"{spec}", values)
    told = _without_folds(with_folds, score)
    rows = report.aggregate(cells)
    base = _baseline(rows, baseline)
    arrays = _Arrays()
    apart = report.differences(cells, lambda _: base["cell"], arrays.scores, arrays.correct)
    rows = [{**row, "difference": one} for row, one in zip(rows, apart, strict=True)]
    shown = [{**row, "cell": _shown(row["cell"])} for row in rows]
    for row in shown:
        if row["difference"]:
            row["difference"] = {**row["difference"], "baseline": _shown(base["cell"])}
    smoke = dict.fromkeys(clean(cell["cell"]["run"]) for cell in cells if cell.get("quick"))
    grouped = dict.fromkeys(clean(cell["cell"]["run"]) for cell in cells if in_groups(cell, "test"))
    marks = ((smoke, SMOKE), (grouped, GROUPED_NOTE))
    warnings = [*(f"{', '.join(names)}: {note}" for names, note in marks if names), *told]
    unalike = unlike(cells)
    table = comparison(shown, unalike, warnings)
    if to is not None:
        _write(to, table, folds(shown))
    if form in FORMATS:
        console.file.write(FORMATS[form](table))  # As it is: broken at a width it would be no table.
    else:
        title = "Comparison" if score is None else f"Comparison by {score}"
        whole = {"recipe": title, "kood": kood.__version__, "table": shown, "warnings": [*unalike.told, *warnings]}
        report.print_matrix(console, whole, unalike)
        if each := folds(shown):
            console.print()
            print_table(console, each)
    return rows


def _without_folds(cells: Sequence[dict[str, Any]], score: str | None) -> list[str]:
    """Takes the folds off rows that have them of some seeds alone by a score: which seeds these are is no chance where
    folds choose no options. Returns what there is to say of it."""
    lost = [(labels, runs) for labels, runs in group(cells) if any(run["hold_out"] is None for run in runs)]
    for run in (run for _, runs in lost for run in runs):
        run["hold_out"] = None
    names = [_name(labels) for labels, _ in lost]
    why = f"not all folds were measured by {clean(f'{score}')} as their seeds were"
    why += " (folds choose no options, and leave out what cannot be measured)"
    return [f"No held-out figures under {some_of(map(repr, names))}: {why}."] if names else []


def _names(folders: Sequence[Path]) -> list[str]:
    """A name for each run: its folder's, or as much of its path as tells it from the others."""
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"{clean(twice)}: given twice; name each run once")
    short = [path.name for path in paths]
    return [name if short.count(name) == 1 else str(folder) for name, folder in zip(short, folders, strict=True)]


def _other_data(one: Path, other: Path) -> str:
    """The keys in which the recipes of two runs' folders say other images; "" where there is none that can be read."""
    try:
        first, second = (tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8")) for folder in (one, other))
        return some_of(map(clean, _differing(first, second)))
    except (OSError, ValueError, RecursionError):
        return ""


def _differing(one: Mapping[str, Any], other: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """The keys of two recipes whose values decide the images and differ, of whole tables where one lacks them."""
    for key in dict.fromkeys([*one, *other]):
        path, values = f"{within}{key}", (one.get(key), other.get(key))
        if values[0] == values[1] or path in _NO_IMAGES or not (within or key in ("data", "quick")):
            continue
        if all(isinstance(value, dict) for value in values):
            yield from _differing(*values, f"{path}.")  # type: ignore[arg-type]
        else:
            yield path


def _cells(folder: Path, name: str) -> list[dict[str, Any]]:
    file = folder / "report.json"
    if not file.is_file():
        why = "does not exist" if not folder.exists() else "is no finished run (it has no report.json)"
        raise UserError(f"{clean(folder)}: {why}; give the folder of a run, such as saved/digits_arcface_oe")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{clean(file)}: cannot be read ({clean(error)[:200]}); run the recipe again") from error
    cells = found.get("cells", [found]) if isinstance(found, dict) else None
    if not isinstance(cells, list) or not cells:
        raise UserError(f"{clean(file)}: has no finished cell; run the recipe again")
    for number, cell in enumerate(cells):
        missing = _missing(cell)
        if missing:
            where = f"cell {number + 1} of {clean(file)}" if len(cells) > 1 else clean(file)
            raise UserError(f"{where}: {missing} is missing or not as kood writes it; run the recipe again")
    return [{**cell, "cell": {"run": name, **(cell.get("cell") or {})}, "folder": folder} for cell in cells]


_Figure = Annotated[float, Field(allow_inf_nan=False)]


class _Digests(BaseModel, strict=True):
    id: str
    held_out: str


class _Fold(BaseModel, strict=True):
    classes: list[str]
    images: int
    score: str
    auroc: _Figure
    auroc_interval: Annotated[list[_Figure], Field(min_length=2, max_length=2)] | None
    scores_file: str
    sha256: _Digests


class _Mean(BaseModel, strict=True):
    mean: _Figure


class _HoldOut(BaseModel, strict=True):
    folds: list[_Fold]
    mean: dict[str, _Mean]


class _Tuned(BaseModel, strict=True):
    chosen: str


class _Result(BaseModel, strict=True):
    """What a comparison needs of a cell."""

    scores: Annotated[dict[str, dict[str, dict[str, _Figure | None]]], Field(min_length=1)]
    headline_score: str
    accuracy: Annotated[_Figure, Field(validation_alias=AliasPath("id", "accuracy"))]
    datasets: dict[str, dict[str, Any]]
    test_images: Annotated[dict[str, Any], Field(validation_alias=AliasPath("id_sets", "test"))]
    seeds: list[int]
    cell: dict[str, str] | None = None
    hold_out: _HoldOut | None = None
    tuned: dict[str, _Tuned] | None = None


def _missing(cell: Any) -> str | None:
    """What a comparison needs of a cell and does not find."""
    try:
        found = _Result.model_validate(cell)
    except ValidationError as error:
        return str((*error.errors()[0]["loc"], "the result")[0])
    return None if found.headline_score in found.scores else "headline_score"


class _Arrays:
    """What the folders of cells keep of their images; None of what is not all there, as many as those of the first cell
    of these test images."""

    def __init__(self) -> None:
        self._sizes: dict[tuple[str, str], int] = {}

    def scores(self, cell: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        """The scores of a cell's images, by set."""
        found = _values(cell["folder"], cell.get("scores_file"), cell["headline_score"])
        return found if all(self._as_many(cell, name, values) for name, values in (found or {}).items()) else None

    def correct(self, cell: Mapping[str, Any]) -> np.ndarray | None:
        """Which of a cell's test images are labelled rightly."""
        file = PurePosixPath(f"{cell.get('scores_file')}").parent / "details.npz"
        found = _kept(cell["folder"], f"{file}", lambda arrays: arrays["correct"])
        fits = found is not None and found.ndim == 1 and found.dtype == np.bool_ and self._as_many(cell, "id", found)
        return found if fits else None

    def _as_many(self, cell: Mapping[str, Any], name: str, values: np.ndarray) -> bool:
        # A fold has test images of its own.
        images = f"{cell['id_sets']['test'].get('sha256')}"
        return self._sizes.setdefault((images, name), len(values)) == len(values)


def _values(folder: Path, file: Any, score: str) -> dict[str, np.ndarray] | None:
    """The values of a score of each set, of one image or more; None where any of them is none."""
    found = _kept(folder, file, lambda arrays: report.score_arrays(arrays, score))
    for values in (found or {}).values():
        if values.ndim != 1 or values.dtype.kind != "f" or np.isnan(values).any() or not len(values):
            return None
    return found


def _kept(folder: Path, file: Any, pick: Callable[[Any], Any]) -> Any:
    """What `pick` takes out of a file of arrays within a folder; None where that cannot be had."""
    # A report that was tampered with must not point out of its own folder.
    place = PurePosixPath(file) if isinstance(file, str) else None
    if place is None or place.is_absolute() or ".." in place.parts:
        return None
    whole = folder / place
    try:
        if not whole.resolve().is_relative_to(folder.resolve()):
            return None
        with np.load(whole, allow_pickle=False) as arrays:
            return pick(arrays)
    except BROKEN:
        return None


def _name(labels: Mapping[str, Any]) -> str:
    """A row as it is called: its run, and its labels where the run has several."""
    inner = {key: value for key, value in labels.items() if key != "run"}
    return clean(labels["run"]) + (f": {setting(inner)}" if inner else "")


def _shown(labels: Mapping[str, Any]) -> dict[str, str]:
    return {"run": _name(labels)}


def _baseline(rows: Sequence[dict[str, Any]], wanted: str | None) -> dict[str, Any]:
    if wanted is None:
        return rows[0]
    names = [_name(row["cell"]) for row in rows]
    found = [row for row, name in zip(rows, names, strict=True) if name == wanted]
    found = found or [row for row, name in zip(rows, names, strict=True) if wanted.lower() in name.lower()]
    if len(found) != 1:
        why = "no row is called so" if not found else f"{len(found)} rows are called so"
        raise UserError(f"--baseline {wanted!r}: {why}; the rows: {' | '.join(names)}")
    return found[0]


def _write(to: Path, table: Table, each: Table | None) -> None:
    ending = to.suffix.removeprefix(".").lower()
    files = {ending: to} if ending in ENDINGS else {one: to / f"compare.{one}" for one in ENDINGS}
    try:
        for one, file in files.items():
            report.write_text(file, ENDINGS[one](table))
            beside = file.with_stem(f"{file.stem}_folds")
            if each is not None:
                report.write_text(beside, ENDINGS[one](each))
            else:  # That of an earlier comparison would be taken for this one's.
                beside.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--to {clean(to)}: cannot write there: {error.strerror}", exit_code=1) from error
