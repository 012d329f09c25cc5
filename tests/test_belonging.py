"""A run folder belongs to one set of classes and one data set."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from kood.data.rules import STRETCHED
from kood.errors import UserError
from kood.pipeline.belonging import FILE, SAMPLE, Belonging, Identity, identity_of, refuse_mixed_classes
from kood.pipeline.prepare import Data
from kood.recipe import load
from tests.conftest import TINY, Cell


def identity(numbers, *, names=("a", "b"), path="/data", shape=(8, 8, 1)):
    """Of a data set whose images are numbers."""
    rng = np.random.default_rng(0).integers(0, 2**63, 20_000)
    every = sorted(f"{int(rng[number]):032x}" for number in numbers)
    source = {"source": "folder", "path": path}
    return Identity(names, source, shape, tuple(every[:SAMPLE]), len(every) <= SAMPLE, STRETCHED, Data.version)


BASE = identity(range(5000))


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (identity(range(5000)), True),
        (identity(range(5000), names=("b", "a")), False),
        (identity(range(9000)), True),  # Images were added.
        (identity(range(300)), True),
        (identity(range(4500, 12_000)), True),  # One path, nearly all of it new.
        (identity(range(6000, 9000)), False),  # One path, another data set.
        (identity(range(6000, 9000), shape=(16, 16, 1)), True),  # One path, which is all that can be compared.
        (identity(range(5000), path="/moved"), True),
        (identity(range(2000, 7000), path="/moved"), True),
        (identity(range(4000, 9000), path="/moved"), False),
        (identity(range(200), path="/moved"), True),
        (identity([*range(80), *range(6000, 6120)], path="/moved"), False),
        (identity(range(5000), path="/moved", shape=(16, 16, 1)), False),
    ],
)
def test_one_data_set_is_known_again(other, same):
    assert BASE.is_same(other) is same and other.is_same(BASE) is same


@pytest.fixture
def folder_data(tmp_path):
    """folder_data("circle", ...) -> the data stage of a folder with these classes, and its run folder."""

    def build(*classes, where="data", seed=0, images=24, transparent=False, **options):
        rng = np.random.default_rng(seed)
        for name in classes:
            (tmp_path / where / name).mkdir(parents=True)
            for number in range(images):
                pixels = rng.integers(0, 256, (8, 8), "uint8")
                image = Image.fromarray(pixels)
                if transparent:
                    image.putalpha(128)
                image.save(tmp_path / where / name / f"{number}.png")
        recipe = tmp_path / "own.toml"
        recipe.write_text(
            f'[data]\nimage_shape = [8, 8, 1]\n[data.id]\nsource = "folder"\npath = "{tmp_path / where}"\n'
        )
        folder = tmp_path / "saved" / "own"
        folder.mkdir(parents=True, exist_ok=True)
        cell = Cell(load(recipe, [f"{k}={v}" for k, v in options.items()]), folder)
        cell["data"].run = cell.work.run
        return cell["data"]

    return build


def test_other_classes_and_other_images_are_refused_and_both_are_named(folder_data):
    first = folder_data("circle", "square")
    Belonging(first.run).accept(first)
    kept = (first.run.folder / FILE).read_bytes()
    other_classes = folder_data("left", "right", where="other")
    with pytest.raises(UserError, match=r"belongs to the classes circle, square .*classes left, right") as raised:
        Belonging(other_classes.run).accept(other_classes)
    assert raised.value.exit_code == 2
    assert "--set name=" in str(raised.value) and "--other-data" in str(raised.value)
    other_images = folder_data("circle", "square", where="third", seed=1)
    with pytest.raises(
        UserError, match=r"belongs to the images of folder .*data; this run is of the images of .*third"
    ):
        Belonging(other_images.run).accept(other_images)
    moved = folder_data("circle", "square", where="moved")
    Belonging(moved.run).accept(moved)
    assert (first.run.folder / FILE).read_bytes() != kept  # It lies elsewhere now.


def test_the_classes_are_those_that_are_served(folder_data):
    data = folder_data("circle", "square")
    Belonging(data.run).accept(data, ["square", "circle"])
    assert json.loads((data.run.folder / FILE).read_bytes())["class_names"] == ["square", "circle"]
    Belonging(data.run).accept(data, ("square", "circle"))
    with pytest.raises(UserError, match=r"the classes square, circle .*circle, square \(.*\) \(in another order\)"):
        Belonging(data.run).accept(data)


def test_other_pixels_of_the_same_files_are_no_other_data(folder_data, monkeypatch):
    first = folder_data("circle", "square", transparent=True)
    Belonging(first.run).accept(first)
    black = folder_data(**{"data.ground": '"black"'})
    assert not set(identity_of(black).digests) & set(identity_of(first).digests)
    Belonging(black.run).accept(black)
    moved = folder_data("circle", "square", where="moved", transparent=True)
    with pytest.raises(UserError, match=r"cannot be compared, as ground changed\)"):
        Belonging(moved.run).accept(moved)
    cropped = folder_data(**{"data.resize": '"crop"', "data.ground": '"black"'})
    aliased = folder_data(**{"data.antialias": "false", "data.ground": '"black"'})
    assert [identity_of(one).why(identity_of(black)) for one in (cropped, aliased, moved)] == [
        f" (their images cannot be compared, as {what} changed)" for what in ("resize", "antialias", "ground")
    ]
    monkeypatch.setattr(Data, "version", 99)
    Belonging(black.run).accept(black)


def test_of_two_data_sets_of_one_name_is_said_what_differs(folder_data):
    first = folder_data("circle", "square")
    Belonging(first.run).accept(first)
    for name in ("circle", "square"):
        shutil.rmtree(first.run.folder.parent.parent / "data" / name)
    other = folder_data("circle", "square", seed=1)
    with pytest.raises(UserError, match=r"folder (\S+); this .* folder \1 \(of the smaller one's images .* has none\)"):
        Belonging(other.run).accept(other)


def test_going_on_with_other_data_keeps_the_earlier_report(folder_data):
    first = folder_data("circle", "square")
    Belonging(first.run).accept(first)
    folder = first.run.folder
    (folder / "1").mkdir()
    names = ["report.json", "report.html", "recipe.toml", "table.csv", "leaderboard.csv", "figures/roc.svg"]
    (folder / "figures").mkdir()
    for name in names:
        (folder / name).write_text(f"the first {name}")
    other = folder_data("left", "right", where="other")
    Belonging(other.run, other_data=True).accept(other)
    for name in names:
        assert (folder / "before-2" / name).read_text() == f"the first {name}" and not (folder / name).exists()
    assert (folder / "1").is_dir()
    assert json.loads((folder / "before-2" / FILE).read_bytes())["class_names"] == ["circle", "square"]
    (folder / "report.json").write_text("the second report.json")
    Belonging(first.run, other_data=True).accept(first)
    assert (folder / "before-2-2" / "report.json").read_text() == "the second report.json"
    Belonging(first.run, other_data=True).accept(first)  # What belongs there sets nothing aside.
    assert sorted(path.name for path in folder.glob("before-*")) == ["before-2", "before-2-2"]


@pytest.mark.parametrize("key", ["class_names", "source", "image_shape", "digests", "is_whole", "framing", "version"])
def test_a_file_that_this_kood_did_not_write_is_told(folder_data, key):
    data = folder_data("circle", "square")
    Belonging(data.run).accept(data)
    file = data.run.folder / FILE
    known = json.loads(file.read_bytes())
    wrong = [] if key in ("is_whole", "version") else [{**known, key: 3.5}]
    for other in (*wrong, {one: value for one, value in known.items() if one != key}, [known]):
        file.write_text(json.dumps(other))
        with pytest.raises(UserError, match=r"belongs_to\.json: this is not what this version of kood writes there"):
            Belonging(data.run).accept(data)


def test_a_cell_of_other_classes_publishes_nothing(folder_data):
    first = folder_data("circle", "square")
    belonging = Belonging(first.run)
    belonging.accept(first)
    belonging.accept(folder_data("circle", "square", where="moved"))
    with pytest.raises(UserError, match=r"its first cell is of the classes circle, square.*serve\.export = false"):
        belonging.accept(folder_data("left", "right", where="other"))
    belonging.accept(folder_data("up", "down", where="third", **{"serve.export": "false"}))
    assert json.loads((first.run.folder / FILE).read_bytes())["class_names"] == ["circle", "square"]


def test_a_matrix_over_classes_is_told_before_it_trains(tmp_path):
    recipe = tmp_path / "table.toml"
    recipe.write_text(TINY + '[matrix]\n"data.id.classes" = [[0, 1, 2], [0, 1, 3]]\n')
    with pytest.raises(UserError, match=r"matrix: .*serve\.export = false"):
        refuse_mixed_classes([cell for _, cell in load(recipe).cells()])
    refuse_mixed_classes([cell for _, cell in load(recipe, ["serve.export=false"]).cells()])
    refuse_mixed_classes([cell for _, cell in load(recipe, ["matrix={seed=[1,2]}"]).cells()])


def test_the_identity_of_a_run_is_of_all_its_images(folder_data):
    whole = identity_of(folder_data("circle", "square", **{"data.id.count": 20}))
    assert len(whole.digests) == 48 and whole.is_whole and list(whole.digests) == sorted(whole.digests)
