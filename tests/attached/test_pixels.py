"""How pixels are prepared, and what is said of pixels in the wrong range."""

import functools
import re

import keras
import numpy as np
import pytest
from keras import layers, ops
from keras.applications import imagenet_utils

from kood import heads
from kood.attached.pixels import check_range, check_shape, other_range, outside, wanted
from kood.attached.preprocessing import PREPROCESSING, Preprocess, preprocess_of
from kood.classifier import Classifier
from kood.data.images import normalize
from kood.errors import UserError

pytestmark = pytest.mark.backend

SHAPE = (8, 8, 3)


def pictures(count=8, seed=0):
    """Blocks of colour in whole numbers of 0..255."""
    blocks = np.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3))
    return blocks.repeat(4, axis=1).repeat(4, axis=2).astype("float32")


def prepared(mode, pixels):
    return ops.convert_to_numpy(Preprocess(mode)(pixels))


def model_of(*first, trained_on=None):
    """Convolution and batch normalization, which remembers the statistics of what it was trained on."""
    keras.utils.set_random_seed(1)
    normalization = layers.BatchNormalization()
    model = keras.Sequential([
        keras.Input(SHAPE), *first, layers.Conv2D(6, 3, padding="same"), normalization,
        layers.GlobalAveragePooling2D(), layers.Dense(3),
    ])  # fmt: skip
    if trained_on is not None:
        given = keras.Sequential(model.layers[:-3])(trained_on)
        normalization.moving_mean.assign(ops.mean(given, axis=(0, 1, 2)))
        normalization.moving_variance.assign(ops.var(given, axis=(0, 1, 2)))
    return model


@pytest.mark.parametrize(("mode", "of_keras"), [("-1..1", "tf"), ("caffe", "caffe"), ("torch", "torch")])
def test_modes_are_those_of_keras(mode, of_keras):
    expected = imagenet_utils.preprocess_input(pictures(), mode=of_keras)
    assert np.allclose(prepared(mode, pictures()), expected, rtol=1e-5, atol=1e-5)


def test_modes_of_one_range():
    pixels = pictures()
    assert np.array_equal(prepared("none", pixels.astype("uint8")), pixels)
    assert np.allclose(prepared("0..1", pixels), pixels / 255, atol=1e-7)
    assert np.array_equal(prepared("-1..1", pixels.astype("uint8")), normalize(pixels.astype("uint8")))


def doubled(pixels):
    return pixels * 2


HALVED = functools.partial(ops.multiply, 0.5)


@pytest.mark.parametrize(
    "given",
    [*PREPROCESSING, layers.Rescaling(1 / 255, offset=1.0), layers.Normalization(mean=[1.0, 2, 3], variance=[4.0] * 3)],
)
def test_a_preprocessing_is_kept(given):
    made = preprocess_of(given, model_of())
    again = Preprocess.from_config(made.get_config())
    assert np.array_equal(ops.convert_to_numpy(made(pictures())), ops.convert_to_numpy(again(pictures())))


def test_a_function_is_kept_by_its_name_and_not_imported_from_a_file():
    made = preprocess_of(doubled, model_of())
    assert np.array_equal(ops.convert_to_numpy(made(pictures())), 2 * pictures())
    assert made.get_config()["mode"] == f"{__name__}:doubled"
    again = Preprocess.from_config({**made.get_config(), "mode": "no_such_package:function"})
    with pytest.raises(UserError, match="if you trust it, give preprocess='no_such_package:function'"):
        again(pictures())
    for nameless, why in ((lambda pixels: pixels, "<lambda>>"), (HALVED, "<functools:partial>")):
        with pytest.raises(UserError, match=f"{why} cannot be kept in a file"):
            preprocess_of(nameless, model_of()).get_config()
    assert preprocess_of(f"{__name__}:HALVED", model_of()).get_config()["mode"] == f"{__name__}:HALVED"
    by_name = preprocess_of("keras.applications.mobilenet_v2:preprocess_input", model_of())
    assert np.allclose(ops.convert_to_numpy(by_name(pictures())), prepared("-1..1", pictures()), atol=1e-6)


@pytest.mark.parametrize(
    ("given", "why"),
    [("tf", "give one of none, 0..1"), ("json:nothing", "there is no such function"), ("no_such_module:x", "no such"),
     ("json:__name__", "this is str, not a function"), (3, "not int")],
)  # fmt: skip
def test_what_is_no_preprocessing_is_refused(given, why):
    with pytest.raises(UserError, match=why):
        preprocess_of(given, model_of())


def own():
    inputs = keras.Input(SHAPE)
    classifier = Classifier(keras.Model(inputs, layers.GlobalAveragePooling2D()(inputs)), heads.Softmax(3))
    classifier.build((None, *SHAPE))
    return classifier


def test_without_a_word_the_pixels_stay_but_for_a_classifier_of_kood():
    assert (preprocess_of(None, model_of()).said, preprocess_of(None, own()).said) == ("none", "-1..1")


