"""The metrics against counting by hand, scikit-learn and the formulas of OpenOOD v1.5."""

import numpy as np
import pytest
from sklearn import metrics as peer

from kood import metrics

OTHERS = ("summary", "joined", "accuracy", "placements", "calibration_bins", "expected_calibration_error")
EVERY = [name for name in metrics.__all__ if name not in OTHERS]


def counted(scores, is_ood, tpr=0.95):
    """Every metric from its definition, threshold by threshold."""
    scores, is_ood = np.asarray(scores, np.float64), np.asarray(is_ood, bool)
    ood, id_ = scores[is_ood], scores[~is_ood]
    wins = sum(np.sum(score > id_) + 0.5 * np.sum(score == id_) for score in ood)

    def curve(positive, negative):
        return [(np.sum(positive >= t), np.sum(negative >= t)) for t in sorted({*positive, *negative}, reverse=True)]

    def trapezoids(positive, negative):
        area, recall, precision = 0.0, 0.0, 1.0
        for caught, flagged in curve(positive, negative):
            area += (caught / len(positive) - recall) * (caught / (caught + flagged) + precision) / 2
            recall, precision = caught / len(positive), caught / (caught + flagged)
        return area

    def steps(positive, negative):
        area = recall = 0.0
        for caught, flagged in curve(positive, negative):
            area += (caught / len(positive) - recall) * caught / (caught + flagged)
            recall = caught / len(positive)
        return area

    def rate(positive, negative):
        points = curve(positive, negative)
        return min(flagged / len(negative) for caught, flagged in points if caught / len(positive) >= tpr)

    return {
        "auroc": wins / (len(ood) * len(id_)),
        "aupr_in": trapezoids(-id_, -ood),
        "aupr_out": trapezoids(ood, id_),
        "average_precision": steps(ood, id_),
        "fpr_at_ood_tpr": rate(ood, id_),
        "fpr_at_id_tpr": rate(-id_, -ood),
    }


def sklearn_summary(scores, is_ood):
    """scikit-learn's functions, composed as OpenOOD v1.5 composes them."""
    fpr, tpr, _ = peer.roc_curve(is_ood, scores, drop_intermediate=False)
    precision_out, recall_out, _ = peer.precision_recall_curve(is_ood, scores)
    precision_in, recall_in, _ = peer.precision_recall_curve(1 - is_ood, -scores)
    fpr_in, tpr_in, _ = peer.roc_curve(1 - is_ood, -scores, drop_intermediate=False)
    return {
        "auroc": peer.auc(fpr, tpr),
        "aupr_in": peer.auc(recall_in, precision_in),
        "aupr_out": peer.auc(recall_out, precision_out),
        "average_precision": peer.average_precision_score(is_ood, scores),
        "fpr_at_ood_tpr": fpr[np.argmax(tpr >= 0.95)],
        "fpr_at_id_tpr": fpr_in[np.argmax(tpr_in >= 0.95)],
    }


