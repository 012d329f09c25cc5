"""The hash of what a source reads: it changes with every byte that enters a run, and with nothing else."""

import os

import numpy as np
import pytest
from PIL import Image

from kood.data.stored import source_state
from kood.errors import UserError
from kood.recipe.data_sections import Group


def write(file, value=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), value).save(file)
    return file


def rewrite(file):
    """Changes a byte, and nothing of what a listing of the folder shows."""
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.fixture
def state(source):
    return lambda name, **options: source_state(source(name, **options), "data.id")


def folder(root):
    for name in ("a/1", "a/2", "b/1"):
        write(root / "data" / f"{name}.png")
    return {"path": str(root / "data")}, [root / "data/a/1.png", root / "data/b/1.png"]


def linked_folder(root):
    for name in ("a/1", "b/1"):
        write(root / "real" / f"{name}.png")
    (root / "data").mkdir()
    for name in "ab":
        (root / "data" / name).symlink_to(root / "real" / name)
    return {"path": str(root / "data")}, [root / "real/a/1.png"]


def linked_files(root):
    write(root / "real/1.png")
    (root / "data").mkdir()
    (root / "data/1.png").symlink_to(root / "real/1.png")
    return {"path": str(root / "data")}, [root / "real/1.png"]


def image_list(root):
    write(root / "images/1.png")
    (root / "list.txt").write_text("1.png 0\n")
    return {"path": str(root / "list.txt"), "root": str(root / "images")}, [root / "images/1.png", root / "list.txt"]


def image_lists(root):
    write(root / "1.png"), write(root / "2.png")
    for number, part in enumerate(("train", "test"), start=1):
        (root / f"{part}.txt").write_text(f"{number}.png 0\n")
    return {"path": str(root / "{split}.txt")}, [root / f for f in ("train.txt", "test.txt", "1.png", "2.png")]


def table(root):
    write(root / "images/1.png"), write(root / "images/2.png")
    (root / "table.csv").write_text("images/1.png,a\nimages/2.png,b\n\n")
    return {"path": str(root / "table.csv")}, [root / "images/2.png", root / "table.csv"]


def npz(root):
    np.savez(root / "x.npz", images=np.zeros((2, 4, 4), np.uint8))
    return {"path": str(root / "x.npz")}, [root / "x.npz"]


@pytest.mark.parametrize("make", [folder, linked_folder, linked_files, image_list, image_lists, table, npz])
def test_any_byte_of_any_file_counts(tmp_path, state, make):
    name = {"linked_folder": "folder", "linked_files": "folder", "image_lists": "image_list"}.get(
        make.__name__, make.__name__
    )
    options, files = make(tmp_path)
    seen = [state(name, **options)]
    assert state(name, **options) == seen[0]
    for file in files:
        if file.suffix in (".txt", ".csv"):  # Stays readable.
            file.write_bytes(file.read_bytes() + b"\n")
        else:
            rewrite(file)
        seen.append(state(name, **options))
    assert len(set(seen)) == len(seen)


def test_names_count_and_what_is_passed_over_does_not(tmp_path, state):
    options, (first, _) = folder(tmp_path)
    before = state("folder", **options)
    first.with_name("notes.txt").write_text("of no use")
    write(first.parent / "@eaDir" / "1.png")
    assert state("folder", **options) == before
    (tmp_path / "data/b").rename(tmp_path / "data/c")
    assert state("folder", **options) != before


def test_a_folder_that_is_moved_is_the_same(tmp_path, state, monkeypatch):
    folder(tmp_path)
    monkeypatch.setenv("IMAGES", str(tmp_path / "data"))
    before = state("folder", path="$IMAGES")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    monkeypatch.setenv("IMAGES", str(tmp_path / "elsewhere"))
    assert state("folder", path="$IMAGES") == before


def test_sources_without_files(state, monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    for name in ("digits", "uniform", "photo_patches"):
        assert state(name) is None
    # The source says what is wrong when it is read.
    assert state("folder") is None


def test_what_cannot_be_told_is_no_state_to_be_known_again(tmp_path, state, monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    for path, wrong in (("$NOT_SET/x", "NOT_SET is not set"), (str(tmp_path / "none"), "does not exist")):
        with pytest.raises(UserError, match=rf"^data\.id\.path.*{wrong}"):
            state("folder", path=path)


def test_a_table_whose_label_is_what_its_group_leaves_has_a_state(tmp_path, state):
    for number in (1, 2):
        write(tmp_path / f"{number}.png")
    (tmp_path / "table.csv").write_text("file,patient,kind\n1.png,Ann,a\n2.png,Bob,b\n")
    for group in (Group(column="patient"), {"column": "patient"}):
        before = state("table", path=str(tmp_path / "table.csv"), group=group)
        rewrite(tmp_path / "2.png")
        assert before != state("table", path=str(tmp_path / "table.csv"), group=group)


@pytest.mark.keras
def test_what_keras_has_fetched_counts(tmp_path, state, monkeypatch):
    import keras

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    files = {"mnist": "mnist.npz", "fashion_mnist": "fashion-mnist/train-images.gz",
             "cifar10": "cifar-10-batches-py-target_archive"}  # fmt: skip
    for name, file in files.items():
        calls = []

        def load_data(file=tmp_path / "datasets" / file, calls=calls):
            calls.append(file)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"12345")

        monkeypatch.setattr(getattr(keras.datasets, name), "load_data", load_data)
        before = state(name)
        assert state(name) == before and len(calls) == 1
        rewrite(calls[0])
        assert state(name) != before
    # Keras unpacks the archive anew at each call.
    before = state("cifar10")
    write(tmp_path / "datasets/cifar-10-batches-py-target/x.png")
    assert state("cifar10") == before
