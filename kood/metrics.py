"""How well scores separate in-distribution (ID) from out-of-distribution (OOD) examples. NumPy only.

A score is higher for OOD, which is the positive class except where ID is said to be. All figures are
fractions in [0, 1]. Equal scores are one threshold: they are flagged together or not at all. Infinite scores
are ordered like any other; NaN is refused.

Example:
    ```python
    import numpy as np
    import kood

    scores, is_ood = np.array([0.1, 0.4, 0.9]), np.array([False, False, True])
    kood.metrics.summary(scores, is_ood)["fpr_at_id_tpr"]  # 0.0
    ```
"""

from typing import NamedTuple

import numpy as np

__all__ = [
    "accuracy", "aupr_in", "aupr_out", "auroc", "average_precision", "calibration_bins", "expected_calibration_error",
    "fpr_at_id_tpr", "fpr_at_ood_tpr", "joined", "placements", "summary",
]  # fmt: skip


class _Counts(NamedTuple):
    """Positives and negatives flagged at each threshold, strictest first; the last flags everything."""

    positives: np.ndarray
    negatives: np.ndarray

    def reversed(self) -> "_Counts":
        """The same with the classes exchanged and the score negated."""

        def remaining(counts):
            return (counts[-1] - np.concatenate(([0], counts[:-1])))[::-1]

        return _Counts(remaining(self.negatives), remaining(self.positives))

    def auroc(self) -> float:
        # In whole numbers, twice the area in units of one pair: exact.
        steps = np.diff(self.negatives, prepend=0)
        heights = self.positives + np.concatenate(([0], self.positives[:-1]))
        return int(steps @ heights) / (2 * int(self.positives[-1]) * int(self.negatives[-1]))

    def precision(self) -> np.ndarray:
        return self.positives / (self.positives + self.negatives)

    def aupr(self) -> float:
        precision = np.concatenate(([1.0], self.precision()))
        recall = np.concatenate(([0.0], self.positives / self.positives[-1]))
        return float(np.diff(recall) @ (precision[1:] + precision[:-1]) / 2)

    def average_precision(self) -> float:
        return float(np.diff(self.positives, prepend=0) @ self.precision() / self.positives[-1])

    def fpr(self, tpr: float) -> float:
        if not 0 < tpr <= 1:
            raise ValueError(f"tpr must be above 0 and at most 1; it is {tpr!r}.")
        first = np.argmax(self.positives / self.positives[-1] >= tpr)
        return int(self.negatives[first]) / int(self.negatives[-1])


def _counted(scores, is_ood) -> _Counts:
    scores, is_ood = np.asarray(scores), np.asarray(is_ood)
    if scores.ndim != 1 or is_ood.shape != scores.shape:
        raise ValueError(
            "scores and is_ood must be one-dimensional and equally long; "
            f"their shapes are {scores.shape} and {is_ood.shape}."
        )
    scores, is_ood = _real(scores), _true("is_ood", is_ood)
    count = int(is_ood.sum())
    if count in (0, is_ood.size):
        raise ValueError(f"Both classes are needed; there are {is_ood.size - count} ID and {count} OOD examples.")

    order = np.argsort(scores)[::-1]
    scores = scores[order]
    last_of_equals = np.append(np.flatnonzero(scores[1:] != scores[:-1]), scores.size - 1)
    positives = np.cumsum(is_ood[order], dtype=np.int64)[last_of_equals]
    return _Counts(positives, last_of_equals + 1 - positives)


def _real(scores) -> np.ndarray:
    """Scores (N,) as they are, since float64 would make equals of large whole numbers; refuses none, NaN and what is
    no number."""
    scores = np.asarray(scores)
    if scores.size == 0:
        raise ValueError("There are no scores.")
    if scores.ndim != 1 or scores.dtype.kind not in "fiub":
        raise ValueError(
            f"scores must be real numbers (N,); their dtype is {scores.dtype}, their shape {scores.shape}."
        )
    undefined = int(np.isnan(scores).sum())
    if undefined:
        raise ValueError(f"{undefined} of {scores.size} scores are NaN.")
    return scores


def _true(name: str, values: np.ndarray) -> np.ndarray:
    """Truth values as bool."""
    if values.dtype.kind not in "fiub" or not np.all((values == 0) | (values == 1)):
        raise ValueError(f"{name} must hold True or False, or 1 or 0, only.")
    return values.astype(bool)


