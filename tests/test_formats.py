"""The decision as a file: each runtime answers as the Keras model does, from every backend, or nothing is written."""

import json
import re
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from kood import heads
from kood.classifier import Classifier
from kood.data.images import normalize
from kood.data.rules import Framing
from kood.decision import UNKNOWN, Decision
from kood.detector import Detector, formats
from kood.detector.formats import FORMATS, OUTPUTS, export
from kood.errors import UserError
from kood.outputs import forward_of, run_over, score_rows
from kood.scorer import Scorer, applicable
from kood.serving.served import Served
from tests.serving.models import pixels, trained

DOCS = Path(__file__).parents[1] / "docs" / "howto"
ALIASED = Framing(resize="pad", antialias=False)
SHAPE = (8, 8, 3)
MODULES = {".onnx": ("onnxruntime", "tf2onnx"), ".tflite": ("ai_edge_litert",), ".xml": ("openvino",)}
#: These want exp(x) - 1 to its last digits, which LiteRT and OpenVINO have not.
IMPRECISE = {"odin_temperature": (".tflite", ".xml")}


@pytest.fixture(params=FORMATS)
def ending(request):
    for module in MODULES[request.param]:
        pytest.importorskip(module, reason="comes with kood[export]")
    return request.param


def decided(model, score, outputs, by_class=True):
    """What decides by a score that is fitted on outputs, whose calibration scores tie with none of other images'."""
    labels = outputs["logits"].argmax(axis=1)
    scorer = Scorer(score).fit(outputs, np.arange(160) % 4, model.head)
    values = np.sort(score_rows(scorer, outputs, 80))
    return Served(
        scorer.name, SHAPE, ["a", "b", "c", "ß"], 0.65, (values[1:] + values[:-1]) / 2, scorer.state,
        labels=labels[1:], by_class=by_class, framing=ALIASED,
    )  # fmt: skip


def decision_of(model, served):
    """The decision in Keras."""
    return Decision(model, Scorer(served.score, served.state), served.decision)


def checked():
    """Images to compare on, NaN and an infinite number among them."""
    check = normalize(pixels(40, 2))
    check[3, 1, 1, 1], check[7, 0, 0, 2] = np.nan, np.inf
    return check


def made(score, head="Softmax", by_class=True):
    """A classifier, what decides by it, and images to compare on."""
    model = trained(head, activation="relu", width=24, turns=score.startswith("rotation"))
    outputs = run_over(forward_of(model, [score]), pixels(160, 1), 80)
    return model, decided(model, score, outputs, by_class), checked()


#: By what their classifier has; options where they make another graph. ODIN's takes a gradient, which no format has.
SCORES = {
    "Softmax": [
        *applicable({"features", "logits", "kernel", "bias"}),
        "ash:share=0.4,variant=B", "knn:k=3", "weiper:repeats=5", "relation:power=2", "energy:temperature=0.5",
    ],
    "CosFace": applicable({"cosines"}),
    "turning": applicable({"rotations"}),
}  # fmt: skip


class Scores(keras.Model):
    """The scores of several decisions of one classifier in one graph."""

    def __init__(self, decisions):
        super().__init__(dtype="float32")
        self.each, self.scored = decisions, next(iter(decisions.values())).scored

    def call(self, images, training=False):
        return {name: decision(images)["ood_score"] for name, decision in self.each.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SCORES)
def test_every_score(tmp_path, ending, kind, monkeypatch):
    turns = kind == "turning"
    model = trained("CosFace" if turns else kind, activation="relu", width=24, turns=turns)
    outputs = run_over(forward_of(model, SCORES[kind]), pixels(160, 1), 80)
    names = [name.replace(":", "_").replace("=", "_").replace(",", "_") for name in SCORES[kind]]
    made_of = zip(names, SCORES[kind], strict=True)
    decisions = {name: decision_of(model, decided(model, score, outputs)) for name, score in made_of}
    scores, check = Scores(decisions), checked()
    expected = {name: keras.ops.convert_to_numpy(values) for name, values in scores(check).items()}
    known = np.isfinite(check).all(axis=(1, 2, 3))
    assert known.sum() == 38 and all((values[~known] == UNKNOWN["ood_score"]).all() for values in expected.values())
    formats._convert(scores, SHAPE, tmp_path / f"all{ending}")
    monkeypatch.setattr(formats, "OUTPUTS", names)
    run = formats._runtime(tmp_path / f"all{ending}")
    for rows in (1, 40):
        got = run(check[:rows])
        assert got.keys() == set(names) and len(got) > (20 if kind == "Softmax" else 0)
        for name, values in expected.items():
            near, judged = formats.TOLERANCE * max(1.0, np.abs(values[known]).max()), known[:rows]
            np.testing.assert_array_equal(got[name][~judged], values[:rows][~judged])
            # Of NaN this is false.
            same = np.abs(got[name] - values[:rows])[judged] <= near
            assert same.all() or ending in IMPRECISE.get(name, ()), name


