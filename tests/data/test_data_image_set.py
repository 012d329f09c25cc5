"""The image set itself, and choosing classes in it."""

import numpy as np
import pytest

from kood.data import ImageSet
from kood.data.classes import class_indices, select_classes
from kood.errors import UserError

PIXELS = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2, 1)
LABELS = np.array([0, 1, 2, 0, 1, 2], np.int64)
NAMES = ("cat", "dog", "Frog")


def test_hash_sees_every_part():
    whole = ImageSet(PIXELS, LABELS, NAMES)
    others = [
        ImageSet(PIXELS.reshape(6, 4, 1, 1), LABELS, NAMES),
        ImageSet(PIXELS),
        ImageSet(PIXELS, LABELS[::-1].copy(), NAMES),
        ImageSet(PIXELS, LABELS, ("cat", "dog", "frog")),
        ImageSet(PIXELS ^ np.uint8(1), LABELS, NAMES),
        ImageSet(PIXELS[:5], LABELS[:5], NAMES),
    ]
    assert len({one.sha256() for one in [whole, *others]}) == len(others) + 1
    again = ImageSet(np.asfortranarray(PIXELS), LABELS.copy(), NAMES)
    assert again.sha256() == whole.sha256()
    assert len(ImageSet(PIXELS[:0], LABELS[:0], NAMES).sha256()) == 64


def test_take_keeps_the_order_asked_for():
    taken = ImageSet(PIXELS, LABELS, NAMES).take([4, 0])
    np.testing.assert_array_equal(taken.images, PIXELS[[4, 0]])
    assert taken.labels.tolist() == [1, 0] and taken.class_names == NAMES
    assert len(ImageSet(PIXELS).take([])) == 0


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (PIXELS.astype(np.float32), LABELS),
        (PIXELS[..., 0], LABELS),
        (PIXELS, LABELS[:5]),
        (PIXELS, LABELS.astype(np.int32)),
        (PIXELS, LABELS + 1),
        (PIXELS, LABELS - 1),
    ],
)
def test_wrong_arrays_are_refused(images, labels):
    with pytest.raises(ValueError, match="must"):
        ImageSet(images, labels, NAMES)


def test_missing_labels_are_said():
    with pytest.raises(ValueError, match="no labels"):
        _ = ImageSet(PIXELS).known_labels


def test_classes_by_name_and_number_are_renumbered_in_the_order_asked():
    chosen = select_classes(ImageSet(PIXELS, LABELS, NAMES), ["Frog", 0])
    assert chosen.class_names == ("Frog", "cat")
    assert chosen.labels.tolist() == [1, 0, 1, 0]
    np.testing.assert_array_equal(chosen.images, PIXELS[[0, 2, 3, 5]])


@pytest.mark.parametrize(
    ("classes", "names", "message"),
    [
        (["frgo"], NAMES, "did you mean 'Frog'"),
        (["zzzzz"], NAMES, "it has 'cat', 'dog', 'Frog'"),
        (["zzzzz"], [f"n{k}" for k in range(40)], "and 28 more"),
        ([3], NAMES, "numbered 0 to 2"),
        ([-1], NAMES, "numbered 0 to 2"),
        (["cat", 0], NAMES, "named twice"),
        ([], NAMES, "empty"),
        ([0], (), "no classes"),
        ([1], ["1", "10", "2"], "write the name"),
    ],
)
def test_wrong_classes_are_explained(classes, names, message):
    with pytest.raises(UserError, match=message):
        class_indices(classes, names)


def test_a_number_that_is_also_its_name_is_clear():
    assert class_indices([1, "2"], ["0", "1", "2"]) == [1, 2]


def test_classes_need_labels():
    with pytest.raises(UserError, match="no labels"):
        select_classes(ImageSet(PIXELS), [0])


@pytest.mark.parametrize("hashes", [np.zeros(3, np.uint64), np.zeros(4, np.int64)])
def test_hashes_are_one_for_each_image(hashes):
    with pytest.raises(ValueError, match=r"hashes must be uint64 \(4,\)"):
        ImageSet(np.zeros((4, 2, 2, 1), np.uint8), hashes=hashes)
