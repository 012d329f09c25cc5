"""Whether a classifier's labels are those of the images that it is given: a wrong order of classes is silent."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from kood.conformal import rate_interval
from kood.text import some_of

__all__ = ["disagreement"]

#: How much more often another order of the classes has to be right before it is taken for the true one.
_BETTER = 0.2
#: Of the interval whose upper end has to lie nearer to chance than to 1, where the classes are unbalanced too.
_LEVEL = 0.8


def disagreement(given: np.ndarray, labels: np.ndarray, class_names: Sequence[str], any_size: bool = False) -> str:
    """What speaks against the labels being what the classifier was trained on; "" where nothing does.

    They disagree where the classifier is right no more often than chance: its accuracy's 95% interval reaches the rate
    at which labels and answers drawn apart would agree, and its 80% interval lies nearer to that than to 1, as it need
    not of a few images or unbalanced classes, or it gives all images one class and misses enough of the others; or
    where it is right far more often under another order of the classes, found on one half of the images and tried on
    the other.

    Args:
        given: (N,) what the classifier labels known images as.
        labels: (N,) their classes.
        class_names: K names.
        any_size: Whether the model takes images of any size, so that theirs may be the cause.

    Returns:
        A sentence, or "".
    """
    count, classes = len(labels), len(class_names)
    if not count or classes < 2:
        return ""
    right = int((given == labels).sum())
    chance = float(_shares(given, classes) @ _shares(labels, classes))
    other = _other_order(given, labels, class_names)
    if other:
        return other
    near_chance = (
        rate_interval(right, count)[0] <= chance and rate_interval(right, count, _LEVEL)[1] <= (1 + chance) / 2
    )
    # Of 95 images and 5 the interval cannot tell; four that are all missed do.
    says_one = len(np.unique(given)) == 1 and rate_interval(0, count - right, _LEVEL)[1] <= 0.5
    if len(np.unique(labels)) > 1 and (near_chance or says_one):
        size = ", and the size of the images, for it takes any (image_shape)" if any_size else ""
        return (
            f"the model labels {right} of {count} known images rightly, as chance would ({chance:.1%}); check the "
            f"order of the classes, that the pixels are what it takes (preprocess){size}, and what `model.evaluate` "
            "says"
        )
    return ""


def _shares(values: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(values, minlength=classes) / len(values)


def _other_order(given: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> str:
    """Whether the classes in another order agree much better; found on half of each class, counted on the others."""
    present = np.unique(labels)
    table = np.zeros((len(present), len(class_names)))
    place = np.searchsorted(present, labels)
    by_class = np.argsort(labels, kind="stable")  # In turns of the classes every second image lacks half of them.
    even, odd = by_class[::2], by_class[1::2]
    np.add.at(table, (place[even], given[even]), 1)
    rows, columns = linear_sum_assignment(table, maximize=True)
    order = np.empty(len(present), int)
    order[rows] = columns
    if not len(odd):
        return ""
    right, better = (float(np.mean(given[odd] == of[odd])) for of in (labels, order[place]))
    hits = round(better * len(odd))
    if better <= right + _BETTER or rate_interval(hits, len(odd))[0] <= right:
        return ""
    moved = [(class_names[a], class_names[b]) for a, b in zip(present, order, strict=True) if a != b]
    shown = some_of(f"{a!r} as {b!r}" for a, b in moved)
    return (
        f"the model labels {right:.0%} of the known images rightly, but {better:.0%} if the classes stand in another "
        f"order (it calls {shown}); give the class names in the order of the model's outputs"
    )
