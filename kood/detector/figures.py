"""Scores of image sets -> the figures of the report, of all images and of each class: one may be half wrong unseen."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy

from kood import metrics
from kood.conformal import Calibration, clearly_more, needed_images, rate_interval
from kood.data.large import blocks_of
from kood.detector.agreement import other_order, rate_of_chance
from kood.detector.choosing import Choice, Measured, mean_auroc
from kood.intervals import auroc_interval
from kood.outputs import Outputs, softmax
from kood.report.wording import with_interval
from kood.text import some_of

__all__ = ["details_of", "figures_of"]

#: Images of a set whose features are drawn, and images shown of those that a score is most wrong about.
ON_THE_PLANE, EXTREMES = 400, 8
#: How far the accuracy of a class lies below that of all before it is told.
FAR_BELOW = 0.15
#: How a recipe, `kood attach` and a `Detector` are asked for thresholds by class.
_BY_CLASS = "serve.by_class = true in a recipe, --by-class of kood attach, by_class=True of Detector.calibrate"
#: The AUROC of a score that says nothing.
CHANCE = 0.5


def figures_of(
    measured: Measured,
    choice: Choice,
    decision: Calibration,
    class_names: Sequence[str],
    near: Sequence[str],
    far: Sequence[str],
    groups: Mapping[str, Mapping[str, int]] | None = None,
) -> dict[str, Any]:
    """The figures of `report.json`.

    Args:
        measured: Of the set "id", in-distribution test images with their labels, and of those of `near` and `far`.
        groups: {"images", "groups"} of the parts whose images stand in groups. What counts them as independent is not
            told then: which classes are accepted, or labelled rightly, clearly too seldom.

    Returns:
        {"id", "classes", "scores", "headline_score", "validation", "validation_sets", "threshold", "warnings",
        "notes"}; and "at_chance", the warning that the classifier is no better than chance, "" where it is.
    """
    headline = choice.score
    mine, truth, given = measured.of(headline, ["id", *near, *far]), measured.labels["id"], measured.given("id")
    accepted = ~decision.flagged(mine["id"], given)
    figures_by = {name: _measure(name, measured.scores, list(near), list(far)) for name in measured.scores["id"]}
    kinds = (("near", near), ("far", far))
    another, moved = other_order(given, truth, class_names, "check their labels and the order of the names")
    classes = by_true_class(
        class_names, truth, given, accepted, mine["id"],
        {kind: [mine[name] for name in members] for kind, members in kinds},
    )  # fmt: skip
    at_chance = "" if another else no_better(given, truth, class_names)
    known = _share(accepted)
    flagged = {where: _share(decision.flagged(mine[where], measured.given(where))) for where in [*near, *far]}
    about_threshold = [
        *_shared(decision, class_names),
        *([_grouped(groups)] if groups else []),
        *(
            []
            if {"calibration", "test"} & set(groups or {})
            else rarely_accepted(decision, class_names, given if decision.by_class else truth, accepted)
        ),
    ]
    return {
        "id": {
            "accuracy": metrics.accuracy(given, truth),
            "ece": metrics.expected_calibration_error(_confidence(measured.outputs["id"]), given == truth),
            "images": len(truth),
        },
        "classes": classes,
        "scores": figures_by,
        "headline_score": headline,
        "validation": choice.by,
        "validation_sets": choice.sets,
        "threshold": {
            "score": headline,
            "value": decision.groups[0].threshold if len(decision.groups) == 1 else None,
            "by_class": decision.by_class,
            "thresholds": _thresholds(decision, class_names),
            "accept": decision.accept,
            "accepted_id_test": known["share"],
            "accepted_id_test_interval": known["interval"],
            "flagged": flagged,
            "calibration_images": len(decision.scores),
            "warnings": about_threshold,
        },
        "warnings": [
            *undetected(mine, figures_by[headline], headline),
            *measured.warnings,
            *choice.doubts,
            *about_threshold,
            *([another] if another else []),
            *([] if "test" in (groups or {}) or at_chance else wrong_classes(classes, moved)),
        ],
        "notes": measured.notes,
        "at_chance": at_chance,
    }


def _confidence(outputs: Outputs) -> np.ndarray:
    return np.clip(softmax(outputs["logits"].astype("float64")).max(axis=1), 0.0, 1.0)


def details_of(measured: Measured, score: str, sets: Sequence[str]) -> dict[str, np.ndarray]:
    """What pictures of the figures are drawn of, the "details" of `kood.detector.evaluate.Evaluation.kept`.

    Args:
        sets: "id", and the out-of-distribution ones.
    """
    outputs = measured.outputs
    details = {"confidence": _confidence(outputs["id"]), "correct": measured.correct("id")}
    center, axes = _principal(outputs["id"]["features"])
    for where, values in measured.of(score, sets).items():
        rows = np.unique(np.linspace(0, len(values) - 1, min(len(values), ON_THE_PLANE)).astype(int))
        details[f"{where}/plane"] = ((outputs[where]["features"][rows] - center) @ axes).astype("float32")
        details[f"{where}/plane_rows"] = rows
        order = np.argsort(-values if where == "id" else values, kind="stable")[:EXTREMES]
        details[f"{where}/extreme"] = order
        details[f"{where}/predicted"] = outputs[where]["logits"][order].argmax(axis=1)
    return details


def _principal(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean (D,) of features (N, D), and the two directions (D, 2) in which they vary most; of fewer images than
    numbers the two of X X^T, which is the smaller matrix, brought back by X^T."""
    center = sum(block.sum(axis=0, dtype=np.float64) for block in blocks_of(features)) / len(features)

    def centred() -> Iterator[np.ndarray]:
        return (block - center for block in blocks_of(features))

    if few := len(features) < features.shape[1]:
        products = np.concatenate([np.concatenate([one @ other.T for other in centred()], 1) for one in centred()])
    else:
        products = sum(block.T @ block for block in centred())
    size = len(products)
    axes = scipy.linalg.eigh(products, subset_by_index=[max(0, size - 2), size - 1])[1][:, ::-1]
    if few:
        ends = np.cumsum([len(block) for block in blocks_of(features)])
        axes = sum(block.T @ part for block, part in zip(centred(), np.split(axes, ends[:-1]), strict=True))
    return center, axes / np.maximum(np.linalg.norm(axes, axis=0), np.finfo(np.float64).tiny)


