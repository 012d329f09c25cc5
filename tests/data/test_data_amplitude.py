"""Phases and amplitudes of images, against a discrete Fourier transform written out."""

import numpy as np
import pytest

from kood.data.amplitude import recombined, swap_amplitudes


def rng(seed=0):
    return np.random.default_rng(seed)


def pictures(count, shape, seed=0, low=0, high=256):
    return rng(seed).integers(low, high, (count, *shape), dtype=np.uint8)


def transform(image, inverse=False):
    """The two-dimensional discrete Fourier transform of each channel, as a product of matrices."""
    sign = 2j * np.pi if inverse else -2j * np.pi
    rows, columns = (np.exp(sign * np.outer(np.arange(n), np.arange(n)) / n) for n in image.shape[:2])
    result = np.einsum("uh,hwc,vw->uvc", rows, image.astype(np.complex128), columns)
    return result / image[..., 0].size if inverse else result


def angle(values):
    """The phase of each frequency, 0 where there is nothing of it: sums of whole pixels may cancel."""
    return np.where(np.abs(values) < 1e-6, 0.0, np.angle(values))


@pytest.mark.parametrize("shape", [(4, 4, 3), (5, 8, 1), (3, 3, 2), (1, 6, 1), (1, 1, 3), (2, 2, 1)])
def test_the_result_has_the_phases_of_one_and_the_amplitudes_of_the_other(shape):
    # Giver of little contrast about the middle, so that nothing is clipped and the amplitudes can be compared.
    phases, givers = pictures(7, shape), pictures(7, shape, seed=1, low=120, high=136)
    swapped = recombined(phases, np.arange(7), givers, np.arange(7))
    assert swapped.shape == phases.shape and swapped.dtype == np.uint8
    for mine, shown, giver in zip(swapped, phases, givers, strict=True):
        expected = transform(np.abs(transform(giver)) * np.exp(1j * angle(transform(shown))), inverse=True)
        assert np.abs(expected.imag).max() < 1e-9
        np.testing.assert_allclose(mine, expected.real, atol=0.5 + 1e-6)
        np.testing.assert_allclose(mine.mean((0, 1)), giver.mean((0, 1)), atol=0.5)


def test_an_image_is_its_own_recombination():
    images = pictures(50, (6, 7, 3))
    rows = np.arange(50)
    np.testing.assert_array_equal(recombined(images, rows, images, rows), images)


def test_clipping_stays_in_range():
    images = np.where(pictures(40, (8, 8, 1)) > 127, 255, 0).astype(np.uint8)
    swapped = swap_amplitudes(images, images[::-1], rng=rng())
    assert swapped.min() == 0 and swapped.max() == 255


@pytest.mark.parametrize("value", [0, 1, 255])
def test_an_image_of_one_colour_gives_phase_zero(value):
    flat, giver = np.full((1, 4, 4, 1), value, np.uint8), pictures(1, (4, 4, 1), seed=2, low=100, high=110)
    swapped = recombined(flat, np.array([0]), giver, np.array([0]))
    expected = transform(np.abs(transform(giver[0])) + 0j, inverse=True).real
    np.testing.assert_allclose(swapped[0], np.clip(expected, 0, 255), atol=0.5 + 1e-6)
    taken = recombined(giver, np.array([0]), flat, np.array([0]))
    np.testing.assert_array_equal(taken, flat)


def test_givers_are_drawn_and_follow_the_generator(monkeypatch):
    images, givers = pictures(300, (2, 2, 1)), np.repeat(np.arange(0, 250, 50, dtype=np.uint8), 4).reshape(5, 2, 2, 1)
    first, again, other = (swap_amplitudes(images, givers, rng=rng(seed)) for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any()
    values, counts = np.unique(first[:, 0, 0, 0], return_counts=True)
    assert values.tolist() == [0, 50, 100, 150, 200] and counts.min() > 30
    monkeypatch.setattr("kood.data.large._BLOCK", 7 * 48 * 4)  # Seven images at once.
    np.testing.assert_array_equal(swap_amplitudes(images, givers, rng=rng()), first)
    assert swap_amplitudes(images[:0], givers, rng=rng()).shape == (0, 2, 2, 1)


def test_the_power_spectrum_becomes_that_of_the_givers():
    smooth = pictures(200, (8, 8, 1), seed=3).astype(float)
    smooth = ((smooth + np.roll(smooth, 1, 1) + np.roll(smooth, 1, 2)) / 3).astype(np.uint8)
    sharp = pictures(200, (8, 8, 1), seed=4, low=90, high=166)

    def power(images):
        return (np.abs(np.fft.fft2(images[..., 0].astype(float))) ** 2).mean(0)[1:, 1:]

    before, after = power(smooth) / power(sharp), power(swap_amplitudes(smooth, sharp, rng=rng())) / power(sharp)
    assert before.std() > 1.0 and np.abs(after - 1).max() < 0.35
