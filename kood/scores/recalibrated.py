"""Scores of posteriors that were recalibrated on known images: TempScale and OpenMax."""

import numpy as np
from keras import ops
from scipy.optimize import brentq

from kood.numbers import whole
from kood.scores.fitting import Fitted, array, class_indices
from kood.scores.plain import msp
from kood.scores.streaming import blocks

__all__ = ["OpenMax", "TempScale"]


class _Recalibrated(Fitted):
    """A score of the logits alone, fitted to the classes of known images."""

    def _labelled(self, features, labels, logits):
        """The logits (N, K) and the labels (N,), indices of their classes."""
        features = array("features", features)
        labels = class_indices(features, labels)
        logits = self.rows_of_logits(features, logits)
        if labels.min() < 0 or labels.max() >= logits.shape[1]:
            raise ValueError(f"labels must be from 0 to {logits.shape[1] - 1}, as the logits have so many classes.")
        return logits, labels


class TempScale(_Recalibrated):
    """Maximum softmax probability under a fitted temperature: `msp` of logits / T.

    T is the temperature with the least negative log-likelihood of known images' labels. It is sought from 0.01 to 100,
    and is one of these where the likelihood grows up to it, as it does where all images are labelled rightly.

    Source: Guo et al. 2017, arXiv:1706.04599. (OpenOOD takes 50 steps from T = 1.5 on validation images and answers the
    maximum; here the one minimum is found. T is fitted to validation images where there are any: on those of the
    training a classifier is surer than it should be.)
    """

    STATE = ("temperature", "classes")
    held_out = True
    #: The range of temperatures.
    LEAST, MOST = 0.01, 100.0

    def fit(self, features, labels, logits=None):
        """Seeks the temperature.

        Raises:
            ValueError: Labels that are not indices of the logits' classes.
        """
        logits, labels = self._labelled(features, labels, logits)

        def slope(log_inverse):
            """Of the negative log-likelihood, which is convex in 1 / T."""
            inverse, found = np.exp(log_inverse), 0.0
            for block, own in blocks(logits, labels):
                scaled = inverse * block
                p = np.exp(scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True))
                found += ((p * block).sum(axis=1) - block[np.arange(len(block)), own]).sum()
            return found / len(logits)

        least, most = -np.log(self.MOST), -np.log(self.LEAST)
        ends = [end for end, turns in ((most, slope(most) <= 0), (least, slope(least) >= 0)) if turns]
        found = ends[0] if ends else brentq(slope, least, most, xtol=1e-9)
        return self.keep(temperature=np.exp(-found), classes=logits.shape[1])

    def score(self, features, logits):
        """One minus the maximum probability under the temperature: float32 (B,) in [0, 1 - 1/K]."""
        temperature = float(self.fitted("temperature"))
        return msp(self.checked(logits, int(self.fitted("classes")), "logits") / temperature)


