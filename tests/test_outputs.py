"""ODIN's perturbed images, against their gradient written out; and the outputs that scores ask for."""

import sys

import keras
import numpy as np
import pytest
from keras import ops

from kood import heads, registry, scores
from kood.classifier import Classifier
from kood.data import ImageSet
from kood.detector.evaluate import evaluate
from kood.errors import UserError
from kood.outputs import forward_of, outputs_of, perturbed_logits, run_over, score_rows, scores_of, shifted_features
from kood.scorer import Scorer, applicable

pytestmark = pytest.mark.backend  # Run once under each Keras backend.

SHAPE, CLASSES = (3, 4, 1), 3
#: The name of the output that ODIN takes by its defaults.
ODINS = "perturbed:epsilon=0.0028,temperature=1000"


@pytest.fixture(params=["Softmax", pytest.param("CosFace", marks=pytest.mark.one_backend)])
def classifier(request):
    keras.utils.set_random_seed(1)
    inputs = keras.Input(SHAPE)
    backbone = keras.Model(inputs, keras.layers.Dense(5, activation="tanh")(keras.layers.Flatten()(inputs)))
    model = Classifier(backbone, getattr(heads, request.param)(CLASSES))
    model.build((None, *SHAPE))
    return model


def pictures(count=20, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, *SHAPE)).astype("float32")


def surprise64(classifier, images, temperature):
    """-log of the largest softmax probability at a temperature, in float64 as far as the classifier goes."""
    logits = ops.convert_to_numpy(classifier(images)["logits"]).astype("float64") / temperature
    return np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1))


def slope(classifier, images, temperature=1.0, step=1e-2):
    """The gradient by central differences, one pixel at a time."""
    found = np.zeros(images.shape)
    for place in np.ndindex(*SHAPE):
        moved = np.zeros(SHAPE, "float32")
        moved[place] = step
        up, down = (surprise64(classifier, images + sign * moved, temperature) for sign in (1, -1))
        found[(slice(None), *place)] = (up - down) / (2 * step)
    return found


def test_images_move_against_the_gradient(classifier):
    images, epsilon = pictures(), 0.05
    gradient = slope(classifier, images)
    sure = np.abs(gradient) > 2e-3  # Elsewhere the difference quotient does not know the sign.
    assert sure.mean() > 0.7
    found = ops.convert_to_numpy(perturbed_logits(classifier, epsilon, 1.0)(images))
    expected = images - epsilon * np.sign(gradient)
    assert found.shape == (20, CLASSES)
    rows = sure.all(axis=(1, 2, 3))
    assert rows.any()
    same = ops.convert_to_numpy(classifier(expected[rows].astype("float32"))["logits"])
    np.testing.assert_allclose(found[rows], same, rtol=1e-4, atol=1e-5)


def test_what_matters_least_is_moved_towards_the_label(classifier):
    """By central differences of the largest logit; a third of the numbers, and none where so few are asked for."""
    images, epsilon, pixels = pictures(60), 0.1, 0.34

    def largest(given):
        return ops.convert_to_numpy(classifier(given)["logits"]).astype("float64").max(axis=1)

    by, step = np.zeros(images.shape), 1e-2
    for place in np.ndindex(*SHAPE):
        change = np.zeros(SHAPE, "float32")
        change[place] = step
        by[(slice(None), *place)] = (largest(images + change) - largest(images - change)) / (2 * step)
    size = np.sort(np.abs(by).reshape(len(images), -1), axis=1)
    count = int(pixels * size.shape[1])
    # Where the difference quotient knows which are the least, and their signs, and which logit is the largest.
    logits = np.sort(ops.convert_to_numpy(classifier(images)["logits"]), axis=1)
    rows = (size[:, count] - size[:, count - 1] > 2e-3) & (size[:, 0] > 2e-3) & (logits[:, -1] - logits[:, -2] > 0.1)
    assert rows.sum() >= 2 and count >= 2
    mask = np.abs(by) <= size[:, count - 1][:, None, None, None]
    assert (mask.sum(axis=(1, 2, 3)) == count).all()
    expected = (images + epsilon * np.sign(by) * mask).astype("float32")
    found = ops.convert_to_numpy(shifted_features(classifier, epsilon, pixels)(images))
    same = ops.convert_to_numpy(classifier(expected)["features"])
    np.testing.assert_allclose(found[rows], same[rows], rtol=1e-3, atol=1e-4)
    still = ops.convert_to_numpy(shifted_features(classifier, epsilon, 1e-9)(images))
    np.testing.assert_allclose(still, ops.convert_to_numpy(classifier(images)["features"]), rtol=1e-5, atol=1e-6)


