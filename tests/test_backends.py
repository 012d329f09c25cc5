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


def probe(backend, what, folder, *names):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed: pip install 'kood[{backend}]'")
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT), "XLA_FLAGS": XLA_FLAGS}
    command = [sys.executable, "-m", "tests.backend_probe", what, str(folder), *names]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("maker", "readers", "names", "least"),
    [("tensorflow", BACKENDS, (), 150), ("torch", ["tensorflow", "torch"], ("AdaCos",), 30)],
    ids=["tensorflow", "torch"],
)
def test_the_same_numbers_from_the_same_files(tmp_path, maker, readers, names, least):
    probe(maker, "make", tmp_path, *names)
    numbers = {}
    for backend in readers:
        if find_spec(backend):
            probe(backend, "read", tmp_path)
            with np.load(tmp_path / f"numbers-{backend}.npz", allow_pickle=False) as arrays:
                numbers[backend] = dict(arrays)
    assert len(numbers) > 1
    reference = numbers.pop("tensorflow")
    assert len(reference) > least
    for backend, found in numbers.items():
        assert found.keys() == reference.keys()
        for key, value in reference.items():
            # 1e-4 of the array's own size: a single entry may be a difference of large numbers.
            size = max(float(np.abs(value).max()), 1e-6)
            np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-4 * size, err_msg=f"{backend}: {key}")
