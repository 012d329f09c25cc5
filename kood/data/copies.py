"""Images that are the same, or nearly: what must stay together when a set is split."""

import hashlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from kood.data.large import blocks_of, filled
from kood.data.rules import WHITE, Colour

__all__ = [
    "alike", "connected", "distinct", "image_digests", "monochrome", "near_others", "near_pairs", "numbered",
    "perceptual_hashes", "whole",
]  # fmt: skip

#: Links kept before they are reduced to those that connect the same rows.
_LINKS = 2**20
#: Below this a frequency is rounding: one grey level in one pixel makes more.
_NOTHING = 1e-6
#: Rows of pixels that a perceptual hash looks at, or up to twice as many; those of a taller picture are summed first.
_ROWS = 128


def image_digests(images: Any) -> np.ndarray:
    """A digest of each image's pixels: BLAKE2b of 128 bits.

    Two images have one digest where their pixels are the same after decoding and fitting to the recipe's shape, however
    their files differ; whole numbers of 0..255 are the same as uint8 and as floats. Digests of different shapes do not
    compare, nor do those of other floats with those of another kind. Images (N, H, W, C) -> uint8 (N, 16).
    """
    if (known := getattr(images, "digests", None)) is not None:
        return known
    each = (_bytes_if_whole(image).tobytes() for block in blocks_of(images) for image in block)
    found = b"".join(hashlib.blake2b(image, digest_size=16).digest() for image in each)
    return np.frombuffer(found, np.uint8).reshape(len(images), 16)


def _bytes_if_whole(image: np.ndarray) -> np.ndarray:
    """The image as uint8 where that is the same numbers, else as it is."""
    if image.dtype == np.uint8:
        return image
    with np.errstate(invalid="ignore"):
        whole_numbers = image.astype(np.uint8)
    return whole_numbers if np.array_equal(whole_numbers, image) else image


def distinct(digests: np.ndarray) -> np.ndarray:
    """The different digests (M, 16), ascending by their bytes, of (N, 16) uint8."""
    return np.unique(whole(digests)).view(np.uint8).reshape(-1, 16)


def numbered(digests: np.ndarray) -> np.ndarray:
    """Each digest as the number of the different one that it is, int64 (N,)."""
    return np.unique(whole(digests), return_inverse=True)[1].astype(np.int64)


def whole(digests: np.ndarray) -> np.ndarray:
    """(N,) of 16 bytes each, which NumPy sorts and compares byte by byte."""
    return np.ascontiguousarray(digests).view("V16").reshape(-1)


def alike(images: Any, digests: np.ndarray) -> str:
    """A sentence that counts the images of one single colour and those that equal another, where they are more than
    half of a set; else "".

    Args:
        images: uint8 (N, H, W, C).
        digests: Of `image_digests`.
    """
    plain, number = monochrome(images), numbered(digests)
    equal = np.bincount(number)[number] > 1
    if 2 * np.count_nonzero(plain | equal) <= len(images):
        return ""
    return (
        f"of its {len(images):,} images {np.count_nonzero(plain):,} are of one single colour and "
        f"{np.count_nonzero(equal):,} are equal to another one; look at them, and at data.image_shape"
    )


def monochrome(images: Any) -> np.ndarray:
    """Which images uint8 (N, H, W, C) are of one single colour, bool (N,)."""
    if (known := getattr(images, "plain", None)) is not None:
        return known

    def of(some: slice) -> np.ndarray:
        own = images[some]
        plain = (own[:, :1] == own[:, :1, :1]).all(axis=(1, 2, 3))  # Few have a first row of one colour.
        plain[plain] = (own[plain] == own[plain, :1, :1]).all(axis=(1, 2, 3))
        return plain

    return filled((len(images),), bool, of, images[:1].nbytes)


