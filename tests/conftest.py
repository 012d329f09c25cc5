"""Set up before anything is imported: quiet, few threads, no accelerator."""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # Two torch threads on two busy cores are thirty times slower than one.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import pytest

TINY = """
seed = 3

[data]
image_shape = [8, 8, 1]

[data.id]
source = "digits"
classes = [0, 1, 2, 3]
per_class = 30

[data.near.other_digits]
source = "digits"
classes = [8, 9]
count = 60

[data.far.uniform]
source = "uniform"
count = 60

[diffusion]
options = { width = 32, depth = 1 }
steps = 20
batch_size = 32
num_steps = 50

[outliers]
use = ["label_mixup", "noise"]
per_batch = 16

[outliers.label_mixup]
count = 40
sampling_steps = 4

[outliers.noise]
count = 24

[head]
name = "arcface"
margin = 0.2
scale = 8.0

[train]
epochs = 2
batch_size = 16
"""


@pytest.fixture
def tiny(tmp_path):
    """A recipe file that runs in seconds."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path
