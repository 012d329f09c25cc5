"""The shortcut test: its interval is that of `kood.intervals`, and its verdicts."""

import numpy as np
import pytest

from kood.audit.outlier_set import FAILS_ABOVE, shortcut_test
from kood.intervals import auroc_interval


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("id_", "ood", "message"),
    [
        ([], [1.0, 2.0], "There are no scores"),
        ([1.0], [1.0, 2.0], "two or more"),
        ([1.0, 2.0], [1.0], "two or more"),
        ([1.0, np.nan], [1.0, 2.0], "1 of 2 scores are NaN"),
        (["a", "b"], [1.0, 2.0], "real numbers"),
    ],
)
def test_what_has_no_interval_is_refused(id_, ood, message):
    with pytest.raises(ValueError, match=message):
        shortcut_test(np.array(id_), np.array(ood), score="msp")


@pytest.mark.parametrize(
    ("shift", "count", "verdict", "words"),
    [
        (1.5, 800, "failed", "has learnt to spot generated images instead of images between classes"),
        (0.3, 4000, "slight", "a little stranger"),
        (0.0, 800, "passed", "does not care that an image is generated"),
        (-1.0, 800, "reversed", "more ordinary than real ones"),
        (0.4, 12, "undecided", "cannot tell"),
        (0.6, 200, "undecided", "cannot tell"),
    ],
)
def test_verdicts(rng, shift, count, verdict, words):
    id_, pure = rng.normal(0, 1, count), rng.normal(shift, 1, count)
    found = shortcut_test(id_, pure, score="energy")
    assert found["interval"] == list(auroc_interval(id_, [pure]))
    assert found["auroc"] == pytest.approx((pure[:, None] > id_[None]).mean(), rel=1e-12)
    assert found["verdict"] == verdict
    assert words in found["sentence"]
    assert (found["n_id"], found["n_pure"], found["score"]) == (count, count, "energy")
    low, high = found["interval"]
    assert low < found["auroc"] < high
    assert (low > FAILS_ABOVE) == (verdict == "failed")


def test_a_detector_that_separates_perfectly_fails_and_few_images_do_not_decide():
    assert shortcut_test(np.zeros(50), np.ones(50), score="msp")["verdict"] == "failed"
    assert shortcut_test(np.zeros(3), np.ones(3), score="msp")["verdict"] == "undecided"
    assert shortcut_test(np.zeros(50), np.zeros(50), score="msp")["verdict"] == "passed"
