"""Sources of outliers without a generative model."""

import subprocess
import sys

import numpy as np
import pytest

from kood import registry
from kood.data import ImageSet
from kood.outliers.amplitude_swap import AmplitudeSwap
from kood.outliers.cutmix import Cutmix
from kood.outliers.noise import Noise
from kood.outliers.patch_shuffle import shuffled as patch_shuffle
from kood.outliers.pixel_mixup import PixelMixup


def rng(seed=0):
    return np.random.default_rng(seed)


def drawn(source, images, labels, count, *, rng, **settings):
    """What a source draws of images with labels."""
    train = ImageSet(images, np.asarray(labels, np.int64), tuple(map(str, range(max(labels) + 1))))
    return source(**settings).draw(count, rng, train)


def pixel_mixup(*arguments, **settings):
    return drawn(PixelMixup, *arguments, **settings).images


def cutmix(*arguments, **settings):
    return drawn(Cutmix, *arguments, **settings).images


def test_pixel_mixup_mixes_two_classes_evenly():
    # Class k's images hold the value 40 k, so a mixture says which classes it came from.
    labels = np.array([0] * 5 + [2] * 10 + [1] * 25)
    images = np.broadcast_to((labels * 40).astype(np.uint8).reshape(-1, 1, 1, 1), (40, 3, 3, 1))
    mixed = pixel_mixup(images, labels, 20000, rng=rng())
    assert mixed.shape == (20000, 3, 3, 1) and mixed.dtype == np.uint8
    values, counts = np.unique(mixed[:, 0, 0, 0], return_counts=True)
    assert values.tolist() == [20, 40, 60]
    sizes = {0: 5, 1: 25, 2: 10}
    share = lambda a, b: sizes[a] / 40 * sizes[b] / (40 - sizes[a]) + sizes[b] / 40 * sizes[a] / (40 - sizes[b])  # noqa: E731
    np.testing.assert_allclose(counts / 20000, [share(0, 1), share(0, 2), share(1, 2)], atol=0.015)


def test_pixel_mixup_formula_and_weights():
    images = rng(1).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    labels = np.array([0, 1])
    mixed = pixel_mixup(images, labels, 200, weight=0.3, rng=rng())
    one, other = images.astype(np.float64)
    for result in mixed:
        errors = [np.abs(result - np.rint(0.3 * a + 0.7 * b)).max() for a, b in ((one, other), (other, one))]
        assert min(errors) <= 1
    extremes = np.array([np.zeros((1, 1, 1)), np.full((1, 1, 1), 255)]).astype(np.uint8)
    for options, variance in (({"weight": "uniform"}, 1 / 12), ({"weight": "beta", "alpha": 8.0}, 1 / 68)):
        drawn = pixel_mixup(extremes, labels, 20000, **options, rng=rng())[:, 0, 0, 0] / 255
        assert abs(drawn.mean() - 0.5) < 0.01 and abs(drawn.var() / variance - 1) < 0.05


def test_pixel_mixup_follows_its_generator():
    images, labels = rng().integers(0, 256, (30, 2, 2, 1), dtype=np.uint8), np.arange(30) % 3
    first, again, other = (pixel_mixup(images, labels, 50, rng=rng(seed)) for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any()
    assert pixel_mixup(images, labels, 0, rng=rng()).shape == (0, 2, 2, 1)


@pytest.mark.parametrize("weight", [0.0, 1.0, -0.1, 1.1, "normal", float("nan")])
def test_pixel_mixup_refuses_weights(weight):
    with pytest.raises(ValueError, match="weight"):
        pixel_mixup(np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 1]), 1, weight=weight, rng=rng())


def test_pixel_mixup_needs_two_classes():
    with pytest.raises(ValueError, match="two classes; there is 1"):
        pixel_mixup(np.zeros((2, 1, 1, 1), np.uint8), np.array([4, 4]), 1, rng=rng())


