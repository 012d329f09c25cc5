"""report.html: one page that needs no network and no second file, and a script only to sort a leaderboard."""

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from kood.report import across, figures, leaderboard, outlier_audit, results, sweeps, wording
from kood.report.aggregate import rows_of
from kood.report.behaviour import Behaviour, embedding, reliability, thumbnail
from kood.report.comparable import unlike
from kood.report.files import write_bytes, write_text
from kood.report.formats import ENDINGS
from kood.text import clean

__all__ = ["render", "page", "write", "write_figures"]

Histories = Mapping[str, Mapping[str, Sequence[Any]]]

#: A contact sheet above this many bytes is stored again as a smaller JPEG, to keep the page fit for mail.
SHEET_BYTES = 600_000


@cache
def _templates() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: object) -> object:
        # All that is not a template's own stands on one line, its control characters written out, and is escaped.
        return value if isinstance(value, Markup) else clean(value)

    def data_url(image: bytes) -> object:
        kind = {b"\x89": "png", b"\xff": "jpeg"}.get(image[:1], "svg+xml")
        return Markup(f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}")

    made = Environment(
        loader=PackageLoader("kood.report"), autoescape=True, undefined=StrictUndefined, finalize=shown,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"data_url": data_url, "percent": wording.percent}
    return made


def render(template: str, **values: Any) -> str:
    """A page made of one of the package's templates, everything in it escaped."""
    return _templates().get_template(template).render(values)


@cache
def _script() -> dict[str, Any]:
    """The script of a leaderboard, and the digest by which the page's policy lets it run."""
    from markupsafe import Markup

    text = _templates().loader.get_source(_templates(), "leaderboard.js")[0]
    return {"text": Markup(text), "digest": base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}


def _told(report: Mapping[str, Any]) -> dict[str, Any]:
    """What stands first."""
    warnings = [*unlike(report.get("cells", [])).told, *wording.all_warnings(report)]
    notes = wording.all_notes(report)
    return {"smoke": wording.SMOKE if report.get("quick") else "", "warnings": warnings, "notes": notes}


def _cell(cell: Mapping[str, Any], *, short: bool = False) -> dict[str, Any]:
    """What is told of a run; in short as one cell of many."""
    means = cell["scores"].get(cell["headline_score"], {})
    return {
        "setting": wording.setting(cell.get("cell") or {}),
        # The smoke notice of a matrix stands at the top of the page already.
        "told": _told({**cell, "quick": False} if short else cell),
        "tiles": _tiles(cell, means),
        "accuracy_note": wording.accuracy_note(cell),
        "headline": results.headline(cell),
        "held_out": results.held_out(cell),
        "scores": results.scores(cell),
        "by_dataset": results.by_dataset(cell),
        "classes": results.classes(cell),
        "every_class": results.every_class(cell),
        "threshold": wording.threshold_meaning(cell),
        "exposure": results.exposure(cell),
        "stages": results.stages(cell),
        "audit": outlier_audit.view(cell.get("outlier_audit"), short=short),
    }


def _tiles(cell: Mapping[str, Any], means: Mapping[str, Any]) -> list[tuple[str, float | None]]:
    """The figures that stand first; classes that were held out stand in for near sets where there are none."""
    near, kind, far = means.get("near") or {}, "Near-OOD", means.get("far") or {}
    if not near and (folds := (cell.get("hold_out") or {}).get("mean")):
        near, kind = {metric: folds[metric]["mean"] for metric in ("auroc", "fpr_at_ood_tpr")}, "Held-out"
    return [
        (f"{kind} AUROC", near.get("auroc")), (f"{kind} FPR@95 (OOD TPR)", near.get("fpr_at_ood_tpr")),
        ("Far-OOD AUROC", far.get("auroc")), ("ID accuracy", cell["id"].get("accuracy")),
    ]  # fmt: skip


def _figures(
    cell: Mapping[str, Any], scores: Mapping[str, Any] | None, behaviour: Behaviour | None
) -> dict[str, bytes]:
    """The figures of one run by their names, those that there is something to draw of."""
    drawn = {}
    if scores:
        drawn["scores"] = figures.score_histograms(scores, cell)
        drawn["roc"] = figures.roc_curves(scores, cell)
        drawn["pr"] = figures.pr_curves(scores, cell)
    if behaviour is not None:
        drawn["reliability"] = reliability(behaviour.confidence, behaviour.correct)
        drawn["features"] = embedding(behaviour, wording.sets(cell, "near"))
    return drawn


def _extremes(behaviour: Behaviour | None) -> list[tuple[str, list[tuple[bytes, str]]]]:
    """Of each set the images that the score is most wrong about, each with what is told of it."""
    found = []
    for name, images in (behaviour.extremes if behaviour else {}).items():
        told = f"Images of {name}, OOD, with the lowest scores" if name != "id" else "ID, with the highest scores"
        found.append((told, [(thumbnail(one.image), one.told) for one in images]))
    return found


def _sheet(path: Path | None, notes: Sequence[str]) -> dict[str, Any] | None:
    """The outliers the classifier was trained with, as large as they are shown; None where there is nothing."""
    caption = " ".join(notes)
    if path is None:
        return {"image": None, "caption": caption} if caption else None
    from PIL import Image

    content = path.read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"{path} is not a PNG image")
    image: Image.Image = Image.open(io.BytesIO(content))
    if len(content) > SHEET_BYTES:
        image = image.convert("RGB")
        for longest in (1600, 1200, 900, 600):
            image.thumbnail((longest, longest))
            smaller = io.BytesIO()
            image.save(smaller, "JPEG", quality=82)
            content = smaller.getvalue()
            if len(content) <= SHEET_BYTES:
                break
    # Sheets of 8x8 images are tiny: shown enlarged, their pixels kept square.
    enlarged = image.width < 720
    width = image.width * max(1, round(720 / image.width))
    return {"image": content, "caption": caption, "enlarged": enlarged, "width": width}


