"""Mixtures of in-distribution images and outliers, drawn for each batch anew (MixOE)."""

from typing import Literal

from kood.data.tf_on_cpu import tf

__all__ = ["mixed_in", "mixtures"]


def mixed_in(batch, images, outliers, seed, *, mix: Literal["linear", "cutmix"], alpha: float = 1.0):
    """A batch whose outlier rows are mixtures of them with its images; those stay in it besides.

    Outlier j is mixed with image j, counted round where there are more outliers, and its label, all-zero or its target,
    with the image's label in the same shares.

    Args:
        batch: {"image": float32 (N, H, W, C), "label": float32 (N, K), ...}.
        images: Integer (B,), the rows of the images.
        outliers: Integer (O,), the rows of the outliers.
        seed: As for `mixtures`, like the others.
    """
    image, label = batch["image"], batch["label"]
    images = tf.gather(images, tf.range(outliers.shape[0]) % images.shape[0])
    mixture, share = mixtures(tf.gather(image, images), tf.gather(image, outliers), seed, mix=mix, alpha=alpha)
    share = share[:, None]
    mixed_label = share * tf.gather(label, images) + (1.0 - share) * tf.gather(label, outliers)
    return {
        **batch,
        "image": tf.tensor_scatter_nd_update(image, outliers[:, None], mixture),
        "label": tf.tensor_scatter_nd_update(label, outliers[:, None], mixed_label),
    }


def mixtures(images, outliers, seed, *, mix: Literal["linear", "cutmix"], alpha: float = 1.0):
    """Mixes images and outliers pair by pair, in shares l drawn from Beta(alpha, alpha).

    "linear" is l image + (1 - l) outlier. "cutmix" is the image with a rectangle of the outlier in it, of the sides
    H sqrt(1 - l) and W sqrt(1 - l), each rounded to a whole pixel, at a place drawn among those where it fits; its
    share is then what is left of the image's area. Shares of 0 and of 1 may come out.

    Source: Zhang et al. 2023, arXiv:2106.03917, where a batch has one share.

    Args:
        images: float32 (O, H, W, C).
        outliers: float32 (O, H, W, C).
        seed: Integer (2,).
        mix: "linear" or "cutmix".
        alpha: Parameter of the Beta distribution, above 0.

    Returns:
        (mixtures (O, H, W, C), shares of the first images (O,)), float32. Equal seeds give equal results, bit for bit.
    """
    seeds = tf.random.split(seed, 4)
    count, height, width = outliers.shape[:3]
    share = _beta(seeds[:2], count, alpha)
    if mix == "linear":
        weight = share[:, None, None, None]
        return weight * images + (1.0 - weight) * outliers, share
    side = tf.sqrt(1.0 - share)
    inside_rows, high = _stretch(seeds[2], side, height)
    inside_columns, wide = _stretch(seeds[3], side, width)
    inside = inside_rows[:, :, None, None] & inside_columns[:, None, :, None]
    return tf.where(inside, outliers, images), 1.0 - high * wide / (height * width)


def _beta(seeds, count, alpha):
    """Draws (count,) from Beta(alpha, alpha)."""
    # In float64: in float32 both gamma draws underflow to 0 where alpha is small.
    one, other = (tf.random.stateless_gamma((count,), seed, alpha=tf.constant(alpha, tf.float64), dtype=tf.float64)
                  for seed in tf.unstack(seeds))  # fmt: skip
    return tf.cast(tf.math.divide_no_nan(one, one + other), tf.float32)


def _stretch(seed, side, size):
    """About `side` (O,) times `size` pixels in a row at a random place: which they are (O, size), how many (O,)."""
    long = tf.round(side * size)
    first = tf.floor(tf.random.stateless_uniform(tf.shape(side), seed) * (size - long + 1.0))
    first = tf.minimum(first, size - long)[:, None]
    places = tf.range(size, dtype=tf.float32)
    return (places >= first) & (places < first + long[:, None]), long
