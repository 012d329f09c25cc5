"""Synthetic outliers: images sampled from the diffusion model under a mixture of class conditions.

Wahd 2024, "Deep Metric Learning-Based OOD Detection with Synthetic Outlier Exposure". A label enters the denoiser as a
vector, so half of class a and half of class b is the vector with 0.5 at both.
"""

from collections.abc import Sequence

import numpy as np
from keras import ops

from kood.steps import compiled

__all__ = ["mixtures", "noise_predictor", "sample", "sweep"]


def mixtures(
    count: int,
    num_classes: int,
    *,
    classes: int = 2,
    groups: Sequence[Sequence[int]] | None = None,
    weight: float | str = 0.5,
    alpha: float = 1.0,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draws label mixtures.

    Args:
        count: How many, N.
        num_classes: K.
        classes: How many different classes a mixture has, drawn without replacement, where there are no groups.
        groups: Classes that may meet; each mixture draws one group, and in it the order of its classes.
        weight: Share of the first: a number in (0, 1), the others share the rest equally; "uniform" for weights uniform
            on the simplex; "beta" for Dirichlet(alpha, ..., alpha), which for two classes is Beta(alpha, alpha).
        alpha: Parameter of that distribution.
        rng: The source of randomness.

    Returns:
        (N, K) float32; rows sum to 1 and have as many non-zero entries as classes were mixed.

    Raises:
        ValueError: more classes asked for than there are, or a group of fewer than two different classes.
    """
    if groups is None:
        if not 2 <= classes <= num_classes:
            raise ValueError(
                f"a mixture of {classes} classes needs between 2 and {num_classes} (the number of classes)"
            )
        chosen = np.argsort(rng.random((count, num_classes)), axis=1)[:, :classes]
        return _rows(chosen, num_classes, weight, alpha, rng).astype("float32")
    if any(len(set(group)) != len(group) or not 2 <= len(group) <= num_classes for group in groups):
        raise ValueError(f"a group names between 2 and {num_classes} different classes: {groups}")
    rows = np.zeros((count, num_classes))
    drawn = rng.integers(len(groups), size=count)
    for number, group in enumerate(groups):
        where = np.flatnonzero(drawn == number)
        chosen = rng.permuted(np.tile(np.asarray(group), (len(where), 1)), axis=1)
        rows[where] = _rows(chosen, num_classes, weight, alpha, rng)
    return rows.astype("float32")


def _rows(chosen: np.ndarray, num_classes: int, weight: float | str, alpha: float, rng: np.random.Generator):
    """Label vectors of the chosen classes (N, M), the first of each with the stated share."""
    count, classes = chosen.shape
    if isinstance(weight, str):
        shares = rng.dirichlet(np.full(classes, 1.0 if weight == "uniform" else alpha), size=count)
    else:
        rest = np.full(classes - 1, (1.0 - weight) / (classes - 1))
        shares = np.broadcast_to(np.concatenate([[weight], rest]), (count, classes))
    rows = np.zeros((count, num_classes))
    np.put_along_axis(rows, chosen, shares, axis=1)
    return rows


def noise_predictor(forward, condition: np.ndarray, *, mix: str = "condition", guidance: float = 1.0):
    """The function of (image, step) that a sampler wants, under fixed conditions.

    With e(c) the model's noise under label vector c and m the mixture: mix="condition" takes e(m), mix="prediction"
    takes sum_k m_k e(one-hot k). Guidance w then takes e(0) + w (that - e(0)). All of it is one forward pass over a
    concatenated batch.

    Args:
        forward: The model's compiled call: {"image", "step", "condition"} -> noise.
        condition: (B, K) mixtures.
        mix: "condition" or "prediction".
        guidance: Strength w; 1 is none.

    Returns:
        denoise(image (B, H, W, C), step (B,)) -> noise (B, H, W, C).
    """
    condition = np.asarray(condition, "float32")
    if mix == "condition":
        parts, shares = [condition], [np.ones(len(condition), "float32")]
    else:
        order = np.argsort(-condition, axis=1)[:, : max(1, int((condition > 0).sum(1).max()))]
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


def sample(
    denoiser,
    condition: np.ndarray,
    image_shape: tuple[int, int, int],
    *,
    sampler,
    num_steps: int,
    mix: str = "condition",
    guidance: float = 1.0,
    clip: float | None = 1.0,
    seed: int = 0,
    noise: np.ndarray | None = None,
    batch_size: int = 256,
    progress=None,
) -> np.ndarray:
    """Samples one image for each condition.

    The start noise comes from NumPy, block by block, so it is the same on every backend and does not depend on how
    many blocks came before.

    Args:
        denoiser: A `Denoiser`.
        condition: (N, K) mixtures.
        image_shape: (H, W, C).
        sampler: A function of `kood.diffusion.samplers`.
        num_steps: Its number of steps.
        mix: "condition" or "prediction", see `noise_predictor`.
        guidance: Classifier-free guidance; 1 is none.
        clip: Bound of the predicted clean image at each step, or None.
        seed: Seed of the start noise and of the sampler's own noise.
        noise: Start noise (N, H, W, C) in place of drawn noise.
        batch_size: Images a block; every block has this size, the last one padded, so one shape is compiled.
        progress: Called with the number of finished images after each block.

    Returns:
        (N, H, W, C) float32, not clipped to [-1, 1] unless `clip` did so.
    """
    forward = compiled(denoiser)
    count = len(condition)
    batch_size = min(batch_size, count)
    images = np.empty((count, *image_shape), "float32")
    for block, start in enumerate(range(0, count, batch_size)):
        stop = min(start + batch_size, count)
        rows = np.minimum(np.arange(start, start + batch_size), count - 1)
        if noise is None:
            rng = np.random.default_rng([seed, block])
            first = rng.standard_normal((batch_size, *image_shape), dtype="float32")
        else:
            first = np.asarray(noise, "float32")[rows]
        options = {"seed": seed * 1_000_003 % 2**31 + block} if sampler.__name__ == "ddpm" else {}
        denoise = noise_predictor(forward, condition[rows], mix=mix, guidance=guidance)
        result = sampler(denoise, denoiser.alpha_bar, ops.convert_to_tensor(first), num_steps, clip=clip, **options)
        images[start:stop] = ops.convert_to_numpy(result)[: stop - start]
        if progress is not None:
            progress(stop)
    return images


def sweep(num_classes: int, *, columns: int = 7, rows: int = 6, rng: np.random.Generator) -> np.ndarray:
    """Conditions of a contact sheet: along each row the mixture goes from one class to another.

    Args:
        num_classes: K.
        columns: Steps of a row, the two pure classes included.
        rows: How many pairs of classes.
        rng: Draws the pairs.

    Returns:
        (rows, columns, K) float32.
    """
    pairs = np.stack([rng.permutation(num_classes)[:2] for _ in range(rows)])
    share = np.linspace(0.0, 1.0, columns)[None, :, None]
    eye = np.eye(num_classes)
    return ((1.0 - share) * eye[pairs[:, 0]][:, None] + share * eye[pairs[:, 1]][:, None]).astype("float32")
