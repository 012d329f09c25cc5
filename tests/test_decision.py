"""The decision in Keras operations: what NumPy's calibration decides, under every backend."""

import keras
import numpy as np
import pytest

from kood import heads
from kood.backends import compiled
from kood.classifier import Classifier
from kood.conformal import Calibration
from kood.data.images import normalize
from kood.decision import UNKNOWN, Decide, Decision
from kood.outputs import forward_of, run_over, score_rows, softmax
from kood.scorer import Scorer

pytestmark = pytest.mark.backend

LARGEST = float(np.finfo("float32").max)


def decided(calibration, scores, labels, pixels=None, version=0):
    count = len(scores)
    pixels = np.zeros((count, 2, 2, 1), "float32") if pixels is None else pixels
    answer = {
        "probabilities": np.full((count, calibration.num_classes), 0.5, "float32"), "label": np.asarray(labels),
        "ood_score": np.asarray(scores, "float32"),
    }  # fmt: skip
    answer = {name: keras.ops.convert_to_tensor(value) for name, value in answer.items()}
    told = Decide(calibration, version)(answer, keras.ops.convert_to_tensor(pixels))
    return {name: keras.ops.convert_to_numpy(value) for name, value in told.items()}


def tied(count, classes, seed):
    """Scores of few values, so that many tie and some are the threshold, with some that are no numbers."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(-6, 7, count).astype("float64") / 4
    scores[rng.permutation(count)[:4]] = [np.nan, np.inf, -np.inf, 3e38]
    return scores, rng.integers(0, classes, count)


@pytest.mark.parametrize(
    ("classes", "by_class", "accept"),
    [(1, False, 0.8), (1, True, 0.8), (4, False, 0.8), (4, True, 0.5), (4, True, 0.9)],
)
def test_it_decides_as_the_calibration_does(classes, by_class, accept):
    known, known_labels = tied(160, classes, 0)
    known_labels[:5] = -1  # What nothing could be said of.
    calibration = Calibration(known, known_labels, classes, accept, by_class)
    scores, labels = tied(400, classes, 1)
    scores[:classes], labels[:classes] = calibration.thresholds, np.arange(classes)
    got, numbers = decided(calibration, scores, labels), np.isfinite(scores)
    assert 5 < calibration.flagged(scores, labels)[numbers].sum() < 395
    np.testing.assert_array_equal(got["is_ood"], calibration.flagged(scores, labels))
    np.testing.assert_allclose(
        got["p_value"][numbers], calibration.p_values(scores, labels)[numbers], rtol=1e-6, atol=0
    )
    np.testing.assert_array_equal(got["threshold"][numbers], calibration.thresholds[labels][numbers].astype("float32"))
    np.testing.assert_array_equal(got["label"], np.where(numbers, labels, -1))
    for name in UNKNOWN:
        np.testing.assert_array_equal(got[name][~numbers], np.broadcast_to(UNKNOWN[name], got[name][~numbers].shape))


def test_classes_with_few_images_share_their_threshold():
    labels = np.repeat([0, 1, 2], [50, 3, 2])
    calibration = Calibration(np.arange(55.0), labels, 3, 0.8, True)
    scores, asked = np.float64([20, 40, 51, 53, 60]), np.array([0, 0, 1, 2, 2])
    got = decided(calibration, scores, asked)
    assert len(calibration.groups) == 2
    np.testing.assert_array_equal(got["is_ood"], calibration.flagged(scores, asked))
    np.testing.assert_allclose(got["p_value"], calibration.p_values(scores, asked), rtol=1e-6)


def test_scores_are_compared_in_float32():
    """A score on the threshold is accepted, though the threshold in float64 lies below it."""
    edge = np.float64(0.1)
    calibration = Calibration(np.full(19, edge), np.zeros(19, int), 1, 0.9)
    below, at, above = np.nextafter(np.float32(edge), np.float32([0, 0.1, 1]))
    assert float(at) > edge
    got = decided(calibration, [below, at, above], [0, 0, 0])
    assert got["is_ood"].tolist() == [False, False, True]
    np.testing.assert_allclose(got["p_value"], [1.0, 1.0, 1 / 20], rtol=1e-6)


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
def test_a_pixel_that_is_no_number_decides(strange):
    pixels = np.zeros((3, 2, 2, 1), "float32")
    pixels[1, 0, 1, 0] = strange
    got = decided(Calibration(np.arange(19.0), np.zeros(19, int), 4, 0.9), np.zeros(3), [3, 3, 3], pixels, version=7)
    assert got["label"].tolist() == [3, -1, 3] and got["is_ood"].tolist() == [False, True, False]
    assert got["ood_score"].tolist() == [0, pytest.approx(LARGEST), 0] and got["p_value"][1] == 0
    assert not got["probabilities"][1].any() and got["probabilities"][0].all() and got["version"].tolist() == [7] * 3


class Apart(keras.Model):
    """Another classifier than kood's, taken apart."""

    def __init__(self):
        super().__init__()
        self.body = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(5, "relu")])
        self.head = keras.layers.Dense(3)

    def call(self, pixels, training=False):
        features = self.body(pixels, training=training)
        return {"features": features, "logits": self.head(features)}


