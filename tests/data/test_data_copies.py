"""Which images are the same."""

import numpy as np
import pytest

from kood.data.copies import (
    alike,
    connected,
    distinct,
    image_digests,
    near_others,
    near_pairs,
    numbered,
    perceptual_hashes,
)
from kood.data.stored import read_digests, write_digests


def test_digests_tell_equal_pixels_and_no_others(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 1), "uint8")
    images[4] = images[1]
    images[5] = images[0]
    images[5, 2, 3, 0] ^= 1
    digests = image_digests(images)
    assert digests.shape == (6, 16) and digests.dtype == np.uint8
    numbers = numbered(digests)
    assert numbers[4] == numbers[1] and len(set(numbers)) == 5
    assert image_digests(images[:0]).shape == (0, 16) == distinct(digests[:0]).shape
    write_digests(tmp_path, "train", digests)
    kept = read_digests(tmp_path, "train")
    assert [bytes(row) for row in kept] == sorted({bytes(row) for row in digests})


def test_whole_numbers_have_one_digest_whatever_their_kind():
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 1), "uint8")
    for kind in ("float16", "float32", "float64", "int64"):
        np.testing.assert_array_equal(image_digests(images.astype(kind)), image_digests(images))
    other = images.astype("float32")
    other[0, 0, 0, 0] += 0.5
    other[1, 0, 0, 0] += 256
    other[2, 0, 0, 0] -= 256
    other[3, 0, 0, 0] = np.nan
    same = (image_digests(other) == image_digests(images)).all(axis=1)
    assert same.tolist() == [False] * 4 + [True]
    assert len(distinct(image_digests(other))) == 5


def test_digests_that_end_in_zeros_stay_apart():
    digests = np.zeros((3, 16), np.uint8)
    digests[1, 0], digests[2, 15] = 1, 1
    assert len(distinct(digests)) == 3


def test_rows_are_connected_through_others():
    first = connected(7, [np.array([0, 1, 2, 0, 4, 5, 6])], np.array([[3, 5], [2, 6]]))
    assert first.tolist() == [0, 1, 2, 0, 4, 0, 2]
    assert connected(3).tolist() == [0, 1, 2] and connected(0).tolist() == []
    assert connected(3, [np.array([5, 5, 9]), np.array([1, 2, 2])]).tolist() == [0, 0, 0]


@pytest.mark.parametrize("distance", [0, 1, 4, 10])
def test_near_hashes_of_another_set_are_found_as_by_all_pairs(distance):
    rng = np.random.default_rng(distance)
    others = np.append(rng.integers(1, 2**64, 200, np.uint64), np.uint64(0))
    hashes = others[rng.integers(0, 201, 150)]
    for row in range(150):
        flips = rng.choice(64, rng.integers(0, 16), replace=False).astype(np.uint64)
        hashes[row] ^= np.bitwise_or.reduce(np.uint64(1) << flips, initial=np.uint64(0))
    hashes[:2] = 0  # Of one colour: like nothing.
    apart = np.bitwise_count(hashes[:, None] ^ others[None, :])
    found = near_others(hashes, others, distance)
    wanted = ((apart <= distance) & (others > 0)).any(axis=1) & (hashes > 0)
    np.testing.assert_array_equal(found >= 0, wanted)
    rows = np.flatnonzero(wanted)
    assert (apart[rows, found[rows]] <= distance).all() and 0 < len(rows) < 150
    assert near_others(hashes[:0], others, distance).tolist() == [] and (near_others(hashes, others[:0], 4) == -1).all()


@pytest.mark.parametrize("distance", [0, 1, 4, 9, 16])
def test_near_hashes_are_connected_as_by_all_pairs(distance):
    rng = np.random.default_rng(distance)
    hashes = rng.integers(0, 2**64, 300, np.uint64)
    for row in range(100, 300):  # Some bits away from an earlier one, near and not so near.
        flips = rng.choice(64, rng.integers(0, 20), replace=False).astype(np.uint64)
        hashes[row] = hashes[rng.integers(row)] ^ np.bitwise_or.reduce(np.uint64(1) << flips, initial=np.uint64(0))
    pairs = np.argwhere(np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= distance)
    found = connected(300, links=near_pairs(hashes, distance))
    np.testing.assert_array_equal(found, connected(300, links=pairs))
    assert 1 < len(set(found.tolist())) < 300


def test_many_equal_hashes_take_little_memory(monkeypatch):
    from kood.data import copies

    monkeypatch.setattr(copies, "_LINKS", 1000)
    assert len(near_pairs(np.zeros(3000, np.uint64), 3)) == 2999
    assert near_pairs(np.zeros(0, np.uint64), 3).shape == near_pairs(np.zeros(1, np.uint64), 3).shape == (0, 2)


def test_perceptual_hashes_survive_what_pixels_do_not():
    from PIL import Image

    from kood.data.large import rows_of

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (20, 5, 5, 3), "uint8")
    images = np.stack([np.asarray(Image.fromarray(one).resize((48, 40), Image.BICUBIC)) for one in coarse])
    dimmed = np.clip(images * 0.8 + 20 + rng.normal(0, 3, images.shape), 0, 255).astype("uint8")
    hashes = perceptual_hashes(np.concatenate([images, dimmed, np.full((2, 40, 48, 3), 90, "uint8")]))
    assert (hashes != 0).tolist() == [True] * 40 + [False] * 2
    apart = np.bitwise_count(hashes[:20, None] ^ hashes[None, 20:40])
    assert apart.diagonal().max() <= 8 and apart[~np.eye(20, dtype=bool)].min() > 10
    assert perceptual_hashes(rows_of(images, np.arange(0))).shape == (0,)
    assert perceptual_hashes(np.zeros((3, 1, 2, 1), "uint8")).tolist() == [0, 0, 0]


def test_perceptual_hashes_are_those_of_any_size_and_of_what_is_seen():
    from PIL import Image

    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), "uint8"))
    sizes = ((90, 70), (300, 421), (771, 256), (1030, 40))  # Of the tall ones the rows are summed, with some left over.
    found = [perceptual_hashes(np.asarray(coarse.resize(size[::-1], Image.BICUBIC))[None])[0] for size in sizes]
    assert max(np.bitwise_count(found[0] ^ one) for one in found) <= 4
    opaque = np.asarray(coarse.convert("RGBA"))[None]
    glass = opaque * np.array([1, 1, 1, 0], "uint8")
    assert perceptual_hashes(opaque)[0] == perceptual_hashes(opaque[..., :3])[0] != 0
    assert perceptual_hashes(glass, (9, 8, 7)).tolist() == [0]
    flat = np.full((1, 2001, 3, 3), 90, "uint8")
    assert perceptual_hashes(flat).tolist() == [0]
    flat[0, -1, 0, 0] = 91  # The last row counts, and one grey level of one colour.
    assert perceptual_hashes(flat).tolist() != [0]


def test_a_set_that_shows_nothing_or_the_same_is_described():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10, 4, 4, 3), "uint8")
    assert alike(images, image_digests(images)) == ""
    images[:3] = [[[[7, 8, 9]]], [[[1, 1, 1]]], [[[2, 2, 2]]]]
    images[3:5] = images[5]
    said = alike(images, image_digests(images))
    assert "10 images 3 are of one single colour and 3 are equal to another one" in said
    images[3] = rng.integers(0, 256, (4, 4, 3), "uint8")
    assert alike(images, image_digests(images)) == ""  # Half is not most.
