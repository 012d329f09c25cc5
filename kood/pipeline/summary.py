"""From finished stages to `report.json` and `report.html`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

import kood
from kood import report
from kood.pipeline.attached import Attached
from kood.pipeline.cell import Cell
from kood.pipeline.environment import environment
from kood.pipeline.prepare import Data
from kood.pipeline.stage import Stage, Work
from kood.scorer import Scorer

__all__ = ["headline_scores", "labelled_rightly", "made_otherwise", "scores_by", "summarize", "write_report"]

#: Packages whose name is written otherwise than they are installed by.
_CALLED = {"keras": "Keras"}


def summarize(work: Work, cell: Cell) -> dict[str, Any]:
    """The part of `report.json` of a cell that has been made."""
    data, evaluation = cell.data, cell.evaluation
    assert isinstance(data, Data)  # That of a fold is not reported by itself.
    figures, prepared = dict(evaluation.facts), data.facts
    at_chance = figures.pop("at_chance")
    sets = prepared["sets"]
    datasets = {
        name: {"kind": kind, **{key: sets[f"data.{kind}.{name}"][key] for key in ("images", "sha256")}}
        for kind in ("near", "far")
        for name in getattr(work.recipe.data, kind)
    }
    compared = _facts(cell.comparison)
    attached = cell.classifier.told if isinstance(cell.classifier, Attached) else None
    keep_logs(work, cell)
    file = evaluation.folder / "scores.npz"
    inside = {name: {key: sets[name][key] for key in ("images", "sha256")} for name in ("train", "test")}
    others = [stage for stage in cell.made if stage not in (data, evaluation)]
    result = {
        "recipe": work.recipe.name,
        "cell": {},
        "backend": keras.backend.backend(),
        "kood": kood.__version__,
        "quick": work.recipe.quick,
        "seeds": [work.recipe.seed],
        **figures,
        # A smoke run is no better than chance as a rule, and its report begins with that its figures mean nothing.
        "warnings": ([at_chance] if at_chance and not work.recipe.quick else [])
        + ([compared["warning"]] if compared and compared["warning"] else [])
        + [text for stage in cell.made for text in stage.warnings]
        + figures["warnings"],
        "notes": [*work.notes, *prepared["notes"]]
        + list(dict.fromkeys(f"classifier: {note}" for stage in others for note in stage.notes))
        + figures["notes"]
        + _cost(figures["headline_score"])
        + made_otherwise([(stage.role, stage) for stage in cell.made], work.run.versions),
        "attached": attached,
        "copies": prepared["copies"],
        "groups": prepared["groups"],
        "parts": prepared["parts"],
        "outlier_audit": _facts(cell.shortcut),
        "baseline": {key: value for key, value in compared.items() if key != "warning"} if compared else None,
        "datasets": datasets,
        "id_sets": inside,
        "class_names": list(cell.classifier.labelled(data.images("train")).class_names),
        "version": cell.export.published if cell.export else None,
        "stages": {stage.role: stage.line for stage in cell.made},
        "environment": {**environment(), **work.origin},
        "scores_file": file.relative_to(work.run.folder).as_posix(),
    }
    if cell.cost is not None:
        seconds = sum(stage.line["seconds"] for stage in cell.learning)
        result["cost"] = {"training_seconds": seconds, "milliseconds": cell.cost.facts["milliseconds"]}
    return {**result, "intervals": report.intervals(result, headline_scores(work.run.folder, result))}


def _cost(score: str) -> list[str]:
    """What a served image costs, where the score that decides takes more than one pass."""
    passes = Scorer(score).passes
    told = f"The score {score} decides, and takes {passes} forward passes of each served image in place of one."
    return [told] if passes > 1 else []


def made_otherwise(stages: Iterable[tuple[str, Stage]], now: Mapping[str, str]) -> list[str]:
    """Which stages were made with other versions than those of this command, a sentence for each set of versions.

    Args:
        stages: Those that enter the report, each with what it is called there.
        now: The versions of this command, {package: version}.
    """
    found: dict[str, dict[str, None]] = {}
    for name, stage in stages:
        if stage.made_by and stage.made_by != now:
            told = ", ".join(f"{_CALLED.get(package, package)} {its}" for package, its in stage.made_by.items())
            found.setdefault(told, {})[name] = None
    return [f"{', '.join(names)}: made by {told}" for told, names in found.items()]


def headline_scores(folder: Path, cell: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The scores of every image by the cell's headline score, by set; the in-distribution test images are "id"."""
    return scores_by(folder, cell, cell["headline_score"])


