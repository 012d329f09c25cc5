"""Do the samples show what they were made to show? The opinion of an in-distribution classifier, the judge.

Entropies are in nats, log-odds natural. A judge never exposed to outliers is wanted: one trained to be unsure of
mixtures would find them unsure.
"""

from typing import Any

import numpy as np

__all__ = ["mixed_content", "pure_content"]

#: A posterior below this counts as this in a logarithm, so that one rounded to zero does not make a mean infinite.
FLOOR = 1e-12
#: Shares closer than this are equal: 1 - 0.3 in float32 is not 0.7.
_TIE = 1e-6
#: Bins of the share that a table of mixtures has over 0..1.
_BINS = 20


def _entropy(posteriors: np.ndarray) -> np.ndarray:
    return -(posteriors * np.log(np.maximum(posteriors, FLOOR))).sum(axis=1)


def _top_log_odds(posteriors: np.ndarray) -> np.ndarray:
    top = np.sort(posteriors, axis=1)[:, -2:]
    return np.log(np.maximum(top[:, 1], FLOOR)) - np.log(np.maximum(top[:, 0], FLOOR))


def pure_content(posteriors, labels) -> dict[str, Any]:
    """What the judge sees in images that belong to one class each: pure-label samples, or real images to compare.

    A tie for the top counts in equal parts for each class in it, so a judge that knows nothing scores chance.

    Args:
        posteriors: (N, K) of the judge, rows summing to 1.
        labels: (N,) the class that each image was made under, or has.

    Returns:
        "n"; "share": fraction whose top class is the intended one; "confidence": mean posterior of the intended class;
        "entropy": mean, in nats; "top_log_odds": mean log-odds of the top class against the second; "per_class": a list
        in class order of {"n", "share", "confidence"}, None where a class has no image; "confusion": K rows (the
        intended class) of K counts (the judge's).
    """
    found, intended = np.asarray(posteriors, np.float64), np.asarray(labels)
    count, classes = found.shape
    top = (found == found.max(axis=1, keepdims=True)).astype(np.float64)
    top /= top.sum(axis=1, keepdims=True)
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, intended, top)
    right, confidence = top[np.arange(count), intended], found[np.arange(count), intended]
    counts, shares, sums = (np.bincount(intended, of, classes).tolist() for of in (None, right, confidence))
    per_class = [
        {"n": n, "share": share / n if n else None, "confidence": summed / n if n else None}
        for n, share, summed in zip(counts, shares, sums, strict=True)
    ]
    return {
        "n": count,
        "share": float(right.mean()),
        "confidence": float(confidence.mean()),
        "entropy": float(_entropy(found).mean()),
        "top_log_odds": float(_top_log_odds(found).mean()),
        "per_class": per_class,
        "confusion": confusion.tolist(),
    }


def mixed_content(posteriors, mixtures) -> dict[str, Any]:
    """What the judge sees in images made under mixtures of two or more classes, their parents.

    The first parent is the one with the largest share, lambda, the second the one with the next; of equal shares the
    lower class comes first. A mixture has the parents on top where each has more posterior than every other class.

    Args:
        posteriors: (N, K) of the judge, rows summing to 1.
        mixtures: (N, K) shares of the classes, rows summing to 1, two or more above 0.

    Returns:
        "n"; "parents": {"min", "max"}, how many a mixture has; means over the mixtures: "on_top" (fraction with all
        parents on top), "first", "second" and "all_parents" (posterior of these), "top" (posterior of the judge's own
        most likely classes, as many as there are parents), "entropy" of the posteriors and "share_entropy" of the
        shares in nats, "top_log_odds" of the judge's top class against its second; and "by_share": for each bin of
        lambda that has mixtures {"low", "high", "n"}, low <= lambda < high, the same means in it, and "log_odds", the
        mean log-odds of the first parent against the second.
    """
    found, shares = np.asarray(posteriors, np.float64), np.asarray(mixtures, np.float64)
    parents = shares > 0
    number = parents.sum(axis=1)
    order = np.argsort(-np.rint(shares / _TIE), axis=1, kind="stable")
    first, second = (np.take_along_axis(found, order[:, [at]], axis=1)[:, 0] for at in (0, 1))
    ranked = np.cumsum(-np.sort(-found, axis=1), axis=1)
    least_parent = np.where(parents, found, np.inf).min(axis=1)
    most_other = np.where(parents, -np.inf, found).max(axis=1)
    columns = {
        "on_top": (least_parent > most_other).astype(np.float64),
        "first": first,
        "second": second,
        "all_parents": (found * parents).sum(axis=1),
        "top": np.take_along_axis(ranked, number[:, None] - 1, axis=1)[:, 0],
        "entropy": _entropy(found),
        "share_entropy": _entropy(shares),
        "top_log_odds": _top_log_odds(found),
        "log_odds": np.log(np.maximum(first, FLOOR)) - np.log(np.maximum(second, FLOOR)),
    }
    bins = np.minimum(np.floor(shares.max(axis=1) * _BINS + _TIE).astype(int), _BINS - 1)
    by_share = []
    for place in np.unique(bins):
        inside = bins == place
        row = {"low": float(place) / _BINS, "high": float(place + 1) / _BINS, "n": int(inside.sum())}
        by_share.append({**row, **{name: float(values[inside].mean()) for name, values in columns.items()}})
    means = {name: float(values.mean()) for name, values in columns.items() if name != "log_odds"}
    counts = {"min": int(number.min()), "max": int(number.max())}
    return {"n": len(found), "parents": counts, **means, "by_share": by_share}