class Inside(keras.Model):
    """It rescales by an operation, where no layer tells."""

    def __init__(self):
        super().__init__()
        self.rest = [layers.ZeroPadding2D(2), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Dense(3)]

    def call(self, pixels):
        pixels = pixels / 127.5 - 1
        for layer in self.rest:
            pixels = layer(pixels)
        return pixels


def inside():
    model = Inside()
    model(np.zeros((1, *SHAPE), "float32"))
    return model


IMAGENET = {"mean": [0.485, 0.456, 0.406], "variance": [0.229**2, 0.224**2, 0.225**2]}
MNIST = {"mean": [0.1307] * 3, "variance": [0.0949] * 3}
FIRST = {
    "nothing": (model_of, None),
    "x / 255": (lambda: model_of(layers.Rescaling(1 / 255)), (0, 255)),
    "2 x / 255 - 1": (lambda: model_of(layers.Rescaling(1 / 127.5, offset=-1)), (0, 255)),
    "normalized": (lambda: model_of(layers.Rescaling(1 / 255), layers.Normalization(**IMAGENET)), (0, 255)),
    "normalized from 0..1": (lambda: model_of(layers.Normalization(**IMAGENET)), (0, 1)),
    "as MNIST is from 0..1": (lambda: model_of(layers.Normalization(**MNIST)), None),
    "as MNIST is": (lambda: model_of(layers.Rescaling(1 / 255), layers.Normalization(**MNIST)), (0, 255)),
    "0..1 to -1..1": (lambda: model_of(layers.Rescaling(2.0, offset=-1)), (0, 1)),
    "-1..1 to 0..1": (lambda: model_of(layers.Rescaling(0.5, offset=0.5)), (-1, 1)),
    "-1..1 to 0..255": (lambda: model_of(layers.Rescaling(127.5, offset=127.5)), (-1, 1)),
    "padded, augmented, rescaled": (
        lambda: model_of(layers.RandomFlip(), layers.ZeroPadding2D(3), layers.Rescaling(1 / 255)), (0, 255)
    ),
    "an operation": (inside, (0, 255)),
    "kood's": (own, (-1, 1)),
}  # fmt: skip


@pytest.mark.parametrize("kind", FIRST)
def test_the_first_layers_say_what_they_want(kind):
    make, expected = FIRST[kind]
    found = wanted(make())
    assert (found and (found.low, found.high)) == expected


def test_pixels_outside_of_what_is_wanted_are_told_of():
    from_files, own_range = FIRST["x / 255"][0](), own()
    for mode, told in [("0..1", "divided by 255 already"), ("-1..1", "brought to -1..1 already"),
                       ("torch", "normalized already"), ("caffe", "mean had been taken off already")]:  # fmt: skip
        said = check_range(from_files, prepared(mode, pictures()))
        assert "made for pixels of 0..255" in said and told in said and "\n" not in said
    assert "give pixels of 0..255" in check_range(from_files, prepared("0..1", pictures()))
    assert "as they are in files" in check_range(own_range, pictures())
    assert "preprocess=" in check_range(own_range, pictures())
    assert "uint8" not in check_range(own_range, (pictures() > 300).astype("uint8")) != ""
    broken = pictures()
    broken[1, 2, 3, 0] = np.nan
    assert "NaN" in check_range(from_files, broken)


BEYOND = {
    "16 bits": lambda x: 257 * x, "twice": lambda x: 2 * x, "a hundred times": lambda x: 100 * x,
    "negative": lambda x: x - 300, "one huge number": lambda x: 0 * x + 1e9,
}  # fmt: skip


@pytest.mark.parametrize("kind", BEYOND)
@pytest.mark.parametrize("first", ["x / 255", "-1..1 to 0..255", "kood's"])
def test_pixels_far_outside_are_told_of_whatever_the_model_wants(first, kind):
    model = FIRST[first][0]()
    said, range_of = check_range(model, BEYOND[kind](pictures())), {"x / 255": "0..255"}.get(first, "-1..1")
    assert f"made for pixels of {range_of}" in said and f"give pixels of {range_of}" in said and "\n" not in said
    assert ("as in files of 16 bits" in said) == (kind in ("16 bits", "a hundred times"))


def test_resizing_may_overshoot_and_twice_the_range_may_not():
    for first, mode in (("x / 255", "none"), ("kood's", "-1..1"), ("normalized from 0..1", "0..1")):
        model = FIRST[first][0]()
        over = ops.convert_to_numpy(ops.image.resize(prepared(mode, pictures()), (24, 24), "bicubic"))
        given = over[:, 8:16, 8:16]
        expected, span = wanted(model), (float(over.min()), float(over.max()))
        assert span[0] < expected.low and span[1] > expected.high and outside(expected, span) == ""
        assert check_range(model, given) == ""
        for wrong in ((2 * span[0], 2 * span[1]), (span[0] - (expected.high - expected.low), span[1])):
            assert f"give pixels of {expected.range}" in outside(expected, wrong)


