"""Images of other proportions, stretched, cropped and padded: the recipe's key, the sources, and the pixels."""

import itertools
from fractions import Fraction
from math import floor

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kood.data import load_id, load_ood
from kood.data.images import fit_images, to_shape
from kood.data.rules import Framing, inscribed
from kood.recipe.data_sections import Data
from tests.picture_files import decode_images, encoded

RESIZES = ("stretch", "crop", "pad")
GROUND = (9, 200, 77)
LUMA = round(0.2989 * 9 + 0.5870 * 200 + 0.1140 * 77)
SIZES = [(1, 1), (1, 7), (1, 500), (500, 1), (3, 500), (31, 17), (64, 48), (48, 64), (24, 40), (24, 9), (10, 20)]
TARGETS = [(24, 20), (7, 7), (1, 5), (64, 224)]


def smooth(height, width, channels=3):
    """Few frequencies, so that resizers agree on it."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    planes = [127 + 120 * np.sin(3 * rows + place) * np.cos(2 * columns - place) for place in range(channels)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def half_up(number):
    return max(1, floor(number + Fraction(1, 2)))


def resized(image, size):
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def reference(image, size, resize, ground):
    """By the definition, with fractions and Pillow."""
    (height, width), (high, wide) = image.shape[:2], size
    if resize == "stretch" or (height, width) == size:
        return resized(image, size)
    scales = Fraction(high, height), Fraction(wide, width)
    if resize == "crop":
        scale = max(scales)
        window = half_up(high / scale), half_up(wide / scale)
        above, left = (height - window[0]) // 2, (width - window[1]) // 2
        return resized(np.ascontiguousarray(image[above : above + window[0], left : left + window[1]]), size)
    scale = min(scales)
    inner = half_up(height * scale), half_up(width * scale)
    above, left = (high - inner[0]) // 2, (wide - inner[1]) // 2
    whole = np.broadcast_to(np.uint8(ground), (high, wide, 3)).copy()
    whole[above : above + inner[0], left : left + inner[1]] = resized(image, inner)
    return whole


@pytest.mark.parametrize("resize", RESIZES)
def test_it_is_what_the_definition_says(resize):
    for size, target in itertools.product(SIZES, TARGETS):
        image = smooth(*size)
        ours = fit_images(image[None], (*target, 3), Framing(GROUND, resize))[0].astype(int)
        assert np.abs(ours - reference(image, target, resize, GROUND)).max() <= 2, (size, target)


def four_pixels(image, size):
    """Bilinear interpolation without antialiasing, written out: the centres of pixels lie at halves."""
    rows, columns = ((np.arange(new) + 0.5) * old / new - 0.5 for old, new in zip(image.shape[:2], size, strict=True))
    made = np.zeros((*size, image.shape[2]))
    for below, right in itertools.product((0, 1), repeat=2):
        row, column = np.floor(rows) + below, np.floor(columns) + right
        share = (1 - np.abs(rows - row))[:, None] * (1 - np.abs(columns - column))[None]
        there = np.ix_(row.clip(0, image.shape[0] - 1).astype(int), column.clip(0, image.shape[1] - 1).astype(int))
        made += share[..., None] * image[there]
    return made


def test_without_antialiasing_four_pixels_make_one():
    draw = np.random.default_rng(0)
    for size, target in itertools.product(SIZES, TARGETS):
        image = draw.integers(0, 256, (*size, 3), dtype=np.uint8)
        ours = fit_images(image[None], (*target, 3), Framing(GROUND, antialias=False))[0]
        wanted = image if size == target else four_pixels(image.astype("float64"), target)
        # Half a level of rounding, and what float32 leaves of a place among 500.
        assert np.abs(ours - wanted).max() <= 0.52, (size, target)
        smaller = size[0] > 2 * target[0] and size[1] > 2 * target[1]
        plain = fit_images(image[None], (*target, 3), Framing(GROUND))[0].astype(int)
        assert not smaller or np.abs(plain - ours).mean() > 10


def test_what_is_inscribed_fits_and_touches():
    draw = np.random.default_rng(0)
    for height, width, high, wide in draw.integers(1, 3000, (3000, 4)).tolist():
        found = inscribed((height, width), (high, wide))
        scale = max(Fraction(high, height), Fraction(wide, width))
        assert found == (half_up(high / scale), half_up(wide / scale))
        assert 1 <= found[0] <= height and 1 <= found[1] <= width and (found[0] == height or found[1] == width)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_the_shape_pass_bit_for_bit(resize, channels):
    images = np.random.default_rng(0).integers(0, 256, (3, 7, 9, channels), dtype=np.uint8)
    assert fit_images(images, (7, 9, channels), Framing(GROUND, resize)) is images
    graph = tf.function(
        lambda found: to_shape(found, (7, 9, channels), Framing(GROUND, resize)),
        input_signature=[tf.TensorSpec((None, None, None, channels), tf.uint8)],
    )
    np.testing.assert_array_equal(graph(images), images)
    assert graph.get_concrete_function().output_shapes.as_list() == [None, 7, 9, channels]


@pytest.mark.parametrize("resize", RESIZES)
def test_a_graph_of_unknown_sizes_gives_the_same_bits(resize):
    for found, wanted in itertools.product((1, 3, 4), (1, 3)):
        shape = (24, 20, wanted)
        graph = tf.function(
            lambda images, shape=shape: to_shape(images, shape, Framing(GROUND, resize)),
            input_signature=[tf.TensorSpec((None, None, None, found), tf.uint8)],
        )
        for size in SIZES:
            images = np.random.default_rng(1).integers(0, 256, (2, *size, found), dtype=np.uint8)
            np.testing.assert_array_equal(graph(images), fit_images(images, shape, Framing(GROUND, resize)))


def test_the_ground_around_is_the_one_under_transparency():
    clear, opaque = (np.full((1, 4, 16, 4), value, np.uint8) for value in (0, 255))
    for channels, ground in ((3, GROUND), (1, LUMA)):
        padded = fit_images(clear, (8, 8, channels), Framing(GROUND, "pad"))
        assert (padded == ground).all()
        padded = fit_images(opaque, (8, 8, channels), Framing(GROUND, "pad"))
        assert (padded[:, 3:5] >= 254).all() and (padded[:, [0, 1, 2, 5, 6, 7]] == ground).all()
    # A grey file of a colour model stands on the colour.
    padded = fit_images(np.full((1, 16, 3, 1), 7, np.uint8), (8, 8, 3), Framing(GROUND, "pad"))[0]
    assert (padded[:, 3:5] == 7).all() and (padded[:, [0, 1, 2, 5, 6, 7]] == GROUND).all()


def test_only_the_middle_counts_where_it_is_cropped():
    image = smooth(20, 51)
    other = image.copy()
    other[:, :15], other[:, 35:] = 0, 255
    shape, crop = (10, 10, 3), Framing(GROUND, "crop")
    np.testing.assert_array_equal(fit_images(image[None], shape, crop), fit_images(other[None], shape, crop))
    assert (fit_images(image[None], shape) != fit_images(other[None], shape)).any()


@pytest.mark.keras
@pytest.mark.parametrize("resize", RESIZES)
def test_every_source_brings_its_images_so(resize, tmp_path, npz_file, source, id_data):
    images = np.stack([smooth(12, 30)[:, ::-1] // (1 + row) for row in range(8)])
    labels, lines, framing = np.arange(8) % 2, [], Framing(GROUND, resize)
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "files" / f"c{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "files" / f"c{label}" / f"{row}.png")
        lines.append(f"c{label}/{row}.png")
    (tmp_path / "list.txt").write_text("".join(f"{line} {line[1]}\n" for line in lines))
    (tmp_path / "table.csv").write_text("".join(f"{line},{line[:2]}\n" for line in lines))
    root, shape = str(tmp_path / "files"), (16, 20, 3)
    expected = {image.tobytes() for image in fit_images(images, shape, framing)}
    for name, options in {
        "folder": {"path": root},
        "image_list": {"path": str(tmp_path / "list.txt"), "root": root},
        "table": {"path": str(tmp_path / "table.csv"), "root": root},
        "npz": {"path": npz_file(images=images, labels=labels)},
    }.items():
        found = load_ood(source(name, **options), shape, seed=0, key="data.near.x", framing=framing)
        assert {image.tobytes() for image in found.images} == expected, name
        data = id_data(name, image_shape=shape, **options)
        data.ground, data.resize = GROUND, resize
        splits = load_id(data)
        assert {image.tobytes() for image in splits.test.images} <= expected, name
    digits = load_ood(source("digits"), (8, 16, 1), seed=0, key="data.far.x", framing=framing)
    stretched = load_ood(source("digits"), (8, 16, 1), seed=0, key="data.far.x")
    assert np.array_equal(digits.images, stretched.images) == (resize == "stretch")
    assert resize != "pad" or (digits.images[:, :, [0, 3, 12, 15]] == LUMA).all()


def test_a_mixture_of_sizes_is_as_each_alone():
    files = [encoded(Image.fromarray(smooth(*size))) for size in SIZES]
    for resize in RESIZES:
        together = decode_images(files, (24, 20, 3), Framing(GROUND, resize))
        for image, file in zip(together, files, strict=True):
            np.testing.assert_array_equal(image, decode_images([file], (24, 20, 3), Framing(GROUND, resize))[0])


def test_a_recipe_stretches_where_it_says_nothing():
    plain = {"image_shape": [4, 4, 3], "id": {"source": "digits"}}
    assert Framing.of(Data.model_validate(plain)) == Framing((255, 255, 255), "stretch")
    for resize in RESIZES:
        assert Framing.of(Data.model_validate(plain | {"resize": resize})).resize == resize
    assert not Framing.of(Data.model_validate(plain | {"antialias": False})).antialias