def own():
    inputs = keras.Input((6, 6, 3))
    features = keras.layers.Dense(5, "relu")(keras.layers.Flatten()(inputs))
    model = Classifier(keras.Model(inputs, features), heads.CosFace(3), rotation=0.5)
    model.build((None, 6, 6, 3))
    return model


#: Under each backend a score with a state and one of a gradient; the scores themselves stand in their own tests.
FURTHER = [(own, "max_cosine"), (Apart, "mahalanobis"), (own, "rotation")]


@pytest.mark.parametrize(
    ("make", "score"),
    [(own, "knn"), (own, "odin"), *(pytest.param(*one, marks=pytest.mark.one_backend) for one in FURTHER)],
)
def test_it_answers_as_its_parts(make, score):
    keras.utils.set_random_seed(0)
    model, rng = make(), np.random.default_rng(0)
    model(np.zeros((1, 6, 6, 3), "float32"))
    images = rng.integers(0, 256, (120, 6, 6, 3), np.uint8)
    outputs = run_over(forward_of(model, [score]), images, 40)
    labels = outputs["logits"].argmax(axis=1)
    scorer = Scorer(score).fit(outputs, labels, model.head)
    values = score_rows(scorer, outputs, 40)  # The score is placed on the device by now.
    calibration = Calibration(values[60:], labels[60:], 3, 0.8, by_class=True)
    decision = Decision(model, scorer, calibration)
    pixels = normalize(images[:40])
    pixels[5, 0, 0, 0] = np.nan
    kept = np.arange(40) != 5
    for told in (compiled(decision)(pixels), decision(pixels)):
        got = {name: keras.ops.convert_to_numpy(value) for name, value in told.items()}
        assert got["label"][5] == -1 and got["is_ood"][5] and np.isfinite(got["probabilities"]).all()
        np.testing.assert_array_equal(got["label"][kept], labels[:40][kept])
        np.testing.assert_allclose(got["probabilities"][kept], softmax(outputs["logits"])[:40][kept], atol=1e-6)
        np.testing.assert_allclose(got["ood_score"][kept], values[:40][kept], rtol=1e-4, atol=1e-5)
        own_scores, own_labels = got["ood_score"][kept].astype("float64"), got["label"][kept]
        np.testing.assert_allclose(got["p_value"][kept], calibration.p_values(own_scores, own_labels), rtol=1e-6)
        assert set(got["version"]) == {0}
    trainable = {id(variable) for variable in model.trainable_variables}
    assert {id(variable) for variable in decision.trainable_variables} == trainable
