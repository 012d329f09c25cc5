"""TensorFlow Datasets, on one small data set prepared here."""

from pathlib import Path

import numpy as np
import pytest

from kood.data import load_id, load_ood
from kood.data.stored import source_state
from kood.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")


class KoodSquares(tfds.core.GeneratorBasedBuilder):
    """Sixty training and twelve validation images of three classes; the image says its number."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=["red", "green", "blue"]),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 60), "validation": self._generate_examples(100, 12)}

    def _generate_examples(self, first, count):
        for number in range(first, first + count):
            side = 4 + number % 3
            yield number, {"image": np.full((side, side, 3), number, np.uint8), "label": number % 3}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    tfds.builder("kood_squares", data_dir=folder).download_and_prepare()
    return str(folder)


def test_prepared_sets(prepared, source, id_data):
    wanted = {"name": "kood_squares", "path": prepared}
    take = {"image_shape": (4, 4, 1), "seed": 0, "key": "data.far.x"}
    ood = load_ood(source("tfds", **wanted), **take)
    assert sorted(ood.images[:, 0, 0, 0]) == list(range(100, 112)) and ood.class_names == ("red", "green", "blue")
    np.testing.assert_array_equal(ood.images[:, 0, 0, 0] % 3, ood.labels)
    few = load_ood(source("tfds", **wanted, split="train", classes=["blue", "red"], count=7), **take)
    assert len(few) == 7 and few.class_names == ("blue", "red")
    np.testing.assert_array_equal(few.images[:, 0, 0, 0] % 3, np.where(few.labels == 0, 2, 0))
    again = load_ood(source("tfds", **wanted, split="train", classes=["blue", "red"], count=7), **take)
    assert again.sha256() == few.sha256()
    splits = load_id(id_data("tfds", image_shape=(4, 4, 3), **wanted))
    assert len(splits.test) == 12 and len(splits.train) == 48


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "svhn",
            {},
            r"data\.far\.x\.source: .*'svhn_cropped' is not prepared in .*tfds\.load\('svhn_cropped', data_dir=",
        ),
        ("dtd", {}, "not prepared"),
        ("places365", {}, "not prepared"),
        ("tfds", {"name": "no_such_set"}, r"data\.far\.x\.name: .*'no_such_set'"),
        ("tfds", {"name": "../x"}, r"data\.far\.x\.name: "),
        ("tfds", {"name": ""}, r"data\.far\.x\.name: "),
    ],
)
def test_what_is_not_there_is_explained(tmp_path, source, name, options, message):
    with pytest.raises(UserError, match=message):
        load_ood(source(name, path=str(tmp_path), **options), (8, 8, 3), seed=0, key="data.far.x")


def test_unknown_classes_and_missing_images(prepared, source):
    wanted = {"name": "kood_squares", "path": prepared}
    with pytest.raises(UserError, match="did you mean 'green'"):
        load_ood(source("tfds", **wanted, classes=["gren"]), (4, 4, 3), seed=0, key="data.far.x")


def test_the_prepared_files_are_part_of_a_runs_fingerprint(prepared, source):
    wanted = source("tfds", name="kood_squares", path=prepared)
    before = source_state(wanted, "data.id")
    assert source_state(wanted, "data.id") == before
    record = next(Path(prepared).rglob("*train*"))
    content = record.read_bytes()
    record.write_bytes(content)
    assert source_state(wanted, "data.id") != before
