"""The .npz source: what is right is taken, what is wrong is named."""

import unicodedata
import zipfile

import numpy as np
import pytest

from kood.data import load_source
from kood.data.classes import class_indices
from kood.errors import UserError

U8 = np.arange(3 * 16, dtype=np.uint8).reshape(3, 4, 4, 1)


@pytest.fixture
def load(source):
    return lambda path: load_source(source("npz", path=str(path)), (4, 4, 1), seed=0, key="data.id")


@pytest.mark.keras
def test_bytes_floats_and_flat_grey(npz_file, load):
    np.testing.assert_array_equal(load(npz_file(images=U8))["all"].images, U8)
    np.testing.assert_array_equal(load(npz_file(images=U8[..., 0]))["all"].images, U8)
    np.testing.assert_array_equal(load(npz_file(images=U8 / 255.0))["all"].images, U8)
    np.testing.assert_array_equal(load(npz_file(images=(U8 / 255.0).astype(np.float32)))["all"].images, U8)
    assert load(npz_file(images=np.zeros((3, 9, 7, 4), np.uint8)))["all"].images.shape == (3, 4, 4, 1)


@pytest.mark.keras
def test_labels_and_names(npz_file, load):
    found = load(npz_file(images=U8, labels=np.array([[0], [2], [1]], np.uint8)))["all"]
    assert found.labels.tolist() == [0, 2, 1] and found.class_names == ("0", "1", "2")
    found = load(npz_file(images=U8, labels=[0, 0, 1], class_names=["a", "b", "c"]))["all"]
    assert found.class_names == ("a", "b", "c")
    found = load(npz_file(x_train=U8, y_train=[0, 1, 3], x_test=U8[:2], y_test=[0, 1]))
    assert found["test"].class_names == ("0", "1", "2", "3") and len(found["train"]) == 3
    assert load(npz_file(x_train=U8, x_test=U8))["test"].labels is None


@pytest.mark.keras
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pixels": U8}, r"has the arrays \['pixels'\]; it needs `images`"),
        ({"x_train": U8}, "it needs `images`"),
        ({"images": U8.transpose(0, 3, 1, 2)[:, :, :, :2]}, "channels last"),
        ({"images": U8[0, 0]}, "has shape"),
        ({"images": U8[:0]}, "has shape"),
        ({"images": np.uint8(3)}, "has shape"),
        ({"images": np.full((2, 4, 4, 1), np.nan)}, "without NaN"),
        ({"images": U8.astype(np.float32)}, r"\[0, 1\]"),
        ({"images": -(U8 / 255.0)}, r"\[0, 1\]"),
        ({"images": U8.astype(np.int64)}, "int64; save it as uint8"),
        ({"images": U8 > 3}, "bool; save it as uint8"),
        ({"images": np.array([["a"]])}, "has shape"),
        ({"images": U8, "labels": [0, 1]}, "one for each image"),
        ({"images": U8, "labels": [0.0, 1.0, 2.0]}, "whole numbers"),
        ({"images": U8, "labels": np.eye(3, dtype=int)}, "whole numbers"),
        ({"images": U8, "labels": ["a", "b", "c"]}, "whole numbers"),
        ({"images": U8, "labels": [0, -1, 2]}, "count from 0"),
        ({"images": U8, "labels": [0, 1, 10**9]}, "count from 0"),
        ({"images": U8, "labels": np.array([0, 1, 2**63], np.uint64)}, "count from 0"),
        ({"images": U8, "labels": [0, 1, 2], "class_names": ["a", "b"]}, "count from 0 to at most 1"),
        ({"images": U8, "labels": [0, 1, 1], "class_names": ["a", "a"]}, "different strings"),
        ({"images": U8, "labels": [0, 1, 1], "class_names": [1, 2]}, "different strings"),
        ({"images": np.array([{}, {}], dtype=object)}, "arrays of Python objects"),
    ],
)
def test_malformed_archives_are_named(npz_file, load, arrays, message):
    with pytest.raises(UserError, match=message) as raised:
        load(npz_file(**arrays))
    assert str(raised.value).startswith("data.id.path: ") and "images.npz" in str(raised.value)


def test_files_that_are_no_archives(tmp_path, load):
    text, empty, single, cut, folder = (tmp_path / f"{name}.npz" for name in ("text", "empty", "single", "cut", "dir"))
    text.write_text("not an archive")
    empty.write_bytes(b"")
    with single.open("wb") as file:
        np.save(file, U8)
    np.savez_compressed(cut, images=np.random.default_rng(0).integers(0, 256, (50, 4, 4, 1), dtype=np.uint8))
    cut.write_bytes(cut.read_bytes()[:300])
    folder.mkdir()
    other = tmp_path / "other.npz"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("images", "plain text")
    for file in (text, empty, single, cut, folder, other):
        with pytest.raises(UserError, match=r"data\.id\.path: "):
            load(file)


@pytest.mark.keras
def test_class_names_are_kept_composed(npz_file, source):
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    images, labels = np.zeros((2, 4, 4), np.uint8), np.array([0, 1])

    def load(*names):
        path = npz_file(images=images, labels=labels, class_names=np.array(names))
        return load_source(source("npz", path=path), (4, 4, 1), seed=0, key="data.id")["all"]

    assert load(decomposed, "tea").class_names == (composed, "tea")
    with pytest.raises(UserError, match="must be different strings"):
        load(decomposed, composed)


def test_a_class_is_found_by_either_spelling():
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    for wanted in (composed, decomposed):
        assert class_indices([wanted], ("tea", composed)) == class_indices([wanted], ("tea", decomposed)) == [1]
    with pytest.raises(UserError, match="named twice"):
        class_indices([composed, decomposed], ("tea", composed))
