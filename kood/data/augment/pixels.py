"""Augmentations that change pixels where they are: colour, sharpness, compression."""

from kood.data.augment.keras_cv_layers import from_colour_bytes, layers, to_colour_bytes, uniform
from kood.data.images import normalize
from kood.data.tf_on_cpu import tf

__all__ = ["blur", "color_jitter", "jpeg"]


def color_jitter(images, seed):
    """Changes brightness by up to 20% of the range, contrast and saturation by up to 40%, hue by up to 18 degrees.

    KerasCV's RandomBrightness, RandomContrast, RandomSaturation and RandomHue, in that order, each for every image;
    every amount is uniform. Grey images have no saturation or hue to change.
    """
    cv, seeds = layers(), tf.random.split(seed, 4)
    colour = to_colour_bytes(images)
    shifts = uniform(images, seeds[0], -0.2 * 255.0, 0.2 * 255.0, (1, 1, 1))
    colour = cv["brightness"].augment_images(colour, transformations=shifts)
    contrasts = uniform(images, seeds[1], 0.6, 1.4, (1, 1, 1))
    colour = cv["contrast"].augment_images(colour, transformations=contrasts)
    if images.shape[-1] == 3:
        factors = uniform(images, seeds[2], 0.6, 1.4)
        # The layer multiplies saturation by t / (1 - t).
        colour = cv["saturation"].augment_images(colour, transformations=factors / (1.0 + factors))
        hues = uniform(images, seeds[3], -0.05, 0.05)
        colour = cv["hue"].augment_images(colour, transformations=hues)
    return from_colour_bytes(colour, images)


def blur(images, seed):
    """Blurs each image by a Gaussian whose standard deviation is uniform between 0.1 and 1 pixel.

    The kernel is the Gaussian at whole pixels up to four away, divided by its sum; beyond the border the outermost
    pixel goes on. On in-distribution images and outliers alike it hides how smooth either is.
    """
    return blurred(images, uniform(images, seed, 0.1, 1.0))


def blurred(images, deviations):
    offsets = list(range(-4, 5))
    kernels = tf.exp(-0.5 * tf.square(tf.constant(offsets, tf.float32) / deviations[:, None]))
    kernels /= tf.reduce_sum(kernels, axis=1, keepdims=True)
    result = images
    for axis in (1, 2):
        side = images.shape[axis]
        rows = [tf.clip_by_value(tf.range(side) + offset, 0, side - 1) for offset in offsets]
        shifted = [tf.gather(result, at, axis=axis) for at in rows]
        result = tf.add_n([one * kernels[:, i, None, None, None] for i, one in enumerate(shifted)])
    return tf.clip_by_value(result, -1.0, 1.0)


def jpeg(images, seed):
    """Stores each image as a JPEG, of a quality that is uniform in 30..95, and reads it back.

    On in-distribution images and outliers alike it puts its own traces over those of however either was made. Colour
    is stored at half the resolution, as is usual.
    """
    qualities = tf.random.stateless_uniform([tf.shape(images)[0]], seed, 30, 96, tf.int32)
    return compressed(images, qualities)


def compressed(images, qualities):
    def one(image_and_quality):
        image, quality = image_and_quality
        stored = tf.raw_ops.EncodeJpegVariableQuality(images=image, quality=quality)
        # Otherwise TensorFlow picks a decoder by platform.
        return tf.io.decode_jpeg(stored, channels=images.shape[-1], dct_method="INTEGER_ACCURATE")

    pixels = tf.cast(tf.clip_by_value(tf.round((images + 1.0) * 127.5), 0.0, 255.0), tf.uint8)
    found = tf.map_fn(one, (pixels, qualities), fn_output_signature=tf.uint8)
    return tf.ensure_shape(normalize(found), images.shape)
