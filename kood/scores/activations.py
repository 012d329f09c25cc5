"""Scores that rework the features before a linear head: energy of the logits that the head then gives.

They all need the head's kernel and bias, which an angular head has not.
"""

import numpy as np
from keras import ops

from kood.numbers import at_least_zero, fraction
from kood.scores.fitting import Fitted, array, linear_head
from kood.scores.streaming import mean_row, quantile, spread

__all__ = ["ASH", "DICE", "SCALE", "AdaSCALE", "ReAct"]

#: exp of more would overflow once multiplied by a feature. Non-negative features never come near.
_LARGEST_RATIO = 50.0


class _Reworked(Fitted):
    """Energy -logsumexp(x' W + b) of reworked features x'."""

    STATE: tuple[str, ...] = ("kernel", "bias", "share")

    def __init__(self, share_of):
        super().__init__()
        self.share = share_of

    def fit(self, features, labels=None, logits=None, *, kernel, bias):
        """Takes over the linear head."""
        features = array("features", features)
        kernel, bias = linear_head(features.shape[1], kernel, bias)
        return self.keep(**{"kernel": kernel, "bias": bias, **self._learnt(features, kernel)})

    def _learnt(self, features, kernel):
        """What a score keeps beside the head, or in its place."""
        return {}

    def score(self, features, logits=None):
        """Energy of the reworked features: float32 (B,), unbounded."""
        kernel = self.fitted("kernel")
        features = self._rework(self.checked(features, kernel.shape[0]))
        return -ops.logsumexp(ops.matmul(features, kernel) + self.fitted("bias"), axis=-1)

    def _rework(self, features):
        return features


class ReAct(_Reworked):
    """Energy of features rectified from above: -logsumexp(min(x, c) W + b), c a quantile of all ID activations.

    Source: Sun et al. 2021, arXiv:2111.12797. (The default is the authors' and OpenOOD's.)

    Args:
        quantile: Share of the ID activations, of all units together, that lie below c.

    Raises:
        ValueError: `quantile` outside [0, 1).
    """

    STATE = (*_Reworked.STATE, "limit")
    usual = {"quantile": (0.85, 0.9, 0.95, 0.99)}

    def __init__(self, quantile=0.9):
        super().__init__(fraction("quantile", quantile))

    def _learnt(self, features, kernel):
        return {"limit": quantile(features, self.share)}

    def _rework(self, features):
        return ops.minimum(features, float(self.fitted("limit")))


def _kept(width, pruned):
    """How many of `width` features are left when the share `pruned` goes."""
    kept = width - round(width * pruned)
    if kept < 1:
        raise ValueError(f"Pruning the share {pruned} of {width} features leaves none; choose a smaller one.")
    return kept


def _largest(features, pruned):
    """Mask (B, D), 1 for the largest features of each row, the share `pruned` left out, and how many are left.

    Of equal features at the edge the first are taken, so that every row keeps as many.
    """
    width = features.shape[-1]
    kept = _kept(width, pruned)
    edge = ops.sort(features, axis=-1)[:, width - kept : width - kept + 1]
    above = ops.cast(features > edge, "float32")
    at = ops.cast(features == edge, "float32")
    room = kept - ops.sum(above, axis=-1, keepdims=True)
    return above + at * ops.cast(ops.cumsum(at, axis=-1) <= room, "float32"), kept


def _ratio(features, mask):
    """s1 / s2 (B, 1), s1 the sum of a row's features and s2 that of its largest; 1 for a row of zeros."""
    whole = ops.sum(features, axis=-1, keepdims=True)
    largest = ops.sum(mask * features, axis=-1, keepdims=True)
    ratio = ops.where(largest == 0, 1.0, whole / ops.where(largest == 0, 1.0, largest))
    return ops.clip(ratio, -_LARGEST_RATIO, _LARGEST_RATIO)


def _growth(features, mask):
    """exp of `_ratio`."""
    return ops.exp(_ratio(features, mask))


class _Pruned(_Reworked):
    """Of reworked features of which the largest of each image are told apart."""

    version = 2
    usual = {"share": (0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)}

    def _learnt(self, features, kernel):
        _kept(features.shape[1], self.share)
        return {}


