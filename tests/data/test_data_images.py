"""Pixels: shapes, grey and colour, alpha, the ranges, and that it all works inside a graph."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kood.data.images import fit_images, normalize, quantize, to_shape
from kood.data.rules import WHITE, Framing, ground_colour

RNG = np.random.default_rng(0)


def random_images(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_fitting_images_pass_unchanged(channels):
    images = random_images(5, 7, 9, channels)
    shaped = to_shape(images, (7, 9, channels))
    assert shaped.dtype == tf.float32
    np.testing.assert_array_equal(shaped.numpy(), images)
    assert fit_images(images, (7, 9, channels)) is images


def test_colour_becomes_grey_by_its_luma():
    images = random_images(4, 6, 6, 3)
    expected = np.rint(images.astype(np.float64) @ [0.2989, 0.5870, 0.1140])
    # Within one level: float32 sums may fall on the other side of a half.
    assert np.abs(fit_images(images, (6, 6, 1))[..., 0] - expected).max() <= 1
    assert (fit_images(np.full((1, 6, 6, 3), 255, np.uint8), (6, 6, 1)) == 255).all()


def test_grey_becomes_colour_by_repeating():
    images = random_images(4, 6, 6, 1)
    np.testing.assert_array_equal(fit_images(images, (6, 6, 3)), np.repeat(images, 3, axis=-1))


@pytest.mark.parametrize("ground", [(255, 255, 255), (0, 0, 0), (128, 128, 128), (9, 200, 77)])
def test_alpha_is_composited_over_the_ground(ground):
    images = random_images(4, 6, 6, 4)
    share = images[..., 3:] / 255.0
    exact = images[..., :3].astype(np.float64) * share + np.array(ground) * (1.0 - share)
    assert np.abs(fit_images(images, (6, 6, 3), Framing(ground)) - exact).max() <= 0.5001
    images[..., 3] = 0
    assert (fit_images(images, (6, 6, 3), Framing(ground)) == ground).all()
    grey = np.array(ground) @ [0.2989, 0.5870, 0.1140]
    assert np.abs(fit_images(images, (6, 6, 1), Framing(ground)) - grey).max() <= 1
    images[..., 3] = 255
    np.testing.assert_array_equal(fit_images(images, (6, 6, 3), Framing(ground)), images[..., :3])


def test_the_ground_is_white_where_nothing_is_said_and_seen_before_resizing():
    black = np.zeros((1, 4, 4, 4), np.uint8)
    assert (fit_images(black, (2, 2, 3)) == 255).all() and ground_colour("white") == WHITE == (255, 255, 255)
    assert (ground_colour("black"), ground_colour("grey")) == ((0, 0, 0), (128, 128, 128))
    assert ground_colour([1, 2, 3]) == (1, 2, 3)
    # Colours that nobody sees must not bleed into those that one does.
    hidden = np.zeros((1, 4, 4, 4), np.uint8)
    hidden[:, :, 2:] = (255, 0, 0, 255)
    hidden[:, :, :2, 1] = 255
    assert (fit_images(hidden, (2, 2, 3), Framing((0, 0, 0)))[..., 1] == 0).all()


@pytest.mark.parametrize("size", [(8, 8), (50, 30), (64, 64)])
def test_resizing_agrees_with_pillow(size):
    images = random_images(3, 64, 48, 3)
    ours = fit_images(images, (*size, 3)).astype(int)
    theirs = np.stack([np.asarray(Image.fromarray(one).resize(size[::-1], Image.BILINEAR)) for one in images])
    assert np.abs(ours - theirs).max() <= 2


def test_antialiasing_averages_stripes():
    stripes = np.zeros((1, 64, 64, 1), np.uint8)
    stripes[:, :, ::2] = 255
    shrunk = fit_images(stripes, (8, 8, 1))
    assert abs(shrunk[:, :, 1:-1].astype(int) - 128).max() <= 2


def test_one_pixel_and_large_images():
    assert fit_images(np.full((2, 1, 1, 1), 9, np.uint8), (8, 8, 3)).tolist() == np.full((2, 8, 8, 3), 9).tolist()
    assert fit_images(random_images(3, 1500, 2100, 3), (4, 4, 3)).shape == (3, 4, 4, 3)
    assert fit_images(np.empty((0, 5, 5, 3), np.uint8), (4, 4, 3)).shape == (0, 4, 4, 3)


def test_floats_are_rounded_and_clipped():
    images = np.array([-3.0, 0.4, 0.6, 254.7, 300.0]).reshape(5, 1, 1, 1)
    assert to_shape(images, (1, 1, 1)).numpy().ravel().tolist() == [0, 0, 1, 255, 255]
    assert fit_images(images, (1, 1, 1)).ravel().tolist() == [0, 0, 1, 255, 255]


def test_works_in_a_graph_of_unknown_sizes():
    graph = tf.function(
        lambda images: to_shape(images, (8, 8, 3)), input_signature=[tf.TensorSpec((None, None, None, 1), tf.uint8)]
    )
    for side in (8, 21):
        images = random_images(2, side, side, 1)
        result = graph(images)
        np.testing.assert_array_equal(result.numpy(), fit_images(images, (8, 8, 3)))
    assert graph.get_concrete_function().output_shapes.as_list() == [None, 8, 8, 3]


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize(("side", "channels"), [((31, 47), 4), ((12, 9), 4), ((9, 12), 3), ((60, 5), 1), ((1, 1), 4)])
def test_arrays_are_made_as_the_operations_make_them_one_by_one(side, channels, resize, dtype):
    # Compiled, and by operations that are not: a quotient would differ in the last place.
    images = np.random.default_rng(0).uniform(0, 255, (3, *side, channels)).astype(dtype)
    for wanted in ((12, 9, 3), (12, 9, 1)):
        framing = Framing((9, 200, 77), resize, antialias=channels != 3)
        np.testing.assert_array_equal(fit_images(images, wanted, framing), to_shape(images, wanted, framing).numpy())


@pytest.mark.parametrize(("found", "wanted"), [(2, 3), (5, 1), (3, 2), (1, 4)])
def test_strange_channels_are_refused(found, wanted):
    with pytest.raises(ValueError, match="channels"):
        to_shape(np.zeros((1, 4, 4, found), np.uint8), (4, 4, wanted))


def test_chunks_do_not_show(monkeypatch):
    images = random_images(11, 9, 9, 3)
    whole = fit_images(images, (5, 5, 1))
    monkeypatch.setattr("kood.data.large._BLOCK", 3000)
    np.testing.assert_array_equal(fit_images(images, (5, 5, 1)), whole)


def test_range_there_and_back_is_exact():
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    inside = normalize(every)
    assert inside.dtype == np.float32 and inside.min() == -1.0 and inside.max() == 1.0
    # Compiled too: optimisers turn a quotient into a product by the inverse, which differs in the last place.
    for of in (normalize, tf.function(normalize), tf.function(normalize, jit_compile=True)):
        np.testing.assert_array_equal(inside, of(tf.constant(every)).numpy())
    np.testing.assert_allclose(inside, every.astype(np.float64) / 127.5 - 1.0, atol=1e-7)
    np.testing.assert_array_equal(quantize(inside), every)
    assert quantize(np.array([-5.0, 5.0])).tolist() == [0, 255]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantize(np.array([0.0, bad]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        fit_images(np.full((1, 2, 2, 1), bad), (4, 4, 1))
