"""The user's own image files: layouts, formats, and damage."""

import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from kood.data import load_id, load_ood, load_source
from kood.data.decode import decode_image
from kood.data.sources.table import listed_table
from kood.errors import UserError


def write(file, value, size=(5, 4), mode="L", **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(file, **options)
    return file


@pytest.fixture
def load(source, tmp_path):
    def build(path=tmp_path, image_shape=(4, 5, 1), seed=0, **options):
        return load_source(source("folder", path=str(path), **options), image_shape, seed=seed, key="data.id")

    return build


def test_class_folders(tmp_path, load):
    for value, name in enumerate(["cat/b.png", "cat/a.PNG", "dog/inner/x.bmp", "dog/.hidden.png", "cat/notes.txt"]):
        write(tmp_path / name, value * 10, format="PNG" if not name.endswith("bmp") else "BMP")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "readme.md").write_text("not an image")
    found = load()["all"]
    assert found.class_names == ("cat", "dog")
    assert found.images[:, 0, 0, 0].tolist() == [10, 0, 20] and found.labels.tolist() == [0, 0, 1]
    assert load(classes=["dog"])["all"].images[:, 0, 0, 0].tolist() == [20]


def test_classes_of_no_utf_8_are_refused_unless_left_out(tmp_path, load, id_data):
    """TensorFlow has no such words, and would say so where the trained classifier is exported."""
    for value, name in enumerate(["cat", "dog", os.fsdecode(b"caf\xe9")]):
        for number in range(5):
            write(tmp_path / name / f"{number}.png", 50 * value + number)
    assert len(load()["all"]) == 15
    known = {"image_shape": (4, 5, 1), "path": str(tmp_path)}
    with pytest.raises(UserError, match=r"^data\.id: the name 'caf\\udce9' is not UTF-8.*; rename the class$"):
        load_id(id_data("folder", **known))
    assert load_id(id_data("folder", classes=["cat", "dog"], **known)).train.class_names == ("cat", "dog")


def test_the_current_folder_may_be_gone(tmp_path, load, monkeypatch):
    write(tmp_path / "cat" / "a.png", 1)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert len(load()["all"]) == 1


def test_train_and_test_folders(tmp_path, load, source):
    for split, classes in {"train": "abc", "test": "ca"}.items():
        for name in classes:
            write(tmp_path / split / name / "1.png", ord(name) + (100 if split == "test" else 0))
    sets = load()
    assert sets["train"].class_names == sets["test"].class_names == ("a", "b", "c")
    assert sets["test"].labels.tolist() == [0, 2] and sets["test"].images[:, 0, 0, 0].tolist() == [197, 199]
    assert load(split="train").keys() == {"train"}
    chosen = load_ood(source("folder", path=str(tmp_path), classes=["c"]), (4, 5, 1), seed=0, key="data.near.x")
    assert chosen.images[:, 0, 0, 0].tolist() == [199] and chosen.class_names == ("c",)


def test_flat_folders_have_no_labels(tmp_path, load, source):
    for number in range(5):
        write(tmp_path / f"{number}.png", number)
    found = load()["all"]
    assert found.labels is None and found.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match=r"data\.id\.classes: this source has no classes"):
        load(classes=["a"])
    for split in ("train", "test"):
        write(tmp_path / "both" / split / "1.png", 7)
    assert load(tmp_path / "both")["test"].labels is None


def test_count_decodes_only_what_it_draws(tmp_path, source, load, monkeypatch):
    from kood.data import deferred

    for number in range(40):
        write(tmp_path / f"c{number % 2}" / f"{number:02}.png", number)
    seen = []
    whole = deferred.decode_readable

    def counted(files, *options):
        seen.append(len(files))
        return whole(files, *options)

    monkeypatch.setattr(deferred, "decode_readable", counted)
    take = {"image_shape": (4, 5, 1), "key": "data.far.x"}
    first = load_ood(source("folder", path=str(tmp_path), count=6), seed=0, **take)
    again = load_ood(source("folder", path=str(tmp_path), count=6), seed=0, **take)
    one_class = load_ood(source("folder", path=str(tmp_path), count=6, classes=["c1"]), seed=0, **take)
    assert seen == [6, 6, 6] and first.sha256() == again.sha256()
    assert len({load_ood(source("folder", path=str(tmp_path), count=6), seed=s, **take).sha256() for s in range(4)}) > 1
    assert (one_class.images[:, 0, 0, 0] % 2 == 1).all()
    with pytest.raises(UserError, match=r"data\.far\.x\.count: 41 images asked for, 40 there"):
        load_ood(source("folder", path=str(tmp_path), count=41), seed=0, **take)


