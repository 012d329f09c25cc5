"""Pictures to mix into images: rich in structure and of nothing, drawn here so that none has to be had.

A third are fractals (Julia sets), a third dead leaves, a third noise with the spectrum of natural images; the latter
two as in Baradad et al. 2021, arXiv:2106.05963. They are always the same ones.
"""

import functools
import math

import numpy as np

# No `__all__`: what a file of this room lists there is an augmentation that a recipe may name.

#: Pictures of a kind: as many as fit into the bytes, within these bounds.
_FEWEST, _MOST, _BYTES = 32, 400, 2**23


@functools.cache
def pictures(height: int, width: int, channels: int) -> np.ndarray:
    """Fractals, dead leaves and Fourier noise, as many of each; drawn once a process for each shape.

    Returns:
        uint8 (N, H, W, C), not to be written to.
    """
    count = int(np.clip(_BYTES // (height * width * channels), _FEWEST, _MOST))
    found = []
    for place, draw in enumerate((fractals, dead_leaves, fourier_noise)):
        drawn = draw(count, (height, width, channels), np.random.default_rng(place))
        found.append(np.rint(255.0 * drawn).astype(np.uint8))
    result = np.concatenate(found)
    result.flags.writeable = False
    return result


def fractals(count: int, shape: tuple[int, int, int], rng: np.random.Generator, turns: int = 40) -> np.ndarray:
    """Windows on the border of Julia sets of z^2 + c, c close to the border of the Mandelbrot set's main cardioid.

    A pixel's height is when its orbit leaves the circle of radius 16, made continuous, or where it never does, the
    least distance from 0 that it had; each channel is a cosine of the height.

    Args:
        count: N.
        shape: (H, W, C).
        turns: Steps of an orbit, at most.

    Returns:
        float (N, H, W, C) in [0, 1].
    """
    rest = np.exp(2j * np.pi * rng.random((count, 1, 1)))
    c = (rest / 2 - rest**2 / 4) * (1.0 + 0.05 * rng.standard_normal((count, 1, 1)))
    # Going back from anywhere ends on the set itself, in whose windows there is something to see.
    centre = np.ones((count, 1, 1), complex)
    for sign in rng.choice([-1.0, 1.0], (turns, count, 1, 1)):
        centre = sign * np.sqrt(centre - c)
    reach = np.exp(rng.uniform(math.log(0.15), math.log(1.2), (count, 1, 1)))
    down, across = (np.linspace(-1, 1, side) for side in shape[:2])
    height = orbits((centre + reach * (across[None] + 1j * down[:, None])).astype(np.complex64), c, turns)
    lowest, highest = (f(height, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    height = (height - lowest) / np.maximum(highest - lowest, 1e-6)
    waves, phase = rng.uniform(0.5, 3.0, (count, 1, 1, shape[2])), rng.random((count, 1, 1, shape[2]))
    return 0.5 + 0.5 * np.cos(2 * np.pi * (waves * height[..., None] + phase))


def orbits(z: np.ndarray, c: np.ndarray, turns: int) -> np.ndarray:
    """Heights of points z under z^2 + c: n + 1 - log2(ln |z_n| / ln 16), n the first with |z_n| > 16, or min |z_n|.

    Args:
        z: complex (N, H, W).
        c: complex (N, 1, 1).
        turns: Steps to wait for n.

    Returns:
        float32 (N, H, W).
    """
    height = np.full(z.shape, np.inf, np.float32)
    out, c = np.zeros(z.shape, bool), c.astype(np.complex64)
    for turn in range(turns):
        z = np.where(out, z, z * z + c)
        length = np.abs(z)
        leaves = (length > 16.0) & ~out
        left = turn + 1 - np.log2(np.log(np.maximum(length, 2.0)) / math.log(16.0))
        height = np.where(leaves, left, np.where(out, height, np.minimum(height, length)))
        out |= leaves
    return height.astype(np.float32)


def dead_leaves(count: int, shape: tuple[int, int, int], rng: np.random.Generator, leaves: int = 100) -> np.ndarray:
    """Discs and squares of one colour that fall over one another, with radii r of a density proportional to r^-3.

    Args:
        count: N.
        shape: (H, W, C).
        leaves: Of each picture. Radii go from 1/16 to 1/2 of the shorter side, so that 100 leave little bare.

    Returns:
        float32 (N, H, W, C) in [0, 1].
    """
    height, width, channels = shape
    found = np.broadcast_to(rng.random((count, 1, 1, channels), np.float32), (count, *shape)).copy()
    colours, squares = rng.random((count, leaves, channels), np.float32), rng.random((count, leaves)) < 0.5
    places, share = rng.random((count, leaves, 2)) * (height, width), rng.random((count, leaves))
    widest, narrowest = min(height, width) / 2, min(height, width) / 16
    radii = (narrowest**-2 - share * (narrowest**-2 - widest**-2)) ** -0.5
    starts = np.maximum(np.ceil(places - radii[..., None]), 0).astype(int)
    ends = np.floor(places + radii[..., None]).astype(int) + 1
    for i, leaf in np.ndindex(count, leaves):
        (top, left), (bottom, right), (y, x) = starts[i, leaf], ends[i, leaf], places[i, leaf]
        part = found[i, top:bottom, left:right]
        if squares[i, leaf]:
            part[:] = colours[i, leaf]
        else:
            away = np.hypot(np.arange(top, top + len(part))[:, None] - y, np.arange(left, left + part.shape[1]) - x)
            part[away < radii[i, leaf]] = colours[i, leaf]
    return found


def fourier_noise(count: int, shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise whose amplitude falls as f^-a with the frequency f, a uniform in [0.5, 2] for each picture.

    Args:
        count: N.
        shape: (H, W, C).

    Returns:
        float (N, H, W, C) in [0, 1], of mean 1/2 and standard deviation 1/4 before what is beyond is cut off. Channels
        share a random part of their noise.
    """
    height, width, channels = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf  # No mean.
    noise = rng.standard_normal((count, channels + 1, height, width), np.float32)
    shared = rng.random((count, 1, 1, 1))
    mixed = np.sqrt(shared) * noise[:, :1] + np.sqrt(1.0 - shared) * noise[:, 1:]
    falling = frequency ** -rng.uniform(0.5, 2.0, (count, 1, 1, 1))
    found = np.fft.irfft2(np.fft.rfft2(mixed) * falling, s=(height, width))
    found /= 4.0 * np.maximum(found.std(axis=(2, 3), keepdims=True), 1e-12)
    return np.clip(np.moveaxis(found, 1, 3) + 0.5, 0.0, 1.0)
