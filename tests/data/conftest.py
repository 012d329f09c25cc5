"""Recipe sections for the tests: anything with the attributes will do."""

from types import SimpleNamespace

import pytest

NOT_GIVEN = dict.fromkeys(("path", "root", "name", "columns", "group", "classes", "count", "split", "max_bad_images"))


@pytest.fixture
def source():
    """source("digits", classes=[...]) -> what a recipe's Source has."""
    return lambda source, /, **options: SimpleNamespace(**({"source": source} | NOT_GIVEN | options))


@pytest.fixture
def id_data(source):
    """id_data("digits", ...) -> what a recipe's Data has, as far as the in-distribution images go."""

    def build(name, /, image_shape=(8, 8, 1), split_seed=0, **options):
        shares = {
            "validation": 0.1,
            "calibration": 0.1,
            "test": 0.2,
            "per_class": None,
            "near_copies": None,
            "stratify": True,
        }
        return SimpleNamespace(
            image_shape=image_shape,
            ground="white",
            resize="stretch",
            antialias=True,
            split_seed=split_seed,
            id=source(name, **(shares | options)),
        )

    return build


@pytest.fixture
def npz_file(tmp_path):
    """npz_file(images=..., labels=...) -> the path of a .npz of these arrays."""
    import numpy as np

    def write(**arrays):
        file = tmp_path / "images.npz"
        np.savez(file, **arrays)
        return str(file)

    return write
