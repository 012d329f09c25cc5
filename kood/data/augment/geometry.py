"""Augmentations that move or hide parts of an image.

What only moves pixels says for each place of the result which row and which column of the image it shows (`MOVES`), so
that whoever holds the images, a training's device among them, can look the result up.
"""

from collections.abc import Callable

from kood.data.augment.keras_cv_layers import layers
from kood.data.tf_on_cpu import tf

__all__ = ["crop", "cutout", "flip"]


def flip(images, seed):
    """Mirrors each image left to right with chance 1/2."""
    return _moved(images, _mirrored, seed)


def crop(images, seed):
    """Pads each image by an eighth of its side (reflected) and cuts a window of the old size at a random place.

    At 32 pixels the padding is 4, as is usual for CIFAR (He et al., arXiv:1512.03385, with reflection for zeros).
    """
    return _moved(images, _shifted, seed)


def _mirrored(down, across, sides, seed):
    turned = tf.random.stateless_uniform([tf.shape(across)[0], 1], seed) < 0.5
    return down, tf.where(turned, sides[1] - 1 - across, across)


def _shifted(down, across, sides, seed):
    moved = []
    for places, side, own in zip((down, across), sides, tf.unstack(tf.random.split(seed, 2)), strict=True):
        most = min(-(-side // 8), side - 1)
        shift = tf.random.stateless_uniform([tf.shape(places)[0], 1], own, 0, 2 * most + 1, tf.int32)
        # Beyond either border the image goes on as in a mirror that stands on its outermost pixel.
        moved.append(side - 1 - tf.abs(side - 1 - tf.abs(places + shift - most)))
    return tuple(moved)


#: Of each augmentation that only moves pixels: (rows int32 (B, H), columns int32 (B, W), (height, width), seed) -> the
#: rows and columns of the image that its result shows at those places.
MOVES: dict[str, Callable] = {"flip": _mirrored, "crop": _shifted}


def every_place(count, sides):
    """All rows and all columns, int32 (count, H) and (count, W): what images show that nothing has moved."""
    return tuple(tf.tile(tf.range(side)[None], [count, 1]) for side in sides)


def _moved(images, move, seed):
    sides = images.shape[1:3]
    down, across = move(*every_place(tf.shape(images)[0], sides), sides, seed)
    rows = tf.gather(images, down, axis=1, batch_dims=1)
    return tf.ensure_shape(tf.gather(rows, across, axis=2, batch_dims=1), images.shape)


def cutout(images, seed):
    """Greys out a square of half the side, centred anywhere in the image (arXiv:1708.04552; KerasCV's RandomCutout).

    Parts of the square may fall outside the image. The fill is 0, the middle of [-1, 1].
    """
    height, width = images.shape[1:3]
    seeds = tf.random.split(seed, 2)
    batch = tf.shape(images)[0]
    where = {
        "centers_x": tf.random.stateless_uniform([batch], seeds[0], 0, width, tf.int32),
        "centers_y": tf.random.stateless_uniform([batch], seeds[1], 0, height, tf.int32),
        "rectangles_height": tf.fill([batch], -(-height // 2)),
        "rectangles_width": tf.fill([batch], -(-width // 2)),
    }
    return tf.ensure_shape(layers()["cutout"].augment_images(images, transformations=where), images.shape)
