"""Augmentations: what each does, its range, and that equal seeds give equal bits on every backend."""

import functools
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from kood import registry
from kood.data import ImageSet
from kood.data.augment import keras_cv_layers, pixels, policies
from kood.data.batches import training_batches
from kood.data.images import normalize, quantize

pytestmark = pytest.mark.usefixtures("as_written")

augment = SimpleNamespace(**registry.things("augmentations"))
NAMES = list(registry.room("augmentations"))
WITH_KERAS_CV = ["aug_mix", "color_jitter", "cutout", "pixmix", "rand_augment"]


def smooth_images(count=24, side=16, channels=3, seed=0):
    """Random gradients: textures on which every operation shows."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 4, 4, channels)).astype(np.float32)
    return np.clip(np.rint(tf.image.resize(small, (side, side)).numpy()), 0, 255).astype(np.uint8)


def seed(number=0):
    return tf.constant([number, 1], tf.int32)


def test_the_registry_lists_them_all():
    assert set(WITH_KERAS_CV) < set(NAMES)
    assert all(entry.summary for entry in registry.room("augmentations").values())


@pytest.mark.parametrize("name", NAMES)
def test_shape_range_and_bits(name):
    images = normalize(tf.constant(smooth_images()))
    function = tf.function(getattr(augment, name))
    first, again, other = function(images, seed()), function(images, seed()), function(images, seed(1))
    assert first.shape == images.shape and first.dtype == tf.float32
    assert np.isfinite(first).all() and np.abs(first).max() <= 1.0
    assert first.numpy().tobytes() == again.numpy().tobytes() != other.numpy().tobytes()
    changed = (first.numpy() != images.numpy()).any(axis=(1, 2, 3))
    assert changed.mean() > 0.2


@pytest.mark.parametrize("name", NAMES)
def test_small_oblong_and_plain_images(name):
    function = getattr(augment, name)
    for shape in ((3, 1, 1, 3), (2, 5, 9, 1)):
        images = normalize(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        result = function(tf.constant(images), seed(3)).numpy()
        assert result.shape == shape and np.isfinite(result).all() and np.abs(result).max() <= 1.0
    # One colour all over: no contrast to stretch, no histogram to equalize.
    plain = tf.repeat(tf.constant([-1.0, 0.0, 1.0]), 10)[:, None, None, None] * tf.ones((1, 8, 8, 3))
    result = function(plain, seed()).numpy()
    assert np.isfinite(result).all() and np.abs(result).max() <= 1.0


def test_flip_mirrors_half_of_them():
    images = normalize(smooth_images(400, 6))
    flipped = augment.flip(tf.constant(images), seed()).numpy()
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored | (flipped == images).all(axis=(1, 2, 3))).all()
    assert 0.4 < mirrored.mean() < 0.6


def test_crop_is_a_window_of_the_padded_image():
    images = normalize(smooth_images(300, 16))
    cropped = augment.crop(tf.constant(images), seed()).numpy()
    padded = np.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)], mode="reflect")
    windows = np.stack([padded[:, y : y + 16, x : x + 16] for y in range(5) for x in range(5)], axis=1)
    equal = (windows == cropped[:, None]).all(axis=(2, 3, 4))
    assert equal.any(axis=1).all()
    assert (equal.mean(axis=0) > 0.01).all()


def test_cutout_greys_a_square_of_half_the_side():
    images = tf.ones((300, 16, 16, 3))
    cut = augment.cutout(images, seed()).numpy()[..., 0] == 0.0
    rows, columns = cut.any(axis=2).sum(axis=1), cut.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(cut.sum(axis=(1, 2)), rows * columns)
    assert rows.max() == columns.max() == 8 and rows.min() >= 3
    untouched = augment.cutout(tf.constant(normalize(smooth_images())), seed()).numpy()
    kept = untouched != 0.0
    np.testing.assert_array_equal(untouched[kept], normalize(smooth_images())[kept])


def test_color_jitter_stays_within_its_amounts():
    grey = tf.fill((500, 4, 4, 1), normalize(np.array([128], np.uint8))[0])
    shifted = (augment.color_jitter(grey, seed()).numpy()[:, 0, 0, 0] + 1) * 127.5 - 128
    assert np.abs(shifted).max() <= 51.01 and shifted.max() > 40 and shifted.min() < -40
    # An image of one colour: contrast does nothing, brightness moves all channels, hue and saturation their spread.
    colour = tf.constant(np.broadcast_to(normalize(np.array([150, 100, 90], np.uint8)), (200, 4, 4, 3)))
    result = augment.color_jitter(colour, seed()).numpy()
    assert (np.ptp(result, axis=(1, 2)) < 1e-5).all() and result[:, 0, 0].std(axis=0).min() > 0.02


@pytest.mark.parametrize("shape", [(6, 16, 16, 3), (5, 9, 4, 1), (3, 1, 2, 1)])
def test_blur_is_a_gaussian_filter(shape):
    from scipy.ndimage import gaussian_filter

    images = np.random.default_rng(0).uniform(-1, 1, shape).astype("float32")
    deviations = np.linspace(0.1, 1.0, shape[0]).astype("float32")
    blurred = pixels.blurred(tf.constant(images), tf.constant(deviations)).numpy()
    expected = [
        gaussian_filter(one.astype("float64"), (s, s, 0), mode="nearest", radius=(4, 4, 0))
        for one, s in zip(images, deviations.astype("float64"), strict=True)
    ]
    np.testing.assert_allclose(blurred, expected, atol=2e-6)


def test_blur_smooths_by_a_random_amount():
    images = np.random.default_rng(0).uniform(-1, 1, (400, 8, 8, 1)).astype("float32")
    spread = augment.blur(tf.constant(images), seed()).numpy().std(axis=(1, 2, 3)) / images.std(axis=(1, 2, 3))
    assert (spread < 1.02).all() and spread.max() > 0.95 and spread.min() < 0.45


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [30, 60, 95])
def test_jpeg_is_pillows(channels, quality):
    import io

    images = smooth_images(6, 32, channels)
    found = quantize(pixels.compressed(tf.constant(normalize(images)), tf.fill([6], quality)).numpy()).astype(int)
    for one, stored in zip(images, found, strict=True):
        file = io.BytesIO()
        Image.fromarray(one[..., 0] if channels == 1 else one).save(file, "JPEG", quality=quality, subsampling=2)
        expected = np.asarray(Image.open(file)).reshape(one.shape).astype(int)
        # The libraries round differently, and interpolate colour differently.
        assert np.abs(stored - expected).mean() < (0.3 if channels == 1 else 1.5)
        assert np.abs(stored - one).mean() > np.abs(stored - expected).mean()


def test_jpeg_draws_every_quality():
    images = tf.constant(normalize(np.repeat(smooth_images(1, 16), 300, axis=0)))
    found = augment.jpeg(images, seed()).numpy()
    assert 20 < len(np.unique(found, axis=0)) <= 66


def operation(operations, index, images, at=0):
    """One operation on all images, as 0..255."""
    which = tf.fill([len(images)], index)
    chosen = tf.function(lambda colour: policies.each_by_its_own(colour, which, seed(at), operations))
    return chosen(tf.constant(images, tf.float32)).numpy()


def test_auto_contrast_is_pillows():
    images = (smooth_images(8, 16) // 2 + 40).astype(np.uint8)
    expected = np.stack([np.asarray(ImageOps.autocontrast(Image.fromarray(one))) for one in images]).astype(float)
    # Pillow cuts fractions off, the layer keeps them.
    assert np.abs(operation(policies.rand_augment_operations(), 0, images) - expected).max() <= 1.001


def test_equalize_flattens_the_histogram():
    images = (smooth_images(8, 24) // 2 + 40).astype(np.uint8)
    expected = np.empty(images.shape)
    for row in range(8):
        for channel in range(3):
            values = images[row, ..., channel]
            histogram = np.bincount(values.ravel(), minlength=256)
            # Pillow's rule, but for the count taken off: the layer's is the smallest, Pillow's the last.
            step = (histogram.sum() - histogram[histogram > 0].min()) // 255
            table = (np.cumsum(histogram) - histogram + step // 2) // step
            expected[row, ..., channel] = np.clip(table, 0, 255)[values]
    np.testing.assert_array_equal(operation(policies.rand_augment_operations(), 1, images), expected)
    few = smooth_images(4, 8)
    np.testing.assert_array_equal(operation(policies.rand_augment_operations(), 1, few), few)


def test_posterize_keeps_four_bits():
    images = smooth_images(8, 16)
    np.testing.assert_array_equal(operation(policies.aug_mix_operations(), 2, images), images & 0xF0)


def test_solarize_inverts_what_is_bright():
    images = smooth_images(64, 8)
    result = operation(policies.aug_mix_operations(), 4, images)
    kept, inverted = result == images, result == 255.0 - images
    assert (kept | inverted).all() and (kept[images < 179]).all() and inverted[images > 253].all()


@pytest.mark.parametrize("index", range(10))
def test_operations_do_not_depend_on_their_company(index):
    # 24 pixels a side, since equalizing changes nothing where there are fewer pixels than values.
    images = smooth_images(12, 24)
    operations = policies.rand_augment_operations()
    alone = operation(operations, index, images)
    which = tf.constant(np.where(np.arange(12) % 3 == 0, index, 10), tf.int32)
    among = policies.each_by_its_own(tf.constant(images, tf.float32), which, seed(), operations).numpy()
    np.testing.assert_array_equal(among[::3], alone[::3])
    rest = np.arange(12) % 3 != 0
    np.testing.assert_array_equal(among[rest], images[rest])
    assert (alone != images).any()


def test_geometry_goes_both_ways_and_reflects():
    images = np.zeros((200, 9, 9, 3), np.float32)
    images[:, 4, 4] = 255.0
    for index, axis in ((8, 2), (9, 1)):
        moved = operation(policies.rand_augment_operations(), index, images)
        places = moved.sum(axis=(3 - axis, 3)) @ np.arange(9) / np.maximum(moved.sum(axis=(1, 2, 3)), 1e-6)
        assert places.min() < 3 and places.max() > 5
        assert np.abs(moved.sum(axis=(axis, 3)).argmax(axis=1) - 4).max() == 0


def test_aug_mix_mixes_by_dirichlet_and_beta(monkeypatch):
    images = tf.fill((4000, 1, 1, 3), 1.0)
    black = lambda part, normal, uniform, sign: tf.zeros_like(part)  # noqa: E731
    monkeypatch.setattr(policies, "aug_mix_operations", lambda: [black])
    own = (augment.aug_mix(images, seed()).numpy()[:, 0, 0, 0] + 1) / 2
    # All chains black: what is left is m, uniform in [0, 1].
    assert abs(own.mean() - 0.5) < 0.02 and abs(own.std() - 12**-0.5) < 0.02
    darker = lambda part, normal, uniform, sign: part - 51.0  # noqa: E731
    monkeypatch.setattr(policies, "aug_mix_operations", lambda: [darker])
    depths = (1 - augment.aug_mix(images, seed()).numpy()[:, 0, 0, 0]) * 127.5 / 51.0 / (1 - own)
    # A weighted mean of three depths uniform in 1..3; the weights' squares sum to 1/2 on average.
    assert depths.min() > 0.99 and depths.max() < 3.01
    assert abs(depths.mean() - 2.0) < 0.05 and abs(depths.var() - (2 / 3) * 0.5) < 0.05


def batches(names, first_epoch=0):
    id_set = ImageSet(smooth_images(20, 8), np.arange(20, dtype=np.int64) % 2, ("a", "b"))
    outliers = ImageSet(smooth_images(9, 8, seed=1))
    settings = {"batch_size": 8, "outliers_per_batch": 4, "epochs": 3, "seed": 5}
    return training_batches(id_set, outliers, **settings, augment=names, first_epoch=first_epoch)


def bits(dataset):
    return [element["image"].numpy().tobytes() for element in dataset]


def test_augmented_batches_repeat_resume_and_differ_by_epoch():
    names = ["flip", "crop", "jpeg", "cutout"]  # All of them are traced for `test_the_same_bits_on_every_backend`.
    dataset, steps = batches(names)
    whole = bits(dataset)
    assert whole == bits(dataset)
    assert whole[2 * steps :] == bits(batches(names, first_epoch=2)[0])
    assert len(set(whole)) == len(whole)


def test_order_of_the_list_matters_and_repeats_differ():
    orders = (["flip", "crop"], ["crop", "flip"], ["crop", "crop"], ["crop"])
    assert len({tuple(bits(batches(names)[0])) for names in orders}) == 4


def test_float32_under_mixed_precision():
    import keras

    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    keras_cv_layers.layers.cache_clear()
    try:
        assert {layer.compute_dtype for layer in keras_cv_layers.layers().values()} == {"float32"}
    finally:
        keras.mixed_precision.set_global_policy("float32")
        keras_cv_layers.layers.cache_clear()


def test_kerascv_is_imported_only_where_it_is_needed(monkeypatch):
    # Within a function everywhere, and of these augmentations no function reaches one that does.
    for file in (Path(__file__).parents[2] / "kood").rglob("*.py"):
        assert not re.search(r"^(import|from) keras_cv\b", file.read_text(encoding="utf-8"), re.MULTILINE), file
    keras_cv_layers.layers.cache_clear()
    monkeypatch.setitem(sys.modules, "keras_cv", None)
    assert bits(batches(["flip", "crop"])[0])


def test_without_kerascv_the_message_says_what_to_do(monkeypatch):
    from kood.errors import UserError

    keras_cv_layers.layers.cache_clear()
    monkeypatch.setitem(sys.modules, "keras_cv", None)
    with pytest.raises(UserError, match="pip install keras-cv"):
        keras_cv_layers.layers()


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from test_data_augment import digest_of_all
print(digest_of_all())
"""


@functools.cache
def digest_of_all():
    dataset, _ = batches(NAMES)
    return hashlib.sha256(b"".join(bits(dataset.take(3)))).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_same_bits_on_every_backend(backend):
    script = SCRIPT.format(folder=str(Path(__file__).parent))
    environment = os.environ | {"KERAS_BACKEND": backend}
    run = [sys.executable, "-c", script]
    found = subprocess.run(run, capture_output=True, text=True, env=environment, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.split()[-1] == digest_of_all()


def test_bytes_survive_the_way_through():
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    there = keras_cv_layers.to_colour_bytes(normalize(tf.constant(every)))
    np.testing.assert_array_equal(there.numpy()[..., 0], every[..., 0])
    np.testing.assert_array_equal(quantize(keras_cv_layers.from_colour_bytes(there, normalize(every)).numpy()), every)