class ASH(_Pruned):
    """Energy of shaped activations: the smallest of each image's are set to 0, the others sharpened.

    -logsumexp(x' W + b). Of the D features of x the round(D share) smallest become 0. Variant "S" multiplies the
    others by exp(s1 / s2), s1 the sum of x before pruning and s2 after; "B" sets all of them to s1 over their number.
    Made for features behind a ReLU; with negative ones the formula stands, and |s1 / s2| is held to 50 so that it stays
    finite.

    Source: Djurisic et al. 2023, arXiv:2209.09858, on the penultimate features. (The authors prune 0.9 under "S" on
    ImageNet. OpenOOD's ASH is "B", and prunes 0.9 too, or the best of `usual` on its validation sets; pytorch-ood is
    "S" and prunes 0.65. Of equal features at the edge the first are kept; both keep those that their top-k finds. Under
    "S" they answer NaN for a row of zeros, here it has the energy of the bias.)

    Args:
        share: Share of each image's features that are pruned, the smallest: they become 0.
        variant: "S" or "B".

    Raises:
        ValueError: `share` outside [0, 1), another variant.
    """

    STATE = (*_Reworked.STATE, "variant")

    def __init__(self, share=0.9, variant="S"):
        super().__init__(fraction("share", share))
        if variant not in ("S", "B"):
            raise ValueError(f"variant must be 'S' or 'B'; it is {variant!r}.")
        self.variant = variant

    def _rework(self, features):
        mask, kept = _largest(features, self.share)
        if self.variant == "B":
            return mask * ops.sum(features, axis=-1, keepdims=True) / kept
        return mask * features * _growth(features, mask)


class SCALE(_Pruned):
    """Energy of scaled activations: -logsumexp(exp(s1 / s2) x W + b), nothing pruned.

    s1 is the sum of an image's features, s2 that of its largest, the round(D share) smallest left out. Made for
    features behind a ReLU; with negative ones the formula stands, and |s1 / s2| is held to 50 so that it stays finite.

    Source: Xu et al. 2024, arXiv:2310.00227. (The default is the authors' and OpenOOD's, which takes the best of
    `usual` where its validation sets say so; pytorch-ood's is 0.65. Both answer NaN for a row of zeros, here it has the
    energy of the bias.)

    Args:
        share: Share of each image's features that are left out of s2, the smallest.

    Raises:
        ValueError: `share` outside [0, 1).
    """

    def __init__(self, share=0.85):
        super().__init__(fraction("share", share))

    def _rework(self, features):
        return features * _growth(features, _largest(features, self.share)[0])


class DICE(_Reworked):
    """Energy under a sparse head: -logsumexp(x W' + b), W' the weights that contribute most to the ID logits.

    The contribution of W[d, k] is the mean ID feature d times W[d, k]; weights whose contribution is not above the
    quantile `share` of all of them become 0.

    Source: Sun and Li 2022, arXiv:2111.09805. (pytorch-ood has no default for the share; OpenOOD's is this one.)

    Args:
        share: Share of the weights that are pruned: they become 0.

    Raises:
        ValueError: `share` outside [0, 1).
    """

    usual = {"share": (0.1, 0.3, 0.5, 0.7, 0.9)}

    def __init__(self, share=0.9):
        super().__init__(fraction("share", share))

    def _learnt(self, features, kernel):
        contribution = mean_row(features)[:, None] * kernel
        kept = contribution > np.quantile(contribution, self.share)
        return {"kernel": np.where(kept, kernel, 0.0)}


