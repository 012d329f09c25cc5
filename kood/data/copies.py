"""Images that are the same: by their pixels, or nearly by what they show; and which must stay together in a split."""

import hashlib

import numpy as np

__all__ = ["distinct", "image_digests", "numbered"]


def image_digests(images: np.ndarray) -> np.ndarray:
    """A digest of each image's pixels: BLAKE2b of 128 bits.

    Two images have one digest where their pixels are the same after decoding and fitting to the recipe's shape, however
    their files differ. Digests of different shapes do not compare.

    Args:
        images: uint8 (N, H, W, C), in memory or mapped.

    Returns:
        (N, 16) uint8.
    """
    found = b"".join(hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images)
    return np.frombuffer(found, np.uint8).reshape(len(images), 16)


def distinct(digests: np.ndarray) -> np.ndarray:
    """The different digests, ascending by their bytes.

    Args:
        digests: (N, 16) uint8.

    Returns:
        (M, 16) uint8, M <= N.
    """
    return np.unique(_whole(digests)).view(np.uint8).reshape(-1, 16)


def numbered(digests: np.ndarray) -> np.ndarray:
    """Each digest as the number of the different one that it is, int64 (N,)."""
    return np.unique(_whole(digests), return_inverse=True)[1].astype(np.int64)


def _whole(digests: np.ndarray) -> np.ndarray:
    """(N,) of 16 bytes each, which NumPy sorts and compares byte by byte."""
    return np.ascontiguousarray(digests).view("V16").reshape(-1)