def _matrix(report: Mapping[str, Any]) -> dict[str, Any]:
    cells, rows = report.get("cells", []), rows_of(report)
    apart = unlike(cells)
    return {
        "told": _told(report),
        "leaderboard": leaderboard.table(report["leaderboard"], apart=apart) if report.get("leaderboard") else None,
        "script": _script(),
        "rows": across.matrix(rows, apart) if rows else None,
        "intervals": figures.matrix_intervals(rows, cells) if rows else None,
        "sweeps": {key: sweeps.sweep_figure(rows, key) for key in sweeps.swept(rows)},
        "differences": across.differences(rows),
        "folds": across.folds(rows),
        "failed": [(wording.setting(one["cell"]), one["error"]) for one in report.get("failed", [])],
        "left_out": wording.by_reason(report.get("left_out", [])),
        "minutes": (report.get("budget") or {}).get("minutes"),
        "cells": [_cell(cell, short=True) for cell in cells],
        "environment": next((one["environment"] for one in (report, *cells) if one.get("environment")), {}),
    }


def page(
    report: Mapping[str, Any],
    *,
    scores: Mapping[str, Any] | None = None,
    histories: Histories | None = None,
    contact_sheet: Path | None = None,
    outlier_notes: Sequence[str] = (),
    behaviour: Behaviour | None = None,
    drawn: Mapping[str, bytes] | None = None,
) -> str:
    """The page of a run or of a matrix as HTML text; arguments and errors are those of `write`."""
    matrix = "cells" in report
    if matrix and (scores or behaviour):
        raise ValueError("scores belong to one run; a matrix report has many")
    seeds = list(dict.fromkeys(seed for cell in report.get("cells", []) for seed in cell.get("seeds", [])))
    kept = {stage: terms for stage, terms in (histories or {}).items() if terms}
    whole = {
        "recipe": report["recipe"],
        "about": wording.origin({"seeds": seeds, **report}),
        "trained": ", ".join(kept),
        "training": figures.training_curves(kept) if kept else None,
        "sheet": _sheet(contact_sheet, outlier_notes),
    }
    if matrix:
        return render("matrix.html", **whole, **_matrix(report))
    return render(
        "run.html", **whole, run=_cell(report), overridden=bool(report.get("cell")), score=report["headline_score"],
        figures=_figures(report, scores, behaviour) if drawn is None else drawn, extremes=_extremes(behaviour),
        environment=report.get("environment") or {},
    )  # fmt: skip


def write(path: Path, report: Mapping[str, Any], **more: Any) -> None:
    """Writes report.html, and beside a matrix's its table as table.csv and table.tex, each whole or not at all; where
    it has a leaderboard, that as leaderboard.csv and leaderboard.tex too.

    Args:
        path: Where the page shall stand.
        report: The result of one run, or of a matrix (it has "cells").
        **more: What else the page shows:
            scores: {dataset name or "id": headline scores (N,)} for histograms and ROC curves; for one run only.
            histories: {stage: {term: values, one an epoch}} for training curves.
            contact_sheet: A PNG image of outliers.
            outlier_notes: What stands under it: how the outliers were made.
            behaviour: What the figures of the classifier's behaviour are drawn of; for one run only.
            drawn: What `write_figures` drew of scores and behaviour, where it has.

    Raises:
        ValueError: If a matrix is given scores, scores name an unknown dataset, or the contact sheet is no PNG.
    """
    html = page(report, **more)
    beside, apart = {}, unlike(report.get("cells", []))
    if rows := rows_of(report):
        beside["table"] = across.comparison(rows, apart)
    if report.get("leaderboard"):
        beside["leaderboard"] = leaderboard.table(report["leaderboard"], apart=apart)
    for name, one in beside.items():
        for ending in ("csv", "tex"):
            write_text(path.with_name(f"{name}.{ending}"), ENDINGS[ending](one))
    write_text(path, html)


def write_figures(
    folder: Path, report: Mapping[str, Any], scores: Mapping[str, Any], behaviour: Behaviour | None = None
) -> dict[str, bytes]:
    """Writes the figures of one run's page as files too, for a paper or a slide.

    Args:
        folder: Where they go: scores, roc, pr and, with `behaviour`, reliability and features, each an SVG file, and
            the images that the score is most wrong about as PNG files, SET-RANK.png.
        report: The result of the run.
        scores: {dataset name or "id": headline scores (N,)}.
        behaviour: What the figures of the classifier's behaviour are drawn of.

    Returns:
        The SVG ones by name, for the page.
    """
    svg = _figures(report, scores, behaviour)
    drawn = {f"{name}.svg": figure for name, figure in svg.items()}
    for name, images in (behaviour.extremes if behaviour else {}).items():
        # Sets are named by a recipe, which allows no more than letters, digits and ".", "_", "-".
        drawn |= {f"{name}-{rank}.png": thumbnail(one.image) for rank, one in enumerate(images, start=1)}
    for name, content in drawn.items():
        write_bytes(folder / name, content)
    return svg
