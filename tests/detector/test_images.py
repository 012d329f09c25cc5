"""Images from wherever they come: the same rows, in batches of one size, never all of them at once."""

import importlib
import threading
import weakref
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image

from kood.detector.images import batches, count_of
from kood.errors import UserError
from kood.serving.answers import listed
from tests.picture_files import decode_images

pytestmark = pytest.mark.backend

SHAPE = (4, 6, 3)
COUNT = 11
CLASSES = ("cat", "dog")


def pictures(count=COUNT):
    return np.random.default_rng(0).integers(0, 256, (count, *SHAPE)).astype("uint8")


LABELS = np.arange(COUNT) % 2


@pytest.fixture
def folder(tmp_path):
    for place, pixels in enumerate(pictures()):
        path = tmp_path / "images" / CLASSES[place % 2] / f"{place:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "images"


def dataset(*parts):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(parts if len(parts) > 1 else parts[0])


def of_any_size(*sizes):
    """A dataset of single images, none of whose sizes TensorFlow knows."""
    import tensorflow as tf

    rows = [np.resize(one, (*size, 3)) for one, size in zip(pictures(len(sizes)), sizes, strict=True)]
    return tf.data.Dataset.from_generator(lambda: iter(rows), output_signature=tf.TensorSpec((None, None, 3), "uint8"))


def of_any_size_with_labels():
    images = of_any_size(*[SHAPE[:2]] * COUNT)
    return images.zip((images, dataset(LABELS)))


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, number):
        return pictures()[3 * number : 3 * number + 3], LABELS[3 * number : 3 * number + 3]


def uneven():
    for start, end in ((0, 1), (1, 1), (1, 8), (8, 11)):
        yield pictures()[start:end]


