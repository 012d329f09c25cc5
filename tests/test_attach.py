"""`kood attach`, by the command line: a run around a classifier that exists, what works on it, what is refused."""

import importlib.util
import json
import re
import shutil
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kood.conformal import Calibration
from kood.detector.figures import rarely_accepted, wrong_classes
from kood.errors import UserError
from kood.pipeline.attached import matched, outputs_named
from tests.conftest import figures_of, kood, kood_here

pytestmark = [pytest.mark.keras, pytest.mark.one_backend, pytest.mark.usefixtures("loaded_once", "as_written")]

#: The classes, whose folders stand in the order of the outputs.
NAMES = ("blue", "green", "red")

LAYERS = """
import keras


class Doubled(keras.layers.Layer):
    def call(self, x):
        return 2 * x


class Small(keras.regularizers.Regularizer):
    def __call__(self, x):
        return keras.ops.mean(x)

    def get_config(self):
        return {}


def same(x):
    return 1 * x


def relu(x):  # Which is not what Keras calls so.
    return 0 * x


def unit(pixels):
    return pixels / 255


def with_numpy(pixels):
    import numpy as np

    return np.asarray(pixels) / 255
"""


def pictures(count, seed, mixed=False):
    """uint8 (n, 8, 8, 3): class k is bright in channel 2 - k; a mixture in two of them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    pixels = rng.integers(0, 60, (count, 8, 8, 3))
    for row, label in enumerate(labels):
        pixels[row, :, :, 2 - label] += 160
        if mixed:
            pixels[row, :, :, 2 - (label + 1) % 3] += 150
    return pixels.astype("uint8"), labels


def written(folder, count, seed, names=NAMES, mixed=False):
    """Writes pictures to class folders, or of mixtures to one folder."""
    for row, (image, label) in enumerate(zip(*pictures(count, seed, mixed), strict=True)):
        place = folder if mixed else folder / names[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{row:03}.png")
    return folder


def classifier(before=(), last="softmax", units=3, side=8):
    """The means of the channels, ten times, are its logits; `before` are layers that bring pixels to 0..1."""
    import keras

    inputs = keras.Input((side, side, 3))
    found = inputs
    for layer in before:
        found = layer(found)
    found = keras.layers.GlobalAveragePooling2D()(found)
    found = keras.layers.Dense(6, activation="relu", name="hidden")(found)
    model = keras.Model(inputs, keras.layers.Dense(units, activation=last, name="top")(found))
    hidden = np.zeros((3, 6), "float32")
    hidden[[2, 1, 0], [0, 1, 2]] = 1
    hidden[:, 3:] = 0.1 * np.random.default_rng(0).normal(size=(3, 3))
    model.get_layer("hidden").set_weights([hidden, np.full(6, 0.1, "float32")])
    model.get_layer("top").set_weights([20 * np.eye(6, units, dtype="float32"), np.zeros(units, "float32")])
    return model


def scaling(scale, offset=0.0):
    import keras

    return keras.layers.Rescaling(scale, offset)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, images of its classes and others."""
    folder = tmp_path_factory.mktemp("attach")
    classifier([scaling(1 / 255)]).save(folder / "rgb.keras")
    written(folder / "known", 240, 1)
    written(folder / "mixed", 60, 2, mixed=True)
    (folder / "my_layers.py").write_text(LAYERS)
    return folder


@pytest.fixture(scope="module")
def finished(place):
    """The same folder once the command has run there."""
    result = kood_here("attach", "rgb.keras", "--id", "known", "--ood", "mixed", cwd=place)
    assert result.returncode == 0 and result.stderr == "", result.stderr + result.stdout
    return place, result


def report_of(saved, name="rgb"):
    return json.loads((saved / name / "report.json").read_bytes())


