"""WeiPer: densities of the feature's units and of its projections on randomly perturbed class weights."""

import numpy as np
from keras import ops

from kood.geometry import top_value
from kood.numbers import above_zero, finite, whole
from kood.scores.fitting import Fitted, array, linear_head
from kood.scores.streaming import blocks

__all__ = ["WeiPer"]

#: Numbers that are compared with edges at once, in a row.
_AT_ONCE = 8192
#: Projections that are counted at once when it is fitted.
_FITTED_AT_ONCE = 1 << 22


class WeiPer(Fitted):
    """WeiPer+KLD: how the distributions of a feature's units and of its perturbed logits differ from those of ID.

    D(p || q) + D(q || p) of the units, plus `perturbed_weight` times that of the perturbed logits, less `msp_weight`
    times the mean over the repeats of the maximum softmax probability of the perturbed logits. The perturbed logits are
    x^T W' + b, W' the head's kernel plus noise: each of `repeats` times K columns is w_k + delta |w_k| u, u a random
    direction. q is the histogram of the values of one image, smoothed by a moving average, p that of all values of the
    ID images, both over `bins` equal bins from the least ID value to the largest, plus 0.01 (units) or 0.025 (logits),
    brought to sum 1. What lies outside of the bins is left out.

    Source: Granz, Heurich and Landgraf 2024, arXiv:2405.17164, from the authors' code: its defaults and its unsmoothed
    p. (They choose the options for each data set. The bins begin at the exact extremes, as under their `exact_minmax`.)

    Args:
        delta: Length of the noise, as a share of that of the class's weights, above 0.
        repeats: How often every class is perturbed. (D, K repeats) weights are part of the served model.
        bins: Bins of a histogram.
        smoothing: Width of the moving average of the units' histogram, in bins.
        perturbed_smoothing: The same of the perturbed logits' histogram.
        perturbed_weight: lambda_1 of the paper.
        msp_weight: lambda_2 of the paper.
        seed: Of the noise.

    Raises:
        ValueError: `delta` not above 0, a count not a whole number from 1, or a weight that is NaN or infinite.
    """

    STATE = (
        "kernel", "bias", "edges", "perturbed_edges", "density", "perturbed_density", "average", "perturbed_average",
        "classes", "perturbed_weight", "msp_weight",
    )  # fmt: skip
    #: What is added to the bins of both histograms.
    UNITS, LOGITS = 0.01, 0.025

    def __init__(
        self, delta=2.1, repeats=100, bins=100, smoothing=20, perturbed_smoothing=20, perturbed_weight=1.0,
        msp_weight=1.0, seed=0,
    ):  # fmt: skip
        super().__init__()
        self.delta, self.repeats, self.bins = above_zero("delta", delta), whole("repeats", repeats), whole("bins", bins)
        self.smoothing = whole("smoothing", smoothing)
        self.perturbed_smoothing = whole("perturbed_smoothing", perturbed_smoothing)
        self.perturbed_weight = finite("perturbed_weight", perturbed_weight)
        self.msp_weight, self.seed = finite("msp_weight", msp_weight), seed

    def fit(self, features, labels=None, logits=None, *, kernel, bias):
        """Draws the noise and counts the units and the perturbed logits of the features."""
        features = array("features", features)
        kernel, bias = linear_head(features.shape[1], kernel, bias)
        noise = np.random.default_rng(self.seed).normal(size=(self.repeats, *kernel.shape))
        noise *= self.delta * np.linalg.norm(kernel, axis=0) / np.linalg.norm(noise, axis=1, keepdims=True)
        perturbed = np.concatenate(kernel + noise, axis=1)
        bias = np.tile(bias, self.repeats)
        rows = max(1, _FITTED_AT_ONCE // perturbed.shape[1])

        def both():
            for (block,) in blocks(features):
                for start in range(0, len(block), rows):
                    few = block[start : start + rows]
                    yield few, few @ perturbed + bias

        ends = [(few.min(), few.max(), own.min(), own.max()) for few, own in both()]
        low, high, perturbed_low, perturbed_high = (
            end(column) for end, column in zip((min, max, min, max), zip(*ends, strict=True), strict=True)
        )
        edges, perturbed_edges = _edges(low, high, self.bins), _edges(perturbed_low, perturbed_high, self.bins)
        counts = np.zeros((2, self.bins))
        for few, own in both():
            counts += [np.histogram(few, edges)[0], np.histogram(own, perturbed_edges)[0]]
        return self.keep(
            kernel=perturbed, bias=bias, edges=edges, perturbed_edges=perturbed_edges,
            density=_lifted(counts[0], self.UNITS), perturbed_density=_lifted(counts[1], self.LOGITS),
            average=_moving_average(self.bins, self.smoothing),
            perturbed_average=_moving_average(self.bins, self.perturbed_smoothing), classes=kernel.shape[1],
        )  # fmt: skip

    def score(self, features, logits=None):
        """The divergences less the mean maximum probability: float32 (B,), unbounded."""
        kernel = self.fitted("kernel")
        features = self.checked(features, kernel.shape[0])
        classes = int(self.fitted("classes"))
        perturbed = ops.matmul(features, kernel) + self.fitted("bias")
        each = ops.softmax(ops.reshape(perturbed, (-1, kernel.shape[1] // classes, classes)))
        confidence = ops.mean(top_value(each), axis=-1)
        units = self._divergence(features, "", self.UNITS)
        return (
            units + self.perturbed_weight * self._divergence(perturbed, "perturbed_", self.LOGITS)
            - self.msp_weight * confidence
        )  # fmt: skip

    def _divergence(self, values, of, lift):
        """D(p || q) + D(q || p) (B,) of the histograms of the values (B, M)."""
        edges, p = (ops.convert_to_tensor(self.fitted(f"{of}{name}")) for name in ("edges", "density"))
        width = values.shape[1]
        step = max(1, _AT_ONCE // width)
        above = []
        for start in range(0, edges.shape[0], step):
            over = ops.expand_dims(values, -1) >= edges[start : start + step]
            above.append(ops.sum(ops.cast(over, "float32"), axis=1))
        above = ops.concatenate(above, axis=-1)
        q = ops.matmul((above[:, :-1] - above[:, 1:]) / width, self.fitted(f"{of}average")) + lift
        q = q / ops.sum(q, axis=-1, keepdims=True)
        return ops.sum((p - q) * (ops.log(p) - ops.log(q)), axis=-1)


def _edges(low, high, bins):
    """Edges (bins + 1,) of equal bins, float32, the last one just above the largest value."""
    edges = np.linspace(low, high, bins + 1).astype(np.float32)
    edges[-1] = np.nextafter(max(edges[-1], np.float32(high)), np.float32(np.inf))
    return edges


def _lifted(counts, lift):
    """Shares of counts, each plus `lift`, brought to sum 1."""
    lifted = counts / counts.sum() + lift
    return (lifted / lifted.sum()).astype(np.float32)


def _moving_average(bins, width):
    """The matrix (bins, bins) that a row of bins is multiplied with; beyond the ends the outermost bin goes on.

    Of an even width one bin more lies after than before.
    """
    matrix = np.zeros((bins, bins), np.float32)
    for bin_, offset in np.ndindex(bins, width):
        matrix[np.clip(bin_ + offset - (width - 1) // 2, 0, bins - 1), bin_] += 1 / width
    return matrix
