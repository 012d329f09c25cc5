"""Mixtures of images and outliers, against NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from kood.data import ImageSet
from kood.data.batches import training_batches
from kood.data.mixing import mixed_in, mixtures

CLASSES = 5


def pairs(count=6, height=5, width=7, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.uniform(-1, 1, (count, height, width, channels)).astype("float32") for _ in range(2))


def mixed(images, outliers, seed=(1, 2), **options):
    mixture, share = mixtures(tf.constant(images), tf.constant(outliers), tf.constant(seed), **options)
    return mixture.numpy(), share.numpy()


@pytest.mark.parametrize("alpha", [0.1, 1.0, 5.0])
def test_linear_mixtures_are_weighted_means(alpha):
    images, outliers = pairs(200)
    found, share = mixed(images, outliers, mix="linear", alpha=alpha)
    weight = np.float64(share).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(found, weight * images + (1 - weight) * outliers, atol=1e-6)
    assert np.abs(found).max() <= 1 and share.min() >= 0 and share.max() <= 1


@pytest.mark.parametrize("alpha", [0.1, 1.0, 5.0])
@pytest.mark.parametrize(("height", "width"), [(5, 7), (8, 8), (1, 1), (1, 9)])
def test_cut_mixtures_hold_one_rectangle_and_say_its_share(height, width, alpha):
    count = 300
    # Images and outliers that differ in every pixel: what is not the one is the other.
    images = np.full((count, height, width, 1), -0.5, "float32")
    outliers = np.full((count, height, width, 1), 0.5, "float32")
    found, share = mixed(images, outliers, mix="cutmix", alpha=alpha)
    drawn = mixed(images, outliers, mix="linear", alpha=alpha)[1].astype(np.float64)
    inside = found[..., 0] == 0.5
    assert np.all(inside | (found[..., 0] == -0.5))
    np.testing.assert_allclose(share, 1 - inside.mean(axis=(1, 2)), atol=1e-6)
    rows, columns = inside.any(axis=2), inside.any(axis=1)
    np.testing.assert_array_equal(inside, rows[:, :, None] & columns[:, None, :])
    for stretch, size in ((rows, height), (columns, width)):
        borders = np.abs(np.diff(stretch.astype(int), axis=1)).sum(axis=1)
        assert np.all(borders <= 2)  # In one piece.
        whole = inside.any(axis=(1, 2))
        sides = np.sqrt(1 - drawn) * size
        assert np.all(np.abs(stretch.sum(axis=1) - sides)[whole] <= 0.5 + 1e-4)
    if width == 9:
        # Every place is drawn, the first and the last among them.
        assert columns[:, 0].any() and columns[:, -1].any()
        assert columns.sum(axis=0).min() > 20


@pytest.mark.parametrize("alpha", [0.05, 0.5, 1.0, 3.0])
def test_shares_are_drawn_from_the_beta_distribution(alpha):
    one = np.zeros((4000, 1, 1, 1), "float32")
    share = mixed(one, one, mix="linear", alpha=alpha)[1]
    if alpha >= 0.5:
        assert stats.kstest(share, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    assert abs(share.mean() - 0.5) < 0.03
    expected = 1 / (4 * (2 * alpha + 1))  # The variance of Beta(alpha, alpha).
    assert share.var() == pytest.approx(expected, rel=0.06)


def test_the_seed_decides():
    images, outliers = pairs(50)
    for mix in ("linear", "cutmix"):
        first, again, other = (mixed(images, outliers, seed, mix=mix) for seed in ((1, 2), (1, 2), (1, 3)))
        assert first[0].tobytes() == again[0].tobytes() and first[1].tobytes() == again[1].tobytes()
        assert not np.array_equal(first[1], other[1])


@pytest.mark.parametrize("outliers", [2, 4, 7])
def test_outlier_rows_become_mixtures_and_others_stay(outliers):
    rng = np.random.default_rng(3)
    rows = rng.permutation(4 + 3 + outliers)  # Four images, three rows that are neither, the outliers.
    batch = {
        "image": rng.uniform(-1, 1, (len(rows), 4, 4, 1)).astype("float32"),
        "label": np.eye(CLASSES, dtype="float32")[rng.integers(CLASSES, size=len(rows))],
        "is_outlier": np.isin(np.arange(len(rows)), rows[7:]).astype("float32"),
    }
    batch["label"][rows[7:]] = 0
    tensors = {name: tf.constant(value) for name, value in batch.items()}
    options = {"mix": "linear", "alpha": 1.0}
    found = mixed_in(tensors, tf.constant(rows[:4]), tf.constant(rows[7:]), tf.constant([5, 6]), **options)
    found = {name: value.numpy() for name, value in found.items()}
    share = found["label"].sum(axis=1)
    for j, row in enumerate(rows[7:]):
        image = rows[j % 4]
        np.testing.assert_allclose(found["label"][row], share[row] * batch["label"][image], atol=1e-7)
        expected = share[row] * batch["image"][image] + (1 - share[row]) * batch["image"][row]
        np.testing.assert_allclose(found["image"][row], expected, atol=1e-6)
    assert len(set(share[rows[7:]])) == outliers
    for name in ("image", "label"):
        np.testing.assert_array_equal(found[name][rows[:7]], batch[name][rows[:7]])
    np.testing.assert_array_equal(found["is_outlier"], batch["is_outlier"])


def batches(mix, **changed):
    """Image i is i all over and of class i mod 5; every outlier is white."""
    images = np.broadcast_to(np.arange(40, dtype=np.uint8).reshape(-1, 1, 1, 1), (40, 4, 4, 3)).copy()
    settings = {"batch_size": 10, "outliers_per_batch": 6, "epochs": 3, "seed": 7} | changed
    id_set = ImageSet(images, np.arange(40, dtype=np.int64) % CLASSES, tuple("abcde"))
    white = ImageSet(np.full((9, 4, 4, 3), 255, np.uint8))
    dataset, steps = training_batches(id_set, white, mix=mix, **settings)
    return dataset, [{name: value.numpy() for name, value in element.items()} for element in dataset], steps


@pytest.mark.parametrize("mix", ["linear", "cutmix"])
def test_a_batch_holds_the_images_and_their_mixtures(mix):
    dataset, found, _ = batches(mix)
    _, plain, _ = batches("none")
    assert dataset.element_spec == {
        "image": tf.TensorSpec((16, 4, 4, 3), tf.float32),
        "label": tf.TensorSpec((16, CLASSES), tf.float32),
        "is_outlier": tf.TensorSpec((16,), tf.float32),
    }
    shares = []
    for element, before in zip(found, plain, strict=True):
        inside = element["is_outlier"] == 0
        np.testing.assert_array_equal(element["is_outlier"], before["is_outlier"])
        np.testing.assert_array_equal(element["image"][inside], before["image"][inside])
        np.testing.assert_array_equal(element["label"][inside], before["label"][inside])
        levels = np.rint((element["image"][inside][:, 0, 0, 0] + 1) * 127.5)
        for image, label in zip(element["image"][~inside], element["label"][~inside], strict=True):
            share = label.sum()
            shares.append(share)
            if share < 0.05:
                continue
            # The mean level of the mixture, less the white of the outlier's part, is an image of the batch.
            level = ((image.mean(dtype=np.float64) + 1) * 127.5 - (1 - share) * 255) / share
            nearest = levels[np.abs(levels - level).argmin()]
            assert abs(nearest - level) < 0.05
            np.testing.assert_allclose(label, share * np.eye(CLASSES)[int(nearest) % CLASSES], atol=1e-6)
    # A square of whole pixels has one of few areas.
    assert len(shares) == 72 and np.std(shares) > 0.2 and len(set(shares)) >= {"linear": 70, "cutmix": 4}[mix]


@pytest.mark.parametrize("mix", ["linear", "cutmix"])
def test_resuming_with_mixtures_equals_going_on(mix):
    _, whole, steps = batches(mix, augment=("flip", "crop"))
    _, resumed, _ = batches(mix, augment=("flip", "crop"), first_epoch=2)
    assert len(resumed) == steps
    for one, other in zip(whole[2 * steps :], resumed, strict=True):
        assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_without_outliers_nothing_is_mixed():
    _, found, _ = batches("linear", outliers_per_batch=0)
    assert all(np.array_equal(element["label"].sum(axis=1), np.ones(10)) for element in found)
