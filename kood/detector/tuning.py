"""The options of scores, chosen among their usual values on validation images."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kood import metrics, specs
from kood.errors import UserError
from kood.outputs import Outputs, score_rows
from kood.scorer import Scorer

__all__ = ["mean_auroc", "tune"]


def mean_auroc(scores: Mapping[str, np.ndarray], sets: Iterable[str]) -> float:
    """Mean over sets of the AUROC against the set "validation".

    Args:
        scores: {set: (N,)}.
        sets: Names of out-of-distribution sets.
    """
    inside = scores["validation"]
    return float(np.mean([metrics.auroc(*metrics.joined(inside, scores[where])) for where in sets]))


def tune(
    names: Iterable[str],
    fit_outputs: Outputs,
    labels: np.ndarray,
    head: Any,
    validation: Mapping[str, Outputs],
    batch_size: int,
) -> tuple[dict[str, str], dict[str, Any]]:
    """Chooses the options of scores as OpenOOD does: every combination of their usual values is tried.

    Args:
        names: Specs. One that gives an option is left as it is, and so is a score without usual values.
        fit_outputs: The classifier's outputs for the training images, which fitted scores are fitted on.
        labels: (N,) the classes of these.
        head: The classifier's head.
        validation: {set: the classifier's outputs}, of the in-distribution images "validation" and at least one
            out-of-distribution set, with what perturbed logits the settings ask for.
        batch_size: Rows that are scored at a time.

    Returns:
        {name: the spec with the highest mean AUROC over the sets, of equals the first, the defaults before all}, and
        what the report tells of it, {name: {"chosen": spec, "tried": {spec: mean AUROC}}}. A setting that the images
        do not determine, or that is NaN for one of them, is not tried; a score whose settings all are that is not in
        either.
    """
    told: dict[str, Any] = {}
    sets = [where for where in validation if where != "validation"]
    for name in names:
        tried: dict[str, float] = {}
        settings = list(specs.settings(name))
        for setting in settings if len(settings) > 1 else ():
            try:
                scorer = Scorer(setting).fit(fit_outputs, labels, head)
            except UserError:
                continue
            scores = {where: score_rows(scorer, outputs, batch_size) for where, outputs in validation.items()}
            if not any(np.isnan(values).any() for values in scores.values()):
                tried[setting] = mean_auroc(scores, sets)
        if tried:
            told[name] = {"chosen": max(tried, key=lambda one: tried[one]), "tried": tried}
    return {name: one["chosen"] for name, one in told.items()}, told