class OpenMax(_Recalibrated):
    """OpenMax: log-odds of the unknown class, ln(P(unknown) / (1 - P(unknown))).

    Of the `alpha` largest logits v_c, ranked i = 1, 2, ..., the share w_c (alpha + 1 - i) / alpha is taken off and
    added up as the logit of the unknown class; P is the softmax of all K + 1. w_c = 1 - exp(-((d - m + t) / l)^k) is a
    Weibull distribution of the distance d of the logits from the mean logits of class c, of its rightly classified
    images, fitted by maximum likelihood to the `tail` largest distances of these images, m the least of them and
    t = 10000; k is at most 1000 t over the length of these logits, beyond which float32 could not follow. Log-odds
    order as P does, and do not round to 0 or 1.

    Source: Bendale and Boult 2016, arXiv:1511.06233. (The weights of the ranks are those of the authors' code and t is
    that of libMR, which it calls; the Euclidean distance and the defaults are OpenOOD's. The authors revise 10 of 1,000
    classes and add the cosine distance. Of fewer classes than `alpha` all are revised.)

    Args:
        tail: How many of each class's largest distances are fitted; of fewer images, all.
        alpha: How many of the largest logits are revised.

    Raises:
        ValueError: `tail` or `alpha` not a whole number from 1.
    """

    STATE = ("means", "center", "scale", "shape", "alpha", "tail")
    usual = {"tail": (10, 20, 50), "alpha": (1, 3, 10)}
    #: What libMR adds to distances before it fits them.
    SHIFT = 10_000.0
    #: The least width of a distribution, as a share of the logits' length: float32 tells no closer distances apart.
    #: Distances that are all equal would have none.
    NARROWEST = 1e-3

    def __init__(self, tail=20, alpha=3):
        super().__init__()
        self.tail, self.alpha = whole("tail", tail), whole("alpha", alpha)

    def fit(self, features, labels, logits=None):
        """Averages the logits of each class's rightly classified images and fits their largest distances.

        Raises:
            ValueError: Labels that are not class indices, or a class without a rightly classified image.
        """
        logits, labels = self._labelled(features, labels, logits)
        means, right = self.rightly_classified(logits, labels, logits)
        tails = [np.empty(0)] * len(means)
        for block, own, is_right in blocks(logits, labels, right.astype(np.int8)):
            distances = np.linalg.norm(block - means[own], axis=1)
            for k in np.unique(own[is_right == 1]):
                every = np.concatenate([tails[k], distances[(own == k) & (is_right == 1)]])
                tails[k] = np.sort(every)[-self.tail :]
        lengths = np.linalg.norm(means, axis=1) + [one[-1] for one in tails]
        steepest = self.SHIFT / np.maximum(self.NARROWEST * lengths, 1e-6)
        fits = [_weibull(one - one[0] + self.SHIFT, most) for one, most in zip(tails, steepest, strict=True)]
        scale, shape = np.transpose(fits)
        center = np.array([one[0] for one in tails]) - self.SHIFT + scale
        return self.keep(means=means, center=center, scale=scale, shape=shape)

    def score(self, features, logits):
        """Log-odds of the unknown class: float32 (B,), unbounded."""
        means = self.fitted("means")
        classes = means.shape[0]
        logits = self.checked(logits, classes, "logits")
        ranked, index = ops.top_k(logits, classes)
        revised = min(self.alpha, classes)
        weights = ops.cast(revised - ops.arange(revised), "float32") / revised
        index = index[:, :revised]
        away = ops.expand_dims(logits, 1) - ops.take(means, index, axis=0)
        distance = ops.sqrt(ops.sum(ops.square(away), axis=-1))
        center, scale, shape = (ops.take(self.fitted(name), index, axis=0) for name in ("center", "scale", "shape"))
        # As a power of nearly 1 it would lose its digits; e^e^5 is past what float32 has.
        power = ops.exp(ops.clip(shape * _log1p((distance - center) / scale), -80.0, 5.0))
        taken = -ops.expm1(-power) * weights * ranked[:, :revised]
        known = ops.concatenate([ranked[:, :revised] - taken, ranked[:, revised:]], axis=-1)
        return ops.sum(taken, axis=-1) - ops.logsumexp(known, axis=-1)


def _log1p(x):
    """ln(1 + x) to its last digits near 0, which LiteRT and OpenVINO have not."""
    near = ops.abs(x) < 0.02
    r = ops.where(near, x, 0.0)
    series = r * (1 - r * (1 / 2 - r * (1 / 3 - r * (1 / 4 - r * (1 / 5 - r / 6)))))
    return ops.where(near, series, ops.log(ops.maximum(1.0 + x, 1e-3)))


def _weibull(values, steepest):
    """Scale and shape of the Weibull distribution that makes positive values likeliest."""
    logs = np.log(values)

    def slope(log_shape):
        shape = np.exp(log_shape)
        weights = np.exp(shape * (logs - logs.max()))
        return (weights * logs).sum() / weights.sum() - logs.mean() - 1 / shape

    most = np.log(steepest)
    shape = np.exp(most if slope(most) <= 0 else brentq(slope, -7.0, most, xtol=1e-12))
    return np.exp(np.logaddexp.reduce(shape * logs - np.log(len(logs))) / shape), shape
