"""Images that are made when they are asked for are those that an array of them would hold."""

import contextlib
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kood import pipeline
from kood.data import ImageSet, load_id, load_source
from kood.data.amplitude import swap_amplitudes
from kood.data.batches import image_batches, labelled_batches, training_batches, views_of
from kood.data.copies import image_digests, monochrome
from kood.data.decode import decode_readable
from kood.data.deferred import Deferred, ImageFiles, Made, Stored, are_deferred, chained, kept, made
from kood.data.image_set import joined
from kood.data.large import Pixels
from kood.data.rules import Framing
from kood.data.stored import read_images, write_images
from kood.errors import UserError
from kood.outliers.amplitude_swap import AmplitudeSwap
from kood.outliers.cutmix import Cutmix
from kood.outliers.noise import Noise
from kood.outliers.patch_shuffle import PatchShuffle
from kood.outliers.pixel_mixup import PixelMixup
from kood.outliers.real import Real
from kood.pipeline import audit, fitting

pytestmark = pytest.mark.usefixtures("as_written")

SHAPE = (6, 5, 3)


@pytest.fixture
def deferring(monkeypatch):
    """Makes images of any size large; call it where that is to begin."""
    return lambda: monkeypatch.setattr("kood.data.deferred.LARGE", 0)


@pytest.fixture
def folder(tmp_path):
    """Photographs of several sizes in two classes, one of them not readable."""
    draw = np.random.default_rng(0)
    for number in range(30):
        place = tmp_path / "photos" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (7 + number % 3, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels if number != 8 else np.full_like(pixels, 9)).save(place / f"{number:02}.png")
    (tmp_path / "photos" / "a" / "03.png").write_bytes(b"\x89PNG of nothing")
    return tmp_path / "photos"


class OfArray(Deferred):
    """What is asked for, of an array."""

    def __init__(self, array):
        super().__init__(array.shape)
        self.array, self.asked = array, []

    def _make(self, rows):
        self.asked.append(rows)
        return self.array[rows]


