"""Augmentations that move or hide parts of an image."""

from kood.data.augment.keras_cv_layers import layers, uniform
from kood.data.tf_on_cpu import tf

__all__ = ["crop", "cutout", "flip"]


def flip(images, seed):
    """Mirrors each image left to right with chance 1/2.

    Args:
        images: float32 (B, H, W, C) in [-1, 1].
        seed: Integer (2,).

    Returns:
        float32 (B, H, W, C) in [-1, 1].
    """
    mirrored = uniform(images, seed, 0.0, 1.0, (1, 1, 1)) < 0.5
    return tf.where(mirrored, tf.reverse(images, axis=[2]), images)


def crop(images, seed):
    """Pads each image by an eighth of its side (reflected) and cuts a window of the old size at a random place.

    At 32 pixels the padding is 4, as is usual for CIFAR (He et al., arXiv:1512.03385, with reflection for zeros).

    Args:
        images: float32 (B, H, W, C) in [-1, 1].
        seed: Integer (2,).

    Returns:
        float32 (B, H, W, C) in [-1, 1].
    """
    height, width = images.shape[1:3]
    down, right = (min(-(-side // 8), side - 1) for side in (height, width))
    padded = tf.pad(images, [[0, 0], [down, down], [right, right], [0, 0]], mode="REFLECT")
    seeds = tf.random.split(seed, 2)
    batch = tf.shape(images)[0]
    tops = tf.random.stateless_uniform([batch, 1], seeds[0], 0, 2 * down + 1, tf.int32)
    lefts = tf.random.stateless_uniform([batch, 1], seeds[1], 0, 2 * right + 1, tf.int32)
    rows = tf.gather(padded, tops + tf.range(height), axis=1, batch_dims=1)
    return tf.ensure_shape(tf.gather(rows, lefts + tf.range(width), axis=2, batch_dims=1), images.shape)


def cutout(images, seed):
    """Greys out a square of half the side, centred anywhere in the image (arXiv:1708.04552; KerasCV's RandomCutout).

    Parts of the square may fall outside the image. The fill is 0, the middle of [-1, 1].

    Args:
        images: float32 (B, H, W, C) in [-1, 1].
        seed: Integer (2,).

    Returns:
        float32 (B, H, W, C) in [-1, 1].
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
