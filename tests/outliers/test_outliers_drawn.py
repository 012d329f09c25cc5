"""What a source draws is looked at before it is kept."""

import importlib
import re
import sys

import numpy as np
import pytest

from kood.data.stored import read_images
from kood.errors import UserError
from kood.recipe import load
from tests.conftest import Cell

SOURCES = '''
"""Sources that give other rows than they are asked for."""

import keras
import numpy as np

from kood.outliers import FeatureSource, OutlierSource, Rows


def images(rng, count, shape):
    return rng.integers(0, 256, (count, *shape), np.uint8)


class Rain(OutlierSource):
    """Rows as they are asked for, spoilt in one way.

    Attributes:
        spoilt: In which.
        file: Images of this file in place of its own.
    """

    spoilt: str = "in no way"
    file: str = ""

    def draw(self, count, rng, shape, train):
        pixels, classes = images(rng, count, shape), len(train.class_names)
        even = np.full((count, classes), 1.0 / classes, np.float32)
        first = np.zeros_like(even)
        first[3, 0] = 1.0
        match self.spoilt:
            case "floats":
                return Rows(pixels / 255.0, count)
            case "size":
                return Rows(images(rng, count, (12, 12, 1)), count)
            case "bytes":
                return Rows(images(rng, count, (4, 16, 1)), count)
            case "one image":
                return Rows(list(pixels), count)
            case "second block":
                return Rows(iter([pixels[:8], pixels[8:].astype("float32")]), count)
            case "fewer":
                return Rows(pixels[:8], count)
            case "more":
                return Rows(pixels, count - 1)
            case "few":
                return Rows(pixels[:3], 3)
            case "array":
                return pixels
            case "sum":
                return Rows(pixels, count, even + first)
            case "negative":
                return Rows(pixels, count, even - first + np.roll(first, 1, axis=1))
            case "nan":
                return Rows(pixels, count, np.where(first > 0, np.nan, even))
            case "classes":
                return Rows(pixels, count, np.concatenate([even, 0 * even], axis=1))
            case "shares":
                return Rows(pixels, count, even[1:])
            case "made_of":
                return Rows(pixels, count, made_of=np.full((count, 2), classes))
            case "whole":
                told = {"sha256": "0", "images": 1, "greys": 256}
                return Rows(pixels, count, even, told, made_of=np.zeros((count, 2), int))
        if self.file:
            pixels[5] = np.load(self.file)[7]
        return Rows(pixels, count)


class Late(Rain):
    """Takes its time, and ends before it has all."""

    def draw(self, count, rng, shape, over):
        return Rows(images(rng, 3, shape), 3)


class Shifted(FeatureSource):
    """Features, spoilt in one way.

    Attributes:
        spoilt: In which.
    """

    spoilt: str = "in no way"

    def layer(self, num_classes, rows, seed):
        from kood.virtual import VirtualOutliers

        class Layer(VirtualOutliers):
            def draw(layer):
                drawn = keras.random.normal((rows, layer.features.shape[-1]), seed=layer.seed_generator)
                if self.spoilt == "width":
                    return drawn[:, 1:]
                if self.spoilt == "rank":
                    return drawn[0]
                if self.spoilt == "type":
                    return keras.ops.cast(drawn, "int32")
                return drawn / 0.0 if self.spoilt == "infinite" else drawn

        return Layer(num_classes, rows, seed=seed)
'''

RECIPE = """
name = "drawn"
[data]
image_shape = [8, 8, 1]
[data.id]
source = "digits"
classes = [0, 1, 2, 3]
per_class = 30
[data.near.others]
source = "digits"
classes = [8]
count = 60
[data.far.blobs]
source = "blobs"
count = 20
[data.validation_ood.nines]
source = "digits"
classes = [9]
count = 60
[outliers]
use = ["mine_of_rows:Rain"]
count = 24
"""


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """drawn("key=value", ...) draws outliers; its attribute `cell` is of the last call."""
    (tmp_path / "mine_of_rows.py").write_text(SOURCES)
    (tmp_path / "drawn.toml").write_text(RECIPE)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()

    def draw(*settings, role="rain"):
        draw.cell = Cell(load(tmp_path / "drawn.toml", settings), tmp_path / "saved")
        return draw.cell.make(role)

    yield draw
    sys.modules.pop("mine_of_rows", None)


