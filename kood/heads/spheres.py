"""Angular heads whose prototypes follow the features instead of being learned."""

import keras
from keras import ops

from kood.backends import everyone, mine, share, total
from kood.geometry import label_rows, labelled, top_class, unit
from kood.heads.adaptive import NEVER
from kood.heads.angular import Head
from kood.heads.margins import NormFace
from kood.numbers import above_zero, at_least_zero, fraction

__all__ = ["CIDER"]


@keras.saving.register_keras_serializable(package="kood")
class CIDER(NormFace):
    """Features drawn to their class's running mean direction on the sphere, and those directions driven apart.

    With u the direction of a feature, p_k the prototypes and T the temperature, the logits are cos(u, p_k) / T, whose
    cross-entropy is the paper's compactness loss. No gradient moves the prototypes. A call with labels and
    `training=True` first moves each by the rows u_1 .. u_n of its class, in their order,

        p' = unit(m^n p + (1 - m) sum over i of m^(n - i) u_i),

    and returns logits under p'. What drives them apart is `dispersion`, which a classifier adds to its loss,

        weight / K sum over k of ln(1 / (K - 1) sum over j != k of exp(p'_k . p'_j / T)),

    whose gradient reaches the features that moved them. The class of a mixed row is its largest label, the first of
    equals; all-zero rows take no part, so an outlier is moved by its exposure alone: with `cosine_exposure` or
    `energy_exposure` it is a negative of every class, the outlier-aware variant.

    Source: Ming et al. 2023, arXiv:2203.04450. There p is brought to unit length after each row, here after the batch;
    it starts at the class's mean feature, here at random; and the loss is w times compactness plus dispersion, with
    w = 2 for CIFAR-10, which is the half of it that stands here under `dispersion_weight` = 1/2. The paper's projection
    of the features is the backbone's matter.

    Args:
        num_classes: Number of classes K, at least 2.
        temperature: T, above 0.
        momentum: m, the share of the old prototype, in [0, 1).
        dispersion_weight: Weight of the dispersion, at least 0.

    Attributes:
        prototypes: Non-trainable weight (D, K).

    Raises:
        ValueError: A temperature not above 0, a momentum outside [0, 1), a negative weight; fewer than 2 classes.
    """

    OPTIONS = (*Head.OPTIONS, "temperature", "momentum", "dispersion_weight")

    learns = False

    def __init__(self, num_classes, temperature=0.1, momentum=0.95, dispersion_weight=0.5, **kwargs):
        self.temperature = above_zero("temperature", temperature)
        super().__init__(num_classes, 1.0 / self.temperature, **kwargs)
        self.momentum = fraction("momentum", momentum)
        self.dispersion_weight = at_least_zero("dispersion_weight", dispersion_weight)

    def build(self, features_shape):
        self.prototypes = self.add_weight(
            name="prototypes", shape=(features_shape[-1], self.num_classes), initializer="glorot_normal",
            trainable=False, autocast=False, aggregation="mean",
        )  # fmt: skip

    def call(self, features, labels=None, training=None):
        """Cosines over T, as `AngularHead.call`; with labels and `training=True` the prototypes move first."""
        if labels is not None:
            classes = self._classes(labels)
            if training:
                self.prototypes.assign(ops.stop_gradient(self._moved(features, classes, self._shares(classes))))
        return super().call(features)

    def dispersion(self, features, labels):
        """How close the prototypes are to one another, once these rows have moved them; nothing is kept.

        Args:
            features: (B, D); of one of several replicas its rows, and the result is its share.
            labels: Rows (B, K) or integers (B,).

        Returns:
            float32 scalar, weighted.
        """
        classes = everyone(self._classes(labels))
        moved = self._moved(features, classes, mine(self._shares(classes)), total)
        alike = ops.matmul(ops.transpose(moved), moved) / self.temperature
        others = ops.where(ops.eye(self.num_classes, dtype="float32") > 0, NEVER, alike)
        apart = ops.logsumexp(others, axis=-1) - ops.log(float(self.num_classes - 1))
        return share(self.dispersion_weight * ops.mean(apart))

    def _classes(self, labels):
        rows = label_rows(labels, self.num_classes)
        own = ops.one_hot(top_class(rows), self.num_classes, dtype="float32")
        return own * ops.cast(ops.expand_dims(labelled(rows), -1), "float32")

    def _shares(self, classes):
        """What each row (B, K) counts in the sum that moves its class's prototype."""
        later = ops.flip(ops.cumsum(ops.flip(classes, axis=0), axis=0), axis=0) - classes
        return (1.0 - self.momentum) * classes * ops.power(self.momentum, later)

    def _moved(self, features, classes, shares, added=lambda sums: sums):
        features, prototypes, _ = self._directions(features)
        kept = ops.power(self.momentum, ops.sum(classes, axis=0))
        return unit(kept * prototypes + added(ops.matmul(ops.transpose(features), shares)), axis=0)