def test_the_run_leaves_what_a_run_leaves(finished):
    folder, result = finished
    saved = folder / "saved" / "rgb"
    assert {p.name for p in saved.iterdir()} >= {"1", "belongs_to.json", "figures", "recipe.toml", "report.html"}
    report = report_of(folder / "saved")
    assert set(report["stages"]) == {"data", "classifier", "evaluate", "export"} and report["version"] == 1
    assert report["id"] == {"accuracy": 1.0, "ece": report["id"]["ece"], "images": 120}
    assert report["class_names"] == list(NAMES) and report["threshold"]["calibration_images"] == 48
    best = max(report["validation"], key=lambda name: report["validation"][name])
    assert report["validation"][report["headline_score"]] == report["validation"][best]
    assert report["scores"][report["headline_score"]]["mixed"]["auroc"] > 0.9
    assert "SavedModel: saved/rgb/1" in result.stdout and "Nothing was" not in result.stdout


def test_what_is_told_speaks_of_no_training(finished):
    folder, result = finished
    html = (folder / "saved" / "rgb" / "report.html").read_text()
    card = (folder / "saved" / "rgb" / "1" / "assets.extra" / "model_card.md").read_text()
    for text in (html, card):
        assert re.search(r"features: the input of the dense layer (&#39;|')top(&#39;|') \(6 numbers\)", text)
        assert re.search(r"logits: those of (&#39;|')top(&#39;|') .3 classes.; the model answers their softmax", text)
        assert "classes: the folders in alphabetical order" in text and "no training saw" not in text
    assert "Training" not in card and "rgb.keras, trained before and elsewhere" in card
    assert (
        "no score was fitted to" in re.sub(r"\s+", " ", result.stdout) and "on the validation proxies, the best" in html
    )


def test_the_same_command_and_its_recipe_make_nothing_again(invoke, finished, tmp_path):
    folder, _ = finished
    before = figures_of(report_of(folder / "saved"))
    recipe = shutil.copy(folder / "saved" / "rgb" / "recipe.toml", tmp_path)
    # Its paths are whole: it runs from anywhere.
    for command, cwd in (
        (["attach", "rgb.keras", "--id", "known", "--ood", "mixed"], folder),
        (["run", recipe], tmp_path),
    ):
        result = invoke(*command, "--saved", folder / "saved", cwd=cwd)
        assert result.returncode == 0 and "Nothing was made again" in result.stdout, result.stderr
        report = report_of(folder / "saved")
        assert figures_of(report) == before and all(stage["cached"] for stage in report["stages"].values())
    assert not (folder / "saved" / "rgb" / "2").exists()


def test_what_works_on_a_run_works_on_it(invoke, finished, tmp_path):
    folder, _ = finished
    shutil.copytree(folder / "saved" / "rgb", tmp_path / "rgb")
    own = written(tmp_path / "own", 60, 7)
    result = invoke("predict", "rgb", own, "--json", cwd=tmp_path)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0 and all(row["class_name"] == Path(row["image"]).parent.name for row in rows)
    result = invoke("calibrate", "rgb", "--data", own, "--data", folder / "known", "--accept", "0.8", cwd=tmp_path)
    assert result.returncode == 0 and "Written: rgb/2 (rgb/1 stays)" in result.stdout
    assert re.search(r"images that the score was fitted on \(47\) and chosen on \(\d+\)", result.stdout)
    result = invoke("monitor", "rgb", "--data", own, cwd=tmp_path)
    assert result.returncode == 0 and "p-value: change point" in result.stdout
    shutil.copytree(tmp_path / "rgb", tmp_path / "other")
    assert invoke("compare", "rgb", "other", cwd=tmp_path).returncode == 0
    assert invoke("serving-config", "rgb", "--to", "serving", cwd=tmp_path).returncode == 0


def test_another_order_of_the_classes_is_another_folders(invoke, finished, tmp_path):
    """A server answers with numbers."""
    import keras

    folder, _ = finished
    shutil.copytree(folder / "saved" / "rgb", tmp_path / "rgb")
    before = (tmp_path / "rgb" / "belongs_to.json").read_bytes()
    model = keras.saving.load_model(folder / "rgb.keras")
    weights, bias = model.get_layer("top").get_weights()
    model.get_layer("top").set_weights([weights[:, ::-1], bias])
    model.save(tmp_path / "bgr.keras")
    (tmp_path / "bgr.txt").write_text("\n".join(reversed(NAMES)))
    given = ("--classes", tmp_path / "bgr.txt", "--score", "energy", "--saved", tmp_path, "--name", "rgb")
    result = invoke("attach", tmp_path / "bgr.keras", "--id", "known", *given, cwd=folder)
    assert result.returncode == 2 and "red, green, blue" in result.stderr and "in another order" in result.stderr
    assert not (tmp_path / "rgb" / "2").exists() and (tmp_path / "rgb" / "belongs_to.json").read_bytes() == before


