"""What stands between a frozen backbone and the head."""

import keras
import numpy as np
from keras import layers

from kood.backends import BatchNormalization

__all__ = ["neck", "standardize", "whole"]

#: Smallest variance of a feature, as a share of the mean one: what hardly varies is not blown up.
LEAST = 1e-3


def neck(width: int, units: int | None = None) -> keras.Model:
    """Features (B, D) to features (B, D'): each brought to mean 0 and variance 1, then perhaps a dense layer.

    The means and variances are weights that no training step moves; `standardize` sets them. The dense layer is
    followed by batch normalization and ReLU.

    Args:
        width: D.
        units: D' of the dense layer; None for none, D' = D.

    Returns:
        A functional model.
    """
    features = keras.Input((width,), name="features")
    x = layers.BatchNormalization(center=False, scale=False, epsilon=0.0, trainable=False, name="standardized")(
        features
    )
    if units is not None:
        x = layers.Dense(units, use_bias=False, kernel_initializer="he_normal", name="dense")(x)
        x = BatchNormalization(momentum=0.9, epsilon=1e-5, name="normalized")(x)
        x = layers.ReLU(name="bent")(x)
    return keras.Model(features, x, name="neck")


def standardize(made: keras.Model, mean: np.ndarray, variance: np.ndarray) -> None:
    """Sets a neck's means and variances (D,), the latter to at least `LEAST` of their mean."""
    floor = LEAST * variance.mean() or 1.0
    made.get_layer("standardized").set_weights([mean, np.maximum(variance, floor)])


def whole(backbone: keras.Model, made: keras.Model) -> keras.Model:
    """Images (B, H, W, C) to features (B, D'), through a backbone and a neck; nothing moves one that is frozen."""
    image = keras.Input(backbone.input_shape[1:], name="image")
    mode = {} if backbone.trainable else {"training": False}
    return keras.Model(image, made(backbone(image, **mode)), name="whole" if backbone.trainable else "frozen")
