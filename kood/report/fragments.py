"""Pieces of report.html: each function gives one block as HTML, everything in it escaped."""

import base64
import io
import struct
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from kood.report import behaviour, figures
from kood.report.wording import (
    COLUMNS,
    INTERVAL_NOTE,
    SMOKE,
    all_notes,
    all_warnings,
    duration,
    number,
    percent,
    sets,
    signed,
    threshold_meaning,
    validation_note,
    with_interval,
)
from kood.text import clean

__all__ = [
    "behaviour_figures",
    "contact_sheet",
    "environment",
    "escaped",
    "exposure",
    "figure",
    "results",
    "row",
    "score_figures",
    "stages",
    "table",
    "threshold",
    "tiles",
    "training",
    "warnings",
]

#: A contact sheet above this many bytes is stored again as a smaller JPEG, to keep the page fit for mail.
SHEET_BYTES = 600_000

FPR_NOTE = (
    "FPR@95 (OOD TPR): share of ID images flagged when 95% of OOD images are caught; "
    "FPR@95 (ID TPR): share of OOD images accepted when 95% of ID images are accepted. "
    "Lower is better for both."
)


def escaped(value: object) -> str:
    """Any value as HTML text or attribute: on one line, control characters written out, markup escaped."""
    return escape(clean(value), quote=True)


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def figure(svg: bytes, alt: str, caption: str, *, wide: bool = False) -> str:
    """A figure with its caption, the image inside the page; a wide one scrolls sideways on a phone."""
    image = f'<img src="{_data_url(svg, "svg+xml")}" alt="{escaped(alt)}">'
    mark = ' class="wide"' if wide else ""
    return f"<figure{mark}>{image}<figcaption>{escaped(caption)}</figcaption></figure>"


def table(head: Sequence[str], rows: Iterable[str], *, labels: int = 1) -> str:
    """A table that scrolls sideways on its own where the screen is narrow.

    Args:
        head: The headings, as HTML.
        rows: The rows, as HTML.
        labels: How many of the first columns hold words instead of figures.
    """
    left = ' class="name"'
    titles = "".join(f'<th scope="col"{left if i < labels else ""}>{one}</th>' for i, one in enumerate(head))
    inner = f"<thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody>"
    # Focusable, so that a keyboard can scroll it too.
    return f'<div class="scroll" tabindex="0"><table>{inner}</table></div>'


def row(name: str, values: Iterable[str], kind: str = "") -> str:
    """A row of a table: its heading and its cells, all of them HTML already."""
    cells = "".join(f"<td>{value}</td>" for value in values)
    mark = f' class="{kind}"' if kind else ""
    return f'<tr{mark}><th scope="row" class="name">{name}</th>{cells}</tr>'


def warnings(report: Mapping[str, Any]) -> str:
    """The box of warnings that stands first, and under it, small, the notes; "" where there are neither."""
    found, notes = all_warnings(report), "".join(f"<li>{escaped(text)}</li>" for text in all_notes(report))
    told = f'<ul class="note">{notes}</ul>' if notes else ""
    if not found and not report.get("quick"):
        return told
    smoke = f'<p class="smoke"><strong>{escaped(SMOKE)}</strong></p>' if report.get("quick") else ""
    listed = f"<ul>{''.join(f'<li>{escaped(text)}</li>' for text in found)}</ul>" if found else ""
    title = "<p><strong>Warnings</strong></p>" if found else ""
    return f'<div class="warnings" role="alert">{smoke}{title}{listed}</div>{told}'


def tiles(cell: Mapping[str, Any]) -> str:
    """The four figures to read first."""
    of_headline = cell["scores"].get(cell["headline_score"], {})
    near, far = of_headline.get("near") or {}, of_headline.get("far") or {}
    chosen = (
        ("Near-OOD AUROC", near.get("auroc")),
        ("Near-OOD FPR@95 (OOD TPR)", near.get("fpr_at_ood_tpr")),
        ("Far-OOD AUROC", far.get("auroc")),
        ("ID accuracy", cell["id"].get("accuracy")),
    )
    inner = "".join(
        f'<div class="tile"><dt>{name}</dt><dd>{percent(value)}<small> %</small></dd></div>' for name, value in chosen
    )
    return f'<dl class="tiles">{inner}</dl>'