def pixels(count=13, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def test_images_are_deferred_from_128_pixels_a_side_on():
    assert [are_deferred(shape) for shape in ((127, 128, 3), (128, 128, 1), (64, 512, 3), (512,))] == [
        False, True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "index", [3, -1, slice(2, 9), slice(None, None, 4), [1, 1, 12], slice(0), np.arange(13) % 3 == 0]
)
def test_they_are_indexed_as_arrays_are(index):
    array = pixels()
    for one in (OfArray(array), chained([array[:4], OfArray(array[4:9]), array[:0], array[9:]])):
        np.testing.assert_array_equal(one[index], array[index])
        np.testing.assert_array_equal(np.asarray(one), array)
        assert (one.shape, one.dtype, one.ndim, len(one), one.nbytes) == (
            array.shape, array.dtype, array.ndim, len(array), array.nbytes,
        )  # fmt: skip


def test_some_of_them_are_made_later():
    one = OfArray(pixels())
    some = ImageSet(one, np.arange(13) % 2, ("a", "b")).take([5, 2, 2])
    assert not one.asked and len(some) == 3
    np.testing.assert_array_equal(some.images[1:], pixels()[[2, 2]])
    assert some.take([]).images[:].shape == (0, *SHAPE)


def test_a_row_past_the_end_is_refused():
    with pytest.raises(IndexError):
        OfArray(pixels())[13]


def test_what_depends_on_its_neighbours_is_made_by_the_block():
    asked = []

    def first(rows):
        asked.append(rows.tolist())
        return np.broadcast_to(np.uint8(rows[0]), (len(rows), 128, 128, 1))

    images = made((10, 128, 128, 1), first, 512, together=True)  # Of 32 MiB a block.
    assert not asked and images[[9, 1, 5, 0]][:, 0, 0, 0].tolist() == [8, 0, 4, 0]
    assert images[[8, 9]][:, 0, 0, 0].tolist() == [8, 8] and asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_sets_with_a_deferred_part_are_joined_as_arrays_are():
    sets = [
        ImageSet(pixels(3), np.array([0, 1, 0]), ("a", "b")),
        ImageSet(pixels(4, 1), np.array([1, 1, 0, 0]), ("a", "b")),
    ]
    whole = joined([ImageSet(OfArray(sets[0].images), sets[0].labels, ("a", "b")), sets[1]])
    assert isinstance(whole.images, Deferred) and whole.sha256() == joined(sets).sha256()


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_a_folder_of_large_images_is_a_list_of_files(folder, deferring, resize):
    spec = SimpleNamespace(source="folder", path=str(folder), max_bad_images=1)
    how = {"seed": 0, "key": "data.id", "framing": Framing(resize=resize)}
    array = load_source(spec, SHAPE, **how)["all"]
    deferring()
    found = load_source(spec, SHAPE, **how)["all"]
    assert isinstance(array.images, np.ndarray) and isinstance(found.images, ImageFiles)
    np.testing.assert_array_equal(found.images, array.images)
    np.testing.assert_array_equal(found.images[[7, 28, 0]], array.images[[7, 28, 0]])
    np.testing.assert_array_equal(found.labels, array.labels)
    assert found.skipped == array.skipped and len(found.skipped) == 1
    np.testing.assert_array_equal(image_digests(found.images), image_digests(array.images))
    np.testing.assert_array_equal(monochrome(found.images), monochrome(array.images))
    assert monochrome(found.images).sum() == (resize != "pad")


def test_a_list_is_written_and_read(folder, deferring, tmp_path):
    deferring()
    found = load_source(
        SimpleNamespace(source="folder", path=str(folder), max_bad_images=1), SHAPE, seed=0, key="data.id"
    )["all"]
    facts = write_images(tmp_path, "set", found)
    read = read_images(tmp_path, "set", json.loads(json.dumps(facts)))
    assert isinstance(read.images, ImageFiles) and not (tmp_path / "set.images.npy").exists()
    assert read.sha256() == found.sha256() == facts["sha256"] and read.class_names == found.class_names
    np.testing.assert_array_equal(read.images, found.images)
    assert read.take([1, 0]).sha256() != read.take([0, 1]).sha256()


@pytest.mark.parametrize("most", [2**20, 3 * 6 * 5 * 3, 0])
def test_what_was_listed_is_read_and_not_decoded_again_as_far_as_there_is_room(folder, deferring, monkeypatch, most):
    deferring()
    monkeypatch.setattr("kood.data.deferred.DECODED", Pixels(most))
    source = SimpleNamespace(source="folder", path=str(folder), max_bad_images=1)
    images = load_source(source, SHAPE, seed=0, key="data.id")["all"].images
    wanted, decoding = np.asarray(images), []
    monkeypatch.setattr(
        "kood.data.deferred.decode_readable", lambda files, *how: decoding.extend(files) or decode_readable(files, *how)
    )
    np.testing.assert_array_equal(images[[5, 0, 5, 2]], wanted[[5, 0, 5, 2]])
    decoded_again = {2**20: [], 0: [5, 0, 5, 2]}.get(most, [5, 5])
    assert decoding == [images.files[row] for row in decoded_again]


def test_a_disk_without_room_keeps_no_pixels_and_breaks_nothing(folder, deferring, monkeypatch):
    deferring()
    monkeypatch.setattr("kood.data.deferred.DECODED", Pixels())
    source = SimpleNamespace(source="folder", path=str(folder), max_bad_images=1)
    wanted = np.asarray(load_source(source, SHAPE, seed=0, key="data.id")["all"].images)

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("kood.data.deferred.DECODED", Pixels())
    monkeypatch.setattr("kood.data.large.tempfile.TemporaryFile", lambda **how: Full())
    np.testing.assert_array_equal(load_source(source, SHAPE, seed=0, key="data.id")["all"].images, wanted)


def test_a_file_that_changes_under_a_run_is_told(folder, deferring, monkeypatch):
    deferring()
    monkeypatch.setattr("kood.data.deferred.DECODED", Pixels(0))
    listed = load_source(
        SimpleNamespace(source="folder", path=str(folder), max_bad_images=1), SHAPE, seed=0, key="data.id"
    )["all"]
    images = listed.images
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(images.files[4])
    images[:4]
    with pytest.raises(UserError, match=r"04\.png|\d\d\.png shows other pixels .* again, with --fresh where") as told:
        images[:6]
    assert told.value.exit_code == 1 and images.files[4] in str(told.value)
    Path(images.files[4]).unlink()
    missing = rf"^{re.escape(images.files[4])} cannot be read [^\n]* was listed; let the files [^\n]* start it again$"
    with pytest.raises(UserError, match=missing):
        images[4]
    # TensorFlow makes a traceback of what is raised below it.
    with pytest.raises(UserError, match=missing):
        list(image_batches(images, 6))
    monkeypatch.setattr("kood.training.fit", lambda model, batches, **how: list(batches(0)))
    work = SimpleNamespace(
        progress=SimpleNamespace(bar=lambda role, **how: contextlib.nullcontext()), board=lambda role: None,
        budget=SimpleNamespace(deadline=lambda: None),
    )  # fmt: skip
    with pytest.raises(UserError, match=missing):
        fitting.fitted(
            SimpleNamespace(role="classifier"), work, folder, None, epochs=1, steps_per_epoch=9, rows=4,
            batches=lambda epoch: labelled_batches(listed, batch_size=4, steps=9, seed=0),
        )  # fmt: skip


def test_stored_images_are_read_and_not_mapped(deferring, tmp_path):
    deferring()
    facts = write_images(tmp_path, "set", ImageSet(pixels()))
    read = read_images(tmp_path, "set", facts)
    assert isinstance(read.images, Stored) and read.sha256() == facts["sha256"]
    for rows in ([0, 1, 2, 7, 6, 12], [12], range(13)):
        np.testing.assert_array_equal(read.images[list(rows)], pixels()[list(rows)])


def test_what_is_kept_is_made_once():
    asked = []
    images = Made((13, *SHAPE), lambda rows: asked.append(rows) or pixels()[rows])
    stored = kept(images)
    many = len(asked)
    np.testing.assert_array_equal(stored[[3, 3, 0]], pixels()[[3, 3, 0]])
    assert many and len(asked) == many
    assert kept(stored) is stored


class Sure:
    """A judge that looks at each image and always says the same."""

    def __init__(self, classifier, batch_size):
        pass

    def opinions(self, images):
        rows = np.asarray(images).reshape(len(images), -1)
        return np.tile([0.7, 0.2, 0.1], (len(rows), 1)), rows[:, :3].astype("float32")

    def features(self, images):
        return self.opinions(images)[1]


def test_an_audit_makes_its_images_once(monkeypatch, tmp_path):
    monkeypatch.setattr(audit, "Judge", Sure)
    train, validation, pure = (
        ImageSet(OfArray(pixels(count)), np.arange(count) % 3, tuple("abc")) for count in (12, 8, 9)
    )
    stage = SimpleNamespace(
        role="audit", judge=SimpleNamespace(model=lambda: None), mixed=None,
        data=SimpleNamespace(images={"train": train, "validation": validation}.get),
        samples=SimpleNamespace(images=lambda: pure),
        recipe=SimpleNamespace(
            evaluate=SimpleNamespace(batch_size=4), data=SimpleNamespace(split_seed=0, augment=[]),
            classifier=SimpleNamespace(backbone="cnn"),
        ),
    )  # fmt: skip
    found = audit.Audit.make(stage, tmp_path, SimpleNamespace(progress=SimpleNamespace(bar=contextlib.nullcontext)))
    assert found["diversity"]["sets"]["pure"]["n"] == 9
    for one in (train, validation, pure):
        assert sorted(np.concatenate(one.images.asked)) == list(range(len(one)))


DRAWN = [PatchShuffle(), PatchShuffle(grid=3), PixelMixup(weight="beta"), Cutmix(weight="uniform"), AmplitudeSwap()]


@pytest.mark.parametrize("source", DRAWN)
def test_outliers_of_large_images_are_those_of_small_ones(source, deferring):
    train = ImageSet(pixels(), np.arange(13) % 3, tuple("abc"))
    expected = source.draw(40, np.random.default_rng(5), train)
    deferring()
    late = ImageSet(OfArray(train.images), train.labels, train.class_names)
    found = source.draw(40, np.random.default_rng(5), late)
    assert isinstance(found.images, Deferred) and isinstance(expected.images, np.ndarray)
    np.testing.assert_array_equal(found.images[[39, 0, 17]], expected.images[[39, 0, 17]])
    np.testing.assert_array_equal(np.concatenate(list(found.blocks)), expected.images)


@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
def test_noise_in_blocks_is_the_same_noise(kind, monkeypatch, deferring):
    def drawn():
        return np.concatenate(list(Noise(kind=kind).draw(17, np.random.default_rng(2), SHAPE).blocks))

    whole = drawn()
    deferring()
    monkeypatch.setattr("kood.data.large._BLOCK", 12 * 90 * 5)
    blocks = list(Noise(kind=kind).draw(17, np.random.default_rng(2), SHAPE).blocks)
    assert [len(block) for block in blocks] == [5, 5, 5, 2]
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_real_outliers_are_drawn_without_being_made():
    real = ImageSet(OfArray(pixels()))
    rows = Real(source="folder").draw(4, np.random.default_rng(0), real)
    assert not real.images.asked
    expected = Real(source="folder").draw(4, np.random.default_rng(0), ImageSet(pixels()))
    np.testing.assert_array_equal(np.asarray(rows.images), np.concatenate(list(expected.blocks)))


def test_swapped_amplitudes_and_views(deferring):
    train = ImageSet(pixels(), np.arange(13) % 2, ("a", "b"))
    swapped = swap_amplitudes(train.images, pixels(9, 3), rng=np.random.default_rng(1))
    views = views_of(train, 3, ["flip", "crop"], seed=4)
    deferring()
    found = swap_amplitudes(OfArray(train.images), OfArray(pixels(9, 3)), rng=np.random.default_rng(1))
    np.testing.assert_array_equal(np.asarray(found), swapped)
    late = views_of(ImageSet(OfArray(train.images), train.labels, ("a", "b")), 3, ["flip", "crop"], seed=4)
    assert isinstance(late.images, Deferred) and late.sha256() == views.sha256()


def test_batches_of_deferred_images_are_those_of_arrays():
    train, outliers = ImageSet(pixels(), np.arange(13) % 2, ("a", "b")), ImageSet(pixels(7, 2))
    late, late_outliers = ImageSet(OfArray(train.images), train.labels, ("a", "b")), ImageSet(OfArray(outliers.images))
    how = {"batch_size": 4, "seed": 3, "augment": ["flip"]}
    for one, other in (
        (training_batches(train, outliers, outliers_per_batch=3, epochs=2, **how)[0],
         training_batches(late, late_outliers, outliers_per_batch=3, epochs=2, **how)[0]),
        (labelled_batches(train, steps=5, **how), labelled_batches(late, steps=5, **how)),
    ):  # fmt: skip
        for expected, found in zip(one.as_numpy_iterator(), other.as_numpy_iterator(), strict=True):
            for name in expected:
                np.testing.assert_array_equal(found[name], expected[name])
    for expected, found in zip(image_batches(train.images, 5), image_batches(late.images, 5), strict=True):
        np.testing.assert_array_equal(found, expected)


RECIPE = """
name = "photos"
[data]
image_shape = [8, 8, 3]
resize = "crop"
augment = ["flip"]
[data.id]
source = "folder"
path = "{folder}"
max_bad_images = 1
validation = 0.2
test = 0.2
[data.near.others]
source = "folder"
path = "{folder}/b"
count = 6
[classifier]
backbone = "small_cnn"
[outliers]
use = ["patch_shuffle", "cutmix"]
amplitude = "swapped"
count = 12
per_batch = 4
[train]
epochs = 2
batch_size = 4
[serve]
accept = 0.5
[evaluate]
scores = ["msp", "gen"]
"""


def photographs(tmp_path):
    """A recipe of photographs of three classes, and of others to test on."""
    draw = np.random.default_rng(0)
    for number in range(60):
        place = tmp_path / "photos" / "abc"[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        light = draw.normal(60 + 60 * (number % 3), 30, (10 + number % 4, 12, 3))
        Image.fromarray(np.clip(light, 0, 255).astype(np.uint8)).save(place / f"{number:02}.png")
    other = tmp_path / "other"
    other.mkdir()
    for number in range(9):
        Image.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(other / f"{number}.png")
    recipe = RECIPE.format(folder=tmp_path / "photos").replace(f"{tmp_path / 'photos'}/b", str(other))
    (tmp_path / "photos.toml").write_text(recipe)


@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["classifier.train='head'", "classifier.views=1", "serve.export=false"]])
def test_a_run_on_lists_gives_the_figures_of_a_run_on_pixels(tmp_path, deferring, how):
    photographs(tmp_path)
    how = [*how, "evaluate.baseline=false"]
    expected = pipeline.run(tmp_path / "photos.toml", [*how, "serve.export=false"], saved=tmp_path / "pixels")
    deferring()
    found = pipeline.run(tmp_path / "photos.toml", how, saved=tmp_path / "lists")
    stage = next((tmp_path / "lists" / "photos" / "stages").glob("data-*"))
    assert (stage / "train.files.json").exists() and not (stage / "train.images.npy").exists()
    for key in ("id", "scores", "headline_score"):
        assert found[key] == expected[key]
    assert found["threshold"]["value"] == expected["threshold"]["value"]