def _measure(name: str, values: dict[str, dict[str, np.ndarray]], near: list[str], far: list[str]) -> dict[str, Any]:
    inside = values["id"][name]
    # A set that it is NaN for some image of is missing.
    measured = {where: values[where][name] for where in [*near, *far] if name in values[where]}
    result: dict[str, Any] = {where: metrics.summary(*metrics.joined(inside, of)) for where, of in measured.items()}
    for kind, members in (("near", near), ("far", far)):
        if members and measured.keys() >= {*members}:
            result[kind] = {
                metric: float(np.mean([result[where][metric] for where in members])) for metric in result[members[0]]
            }
    return result


def _grouped(groups: Mapping[str, Mapping[str, int]]) -> str:
    """The warning of images that stand in groups."""
    parts = some_of(f"{of['images']:,} {part} images in {of['groups']:,}" for part, of in sorted(groups.items()))
    follows = {
        "calibration": "what one threshold accepts varies more than its interval says",
        "test": "the intervals of test images are too narrow, and nothing is marked as significant by them",
        "validation": "exposure is not called worse by validation images",
    }
    return f"data.id: images stand in groups ({parts}) and are counted as independent: " + "; ".join(
        told for part, told in follows.items() if part in groups
    )


def _shared(decision: Calibration, names: Sequence[str]) -> list[str]:
    """Which classes share a threshold, though each was to have its own."""
    return [
        f"thresholds by class: {some_of(repr(names[k]) for k in group.classes)} share one, since fewer than "
        f"{needed_images(decision.accept)} calibration images are labelled as some of them; more of their images give "
        "each its own"
        for group in decision.groups
        if decision.by_class and len(group.classes) > 1
    ]


def _share(flags: np.ndarray) -> dict[str, Any]:
    """Of how large a share of a set something is true, with its 95% interval."""
    interval = rate_interval(int(flags.sum()), len(flags))
    return {"share": float(flags.mean()), "interval": list(interval), "images": len(flags)}


def _thresholds(decision: Calibration, names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "classes": [names[k] for k in group.classes], "value": group.threshold,
            "calibration_images": group.images,
        }
        for group in decision.groups
    ]  # fmt: skip


def undetected(scores: Mapping[str, np.ndarray], measured: Mapping[str, Any], score: str) -> list[str]:
    """Warnings of the sets that a score does not clearly tell from known images: the interval of their AUROC holds that
    of chance, or lies below it.

    Args:
        scores: (N,) of the images of each set, the known ones being "id".
        measured: The figures of the score, by set.
    """
    told, turned = list[str](), list[str]()
    for where, values in scores.items():
        if where == "id":
            continue
        sure = min(len(scores["id"]), len(values)) > 1
        interval = auroc_interval(scores["id"], [values]) if sure else None
        area = measured[where]["auroc"]
        if (area if interval is None else interval[0]) <= CHANCE:
            below = interval is not None and interval[1] < CHANCE
            (turned if below else told).append(f"{where!r} (AUROC {with_interval(area, interval)})")
    means = "does not clearly tell their images from known ones"
    other = "takes their images for known more than known ones; a score is higher for what is less known"
    return [f"{', '.join(sets)}: the score {score} {why}" for sets, why in ((told, means), (turned, other)) if sets]


