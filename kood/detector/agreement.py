"""Whether a classifier's labels are those of the images that it is given: a wrong order of classes is silent."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom

from kood.conformal import rate_interval
from kood.text import some_of

__all__ = ["disagreement", "other_order", "rate_of_chance"]

#: How much more often another order of the classes has to be right before it is taken for the true one: of all images,
#: or of those of the classes that it exchanges.
_BETTER = 0.2
#: The share of the images for which just one of two orders of some classes is right that has to be for the other one,
#: since a weak model may well say one class for a second and that for the first; and how likely a refusal may be where
#: the share is no larger.
_SHARE, _CHANCE = 2 / 3, 0.01
#: Images of each class of those that an order which is found is tried on. A few may all be takes of one thing, as they
#: may be on both sides.
_FEWEST = 5
#: Of the interval whose upper end has to lie nearer to chance than to 1, where the classes are unbalanced too.
_LEVEL = 0.8


def disagreement(given: np.ndarray, labels: np.ndarray, class_names: Sequence[str], any_size: bool = False) -> str:
    """What speaks against the labels being what the classifier was trained on; "" where nothing does.

    They disagree where the classifier is right no more often than chance: its accuracy's 95% interval reaches the rate
    at which labels and answers drawn apart would agree, and its 80% interval lies nearer to that than to 1, as it need
    not of a few images or unbalanced classes, or it gives all images one class and misses enough of the others; or
    where it is right far more often under another order of the classes, found on one half of the images and tried on
    the other: of all of them, or of those of classes that only exchange their names.

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
    other, _ = other_order(given, labels, class_names)
    if other:
        return other
    chance = rate_of_chance(given, labels, classes)
    if chance is not None:
        size = ", and the size of the images, for it takes any (image_shape)" if any_size else ""
        return (
            f"the model labels {int((given == labels).sum())} of {count} known images rightly, as chance would "
            f"({chance:.1%}); check the order of the classes, that the pixels are what it takes (preprocess){size}, "
            "and what `model.evaluate` says"
        )
    return ""


def rate_of_chance(given: np.ndarray, labels: np.ndarray, classes: int) -> float | None:
    """The rate at which labels and answers drawn apart would agree, where a classifier is right no more often than
    that, as of `disagreement`; None where it is.

    Args:
        given: As of `disagreement`, and so is the next.
        labels: Of one image or more.
        classes: How many there are.
    """
    if len(np.unique(labels)) < 2:  # Who says that class alone is right.
        return None
    count, right = len(labels), int((given == labels).sum())
    chance = float(_shares(given, classes) @ _shares(labels, classes))
    near_chance = (
        rate_interval(right, count)[0] <= chance and rate_interval(right, count, _LEVEL)[1] <= (1 + chance) / 2
    )
    # Of 95 images and 5 the interval cannot tell; four that are all missed do.
    says_one = len(np.unique(given)) == 1 and rate_interval(0, count - right, _LEVEL)[1] <= 0.5
    return chance if near_chance or says_one else None


def _shares(values: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(values, minlength=classes) / len(values)


#: What is to be done about another order.
_MEND = "give the class names in the order of the model's outputs"


def other_order(
    given: np.ndarray, labels: np.ndarray, class_names: Sequence[str], mend: str = _MEND
) -> tuple[str, list[str]]:
    """That the classes in another order agree much better, a sentence, and which it moves; "" and none where none does.

    It is found on half of each class and counted on the others.

    Args:
        given: As of `disagreement`, and so are the next two.
        labels: Of one image or more.
        mend: What is to be done.
    """
    present = np.unique(labels)
    table = np.zeros((len(present), len(class_names)))
    place = np.searchsorted(present, labels)
    # The first half of each class finds the order: what was taken in a row, and is alike, stands in one of the halves.
    by_class = np.argsort(labels, kind="stable")
    counts = np.bincount(place)
    nth = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    is_first = 2 * nth < counts[place[by_class]]
    finding, trying = by_class[is_first], by_class[~is_first]
    np.add.at(table, (place[finding], given[finding]), 1)
    # Where two orders are right as often, that is taken which moves fewer classes.
    table[np.arange(len(present)), present] += 0.5 / len(present)
    rows, columns = linear_sum_assignment(table, maximize=True)
    order = np.empty(len(present), int)
    order[rows] = columns
    if not len(trying):
        return "", []
    own, others = given[trying] == labels[trying], given[trying] == order[place[trying]]
    right, better = float(np.mean(own)), float(np.mean(others))
    hits = int(others.sum())
    if better > right + _BETTER and rate_interval(hits, len(trying))[0] > right:
        return _said(right, better, "the known images", class_names, present, order, mend)
    enough = np.bincount(place[trying], minlength=len(present)) >= _FEWEST
    rings = [ring for ring in _rings(present, order) if enough[ring].all()]
    moved = _exchanged(own, others, place[trying], rings)
    if not len(moved):
        return "", []
    its = np.isin(place[trying], moved)
    return _said(
        float(own[its].mean()), float(others[its].mean()), f"the known images of {len(moved)} classes", class_names,
        present[moved], order[moved], mend,
    )  # fmt: skip


def _said(
    right: float, better: float, of: str, class_names: Sequence[str], classes: np.ndarray, order: np.ndarray, mend: str
) -> tuple[str, list[str]]:
    moved = [(class_names[a], class_names[b]) for a, b in zip(classes, order, strict=True) if a != b]
    shown = some_of(f"{a!r} as {b!r}" for a, b in moved)
    said = (
        f"the model labels {right:.0%} of {of} rightly, but {better:.0%} if the classes stand in another "
        f"order (it calls {shown}); {mend}"
    )
    return said, [name for name, _ in moved]


def _exchanged(own: np.ndarray, others: np.ndarray, place: np.ndarray, rings: Sequence[np.ndarray]) -> np.ndarray:
    """Which classes have surely exchanged their names, as rows of the present ones; none where none have.

    Judged by their own images alone, so that a pair among many classes counts as one among few. All rings together are
    tried as well as each: of many classes each has few images. An image says something where just one of the two
    orders is right. The chance of a wrong refusal is shared among the tests.

    Args:
        own: (N,) whether images that did not find the order are labelled rightly as the classes stand.
        others: (N,) whether under the other order.
        place: (N,) the row of each one's class.
        rings: The rows of classes that only exchange their names.
    """
    surely = []
    sets = [np.concatenate(rings), *rings] if len(rings) > 1 else list(rings)
    for one in sets:
        its = np.isin(place, one)
        gained, lost = int((others & ~own)[its].sum()), int((own & ~others)[its].sum())
        by_chance = float(binom.sf(gained - 1, gained + lost, _SHARE))
        if gained - lost > _BETTER * its.sum() and by_chance <= _CHANCE / len(sets):
            surely.append(one)
    return np.unique(np.concatenate(surely)) if surely else np.empty(0, int)


def _rings(present: np.ndarray, order: np.ndarray) -> list[np.ndarray]:
    """The rows of classes that another order exchanges among themselves, a ring each.

    A class that goes to an output without images is in none: of a model of a thousand classes a name beside the right
    one may well be given more often, and nothing is exchanged for it.
    """
    row_of = {int(label): row for row, label in enumerate(present)}
    found, seen = list[np.ndarray](), set[int]()
    for row in range(len(present)):
        ring = list[int]()
        at: int | None = row
        while at is not None and at not in seen:
            seen.add(at)
            ring.append(at)
            at = row_of.get(int(order[at]))
        if at == row and len(ring) > 1:
            found.append(np.array(ring))
    return found