def test_the_perturbation_makes_images_surer(classifier):
    images = pictures()
    before = surprise64(classifier, images, 1.0)
    logits = ops.convert_to_numpy(perturbed_logits(classifier, 0.01, 1.0)(images)).astype("float64")
    after = np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1))
    assert (after < before).all()


def test_the_step_is_that_of_odins_authors(classifier):
    """They divide 0.0014 by the standard deviation that pixels in [0, 1] were divided by: so much of black to white."""
    images = pictures()
    found = ops.convert_to_numpy(forward_of(classifier, ["odin"])(images)[ODINS])
    same = ops.convert_to_numpy(perturbed_logits(classifier, 0.0028, 1000.0)(images))
    np.testing.assert_array_equal(found, same)


def test_no_perturbation_is_the_temperature_alone(classifier):
    images = pictures()
    still = ops.convert_to_numpy(perturbed_logits(classifier, 0.0, 1000.0)(images))
    np.testing.assert_allclose(still, ops.convert_to_numpy(classifier(images)["logits"]), atol=1e-6)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(scores.odin(still)), ops.convert_to_numpy(scores.odin_temperature(still))
    )


def test_perturbed_logits_are_made_only_where_a_score_asks(classifier):
    images = pictures(4)
    assert ODINS not in forward_of(classifier)(images)
    assert ODINS not in forward_of(classifier, ["msp", "knn"])(images)
    assert forward_of(classifier, ["msp", "odin"])(images)[ODINS].shape == (4, CLASSES)
    assert "odin" not in applicable(outputs_of(classifier, np.zeros((2, *SHAPE), "uint8"), 2))


@pytest.mark.parametrize(("epsilon", "temperature"), [(0.05, 2.0), (0.02, 1000.0)])
def test_odins_options_are_those_of_the_perturbation_and_of_the_score(classifier, epsilon, temperature):
    images, spec = pictures(), f"odin:temperature={temperature},epsilon={epsilon}"
    scorer = Scorer(spec)
    outputs = forward_of(classifier, ["odin", spec, "msp"])(images)
    named = scorer.inputs["perturbed"]
    assert named != ODINS and {ODINS, named} < set(outputs)
    gradient = slope(classifier, images, temperature)
    sure = (np.abs(gradient) > 2e-3 / temperature).all(axis=(1, 2, 3))
    assert sure.any() or temperature > 2  # At a high temperature the difference quotient knows too few signs.
    moved = (images - epsilon * np.sign(gradient)).astype("float32")[sure]
    logits = ops.convert_to_numpy(classifier(moved)["logits"]).astype("float64") / temperature if sure.any() else None
    if logits is not None:
        p = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).max(axis=1)
        found = ops.convert_to_numpy(scorer(outputs))[sure]
        np.testing.assert_allclose(found, temperature * np.log((1 - p) / ((CLASSES - 1) * p)), rtol=1e-3, atol=1e-3)
    # And what is not named so stays under the defaults.
    np.testing.assert_array_equal(
        ops.convert_to_numpy(outputs[ODINS]),
        ops.convert_to_numpy(forward_of(classifier, ["odin"])(images)[ODINS]),
    )
    expected = scores.odin(perturbed_logits(classifier, epsilon, temperature)(images), temperature, epsilon)
    np.testing.assert_array_equal(ops.convert_to_numpy(scorer(outputs)), ops.convert_to_numpy(expected))


