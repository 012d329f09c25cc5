"""Tables of images and the names of their classes."""

import os
import unicodedata

import pytest
from PIL import Image

from kood.data import load_id, load_ood, load_source
from kood.data.sources.table import listed_files, listed_table
from kood.errors import UserError


@pytest.fixture
def here(tmp_path):
    """Six pictures, whose grey value is their number."""
    (tmp_path / "img/sub dir").mkdir(parents=True)
    for number, name in enumerate(["a.png", "b.png", "c.png", "d,e.png", "sub dir/f.png", "g;h.JPG"]):
        Image.new("L", (4, 4), number).save(tmp_path / "img" / name)
    return tmp_path


@pytest.fixture
def load(source, here):
    def build(*lines, name="labels.csv", ends="\n", encoding="utf-8", **options):
        (here / name).write_bytes(ends.join(lines).encode(encoding))
        asked = source("table", path=str(here / name), **options)
        return load_source(asked, (4, 4, 1), seed=0, key="data.id")

    return build


def read(found):
    assert found.labels is not None
    return {int(image[0, 0, 0]): found.class_names[label] for image, label in zip(found.images, found.labels)}  # noqa: B905


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["img/a.png,cat", "img/b.png,dog"], {0: "cat", 1: "dog"}),
        (["file,label", "img/a.png,cat", "", "img/b.png,dog", ""], {0: "cat", 1: "dog"}),
        (["label,file", "cat,img/a.png", "dog,img/b.png"], {0: "cat", 1: "dog"}),
        (["dog,img/b.png", "cat,img/a.png"], {0: "cat", 1: "dog"}),
        (['"img/d,e.png","a, b"', "img/a.png, cat "], {3: "a, b", 0: "cat"}),
        (["Image;Class", "img/a.png;x,y", "img/d,e.png;dog"], {0: "x,y", 3: "dog"}),
        (["image_path\tspecies", "img/sub dir/f.png\tGreat Tit", "img/g;h.JPG\tdog"], {4: "Great Tit", 5: "dog"}),
        (["img\\a.png,cat", "img\\sub dir\\f.png,dog"], {0: "cat", 4: "dog"}),
        (["id,filename,age,label", "7,img/a.png,3,0", "8,./img/b.png,4,10"], {0: "0", 1: "10"}),
        (["img/a.png|cat", "img/b.png|dog"], {0: "cat", 1: "dog"}),
        (["sep=;", "Image;Class", "img/a.png;x,y", "img/d,e.png;dog"], {0: "x,y", 3: "dog"}),
        (['"SEP=,"', "img/a.png,x;y", '"img/g;h.JPG",dog;x'], {0: "x;y", 5: "dog;x"}),
        (["sep=\t", "img/a.png\tcat", "img/b.png\tdog"], {0: "cat", 1: "dog"}),
        (["sep=^", "img/a.png^cat", "img/b.png^dog"], {0: "cat", 1: "dog"}),
    ],
)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_says_which_images_and_of_which_class(load, lines, expected, ends, encoding):
    found = load(*lines, ends=ends, encoding=encoding)["all"]
    assert read(found) == expected and found.class_names == tuple(sorted(expected.values()))


def test_absolute_paths_and_a_root(load, here):
    assert read(load(f"{here}/img/a.png,cat", f"{here}/img/b.png,dog")["all"]) == {0: "cat", 1: "dog"}
    assert read(load("a.png,cat", "b.png,dog", root=str(here / "img"))["all"]) == {0: "cat", 1: "dog"}
    (here / "tables").mkdir()
    assert read(load("../img/a.png,cat", "../img/b.png,dog", name="tables/x.csv")["all"]) == {0: "cat", 1: "dog"}


def test_a_column_of_parts(load, source, here):
    lines = ["file,label,split,camera", "img/a.png,cat,Train,1", "img/b.png,dog,training,1", "img/c.png,dog,VAL,2",
             "img/d,e.png,cat,test,2"]  # fmt: skip
    lines[-1] = '"img/d,e.png",cat,test,2'
    sets = load(*lines)
    assert {part: read(found) for part, found in sets.items()} == {
        "train": {0: "cat", 1: "dog"}, "validation": {2: "dog"}, "test": {3: "cat"},
    }  # fmt: skip
    assert sets["test"].class_names == ("cat", "dog") and sets["test"].notes == ("columns passed over: camera",)
    assert load(*lines, split="test").keys() == {"test"}
    asked = source("table", path=str(here / "labels.csv"), classes=["cat"], count=1)
    assert read(load_ood(asked, (4, 4, 1), seed=0, key="data.near.x")) == {3: "cat"}
    only = load("file,label,split", "img/a.png,cat,train", "img/b.png,dog,train")
    assert only["all"].notes == ("train is the only part: all its images are taken as one set",)


def test_a_column_without_a_name_is_told(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "table.csv").write_text(",file,label\n0,a.png,cat\n")
    assert listed_table(str(tmp_path / "table.csv")).notes == ("columns passed over: one without a name",)


