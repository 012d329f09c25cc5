"""A classifier and image sets -> scores -> metrics, the headline score and the threshold."""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from kood import metrics, specs
from kood.conformal import Calibration, needed_images, rate_interval
from kood.conformal import threshold as conformal_threshold
from kood.data.image_set import ImageSet
from kood.detector.tuning import mean_auroc, tune
from kood.errors import UserError
from kood.outliers.patch_shuffle import shuffled
from kood.outliers.pixel_mixup import PixelMixup
from kood.outputs import Outputs, forward_of, outputs_of, run_over, score_rows, scores_of, softmax
from kood.per_class import by_true_class, rarely_accepted, wrong_classes
from kood.scorer import Scorer, applicable, linear_weights
from kood.scores import ON_REQUEST

__all__ = [
    "PROXIES", "Evaluation", "Measured", "conformal_threshold", "evaluate", "mean_auroc", "measure", "outputs_of",
    "run_over", "scores_of", "softmax", "validation_images",
]  # fmt: skip

#: What stands in for out-of-distribution validation images where a recipe names none, made of the validation images.
PROXIES = ("pixel_mixup", "patch_shuffle")

#: Images of a set whose features are drawn, and images shown of those that a score is most wrong about.
ON_THE_PLANE, EXTREMES = 400, 8


@dataclass
class Evaluation:
    """What was measured.

    Attributes:
        figures: {"id", "classes", "scores", "headline_score", "validation", "validation_sets", "threshold",
            "warnings"} of `report.json`, and "tuned" where options were chosen.
        scores: {set: {score: (N,)}}, the set "id" being the in-distribution test images.
        state: Arrays of the headline score where it was fitted.
        parity: Outputs for the first in-distribution test images, which the SavedModel must give again.
        details: What figures are drawn of: "confidence" and "correct" (N,) of the in-distribution test images, and of
            each set its "plane" (n, 2), two principal components of some features, "plane_rows" (n,), which images
            those are, "extreme" (k,), the images that the headline score is most wrong about, and "predicted" (k,),
            the classes they were given.
        calibration: (n,) headline scores of the calibration images, which p-values are taken from.
        calibration_labels: (n,) what the classifier labels these.
        validation: {set: {score: (N,)}} of `validation_images`, where validation images were measured.
        validation_correct: (N,) bool, which of the in-distribution ones are labelled rightly.
    """

    figures: dict[str, Any]
    scores: dict[str, dict[str, np.ndarray]]
    state: dict[str, np.ndarray] | None
    parity: dict[str, np.ndarray] = field(default_factory=dict)
    details: dict[str, np.ndarray] = field(default_factory=dict)
    calibration: np.ndarray = field(default_factory=lambda: np.empty(0))
    calibration_labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    validation: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    validation_correct: np.ndarray = field(default_factory=lambda: np.empty(0, bool))


@dataclass
class Measured:
    """What a classifier and its scores say of image sets.

    Attributes:
        outputs: {set: the classifier's outputs}.
        scorers: {score: its `Scorer`, fitted where it has to be}.
        scores: {set: {score: (N,)}}.
        warnings: What could not be measured, and why.
        tuned: What options were chosen, as `kood.detector.tuning.tune` tells it.
    """

    outputs: dict[str, Outputs]
    scorers: dict[str, Scorer]
    scores: dict[str, dict[str, np.ndarray]]
    warnings: list[str]
    tuned: dict[str, Any] = field(default_factory=dict)

    def correct(self, where: str, images: ImageSet) -> np.ndarray:
        """Which images of a set are labelled rightly, (N,) bool."""
        return self.outputs[where]["logits"].argmax(axis=1) == images.known_labels


