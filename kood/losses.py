"""Losses per row: every function answers float32 (B,), and the caller weighs the rows.

The exposure losses are for outliers. `outlier_exposure` evens out the class probabilities; `cosine_exposure`
and `energy_exposure` lower the evidence itself, which evening out need not do.
"""

import math

from keras import ops

__all__ = ["cosine_exposure", "cross_entropy", "energy_exposure", "outlier_exposure"]


def _float32(values):
    return ops.cast(ops.convert_to_tensor(values), "float32")


def outlier_exposure(logits, target=None):
    """Kullback-Leibler divergence from the uniform distribution, or another, to the softmax, per row.

    KL(q || softmax(logits)) = sum over classes of q ln q - q log_softmax(logits), with q = target + (1 - sum of
    target) / K: what a row leaves of 1 is spread evenly. So q is uniform without a target and where its row is
    all-zero, and then the divergence is -ln K - mean over classes of log_softmax(logits), the cross-entropy to uniform
    less the constant ln K. It is 0 where the softmax is q.

    Source: Hendrycks et al. 2019, arXiv:1812.04606, for the uniform distribution; a row of lambda at one class is the
    soft label of an outlier mixed with an image of that class, Zhang et al. 2023, arXiv:2106.03917.

    Args:
        logits: (B, K).
        target: Rows (B, K), none negative, each with a sum of at most 1; or None.

    Returns:
        float32 (B,), in nats, at least 0.
    """
    logits = _float32(logits)
    classes = logits.shape[-1]
    shifted = logits - ops.stop_gradient(ops.max(logits, axis=-1, keepdims=True))
    if target is None:
        divergence = ops.logsumexp(shifted, axis=-1) - ops.mean(shifted, axis=-1) - math.log(classes)
    else:
        target = _float32(target)
        q = target + (1.0 - ops.sum(target, axis=-1, keepdims=True)) / classes
        negative_entropy = ops.sum(q * ops.log(ops.where(q > 0, q, 1.0)), axis=-1)
        divergence = negative_entropy + ops.logsumexp(shifted, axis=-1) - ops.sum(q * shifted, axis=-1)
    # Rounding may leave -1e-7. Lifted outside the gradient, which a plain clip would set to zero.
    return divergence + ops.stop_gradient(ops.relu(-divergence))


def cross_entropy(logits, labels):
    """Cross-entropy of the softmax under soft labels, per row: -sum of label * log_softmax(logits).

    Args:
        logits: (B, K).
        labels: Rows (B, K), one-hot or soft. An all-zero row, as an outlier has, gives 0.

    Returns:
        float32 (B,), in nats, at least 0 for labels at least 0.

    Raises:
        ValueError: Labels of another shape.
    """
    logits, labels = _float32(logits), ops.convert_to_tensor(labels)
    if len(labels.shape) != 2 or labels.shape[-1] not in (logits.shape[-1], None):
        raise ValueError(
            f"labels must be rows (B, {logits.shape[-1]}), one column a class; their shape is {tuple(labels.shape)}."
        )
    return -ops.sum(ops.cast(labels, "float32") * ops.log_softmax(logits, axis=-1), axis=-1)


def cosine_exposure(cosines, margin=0.0):
    """Squared hinge on cosines, per row: sum over classes of max(0, cos - margin)^2.

    It lowers the cosines themselves; evening out probabilities leaves all of them free to be equally high,
    and a score such as the largest cosine blind to it. A sum, not a mean, so that the push on the one class
    an outlier resembles does not weaken with the number of classes.

    Args:
        cosines: (B, K) in [-1, 1], as an angular head's `cosines` answers.
        margin: The cosine, in [-1, 1], up to which a class may stay.

    Returns:
        float32 (B,), at least 0.

    Raises:
        ValueError: A margin outside [-1, 1].
    """
    if not -1 <= margin <= 1:
        raise ValueError(f"margin is a cosine, in [-1, 1]; it is {margin!r}.")
    return ops.sum(ops.square(ops.relu(_float32(cosines) - margin)), axis=-1)


def energy_exposure(logits, margin=None, temperature=1.0):
    """Squared hinge on outliers' energy, per row: max(0, margin - E)^2, E = -T logsumexp(logits / T).

    It raises the energy of outliers to `margin`; the term for ID rows in the paper is left to the
    cross-entropy.

    Source: Liu et al. 2020, arXiv:2010.03759.

    Args:
        logits: (B, K).
        margin: The energy an outlier should have at least. None: -T ln K, the energy of all logits 0, which
            binds at any scale. (The paper's -5 for CIFAR is never reached by cosines under a small scale.)
        temperature: T, above 0.

    Returns:
        float32 (B,), at least 0.

    Raises:
        ValueError: A temperature not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0; it is {temperature!r}.")
    logits = _float32(logits)
    if margin is None:
        margin = -temperature * math.log(logits.shape[-1])
    energy = -temperature * ops.logsumexp(logits / temperature, axis=-1)
    return ops.square(ops.relu(margin - energy))