@pytest.mark.keras
def test_splits_from_class_folders(tmp_path, id_data):
    for number in range(40):
        write(tmp_path / f"c{number % 2}" / f"{number:02}.jpg", number)
    splits = load_id(id_data("folder", path=str(tmp_path)))
    assert [len(part) for part in (splits.train, splits.validation, splits.calibration, splits.test)] == [26, 3, 3, 8]


@pytest.mark.keras
@pytest.mark.parametrize(
    ("classes", "fix"), [(None, "take its images out of the others"), (["0", "1"], "remove it from `classes`")]
)
def test_a_part_that_lacks_a_class_is_named(tmp_path, id_data, classes, fix):
    for part, name in (("train", "0"), ("train", "1"), ("test", "0")):
        write(tmp_path / part / name / "a.png", 3)
    with pytest.raises(UserError) as refused:
        load_id(id_data("folder", path=str(tmp_path), classes=classes))
    assert str(refused.value) == f"data.id: the class '1' has no images in the test part; add some, or {fix}"
    for number in range(3):
        write(tmp_path / "test" / "1" / f"{number}.png", 3).write_bytes(b"no image")
    with pytest.raises(UserError) as refused:
        load_id(id_data("folder", path=str(tmp_path), classes=classes, max_bad_images=3))
    assert str(refused.value) == (
        "data.id: the class '1' has no images in the test part (its files may be among the 3 that cannot be read); add "
        f"some, or {fix}"
    )


@pytest.mark.keras
def test_mixed_sizes_are_brought_to_one(tmp_path, load):
    sizes = [(1, 1), (5, 4), (300, 200), (7, 90), (5, 4)]
    for number, size in enumerate(sizes):
        write(tmp_path / f"{number}.png", 50 * number, size=size)
    np.testing.assert_array_equal(
        load()["all"].images, np.broadcast_to(np.arange(0, 250, 50).reshape(5, 1, 1, 1), (5, 4, 5, 1))
    )


def test_many_files_over_several_chunks_keep_their_order(tmp_path, load):
    for number in range(600):
        write(tmp_path / f"{number:03}.png", number % 256)
    assert load()["all"].images[:, 0, 0, 0].tolist() == [number % 256 for number in range(600)]


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda root: None, "has no images; files must end in .png"),
        (lambda root: (write(root / "a/1.png", 0), (root / "b").mkdir()), "class folder .*b has no images"),
        (lambda root: (write(root / "a/1.png", 0), write(root / "2.png", 0)), "beside class folders"),
        (
            lambda root: [write(root / s / "a/1.png", 0) for s in ("train", "Training", "test")],
            "has two folders for train, Training and train; keep one",
        ),
        (
            lambda root: [write(root / s / "a/1.png", 0) for s in ("train", "plane")],
            r"folders beside train \(plane\); move them out of it, or rename train",
        ),
        (
            lambda root: [write(root / s / "1.png", 0) for s in ("train/a", "test/b")],
            "test has classes that .* lacks: b",
        ),
        (
            lambda root: [write(root / s / "1.png", 0) for s in ("train/a", "test")],
            "train has class .*test none",
        ),
        (
            lambda root: [write(root / s / "1.png", 0) for s in ("train", "test/a")],
            "test has class .*train none",
        ),
        (
            lambda root: [write(root / s / "a/1.png", 0) for s in ("train", "test", "extra")],
            r"beside test and train \(extra\)",
        ),
        (lambda root: (root / "x.png").write_text("no image"), r"x\.png cannot be read as an image"),
        (lambda root: (root / "x.png").write_bytes(b""), r"x\.png cannot be read as an image"),
    ],
)
def test_wrong_folders_are_explained(tmp_path, load, make, wrong):
    make(tmp_path)
    with pytest.raises(UserError, match=wrong) as raised:
        load()
    assert str(raised.value).startswith("data.id.path: ")


