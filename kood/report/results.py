"""The tables of one run, made of what report.json holds."""

from collections.abc import Mapping, Sequence
from typing import Any

from kood.conformal import clearly_more
from kood.report.aggregate import in_groups, of_headline, specs_of
from kood.report.tables import MISSING, Column, Filled, Row, Table, row, table_of, words
from kood.report.wording import (
    COLUMNS,
    GROUPED_NOTE,
    INTERVAL_NOTE,
    duration,
    number,
    percent,
    sets,
    signed,
    tuned_note,
    validation_note,
    with_interval,
)

__all__ = [
    "by_dataset", "classes", "every_class", "exposure", "headline", "held_out", "is_below", "scores", "stages",
    "tiles",
]  # fmt: skip

Cells = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]

FPR_NOTE = (
    "FPR@95 (OOD TPR): share of ID images flagged when 95% of OOD images are caught; "
    "FPR@95 (ID TPR): share of OOD images accepted when 95% of ID images are accepted. "
    "Lower is better for both."
)
CLASS_NOTE = (
    "Percent of the ID test images of each true class, with 95% intervals: given their class (accuracy), and called "
    "in-distribution (accepted)."
)
NO_SETS = (
    "No out-of-distribution set was measured: --ood FOLDER of kood attach and kood new names one, and data.near or "
    "data.hold_out of a recipe."
)
#: Which columns of figures a narrow terminal can do without, and in which order.
PRIORITIES = {"aupr_in": 2, "aupr_out": 2, "fpr_at_id_tpr": 2, "fpr_at_ood_tpr": 1}
#: More classes than this are not all shown at once, but so many of the worst of those with so many test images: of
#: fewer images the worst are those that chance made so.
FEW, WORST, LEAST = 30, 10, 5
#: Stands behind a share of accepted images that is clearly below the promise.
BELOW = " ↓"


def headline(cell: Cells) -> Table | None:
    """The headline score on every set: near ones, their mean, far ones, their mean; None where there is no set."""
    if not _kinds_of_sets(cell):
        return None
    sure = cell.get("intervals") or {}

    def line(label: str, images: object, name: str, kind: str = "") -> Row:
        one = of_headline(cell, name)
        values = [
            with_interval(one.get(metric), sure.get(name)) if metric == "auroc" else percent(one.get(metric))
            for metric in COLUMNS
        ]
        return row(label, "" if images is None else str(images), *values, kind=kind)

    rows: list[Row] = []
    for kind in _kinds_of_sets(cell):
        rows.append(row(f"{kind}-OOD", kind="block"))
        rows += [line(name, cell["datasets"][name].get("images"), name) for name in sets(cell, kind)]
        rows.append(line("mean", None, kind, "mean"))
    metrics = [Column(name, small, priority=PRIORITIES.get(key, 0)) for key, (name, small) in COLUMNS.items()]
    return Table(
        (words("dataset"), Column("images"), *metrics),
        rows,
        f"OOD detection by {cell['headline_score']}, the headline score",
        ("Percent.", *([INTERVAL_NOTE] if sure else []), *_grouped(cell), FPR_NOTE),
    )


def _grouped(cell: Cells) -> list[str]:
    """What stands beside the intervals of test images that stand in groups."""
    return [GROUPED_NOTE] if in_groups(cell, "test") else []


def _kinds_of_sets(cell: Cells) -> list[str]:
    return [kind for kind in ("near", "far") if sets(cell, kind)]


def tiles(cell: Cells) -> list[tuple[str, float]]:
    """The figures that stand first, those that there are; classes that were held out stand in for near sets where there
    are none."""
    near, kind, far = of_headline(cell, "near"), "Near-OOD", of_headline(cell, "far")
    if not near and (folds := (cell.get("hold_out") or {}).get("mean")):
        near, kind = {metric: folds[metric]["mean"] for metric in ("auroc", "fpr_at_ood_tpr")}, "Held-out"
    found = [
        (f"{kind} AUROC", near.get("auroc")), (f"{kind} FPR@95 (OOD TPR)", near.get("fpr_at_ood_tpr")),
        ("Far-OOD AUROC", far.get("auroc")), ("ID accuracy", cell["id"].get("accuracy")),
    ]  # fmt: skip
    return [(name, value) for name, value in found if value is not None]


