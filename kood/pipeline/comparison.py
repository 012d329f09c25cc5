"""Whether exposure did any good: the same classifier without it, compared on validation images."""

from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kood.detector.choosing import PROXIES, mean_auroc
from kood.files import digest_file
from kood.intervals import auroc_difference
from kood.pipeline.evaluation import Evaluation, Validation
from kood.pipeline.stage import Stage, Work
from kood.recipe import Recipe
from kood.report import score_arrays

__all__ = ["Comparison", "comparison"]

#: Half the width of a 95% interval, in standard errors.
_WIDTH = 1.96
#: A loss of accuracy that nobody minds.
_NEGLIGIBLE = 0.005


class Comparison(Stage):
    """Compares a classifier with the unexposed one on validation images, each by the score its own run would choose.

    Args:
        recipe: Of the exposed classifier.
        without: The baseline's scores of validation images.
        exposed: The classifier's.
    """

    kind, version, is_shared = "baseline", 2, False

    def __init__(self, recipe: Recipe, without: Validation, exposed: Evaluation):
        super().__init__(recipe)
        self.without, self.exposed = without, exposed

    def applies(self) -> str:
        return self.without.applies()

    def decides(self) -> dict[str, Any]:
        # Not the key of the evaluation, which moves with every test set.
        found = [self.exposed.headline, digest_file(self.exposed.folder / "validation.npz")]
        known = {"without": self.without.key, "with": found, "outliers": self.recipe.outliers.use}
        return {**known, **({"groups": True} if self._grouped else {})}

    @property
    def _grouped(self) -> bool:
        return "validation" in self.exposed.data.groups

    def make(self, folder: Path, work: Work) -> dict[str, Any]:
        sets = list(self.recipe.data.validation_ood)
        resembled = {source.resembles for source in self.recipe.outliers.sources.values()}
        without = _read(self.without, self.without.facts["scores"])
        facts = comparison(without, _read(self.exposed, [self.exposed.headline]), sets, resembled, self._grouped)
        return {**facts, "warning": _warning(facts, self.recipe)}

    def says(self) -> list[tuple[str, str]]:
        told = {key: f"{100 * value:.1f}%" for key, value in self.facts.items() if key.startswith(("val", "exposed_v"))}
        return [
            (
                f"baseline: on validation images AUROC {told['validation_auroc']} and accuracy "
                f"{told['validation_accuracy']} without exposure, {told['exposed_validation_auroc']} and "
                f"{told['exposed_validation_accuracy']} with it",
                "",
            )
        ]


def _read(stage: Stage, names: Sequence[str]) -> dict[str, Any]:
    """Some scores of a stage's validation images, by score and set, and which of these are labelled rightly."""
    with np.load(stage.folder / "validation.npz", allow_pickle=False) as arrays:
        return {"correct": arrays["correct"], "scores": {name: score_arrays(arrays, name) for name in names}}


def comparison(
    without: dict[str, Any],
    exposed: dict[str, Any],
    sets: Sequence[str],
    resembled: Container[str],
    grouped: bool = False,
) -> dict[str, Any]:
    """The figures of both, their differences, and whether exposure made it worse.

    AUROC is the mean over the validation sets. Where these are proxies, one of the very kind that the classifier was
    trained on (mixtures of two classes, patch shuffles) is left out, unless only the drawn pictures would remain: there
    exposure would beat no exposure whatever became of real outliers.

    Worse means that the 95% interval of a difference lies below zero: of AUROC (DeLong's, of paired scores), or of
    accuracy (normal, of paired answers) below minus half a point. Both count images as independent, so where these
    stand in groups nothing is called worse.

    Args:
        without: {"correct": (N,) bool, "scores": {score: {set: (N,)}}} of the baseline; its best score is taken.
        exposed: The same of the exposed classifier.
        sets: Names of out-of-distribution validation sets; empty where proxies stand in for them.
        resembled: The proxies that the outliers resemble which the exposed classifier was trained on.
        grouped: Whether the images stand in groups.

    Returns:
        `baseline` of report.json.
    """
    if not sets:
        # Of one class alone there is no pixel mixup.
        made = [proxy for proxy in PROXIES if all(proxy in values for values in exposed["scores"].values())]
        unlike = [proxy for proxy in made if proxy not in resembled]
        sets = unlike if len(unlike) > 1 else made
    chosen = []
    for one in (without, exposed):
        by_score = {name: mean_auroc(*_sides(values)) for name, values in one["scores"].items()}
        chosen.append(max(by_score, key=lambda name: by_score[name]))
    first, second = (_sides(one["scores"][name], sets) for one, name in zip((without, exposed), chosen, strict=True))
    lost, error = auroc_difference(first, second)
    answers = exposed["correct"].astype(float) - without["correct"].astype(float)
    wrong, its_error = float(answers.mean()), float(answers.std(ddof=1) / np.sqrt(len(answers)))
    auroc, accuracy = ([of - _WIDTH * its, of + _WIDTH * its] for of, its in ((lost, error), (wrong, its_error)))
    worse_auroc = not grouped and auroc[1] < 0.0
    worse_accuracy = not grouped and accuracy[1] < -_NEGLIGIBLE
    return {
        "validation_auroc": mean_auroc(*first),
        "validation_accuracy": float(without["correct"].mean()),
        "exposed_validation_auroc": mean_auroc(*second),
        "exposed_validation_accuracy": float(exposed["correct"].mean()),
        "score": chosen[0],
        "exposed_score": chosen[1],
        "sets": list(sets),
        "images": len(answers),
        "auroc_interval": auroc,
        "accuracy_interval": accuracy,
        "worse_auroc": worse_auroc,
        "worse_accuracy": worse_accuracy,
        "worse": worse_auroc or worse_accuracy,
    }


def _sides(values: Mapping[str, np.ndarray], sets: Iterable[str] | None = None) -> tuple[np.ndarray, list[np.ndarray]]:
    """The values of the in-distribution images, and those of some of the other sets; of all where none are named."""
    others = [where for where in values if where != "validation"] if sets is None else sets
    return values["validation"], [values[where] for where in others]


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
