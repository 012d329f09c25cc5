"""Batches without pixels: what they name is, bit for bit, what batches with pixels hold."""

import numpy as np
import pytest
import tensorflow as tf

from kood.data import ImageSet
from kood.data.batches import labelled_batches, training_batches
from kood.data.resident import only_move, pixels_of

pytestmark = pytest.mark.usefixtures("as_written")

CLASSES, SIDES = 3, (12, 8)
RNG = np.random.default_rng(0)


def images(count, labelled=True):
    pixels = RNG.integers(0, 256, (count, *SIDES, 3)).astype("uint8")
    return ImageSet(pixels, np.arange(count) % CLASSES if labelled else None, tuple("abc") if labelled else ())


ID, MORE, OUTLIERS = images(23), images(7), images(11, labelled=False)


def looked_up(pixels, element):
    """The images that an element names, by NumPy."""
    found = pixels[element["rows"]]
    if "down" in element:
        found = np.take_along_axis(found, element["down"][:, :, None, None].astype(int), axis=1)
        found = np.take_along_axis(found, element["across"][:, None, :, None].astype(int), axis=2)
    return found


def same(with_pixels, without, pixels):
    """Whether two data sets are of the same batches."""
    pairs = list(zip(with_pixels.as_numpy_iterator(), without.as_numpy_iterator(), strict=True))
    for one, other in pairs:
        assert "image" not in other and other["rows"].dtype == np.int32
        # `normalize` can be undone exactly.
        np.testing.assert_array_equal(np.rint((one["image"] + 1) * 127.5).astype("uint8"), looked_up(pixels, other))
        for name in one.keys() - {"image"}:
            assert one[name].tobytes() == other[name].tobytes()
    return len(pairs)


AUGMENT = [(), ("flip",), ("crop",), ("flip", "crop"), ("Crop", "flip", "crop")]
LABELLED, EXPOSED = [None, 0, 3], [(0, False), (5, False), (5, True)]
#: Any two of the three settings meet, and each of them with both ways of counting the steps.
PAIRWISE = [
    (augment, labelled, *EXPOSED[(row + column) % 3], (None, 2)[(row + column) % 2])
    for row, augment in enumerate(AUGMENT) for column, labelled in enumerate(LABELLED)
]  # fmt: skip


@pytest.mark.parametrize(("augment", "labelled", "outliers", "targets", "steps"), PAIRWISE)
def test_training_batches_without_pixels_are_the_same_batches(augment, labelled, outliers, targets, steps):
    settings = {
        "batch_size": 6, "outliers_per_batch": outliers, "epochs": 3, "first_epoch": 1,
        "seed": 5, "augment": augment, "labelled": None if labelled is None else MORE,
        "labelled_per_batch": labelled or 0,
        "outlier_targets": RNG.random((11, CLASSES)).astype("float32") if targets else None,
    }  # fmt: skip
    of = OUTLIERS if outliers else None
    plain, length = training_batches(ID, of, **settings, steps=steps)
    without, its = training_batches(ID, of, **settings, steps=steps, resident=True)
    assert length == its
    assert same(plain, without, pixels_of(ID, of, settings["labelled"])) == 2 * length


@pytest.mark.parametrize("augment", [(), ("flip", "crop")])
@pytest.mark.parametrize("first", [0, 5])
def test_labelled_batches_without_pixels_are_the_same_batches(augment, first):
    settings = {"batch_size": 10, "steps": 9, "seed": 2, "augment": augment}
    plain, without = (labelled_batches(ID, **settings, first_step=first, resident=which) for which in (False, True))
    assert same(plain, without, pixels_of(ID)) == 9 - first


def test_shapes_are_static():
    without, _ = training_batches(
        ID, OUTLIERS, batch_size=6, outliers_per_batch=5, epochs=1, seed=0, augment=("crop",),
        resident=True,
    )  # fmt: skip
    assert without.element_spec == {
        "rows": tf.TensorSpec((11,), tf.int32), "down": tf.TensorSpec((11, 12), tf.int16),
        "across": tf.TensorSpec((11, 8), tf.int16), "label": tf.TensorSpec((11, CLASSES), tf.float32),
        "is_outlier": tf.TensorSpec((11,), tf.float32),
    }  # fmt: skip


def test_what_changes_pixels_needs_them():
    assert only_move(()) and only_move(("Flip", "crop")) and not only_move(("flip", "blur"))