def test_parts_without_one_to_train_on_and_the_only_part_asked_for(load, source, id_data, here):
    given = {"path": str(here / "labels.csv")}
    load("file,label,split", "img/a.png,cat,val", "img/b.png,dog,test")
    with pytest.raises(UserError, match=r"^data\.id\.path: .* has test and validation but no train"):
        load_id(id_data("table", image_shape=(4, 4, 1), **given))
    for lines in (["img/a.png,cat,val", "img/b.png,dog,test"], ["img/b.png,dog,test"]):
        load("file,label,split", *lines)
        assert read(load_ood(source("table", split="test", **given), (4, 4, 1), seed=0, key="x")) == {1: "dog"}


def test_named_columns(load):
    lines = ["path,image,kind,class,fold", "x.png,img/a.png,tabby,cat,train", "y.png,img/b.png,pug,dog,test"]
    columns = {"file": "image", "label": "class"}
    assert read(load(*lines, columns=columns)["all"]) == {0: "cat", 1: "dog"}
    with pytest.raises(UserError, match=r"several columns that may be the file \(path, image\)"):
        load(*lines)
    with pytest.raises(UserError, match=r"test.* has classes that .*train.* lacks: dog"):
        load(*lines, columns={**columns, "split": "fold"})
    with pytest.raises(UserError, match=r"data\.id\.columns\.label: .* no column 'breed'; it has path, image, kind"):
        load(*lines, columns={**columns, "label": "breed"})


def test_a_list_of_files_alone_has_no_labels(load):
    for lines in (["img/a.png", "img/b.png"], ["file", "img/a.png", "img/b.png"]):
        found = load(*lines)["all"]
        assert found.labels is None and found.images[:, 0, 0, 0].tolist() == [0, 1]


def test_composed_and_decomposed_names_are_one(load, here):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for name in (f"{decomposed}1.png", f"{composed}2.png"):
        Image.new("L", (4, 4), 9).save(here / "img" / name)
    found = load(f"img/{composed}1.png,{composed}", f"img/{decomposed}2.png,{decomposed}")["all"]
    assert len(found) == 2 and found.class_names == (composed,)
    with pytest.raises(UserError, match="line 2 .* again, as line 1 does"):
        load(f"img/{composed}1.png,x", f"img/{decomposed}1.png,x")


def test_the_folders_of_absolute_files_count_from_the_root(load, here):
    (here / "tables").mkdir()
    lines = [f"{here}/img/sub dir/f.png,cat", f"{here}/img/a.png,dog"]
    for group in ({"folder": 1}, {"pattern": "^[^/]+"}):
        for options in ({"name": "tables/../x.csv"}, {"name": "tables/x.csv", "root": f"{here}/tables/.."}):
            assert load(*lines, group=group, **options)["all"].groups.tolist() == [0, 0]
        for line in (lines[0], "../img/sub dir/f.png,cat"):
            with pytest.raises(UserError, match=r"^data\.id\.group: line 1 of .*x\.csv names .*outside of .*`root`"):
                load(line, "../img/a.png,dog", name="tables/x.csv", group=group)


@pytest.mark.parametrize("kind", ["table", "image_list"])
def test_of_files_that_are_not_there_no_folder_is_read_twice(source, tmp_path, monkeypatch, kind):
    here, listed, listdir = tmp_path / "café", [], os.listdir
    (here / "été").mkdir(parents=True)
    (here / "list.csv").write_text("".join(f"{part}{n}.png{',x' if kind == 'table' else ' 0'}\n"
                                           for n in range(9) for part in ("a", "é", "été/é")))  # fmt: skip
    monkeypatch.setattr(os, "listdir", lambda folder: listed.append(folder) or listdir(folder))
    with pytest.raises(UserError):
        load_source(source(kind, path=str(here / "list.csv")), (4, 4, 1), seed=0, key="data.id")
    assert len(listed) == 2 == len(set(listed))


@pytest.mark.parametrize(
    ("group", "train", "test"),
    [
        ({"column": "patient"}, [0, 1], [0]),
        ({"pattern": r"/(.)"}, [0, 1], [2]),
        ({"folder": 1}, [0, 0], [0]),
    ],
)
def test_groups(load, group, train, test):
    lines = ["file,label,split,patient", "img/a.png,cat,train,Ann", "img/b.png,dog,train,Bob", "img/c.png,cat,test,Ann"]
    sets = load(*lines, group=group)
    assert sets["train"].groups.tolist() == train and sets["test"].groups.tolist() == test
    assert (sets["train"].notes == ()) == ("column" in group)


