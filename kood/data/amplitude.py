"""What of an image is shown and what is texture: the phases and the amplitudes of its Fourier transform."""

import numpy as np

from kood.data.deferred import Images, made
from kood.machine import cores

__all__ = ["swap_amplitudes"]

#: Bytes that a value takes while it is transformed.
_EACH = 48


def swap_amplitudes(images: Images, givers: Images, *, rng: np.random.Generator) -> Images:
    """Images that keep what they show and take the texture, contrast and brightness of others.

    With F the two-dimensional discrete Fourier transform of each channel, x an image and g a giver drawn at random,

        x' = F^-1( |F g| exp(i arg F x) ),

    clipped to the pixels' range and rounded. Phases hold the edges and the places of things, amplitudes how much there
    is of each spatial frequency. Generated and averaged images have less of the high ones than photographs, and a
    classifier could tell them by that alone; after the swap it cannot. Where x has nothing of a frequency its phase is
    0. The mean of an image is its amplitude at frequency 0, so x' has the brightness and the colours of g.

    Source: amplitude-phase recombination, Chen et al. 2021, arXiv 2108.08487, which makes training images that way.

    Args:
        images: uint8 (N, H, W, C).
        givers: uint8 (M, H, W, C), M at least 1; one is drawn for each image, some more than once where N > M.

    Returns:
        uint8 (N, H, W, C).
    """
    return recombined(images, np.arange(len(images)), givers, rng.integers(len(givers), size=len(images)))


def recombined(images: Images, phases: np.ndarray, givers: Images, amplitudes: np.ndarray) -> Images:
    """The phases of some images under the amplitudes of others, as `swap_amplitudes` says.

    `phases` and `amplitudes` are the (K,) rows of the images and givers that lend them. Gives uint8 (K, H, W, C).
    """
    from scipy import fft

    size = images.shape[1:3]

    def swapped(some: np.ndarray) -> np.ndarray:
        shown = fft.rfft2(images[phases[some]].astype(np.float64), axes=(1, 2), workers=cores())
        length = np.abs(shown)
        # A frequency that an image has nothing of is not quite 0 after rounding, and its phase would be chance.
        nothing = length <= 1e-9 * 255.0 * size[0] * size[1]
        direction = np.where(nothing, 1.0, shown / np.where(nothing, 1.0, length))
        given = givers[amplitudes[some]].astype(np.float64)
        strength = np.abs(fft.rfft2(given, axes=(1, 2), workers=cores()))
        pixels = fft.irfft2(strength * direction, s=size, axes=(1, 2), workers=cores())
        return np.rint(np.clip(pixels, 0.0, 255.0))

    return made((len(phases), *images.shape[1:]), swapped, _EACH)