@pytest.mark.parametrize("parts", ["", "train"])
def test_folders_are_numbered_by_their_names_as_the_disk_has_them(invoke, place, tmp_path, parts):
    """As Keras does: of e and an accent, "élan" comes before "gin"; of one letter, after all others."""
    names = [unicodedata.normalize("NFD", name) for name in ("élan", "gin", "rot")]
    written(tmp_path / "accents" / parts, 90, 7, names)
    if parts:
        written(tmp_path / "accents" / "test", 60, 8, ["élan", "gin", "rot"])
    given = ("--score", "msp", "--accept", "0.9", "--saved", tmp_path)
    result = invoke("attach", "rgb.keras", "--id", tmp_path / "accents", *given, cwd=place)
    assert result.returncode == 0 and "100.0% of" in result.stdout, result.stderr
    report = report_of(tmp_path)
    assert report["class_names"] == ["élan", "gin", "rot"] and report["id"]["accuracy"] == 1
    asked = invoke("predict", tmp_path / "rgb", tmp_path / "accents" / parts / names[0], "--json", cwd=place)
    assert {json.loads(line)["class_name"] for line in asked.stdout.splitlines()} == {"élan"}


def test_what_is_served_answers_as_the_detector(finished, tmp_path):
    import keras
    import tensorflow as tf

    from kood import Detector
    from kood.attach import attach

    folder, _ = finished
    attach(folder / "rgb.keras", known=str(folder / "known"), score="energy", saved=tmp_path)
    pixels, _ = pictures(50, 8)
    served = tf.saved_model.load(str(tmp_path / "rgb" / "1")).signatures["serving_default"](images=tf.constant(pixels))
    made = Detector(keras.saving.load_model(folder / "rgb.keras"), "energy", NAMES)
    answers = made.calibrate(*pictures(99, 9)).predict(pixels)
    np.testing.assert_allclose(served["ood_score"].numpy(), answers.ood_score, atol=1e-4)
    np.testing.assert_allclose(served["probabilities"].numpy(), answers.probabilities, atol=1e-5)
    assert [name.decode() for name in served["class_name"].numpy()] == list(answers.class_name)


def prepared(place):
    """Models and images for the options, in a folder of finished ones."""
    classifier().save(place / "raw.keras")
    classifier([scaling(0.5, 0.5)]).save(place / "signed.keras")
    classifier([scaling(1 / 255)], side=None).save(place / "any.keras")
    (place / "list.txt").write_text("blue\ngreen\nred\n")
    (place / "numbers.json").write_text('{"blue": 0, "green": 1, "red": 2}')
    (place / "pairs.json").write_text('{"0": ["blue", "sky"], "1": ["green", "grass"], "2": ["red", "rose"]}')
    (place / "names.json").write_text('{"0": "blue", "1": "green", "2": "red"}')
    shutil.copytree(place / "known", place / "two", dirs_exist_ok=True)
    shutil.rmtree(place / "two" / "red")
    for folder, names in (("renamed", ("z", "x", "y")), ("numbered", ("0_z", "1_y", "2_x"))):
        for old, new in zip(NAMES, names, strict=True):
            shutil.copytree(place / "known" / old, place / folder / new, dirs_exist_ok=True)
    shutil.rmtree(place / "numbered" / "2_x")
    (place / "other.txt").write_text("z\nx\ny\n")
    for part, count, seed in (("train", 60, 3), ("validation", 40, 4), ("test", 50, 5)):
        written(place / "parts" / part, count, seed)
    files = sorted((place / "known").rglob("*.png"))
    (place / "table.csv").write_text("".join(f"{file},{file.parent.name}\n" for file in files))
    return place


