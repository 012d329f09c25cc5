"""Nearest neighbours against a search written out in float64, and counts against counting by hand."""

import tracemalloc

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from kood.audit import diversity
from kood.audit.diversity import copies, duplicates, histograms, memorised, nearest, spread


def by_definition(queries, references=None):
    """All distances, ascending, written out; inf for a query and itself."""
    q = np.asarray(queries, np.float64).reshape(len(queries), -1)
    r = q if references is None else np.asarray(references, np.float64).reshape(len(references), -1)
    table = np.array([[np.sqrt(np.mean((x - y) ** 2)) for y in r] for x in q])
    if references is None:
        np.fill_diagonal(table, np.inf)
    return table


def agree(queries, references=None, neighbours=2, rel=1e-12):
    found, indices = nearest(queries, references, neighbours=neighbours)
    table = by_definition(queries, references)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, np.sort(table, axis=1)[:, :neighbours], rtol=rel, atol=0)
    np.testing.assert_allclose(np.take_along_axis(table, indices, axis=1), found, rtol=rel, atol=0)
    assert all(len(set(row)) == neighbours for row in indices.tolist())


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def images(rng, n, shape=(6, 6, 3), high=256):
    return rng.integers(0, high, (n, *shape), dtype=np.uint8)


@pytest.mark.parametrize("neighbours", [1, 2, 7])
def test_the_nearest_are_those_of_the_definition(rng, neighbours):
    agree(images(rng, 40), images(rng, 90), neighbours)
    agree(images(rng, 60), None, neighbours)
    agree(rng.normal(size=(30, 5)), rng.normal(size=(80, 5)), neighbours)
    agree(rng.normal(size=(30, 5)).astype("float32"), None, neighbours)


def test_the_nearest_are_those_of_scikit_learn(rng):
    queries, references = rng.normal(size=(300, 16)), rng.normal(size=(2000, 16))
    peer = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(references).kneighbors(queries)
    found, indices = nearest(queries, references, neighbours=3)
    np.testing.assert_allclose(found, peer[0] / 4, rtol=1e-12)
    np.testing.assert_array_equal(indices, peer[1])


def test_blocks_do_not_matter(rng, monkeypatch):
    queries, references = images(rng, 70), images(rng, 150)
    whole = nearest(queries, references, neighbours=3), nearest(references, neighbours=2)
    monkeypatch.setattr(diversity, "_BYTES", 20_000)
    pieces = nearest(queries, references, neighbours=3), nearest(references, neighbours=2)
    for one, other in zip(whole, pieces, strict=True):
        np.testing.assert_array_equal(one[0], other[0])


def test_equal_images_are_exactly_nothing_apart(rng):
    references = images(rng, 500)
    order = rng.permutation(500)[:60]
    found, indices = nearest(references[order], references)
    assert np.all(found == 0)
    np.testing.assert_array_equal(indices[:, 0], order)
    one_level = references[:3].copy()
    one_level[:, 0, 0, 0] ^= 1
    found, _ = nearest(one_level, references)
    np.testing.assert_allclose(found[:, 0], np.sqrt(1 / 108), rtol=1e-14)


def test_a_distance_is_in_grey_levels_whatever_the_size():
    for shape in ((2, 2, 1), (16, 16, 3)):
        black, white = np.zeros((1, *shape), np.uint8), np.full((1, *shape), 255, np.uint8)
        assert nearest(black, white)[0].item() == 255
        assert nearest(black, black + np.uint8(7))[0].item() == 7


def test_more_equal_references_than_candidates(rng):
    # Forty copies of each of two rows: the fast pass cannot order them, the exact one must.
    references = np.repeat(rng.normal(size=(2, 8)), 40, axis=0)
    queries = np.concatenate([references[:1], references[-1:], rng.normal(size=(3, 8))])
    agree(queries, references)
    agree(np.full((30, 4), 0.1))
    found, _ = nearest(np.full((30, 4), 0.1))
    assert np.all(found == 0)


