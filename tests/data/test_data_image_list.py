"""Lists of images, as OpenOOD keeps them."""

import unicodedata

import pytest
from PIL import Image

from kood.data import load_id, load_ood, load_source
from kood.errors import UserError


@pytest.fixture
def pictures(tmp_path):
    """pictures({"a/1.png": grey value}) -> the folder they lie in."""

    def make(values):
        for name, value in values.items():
            file = tmp_path / "images" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), value).save(file)
        return str(tmp_path / "images")

    return make


@pytest.fixture
def load(source, tmp_path):
    def build(*lines, root=None, image_shape=(4, 4, 1), name="list.txt", **options):
        (tmp_path / name).write_text("\n".join(lines))
        asked = source("image_list", path=str(tmp_path / name), root=root, **options)
        return load_source(asked, image_shape, seed=0, key="data.id")

    return build


def test_a_list_says_which_images_and_of_which_class(pictures, load):
    root = pictures({"cat/1.png": 10, "cat/2.png": 20, "my dog/a b.png": 30, "bird/1.png": 99})
    found = load("my dog/a b.png 1", "", "cat/2.png 0  ", root=root)["all"]
    assert found.images[:, 0, 0, 0].tolist() == [30, 20]
    assert found.labels.tolist() == [1, 0] and found.class_names == ("cat", "my dog")


def test_files_are_relative_to_the_list_where_no_root_is_given(pictures, load):
    pictures({"1.png": 10})
    assert load("images/1.png 0")["all"].images[0, 0, 0, 0] == 10


def test_classes_that_share_a_folder_go_by_number(pictures, load):
    root = pictures({"x/1.png": 1, "x/2.png": 2, "y/3.png": 3})
    assert load("x/1.png 0", "x/2.png 1", root=root)["all"].class_names == ("0", "1")
    assert load("x/1.png 0", "y/3.png 0", "x/2.png 1", root=root)["all"].class_names == ("0", "x")


def test_negative_labels_are_none(pictures, source, tmp_path):
    root = pictures({"1.png": 10, "2.png": 20})
    (tmp_path / "ood.txt").write_text("1.png -1\n2.png -1\n")
    asked = source("image_list", path=str(tmp_path / "ood.txt"), root=root)
    found = load_ood(asked, (4, 4, 1), seed=0, key="data.near.x")
    assert found.labels is None and len(found) == 2


def test_a_place_for_the_split_is_two_lists(pictures, id_data, source, tmp_path):
    root = pictures({f"{name}/{i}.png": 100 * "ab".index(name) + i for name in "ab" for i in range(9)})
    (tmp_path / "train_x.txt").write_text("".join(f"{n}/{i}.png {'ab'.index(n)}\n" for n in "ab" for i in range(8)))
    (tmp_path / "test_x.txt").write_text("b/8.png 1\na/8.png 0\n")
    path = str(tmp_path / "{split}_x.txt")
    splits = load_id(id_data("image_list", path=path, root=root, image_shape=(4, 4, 1)))
    assert len(splits.train) + len(splits.validation) + len(splits.calibration) == 16
    assert splits.test.labels.tolist() == [1, 0] and splits.test.images[0, 0, 0, 0] == 108
    assert splits.train.class_names == ("a", "b")
    only = load_ood(source("image_list", path=path, root=root), (4, 4, 1), seed=0, key="data.near.x")
    assert len(only) == 2
    with pytest.raises(UserError, match="no 'validation' part, the source has only test and train"):
        load_ood(source("image_list", path=path, root=root, split="validation"), (4, 4, 1), seed=0, key="data.near.x")
    (tmp_path / "test_x.txt").write_text("b/8.png 2\n")
    with pytest.raises(UserError, match="class 2"):
        load_id(id_data("image_list", path=path, root=root, image_shape=(4, 4, 1)))
    (tmp_path / "test_x.txt").write_text("b/8.png -1\n")
    with pytest.raises(UserError, match="other none"):
        load_id(id_data("image_list", path=path, root=root, image_shape=(4, 4, 1)))


def test_groups_and_names_in_either_form(pictures, load):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    root = pictures({f"{decomposed}/p1/1.png": 1, "tea/p1/2.png": 2, "tea/p2/3.png": 3})
    lines = f"{composed}/p1/1.png 0", "tea/p1/2.png 1", "tea/p2/3.png 1"
    found = load(*lines, root=root, group={"folder": 2})["all"]
    assert found.groups.tolist() == [0, 0, 1] and found.images[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert load(*lines, root=root, group={"pattern": "^[^/]+"})["all"].groups.tolist() == [0, 1, 1]
    with pytest.raises(UserError, match=r"data\.id\.group\.folder: .* does not lie 3 folders below"):
        load(*lines, root=root, group={"folder": 3})
    assert load(f"{composed}/p1/1.png 0", root=f"{root}/.")["all"].groups is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "names no image"),
        (["1.png"], r"data\.id\.path: line 1 of .* is not FILE LABEL"),
        (["1.png 0", "1.png zero"], "line 2"),
        (["0"], "line 1"),
        (["1.png 0.5"], "line 1"),
        (["../1.png 0"], "outside"),
        (["a/../../1.png 0"], "outside"),
        (["/etc/1.png 0"], "outside"),
        (["1.png 0", "1.png 2"], "no image of 1"),
        (["1.png 0", "1.png -1"], "keep either"),
        (["none.png 0"], "none.png cannot be read"),
        (["1.png 0", f"1.png {10**19}"], "line 2 of .* LABEL a whole number"),
        (["1.png 0", f"1.png {10**18}"], "no image of 1"),
        (["x" * 300 + ".png 0"], "cannot be read"),
    ],
)
def test_a_wrong_list_is_one_message(pictures, load, lines, message):
    root = pictures({"1.png": 1})
    with pytest.raises(UserError, match=message):
        load(*lines, root=root)


def test_wrong_paths_are_one_message(pictures, load, source, tmp_path):
    root = pictures({"1.png": 1})

    def read(path, **options):
        return load_source(source("image_list", path=str(path), **options), (4, 4, 1), seed=0, key="data.id")

    with pytest.raises(UserError, match=r"data\.id\.path: .*none\.txt does not exist"):
        read(tmp_path / "none.txt")
    with pytest.raises(UserError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(UserError, match="no text file"):
        read(tmp_path / "images" / "1.png", root=root)
    with pytest.raises(UserError, match=r"data\.id\.root: .*nowhere is no folder"):
        load("1.png 0", root=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="takes no 'root'"):
        load_source(source("folder", path=root, root=root), (4, 4, 1), seed=0, key="data.id")
