"""Scores that must first see in-distribution images: classes with `fit` and `score`."""

from typing import Any

import numpy as np
from keras import ops

from kood.scores.plain import float32

__all__ = ["KNN", "Mahalanobis", "ViM"]


def _array(name, values, ndim=2):
    values = np.asarray(values)
    if values.ndim != ndim or values.size == 0:
        shape = "(N, D)" if ndim == 2 else "(N,)"
        raise ValueError(f"{name} must be a filled array of shape {shape}; its shape is {values.shape}.")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds {int((~np.isfinite(values)).sum())} values that are NaN or infinite.")
    return values


def _same_length(features, **others):
    for name, values in others.items():
        if len(values) != len(features):
            raise ValueError(f"There are {len(features)} features but {len(values)} {name}.")


class _Fitted:
    """A score with a state, `self.state`: named arrays that `fit` makes and `score` reads."""

    #: The names of the arrays in the state.
    STATE: tuple[str, ...] = ()

    def __init__(self):
        self.state: dict[str, np.ndarray] = {}

    def get_state(self) -> dict[str, np.ndarray]:
        """The fitted state as named arrays of plain dtypes, ready for `np.savez`.

        Raises:
            RuntimeError: `fit` has not run.
        """
        return {name: self._fitted(name).copy() for name in self.STATE}

    @classmethod
    def from_state(cls, state):
        """A fitted score from what `get_state` answered.

        Args:
            state: A mapping of names to arrays, such as an open `.npz` file.

        Raises:
            ValueError: An array is missing.
        """
        missing = [name for name in cls.STATE if name not in state]
        if missing:
            raise ValueError(f"This is no state of {cls.__name__}: it lacks {', '.join(missing)}.")
        score = cls()
        score.state = {name: np.array(state[name]) for name in cls.STATE}
        score._restored()
        return score

    def _restored(self):
        """Takes what `__init__` was once given out of a state just loaded."""

    def _fitted(self, name):
        if name not in self.state:
            raise RuntimeError(f"{type(self).__name__} must be fitted before it can score.")
        return self.state[name]

    def _checked(self, features, dimension):
        features = float32(features)
        if len(features.shape) != 2 or features.shape[-1] not in (dimension, None):
            raise ValueError(f"features must have the shape (B, {dimension}); theirs is {tuple(features.shape)}.")
        return features


class Mahalanobis(_Fitted):
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

    STATE = ("center", "whitening", "means", "cut")
    #: Classes compared at once: bounds the memory to (B, this, D).
    BLOCK = 16

    def __init__(self, cut=1e-10):
        super().__init__()
        if not 0 <= cut < 1:
            raise ValueError(f"cut must be from 0 to below 1; it is {cut!r}.")
        self.cut = float(cut)

    def _restored(self):
        self.cut = float(self.state["cut"])

    def fit(self, features, labels, logits=None):
        """Estimates the class means and the covariance.

        Args:
            features: ID features (N, D).
            labels: Their class indices (N,). A class without examples has no mean.
            logits: Not used.

        Returns:
            Itself.

        Raises:
            ValueError: Empty, unequal or non-finite input, labels that are not class indices, or no variance
                at all within classes.
        """
        features, labels = _array("features", features), _array("labels", labels, ndim=1)
        _same_length(features, labels=labels)
        if (labels != np.rint(labels)).any():
            raise ValueError("labels must be class indices, whole numbers.")
        classes, index = np.unique(labels, return_inverse=True)
        means = np.zeros((len(classes), features.shape[1]))
        np.add.at(means, index, features)
        means /= np.bincount(index)[:, None]
        within = features - means[index]
        variances, directions = np.linalg.eigh(within.T @ within / len(features))
        # 0 * largest would let rounding's tiny and negative variances pass where cut is 0.
        kept = variances > max(self.cut, len(variances) * np.finfo(np.float64).eps) * variances[-1]
        if variances[-1] <= 0 or not kept.any():
            raise ValueError("features do not vary within any class, so distances have no unit.")
        whitening = directions[:, kept] / np.sqrt(variances[kept])
        center = features.mean(axis=0)
        self.state = {
            "center": center.astype(np.float32),
            "whitening": whitening.astype(np.float32),
            "means": ((means - center) @ whitening).astype(np.float32),
            "cut": np.array(self.cut),
        }
        return self

    def score(self, features, logits=None):
        """Squared distance to the nearest class mean.

        Args:
            features: (B, D).
            logits: Not used.

        Returns:
            float32 (B,), at least 0.

        Raises:
            RuntimeError: Before `fit`.
            ValueError: Features of another width.
        """
        center, means = self._fitted("center"), self._fitted("means")
        features = self._checked(features, len(center))
        white = ops.expand_dims(ops.matmul(features - center, self._fitted("whitening")), 1)
        nearest = [
            # Differences, not |a|^2 + |b|^2 - 2ab, which cancels where a class is near.
            ops.min(ops.sum(ops.square(white - means[start : start + self.BLOCK]), axis=-1), axis=-1)
            for start in range(0, len(means), self.BLOCK)
        ]
        return ops.min(ops.stack(nearest), axis=0)