@pytest.fixture(scope="module")
def options(place):
    """The folder with what the options need."""
    return prepared(place)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("rgb.keras --id known --by-class --accept 0.8 --score knn:k=5 --classes numbers.json", "by the list"),
        ("any.keras --id table.csv --size 8 --classes names.json --resize pad", "by the list"),
        ("rgb.keras --id known --classes pairs.json --score msp", "by the list"),
        ("rgb.keras --id numbered --score msp", "by the numbers that the folders' names begin with"),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in (
                ("raw.keras --id two --preprocess 0..1 --classes list.txt", "by the list"),
                (
                    "signed.keras --id renamed --preprocess -1..1 --classes other.txt --features hidden",
                    "the layer 'hidden'",
                ),
                ("rgb.keras --id parts --score energy --no-antialias", "alphabetical"),
            )
        ),
    ],
)
def test_options(invoke, options, tmp_path, arguments, told):
    result = invoke("attach", *arguments.split(), "--saved", tmp_path, "--name", "one", cwd=options)
    assert result.returncode == 0, result.stderr
    report = report_of(tmp_path, "one")
    assert told in result.stdout and report["id"]["accuracy"] == 1.0 and len(report["class_names"]) == 3
    facts = json.loads((tmp_path / "one" / "1" / "assets.extra" / "kood.json").read_bytes())
    assert facts["resize"] == ("pad" if "--resize" in arguments else "stretch")
    assert facts["antialias"] == ("--no-antialias" not in arguments)
    if "--by-class" in arguments:
        assert report["headline_score"] == facts["score"] == "knn:k=5" and len(facts["groups"]) == 3
    if "parts" in arguments:
        assert report["id"]["images"] == 50 and report["id_sets"]["train"]["images"] < 60


def test_images_that_are_made_much_smaller_are_told_of(place, tmp_path, monkeypatch):
    from PIL import Image

    from kood.attach import recipe_for

    monkeypatch.chdir(place)
    for file in sorted((place / "known").rglob("*.png"))[::4]:
        for times, folder in ((1.9, "hardly"), (3, "much")):
            (tmp_path / folder / file.parent.name).mkdir(parents=True, exist_ok=True)
            with Image.open(file) as image:
                image.resize((int(8 * times), 8)).save(tmp_path / folder / file.parent.name / file.name)
    for folder, antialias, told in (
        ("hardly", None, ""), ("much", None, "made 3.0 times smaller"), ("much", True, ""), ("much", False, "")
    ):  # fmt: skip
        recipe, said = recipe_for(Path("rgb.keras"), known=str(tmp_path / folder), antialias=antialias)
        assert told in said and bool(told) == bool(said) and ("--no-antialias" in said) == bool(said)
        assert recipe.data.antialias == (antialias is not False)


