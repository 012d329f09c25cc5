"""Outliers made of in-distribution images or of noise, without a generative model: the controls for label mixup."""

import numpy as np

from kood.data.amplitude import recombined
from kood.data.images import quantize

__all__ = ["amplitude_swap", "cutmix", "noise_images", "patch_shuffle", "pixel_mixup"]


def pixel_mixup(
    images: np.ndarray,
    labels: np.ndarray,
    count: int,
    *,
    weight: float | str = 0.5,
    alpha: float = 1.0,
    rng: np.random.Generator,
    shares: np.ndarray | None = None,
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
        shares: float32 (count, K), into which the shares of the classes are written: w at the first image's class and
            1 - w at the second's.

    Returns:
        uint8 (count, H, W, C).

    Raises:
        ValueError: Fewer than two classes, or a weight that is none of these.
    """
    if not isinstance(weight, str) and not 0.0 <= weight <= 1.0:
        raise ValueError(f"weight must be a number in [0, 1], 'uniform' or 'beta', not {weight!r}")
    first, second = _pairs(labels, count, rng)
    drawn = _weights(weight, alpha, count, rng)
    _tell(shares, labels, (first, second), drawn)
    weights = drawn.astype(np.float32).reshape(-1, 1, 1, 1)
    mixtures = np.empty((count, *images.shape[1:]), np.uint8)
    for start in range(0, count, 4096):
        part = slice(start, start + 4096)
        mixed = weights[part] * images[first[part]] + (np.float32(1.0) - weights[part]) * images[second[part]]
        mixtures[part] = np.rint(mixed)
    return mixtures


def cutmix(
    images: np.ndarray,
    labels: np.ndarray,
    count: int,
    *,
    weight: float | str = 0.5,
    alpha: float = 1.0,
    rng: np.random.Generator,
    shares: np.ndarray | None = None,
) -> np.ndarray:
    """Images with a rectangle of an image of another class in them (CutMix, Yun et al. 2019, arXiv 1905.04899).

    The rectangle lies at the same place in both images and has the share 1 - w of the area: about H sqrt(1 - w) by
    W sqrt(1 - w) pixels, the height rounded up or down and the width to the nearest pixel, whichever comes closest
    to the area, so that it is off by half a column of the rectangle at most. The paper draws the centre anywhere and
    cuts off what lies beyond the border, which leaves less of the second image than was asked; here the place is
    uniform among those where the whole rectangle fits. Something of both images is always left: one pixel at least.

    The pairs are those that `pixel_mixup` draws.

    Args:
        images: uint8 (N, H, W, C), of two pixels at least.
        labels: Integer (N,).
        count: How many.
        weight: w in (0, 1), the share of the area that the first image keeps; or "uniform" or "beta", from which w is
            drawn for each image.
        alpha: Parameter of Beta(alpha, alpha).
        rng: Decides the pairs, the weights and the places.
        shares: As for `pixel_mixup`, with the w asked for, from which the rectangle of whole pixels may differ.

    Returns:
        uint8 (count, H, W, C).

    Raises:
        ValueError: Fewer than two classes or two pixels, or a weight that is none of these.
    """
    if not isinstance(weight, str) and not 0.0 < weight < 1.0:
        raise ValueError(f"weight must be a number in (0, 1), 'uniform' or 'beta', not {weight!r}")
    height, width = images.shape[1:3]
    if height * width < 2:
        raise ValueError("cutmix needs images of at least two pixels")
    first, second = _pairs(labels, count, rng)
    drawn = _weights(weight, alpha, count, rng)
    _tell(shares, labels, (first, second), drawn)
    high, wide = _rectangles(height, width, 1.0 - drawn)
    tops, lefts = rng.integers(0, height - high + 1), rng.integers(0, width - wide + 1)
    rows, columns = np.arange(height), np.arange(width)
    in_rows = (rows >= tops[:, None]) & (rows < (tops + high)[:, None])
    in_columns = (columns >= lefts[:, None]) & (columns < (lefts + wide)[:, None])
    pasted = images[first]
    for start in range(0, count, 4096):
        part = slice(start, start + 4096)
        inside = in_rows[part, :, None] & in_columns[part, None, :]
        pasted[part] = np.where(inside[..., None], images[second[part]], pasted[part])
    return pasted


def amplitude_swap(images: np.ndarray, labels: np.ndarray, count: int, *, rng: np.random.Generator) -> np.ndarray:
    """Training images under the Fourier amplitudes of training images of other classes.

    What `kood.data.amplitude.swap_amplitudes` does, to pairs as `pixel_mixup` draws them: the first image gives the
    phases, the second the amplitudes.

    Args:
        images: uint8 (N, H, W, C).
        labels: (N,) their classes.
        count: How many to make.
        rng: Decides the pairs.

    Returns:
        uint8 (count, H, W, C).

    Raises:
        ValueError: Fewer than two classes.
    """
    first, second = _pairs(labels, count, rng)
    return recombined(images, first, images, second)


def _tell(shares: np.ndarray | None, labels: np.ndarray, pair: tuple[np.ndarray, np.ndarray], weights) -> None:
    """Writes the shares of the classes, w at the first image's and 1 - w at the second's, where they are asked for."""
    if shares is not None:
        places = np.arange(len(weights))
        shares[...] = 0.0
        shares[places, labels[pair[0]]] = weights
        shares[places, labels[pair[1]]] = 1.0 - weights


def _rectangles(height: int, width: int, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Heights and widths in whole pixels of rectangles of these shares of the area, at least a pixel and never all."""
    area = np.clip(shares * (height * width), 1, height * width - 1)
    side = height * np.sqrt(shares)
    high = np.clip(np.stack([np.floor(side), np.ceil(side)]), 1, height)
    wide = np.clip(np.rint(area / high), 1, np.where(high == height, max(1, width - 1), width))
    high = np.where((wide == width) & (high == height), height - 1, high)  # Only where there is but one column.
    nearest = np.abs(high * wide - area).argmin(axis=0)[None]
    return tuple(np.take_along_axis(sides, nearest, axis=0)[0].astype(np.int64) for sides in (high, wide))


def _pairs(labels: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows (count,) twice: the first uniform over all, the second uniform over those of other classes."""
    order = np.argsort(labels, kind="stable")
    values, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    if len(values) < 2:
        raise ValueError(f"a mixture is of two classes; there is {len(values)}")
    first = rng.integers(len(labels), size=count)
    own = np.searchsorted(values, labels[first])
    # Rows sorted by class form a ring; from the end of one's own class, any step less than all the others' number
    # lands on another class, each of its images with the same chance.
    others = len(labels) - sizes[own]
    steps = np.floor(rng.random(count) * others).astype(np.int64)
    return first, order[(starts[own] + sizes[own] + steps) % len(labels)]


def _weights(weight: float | str, alpha: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """The first image's share of each mixture, (count,)."""
    if weight not in ("uniform", "beta"):
        if isinstance(weight, str):
            raise ValueError(f"weight must be a number, 'uniform' or 'beta', not {weight!r}")
        return np.full(count, weight)
    return rng.beta(*((1.0, 1.0) if weight == "uniform" else (alpha, alpha)), size=count)


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
