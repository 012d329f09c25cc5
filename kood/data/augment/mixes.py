"""Augmentations that mix an image with pictures of nothing."""

import functools

from kood.data.augment.geometry import crop, flip
from kood.data.augment.keras_cv_layers import from_colour_bytes, to_colour_bytes
from kood.data.augment.pictures import pictures
from kood.data.augment.policies import aug_mix_operations, each_by_its_own
from kood.data.images import normalize
from kood.data.tf_on_cpu import tf

__all__ = ["pixmix"]

#: Most turns of an image, k, and how weak a turn is, beta: what the paper has for CIFAR.
_TURNS, _BETA = 4, 3.0


def pixmix(images, seed):
    """PixMix (arXiv:2112.05135): up to four turns of mixing with a drawn picture or with a changed copy of the image.

    An image starts as it is or, with chance 1/2, changed by one of `aug_mix`'s nine operations. Then n turns follow, n
    uniform in 0..4. Each takes, with equal chances, the image's picture or the original image changed by such an
    operation, and joins it by `joined`, a sum or a product with equal chances. Pictures are fractals, dead leaves and
    Fourier noise, drawn once; an image's picture is mirrored and shifted at random. The paper's pictures are fractals
    that people made, and features of networks.
    """
    return mixed_with(_kept(tuple(images.shape[1:])), images, seed)


@functools.cache
def _kept(shape: tuple[int, int, int]):
    # Outside the graph that is being traced, which would otherwise hold a copy.
    with tf.init_scope():
        return tf.constant(pictures(*shape))


def mixed_with(own, images, seed):
    """`pixmix` with pictures of one's own, for an augmentation of one's own.

    Args:
        own: uint8 (N, H, W, C).
        images: float32 (B, H, W, C) in [-1, 1].
        seed: int32 (2,).

    Returns:
        float32 (B, H, W, C) in [-1, 1].
    """
    batch, seeds = tf.shape(images)[0], tf.unstack(tf.random.split(seed, 9))
    chosen = tf.random.stateless_uniform([batch], seeds[0], 0, tf.shape(own)[0], tf.int32)
    picture = crop(flip(normalize(tf.ensure_shape(tf.gather(own, chosen), images.shape)), seeds[1]), seeds[2])
    picture = to_colour_bytes(picture) / 255.0

    def coin(number):
        return tf.random.stateless_uniform([1 + _TURNS, batch], seeds[number]) < 0.5

    # The start, and then what each turn takes: all changes are of the original, so that one pass makes them all.
    taken = tf.range(1 + _TURNS)[:, None] <= tf.random.stateless_uniform([batch], seeds[3], 0, _TURNS + 1, tf.int32)
    changed, operations = coin(4), aug_mix_operations()
    which = tf.random.stateless_uniform([1 + _TURNS, batch], seeds[5], 0, len(operations), tf.int32)
    which = tf.reshape(tf.where(changed & taken, which, len(operations)), [-1])
    colour = to_colour_bytes(images)
    copies = each_by_its_own(tf.tile(colour, [1 + _TURNS, 1, 1, 1]), which, seeds[6], operations) / 255.0
    copies = tf.reshape(copies, tf.concat([[1 + _TURNS], tf.shape(colour)], axis=0))

    multiplies = coin(7)
    first, second = shares(tf.random.stateless_uniform([3, 1 + _TURNS, batch], seeds[8]))
    mixed = copies[0]
    for turn in range(1, 1 + _TURNS):
        take, change, by, a, b = (one[turn][:, None, None, None] for one in (taken, changed, multiplies, first, second))
        mixed = tf.where(take, joined(mixed, tf.where(change, copies[turn], picture), by, a, b), mixed)
    return from_colour_bytes(255.0 * mixed, images)


def shares(draws):
    """The shares a and b of `joined`, for uniform draws (3, ...).

    With equal chances a is of Beta(3, 1) and b of Beta(1, 3), or a - 1 and -b are both of Beta(1, 3): the second takes
    away what it resembles.
    """
    grown = draws ** (1.0 / _BETA)  # Beta(3, 1); 1 - grown is of Beta(1, 3).
    taking = draws[0] < 0.5
    return tf.where(taking, 2.0 - grown[1], grown[1]), tf.where(taking, grown[2] - 1.0, 1.0 - grown[2])


def joined(one, other, multiplies, a, b):
    """Two images in [0, 1] joined: the sum a x + b y of them as x, y in [-1, 1], or the product x^a y^b as in [0, 2].

    Args:
        one: (B, H, W, C).
        other: (B, H, W, C).
        multiplies: Whether it is the product, (B, 1, 1, 1).
        a: Share of the one, at least 0.
        b: Share of the other, at least -1.

    Returns:
        (B, H, W, C), clipped to [0, 1].
    """
    total = (a * (2.0 * one - 1.0) + b * (2.0 * other - 1.0) + 1.0) / 2.0
    # Logarithms, since powers take five times as long; that of 0 is minus infinity, which any share above 0 leaves.
    powers = tf.maximum(a, 1e-6) * tf.math.log(2.0 * one) + b * tf.math.log(tf.maximum(2.0 * other, 1e-37))
    product = tf.exp(powers) / 2.0
    return tf.clip_by_value(tf.where(multiplies, product, total), 0.0, 1.0)
