"""Every example that a reader may copy runs: those of the public names, and README's."""

import inspect
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest

import kood

pytestmark = pytest.mark.keras

ROOT = Path(__file__).parents[1]


def blocks(text):
    return [textwrap.dedent(one) for one in re.findall(r"^ *```python\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)]


@pytest.mark.parametrize("name", [name for name in kood.__all__ if name != "run"])
def test_the_example_of_a_public_name(name):
    found = blocks(inspect.getdoc(getattr(kood, name)))
    assert len(found) == 1
    exec(compile(found[0], f"example of kood.{name}", "exec"), {})


def test_the_example_of_the_package():
    (found,) = blocks(kood.__doc__)
    *before, last = found.strip().splitlines()
    space = {}
    exec(compile("\n".join(before), "example of kood", "exec"), space)
    assert eval(last, space) == 5 / 6  # Of six pairs one stands the wrong way.


@pytest.mark.slow
def test_the_example_of_a_run(tmp_path, monkeypatch):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    (found,) = blocks(inspect.getdoc(kood.run))
    exec(compile(found, "example of kood.run", "exec"), {})
    assert (tmp_path / "saved" / "digits_softmax-quick" / "report.json").is_file()


def test_the_examples_of_the_readme(tmp_path, monkeypatch):
    import keras

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)

    def photographs(count):
        labels = rng.integers(0, 3, count)
        pixels = rng.integers(0, 60, (count, 8, 8, 3))
        pixels[np.arange(count), :, :, labels] += 160
        return pixels.astype("uint8"), labels

    inputs = keras.Input((8, 8, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(pooled))
    model.layers[-1].set_weights([10 * np.eye(3, dtype="float32"), np.zeros(3, "float32")])
    (images, labels), (more_images, _), (new_images, _) = (photographs(count) for count in (100, 60, 10))
    test_images, test_labels = photographs(50)
    given = {
        "model": model, "names": ["red", "green", "blue"], "images": images, "labels": labels,
        "more_images": more_images, "new_images": new_images, "test_images": test_images, "test_labels": test_labels,
        "other_images": rng.integers(0, 256, (30, 8, 8, 3), "uint8"), "scores": np.array([0.1, 0.9]),
        "is_ood": np.array([False, True]), "features": rng.normal(size=(4, 8)).astype("float32"),
    }  # fmt: skip
    attached, library = blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    space = dict(given)
    exec(compile(attached, "README, the classifier that you have", "exec"), space)
    assert space["figures"]["id"]["accuracy"] == 1.0 and len(space["answers"]) == 10
    assert (tmp_path / "serving" / "flowers" / "1" / "saved_model.pb").is_file() and (
        tmp_path / "flowers.kood"
    ).is_file()
    exec(compile(library, "README, as a library", "exec"), {**given, "labels": np.array([0, 1, 2, 3])})