def held_out(cell: Cells) -> Table | None:
    """Each fold without some classes, and the mean of them all; None where no classes were held out."""
    told = cell.get("hold_out")
    if not told or not told["folds"]:
        return None
    folds = told["folds"]
    mean = {name: one["mean"] for name, one in told["mean"].items()}
    mean |= {f"{name}_interval": one["interval"] for name, one in told["mean"].items()}
    every = [*folds, mean]
    columns: list[Filled] = [
        (words("held out"), [*(", ".join(one["classes"]) for one in folds), "mean"]),
        (Column("images", priority=1), [*(str(one["images"]) for one in folds), ""]),
        (Column("AUROC"), [_sure(one, "auroc") for one in every]),
        (Column("FPR@95", "OOD TPR", priority=1), [percent(one["fpr_at_ood_tpr"]) for one in every]),
        (Column("accepted"), [_sure(one, "accepted") for one in every]),
        (Column("accuracy"), [percent(one["accuracy"]) for one in every]),
    ]
    note = (
        f"Percent, by {told['folds'][0]['score']}. Each fold is the same classifier trained without these classes, and "
        "then to tell their images from the others'. So it estimates how near outliers of this data's kind are told, "
        "and of no other; the published classifier has learned all classes. [95% confidence interval; of the mean, "
        "Student's over the folds, which share most images, so read it as rough.]"
    )
    return table_of(columns, "Classes held out", (note, *_grouped(cell)), [*[""] * len(folds), "mean"])


def _sure(one: Mapping[str, Any], figure: str) -> str:
    """A figure with its interval."""
    return with_interval(one.get(figure), one.get(f"{figure}_interval"))


def _kinds(cell: Cells) -> list[str]:
    """How the row of each score is shown."""
    return ["headline" if score == cell["headline_score"] else "" for score in cell["scores"]]


def scores(cell: Cells) -> Table:
    """Every score, in the means over the near and over the far sets, and on what a score is chosen by."""
    measured, chosen = cell["scores"], cell["headline_score"]
    columns: list[Filled] = [(words("score"), [f"{score} ◂" if score == chosen else score for score in measured])]
    for metric in ("auroc", "fpr_at_ood_tpr"):
        for kind in _kinds_of_sets(cell):
            column = Column(f"{kind}\n{COLUMNS[metric][0]}", priority=PRIORITIES.get(metric, 0))
            columns.append((column, [percent((of.get(kind) or {}).get(metric)) for of in measured.values()]))
    folds = (cell.get("hold_out") or {}).get("scores")
    for where, auroc in (("validation", cell.get("validation")), ("held-out", folds)):
        if auroc:
            columns.append((Column(f"{where}\nAUROC", priority=1), [percent(auroc.get(score)) for score in measured]))
    means = "means over the datasets; FPR@95 at OOD TPR." if _kinds_of_sets(cell) else f"AUROC. {NO_SETS}"
    note = f"◂: the headline score. Percent, {means}"
    told = [text for text in (validation_note(cell), tuned_note(cell)) if text]
    if folds and any(spec not in folds for spec in specs_of(cell).values()):
        told.append("Folds choose no options: held-out AUROC of those chosen here is the headline's alone.")
    return table_of(columns, "All scores", (note, *told), _kinds(cell))


def by_dataset(cell: Cells) -> Table | None:
    """The AUROC of every score on every set; None where there is but one set."""
    names = sets(cell, "near") + sets(cell, "far")
    if len(names) < 2:
        return None
    columns: list[Filled] = [(words("score"), list(cell["scores"]))]
    for name in names:
        auroc = [percent((figures.get(name) or {}).get("auroc")) for figures in cell["scores"].values()]
        columns.append((Column(name, cell["datasets"][name]["kind"]), auroc))
    return table_of(columns, "AUROC of every score on every dataset", kinds=_kinds(cell))


def classes(cell: Cells) -> list[Table]:
    """What a good figure over all classes may hide: each class, or of many the worst by each figure, of those that have
    images enough to say so."""
    found = cell.get("classes") or []
    if not found:
        return []
    if len(found) <= FEW:
        return [_classes(cell, found, "By class", _class_note(cell))]
    enough = [one for one in found if one.get("images", LEAST) >= LEAST]
    rest = "" if len(enough) == len(found) else f" that have {LEAST} images or more"
    of = f"of {len(enough)} classes{rest}"
    tables: list[Table] = []
    for figure, title in (
        ("accepted", f"By class: the {WORST} {of} with the smallest share accepted"),
        ("accuracy", f"The {WORST} {of} with the lowest accuracy"),
    ):
        if not enough:
            break
        worst = sorted(enough, key=lambda one: (one.get(figure) is None, one.get(figure)))[:WORST]
        tables.append(_classes(cell, worst, title, _class_note(cell) if tables else ""))
    return tables


def every_class(cell: Cells) -> Table | None:
    """All classes, where `classes` has the worst alone."""
    found = cell.get("classes") or []
    return _classes(cell, found, f"All {len(found)} classes", "") if len(found) > FEW else None


