"""Pixels: bringing any image to the model's shape, and the model's range [-1, 1] to 0..255 and back."""

import functools
import math
from typing import Any

import numpy as np

from kood.data.large import filled
from kood.data.rules import STRETCHED, Framing, inscribed
from kood.data.tf_on_cpu import tf

__all__ = ["fit_images", "normalize", "quantize", "to_shape"]

#: What an alpha of 0..255 leaves of its pixel.
_SHARES = np.arange(256, dtype=np.float32) / np.float32(255)


def to_shape(images, image_shape: tuple[int, int, int], framing: Framing = STRETCHED):
    """Bring images to the model's shape. Made of TensorFlow ops only, so it can stand inside a graph or a SavedModel.

    In this order: alpha is composited over the ground (ground + (rgb - ground) a / 255); colour becomes grey by
    0.2989 R + 0.5870 G + 0.1140 B, grey becomes colour by repeating it; height and width are resized by bilinear
    interpolation, antialiased if `framing` says so: all of the image, or of a window of it where `framing` crops; the
    result is rounded and
    clipped to whole numbers in 0..255; and, where `framing` pads, the ground is put around it, of which a grey image
    has the luma. Images that already have the shape pass unchanged.

    Args:
        images: uint8 or float (B, h, w, c) of 0..255 with c statically known: 1 grey, 3 RGB or 4 RGBA.
        image_shape: (H, W, C), C 1 or 3.

    Returns:
        float32 (B, H, W, C), whole numbers in 0..255.

    Raises:
        ValueError: A number of channels that cannot be brought to C.
    """
    height, width, channels = image_shape
    found = images.shape[-1]
    if channels not in (1, 3) or found not in (1, 3, 4):
        raise ValueError(f"cannot bring images of {found} channels to {channels}; from 1, 3 or 4, to 1 or 3")
    pixels = tf.cast(images, tf.float32)
    ground = tf.constant(framing.ground, tf.float32)
    if found == 4:
        # Looked up, since graphs divide by a product with the inverse, and the last place would be another.
        whole = images.dtype == np.uint8
        alpha = images[..., 3:]
        share = tf.gather(_SHARES, tf.cast(alpha, tf.int32)) if whole else tf.cast(alpha, tf.float32) * _SHARES[1]
        pixels = ground + (pixels[..., :3] - ground) * share
    if pixels.shape[-1] == 3 and channels == 1:
        pixels = tf.image.rgb_to_grayscale(pixels)
    if tuple(pixels.shape[1:3]) != (height, width):
        pixels = _resized(pixels, (height, width), framing)
    if pixels.shape[-1] == 1 and channels == 3:
        pixels = tf.image.grayscale_to_rgb(pixels)
    pixels = tf.clip_by_value(tf.round(pixels), 0.0, 255.0)
    if tuple(pixels.shape[1:3]) == (height, width):
        return pixels
    if channels == 1:
        ground = tf.round(tf.image.rgb_to_grayscale(ground))
    high, wide = tf.unstack(tf.shape(pixels)[1:3])
    above, left = (height - high) // 2, (width - wide) // 2
    # Around what lies over a ground of zeros; of whole numbers nothing is rounded.
    return tf.image.pad_to_bounding_box(pixels - ground, above, left, height, width) + ground


def _resized(pixels, size, framing):
    """Pixels (B, h, w, C) resized to (H, W), or within it where they are to be padded."""
    if framing.resize != "stretch":
        sides = tf.unstack(tf.shape(pixels, tf.int64)[1:3])
    if framing.resize == "crop":
        window = inscribed(sides, size, tf.minimum, tf.maximum)
        (above, left), (high, wide) = ((side - own) // 2 for side, own in zip(sides, window, strict=True)), window
        pixels = pixels[:, above : above + high, left : left + wide]
    if framing.resize == "pad":
        size = tf.cast(tf.stack(inscribed(size, sides, tf.minimum, tf.maximum)), tf.int32)
    return tf.image.resize(pixels, size, method="bilinear", antialias=framing.antialias)


def fit_images(images: Any, image_shape: tuple[int, int, int], framing: Framing = STRETCHED) -> np.ndarray:
    """`to_shape` for arrays, in memory-sparing pieces: uint8 or float (B, h, w, c) in, uint8 (B, H, W, C) out.

    Raises:
        ValueError: As `to_shape` does, or a pixel that is not finite.
    """
    if images.dtype == np.uint8 and images.shape[1:] == tuple(image_shape):
        return images

    fit = _compiled(tuple(image_shape), images.shape[-1], images.dtype, framing)

    def fitted(rows: slice) -> np.ndarray:
        if images.dtype != np.uint8 and not np.isfinite(images[rows]).all():
            raise ValueError("images hold NaN or infinite pixels")
        return fit(images[rows]).numpy()

    # Resizing makes float32 copies.
    bytes_each = 4 * max(math.prod(images.shape[1:]), math.prod(image_shape))
    return filled((len(images), *image_shape), np.uint8, fitted, bytes_each)


@functools.lru_cache
def _compiled(image_shape: tuple[int, int, int], channels: int, dtype: np.dtype, framing: Framing):
    """`to_shape` of images of any size, compiled: alone an image takes longer in Python than in its pixels."""
    of = tf.TensorSpec((None, None, None, channels), dtype)
    return tf.function(lambda images: to_shape(images, image_shape, framing), [of], autograph=False)


def normalize(images):
    """0..255 (uint8 or float) -> float32 in [-1, 1]: (2 x - 255) / 255. An array gives an array, a tensor a tensor.

    Of whole numbers only the last step rounds, and it is a product, which compilers leave as it is: a quotient becomes
    a product by the inverse in one runtime and not in another, and the served pixels would not be those of training.
    """
    if isinstance(images, np.ndarray):
        return (np.float32(2.0) * images.astype(np.float32) - np.float32(255.0)) * np.float32(1 / 255)
    return (2.0 * tf.cast(images, tf.float32) - 255.0) * np.float32(1 / 255)


def quantize(images) -> np.ndarray:
    """Float in [-1, 1] -> uint8: round((x + 1) 127.5), clipped to 0..255. Undoes `normalize` exactly.

    Raises:
        ValueError: A pixel that is not finite, as of a model that has diverged.
    """
    pixels = np.asarray(images, dtype=np.float32)
    if not np.isfinite(pixels).all():
        raise ValueError("images hold NaN or infinite pixels")
    return np.clip(np.rint((pixels + np.float32(1.0)) * np.float32(127.5)), 0, 255).astype(np.uint8)