def joined(inside, outside) -> tuple[np.ndarray, np.ndarray]:
    """Scores of ID and of OOD examples as the metrics take them.

    Args:
        inside: (N,) scores of ID examples.
        outside: (M,) scores of OOD examples.

    Returns:
        scores (N + M,) and is_ood (N + M,).
    """
    return np.concatenate([inside, outside]), np.repeat([False, True], [len(inside), len(outside)])


def auroc(scores, is_ood) -> float:
    """Area under the ROC curve: the chance that an OOD example outscores an ID one, ties counting half.

    Args:
        scores: (N,), higher for OOD; infinities allowed.
        is_ood: (N,), True or 1 for OOD.

    Returns:
        A fraction; .5 is chance.

    Raises:
        ValueError: Empty or unequal input, NaN, or one class only.
    """
    return _counted(scores, is_ood).auroc()


def aupr_out(scores, is_ood) -> float:
    """Area under the precision-recall curve with OOD positive, by the trapezoid rule.

    The rule of OpenOOD v1.5 (arXiv:2306.09301), which is optimistic between thresholds; `average_precision`
    is not.

    Args:
        scores: (N,), higher for OOD; infinities allowed.
        is_ood: (N,), True or 1 for OOD.

    Returns:
        A fraction; the share of OOD is about chance.

    Raises:
        ValueError: Empty or unequal input, NaN, or one class only.
    """
    return _counted(scores, is_ood).aupr()


def aupr_in(scores, is_ood) -> float:
    """Area under the precision-recall curve with ID positive and the score negated, by the trapezoid rule.

    Args:
        scores: (N,), higher for OOD; infinities allowed.
        is_ood: (N,), True or 1 for OOD.

    Returns:
        A fraction; the share of ID is about chance.

    Raises:
        ValueError: Empty or unequal input, NaN, or one class only.
    """
    return _counted(scores, is_ood).reversed().aupr()


def average_precision(scores, is_ood) -> float:
    """Average precision with OOD positive: the sum of (R_n - R_(n-1)) P_n, as scikit-learn defines it.

    Args:
        scores: (N,), higher for OOD; infinities allowed.
        is_ood: (N,), True or 1 for OOD.

    Returns:
        A fraction; the share of OOD is about chance.

    Raises:
        ValueError: Empty or unequal input, NaN, or one class only.
    """
    return _counted(scores, is_ood).average_precision()


def fpr_at_ood_tpr(scores, is_ood, tpr: float = 0.95) -> float:
    """Share of ID flagged when at least `tpr` of OOD is caught: the FPR@95 of OpenOOD v1.5.

    The smallest such share over all thresholds, without interpolation. (OpenOOD reads it from scikit-learn's ROC curve,
    which leaves out thresholds between two others on one straight line. Only where ID and OOD scores tie with each
    other, pair by pair, can such a line rise and run at once: there OpenOOD may find the next threshold and a larger
    share.)

    Args:
        scores: (N,), higher for OOD; infinities allowed.
        is_ood: (N,), True or 1 for OOD.
        tpr: The share of OOD to catch, in (0, 1].

    Returns:
        A fraction; lower is better.

    Raises:
        ValueError: Empty or unequal input, NaN, one class only, or `tpr` outside (0, 1].
    """
    return _counted(scores, is_ood).fpr(tpr)


def fpr_at_id_tpr(scores, is_ood, tpr: float = 0.95) -> float:
    """Share of OOD accepted when at least `tpr` of ID is accepted: the FPR@95 of ODIN, energy and VOS.

    The smallest such share over all thresholds, without interpolation.

    Args:
        scores: (N,), higher for OOD; infinities allowed.
        is_ood: (N,), True or 1 for OOD.
        tpr: The share of ID to accept, in (0, 1].

    Returns:
        A fraction; lower is better.

    Raises:
        ValueError: Empty or unequal input, NaN, one class only, or `tpr` outside (0, 1].
    """
    return _counted(scores, is_ood).reversed().fpr(tpr)


def summary(scores, is_ood, tpr: float = 0.95) -> dict[str, float]:
    """All metrics of one set of scores, sorted once.

    Args:
        scores: (N,), higher for OOD; infinities allowed.
        is_ood: (N,), True or 1 for OOD.
        tpr: The rate of the two FPRs, in (0, 1].

    Returns:
        Each metric under its function's name.

    Raises:
        ValueError: Empty or unequal input, NaN, one class only, or `tpr` outside (0, 1].
    """
    counts = _counted(scores, is_ood)
    reverse = counts.reversed()
    return {
        "auroc": counts.auroc(),
        "aupr_in": reverse.aupr(),
        "aupr_out": counts.aupr(),
        "average_precision": counts.average_precision(),
        "fpr_at_ood_tpr": counts.fpr(tpr),
        "fpr_at_id_tpr": reverse.fpr(tpr),
    }