def test_files_that_keras_reads_otherwise_are_told_of(place, tmp_path, monkeypatch):
    from kood.attach import recipe_for

    monkeypatch.chdir(place)
    assert recipe_for(Path("rgb.keras"), known="known")[1] == ""
    shutil.copytree("known", tmp_path / "known")
    some = sorted((tmp_path / "known").rglob("*.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, file in enumerate(some[:7]):
        with Image.open(file) as image:
            image.convert("RGBA" if number < 4 else "RGB").save(file, exif=exif if number >= 4 else None)
    turned, transparent = recipe_for(Path("rgb.keras"), known=str(tmp_path / "known"))[1].splitlines()
    assert turned.startswith("images: 3 of 240 files looked at are turned upright as their EXIF says, which Keras's")
    assert transparent.startswith("images: 4 of 240 files looked at are transparent and laid over white")


def test_all_parts_of_the_known_images_are_looked_at(place, tmp_path, monkeypatch):
    from kood.attach import recipe_for
    from kood.data import load_id

    monkeypatch.chdir(place)
    for part, count, seed in (("train", 60, 3), ("test", 50, 5)):
        written(tmp_path / "parts" / part, count, seed)
    for file in sorted((tmp_path / "parts" / "test").rglob("*.png"))[::10]:
        file.write_bytes(b"no image")
    recipe, _ = recipe_for(Path("rgb.keras"), known=str(tmp_path / "parts"))
    assert recipe.data.id.max_bad_images == 5 and len(load_id(recipe.data).test) == 45
    for file in sorted((tmp_path / "parts" / "test").rglob("*.png"))[::10]:
        file.unlink()
    recipe, _ = recipe_for(Path("rgb.keras"), known=str(tmp_path / "parts"))
    assert not recipe.data.id.max_bad_images  # All were looked at.


def test_a_size_that_is_assumed_is_told_of_and_so_is_much_enlarging(place, tmp_path, monkeypatch):
    from kood.attach import recipe_for

    monkeypatch.chdir(place)
    for side in (16, 17, None):
        classifier([scaling(1 / 255)], side=side).save(tmp_path / f"{side}.keras")

    def said(side, **options):
        recipe, told = recipe_for(tmp_path / f"{side}.keras", known="known", **options)
        return recipe.data.shape, told.splitlines()

    assert said(16) == ((16, 16, 3), [])
    shape, (larger,) = said(17)
    assert shape == (17, 17, 3) and larger.startswith("images: made 2.1 times larger, to 17 x 17")
    shape, (assumed, larger) = said(None)
    assert shape == (224, 224, 3) and "made 28.0 times larger" in larger
    assert assumed.startswith("images: 224 x 224, since the model takes any size; --size")
    assert said(None, size=8) == ((8, 8, 3), [])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["caffe", "torch"])
def test_the_colours_of_imagenet(invoke, options, tmp_path, mode):
    import keras

    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    back = {
        "torch": [keras.layers.Normalization(mean=-mean / deviation, variance=1 / deviation**2)],
        "caffe": [keras.layers.Normalization(mean=[-103.939, -116.779, -123.68], variance=[1.0] * 3), scaling(1 / 255)],
    }[mode]
    model = classifier(back)
    if mode == "caffe":  # It gives blue first.
        kernel, bias = model.get_layer("hidden").get_weights()
        model.get_layer("hidden").set_weights([kernel[::-1], bias])
    model.save(tmp_path / "net.keras")
    given = ("--preprocess", mode, "--score", "energy", "--saved", tmp_path)
    result = invoke("attach", tmp_path / "net.keras", "--id", "known", *given, cwd=options)
    assert result.returncode == 0 and report_of(tmp_path, "net")["id"]["accuracy"] == 1.0, result.stderr


def test_pixels_that_may_be_others_are_told_of(place, invoke, tmp_path):
    """A network of 0..1 labels as well what is 255 times as large, and is sure of all that it says."""
    weights = [4 * np.eye(6, 3, dtype="float32"), np.zeros(3, "float32")]
    model = classifier()
    model.get_layer("top").set_weights(weights)
    model.save(tmp_path / "unsaid.keras")
    written(tmp_path / "known", 200, 5)
    for number, file in enumerate(sorted((tmp_path / "known").rglob("*.png"))):
        if number % 3 == 0:  # It stands with the next class.
            other = NAMES[(NAMES.index(file.parent.name) + 1) % 3]
            file.rename(tmp_path / "known" / other / f"of-{file.parent.name}-{file.name}")
    result = invoke("attach", "unsaid.keras", "--id", "known", "--score", "energy", cwd=tmp_path)
    wanted = r"classifier: under preprocess '[-01.]+' (\S+)% of \d+ known .* (\S+)%, and as they are (\S+)%, at (\S+)%;"
    right, sure, own, its = map(float, re.search(wanted, " ".join(result.stdout.split())).groups())
    assert right == own and its > 99 > sure
    notes = report_of(tmp_path / "saved", "unsaid")["attached"]["notes"]
    assert any(note.startswith("under preprocess") for note in notes)


def test_few_images_of_each_class(invoke, options, tmp_path):
    few = written(tmp_path / "few", 15, 3)
    given = ("--accept", "0.5", "--score", "msp", "--saved", tmp_path)
    result = invoke("attach", "rgb.keras", "--id", few, *given, cwd=options)
    assert result.returncode == 0, result.stderr
    assert report_of(tmp_path)["threshold"]["calibration_images"] == 3


def test_a_class_of_few_images_leaves_validation_images_of_one_class(invoke, options, tmp_path):
    few = written(tmp_path / "few", 160, 3)
    for rare in NAMES[1:]:
        for file in sorted((few / rare).iterdir())[1:]:
            file.unlink()
    given = ("--accept", "0.5", "--saved", tmp_path)
    result = invoke("attach", "rgb.keras", "--id", few, *given, cwd=options)
    assert result.returncode == 0, result.stderr
    assert report_of(tmp_path)["validation_sets"] == ["patch_shuffle", "pictures"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("none.keras --id known", "MODEL: none.keras does not exist"),
        ("known --id known", "MODEL: known is a folder"),
        ("list.txt --id known", r"MODEL: list\.txt is no \.keras file, or it is damaged"),
        ("cut.keras --id known", r"MODEL: cut\.keras is no \.keras file, or it is damaged"),
        ("two_inputs.keras --id known", r"takes \(None, 8, 8, 3\), \(None, 4\); one input of images"),
        ("regression.keras --id known", "one linear unit, as for a regression"),
        ("labels.keras --id known", "its 3 sigmoid units say of each class"),
        ("nan.keras --id known", "answers NaN"),
        ("lambda.keras --id known", r"lambda\.keras cannot be loaded: it holds Python code"),
        ("rgb.keras --id renamed", r"100% if the classes stand in another order .*\(--classes FILE\)$"),
        ("rgb.keras --id two", r"3 outputs, and there are 2 class folders; .*--classes FILE"),
        ("rgb.keras --id hollow", "--id: the class folder .*/red has no images"),
        ("rgb.keras --id grey", "as chance would .*these images are grey, and the model takes colour"),
        ("rgb.keras --id mixed", "--id mixed: has no class folders"),
        ("any_size.keras --id known", r"as chance would .*\(--preprocess\), and the size of the images, .*\(--size\)"),
        ("rgb.keras --id nowhere", "--id: .*nowhere: does not exist"),
        ("rgb.keras --id known --ood empty", "--ood: .*empty has no images"),
        ("rgb.keras --id known --ood known/red", "--ood red: .* are in --id as well"),
        ("rgb.keras --id known --accept 1.5", r"^kood: --accept: found 1\.5"),
        ("rgb.keras --id known --accept 0.999", r"^kood: --accept 0\.999 needs .*give more images with --id or lower"),
        ("rgb.keras --id known --score nothing", "^kood: --score: there is no 'nothing' among the scores"),
        ("rgb.keras --id known --score max_cosine", "^kood: --score: this head cannot give max_cosine"),
        ("rgb.keras --id known --score knn:k=900", "^kood: --score: knn:k=900 cannot be fitted"),
        ("rgb.keras --id known --classes short.txt", "--classes: has 2 names, and the model has 3 outputs"),
        ("rgb.keras --id known --classes twice.txt", "^kood: --classes: 'red' stands there twice, and a folder"),
        ("rgb.keras --id known --name a/b", "^kood: --name a/b: use letters"),
        ("rgb.keras --id known --classes other.txt", "--classes: 3 of 3 folders are not in the list"),
        ("rgb.keras --id known --preprocess 0-1", "^kood: --preprocess 0-1: give one of none, 0..1"),
        ("rgb.keras --id known --preprocess my_layers:nothing", "^kood: --preprocess my_layers:nothing: there is no"),
        ("rgb.keras --id known --preprocess my_layers:with_numpy", "fails on pixels .*; write it with keras.ops"),
        ("offset.keras --id known", "^kood: MODEL: .*with --preprocess 0..1 it labels 100% of 47 rightly"),
        (
            "unit.keras --id known",
            r"^kood: MODEL: .*unit\.keras: .* for pixels of 0\.\.1, .* made of 0\.\.255 with --preprocess 0\.\.1$",
        ),
        ("own.keras --id known", "'Doubled'; name the module that defines or registers it with --import MODULE"),
        ("rgb.keras --id known --import nothing_here", "^kood: --import: the module 'nothing_here' cannot be imported"),
        ("rgb.keras --id known --features nothing", "^kood: --features nothing: .* has no such layer"),
        ("rgb.keras --id known --resize squash", "^kood: --resize: found 'squash'; Allowed: crop, pad, stretch"),
        ("rgb.keras --id known --size 16", "--size 16: the model takes 8 x 8 pixels"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_leaves_nothing(invoke, wrong, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.syspath_prepend(str(wrong))
    result = invoke("attach", *arguments.split(), "--saved", tmp_path / "saved", cwd=wrong)
    assert result.returncode == 2 and re.search(expected, result.stderr.strip()), result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "saved").exists()


@pytest.fixture(scope="module")
def wrong(options):
    """The folder with what is refused."""
    import keras

    inputs, numbers = keras.Input((8, 8, 3)), keras.Input((4,))
    pooled = keras.layers.GlobalAveragePooling2D()(inputs)
    both = keras.layers.Dense(3, activation="softmax")(keras.layers.Concatenate()([pooled, numbers]))
    keras.Model([inputs, numbers], both).save(options / "two_inputs.keras")
    classifier([scaling(1 / 255)], None, 1).save(options / "regression.keras")
    classifier([scaling(2.0, -1.0)]).save(options / "unit.keras")
    classifier([scaling(1 / 255)], "sigmoid").save(options / "labels.keras")
    classifier([keras.layers.Lambda(lambda x: x / 255.0)]).save(options / "lambda.keras")
    (options / "cut.keras").write_bytes((options / "rgb.keras").read_bytes()[:3000])
    (options / "short.txt").write_text("blue\ngreen\n")
    (options / "twice.txt").write_text("blue\nred\nred\n")
    (options / "empty").mkdir()
    shutil.copytree(options / "known" / "blue", options / "hollow" / "blue")
    (options / "hollow" / "red").mkdir()
    for file in (options / "known").rglob("*.png"):
        grey = options / "grey" / file.relative_to(options / "known")
        grey.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            image.convert("L").save(grey)
    model = classifier([scaling(1 / 255)])
    kernel, bias = model.get_layer("top").get_weights()
    model.get_layer("top").set_weights([kernel * np.nan, bias])
    model.save(options / "nan.keras")
    model = classifier([scaling(1 / 255)], side=None)
    model.get_layer("top").set_weights([0 * kernel, np.array([0, 0, 1], "float32")])
    model.save(options / "any_size.keras")
    # Right for 0..1 alone: in 0..255 the third class wins whatever is seen.
    model = classifier()
    kernel, bias = model.get_layer("top").get_weights()
    kernel[3:, 2] = 200
    model.get_layer("hidden").set_weights([np.abs(model.get_layer("hidden").get_weights()[0]),
                                           np.array([0.1] * 3 + [-0.5] * 3, "float32")])  # fmt: skip
    model.get_layer("top").set_weights([kernel, bias])
    model.save(options / "offset.keras")
    own = own_layers(options)
    ones = {"depthwise_initializer": "ones", "depthwise_regularizer": own.Small(), "activation": own.same}
    classifier([scaling(1 / 510), own.Doubled(), keras.layers.DepthwiseConv2D(1, **ones)]).save(options / "own.keras")
    return options


def own_layers(folder):
    """The user's module, as a script that trained the model had it: nobody else finds it."""
    spec = importlib.util.spec_from_file_location("trained_there", folder / "my_layers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_layer_of_the_users_own(invoke, wrong, tmp_path, monkeypatch):
    import keras

    monkeypatch.syspath_prepend(str(wrong))
    given = ("--import", "my_layers", "--score", "energy", "--saved", tmp_path)
    try:
        result = invoke("attach", "own.keras", "--id", "known", *given, cwd=wrong)
    finally:
        keras.saving.get_custom_objects().pop("Doubled", None)
    assert result.returncode == 0 and report_of(tmp_path, "own")["id"]["accuracy"] == 1.0, result.stderr
    # The recipe names the module too.
    result = invoke("run", tmp_path / "own" / "recipe.toml", "--saved", tmp_path, cwd=tmp_path)
    keras.saving.get_custom_objects().pop("Doubled", None)
    assert result.returncode == 0 and "Nothing was made again" in result.stdout


@pytest.mark.slow
def test_a_changed_function_of_the_users_makes_it_again(invoke, options, tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    file = tmp_path / "site" / "brought.py"
    monkeypatch.syspath_prepend(str(file.parent))
    given = ("--preprocess", "brought:pixels", "--score", "energy", "--saved", tmp_path / "saved")
    for divisor, cached in ((255, False), (255, True), (250, False)):
        file.write_text(f"def pixels(given):\n    return given / {divisor}\n")
        sys.modules.pop("brought", None)
        importlib.invalidate_caches()
        result = invoke("attach", "raw.keras", "--id", "known", *given, cwd=options)
        assert result.returncode == 0, result.stderr
        assert report_of(tmp_path / "saved", "raw")["stages"]["classifier"]["cached"] == cached


@pytest.mark.slow
def test_another_backend_takes_what_is_the_users_own(invoke, wrong, tmp_path):
    """Under torch; what another package has runs under JAX in test_outside.py."""
    backend = "torch"
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    classifier([scaling(1 / 2), own_layers(wrong).Doubled()]).save(tmp_path / "mine.keras")
    site = {"PYTHONPATH": f"{Path(__file__).parents[1]}:{wrong}", "KERAS_BACKEND": backend}
    given = ("--import", "my_layers", "--preprocess", "my_layers:unit", "--score", "energy", "--saved", tmp_path)
    result = kood("attach", tmp_path / "mine.keras", "--id", "known", *given, cwd=wrong, **site)
    assert result.returncode == 0, result.stderr
    assert report_of(tmp_path, "mine")["id"]["accuracy"] == 1.0 and report_of(tmp_path, "mine")["backend"] == backend
    answered = invoke("predict", tmp_path / "mine", wrong / "known" / "red", "--json", cwd=tmp_path)
    assert answered.returncode == 0
    assert {json.loads(line)["class_name"] for line in answered.stdout.splitlines()} == {"red"}


def test_two_classes_of_one_name_are_numbered_and_no_folder_is_taken_for_the_first(tmp_path):
    index = tmp_path / "imagenet_class_index.json"
    index.write_text(json.dumps({"0": ["n02012849", "crane"], "1": ["n03126707", "crane"], "2": ["n1", "owl"]}))
    assert outputs_named(index) == ["crane", "crane (2)", "owl"] == outputs_named(index, ["n1", "crane (2)"])
    ids = ["n02012849", "n03126707", "n1"]
    assert outputs_named(index, ["n1", "n02012849"]) == ids
    index.write_text(json.dumps(["crane", "owl", "crane"]))
    listed = outputs_named(index)
    assert listed == ["crane", "owl", "crane (2)"] and matched(["owl"], listed, 3)[2] == [1]
    assert matched(["crane", "crane (2)"], listed, 3)[2] == [0, 2]
    with pytest.raises(UserError, match=r"attach\.classes: 'crane' stands there twice, and a folder has that name"):
        matched(["crane", "owl"], listed, 3)
    index.write_text(json.dumps(["crane", "\udce9"]))
    with pytest.raises(UserError, match=r"attach\.classes: the name '\\udce9' is not UTF-8"):
        outputs_named(index)


def test_warnings_of_classes_name_the_setting_of_each_who_may_ask():
    one = {"name": "a", "images": 200, "accuracy": 0.1}
    classes = [one, {**one, "name": "b", "accuracy": 1.0}]
    decision, labels = Calibration(np.arange(99.0), np.zeros(99, int), 2, 0.95), np.repeat([0, 1], 200)
    (accepted,) = rarely_accepted(decision, "ab", labels, (labels == 1) | (np.arange(400) % 2 == 0))
    (accurate,) = wrong_classes(classes)
    assert (
        "95% are promised to be accepted of all images together, but clearly fewer are of 'a' (50% of 200)" in accepted
    )
    assert all(said in accepted for said in ("serve.by_class = true", "--by-class", "by_class=True"))
    assert 'train.class_weight = "balanced" in a recipe' in accurate
