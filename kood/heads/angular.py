"""What heads share, and what angular heads share."""

import math
from typing import Any

import keras
from keras import ops

from kood.geometry import check_labels, label_rows, same_rows, sines, top_class, unit
from kood.numbers import above_zero, whole

# No `__all__`: what a file of this room lists there is a head that a recipe may name.


def fixed_scale(num_classes):
    """The fixed scale of AdaCos, sqrt(2) ln(K - 1) (Zhang et al. 2019, arXiv:1905.00292)."""
    if num_classes < 3:
        raise ValueError(
            "sqrt(2) ln(num_classes - 1), the automatic scale, needs at least 3 classes; "
            f"num_classes={num_classes}. "
            "Give the head a number, such as scale=4; AdaCos, which takes none, is not defined there."
        )
    return math.sqrt(2.0) * math.log(num_classes - 1)


class Head(keras.layers.Layer):
    """What all heads share: the number of classes, and float32 whatever the policy of the network."""

    #: The arguments that `get_config` tells.
    OPTIONS: tuple[str, ...] = ("num_classes",)

    #: Whether it has weights that the gradient moves; on a frozen backbone one without needs a neck.
    learns = True

    def __init__(self, num_classes, **kwargs):
        # Half precision moves a cosine by 1e-3, so neither the caller nor the global policy decides.
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.num_classes = whole("num_classes", num_classes, 2)
        self.input_spec = keras.layers.InputSpec(ndim=2)

    def __call__(self, *arguments, **named):
        labels = named.get("labels", arguments[1] if len(arguments) > 1 else None)
        if labels is not None:
            check_labels(labels, self.num_classes)  # Before Keras makes tensors of them.
            same_rows(features=arguments[0] if arguments else named.get("features"), labels=labels)
        return super().__call__(*arguments, **named)

    def compute_output_shape(self, features_shape, labels_shape=None):
        return (features_shape[0], self.num_classes)

    def compute_output_spec(self, features, labels=None, training=None):
        return keras.KerasTensor(self.compute_output_shape(features.shape), dtype="float32")

    def get_config(self):
        said = {name: getattr(self, "configured_scale" if name == "scale" else name) for name in self.OPTIONS}
        return {**super().get_config(), **said}


class AngularHead(Head):
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

    OPTIONS = (*Head.OPTIONS, "margin", "scale")

    #: Prototypes a class.
    sub_centers = 1

    def __init__(self, num_classes, margin=0.0, scale="auto", **kwargs):
        super().__init__(num_classes, **kwargs)
        self.margin = float(margin)
        if isinstance(scale, str) and scale != "auto":
            raise ValueError(f'scale must be "auto" or a number above 0; it is {scale!r}.')
        self.configured_scale = scale if scale == "auto" else above_zero("scale", scale)
        self.scale: Any = fixed_scale(self.num_classes) if scale == "auto" else self.configured_scale

    def _check_radians(self):
        """Refuses a margin that is no angle below pi, as one in degrees would be."""
        if not 0 <= self.margin < math.pi:
            name = type(self).__name__
            raise ValueError(f"{name}'s margin is in radians, from 0 to below pi; it is {self.margin!r}.")

    def build(self, features_shape):
        self.prototypes = self.add_weight(
            name="prototypes",
            shape=(features_shape[-1], self.num_classes * self.sub_centers),
            initializer="glorot_normal",
            autocast=False,
        )

    def _directions(self, features):
        """Unit features (B, D), unit prototypes as they are stored and the cosines (B, K)."""
        if not self.built:
            self.build(tuple(features.shape))
        features = unit(ops.cast(features, "float32"), axis=-1)
        prototypes = unit(ops.convert_to_tensor(self.prototypes), axis=0)
        return features, prototypes, ops.clip(ops.matmul(features, prototypes), -1.0, 1.0)

    def _sines(self, cosine, features, prototypes, target):
        """Sines (B, K) of what `_directions` answers; exact for each row's target (B,)."""
        return sines(cosine, features, ops.take(ops.transpose(prototypes), target, axis=0), target)

    def cosines(self, features):
        """Cosine between each feature and each class's prototype, without margin or scale.

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
            labels: None, integers (B,) or rows (B, K); see `kood.heads`.
            training: Makes no difference here: it is the labels that bring the margin.

        Returns:
            float32 logits (B, K).
        """
        features, prototypes, cosine = self._directions(features)
        if labels is None:
            return self.scale * cosine
        labels = label_rows(labels, self.num_classes)
        sine = self._sines(cosine, features, prototypes, top_class(labels))
        return self.scale * (cosine + labels * (self.target_cosine(cosine, sine) - cosine))
