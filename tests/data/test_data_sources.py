"""The sources that are there without a network, and those that are not."""

import numpy as np
import pytest

from kood.data import load_ood, load_source
from kood.errors import UserError


@pytest.fixture
def load(source):
    def build(name, image_shape=(8, 8, 1), seed=0, **options):
        return load_source(source(name, **options), image_shape, seed=seed, key="data.far.x")

    return build


@pytest.mark.keras
def test_digits_are_scikit_learns(load):
    from sklearn.datasets import load_digits

    found = load("digits")["all"]
    loaded = load_digits()
    np.testing.assert_array_equal(found.images[..., 0], np.round(loaded.images * 255 / 16))
    np.testing.assert_array_equal(found.labels, loaded.target)
    assert found.class_names == tuple("0123456789")
    assert load("digits", (16, 12, 3))["all"].images.shape == (1797, 16, 12, 3)


@pytest.mark.keras
@pytest.mark.parametrize("name", ["gaussian", "uniform", "rademacher", "blobs", "photo_patches"])
@pytest.mark.parametrize("image_shape", [(8, 8, 1), (33, 17, 3)])
def test_made_images_follow_seed_shape_and_count(load, name, image_shape):
    first = load(name, image_shape, count=20)["all"]
    assert first.images.shape == (20, *image_shape) and first.labels is None
    assert first.sha256() == load(name, image_shape, count=20)["all"].sha256()
    assert first.sha256() != load(name, image_shape, seed=1, count=20)["all"].sha256()
    assert len({one.tobytes() for one in first.images}) == 20


@pytest.mark.keras
def test_a_thousand_where_no_count_is_given(load):
    assert len(load("rademacher")["all"]) == 1000
    assert len(load("photo_patches")["all"]) == 1000


def test_noise_has_the_distributions_it_says(load):
    shape = (32, 32, 3)
    gaussian = load("gaussian", shape, count=50)["all"].images / 127.5 - 1.0
    # A standard deviation of 0.5 clipped to [-1, 1]: 2.275% of the values at each end.
    assert abs(gaussian.mean()) < 0.01
    assert abs((gaussian == 1.0).mean() - 0.0228) < 0.003 and abs((gaussian == -1.0).mean() - 0.0228) < 0.003
    assert abs((np.abs(gaussian) < 0.5).mean() - 0.6827) < 0.01
    uniform = np.bincount(load("uniform", shape, count=50)["all"].images.ravel(), minlength=256)
    assert uniform.min() > 0.75 * uniform.mean() and uniform.max() < 1.25 * uniform.mean()
    rademacher = load("rademacher", shape, count=50)["all"].images
    assert set(np.unique(rademacher)) == {0, 255} and abs((rademacher == 255).mean() - 0.5) < 0.01


def test_blobs_are_blurred_thresholded_noise(load):
    blobs = load("blobs", (32, 32, 3), count=50)["all"].images
    # After the threshold a value is 0 or at least 0.75 of 255.
    assert set(np.unique(blobs[blobs < 190])) == {0}
    assert 0.05 < (blobs > 0).mean() < 0.5
    # Neighbours agree far more often than in unblurred noise.
    inside = (blobs > 0).astype(float)
    assert (inside[:, 1:] == inside[:, :-1]).mean() > 0.85


@pytest.mark.keras
def test_photo_patches_are_larger_than_any_photograph_can_be(load):
    assert load("photo_patches", (500, 500, 3), count=2)["all"].images.shape == (2, 500, 500, 3)


@pytest.mark.keras
def test_photo_patches_look_like_photographs(load):
    patches = load("photo_patches", (16, 16, 3), count=100)["all"].images.astype(float)
    # Neighbouring pixels of photographs are alike; of noise they are not.
    assert np.corrcoef(patches[:, 1:].ravel(), patches[:, :-1].ravel())[0, 1] > 0.8
    assert patches.std() > 30


KERAS_DATASETS = {
    "cifar10": (32, 3, 10),
    "cifar100": (32, 3, 100),
    "mnist": (28, 1, 10),
    "fashion_mnist": (28, 1, 10),
}


@pytest.mark.keras
@pytest.mark.parametrize("name", KERAS_DATASETS)
def test_keras_datasets(load, source, monkeypatch, name):
    import keras

    side, channels, classes = KERAS_DATASETS[name]

    rng = np.random.default_rng(0)
    shape = (side, side) if channels == 1 else (side, side, channels)

    def part(count):
        images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        labels = (np.arange(count) % classes).astype(np.uint8)
        return images, labels if channels == 1 else labels[:, None]

    pretend = part(400), part(200)
    module = getattr(keras.datasets, name)
    monkeypatch.setattr(module, "load_data", lambda: pretend)
    sets = load(name, (side, side, channels))
    assert sets.keys() == {"train", "test"}
    np.testing.assert_array_equal(sets["train"].images.reshape(pretend[0][0].shape), pretend[0][0])
    np.testing.assert_array_equal(sets["test"].labels, pretend[1][1].ravel())
    assert len(set(sets["test"].class_names)) == classes
    chosen = load_ood(source(name, classes=[3, 5], count=3), (8, 8, 3), seed=0, key="data.near.x")
    assert chosen.images.shape == (3, 8, 8, 3) and chosen.class_names == tuple(
        sets["test"].class_names[index] for index in (3, 5)
    )

    def offline():
        raise Exception("URL fetch failure on https://example.org: None")  # noqa: TRY002

    monkeypatch.setattr(module, "load_data", offline)
    with pytest.raises(UserError, match=r'URL fetch failure.*~/\.keras/datasets/.*source = "folder"'):
        load(name)


def test_cifar_class_names_are_in_the_official_order(load):
    from kood.data.sources import keras_datasets

    assert tuple(sorted(keras_datasets._CIFAR100)) == keras_datasets._CIFAR100
    assert tuple(sorted(keras_datasets._CIFAR10)) == keras_datasets._CIFAR10
