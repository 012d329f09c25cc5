"""The shipped recipes, run as smoke runs on small stand-ins for the data that they name.

The stand-ins have the form of the real thing: folders of images, OpenOOD's lists, what `keras.datasets` returns. Only
TensorFlow Datasets' sets are taken from a folder in place of theirs.
"""

import io
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from PIL import Image
from rich.console import Console

from kood.pipeline import run
from kood.recipe import Recipe, load

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("as_written")]

#: Those that another one stands for: the same but for their head, their arms or their size.
ALIKE = {
    *("adacos_oe", "cosface_oe", "sphereface_oe"),
    *("digits_arcface_oe", "digits_controls", "digits_exposure", "digits_softmax"),
    *("cifar10_32px", "cifar10_small", "outliers_search"),
    "openood_cifar100",
}
SHIPPED = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(path for path in SHIPPED.glob("*.toml") if path.stem not in ALIKE)
DOWNLOADED = {
    "cifar10": ((32, 32, 3), 10),
    "cifar100": ((32, 32, 3), 100),
    "mnist": ((28, 28), 10),
    "fashion_mnist": ((28, 28), 10),
}
FROM_TFDS = {"svhn", "dtd", "places365", "tfds"}


def pretend_images(rng, shape, classes, each):
    """Noise about a colour of its class; (classes * each, ...) pixels and their classes, one after the other."""
    labels = np.tile(np.arange(classes), each)
    colours = rng.integers(40, 216, (classes, 1, 1, *shape[2:]))
    noise = rng.normal(0, 25, (len(labels), *shape))
    return (colours[labels] + noise).clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory):
    """A folder with `images` (what $KOOD_DATA names), `openood` ($OPENOOD) and `backbone.keras` ($KOOD_BACKBONE)."""
    import keras

    place, rng = tmp_path_factory.mktemp("stand_ins"), np.random.default_rng(0)

    def write(folder, classes, each, shape=(32, 32, 3)):
        images, labels = pretend_images(rng, shape, classes, each)
        for index in range(classes):
            (folder / f"class_{index:03d}").mkdir(parents=True, exist_ok=True)
        files = [folder / f"class_{label:03d}" / f"{row:05d}.png" for row, label in enumerate(labels)]
        for file, image in zip(files, images, strict=True):
            Image.fromarray(image).save(file)
        return files, labels

    write(place / "images" / "cifar10" / "train", 10, 150)
    write(place / "images" / "cifar10" / "test", 10, 20)
    write(place / "images" / "tiny_imagenet_near", 85, 1)
    write(place / "images" / "tiny_imagenet_outliers", 85, 2)
    write(place / "images" / "mnist", 10, 5, (28, 28))
    for part, each in (("train", 40), ("validation", 5), ("test", 5)):
        write(place / "images" / "clothing" / part, 10, each, (60, 45, 3))
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(8, 9, strides=8, activation="relu")(keras.layers.Rescaling(1 / 255)(image))
    keras.Model(image, keras.layers.GlobalAveragePooling2D()(x)).save(place / "backbone.keras")
    root = place / "openood" / "images_classic"
    for benchmark, classes in {"cifar10": 10, "cifar100": 100}.items():
        lists = place / "openood" / "benchmark_imglist" / benchmark
        lists.mkdir(parents=True)
        other = "cifar100" if benchmark == "cifar10" else "cifar10"
        sets = {"train": (benchmark, 1200 // classes), "test": (benchmark, 200 // classes)}
        sets |= {f"test_{name}": (name, 5) for name in (other, "tin", "mnist", "svhn", "texture", "places365")}
        sets["val_tin"] = ("tin", 2)
        for name, (images, each) in sets.items():
            known = images == benchmark
            files, labels = write(root / benchmark / name / images, classes if known else 10, each)
            lines = [
                f"{file.relative_to(root)} {label if known else -1}\n"
                for file, label in zip(files, labels, strict=True)
            ]
            (lists / f"{name}_{images}.txt" if known else lists / f"{name}.txt").write_text("".join(lines))
    return place


def cut_down(path, folder):
    """A recipe's tree: TFDS's sets from a folder, the first and last arm of a matrix, the last of each other axis."""
    tree = tomllib.loads(path.read_text())
    for group in ("near", "far"):
        for source in tree["data"].get(group, {}).values():
            if source["source"] in FROM_TFDS:
                source |= {"source": "folder", "path": str(folder)}
    for key, values in tree.get("matrix", {}).items():
        tree["matrix"][key] = [values[0], values[-1]] if key in ("arm", "outliers") else values[-1:]
    if tree.get("classifier", {}).get("backbone") != "file":
        # ResNet-18 takes a minute to compile; the rate of some is made for batch normalisation.
        sgd = tree.get("train", {}).get("optimizer") == "sgd"
        tree.setdefault("classifier", {})["backbone"] = "resnet8" if sgd else "small_cnn"
    if "folds" in tree["data"].get("hold_out", {}):
        tree["data"]["hold_out"]["folds"] = 1
    options = tree.get("diffusion", {}).get("options", {})
    if "blocks" in options:  # A small one of the same parts.
        options |= {"width": 16, "blocks": 1}
    return tree


def test_the_recipes_of_openood_are_one_but_for_their_data():
    one, other = ((SHIPPED / f"openood_cifar{classes}.toml").read_text() for classes in (10, 100))
    exchanged = one.replace("cifar100", "CIFAR").replace("cifar10", "cifar100").replace("CIFAR", "cifar10")
    assert tomllib.loads(exchanged) == tomllib.loads(other) != tomllib.loads(one)


def met_once(cells):
    """Cells of a table in which every setting of each axis stands at least once, and no more than that takes."""
    axes = {axis: list(dict.fromkeys(labels[axis] for labels, _ in cells)) for axis in cells[0][0]}
    places = [{axis: values.index(labels[axis]) for axis, values in axes.items()} for labels, _ in cells]
    return [
        cell
        for cell, place in zip(cells, places, strict=True)
        if all(place[axis] == max(place.values()) % len(values) for axis, values in axes.items())
    ]


def test_every_setting_is_met():
    """Of the largest table, whose smoke run leaves one seed of three."""
    cells = load(SHIPPED / "paper_table.toml", quick=True).cells()
    some = met_once(cells)
    for axis in cells[0][0]:
        assert {labels[axis] for labels, _ in some} == {labels[axis] for labels, _ in cells}
    assert len(some) < len(cells) / 4


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_smoke_run_ends_in_its_report(path, stand_ins, tmp_path, monkeypatch):
    import keras

    monkeypatch.setenv("KOOD_DATA", str(stand_ins / "images"))
    monkeypatch.setenv("OPENOOD", str(stand_ins / "openood"))
    monkeypatch.setenv("KOOD_BACKBONE", str(stand_ins / "backbone.keras"))
    for name, (shape, classes) in DOWNLOADED.items():
        rng = np.random.default_rng(len(name))
        parts = [pretend_images(rng, shape, classes, each) for each in (1500 // classes, 200 // classes)]
        monkeypatch.setattr(getattr(keras.datasets, name), "load_data", lambda parts=parts: parts)
    recipe = tmp_path / path.name
    recipe.write_text(tomli_w.dumps(cut_down(path, stand_ins / "images" / "mnist")))
    every = Recipe.cells
    monkeypatch.setattr(Recipe, "cells", lambda self: met_once(every(self)))
    report = run(recipe, quick=True, saved=tmp_path, console=Console(file=io.StringIO()))
    cells = load(recipe, quick=True).cells()
    folder = tmp_path / f"{path.stem}-quick"
    assert report["quick"] and not report.get("failed")
    assert len(report.get("cells", [report])) == len(cells)
    assert (folder / "report.html").is_file() and (folder / "report.json").is_file()
    for made, (_, cell) in zip(report.get("cells", [report]), cells, strict=True):
        assert set(made["scores"][made["headline_score"]]) >= {
            *cell.data.near, *cell.data.far, *(["near"] if cell.data.near else []), "far"
        }  # fmt: skip
        assert all(np.isfinite(figure) for figure in made["scores"][made["headline_score"]]["far"].values())
