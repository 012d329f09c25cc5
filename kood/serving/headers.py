"""What a file says beside its pixels, read by TensorFlow operations: its orientation, and what decoders differ on.

Chunks are walked over one after the other, as decoders do; looking for bytes would find them in other places too.
"""

import functools
from collections.abc import Callable

import tensorflow as tf

from kood.data.rules import ORIENTATION, STEPS

__all__ = ["gif_header", "jpeg_header", "number", "png_header", "read", "webp_header"]


def read(raw, at, count: int):
    """`count` of the bytes of a file from a place, int64; zeros past its end."""
    piece = tf.cast(raw[at : at + count], tf.int64)
    return tf.ensure_shape(tf.pad(piece, [[0, count - tf.size(piece)]]), (count,))


def number(digits, *, little=False):
    """The unsigned number that bytes write; of rows of bytes that of each."""
    weights = tf.constant([256**power for power in range(digits.shape[-1])], tf.int64)
    return tf.reduce_sum(digits * tf.where(little, weights, weights[::-1]), axis=-1)


def _walked(raw, start, step: Callable, *found):
    """Walks from a place, by `step(at, *found) -> (place of the next, *found)`, until that is past the end."""
    size = tf.size(raw, tf.int64)

    def on(at, steps, *_):
        return tf.logical_and(at < size, steps < STEPS)

    def walk(at, steps, *found):
        following, *more = step(at, *found)
        return (tf.maximum(following, at + 1), steps + 1, *more)

    state = (tf.convert_to_tensor(start, tf.int64), tf.constant(0), *found)
    at, _, *found = tf.while_loop(on, walk, state)
    ended = tf.debugging.Assert(at >= size, ["more metadata than is looked through"])
    with tf.control_dependencies([ended]):
        return [tf.identity(one) for one in found]


def _none():
    return tf.constant(-1, tf.int64)


def jpeg_header(raw):
    """A JPEG's orientation, and whether it has Adobe's marker."""
    end = tf.size(raw, tf.int64)

    def step(at, exif, length, adobe):
        head = read(raw, at, 10)
        kind, size = head[1], number(head[2:4])
        # Between segments: stray bytes, fill bytes, and markers that stand alone.
        stray, fill = head[0] != 0xFF, kind == 0xFF
        alone = tf.reduce_any(kind == [0x00, 0x01, *range(0xD0, 0xDA)])
        segment = tf.logical_not(stray | fill | alone)
        is_exif = segment & (kind == 0xE1) & tf.reduce_all(head[4:10] == list(b"Exif\0\0")) & (exif < 0)
        adobe |= segment & (kind == 0xEE) & tf.reduce_all(head[4:9] == list(b"Adobe")) & (size >= 14)
        following = tf.where(stray | fill, at + 1, tf.where(alone, at + 2, at + 2 + size))
        following = tf.where(segment & (kind == 0xDA), end, following)
        return following, tf.where(is_exif, at + 10, exif), tf.where(is_exif, size - 8, length), adobe

    exif, length, adobe = _walked(raw, 2, step, _none(), _none(), tf.constant(False))
    return _orientation(raw, exif, length), adobe


def png_header(raw):
    """A PNG's orientation, and whether it has a chunk tRNS."""
    end = tf.size(raw, tf.int64)

    def step(at, exif, length, transparent):
        head = read(raw, at, 8)
        size, kind = number(head[:4]), head[4:]
        is_exif = tf.reduce_all(kind == list(b"eXIf"))
        transparent |= tf.reduce_all(kind == list(b"tRNS"))
        following = tf.where(tf.reduce_all(kind == list(b"IDAT")), end, at + 12 + size)
        return following, tf.where(is_exif, at + 8, exif), tf.where(is_exif, size, length), transparent

    exif, length, transparent = _walked(raw, 33, step, _none(), _none(), tf.constant(False))
    return _orientation(raw, exif, length), transparent