@pytest.mark.parametrize("kind", ["16 bits", "a hundred times"])
def test_the_first_batch_normalization_tells_of_numbers_out_of_every_range(kind):
    given = BEYOND[kind](pictures())
    assert "give pixels of 0..255" in check_range(model_of(trained_on=pictures(64, seed=1)), given)
    brought = model_of(trained_on=prepared("0..1", pictures(64, seed=1)))
    assert re.search(r"give pixels of (0|-1)\.\.1\b", check_range(brought, given))
    assert check_range(model_of(trained_on=257 * pictures(64, seed=1)), 257 * pictures()) == ""


@pytest.mark.parametrize(
    ("known", "same", "other"),
    [
        ((0, 1), [(0, 0.1), (-0.1, 1.2)], [(-1, 1), (0, 255), (-2.1, 2.6), (0, 65535)]),
        ((0.02, 0.3), [(0, 1), (0.9, 1)], [(-1, 1), (0, 255)]),
        ((-0.9, 0.4), [(-1, 1), (0, 1), (-1.4, 1.3)], [(-2.1, 2.6), (0, 255), (-124, 151)]),
        ((-2.1, 2.3), [(-1.5, 2.64), (-3, 3)], [(0, 255), (-124, 151)]),
        (
            (3, 60),
            [(0, 255), (-30, 290), (100, 250)],
            [(0, 510), (0, 65535), (0, 1), (-1, 1), (-2.1, 2.6), (-300, -45)],
        ),
        ((-124, 130), [(-100, 151), (-1.0, 2.0)], [(0, 510), (0, 65535)]),
        ((20, 1500), [(0, 65535)], [(0, 1), (-1, 1), (-30000, 60000), (0, 1e9)]),
        ((-5, 5), [(-15, 12), (0, 1)], [(0, 255), (-16, 0)]),
        ((0, 1e9), [(0, 2.9e9)], [(0, 1), (0, 4e9)]),
    ],
)
def test_known_images_say_a_range(known, same, other):
    assert all(other_range(span, known) == "" for span in same)
    for span in other:
        assert "give pixels of the same range" in other_range(span, known)
    # Black and white drawings, in whole numbers.
    assert other_range((0, 1), known, whole=True) == ""


@pytest.mark.parametrize("count", [1, 8])
def test_right_pixels_pass_though_they_are_dark_or_flat(count):
    pixels = pictures(count)
    for model in (FIRST["x / 255"][0](), model_of(trained_on=pictures(64, seed=1))):
        for one in (pixels, np.round(pixels / 10), np.round(pixels / 250), 0 * pixels, np.round(120 + pixels / 100)):
            assert check_range(model, one) == ""
            assert check_range(model, one.astype("uint8")) == ""
    for mode in ("0..1", "-1..1", "torch"):
        model = model_of(trained_on=prepared(mode, pictures(64, seed=1)))
        for one in (pixels, np.round(pixels / 10), 0 * pixels, np.round(120 + pixels / 100)):
            assert check_range(model, prepared(mode, one)) == ""


def test_pixels_less_a_mean_are_told_of_by_their_scale_alone():
    less = prepared("caffe", pictures())
    assert check_range(model_of(trained_on=pictures(64, seed=1)), less) == ""
    brought = model_of(trained_on=prepared("-1..1", pictures(64, seed=1)))
    assert "mean had been taken off already" in check_range(brought, less)


@pytest.mark.parametrize("mode", ["0..1", "-1..1", "torch"])
@pytest.mark.parametrize("count", [1, 8])
def test_the_first_batch_normalization_tells_of_another_scale(mode, count):
    pixels = pictures(count)
    of_files = model_of(trained_on=pictures(64, seed=1))
    assert "pixels of 0..255" in check_range(of_files, prepared(mode, pixels))
    brought = model_of(trained_on=prepared(mode, pictures(64, seed=1)))
    for given in (pixels, pixels.astype("uint8")):
        said = check_range(brought, given)
        assert "times as much as in the model's training" in said
        assert (mode == "0..1" or count == 1) or f'give preprocess="{mode}"' in said


def test_a_batch_normalization_that_has_learnt_nothing_says_nothing():
    assert check_range(model_of(), prepared("0..1", pictures())) == ""


@pytest.mark.parametrize(
    ("shape", "why"),
    [((8, 8, 3), "images\\[None\\]"), ((2, 8, 8, 1), "convert them to RGB"), ((2, 3, 8, 8), "numpy.moveaxis"),
     ((2, 9, 8, 3), r"resize\(images, \(8, 8\)"), ((8, 8), "image\\[None, ..., None\\]")],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused_with_the_way_to_mend_them(shape, why):
    with pytest.raises(UserError, match=why) as raised:
        check_shape(SHAPE, shape)
    assert "(8, 8, 3)" in str(raised.value)
    assert str(shape if len(shape) != 4 else shape[1:]) in str(raised.value)


def test_a_model_of_any_size_takes_any():
    assert check_shape((None, None, 3), (2, 7, 9, 3)) is None
    assert check_shape(SHAPE, (0, *SHAPE)) is None