def _classes(cell: Cells, some: Rows, title: str, note: str) -> Table:
    threshold = cell.get("threshold") or {}
    below = [BELOW if _is_below(one, cell) else "" for one in some]
    columns: list[Filled] = [
        (words("class"), [one["name"] for one in some]),
        (Column("images", priority=1), [str(one.get("images", MISSING)) for one in some]),
        (Column("accuracy"), [_sure(one, "accuracy") for one in some]),
        (Column("accepted"), [_sure(one, "accepted") + mark for one, mark in zip(some, below, strict=True)]),
    ]
    for kind in ("near", "far"):
        if any(kind in (one.get("auroc") or {}) for one in cell["classes"]):
            auroc = [percent((one.get("auroc") or {}).get(kind)) for one in some]
            columns.append((Column(f"{kind}\nAUROC", priority=2), auroc))
    if threshold.get("by_class"):
        values = {name: one["value"] for one in threshold["thresholds"] for name in one["classes"]}
        columns.append((Column("threshold", priority=2), [number(values.get(one["name"])) for one in some]))
    return table_of(columns, title, (note,) if note else (), ["below" if mark else "" for mark in below])


def _is_below(one: Mapping[str, Any], cell: Cells) -> bool:
    """As `is_below`, of a class of a run; of images in groups, which that counts as independent, nothing is said."""
    grouped = in_groups(cell, "calibration", "test")
    return not grouped and is_below(one, cell.get("threshold") or {}, len(cell["classes"]))


def is_below(one: Mapping[str, Any], threshold: Mapping[str, Any], classes: int) -> bool:
    """Whether fewer images of a class are accepted than the threshold's share, and than chance explains.

    Args:
        classes: How many classes are asked about.
    """
    images, accepted, accept = one.get("images"), one.get("accepted"), threshold.get("accept")
    own = (of for of in threshold.get("thresholds") or () if one["name"] in of["classes"])
    calibration_images = next(own, threshold).get("calibration_images")
    if not images or accepted is None or accept is None or calibration_images is None:
        return False
    return clearly_more(images - round(accepted * images), images, calibration_images, accept, classes)


def _class_note(cell: Cells) -> str:
    accept = (cell.get("threshold") or {}).get("accept")
    below = sum(_is_below(one, cell) for one in cell["classes"])
    auroc = " AUROC: against the means of the near and far sets." if _kinds_of_sets(cell) else ""
    if not below or accept is None:
        return " ".join([CLASS_NOTE + auroc, *_grouped(cell)])
    many = "1 class" if below == 1 else f"{below} classes"
    return f"{CLASS_NOTE}{auroc}{BELOW}: fewer than {100 * accept:g}%, and than chance explains ({many})."


def stages(cell: Cells) -> Table | None:
    """The stages of a run, what each took and whether it ran; None where there are none."""
    ran = cell.get("stages") or {}
    rows = [
        row(name, duration(one.get("seconds")), ("earlier run, kept" if one.get("cached") else "this run") + _how(one))
        for name, one in ran.items()
    ]
    return Table((words("stage"), Column("time"), Column("result")), rows, "Stages") if ran else None


def _how(stage: Mapping[str, Any]) -> str:
    """How long and how fast a network was trained, how fast a stage sampled, and how much of it is not there."""
    parts = [f"{stage['steps']:,} steps"] if "steps" in stage else []
    parts += [f"{stage['epochs']:g} epochs in its time"] if "epochs" in stage else []
    parts += [str(stage["precision"])] if "precision" in stage else []
    parts += [f"{stage['images_per_second']:,.3g} images/s"] if "images_per_second" in stage else []
    parts += [f"{stage['drop_rate']:.1%} dropped"] if stage.get("drop_rate") else []
    if stage.get("wanted", 0) > stage.get("kept", 0):
        parts += [f"{stage['kept']:,} of {stage['wanted']:,} images in its time"]
    return "".join(f", {part}" for part in parts)


def exposure(cell: Cells) -> Table | None:
    """The classifier beside the same one without outliers or generated images; None where there is none."""
    told = cell.get("baseline")
    if not told:
        return None

    def apart(figure: str) -> str:
        low, high = told[f"{figure}_interval"]
        mean = told[f"exposed_validation_{figure}"] - told[f"validation_{figure}"]
        return signed({"mean": mean, "low": low, "high": high})

    rows = [
        row(name, percent(told[f"{of}validation_auroc"]), told[f"{of}score"], percent(told[f"{of}validation_accuracy"]))
        for name, of in (("this run", "exposed_"), ("without exposure", ""))
    ]
    rows.append(row("difference", apart("auroc"), "", apart("accuracy"), kind="mean"))
    columns = (
        words(""), Column("validation\nAUROC"), Column("by score"), Column("validation\naccuracy"),
    )  # fmt: skip
    note = (
        f"Percent, on {told['images']} validation images, against {', '.join(told['sets'])}; each by its own best "
        "score there. [95% confidence interval.] "
    )
    note += "".join(_grouped(cell)) or (
        "A run that exposure made clearly worse here (the whole interval) says so in its first lines."
    )
    return Table(columns, rows, "With and without exposure", (note,))