def test_paths_that_are_no_folder(tmp_path, load):
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "none")
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / ("x" * 300))
    with pytest.raises(UserError, match="is a file, not a folder"):
        load(write(tmp_path / "one.png", 0))


def test_a_class_named_train_without_folders_in_it(tmp_path, load):
    write(tmp_path / "train/1.png", 1)
    write(tmp_path / "plane/1.png", 2)
    assert load()["all"].class_names == ("plane", "train")


@pytest.mark.parametrize(
    "spelled",
    [
        {"train": "Train", "test": "TEST"},
        {"train": "training", "validation": "val", "test": "testing"},
        {"train": "train", "validation": "valid"},
        {"train": "Training", "validation": "Validation", "test": "Test"},
        {"train": "train", "validation": "dev", "test": "test"},
    ],
)
def test_parts_under_their_usual_names(tmp_path, load, spelled):
    for number, (part, name) in enumerate(spelled.items()):
        for label in "ba" if part == "train" else "b":
            write(tmp_path / name / label / "1.png", 10 * number + ord(label))
    sets = load()
    assert sets.keys() == spelled.keys()
    for number, part in enumerate(spelled):
        assert sets[part].class_names == ("a", "b") and sets[part].notes == ()
        labels = [0, 1] if part == "train" else [1]
        assert sets[part].labels.tolist() == labels
        assert sets[part].images[:, 0, 0, 0].tolist() == [10 * number + ord("ab"[label]) for label in labels]


@pytest.mark.parametrize("name", ["train", "Test", "val"])
def test_the_only_part_is_all_and_says_so(tmp_path, load, name):
    for label in "ab":
        write(tmp_path / name / label / "1.png", 1)
    found = load()["all"]
    assert found.class_names == ("a", "b")
    assert found.notes == (f"{name} is the only part: all its images are taken as one set",)


def test_parts_without_one_to_train_on_are_for_tests_alone(tmp_path, source, id_data):
    for number, name in enumerate(("val/a", "val/b", "test/b", "test/c")):
        write(tmp_path / name / "1.png", number)
    given = {"path": str(tmp_path)}
    for split, expected in ((None, [2, 3]), ("test", [2, 3]), ("validation", [0, 1])):
        found = load_ood(source("folder", split=split, **given), (4, 5, 1), seed=0, key="data.near.x")
        assert found.images[:, 0, 0, 0].tolist() == expected and found.class_names == ("a", "b", "c")
    with pytest.raises(UserError, match=r"^data\.id\.path: .* has test and validation but no train; .*`split`"):
        load_id(id_data("folder", image_shape=(4, 5, 1), **given))


@pytest.mark.parametrize("name", ["test/a", "test", "Testing/a"])
def test_the_only_part_may_be_asked_for(tmp_path, source, name):
    write(tmp_path / name / "1.png", 3)
    for split in (None, "test"):
        asked = source("folder", path=str(tmp_path), split=split)
        assert load_ood(asked, (4, 5, 1), seed=0, key="data.near.x").images[:, 0, 0, 0].tolist() == [3]
    with pytest.raises(UserError, match="there is no 'validation' part"):
        load_ood(source("folder", path=str(tmp_path), split="validation"), (4, 5, 1), seed=0, key="data.near.x")


def test_images_beside_parts_are_counted(tmp_path, load):
    for part in ("train", "test"):
        write(tmp_path / part / "a/1.png", 1)
    write(tmp_path / "sample.png", 1)
    assert load()["train"].notes == ("1 image beside train, test passed over",)


