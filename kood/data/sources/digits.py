"""The handwritten digits that come with scikit-learn: small, real, and there without a download."""

import numpy as np

from kood.data.image_set import ImageSet
from kood.data.rules import STRETCHED, Framing

__all__ = ["digits"]


def digits(image_shape: tuple[int, int, int], *, seed: int, framing: Framing = STRETCHED) -> dict[str, ImageSet]:
    """1,797 handwritten digits of 8x8 grey pixels, ten classes, from scikit-learn (no download).

    The values 0..16 become round(v 255 / 16). Source: the test part of UCI's "Optical Recognition of Handwritten
    Digits" (Alpaydin and Kaynak, 1998).
    """
    from sklearn.datasets import load_digits

    from kood.data.images import fit_images

    loaded = load_digits()
    pixels = np.rint(loaded.images * (255.0 / 16.0)).astype(np.uint8)[..., None]
    labels = loaded.target.astype(np.int64)
    images = fit_images(pixels, image_shape, framing)
    return {"all": ImageSet(images, labels, tuple(str(digit) for digit in range(10)))}
