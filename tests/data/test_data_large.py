"""What is kept on disk because it is large is what it would have been in memory."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from kood.data import ImageSet, load_source
from kood.data.batches import labelled_batches, training_batches
from kood.data.large import Blobs, filled, is_large, room, rows_of
from kood.errors import UserError


@pytest.fixture
def everything_large(monkeypatch):
    """Makes all that has any bytes large, in blocks of a few rows; call it where that is to begin."""

    def begin():
        monkeypatch.setattr("kood.data.large.IN_MEMORY", 0)
        monkeypatch.setattr("kood.data.large._BLOCK", 300)

    return begin


def images(count=23, seed=0, classes=3):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 5, 4, 3)).astype("uint8")
    return ImageSet(pixels, np.arange(count) % classes, tuple("abc"))


def test_rooms_and_rows(everything_large):
    values = np.arange(60).reshape(20, 3)
    assert not is_large(60 * 8) and type(room((20, 3), "int64")) is np.ndarray
    everything_large()
    assert is_large(1) and isinstance(room((20, 3), "int64"), np.memmap)
    for rows in (np.array([3, 3, 19, 0]), np.arange(20)[::-1]):
        np.testing.assert_array_equal(rows_of(values, rows), values[rows])
    seen = []
    made = filled((20, 3), "int64", lambda rows: seen.append(rows) or values[rows], 24)
    np.testing.assert_array_equal(made, values)
    assert [rows.stop - rows.start for rows in seen] == [12, 8]
    assert filled((0, 3), "uint8", lambda rows: values[rows], 24).shape == (0, 3)


def test_a_set_of_rows_is_mapped_and_the_same(everything_large):
    whole, rows = images(), np.array([5, 1, 1, 22])
    expected = whole.take(rows)
    everything_large()
    found = whole.take(rows)
    assert isinstance(found.images, np.memmap) and found.sha256() == expected.sha256()


@pytest.mark.parametrize("kind", ["training", "labelled"])
def test_batches_from_a_file_are_those_from_memory(everything_large, kind, tmp_path):
    np.save(tmp_path / "images.npy", images().images)

    def elements(mapped):
        pixels = np.load(tmp_path / "images.npy", mmap_mode="r" if mapped else None)
        known, more = ImageSet(pixels, images().labels, tuple("abc")), ImageSet(pixels[::-1])
        if kind == "labelled":
            dataset = labelled_batches(known, batch_size=7, steps=9, seed=3, augment=["flip"])
        else:
            dataset = training_batches(
                known, more, batch_size=6, outliers_per_batch=4, epochs=2, seed=3, augment=["flip"],
                labelled=known, labelled_per_batch=2,
            )[0]  # fmt: skip
        return [{name: value.numpy().tobytes() for name, value in element.items()} for element in dataset]

    expected = elements(mapped=False)
    everything_large()
    assert elements(mapped=True) == expected


def test_files_are_decoded_to_disk(everything_large, source, tmp_path):
    for place, image in enumerate(images().images):
        (tmp_path / "x" / "ab"[place % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((4 + place % 3, 5)).save(tmp_path / "x" / "ab"[place % 2] / f"{place}.png")
    (tmp_path / "x" / "a" / "bad.png").write_bytes(b"no image")

    def load():
        spec = source("folder", path=str(tmp_path / "x"), max_bad_images=1)
        return load_source(spec, (5, 4, 3), seed=0, key="data.id")["all"]

    expected = load()
    everything_large()
    found = load()
    assert isinstance(found.images, np.memmap) and found.sha256() == expected.sha256()
    assert len(found.skipped) == 1


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("shape", [(5, 4, 3), (9, 7, 1)])
def test_archives_are_read_to_disk(everything_large, source, npz_file, dtype, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (23, *shape)).astype(dtype) / (1 if dtype == "uint8" else 255)
    file = npz_file(images=pixels.astype(dtype), labels=np.arange(23) % 3)

    def load():
        return load_source(source("npz", path=str(file)), (5, 4, 3), seed=0, key="data.id")["all"]

    expected = load()
    everything_large()
    found = load()
    assert isinstance(found.images, np.memmap) and found.sha256() == expected.sha256()


def test_a_large_array_of_objects_or_cut_off_is_refused(everything_large, source, tmp_path):
    np.savez(tmp_path / "objects.npz", images=np.array([{}], object))
    with zipfile.ZipFile(tmp_path / "cut.npz", "w") as archive, archive.open("images.npy", "w") as member:
        header = {"descr": "|u1", "fortran_order": False, "shape": (9, 5, 4, 3)}
        np.lib.format.write_array_header_1_0(member, header)
        member.write(b"x" * 100)
    everything_large()
    for name, message in (("objects", "allow_pickle"), ("cut", "images is cut off")):
        with pytest.raises(UserError, match=f"{name}.npz cannot be read.*{message}"):
            load_source(source("npz", path=str(tmp_path / f"{name}.npz")), (5, 4, 3), seed=0, key="data.id")


@pytest.mark.parametrize("on_disk", [False, True])
def test_strings_of_bytes(everything_large, on_disk):
    given = [b"a", b"", b"ccc", b"dd"]
    if on_disk:
        everything_large()
    blobs = Blobs(given[:2])
    for blob in given[2:]:
        blobs.append(blob)
        assert blobs[0] == b"a"
    assert list(blobs) == given and len(blobs) == 4
    assert blobs[-1] == b"dd"
    with pytest.raises(IndexError):
        blobs[4]