#: Images, with the labels that come with them where there are any.
SOURCES = {
    "an array": (pictures, False),
    "an array of floats": (lambda: pictures().astype("float64"), False),
    "an array of int64": (lambda: pictures().astype("int64"), False),
    "a tensor": (lambda: ops.convert_to_tensor(pictures()), False),
    "a dataset of images": (lambda: dataset(pictures()), False),
    "a dataset of batches": (lambda: dataset(pictures()).batch(3), False),
    "a dataset with labels": (lambda: dataset(pictures(), LABELS).batch(5), True),
    "a dataset with one-hot labels": (lambda: dataset(pictures(), np.eye(2)[LABELS]), True),
    "a dataset of images of any size": (lambda: of_any_size(*[SHAPE[:2]] * COUNT), False),
    "a dataset of images of any size with labels": (of_any_size_with_labels, True),
    "a dataset of dictionaries": (lambda: dataset({"image": pictures(), "label": LABELS}), True),
    "Keras's own": (Sequence, True),
    "batches that differ in length": (uneven, False),
    "a list of images": (lambda: list(pictures()), False),
    "images with labels": (lambda: zip(pictures(), LABELS, strict=True), True),
    "tensors with names": (
        lambda: ((ops.convert_to_tensor(pictures()[n : n + 2]), np.array(CLASSES)[LABELS[n : n + 2]])
                 for n in range(0, COUNT, 2)), True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_rows_in_batches_of_one_size(kind):
    make, is_labelled = SOURCES[kind]
    found = list(batches(make(), SHAPE, batch_size=4, class_names=CLASSES))
    assert [len(batch.pixels) for batch in found] == [4, 4, 3]
    assert {batch.pixels.dtype.name for batch in found} == {"float32" if "floats" in kind else "uint8"}
    assert np.array_equal(np.concatenate([batch.pixels for batch in found]), pictures())
    if is_labelled:
        assert np.array_equal(np.concatenate([batch.labels for batch in found]), LABELS)
        assert found[0].labels.dtype == np.int64
    else:
        assert all(batch.labels is None for batch in found)
    assert all(batch.files is None for batch in found)


@pytest.mark.parametrize("kind", [kind for kind, (_, is_labelled) in SOURCES.items() if not is_labelled])
def test_labels_may_be_given_beside_the_images(kind):
    found = list(batches(SOURCES[kind][0](), SHAPE, batch_size=4, labels=np.eye(2)[LABELS]))
    assert np.array_equal(np.concatenate([batch.labels for batch in found]), LABELS)


def test_the_count_is_known_where_it_can_be(folder):
    assert count_of(pictures()) == count_of(dataset(pictures())) == COUNT
    assert count_of(dataset(pictures()).batch(3)) is None
    assert count_of(uneven()) is None


def test_a_folder_is_decoded_as_everywhere(folder):
    files = sorted(map(str, folder.glob("*/*")))
    for images in (folder, str(folder), files, tuple(map(Path, files))):
        found = list(batches(images, (8, 8, 3), batch_size=4))
        assert [len(batch.pixels) for batch in found] == [4, 4, 3]
        assert [file for batch in found for file in batch.files] == files
        assert np.array_equal(np.concatenate([b.pixels for b in found]), decode_images(files, (8, 8, 3)))
        assert all(batch.labels is None for batch in found)
    assert next(batches(files[0], SHAPE, batch_size=4)).files == files[:1]


def test_a_folder_is_walked_once_and_may_have_other_classes(folder, monkeypatch):
    source = importlib.import_module("kood.data.sources.folder")
    walked, listed = [], source.listed_splits
    monkeypatch.setattr(source, "listed_splits", lambda place: walked.append(place) or listed(place))
    found = list(batches(folder, SHAPE, batch_size=4, class_names=CLASSES, perhaps=True))
    assert [label for batch in found for label in batch.labels] == [0] * 6 + [1] * 5 and len(walked) == 1
    found = list(batches(folder, SHAPE, batch_size=4, class_names=["fox", "hen"], perhaps=True))
    assert all(batch.labels is None for batch in found) and sum(len(batch.files) for batch in found) == COUNT


def test_class_folders_are_matched_with_the_classes_of_the_model(folder):
    found = list(batches(folder, SHAPE, batch_size=4, class_names=["fox", "dog", "cat"]))
    assert [label for batch in found for label in batch.labels] == [2] * 6 + [1] * 5
    with pytest.raises(UserError, match=r"class folders that are none of the model's classes: dog; .* cat, fox"):
        batches(folder, SHAPE, batch_size=4, class_names=["cat", "fox"])
    with pytest.raises(UserError, match="has no class folders"):
        batches(folder / "cat", SHAPE, batch_size=4, class_names=CLASSES)
    (folder.parent / "parts").mkdir()
    for part in ("train", "test"):
        folder.rename(folder.parent / "parts" / part) if part == "train" else None
        (folder.parent / "parts" / part).mkdir(exist_ok=True)
    Image.fromarray(pictures()[0]).save(folder.parent / "parts" / "test" / "one.png")
    with pytest.raises(UserError, match="give the folder of one of them|has class folders and"):
        batches(folder.parent / "parts", SHAPE, batch_size=4, class_names=CLASSES)


@pytest.fixture
def table(folder):
    """Writes a table of the images: the names of its other columns, and their values, repeated as needed."""
    files = sorted(path.relative_to(folder.parent) for path in folder.rglob("*.png"))

    def written(header, *beside):
        lines = [f"file,{header}"] * bool(header) + [f"{one},{beside[n % len(beside)]}" for n, one in enumerate(files)]
        (folder.parent / "t.csv").write_text("\n".join(lines))
        return folder.parent / "t.csv"

    return written


#: Columns that may be labels or a split, and why the table is refused.
TOLD = [
    (("species,patient", "cat,1", "dog,20"), "none is called label"),
    (("species,patient", "Cat,10", "hen,20", "fox,30"), "none is called label"),
    (("number,patient", "1,10", "2,20"), "none is called label"),
    (("species,split", "cat,train", "dog,test"), "has train and test; give a table of one of them"),
    (("time,split", "7:30,train", "7:40,val"), "has train and validation; give a table of one of them"),
    (("label,phase", "cat,Testing", "dog,training", "dog,spare"), "has train and test; give a table of one of them"),
    (("phase", "train", "test"), "has train and test; give a table of one of them"),
    (("time,split", "7:30,a", "7:40,b"), "has the part"),
    (("", "cat,train", "dog,test"), "has train and test; give a table of one of them"),
    (("", "cat,10", "dog,20"), "has 3 columns and no line that names them"),
    (("label", "0", "1"), "classes that are none of the model's classes: 0, 1; the classes are cat, dog"),
    (("label,species", "x,cat", "y,dog"), "classes that are none of the model's classes: x, y"),
]


@pytest.mark.parametrize(("columns", "wrong"), TOLD)
def test_labels_and_the_split_of_a_table_are_never_passed_over(table, columns, wrong):
    with pytest.raises(UserError, match=f"^images: .*({wrong})"):
        batches(table(*columns), SHAPE, batch_size=4, class_names=CLASSES, perhaps=True)
    with pytest.raises(UserError, match="^images: "):
        batches(table(*columns), SHAPE, batch_size=4, class_names=CLASSES)
    assert sum(len(batch.files) for batch in batches(table(*columns), SHAPE, batch_size=4)) == COUNT


@pytest.mark.parametrize("columns", [one for one, wrong in TOLD if "give a table of one" in wrong])
def test_labels_that_are_given_keep_the_split_of_a_table(table, columns):
    with pytest.raises(UserError, match="give a table of one of them"):
        batches(table(*columns), SHAPE, batch_size=4, class_names=CLASSES, labels=LABELS, perhaps=True)


@pytest.mark.parametrize(
    "columns",
    [
        ("time", "7:30", "7:40"),
        ("time,patient", "7:30,10", "7:40,20", "7:50,1", "8:00,30"),
        ("time,label", "7:30,", "7:40,"),
        ("time,place,split", "7:30,here,", "7:40,test,"),
        ("label", "fox", "hen"),
        ("", "7:30,10", "7:40,20"),
    ],
)
def test_what_is_no_label_may_stand_beside_the_files_of_a_table(table, columns):
    found = [*batches(table(*columns), SHAPE, batch_size=4, class_names=CLASSES, perhaps=True)]
    assert sum(len(batch.files) for batch in found) == COUNT and all(batch.labels is None for batch in found)


def test_images_without_labels_may_lie_as_they_like(folder, tmp_path):
    (tmp_path / "mixed" / "test").mkdir(parents=True)
    (tmp_path / "mixed" / "train").symlink_to(folder)
    (tmp_path / "mixed" / "notes.txt").write_text("no image")
    for name, side in (("a.jpg", 30), ("test/b.TIF", 9)):
        Image.fromarray(np.zeros((side, 20), "uint8")).save(tmp_path / "mixed" / name)
    found = list(batches(tmp_path / "mixed", SHAPE, batch_size=40))
    assert found[0].files == listed([tmp_path / "mixed"]) and len(found[0].files) == COUNT + 2
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match=r"images: there are none in .*none; 1 file passed over: 1 \.txt"):
        batches(tmp_path / "none", SHAPE, batch_size=4)


def test_unreadable_files_are_named_and_no_one_stops(folder):
    files = sorted(folder.glob("*/*"))
    for place in (2, 9, 10):
        files[place].write_text("no image")
    found = list(batches(files, SHAPE, batch_size=4, labels=np.arange(COUNT)))
    assert [len(batch.pixels) for batch in found] == [4, 4]
    assert [label for batch in found for label in batch.labels] == [0, 1, 3, 4, 5, 6, 7, 8]
    told = [why for batch in found for why in batch.unreadable]
    assert len(told) == 3
    assert all(files[place].name in why for place, why in zip((2, 9, 10), told, strict=True))
    for file in files:
        file.write_text("no image")
    with pytest.raises(UserError, match=r"none of the 11 files can be read; .*00\.png"):
        list(batches(folder, SHAPE, batch_size=4))


def test_a_folder_that_is_left_early_leaves_no_thread(folder):
    before = threading.active_count()
    found = batches(folder, SHAPE, batch_size=2)
    next(found)
    found.close()
    assert threading.active_count() <= before


def test_only_a_few_batches_are_there_at_once():
    alive, most = weakref.WeakSet(), 0

    class Counted(np.ndarray):
        __hash__ = object.__hash__

    def endless(count=60):
        for number in range(count):
            pixels = np.full((5, *SHAPE), number, "uint8").view(Counted)
            alive.add(pixels)
            yield pixels

    rows = 0
    for batch in batches(endless(), SHAPE, batch_size=8):
        rows += len(batch.pixels)
        most = max(most, len(alive))
    assert rows == 300
    assert most <= 4


def test_an_array_on_disk_is_read_by_and_by(tmp_path):
    np.save(tmp_path / "images.npy", pictures())
    found = next(batches(np.load(tmp_path / "images.npy", mmap_mode="r"), SHAPE, batch_size=4))
    assert np.array_equal(found.pixels, pictures()[:4])


def nan():
    broken = pictures().astype("float32")
    broken[7, 1, 2, 0] = np.nan
    return broken


REFUSED = {
    "one image": (lambda: pictures()[0], {}, r"images\[None\]"),
    "grey": (lambda: pictures()[..., :1], {}, "convert them to RGB"),
    "channels first": (lambda: pictures().transpose(0, 3, 1, 2), {}, "numpy.moveaxis"),
    "another size": (lambda: [pictures()[:, :3]], {}, r"takes \(4, 6, 3\) .* these are \(3, 6, 3\); resize"),
    "several sizes in a dataset": (lambda: of_any_size((4, 6), (3, 6)), {}, r"these are \(3, 6, 3\); resize"),
    "NaN": (nan, {}, "image 7 holds NaN"),
    "beyond bytes": (lambda: pictures().astype("int64") + 200, {}, "whole numbers must lie in 0..255"),
    "words": (lambda: pictures().astype("str"), {}, "pixels are numbers"),
    "empty": (lambda: pictures()[:0], {}, "there are none"),
    "an empty list": (list, {}, "there are none"),
    "an endless dataset": (lambda: dataset(pictures()).repeat(), {}, r"never ends; .* take\(count\)"),
    "nothing of the kind": (lambda: 3, {}, "int is none of"),
    "another key": (lambda: dataset({"picture": pictures()}), {}, "needs the key 'image'"),
    "too few labels": (pictures, {"labels": LABELS[:5]}, "5 labels for 11 images"),
    "too few for a stream": (uneven, {"labels": LABELS[:5]}, "5 labels for 8 images or more"),
    "too many for a stream": (uneven, {"labels": np.zeros(12)}, "12 labels for 11 images"),
    "a class too many": (pictures, {"labels": LABELS + 1, "class_names": CLASSES}, "label of image 1 is 2; .* to 1"),
    "half a class": (pictures, {"labels": LABELS / 2}, "label of image 1 is 0.5"),
    "soft labels": (pictures, {"labels": np.full((COUNT, 2), 0.5)}, "row 0 is not one-hot"),
    "wide labels": (pictures, {"labels": np.eye(3)[LABELS], "class_names": CLASSES}, "3 columns, and the model 2"),
    "an unknown name": (pictures, {"labels": np.array(["cow"] * COUNT), "class_names": CLASSES}, "cow are none of"),
    "labels now and then": (lambda: [(pictures(), LABELS), pictures()], {}, "some batches have labels"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_gets_one_clear_line(kind):
    make, options, why = REFUSED[kind]
    with pytest.raises(UserError, match=why) as raised:
        list(batches(make(), SHAPE, batch_size=4, **options))
    assert "\n" not in str(raised.value)


def test_files_need_a_size(folder):
    with pytest.raises(UserError, match="files are brought to one size"):
        batches(folder, (None, None, 3), batch_size=4)
    with pytest.raises(UserError, match="several sizes"):
        list(batches([pictures(), pictures()[:, :3]], (None, None, 3), batch_size=16))
    with pytest.raises(UserError, match=r"several sizes \(\(4, 6, 3\), \(3, 6, 3\)\); resize them to one"):
        list(batches(of_any_size((4, 6), (3, 6)), (None, None, 3), batch_size=16))
    with pytest.raises(UserError, match="does not exist"):
        batches(folder / "elsewhere", SHAPE, batch_size=4)
