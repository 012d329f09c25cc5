"""FID and KID against their formulas written out in float64 with SciPy's matrix square root."""

import numpy as np
import pytest
import scipy.linalg

from kood.audit import fidelity
from kood.audit.fidelity import frechet_distance, kernel_distance


def fid_by_definition(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(s @ t)
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s) + np.trace(t) - 2 * np.trace(root).real


def kid_by_definition(a, b):
    def kernel(x, y):
        return (sum(p * q for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3

    def within(rows):
        pairs = [kernel(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]
        return sum(pairs) / len(pairs)

    a, b = np.asarray(a, np.float64).tolist(), np.asarray(b, np.float64).tolist()
    across = [kernel(x, y) for x in a for y in b]
    return within(a) + within(b) - 2 * sum(across) / len(across)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 6), (40, 500, 12), (300, 300, 2)])
def test_fid_is_the_formula(rng, n, m, d):
    a = rng.normal(size=(n, d)) @ rng.normal(size=(d, d))
    b = rng.normal(0.5, 2.0, size=(m, d))
    assert frechet_distance(a, b) == pytest.approx(fid_by_definition(a, b), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-12)


def test_fid_of_known_gaussians(rng):
    a = rng.normal(size=(50, 4))
    # The same spread, moved by v: |v|^2. The same mean, spread c times as wide: (c - 1)^2 Tr S.
    assert frechet_distance(a, a + [1.0, 2.0, 0.0, -2.0]) == pytest.approx(9.0, rel=1e-12)
    centred = a - a.mean(0)
    trace = np.trace(np.cov(a, rowvar=False))
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * trace, rel=1e-12)
    # In one dimension: the squared differences of the means and of the standard deviations.
    x, y = rng.normal(1, 2, (30, 1)), rng.normal(4, 0.5, (70, 1))
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-12)


def test_fid_of_equal_sets_is_zero(rng):
    for a in (rng.normal(size=(100, 16)), rng.normal(1e3, 1.0, (5, 64)), np.ones((7, 3)), np.zeros((2, 1))):
        scale = max(1.0, np.square(a - a.mean(0)).sum() / (len(a) - 1))
        assert 0 <= frechet_distance(a, a) <= 1e-12 * scale
        assert 0 <= frechet_distance(a, a[::-1]) <= 1e-12 * scale


def test_fid_with_fewer_images_than_dimensions(rng):
    # Two sets in planes that share no direction: the root has no trace, whatever the rounding.
    a, b = np.zeros((5, 50)), np.zeros((8, 50))
    a[:, :20], b[:, 30:] = rng.normal(size=(5, 20)), rng.normal(size=(8, 20))
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + a.var(0, ddof=1).sum() + b.var(0, ddof=1).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    # Features in a subspace of more dimensions give what they give in their own.
    narrow_a, narrow_b = rng.normal(size=(30, 3)), rng.normal(2, 1.5, size=(40, 3))
    basis = np.linalg.qr(rng.normal(size=(60, 3)))[0].T
    assert frechet_distance(narrow_a @ basis, narrow_b @ basis) == pytest.approx(
        fid_by_definition(narrow_a, narrow_b), rel=1e-9
    )


def test_fid_of_constant_features():
    assert frechet_distance(np.full((4, 3), 2.0), np.full((9, 3), 5.0)) == pytest.approx(27.0, rel=1e-14)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_fid_keeps_its_digits_at_extreme_scales(rng, scale):
    a, b = rng.normal(size=(60, 5)), rng.normal(0.3, 1.2, size=(50, 5))
    assert frechet_distance(a * scale, b * scale) == pytest.approx(scale**2 * frechet_distance(a, b), rel=1e-9)


def test_low_precision_is_widened(rng):
    a, b = rng.integers(0, 256, (2, 20, 48), dtype=np.uint8)
    wide = [x.astype(np.float64) for x in (a, b)]
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(*wide), rel=1e-12)
    assert kernel_distance(a, b)[0] == pytest.approx(kernel_distance(*wide)[0], rel=1e-12)


@pytest.mark.parametrize(("n", "m", "d"), [(2, 2, 1), (9, 14, 3), (25, 6, 7)])
def test_kid_is_the_formula(rng, n, m, d):
    a, b = rng.normal(size=(n, d)), rng.normal(0.4, 1.3, size=(m, d))
    assert kernel_distance(a, b)[0] == pytest.approx(kid_by_definition(a, b), rel=1e-9, abs=1e-12)


def test_kid_does_not_depend_on_the_tiles(rng, monkeypatch):
    a, b = rng.normal(size=(37, 5)), rng.normal(1, 1, size=(53, 5))
    whole = kernel_distance(a, b)
    monkeypatch.setattr(fidelity, "_TILE", 7)
    tiled = kernel_distance(a, b)
    assert tiled[0] == pytest.approx(whole[0], rel=1e-12)
    assert tiled[1] == pytest.approx(whole[1], rel=1e-9)


def test_kid_error_is_that_of_disjoint_subsets(rng):
    a, b = rng.normal(size=(41, 3)), rng.normal(0.5, 1, size=(30, 3))
    value, error = kernel_distance(a, b, subsets=4, seed=11)
    shuffle = np.random.default_rng(11)
    left, right = a[shuffle.permutation(41)], b[shuffle.permutation(30)]
    parts = [kid_by_definition(left[7 * k : 7 * k + 7], right[7 * k : 7 * k + 7]) for k in range(4)]
    assert error == pytest.approx(np.std(parts, ddof=1) / 2, rel=1e-9)
    assert kernel_distance(a, b, subsets=4, seed=12)[1] != error
    assert kernel_distance(a, b, subsets=4, seed=12)[0] == value


def test_kid_of_one_distribution_is_within_its_error(rng):
    errors = []
    for _ in range(40):
        value, error = kernel_distance(rng.normal(size=(60, 4)), rng.normal(size=(80, 4)))
        errors.append(value / error)
    # Unbiased, and the error is no smaller than it should be.
    assert abs(np.mean(errors)) < 3 / np.sqrt(40)
    assert np.std(errors) < 1.3
    apart, error = kernel_distance(rng.normal(size=(60, 4)), rng.normal(1.0, 1, size=(80, 4)))
    assert apart > 5 * error


def test_kid_of_constant_and_of_equal_sets():
    ones = np.ones((6, 3))
    assert kernel_distance(ones, ones)[0] == 0
    # k(1, 1) = 8, k(2, 2) = 125, k(1, 2) = 27.
    assert kernel_distance(ones, np.full((4, 3), 2.0))[0] == pytest.approx(8 + 125 - 54)
    a = np.array([[0.0], [1.0]])
    # Within: k(0, 1) = 1 in both; across: (1 + 1 + 1 + 8) / 4.
    assert kernel_distance(a, a)[0] == pytest.approx(2 - 5.5)


def test_too_few_images_for_subsets_have_no_error():
    assert kernel_distance(np.array([[0.0], [1.0], [2.0]]), np.array([[0.0], [3.0]]))[1] is None
    # Of four images there are two subsets of two, which are alike.
    assert kernel_distance(np.eye(4), np.eye(4))[1] == 0
