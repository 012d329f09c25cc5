"""Class content against tables worked out by hand and loops written out."""

import math

import numpy as np
import pytest

from kood.audit.content import mixed_content, pure_content


def random_posteriors(rng, n, k):
    logits = rng.normal(0, 2, (n, k))
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_pure_labels_by_hand():
    posteriors = [[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.2, 0.2, 0.6], [0.5, 0.25, 0.25]]
    found = pure_content(np.array(posteriors), [0, 0, 1, 0])
    assert found["n"] == 4
    assert found["share"] == 0.5
    assert found["confidence"] == pytest.approx((0.7 + 0.3 + 0.2 + 0.5) / 4)
    assert found["entropy"] == pytest.approx(-sum(p * math.log(p) for row in posteriors for p in row) / 4)
    expected = (math.log(0.7 / 0.2) + math.log(0.6 / 0.3) + math.log(0.6 / 0.2) + math.log(0.5 / 0.25)) / 4
    assert found["top_log_odds"] == pytest.approx(expected)
    assert found["confusion"] == [[2, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert found["per_class"][0] == {"n": 3, "share": pytest.approx(2 / 3), "confidence": pytest.approx(0.5)}
    assert found["per_class"][1] == {"n": 1, "share": 0.0, "confidence": pytest.approx(0.2)}
    assert found["per_class"][2] == {"n": 0, "share": None, "confidence": None}


def test_a_judge_that_knows_nothing_scores_chance():
    found = pure_content(np.full((8, 4), 0.25), [0, 1, 2, 3] * 2)
    assert found["share"] == 0.25
    assert found["confusion"] == [[0.5] * 4] * 4
    assert found["entropy"] == pytest.approx(math.log(4))
    assert found["top_log_odds"] == 0
    two_tie = pure_content(np.array([[0.4, 0.4, 0.2]]), [1])
    assert (two_tie["share"], two_tie["confusion"][1]) == (0.5, [0.5, 0.5, 0.0])


def test_certainty_is_finite():
    found = pure_content(np.eye(3, dtype="float32"), [0, 1, 2])
    assert (found["share"], found["confidence"], found["entropy"]) == (1, 1, 0)
    assert found["top_log_odds"] == pytest.approx(12 * math.log(10))


def test_mixtures_by_hand():
    posteriors = np.array([[0.5, 0.3, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]])
    mixtures = np.array([[0.5, 0.5, 0, 0], [0, 0.3, 0, 0.7], [0.5, 0, 0.5, 0]])
    found = mixed_content(posteriors, mixtures)
    assert (found["n"], found["parents"]) == (3, {"min": 2, "max": 2})
    assert found["on_top"] == pytest.approx(1 / 3)  # The second has class 2 between, the third is a tie.
    assert found["first"] == pytest.approx((0.5 + 0.4 + 0.25) / 3)
    assert found["second"] == pytest.approx((0.3 + 0.2 + 0.25) / 3)
    assert found["all_parents"] == pytest.approx((0.8 + 0.6 + 0.5) / 3)
    assert found["top"] == pytest.approx((0.8 + 0.7 + 0.5) / 3)
    of_the_second = -0.3 * math.log(0.3) - 0.7 * math.log(0.7)
    assert found["share_entropy"] == pytest.approx((2 * math.log(2) + of_the_second) / 3)
    half, most = found["by_share"]
    assert (half["low"], half["high"], half["n"]) == (0.5, 0.55, 2)
    assert (most["low"], most["high"], most["n"]) == (0.7, 0.75, 1)
    assert half["log_odds"] == pytest.approx(math.log(0.5 / 0.3) / 2)
    assert most["log_odds"] == pytest.approx(math.log(0.4 / 0.2))
    assert most["entropy"] == pytest.approx(-sum(p * math.log(p) for p in (0.1, 0.2, 0.3, 0.4)))
    assert (half["on_top"], most["on_top"]) == (0.5, 0.0)


@pytest.mark.parametrize("parents", [2, 3, 5])
def test_any_number_of_parents_against_loops(parents):
    rng = np.random.default_rng(parents)
    n, k = 60, 6
    posteriors, mixtures = random_posteriors(rng, n, k), np.zeros((n, k))
    for row in mixtures:
        row[rng.permutation(k)[:parents]] = rng.dirichlet(np.ones(parents))
    found = mixed_content(posteriors, mixtures.astype("float32"))
    rows = []
    for p, mix in zip(posteriors, mixtures, strict=True):
        order = sorted(range(k), key=lambda c, mix=mix: -mix[c])
        own = set(order[:parents])
        top = sorted(range(k), key=lambda c, p=p: -p[c])[:parents]
        rows.append((
            mix[order[0]], p[order[0]], p[order[1]], sum(p[c] for c in own), sum(p[c] for c in top), own == set(top),
            math.log(p[order[0]] / p[order[1]]), -sum(x * math.log(x) for x in p),
            -sum(x * math.log(x) for x in mix if x > 0),
        ))  # fmt: skip
    names = ("first", "second", "all_parents", "top", "on_top")
    for at, name in enumerate(names, start=1):
        assert found[name] == pytest.approx(np.mean([row[at] for row in rows]), rel=1e-12)
    assert found["share_entropy"] == pytest.approx(np.mean([row[8] for row in rows]), rel=1e-6)
    for bin_ in found["by_share"]:
        inside = [row for row in rows if bin_["low"] <= row[0] < bin_["high"]]
        assert bin_["n"] == len(inside) > 0
        assert bin_["log_odds"] == pytest.approx(np.mean([row[6] for row in inside]), rel=1e-9)
        assert bin_["entropy"] == pytest.approx(np.mean([row[7] for row in inside]), rel=1e-9)
    assert sum(bin_["n"] for bin_ in found["by_share"]) == n


def test_mixtures_of_unequally_many_parents_and_of_all_classes():
    posteriors = np.array([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]])
    found = mixed_content(posteriors, np.array([[0.5, 0.5, 0], [0.2, 0.3, 0.5]]))
    assert found["parents"] == {"min": 2, "max": 3}
    assert found["on_top"] == 1  # No class is left to stand above three parents of three.
    assert found["all_parents"] == pytest.approx((0.9 + 1) / 2)
    assert found["top"] == pytest.approx((0.9 + 1) / 2)


@pytest.mark.parametrize("share", [0.05 * step for step in range(10, 20)])
def test_a_share_on_an_edge_falls_into_its_bin_in_float32_too(share):
    mixtures = np.array([[share, 1 - share]], dtype="float32")
    (row,) = mixed_content(np.array([[0.5, 0.5]]), mixtures)["by_share"]
    assert row["low"] == pytest.approx(share)


def test_equal_shares_in_float32_are_equal():
    mixtures = np.array([[0, 0.5, np.nextafter(np.float32(0.5), np.float32(1))]], dtype="float32")
    assert mixed_content(np.array([[0.1, 0.3, 0.6]]), mixtures)["first"] == pytest.approx(0.3)


def test_nothing_of_a_parent_is_finite():
    found = mixed_content(np.array([[1.0, 0.0, 0.0]]), np.array([[0.6, 0.4, 0.0]]))
    assert found["by_share"][0]["log_odds"] == pytest.approx(12 * math.log(10))
    assert found["entropy"] == 0
    nothing = mixed_content(np.array([[0.0, 0.0, 1.0]]), np.array([[0.6, 0.4, 0.0]]))
    assert (nothing["all_parents"], nothing["by_share"][0]["log_odds"]) == (0, 0)
