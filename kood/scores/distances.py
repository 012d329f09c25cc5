"""Scores from distances to the class means: Mahalanobis and relative Mahalanobis."""

import hashlib

import numpy as np
from keras import ops

from kood.geometry import top_value
from kood.numbers import fraction
from kood.scores.fitting import Fitted, array, class_indices
from kood.scores.streaming import BLOCK, blocks, class_sums, mean_row, principal

__all__ = ["Mahalanobis", "RelativeMahalanobis"]


#: The states of the last fits, by what was fitted: classifiers on the features of one frozen backbone share them.
_last: dict[str, dict[str, np.ndarray]] = {}
#: How many are kept, those of a classifier and of several folds.
KEPT = 8


def _digest(score, features, labels):
    """A digest of a score, its options and those that a subclass has more, and of what it is fitted to."""
    kind = type(score)
    own = ((name, value) for name, value in vars(score).items() if not name.startswith("_"))
    options = sorted((name, repr(value)) for name, value in own if not isinstance(value, np.ndarray))
    told = (kind.__module__, kind.__qualname__, options, features.shape, str(features.dtype), labels.tolist())
    found = hashlib.sha256(repr(told).encode())
    for start in range(0, len(features), BLOCK):
        found.update(np.ascontiguousarray(features[start : start + BLOCK]).data)
    return found.hexdigest()


def _varying(variances, directions, cut):
    """Standard deviations (R,) and directions (D, R) of the range of a covariance, of its eigenvalues and vectors."""
    # 0 * largest would let rounding's tiny and negative variances pass where cut is 0.
    kept = variances > max(cut, len(directions) * np.finfo(np.float64).eps) * variances[-1]
    if variances[-1] <= 0 or not kept.any():
        raise ValueError("features do not vary within any class, so distances have no unit.")
    return np.sqrt(variances[kept]), directions[:, kept]


class Mahalanobis(Fitted):
    """Squared Mahalanobis distance to the nearest class mean, under one covariance shared by all classes.

    min over c of (x - mu_c)^T S^-1 (x - mu_c), with S = 1/N sum over examples of (x - mu_y)(x - mu_y)^T. A
    singular S is inverted on its range only (pseudo-inverse): directions whose variance within classes is
    below `cut` times the largest do not count, neither in ID data nor in OOD.

    Source: Lee et al. 2018, arXiv:1807.03888, on one layer's features and without its input perturbation.

    Args:
        cut: Smallest variance that counts, relative to the largest. The default is about what float32
            features resolve.

    Raises:
        ValueError: `cut` outside [0, 1).
    """

    STATE: tuple[str, ...] = ("center", "whitening", "means", "cut")
    #: Classes up to which all are compared by their differences, which take (B, this, D); and of more, how many are.
    BLOCK, CANDIDATES = 16, 8

    def __init__(self, cut=1e-10):
        super().__init__()
        self.cut = fraction("cut", cut)

    def fit(self, features, labels, logits=None):
        """Estimates the class means and the covariance.

        Raises:
            ValueError: Labels that are not class indices, or no variance at all within classes.
        """
        features = array("features", features)
        labels = class_indices(features, labels)
        key = _digest(self, features, labels)
        if key in _last:
            self.state = _last.pop(key)
        else:
            self.keep(**self._estimated(features, labels))
        _last[key] = self.get_state()  # The last one is the last to go; each fit has arrays of its own.
        if len(_last) > KEPT:
            del _last[next(iter(_last))]
        return self

    def _estimated(self, features, labels):
        """The arrays to keep."""
        classes, index = np.unique(labels, return_inverse=True)
        means = class_sums(features, index, len(classes)) / np.bincount(index)[:, None]
        # A second pass, of differences: a covariance from sums of squares would cancel where means are far from 0.
        within = (block - means[own] for block, own in blocks(features, index))
        variances, directions = principal(within, *features.shape)
        return self._state(mean_row(features), means, index, variances / len(features), directions)

    def _state(self, center, means, index, variances, directions):
        """The arrays to keep, from the overall mean, the class means, each example's class, and the eigenvalues and
        eigenvectors of the covariance.
        """
        deviations, directions = _varying(variances, directions, self.cut)
        whitening = directions / deviations
        return {"center": center, "whitening": whitening, "means": (means - center) @ whitening}

    def score(self, features, logits=None):
        """Squared distance to the nearest class mean: float32 (B,), at least 0."""
        center = self.fitted("center")
        white = ops.matmul(self.checked(features, center.shape[0]) - center, self.fitted("whitening"))
        return self._nearest(white, self.fitted("means"))

    def _nearest(self, features, means):
        """Squared Euclidean distance (B,) to the nearest of the means (K, R)."""
        if means.shape[0] <= self.BLOCK:
            # Differences, not |a|^2 + |b|^2 - 2ab, which cancels where a class is near.
            return self._least(ops.expand_dims(features, 1) - means)
        # Of many classes the product finds the candidates, by |b|^2 - 2ab, and their differences are taken. What it
        # rounds away can hide the nearest only behind so many others that lie as near but for that rounding.
        behind = ops.matmul(features, ops.transpose(2.0 * means)) - ops.sum(ops.square(means), axis=-1)
        candidates = ops.top_k(behind, self.CANDIDATES)[1]
        return self._least(ops.expand_dims(features, 1) - ops.take(means, candidates, axis=0))

    def _least(self, differences):
        return -top_value(-ops.sum(ops.square(differences), axis=-1))