def perceptual_hashes(images: Any, ground: Colour = WHITE) -> np.ndarray:
    """A 64-bit hash of what each image shows: pHash, by the discrete cosine transform.

    The grey image's 8 x 8 lowest frequencies, the constant ones left out, each as one bit: above their median or not
    (C. Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010, section 3.2.1). Copies that
    were saved at another quality, brightness or size differ in few bits, whatever became of their proportions. A grey
    level is the mean of the colours. At 32 px less than a quarter of the time that the package imagehash takes.

    Args:
        images: uint8 (N, H, W, C), C 1, 3 or 4.
        ground: What is seen through their transparency.

    Returns:
        uint64 (N,); 0 where an image shows nothing, as one of one colour alone.
    """
    # The cosines of the frequencies 1 to 8 of the transform's second kind, (8, side).
    down, across = (
        np.cos(np.pi / side * np.outer(np.arange(1, 9), np.arange(side) + 0.5)) for side in images.shape[1:3]
    )
    height = images.shape[1]
    step = min(max(1, height // _ROWS), 257)  # So many rows add up in 16 bits.
    starts = np.arange(0, height, step)
    down = np.add.reduceat(down, starts, axis=1) / np.diff(starts, append=height)

    def frequencies(some: slice) -> np.ndarray:
        rows = _summed(_over(np.asarray(images[some]), ground), step)
        count, high, width, channels = rows.shape
        found = down @ rows.reshape(count, high, width * channels)
        return (found.reshape(count, 8, width, channels).mean(axis=3) @ across.T).reshape(-1, 64)

    lowest = filled((len(images), 64), "float64", frequencies, 12 * images[:1].nbytes)
    above = lowest > np.median(lowest, axis=1, keepdims=True) + _NOTHING
    return np.packbits(above, axis=1).view(np.uint64).reshape(-1)


def _over(images: np.ndarray, ground: Colour) -> np.ndarray:
    """uint8 (n, H, W, C) with what is seen through their transparency, where they have any."""
    if images.shape[-1] != 4:
        return images
    below = np.array(ground, np.float32)
    colours = below + (images[..., :3] - below) * (images[..., 3:] / np.float32(255))
    return np.rint(colours).astype(np.uint8)


def _summed(images: np.ndarray, step: int) -> np.ndarray:
    """The sums of so many rows of pixels each; of the last ones there may be fewer."""
    if step == 1:
        return images
    count, height, width, channels = images.shape
    whole = height - height % step
    found = np.zeros((count, -(-height // step), width, channels), np.uint16)
    for first in range(step):
        found[:, : height // step] += images[:, first:whole:step]
    found[:, height // step :] = images[:, whole:].sum(axis=1, keepdims=True)
    return found


def near_pairs(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Links between hashes of at most a Hamming distance: enough of them to connect all that such pairs connect.

    Of distance + 1 bands of bits, two such hashes have one in common, so only hashes with a common band are compared;
    memory grows with N. Of 10,000 hashes it takes 0.1 s, scikit-learn's BallTree 5 s. Hashes uint64 (N,) -> pairs of
    rows, int64 (E, 2).
    """
    every, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[which] != np.arange(len(hashes)))
    near = first[_near_different(every, distance)]
    return np.concatenate([np.stack([again, first[which[again]]], axis=1), near.reshape(-1, 2)])


def near_others(hashes: np.ndarray, others: np.ndarray, distance: int) -> np.ndarray:
    """For each hash the row of another set's that differs in at most so many bits, -1 where there is none.

    What is of one colour, whose hash is 0, is like nothing. Of 10,000 hashes against as many, under 4 bits, it takes
    0.2 s. Hashes uint64 (N,) and (M,) -> int64 (N,).
    """
    every, first = np.unique(others, return_index=True)
    every, first = every[every > 0], first[every > 0]
    found = np.full(len(hashes), -1)
    for band_of in _bands(distance):
        order = np.argsort(band_of(every), kind="stable")
        band, left = band_of(every)[order], np.flatnonzero((found < 0) & (hashes > 0))
        at, end = (np.searchsorted(band, band_of(hashes[left]), side=side) for side in ("left", "right"))
        while len(left):  # Each hash against the next one in its band.
            left, at, end = left[at < end], at[at < end], end[at < end]
            near = np.bitwise_count(hashes[left] ^ every[order[at]]) <= distance
            found[left[near]] = first[order[at[near]]]
            left, at, end = left[~near], at[~near] + 1, end[~near]
    return found


def _bands(distance: int) -> list[Callable[[np.ndarray], np.ndarray]]:
    """Of two hashes that differ in at most so many bits at least one of these functions gives the same."""
    cuts = np.linspace(0, 64, distance + 2).astype(int).tolist()

    def band(low: int, high: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda hashes: (hashes >> np.uint64(low)) & np.uint64(2 ** (high - low) - 1)

    return [band(low, high) for low, high in pairwise(cuts)]


def _near_different(hashes: np.ndarray, distance: int) -> np.ndarray:
    links = np.empty((0, 2), np.int64)
    for band_of in _bands(distance):
        band = band_of(hashes)
        order = np.argsort(band, kind="stable")
        sorted_hashes, sorted_band = hashes[order], band[order]
        at, step, found = np.arange(len(hashes) - 1), 1, [links]
        while len(at):  # Each hash against the step-th after it in its band.
            at = at[sorted_band[at] == sorted_band[at + step]]
            near = at[np.bitwise_count(sorted_hashes[at] ^ sorted_hashes[at + step]) <= distance]
            found.append(np.stack([order[near], order[near + step]], axis=1))
            if sum(map(len, found)) > _LINKS + len(hashes):
                found = [_fewer(np.concatenate(found), len(hashes))]
            step += 1
            at = at[at < len(hashes) - step]
        links = _fewer(np.concatenate(found), len(hashes))
    return links


def _fewer(links: np.ndarray, count: int) -> np.ndarray:
    first = connected(count, links=links)
    rows = np.flatnonzero(first != np.arange(count))
    return np.stack([rows, first[rows]], axis=1)


def connected(count: int, numbers: Sequence[np.ndarray] = (), links: np.ndarray | None = None) -> np.ndarray:
    """Rows that belong together, directly or through others.

    Args:
        count: How many rows.
        numbers: int64 (count,) each; rows of one number belong together.
        links: int64 (E, 2); so do the rows of a pair.

    Returns:
        int64 (count,): for each row the first one that it belongs together with; itself where it stands alone.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = [np.empty((0, 2), np.int64) if links is None else links]
    for one in numbers:
        _, first, which = np.unique(one, return_index=True, return_inverse=True)
        pairs.append(np.stack([np.arange(count), first[which]], axis=1))
    ends = np.concatenate(pairs).T
    graph = coo_array((np.ones(ends.shape[1], bool), (ends[0], ends[1])), shape=(count, count))
    parts = connected_components(graph, directed=False)[1]
    _, first = np.unique(parts, return_index=True)
    return first[parts].astype(np.int64)
