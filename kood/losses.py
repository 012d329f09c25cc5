"""Losses per row: every function answers float32 (B,), and the caller weighs the rows.

The exposure losses are for outliers. `outlier_exposure` evens out the class probabilities; `cosine_exposure`
and `energy_exposure` lower the evidence itself, which evening out need not do.

Example:
    ```python
    import numpy as np
    import kood

    logits = np.array([[9.0, 0.0], [0.0, 0.0]], "float32")
    kood.losses.outlier_exposure(logits)  # (2,): how far from the uniform distribution, in nats; 0 for the second
    ```
"""

import math

from keras import ops

from kood.geometry import same_rows, top_value
from kood.numbers import above_zero, finite

__all__ = ["cosine_exposure", "cross_entropy", "energy_exposure", "outlier_exposure"]


def _float32(values):
    return ops.cast(ops.convert_to_tensor(values), "float32")


def _label_rows(labels, logits):
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) != 2 or labels.shape[-1] not in (logits.shape[-1], None):
        raise ValueError(
            f"labels must be rows (B, {logits.shape[-1]}), one column a class; their shape is {tuple(labels.shape)}."
        )
    same_rows(logits=logits, labels=labels)
    return ops.cast(labels, "float32")


def outlier_exposure(logits, labels=None):
    """Kullback-Leibler divergence from what an outlier should get to the softmax, per row: by default from uniform.

    KL(uniform || softmax(logits)) = -ln K - mean over classes of log_softmax(logits). It differs from the
    cross-entropy to uniform by the constant ln K only, and is 0 where all logits are equal.

    A mixture of an image of class y, in the share l, and an outlier has the label row l * onehot(y). What the row lacks
    to 1 is spread evenly: KL(p || softmax(logits)) with p = label + (1 - sum of label) / K. Up to a constant that is
    the cross-entropy of MixOE. An all-zero row is uniform.

    Source: Hendrycks et al. 2019, arXiv:1812.04606; for mixtures Zhang et al. 2023, arXiv:2106.03917.

    Args:
        logits: (B, K).
        labels: None, or rows (B, K), at least 0 and of a sum of at most 1.

    Returns:
        float32 (B,), in nats, at least 0.

    Raises:
        ValueError: Labels of another shape.
    """
    logits = _float32(logits)
    shifted = logits - ops.stop_gradient(top_value(logits, keepdims=True))
    if labels is None:
        known, expected = -math.log(logits.shape[-1]), ops.mean(shifted, axis=-1)
    else:
        rows = _label_rows(labels, logits)
        wanted = rows + (1.0 - ops.sum(rows, axis=-1, keepdims=True)) / logits.shape[-1]
        known = ops.sum(wanted * ops.log(ops.where(wanted > 0, wanted, 1.0)), axis=-1)
        expected = ops.sum(wanted * shifted, axis=-1)
    divergence = ops.logsumexp(shifted, axis=-1) - expected + known
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
    logits = _float32(logits)
    return -ops.sum(_label_rows(labels, logits) * ops.log_softmax(logits, axis=-1), axis=-1)


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
        ValueError: A temperature not above 0, or a margin that is NaN or infinite.
    """
    above_zero("temperature", temperature)
    logits = _float32(logits)
    if margin is None:
        margin = -temperature * math.log(logits.shape[-1])
    margin = finite("margin", margin)
    energy = -temperature * ops.logsumexp(logits / temperature, axis=-1)
    return ops.square(ops.relu(margin - energy))