def refused(tmp_path, ending, score, told):
    model, served, check = made(score)
    with pytest.raises(UserError, match=told):
        export(model, served, tmp_path / f"it{ending}", check=check)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_openvino_is_opened_as_the_documentation_says(tmp_path):
    """In float32: of itself it takes bfloat16 where the processor has it, and a file cannot say which."""
    openvino = pytest.importorskip("openvino", reason="comes with kood[export]")
    model, served, check = made("energy")
    export(model, served, tmp_path / "it.xml", check=check)
    expected = keras.ops.convert_to_numpy(decision_of(model, served)(check)["probabilities"])
    told = [(DOCS / name).read_text() for name in ("attach.md", "serve.md")]
    for text in [*told, Detector.export.__doc__]:
        (options,) = re.findall(r"compile_model\([^{]+(\{.*?\}),?\s*\)", text)
        opened = openvino.Core().compile_model(tmp_path / "it.xml", "CPU", json.loads(options))
        assert np.abs(opened({"images": check})["probabilities"] - expected).max() < formats.TOLERANCE


def test_the_gradient_that_odin_takes_is_in_no_format(tmp_path, ending):
    refused(tmp_path, ending, "odin", "takes the gradient")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("score", "ending"), [(score, one) for score, every in IMPRECISE.items() for one in every], indirect=["ending"]
)
def test_a_score_at_which_another_arithmetic_shows_is_refused(tmp_path, ending, score):
    refused(tmp_path, ending, score, "does not answer as the Keras model does .ood_score;")


@pytest.mark.parametrize(
    ("ending", "score", "by_class"),
    [
        (".onnx", "knn", True),
        (".tflite", "knn", True),
        pytest.param(".xml", "knn", True, marks=pytest.mark.slow),
        *(pytest.param(one, "rotation_energy", False, marks=pytest.mark.slow) for one in FORMATS),
    ],
    indirect=["ending"],
)
def test_it_answers_as_keras_does_and_says_what_it_is(tmp_path, ending, score, by_class):
    model, served, check = made(score, by_class=by_class)
    expected = {name: keras.ops.convert_to_numpy(value) for name, value in decision_of(model, served)(check).items()}
    file = tmp_path / f"it{ending}"
    told = export(model, served, file, check=check)
    assert told["images"] == 40 and max(told["probabilities"], told["ood_score"]) < 1e-5
    assert sorted(tmp_path.iterdir()) == sorted(told["files"])
    run = formats._runtime(file)
    for rows in (1, 8, 40):
        got = run(check[:rows])
        assert got.keys() == set(OUTPUTS)
        unknown = expected["label"][:rows] < 0
        for name, nothing in UNKNOWN.items():
            assert np.all(got[name][unknown] == np.asarray(nothing, got[name].dtype))
        np.testing.assert_array_equal(got["label"], expected["label"][:rows])
        np.testing.assert_array_equal(got["is_ood"], expected["is_ood"][:rows])
        for name in ("probabilities", "ood_score", "p_value", "threshold"):
            np.testing.assert_allclose(got[name], expected[name][:rows], rtol=1e-5, atol=1e-5)
        assert set(got["version"]) == {0}
    facts = facts_in(file)
    assert (facts["score"], facts["accept"], facts["version"], facts["image_shape"]) == (score, 0.65, 0, [8, 8, 3])
    assert facts["class_names"] == served.class_names and facts["pixels"] == "-1..1" and facts["resize"] == "pad"
    assert facts["antialias"] is False
    assert facts["thresholds"] == served.decision.thresholds.tolist()