def by_true_class(
    class_names: Sequence[str],
    labels: np.ndarray,
    given: np.ndarray,
    accepted: np.ndarray,
    scores: np.ndarray,
    outside: Mapping[str, Sequence[np.ndarray]],
) -> list[dict[str, Any]]:
    """How many images of each class are labelled rightly and accepted, and how well they are told from others.

    Args:
        class_names: K names.
        labels: (N,) the true classes of in-distribution test images.
        given: (N,) what these are labelled as.
        accepted: (N,) bool, which are accepted.
        scores: (N,) their scores, higher = more OOD.
        outside: {"near", "far"}: scores (M,) of each such set.

    Returns:
        For each class with images {"name", "images", "accuracy", "accuracy_interval", "accepted",
        "accepted_interval", "auroc": {"near", "far"} as far as there are such sets}; the intervals are Clopper and
        Pearson's of 95%, and an AUROC is the unweighted mean over the sets of a kind.
    """
    found = []
    for number, name in enumerate(class_names):
        own = labels == number
        images, right, kept = int(own.sum()), int((given[own] == number).sum()), int(accepted[own].sum())
        if not images:
            continue
        one: dict[str, Any] = {"name": name, "images": images}
        for what, hits in (("accuracy", right), ("accepted", kept)):
            one |= {what: hits / images, f"{what}_interval": list(rate_interval(hits, images))}
        one["auroc"] = {kind: mean_auroc(scores[own], sets) for kind, sets in outside.items() if sets}
        found.append(one)
    return found


def rarely_accepted(
    decision: Calibration,
    class_names: Sequence[str],
    labels: np.ndarray,
    accepted: np.ndarray,
) -> list[str]:
    """A warning of the classes of which fewer images are accepted than promised, and than chance explains.

    Chance is in the threshold too, which few calibration images set: see `kood.conformal.law_of_flags`.

    Args:
        decision: What accepts them. By class, those that share a threshold are promised a share of all of them.
        class_names: K names.
        labels: (N,) the classes of in-distribution test images: what they are labelled as where the promise is of that,
            by class; else the true ones.
        accepted: (N,) bool, which are accepted.
    """
    found, low = list[tuple[tuple[int, ...], int, int, int]](), list[tuple[str, float, int]]()
    for group in decision.groups:
        for part in [group.classes] if decision.by_class else [(k,) for k in group.classes]:
            own = np.isin(labels, part)
            if own.any():
                found.append((part, group.images, int(own.sum()), int(accepted[own].sum())))
    for part, calibration_images, images, kept in found:
        if clearly_more(images - kept, images, calibration_images, decision.accept, len(found)):
            low.append((some_of(repr(class_names[k]) for k in part), kept / images, images))
    if not low:
        return []
    of = "of what is labelled as each class" if decision.by_class else "of all images together"
    mend = "" if decision.by_class else f"; a threshold for each class helps ({_BY_CLASS})"
    told = f"{100 * decision.accept:g}% are promised to be accepted {of}, but clearly fewer are of {_listed(low)}{mend}"
    return [told]


def no_better(given: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> str:
    """A warning of a classifier that is right no more often than chance, by the rule of `kood attach`; "" for none.

    Args:
        given: (N,) what it labels in-distribution test images as.
        labels: (N,) their classes.
        class_names: K names.
    """
    chance = rate_of_chance(given, labels, len(class_names))
    if chance is None:
        return ""
    count, right, said = len(labels), int((given == labels).sum()), np.unique(given)
    one = f"all as {class_names[said[0]]!r}, and so " if len(said) == 1 else ""
    return (
        f"the classifier is no better than chance: it labels {one}{right} of {count} test images rightly "
        f"({right / count:.1%}), where chance would {chance:.1%}; look at the labels of the images, the learning rate "
        "and the number of epochs"
    )


def wrong_classes(classes: Sequence[Mapping[str, Any]], told: Sequence[str] = ()) -> list[str]:
    """A warning of the classes that are labelled rightly far less often, and surely so, than all together.

    Args:
        classes: What `by_true_class` found.
        told: Names of those of which something else is said.
    """
    images = sum(one["images"] for one in classes)
    overall = sum(one["accuracy"] * one["images"] for one in classes) / max(1, images)
    # A hard class is ordinary; one that is far off and surely so is told.
    wrong = [one for one in classes if _most(one, len(classes)) < overall and one["accuracy"] < overall - FAR_BELOW]
    wrong = [one for one in wrong if one["name"] not in told]
    if not wrong:
        return []
    mend = (
        'a training on more of them helps, or one with weights of classes (train.class_weight = "balanced" in a recipe)'
    )
    low = _listed((repr(one["name"]), one["accuracy"], one["images"]) for one in wrong)
    return [f"{overall:.1%} of the test images are labelled rightly, but clearly fewer of {low}; {mend}"]


def _most(one: Mapping[str, Any], classes: int) -> float:
    """The upper end of an accuracy's interval, of 95% for all classes together (Bonferroni): else every other table of
    many classes would call one of them low by chance."""
    return rate_interval(round(one["accuracy"] * one["images"]), one["images"], 1 - 0.05 / classes)[1]


def _listed(shares: Iterable[tuple[str, float, int]]) -> str:
    """Who has what share of how many images, the least first."""
    return some_of(f"{who} ({share:.0%} of {images})" for who, share, images in sorted(shares, key=lambda one: one[1]))