def scores_by(folder: Path, cell: Mapping[str, Any], score: str) -> dict[str, np.ndarray]:
    """The same by another score."""
    with np.load(folder / cell["scores_file"], allow_pickle=False) as arrays:
        return report.score_arrays(arrays, score)


def labelled_rightly(folder: Path, cell: Mapping[str, Any]) -> np.ndarray:
    """Which of a cell's in-distribution test images are, bool (N,)."""
    with np.load((folder / cell["scores_file"]).with_name("details.npz"), allow_pickle=False) as arrays:
        return arrays["correct"]


def _facts(stage: Stage | None) -> Any:
    return stage.facts if stage is not None and stage.result is not None else None


def keep_logs(work: Work, cell: Cell) -> None:
    """Copies the epochs of every training of the cell to where a user looks for them."""
    for stage in cell.made:
        file = stage.folder / "history.csv"
        if file.exists():
            report.write_text(work.logs / f"{stage.role}.csv", file.read_text(encoding="utf-8"))


def write_report(result: dict[str, Any], work: Work, cell: Cell) -> None:
    """Writes the report of a run of one cell."""
    folder = work.run.folder
    report.write_json(folder / "report.json", result)
    histories: dict[str, dict[str, list[float]]] = {
        stage.role: _terms(stage.facts["history"]) for stage in (cell.diffusion, cell.classifier) if stage is not None
    }
    headline = headline_scores(folder, result)
    shown = next((one for one in cell.outliers if one.sheet), None)
    notes = [note for one in cell.outliers for note in one.source.notes(one.facts)]
    report.write(
        folder / "report.html", result, scores=headline, histories=histories,
        contact_sheet=shown.sheet if shown else None, outlier_notes=notes, behaviour=_behaviour(cell, headline),
    )  # fmt: skip


def _behaviour(cell: Cell, scores: Mapping[str, np.ndarray]) -> report.Behaviour | None:
    """What the figures of the classifier's behaviour are drawn of; None where nothing was kept for them."""
    data, kept = cell.data, cell.evaluation.arrays("details")
    if not kept:
        return None
    test = cell.classifier.labelled(data.images("test"))
    names = test.class_names
    images = {
        "id": test.images,
        **{name: of.images for kind in ("near", "far") for name, of in data.sets(kind).items()},
    }

    def extremes(name: str) -> list[report.Extreme]:
        rows = zip(kept[f"{name}/extreme"].tolist(), kept[f"{name}/predicted"].tolist(), strict=True)
        return [
            report.Extreme(
                np.asarray(images[name][row]), float(scores[name][row]), names[given],
                names[test.known_labels[row]] if name == "id" else "",
            )
            for row, given in rows
        ]  # fmt: skip

    return report.Behaviour(
        confidence=kept["confidence"],
        correct=kept["correct"],
        planes={name: kept[f"{name}/plane"] for name in images},
        classes=test.known_labels[kept["id/plane_rows"]],
        class_names=names,
        extremes={name: extremes(name) for name in images},
    )


def _terms(history: dict[str, list[float]]) -> dict[str, list[float]]:
    """The curves to draw: a single term is the loss itself."""
    return history if len(history) > 2 else {name: values for name, values in history.items() if name != "loss"}
