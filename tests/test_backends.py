"""The three backends compute the same numbers from the same files."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import XLA_FLAGS

ROOT = Path(__file__).parents[1]
BACKENDS = ["tensorflow", "jax", "torch"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of models that TensorFlow and torch have made, with the numbers that each backend reads from them."""
    folders = {maker: tmp_path_factory.mktemp(maker) for maker in ("tensorflow", "torch")}
    every, one = map(str, folders.values())
    for backend, words in (
        ("torch", ["make", one, "AdaCos", "+", "read", one]),
        ("tensorflow", ["make", every, "+", "read", every, *(["+", "read", one] if find_spec("torch") else [])]),
        ("jax", ["read", every]),
        ("torch", ["read", every]),
    ):
        if find_spec(backend):
            environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT), "XLA_FLAGS": XLA_FLAGS}
            command = [sys.executable, "-m", "tests.backend_probe", *words]
            result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
            assert result.returncode == 0, result.stderr[-3000:]
    return folders


@pytest.mark.slow
@pytest.mark.parametrize(
    ("maker", "readers", "least"),
    [("tensorflow", BACKENDS, 150), ("torch", ["tensorflow", "torch"], 30)],
    ids=["tensorflow", "torch"],
)
def test_the_same_numbers_from_the_same_files(made, maker, readers, least):
    if find_spec(maker) is None:
        pytest.skip(f"{maker} is not installed: pip install 'kood[{maker}]'")
    numbers = {}
    for backend in BACKENDS:
        if (file := made[maker] / f"numbers-{backend}.npz").exists():
            with np.load(file, allow_pickle=False) as arrays:
                numbers[backend] = dict(arrays)
    assert numbers.keys() == {backend for backend in readers if find_spec(backend)} and len(numbers) > 1
    reference = numbers.pop("tensorflow")
    assert len(reference) > least
    for backend, found in numbers.items():
        assert found.keys() == reference.keys()
        for key, value in reference.items():
            # 1e-4 of the array's own size: a single entry may be a difference of large numbers.
            size = max(float(np.abs(value).max()), 1e-6)
            np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-4 * size, err_msg=f"{backend}: {key}")
