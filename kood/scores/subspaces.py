"""Scores from what lies outside the principal space of the ID features: the residual and ViM."""

import numpy as np
from keras import ops

from kood.numbers import whole
from kood.scores.fitting import Fitted, array, linear_head
from kood.scores.streaming import blocks, mean_row, principal

__all__ = ["Residual", "ViM"]


#: Smallest part of the features' length that has to lie outside of their principal space.
SMALLEST = 1e-6


def _most(variances, norms):
    """The largest dimension that leaves a residual, 0 for none, from the ascending eigenvalues of the features' sum of
    squares and the sum of their lengths."""
    # The sum of lengths outside is no less than the root of the sum of squares: what this lets pass, a fit does.
    outside = np.sqrt(np.cumsum(np.maximum(variances, 0.0)))
    return int((outside[:-1] > SMALLEST * norms).sum())


def _outside(rows, residual, dim, of=np):
    """Rows in coordinates of the complement, or, where the principal space is kept, what of them is outside it."""
    along = of.matmul(rows, residual)
    return along if residual.shape[1] == residual.shape[0] - dim else rows - of.matmul(along, of.transpose(residual))


class _PrincipalSpace(Fitted):
    """The complement of the principal space of ID features.

    What is kept is the narrower of the two to multiply by: the complement R (D, D - dim), or the principal space
    P (D, dim), where R^T y is as long as y - P P^T y. A complement of 25,000 wide features has gigabytes.
    """

    STATE: tuple[str, ...] = ("origin", "residual", "dim")
    usual = {"dim": (16, 64, 256, 1000)}

    def __init__(self, dim=None):
        super().__init__()
        self.dim = None if dim is None else whole("dim", dim)

    def _space(self, features, kernel, bias):
        """The arrays of the space, and the mean length of the ID features outside it."""
        width = features.shape[1]
        if (kernel is None) != (bias is None):
            raise ValueError("kernel and bias go together.")
        origin = mean_row(features)
        if kernel is not None:
            kernel, bias = linear_head(width, kernel, bias)
            # What float32 weights do not resolve, as the sum of weights that sum to zero, is not inverted.
            origin = -np.linalg.pinv(kernel.T, rcond=max(kernel.shape) * np.finfo(np.float32).eps) @ bias
        default = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
        dim = self.dim or default
        if not 1 <= dim < width:
            raise ValueError(f"dim must be from 1 to {width - 1}, below the {width} features; it is {dim}.")
        centred = (block - origin for (block,) in blocks(features))
        variances, directions = principal(centred, *features.shape)
        rank, norms = len(variances), sum(np.linalg.norm(block - origin, axis=1).sum() for (block,) in blocks(features))
        most = _most(variances, norms)
        if self.dim is None and 0 < most < dim:
            dim = max(1, most // 2)
        leading = directions[:, max(0, rank - dim) :]
        if 2 * dim < width - dim:
            residual = leading
        elif rank < width:
            # What no row reaches is part of the complement of the leading directions as well.
            residual = np.linalg.qr(leading, mode="complete")[0][:, dim:]
        else:
            residual = directions[:, : width - dim]
        outside = sum(
            np.linalg.norm(_outside(block - origin, residual, dim), axis=1).sum() for (block,) in blocks(features)
        )
        mean_norm = outside / len(features)
        if outside <= SMALLEST * norms:
            raise ValueError(
                f"The features leave no residual outside their {dim} principal dimensions; "
                + ("leave dim out, and it is one that leaves some." if most else "they vary in one direction at most")
            )
        return {"origin": origin, "residual": residual, "dim": dim}, mean_norm

    def _length_outside(self, features):
        origin = self.fitted("origin")
        rows = self.checked(features, origin.shape[0]) - origin
        outside = _outside(rows, self.fitted("residual"), int(self.array("dim")), ops)
        return ops.sqrt(ops.sum(ops.square(outside), axis=-1))


class Residual(_PrincipalSpace):
    """Length of the feature outside the principal space of ID.

    |R^T (x - o)|, R (D, D - dim) spanning the complement of the `dim` leading eigenvectors of (X - o)^T (X - o). The
    origin o is -pinv(W^T) b, where the features of a linear head give logits 0 or come nearest to it, when its kernel W
    (D, K) and bias b are given; else the mean feature, as for angular heads, whose logits have no such point. Singular
    values of W below max(D, K) 1.2e-7 of the largest, which float32 does not resolve, are taken for 0.

    Source: Wang et al. 2022, arXiv:2203.10807, where it is ViM without the logits. (OpenOOD answers minus the length,
    and fits it to its validation images. Its pseudo-inverse cuts at 1e-15, so where class weights sum to zero but for
    rounding its origin lies far out; pytorch-ood's cuts as here. Both have no origin but this one, and leave the
    dimension to the caller.)

    Args:
        dim: Dimension of the principal space, from 1 to D - 1. None: the paper's 1000 for D >= 2048, 512 for
            D >= 768, else D // 2; where these leave no residual, as of too few images, half of the most that do.

    Raises:
        ValueError: `dim` below 1.
    """

    def fit(self, features, labels=None, logits=None, kernel=None, bias=None):
        """Finds the principal space.

        Raises:
            ValueError: A kernel without its bias; `dim` not below D; no residual in the ID features.
        """
        return self.keep(**self._space(array("features", features), kernel, bias)[0])

    def score(self, features, logits=None):
        """Length of the feature's residual: float32 (B,), at least 0."""
        return self._length_outside(features)


class ViM(_PrincipalSpace):
    """Virtual-logit matching: the feature's residual outside the principal space of ID, against the energy.

    alpha * |R^T (x - o)| - logsumexp(logits), R and o as for `Residual`; alpha is the mean largest logit over the mean
    residual norm of ID.

    Source: Wang et al. 2022, arXiv:2203.10807. (OpenOOD answers minus this, from an origin that differs as for
    `Residual`, and takes dim = 256, or 1000 where its validation sets say so; pytorch-ood takes half the width in place
    of a dim above it, which is refused here.)

    Args:
        dim: As for `Residual`.

    Raises:
        ValueError: `dim` below 1.
    """

    version = 2
    STATE = ("origin", "residual", "alpha", "dim", "classes")

    def fit(self, features, labels=None, logits=None, kernel=None, bias=None):
        """Finds the principal space and the weight of the residual.

        Raises:
            ValueError: As for `Residual`, whose residual is here alpha's divisor; neither logits nor kernel and
                bias; logits of other classes than the kernel's, or whose largest are not above 0 in the mean.
        """
        features = array("features", features)
        if logits is not None:
            logits = self.rows_of_logits(features, logits)
        space, mean_norm = self._space(features, kernel, bias)
        if logits is not None:
            largest = sum(block.max(axis=1).sum() for (block,) in blocks(logits))
        elif kernel is not None and bias is not None:
            kernel, bias = linear_head(features.shape[1], kernel, bias)
            largest = sum((block @ kernel + bias).max(axis=1).sum() for (block,) in blocks(features))
        else:
            raise ValueError("ViM needs the logits of the features, or the head's kernel and bias.")
        widths = {np.shape(part)[1] for part in (logits, kernel) if part is not None}
        if len(widths) > 1:
            raise ValueError(f"logits and kernel must have as many classes; theirs are {sorted(widths)}.")
        if not largest > 0:
            raise ValueError(
                f"the mean of the largest logits is {largest / len(features):.3g}, so that the score would fall with "
                "distance; ViM needs logits as a head gives them, whose largest are above 0, and no logarithms of "
                "probabilities."
            )
        return self.keep(**space, alpha=largest / len(features) / mean_norm, classes=widths.pop())

    def score(self, features, logits):
        """The virtual logit less the log-sum-exp of the real ones: float32 (B,), unbounded."""
        width, classes = self.fitted("origin").shape[0], int(self.array("classes"))
        features, logits = self.pair(features, width, logits, classes)
        return float(self.fitted("alpha")) * self._length_outside(features) - ops.logsumexp(logits, axis=-1)
