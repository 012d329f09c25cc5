"""A classifier and all the image sets of a run -> a detector, and what it says of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kood.data.image_set import ImageSet
from kood.detector.choosing import validation_images
from kood.detector.detector import Detector
from kood.detector.figures import details_of, figures_of
from kood.outputs import softmax

__all__ = ["Evaluation", "evaluate"]


@dataclass
class Evaluation:
    """What was measured.

    Attributes:
        figures: {"id", "classes", "scores", "headline_score", "validation", "validation_sets", "threshold",
            "warnings", "notes"} of `report.json`, and "tuned" where options were chosen.
        scores: {set: {score: (N,)}}, the set "id" being the in-distribution test images; a score that is NaN for some
            image of a set is not in that set.
        validation: {set: {score: (N,)}} of `validation_images`, where validation images were measured.
        validation_correct: (N,) bool, which of the in-distribution ones are labelled rightly.
        kept: Further arrays. "state": of the headline score, where it was fitted. "parity": outputs for the first
            in-distribution test images, which the SavedModel must give again. "calibration": of the calibration images
            the headline "scores" (n,), which p-values are taken from, and the "labels" (n,) that the classifier gives
            them. "details", what figures are drawn of: "confidence" and "correct" (N,) of the in-distribution test
            images, and of each set its "plane" (n, 2), two principal components of some features, "plane_rows" (n,),
            which images those are, "extreme" (k,), the images that the headline score is most wrong about, and
            "predicted" (k,), the classes they were given.
    """

    figures: dict[str, Any]
    scores: dict[str, dict[str, np.ndarray]]
    validation: dict[str, dict[str, np.ndarray]]
    validation_correct: np.ndarray
    kept: dict[str, dict[str, np.ndarray]]


def evaluate(
    classifier: keras.Model,
    *,
    train: ImageSet,
    validation: ImageSet | None,
    calibration: ImageSet,
    test: ImageSet,
    near: dict[str, ImageSet],
    far: dict[str, ImageSet],
    validation_ood: dict[str, ImageSet] | None = None,
    unseen: ImageSet | None = None,
    names: list[str] | None = None,
    headline: str = "auto",
    tune: bool = False,
    accept: float = 0.95,
    by_class: bool = False,
    batch_size: int = 512,
    seed: int = 0,
    groups: Mapping[str, Mapping[str, int]] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Evaluation:
    """Measures a classifier on everything the recipe names.

    Args:
        train: What fitted scores are fitted on.
        validation: What the headline score is chosen on, against `validation_ood`; None to measure none of these.
        calibration: What the threshold is set on.
        validation_ood: Out-of-distribution images to choose on, by name; where there are none, those of
            `kood.detector.choosing.proxies`.
        unseen: What the scores are fitted on that ask for images that nothing was trained on, such as
            `kood.scores.TempScale`; None takes `validation`, and without it `train`.
        names: Specs of scores to measure; None takes every applicable one but those of `kood.scores.ON_REQUEST`.
        headline: One of these, or "auto". One that is named is measured, whether it is among the others or not.
        tune: Whether the options of scores that are named without any are chosen on `validation` as well.
        accept: Share of in-distribution images that the threshold accepts.
        by_class: Whether each class has a threshold of its own, see `kood.conformal.Calibration`.
        seed: Of the validation proxies.
        groups: As for `kood.detector.figures.figures_of`.
        progress: Called with the number of finished steps: the scores, of which each is a part of the first one, and
            every image set.

    Returns:
        An `Evaluation`.

    Raises:
        UserError: a score that this head cannot give; a named one that so many images cannot fit; the headline, or the
            last, that cannot be fitted to what the classifier says of its images, or is NaN for one that is not a
            calibration image; too few calibration images, or too few with a finite score.
    """
    choosing = {} if validation is None else validation_images(validation, validation_ood, seed)
    outside, sets = [name for name in choosing if name != "validation"], {"id": test, **near, **far}
    detector = Detector(
        classifier, headline, train.class_names, scores=names or "all", key="evaluate.scores",
        batch_size=min(batch_size, max(map(len, [*sets.values(), *choosing.values(), calibration]))),
    )  # fmt: skip
    if detector.moving and calibration.images.ndim == 4:
        detector.need_slope(np.asarray(calibration.images[: detector.batch_size]), "evaluate.scores")

    def after(steps: int) -> Callable[[float], None] | None:
        return progress and (lambda done: progress(steps + done))

    passed = detector.tune_scores(train, choosing) if tune else {}
    if not tune:
        detector.fit_scores(train, validation if unseen is None else unseen, progress)
    # Apart from the test images, which have no say in what is chosen and decided.
    held = detector.measure(choosing, after(1), passed)
    choice = detector.choice or detector.choose(held, "validation", outside)
    decision = detector.decide_by(*detector.scored(calibration), accept, by_class)
    measured = detector.measure(sets, after(2 + len(choosing)))
    measured.warnings = list(dict.fromkeys([*held.warnings, *measured.warnings]))
    headline, values = choice.score, measured.scores
    figures = figures_of(measured, choice, decision, train.class_names, list(near), list(far), groups)
    if tune:
        figures |= {"tuned": detector.tuned, "validation_sets": outside}
    first = slice(0, 256)
    parity = {
        "probabilities": softmax(measured.outputs["id"]["logits"][first]),
        "label": measured.given("id")[first],
        "ood_score": values["id"][headline][first].astype("float32"),
    }
    calibrated = {"scores": decision.scores, "labels": decision.labels}
    kept = {"parity": parity, "details": details_of(measured, headline, list(sets)), "calibration": calibrated}
    if state := detector.scorers[headline].state:
        kept["state"] = state
    correct = held.correct("validation") if choosing else np.empty(0, bool)
    return Evaluation(figures, values, held.scores, correct, kept)
