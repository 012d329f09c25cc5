"""Every example that a reader may copy runs: those of the public names, of the documentation and of CONTRIBUTING."""

import ast
import importlib
import importlib.util
import inspect
import json
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest

import kood
from kood import registry

pytestmark = pytest.mark.keras

ROOT = Path(__file__).parents[1]


def blocks(text):
    return [textwrap.dedent(one) for one in re.findall(r"^ *```python\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)]


@pytest.mark.parametrize("name", [name for name in kood.__all__ if name != "run"])
def test_the_example_of_a_public_name(name):
    found = blocks(inspect.getdoc(getattr(kood, name)))
    assert len(found) == 1
    exec(compile(found[0], f"example of kood.{name}", "exec"), {})


_spec = importlib.util.spec_from_file_location("reference_pages", ROOT / "scripts" / "reference_pages.py")


@pytest.fixture(scope="module")
def pages():
    pytest.importorskip("griffe", reason="comes with kood[docs]")
    found = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(found)
    return found


def test_the_reference_says_what_a_key_allows(pages):
    rows = {tuple(cell.strip() for cell in line.split(" | ")[:3]) for line in pages.recipe() if line.startswith("| `")}
    assert {
        ("| `train`", '`"all"`', '`"all"`, `"head"`, `"last"`'),
        ("| `accept`", "`0.95`", "0 < x < 1"),
        ("| `num_steps`", "`1000`", "2 ≤ n ≤ 10,000"),
        ("| `image_shape`", "", "list of 3: 1 ≤ n ≤ 1,024"),
        ("| `folds`", "`5`", "n or list: list: text"),
    } <= rows


def test_the_reference_names_what_a_recipe_may_name(pages):
    names = "\n".join(pages.names())
    for room in pages.NAMED:
        assert all(f"\n| `{name}` | " in names for name in registry.room(room))
    assert "\n| `wrn40_2` | `features`, `width = 32`, `dropout = 0.0` | WRN-40-2" in names
    by_themselves, _, on_request = pages.measured()
    assert "`gen`" in by_themselves and "`odin`" not in by_themselves and "`odin`" in on_request


def test_the_usage_of_a_command_stands_on_one_line(pages):
    usages = [line for line in pages.commands() if line.startswith("`kood ")]
    assert "`kood show [OPTIONS] {RECIPE}`" in usages and not any("\n" in line for line in usages)


def test_the_reference_has_an_example_of_each_public_name_that_runs(pages):
    named = [(room, name) for room in pages.PUBLIC for _, name in pages.ROOMS[room]()]
    of_packages = {name for room in ("heads", "losses", "scores", "metrics") for name in getattr(kood, room).__all__}
    assert {name for _, name in named} >= of_packages | {"linear", "cosine", "ddpm", "ddim", "dpm_solver"}
    for room, name in named:
        text = pages.example(room, name)
        assert f"kood.{room}.{name}(" in text or room in ("samplers", "schedules")
        exec(compile(text, f"example of {name}", "exec"), {})


def test_the_example_of_the_package():
    (found,) = blocks(kood.__doc__)
    *before, last = found.strip().splitlines()
    space = {}
    exec(compile("\n".join(before), "example of kood", "exec"), space)
    assert eval(last, space) == 5 / 6  # Of six pairs one stands the wrong way.


BENCHMARKS = [file for file in sorted((ROOT / "benchmarks").glob("*.py")) if "from kood" in file.read_text()]


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.stem)
def test_what_a_benchmark_takes_of_kood_is_there(file):
    """A benchmark takes minutes, so none is run here; what was renamed under it would be found when it is needed."""
    nodes = ast.walk(ast.parse(file.read_text()))
    taken = [node for node in nodes if isinstance(node, ast.ImportFrom) and f"{node.module}".startswith("kood")]
    for node in taken:
        for name in (one.name for one in node.names):
            if not hasattr(importlib.import_module(node.module), name):
                importlib.import_module(f"{node.module}.{name}")


@pytest.mark.slow
def test_the_example_of_a_run(tmp_path, monkeypatch):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    (found,) = blocks(inspect.getdoc(kood.run))
    exec(compile(found, "example of kood.run", "exec"), {})
    assert (tmp_path / "saved" / "digits_softmax-quick" / "report.json").is_file()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page):
    """Those of the documentation are checked when it is built."""
    links = re.findall(r"\]\(([^)#:]+)[)#]", (ROOT / page).read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def of(page):
    return blocks((ROOT / page).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def reader():
    """What a reader of the pages has before them: a classifier of three colours and photographs of them."""
    import keras

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
    return {
        "model": model, "names": ["red", "green", "blue"], "images": images, "labels": labels,
        "more_images": more_images, "new_images": new_images, "test_images": test_images, "test_labels": test_labels,
        "other_images": rng.integers(0, 256, (30, 8, 8, 3), "uint8"), "scores": np.array([0.1, 0.9]),
        "is_ood": np.array([False, True]), "features": rng.normal(size=(4, 8)).astype("float32"),
    }  # fmt: skip


@pytest.mark.slow
def test_the_example_of_attaching(reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example, in_float32 = of("docs/howto/attach.md")
    space = dict(reader)
    exec(compile(example, "attach.md", "exec"), space)
    assert space["figures"]["id"]["accuracy"] == 1.0 and len(space["answers"]) == 10
    assert (tmp_path / "serving" / "flowers" / "1" / "saved_model.pb").is_file()
    assert (tmp_path / "flowers.kood").is_file()
    pytest.importorskip("openvino", reason="comes with kood[export]")
    space["detector"].export("flowers.xml")
    exec(compile(in_float32, "attach.md", "exec"), space)
    told = space["model"]({"images": reader["new_images"].astype("float32")})
    np.testing.assert_allclose(told["probabilities"], space["answers"].probabilities, atol=1e-5)


def test_the_example_of_the_parts(reader):
    (example,) = of("docs/howto/extend.md")
    space = reader | {"labels": np.array([0, 1, 2, 3])}
    exec(compile(example, "extend.md", "exec"), space)
    assert space["penalty"].shape == (4,)


@pytest.mark.slow
def test_the_example_of_a_cluster(reader, tmp_path, monkeypatch):
    """On a Ray of this machine, where it is installed."""
    ray = pytest.importorskip("ray", reason="pip install 'ray[data]'")
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    detector = kood.Detector(reader["model"], score="msp", class_names=reader["names"])
    detector.calibrate(reader["images"], accept=0.95).save("flowers.kood")
    (tmp_path / "photos").mkdir()
    for number, pixels in enumerate(reader["test_images"]):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number:02}.png")
    (example,) = of("docs/howto/cluster.md")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        exec(compile(example, "cluster.md", "exec"), {"__name__": "__main__"})
        rows = sorted(ray.data.read_parquet("scored").take_all(), key=lambda row: row["path"])
    finally:
        ray.shutdown()
    own = detector.predict(reader["test_images"])
    assert [row["class_name"] for row in rows] == list(own.class_name)
    np.testing.assert_allclose([row["ood_score"] for row in rows], own.ood_score, atol=1e-5)


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda file: file.stem)
def test_a_notebook(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code and not any(cell.get("outputs") for cell in cells)  # A figure of today may be wrong tomorrow.
    space = {}
    for number, one in enumerate(code):
        exec(compile(one, f"{file.name}, cell {number}", "exec"), space)
    assert space["accuracy"] > 0.9 and space["auroc"] > 0.85 and space["accepted"] > 0.88


def test_the_head_of_contributing(reader):
    import keras

    from kood.heads import AngularHead

    example, _ = of("CONTRIBUTING.md")
    space = {"keras": keras, "AngularHead": AngularHead}
    exec(compile(example, "CONTRIBUTING.md", "exec"), space)
    head = space["HalfMargin"](num_classes=3, margin=0.4, scale=2.0)
    plain, held = head(reader["features"]), head(reader["features"], np.array([0, 1, 2, 0]))
    taken = keras.ops.convert_to_numpy(plain) - keras.ops.convert_to_numpy(held)
    np.testing.assert_allclose(taken.max(axis=1), 0.4, atol=1e-5)


def test_the_score_of_contributing():
    from keras import ops

    from kood.scores.plain import float32

    _, example = of("CONTRIBUTING.md")
    space = {"ops": ops, "float32": float32}
    exec(compile(example, "CONTRIBUTING.md", "exec"), space)
    logits = np.array([[3.0, 1.0, 2.5], [7.0, 7.0, 0.0]])
    np.testing.assert_allclose(ops.convert_to_numpy(space["runner_up"](logits)), [-0.5, 0.0])
