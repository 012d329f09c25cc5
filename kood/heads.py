"""Classification heads: features (B, D) to logits (B, K).

Every head is called as `head(features, labels=None, training=None)` and answers float32 logits. An angular
head compares the direction of a feature with one direction a class (`prototypes`, shape (D, K)); given
labels, it makes the target class harder by a margin. Labels are integers (B,) or rows (B, K). A row weighs
the margin class by class,

    logits = scale * (cos + label * (target(cos) - cos)),

so a one-hot row gets the whole margin on its class, an all-zero row (an outlier) none, and a mixed row
(mixup, label smoothing) each class its share: for CosFace this is exactly the margin `label * margin`.

A new margin is one subclass of `AngularHead` with one method, `target_cosine`, and its name in `__all__`.
"""

import math
from typing import Any

import keras
from keras import ops

__all__ = ["AdaCos", "ArcFace", "CosFace", "Softmax", "SphereFace"]

#: Below this length a float32 vector has no direction: its squared length underflows.
_SMALLEST_LENGTH = 1e-30
#: Two unit vectors in float32 are told apart only beyond this distance.
_SMALLEST_CHORD = 5e-7
#: Stands for minus infinity where infinity minus infinity would give NaN.
_NEVER = -1e30


def _unit(vectors, axis):
    """Direction of each vector; a zero vector stays zero, and its gradient finite.

    Dividing by the largest entry first keeps squares clear of overflow and underflow. The direction does not
    depend on length, so that divisor may be held constant without changing the gradient.
    """
    largest = ops.stop_gradient(ops.max(ops.abs(vectors), axis=axis, keepdims=True))
    vectors = vectors / ops.where(largest > _SMALLEST_LENGTH, largest, 1.0)
    square = ops.sum(ops.square(vectors), axis=axis, keepdims=True)
    return vectors / ops.sqrt(ops.where(square > 0, square, 1.0))


def _root(values, smallest=0.0):
    """Square root that is zero, with gradient zero instead of infinite, for values up to `smallest`."""
    positive = values > smallest
    return ops.where(positive, ops.sqrt(ops.where(positive, values, 1.0)), 0.0)


def _sines(cosines, features, prototypes, target):
    """Sines (B, K) of the angles in [0, pi] between unit features (B, D) and unit prototypes (D, K).

    `sqrt(1 - cos^2)` loses half of float32's digits where the vectors nearly (anti)align: 3e-4 instead of 0.
    Of the target class, where the margin matters, the sine is therefore the product of the chords, `|u - p|
    |u + p| / 2`.
    """
    plain = _root((1.0 - cosines) * (1.0 + cosines))
    chosen = ops.take(ops.transpose(prototypes), target, axis=0)
    minus = ops.sum(ops.square(features - chosen), axis=-1, keepdims=True)
    plus = ops.sum(ops.square(features + chosen), axis=-1, keepdims=True)
    exact = 0.5 * _root(minus, _SMALLEST_CHORD**2) * _root(plus, _SMALLEST_CHORD**2)
    is_target = ops.one_hot(target, cosines.shape[-1], dtype="float32") > 0
    # A zero vector has cosine 0 with everything and no chord worth the name.
    return ops.where(ops.logical_and(is_target, ops.abs(cosines) > 0.5), exact, plain)


def _label_rows(labels, num_classes):
    """Labels as float32 rows (B, K); integers (B,) become one-hot, an integer below zero an all-zero row."""
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) == 1:
        labels = ops.expand_dims(ops.cast(labels, "int32"), -1)
        return ops.cast(labels == ops.arange(num_classes, dtype="int32"), "float32")
    if len(labels.shape) != 2 or labels.shape[-1] not in (num_classes, None):
        raise ValueError(
            f"labels must be integers (B,) or rows (B, {num_classes}), one column a class; "
            f"their shape is {tuple(labels.shape)}."
        )
    return ops.cast(labels, "float32")


def _top_class(rows):
    """Index (B,) of each row's largest entry, the first of equals."""
    return ops.top_k(rows, 1)[1][:, 0]


