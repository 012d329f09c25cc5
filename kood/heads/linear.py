"""Heads whose logits are linear in the features."""

import keras
from keras import ops

from kood.geometry import label_rows, labelled, unit
from kood.heads.angular import Head
from kood.numbers import above_zero

__all__ = ["LogitNorm", "Softmax", "T2FNorm"]


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
            name="kernel", shape=(features_shape[-1], self.num_classes), initializer="glorot_uniform", autocast=False
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

    OPTIONS = (*Softmax.OPTIONS, "temperature")

    def __init__(self, num_classes, temperature=0.04, **kwargs):
        super().__init__(num_classes, **kwargs)
        self.temperature = above_zero("temperature", temperature)

    def call(self, features, labels=None, training=None):
        """Logits (B, K), float32, of one length 1/T in the rows that have a label; see `kood.heads`."""
        plain = super().call(features)
        if labels is None:
            return plain
        rows = labelled(label_rows(labels, self.num_classes))
        return ops.where(ops.expand_dims(rows, -1), unit(plain, axis=-1) / self.temperature, plain)


@keras.saving.register_keras_serializable(package="kood")
class T2FNorm(Head):
    """Linear logits of features that a labelled row brings to one length; without a label they keep their own.

    With W the kernel as it is stored, b the bias and T the temperature, a row h has the logits

        (h / |h|) W / T + b with a label,    h W / T + b without one.

    So the cross-entropy cannot be lowered by longer features, and those of out-of-distribution images stay shorter
    still, which scores see since they are made without the normalization. An all-zero row of an outlier has no label; a
    mixed row has one. A zero vector stays zero, and its gradient finite.

    Source: Regmi et al. 2023, arXiv:2305.17797 (T = 0.1). As in the authors' code in OpenOOD for networks trained from
    scratch, T divides in scoring too. There classes are told from the normalized logits; here one call answers both,
    and the largest of the plain logits may be another class where the biases differ by much.

    Args:
        num_classes: Number of classes K, at least 2.
        temperature: T, above 0; a labelled row's features have the length 1/T.

    Attributes:
        kernel: (D, K), W / T: what plain features are multiplied by.
        bias: Weight (K,).

    Raises:
        ValueError: A temperature that is not a finite number above 0; fewer than 2 classes.
    """

    OPTIONS = (*Head.OPTIONS, "temperature")

    def __init__(self, num_classes, temperature=0.1, **kwargs):
        super().__init__(num_classes, **kwargs)
        self.temperature = above_zero("temperature", temperature)
        self.linear = Softmax(num_classes)

    def build(self, features_shape):
        self.linear.build(features_shape)

    @property
    def kernel(self):
        return ops.convert_to_tensor(self.linear.kernel) / self.temperature

    @property
    def bias(self):
        return self.linear.bias

    def call(self, features, labels=None, training=None):
        """Logits (B, K), float32, of features of the length 1/T in the rows that have a label; see `kood.heads`."""
        features = ops.cast(features, "float32")
        if labels is not None:
            rows = labelled(label_rows(labels, self.num_classes))
            features = ops.where(ops.expand_dims(rows, -1), unit(features, axis=-1), features)
        return self.linear(features / self.temperature)