class KNN(_Fitted):
    """Euclidean distance to the k-th nearest ID feature, all features brought to length 1.

    A feature that was itself fitted is its own first neighbour. A zero feature stays zero, at distance 1 from
    all.

    Source: Sun et al. 2022, arXiv:2204.06507. (OpenOOD answers the squared distance, which orders alike.)

    Args:
        k: Which neighbour, counted from 1.

    Raises:
        ValueError: `k` below 1.
    """

    STATE = ("bank", "k")
    #: Fitted features compared at once: bounds the memory to (B, this).
    BLOCK = 8192

    def __init__(self, k=50):
        super().__init__()
        if isinstance(k, bool) or int(k) != k or k < 1:
            raise ValueError(f"k must be a whole number, at least 1; it is {k!r}.")
        self.k = int(k)

    def _restored(self):
        self.k = int(self.state["k"])

    def fit(self, features, labels=None, logits=None):
        """Keeps the directions of the features.

        Args:
            features: ID features (N, D), N at least k.
            labels: Not used.
            logits: Not used.

        Returns:
            Itself.

        Raises:
            ValueError: Empty or non-finite input, or fewer than k features.
        """
        features = _array("features", features)
        if len(features) < self.k:
            raise ValueError(
                f"There are {len(features)} features, fewer than k={self.k}; fit more or choose a smaller k."
            )
        largest = np.abs(features).max(axis=1, keepdims=True)
        features = features / np.where(largest > 0, largest, 1.0)
        length = np.linalg.norm(features, axis=1, keepdims=True)
        bank = features / np.where(length > 0, length, 1.0)
        self.state = {"bank": bank.astype(np.float32), "k": np.array(self.k)}
        return self

    def score(self, features, logits=None):
        """Distance to the k-th nearest fitted feature.

        Args:
            features: (B, D).
            logits: Not used.

        Returns:
            float32 (B,) in [0, 2].

        Raises:
            RuntimeError: Before `fit`.
            ValueError: Features of another width.
        """
        bank = self._fitted("bank")
        features = self._checked(features, bank.shape[1])
        largest = ops.max(ops.abs(features), axis=-1, keepdims=True)
        features = features / ops.where(largest > 1e-30, largest, 1.0)
        square = ops.sum(ops.square(features), axis=-1, keepdims=True)
        features = features / ops.sqrt(ops.where(square > 0, square, 1.0))

        nearest: Any = None
        nearest_index: Any = None
        for start in range(0, len(bank), self.BLOCK):
            block = bank[start : start + self.BLOCK]
            # The least distance is the largest product less half the square, which is not 1 for a zero.
            offset = (0.5 * np.sum(block * block, axis=1)).astype(np.float32)
            closeness = ops.matmul(features, block.T) - offset
            values, index = ops.top_k(closeness, min(self.k, len(block)))
            index = ops.cast(index, "int32") + start
            if nearest is not None:
                values = ops.concatenate([nearest, values], axis=-1)
                index = ops.concatenate([nearest_index, index], axis=-1)
                values, chosen = ops.top_k(values, min(self.k, start + len(block)))
                index = ops.take_along_axis(index, ops.cast(chosen, "int32"), axis=-1)
            nearest, nearest_index = values, index
        # From the difference: sqrt(2 - 2 cos) would be off by 3e-4 where the neighbour is close.
        neighbour = ops.take(ops.convert_to_tensor(bank), nearest_index[:, self.k - 1], axis=0)
        return ops.sqrt(ops.sum(ops.square(features - neighbour), axis=-1))


