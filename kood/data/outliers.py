"""Outliers made of in-distribution images or of noise, without a generative model: the controls for label mixup."""

import numpy as np

from kood.data.images import quantize

__all__ = ["noise_images", "patch_shuffle", "pixel_mixup"]


def pixel_mixup(
    images: np.ndarray,
    labels: np.ndarray,
    count: int,
    *,
    weight: float | str = 0.5,
    alpha: float = 1.0,
    rng: np.random.Generator,
) -> np.ndarray:
    """Mixtures of two images of different classes: round(w a + (1 - w) b).

    The first image is drawn uniformly over all images, the second uniformly over those of other classes.

    Args:
        images: uint8 (N, H, W, C).
        labels: Integer (N,).
        count: How many mixtures.
        weight: w in [0, 1]; or "uniform" or "beta", from which w is drawn for each mixture.
        alpha: Parameter of Beta(alpha, alpha).
        rng: Decides the pairs and the weights.

    Returns:
        uint8 (count, H, W, C).

    Raises:
        ValueError: Fewer than two classes, or a weight that is none of these.
    """
    if weight not in ("uniform", "beta") if isinstance(weight, str) else not 0.0 <= weight <= 1.0:
        raise ValueError(f"weight must be a number in [0, 1], 'uniform' or 'beta', not {weight!r}")
    order = np.argsort(labels, kind="stable")
    values, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    if len(values) < 2:
        raise ValueError(f"pixel mixup mixes two classes; there is {len(values)}")
    first = rng.integers(len(images), size=count)
    own = np.searchsorted(values, labels[first])
    # Rows sorted by class form a ring; from the end of one's own class, any step less than all the others' number
    # lands on another class, each of its images with the same chance.
    others = len(images) - sizes[own]
    steps = np.floor(rng.random(count) * others).astype(np.int64)
    second = order[(starts[own] + sizes[own] + steps) % len(images)]
    shape = (count, 1, 1, 1)
    if isinstance(weight, str):
        weights = rng.beta(*((1.0, 1.0) if weight == "uniform" else (alpha, alpha)), size=shape).astype(np.float32)
    else:
        weights = np.full(shape, weight, np.float32)
    mixtures = np.empty((count, *images.shape[1:]), np.uint8)
    for start in range(0, count, 4096):
        part = slice(start, start + 4096)
        mixed = weights[part] * images[first[part]] + (np.float32(1.0) - weights[part]) * images[second[part]]
        mixtures[part] = np.rint(mixed)
    return mixtures


def noise_images(
    count: int,
    image_shape: tuple[int, int, int],
    *,
    kind: str = "gaussian",
    scale: float = 0.6,
    rng: np.random.Generator,
) -> np.ndarray:
    """Noise images, drawn in [-1, 1] units and quantized.

    Args:
        count: How many.
        image_shape: (H, W, C).
        kind: "gaussian": N(0, scale^2) clipped to [-1, 1]; "uniform": U(-scale, scale) clipped to [-1, 1].
        scale: Width of the noise, above 0.
        rng: Decides the noise.

    Returns:
        uint8 (count, H, W, C).

    Raises:
        ValueError: An unknown kind, or a scale that is not above 0.
    """
    if not scale > 0.0:
        raise ValueError(f"scale must be above 0, not {scale}")
    shape = (count, *image_shape)
    if kind == "gaussian":
        noise = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
    elif kind == "uniform":
        noise = (rng.random(shape, dtype=np.float32) * np.float32(2.0) - np.float32(1.0)) * np.float32(scale)
    else:
        raise ValueError(f"kind must be 'gaussian' or 'uniform', not {kind!r}")
    return quantize(noise)


def patch_shuffle(images: np.ndarray, *, rng: np.random.Generator, grid: int = 2) -> np.ndarray:
    """Each image cut into grid x grid patches that change places; never all of them back in their own.

    Rows and columns that do not divide evenly stay where they are, at the bottom and the right.

    Args:
        images: uint8 (N, H, W, C).
        rng: Decides the permutations.
        grid: Patches along each side, at least 2.

    Returns:
        uint8 (N, H, W, C).

    Raises:
        ValueError: A grid below 2 or finer than the pixels.
    """
    count, height, width, channels = images.shape
    if not 2 <= grid <= min(height, width):
        raise ValueError(f"grid must lie in 2..{min(height, width)} for images of {height}x{width}, not {grid}")
    high, wide = height // grid, width // grid
    cut = images[:, : high * grid, : wide * grid].reshape(count, grid, high, grid, wide, channels)
    patches = cut.transpose(0, 1, 3, 2, 4, 5).reshape(count, grid * grid, high, wide, channels)
    orders = rng.permuted(np.tile(np.arange(grid * grid), (count, 1)), axis=1)
    while (same := (orders == np.arange(grid * grid)).all(axis=1)).any():
        orders[same] = rng.permuted(orders[same], axis=1)
    moved = np.take_along_axis(patches, orders[:, :, None, None, None], axis=1)
    shuffled = images.copy()
    shuffled[:, : high * grid, : wide * grid] = (
        moved.reshape(count, grid, grid, high, wide, channels)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(count, high * grid, wide * grid, channels)
    )
    return shuffled
