"""Batches: what is in them, and that a resumed run sees what an uninterrupted one would have."""

import importlib

import numpy as np
import pytest
import tensorflow as tf

from kood.data import ImageSet
from kood.data.batches import image_batches, labelled_batches, training_batches
from kood.errors import UserError

pytestmark = pytest.mark.usefixtures("as_written")

CLASSES = 5


def id_images(count=47, side=4):
    """Image i is i all over and of class i mod 5."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1), (count, side, side, 3)).copy()
    return ImageSet(images, np.arange(count, dtype=np.int64) % CLASSES, tuple("abcde"))


def outlier_images(count=13, side=4):
    """Outlier i is 200 + i all over."""
    images = np.broadcast_to(200 + np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1), (count, side, side, 3))
    return ImageSet(images.copy())


def batches(id_set=None, outliers=None, **changed):
    settings = {"batch_size": 10, "outliers_per_batch": 6, "epochs": 3, "seed": 7} | changed
    id_set = id_images() if id_set is None else id_set
    return training_batches(id_set, outlier_images() if outliers is None else outliers, **settings)


def numbers(images):
    return np.rint((np.asarray(images)[:, 0, 0, 0] + 1) * 127.5).astype(int)


def everything(dataset):
    return [{name: value.numpy() for name, value in element.items()} for element in dataset]


def same(first, second):
    return len(first) == len(second) and all(
        one[name].tobytes() == other[name].tobytes() for one, other in zip(first, second, strict=True) for name in one
    )


def test_every_row_says_what_it_is():
    dataset, steps = batches()
    assert steps == 4 and len(dataset) == 12
    for element in everything(dataset):
        assert {name: (value.shape, value.dtype.name) for name, value in element.items()} == {
            "image": ((16, 4, 4, 3), "float32"),
            "label": ((16, CLASSES), "float32"),
            "is_outlier": ((16,), "float32"),
        }
        assert np.abs(element["image"]).max() <= 1.0
        found = numbers(element["image"])
        np.testing.assert_array_equal(element["is_outlier"], found >= 200)
        expected = np.eye(CLASSES)[found % CLASSES] * (found < 200)[:, None]
        np.testing.assert_array_equal(element["label"], expected)
        assert element["is_outlier"].sum() == 6
        assert len(set(found[found < 200])) == 10


def test_outliers_bring_their_targets():
    targets = np.random.default_rng(0).dirichlet(np.ones(CLASSES), size=13).astype("float32")
    targets[4] = 0.0
    plain, _ = batches()
    dataset, _ = batches(outlier_targets=targets)
    for element, other in zip(everything(dataset), everything(plain), strict=True):
        np.testing.assert_array_equal(element["image"], other["image"])
        found, outlier = numbers(element["image"]), element["is_outlier"] == 1
        np.testing.assert_array_equal(element["label"][outlier], targets[found[outlier] - 200])
        np.testing.assert_array_equal(element["label"][~outlier], other["label"][~outlier])


def test_shapes_are_static():
    dataset, _ = batches()
    assert dataset.element_spec == {
        "image": tf.TensorSpec((16, 4, 4, 3), tf.float32),
        "label": tf.TensorSpec((16, CLASSES), tf.float32),
        "is_outlier": tf.TensorSpec((16,), tf.float32),
    }


def test_rows_of_both_kinds_are_mixed():
    places = np.mean([element["is_outlier"] for element in everything(batches(epochs=25)[0])], axis=0)
    # A share of 6/16 outliers at every place: 100 batches, so the standard deviation of a share is 0.048.
    assert np.abs(places - 6 / 16).max() < 0.25


def test_an_epoch_shows_each_image_at_most_once():
    elements = everything(batches()[0])
    orders = []
    for epoch in range(3):
        seen = np.concatenate([numbers(element["image"]) for element in elements[4 * epoch : 4 * epoch + 4]])
        seen = seen[seen < 200]
        assert len(seen) == len(set(seen)) == 40
        orders.append(tuple(seen))
    assert len(set(orders)) == 3


@pytest.mark.parametrize(("count", "per_batch"), [(13, 6), (6, 6), (2, 6), (1, 3), (500, 6)])
def test_outliers_go_round(count, per_batch):
    outliers = ImageSet(np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(3, axis=-1) if count < 256 else
                        np.stack([np.arange(count) % 256, np.arange(count) // 256, np.zeros(count)], -1)
                        .astype(np.uint8).reshape(-1, 1, 1, 3))  # fmt: skip
    id_set = ImageSet(np.zeros((20, 1, 1, 3), np.uint8), np.zeros(20, np.int64), ("a",))
    dataset, _ = batches(id_set, outliers, outliers_per_batch=per_batch, epochs=10)
    drawn = []
    for element in everything(dataset):
        pixels = np.rint((element["image"][element["is_outlier"] == 1, 0, 0] + 1) * 127.5).astype(int)
        drawn += (pixels[:, 0] + (256 * pixels[:, 1] if count > 256 else 0)).tolist()
    times = np.bincount(drawn, minlength=count)
    assert len(drawn) == 20 * per_batch and times.max() - times.min() <= 1
    if count >= per_batch:
        for start in range(0, len(drawn) - count + 1, count):
            assert len(set(drawn[start : start + count])) == min(count, len(drawn) - start) or count % per_batch


@pytest.mark.parametrize("augment", [(), ("flip", "crop")])
@pytest.mark.parametrize("first", [1, 2, 3])
def test_resuming_at_an_epoch_equals_going_on(first, augment):
    whole, steps = batches(augment=augment)
    resumed, _ = batches(augment=augment, first_epoch=first)
    assert same(everything(whole)[first * steps :], everything(resumed))
    assert len(resumed) == (3 - first) * steps


def test_same_seed_same_batches_other_seed_others():
    first = everything(batches()[0])
    assert same(first, everything(batches()[0]))
    dataset = batches()[0]
    assert same(everything(dataset), everything(dataset))
    assert not same(first, everything(batches(seed=8)[0]))
    assert same(first, everything(batches(epochs=30)[0].take(12)))
    huge = everything(batches(seed=2**40 + 5)[0])
    assert len(huge) == 12


def test_without_outliers():
    settings = {"batch_size": 47, "epochs": 1, "seed": 0}
    for outliers, per_batch in ((None, 9), (outlier_images(), 0)):
        dataset, steps = training_batches(id_images(), outliers, outliers_per_batch=per_batch, **settings)
        (element,) = everything(dataset)
        assert steps == 1 and sorted(numbers(element["image"])) == list(range(47))
        assert not element["is_outlier"].any() and (element["label"].sum(axis=1) == 1).all()


def more_images(count=7, side=4):
    """Further image i is 100 + i all over, and of class 4 - i mod 5."""
    images = np.broadcast_to(100 + np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1), (count, side, side, 3))
    return ImageSet(images.copy(), 4 - np.arange(count, dtype=np.int64) % CLASSES, tuple("abcde"))


@pytest.mark.parametrize("with_outliers", [True, False])
def test_further_labelled_rows_stand_on_the_id_side_of_every_batch(with_outliers):
    changed = {"labelled": more_images(), "labelled_per_batch": 3}
    settings = {"batch_size": 10, "outliers_per_batch": 6, "epochs": 3, "seed": 7}
    dataset, steps = training_batches(id_images(), outlier_images() if with_outliers else None, **settings, **changed)
    plain, _ = training_batches(id_images(), outlier_images() if with_outliers else None, **settings)
    rows = 19 if with_outliers else 13
    assert steps == 4 and dataset.element_spec["image"].shape == (rows, 4, 4, 3)
    drawn = []
    for element, without in zip(everything(dataset), everything(plain), strict=True):
        found = numbers(element["image"])
        more = (found >= 100) & (found < 200)
        assert more.sum() == 3 and not element["is_outlier"][more].any()
        np.testing.assert_array_equal(element["label"][more], np.eye(CLASSES)[4 - (found[more] - 100) % CLASSES])
        # The other streams are those of a run without these rows.
        assert sorted(found[~more]) == sorted(numbers(without["image"]))
        np.testing.assert_array_equal(element["is_outlier"], found >= 200)
        drawn += found[more].tolist()
    times = np.bincount(np.array(drawn) - 100, minlength=7)
    assert times.sum() == 36 and times.max() - times.min() <= 1
    places = [np.flatnonzero((numbers(e["image"]) >= 100) & (numbers(e["image"]) < 200)) for e in everything(dataset)]
    assert len({tuple(p) for p in places}) > 8


@pytest.mark.parametrize("steps", [1, 3, 9])
def test_a_given_number_of_steps_leaves_no_image_out(steps):
    dataset, found = batches(steps=steps, epochs=12)
    assert found == steps and len(dataset) == 12 * steps
    drawn = [numbers(element["image"]) for element in everything(dataset)]
    ids = np.concatenate([one[one < 200] for one in drawn])
    assert len(ids) == 120 * steps
    times = np.bincount(ids, minlength=47)
    assert times.max() - times.min() <= 1
    assert all((one >= 200).sum() == 6 for one in drawn)


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("first", [1, 2])
def test_resuming_with_further_rows_equals_going_on(first, steps):
    changed = {"labelled": more_images(), "labelled_per_batch": 3, "augment": ("flip", "blur"), "steps": steps}
    whole, length = batches(**changed)
    resumed, _ = batches(first_epoch=first, **changed)
    assert same(everything(whole)[first * length :], everything(resumed))


def test_further_rows_that_cannot_be_batched():
    nothing = ImageSet(np.empty((0, 4, 4, 3), np.uint8), np.empty(0, np.int64), tuple("abcde"))
    with pytest.raises(UserError, match="no labelled images"):
        batches(labelled=nothing, labelled_per_batch=2)
    with pytest.raises(ValueError, match="no labels"):
        batches(labelled=outlier_images(), labelled_per_batch=2)
    assert same(everything(batches()[0]), everything(batches(labelled=nothing, labelled_per_batch=0)[0]))
    assert same(everything(batches()[0]), everything(batches(labelled_per_batch=5)[0]))


def test_what_cannot_be_batched_is_said():
    with pytest.raises(UserError, match="no outlier images"):
        batches(outliers=ImageSet(np.empty((0, 4, 4, 3), np.uint8)))
    with pytest.raises(UserError, match="data.augment.*did you mean 'flip'"):
        batches(augment=["flipp"])
    with pytest.raises(ValueError, match="no labels"):
        batches(outlier_images())


def test_smallest_of_all():
    one = ImageSet(np.full((1, 1, 1, 1), 255, np.uint8), np.zeros(1, np.int64), ("only",))
    settings = {"batch_size": 1, "outliers_per_batch": 1, "epochs": 2, "seed": 0}
    elements = everything(training_batches(one, ImageSet(one.images), **settings)[0])
    assert len(elements) == 2 and elements[0]["label"].sum() == 1 and elements[0]["is_outlier"].sum() == 1


@pytest.mark.parametrize("batch_size", [1, 10, 47, 60, 200])
def test_labelled_batches_go_through_all_images_alike(batch_size):
    dataset = labelled_batches(id_images(), batch_size=batch_size, steps=12, seed=1)
    elements = everything(dataset)
    assert len(dataset) == len(elements) == 12
    seen = np.concatenate([numbers(element["image"]) for element in elements])
    labels = np.concatenate([element["label"] for element in elements])
    assert seen.shape == (12 * batch_size,)
    np.testing.assert_array_equal(labels, np.eye(CLASSES)[seen % CLASSES])
    for start in range(0, len(seen), 47):
        one_pass = seen[start : start + 47]
        assert len(set(one_pass)) == len(one_pass)
    assert dataset.element_spec["image"].shape == (batch_size, 4, 4, 3)


@pytest.mark.parametrize("first", [0, 1, 3, 4, 5, 11, 12])
def test_labelled_batches_resume_at_any_step(first):
    settings = {"batch_size": 10, "steps": 12, "seed": 1, "augment": ("crop",)}
    whole = everything(labelled_batches(id_images(), **settings))
    assert same(whole[first:], everything(labelled_batches(id_images(), first_step=first, **settings)))


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (1, [1]), (10, [4, 4, 2]), (8, [4, 4])])
def test_image_batches_keep_order_and_remainder(count, sizes):
    images = id_images(max(count, 1)).images[:count]
    found = list(image_batches(images, 4))
    assert [len(batch) for batch in found] == sizes
    assert all(batch.shape[1:] == (4, 4, 3) and batch.dtype == np.float32 for batch in found)
    if count:
        assert numbers(np.concatenate(found)).tolist() == list(range(count))


def test_mapped_files_will_do(tmp_path):
    np.save(tmp_path / "images.npy", id_images().images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert same(everything(batches()[0]), everything(batches(ImageSet(mapped, id_images().labels, tuple("abcde")))[0]))
    assert len(list(image_batches(mapped, 20))) == 3


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_tensorflow_leaves_the_gpu_to_the_backend(monkeypatch, backend):
    import keras

    from kood.data import tf_on_cpu

    hidden = []
    monkeypatch.setattr(keras.config, "backend", lambda: backend)
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *devices: hidden.append(devices))
    importlib.reload(tf_on_cpu)
    assert hidden == ([] if backend == "tensorflow" else [([], "GPU")])


def test_no_tuner_holds_up_the_end_of_a_pass():
    for dataset in (batches()[0], labelled_batches(id_images(), batch_size=8, steps=2, seed=0)):
        assert dataset.options().autotune.enabled is False