def _headline_table(cell: Mapping[str, Any]) -> str:
    of_headline = cell["scores"].get(cell["headline_score"], {})
    head = ["dataset", "images"] + [f"{n}<small>{q}</small>" if q else n for n, q in COLUMNS.values()]
    rows, sure = [], cell.get("intervals") or {}
    for kind in ("near", "far"):
        names = sets(cell, kind)
        if not names:
            continue
        rows.append(f'<tr class="block"><th scope="rowgroup" colspan="{len(head)}">{kind}-OOD</th></tr>')
        for name in names:
            one = of_headline.get(name) or {}
            images = escaped(cell["datasets"][name].get("images", ""))
            rows.append(row(escaped(name), [images, *_figures(one, sure.get(name))]))
        rows.append(row("mean", ["", *_figures(of_headline.get(kind) or {}, sure.get(kind))], "mean"))
    return table(head, rows)


def _figures(one: Mapping[str, float | None], interval: Sequence[float] | None) -> list[str]:
    return [with_interval(one.get(k), interval) if k == "auroc" else percent(one.get(k)) for k in COLUMNS]


def _scores_table(cell: Mapping[str, Any]) -> str:
    head = [
        "score",
        "near<br>AUROC",
        "far<br>AUROC",
        "near<br>FPR@95<small>(OOD TPR)</small>",
        "far<br>FPR@95<small>(OOD TPR)</small>",
    ]
    validation = cell.get("validation") or {}
    if validation:
        head.append("validation<small>AUROC</small>")
    rows = []
    for score, of_score in cell["scores"].items():
        near, far = of_score.get("near") or {}, of_score.get("far") or {}
        values = [percent(one.get(metric)) for metric in ("auroc", "fpr_at_ood_tpr") for one in (near, far)]
        if validation:
            values.append(percent(validation.get(score)))
        headline = score == cell["headline_score"]
        name = escaped(score) + ('<span class="tag">headline</span>' if headline else "")
        rows.append(row(name, values, "headline" if headline else ""))
    return table(head, rows)


def _by_dataset(cell: Mapping[str, Any]) -> str:
    names = sets(cell, "near") + sets(cell, "far")
    if len(names) < 2:
        return ""
    rows = [
        row(
            escaped(score),
            [percent((of_score.get(name) or {}).get("auroc")) for name in names],
            "headline" if score == cell["headline_score"] else "",
        )
        for score, of_score in cell["scores"].items()
    ]
    kinds = [cell["datasets"][name]["kind"] for name in names]
    head = ["score", *(f"{escaped(name)}<small>{kind}</small>" for name, kind in zip(names, kinds, strict=True))]
    summary = "<summary>AUROC of every score on every dataset</summary>"
    return f"<details>{summary}<div>{table(head, rows)}</div></details>"


def stages(cell: Mapping[str, Any]) -> str:
    """The stages of a run, what each took and whether it ran, "" where there are none."""
    ran = cell.get("stages") or {}
    if not ran:
        return ""
    rows = [
        row(
            escaped(name),
            [
                duration(stage.get("seconds")),
                ("earlier run, kept" if stage.get("cached") else "this run") + _how(stage),
            ],
        )
        for name, stage in ran.items()
    ]
    return "<h3>Stages</h3>" + table(["stage", "time", "result"], rows)


def _how(stage: Mapping[str, Any]) -> str:
    """How long and how fast a network was trained, how fast a stage sampled, and how much of it is not there."""
    parts = [f"{stage['steps']:,} steps"] if "steps" in stage else []
    parts += [f"{stage['epochs']:g} epochs in its time"] if "epochs" in stage else []
    parts += [str(stage["precision"])] if "precision" in stage else []
    parts += [f"{stage['images_per_second']:,.3g} images/s"] if "images_per_second" in stage else []
    parts += [f"{stage['drop_rate']:.1%} dropped"] if stage.get("drop_rate") else []
    if stage.get("wanted", 0) > stage.get("kept", 0):
        parts += [f"{stage['kept']:,} of {stage['wanted']:,} images in its time"]
    return escaped("".join(f", {part}" for part in parts))


