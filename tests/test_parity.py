"""Whether a graph answers as the Keras model does: what agrees, what may fall either way, and what never does."""

import numpy as np
import pytest

from kood.conformal import Calibration
from kood.decision import UNKNOWN
from kood.errors import UserError
from kood.parity import agreed, disagreements

CALIBRATION = Calibration(np.arange(1.0, 100.0), np.zeros(99, np.int64), 2, 0.9, False)


def answers(scores, first):
    """Of two classes, `first` the probability of class 0; the threshold is 90."""
    scores, first = np.array(scores), np.array(first)
    label = (first < 0.5).astype(int)
    return {
        "probabilities": np.stack([first, 1 - first], axis=1), "label": label, "ood_score": scores,
        "is_ood": CALIBRATION.flagged(scores, label), "p_value": CALIBRATION.p_values(scores, label),
    }  # fmt: skip


def wrong(got, expected):
    return disagreements(got, expected, CALIBRATION, 1e-5)[1]


def test_equal_answers_agree_and_are_counted():
    one = answers([5.0, 95.0, 50.5], [0.9, 0.2, 0.7])
    told = agreed(one, one, CALIBRATION, 1e-5, who="it", undone="written")
    assert told == {"probabilities": 0.0, "ood_score": 0.0, "images": 3}


@pytest.mark.parametrize("value", [np.nan, np.inf, 95.1])
@pytest.mark.parametrize("row", [0, 1])
def test_a_score_that_is_another_number_or_none_does_not_agree(value, row):
    """Row 1 is flagged whatever stands there, so that the score alone tells."""
    expected = answers([5.0, 95.0], [0.9, 0.2])
    scores = expected["ood_score"].copy()
    scores[row] = value
    got = answers(scores, [0.9, 0.2])
    assert "ood_score" in wrong(got, expected)
    with pytest.raises(UserError, match=r"it does not answer as the Keras model does .*ood_score.*not written"):
        agreed(got, expected, CALIBRATION, 1e-5, who="it", undone="written")


def test_probabilities_that_are_no_numbers_do_not_agree():
    expected = answers([5.0, 95.0], [0.9, 0.2])
    assert wrong(expected | {"probabilities": np.full((2, 2), np.nan)}, expected) == ["probabilities"]


def test_what_is_on_the_threshold_may_fall_either_way():
    expected = answers([90.0, 5.0], [0.9, 0.5])
    got = answers([90.0 + 1e-4, 5.0], [0.9, 0.5 - 1e-6])
    assert got["is_ood"][0] != expected["is_ood"][0] and got["label"][1] != expected["label"][1]
    assert wrong(got, expected) == []
    assert wrong(answers([90.5, 5.0], [0.9, 0.5]), expected) == ["ood_score"]


def test_what_is_not_known_is_so_exactly():
    expected = answers([5.0, 6.0], [0.9, 0.9])
    unknown = {name: values.copy() for name, values in expected.items()}
    for name, value in UNKNOWN.items():
        unknown[name][1] = value
    assert wrong(unknown, unknown) == []
    assert set(wrong(expected, unknown)) == set(UNKNOWN)
