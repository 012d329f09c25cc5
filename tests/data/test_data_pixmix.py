"""PixMix: how it joins images, what it draws, and the pictures that it mixes in."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from kood.data import ImageSet
from kood.data.augment import mixes, pictures
from kood.data.batches import training_batches
from kood.data.images import normalize
from kood.pipeline.fitting import augmentations, decided
from kood.pipeline.prepare import PICTURES
from kood.recipe import Recipe

SHAPE = (24, 20, 3)


def seed(number=0):
    return tf.constant([number, 1], tf.int32)


def drawn(kind, count=12, shape=SHAPE):
    return getattr(pictures, kind)(count, shape, np.random.default_rng(0))


@pytest.mark.parametrize("multiplies", [False, True])
def test_joined_matches_float64(multiplies):
    rng = np.random.default_rng(0)
    one, other = rng.random((2, 40, 6, 5, 3)).astype("float32")
    one[:2], one[2:4], other[1:3], other[3:5] = 0, 1, 0, 1
    a, b = (rng.uniform(low, high, (40, 1, 1, 1)).astype("float32") for low, high in ((0, 2), (-1, 1)))
    found = mixes.joined(one, other, tf.fill((40, 1, 1, 1), multiplies), a, b).numpy()
    x, y, a, b = (np.float64(value) for value in (one, other, a, b))
    if multiplies:
        expected = (2 * x) ** a * np.maximum(2 * y, 1e-37) ** b / 2
    else:
        expected = (a * (2 * x - 1) + b * (2 * y - 1) + 1) / 2
    np.testing.assert_allclose(found, np.clip(expected, 0, 1), atol=1e-6)
    assert 0.05 < ((found > 0) & (found < 1)).mean() < 1


def test_shares_are_of_the_papers_beta_distributions():
    a, b = (value.numpy() for value in mixes.shares(tf.random.stateless_uniform([3, 40_000], seed())))
    taking = b < 0
    assert abs(taking.mean() - 0.5) < 0.01
    for values, beta in ((a[~taking], (3, 1)), (b[~taking], (1, 3)), (a[taking] - 1, (1, 3)), (-b[taking], (1, 3))):
        assert stats.kstest(values, stats.beta(*beta).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(a[~taking], b[~taking])[0, 1]) < 0.03


def mixed(images, own, at=0):
    return mixes.mixed_with(tf.constant(own), tf.constant(images), seed(at)).numpy()


def test_an_image_takes_none_to_four_turns(monkeypatch):
    monkeypatch.setattr(mixes, "aug_mix_operations", lambda: [lambda part, *draws: part])
    monkeypatch.setattr(mixes, "joined", lambda one, *others: one + 0.1)
    found = mixed(np.full((4000, 1, 1, 3), -1, np.float32), np.zeros((1, 1, 1, 3), np.uint8))[:, 0, 0, 0]
    turns, counts = np.unique(np.round((found + 1) / 0.2).astype(int), return_counts=True)
    np.testing.assert_array_equal(turns, range(5))
    np.testing.assert_allclose(counts / 4000, 0.2, atol=0.03)


def test_every_image_has_its_picture_and_its_own_draws(monkeypatch):
    monkeypatch.setattr(mixes, "aug_mix_operations", lambda: [lambda part, *draws: part])
    images, own = np.zeros((400, 8, 8, 3), np.float32), pictures.pictures(8, 8, 3)
    found = mixed(images, own)
    assert len(np.unique(found.reshape(400, -1), axis=0)) > 200
    assert found.min() == -1.0 and found.max() == 1.0
    np.testing.assert_array_equal(found, mixed(images, own))
    assert (found != mixed(images, own, at=1)).any()


def test_a_changed_copy_is_of_the_original(monkeypatch):
    """Black pictures and operations that give white: what an image is made of lies on lines that can be told."""
    monkeypatch.setattr(mixes, "aug_mix_operations", lambda: [lambda part, *draws: 0.0 * part + 255.0])
    starts = []
    whole = mixes.joined
    monkeypatch.setattr(
        mixes, "joined", lambda one, other, *rest: starts.append((one, other)) or whole(one, other, *rest)
    )
    mixed(np.zeros((600, 1, 1, 3), np.float32), np.zeros((1, 1, 1, 3), np.uint8))
    first = starts[0][0].numpy()[:, 0, 0, 0]
    # As it is, or changed, with equal chances.
    assert set(np.round(first, 2)) == {0.5, 1.0} and abs((first == 1.0).mean() - 0.5) < 0.07
    for _, other in starts:
        values = other.numpy()[:, 0, 0, 0]
        # A picture, or a changed copy; a turn that is not taken may hold an unchanged one.
        assert set(np.round(values, 2)) <= {0.0, 0.5, 1.0} and (values == 0.0).mean() > 0.4
    assert len(starts) == 4


def test_labels_are_untouched_and_outliers_are_treated_alike():
    rng = np.random.default_rng(1)
    id_set = ImageSet(rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8), np.arange(20) % 2, ("a", "b"))
    outliers = ImageSet(rng.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8))
    settings = {"batch_size": 8, "outliers_per_batch": 4, "epochs": 2, "seed": 5}
    plain, treated = (training_batches(id_set, outliers, **settings, augment=names)[0] for names in ([], ["pixmix"]))
    changed = {0.0: [], 1.0: []}
    for one, other in zip(plain, treated, strict=True):
        np.testing.assert_array_equal(one["label"], other["label"])
        np.testing.assert_array_equal(one["is_outlier"], other["is_outlier"])
        for row, before, after in zip(one["is_outlier"].numpy(), one["image"], other["image"], strict=True):
            changed[row].append(bool(np.abs(before - after).max() > 1e-6))
    assert all(np.mean(rows) > 0.5 for rows in changed.values())


def test_grey_images_stay_grey_and_have_one_channel():
    images = normalize(np.random.default_rng(2).integers(0, 256, (6, 9, 7, 1), dtype=np.uint8))
    found = mixes.pixmix(tf.constant(images), seed()).numpy()
    assert found.shape == images.shape and np.abs(found - images).max() > 0.1


# The pictures


@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 3), (2, 7, 1), (40, 40, 1)])
def test_pictures_are_the_same_ones_and_each_another(shape):
    found = pictures.pictures(*shape)
    assert found.dtype == np.uint8 and found.shape[1:] == shape and len(found) % 3 == 0
    assert found is pictures.pictures(*shape) and not found.flags.writeable
    np.testing.assert_array_equal(found, pictures.pictures.__wrapped__(*shape))
    if min(shape[:2]) > 2:
        assert len(np.unique(found, axis=0)) > 0.98 * len(found)
        # Something is to be seen in nearly all.
        assert (found.std(axis=(1, 2)).max(axis=1) > 15).mean() > 0.97


def test_large_pictures_are_fewer(monkeypatch):
    for kind in ("fractals", "dead_leaves", "fourier_noise"):
        monkeypatch.setattr(pictures, kind, lambda count, shape, rng: np.zeros((count, *shape), "float32"))
    drawn = pictures.pictures.__wrapped__
    assert len(drawn(8, 8, 3)) == 1200
    assert len(drawn(128, 128, 3)) == 3 * (2**23 // (128 * 128 * 3))


def test_orbits_match_python_one_by_one():
    rng = np.random.default_rng(3)
    z = rng.uniform(-1.2, 1.2, (3, 4, 4)) + 1j * rng.uniform(-1.2, 1.2, (3, 4, 4))
    c = np.array([-0.4 + 0.5j, 0.2 + 0.01j, -1.0])[:, None, None]
    found = pictures.orbits(z.astype(np.complex64), c, 30)
    escaped = 0
    for place in np.ndindex(z.shape):
        point, least = complex(np.complex64(z[place])), np.inf
        for turn in range(30):
            point = point * point + complex(np.complex64(c[place[0], 0, 0]))
            if abs(point) > 16:
                least = turn + 1 - np.log2(np.log(abs(point)) / np.log(16))
                escaped += 1
                break
            least = min(least, abs(point))
        # Single precision drifts along an orbit that goes round for long.
        assert found[place] == pytest.approx(least, abs=0.05)
    assert 10 < escaped < 40


def test_dead_leaves_have_the_colours_of_their_leaves():
    for picture in drawn("dead_leaves", shape=(32, 32, 3)):
        colours, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
        assert 10 < len(colours) <= 101 and counts.max() > 20


class Given:
    """A generator whose uniform draws are all one number."""

    def __init__(self, number):
        rng = np.random.default_rng(4)
        self.standard_normal, self.random = rng.standard_normal, rng.random
        self.uniform = lambda low, high, shape: np.full(shape, number)


@pytest.mark.parametrize("exponent", [0.5, 2.0])
def test_the_spectrum_of_fourier_noise_falls_as_said(exponent):
    noise = pictures.fourier_noise(40, (64, 64, 1), Given(exponent))
    amplitude = np.abs(np.fft.rfft2(noise[..., 0]))[:, 0, 1:12].mean(axis=0)
    slope = np.polyfit(np.log(np.arange(1, 12)), np.log(amplitude), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.2)


def test_fourier_noise_has_the_contrast_that_is_said():
    noise = drawn("fourier_noise", 30)
    assert abs(noise.mean() - 0.5) < 0.02 and abs(noise.std() - 0.25) < 0.02


def test_pictures_of_the_users_own_are_what_is_mixed_in():
    images = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (10, 250)])
    rows = SimpleNamespace(images={PICTURES: ImageSet(images)}.__getitem__, digest=lambda *names: ["of", *names])
    given = {"data": {"image_shape": [8, 8, 3], "id": {"source": "digits"}, "pictures": {"source": "blobs"}}}
    recipe = Recipe.model_validate({"name": "x", **given})
    flip, mix = augmentations(recipe, rows, ["flip", "pixmix"])
    assert flip == "flip" and isinstance(mix, partial) and augmentations(recipe, rows, ["flip"]) == ["flip"]
    assert decided(recipe, rows, ["flip"]) == ["flip"]
    assert decided(recipe, rows, ["pixmix"]) == ["pixmix", "of", PICTURES]
    black = tf.constant(np.full((64, 8, 8, 3), -1, np.float32))
    # Nothing is in them but what the two pictures make of a black image, and each image takes but one of them.
    np.testing.assert_array_equal(mix(black, seed()), mixes.mixed_with(images, black, seed()))
    assert np.ptp(mix(black, seed()).numpy(), axis=(1, 2)).max() < 1e-5
    assert np.ptp(mixes.pixmix(black, seed()).numpy(), axis=(1, 2)).max() > 0.5
    smaller = augmentations(recipe, rows, ["pixmix"], (4, 4, 3))[0]
    assert smaller(black[:, :4, :4], seed()).shape == (64, 4, 4, 3)
    grey = ImageSet(np.zeros((8, 8, 8, 3), np.uint8), np.arange(8) % 2, ("a", "b"))
    settings = {"batch_size": 8, "outliers_per_batch": 0, "epochs": 1, "seed": 5}
    batch = next(iter(training_batches(grey, None, **settings, augment=[flip, mix])[0]))
    assert batch["image"].shape == (8, 8, 8, 3) and np.ptp(batch["image"], axis=(1, 2)).max() < 1e-5
