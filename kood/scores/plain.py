"""Scores that need nothing but the outputs: functions of logits or cosines."""

import math

from keras import ops

from kood.geometry import top_value
from kood.numbers import above_zero, at_least_zero, whole

__all__ = [
    "angular_energy", "cosine_margin", "energy", "entropy", "gen", "max_cosine", "max_logit", "msp", "odin",
    "odin_temperature",
]  # fmt: skip

#: ln of nothing: a number, for runtimes that make NaN of infinities.
_NOTHING = -1e30
#: Float32 ends at e^-87.3. What is added up from parts is taken from its logarithm below the first; where what stands
#: in begins, and where it ends, at three tenths of what it begins with.
_PARTS_END, _BEGINS, _ENDS = -60.0, -86.0, -1e7


def float32(values):
    """The values as a float32 tensor of the backend."""
    return ops.cast(ops.convert_to_tensor(values), "float32")


def log_odds(logits):
    """ln of the summed probability of all classes but the first of the largest over the largest's, and which that is.

    Args:
        logits: (B, K), float32.

    Returns:
        (B, 1), at most ln(K - 1), -1e30 where K is 1; the logits less their largest (B, K); and a mask (B, K).
    """
    largest, index = ops.top_k(logits, 1)
    is_top = ops.one_hot(index[:, 0], logits.shape[-1], dtype="float32") > 0
    below = logits - largest
    return ops.logsumexp(ops.where(is_top, _NOTHING, below), axis=-1, keepdims=True), below, is_top


def log_probabilities(logits):
    """ln p and ln(1 - p) of the softmax, exact for every class whatever the logits.

    As a difference from a log-sum-exp, ln p of the largest is 0 where the others have less than 1e-7, and so is 1 - p
    as a difference from 1.

    Args:
        logits: (B, K), float32.

    Returns:
        Two of (B, K), and a mask (B, K) of the first of the largest.
    """
    others, below, is_top = log_odds(logits)
    whole = ops.log1p(ops.exp(others))
    log_p = below - whole
    log_p = ops.where(log_p < _NOTHING, _NOTHING, log_p)  # Times a p of 0, minus infinity would be NaN.
    return log_p, ops.where(is_top, others - whole, ops.log1p(-ops.exp(ops.where(is_top, _NOTHING, log_p)))), is_top


def in_order(value, log_value):
    """Positive values; below e^-86, where float32 ends, others from there to e^-87.2 stand in that order alike.

    They fall with ln(-ln value), so that what saturates stays apart, about as finely as float32 tells logits apart, and
    in its order, down to e^-10000000. They are off by less than 5e-38. Nothing stays 0.
    """
    depth = ops.log(ops.maximum(log_value, _ENDS) / _BEGINS) / math.log(_ENDS / _BEGINS)
    stand_in = math.exp(_BEGINS) * (1.0 - 0.7 * ops.where(log_value < _BEGINS, depth, 0.0))
    stand_in = ops.where(log_value > _NOTHING * 1e-10, stand_in, 0.0)
    small = ops.where(log_value < _BEGINS, stand_in, ops.exp(ops.maximum(log_value, _BEGINS)))
    return ops.where(log_value < _PARTS_END, small, value)


def msp(logits):
    """One minus the maximum softmax probability, as the summed probability of all other classes.

    So summed it keeps its digits where the maximum rounds to 1, and where it would itself round to 0 (`in_order`),
    confident examples stay apart. (Implementations that answer minus the maximum probability differ by the constant 1,
    and tie where that rounds to 1.)

    Source: Hendrycks and Gimpel 2017, arXiv:1610.02136.

    Args:
        logits: (B, K).

    Returns:
        float32 (B,) in [0, 1 - 1/K].
    """
    others, below, is_top = log_odds(float32(logits))
    odds = ops.sum(ops.where(is_top, 0.0, ops.exp(below)), axis=-1)
    return in_order(odds / (1.0 + odds), others[:, 0])


def max_logit(logits):
    """Minus the largest logit.

    Source: Hendrycks et al. 2022, arXiv:1911.11132.

    Args:
        logits: (B, K).

    Returns:
        float32 (B,), unbounded.
    """
    return -top_value(float32(logits))


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
    above_zero("temperature", temperature)
    return -temperature * ops.logsumexp(float32(logits) / temperature, axis=-1)


def odin_temperature(logits, temperature=1000.0):
    """ODIN's temperature scaling alone, as T ln((1 - p) / ((K - 1) p)), p the maximum softmax probability at T.

    This rises as p falls, p = 1 / (1 + (K - 1) e^(s / T)) for a score s, so it orders as minus p or 1 - p do, which
    pytorch-ood and OpenOOD (its sign turned) answer. At T = 1000 these lie within 1e-5 of one another, where float32
    tells few hundred of a thousand images apart; here digits are kept as the logits have them. For large T it is the
    mean of the other logits less the largest.

    ODIN without its perturbation of the input, which needs the gradient of the whole classifier (its epsilon is 0).

    Source: Liang et al. 2018, arXiv:1706.02690.

    Args:
        logits: (B, K).
        temperature: T, above 0.

    Returns:
        float32 (B,), at most 0, in units of the logits; 0 where there is one class.

    Raises:
        ValueError: A temperature not above 0.
    """
    above_zero("temperature", temperature)
    logits = float32(logits)
    classes = max(logits.shape[-1] - 1, 1)
    others, below, is_top = log_odds((logits - top_value(logits, keepdims=True)) / temperature)
    # Near 0, where the log-sum-exp of many nearly equal ones is nearly ln(K - 1), from what is missing to 1.
    missing = ops.sum(ops.where(is_top, 0.0, ops.expm1(below)), axis=-1) / classes
    near = missing > -0.5
    far = others[:, 0] - math.log(classes)
    return temperature * ops.where(near, ops.log1p(ops.where(near, missing, 0.0)), far)


