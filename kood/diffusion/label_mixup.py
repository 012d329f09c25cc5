"""Label mixtures: which classes meet, in what shares, how the denoiser is asked under them, and what pushes it away.

Wahd 2024, "Deep Metric Learning-Based Out-of-Distribution Detection with Synthetic Outlier Exposure", arXiv 2405.00631.
A label enters the denoiser as a vector, so half of class a and half of class b is the vector with 0.5 at both.
`choose_classes` says which classes meet, `condition_rows` in what shares; `noise_predictor` turns the
rows into what a sampler calls, and `away_from` pushes that away from what a classifier knows.
"""

from collections.abc import Callable, Sequence

import numpy as np
from keras import ops

from kood.numbers import above_zero, at_least_zero, finite

__all__ = [
    "away_from", "choose_classes", "classes_mixed", "condition_rows", "confusion", "interpolation", "noise_predictor",
]  # fmt: skip

#: Below this root mean square a gradient has no direction.
SMALLEST = 1e-12


def choose_classes(
    count: int,
    num_classes: int,
    *,
    classes: int = 2,
    pairs: str = "random",
    groups: Sequence[Sequence[int]] | None = None,
    confused: np.ndarray | None = None,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draws the classes that meet in each mixture, in order: the first is the one that `weight` speaks of.

    Args:
        count: How many mixtures, N.
        num_classes: K.
        classes: How many different classes a mixture has, where there are no groups.
        pairs: "random": any classes, drawn without replacement. "all": every unordered pair as often as any other, up
            to one; each pair's order alternates. "confused": with C the matrix `confused`, the pair {a, b} with
            probability (C[a, b] + C[b, a]) / sum over all pairs of the same, in either order; all pairs alike where
            that sum is 0.
        groups: Classes that may meet; each mixture draws one group, and in it the order of its classes.
        confused: (K, K), what `confusion` returns, for pairs = "confused".
        rng: The source of randomness.

    Returns:
        (N, M) int64, M the most classes of a mixture; -1 after the last class of a smaller one.

    Raises:
        ValueError: more classes than there are, a group of fewer than two different classes, pairs of other than two
            classes, or no matrix where one is needed.
    """
    if groups is not None:
        return _from_groups(count, num_classes, groups, rng)
    if not 2 <= classes <= num_classes:
        raise ValueError(f"a mixture of {classes} classes needs between 2 and {num_classes} (the number of classes)")
    if pairs == "random":
        return np.argsort(rng.random((count, num_classes)), axis=1)[:, :classes]
    if pairs not in ("all", "confused"):
        raise ValueError(f"pairs must be 'random', 'all' or 'confused', not {pairs!r}")
    if classes != 2:
        raise ValueError(f"pairs = {pairs!r} mixes two classes, not {classes}")
    every = np.stack(np.triu_indices(num_classes, 1), axis=1)
    if pairs == "all":
        rounds, rest = divmod(count, len(every))
        numbers = np.concatenate([np.tile(np.arange(len(every)), rounds), rng.permutation(len(every))[:rest]])
        turns = np.concatenate([np.repeat(np.arange(rounds), len(every)), np.full(rest, rounds)])
        # Turned every second time, and in the first round every second pair: neither class is the first more often.
        chosen = _turned(every[numbers], (numbers + turns) % 2 == 1)
        return chosen[rng.permutation(count)]
    if confused is None or np.shape(confused) != (num_classes, num_classes):
        raise ValueError(f"pairs = 'confused' needs a confusion matrix of {num_classes} x {num_classes}")
    both = np.asarray(confused, "float64")
    strength = (both + both.T)[every[:, 0], every[:, 1]]
    if not (np.isfinite(strength).all() and (strength >= 0).all()):
        raise ValueError("a confusion matrix holds finite numbers that are not negative")
    total = strength.sum()
    numbers = rng.choice(len(every), size=count, p=strength / total if total > 0 else None)
    return _turned(every[numbers], rng.random(count) < 0.5)


def _turned(pairs: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.where(where[:, None], pairs[:, ::-1], pairs)


def _from_groups(
    count: int, num_classes: int, groups: Sequence[Sequence[int]], rng: np.random.Generator
) -> np.ndarray:  # fmt: skip
    known = set(range(num_classes))
    if not len(groups) or any(
        len(set(group)) != len(group) or len(group) < 2 or set(group) - known for group in groups
    ):
        raise ValueError(f"a group names two different classes or more, from 0 to {num_classes - 1}: {groups}")
    chosen = np.full((count, max(map(len, groups))), -1)
    drawn = rng.integers(len(groups), size=count)
    for number, group in enumerate(groups):
        where = np.flatnonzero(drawn == number)
        chosen[where, : len(group)] = rng.permuted(np.tile(np.asarray(group), (len(where), 1)), axis=1)
    return chosen


def condition_rows(
    chosen: np.ndarray, num_classes: int, *, weight: float | str = 0.5, alpha: float = 1.0, rng: np.random.Generator
) -> np.ndarray:
    """Label vectors of the classes that meet.

    Args:
        chosen: (N, M) from `choose_classes`.
        num_classes: K.
        weight: Share of the first class: a number in [-2, 1], the others share the rest equally, so that below 0 the
            vector lies outside the simplex and turns away from the first class; "uniform" for shares uniform on the
            simplex; "beta" for Dirichlet(alpha, ..., alpha), which for two classes is Beta(alpha, alpha).
        alpha: Parameter of that distribution, above 0.
        rng: The source of randomness.

    Returns:
        (N, K) float32; rows sum to 1.

    Raises:
        ValueError: a weight that is none of these, or an alpha not above 0.
    """
    if weight not in ("uniform", "beta") if isinstance(weight, str) else not -2.0 <= weight <= 1.0:
        raise ValueError(f"weight must be a number in [-2, 1], 'uniform' or 'beta', not {weight!r}")
    above_zero("alpha", alpha)
    rows = np.zeros((len(chosen), num_classes))
    sizes = (chosen >= 0).sum(axis=1)
    for size in np.unique(sizes):
        where = np.flatnonzero(sizes == size)
        if isinstance(weight, str):
            shares = rng.dirichlet(np.full(size, 1.0 if weight == "uniform" else alpha), size=len(where))
        else:
            shares = np.tile([weight, *[(1.0 - weight) / (size - 1)] * (size - 1)], (len(where), 1))
        rows[where[:, None], chosen[where, :size]] = shares
    return rows.astype("float32")


def confusion(posteriors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How much a classifier takes one class for another.

    C[a, b] = mean over the images of class a of the probability that the classifier gives class b. A mean of
    probabilities, not of decisions, so that a classifier that makes no mistake on few images still tells which classes
    are close.

    Args:
        posteriors: (N, K), rows that sum to 1, of images that the classifier was not trained on.
        labels: Integer (N,).

    Returns:
        (K, K) float64; the row of a class without images is 0.
    """
    num_classes = posteriors.shape[1]
    sums = np.zeros((num_classes, num_classes))
    np.add.at(sums, labels, posteriors.astype("float64"))
    return sums / np.maximum(np.bincount(labels, minlength=num_classes), 1)[:, None]


def noise_predictor(
    forward, condition: np.ndarray, *, mix: str = "condition", guidance: float = 1.0, most: int | None = None
):
    """The function of (image, step) that a sampler wants, under fixed conditions.

    With e(c) the model's noise under label vector c and m the mixture: mix="condition" takes e(m), mix="prediction"
    takes sum_k m_k e(one-hot k). Guidance w then takes e(0) + w (that - e(0)). All of it is one forward pass over a
    concatenated batch.

    Args:
        forward: The model's compiled call: {"image", "step", "condition"} -> noise.
        condition: (B, K) mixtures.
        mix: "condition" or "prediction".
        guidance: Strength w; 1 is none, 0 takes no class at all.
        most: For mix="prediction", how many classes a row is given room for, so that blocks of one job have one shape;
            not given, as many as the largest of these rows has.

    Returns:
        denoise(image (B, H, W, C), step (B,)) -> noise (B, H, W, C).

    Raises:
        ValueError: another `mix`, or a guidance that is NaN or infinite.
    """
    if mix not in ("condition", "prediction"):
        raise ValueError(f"mix must be 'condition' or 'prediction', not {mix!r}")
    guidance = finite("guidance", guidance)
    condition = np.asarray(condition, "float32")
    if mix == "condition":
        parts, shares = [condition], [np.ones(len(condition), "float32")]
    else:
        order = np.argsort(-np.abs(condition), axis=1)[:, : most or classes_mixed(condition)]
        eye = np.eye(condition.shape[1], dtype="float32")
        parts = [eye[column] for column in order.T]
        shares = list(np.take_along_axis(condition, order, axis=1).T)
    if guidance != 1.0:
        parts = [*parts, np.zeros_like(condition)]
        shares = [*(guidance * share for share in shares), np.full(len(condition), 1.0 - guidance, "float32")]
    stacked = ops.convert_to_tensor(np.concatenate(parts))
    shares = [ops.convert_to_tensor(np.reshape(share, (-1, 1, 1, 1)).astype("float32")) for share in shares]

    def denoise(image, step):
        if len(parts) == 1:
            return forward({"image": image, "step": step, "condition": stacked})
        repeated = {
            "image": ops.concatenate([image] * len(parts)),
            "step": ops.concatenate([step] * len(parts)),
            "condition": stacked,
        }
        noises = ops.split(forward(repeated), len(parts))
        return sum(share * noise for share, noise in zip(shares, noises, strict=True))

    return denoise


def away_from(gradient: Callable, alpha_bar: np.ndarray, strength: float) -> Callable[[Callable], Callable]:
    """Turns the function that a sampler calls into one that is pushed along a gradient.

    With e the predicted noise, a = alpha_bar[t] and x0 = (x - sqrt(1 - a) e) / sqrt(a) the predicted clean image,
    clipped to [-1, 1], g = gradient(x0) and r = g / rms(g), the root mean square over each image: the noise becomes
    e - w sqrt(a (1 - a)) r, which moves x0 by w (1 - a) r. So w is how far, of a range of 2, the early steps move the
    pixels of the clean image, and the push fades as the image clears. The paper's guidance scales the gradient itself,
    whose size differs from classifier to classifier.

    Source: Dhariwal and Nichol 2021, arXiv 2105.05233, add the gradient of a classifier's log-probability to each step.
    Here it is the gradient of its energy, E = -logsumexp(logits), which is minus its log-density up to a constant (Liu
    et al. 2020, arXiv 2010.03759), so that samples leave what the classifier has seen. GOOD (arXiv 2510.17131) does so
    with a text-to-image model.

    Args:
        gradient: (B, H, W, C) clean images -> the gradient by them, of the same shape.
        alpha_bar: (T,) the schedule's cumulative alpha-bar.
        strength: w, at least 0.

    Returns:
        A function: denoise -> pushed denoise, each (image (B, H, W, C), step (B,)) -> noise (B, H, W, C).

    Raises:
        ValueError: a strength below 0, NaN or infinite.
    """
    strength = at_least_zero("strength", strength)
    levels = ops.convert_to_tensor(np.asarray(alpha_bar, "float32"))

    def push(denoise: Callable) -> Callable:
        def pushed(image, step):
            image, noise = (ops.cast(part, "float32") for part in (image, denoise(image, step)))
            signal = ops.take(levels, ops.cast(step, "int32"))[:, None, None, None]
            spread = ops.sqrt(1.0 - signal)
            clean = ops.clip((image - spread * noise) / ops.sqrt(signal), -1.0, 1.0)
            found = ops.cast(gradient(clean), "float32")
            size = ops.sqrt(ops.mean(ops.square(found), axis=(1, 2, 3), keepdims=True))
            return noise - strength * ops.sqrt(signal) * spread * found / ops.maximum(size, SMALLEST)

        return pushed

    return push


def classes_mixed(condition: np.ndarray) -> int:
    """The most classes that a row of these conditions mixes, at least 1."""
    return max(1, int((np.asarray(condition) != 0).sum(axis=1).max(initial=0)))


def interpolation(num_classes: int, pairs: np.ndarray, columns: int) -> np.ndarray:
    """Conditions of a contact sheet: along each row the mixture goes from one class to another, in equal steps.

    Args:
        num_classes: K.
        pairs: The classes at the ends of each row, integer (rows, 2).
        columns: Steps of a row, the two pure classes included.

    Returns:
        (rows, columns, K) float32.
    """
    share = np.linspace(0.0, 1.0, columns)[None, :, None]
    eye = np.eye(num_classes)
    return ((1.0 - share) * eye[pairs[:, 0]][:, None] + share * eye[pairs[:, 1]][:, None]).astype("float32")
