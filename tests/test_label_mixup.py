"""Label mixup against its definition, with a linear "denoiser" whose every answer is known."""

import numpy as np
import pytest
from keras import ops

from kood.diffusion import label_mixup

pytestmark = pytest.mark.backend  # Run once under each Keras backend.


def rng(seed=0):
    return np.random.default_rng(seed)


def mixtures(count, total, *, weight=0.5, alpha=1.0, rng, **which):
    chosen = label_mixup.choose_classes(count, total, rng=rng, **which)
    return label_mixup.condition_rows(chosen, total, weight=weight, alpha=alpha, rng=rng)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("weight", [0.5, 0.9, "uniform", "beta"])
def test_mixtures_are_mixtures(classes, weight):
    rows = mixtures(400, 5, classes=classes, weight=weight, alpha=0.5, rng=rng())
    assert rows.shape == (400, 5) and rows.dtype == np.float32
    np.testing.assert_allclose(rows.sum(1), 1.0, atol=1e-6)
    assert (rows >= 0).all() and ((rows > 0).sum(1) <= classes).all()
    if weight == 0.9:
        np.testing.assert_allclose(np.sort(rows, 1)[:, -1], 0.9, atol=1e-6)
        np.testing.assert_allclose(np.sort(rows, 1)[:, -2], 0.1 / (classes - 1), atol=1e-6)
    if weight == 0.5 and classes == 2:
        assert (((rows > 0).sum(1) == 2) & np.isclose(rows.max(1), 0.5)).all()


def test_every_class_and_pair_is_as_frequent_as_any_other():
    rows = mixtures(60_000, 4, rng=rng()) > 0
    pairs = (rows.astype(int).T @ rows)[np.triu_indices(4, 1)]
    assert np.abs(pairs / 10_000 - 1).max() < 0.05


def test_beta_and_uniform_have_their_moments():
    uniform = mixtures(40_000, 2, weight="uniform", rng=rng())[:, 0]
    narrow = mixtures(40_000, 2, weight="beta", alpha=8.0, rng=rng())[:, 0]
    assert abs(uniform.var() - 1 / 12) < 2e-3
    assert abs(narrow.var() - 1 / (4 * 17)) < 1e-3  # Beta(a, a) has variance 1 / (4 (2a + 1)).


def test_groups_say_which_classes_meet():
    rows = mixtures(3000, 6, groups=[[0, 3], [1, 4, 5]], weight=0.8, rng=rng())
    members = {tuple(np.flatnonzero(row)) for row in rows}
    assert members == {(0, 3), (1, 4, 5)}
    np.testing.assert_allclose(rows.max(1), 0.8, atol=1e-6)
    assert abs(np.mean(rows[:, 0] > 0) - 0.5) < 0.05 and abs(np.mean(rows[rows[:, 0] > 0][:, 0] > 0.5) - 0.5) < 0.05
    for wrong in ([[0]], [[1, 1]], [list(range(7))]):
        with pytest.raises(ValueError, match="group"):
            mixtures(3, 6, groups=wrong, rng=rng())


@pytest.mark.parametrize("count", [0, 3, 6, 12, 12_001])
def test_all_pairs_are_as_frequent_as_each_other_up_to_one(count):
    chosen = label_mixup.choose_classes(count, 4, pairs="all", rng=rng())
    assert chosen.shape == (count, 2)
    seen = np.zeros((4, 4), int)
    np.add.at(seen, (chosen[:, 0], chosen[:, 1]), 1)
    both = (seen + seen.T)[np.triu_indices(4, 1)]
    assert both.sum() == count and both.max() - both.min() <= (count % 6 > 0)
    turned = (seen - seen.T)[np.triu_indices(4, 1)]
    assert np.abs(turned).max() <= 1 and (count < 6 or abs(turned[:6].sum()) <= 1 + count % 6)
    if count > 100:  # Shuffled: the order of the first is not that of the list of pairs.
        assert not np.array_equal(np.sort(chosen[:6], axis=1), np.stack(np.triu_indices(4, 1), axis=1))


def test_confused_pairs_follow_the_confusion():
    posteriors = np.array(
        [[0.7, 0.3, 0.0, 0.0], [0.9, 0.1, 0.0, 0.0], [0.1, 0.9, 0.0, 0.0], [0.0, 0.0, 0.2, 0.8]]
    )  # fmt: skip
    labels = np.array([0, 0, 1, 2])  # No image of class 3: what is known of it comes from the others.
    confused = label_mixup.confusion(posteriors, labels)
    np.testing.assert_allclose(confused, [[0.8, 0.2, 0, 0], [0.1, 0.9, 0, 0], [0, 0, 0.2, 0.8], [0, 0, 0, 0]])
    chosen = label_mixup.choose_classes(22_000, 4, pairs="confused", confused=confused, rng=rng())
    # {0, 1}: 0.2 + 0.1; {2, 3}: 0.8 + 0; the diagonal has no part in it.
    assert {tuple(sorted(pair)) for pair in chosen.tolist()} == {(0, 1), (2, 3)}
    assert abs(np.mean(chosen.min(axis=1) == 0) - 0.3 / 1.1) < 0.015
    assert abs(np.mean(chosen[:, 0] < chosen[:, 1]) - 0.5) < 0.015


def test_a_classifier_that_confuses_nothing_leaves_every_pair_alike():
    chosen = label_mixup.choose_classes(6000, 3, pairs="confused", confused=np.eye(3), rng=rng())
    counts = np.unique(np.sort(chosen, axis=1), axis=0, return_counts=True)[1]
    assert len(counts) == 3 and np.abs(counts / 2000 - 1).max() < 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pairs": "confused"}, "confusion matrix"),
        ({"pairs": "confused", "confused": np.ones((3, 3))}, "confusion matrix"),
        ({"pairs": "confused", "confused": np.full((4, 4), np.nan)}, "finite"),
        ({"pairs": "all", "classes": 3}, "two classes"),
        ({"pairs": "most"}, "'random', 'all' or 'confused'"),
    ],
)
def test_impossible_pairs(settings, message):
    with pytest.raises(ValueError, match=message):
        label_mixup.choose_classes(3, 4, rng=rng(), **settings)


