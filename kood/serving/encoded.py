"""Image files to pixels inside the served graph, by the rules of `kood.data.rules`.

What the graph cannot decode by them is left out of the batch there and marked, since an error in one file would fail
them all.
"""

import tensorflow as tf

from kood.data.images import to_shape
from kood.data.rules import LARGEST, MIRRORED, REDUCED_FROM, REDUCTIONS, STRETCHED, UPSIDE_DOWN, Framing, inscribed
from kood.serving import headers

__all__ = ["decode_files"]


def decode_files(
    files: tf.Tensor, image_shape: tuple[int, int, int], framing: Framing = STRETCHED
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes image files of any size, grey, colour or with alpha, and brings them to one shape.

    PNG, JPEG, WebP, BMP and GIF. What TensorFlow would read otherwise than training does is refused, and so is an
    animated WebP, on which TensorFlow 2.21 crashes.

    Args:
        files: string (B,), the bytes of each file.
        image_shape: (H, W, C), C 1 or 3.

    Returns:
        (pixels, decoded): float32 (B, H, W, C) whole numbers of 0..255, zero where a file could not be decoded; and
        bool (B,), which were.
    """
    count = tf.size(files, tf.int64)

    def decode(place, data):
        return place, tf.ensure_shape(_decode(data, image_shape, framing), image_shape)

    found = tf.data.Dataset.from_tensor_slices(files).enumerate().map(decode, tf.data.AUTOTUNE).ignore_errors()
    # A dataset of one element is not empty, whatever was left out.
    sentinel = tf.data.Dataset.from_tensors((tf.constant(-1, tf.int64), tf.zeros(image_shape)))
    places, pixels = sentinel.concatenate(found).batch(count + 1).get_single_element()
    places, pixels = places[1:, tf.newaxis], pixels[1:]
    height, width, channels = image_shape
    whole = tf.scatter_nd(places, pixels, tf.stack([count, height, width, channels]))
    decoded = tf.scatter_nd(places, tf.ones_like(places[:, 0], tf.int32), tf.reshape(count, (1,))) > 0
    return tf.ensure_shape(whole, (None, *image_shape)), decoded


def _decode(data, image_shape, framing):
    raw = tf.io.decode_raw(data, tf.uint8)

    def starts(what, at=0):
        return tf.strings.substr(data, at, len(what)) == what

    kinds = {
        "jpeg": (starts(b"\xff\xd8\xff"), lambda: _jpeg(data, raw, image_shape[:2], framing)),
        "png": (starts(b"\x89PNG\r\n\x1a\n"), lambda: _png(data, raw)),
        "webp": (starts(b"RIFF") & starts(b"WEBP", 8), lambda: _webp(data, raw)),
        "gif": (starts(b"GIF8"), lambda: _gif(data, raw)),
    }
    pixels = tf.case(list(kinds.values()), default=lambda: _bmp(data, raw))
    return _to_shape(pixels, image_shape, framing)


def _jpeg(data, raw, size, framing):
    shape = tf.cast(tf.io.extract_jpeg_shape(data), tf.int64)
    orientation, adobe = headers.jpeg_header(raw)
    plain = tf.reduce_any(shape[2] == [1, 3])
    known = _asserted(plain | (adobe & (shape[2] == 4)), "a JPEG of four colours without Adobe's marker")

    def decoded(by):
        # The exact cosine transform, which Pillow takes too; TensorFlow's default is a faster one, off by up to 4.
        return tf.io.decode_jpeg(data, channels=0, ratio=by, dct_method="INTEGER_ACCURATE")

    with tf.control_dependencies([known, _not_too_large(shape)]):
        # As `kood.data.rules.reduction` has it.
        upright = tf.where(orientation >= 5, shape[1::-1], shape[:2])
        if framing.resize == "pad":
            size = inscribed(size, tf.unstack(upright), tf.minimum, tf.maximum)
        most = tf.reduce_min(upright // (2 * tf.cast(tf.stack(size), tf.int64)))
        reduced = plain & framing.antialias & (shape[0] * shape[1] >= REDUCED_FROM)
        which = tf.where(reduced, tf.reduce_sum(tf.cast(most < REDUCTIONS[:-1], tf.int32)), len(REDUCTIONS) - 1)
        pixels = tf.switch_case(which, [lambda by=by: decoded(by) for by in REDUCTIONS])
    return _turned(pixels, orientation)


def _png(data, raw):
    head = headers.read(raw, 16, 10)
    orientation, transparent = headers.png_header(raw)
    wide, colour = head[8] == 16, head[9]
    # Only a grey or a coloured pixel can be transparent by its value; TensorFlow makes that alpha where it is asked to.
    keyed = transparent & tf.reduce_any(colour == [0, 2])

    def decoded(dtype):
        return tf.cond(keyed, lambda: tf.io.decode_png(data, 4, dtype), lambda: tf.io.decode_png(data, 0, dtype))

    def sixteen_bits():
        return tf.cast(tf.round(tf.cast(decoded(tf.uint16), tf.float32) / 257.0), tf.uint8)

    read = _asserted(tf.logical_not(wide & keyed & (colour == 2)), "a PNG with a transparent colour of 16 bits")
    sides = tf.stack([headers.number(head[:4]), headers.number(head[4:8])])
    with tf.control_dependencies([read, _not_too_large(sides)]):
        return _turned(tf.cond(wide & (colour == 0), sixteen_bits, lambda: decoded(tf.uint8)), orientation)


def _webp(data, raw):
    orientation, animated, size = headers.webp_header(raw)
    with tf.control_dependencies([_asserted(~animated, "an animated WebP"), _not_too_large(size)]):
        return _turned(tf.io.decode_image(data, channels=0, expand_animations=False), orientation)


def _gif(data, raw):
    plain, size = headers.gif_header(raw)
    with tf.control_dependencies([_asserted(plain, "a GIF that one sees through"), _not_too_large(size)]):
        return tf.io.decode_image(data, channels=0, expand_animations=False)


def _bmp(data, raw):
    head = headers.read(raw, 0, 34)
    # TensorFlow takes palettes for grey, and whatever fills 32 bits for alpha.
    plain = tf.reduce_all(head[:2] == list(b"BM")) & (head[14] >= 40)
    plain &= (head[28] == 24) & tf.reduce_all(head[30:34] == 0)
    width, height = headers.number(head[18:22], little=True), headers.number(head[22:26], little=True)
    # Upside down, the height is below zero.
    size = tf.stack([width, tf.minimum(height, 2**32 - height)])
    known = _asserted(plain, "none of PNG, JPEG, WebP, GIF and BMP of 24 bits")
    with tf.control_dependencies([known, _not_too_large(size)]):
        return tf.io.decode_bmp(data, channels=3)


def _asserted(holds, message):
    return tf.debugging.Assert(holds, [message])


def _not_too_large(size):
    return _asserted((size[0] >= 0) & (size[0] * size[1] <= LARGEST), "an image of too many pixels")


def _to_shape(pixels, image_shape, framing):
    """One image (h, w, c), c 1, 2, 3 or 4, in the model's shape (H, W, C)."""

    def shaped(channels):
        found = tf.ensure_shape(pixels, (None, None, channels))
        if channels == 2:
            found = tf.concat([found[..., :1], found[..., :1], found], axis=-1)
        return to_shape(found[tf.newaxis], image_shape, framing)[0]

    return tf.switch_case(tf.shape(pixels)[2] - 1, [lambda c=channels: shaped(c) for channels in range(1, 5)])


def _turned(pixels, orientation):
    """The image (h, w, c) as its EXIF orientation, 1 to 8, says that it stands."""
    pixels = tf.cond(orientation >= 5, lambda: tf.transpose(pixels, (1, 0, 2)), lambda: pixels)
    pixels = tf.cond(tf.reduce_any(orientation == MIRRORED), lambda: tf.reverse(pixels, [1]), lambda: pixels)
    return tf.cond(tf.reduce_any(orientation == UPSIDE_DOWN), lambda: tf.reverse(pixels, [0]), lambda: pixels)
