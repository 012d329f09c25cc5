"""Whether the images that the diffusion model makes are any good, and whether the detector merely spots them."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kood.audit import Judged, audit, with_shortcut
from kood.data.stored import read_images
from kood.evaluate import scores_of
from kood.pipeline.judge import Judge
from kood.pipeline.work import VERSIONS, Work
from kood.runs import Stage, digest_file
from kood.scorer import Scorer

__all__ = ["audit_outliers"]

#: Held-out images that an audit needs.
LEAST = 3


def audit_outliers(work: Work) -> Stage | None:
    """Audits what was sampled, and tests this detector for the shortcut.

    Only validation images stand beside the samples, so that settings may be chosen by it. The judge's part depends on
    the samples alone, and the cells of a table that share them share it. Nothing is audited where the recipe leaves no
    validation images.
    """
    if len(work.data("validation")) < LEAST:
        work.progress.say("no audit of the outliers: data.id.validation leaves too few images", style="yellow")
        return None
    audited, shown = _audit(work), work.data("validation")
    evaluated, samples = work.stages["evaluate"], work.stages["pure_audit"]
    score, state = evaluated.facts["headline_score"], evaluated.folder / "state.npz"

    def make(folder: Path) -> dict[str, Any]:
        classifier = keras.saving.load_model(work.stages["classifier"].folder / "classifier.keras", compile=False)
        scorer = Scorer(score, dict(np.load(state, allow_pickle=False)) if state.exists() else None)
        pure = read_images(samples.folder, "pure", samples.facts)
        with work.progress.stage("shortcut"):
            real, generated = (
                scores_of(classifier, scorer, np.asarray(s.images), work.recipe.evaluate.batch_size)
                for s in (shown, pure)
            )
        np.savez(folder / "scores.npz", allow_pickle=False, validation=real, pure=generated)
        return with_shortcut(_read(audited), real, generated, score=score)

    # Not the key of the evaluation, which moves with every test set; only its score enters here.
    decides = {
        "audit": audited.key,
        "classifier": work.stages["classifier"].key,
        "score": [score, VERSIONS["evaluate"], digest_file(state) if state.exists() else None],
        "batch_size": work.recipe.evaluate.batch_size,
        "validation": work.digest("validation"),
    }
    return work.stage("shortcut", decides, make, awaited=False)


def _audit(work: Work) -> Stage:
    judge_stage, samples = work.stages["judge"], work.stages["pure_audit"]
    mixed = work.stages.get("label_mixup")

    def make(folder: Path) -> dict[str, Any]:
        judge = Judge.of(work)
        train, held, seed = work.data("train"), work.data("validation"), work.recipe.data.split_seed
        pure = read_images(samples.folder, "pure", samples.facts)
        with work.progress.stage("audit"):
            result = audit(
                _judged(judge, pure.images),
                pure.known_labels,
                _judged(judge, held.images),
                held.known_labels,
                train.images,
                judge.features(train.images),
                mixed=_judged(judge, read_images(mixed.folder, "outliers", mixed.facts).images) if mixed else None,
                mixtures=_shares(mixed) if mixed else None,
                class_names=train.class_names,
                feature_space=(
                    f"penultimate features of {work.recipe.classifier.backbone} trained on the in-distribution "
                    "training images"
                ),
                seed=seed,
            )
        (folder / "audit.json").write_text(json.dumps(result))
        return {"warnings": result["warnings"]}

    decides = {
        "judge": judge_stage.key,
        "pure": samples.key,
        "mixed": mixed.key if mixed else None,
        "images": work.digest("train", "validation"),
        "seed": work.recipe.data.split_seed,
    }
    return work.stage("audit", decides, make, awaited=False)


def _shares(mixed: Stage) -> np.ndarray | None:
    """The shares of the parents, None where a row has one class alone or turns away from one."""
    rows = np.load(mixed.folder / "mixtures.npy", allow_pickle=False)
    return rows if (rows >= 0).all() and ((rows > 0).sum(axis=1) > 1).all() else None


def _judged(judge: Judge, images: np.ndarray) -> Judged:
    return Judged(np.asarray(images), *judge.opinions(images))


def _read(stage: Stage) -> dict[str, Any]:
    return json.loads((stage.folder / "audit.json").read_bytes())