def test_folders_and_files_that_are_passed_over_are_counted(tmp_path, load):
    for label in "ab":
        write(tmp_path / label / "1.png", 1)
        for system in ("@eaDir/1.png", ".ipynb_checkpoints"):
            write(tmp_path / label / system / "SYNOPHOTO_THUMB_M.png", 9)
    for name in ("@eaDir", "$RECYCLE.BIN/S-1", "__MACOSX/a", "System Volume Information", "#recycle", "lost+found"):
        write(tmp_path / name / "1.png", 9)
    for name in ("a/1.txt", "a/2.TXT", "b/3.pdf", "readme", "b/.DS_Store", "b/Thumbs.db"):
        (tmp_path / name).write_text("no image")
    found = load()["all"]
    assert found.class_names == ("a", "b") and found.images[:, 0, 0, 0].tolist() == [1, 1]
    assert found.notes == (
        "10 folders passed over: 3 @eaDir, 2 .ipynb_checkpoints, 1 #recycle, 1 $RECYCLE.BIN, "
        "1 System Volume Information, 1 __MACOSX, 1 lost+found",
        "6 files passed over: 2 .txt, 1 .db, 1 .pdf, 1 hidden, 1 without a suffix",
    )


def test_a_class_of_thumbnails_alone_has_no_images(tmp_path, load):
    write(tmp_path / "a/1.png", 1)
    write(tmp_path / "b/@eaDir/1.png", 1)
    with pytest.raises(UserError, match=r"class folder .*/b has no images; .*\(1 folder passed over: 1 @eaDir\)"):
        load()


def test_classes_that_hold_the_same_folders_are_told(tmp_path, load):
    for shop in ("one", "two"):
        for label in ("cat", "dog"):
            write(tmp_path / shop / label / "1.png", 1)
    (note,) = load()["all"].notes
    assert note.startswith("the classes one, two all hold the same folders (cat, dog), whose images are taken together")
    write(tmp_path / "two/owl/1.png", 1)
    (note,) = load()["all"].notes
    told = "images in folders within a class's folder are taken as of that class: one/cat, one/dog, two/cat, two/dog, "
    assert note == told + "two/owl"
    for part in ("train", "test"):
        write(tmp_path / "unpacked/archive" / part / "a/1.png", 1)
        for label in ("cat", "dog"):
            write(tmp_path / "inside" / label / part / "1.png", 1)
    assert load(tmp_path / "unpacked")["all"].notes == (
        "archive holds folders (test, train), whose images are taken together; if those are parts, give archive as "
        "the path",
    )
    assert load(tmp_path / "inside")["all"].notes[0].endswith("if those are parts, sort them as PART/CLASS")
    for label in ("cat", "dog"):  # As in Tiny ImageNet: no sign of another level.
        write(tmp_path / "flat" / label / "images/1.png", 1)
    assert load(tmp_path / "flat")["all"].notes == ()


def test_classes_that_differ_in_capitals_alone_are_told(tmp_path, load):
    for name in ("Hat", "hat", "HAT", "cap"):
        write(tmp_path / name / "a.png", 3)
    told = "classes whose names differ in capitals alone are taken for different ones ({}); give them one name where "
    told += "they are one"
    assert load()["all"].notes == (told.format("HAT and Hat and hat"),)
    (tmp_path / "t.csv").write_text("Hat/a.png,b\nhat/a.png,B\n")
    assert listed_table(str(tmp_path / "t.csv")).notes == (told.format("B and b"),)


def test_one_name_has_several_spellings(tmp_path, load):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for part, name in (("train", composed), ("test", decomposed)):
        write(tmp_path / "parts" / part / name / "1.png", 1)
        write(tmp_path / "parts" / part / "tea" / "1.png", 2)
        write(tmp_path / "one" / name / f"{part}.png", 3)
        write(tmp_path / decomposed / "x" / f"{part}.png", 3)
    sets = load(tmp_path / "parts")
    assert sets["train"].class_names == sets["test"].class_names == (composed, "tea")
    assert sets["test"].labels.tolist() == [0, 1]
    assert load(tmp_path / "parts", classes=[decomposed])["train"].class_names == (composed,)
    merged = load(tmp_path / "one")["all"]
    assert merged.class_names == (composed,) and merged.labels.tolist() == [0, 0]
    assert len(load(tmp_path / composed)["all"]) == 2
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "thé")


@pytest.fixture
def patients(tmp_path):
    for number, name in enumerate(["train/a/p1/1", "train/a/p2/x/2", "train/b/p1/3", "test/a/p3/4", "test/b/p2/5"]):
        write(tmp_path / f"{name}.png", number)
    return tmp_path