class RelativeMahalanobis(Mahalanobis):
    """Squared Mahalanobis distance to the nearest class mean, less that to the mean of all, under all's covariance.

    min over c of (x - mu_c)^T S^-1 (x - mu_c) - (x - mu)^T S_0^-1 (x - mu), with S as for `Mahalanobis`, mu the mean
    of all ID features and S_0 = 1/N sum over examples of (x - mu)(x - mu)^T. What all directions have in common
    cancels, so that what is left tells near-OOD images. Singular covariances are inverted on their range.

    S_0 - S is the covariance of the class means, of rank below K: in every other direction both distances are one and
    the same. The fit takes these out in float64, and the difference is added up in at most K - 1 directions, those that
    bring both matrices to diagonals: min over c of sum_i w_i (y_i - m_ci)^2, less sum_i y_i^2. As a difference of two
    distances over all D, float32 would lose the digits that they share.

    Source: Ren et al. 2021, arXiv:2106.09022. (OpenOOD's is minus this, in float32. pytorch-ood's RMD leaves out the
    1/N of both covariances and adds 1e-6 to their diagonals: where these are regular its score is this one divided by
    N, which orders alike. Under a singular one it orders otherwise: directions without variance count 1e6 there, and
    not at all here and in OpenOOD.)

    Args:
        cut: As for `Mahalanobis`, for both covariances.

    Raises:
        ValueError: `cut` outside [0, 1).
    """

    STATE = ("center", "directions", "stretch", "means", "cut")
    #: Smallest difference of the two matrices that counts, where S_0 is the identity: about what float64 leaves of it.
    SAME = 1e-9

    def _state(self, center, means, index, variances, directions):
        # All examples' covariance is that within classes and that of the class means: no second pass over N rows.
        apart = (means - center) * np.sqrt(np.bincount(index) / len(index))[:, None]
        parts = [np.sqrt(np.maximum(variances, 0.0))[:, None] * directions.T, apart]
        whole, of_all = _varying(*principal(parts, sum(map(len, parts)), len(center)), self.cut)
        within, own = _varying(variances, directions, self.cut)
        white = of_all / whole
        # S_0 times the whitening of S_0 is `of_all * whole`.
        mixed = (own / within).T @ (of_all * whole)
        precision, centred = mixed.T @ mixed, (means - center) @ white
        excess, basis = np.linalg.eigh(precision - np.eye(len(precision)))
        basis = basis[:, np.abs(excess) > self.SAME]
        # A singular S is inverted on its own range, and then a mean may lie outside of these directions.
        left, sizes, _ = np.linalg.svd((centred - centred @ basis @ basis.T).T, full_matrices=False)
        basis = np.hstack([basis, left[:, sizes > self.SAME * max(1.0, np.abs(centred).max())]])
        weights, turn = np.linalg.eigh(basis.T @ precision @ basis)
        basis, stretch = basis @ turn, np.sqrt(np.maximum(weights, 0.0))
        return {
            "center": center, "directions": white @ basis, "stretch": stretch, "means": centred @ basis * stretch,
        }  # fmt: skip

    def score(self, features, logits=None):
        """Squared distance to the nearest class mean, less the squared distance to the mean of all: float32 (B,),
        unbounded; 0 for all where there is one class.
        """
        center = self.fitted("center")
        shared = ops.matmul(self.checked(features, center.shape[0]) - center, self.fitted("directions"))
        nearest = self._nearest(shared * self.fitted("stretch"), self.fitted("means"))
        return nearest - ops.sum(ops.square(shared), axis=-1)