def facts_in(file):
    if file.suffix == ".onnx":
        onnx = pytest.importorskip("onnx")
        graph = onnx.load(file)
        dims = [value.type.tensor_type.shape.dim[0] for value in (*graph.graph.input, *graph.graph.output)]
        assert {one.dim_value or one.dim_param for one in dims} == {"batch"}
        return json.loads({one.key: one.value for one in graph.metadata_props}["kood"])
    if file.suffix == ".xml":
        openvino = pytest.importorskip("openvino")
        return json.loads(openvino.Core().read_model(file).get_rt_info("kood").astype(str))
    with zipfile.ZipFile(file) as archive:
        assert archive.read("labels.txt").decode() == "a\nb\nc\nß\n"
        return json.loads(archive.read("kood.json"))


@pytest.mark.backend
def test_from_every_backend(tmp_path):
    """In one format: what a backend hands over is the same for all of them."""
    pytest.importorskip("ai_edge_litert", reason="comes with kood[export]")
    model, served, check = made("mahalanobis", "CosFace")
    told = export(model, served, tmp_path / "it.tflite", check=check)
    assert told["images"] == 40 and told["probabilities"] < 1e-5
    assert sorted(tmp_path.iterdir()) == sorted(told["files"])


# What is written is held against the Keras model in one place for all formats.
@pytest.mark.parametrize(
    "ending", [one if one == ".tflite" else pytest.param(one, marks=pytest.mark.slow) for one in FORMATS], indirect=True
)
def test_a_file_that_disagrees_is_not_written(tmp_path, ending, monkeypatch):
    model, served, check = made("energy")
    (tmp_path / f"it{ending}").write_bytes(b"the old one")
    run = formats._runtime

    def other(file):
        answer = run(file)
        return lambda images: {**answer(images), "p_value": np.full(len(images), 0.5, "float32")}

    monkeypatch.setattr(formats, "_runtime", other)
    with pytest.raises(UserError, match="does not answer as the Keras model does .p_value;") as caught:
        export(model, served, tmp_path / f"it{ending}", check=check)
    assert caught.value.exit_code == 1
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"the old one"]


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(formats.CONVERTERS, "onnx", ("onnx", "tf2onnx_of_another_name"))
    with pytest.raises(UserError, match=r"tf2onnx_of_another_name is not installed; pip install 'kood\[export\]'"):
        export(*made("msp")[:2], tmp_path / "it.onnx")


def test_without_a_runtime_nothing_is_compared(tmp_path, monkeypatch):
    pytest.importorskip("tf2onnx", reason="comes with kood[export]")
    monkeypatch.setitem(formats.RUNTIMES, "onnx", "onnxruntime_of_another_name")
    model, served, check = made("msp")
    told = export(model, served, tmp_path / "it.onnx", check=check)
    assert told == {"format": "onnx", "files": [tmp_path / "it.onnx"], "images": 0}


class Strange(keras.Model):
    """A classifier with operations that other runtimes have not."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, pixels, training=False):
        found = self.inner(pixels, training=training)
        return {**found, "logits": keras.ops.erfinv(keras.ops.tanh(found["logits"]))}


@pytest.mark.parametrize(
    "ending", [pytest.param(one, marks=[pytest.mark.slow] * (one == ".xml")) for one in FORMATS], indirect=True
)
def test_operations_that_a_format_has_not(tmp_path, ending):
    model, served, check = made("msp")
    strange = Strange(model)
    strange(check)
    with pytest.raises(UserError, match="has not|cannot hold|cannot run"):
        export(strange, served, tmp_path / f"it{ending}", check=check)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_grouped_convolutions_and_gelu(tmp_path, ending):
    """Keras leaves the former to XLA, and TensorFlow makes erfc of the latter."""
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE)
    x = keras.layers.Conv2D(4 * SHAPE[2], 3, groups=SHAPE[2])(image)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Activation("gelu")(x))
    classifier = Classifier(keras.Model(image, x), heads.Softmax(4))
    classifier.build((None, *SHAPE))
    _, served, check = made("msp")
    told = export(classifier, served, tmp_path / f"it{ending}", check=check)
    assert told["images"] == len(check)
