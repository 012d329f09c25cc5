"""Scores from what is typical of a class: its posterior, its mean feature, its decision boundaries."""

import numpy as np
from keras import ops
from scipy.spatial.distance import pdist, squareform

from kood.geometry import top_class
from kood.scores.fitting import (
    Fitted,
    array,
    class_indices,
    linear_head,
    log_softmax,
)
from kood.scores.plain import log_probabilities
from kood.scores.streaming import blocks, mean_row

__all__ = ["FDBD", "SHE", "KLMatching"]


class KLMatching(Fitted):
    """Kullback-Leibler divergence of the posterior from the nearest typical one.

    min over k of KL(p(x) || d_k), in nats, d_k the mean posterior of the ID images that are predicted as class k.
    Classes that none is predicted as are left out.

    Source: Hendrycks et al. 2022, arXiv:1911.11132. (The paper and OpenOOD average over validation images, pytorch-ood
    over those it is given; kood fits this one to the training images, where posteriors are sharper. OpenOOD answers
    minus the divergence, and has no d_k for a class that none is predicted as, which makes its answers NaN.
    pytorch-ood takes the lowest float for the logarithm of a d_k that rounds to 0; here the logarithm is exact.)
    """

    STATE = ("log_typical",)

    def fit(self, features, labels=None, logits=None):
        """Averages the posteriors of each predicted class."""
        logits = self.rows_of_logits(array("features", features), logits)
        log_sums: dict[int, np.ndarray] = {}
        counts = np.zeros(logits.shape[1], np.int64)
        for (block,) in blocks(logits):
            predicted, log_p = block.argmax(axis=1), log_softmax(block)
            counts += np.bincount(predicted, minlength=len(counts))
            for k in np.unique(predicted):
                own = np.logaddexp.reduce(log_p[predicted == k], axis=0)
                log_sums[k] = np.logaddexp(log_sums[k], own) if k in log_sums else own
        typical = [log_sums[k] - np.log(counts[k]) for k in sorted(log_sums)]
        return self.keep(log_typical=np.stack(typical))

    def score(self, features, logits):
        """Divergence from the nearest typical posterior: float32 (B,), at least 0."""
        typical = self.fitted("log_typical")
        logits = self.checked(logits, typical.shape[1], "logits")
        log_p = log_probabilities(logits)[0]
        p = ops.exp(log_p)
        # Not `argmax`: OpenVINO and ONNX have not what TensorFlow makes of Keras's.
        nearest = top_class(ops.matmul(p, ops.transpose(typical)))
        log_d = ops.take(typical, nearest, axis=0)
        return ops.sum(_divergence(p, log_p - log_d, ops.exp(log_d)), axis=-1)


def _divergence(p, ratio, d):
    """p ln(p / d) - p + d, elementwise and at least 0, so that nothing cancels in its sum; `ratio` is ln(p / d)."""
    near = ops.abs(ratio) < 0.1
    r = ops.where(near, ratio, 0.0)
    series = 0.5 * r * r * (1 - r / 3 * (1 - r / 4 * (1 - r / 5 * (1 - r / 6))))
    return ops.where(near, p * series, p * ratio - p + d)


class SHE(Fitted):
    """Simplified Hopfield energy: minus the inner product with the pattern of the predicted class.

    -x^T S_y, y the class with the largest logit, S_k the mean feature of the training images of class k that are
    classified rightly.

    Source: Zhang et al. 2023, "Out-of-distribution detection based on in-distribution data patterns memorization with
    modern Hopfield energy", ICLR.
    """

    STATE = ("patterns",)

    def fit(self, features, labels, logits=None):
        """Averages the rightly classified features of each class.

        Raises:
            ValueError: Labels that are not class indices, or a class without a rightly classified image.
        """
        features = array("features", features)
        labels = class_indices(features, labels)
        logits = self.rows_of_logits(features, logits)
        return self.keep(patterns=self.rightly_classified(features, labels, logits)[0])

    def score(self, features, logits):
        """Minus the inner product with the predicted class's pattern: float32 (B,), unbounded."""
        patterns = self.fitted("patterns")
        features, logits = self.pair(features, patterns.shape[1], logits, patterns.shape[0])
        return -ops.sum(features * ops.take(patterns, top_class(logits), axis=0), axis=-1)


class FDBD(Fitted):
    """Minus the mean distance to the decision boundaries, over the distance to the mean feature (fDBD).

    -1/(K - 1) sum over c other than y of (l_y - l_c) / (|w_y - w_c| |x - mu|), y the class with the largest logit l_y,
    w_c a column of the linear head's kernel, mu the mean ID feature. |x - mu| counts as at least 1e-8.

    Source: Liu and Qin 2024, arXiv:2312.11536.
    """

    STATE = ("mean", "distances")

    def fit(self, features, labels=None, logits=None, *, kernel, bias):
        """Takes the mean feature and the distances between the classes' weights.

        Raises:
            ValueError: One class, or two classes of equal weights, between which there is no boundary.
        """
        features = array("features", features)
        kernel, _ = linear_head(features.shape[1], kernel, bias)
        if kernel.shape[1] < 2:
            raise ValueError("FDBD needs at least 2 classes, for a boundary between them.")
        distances = squareform(pdist(kernel.T))
        np.fill_diagonal(distances, 1.0)
        if (distances == 0).any():
            one, other = np.argwhere(distances == 0)[0]
            raise ValueError(f"Classes {one} and {other} have equal weights, so there is no boundary between them.")
        return self.keep(mean=mean_row(features), distances=distances)

    def score(self, features, logits):
        """Minus the mean distance to the boundaries of the predicted class: float32 (B,), at most 0."""
        mean, distances = self.fitted("mean"), self.fitted("distances")
        classes = distances.shape[0]
        features, logits = self.pair(features, mean.shape[0], logits, classes)
        largest, predicted = ops.top_k(logits, 1)
        unit = ops.take(distances, predicted[:, 0], axis=0)
        reach = ops.sum((largest - logits) / unit, axis=-1) / (classes - 1)
        away = ops.sqrt(ops.sum(ops.square(features - mean), axis=-1))
        return -reach / ops.maximum(away, 1e-8)