THEIRS = """
from keras import ops

def eager(perturbed, temperature=10, epsilon=0.2):
    return -ops.max(perturbed, axis=-1)

def alike(perturbed, temperature=1000, epsilon=0.0028):
    return -ops.max(perturbed, axis=-1)

def shift(shifted, features, pixels=0.5, epsilon=0.2):
    return ops.sum(ops.abs(shifted - features), axis=-1)
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A module of another package, whose scores have other defaults than kood's."""
    (tmp_path / "moving_scores.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path)
    yield "moving_scores"
    sys.modules.pop("moving_scores", None)
    registry._loaded.cache_clear()


@pytest.mark.parametrize("turned", [1, -1])
def test_scores_with_other_defaults_are_measured_each_under_its_own(classifier, theirs, turned):
    images, names = pictures(), ["odin", f"{theirs}:eager", f"{theirs}:shift", f"{theirs}:shift:epsilon=0.4"][::turned]
    together = forward_of(classifier, names)(images)
    for name in names:
        scorer, alone = Scorer(name), forward_of(classifier, [name])(images)
        np.testing.assert_array_equal(*(ops.convert_to_numpy(scorer(outputs)) for outputs in (together, alone)))
    own = -ops.convert_to_numpy(perturbed_logits(classifier, 0.2, 10.0)(images)).max(axis=1)
    np.testing.assert_array_equal(ops.convert_to_numpy(Scorer(f"{theirs}:eager")(together)), own)
    assert Scorer(f"{theirs}:alike").inputs == Scorer("odin").inputs  # One pass of the moved images for both.


def image_set(count, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    return ImageSet(pixels, np.arange(count) % CLASSES, tuple("abc"))


def test_odin_is_measured_where_it_is_named(classifier):
    sets = {name: image_set(30, i) for i, name in enumerate(("train", "validation", "calibration", "test"))}
    names = ["odin", "msp", "odin:epsilon=0.3"]
    result = evaluate(classifier, **sets, near={"near": image_set(20, 9)}, far={}, names=names)
    assert set(result.figures["scores"]) == set(names)
    for name in ("odin", "odin:epsilon=0.3"):
        alone = scores_of(classifier, Scorer(name), image_set(20, 9).images, 7)
        np.testing.assert_allclose(result.scores["near"][name], alone, rtol=1e-6, atol=1e-6)
    assert not np.allclose(result.scores["near"]["odin"], alone, atol=1e-4)


@pytest.mark.parametrize(
    ("headline", "names"), [("odin", None), ("odin_temperature", ["msp"]), ("klmatching", ["msp"])]
)
def test_a_headline_is_measured_where_it_is_named_alone(classifier, headline, names):
    sets = {name: image_set(30, i) for i, name in enumerate(("train", "validation", "calibration", "test"))}
    result = evaluate(classifier, **sets, near={"near": image_set(20, 9)}, far={}, names=names, headline=headline)
    assert result.figures["headline_score"] == headline and headline in result.figures["scores"]
    assert "msp" in result.figures["scores"] and "angular_energy" not in result.figures["scores"]
    alone = evaluate(classifier, **sets, near={"near": image_set(20, 9)}, far={}, names=[headline], headline=headline)
    np.testing.assert_allclose(result.kept["calibration"]["scores"], alone.kept["calibration"]["scores"], atol=1e-6)
    assert result.figures["threshold"]["value"] == pytest.approx(alone.figures["threshold"]["value"], abs=1e-6)


def test_a_headline_that_cannot_be_fitted_is_refused(classifier):
    sets = {name: image_set(30, i) for i, name in enumerate(("train", "validation", "calibration", "test"))}
    with pytest.raises(UserError, match="knn cannot be fitted"):
        evaluate(classifier, **sets, near={}, far={}, headline="knn")
    result = evaluate(classifier, **sets, near={}, far={}, headline="msp")
    assert any("knn cannot be fitted" in note for note in result.figures["notes"])


@pytest.mark.one_backend
@pytest.mark.parametrize(("side", "most"), [(256, 8), (64, 128), (8, 200)])
def test_large_images_pass_a_few_at_a_time(side, most):
    sizes = set()
    given = np.arange(200, dtype=np.uint8)[:, None, None, None] + np.zeros((1, side, side, 1), np.uint8)
    found = run_over(lambda images: sizes.add(len(images)) or {"first": images[:, 0, 0]}, given, 200)
    assert sizes == {most}
    np.testing.assert_allclose(found["first"][:, 0], np.arange(200) / 127.5 - 1, atol=1e-6)


def test_large_outputs_lie_on_disk_and_are_the_same(classifier, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (23, *SHAPE), np.uint8)
    expected = outputs_of(classifier, images, 8)
    monkeypatch.setattr("kood.data.large.IN_MEMORY", 0)
    found = outputs_of(classifier, images, 8)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert isinstance(values, np.memmap)
        np.testing.assert_array_equal(values, expected[name])


def test_sets_of_about_one_size_are_scored_in_blocks_of_one_size():
    sizes = []

    class Counting:
        def place(self):
            pass

        def values(self, outputs, rows):
            sizes.append(len(rows))
            return outputs["logits"][rows, 0]

    for count in (1, 64, 65, 80, 127, 129, 400, 600):
        logits = np.arange(count, dtype="float32")[:, None]
        np.testing.assert_array_equal(score_rows(Counting(), {"logits": logits}, 64), logits[:, 0])
    assert sizes == [64, 64, 128, 128, 128, 256, 512, 512, 512]
