"""report.html: one page that needs no network and no second file, and a script only to sort a leaderboard."""

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from kood.report import across, audit_figures, figures, leaderboard, outlier_audit, results, sweeps, wording
from kood.report.aggregate import rows_of
from kood.report.behaviour import Behaviour, embedding, reliability, thumbnail
from kood.report.comparable import unlike, warnings_of
from kood.report.files import write_bytes
from kood.report.formats import ENDINGS
from kood.text import clean

__all__ = ["BESIDE", "figures_of", "page", "render", "write"]

Histories = Mapping[str, Mapping[str, Sequence[Any]]]

#: A contact sheet above this many bytes is stored again as a smaller JPEG, to keep the page fit for mail.
SHEET_BYTES = 600_000

#: What `write` leaves beside the page, as patterns, and takes away again where a later report has none of it.
BESIDE = (
    "table.csv", "table.tex", "leaderboard.csv", "leaderboard.tex", "figures/scores.svg", "figures/roc.svg",
    "figures/pr.svg", "figures/reliability.svg", "figures/features.svg", "figures/*-[1-9].png",
)  # fmt: skip


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
    made.filters |= {"data_url": data_url, "fraction": outlier_audit.fraction, "percent": wording.percent}
    made.globals |= {
        "audit_figures": audit_figures, "outlier_audit": outlier_audit, "results": results, "warned": warnings_of,
        "wording": wording,
    }  # fmt: skip
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


def figures_of(
    report: Mapping[str, Any], scores: Mapping[str, Any] | None = None, behaviour: Behaviour | None = None
) -> dict[str, bytes]:
    """The figures of one run by their names, SVG, those that there is something to draw of; see `write`."""
    drawn = {}
    if scores:
        drawn["scores"] = figures.score_histograms(scores, report)
        if len(scores) > 1:
            drawn["roc"] = figures.roc_curves(scores, report)
            drawn["pr"] = figures.pr_curves(scores, report)
    if behaviour is not None:
        drawn["reliability"] = reliability(behaviour.confidence, behaviour.correct)
        drawn["features"] = embedding(behaviour, wording.sets(report, "near"))
    return drawn


def _sheet(path: Path | None, notes: Sequence[str]) -> dict[str, Any] | None:
    """The outliers the classifier was trained with, as large as they are shown; None where there is nothing."""
    caption = " ".join(notes)
    if path is None:
        return {"image": None, "caption": caption} if caption else None
    from PIL import Image

    content = path.read_bytes()
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
        "leaderboard": leaderboard.table(report["leaderboard"], apart=apart) if report.get("leaderboard") else None,
        "script": _script(),
        "rows": across.matrix(rows, apart),
        "intervals": figures.matrix_intervals(rows, cells),
        "sweeps": {key: sweeps.sweep_figure(rows, key) for key in sweeps.swept(rows)},
        "differences": across.differences(rows),
        "folds": across.folds(rows),
        "left_out": wording.by_reason(report.get("left_out", [])),
        "minutes": (report.get("budget") or {}).get("minutes"),
        "environment": next((one["environment"] for one in (report, *cells) if one.get("environment")), {}),
    }


def page(
    report: Mapping[str, Any],
    *,
    drawn: Mapping[str, bytes] | None = None,
    histories: Histories | None = None,
    contact_sheet: Path | None = None,
    outlier_notes: Sequence[str] = (),
    behaviour: Behaviour | None = None,
) -> str:
    """The page of a run or of a matrix as HTML text; `drawn` is of `figures_of`, the others are those of `write`."""
    seeds = list(dict.fromkeys(seed for cell in report.get("cells", []) for seed in cell.get("seeds", [])))
    kept = {stage: terms for stage, terms in (histories or {}).items() if terms}
    whole = {
        "report": report,
        "recipe": report["recipe"],
        "about": wording.origin({"seeds": seeds, **report}),
        "trained": ", ".join(kept),
        "training": figures.training_curves(kept) if kept else None,
        "sheet": _sheet(contact_sheet, outlier_notes),
    }
    if "cells" in report:
        return render("matrix.html", **whole, **_matrix(report))
    extremes = {
        name: [(thumbnail(one.image), one.told) for one in images]
        for name, images in (behaviour.extremes if behaviour else {}).items()
    }
    environment = report.get("environment") or {}
    return render(
        "run.html", **whole, figures=drawn or {}, has_threshold=figures.drawn_threshold(report) is not None,
        extremes=extremes, environment=environment,
    )  # fmt: skip


def write(
    path: Path,
    report: Mapping[str, Any],
    *,
    scores: Mapping[str, Any] | None = None,
    behaviour: Behaviour | None = None,
    **more: Any,
) -> None:
    """Writes report.html and what stands beside it, each file whole or not at all; removes what an earlier one left.

    Of one run its figures go into the folder `figures`, for a paper or a slide: scores, roc, pr and, with `behaviour`,
    reliability and features, each an SVG file, and the images that the score is most wrong about as PNG files,
    SET-RANK.png. A matrix has its table as table.csv and table.tex; where it has a leaderboard, that as leaderboard.csv
    and leaderboard.tex too.

    Args:
        report: The result of one run, or of a matrix (it has "cells").
        scores: {dataset name or "id": headline scores (N,)} for histograms and ROC curves; for one run only.
        behaviour: What the figures of the classifier's behaviour are drawn of; for one run only.
        **more: What else the page shows:
            histories: {stage: {term: values, one an epoch}} for training curves.
            contact_sheet: A PNG image of outliers.
            outlier_notes: What stands under it: how the outliers were made.

    Raises:
        ValueError: If scores name an unknown dataset.
    """
    drawn = figures_of(report, scores, behaviour)
    files = {f"figures/{name}.svg": figure for name, figure in drawn.items()}
    for name, images in (behaviour.extremes if behaviour else {}).items():
        # Sets are named by a recipe, which allows no more than letters, digits and ".", "_", "-".
        files |= {f"figures/{name}-{rank}.png": thumbnail(one.image) for rank, one in enumerate(images, start=1)}
    tables, apart = {}, unlike(report.get("cells", []))
    smoke = [wording.SMOKE] if report.get("quick") else []
    if rows := rows_of(report):
        tables["table"] = across.comparison(rows, apart, smoke)
    if report.get("leaderboard"):
        tables["leaderboard"] = leaderboard.table(report["leaderboard"], apart=apart, notes=smoke)
    for name, table in tables.items():
        files |= {f"{name}.{ending}": ENDINGS[ending](table).encode() for ending in ("csv", "tex")}
    files[path.name] = page(report, drawn=drawn, behaviour=behaviour, **more).encode()
    for name, content in files.items():
        write_bytes(path.parent / name, content)
    for file in (found for pattern in BESIDE for found in path.parent.glob(pattern)):
        if file.relative_to(path.parent).as_posix() not in files:
            file.unlink()