class AdaSCALE(Fitted):
    """Energy of activations scaled the more, the less an image's features change when it is moved a little.

    With x the features, x' those of the image of which the numbers that matter least were moved
    (`kood.outputs.shifted_features`),

        q = sum of max(x', 0) over the largest x + weight * sum of |x - x'| over the largest x,
        p = least + (most - least) * (share of the ID images whose q is larger),
        r = s1 / s2, s1 the sum of max(x, 0) and s2 that of its largest, the round(D p) smallest left out,

    and the score -logsumexp(exp(r) x W + b) under variant "A", -logsumexp(r^2 (x W + b)) under "L". Made for features
    behind a ReLU. It takes a forward and a backward pass of each image more, and another forward pass.

    Source: Regmi 2025, arXiv:2503.08023. (The formulas and the defaults are OpenOOD's; the authors take 0.8 and 0.85
    for a ResNet-50 on ImageNet, and search them on validation sets. `epsilon` is theirs, half of the deviation of
    ImageNet's pixels. ID images are validation images where there are any, as theirs are, 5,000 at most. r is held to
    50 so that its power stays finite, and is 1 for a row without anything above 0.)

    Args:
        least: Least share of the features that is left out of s2.
        most: Largest share, above `least`.
        units: Share of the features whose activations count in q; one at least.
        shifted_units: Share of the features whose changes count in q; one at least.
        weight: Of the changes against the activations.
        variant: "A" scales the features, "L" the logits.
        pixels: Share of an image's numbers that are moved.
        epsilon: How far, in units of [-1, 1].

    Raises:
        ValueError: a share outside [0, 1), `most` not above `least`, `weight` or `epsilon` below 0 or infinite, another
            variant.
    """

    STATE = ("kernel", "bias", "known", "least", "most", "units", "shifted_units", "weight", "variant")
    held_out = True
    usual = {"least": (0.6, 0.65, 0.7, 0.75), "most": (0.8, 0.85, 0.9, 0.95, 0.99)}
    #: ID images whose q is kept.
    MOST = 5000

    def __init__(
        self,
        least=0.75,
        most=0.85,
        units=0.05,
        shifted_units=0.01,
        weight=10.0,
        variant="A",
        pixels=0.05,
        epsilon=0.226,
    ):
        super().__init__()
        self.least, self.most = fraction("least", least), fraction("most", most)
        self.units, self.shifted_units = fraction("units", units), fraction("shifted_units", shifted_units)
        fraction("pixels", pixels)
        if most <= least:
            raise ValueError(f"most must be above least; they are {most!r} and {least!r}.")
        at_least_zero("epsilon", epsilon)
        if variant not in ("A", "L"):
            raise ValueError(f"variant must be 'A' or 'L'; it is {variant!r}.")
        self.weight, self.variant = at_least_zero("weight", weight), variant

    def fit(self, features, labels=None, logits=None, *, shifted, kernel, bias):
        """Takes over the linear head, and keeps q of the images."""
        features, shifted = array("features", features), array("shifted", shifted)
        kernel, bias = linear_head(features.shape[1], kernel, bias)
        if shifted.shape != features.shape:
            raise ValueError(f"shifted must have the shape {features.shape} of features; it has {shifted.shape}.")
        rows = spread(len(features), self.MOST)
        few = [ops.convert_to_tensor(part[rows], "float32") for part in (features, shifted)]
        known = np.sort(ops.convert_to_numpy(self._change(*few)))
        return self.keep(kernel=kernel, bias=bias, known=known)

    def score(self, features, shifted):
        """Energy of the scaled features or logits: float32 (B,), unbounded."""
        kernel, bias = self.fitted("kernel"), self.fitted("bias")
        width = kernel.shape[0]
        features, shifted = self.pair(features, width, shifted, width, "shifted")
        above = ops.greater(self.fitted("known")[None], self._change(features, shifted)[:, None])
        larger = ops.mean(ops.cast(above, "float32"), axis=1)
        kept = ops.maximum(width - ops.round(width * (self.least + (self.most - self.least) * larger)), 1.0)
        is_kept = ops.cast(ops.arange(width, dtype="float32")[None] < kept[:, None], "float32")
        ratio = _ratio(-ops.sort(-ops.relu(features), axis=-1), is_kept)
        if self.variant == "L":
            logits = ratio**2 * (ops.matmul(features, kernel) + bias)
        else:
            logits = ops.matmul(ops.exp(ratio) * features, kernel) + bias
        return -ops.logsumexp(logits, axis=-1)

    def _change(self, features, shifted):
        """q (B,)."""
        width = features.shape[-1]
        few, fewer = (max(1, int(width * share)) for share in (self.units, self.shifted_units))
        order = ops.top_k(features, max(few, fewer))[1]
        active = ops.take_along_axis(ops.relu(shifted), ops.cast(order, "int32"), axis=-1)[:, :few]
        moved = ops.take_along_axis(ops.abs(features - shifted), ops.cast(order, "int32"), axis=-1)[:, :fewer]
        return ops.sum(active, axis=-1) + self.weight * ops.sum(moved, axis=-1)