@pytest.mark.parametrize(
    ("lines", "options", "wrong"),
    [
        ([], {}, "names no image"),
        (["sep=;"], {}, "names no image"),
        (["sep=;", "img/a.png;cat", "img/none.png;dog"], {}, r"line 3 of .* names .*none\.png"),
        (["img/a.png 0", "img/sub dir/f.png 1"], {}, "line 2 of .* has a blank .* a comma .* source = \"image_list\""),
        (["file label", "img/a.png  cat"], {}, "line 2 of .* has a blank between file and label"),
        (["file,label"], {}, "names no image"),
        (
            ["img/a.png,cat", "img/none.png,dog", "img/no.png,dog"], {},
            r"line 2 of .* names .*none\.png, which does not exist \(1 more",
        ),
        (["file,label", "img/a.png,cat", "", "img/a.png,cat"], {}, "line 4 of .* again, as line 2 does"),
        (["img/a.png,cat", "img/./a.png,dog"], {}, "line 2 of .* again, as line 1 does"),
        (["img/a.png,cat", "img/b.png, "], {}, "line 2 of .* has an empty label"),
        (["file,label", ",cat", "img/b.png,dog"], {}, "line 2 of .* names no file"),
        (["img/a.png,cat", "img/d,e.png,dog"], {}, "line 2 of .* has 3 fields and line 1 has 2; put .* double quotes"),
        (["img/a.png,cat,train"], {}, "has 3 columns and no line that names them"),
        (["file,x,y", "img/a.png,cat,dog"], {}, "has the columns file, x, y, and none is called label"),
        (["x,label", "img/a,cat"], {}, "has the columns x, label, and none is called file"),
        (["file,label,split", "img/a.png,cat,train", "img/b.png,cat,fold2"], {}, "line 3 of .* has the part 'fold2'"),
        (["file,label,split", "img/a.png,cat,train", "img/b.png,cat,"], {}, "line 3 of .* has an empty part"),
        (["img/a.png,cat", '"img/b.png,dog'], {}, "line 2 of .* cannot be read as a table"),
        (["x" * 300 + "\\a.png,cat"], {}, "line 1 of .* does not exist"),
        (["img/a.png,cat"], {"root": "x" * 300}, r"root: .* is no folder"),
        (["img/a.png,cat"], {"root": "$KOOD_NO_SUCH/img"}, r"data\.id\.root = .*KOOD_NO_SUCH is not set"),
        (["C:\\x\\a.png,cat", "img/b.png,dog"], {}, "line 1 of .* Windows drive"),
        (["img/a.png,cat", "img/b.png,dog"], {"group": {"column": "who"}}, r"id\.group\.column: .* no column 'who'"),
        (["file,label,who", "img/a.png,cat,", "img/b.png,dog,x"], {"group": {"column": "who"}}, "line 2 .* empty who"),
        (["img/a.png,cat", "img/b.png,dog"], {"group": {"pattern": "a"}}, r"group\.pattern: img/b\.png does not match"),
        (["img/a.png,cat", "img/b.png,dog"], {"root": "nowhere"}, r"data\.id\.root: .*nowhere is no folder"),
        (["img/a.png,cat", "img/b.png,dog"], {"classes": ["cow"]}, "there is no class 'cow'"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_one_message(load, lines, options, wrong):
    with pytest.raises(UserError, match=wrong) as raised:
        load(*lines, **options)
    assert str(raised.value).startswith("data.id.")


def test_files_that_are_no_table(load, here, source):
    for path, wrong in (("none.csv", "does not exist"), ("img", "is a folder, not a table")):
        with pytest.raises(UserError, match=wrong):
            load_source(source("table", path=str(here / path)), (4, 4, 1), seed=0, key="data.id")
    with pytest.raises(UserError, match="does not exist"):
        load_source(source("table", path="x" * 300), (4, 4, 1), seed=0, key="data.id")
    with pytest.raises(UserError, match="is no UTF-8 text"):
        load("img/a.png,caf\xe9", encoding="latin-1")


@pytest.mark.parametrize(
    "lines",
    [
        ["id,image_path,timestamp", "1,img/b.png,x", "2,img/none.png,", "3,img/a.png,x", "4,img/b.png,x"],
        ["path,label,class_name,split", "img/b.png,,,fold2", "img/none.png,0,cat,", "img/a.png,,,", "img/b.png,0,x,"],
        ["1,img/b.png,x", "2,img/none.png,", "3,img/a.png,", "4,img/b.png,"],
        ["img/b.png", "img/none.png", "img/a.png", "img/b.png"],
    ],
)
def test_files_alone_are_read_whatever_stands_beside_them(here, lines):
    (here / "t.csv").write_text("\n".join(lines))
    assert listed_files(str(here / "t.csv")) == [str(here / "img" / f"{name}.png") for name in ("b", "none", "a", "b")]


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        (["path,image", "img/a.png,img/b.png"], r"columns that may be the file \(path, image\)"),
        (["id,img/a.png,img/b.png"], "has 3 columns and no line that names them"),
        (["x,y", "img/a,cat"], "has the columns x, y, and none is called file"),
        (["file,x", "img/a.png,1", ",2"], "line 3 of .* names no file"),
        (["img/none.png", "img/none.png"], r"line 1 of .*none\.png, which does not exist \(1 more"),
    ],
)
def test_files_alone_are_one_column(here, lines, wrong):
    (here / "t.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=f"^path: .*{wrong}"):
        listed_files(str(here / "t.csv"))


def test_missing_files_may_be_left_out(load):
    lines = ["img/a.png,cat", "img/none.png,cat", "img/b.png,dog"]
    found = load(*lines, max_bad_images=1)["all"]
    assert read(found) == {0: "cat", 1: "dog"} and len(found.skipped) == 1
