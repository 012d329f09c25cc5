"""Scores of a linear head in which the length of the feature counts: NCI and GradNorm."""

import numpy as np
from keras import ops

from kood.geometry import top_class
from kood.numbers import above_zero, at_least_zero
from kood.scores.fitting import Fitted, array, linear_head
from kood.scores.streaming import mean_row

__all__ = ["NCI", "GradNorm"]


def _manhattan(features):
    return ops.sum(ops.abs(features), axis=-1)


class NCI(Fitted):
    """Neural collapse inspired: minus the centred feature's projection on its class's weights, and minus its length.

    -w_y^T (x - mu) / |x - mu| - alpha |x|_1, y the class with the largest logit, w_y its column of the linear head's
    kernel, mu the mean ID feature. |x - mu| counts as at least 1e-8.

    Source: Liu and Qin 2025, arXiv:2311.01479. (OpenOOD's is minus this; it takes the best of `usual` on its validation
    sets, and the default is the one that it is given.)

    Args:
        alpha: Weight of the feature's L1 norm, at least 0.

    Raises:
        ValueError: `alpha` below 0.
    """

    STATE = ("weights", "mean", "alpha")
    usual = {"alpha": (0.0001, 0.001, 0.01, 0.1)}

    def __init__(self, alpha=0.0001):
        super().__init__()
        self.alpha = at_least_zero("alpha", alpha)

    def fit(self, features, labels=None, logits=None, *, kernel, bias):
        """Takes the mean feature and the classes' weights."""
        features = array("features", features)
        kernel, _ = linear_head(features.shape[1], kernel, bias)
        return self.keep(weights=np.ascontiguousarray(kernel.T), mean=mean_row(features))

    def score(self, features, logits):
        """Minus the projection and the weighed length: float32 (B,), unbounded."""
        weights, mean = self.fitted("weights"), self.fitted("mean")
        features, logits = self.pair(features, mean.shape[0], logits, weights.shape[0])
        predicted = top_class(logits)
        centred = features - mean
        length = ops.maximum(ops.sqrt(ops.sum(ops.square(centred), axis=-1)), 1e-8)
        projection = ops.sum(centred * ops.take(weights, predicted, axis=0), axis=-1) / length
        return -projection - self.alpha * _manhattan(features)


class GradNorm(Fitted):
    """Minus the L1 norm of the gradient of KL(uniform || softmax(logits / T)) by the linear head's kernel.

    The gradient by W[d, k] is x_d (p_k - 1/K) / T, so that the norm is |x|_1 sum_k |p_k - 1/K| / T: no backward pass.

    Source: Huang et al. 2021, arXiv:2110.00218. (The authors' code and OpenOOD add the cross-entropy
    up over the classes in place of their mean, which is K times as much and orders alike.)

    Args:
        temperature: T, above 0.

    Raises:
        ValueError: A temperature not above 0.
    """

    STATE = ("temperature", "width", "classes")

    def __init__(self, temperature=1.0):
        super().__init__()
        self.temperature = above_zero("temperature", temperature)

    def fit(self, features, labels=None, logits=None, *, kernel, bias):
        """Makes sure that there is a linear head; nothing is learnt."""
        features = array("features", features)
        width, classes = linear_head(features.shape[1], kernel, bias)[0].shape
        return self.keep(width=width, classes=classes)

    def score(self, features, logits):
        """Minus the norm of the gradient: float32 (B,), at most 0."""
        classes = int(self.fitted("classes"))
        features, logits = self.pair(features, int(self.fitted("width")), logits, classes)
        p = ops.softmax(logits / self.temperature)
        return -_manhattan(features) * _manhattan(p - 1.0 / classes) / self.temperature