def _fixed_scale(num_classes):
    """The fixed scale of AdaCos, sqrt(2) ln(K - 1) (Zhang et al. 2019, arXiv:1905.00292)."""
    if num_classes < 3:
        raise ValueError(
            "sqrt(2) ln(num_classes - 1), the automatic scale, needs at least 3 classes; "
            f"num_classes={num_classes}. "
            "Give ArcFace, CosFace or SphereFace a number, such as scale=4; AdaCos is not defined there."
        )
    return math.sqrt(2.0) * math.log(num_classes - 1)


def _checked_classes(num_classes):
    if isinstance(num_classes, bool) or int(num_classes) != num_classes or num_classes < 2:
        raise ValueError(f"num_classes must be a whole number, at least 2; it is {num_classes!r}.")
    return int(num_classes)


class _Head(keras.layers.Layer):
    """What all heads share: the number of classes, and float32 whatever the policy of the network."""

    def __init__(self, num_classes, **kwargs):
        # Half precision moves a cosine by 1e-3, so neither the caller nor the global policy decides.
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.num_classes = _checked_classes(num_classes)
        self.input_spec = keras.layers.InputSpec(ndim=2)

    def compute_output_shape(self, features_shape, labels_shape=None):
        return (features_shape[0], self.num_classes)

    def compute_output_spec(self, features, labels=None, training=None):
        return keras.KerasTensor(self.compute_output_shape(features.shape), dtype="float32")

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes}


@keras.saving.register_keras_serializable(package="kood")
class Softmax(_Head):
    """Linear logits, `features @ kernel + bias`: the plain classifier, without angles and without a margin.

    Labels are accepted, so that every head is called alike, and change nothing.

    Args:
        num_classes: Number of classes K, at least 2.

    Attributes:
        kernel: Weight (D, K).
        bias: Weight (K,).
    """

    def build(self, features_shape):
        self.kernel = self.add_weight(
            name="kernel",
            shape=(features_shape[-1], self.num_classes),
            initializer="glorot_uniform",
            autocast=False,
        )
        self.bias = self.add_weight(name="bias", shape=(self.num_classes,), initializer="zeros", autocast=False)

    def call(self, features, labels=None, training=None):
        """Logits.

        Args:
            features: (B, D).
            labels: Ignored.
            training: Ignored.

        Returns:
            float32 (B, K).
        """
        return ops.matmul(ops.cast(features, "float32"), self.kernel) + self.bias


