"""Whether exposure did any good: the same classifier without it, compared on validation images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kood.evaluate import PROXIES, mean_auroc
from kood.metrics import auroc_difference
from kood.pipeline.classify import train_classifier, validate_classifier
from kood.pipeline.work import Work
from kood.recipe import Recipe
from kood.runs import Stage

__all__ = ["compare_with_baseline", "comparison", "train_baseline"]

#: Half the width of a 95% interval, in standard errors.
_WIDTH = 1.96
#: A loss of accuracy that nobody minds.
_NEGLIGIBLE = 0.005
#: Sources that mix two classes, as the proxy "pixel_mixup" does.
_MIXTURES = {"label_mixup", "pixel_mixup", "cutmix"}


def train_baseline(work: Work) -> Stage | None:
    """Trains the classifier without outliers and without pure samples as well.

    It has the same head, backbone, seed and number of steps, and the fingerprint of a table's cell "none", so that a
    table trains it once. None is trained where the recipe exposes to nothing, or does not want it.
    """
    recipe = work.recipe
    if not recipe.evaluate.baseline or not (recipe.outliers.exposes or recipe.pure_samples.trains):
        return None
    work.stages["baseline_classifier"] = train_classifier(work.beside(_unexposed(recipe)), [], shown="baseline")
    return work.stages["baseline_classifier"]


def compare_with_baseline(work: Work) -> Stage | None:
    """Compares the classifier with its baseline, where there is one and there are validation images to do it on.

    Each detector is taken with the score that its own run would choose.
    """
    recipe = work.recipe
    if "baseline_classifier" not in work.stages or not len(work.data("validation")):
        return None
    plain = work.beside(_unexposed(recipe))
    plain.stages["classifier"] = work.stages["baseline_classifier"]
    headline = recipe.evaluate.headline.lower()
    names = recipe.evaluate.scores if headline == "auto" else [headline]
    without = validate_classifier(plain, names)
    with_them = validate_classifier(work, [work.stages["evaluate"].facts["headline_score"]])

    def make(_: Path) -> dict[str, Any]:
        facts = comparison(_read(without), _read(with_them), list(recipe.data.validation_ood), recipe.outliers.use)
        return {**facts, "warning": _warning(facts, recipe)}

    decides = {"without": without.key, "with": with_them.key, "outliers": recipe.outliers.use}
    stage = work.stage("baseline", decides, make, awaited=False)
    facts = stage.facts
    work.progress.say(
        f"baseline: on validation images AUROC {100 * facts['validation_auroc']:.1f}% and accuracy "
        f"{100 * facts['validation_accuracy']:.1f}% without exposure, "
        f"{100 * facts['exposed_validation_auroc']:.1f}% and {100 * facts['exposed_validation_accuracy']:.1f}% with it"
    )
    return stage


def _unexposed(recipe: Recipe) -> Recipe:
    """The recipe of the same classifier, trained on real images alone."""
    outliers = recipe.outliers.model_copy(update={"use": []})
    return recipe.model_copy(
        update={"outliers": outliers, "pure_samples": recipe.pure_samples.model_copy(update={"use": []})}
    )


def _read(stage: Stage) -> dict[str, Any]:
    with np.load(stage.folder / "scores.npz", allow_pickle=False) as arrays:
        scores: dict[str, dict[str, np.ndarray]] = {name: {} for name in stage.facts["scores"]}
        for key in arrays.files:
            where, _, name = key.rpartition("/")
            if name in scores:
                scores[name][where] = arrays[key]
        return {"correct": arrays["correct"], "scores": scores}


def comparison(
    without: dict[str, Any], exposed: dict[str, Any], sets: Sequence[str], use: Sequence[str]
) -> dict[str, Any]:
    """The figures of both, their differences, and whether exposure made it worse.

    AUROC is the mean over the validation sets. Where these are proxies, one of the very kind that the classifier was
    trained on (mixtures of two classes, patch shuffles) is left out, unless none would remain: there exposure would
    beat no exposure whatever became of real outliers.

    Worse means that the 95% interval of a difference lies below zero: of AUROC (DeLong's, of paired scores), or of
    accuracy (normal, of paired answers) below minus half a point.

    Args:
        without: {"correct": (N,) bool, "scores": {score: {set: (N,)}}} of the baseline; its best score is taken.
        exposed: The same of the exposed classifier.
        sets: Names of out-of-distribution validation sets; empty where proxies stand in for them.
        use: Sources of outliers that the exposed classifier was trained on.

    Returns:
        `baseline` of report.json.
    """
    if not sets:
        trained_on = {proxy for proxy, kinds in (("pixel_mixup", _MIXTURES), ("patch_shuffle", {"patch_shuffle"}))
                      if kinds & set(use)}  # fmt: skip
        sets = [proxy for proxy in PROXIES if proxy not in trained_on] or list(PROXIES)
    chosen = []
    for one in (without, exposed):
        by_score = [(mean_auroc(values, [s for s in values if s != "validation"]), name)
                    for name, values in one["scores"].items()]  # fmt: skip
        chosen.append(max(by_score, key=lambda pair: pair[0])[1])
    first, second = (one["scores"][name] for one, name in zip((without, exposed), chosen, strict=True))
    lost, error = auroc_difference(*((one["validation"], [one[s] for s in sets]) for one in (first, second)))
    answers = exposed["correct"].astype(float) - without["correct"].astype(float)
    wrong, its_error = float(answers.mean()), float(answers.std(ddof=1) / np.sqrt(len(answers)))
    return {
        "validation_auroc": mean_auroc(first, sets),
        "validation_accuracy": float(without["correct"].mean()),
        "exposed_validation_auroc": mean_auroc(second, sets),
        "exposed_validation_accuracy": float(exposed["correct"].mean()),
        "score": chosen[0],
        "exposed_score": chosen[1],
        "sets": list(sets),
        "images": len(answers),
        "auroc_interval": [lost - _WIDTH * error, lost + _WIDTH * error],
        "accuracy_interval": [wrong - _WIDTH * its_error, wrong + _WIDTH * its_error],
        "worse_auroc": lost + _WIDTH * error < 0.0,
        "worse_accuracy": wrong + _WIDTH * its_error < -_NEGLIGIBLE,
        "worse": lost + _WIDTH * error < 0.0 or wrong + _WIDTH * its_error < -_NEGLIGIBLE,
    }


def _warning(facts: dict[str, Any], recipe: Recipe) -> str | None:
    """One sentence of what to do; without figures, so that the cells of a table say it together."""
    if not facts["worse"]:
        return None
    causes, mends = [], []
    if recipe.outliers.exposes:
        causes.append("outliers")
        mends.append("--set outliers.use=[]")
    if recipe.pure_samples.trains:
        causes.append("generated images of its classes")
        mends.append("--set pure_samples.use=[]")
    words = {
        "worse_auroc": "tells images of its classes from other images better",
        "worse_accuracy": "names the right class more often",
    }
    lost = " and ".join(words[key] for key in words if facts[key])
    return (
        f"Training on {' and '.join(causes)} made this classifier worse: on validation images the same one trained "
        f"without them {lost}; to train without them, run with {' '.join(mends)}"
    )