def environment(report: Mapping[str, Any]) -> str:
    """Where a run ran, "" where nothing is known."""
    found = report.get("environment") or {}
    facts = "".join(f"<dt>{escaped(key)}</dt><dd>{escaped(value)}</dd>" for key, value in found.items())
    return f'<h3>Environment</h3><dl class="facts">{facts}</dl>' if found else ""


def results(cell: Mapping[str, Any]) -> str:
    """The tables of one run: headline score by dataset, every score, every score on every dataset."""
    images = cell["id"].get("images")
    note = f"Percent. ID accuracy {percent(cell['id'].get('accuracy'))}%"
    note += f" on {images} test images. " if images is not None else ". "
    return (
        f"<h2>Detection by {escaped(cell['headline_score'])}, the headline score</h2>"
        + _headline_table(cell)
        + f'<p class="note">{escaped(note + (INTERVAL_NOTE if cell.get("intervals") else "") + FPR_NOTE)}</p>'
        + "<h2>All scores</h2>"
        + _scores_table(cell)
        + (f'<p class="note">{escaped(validation_note(cell))}</p>' if validation_note(cell) else "")
        + _by_dataset(cell)
    )


def threshold(cell: Mapping[str, Any]) -> str:
    """The threshold in one plain paragraph, "" where there is none."""
    meaning = threshold_meaning(cell)
    return f"<h2>What the threshold means</h2><p>{escaped(meaning)}</p>" if meaning else ""


def exposure(cell: Mapping[str, Any]) -> str:
    """The classifier beside the same one without outliers or generated images, "" where there is none."""
    told = cell.get("baseline")
    if not told:
        return ""

    def apart(figure: str) -> str:
        low, high = told[f"{figure}_interval"]
        mean = told[f"exposed_validation_{figure}"] - told[f"validation_{figure}"]
        return signed({"mean": mean, "low": low, "high": high})

    rows = [
        row(name, [percent(told[f"{of}validation_auroc"]), escaped(told[f"{of}score"]),
                   percent(told[f"{of}validation_accuracy"])])
        for name, of in (("this run", "exposed_"), ("without exposure", ""))
    ]  # fmt: skip
    rows.append(row("difference", [apart("auroc"), "", apart("accuracy")], "mean"))
    against = ", ".join(escaped(name) for name in told["sets"])
    note = (
        f"Percent, on {told['images']} validation images, against {against}; each by its own best score there. "
        "[95% confidence interval.] A run that exposure made worse here says so in its first lines."
    )
    head = ["", "validation<br>AUROC", "by score", "validation<br>accuracy"]
    return f'<h2>With and without exposure</h2>{table(head, rows)}<p class="note">{note}</p>'


def _sheet_image(path: Path) -> tuple[bytes, str, int]:
    content = path.read_bytes()
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"{path} is not a PNG image")
    width = struct.unpack(">I", content[16:20])[0]
    if len(content) <= SHEET_BYTES:
        return content, "png", width
    # Pillow comes with matplotlib.
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB")
    for longest in (1600, 1200, 900, 600):
        small.thumbnail((longest, longest))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=82)
        if buffer.tell() <= SHEET_BYTES:
            break
    return buffer.getvalue(), "jpeg", small.width


def contact_sheet(path: str | Path | None, notes: str | Sequence[str] | None) -> str:
    """The outliers the classifier was trained with, "" where there is nothing to show.

    Raises:
        ValueError: If the file is not a PNG image.
    """
    lines = [notes] if isinstance(notes, str) else list(notes or [])
    if path is None and not lines:
        return ""
    parts = ["<h2>The outliers it was trained with</h2>"]
    caption = " ".join(clean(line) for line in lines)
    if path is None:
        parts.append(f"<p>{escaped(caption)}</p>")
    else:
        content, kind, width = _sheet_image(Path(path))
        # Sheets of 8x8 images are tiny: shown enlarged, their pixels kept square.
        shown = width * max(1, round(720 / width)) if width < 720 else width
        sharp = ' class="sheet"' if width < 720 else ""
        source = f'src="{_data_url(content, kind)}" alt="Contact sheet of outliers"'
        below = f"<figcaption>{escaped(caption)}</figcaption>" if caption else ""
        parts.append(f'<figure><img{sharp} style="width:{shown}px" {source}>{below}</figure>')
    return "".join(parts)