def test_a_folder_that_has_moved_is_listed_again(tmp_path, deferring, monkeypatch):
    photographs(tmp_path)
    recipe = tmp_path / "photos.toml"
    recipe.write_text(recipe.read_text().replace(f"{tmp_path}/", ""))
    lean = ["evaluate.baseline=false", "serve.export=false", "outliers.use=[]"]
    deferring()
    for place in ("one", "two"):
        if place == "one":
            (tmp_path / place).mkdir()
            for name in ("photos", "other"):
                (tmp_path / name).rename(tmp_path / place / name)
        else:
            (tmp_path / "one").rename(tmp_path / place)
        monkeypatch.chdir(tmp_path / place)
        result = pipeline.run(recipe, lean, saved=tmp_path / "saved")
        assert result["stages"]["data"]["cached"] is False
    assert result["stages"]["classifier"]["cached"] is True
    cached = pipeline.run(recipe, lean, saved=tmp_path / "saved")
    assert cached["stages"]["data"]["cached"] is True


def test_splits_of_lists_are_those_of_pixels(folder, deferring):
    spec = SimpleNamespace(
        source="folder", path=str(folder), max_bad_images=1, classes=None, count=None, split=None, validation=0.2,
        calibration=0.1, test=0.2, per_class=None, near_copies=3, stratify=True,
    )  # fmt: skip
    data = SimpleNamespace(image_shape=SHAPE, ground="white", resize="stretch", antialias=True, split_seed=0, id=spec)
    expected = load_id(data)
    deferring()
    found = load_id(data)
    for part in ("train", "validation", "calibration", "test"):
        np.testing.assert_array_equal(getattr(found, part).images, getattr(expected, part).images)
        np.testing.assert_array_equal(getattr(found, part).labels, getattr(expected, part).labels)
    np.testing.assert_array_equal(found.digests, expected.digests)
    assert (found.copies, found.notes, found.warnings) == (expected.copies, expected.notes, expected.warnings)


