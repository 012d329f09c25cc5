"""`kood new`: what it sees in a folder, what it chooses, and that the recipe can be run."""

import contextlib
import dataclasses
import io
import math
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from kood.conformal import refuse_too_few
from kood.data import load_id, load_ood
from kood.data.dealing import deal
from kood.data.decode import decode_image
from kood.errors import UserError
from kood.pipeline.held_out import folds_of
from kood.recipe import load
from kood.recipe.data_sections import HoldOut
from kood.starter import Survey, new_recipe, survey
from kood.starter.choices import FEWEST, TEST, Choices, _resize
from kood.starter.images import Machine, kinds_of
from kood.starter.pretrained import Pretrained

CPU, GPU = Machine(2, False), Machine(8, True)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder, and neither a network nor weights in Keras's cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr("kood.starter.pretrained._is_reachable", lambda: False)


def fill(folder, count, size=(20, 30), mode="RGB", value=(200, 30, 30)):
    """So many images of height x width in a folder, no two files of one content."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new(mode, size[::-1], value).save(f"{folder}/{i:04}.png", dpi=(72 + i, 72))


def made(*arguments, **options):
    out = io.StringIO()
    file = new_recipe(*arguments, machine=CPU, console=Console(file=out, width=200), **options)
    return load(file), out.getvalue()


def test_a_recipe_of_a_plain_folder():
    for name, count in (("cat", 150), ("dog", 120), ("owl", 130)):
        fill(f"pets/{name}", count)
    fill("zoo", 12)
    recipe, text = made("pets", ["zoo"], minutes=10)
    assert recipe.name == "pets" and recipe.data.id.path == str(Path("pets").absolute())
    assert recipe.data.shape == (20, 28, 3) and recipe.data.id.classes is None and recipe.data.id.test == 0.2
    assert recipe.data.near["zoo"].path == str(Path("zoo").absolute()) and set(recipe.data.far) == {"uniform", "blobs"}
    assert recipe.outliers.use == ["patch_shuffle"] and recipe.outliers.amplitude == "swapped"
    assert recipe.head.name == "softmax" and recipe.serve.accept == 0.95 and not recipe.needs_diffusion
    assert "cat 150, dog 120, owl 130" in text and "20x30 pixels" in text and "kood run pets.toml" in text
    written = Path("pets.toml").read_text().splitlines()
    assert all(len(line) <= 120 for line in written if not line.startswith("path"))


@pytest.fixture
def photos(monkeypatch):
    """Photographs of four classes, and no time spent on timing."""
    monkeypatch.setattr("kood.starter.recipe.tried", lambda network, _: (network, 0.02))
    for name in "abcd":
        fill(f"photos/{name}", 60, (120, 160))


def test_photographs_begin_with_weights_in_the_cache_of_keras(photos):
    Path("keras/models").mkdir(parents=True)
    Path("keras/models/resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5").touch()
    recipe, text = made("photos")
    assert recipe.classifier.backbone == "keras_applications" and recipe.classifier.is_frozen
    assert recipe.classifier.options == {"name": "ResNet50V2", "weights": "imagenet"}
    assert recipe.data.shape == (224, 224, 3) and recipe.data.resize == "crop" and recipe.data.hold_out.folds == 5
    assert recipe.head.name == "cosface" and recipe.evaluate.headline == "gen"
    written = Path("photos.toml").read_text()
    assert (
        "its ImageNet weights are in Keras's cache\n" in written and "each image passes it once, in about " in written
    )
    assert "the middle is kept: half lose 25% or less, 1 in 20 loses 25% or more\n" in written
    assert "No pretrained weights" not in text
    assert [line for line in written.splitlines() if len(line) > 120 and not line.startswith("path")] == []
    for line in ('train = "last"', "backbone_rate = 0.5", "frozen_statistics = true"):
        written = written.replace(f"# {line}", line)
    Path("photos.toml").write_text(written.replace('train = "head"', ""))
    assert load(Path("photos.toml")).classifier.train == "last"


@pytest.mark.parametrize(("images", "told"), [(8, True), (100, True), (600, False)])
def test_few_photographs_are_passed_over_more_often(photos, monkeypatch, images, told):
    monkeypatch.setattr("kood.starter.pretrained._is_reachable", lambda: True)
    for name in "abcd":
        fill(f"some/{name}", images, (120, 160))
    recipe, _ = made("some")
    learned = 4 * images * (1 - recipe.data.id.test)
    trained = learned * (1 - recipe.data.id.validation - recipe.data.id.calibration)
    wanted = min(100, max(30, math.ceil(500 * recipe.train.batch_size / trained)))
    assert recipe.train.epochs == wanted and (wanted > 30) == told
    assert ("# of so few images a pass has few steps" in Path("some.toml").read_text()) == told


def test_photographs_begin_with_weights_that_can_be_fetched(photos, monkeypatch):
    monkeypatch.setattr("kood.starter.pretrained._is_reachable", lambda: True)
    recipe, _ = made("photos")
    assert recipe.classifier.options["name"] == "EfficientNetV2B0"
    assert "the first run fetches its ImageNet weights" in Path("photos.toml").read_text()


def test_without_weights_it_says_what_that_costs(photos):
    recipe, text = made("photos")
    assert recipe.classifier.backbone == "resnet8" and not recipe.classifier.is_frozen
    assert "No pretrained weights are at hand" in text and "Give --backbone FILE" in text


def test_small_images_need_no_pretrained_network(monkeypatch):
    monkeypatch.setattr("kood.starter.pretrained._is_reachable", lambda: True)
    for name in "ab":
        fill(f"small/{name}", 40, (95, 300))
    recipe, text = made("small")
    assert not recipe.classifier.is_frozen and "pretrained" not in text


def test_a_network_of_the_user_is_taken_at_its_size(photos):
    image = keras.Input((64, 64, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(image))
    keras.Model(image, keras.layers.Dense(5, activation="softmax")(x)).save("own.keras")
    recipe, _ = made("photos", backbone="own.keras")
    assert recipe.classifier.options == {"path": str(Path("own.keras").absolute())}
    assert recipe.data.shape == (64, 64, 3)


@keras.saving.register_keras_serializable(package="test_starter")
class Averaging(keras.Model):
    """A network that is no graph of layers."""

    def build(self, shape):
        self.built = True

    def call(self, images):
        return keras.ops.mean(images, (1, 2))


def averaging(*shape):
    """A network whose features are the mean colour."""
    image = keras.Input(shape)
    return keras.Model(image, keras.layers.GlobalAveragePooling2D()(image), name="net")


def two_inputs():
    image, mask = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    return keras.Model([image, mask], keras.layers.multiply([image, mask]), name="net")


def subclassed():
    model = Averaging()
    model.build((None, 24, 32, 3))
    model(np.zeros((1, 24, 32, 3), "float32"))
    return model


@pytest.mark.keras
@pytest.mark.parametrize(
    ("network", "file", "mode", "shape", "why"),
    [
        (lambda: averaging(48, 64, 3), "own.keras", "RGB", (48, 64, 3), "the only size that the network takes"),
        (lambda: averaging(48, 64, 3), "own.h5", "RGB", (48, 64, 3), "the only size that the network takes"),
        (lambda: averaging(48, 64, 3), "own.keras", "L", (48, 64, 1), "the only size that the network takes"),
        (lambda: averaging(48, 64, 1), "own.keras", "RGB", (48, 64, 1), "that the network takes, and in grey\n"),
        (subclassed, "own.keras", "RGB", (24, 32, 3), "the only size that the network takes"),
        (lambda: averaging(None, None, 3), "own.keras", "RGB", (224, 224, 3), "what such networks are usually given"),
    ],
)  # fmt: skip
def test_the_network_decides_the_size(network, file, mode, shape, why):
    for name in "ab":
        fill(f"photos/{name}", 10, (120, 160), mode, *([90] if mode == "L" else []))
    network().save(file)
    recipe, _ = made("photos", backbone=file)
    assert recipe.data.shape == shape
    assert why in Path("photos.toml").read_text()


def stripped(file):
    """A network that has learned from pixels of -1..1, and whose layers alone do not say so."""
    image = keras.Input((64, 64, 3))
    x = keras.layers.Conv2D(8, 3, use_bias=False, name="first")(image)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(keras.layers.BatchNormalization(name="norm")(x))
    model = keras.Model(image, keras.layers.Dense(5, activation="softmax")(x))
    draw = np.random.default_rng(0)
    pixels = np.repeat(np.repeat(draw.uniform(-1, 1, (8, 8, 8, 3)), 8, 1), 8, 2).astype("float32")
    seen = np.asarray(keras.Model(image, model.get_layer("first").output)(pixels))
    norm = model.get_layer("norm")
    norm.moving_mean.assign(seen.mean((0, 1, 2)))
    norm.moving_variance.assign(seen.var((0, 1, 2)))
    model.save(file)


@pytest.mark.keras
def test_what_a_network_takes_is_asked_for_and_written_down():
    for name in "ab":
        fill(f"photos/{name}", 40, (120, 160))
    stripped("own.keras")
    with pytest.raises(UserError, match=r"^--preprocess none: .*; give --preprocess -1\.\.1, or say .* --preprocess$"):
        made("photos", backbone="own.keras")
    with pytest.raises(UserError, match=r"^--features nope: \S+ has no such layer.*pool"):
        made("photos", backbone="own.keras", options={"preprocess": "-1..1", "layer": "nope"})
    assert not Path("photos.toml").exists()
    told = {"preprocess": "-1..1", "layer": "pool", "imports": ["json"]}
    recipe, text = made("photos", backbone="own.keras", options=told)
    assert recipe.classifier.options == {"path": str(Path("own.keras").absolute()), **told}
    assert "Features: the output of the layer 'pool' (8 numbers)\n" in text
    assert "\n# features: the output of the layer 'pool' (8 numbers)\n" in Path("photos.toml").read_text()


@pytest.mark.keras
@pytest.mark.backend
def test_a_network_whose_features_numpy_cannot_read_where_they_lie_is_timed():
    for name in "ab":
        fill(f"photos/{name}", 40, (120, 160))
    # Under torch: bfloat16 here, what lies on a GPU elsewhere.
    image, precision = keras.Input((64, 64, 3)), "mixed_bfloat16"
    x = keras.layers.Conv2D(4, 3, dtype=precision)(image)
    keras.Model(image, keras.layers.GlobalAveragePooling2D(dtype=precision)(x)).save("own.keras")
    recipe, _ = made("photos", backbone="own.keras")
    assert recipe.data.shape == (64, 64, 3)


@pytest.mark.keras
def test_a_network_that_ends_in_something_else_than_features_is_refused():
    for name in "ab":
        fill(f"photos/{name}", 40, (120, 160))
    image = keras.Input((64, 64, 3))
    x = keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D(name="pool")(image))
    keras.Model(image, keras.layers.Softmax()(keras.layers.Rescaling(0.5)(x))).save("own.keras")
    with pytest.raises(UserError, match=r"^--backbone \S+own.keras: .* name the layer .* are with --features$"):
        made("photos", backbone="own.keras")


def test_an_option_of_the_network_without_one(photos):
    with pytest.raises(UserError, match="^--features: says something of --backbone FILE, and none is given$"):
        made("photos", options={"layer": "pool"})


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda file: None, "--backbone {} does not exist; give a .keras file, which model.save(...) writes"),
        (lambda file: file.write_text("no"), "--backbone {} is no .keras file, or it is damaged; give one that model"),
        (lambda file: file.mkdir(), "--backbone {} is a folder; give a .keras file"),
        (lambda file: averaging(64, 64, 4).save(file), "--backbone {}: takes images of 4 channels; give a network of"),
        (lambda file: averaging(3, 32, 32).save(file),
         "--backbone: net takes its channels first, (None, 3, 32, 32); images are (batch, height, width, channels): "
         "put keras.layers.Permute((3, 1, 2)) in front of it"),
        (lambda file: two_inputs().save(file),
         "--backbone: net takes (None, 8, 8, 3), (None, 8, 8, 3); one input of images is needed"),
    ],
)  # fmt: skip
@pytest.mark.keras
def test_a_network_that_is_none_is_one_message_and_nothing_is_written(photos, write, told):
    file = Path("own.keras")
    write(file)
    with pytest.raises(UserError) as refused:
        made("photos", backbone="own.keras")
    assert str(refused.value).startswith(told.format(file.absolute()))
    assert not Path("photos.toml").exists()


@pytest.mark.parametrize(
    ("sizes", "resize"),
    [
        ([(100, 100)], "stretch"), ([(100, 109)], "stretch"), ([(100, 150)], "crop"),
        ([(150, 100), (100, 150)], "crop"), ([(100, 200)], "pad"), ([(100, 100)] * 3 + [(100, 300)], "crop"),
    ],
)  # fmt: skip
def test_how_images_are_resized_follows_what_would_be_lost(sizes, resize):
    """Of images of two kinds the median is a size that none of them has."""
    for name in "ab":
        for number, size in enumerate(sizes):
            fill(f"x/{name}/{number}", 10, size)
    network = Pretrained("file", {}, (224, 224), "")
    assert Choices(survey(Path("x")), CPU, 30, network).resize == resize


def test_label_mixup_needs_one_word():
    for name in "ab":
        fill(f"two/{name}", 40)
    recipe = load(new_recipe("two", machine=CPU), ['outliers.use=["label_mixup"]'])
    assert recipe.needs_diffusion and recipe.diffusion.minutes == 18 and recipe.head.name == "softmax"


@pytest.mark.parametrize(
    ("size", "machine", "shape"),
    [
        ((28, 28), CPU, (28, 28)), ((32, 36), CPU, (28, 28)), ((480, 640), CPU, (24, 32)), ((480, 640), GPU, (48, 64)),
        ((5, 5), CPU, (8, 8)), ((10, 100), CPU, (8, 32)), ((64, 64), GPU, (64, 64)),
    ],
)  # fmt: skip
def test_the_image_shape_follows_the_images_and_the_machine(size, machine, shape):
    for name in "ab":
        fill(f"x/{name}", 10, size)
    assert Choices(survey(Path("x")), machine, 30).image_shape == (*shape, 3)


@pytest.mark.parametrize(
    ("size", "minutes", "rotation"), [((16, 16), 1, True), ((16, 24), 1, False), ((32, 32), 0.01, False)]
)
def test_rotations_are_learned_of_square_images_if_there_is_time_to_spare(size, minutes, rotation):
    for name in "ab":
        fill(f"x/{name}", 40, size)
    found = survey(Path("x"))
    chosen, longer = Choices(found, CPU, minutes), Choices(found, CPU, 60)
    assert chosen.rotation == rotation and chosen.epochs >= 5 and longer.epochs == 100
    assert chosen.takes >= minutes and longer.takes < 10
    recipe = load(new_recipe("x", minutes=60, machine=CPU))
    assert f"# Time: about {longer.takes} minutes on 2 CPU cores." in Path("x.toml").read_text().splitlines()
    assert recipe.train.auxiliary.name == ("rotation" if size[0] == size[1] else "none")


def test_grey_images_stay_grey_whatever_their_mode():
    fill("x/a", 9, mode="L", value=7)
    fill("x/b", 9, mode="RGB", value=(9, 9, 9))
    assert Choices(survey(Path("x")), CPU, 30).image_shape[2] == 1
    fill("x/b", 1, mode="RGB", value=(9, 9, 10))
    assert Choices(survey(Path("x")), CPU, 30).image_shape[2] == 3


@pytest.mark.parametrize(("each", "rows"), [(8, 8), (20, 16), (40, 32), (700, 64)])
def test_a_batch_has_no_more_rows_than_there_are_training_images(each, rows):
    for name in "ab":
        fill(f"x/{name}", 1)
    found = survey(Path("x"))
    chosen = Choices(type(found)(found.names, (each, each), (), found.shapes, False, ()), CPU, 30)
    assert chosen.batch_size == rows
    rest = each - round(0.2 * each)
    assert 2 * (rest - sum(max(1, round(share * rest)) for share in (chosen.validation, chosen.calibration))) >= rows


@pytest.mark.parametrize(("each", "accept"), [(2000, 0.95), (130, 0.95), (50, 0.9), (25, 0.8), (8, 0.5)])
def test_the_threshold_asks_no_more_than_the_images_can_guarantee(each, accept, monkeypatch):
    for name in "ab":
        fill(f"x/{name}", 1)
    found = survey(Path("x"))
    chosen = Choices(type(found)(found.names, (each, each), (), found.shapes, False, ()), CPU, 30)
    assert chosen.accept == accept
    images = chosen.calibration * each * 2 * 0.8
    assert images >= accept / (1 - accept) and chosen.validation + chosen.calibration + 0.2 < 1


def dealt(found, chosen):
    """The labels of the calibration and of the training part, as a run deals the images of these classes."""
    labels = np.repeat(np.arange(len(chosen.classes)), [n for n in found.train if n >= FEWEST])
    rows = units = np.arange(len(labels))
    expected = np.bincount(labels).astype(float)
    if not found.test:
        rows, expected = deal(labels, units, rows, (TEST,), 0, "test", 3, least=1)[1], expected * (1 - TEST)
    shares = chosen.calibration, chosen.validation
    calibration, _, train = deal(labels, units, rows, shares, 0, "calibration and validation", expected=expected)
    return labels[calibration], labels[train]


def many_counts():
    """Images of each class: alike ones, some sets of which a fold once had too few images, and uneven ones."""
    draw = np.random.default_rng(0)
    yield from ([each] * classes for classes in (2, 3, 4, 5, 6, 8, 10, 25) for each in range(8, 60))
    yield from ([120, 20, 20, 20], [55, 20, 15, 10], [300, 40, 40, 40, 40], [1000, 8, 8, 8])
    for total in (100, 150, 200, 300, 500, 1000):
        for _ in range(40):
            shares = draw.dirichlet(np.full(draw.integers(4, 10), 2.0))
            yield np.maximum(FEWEST, shares * total).astype(int).tolist()


@pytest.mark.parametrize("own_test", [False, True])
def test_what_is_chosen_suits_every_fold(own_test):
    network = Pretrained("file", {"path": "x"}, (224, 224), "", True)
    shapes, folds = np.tile([300, 400], (50, 1)), 0
    for counts in many_counts():
        names = tuple(f"c{number}" for number in range(len(counts)))
        found = Survey(names, tuple(counts), (3,) * len(counts) if own_test else (), shapes, False, ())
        chosen = Choices(found, CPU, 30, network)
        calibration, train = dealt(found, chosen)
        held = [()]
        if chosen.folds:
            held += folds_of(HoldOut(folds=chosen.folds), [str(number) for number in range(len(counts))], 0)
        for fold in held:
            gone = [int(number) for number in fold]
            refuse_too_few(int((~np.isin(calibration, gone)).sum()), chosen.accept)
            assert (~np.isin(train, gone)).sum() >= chosen.batch_size, (counts, fold)
        folds += len(held) - 1
    assert folds > 2000


def test_that_folds_ask_for_less_is_told(photos, monkeypatch):
    monkeypatch.setattr("kood.starter.pretrained._is_reachable", lambda: True)
    for name in "abcde":
        fill(f"five/{name}", 38, (120, 160))
    recipe, _ = made("five")
    assert recipe.serve.accept == 0.9 and recipe.data.hold_out.folds == 5
    assert (
        "about 30 images set the threshold, 18 or more in a fold; 90% leaves room, 95% needs 19 at least"
        in Path("five.toml").read_text()
    )


def test_a_test_folder_is_taken_as_it_is():
    for part, count in (("train", 30), ("test", 7)):
        for name in "ab":
            fill(f"x/{part}/{name}", count, value=(count, 30, 30))
    found = survey(Path("x"), to_learn=True)
    assert found.train == (30, 30) and found.test == (7, 7)
    assert "test = " not in new_recipe("x", machine=CPU).read_text()


def test_classes_that_could_not_be_tested_are_left_out():
    for name in "abc":
        fill(f"x/train/{name}", 40)
        fill(f"x/train/few{name}", 3)
    for name in "ab":
        fill(f"x/test/{name}", 5, value=(30, 200, 30))
    recipe, text = made("x")
    assert recipe.data.id.classes == ["a", "b"]
    few = "Left out, with fewer than 8 images: fewa, fewb, fewc"
    untested = "Left out, with no images in the test part: c"
    assert few in text and untested in text
    assert f"# {few}\n# {untested}\nclasses = " in Path("x.toml").read_text()
    for file in Path("x/test/b").iterdir():
        file.unlink()
    Path("x/test/b").rmdir()
    with pytest.raises(UserError, match="^1 of 6 classes have 8 images or more and some in the test part; two"):
        made("x", force=True)


def test_a_validation_folder_is_taken_as_it_is_and_notes_are_printed():
    for part, count in (("train", 30), ("Val", 5)):
        for name in "ab":
            fill(f"x/{part}/{name}", count, value=(count, 30, 30))
    fill("x/train/a/@eaDir", 3)
    Path("x/train/b/notes.txt").write_text("x")
    recipe, text = made("x")
    assert "validation images  10 of their own" in text and "a 30, b 30" in text
    assert "1 folder passed over: 1 @eaDir" in text and "1 file passed over: 1 .txt" in text
    written = Path("x.toml").read_text()
    assert "validation =" not in written and "test = 0.2" in written
    assert survey(Path("x"), to_learn=True).validation == (5, 5) and recipe.data.id.path == str(Path("x").absolute())


def test_only_what_is_to_learn_needs_a_part_to_train_on():
    for name in ("pets/a", "pets/b", "zoo/val/a", "zoo/test/a", "zoo/test/b"):
        fill(name, 40)
    _, text = made("pets", ["zoo"])
    assert "near-OOD zoo  80 images" in text
    with pytest.raises(UserError, match="has test and validation but no train"):
        made("zoo")


def test_of_other_images_those_are_looked_at_and_counted_that_are_tested_on():
    for name in ("pets/a", "pets/b", "zoo/train/c"):
        fill(name, 40)
    fill("zoo/test/c", 12, (40, 60))
    Path("zoo/train/c/0000.png").write_bytes(b"no image")
    for file in ("0003.png", "0007.png"):
        Path(f"zoo/test/c/{file}").write_bytes(b"no image")
    recipe, text = made("pets", ["zoo"])
    assert "near-OOD zoo  12 images" in text and "2 of these cannot be read" in text and "test/c/0003.png" in text
    near = recipe.data.near["zoo"]
    assert near.max_bad_images == 2 and len(load_ood(near, recipe.data.shape, seed=0, key="data.near.zoo")) == 10
    for file in Path("zoo/test/c").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(UserError, match="none of 12 files looked at can be read"):
        made("pets", ["zoo"], force=True)


def test_classes_without_images_enough_that_differ_and_can_be_read_are_left_out():
    for name, count in (("a", 20), ("b", 20), ("pointers", 12), ("hardly", 12), ("same", 12)):
        fill(f"x/{name}", count)
    for number in range(12):
        Path(f"x/pointers/{number:04}.png").write_text(f"version https://git-lfs.github.com/spec/v1\nsize {number}\n")
        Path(f"x/same/{number:04}.png").write_bytes(Path("x/same/0000.png").read_bytes())
    for number in range(5):
        Path(f"x/hardly/{number:04}.png").write_bytes(b"no image")
    found = survey(Path("x"), to_learn=True)
    assert found.names == ("a", "b", "hardly", "pointers", "same") and found.train == (20, 20, 12, 12, 12)
    assert found.learnable == (20, 20, 7, 0, 1)
    recipe, text = made("x")
    assert "Left out, with fewer than 8 different images that can be read: hardly, pointers, same" in text
    assert recipe.data.id.classes == ["a", "b"]
    for name in "ab":
        fill(f"x/{name}", 3)
        for file in sorted(Path(f"x/{name}").iterdir())[3:]:
            file.unlink()
    with pytest.raises(UserError, match="^0 of 5 classes have 8 different images or more that can be read; two"):
        made("x", force=True)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")
@pytest.mark.parametrize("name", ["moves.gif", "pages.tif"])
def test_a_file_that_is_cut_short_after_its_first_picture_is_read(name):
    noise = Image.effect_noise((12, 12), 90).convert("RGB")
    noise.save(name, save_all=True, append_images=[noise.rotate(90), noise.rotate(180)])
    whole, kinds = Path(name).read_bytes(), []
    for number, folder in enumerate("ab"):
        fill(f"x/{folder}", 10)
        for cut in range(len(whole) // 3 + number, len(whole), 13):
            Path(name).write_bytes(whole[:cut])
            with contextlib.suppress(UserError):
                decode_image(name)
                kinds.append(kinds_of(name)[1])
        Path(f"x/{folder}/{name}").write_bytes(whole[: 2 * len(whole) // 3])
    assert len(kinds) > 30 and set(kinds) <= {("several pictures",), ()}
    _, text = made("x")
    assert "2 several pictures: the first is taken" in text


def test_a_recipe_of_tables():
    fill("img", 40)
    fill("other", 12)
    lines = [f"img/{i:04}.png,{'ab'[i % 2]}" for i in range(40)]
    Path("labels.csv").write_text("\n".join(["file,label", *lines]), encoding="utf-8-sig")
    Path("zoo.txt").write_text("".join(f"other/{i:04}.png\n" for i in range(12)))
    recipe, text = made("labels.csv", ["zoo.txt"])
    assert recipe.name == "labels" and recipe.data.id.source == recipe.data.near["zoo"].source == "table"
    assert recipe.data.id.path == str(Path("labels.csv").absolute())
    assert "a 20, b 20" in text and "12 images" in text
    with pytest.raises(UserError, match="names images but no classes"):
        made("zoo.txt")


@pytest.mark.parametrize(
    ("lines", "fix"),
    [
        (["file,a,b", "img/0000.png,0,1"],
         "none is called label; call one of them so in the first line, or write columns = { label = ... } into a recipe"
         " of your own"),
        (["file,label,class", "img/0000.png,0,1"],
         "several columns that may be the label (label, class); call the others otherwise in the first line, or write "
         "columns = { label = 'label' } into a recipe of your own"),
        (["file,label", "gone.png,0"], "put the table into the folder that the files are relative to"),
        (["file,label", "https://me:secret@host/a.png,0"],
         "line 2 of HERE/labels.csv names the URL https://***@host/a.png; URLs are not fetched: download the images, "
         "and name their files"),
        (["file,label", "C:\\gone.png,0"], "; name it relative to HERE"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table_can_be_mended_without_a_recipe(lines, fix):
    fill("img", 1)
    Path("labels.csv").write_text("\n".join(lines))
    with pytest.raises(UserError) as refused:
        made("labels.csv")
    assert str(refused.value).endswith(fix.replace("HERE", str(Path.cwd())))


def test_what_is_not_clean_is_named():
    fill("x/a", 20)
    fill("x/b", 20)
    fill("x/few", 3)
    Path("x/a/text.png").write_text("no image")
    whole = Path("x/a/0000.png").read_bytes()
    Path("x/b/cut.png").write_bytes(whole[: len(whole) // 2])
    Path("x/b/empty.png").write_bytes(b"")
    Path("x/b/notes.txt").write_text("passed over")
    Image.new("CMYK", (30, 20)).save("x/b/print.jpg")
    Image.new("P", (30, 20)).save("x/b/palette.png")
    Image.fromarray(np.full((20, 30), 60_000, np.uint16)).save("x/b/deep.png")
    Image.new("L", (1, 1)).save("x/b/dot.png")
    turned = Image.new("RGB", (10, 40))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save("x/b/turned.jpg", exif=exif)
    found = survey(Path("x"))
    assert {Path(file).name for file, _ in found.unreadable} == {"text.png", "cut.png", "empty.png"}
    assert found.train == (21, 27, 3) and [10, 40] in found.shapes.tolist() and [1, 1] in found.shapes.tolist()
    recipe, text = made("x")
    assert "1 file passed over: 1 .txt" in text
    assert "3 of these cannot be read; a run leaves them out" in text and "text.png" in text
    assert recipe.data.id.max_bad_images == 3
    assert "fewer than 8 images: few" in text and recipe.data.id.classes == ["a", "b"]


def test_only_some_of_many_files_are_opened(monkeypatch):
    opened = []

    def decoding(file, size):
        opened.append(file)
        return contextlib.nullcontext((np.zeros((8, 8, 3), "uint8"), (8, 8)))

    monkeypatch.setattr("kood.starter.images.decoding", decoding)
    monkeypatch.setattr("kood.starter.images.kinds_of", lambda file: ("PNG", ()))
    for name in "ab":
        Path(f"x/{name}").mkdir(parents=True)
        for i in range(1500):
            Path(f"x/{name}/{i}.png").touch()
    found = survey(Path("x"))
    assert sum(found.train) == 3000 and len(opened) == 400
    assert len({file for file in opened if Path(file).parent.name == "a"}) == 200


@pytest.mark.parametrize(
    "name", ['a "b"\\c', "Äpfel und Birnen", "new\nline", "x = 3 # no", "<b>&amp;<b>", "a\tb", "-rf"]
)
def test_names_that_toml_or_a_terminal_would_misread(name):
    for inner in (name, "other", "few.1"):
        fill(Path(name) / inner, 3 if inner == "few.1" else 9)
    recipe, text = made(f"./{name}", [f"./{name}/few.1"])
    assert recipe.data.id.path == str(Path(name).absolute()) and set(recipe.data.id.classes) == {name, "other"}
    assert load(Path(f"{recipe.name}.toml")).data.near["few.1"].path == str(Path(name, "few.1").absolute())


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("none",), {}, "does not exist"),
        (("https://host/none",), {}, "^path = https://host/none: URLs are not fetched; download what is there"),
        (("file",), {}, "is a file, not a folder"),
        (("flat",), {}, "no class folders"),
        (("single",), {}, "only one class, 'a'"),
        (("empty",), {}, "has no images"),
        (("hollow",), {}, "class folder .* has no images"),
        (("small",), {}, "0 of 2 classes have 8 images or more"),
        (("broken",), {}, "none of 2 files"),
        (("good", ["none"]), {}, "does not exist"),
        (("./$$/good",), {}, "stands for a variable"),
        (("good",), {"name": "../x"}, "--name"),
        (("good",), {"name": ""}, "--name"),
        (("good",), {"minutes": 0.0}, "--minutes 0"),
        (("good",), {"minutes": float("nan")}, "--minutes"),
    ],
)
def test_a_folder_that_will_not_do_is_one_message_and_nothing_is_written(arguments, options, message):
    Path("file").touch()
    fill("flat", 3)
    fill("single/a", 9)
    Path("empty").mkdir()
    fill("hollow/a", 9)
    Path("hollow/b").mkdir()
    for name in "ab":
        fill(f"small/{name}", 3)
        fill(f"good/{name}", 9)
        fill(f"$$/good/{name}", 9)
        Path(f"broken/{name}").mkdir(parents=True)
        Path(f"broken/{name}/1.png").touch()
    with pytest.raises(UserError, match=message):
        made(*arguments, **options)
    assert not list(Path().glob("*.toml")) and not list(Path().glob(".*toml"))


@pytest.mark.parametrize("folders", [("pets/cat", b"pets/caf\xe9"), (b"caf\xe9/cat", b"caf\xe9/dog")])
def test_a_folder_whose_name_is_not_utf_8_is_to_be_renamed(folders):
    for folder, count in zip(map(os.fsdecode, folders), (40, 3), strict=True):  # Classes of few images are written out.
        fill(folder, count)
    with pytest.raises(UserError, match=r"caf\\udce9.* is not UTF-8.*rename the folder"):
        made(os.fsdecode(folders[0]).split("/")[0])
    assert not list(Path().glob("*.toml"))


def test_a_recipe_is_not_written_over():
    for name in "ab":
        fill(f"x/{name}", 9)
    Path("x.toml").write_text("mine")
    with pytest.raises(UserError, match=r"x\.toml: is there already"):
        made("x")
    assert Path("x.toml").read_text() == "mine"
    assert made("x", force=True)[0].name == "x" and made("x", name="other")[0].name == "other"


def test_the_command_loads_no_framework():
    for name in "ab":
        fill(f"x/{name}", 9)
    code = (
        "import sys\nfrom kood import cli\nsys.argv = ['kood', 'new', '--id', 'x']\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert not {'keras', 'tensorflow', 'torch', 'jax'} & set(sys.modules)\n"
    )
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Path("x.toml").exists() and "Next: kood run x.toml" in done.stdout


# Copies, formats, balance -------------------------------------------------------------------------------------------


def test_copies_and_torn_ones_are_told_and_written_down():
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        Path(f"pets/{name}").mkdir(parents=True)
        for number in range(12):
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(f"pets/{name}/{number}.png")
    assert survey(Path("pets"), to_learn=True).copies == 0
    first = Path("pets/cat/0.png").read_bytes()
    for place in ("cat/again", "cat/third", "dog/taken"):
        Path(f"pets/{place}.png").write_bytes(first)
    found = survey(Path("pets"), to_learn=True)
    assert (found.copies, found.torn) == (3, 1)
    assert found.apart == tuple(str(Path(f"pets/{one}.png").absolute()) for one in ("cat/0", "dog/taken"))
    _, text = made("pets")
    assert f"of which one is wrong. The first:\n  {found.apart[0]}\n  {found.apart[1]}\n" in text
    for told in ("3 files are copies of others; of these one part", "1 of them stand in two classes, of which one is"):
        assert told in text and f"# {told}" in Path("pets.toml").read_text()


def photograph(number, size=(60, 80)):
    """Noise that is smooth, so that it can be told at any size."""
    coarse = np.random.default_rng(number).integers(0, 256, (12, 16, 3), np.uint8)
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("side", [32, 128])
def test_near_copies_of_other_proportions_are_left_out_however_images_are_framed(resize, side):
    for part, count, size in (("train", 40, (90, 76)), ("test", 12, (60, 80))):
        for number, name in enumerate("ab"):
            Path(f"x/{part}/{name}").mkdir(parents=True)
            for place in range(count):
                photograph(100 * number + place, size).save(f"x/{part}/{name}/{place:02}.png")
    recipe, text = made("x")
    assert "24 of 80 training images looked at are near copies" in text and recipe.data.id.near_copies == 4
    data = recipe.data.model_copy(update={"resize": resize, "image_shape": (side, side, 3)})
    assert load_id(data).copies["left_out"] == 24


def test_near_copies_between_parts_are_left_out():
    for part, size in (("train", (60, 80)), ("test", (56, 76))):
        for number, name in enumerate("ab"):
            Path(f"x/{part}/{name}").mkdir(parents=True)
            for place in range(60 if part == "train" else 20):
                photograph(100 * number + place, size).save(f"x/{part}/{name}/{place:02}.jpg", quality=90)
    recipe, text = made("x")
    assert recipe.data.id.near_copies == 4
    told = "40 of 120 training images looked at are near copies of some of the test part:"
    assert told in text and f"# {told}\n" in Path("x.toml").read_text() and "train/a/00.jpg" in text
    # What is left out sets no threshold.
    assert "about 16 images set the threshold" in Path("x.toml").read_text()
    splits = load_id(recipe.data)
    assert splits.copies["left_out"] == 40
    for place in range(20):  # Others, and one that is the same file.
        for number, name in enumerate("ab"):
            photograph(1000 + 100 * number + place).save(f"x/test/{name}/{place:02}.jpg")
    Path("x/test/a/00.jpg").write_bytes(Path("x/train/a/00.jpg").read_bytes())
    recipe, text = made("x", force=True)
    assert recipe.data.id.near_copies is None and "near copies" not in text and "1 files are copies of others" in text


@pytest.mark.parametrize("near", [120, 112])
def test_near_copies_that_leave_too_few_images_are_refused(near):
    found = Survey(("a", "b"), (60, 60), (20, 20), np.tile([300, 400], (120, 1)), False, (), near=near)
    with pytest.raises(UserError, match=f"about {120 - near} of 120 training images are left .* 2 classes need 8 each"):
        Choices(found, CPU, 30)
    assert Choices(dataclasses.replace(found, near=100), CPU, 30).batch_size == 8


def test_files_of_other_parts_that_cannot_be_read_are_allowed_for(monkeypatch):
    for part, count in (("train", 40), ("test", 20), ("validation", 10)):
        for number, name in enumerate("ab"):
            Path(f"x/{part}/{name}").mkdir(parents=True)
            for place in range(count):
                photograph(100 * count + 1000 * number + place).save(f"x/{part}/{name}/{place:02}.png")
    for file in ("train/a/00.png", "test/a/00.png", "test/b/03.png", "validation/b/01.png"):
        Path(f"x/{file}").write_bytes(b"no image")
    recipe, text = made("x")
    assert recipe.data.id.max_bad_images == 3  # A bound holds for each part by itself.
    assert "4 of these cannot be read" in text and "test/a/00.png" in text
    assert len(load_id(recipe.data).test) == 38
    monkeypatch.setattr("kood.starter.images.LOOKED_AT", 50)
    found = survey(Path("x"), to_learn=True)
    seen = sum("train" not in str(file) for file, _ in found.unreadable)
    own = len(found.unreadable) - seen
    assert seen and found.bad_at_most == max(math.ceil(2 * own * 80 / 50), math.ceil(2 * seen * 60 / 50))


def test_copies_in_other_parts_set_no_threshold():
    for part, count in (("train", 50), ("test", 30)):
        for number, name in enumerate("ab"):
            Path(f"x/{part}/{name}").mkdir(parents=True)
            for place in range(count):
                photograph(100 * number + place).save(f"x/{part}/{name}/{place:02}.png")
    found = survey(Path("x"), to_learn=True)
    assert found.train == (50, 50) and found.learnable == (20, 20) and found.near == 0 and found.copies == 60
    recipe, _ = made("x")
    assert "about 8 images set the threshold" in Path("x.toml").read_text() and recipe.train.batch_size == 16
    splits = load_id(recipe.data)
    assert splits.copies["left_out"] == 60 and len(splits.train) >= 16
    refuse_too_few(len(splits.calibration), recipe.serve.accept)
    for place in range(30, 45):
        photograph(100 + place).save(f"x/test/b/{place:02}.png")
    told = "1 of 2 classes have 8 different images or more that can be read and no other part has and some in the test"
    with pytest.raises(UserError, match=told):
        made("x", force=True)
    fill("x/train/c", 12)
    fill("x/test/c", 2, value=(1, 2, 3))
    recipe, text = made("x", force=True)
    assert "Left out, with fewer than 8 different images that can be read and no other part has: b" in text
    assert recipe.data.id.classes == ["a", "c"]


def test_classes_that_differ_in_capitals_alone_are_told():
    for name in ("Hat", "hat", "cap"):
        fill(f"x/{name}", 10)
    _, text = made("x")
    assert "classes whose names differ in capitals alone are taken for different ones (Hat and hat)" in text


def test_images_in_folders_within_a_class_are_told():
    fill("pets/cat", 10)
    fill("pets/dog", 10)
    fill("pets/dog/puppies", 3)
    fill("pets/dog/old/ones", 3)
    _, text = made("pets")
    assert "images in folders within a class's folder are taken as of that class: dog/old, dog/puppies\n" in text


@pytest.mark.parametrize("known", ["pets", "link", "pets.csv"])
@pytest.mark.parametrize("ood", ["pets", "pets/dog", "link/cat", "pets.csv", "some.csv"])
def test_known_images_are_not_tested_on_as_others(known, ood):
    fill("pets/cat", 10)
    fill("pets/dog", 10)
    fill("zoo", 9)
    Path("link").symlink_to("pets")
    lines = [f"pets/{kind}/{number:04}.png,{kind}" for kind in ("cat", "dog") for number in range(10)]
    Path("pets.csv").write_text("\n".join(lines))
    Path("some.csv").write_text("\n".join([*(f"zoo/{number:04}.png,zoo" for number in range(9)), lines[0]]))
    shared, count = {"some.csv": (1, 10), "pets/dog": (10, 10), "link/cat": (10, 10)}.get(ood, (20, 20))
    with pytest.raises(UserError, match=f"{ood}: {shared} of its {count} images are among those of .*{known}"):
        made(known, ["zoo", ood])
    assert not list(Path().glob("*.toml"))


def test_images_of_the_same_pixels_in_other_files_are_refused_as_a_run_does():
    for name in ("pets/cat", "pets/dog", "pets/few", "zoo"):
        fill(name, 30 if name != "pets/few" else 2)
    for number in range(4):
        pixels = Image.fromarray(np.random.default_rng(number).integers(0, 256, (20, 30, 3), "uint8"))
        pixels.save(f"pets/{'dog' if number < 3 else 'few'}/own-{number}.png")
        pixels.save(f"zoo/again-{number}.bmp")
    with pytest.raises(
        UserError, match="zoo: 3 of its 34 images looked at have the same pixels as some among those of"
    ):
        made("pets", ["zoo"])
    assert not list(Path().glob("*.toml"))
    for number in range(3):
        Path(f"zoo/again-{number}.bmp").unlink()
    assert list(made("pets", ["zoo"])[0].data.near) == ["zoo"]  # The last one is of a class that is left out.


def test_half_of_images_that_lose_nothing_are_said_to():
    shapes = np.array([(100, 100)] * 80 + [(100, 200)] * 20)
    found = Survey(("a", "b"), (50, 50), (), shapes, False, ())
    assert _resize(found, (32, 32, 3)) == (
        "crop", "the middle is kept: half lose nothing, 1 in 20 loses 50% or more"
    )  # fmt: skip


def test_images_beside_the_known_ones_are_tested_on():
    fill("pets/cat", 30)
    fill("pets/dog", 30)
    fill("pets 2", 9)
    recipe, _ = made("pets", ["pets 2"])
    assert list(recipe.data.near) == ["pets_2"]


def test_formats_and_what_is_special_are_told():
    fill("pets/cat", 10)
    fill("pets/dog", 10)
    Image.new("CMYK", (20, 20)).save("pets/cat/print.jpg")
    Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save("pets/cat/deep.png")
    Image.new("RGBA", (20, 20), (1, 2, 3, 4)).save("pets/dog/glass.png")
    frames = [Image.new("RGB", (20, 20), (shade, 0, 0)) for shade in (0, 200)]
    frames[0].save("pets/dog/moves.gif", save_all=True, append_images=frames[1:])
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (20, 30)).save("pets/dog/turned.jpg", exif=turned)
    found = survey(Path("pets"))
    assert dict(found.formats) == {"PNG": 22, "JPEG": 2, "GIF": 1}
    assert dict(found.kinds) == dict.fromkeys(
        ("16 bits", "CMYK", "several pictures", "transparent", "turned by EXIF"), 1
    )
    _, text = made("pets")
    assert "PNG 22, JPEG 2, GIF 1" in text and "1 CMYK: read as Adobe has it" in text


def test_uneven_classes_are_told_in_the_recipe():
    for name, count in (("cat", 60), ("dog", 10)):
        fill(f"pets/{name}", count)
    recipe, _ = made("pets")
    assert recipe.train.class_weight is None  # What it trades is the user's to choose.
    (line,) = (line for line in Path("pets.toml").read_text().splitlines() if "class_weight" in line)
    assert line.startswith('# class_weight = "balanced"') and "6 times" in line
    Path("pets.toml").write_text(Path("pets.toml").read_text().replace('# class_weight = "', 'class_weight = "'))
    assert load(Path("pets.toml")).train.class_weight == "balanced"
    fill("even/cat", 30)
    fill("even/dog", 10)
    made("even")
    assert "class_weight" not in Path("even.toml").read_text()


@pytest.mark.keras
@pytest.mark.parametrize(("size", "is_told"), [((8, 8), True), ((70, 90), False)])
def test_photographs_far_too_small_for_the_network_are_told(size, is_told):
    for name in ("cat", "dog"):
        fill(f"tiny/{name}", 20, size)
    image = keras.Input((120, 120, 3))
    keras.Model(image, keras.layers.GlobalAveragePooling2D()(image)).save("net.keras")
    _, text = made("tiny", backbone="net.keras")
    told = "The network takes images of 120 px, and half of yours have 8 px or less at the shorter side"
    assert (told in text) == is_told
