"""Virtual outliers: unlikely draws from the distribution of a classifier's own features."""

import keras
import numpy as np
from keras import ops

__all__ = ["VirtualOutliers"]


@keras.saving.register_keras_serializable(package="kood")
class VirtualOutliers(keras.layers.Layer):
    """Outliers in feature space after VOS (Du et al. 2022, arXiv 2202.01197).

    The latest features of each class are kept in a queue. With m_k the mean of queue k, the covariance that all classes
    share is

        S = sum over k and i of (x_ki - m_k)(x_ki - m_k)' / (K Q)  +  (1e-4 + 1e-6 tr S) I,

    and a virtual outlier of class k is the least likely of `candidates` draws from N(m_k, S). The 1e-4 is that of the
    authors' code; the part that grows with the trace is added here, because float32 cannot factorise S where features
    are large and fewer than their dimension. A draw is m_k + L z with L L' = S and z from N(0, I), and its log-density
    is a constant less |z|^2 / 2, so the least likely draw is the one with the longest z.

    Against the paper: outliers are drawn once the queues of all classes are full (delay them by the classifier's
    `exposure_begin`), and what is done with them is the classifier's exposure loss on the head's outputs, in place of
    a logistic regression on the energy. Kept features carry no gradient, so virtual outliers teach the head alone.

    The authors' code waits for full queues too: of 1000 features, where CIFAR-10 has 5000 images of a class. With
    `counts`, a class of fewer images than Q has a queue of as many places: more would hold the same images as an older
    network saw them, and a rare class would keep all others waiting. In S the number of all places then stands for K Q.
    A class without an image has no queue, and no outlier is drawn of it: it is none of the K that are counted below.

    Args:
        num_classes: Number of classes K.
        rows: Outliers a draw gives, R. They come from C = min(K, R) classes, chosen at random where that is not all, as
            evenly as R allows: the ceil(R / C) least likely of a class's draws.
        queue: Features kept of each class, Q.
        candidates: Draws of a class, at least ceil(R / C). A step draws C * candidates * D numbers.
        seed: Decides the draws.
        counts: How many training images each class has, K numbers; not given, every queue has Q places.

    Attributes:
        limits: (K,), how many places each queue has.
        features: Weight (K, Q, D), a ring for each class.
        place: Weight (K,), where a class's next feature goes.
        filled: Weight (K,), how many features a class has.

    Raises:
        ValueError: fewer than 2 classes, 1 row or 2 features in a queue, or too few candidates.
    """

    def __init__(self, num_classes, rows, queue=200, candidates=1000, seed=0, counts=None, **kwargs):
        # Half precision cannot hold a covariance, whatever the global policy.
        super().__init__(**{**kwargs, "dtype": "float32", "trainable": False})
        if num_classes < 2 or rows < 1 or queue < 2:
            raise ValueError(
                f"virtual outliers need 2 classes, 1 row and a queue of 2 at least, not {num_classes}, {rows}, {queue}"
            )
        self.num_classes, self.rows, self.queue, self.candidates = num_classes, rows, queue, candidates
        self.seed = seed
        self.counts = None if counts is None else tuple(map(int, counts))
        self.limits = np.minimum(self.counts or [queue] * num_classes, queue).astype("int32")
        self.seed_generator = keras.random.SeedGenerator(seed)
        self._drawn = np.flatnonzero(self.limits).astype("int32")
        self._chosen = min(len(self._drawn), rows)
        self._each = -(-rows // self._chosen)
        if candidates < self._each:
            raise ValueError(
                f"candidates is {candidates}, but {rows} virtual outliers of {self._chosen} classes take the "
                f"{self._each} least likely of each; raise candidates to {self._each} or more"
            )

    def build(self, features_shape):
        """Makes the queues for features (B, D)."""
        classes, dimension = self.num_classes, features_shape[-1]

        def kept(name, shape, dtype):
            return self.add_weight(
                name=name, shape=shape, dtype=dtype, initializer="zeros", trainable=False,
                aggregation="only_first_replica",
            )  # fmt: skip

        self.features = kept("features", (classes, self.queue, dimension), "float32")
        self.place = kept("place", (classes,), "int32")
        self.filled = kept("filled", (classes,), "int32")

    def keep(self, features, labels, is_outlier):
        """Puts the features of a batch's in-distribution rows into their classes' queues, over the oldest.

        Args:
            features: (B, D).
            labels: (B, K); a row belongs to its largest entry.
            is_outlier: (B,), 1 for rows to leave out.
        """
        features, labels = ops.convert_to_tensor(features), ops.convert_to_tensor(labels)
        inside = 1 - ops.cast(ops.convert_to_tensor(is_outlier), "int32")
        own = ops.argmax(labels, axis=-1)
        # Without `one_hot`, whose dtype is not the same on every backend.
        member = ops.cast(own[:, None] == ops.arange(self.num_classes, dtype=own.dtype)[None], "int32")
        member = member * inside[:, None]
        own, new, limits = ops.cast(own, "int32"), ops.sum(member, axis=0), ops.convert_to_tensor(self.limits)
        limit = ops.take(limits, own)
        turn = ops.sum(ops.cumsum(member, axis=0) * member, axis=-1) - 1
        # A class with more rows than its queue has places keeps the last, so that no place is written twice.
        written = (inside > 0) & (turn >= ops.take(new, own) - limit)
        slots = self.num_classes * self.queue
        target = own * self.queue + (ops.take(self.place, own) + turn) % ops.maximum(limit, 1)
        target = ops.where(written, target, slots)
        flat = ops.reshape(self.features, (slots, -1))
        flat = ops.concatenate([flat, ops.zeros_like(flat[:1])])  # One place more, for what is left out.
        values = ops.cast(ops.stop_gradient(features), "float32")
        flat = ops.scatter_update(flat, target[:, None], values)
        self.features.assign(ops.reshape(flat[:slots], self.features.shape))
        self.place.assign((self.place + new) % ops.maximum(limits, 1))
        self.filled.assign(ops.minimum(self.filled + new, limits))

    def ready(self):
        """1.0 once every class's queue is full, until then 0.0."""
        return ops.cast(ops.all(self.filled >= ops.convert_to_tensor(self.limits)), "float32")

    def gaussians(self):
        """What the queues say of the features.

        Returns:
            The means (K, D) and the shared covariance (D, D), float32. A covariance that is not finite, as features are
            in a training that has failed, is answered by the identity.
        """
        # Under torch a tensor that meets an array goes through it, which only those of the CPU can.
        features, limits = ops.convert_to_tensor(self.features), ops.convert_to_tensor(self.limits[:, None], "float32")
        means = ops.sum(features, axis=1) / ops.maximum(limits, 1.0)  # Beyond its limit all is zero.
        held = ops.cast(ops.arange(self.queue, dtype="float32") < limits, "float32")
        apart = ops.reshape((features - means[:, None]) * held[..., None], (self.num_classes * self.queue, -1))
        covariance = ops.matmul(ops.transpose(apart), apart) / int(self.limits.sum())
        identity = ops.eye(covariance.shape[-1], dtype="float32")
        covariance = covariance + (1e-4 + 1e-6 * ops.trace(covariance)) * identity
        return means, ops.where(ops.all(ops.isfinite(covariance)), covariance, identity)

    def draw(self):
        """Virtual outliers of the classes in turn, whatever the queues hold (see `ready`).

        Returns:
            float32 (R, D), without a gradient.
        """
        means, covariance = self.gaussians()
        order = ops.argsort(keras.random.uniform(self._drawn.shape, seed=self.seed_generator))[: self._chosen]
        order = ops.take(ops.convert_to_tensor(self._drawn), order)
        z = keras.random.normal((self._chosen, self.candidates, means.shape[-1]), seed=self.seed_generator)
        return ops.stop_gradient(self.unlikeliest(ops.take(means, order, axis=0), ops.cholesky(covariance), z))

    def unlikeliest(self, means, factor, z):
        """The R least likely of given draws.

        Args:
            means: (C, D).
            factor: (D, D), the lower factor L of the covariance.
            z: (C, candidates, D), standard normal.

        Returns:
            (R, D): the least likely draw of each class, then the next of each, and so on.
        """
        means, factor, z = (ops.convert_to_tensor(value) for value in (means, factor, z))
        _, place = ops.top_k(ops.sum(ops.square(z), axis=-1), self._each)
        z = ops.take_along_axis(z, place[..., None], axis=1)
        drawn = means[:, None] + ops.matmul(z, ops.transpose(factor))
        return ops.reshape(ops.transpose(drawn, (1, 0, 2)), (-1, means.shape[-1]))[: self.rows]

    def get_config(self):
        """The arguments, so that `from_config` makes the same layer."""
        return {
            **super().get_config(), "num_classes": self.num_classes, "rows": self.rows, "queue": self.queue,
            "candidates": self.candidates, "seed": self.seed, **({"counts": self.counts} if self.counts else {}),
        }  # fmt: skip
