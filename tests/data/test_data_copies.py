"""Which images are the same."""

import numpy as np

from kood.data.copies import distinct, image_digests, numbered
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


def test_digests_that_end_in_zeros_stay_apart():
    digests = np.zeros((3, 16), np.uint8)
    digests[1, 0], digests[2, 15] = 1, 1
    assert len(distinct(digests)) == 3