def agree(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert type(found[name]) is float
        assert found[name] == pytest.approx(value, rel=0, abs=1e-12), name


RANDOM = {
    "continuous": lambda rng, n: rng.normal(size=n),
    "float32": lambda rng, n: rng.normal(size=n).astype("float32"),
    "many ties": lambda rng, n: rng.integers(5, size=n),
    "few ties": lambda rng, n: np.round(rng.normal(size=n), 2),
    "saturated": lambda rng, n: np.minimum(rng.normal(size=n), 0.3),
    "constant": lambda rng, n: np.zeros(n),
}


@pytest.mark.parametrize("kind", RANDOM)
@pytest.mark.parametrize(("size", "share"), [(2, 0.5), (3, 0.5), (20, 0.5), (40, 0.1), (200, 0.9), (300, 0.01)])
def test_summary_matches_the_definitions_and_sklearn(kind, size, share):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        is_ood = (rng.random(size) < share).astype(int)
        is_ood[0], is_ood[1] = 0, 1
        scores = RANDOM[kind](rng, size) + (0 if seed % 2 else is_ood)
        found = metrics.summary(scores, is_ood)
        agree(found, counted(scores, is_ood))
        agree(found, sklearn_summary(scores, is_ood))


def test_summary_matches_sklearn_on_a_hundred_thousand():
    rng = np.random.default_rng(0)
    is_ood = (rng.random(100_000) < 0.3).astype(int)
    for scores in (rng.normal(size=100_000) + is_ood, rng.integers(300, size=100_000) + 50.0 * is_ood):
        agree(metrics.summary(scores, is_ood), sklearn_summary(scores, is_ood))


@pytest.mark.parametrize("name", EVERY)
def test_each_function_is_its_entry_of_the_summary(name):
    rng = np.random.default_rng(1)
    is_ood = rng.random(60) < 0.4
    scores = np.round(rng.normal(size=60), 1)
    assert getattr(metrics, name)(scores, is_ood) == metrics.summary(scores, is_ood)[name]
    assert set(metrics.summary(scores, is_ood)) == set(EVERY)


def test_perfect_reversed_and_constant_scores():
    is_ood = np.repeat([False, True], [30, 10])
    perfect = metrics.summary(is_ood.astype(float), is_ood)
    expected = dict.fromkeys(perfect, 1.0) | {"fpr_at_ood_tpr": 0.0, "fpr_at_id_tpr": 0.0}
    assert perfect == expected
    reverse = metrics.summary(-is_ood.astype(float), is_ood)
    assert reverse["auroc"] == 0 and reverse["fpr_at_ood_tpr"] == 1 and reverse["fpr_at_id_tpr"] == 1
    constant = metrics.summary(np.zeros(40), is_ood)
    assert constant["auroc"] == 0.5 and constant["average_precision"] == 0.25
    assert constant["aupr_out"] == 0.625 and constant["aupr_in"] == 0.875  # half of 1 + share: the trapezoid's optimism
    assert constant["fpr_at_ood_tpr"] == 1 and constant["fpr_at_id_tpr"] == 1


def test_the_two_rates_differ_and_neither_interpolates():
    """20 of each: 19 reach .95 exactly, the 20th lies far off."""
    ood = np.append(np.arange(19) + 10.0, -100)
    id_ = np.append(np.arange(19) - 10.0, 10.5)
    scores, is_ood = np.concatenate([id_, ood]), np.repeat([0, 1], 20)
    assert metrics.fpr_at_ood_tpr(scores, is_ood) == 1 / 20
    assert metrics.fpr_at_id_tpr(scores, is_ood) == 1 / 20
    assert metrics.fpr_at_ood_tpr(scores, is_ood, tpr=0.951) == 1
    assert metrics.fpr_at_id_tpr(scores, is_ood, tpr=0.951) == 2 / 20


@pytest.mark.parametrize("size", [20, 40, 60, 100, 140, 1000])
def test_a_rate_reached_exactly_counts(size):
    """k / n >= .95 where k = .95 n: rounding must not ask for one more."""
    ood = np.concatenate([np.ones(size * 19 // 20), np.full(size // 20, -1.0)])
    scores, is_ood = np.append(ood, [0.0, 0.0]), np.append(np.ones(size), [0, 0])
    assert metrics.fpr_at_ood_tpr(scores, is_ood) == 0
    assert metrics.fpr_at_id_tpr(-scores, 1 - is_ood) == 0


@pytest.mark.parametrize("tpr", [0.01, 0.5, 0.9, 0.99, 1.0])
def test_other_rates(tpr):
    rng = np.random.default_rng(2)
    is_ood = rng.random(100) < 0.5
    scores = rng.normal(size=100).round(1) + is_ood
    expected = counted(scores, is_ood, tpr)
    assert metrics.fpr_at_ood_tpr(scores, is_ood, tpr) == expected["fpr_at_ood_tpr"]
    assert metrics.fpr_at_id_tpr(scores, is_ood, tpr=tpr) == expected["fpr_at_id_tpr"]
    agree(metrics.summary(scores, is_ood, tpr), expected)


def test_rate_where_collinear_points_of_the_curve_matter():
    """roc_curve's default drops points on a slanted line, and with them the smallest rate that is enough."""
    scores, is_ood = np.repeat(np.arange(20), 2), np.tile([0, 1], 20)
    assert metrics.fpr_at_ood_tpr(scores, is_ood) == 0.95
    assert metrics.fpr_at_ood_tpr(scores, is_ood, tpr=0.5) == 0.5


def test_infinite_scores_are_ordered_and_tie():
    rng = np.random.default_rng(3)
    is_ood = rng.random(60) < 0.5
    scores = rng.normal(size=60)
    scores[:10], scores[10:20] = np.inf, -np.inf
    finite = np.clip(scores, -1e6, 1e6)
    assert metrics.summary(scores, is_ood) == metrics.summary(finite, is_ood)


def test_only_the_order_counts():
    rng = np.random.default_rng(4)
    is_ood = rng.random(60) < 0.5
    scores = rng.normal(size=60)
    expected = metrics.summary(scores, is_ood)
    shuffled = rng.permutation(60)
    assert metrics.summary(np.exp(3 * scores), is_ood) == expected
    assert metrics.summary(scores[shuffled], is_ood[shuffled]) == expected
    assert metrics.summary(list(scores), [int(x) for x in is_ood]) == expected
    assert metrics.auroc([0.0, -0.0], [0, 1]) == 0.5


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_large_whole_numbers_are_told_apart(dtype):
    """Where float64 has no odd numbers any more."""
    rng = np.random.default_rng(5)
    plain, is_ood = rng.permutation(60), rng.random(60) < 0.5
    scores = plain.astype(dtype) + np.array(2**63 - 100, dtype)
    assert metrics.summary(scores, is_ood) == metrics.summary(plain, is_ood)
    placed, expected = (metrics.placements(of[~is_ood], [of[is_ood]]) for of in (scores, plain))
    np.testing.assert_array_equal(np.concatenate([placed[0], *placed[1]]), np.concatenate([expected[0], *expected[1]]))


WRONG = {
    "no scores": ([], [], "no scores"),
    "only ID": ([1.0, 2.0], [0, 0], "2 ID and 0 OOD"),
    "only OOD": ([1.0, 2.0], [1, 1], "0 ID and 2 OOD"),
    "NaN": ([1.0, float("nan")], [0, 1], "1 of 2 scores are NaN"),
    "unequal": ([1.0, 2.0, 3.0], [0, 1], "equally long"),
    "column": ([[1.0], [2.0]], [[0], [1]], "one-dimensional"),
    "no class": ([1.0, 2.0, 3.0], [0, 1, 2], "is_ood"),
    "NaN class": ([1.0, 2.0], [0, float("nan")], "is_ood"),
    "text": (["a", "b"], [0, 1], "real numbers"),
    "complex": ([1j, 2j], [0, 1], "real numbers"),
    "scalar": (1.0, True, "one-dimensional"),
}


@pytest.mark.parametrize("name", [*EVERY, "summary"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_refused(name, case):
    scores, is_ood, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        getattr(metrics, name)(scores, is_ood)


@pytest.mark.parametrize("name", ["fpr_at_ood_tpr", "fpr_at_id_tpr", "summary"])
@pytest.mark.parametrize("tpr", [0, -0.1, 1.01, 95, float("nan")])
def test_impossible_rates_are_refused(name, tpr):
    with pytest.raises(ValueError, match="tpr"):
        getattr(metrics, name)([0.0, 1.0], [0, 1], tpr)


def test_input_is_left_alone():
    scores, is_ood = np.array([3.0, 1.0, 2.0]), np.array([1, 0, 1])
    metrics.summary(scores, is_ood)
    assert scores.tolist() == [3, 1, 2] and is_ood.tolist() == [1, 0, 1]


def test_accuracy():
    assert metrics.accuracy([0, 1, 2, 2], [0, 1, 1, 2]) == 0.75
    assert metrics.accuracy(np.array([1.0, 2.0]), np.array([1, 2], "int8")) == 1
    assert metrics.accuracy([0], [1]) == 0


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([], [], "no predictions"),
        ([1, 2], [1], "equally long"),
        (np.eye(3), np.eye(3), "class indices"),
        ([0.3, 0.7], [0, 1], "whole numbers"),
        ([0, 1], [0.0, float("nan")], "whole numbers"),
        (["a"], ["a"], "whole numbers"),
    ],
)
def test_accuracy_refuses_what_is_no_class_index(predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        metrics.accuracy(predictions, labels)


# Calibration ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_counted_by_hand(bins):
    draw = np.random.default_rng(1)
    confidence = np.concatenate([draw.random(200), [0.0, 1.0, 1.0, 0.2, 0.4, 1 / 3]])
    correct = draw.random(len(confidence)) < confidence
    gap = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if b == 0:
            inside |= confidence == 0
        if inside.any():
            gap += inside.sum() / len(confidence) * abs(correct[inside].mean() - confidence[inside].mean())
    assert abs(metrics.expected_calibration_error(confidence, correct, bins) - gap) < 1e-12


def test_calibration_at_its_ends():
    assert metrics.expected_calibration_error([1.0, 1.0], [True, True]) == 0.0
    assert metrics.expected_calibration_error([1.0, 1.0], [False, False]) == 1.0
    assert metrics.expected_calibration_error([0.0], [False]) == 0.0
    counts, mean, accuracy = metrics.calibration_bins([0.5, 0.5, 0.75], [1, 0, 1], bins=4)
    assert (
        counts.tolist() == [0, 2, 1, 0] and mean.tolist() == [0, 0.5, 0.75, 0] and accuracy.tolist() == [0, 0.5, 1, 0]
    )


@pytest.mark.parametrize(
    ("confidence", "correct", "bins", "message"),
    [
        ([], [], 15, "filled"), ([0.5], [1, 0], 15, "equally long"), ([1.1], [1], 15, "probability"),
        ([float("nan")], [1], 15, "probability"), ([0.5], [1], 0, "one bin"),
        ([0.9, 0.8], [7, 3], 15, "correct must hold"), ([0.9], [float("nan")], 15, "correct must hold"),
    ],
)  # fmt: skip
def test_calibration_refuses(confidence, correct, bins, message):
    with pytest.raises(ValueError, match=message):
        metrics.expected_calibration_error(confidence, correct, bins)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "bool", "float16"])
def test_placements_of_any_numbers_are_those_of_float64(dtype):
    rng = np.random.default_rng(0)
    low = -128 if dtype == "int8" else 0
    inside, outside = rng.integers(low, low + 40, 60).astype(dtype), rng.integers(low, low + 50, 70).astype(dtype)
    of_inside, (of_outside,) = metrics.placements(inside.tolist(), [outside])
    assert of_inside.mean() == pytest.approx(metrics.auroc(*metrics.joined(inside, outside)), abs=1e-12)
    assert of_outside.mean() == pytest.approx(of_inside.mean(), abs=1e-12)


@pytest.mark.parametrize(
    ("inside", "outsides", "message"),
    [([1, np.nan], [[3, 0]], "1 of 2 scores are NaN"), ([1, 2], [[]], "no scores"), ([1, 2], [], "no OOD set"),
     ([1, 2], [["a"]], "real numbers"), ([[1, 2]], [[3]], "real numbers")],
)  # fmt: skip
def test_placements_refuse(inside, outsides, message):
    with pytest.raises(ValueError, match=message):
        metrics.placements(inside, outsides)