@pytest.mark.parametrize(
    ("group", "train", "test"),
    [
        ({"folder": 1}, [0, 1, 0], [2, 1]),
        ({"pattern": r"/p(\d)/"}, [0, 1, 0], [2, 1]),
        ({"pattern": r"(?:train|test)/."}, [0, 0, 1], [2, 3]),
    ],
)
def test_groups_have_one_number_in_every_part(patients, load, group, train, test):
    sets = load(group=group)
    assert sets["train"].images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert sets["train"].groups.tolist() == train and sets["test"].groups.tolist() == test
    assert load(group=group, split="test")["test"].groups.tolist() == test
    assert load(group=group, classes=["b"])["test"].groups.tolist() == test[1:]
    assert load()["train"].groups is None
    # Folders that are the groups are meant to be there.
    assert load(group=group)["train"].notes == ()
    assert (
        load()["train"]
        .notes[0]
        .startswith("images in folders within a class's folder are taken as of that class: a/p1")
    )


@pytest.mark.parametrize(
    ("group", "wrong"),
    [
        ({"folder": 2}, r"group\.folder: train/a/p1/1\.png does not lie 2 folders below the class folder"),
        ({"pattern": "p1"}, r"group\.pattern: train/a/p2/x/2\.png does not match 'p1'"),
        ({"column": "patient"}, r"group\.column: only a table has columns"),
    ],
)
def test_a_file_without_a_group_is_named(patients, load, group, wrong):
    with pytest.raises(UserError, match=wrong):
        load(group=group)


def test_cut_off_files_are_named(tmp_path, load):
    rng = np.random.default_rng(0)
    for suffix in ("jpg", "png", "gif", "bmp", "webp"):
        file = tmp_path / f"cut.{suffix}"
        Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(file)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(UserError, match=rf"cut\.{suffix} cannot be read"):
            load()
        file.unlink()


def test_bombs_are_refused(tmp_path, load, monkeypatch):
    write(tmp_path / "huge.png", 0, size=(100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    told = r"huge\.png is too large \(it has 10,000 pixels, and 2,000 are the most that are read\); make it smaller"
    with pytest.raises(UserError, match=told):
        load()


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    wide = np.array([[0, 257, 32768, 65535]], np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert decode_image(tmp_path / "wide.png").ravel().tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("mode", "value", "suffix", "expected"),
    [
        ("1", 1, "png", [255]),
        ("L", 77, "png", [77]),
        ("LA", (77, 128), "png", [77, 77, 77, 128]),
        ("RGB", (1, 2, 3), "png", [1, 2, 3]),
        ("RGBA", (1, 2, 3, 4), "png", [1, 2, 3, 4]),
        ("P", 0, "png", [0, 0, 0]),
        ("CMYK", (0, 0, 0, 255), "jpg", [0, 0, 0]),
        ("CMYK", (0, 0, 0, 0), "jpg", [255, 255, 255]),
        ("L", 77, "bmp", [77]),
    ],
)
def test_pixel_formats(tmp_path, mode, value, suffix, expected):
    assert decode_image(write(tmp_path / f"x.{suffix}", value, mode=mode))[2, 2].tolist() == expected


def test_palette_and_its_transparency(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png")
    assert decode_image(tmp_path / "p.png").tolist() == [[[10, 20, 30], [40, 50, 60]]]
    image.save(tmp_path / "t.png", transparency=0)
    assert decode_image(tmp_path / "t.png").tolist() == [[[10, 20, 30, 0], [40, 50, 60, 255]]]


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_animations_give_their_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (6, 6), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    lossless = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:], **lossless)
    assert np.abs(decode_image(tmp_path / f"moving.{suffix}")[0, 0, :3].astype(int) - [250, 0, 0]).max() <= 5


def test_bytes_decode_as_files_do(tmp_path):
    file = write(tmp_path / "x.png", (1, 2, 3), mode="RGB")
    np.testing.assert_array_equal(decode_image(file.read_bytes()), decode_image(file))
    with pytest.raises(UserError, match="an image cannot be read"):
        decode_image(b"nothing")