@pytest.mark.parametrize("weight", [0.3, "uniform", "beta"])
def test_the_rows_of_a_mixture_say_what_is_in_it(weight):
    labels = np.array([0] * 5 + [2] * 10 + [1] * 25)
    images = np.zeros((40, 16, 16, 3), np.uint8)
    images[np.arange(40), :, :, labels] = 200  # Channel k says how much of class k there is.
    mixed, cut = (drawn(one, images, labels, 300, weight=weight, alpha=0.7, rng=rng()) for one in (PixelMixup, Cutmix))
    made, rows, pasted, again = mixed.images, mixed.shares, cut.images, cut.shares
    assert rows.dtype == again.dtype == np.float32
    np.testing.assert_allclose(rows.sum(1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(made[:, 0, 0] / 200, rows, atol=0.6 / 200)
    np.testing.assert_array_equal(again, rows)
    np.testing.assert_allclose((pasted == 200).mean(axis=(1, 2)), rows, atol=1 / 16)  # A strip of pixels.


def two_classes(count=40, height=8, width=8):
    """Images of 0 and images of 255, a class each."""
    labels = np.arange(count) % 2
    return np.broadcast_to((labels * 255).astype(np.uint8).reshape(-1, 1, 1, 1), (count, height, width, 1)), labels


@pytest.mark.parametrize("shape", [(8, 8), (32, 32), (7, 13), (1, 9), (9, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("weight", [0.001, 0.1, 0.36, 0.5, 0.75, 0.98, 0.999])
def test_cutmix_pastes_one_whole_rectangle_of_the_area_asked_for(shape, weight):
    height, width = shape
    images, labels = two_classes(40, height, width)
    made = cutmix(images, labels, 400, weight=weight, rng=rng())[..., 0] == 255
    # Which of the two values is pasted: the image is its own class's where the first image was drawn.
    generator = rng()
    first = labels[generator.integers(40, size=400)] == 1
    pasted = made != first[:, None, None]
    area = pasted.sum(axis=(1, 2))
    high, wide = pasted.any(axis=2).sum(axis=1), pasted.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(area, high * wide)
    rows, columns = pasted.any(axis=2), pasted.any(axis=1)
    for mark in (rows, columns):  # Without a gap.
        assert (np.abs(np.diff(np.pad(mark, ((0, 0), (1, 1))).astype(int), axis=1)).sum(axis=1) == 2).all()
    assert len(set(area)) == 1 and 1 <= area[0] < height * width
    wanted = np.clip((1 - weight) * height * width, 1, height * width - 1)
    assert abs(area[0] - wanted) <= high[0] / 2 or area[0] in (height * (width - 1), (height - 1) * width)
    if min(shape) > 4:  # The image's own shape, as nearly as whole pixels allow.
        tall, broad = (side * (1 - weight) ** 0.5 for side in shape)
        # The height is rounded, which moves the width by as much in proportion, and by half a pixel.
        assert abs(high[0] - tall) <= 1 and abs(wide[0] - broad) <= broad / high[0] + 0.5
    # Anywhere that the whole of it fits, each place as often as any other.
    places = rows.argmax(axis=1) * width + columns.argmax(axis=1)
    possible = (height - high[0] + 1) * (width - wide[0] + 1)
    counts = np.unique(places, return_counts=True)[1]
    assert len(counts) <= possible and (possible > 50 or len(counts) == possible)


def test_cutmix_takes_both_images_at_the_same_place_and_of_two_classes():
    images = rng(1).integers(0, 256, (30, 6, 5, 3), dtype=np.uint8)
    labels = np.arange(30) % 3
    made = cutmix(images, labels, 200, weight=0.6, rng=rng())
    for one in made:
        own = (images == one).all(axis=-1)  # (30, 6, 5): where each image agrees.
        kept, pasted = np.argsort(own.sum(axis=(1, 2)))[::-1][:2]
        assert labels[kept] != labels[pasted]
        assert (own[kept] | own[pasted]).all() and own[kept].sum() >= 15 and own[pasted].sum() >= 9


def test_cutmix_pairs_are_those_of_pixel_mixup():
    images, labels = two_classes()
    averages = pixel_mixup(images, labels, 50, weight=0.9, rng=rng())[:, 0, 0, 0]
    pasted = cutmix(images, labels, 50, weight=0.9, rng=rng()).mean(axis=(1, 2, 3))
    np.testing.assert_array_equal(averages > 127, pasted > 127)


def test_cutmix_weights_are_drawn():
    images, labels = two_classes(40, 24, 24)
    for options, variance in (({"weight": "uniform"}, 1 / 12), ({"weight": "beta", "alpha": 8.0}, 1 / 68)):
        share = cutmix(images, labels, 6000, **options, rng=rng()).mean(axis=(1, 2, 3)) / 255
        assert abs(share.mean() - 0.5) < 0.02 and abs(share.var() / variance - 1) < 0.08
        assert share.min() > 0 and share.max() < 1


def test_cutmix_follows_its_generator_and_leaves_its_images():
    images, labels = rng().integers(0, 256, (30, 4, 4, 1), dtype=np.uint8), np.arange(30) % 3
    before = images.copy()
    first, again, other = (cutmix(images, labels, 50, rng=rng(seed)) for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any() and (images == before).all()
    assert cutmix(images, labels, 0, rng=rng()).shape == (0, 4, 4, 1)


@pytest.mark.parametrize("weight", [0.0, 1.0, -0.1, "normal", float("nan")])
def test_cutmix_refuses(weight):
    with pytest.raises(ValueError, match="weight"):
        cutmix(*two_classes(), 1, weight=weight, rng=rng())
    with pytest.raises(ValueError, match="two classes"):
        cutmix(np.zeros((2, 2, 2, 1), np.uint8), np.array([4, 4]), 1, rng=rng())
    with pytest.raises(ValueError, match="two pixels"):
        cutmix(*two_classes(4, 1, 1), 1, rng=rng())


def noise(count, shape, **settings):
    return Noise(**settings).draw(count, rng(), shape).images


@pytest.mark.keras
def test_noise_is_clipped_gaussian_or_uniform():
    gaussian = noise(200, (16, 16, 3)) / 127.5 - 1
    assert gaussian.shape == (200, 16, 16, 3) and abs(gaussian.mean()) < 0.01
    # P(|N(0, 0.6)| > 1) = 0.0956.
    assert abs((np.abs(gaussian) == 1).mean() - 0.0956) < 0.005
    uniform = noise(200, (16, 16, 3), kind="uniform", scale=0.5) / 127.5 - 1
    assert 0.49 < np.abs(uniform).max() < 0.51 and abs(uniform.std() - 0.5 / 3**0.5) < 0.01
    assert (noise(3, (4, 4, 1)) == noise(3, (4, 4, 1))).all()


@pytest.mark.parametrize("settings", [{"kind": "pink"}, {"scale": 0.0}, {"scale": -1.0}, {"scale": float("nan")}])
def test_noise_refuses(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Noise(**settings)


@pytest.mark.parametrize(("shape", "grid"), [((8, 8, 1), 2), ((9, 8, 3), 4), ((7, 5, 1), 2), ((2, 2, 1), 2)])
def test_patches_change_places(shape, grid):
    count = 300
    images = rng(1).integers(0, 256, (count, *shape), dtype=np.uint8)
    # Each patch has a value of its own in its first pixel, so that no exchange goes unseen.
    high, wide = shape[0] // grid, shape[1] // grid
    images[:, : high * grid : high, : wide * grid : wide, 0] = np.arange(grid**2).reshape(grid, grid)
    before = images.copy()
    shuffled = patch_shuffle(images, rng=rng(), grid=grid)
    np.testing.assert_array_equal(images, before)
    assert shuffled.shape == images.shape and shuffled.dtype == np.uint8
    assert (shuffled != images).any(axis=(1, 2, 3)).all()
    order = shuffled[:, : high * grid : high, : wide * grid : wide, 0].reshape(count, -1)
    assert (np.sort(order, axis=1) == np.arange(grid**2)).all() and len(np.unique(order, axis=0)) > 20
    for one, moved, places in zip(images, shuffled, order, strict=True):
        for place, origin in enumerate(places):
            (y, x), (v, u) = divmod(place, grid), divmod(int(origin), grid)
            np.testing.assert_array_equal(
                moved[y * high : (y + 1) * high, x * wide : (x + 1) * wide],
                one[v * high : (v + 1) * high, u * wide : (u + 1) * wide],
            )
    np.testing.assert_array_equal(shuffled[:, high * grid :], images[:, high * grid :])
    np.testing.assert_array_equal(shuffled[:, :, wide * grid :], images[:, :, wide * grid :])


@pytest.mark.parametrize("grid", [1, 0, 9])
def test_patch_shuffle_refuses_grids(grid):
    with pytest.raises(ValueError, match="grid must"):
        patch_shuffle(np.zeros((1, 8, 8, 1), np.uint8), rng=rng(), grid=grid)


def test_patch_shuffle_of_nothing():
    assert patch_shuffle(np.empty((0, 4, 4, 1), np.uint8), rng=rng()).shape == (0, 4, 4, 1)


def test_amplitude_swap_pairs_images_of_two_classes():
    # Every class has one brightness, which the amplitudes carry; the pairs are those of the other controls.
    labels = np.arange(60) % 3
    images = (60 + 60 * labels).astype(np.uint8).reshape(-1, 1, 1, 1) + rng().integers(
        0, 5, (60, 4, 4, 1), dtype=np.uint8
    )
    swapped = drawn(AmplitudeSwap, images, labels, 500, rng=rng()).images
    assert swapped.shape == (500, 4, 4, 1)
    brightness = np.rint((swapped.mean((1, 2, 3)) - 62) / 60).astype(int)
    assert np.bincount(brightness, minlength=3).min() > 120
    assert (drawn(AmplitudeSwap, images, labels, 500, rng=rng()).images == swapped).all()
    assert drawn(AmplitudeSwap, images, labels, 0, rng=rng()).images.shape == (0, 4, 4, 1)
    with pytest.raises(ValueError, match="two classes; there is 1"):
        drawn(AmplitudeSwap, images, np.zeros(60, int), 5, rng=rng())


#: What a source may be given, see `kood.outliers`.
GIVEN = {
    "train", "validation", "real", "shape", "denoiser", "judge", "seeds", "folder", "show", "over",
}  # fmt: skip


@pytest.mark.keras
@pytest.mark.parametrize("name", [name for name in registry.room("outliers") if name not in ("label_mixup", "virtual")])
def test_every_source_draws_images_of_the_number_asked_for(name):
    from kood.detector.choosing import PROXIES

    found = registry.obtain("outliers", name)
    source = found(source="digits") if name == "real" else found()
    images = np.zeros((30, 8, 6, 3), np.uint8)
    images[np.arange(30), :, :, np.arange(30) % 3] = 200  # Channel k says how much of class k there is.
    train = ImageSet(images, np.arange(30) % 3, ("a", "b", "c"))
    every = {"train": train, "validation": train, "real": train, "shape": (8, 6, 3)}
    given = {what: every[what] for what in source.needs}
    first, again = (source.draw(20, rng(), **given) for _ in range(2))
    blocks = np.concatenate(list(first.blocks))
    assert blocks.shape == (first.count, 8, 6, 3) == (20, 8, 6, 3) and blocks.dtype == np.uint8
    np.testing.assert_array_equal(blocks, np.concatenate(list(again.blocks)))
    if first.shares is not None:
        assert first.shares.shape == (20, 3)
        np.testing.assert_allclose(first.shares.sum(axis=1), 1.0, rtol=1e-6)
        np.testing.assert_allclose(blocks.mean(axis=(1, 2)) / 200, first.shares, atol=0.1)
    assert found.resembles in ("", *PROXIES)


def test_sources_ask_for_what_there_is_and_load_nothing_heavy():
    for name in registry.room("outliers"):
        source = registry.obtain("outliers", name)
        assert name == "virtual" or set(source.model_construct().needs) <= GIVEN
        assert hasattr(source, "draw") != hasattr(source, "layer")
    told = "import sys, kood.recipe; print([m for m in ('keras', 'tensorflow', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout == "[]\n"
