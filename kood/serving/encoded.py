"""Image files to pixels inside the served graph, as `kood.data.decode` reads them for training.

What the graph cannot decode is left out of the batch there and marked, since an error in one file would fail them all.
"""

import tensorflow as tf

from kood.data.images import to_shape

__all__ = ["decode_files"]

#: Where Pillow stops too: files that are small and decode to gigabytes.
LARGEST = 178_956_970

#: Bytes at the beginning of a JPEG file in which its rotation flag is looked for.
_HEAD = 16_384


def decode_files(files: tf.Tensor, image_shape: tuple[int, int, int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes image files of any size, grey, colour or with alpha, and brings them to one shape.

    PNG, JPEG, WebP, BMP, and a GIF's first frame. A JPEG's EXIF rotation is applied. Animated WebP is refused:
    TensorFlow 2.21 crashes on it.

    Args:
        files: string (B,), the bytes of each file.
        image_shape: (H, W, C), C 1 or 3.

    Returns:
        (pixels, decoded): float32 (B, H, W, C) whole numbers of 0..255, zero where a file could not be decoded; and
        bool (B,), which were.
    """
    count = tf.size(files, tf.int64)

    def decode(place, data):
        return place, tf.ensure_shape(_decode(data, image_shape), image_shape)

    found = tf.data.Dataset.from_tensor_slices(files).enumerate().map(decode, tf.data.AUTOTUNE).ignore_errors()
    # A dataset of one element is not empty, whatever was left out.
    sentinel = tf.data.Dataset.from_tensors((tf.constant(-1, tf.int64), tf.zeros(image_shape)))
    places, pixels = sentinel.concatenate(found).batch(count + 1).get_single_element()
    places, pixels = places[1:, tf.newaxis], pixels[1:]
    height, width, channels = image_shape
    whole = tf.scatter_nd(places, pixels, tf.stack([count, height, width, channels]))
    decoded = tf.scatter_nd(places, tf.ones_like(places[:, 0], tf.int32), tf.reshape(count, (1,))) > 0
    return tf.ensure_shape(whole, (None, *image_shape)), decoded


def _decode(data, image_shape):
    is_jpeg = tf.strings.substr(data, 0, 3) == b"\xff\xd8\xff"
    is_png = tf.strings.substr(data, 0, 8) == b"\x89PNG\r\n\x1a\n"
    pixels = tf.case([(is_jpeg, lambda: _jpeg(data)), (is_png, lambda: _png(data))], default=lambda: _other(data))
    return _to_shape(pixels, image_shape)


def _jpeg(data):
    with tf.control_dependencies([_not_too_large(tf.io.extract_jpeg_shape(data))]):
        # The exact cosine transform, which Pillow takes too; TensorFlow's default is a faster one, off by up to 4.
        pixels = tf.io.decode_jpeg(data, channels=0, dct_method="INTEGER_ACCURATE")
    return tf.cast(_turned(pixels, _orientation(data)), tf.float32)


def _png(data):
    size = tf.io.decode_raw(tf.strings.substr(data, 16, 8), tf.int32, little_endian=False)
    with tf.control_dependencies([_not_too_large(size)]):
        wide = tf.io.decode_png(data, channels=0, dtype=tf.uint16)
    # 65535 / 255 = 257: exact for files of 8 bits, rounded for those of 16.
    return tf.round(tf.cast(wide, tf.float32) / 257.0)


def _other(data):
    head = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 0, 30), tf.uint8, fixed_length=30), tf.int32)
    is_webp = tf.strings.substr(data, 8, 8) == b"WEBPVP8X"
    animated = tf.logical_and(is_webp, tf.bitwise.bitwise_and(head[20], 2) > 0)
    # A WebP's canvas is 24 bits less one each way, a GIF's 16 bits; what has neither gives a number without meaning.
    canvas = 1 + tf.reduce_sum(tf.reshape(head[24:30], (2, 3)) * [[1, 256, 65536]], axis=1)
    is_gif = tf.strings.substr(data, 0, 4) == b"GIF8"
    screen = tf.reduce_sum(tf.reshape(head[6:10], (2, 2)) * [[1, 256]], axis=1)
    size = tf.where(is_webp, canvas, tf.where(is_gif, screen, tf.zeros_like(screen)))
    refused = tf.debugging.Assert(tf.logical_not(animated), ["an animated WebP"])
    with tf.control_dependencies([refused, _not_too_large(size)]):
        return tf.cast(tf.io.decode_image(data, channels=0, expand_animations=False), tf.float32)


def _not_too_large(size):
    pixels = tf.cast(size[0], tf.int64) * tf.cast(size[1], tf.int64)
    return tf.debugging.Assert(tf.logical_and(pixels >= 0, pixels <= LARGEST), ["an image of too many pixels"])


def _to_shape(pixels, image_shape):
    """One image (h, w, c), c 1, 2, 3 or 4, in the model's shape (H, W, C)."""

    def grey():
        return to_shape(tf.ensure_shape(pixels, (None, None, 1))[tf.newaxis], image_shape)[0]

    def grey_and_alpha():
        both = tf.ensure_shape(pixels, (None, None, 2))
        four = tf.concat([both[..., :1], both[..., :1], both], axis=-1)
        return to_shape(four[tf.newaxis], image_shape)[0]

    def colour():
        return to_shape(tf.ensure_shape(pixels, (None, None, 3))[tf.newaxis], image_shape)[0]

    def colour_and_alpha():
        return to_shape(tf.ensure_shape(pixels, (None, None, 4))[tf.newaxis], image_shape)[0]

    return tf.switch_case(tf.shape(pixels)[2] - 1, [grey, grey_and_alpha, colour, colour_and_alpha])


def _turned(pixels, orientation):
    """The image (h, w, c) as its EXIF orientation, 1 to 8, says that it stands."""
    pixels = tf.cond(orientation >= 5, lambda: tf.transpose(pixels, (1, 0, 2)), lambda: pixels)
    mirrored = tf.reduce_any(orientation == [2, 3, 6, 7])
    upside_down = tf.reduce_any(orientation == [3, 4, 7, 8])
    pixels = tf.cond(mirrored, lambda: tf.reverse(pixels, [1]), lambda: pixels)
    return tf.cond(upside_down, lambda: tf.reverse(pixels, [0]), lambda: pixels)


def _orientation(data):
    """The EXIF orientation of a JPEG file; 1 where it has none."""
    # Zeros past the end, so that a number of a damaged header can be read wherever it points to.
    raw = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 0, _HEAD), tf.uint8, fixed_length=_HEAD), tf.int32)
    marker = tf.stack([raw[place : _HEAD - 6 + place] for place in range(6)], axis=1)
    starts = tf.reduce_all(marker == list(b"Exif\0\0"), axis=1)
    tiff = tf.argmax(starts, output_type=tf.int32) + 6
    little = tf.gather(raw, tiff) == ord("I")

    def number(place, bytes_):
        at = tf.clip_by_value(place[..., tf.newaxis] + tf.range(bytes_), 0, _HEAD - 1)
        digits = tf.gather(raw, at)
        digits = tf.where(little, tf.reverse(digits, [-1]), digits)
        return tf.reduce_sum(digits * 256 ** tf.range(bytes_ - 1, -1, -1), axis=-1)

    directory = tiff + tf.clip_by_value(number(tiff + 4, 4), 0, _HEAD)
    entries = directory + 2 + 12 * tf.range(tf.minimum(number(directory, 2), 100))
    values = tf.where(number(entries, 2) == 0x0112, number(entries + 8, 2), 0)
    value = tf.reduce_max(tf.concat([values, [0]], axis=0))
    known = tf.reduce_any(starts) & (value >= 1) & (value <= 8)
    return tf.where(known, value, 1)