class ViM(_Fitted):
    """Virtual-logit matching: the feature's residual outside the principal space of ID, against the energy.

    alpha * |R^T (x - o)| - logsumexp(logits). R (D, D - dim) spans the complement of the `dim` leading
    eigenvectors of (X - o)^T (X - o); alpha is the mean largest logit over the mean residual norm of ID. The
    origin o is -pinv(W^T) b, where the features of a linear head give logits 0, when its kernel W (D, K) and
    bias b are given; else the mean feature, as for angular heads, whose logits have no such point.

    Source: Wang et al. 2022, arXiv:2203.10807.

    Args:
        dim: Dimension of the principal space, from 1 to D - 1. None: the paper's 1000 for D >= 2048, 512 for
            D >= 768, else D // 2.

    Raises:
        ValueError: `dim` below 1.
    """

    STATE = ("origin", "residual", "alpha", "dim")

    def __init__(self, dim=None):
        super().__init__()
        if dim is not None and (isinstance(dim, bool) or int(dim) != dim or dim < 1):
            raise ValueError(f"dim must be a whole number, at least 1; it is {dim!r}.")
        self.dim = None if dim is None else int(dim)

    def _restored(self):
        self.dim = int(self.state["dim"])

    def fit(self, features, labels=None, logits=None, kernel=None, bias=None):
        """Finds the principal space and the weight of the residual.

        Args:
            features: ID features (N, D).
            labels: Not used.
            logits: Their logits (N, K); may be left out where kernel and bias give them.
            kernel: Weight (D, K) of a linear head.
            bias: Its bias (K,).

        Returns:
            Itself.

        Raises:
            ValueError: Empty, unequal or non-finite input; neither logits nor kernel and bias; `dim` not
                below D; no residual in the ID features, so that alpha is undefined.
        """
        features = _array("features", features)
        width = features.shape[1]
        if (kernel is None) != (bias is None):
            raise ValueError("kernel and bias go together.")
        origin = features.mean(axis=0)
        if kernel is not None:
            kernel, bias = _array("kernel", kernel), _array("bias", bias, ndim=1)
            if kernel.shape != (width, len(bias)):
                raise ValueError(f"kernel must have the shape ({width}, {len(bias)}); its shape is {kernel.shape}.")
            origin = -np.linalg.pinv(kernel.T) @ bias
            if logits is None:
                logits = features @ kernel + bias
        if logits is None:
            raise ValueError("ViM needs the logits of the features, or the head's kernel and bias.")
        logits = _array("logits", logits)
        _same_length(features, logits=logits)

        default = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
        dim = default if self.dim is None else self.dim
        if not 1 <= dim < width:
            raise ValueError(f"dim must be from 1 to {width - 1}, below the {width} features; it is {dim}.")
        centred = features - origin
        directions = np.linalg.eigh(centred.T @ centred)[1]
        residual = directions[:, : width - dim]
        mean_norm = np.linalg.norm(centred @ residual, axis=1).mean()
        if mean_norm <= 1e-6 * np.linalg.norm(centred, axis=1).mean():
            raise ValueError(f"The features leave no residual outside their {dim} principal dimensions; choose fewer.")
        self.state = {
            "origin": origin.astype(np.float32),
            "residual": residual.astype(np.float32),
            "alpha": np.array(logits.max(axis=1).mean() / mean_norm),
            "dim": np.array(dim),
        }
        return self

    def score(self, features, logits):
        """The virtual logit less the log-sum-exp of the real ones.

        Args:
            features: (B, D).
            logits: (B, K).

        Returns:
            float32 (B,), unbounded.

        Raises:
            RuntimeError: Before `fit`.
            ValueError: Features of another width.
        """
        origin = self._fitted("origin")
        features = self._checked(features, len(origin))
        outside = ops.matmul(features - origin, self._fitted("residual"))
        norm = ops.sqrt(ops.sum(ops.square(outside), axis=-1))
        return float(self._fitted("alpha")) * norm - ops.logsumexp(float32(logits), axis=-1)
