"""Augmentations that choose an operation for each image: the batch is parted by operation, each sees its part at once,
and the parts are put together again."""

import logging
from collections.abc import Callable

from kood.data.augment.keras_cv_layers import from_colour_bytes, layers, to_colour_bytes, uniform
from kood.data.tf_on_cpu import tf

__all__ = ["aug_mix", "rand_augment"]


def rand_augment(images, seed):
    """RandAugment (arXiv:1909.13719): three random operations in turn for each image, of KerasCV's standard policy.

    The policy's ten operations are AutoContrast, Equalization, Solarization, RandomColorDegeneration, RandomContrast,
    RandomBrightness, RandomShear and RandomTranslation (the last two along x and along y), with equal chances, and
    1/11 for none. Magnitudes are KerasCV's defaults: mean 0.5 and standard deviation 0.15 of each operation's range.
    """
    colour = to_colour_bytes(images)
    for turn_seed in tf.unstack(tf.random.split(seed, 3)):
        which_seed, amount_seed = tf.unstack(tf.random.split(turn_seed, 2))
        which = tf.random.stateless_uniform([tf.shape(images)[0]], which_seed, 0, 11, tf.int32)
        colour = each_by_its_own(colour, which, amount_seed, rand_augment_operations())
    return from_colour_bytes(colour, images)


def aug_mix(images, seed):
    """AugMix (arXiv:1912.02781): the image mixed with the mean of three random chains of one to three operations.

    The result is m x + (1 - m) sum_i w_i chain_i(x), with w from Dirichlet(1, 1, 1) and m from Beta(1, 1). The nine
    operations are the paper's, done by KerasCV's layers: AutoContrast, Equalization, Posterization (4 bits),
    RandomRotation (up to 30 s degrees), Solarization (threshold 256 (1 - s)), RandomShear (up to 0.3 s) and
    RandomTranslation (up to s / 3 of the side) along x and along y, where the severity s is uniform in [0.01, 0.3].
    """
    chains, longest = 3, 3
    batch = tf.shape(images)[0]
    mix_seed, weight_seed, depth_seed, turns_seed = tf.unstack(tf.random.split(seed, 4))
    colour = to_colour_bytes(images)
    operations = aug_mix_operations()
    chained = tf.tile(colour, [chains, 1, 1, 1])
    depths = tf.random.stateless_uniform([chains * batch], depth_seed, 1, longest + 1, tf.int32)
    for turn, turn_seed in enumerate(tf.unstack(tf.random.split(turns_seed, longest))):
        which_seed, amount_seed = tf.unstack(tf.random.split(turn_seed, 2))
        which = tf.random.stateless_uniform([chains * batch], which_seed, 0, len(operations), tf.int32)
        which = tf.where(turn < depths, which, len(operations))
        chained = each_by_its_own(chained, which, amount_seed, operations)
    # Dirichlet(1, 1, 1) is three exponential draws divided by their sum.
    draws = -tf.math.log(1.0 - tf.random.stateless_uniform([chains, batch, 1, 1, 1], weight_seed)) + 1e-12
    weights = draws / tf.reduce_sum(draws, axis=0)
    mixed = tf.reduce_sum(weights * tf.reshape(chained, tf.concat([[chains], tf.shape(colour)], axis=0)), axis=0)
    own = uniform(images, mix_seed, 0.0, 1.0, (1, 1, 1))
    return from_colour_bytes(own * colour + (1.0 - own) * mixed, images)


# What an operation does to its part of the batch: (images of 0..255, one amount in [0, 1) and one sign each) -> images.
_Operation = Callable


def each_by_its_own(images, which, seed, operations: list[_Operation]):
    """Apply to image i the operation `which[i]`; an index past the last leaves the image as it is."""
    batch = tf.shape(images)[0]
    seeds = tf.unstack(tf.random.split(seed, 3))
    draws = (
        tf.random.stateless_normal([batch], seeds[0]),
        tf.random.stateless_uniform([batch], seeds[1]),
        tf.where(tf.random.stateless_uniform([batch], seeds[2]) < 0.5, -1.0, 1.0),
    )
    rows = tf.dynamic_partition(tf.range(batch), which, len(operations) + 1)
    parts = []
    for members, operation in zip(rows, operations, strict=False):
        part = tf.ensure_shape(tf.gather(images, members), (None, *images.shape[1:]))
        own_draws = [tf.gather(draw, members) for draw in draws]
        parts.append(_unless_empty(operation, part, *own_draws))
    parts.append(tf.gather(images, rows[-1]))
    return tf.ensure_shape(tf.dynamic_stitch(rows, parts), images.shape)


