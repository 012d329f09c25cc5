"""What becomes of the images of each class: a figure over all of them can hide a class that is half wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kood.conformal import rate_interval
from kood.detector.choosing import mean_auroc
from kood.text import some_of

__all__ = ["by_true_class", "rarely_accepted", "wrong_classes"]

#: How far the accuracy of a class lies below that of all before it is told.
FAR_BELOW = 0.15


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


def rarely_accepted(classes: Sequence[Mapping[str, Any]], accept: float, by_class: bool) -> list[str]:
    """A warning of the classes that fall clearly below the promise: the interval of their own share leaves it out.

    Args:
        classes: What `by_true_class` found.
        accept: Share of in-distribution images that is to be accepted.
        by_class: Whether each class has a threshold of its own already.
    """
    low = [one for one in classes if _most(one, "accepted", len(classes)) < accept]
    if not low:
        return []
    mend = "" if by_class else "; serve.by_class = true sets a threshold for each class"
    told = f"{100 * accept:g}% are promised to be accepted, but clearly fewer are of {_listed(low, 'accepted')}{mend}"
    return [told]


def wrong_classes(classes: Sequence[Mapping[str, Any]]) -> list[str]:
    """A warning of the classes that are labelled rightly far less often, and surely so, than all together.

    Args:
        classes: What `by_true_class` found.
    """
    images = sum(one["images"] for one in classes)
    overall = sum(one["accuracy"] * one["images"] for one in classes) / max(1, images)
    # A hard class is ordinary; one that is far off and surely so is told.
    wrong = [
        one
        for one in classes
        if _most(one, "accuracy", len(classes)) < overall and one["accuracy"] < overall - FAR_BELOW
    ]
    if not wrong:
        return []
    return [
        f"{overall:.1%} of the test images are labelled rightly, but clearly fewer of {_listed(wrong, 'accuracy')}; "
        'more images of them help, or a training that weights classes (train.class_weight = "balanced" in a recipe)'
    ]


def _most(one: Mapping[str, Any], what: str, classes: int) -> float:
    """The upper end of a share's interval, of 95% for all classes together (Bonferroni): else every other table of many
    classes would call one of them low by chance."""
    return rate_interval(round(one[what] * one["images"]), one["images"], 1 - 0.05 / classes)[1]


def _listed(classes: Sequence[Mapping[str, Any]], what: str) -> str:
    worst = sorted(classes, key=lambda one: one[what])
    return some_of(f"{one['name']!r} ({one[what]:.0%} of {one['images']})" for one in worst)
