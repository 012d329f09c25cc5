"""Heads whose logits are linear in the features."""

import math

import keras
from keras import ops

from kood.geometry import label_rows, labelled, unit
from kood.heads.angular import Head

__all__ = ["LogitNorm", "Softmax"]


@keras.saving.register_keras_serializable(package="kood")
class Softmax(Head):
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


@keras.saving.register_keras_serializable(package="kood")
class LogitNorm(Softmax):
    """Linear logits that a labelled row brings to one length: the cross-entropy sees direction alone.

    With z = `features @ kernel + bias`, a row with a label has the logits z / (T |z|), so that training cannot lower
    the loss by longer and longer logits, which is what makes a network overconfident. A row without one, an all-zero
    row of an outlier included, has z itself: as in the paper, scores are those of the plain logits. A mixed row has a
    label. A zero vector stays zero, and its gradient finite.

    Source: Wei et al. 2022, arXiv:2205.09310 (T = 0.04 for CIFAR-10).

    Args:
        num_classes: Number of classes K, at least 2.
        temperature: T, above 0. The logits in training lie in [-1/T, 1/T].

    Attributes:
        kernel: Weight (D, K).
        bias: Weight (K,).

    Raises:
        ValueError: A temperature that is not a finite number above 0; fewer than 2 classes.
    """

    def __init__(self, num_classes, temperature=0.04, **kwargs):
        super().__init__(num_classes, **kwargs)
        self.temperature = float(temperature)
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be a finite number above 0; it is {temperature!r}.")

    def call(self, features, labels=None, training=None):
        """Logits, of one length 1/T in the rows that have a label.

        Args:
            features: (B, D).
            labels: None, integers (B,) or rows (B, K); see `kood.heads`.
            training: Makes no difference here: it is the labels that bring the length.

        Returns:
            float32 (B, K).
        """
        plain = super().call(features)
        if labels is None:
            return plain
        rows = labelled(label_rows(labels, self.num_classes))
        return ops.where(ops.expand_dims(rows, -1), unit(plain, axis=-1) / self.temperature, plain)

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}