def measure(
    classifier: keras.Model,
    sets: Mapping[str, np.ndarray],
    train: ImageSet,
    *,
    names: list[str] | None = None,
    headline: str = "auto",
    tune_on: Mapping[str, str] | None = None,
    batch_size: int = 512,
    progress: Callable[[int], None] | None = None,
) -> Measured:
    """Scores images; each passes the classifier once.

    Args:
        classifier: A trained `Classifier`.
        sets: Images uint8 (N, H, W, C) by name.
        train: What fitted scores are fitted on.
        names: Specs of scores to measure; None takes every applicable one but those of `kood.scores.ON_REQUEST`.
        headline: One that is measured, whether it is among the others or not; "auto" for none.
        tune_on: {"validation" and names of out-of-distribution sets: which of the sets}, on which the options of the
            scores are chosen; nothing leaves each as it is named.
        batch_size: Images a forward pass.
        progress: Called with the number of finished sets.

    Returns:
        A `Measured`.

    Raises:
        UserError: a score that this head cannot give; a named one that cannot be fitted, or that is NaN for some image.
    """
    asked = [*(names or ()), *([] if headline == "auto" else [headline])]
    named = list(dict.fromkeys(specs.canonical(name, "evaluate.scores") for name in asked))
    batch_size = min(batch_size, max(map(len, sets.values())))
    outputs: dict[str, Outputs] = {}

    def run(asking: Sequence[str], where: Sequence[str]) -> None:
        forward = forward_of(classifier, asking)
        for one in where:
            outputs[one] = run_over(forward, np.asarray(sets[one]), batch_size)
            if progress is not None:
                progress(len(outputs))

    # Sets to choose on are run first: under every setting, where images are perturbed by it, and all others under one.
    first = list(tune_on.values()) if tune_on else list(sets)
    run([one for name in named for one in (specs.settings(name) if tune_on else [name])], first)
    wanted = _wanted([*outputs[first[0]], *linear_weights(classifier.head)], named, names is None)
    learned: Outputs = {}
    if any(Scorer(name).is_fitted for name in wanted):
        learned = run_over(forward_of(classifier), np.asarray(train.images), batch_size)
    tuned: dict[str, Any] = {}
    if tune_on:
        held = {name: outputs[where] for name, where in tune_on.items()}
        chosen, tuned = tune(wanted, learned, train.known_labels, classifier.head, held, batch_size)
        wanted, named = (list(dict.fromkeys(chosen.get(name, name) for name in some)) for some in (wanted, named))
        run(named, [where for where in sets if where not in outputs])
        outputs = {where: outputs[where] for where in sets}
    scorers, warnings = _scorers(wanted, named, learned, train, classifier.head)
    scores = {
        where: {name: score_rows(scorer, output, batch_size) for name, scorer in scorers.items()}
        for where, output in outputs.items()
    }
    warnings += _drop_undefined(scores, scorers, required=named)
    return Measured(outputs, scorers, scores, warnings, tuned)


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
    names: list[str] | None = None,
    headline: str = "auto",
    tune: bool = False,
    accept: float = 0.95,
    by_class: bool = False,
    batch_size: int = 512,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Measures a classifier on everything the recipe names.

    Args:
        classifier: A trained `Classifier`.
        train: What fitted scores are fitted on.
        validation: What the headline score is chosen on, against `validation_ood`; None to measure none of these.
        calibration: What the threshold is set on.
        test: In-distribution test images.
        near: Near out-of-distribution sets, by name.
        far: Far ones.
        validation_ood: Out-of-distribution images to choose on, by name; where there are none, pixel mixups and patch
            shuffles of the validation images.
        names: Specs of scores to measure; None takes every applicable one but those of `kood.scores.ON_REQUEST`.
        headline: One of these, or "auto". One that is named is measured, whether it is among the others or not.
        tune: Whether the options of scores that are named without any are chosen on `validation` as well.
        accept: Share of in-distribution images that the threshold accepts.
        by_class: Whether each class has a threshold of its own, see `kood.conformal.Calibration`.
        batch_size: Images a forward pass.
        seed: Of the validation proxies.
        progress: Called with the number of finished image sets.

    Returns:
        An `Evaluation`.

    Raises:
        UserError: a score that this head cannot give; a named one that cannot be fitted, or that is NaN for some image;
            too few calibration images.
    """
    sets = {"id": test.images, **{name: s.images for name, s in (near | far).items()}}
    held = {"calibration": calibration.images}
    if validation is not None:
        held |= validation_images(validation, validation_ood, seed)
    choosing = [name for name in held if name not in ("calibration", "validation")]
    tune_on = {name: f"held/{name}" for name in held if name != "calibration"} if tune else None
    measured = measure(
        classifier, {**sets, **{f"held/{name}": images for name, images in held.items()}}, train, names=names,
        headline=headline, tune_on=tune_on, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    outputs, values, scorers = measured.outputs, measured.scores, measured.scorers
    names = list(scorers)
    held_by = {name: {where: values[f"held/{where}"][name] for where in held} for name in names}
    chosen_by = {}
    if headline == "auto":
        chosen_by = {name: mean_auroc(held_by[name], choosing) for name in names}
        # Of equals, one that serves without a fitted state.
        headline = max(names, key=lambda name: (chosen_by[name], not scorers[name].is_fitted))
    else:
        headline = specs.canonical(headline)
        headline = measured.tuned[headline]["chosen"] if headline in measured.tuned else headline
    id_scores, held_scores = values["id"], values["held/calibration"][headline]
    labels, held_labels = (outputs[where]["logits"].argmax(axis=1) for where in ("id", "held/calibration"))
    decision = Calibration(held_scores, held_labels, len(train.class_names), accept, by_class)
    accepted = ~decision.flagged(id_scores[headline], labels)
    details = _details(outputs, {where: values[where][headline] for where in sets}, test.known_labels)
    figures_by = {name: _measure(name, values, list(near), list(far)) for name in names}
    classes = by_true_class(
        test.class_names, test.known_labels, labels, accepted, id_scores[headline],
        {kind: [values[name][headline] for name in members] for kind, members in (("near", near), ("far", far))},
    )  # fmt: skip
    about_threshold = [*_shared(decision, train.class_names), *rarely_accepted(classes, accept, by_class)]
    figures = {
        "id": {
            "accuracy": metrics.accuracy(labels, test.labels),
            "ece": metrics.expected_calibration_error(details["confidence"], details["correct"]),
            "images": len(test),
        },
        "classes": classes,
        "scores": figures_by,
        "headline_score": headline,
        "validation": chosen_by,
        "validation_sets": choosing if chosen_by or tune else [],
        "threshold": {
            "score": headline,
            "value": decision.groups[0].threshold if len(decision.groups) == 1 else None,
            "by_class": by_class,
            "thresholds": _thresholds(decision, train.class_names),
            "accept": accept,
            "accepted_id_test": float(np.mean(accepted)),
            "accepted_id_test_interval": list(rate_interval(int(accepted.sum()), len(accepted))),
            "calibration_images": len(calibration),
            "warnings": about_threshold,
        },
        "warnings": [
            *measured.warnings,
            *_warnings(figures_by[headline], headline, list(near) + list(far)),
            *about_threshold,
            *wrong_classes(classes),
        ],
    } | ({"tuned": measured.tuned} if tune else {})
    first = slice(0, 256)
    return Evaluation(
        figures,
        {where: values[where] for where in sets},
        scorers[headline].state,
        {
            "probabilities": softmax(outputs["id"]["logits"][first]),
            "label": labels[first],
            "ood_score": id_scores[headline][first].astype("float32"),
        },
        details,
        held_scores,
        held_labels,
        {where: values[f"held/{where}"] for where in held if where != "calibration"},
        measured.correct("held/validation", validation) if validation is not None else np.empty(0, bool),
    )


def _details(outputs: dict[str, Outputs], scores: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, np.ndarray]:
    probabilities, given = softmax(outputs["id"]["logits"].astype("float64")), outputs["id"]["logits"].argmax(axis=1)
    details = {"confidence": np.clip(probabilities.max(axis=1), 0.0, 1.0), "correct": given == labels}
    features = outputs["id"]["features"].astype("float64")
    center = features.mean(axis=0)
    # The two directions in which the in-distribution features vary most.
    axes = np.linalg.eigh(np.cov(features - center, rowvar=False).reshape(features.shape[1], -1))[1][:, :-3:-1]
    for where, score in scores.items():
        rows = np.unique(np.linspace(0, len(score) - 1, min(len(score), ON_THE_PLANE)).astype(int))
        details[f"{where}/plane"] = ((outputs[where]["features"][rows] - center) @ axes).astype("float32")
        details[f"{where}/plane_rows"] = rows
        order = np.argsort(-score if where == "id" else score, kind="stable")[:EXTREMES]
        details[f"{where}/extreme"] = order
        details[f"{where}/predicted"] = outputs[where]["logits"][order].argmax(axis=1)
    return details


def validation_images(validation: ImageSet, ood: dict[str, ImageSet] | None, seed: int) -> dict[str, np.ndarray]:
    """What choices are made on.

    Args:
        validation: In-distribution images.
        ood: Out-of-distribution ones by name; where there are none, the two of `PROXIES`, made of the former.
        seed: Of the proxies.

    Returns:
        uint8 (N, H, W, C) by name, the set "validation" being the in-distribution images.
    """
    sets = {"validation": validation.images}
    if ood:
        return sets | {name: found.images for name, found in ood.items()}
    rng = np.random.default_rng([seed, 1])
    mixed = PixelMixup().draw(len(validation), rng, validation).images
    return sets | dict(zip(PROXIES, (mixed, shuffled(validation.images, rng=rng)), strict=True))


def _wanted(available: Sequence[str], named: list[str], all_others: bool) -> list[str]:
    """The scores to measure: those that are named and, where wanted, all others that are measured by themselves."""
    possible = applicable(available)
    impossible = [name for name in named if not Scorer(name).can_take(available)]
    if impossible:
        raise UserError(
            f"evaluate.scores: this head cannot give {', '.join(impossible)}; it can give {', '.join(possible)}"
        )
    others = [name for name in possible if name not in ON_REQUEST or name in named] if all_others else []
    return list(dict.fromkeys([*others, *named]))


def _scorers(
    wanted: list[str], named: list[str], outputs: Outputs, train: ImageSet, head: Any
) -> tuple[dict[str, Scorer], list[str]]:
    """The scores to measure, fitted; and what could not be, where the recipe does not insist on it."""
    scorers, warnings = {}, []
    for name in wanted:
        try:
            scorers[name] = Scorer(name).fit(outputs, train.known_labels, head)
        except UserError as error:
            if name in named:
                raise
            warnings.append(str(error))
    return scorers, warnings


def _measure(name: str, values: dict[str, dict[str, np.ndarray]], near: list[str], far: list[str]) -> dict[str, Any]:
    inside = values["id"][name]
    result: dict[str, Any] = {}
    for where in [*near, *far]:
        outside = values[where][name]
        result[where] = metrics.summary(*metrics.joined(inside, outside))
    for kind, members in (("near", near), ("far", far)):
        if members:
            result[kind] = {
                metric: float(np.mean([result[where][metric] for where in members])) for metric in result[members[0]]
            }
    return result


def _drop_undefined(
    values: dict[str, dict[str, np.ndarray]], scorers: dict[str, Scorer], required: Container[str]
) -> list[str]:
    """Leaves out the scores that are NaN for some image, and says so; one that a recipe insists on is refused."""
    warnings = []
    for name in list(scorers):
        undefined = {where: int(np.isnan(by[name]).sum()) for where, by in values.items() if np.isnan(by[name]).any()}
        if not undefined:
            continue
        where, count = next(iter(undefined.items()))
        said = f"{name} is NaN for {count} of {len(values[where][name])} images of {where.removeprefix('held/')!r}"
        if name in required or len(scorers) == 1:
            raise UserError(f"evaluate.scores: {said}; look at those images, or name other scores", exit_code=1)
        warnings.append(f"{said}, so it is not measured")
        del scorers[name]
    return warnings


def _shared(decision: Calibration, names: Sequence[str]) -> list[str]:
    """Which classes share a threshold, though each was to have its own."""
    return [
        f"serve.by_class: {', '.join(repr(names[k]) for k in group.classes)} share one threshold, since fewer than "
        f"{needed_images(decision.accept)} calibration images are labelled as some of them; more of their images give "
        "each its own"
        for group in decision.groups
        if decision.by_class and len(group.classes) > 1
    ]


def _thresholds(decision: Calibration, names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "classes": [names[k] for k in group.classes], "value": group.threshold,
            "calibration_images": group.images,
        }
        for group in decision.groups
    ]  # fmt: skip


def _warnings(measured: dict[str, Any], score: str, names: list[str]) -> list[str]:
    return [
        f"{score} is {'no better than chance' if measured[name]['auroc'] > 0.45 else 'inverted'} on {name} "
        f"(AUROC {measured[name]['auroc']:.3f}): it does not detect these images"
        for name in names
        if measured[name]["auroc"] < 0.55
    ]