def webp_header(raw):
    """A WebP's orientation, whether it is animated, and its (width, height)."""
    head = read(raw, 0, 30)
    extended, lossless = (tf.reduce_all(head[12:16] == list(name)) for name in (b"VP8X", b"VP8L"))
    flags = tf.where(extended, head[20], 0)
    # 24 bits a side less one; or 14 bits less one, both in 32; or 14 bits in 16 each, behind a start code.
    canvas = 1 + tf.stack([number(head[24:27], little=True), number(head[27:30], little=True)])
    packed = number(head[21:25], little=True)
    coded = 1 + tf.stack([packed % 2**14, packed // 2**14 % 2**14])
    plain = tf.stack([number(head[26:28], little=True), number(head[28:30], little=True)]) % 2**14
    size = tf.where(extended, canvas, tf.where(lossless, coded, plain))
    end = tf.minimum(tf.size(raw, tf.int64), 8 + number(head[4:8], little=True))

    def step(at, exif, length):
        chunk = read(raw, at, 14)
        held = number(chunk[4:8], little=True)
        is_exif = tf.reduce_all(chunk[:4] == list(b"EXIF")) & (at + 8 + held <= end)
        marked = tf.where(tf.reduce_all(chunk[8:14] == list(b"Exif\0\0")), tf.constant(6, tf.int64), 0)
        following = tf.where(is_exif, tf.size(raw, tf.int64), at + 8 + held + held % 2)
        return following, tf.where(is_exif, at + 8 + marked, exif), tf.where(is_exif, held - marked, length)

    def walked():
        return tf.stack(_walked(raw, 12, step, _none(), _none()))

    told = tf.bitwise.bitwise_and(flags, 8) > 0
    exif, length = tf.unstack(tf.cond(told, walked, lambda: tf.stack([_none(), _none()])))
    return _orientation(raw, exif, length), tf.bitwise.bitwise_and(flags, 2) > 0, size


def gif_header(raw):
    """Whether a GIF's first picture covers its canvas and has no transparent colour, and its (width, height)."""
    end, head = tf.size(raw, tf.int64), read(raw, 0, 13)
    size = tf.stack([number(head[6:8], little=True), number(head[8:10], little=True)])
    table = tf.where(head[10] >= 128, 3 * 2 ** (head[10] % 8 + 1), 0)

    def step(at, within, covers, transparent):
        block = read(raw, at, 10)
        # A block of an extension has its length before it; one of length 0 ends the extension.
        ends = tf.logical_not(within) & (block[0] != 0x21)
        transparent |= tf.logical_not(within | ends) & (block[1] == 0xF9) & (block[3] % 2 > 0)
        sides = tf.stack([number(block[5:7], little=True), number(block[7:9], little=True)])
        covers |= ends & (block[0] == 0x2C) & tf.reduce_all(block[1:5] == 0) & tf.reduce_all(sides == size)
        following = tf.where(ends, end, tf.where(within, at + 1 + block[0], at + 2))
        return following, tf.where(within, block[0] > 0, True), covers, transparent

    covers, transparent = _walked(raw, 13 + table, step, tf.constant(False), tf.constant(False), tf.constant(False))[1:]
    return covers & tf.logical_not(transparent), size


def _orientation(raw, start, length):
    """What `kood.data.rules.orientation_in` says of a block of EXIF; 1 of one that starts at -1."""
    return tf.cond(start < 0, lambda: tf.constant(1, tf.int64), lambda: _orientation_in(raw[start : start + length]))


def _orientation_in(block):
    size, head = tf.size(block, tf.int64), read(block, 0, 8)
    little, big = (tf.reduce_all(head[:4] == list(order)) for order in (b"II*\0", b"MM\0*"))
    numbers = functools.partial(number, little=little)
    directory = tf.where(little | big, numbers(head[4:8]), size)
    held = tf.maximum(size - directory - 2, 0) // 12
    entries = tf.minimum(numbers(read(block, directory, 2)), held)
    first = directory + 2
    rows = tf.cast(tf.reshape(block[first : first + 12 * entries], (-1, 12)), tf.int64)
    tags = numbers(rows[:, :2]) == ORIENTATION
    # A number of 16 bits, one of them.
    plain = (numbers(rows[:, 2:4]) == 3) & (numbers(rows[:, 4:8]) == 1)
    values = numbers(rows[:, 8:10])
    told = tf.where(plain & (values >= 1) & (values <= 8), values, 1)
    # The first entry counts.
    return tf.cond(tf.reduce_any(tags), lambda: tf.boolean_mask(told, tags)[0], lambda: tf.constant(1, tf.int64))