def test_what_float32_cannot_tell_apart(rng):
    # Two clouds far apart: about their common middle float32 knows nothing of the differences inside one.
    cloud = 1e-3 * rng.normal(size=(200, 6))
    references = np.concatenate([cloud + 1e3, cloud[::-1] - 1e3])
    agree(references[:20] + 1e-5, references, rel=1e-6)
    peer = NearestNeighbors(n_neighbors=2, algorithm="kd_tree").fit(references).kneighbors(references[:50] + 2e-5)
    np.testing.assert_array_equal(nearest(references[:50] + 2e-5, references, neighbours=2)[1], peer[1])


def peak_of(call):
    """The most bytes that a call holds at a time."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


# The whole matrix of distances would be 144 MB in float32 alone, beside as much again for its order; all the queries
# about their middle, 120 MB, beside twice as much in float64.
@pytest.mark.parametrize(("counts", "width"), [((300, 120_000), 64), ((600, 3), 50_000)])
def test_memory_is_bounded(rng, counts, width):
    queries, references = (rng.random((count, width), np.float32) for count in counts)
    assert peak_of(lambda: nearest(queries, references, neighbours=2)) < 6 * diversity._BYTES


def test_memorised_is_a_third_of_the_second_distance():
    distances = np.array([[1.0, 3.1], [1.0, 3.0], [1.0, 2.0], [0.0, 0.0], [0.0, 5.0], [4.0, 4.0], [1e-9, 1.0]])
    assert memorised(distances).tolist() == [True, False, False, True, True, False, True]
    assert memorised(np.empty((0, 2))).tolist() == []


def test_memorised_finds_noisy_copies_and_spares_smooth_images(rng):
    train = images(rng, 400, (8, 8, 3))
    noisy = np.clip(train[:20].astype(int) + rng.integers(-3, 4, (20, 8, 8, 3)), 0, 255).astype(np.uint8)
    grey = np.full((20, 8, 8, 3), 128, np.uint8)
    assert memorised(nearest(noisy, train, neighbours=2)[0]).all()
    assert not memorised(nearest(grey, train, neighbours=2)[0]).any()
    assert not memorised(nearest(images(rng, 20, (8, 8, 3)), train, neighbours=2)[0]).any()


def test_copies_and_duplicates_are_counted(rng):
    pool = images(rng, 6)
    assert copies(pool[[0, 0, 1]], pool) == 3
    assert copies(pool[:3], pool[3:]) == 0
    assert copies(255 - pool[:1], pool) == 0
    assert duplicates(pool) == 0
    assert duplicates(pool[[0, 1, 0, 0]]) == 2
    assert duplicates(pool[:1]) == 0
    assert duplicates(np.zeros((9, 2, 2, 1), np.uint8)) == 8


def test_images_are_counted_by_their_digests(rng):
    pool = images(rng, 200, (100, 100, 3))
    assert peak_of(lambda: copies(pool[:2], pool)) < pool.nbytes / 10
    assert peak_of(lambda: duplicates(pool)) < pool.nbytes / 10


def test_spread_and_histograms():
    values = np.arange(101.0)
    assert spread(values) == {"n": 101, "p01": 1.0, "median": 50.0, "max": 100.0}
    assert spread(np.array([3.0])) == {"n": 1, "p01": 3.0, "median": 3.0, "max": 3.0}
    found = histograms({"a": values, "b": np.array([0.0, 200.0])}, bins=4)
    assert found["edges"] == [0.0, 50.0, 100.0, 150.0, 200.0]
    # The last bin holds its right edge, the others do not.
    assert found["counts"] == {"a": [50, 50, 1, 0], "b": [1, 0, 0, 1]}
    assert histograms({"a": np.zeros(3)}, bins=2) == {"edges": [0.0, 0.5, 1.0], "counts": {"a": [3, 0]}}
