"""Scores that need nothing but the outputs: functions of logits or cosines."""

from keras import ops

__all__ = [
    "angular_energy", "cosine_margin", "energy", "entropy", "gen", "max_cosine", "max_logit", "msp", "odin",
    "odin_temperature",
]  # fmt: skip


def float32(values):
    """The values as a float32 tensor of the backend."""
    return ops.cast(ops.convert_to_tensor(values), "float32")


def odds(logits):
    """Summed probability (B,) of all classes but the first of the largest, over the largest's; and which that is."""
    value, index = ops.top_k(logits, 1)
    is_top = ops.one_hot(index[:, 0], logits.shape[-1], dtype="float32") > 0
    return ops.sum(ops.where(is_top, 0.0, ops.exp(logits - value)), axis=-1), is_top


def _checked_temperature(temperature):
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0; it is {temperature!r}.")


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
    others = odds(float32(logits))[0]
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
    _checked_temperature(temperature)
    return -temperature * ops.logsumexp(float32(logits) / temperature, axis=-1)


def odin_temperature(logits, temperature=1000.0):
    """ODIN's temperature scaling alone: one minus the maximum softmax probability of logits / T.

    ODIN without its perturbation of the input, which needs the gradient of the whole classifier (its epsilon is 0). At
    T = 1000 float32 tells apart differences of the logits above about 1e-4.

    Source: Liang et al. 2018, arXiv:1706.02690. (pytorch-ood answers minus the probability, which differs by 1.)

    Args:
        logits: (B, K).
        temperature: T, above 0.

    Returns:
        float32 (B,) in [0, 1 - 1/K].

    Raises:
        ValueError: A temperature not above 0.
    """
    _checked_temperature(temperature)
    return msp(float32(logits) / temperature)


def odin(perturbed, temperature=1000.0):
    """ODIN: one minus the maximum softmax probability of logits / T, the logits of slightly perturbed images.

    The images are moved towards what the classifier takes them for (`kood.outputs.perturbed_logits`), which costs a
    forward and a backward pass more. `odin_temperature` is this without the perturbation.

    Source: Liang et al. 2018, arXiv:1706.02690. (pytorch-ood answers minus the probability, which differs by 1.)

    Args:
        perturbed: (B, K), logits of the perturbed images.
        temperature: T, above 0.

    Returns:
        float32 (B,) in [0, 1 - 1/K].

    Raises:
        ValueError: A temperature not above 0.
    """
    return odin_temperature(perturbed, temperature)


def gen(logits, gamma=0.1, top=None, smallest=1e-7):
    """Generalized entropy: mean over the `top` largest probabilities p of (p (1 - p))^gamma.

    Source: Liu, Lochman and Zach 2023, "GEN: Pushing the limits of softmax-based out-of-distribution detection", CVPR.
    (The paper and OpenOOD sum, over at most 100 classes, and do not hold probabilities from 0; pytorch-ood averages and
    clips them, as here. A mean over the same number of classes orders as the sum does.)

    Args:
        logits: (B, K).
        gamma: Exponent, above 0; small ones weigh the tail of the softmax more.
        top: How many of the largest probabilities count; None: all.
        smallest: Probabilities are clipped to [this, 1 - this]; 0 clips none.

    Returns:
        float32 (B,) in [0, 4^-gamma].

    Raises:
        ValueError: `gamma` not above 0, `top` not a whole number from 1, `smallest` outside [0, 0.5).
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be above 0; it is {gamma!r}.")
    if top is not None and (isinstance(top, bool) or int(top) != top or top < 1):
        raise ValueError(f"top must be a whole number, at least 1; it is {top!r}.")
    if not 0 <= smallest < 0.5:
        raise ValueError(f"smallest must be from 0 to below 0.5; it is {smallest!r}.")
    logits = float32(logits)
    log_p = ops.log_softmax(logits, axis=-1)
    others, is_top = odds(logits)
    if top is not None and top < logits.shape[-1]:
        log_p = ops.top_k(log_p, int(top))[0]
        is_top = ops.arange(int(top)) == 0
    # 1 - p of the largest is what the others have; as a difference it would lose its digits near p = 1.
    p, rest = ops.exp(log_p), ops.expand_dims(others / (1.0 + others), -1)
    rest = ops.where(is_top, rest, 1.0 - p)
    return ops.mean(ops.power(ops.clip(p, smallest, 1 - smallest) * ops.clip(rest, smallest, 1 - smallest), gamma), -1)


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


def angular_energy(cosines, scale=16.0):
    """Energy of the cosines, -1/s logsumexp(s cos).

    In cosine units and under one scale whatever the head's own: `energy` at temperature 1/s of the cosines in place of
    the logits. For a large s it is `max_cosine`.

    Source: Liu et al. 2020, arXiv:2010.03759, for the energy.

    Args:
        cosines: (B, K), as an angular head's `cosines` answers.
        scale: s, above 0.

    Returns:
        float32 (B,) in [-1 - ln(K)/s, 1 - ln(K)/s].

    Raises:
        ValueError: A scale not above 0.
    """
    if not scale > 0:
        raise ValueError(f"scale must be above 0; it is {scale!r}.")
    return -ops.logsumexp(float32(cosines) * scale, axis=-1) / scale
