"""Splitting, choosing, and what is said where a recipe asks for what cannot be."""

import subprocess
import sys

import numpy as np
import pytest

from kood.data import load_id, load_ood, load_source
from kood.errors import UserError

PARTS = ("train", "validation", "calibration", "test")


def rows(image_set):
    """Each image's number: the tests write it into its pixels."""
    return image_set.images[:, 0, 0, 0].astype(int) + 256 * image_set.images[:, 0, 1, 0].astype(int)


def numbered(count, offset=0):
    images = np.zeros((count, 2, 2, 1), np.uint8)
    numbers = np.arange(count) + offset
    images[:, 0, 0, 0], images[:, 0, 1, 0] = numbers % 256, numbers // 256
    return images


@pytest.fixture
def uneven(npz_file, id_data):
    """In-distribution data of three classes of 50, 100 and 250 numbered images."""
    labels = np.repeat([0, 1, 2], [50, 100, 250])
    order = np.random.default_rng(1).permutation(400)
    path = npz_file(images=numbered(400), labels=labels[order])

    def build(**options):
        return id_data("npz", image_shape=(2, 2, 1), path=path, **options)

    return build


@pytest.mark.keras
def test_splits_are_disjoint_complete_and_stratified(uneven):
    splits = load_id(uneven())
    numbers = np.concatenate([rows(getattr(splits, part)) for part in PARTS])
    assert sorted(numbers) == list(range(400))
    counts = {part: np.bincount(getattr(splits, part).labels).tolist() for part in PARTS}
    assert counts == {
        "test": [10, 20, 50],
        "calibration": [4, 8, 20],
        "validation": [4, 8, 20],
        "train": [32, 64, 160],
    }
    assert {getattr(splits, part).class_names for part in PARTS} == {("0", "1", "2")}


@pytest.mark.keras
def test_splits_follow_the_split_seed_alone(uneven):
    first, again, other = load_id(uneven()), load_id(uneven()), load_id(uneven(split_seed=1))
    for part in PARTS:
        assert getattr(first, part).sha256() == getattr(again, part).sha256()
        assert getattr(first, part).sha256() != getattr(other, part).sha256()


@pytest.mark.keras
def test_fewer_training_images_leave_the_other_parts_alone(uneven):
    whole, few = load_id(uneven()), load_id(uneven(per_class=5))
    assert np.bincount(few.train.labels).tolist() == [5, 5, 5]
    assert set(rows(few.train)) <= set(rows(whole.train))
    for part in PARTS[1:]:
        assert getattr(whole, part).sha256() == getattr(few, part).sha256()
    assert np.bincount(load_id(uneven(per_class=100)).train.labels).tolist() == [32, 64, 100]


@pytest.mark.keras
def test_count_keeps_the_proportions(uneven):
    splits = load_id(uneven(count=80))
    total = sum(np.bincount(getattr(splits, part).labels, minlength=3) for part in PARTS)
    assert total.tolist() == [10, 20, 50]
    odd = load_id(uneven(count=81))
    assert sum(len(getattr(odd, part)) for part in PARTS) == 81


@pytest.mark.keras
def test_classes_are_renumbered_in_the_order_given(uneven):
    splits = load_id(uneven(classes=["2", 0]))
    assert splits.train.class_names == ("2", "0")
    assert np.bincount(splits.train.labels).tolist() == [160, 32]
    assert len(load_id(uneven(classes=[1])).train) == 64


@pytest.mark.keras
def test_official_test_images_stay_the_test(npz_file, id_data):
    path = npz_file(
        x_train=numbered(100), y_train=np.arange(100) % 2, x_test=numbered(30, 1000), y_test=np.arange(30) % 2
    )
    data = id_data("npz", image_shape=(2, 2, 1), path=path, count=60)
    splits = load_id(data)
    assert rows(splits.test).tolist() == list(range(1000, 1030))
    assert (len(splits.train), len(splits.validation), len(splits.calibration)) == (48, 6, 6)
    only_test = load_id(id_data("npz", image_shape=(2, 2, 1), path=path, split="test"))
    assert min(rows(only_test.train)) >= 1000
    missing = npz_file(x_train=numbered(100), y_train=np.arange(100) % 2, x_test=numbered(9), y_test=np.zeros(9, int))
    with pytest.raises(UserError, match=r"data\.id: the class '1' has no images"):
        load_id(id_data("npz", image_shape=(2, 2, 1), path=missing))


@pytest.mark.keras
def test_no_validation_is_allowed_no_test_is_not(uneven):
    assert len(load_id(uneven(validation=0.0)).validation) == 0
    with pytest.raises(UserError, match=r"data\.id\.test: .* write test = 0\.2"):
        load_id(uneven(test=0.0))