energy.usual = {"temperature": (1.0, 10.0, 100.0, 1000.0)}  # type: ignore[attr-defined]
odin_temperature.usual = {"temperature": (1.0, 10.0, 100.0, 1000.0)}  # type: ignore[attr-defined]


def odin(perturbed, temperature=1000.0, epsilon=0.0028):
    """ODIN: T ln((1 - p) / ((K - 1) p)), p the maximum softmax probability at T of slightly perturbed images.

    The images are moved towards what the classifier takes them for (`kood.outputs.perturbed_logits`), which costs a
    forward and a backward pass more. `odin_temperature` is this without the perturbation, and says how the answer
    relates to the one of pytorch-ood and OpenOOD.

    Source: Liang et al. 2018, arXiv:1706.02690. (The defaults are the authors' and OpenOOD's, which move normalized
    pixels by 0.0014 over the normalization's standard deviation, which of [-1, 1] is 0.5.)

    Args:
        perturbed: (B, K), logits of images that were perturbed under these two options.
        temperature: T, above 0, of the gradient that images are moved against and of the score.
        epsilon: How far each pixel was moved, in units of [-1, 1], at least 0. It decides the perturbed logits alone.

    Returns:
        float32 (B,), at most 0, in units of the logits; 0 where there is one class.

    Raises:
        ValueError: A temperature not above 0, or an epsilon below it.
    """
    at_least_zero("epsilon", epsilon)
    return odin_temperature(perturbed, temperature)


odin.usual = {"temperature": (1.0, 10.0, 100.0, 1000.0), "epsilon": (0.0028, 0.0056)}  # type: ignore[attr-defined]


def gen(logits, gamma=0.1, top=100, smallest=0.0):
    """Generalized entropy: mean over the `top` largest probabilities p of (p (1 - p))^gamma.

    Added up from ln p and ln(1 - p), which are exact for every class, so that images whose largest p rounds to 1 keep
    their order, even those whose score would round to 0 (`in_order`).

    Source: Liu, Lochman and Zach 2023, "GEN: Pushing the limits of softmax-based out-of-distribution detection", CVPR.
    (The paper and OpenOOD answer minus the sum, over at most 100 classes as here; a mean over the same number of
    classes orders as the sum does. Their 1 - p is a float32 difference, which is 0 where p rounds to 1: there they
    count nothing for the largest. pytorch-ood averages over all classes and clips probabilities to [1e-7, 1 - 1e-7], as
    `top=None` and `smallest=1e-7` do: with that, images all but one of whose classes lie below 1e-7 tie or change
    places. OpenOOD searches `gamma` and `top` on its validation sets where it is left to; here they are fixed.)

    Args:
        logits: (B, K).
        gamma: Exponent, above 0; small ones weigh the tail of the softmax more.
        top: How many of the largest probabilities count; all where there are no more, or where it is None.
        smallest: Probabilities are clipped to [this, 1 - this]; 0 clips none.

    Returns:
        float32 (B,) in [0, 4^-gamma].

    Raises:
        ValueError: `gamma` not above 0, `top` not a whole number from 1, `smallest` outside [0, 0.5).
    """
    above_zero("gamma", gamma)
    top = None if top is None else whole("top", top)
    if not 0 <= smallest < 0.5:
        raise ValueError(f"smallest must be from 0 to below 0.5; it is {smallest!r}.")
    logits = float32(logits)
    log_p, log_rest, _ = log_probabilities(logits)
    if top is not None and top < logits.shape[-1]:
        log_p, chosen = ops.top_k(log_p, top)
        log_rest = ops.take_along_axis(log_rest, ops.cast(chosen, "int32"), axis=-1)
    if smallest > 0:
        log_p, log_rest = (ops.clip(x, math.log(smallest), math.log1p(-smallest)) for x in (log_p, log_rest))
    powers = gamma * (log_p + log_rest)
    log_mean = ops.logsumexp(powers, axis=-1) - math.log(powers.shape[-1])
    return in_order(ops.mean(ops.exp(powers), axis=-1), log_mean)


gen.usual = {  # type: ignore[attr-defined]
    "gamma": (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0),
    "top": (10, 50, 100, 200, 500, 1000),
}


def entropy(logits):
    """Entropy of the softmax, -sum p ln p, from ln p that is exact for every class.

    Confident examples keep their order, even those whose entropy would round to 0 (`in_order`).

    Args:
        logits: (B, K).

    Returns:
        float32 (B,) in [0, ln K], in nats.
    """
    log_p, _, is_top = log_probabilities(float32(logits))
    # Where the others have next to nothing, the largest adds as much as their p: p (1 - ln p) each.
    deep = ops.logsumexp(ops.where(is_top, _NOTHING, log_p + ops.log1p(-log_p)), axis=-1)
    return in_order(-ops.sum(ops.exp(log_p) * log_p, axis=-1), deep)


def max_cosine(cosines):
    """Minus the largest cosine to a class prototype.

    Args:
        cosines: (B, K), as an angular head's `cosines` answers.

    Returns:
        float32 (B,) in [-1, 1].
    """
    return -top_value(float32(cosines))


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
    above_zero("scale", scale)
    return -ops.logsumexp(float32(cosines) * scale, axis=-1) / scale
