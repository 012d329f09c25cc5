"""Image sets written piece by piece, against the same written whole."""

import errno

import numpy as np
import pytest

from kood.data import ImageSet
from kood.data.stored import read_images, write_blocks, write_images


def images(count):
    return np.random.default_rng(count).integers(0, 256, (count, 3, 4, 1), dtype=np.uint8)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("cuts", [[], [1], [0, 4, 4, 6]])
def test_blocks_make_the_same_files_as_a_whole_set(tmp_path, cuts, labelled):
    labels, names = (np.arange(7) % 2, ("a", "b")) if labelled else (None, ())
    whole = ImageSet(images(7), labels, names)
    (tmp_path / "whole").mkdir()
    facts = write_images(tmp_path / "whole", "set", whole)
    assert facts == {"images": 7, "class_names": list(names), "sha256": whole.sha256()}
    assert facts == write_blocks(tmp_path, "set", np.split(images(7), cuts), count=7, image_shape=(3, 4, 1),
                                 labels=labels, class_names=names)  # fmt: skip
    written = {"set.images.npy": whole.images} | ({"set.labels.npy": labels} if labelled else {})
    for name, array in written.items():
        np.save(tmp_path / "array.npy", array)
        for file in (tmp_path / name, tmp_path / "whole" / name):
            assert file.read_bytes() == (tmp_path / "array.npy").read_bytes()
    assert {file.name for file in (tmp_path / "whole").iterdir()} == written.keys()
    assert read_images(tmp_path, "set", facts).sha256() == whole.sha256()
    assert not list(tmp_path.glob(".*"))


def test_a_file_system_that_cannot_flush_takes_blocks(tmp_path, monkeypatch):
    def unable(_):
        raise OSError(errno.EINVAL, "no fsync here")

    monkeypatch.setattr("os.fsync", unable)
    write_blocks(tmp_path, "set", [images(2)], count=2, image_shape=(3, 4, 1))
    np.testing.assert_array_equal(np.load(tmp_path / "set.images.npy"), images(2))


def test_blocks_may_come_from_views_of_files(tmp_path):
    np.save(tmp_path / "shard.npy", images(9))
    mapped = np.load(tmp_path / "shard.npy", mmap_mode="r")
    write_blocks(tmp_path, "set", (mapped[rows] for rows in ([8, 1], [3])), count=3, image_shape=(3, 4, 1))
    np.testing.assert_array_equal(np.load(tmp_path / "set.images.npy"), images(9)[[8, 1, 3]])


@pytest.mark.parametrize("count", [6, 8])
def test_another_number_of_images_than_announced_leaves_nothing(tmp_path, count):
    with pytest.raises(ValueError, match=f"7 images came where {count}"):
        write_blocks(tmp_path, "set", [images(7)], count=count, image_shape=(3, 4, 1))
    assert not list(tmp_path.iterdir())