class AngularHead(_Head):
    """A head whose logits are scaled cosines between features and one prototype a class.

    Subclasses say by `target_cosine` what a margin makes of the cosine of the target class. Cosines and their
    gradients are finite everywhere: a zero feature has cosine 0 with every class, and at an angle of exactly
    0 or pi, where a margin that adds to the angle has a kink, the gradient is 0.

    Args:
        num_classes: Number of classes K, at least 2.
        margin: The margin, in the subclass's unit.
        scale: What the cosines are multiplied by: a number above 0, or "auto" for sqrt(2) ln(K - 1).

    Attributes:
        prototypes: Weight (D, K); a column's direction counts, its length does not.

    Raises:
        ValueError: `num_classes` below 2, a scale not above 0, "auto" with 2 classes (ln 1 = 0).
    """

    def __init__(self, num_classes, margin=0.0, scale="auto", **kwargs):
        super().__init__(num_classes, **kwargs)
        self.margin = float(margin)
        if isinstance(scale, str) and scale != "auto":
            raise ValueError(f'scale must be "auto" or a number above 0; it is {scale!r}.')
        self.configured_scale = scale if scale == "auto" else float(scale)
        self.scale: Any = _fixed_scale(self.num_classes) if scale == "auto" else float(scale)
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f'scale must be "auto" or a finite number above 0; it is {scale!r}.')

    def build(self, features_shape):
        self.prototypes = self.add_weight(
            name="prototypes",
            shape=(features_shape[-1], self.num_classes),
            initializer="glorot_normal",
            autocast=False,
        )

    def _directions(self, features):
        if not self.built:
            self.build(tuple(features.shape))
        features = _unit(ops.cast(features, "float32"), axis=-1)
        prototypes = _unit(ops.convert_to_tensor(self.prototypes), axis=0)
        return features, prototypes, ops.clip(ops.matmul(features, prototypes), -1.0, 1.0)

    def cosines(self, features):
        """Cosine between each feature and each prototype, without margin or scale.

        Args:
            features: (B, D).

        Returns:
            float32 (B, K) in [-1, 1].
        """
        return self._directions(ops.convert_to_tensor(features))[2]

    def target_cosine(self, cosine, sine):
        """What the margin makes of the target's cosine; elementwise.

        Args:
            cosine: cos(theta), any shape.
            sine: sin(theta) >= 0, of the same shape.

        Returns:
            The target logit before scaling, at most `cosine`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define target_cosine(cosine, sine).")

    def call(self, features, labels=None, training=None):
        """Scaled cosines, with the margin on the labelled classes.

        Args:
            features: (B, D).
            labels: None, integers (B,) or rows (B, K); see the module's docstring.
            training: Makes no difference here: it is the labels that bring the margin.

        Returns:
            float32 logits (B, K).
        """
        features, prototypes, cosine = self._directions(features)
        if labels is None:
            return self.scale * cosine
        labels = _label_rows(labels, self.num_classes)
        sine = _sines(cosine, features, prototypes, _top_class(labels))
        return self.scale * (cosine + labels * (self.target_cosine(cosine, sine) - cosine))

    def get_config(self):
        return {**super().get_config(), "margin": self.margin, "scale": self.configured_scale}


@keras.saving.register_keras_serializable(package="kood")
class SphereFace(AngularHead):
    """Multiplicative angular margin: the target's angle counts `margin` times.

    target = psi(theta) = (-1)^k cos(m theta) - 2k for theta in [k pi/m, (k+1) pi/m], which continues cos(m
    theta) to a function that falls on the whole of [0, pi]. m need not be whole: the last piece is then cut
    off at pi.

    Source: Liu et al. 2017, arXiv:1704.08063, with prototypes of unit length. The paper multiplies by the
    feature's length; here `scale` takes its place, so that every angular head has the same logits without
    labels. (pytorch-metric-learning multiplies by length and scale, and rounds the margin down to a whole
    number.)

    Args:
        num_classes: Number of classes K, at least 2.
        margin: The multiplier m, at least 1 (1: no margin).
        scale: A number above 0, or "auto" for sqrt(2) ln(K - 1).

    Raises:
        ValueError: A margin below 1; see also `AngularHead`.
    """

    def __init__(self, num_classes, margin=4.0, scale="auto", **kwargs):
        super().__init__(num_classes, margin, scale, **kwargs)
        if not (math.isfinite(self.margin) and self.margin >= 1):
            raise ValueError(f"SphereFace's margin multiplies the angle; it must be at least 1, not {margin!r}.")

    def target_cosine(self, cosine, sine):
        angle = self.margin * ops.arctan2(sine, cosine)
        # psi is continuous between pieces, so rounding that picks the neighbouring piece does no harm.
        piece = ops.stop_gradient(ops.floor(angle / math.pi))
        sign = 1.0 - 2.0 * (piece - 2.0 * ops.floor(piece / 2.0))
        return sign * ops.cos(angle) - 2.0 * piece


@keras.saving.register_keras_serializable(package="kood")
class CosFace(AngularHead):
    """Additive cosine margin: target = cos(theta) - m.

    Source: Wang et al. 2018, arXiv:1801.09414.

    Args:
        num_classes: Number of classes K, at least 2.
        margin: m in cosine units, at least 0.
        scale: A number above 0, or "auto" for sqrt(2) ln(K - 1).

    Raises:
        ValueError: A negative margin; see also `AngularHead`.
    """

    def __init__(self, num_classes, margin=0.35, scale="auto", **kwargs):
        super().__init__(num_classes, margin, scale, **kwargs)
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise ValueError(f"CosFace's margin is taken off a cosine; it must be at least 0, not {margin!r}.")

    def target_cosine(self, cosine, sine):
        return cosine - self.margin


@keras.saving.register_keras_serializable(package="kood")
class ArcFace(AngularHead):
    """Additive angular margin: target = cos(theta + m).

    Past theta = pi - m, where cos(theta + m) would rise again, target = cos(theta) - m sin(m). This is the
    continuation of insightface without `easy_margin`, and of pytorch-metric-learning (whose margin is in
    degrees: 28.6 for 0.5); it falls on the whole of [0, pi], with a step down at pi - m.

    Source: Deng et al. 2019, arXiv:1801.07698.

    Args:
        num_classes: Number of classes K, at least 2.
        margin: m in radians, in [0, pi).
        scale: A number above 0, or "auto" for sqrt(2) ln(K - 1).

    Raises:
        ValueError: A margin outside [0, pi), as one in degrees would be; see also `AngularHead`.
    """

    def __init__(self, num_classes, margin=0.5, scale="auto", **kwargs):
        super().__init__(num_classes, margin, scale, **kwargs)
        if not 0 <= self.margin < math.pi:
            raise ValueError(f"ArcFace's margin is in radians, from 0 to below pi; it is {margin!r}.")

    def target_cosine(self, cosine, sine):
        added = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        continued = cosine - self.margin * math.sin(self.margin)
        return ops.where(cosine >= math.cos(math.pi - self.margin), added, continued)


@keras.saving.register_keras_serializable(package="kood")
class AdaCos(AngularHead):
    """Cosines under a scale that follows the training, without a margin and without a hyperparameter.

    The scale starts at sqrt(2) ln(K - 1). A call with labels and `training=True` first moves it to

        s' = ln(B) / cos(min(pi/4, median target angle)),
        B  = mean over rows of the sum over the classes other than the target of exp(s cos),

    and returns logits under s'. Nothing else moves it, and no gradient flows through it. The median of an
    even number is the mean of the two middle angles. The target of a mixed row is its largest label, the
    first of equals; all-zero rows take no part. Where the rule gives no scale, the old one stays: a batch
    without a labelled row, or B <= 1, when every other class points away so strongly that s' would be zero or
    negative.

    Source: Zhang et al. 2019, arXiv:1905.00292.

    Args:
        num_classes: Number of classes K, at least 3.

    Attributes:
        scale: Non-trainable weight ().

    Raises:
        ValueError: Fewer than 3 classes, for which ln(K - 1) = 0 is no scale.
    """

    def __init__(self, num_classes, **kwargs):
        super().__init__(num_classes, **kwargs)
        self.scale = self.add_weight(
            name="scale",
            shape=(),
            initializer=keras.initializers.Constant(_fixed_scale(self.num_classes)),
            trainable=False,
            autocast=False,
            aggregation="mean",
        )

    def target_cosine(self, cosine, sine):
        return cosine

    def call(self, features, labels=None, training=None):
        """Scaled cosines; with labels and `training=True` the scale moves first.

        Args:
            features: (B, D).
            labels: None, integers (B,) or rows (B, K).
            training: Whether the scale may move.

        Returns:
            float32 logits (B, K).
        """
        features, prototypes, cosine = self._directions(features)
        scale = ops.convert_to_tensor(self.scale)
        if labels is not None:
            labels = _label_rows(labels, self.num_classes)
            if training:
                fixed = [ops.stop_gradient(x) for x in (cosine, features, prototypes, labels)]
                scale = self._moved(scale, *fixed)
                self.scale.assign(scale)
        return ops.stop_gradient(scale) * cosine

    def _moved(self, scale, cosine, features, prototypes, labels):
        target = _top_class(labels)
        is_target = ops.one_hot(target, self.num_classes, dtype="float32")
        taking_part = ops.max(ops.abs(labels), axis=-1) > 0
        rows = ops.sum(ops.cast(taking_part, "int32"))

        others = ops.logical_and(is_target == 0, ops.expand_dims(taking_part, -1))
        summed = ops.logsumexp(ops.where(others, scale * cosine, _NEVER))
        log_b = summed - ops.log(ops.cast(ops.maximum(rows, 1), "float32"))

        sine = _sines(cosine, features, prototypes, target)
        angles = ops.sum(is_target * ops.arctan2(sine, cosine), axis=-1)
        # Rows that take no part sort last, and one entry more lets a batch without a row be indexed.
        angles = ops.sort(ops.concatenate([ops.where(taking_part, angles, math.pi), ops.full((1,), math.pi)]))
        middle = ops.stack([ops.maximum(rows - 1, 0) // 2, rows // 2])
        median = ops.mean(ops.take(angles, middle))

        moved = log_b / ops.cos(ops.minimum(math.pi / 4, median))
        return ops.where(ops.logical_and(rows > 0, moved > 0), moved, scale)

    def get_config(self):
        config = super().get_config()
        del config["margin"], config["scale"]
        return config
