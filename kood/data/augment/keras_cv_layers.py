"""KerasCV's layers, made to apply what they are told instead of what they draw.

They draw their own random numbers from generators whose state depends on the order of execution, so two passes over a
`tf.data` pipeline differ. Here they only apply transformations (`augment_images`): what to apply is drawn by stateless
operations from the seed. No other file imports keras_cv.
"""

import functools
from typing import Any

from kood.data.images import normalize
from kood.data.tf_on_cpu import tf
from kood.errors import UserError

_BYTES = (0, 255)


@functools.cache
def layers() -> dict[str, Any]:
    """KerasCV's layers by what they do; their own random factors are never drawn. float32 whatever Keras's policy."""
    try:
        from keras_cv import layers as cv
    except ImportError as error:
        raise UserError(
            "data.augment: aug_mix, color_jitter, cutout, pixmix and rand_augment need KerasCV; pip install keras-cv, "
            "or keep to crop and flip"
        ) from error

    class GivenRotation(cv.RandomRotation):
        """Rotates by the angles given as labels; called whole, for only so does it leave Keras's backend alone."""

        def get_random_transformation_batch(self, batch_size, labels=None, **others):
            return {"angles": labels}

    # Outside the graph that is being traced, to which what a layer makes would otherwise belong.
    with tf.init_scope():
        return {
            "auto_contrast": cv.AutoContrast(value_range=_BYTES, dtype="float32"),
            "brightness": cv.RandomBrightness(factor=1.0, value_range=_BYTES, dtype="float32"),
            "color": cv.RandomColorDegeneration(factor=1.0, dtype="float32"),
            "contrast": cv.RandomContrast(value_range=_BYTES, factor=1.0, dtype="float32"),
            "cutout": cv.RandomCutout(height_factor=0.5, width_factor=0.5, dtype="float32"),
            "equalize": cv.Equalization(value_range=_BYTES, dtype="float32"),
            "hue": cv.RandomHue(factor=1.0, value_range=_BYTES, dtype="float32"),
            "posterize": cv.Posterization(value_range=_BYTES, bits=4, dtype="float32"),
            "rotate": GivenRotation(factor=1.0, dtype="float32"),
            "saturation": cv.RandomSaturation(factor=1.0, dtype="float32"),
            "shear": cv.RandomShear(x_factor=1.0, y_factor=1.0, dtype="float32"),
            "solarize": cv.Solarization(value_range=_BYTES, dtype="float32"),
            "translate": cv.RandomTranslation(height_factor=1.0, width_factor=1.0, dtype="float32"),
        }


def uniform(images, seed, low: float, high: float, more: tuple[int, ...] = ()):
    """One draw an image, of shape (B, *more)."""
    return tf.random.stateless_uniform([tf.shape(images)[0], *more], seed, low, high)


def to_colour_bytes(images):
    """[-1, 1] to whole numbers of 0..255 in three channels, which is what the layers are written for."""
    colour = tf.round((images + 1.0) * 127.5)
    return tf.image.grayscale_to_rgb(colour) if images.shape[-1] == 1 else colour


def from_colour_bytes(colour, images):
    """Back to [-1, 1] and to the shape of `images`; grey images have stayed grey, so that one channel says all."""
    found = colour if images.shape[-1] == 3 else colour[..., :1]
    return tf.ensure_shape(tf.clip_by_value(normalize(found), -1.0, 1.0), images.shape)