def placements(inside, outsides) -> tuple[np.ndarray, list[np.ndarray]]:
    """The share of the other kind that each example is on the right side of, ties counting half.

    Their means are the AUROC, the unweighted mean over the OOD sets, and their variances those of DeLong, DeLong and
    Clarke-Pearson 1988 (Biometrics 44).

    Args:
        inside: (N,) scores of the ID examples, higher for OOD; infinities allowed.
        outsides: (M,) those of each OOD set.

    Returns:
        (N,) fractions, each the mean over the OOD sets, and (M,) of each OOD set.

    Raises:
        ValueError: No OOD set, an empty one, NaN, or what is no one-dimensional array of real numbers.
    """
    inside, outsides = _real(inside), [_real(outside) for outside in outsides]
    if not outsides:
        raise ValueError("There is no OOD set.")
    of_inside = 1.0 - np.mean([_below(inside, outside) for outside in outsides], axis=0)
    return of_inside, [_below(outside, inside) for outside in outsides]


def _below(values, others) -> np.ndarray:
    """For each value the share of the others below it, ties counting half."""
    others = np.sort(others)
    counted = np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")
    return counted / (2 * len(others))


def accuracy(predictions, labels) -> float:
    """Share of predictions that equal their label.

    Args:
        predictions: Class indices (N,).
        labels: Class indices (N,).

    Returns:
        A fraction.

    Raises:
        ValueError: Empty or unequal input, or anything but whole numbers (logits or one-hot rows, for instance).
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.ndim != 1 or labels.shape != predictions.shape:
        raise ValueError(
            "predictions and labels must be class indices, one-dimensional and equally long; "
            f"their shapes are {predictions.shape} and {labels.shape}."
        )
    if predictions.size == 0:
        raise ValueError("There are no predictions.")
    for name, values in (("predictions", predictions), ("labels", labels)):
        if values.dtype.kind not in "iub" and not (values.dtype.kind == "f" and np.all(values == np.rint(values))):
            raise ValueError(f"{name} must be class indices, whole numbers; their dtype is {values.dtype}.")
    return int((predictions == labels).sum()) / predictions.size


def calibration_bins(confidence, correct, bins: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often a classifier is right where it is so confident, in equally wide bins of its confidence.

    Bin b of B holds the confidences in (b/B, (b+1)/B], the first one 0 as well.

    Args:
        confidence: (N,) probability of the predicted class, in [0, 1].
        correct: (N,) whether the prediction is right, True or False, or 1 or 0.
        bins: B.

    Returns:
        Number of examples (B,), and their mean confidence and accuracy (B,), 0 where there is none.

    Raises:
        ValueError: Empty or unequal input, a confidence outside [0, 1] or NaN, another `correct`, or no bin.
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct)
    if confidence.ndim != 1 or confidence.shape != correct.shape or not confidence.size:
        raise ValueError(f"confidence and correct must be filled and equally long; their shapes are {confidence.shape} "
                         f"and {correct.shape}.")  # fmt: skip
    if not np.all((confidence >= 0) & (confidence <= 1)):
        raise ValueError("A confidence is a probability, from 0 to 1; some are not.")
    if bins < 1:
        raise ValueError(f"There must be one bin or more, not {bins}.")
    correct = _true("correct", correct)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    most = np.maximum(counts, 1)
    sums = [np.bincount(place, weights=values, minlength=bins) for values in (confidence, correct.astype(np.float64))]
    return counts, sums[0] / most, sums[1] / most


def expected_calibration_error(confidence, correct, bins: int = 15) -> float:
    """The mean gap between confidence and accuracy, over bins of the confidence: sum over b of n_b/N |acc_b - conf_b|.

    Source: Guo et al. 2017, arXiv:1706.04599.

    Args:
        confidence: (N,) probability of the predicted class, in [0, 1].
        correct: (N,) whether the prediction is right.
        bins: Number of equally wide bins.

    Returns:
        A fraction; 0 is calibrated.

    Raises:
        ValueError: As `calibration_bins` does.
    """
    counts, mean, accuracy = calibration_bins(confidence, correct, bins)
    return float(np.sum(counts * np.abs(accuracy - mean)) / counts.sum())