@pytest.mark.keras
@pytest.mark.parametrize("images", [1, 2])
def test_classes_too_small_to_split_are_named(npz_file, id_data, images):
    labels = np.concatenate([np.zeros(20, int), np.ones(images, int)])
    path = npz_file(images=numbered(len(labels)), labels=labels)
    with pytest.raises(UserError, match=rf"the class '1' has too few images \({images}\)"):
        load_id(id_data("npz", image_shape=(2, 2, 1), path=path))


@pytest.mark.keras
def test_three_images_a_class_are_enough(npz_file, id_data):
    path = npz_file(images=numbered(60), labels=np.arange(60) % 20)
    splits = load_id(id_data("npz", image_shape=(2, 2, 1), path=path))
    # An image of each is tested on and one learned; of the third, chance decides.
    assert all(np.bincount(getattr(splits, part).labels, minlength=20).min() >= 1 for part in ("train", "test"))
    assert len(splits.test) == 20 and all(4 <= len(its) <= 5 for its in (splits.validation, splits.calibration))


def test_in_distribution_images_need_labels(id_data):
    with pytest.raises(UserError, match=r"data\.id\.source: 'gaussian' gives images without labels"):
        load_id(id_data("gaussian"))


@pytest.mark.keras
def test_ood_takes_the_test_part_unless_told(npz_file, source):
    path = npz_file(x_train=numbered(40), y_train=np.arange(40) % 2, x_test=numbered(20, 500), y_test=np.arange(20) % 2)
    take = {"image_shape": (2, 2, 1), "seed": 0, "key": "data.near.other"}
    assert min(rows(load_ood(source("npz", path=path), **take))) == 500
    assert max(rows(load_ood(source("npz", path=path, split="train"), **take))) == 39
    drawn = load_ood(source("npz", path=path, classes=[1], count=4), **take)
    assert len(set(rows(drawn))) == 4 and all(rows(drawn) % 2 == 1) and drawn.class_names == ("1",)
    again = load_ood(source("npz", path=path, classes=[1], count=4), **take)
    assert again.sha256() == drawn.sha256()
    other = [load_ood(source("npz", path=path, count=4), **(take | {"seed": seed})).sha256() for seed in range(5)]
    assert len(set(other)) > 1


@pytest.mark.keras
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digit", {}, r"data\.far\.noise\.source: .*did you mean 'digits'"),
        ("digits", {"path": "x"}, r"data\.far\.noise\.path: the source 'digits' takes no 'path'"),
        ("digits", {"name": "x"}, r"data\.far\.noise\.name: "),
        ("npz", {}, r"data\.far\.noise\.path: the source 'npz' needs it; add path"),
        ("folder", {}, r"data\.far\.noise\.path: "),
        ("tfds", {}, r"data\.far\.noise\.name: "),
        ("digits", {"split": "test"}, r"data\.far\.noise\.split: there is no 'test' part.*remove `split`"),
        ("digits", {"classes": ["twelve"]}, r"data\.far\.noise\.classes: there is no class 'twelve'"),
        ("digits", {"count": 5000}, r"data\.far\.noise\.count: 5000 images asked for, 1797 there"),
        ("uniform", {"classes": [0]}, r"data\.far\.noise\.classes: .*remove `classes`"),
        ("npz", {"path": "$KOOD_NO_SUCH/x.npz"}, r"data\.far\.noise\.path = .*KOOD_NO_SUCH is not set"),
        ("npz", {"path": "${KOOD_NO_SUCH}/x.npz"}, r"KOOD_NO_SUCH is not set"),
        ("npz", {"path": "no/such.npz"}, r"data\.far\.noise\.path: .*no/such\.npz does not exist"),
    ],
)
def test_what_cannot_be_is_explained_with_its_key(source, name, options, message):
    with pytest.raises(UserError, match=message) as raised:
        load_ood(source(name, **options), (8, 8, 1), seed=0, key="data.far.noise")
    assert raised.value.exit_code == 2


@pytest.mark.keras
def test_paths_are_expanded(npz_file, source, monkeypatch, tmp_path):
    npz_file(images=numbered(3))
    monkeypatch.setenv("KOOD_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in ("$KOOD_DATA/images.npz", "${KOOD_DATA}/images.npz", "~/images.npz", "images.npz"):
        assert len(load_source(source("npz", path=path), (2, 2, 1), seed=0, key="data.far.x")["all"]) == 3


def test_importing_the_room_and_its_sources_imports_nothing_heavy():
    script = (
        "import sys, importlib, pkgutil, kood.data, kood.data.sources as s\n"
        "[importlib.import_module(f'kood.data.sources.{m.name}') for m in pkgutil.iter_modules(s.__path__)]\n"
        "heavy = {'tensorflow', 'keras', 'sklearn', 'scipy', 'PIL', 'tensorflow_datasets', 'keras_cv', 'jax'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