def _unless_empty(operation: _Operation, part, *draws):
    return tf.cond(tf.shape(part)[0] > 0, lambda: tf.ensure_shape(operation(part, *draws), part.shape), lambda: part)


def rand_augment_operations() -> list[_Operation]:
    mean, spread = 0.5, 0.15

    def clipped(normal, most):
        return tf.clip_by_value((mean + spread * normal) * most, 0.0, most)

    def solarize(part, normal, uniform, sign):
        # One normal draw moves both amounts: more addition goes with a lower threshold, both being the magnitude.
        return _solarized(part, clipped(normal, 110.0), 255.0 - clipped(normal, 255.0))

    return [
        _auto_contrast,
        _equalize,
        solarize,
        lambda part, normal, uniform, sign: _applied("color", part, clipped(normal, 1.0)),
        lambda part, normal, uniform, sign: _applied("contrast", part, 1.0 + sign * uniform * mean),
        lambda part, normal, uniform, sign: _applied("brightness", part, sign * uniform * mean * 255.0),
        lambda part, normal, uniform, sign: _shear(part, "shear_x", sign * clipped(normal, 1.0)),
        lambda part, normal, uniform, sign: _shear(part, "shear_y", sign * clipped(normal, 1.0)),
        lambda part, normal, uniform, sign: _translate(part, "width_translations", sign * uniform * mean),
        lambda part, normal, uniform, sign: _translate(part, "height_translations", sign * uniform * mean),
    ]


def aug_mix_operations() -> list[_Operation]:
    def severity(uniform):
        return 0.01 + 0.29 * uniform

    def solarize(part, normal, uniform, sign):
        thresholds = 256.0 * (1.0 - severity(uniform))
        return _solarized(part, tf.zeros_like(thresholds), thresholds)

    def rotate(part, normal, uniform, sign):
        angles = sign * severity(uniform) * (30.0 / 180.0 * 3.141592653589793)
        return layers()["rotate"]({"images": part, "labels": angles})["images"]

    return [
        _auto_contrast,
        _equalize,
        lambda part, normal, uniform, sign: layers()["posterize"].augment_image(part),
        rotate,
        solarize,
        lambda part, normal, uniform, sign: _shear(part, "shear_x", sign * severity(uniform) * 0.3),
        lambda part, normal, uniform, sign: _shear(part, "shear_y", sign * severity(uniform) * 0.3),
        lambda part, normal, uniform, sign: _translate(part, "width_translations", sign * severity(uniform) / 3.0),
        lambda part, normal, uniform, sign: _translate(part, "height_translations", sign * severity(uniform) / 3.0),
    ]


def _applied(layer: str, part, amounts):
    return layers()[layer].augment_images(part, transformations=amounts[:, None, None, None])


def _solarized(part, additions, thresholds):
    amounts = {"additions": additions[:, None, None, None], "thresholds": thresholds[:, None, None, None]}
    return layers()["solarize"].augment_images(part, transformations=amounts)


def _auto_contrast(part, normal, uniform, sign):
    return layers()["auto_contrast"].augment_images(part)


def _equalize(part, normal, uniform, sign):
    def other(record: logging.LogRecord) -> bool:
        return "while_loop" not in record.getMessage()

    # The layer's histograms cannot be vectorized; TensorFlow says so at every trace, which helps no user.
    logger = tf.get_logger()
    logger.addFilter(other)
    try:
        return layers()["equalize"].augment_images(part)
    finally:
        logger.removeFilter(other)


def _shear(part, direction: str, amounts):
    directions = {"shear_x": None, "shear_y": None} | {direction: amounts[:, None]}
    return layers()["shear"].augment_images(part, transformations=directions)


def _translate(part, direction: str, shares):
    none = tf.zeros_like(shares)[:, None]
    directions = {"height_translations": none, "width_translations": none} | {direction: shares[:, None]}
    return layers()["translate"].augment_images(part, transformations=directions)
