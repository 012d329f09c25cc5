"""report.html: one page that needs no network, no scripts and no second file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kood.report import by_class, figures, fragments, outlier_audit, sweeps
from kood.report.aggregate import aggregate, beside_controls
from kood.report.behaviour import Behaviour, embedding, reliability, thumbnail
from kood.report.files import write_bytes, write_text
from kood.report.fragments import escaped
from kood.report.paired import DIFFERENCE_NOTE
from kood.report.style import CSS
from kood.report.table import DIFFERENCE_COLUMNS, MATRIX_COLUMNS, best_marks
from kood.report.wording import (
    by_reason,
    headings,
    headline_names,
    mean_std,
    origin,
    override,
    percent,
    sets,
    setting,
    signed,
)

__all__ = ["page", "shell", "write", "write_figures"]

Histories = Mapping[str, Mapping[str, Sequence[Any]]]


def _single(
    cell: Mapping[str, Any],
    scores: Mapping[str, Any] | None,
    histories: Histories | None,
    contact_sheet: str | Path | None,
    outlier_notes: str | Sequence[str] | None,
    behaviour: Behaviour | None,
) -> str:
    overrides = f'<p class="origin">{escaped(setting(cell["cell"]))}</p>' if cell.get("cell") else ""
    run = fragments.stages(cell) + fragments.environment(cell)
    return (
        overrides
        + fragments.warnings(cell)
        + fragments.tiles(cell)
        + fragments.results(cell)
        + by_class.section(cell)
        + fragments.threshold(cell)
        + fragments.exposure(cell)
        + fragments.score_figures(cell, scores)
        + fragments.behaviour_figures(cell, behaviour)
        + fragments.contact_sheet(contact_sheet, outlier_notes)
        + outlier_audit.section(cell.get("outlier_audit"))
        + fragments.training(histories)
        + (f"<h2>How it ran</h2>{run}" if run else "")
    )


def _matrix_table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = headings(rows)
    one_score = len({headline_names(row) for row in rows}) == 1
    titles = [heading.replace("\n", "<br>") for heading, _, _ in MATRIX_COLUMNS]
    head = [*(escaped(name) for name in names.values()), "n", *titles]
    if not one_score:
        head.append("headline score")
    body = []
    for row, marks in zip(rows, best_marks(rows), strict=True):
        runs = len(row["seeds"])
        labels = [override(row["cell"][key]) if key in row["cell"] else "—" for key in names]
        cells = [f'<td class="name">{escaped(label)}</td>' for label in labels] + [f"<td>{runs}</td>"]
        for (_, (part, metric), _), best in zip(MATRIX_COLUMNS, marks, strict=True):
            value = mean_std(row.get(part, {}).get(metric), runs)
            cells.append(f'<td class="best">{value}</td>' if best else f"<td>{value}</td>")
        if not one_score:
            cells.append(f"<td>{escaped(headline_names(row))}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return fragments.table(head, body, labels=len(names))


def _differences(rows: Sequence[Mapping[str, Any]]) -> str:
    if not any(row.get("difference") for row in rows):
        return ""
    head = ["setting", "baseline", *(heading.replace("\n", "<br>") for heading, _, _ in DIFFERENCE_COLUMNS)]
    body = []
    for row in rows:
        apart = row.get("difference")
        if apart:
            changed = {key: value for key, value in apart["baseline"].items() if value != row["cell"].get(key)}
            names = "".join(f'<td class="name">{escaped(setting(one))}</td>' for one in (row["cell"], changed))
            values = [signed((apart.get(part) or {}).get(metric)) for _, part, metric in DIFFERENCE_COLUMNS]
            body.append(f"<tr>{names}{''.join(f'<td>{value}</td>' for value in values)}</tr>")
    table = fragments.table(head, body, labels=2)
    return f'<h2>Against the baseline</h2>{table}<p class="note">Points of percent. {escaped(DIFFERENCE_NOTE)}</p>'


def _over_seeds(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "<h2>Results over seeds</h2><p>No cell finished.</p>"
    chosen = {headline_names(row) for row in rows}
    note = "Percent; mean ± sample standard deviation over n runs; bold: best mean of its column. "
    note += f"Headline score: {chosen.pop()}. " if len(chosen) == 1 else ""
    note += "FPR@95: ID images flagged when 95% of OOD images are caught (OOD TPR)."
    drawn = fragments.figure(
        figures.matrix_intervals({**report, "table": rows}),
        "Near and far AUROC of every row of the table",
        "Mean ± one sample standard deviation; strokes are single runs; a hollow mark is one run alone.",
        wide=True,
    )
    drawn += "".join(
        fragments.figure(
            sweeps.sweep_figure(rows, key),
            f"Near and far AUROC and ID accuracy against {key}",
            "Mean over the seeds and one sample standard deviation.",
        )
        for key in sweeps.swept(rows)
    )
    return f'<h2>Results over seeds</h2>{_matrix_table(rows)}<p class="note">{escaped(note)}</p>{drawn}'


def _failed(failed: Sequence[Mapping[str, Any]]) -> str:
    items = "".join(
        f"<li><strong>{escaped(setting(one['cell']))}</strong><br>{escaped(one['error'])}</li>" for one in failed
    )
    return f'<h2>Failed cells</h2><ul class="failed">{items}</ul>' if failed else ""


def _left_out(left_out: Sequence[Mapping[str, Any]], minutes: float | None) -> str:
    items = "".join(
        f"<li><strong>{escaped(why)}</strong><br>{'<br>'.join(map(escaped, cells))}</li>"
        for why, cells in by_reason(left_out).items()
    )
    of = f" of a run of {minutes:g} minutes" if minutes else ""
    return f'<h2>Cells left out{of}</h2><ul class="failed">{items}</ul>' if left_out else ""


def _folded(cell: Mapping[str, Any]) -> str:
    of_headline = cell["scores"].get(cell["headline_score"], {})
    near, far = (percent((of_headline.get(kind) or {}).get("auroc")) for kind in ("near", "far"))
    summary = f"{escaped(setting(cell.get('cell') or {}))} <span>near {near} · far {far}</span>"
    # The smoke notice stands at the top of the page already.
    blocks = (
        fragments.warnings({**cell, "quick": False})
        + fragments.results(cell)
        + by_class.section(cell)
        + fragments.threshold(cell)
        + fragments.exposure(cell)
        + outlier_audit.section(cell.get("outlier_audit"), figures=False)
        + fragments.stages(cell)
    )
    # One level below "Every cell"; names cannot hold a tag, their brackets are escaped.
    blocks = blocks.replace("<h2>", "<h3>").replace("</h2>", "</h3>")
    return f"<details><summary>{summary}</summary><div>{blocks}</div></details>"


def _matrix(
    report: Mapping[str, Any],
    histories: Histories | None,
    contact_sheet: str | Path | None,
    outlier_notes: str | Sequence[str] | None,
) -> str:
    cells = report.get("cells", [])
    rows = beside_controls(report.get("table") or aggregate(cells))
    with_environment = [report, *cells]
    environment = next((found for one in with_environment if (found := fragments.environment(one))), "")
    return (
        fragments.warnings(report)
        + _over_seeds(report, rows)
        + _differences(rows)
        + _failed(report.get("failed", []))
        + _left_out(report.get("left_out", []), (report.get("budget") or {}).get("minutes"))
        + fragments.contact_sheet(contact_sheet, outlier_notes)
        + fragments.training(histories)
        + ("<h2>Every cell</h2>" if cells else "")
        + "".join(_folded(cell) for cell in cells)
        + environment
    )


def page(
    report: Mapping[str, Any],
    *,
    scores: Mapping[str, Any] | None = None,
    histories: Histories | None = None,
    contact_sheet: str | Path | None = None,
    outlier_notes: str | Sequence[str] | None = None,
    behaviour: Behaviour | None = None,
) -> str:
    """The page of a run or of a matrix as HTML text; arguments and errors are those of `write`."""
    matrix = "cells" in report
    if matrix and (scores or behaviour):
        raise ValueError("scores belong to one run; a matrix report has many")
    if matrix:
        body = _matrix(report, histories, contact_sheet, outlier_notes)
    else:
        body = _single(report, scores, histories, contact_sheet, outlier_notes, behaviour)
    seeds = list(dict.fromkeys(seed for cell in report.get("cells", []) for seed in cell.get("seeds", [])))
    about = origin({"seeds": seeds, **report})
    kicker = "kood · out-of-distribution detection, " + ("matrix of runs" if matrix else "one run")
    footer = (
        "All figures stand, unrounded, in report.json beside this page. Higher scores mean more out-of-distribution."
    )
    return shell(f"{report['recipe']} · kood report", kicker, report["recipe"], about, body, footer)


def shell(title: str, kicker: str, heading: str, about: str, body: str, footer: str) -> str:
    """A page: all of it text but for the body, which is HTML already."""
    # The policy keeps the page's promise: nothing is fetched and nothing runs, whatever a name contains.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{CSS}</style></head><body>"
        f'<header><p class="kicker">{escaped(kicker)}</p><h1>{escaped(heading)}</h1>'
        f'<p class="origin">{escaped(about)}</p></header>'
        f"<main>{body}</main><footer>{escaped(footer)}</footer></body></html>\n"
    )


def write(
    path: str | Path,
    report: Mapping[str, Any],
    *,
    scores: Mapping[str, Any] | None = None,
    histories: Histories | None = None,
    contact_sheet: str | Path | None = None,
    outlier_notes: str | Sequence[str] | None = None,
    behaviour: Behaviour | None = None,
) -> Path:
    """Writes report.html, whole or not at all.

    Args:
        path: Where the page shall stand.
        report: The result of one run, or of a matrix (it has "cells").
        scores: {dataset name or "id": headline scores (N,)} for histograms and ROC curves; for one run only.
        histories: {stage: {term: values, one an epoch}} for training curves.
        contact_sheet: A PNG image of outliers.
        outlier_notes: What stands under it: how the outliers were made.
        behaviour: What the figures of the classifier's behaviour are drawn of; for one run only.

    Returns:
        The path.

    Raises:
        ValueError: If a matrix is given scores, scores name an unknown dataset, or the contact sheet is no PNG.
    """
    html = page(
        report, scores=scores, histories=histories, contact_sheet=contact_sheet, outlier_notes=outlier_notes,
        behaviour=behaviour,
    )  # fmt: skip
    return write_text(path, html)


def write_figures(
    folder: str | Path, report: Mapping[str, Any], scores: Mapping[str, Any], behaviour: Behaviour | None = None
) -> list[Path]:
    """Writes the figures of one run's page as files too, for a paper or a slide.

    Args:
        folder: Where they go: scores, roc, pr and, with `behaviour`, reliability and features, each an SVG file, and
            the images that the score is most wrong about as PNG files, SET-RANK.png.
        report: The result of the run.
        scores: {dataset name or "id": headline scores (N,)}.
        behaviour: What the figures of the classifier's behaviour are drawn of.

    Returns:
        The files.
    """
    drawn = {
        "scores.svg": figures.score_histograms(scores, report),
        "roc.svg": figures.roc_curves(scores, report),
        "pr.svg": figures.pr_curves(scores, report),
    }
    if behaviour is not None:
        drawn["reliability.svg"] = reliability(behaviour.confidence, behaviour.correct)
        drawn["features.svg"] = embedding(behaviour, sets(report, "near"))
        for name, images in behaviour.extremes.items():
            # Sets are named by a recipe, which allows no more than letters, digits and ".", "_", "-".
            drawn |= {f"{name}-{rank}.png": thumbnail(one.image) for rank, one in enumerate(images, start=1)}
    return [write_bytes(Path(folder) / name, content) for name, content in drawn.items()]