def test_the_first_two_files_that_are_one_under_two_labels_are_named(folder, deferring):
    deferring()
    (folder / "b" / "copy.png").write_bytes((folder / "a" / "04.png").read_bytes())
    spec = SimpleNamespace(
        source="folder", path=str(folder), max_bad_images=1, classes=None, count=None, split=None, validation=0.2,
        calibration=0.1, test=0.2, per_class=None, near_copies=None, stratify=True,
    )  # fmt: skip
    data = SimpleNamespace(image_shape=SHAPE, ground="white", resize="stretch", antialias=True, split_seed=0, id=spec)
    (told,) = (text for text in load_id(data).warnings if "another label" in text)
    assert f"2 images have a copy under another label, such as {folder}/a/04.png and {folder}/b/copy.png; at" in told


def test_what_only_names_other_images_is_not_written_to_a_file_again():
    """Some of images that lie there, or two sets one after the other, cost no more than these."""
    there = kept(Made((6, 2, 2, 3), lambda rows: np.tile(rows[:, None, None, None], (1, 2, 2, 3))))
    some, both = there.take(np.array([4, 1])), chained([there, there])
    assert isinstance(there, Stored) and kept(some) is some and kept(both) is both
    assert some[:][:, 0, 0, 0].tolist() == [4, 1] and both[5:8][:, 0, 0, 0].tolist() == [5, 0, 1]