@pytest.mark.keras
@pytest.mark.parametrize(
    ("spoilt", "gave"),
    [
        ("floats", "images float64 (24, 8, 8, 1); uint8 (n, 8, 8, 1) of 0..255 are asked for"),
        ("size", "images uint8 (24, 12, 12, 1); uint8 (n, 8, 8, 1) of 0..255 are asked for"),
        ("bytes", "images uint8 (24, 4, 16, 1); uint8 (n, 8, 8, 1) of 0..255 are asked for"),
        ("one image", "images uint8 (8, 8, 1); uint8 (n, 8, 8, 1) of 0..255 are asked for"),
        ("second block", "images float32 (16, 8, 8, 1); uint8 (n, 8, 8, 1) of 0..255 are asked for"),
        ("fewer", "8 images, and says that they are 24"),
        ("more", "23 images; 24 are asked for"),
        ("few", "3 images; 24 are asked for"),
        ("array", "ndarray and no kood.outliers.Rows"),
        ("sum", "shares that are not at least 0 and of the sum 1, of 1 of 24 images, such as [1.25 0.25 0.25 0.25]"),
        ("negative", "shares that are not at least 0 and of the sum 1, of 1 of 24 images, such as [-0.75  1.25  0."),
        ("nan", "shares that are not at least 0 and of the sum 1, of 1 of 24 images, such as [ nan 0.25 0.25 0.25]"),
        ("classes", "shares float32 (24, 8); floats (24, 4) are asked for"),
        ("shares", "shares float32 (23, 4); floats (24, 4) are asked for"),
        ("made_of", "made_of int64 (24, 2); numbers of 4 classes are asked for, a row for each of 24 images"),
    ],
)
def test_rows_that_are_not_what_was_asked_for_are_refused_and_not_kept(drawn, tmp_path, spoilt, gave):
    with pytest.raises(UserError, match=re.escape(f"outliers.rain: the source 'mine_of_rows:Rain' gave {gave}")):
        drawn(f"outliers.rain.spoilt='{spoilt}'")
    assert not [*tmp_path.rglob("outliers.images.npy"), *tmp_path.rglob("mixtures.npy")]


@pytest.mark.keras
def test_rows_that_are_what_was_asked_for_are_kept(drawn):
    result = drawn("outliers.rain.spoilt='whole'")
    assert len(read_images(result.folder, "outliers", result.facts)) == 24
    # What a source tells hides nothing of what was written, by which classifiers know other outliers.
    assert len(result.facts["sha256"]) == 64 and result.facts["images"] == 24 and result.facts["greys"] == 256
    # When the time is up, what there is will do.
    late = drawn("outliers.use=['mine_of_rows:Late']", role="late")
    assert late.facts["images"] == 3


@pytest.mark.keras
@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("data.near.others", "the detector would be tested on images that it was trained on"),
        ("data.far.blobs", "the detector would be tested on images that it was trained on"),
        ("data.validation_ood.nines", "choices would be made on images that the classifier was trained on"),
    ],
)
def test_images_of_the_sets_that_are_tested_on_are_refused(drawn, tmp_path, key, reason):
    drawn()
    np.save(tmp_path / "theirs.npy", drawn.cell.images(key).images)
    kept = {*tmp_path.rglob("outliers.images.npy")}
    said = f"outliers.rain: 1 of its 24 different images are in {key} as well, so {reason}"
    with pytest.raises(UserError, match=re.escape(said)):
        drawn(f"outliers.rain.file='{tmp_path / 'theirs.npy'}'")
    assert {*tmp_path.rglob("outliers.images.npy")} == kept


@pytest.mark.keras
def test_outliers_that_are_there_are_held_against_sets_that_came_later(drawn, tmp_path):
    first = drawn()
    images = np.asarray(read_images(first.folder, "outliers", first.facts).images)
    np.savez(tmp_path / "later.npz", images=images)
    with pytest.raises(UserError, match="24 of its 24 different images are in data.far.later as well"):
        drawn(f"data.far.later={{source='npz',path='{tmp_path / 'later.npz'}'}}")


@pytest.mark.keras
@pytest.mark.parametrize(
    ("spoilt", "gave"),
    [
        ("width", "features float32 (64, 63); floats (n, 64) are asked for"),
        ("rank", "features float32 (64,); floats (n, 64) are asked for"),
        ("type", "features int32 (64, 64); floats (n, 64) are asked for"),
        ("infinite", "features that are not finite"),
        ("in no way", ""),
    ],
)
def test_features_that_no_classifier_has_are_refused_when_the_training_is_built(drawn, tmp_path, spoilt, gave):
    import keras

    from kood.pipeline.build import build_classifier

    settings = ["outliers.use=['mine_of_rows:Shifted']", f"outliers.shifted.spoilt='{spoilt}'"]
    recipe = load(tmp_path / "drawn.toml", settings)
    if gave:
        said = f"outliers.shifted: the source 'mine_of_rows:Shifted' gave {gave}"
        with pytest.raises(UserError, match=re.escape(said)):
            build_classifier(recipe, 4, seed=7)
        return
    # Looking at some draws none of those of the training.
    state = build_classifier(recipe, 4, seed=7).virtual.seed_generator.state
    alike = keras.random.SeedGenerator(7).state
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(state), keras.ops.convert_to_numpy(alike))
