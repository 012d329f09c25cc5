"""Scores that need nothing but the outputs: functions of logits or cosines."""

from keras import ops

__all__ = ["cosine_margin", "energy", "entropy", "max_cosine", "max_logit", "msp"]


def float32(values):
    """The values as a float32 tensor of the backend."""
    return ops.cast(ops.convert_to_tensor(values), "float32")


def msp(logits):
    """One minus the maximum softmax probability, as the summed probability of all other classes.

    So summed it keeps its digits where the maximum rounds to 1: confident examples do not tie until the other
    classes lie 87 nats below. (Implementations that answer minus the maximum probability differ by the
    constant 1.)

    Source: Hendrycks and Gimpel 2017, arXiv:1610.02136.

    Args:
        logits: (B, K).

    Returns:
        float32 (B,) in [0, 1 - 1/K].
    """
    logits = float32(logits)
    value, index = ops.top_k(logits, 1)
    is_top = ops.one_hot(index[:, 0], logits.shape[-1], dtype="float32") > 0
    others = ops.sum(ops.where(is_top, 0.0, ops.exp(logits - value)), axis=-1)
    return others / (1.0 + others)


def max_logit(logits):
    """Minus the largest logit.

    Source: Hendrycks et al. 2022, arXiv:1911.11132.

    Args:
        logits: (B, K).

    Returns:
        float32 (B,), unbounded.
    """
    return -ops.max(float32(logits), axis=-1)


def energy(logits, temperature=1.0):
    """Free energy, -T logsumexp(logits / T).

    Source: Liu et al. 2020, arXiv:2010.03759.

    Args:
        logits: (B, K).
        temperature: T, above 0.

    Returns:
        float32 (B,), unbounded.

    Raises:
        ValueError: A temperature not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0; it is {temperature!r}.")
    return -temperature * ops.logsumexp(float32(logits) / temperature, axis=-1)


def entropy(logits):
    """Entropy of the softmax, -sum p ln p.

    Args:
        logits: (B, K).

    Returns:
        float32 (B,) in [0, ln K], in nats.
    """
    log_probability = ops.log_softmax(float32(logits), axis=-1)
    return -ops.sum(ops.exp(log_probability) * log_probability, axis=-1)


def max_cosine(cosines):
    """Minus the largest cosine to a class prototype.

    Args:
        cosines: (B, K), as an angular head's `cosines` answers.

    Returns:
        float32 (B,) in [-1, 1].
    """
    return -ops.max(float32(cosines), axis=-1)


def cosine_margin(cosines):
    """Minus the lead of the largest cosine over the second largest.

    Args:
        cosines: (B, K) with K at least 2, as an angular head's `cosines` answers.

    Returns:
        float32 (B,) in [-2, 0].
    """
    values = ops.top_k(float32(cosines), 2)[0]
    return values[:, 1] - values[:, 0]
