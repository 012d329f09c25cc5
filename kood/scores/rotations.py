"""Scores of a classifier that has learned to tell how an image is turned (`train.auxiliary = "rotation"`)."""

import math

from keras import ops

from kood.geometry import same_rows, top_value
from kood.scores.plain import float32

__all__ = ["rotation", "rotation_energy"]


def rotation(rotations):
    """How surprised the classifier is by the image's rotation: mean over four rotations of -ln p of the right one.

    A network that knows what it sees knows which way is up. It costs four forward passes.

    Source: Hendrycks et al. 2019, "Using self-supervised learning can improve model robustness and uncertainty",
    arXiv:1906.12340.

    Args:
        rotations: (B, 4), -ln p(r | image rotated by r) for 0, 90, 180 and 270 degrees.

    Returns:
        float32 (B,), in nats, at least 0.
    """
    return ops.mean(float32(rotations), axis=-1)


def rotation_energy(logits, rotations):
    """`rotation` less how far the class probabilities are from uniform, KL(uniform || softmax(logits)).

    With logits z that is

        mean over r of -ln p(r | image rotated by r)  -  (logsumexp(z) - mean of z - ln K),

    so the second part is the energy -logsumexp of logits less their mean, plus ln K. It costs four forward passes.

    Source: Hendrycks et al. 2019, arXiv:1906.12340, as in the authors' code (hendrycks/ss-ood,
    multiclass_ood/test_auxiliary_ood.py) and in OpenOOD's `rotpred`, whose sign is turned; both take logarithms to the
    base 2, which changes the factor alone.

    Args:
        logits: (B, K).
        rotations: (B, 4), -ln p(r | image rotated by r) for 0, 90, 180 and 270 degrees.

    Returns:
        float32 (B,), in nats, unbounded.

    Raises:
        ValueError: Another number of rows in the one than in the other.
    """
    same_rows(logits=logits, rotations=rotations)
    logits = float32(logits)
    below = logits - top_value(logits, keepdims=True)
    uneven = ops.logsumexp(below, axis=-1) - ops.mean(below, axis=-1) - math.log(logits.shape[-1])
    return rotation(rotations) - uneven