@pytest.mark.parametrize("groups", [[], [[0, -1]], [[0, 7]], [[0, 0]], [[1]], [[0, 1, 2, 3, 4]]])
def test_impossible_groups(groups):
    with pytest.raises(ValueError, match="two different classes or more, from 0 to 3"):
        label_mixup.choose_classes(3, 4, groups=groups, rng=rng())


@pytest.mark.parametrize("alpha", [0.0, -1.0, np.nan, np.inf])
def test_impossible_alphas(alpha):
    with pytest.raises(ValueError, match="alpha must be above 0"):
        label_mixup.condition_rows(np.array([[0, 1]]), 4, weight="beta", alpha=alpha, rng=rng())


def test_an_unknown_way_to_mix_is_refused():
    with pytest.raises(ValueError, match="mix must be 'condition' or 'prediction', not 'predictions'"):
        label_mixup.noise_predictor(curved, np.eye(3), mix="predictions")


def test_the_first_class_has_the_stated_share_even_none():
    chosen = label_mixup.choose_classes(300, 6, groups=[[0, 3], [1, 4, 5]], rng=rng())
    assert ((chosen >= 0).sum(axis=1) == np.where(np.isin(chosen[:, 0], [0, 3]), 2, 3)).all()
    for weight in (-2.0, -0.5, 0.0, 0.25, 1.0):
        rows = label_mixup.condition_rows(chosen, 6, weight=weight, rng=rng())
        np.testing.assert_allclose(rows[np.arange(300), chosen[:, 0]], weight)
        np.testing.assert_allclose(rows.sum(1), 1.0, atol=1e-6)
        two = chosen[:, 2] < 0
        np.testing.assert_allclose(rows[two, chosen[two, 1]], 1 - weight, atol=1e-6)
        np.testing.assert_allclose(rows[~two, chosen[~two, 2]], (1 - weight) / 2, atol=1e-6)
    for wrong in (-2.1, 1.1, "half", float("nan")):
        with pytest.raises(ValueError, match="weight"):
            label_mixup.condition_rows(chosen, 6, weight=wrong, rng=rng())


@pytest.mark.parametrize(("classes", "total"), [(1, 5), (6, 5), (2, 1)])
def test_impossible_mixtures(classes, total):
    with pytest.raises(ValueError, match="classes"):
        mixtures(3, total, classes=classes, rng=rng())


def curved(inputs):
    """e = image + (condition . [1, 10, 100])^2 + step; not linear in the condition, so the two ways to mix differ."""
    level = ops.sum(inputs["condition"] * np.array([1.0, 10.0, 100.0], "float32"), axis=-1) ** 2
    return inputs["image"] + (level + ops.cast(inputs["step"], "float32"))[:, None, None, None]


@pytest.mark.parametrize("guidance", [1.0, 0.0, 2.5])
def test_both_ways_to_mix_and_guidance(guidance):
    condition = np.array([[0.25, 0.75, 0], [0, 1, 0], [-0.5, 0, 1.5]], "float32")
    image = rng().normal(size=(3, 2, 2, 1)).astype("float32")
    step = np.array([4, 4, 4], "int32")
    levels = np.array([1.0, 10.0, 100.0])
    expected = {
        "condition": (condition @ levels) ** 2 + 4,
        "prediction": condition @ (levels**2) + 4,
    }
    for mix, value in expected.items():
        denoise = label_mixup.noise_predictor(curved, condition, mix=mix, guidance=guidance)
        got = ops.convert_to_numpy(denoise(ops.convert_to_tensor(image), ops.convert_to_tensor(step)))
        want = image + (4 + guidance * (value - 4))[:, None, None, None]
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_room_for_more_classes_than_a_block_has_changes_nothing():
    condition = np.array([[0.25, 0.75, 0], [0, 1, 0]], "float32")
    image = ops.convert_to_tensor(rng().normal(size=(2, 2, 2, 1)).astype("float32"))
    step = ops.convert_to_tensor(np.array([4, 4], "int32"))
    asked = []

    def forward(inputs):
        asked.append(inputs["image"].shape[0])
        return curved(inputs)

    narrow, wide = (
        ops.convert_to_numpy(label_mixup.noise_predictor(forward, condition, mix="prediction", most=most)(image, step))
        for most in (None, 3)
    )
    assert asked == [4, 6]
    np.testing.assert_allclose(narrow, wide, rtol=1e-6)


def test_an_interpolation_goes_from_class_to_class():
    pairs = np.array([[0, 1], [3, 2], [1, 3]])
    conditions = label_mixup.interpolation(4, pairs, 5)
    assert conditions.shape == (3, 5, 4)
    np.testing.assert_allclose(conditions.sum(-1), 1.0, atol=1e-6)
    for row, (first, last) in zip(conditions, pairs, strict=True):
        assert row[0, first] == row[-1, last] == 1.0
        np.testing.assert_allclose(row[:, last], [0, 0.25, 0.5, 0.75, 1], atol=1e-6)


def test_an_interpolation_may_repeat_a_pair():
    conditions = label_mixup.interpolation(4, np.array([[2, 0], [2, 0]]), 3)
    np.testing.assert_allclose(conditions, [[[0, 0, 1, 0], [0.5, 0, 0.5, 0], [1, 0, 0, 0]]] * 2)
