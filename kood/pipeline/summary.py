"""From finished stages to `report.json` and `report.html`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

import kood
from kood import report
from kood.pipeline.environment import environment
from kood.pipeline.prepare import warnings_of
from kood.pipeline.work import Work

__all__ = ["headline_scores", "summarize", "write_report"]

#: What a stage says of itself beside its time: how a network was trained, how a sampler sampled.
TOLD = ("steps", "precision", "drawn", "kept", "drop_rate", "images_per_second", "wanted", "epochs")


def summarize(work: Work) -> dict[str, Any]:
    """The cell's part of `report.json`."""
    figures, prepared = work.stages["evaluate"].facts, work.stages["data"].facts
    sets = prepared["sets"]
    datasets = {
        name: {"kind": kind, **{key: sets[f"data.{kind}.{name}"][key] for key in ("images", "sha256")}}
        for kind in ("near", "far")
        for name in getattr(work.recipe.data, kind)
    }
    compared = work.stages["baseline"].facts if "baseline" in work.stages else None
    keep_logs(work)
    file = work.stages["evaluate"].folder / "scores.npz"
    inside = {name: {key: sets[name][key] for key in ("images", "sha256")} for name in ("train", "test")}
    result = {
        "recipe": work.recipe.name,
        "cell": {},
        "backend": keras.backend.backend(),
        "kood": kood.__version__,
        "quick": work.recipe.quick,
        "seeds": [work.recipe.seed],
        **figures,
        "warnings": ([compared["warning"]] if compared and compared["warning"] else [])
        + warnings_of(work.stages["data"])
        + figures["warnings"],
        "notes": prepared["notes"],
        "copies": prepared["copies"],
        "parts": prepared["parts"],
        "outlier_audit": work.stages["shortcut"].facts if "shortcut" in work.stages else None,
        "baseline": {key: value for key, value in compared.items() if key != "warning"} if compared else None,
        "datasets": datasets,
        "id_sets": inside,
        "class_names": list(work.data("train").class_names),
        "version": work.stages["export"].facts["version"] if "export" in work.stages else None,
        "stages": {
            name: {
                "seconds": stage.seconds,
                "cached": stage.cached,
                "backend": ", ".join(stage.backends),
                **{key: stage.facts[key] for key in TOLD if key in stage.facts},
            }
            for name, stage in work.stages.items()
        },
        "environment": {**environment(), **work.origin},
        "scores_file": file.relative_to(work.run.folder).as_posix(),
    }
    return {**result, "intervals": report.intervals(result, headline_scores(work.run.folder, result))}


def headline_scores(folder: Path, cell: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The scores of every image by the cell's headline score, by set; the in-distribution test images are "id"."""
    with np.load(folder / cell["scores_file"], allow_pickle=False) as arrays:
        return report.score_arrays(arrays, cell["headline_score"])


def keep_logs(work: Work) -> None:
    """Copies the epochs of every training of the cell to where a user looks for them."""
    for name, stage in work.stages.items():
        file = stage.folder / "history.csv"
        if file.exists():
            report.write_text(work.logs / f"{name}.csv", file.read_text(encoding="utf-8"))


def write_report(folder: Path, result: dict[str, Any], work: Work) -> None:
    report.write_json(folder / "report.json", result)
    histories: dict[str, dict[str, list[float]]] = {
        name: _terms(work.stages[name].facts["history"]) for name in ("diffusion", "classifier") if name in work.stages
    }
    headline = headline_scores(work.run.folder, result)
    behaviour = _behaviour(work, headline)
    report.write_figures(folder / "figures", result, headline, behaviour)
    sheet = work.stages["label_mixup"].folder / "sheet.png" if "label_mixup" in work.stages else None
    report.write(
        folder / "report.html", result, scores=headline, histories=histories, contact_sheet=sheet,
        outlier_notes=_sampling_notes(work) if sheet else None, behaviour=behaviour,
    )  # fmt: skip


def _behaviour(work: Work, scores: Mapping[str, np.ndarray]) -> report.Behaviour | None:
    """What the figures of the classifier's behaviour are drawn of; None where nothing was kept for them."""
    file = work.stages["evaluate"].folder / "details.npz"
    if not file.exists():
        return None
    with np.load(file, allow_pickle=False) as arrays:
        kept = dict(arrays)
    names, test = work.data("train").class_names, work.data("test")
    images = {
        "id": test.images,
        **{name: of.images for kind in ("near", "far") for name, of in work.sets(kind).items()},
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


def _sampling_notes(work: Work) -> list[str]:
    """How the outliers under the contact sheet were sampled."""
    settings, facts = work.recipe.outliers.label_mixup, work.stages["label_mixup"].facts
    start = f"from training images noised to level {settings.level}" if settings.start == "image" else "from noise"
    notes = [
        f"Label mixup, {start}: {settings.sampler}, {settings.sampling_steps} steps, guidance {settings.guidance:g}, "
        f"{settings.mix}s mixed; {facts['images']:,} images at {facts['images_per_second']:,.3g} images/s."
    ]
    if settings.confidence is not None:
        notes.append(
            f"Of {facts['drawn']:,} drawn, {facts['drop_rate']:.1%} were dropped: a classifier trained on real images "
            f"gave their most probable class less than {settings.confidence[0]:g} or more than "
            f"{settings.confidence[1]:g}."
        )
    return notes


def _terms(history: dict[str, list[float]]) -> dict[str, list[float]]:
    """The curves to draw: a single term is the loss itself."""
    return history if len(history) > 2 else {name: values for name, values in history.items() if name != "loss"}