def training(histories: Mapping[str, Mapping[str, Sequence[Any]]] | None) -> str:
    """Training curves, "" where there is no history."""
    kept = {stage: terms for stage, terms in (histories or {}).items() if terms}
    if not kept:
        return ""
    alt = "Training curves of " + ", ".join(kept)
    caption = "A value an epoch; dashed: validation."
    return "<h2>Training</h2>" + figure(figures.training_curves(kept), alt, caption)


def score_figures(cell: Mapping[str, Any], scores: Mapping[str, Any] | None) -> str:
    """Histograms and ROC curves of the headline score, "" without scores."""
    if not scores:
        return ""
    score = clean(cell["headline_score"])
    return (
        "<h2>Scores of ID and OOD images</h2>"
        + figure(
            figures.score_histograms(scores, cell),
            f"Histograms of the {score} score, ID test images against each OOD set",
            "Shares of each set's images. Everything right of the dashed threshold is called out-of-distribution; "
            "the outermost bins hold all that lies beyond them.",
        )
        + "<h2>ROC curves</h2>"
        + figure(
            figures.roc_curves(scores, cell),
            f"ROC curves of the {score} score, one for each OOD set",
            "OOD is the positive class. Where a curve meets the dotted line stands its FPR@95 (OOD TPR).",
        )
        + "<h2>Precision and recall</h2>"
        + figure(
            figures.pr_curves(scores, cell),
            f"Precision-recall curves of the {score} score, one for each OOD set",
            "OOD is the positive class. Precision depends on how many images there are of each kind.",
        )
    )


def behaviour_figures(cell: Mapping[str, Any], told: behaviour.Behaviour | None) -> str:
    """Reliability, features, and the images that the headline score is most wrong about, "" without them."""
    if told is None:
        return ""
    names = {kind: sets(cell, kind) for kind in ("near", "far")}
    return (
        "<h2>Reliability</h2>"
        + figure(
            behaviour.reliability(told.confidence, told.correct),
            "Accuracy against confidence of the ID test images, and how many are so confident",
            "A calibrated one stands on the dashed line. ECE: the mean gap to it over 15 bins (arXiv 1706.04599).",
        )
        + "<h2>Features</h2>"
        + figure(
            behaviour.embedding(told, names["near"]),
            "Features of ID and OOD images on their first two principal components",
            "The two directions in which ID features vary most: what lies apart here is apart, what overlaps here may "
            "be told apart in others.",
            wide=True,
        )
        + _extremes(told.extremes)
    )


def _extremes(found: Mapping[str, Sequence[behaviour.Extreme]]) -> str:
    if not any(found.values()):
        return ""
    parts = ["<h2>Most wrong about</h2>"]
    for name, images in found.items():
        what = (
            f"Images of {clean(name)}, OOD, with the lowest scores" if name != "id" else "ID, with the highest scores"
        )
        parts.append(f"<h3>{escaped(what)}</h3>")
        shown = []
        for one in images:
            called = f"called {one.predicted}" + (f", is {one.actual}" if one.actual else "")
            shown.append((behaviour.thumbnail(one.image), f"score {number(one.score)}, {called}"))
        parts.append(thumbnails(shown))
    return "".join(parts)


def thumbnails(shown: Iterable[tuple[bytes | None, str]]) -> str:
    """Small images, PNG, each with what is told of it; None where there is no image to show."""
    parts = []
    for png, told in shown:
        image = f'<img class="sheet" src="{_data_url(png, "png")}" alt="{escaped(told)}">' if png else ""
        parts.append(f"<figure>{image}<figcaption>{escaped(told)}</figcaption></figure>")
    return f'<div class="thumbnails">{"".join(parts)}</div>'
