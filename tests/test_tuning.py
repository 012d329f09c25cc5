"""The choice among a score's usual values, on outputs that are made up so that the best one is known."""

import keras
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from kood import heads, specs
from kood.classifier import Classifier
from kood.data import ImageSet
from kood.detector.choosing import PROXIES, tune
from kood.detector.evaluate import evaluate
from kood.outputs import run_over
from kood.scorer import Scorer

# Run once under each Keras backend.
pytestmark = [pytest.mark.backend, pytest.mark.usefixtures("as_written")]

CLASSES, WIDTH = 3, 40


def made_up():
    """Outputs of a linear head, and the head."""
    rng = np.random.default_rng(0)
    head = heads.Softmax(CLASSES)
    head.build((None, WIDTH))
    head.set_weights([rng.normal(size=(WIDTH, CLASSES)).astype("float32"), np.zeros(CLASSES, "float32")])

    def outputs(count, scale):
        features = np.abs(rng.normal(size=(count, WIDTH)) * scale).astype("float32")
        return {"features": features, "logits": features @ np.asarray(head.get_weights()[0])}

    return outputs(300, 1.0), rng.integers(0, CLASSES, 300), head, {
        "validation": outputs(200, 1.0), "one": outputs(150, np.linspace(0.5, 2, WIDTH)), "two": outputs(90, 1.2),
    }  # fmt: skip


def test_every_setting_is_tried_and_the_best_taken():
    fitted, labels, head, held = made_up()
    chosen, told = tune(
        ["ash", "energy", "msp", "knn:k=3", "knn"], fitted, labels, head, held, np.arange(200) % CLASSES, 64
    )
    assert set(told) == set(chosen) == {"ash", "energy", "knn"}
    assert set(told["ash"]["tried"]) == set(specs.settings("ash"))
    for setting, auroc in told["ash"]["tried"].items():
        scorer = Scorer(setting).fit(fitted, labels, head)
        values = {where: keras.ops.convert_to_numpy(scorer(outputs)) for where, outputs in held.items()}
        expected = [
            roc_auc_score(np.repeat([0, 1], [200, len(values[where])]), np.r_[values["validation"], values[where]])
            for where in ("one", "two")
        ]
        np.testing.assert_allclose(auroc, np.mean(expected), atol=1e-4)
    assert chosen["ash"] == max(told["ash"]["tried"], key=told["ash"]["tried"].get) == told["ash"]["chosen"]
    # The 1000th of 300 features is no neighbour.
    assert "knn:k=1000" not in told["knn"]["tried"] and {"knn", "knn:k=10", "knn:k=200"} <= set(told["knn"]["tried"])


def test_scores_that_ask_for_unseen_images_are_tried_as_they_are_fitted():
    fitted, labels, head, held = made_up()
    unseen = np.arange(200) % CLASSES
    assert Scorer("tempscale").takes_unseen
    for outputs in (*held.values(), fitted):
        outputs[Scorer("adascale").inputs["shifted"]] = outputs["features"] * np.float32(1.1)
    told = tune(["adascale"], fitted, labels, head, held, unseen, 64)[1]
    for setting, auroc in told["adascale"]["tried"].items():
        scorer = Scorer(setting).fit(held["validation"], unseen, head)
        values = {where: keras.ops.convert_to_numpy(scorer(outputs)) for where, outputs in held.items()}
        expected = [
            roc_auc_score(np.repeat([0, 1], [200, len(values[where])]), np.r_[values["validation"], values[where]])
            for where in ("one", "two")
        ]
        np.testing.assert_allclose(auroc, np.mean(expected), atol=1e-4)


def test_of_equal_settings_the_default_is_taken():
    fitted, labels, head, held = made_up()
    same = {"validation": held["validation"], "one": held["validation"]}
    chosen, told = tune(["energy", "ash", "knn", "gen"], fitted, labels, head, same, np.arange(200) % CLASSES, 64)
    assert chosen == {name: name for name in ("energy", "ash", "knn", "gen")}
    assert set(told["energy"]["tried"].values()) == {0.5}


SHAPE = (4, 4, 1)


def image_set(count, seed, lift=0):
    rng = np.random.default_rng(seed)
    pixels, labels = rng.integers(0, 60, (count, *SHAPE)), np.arange(count) % CLASSES
    pixels[np.arange(count), labels] += 150
    return ImageSet(np.clip(pixels + lift, 0, 255).astype("uint8"), labels, tuple("abc"))


@pytest.fixture(scope="module")
def classifier():
    keras.utils.set_random_seed(1)
    inputs = keras.Input(SHAPE)
    backbone = keras.Model(inputs, keras.layers.Dense(12, activation="relu")(keras.layers.Flatten()(inputs)))
    model = Classifier(backbone, heads.Softmax(CLASSES))
    model.build((None, *SHAPE))
    return model


def measured(classifier, **options):
    sets = {name: image_set(60, i) for i, name in enumerate(("train", "validation", "calibration", "test"))}
    return evaluate(classifier, **sets, near={"near": image_set(30, 9, 40)}, far={}, **options)


def test_scores_are_measured_as_they_were_chosen(classifier):
    names = ["msp", "ash", "odin", "energy:temperature=7", "ash:share=0.5"]
    found = measured(classifier, names=names, headline="odin", tune=True)
    told = found.figures["tuned"]
    assert set(told) == {"ash", "odin"}
    assert set(told["odin"]["tried"]) == set(specs.settings("odin"))
    best = {name: one["chosen"] for name, one in told.items()}
    assert set(found.figures["scores"]) == {"msp", *best.values(), "energy:temperature=7", "ash:share=0.5"}
    assert found.figures["headline_score"] == found.figures["threshold"]["score"] == best["odin"]
    assert found.figures["validation_sets"] == list(PROXIES)
    # As if it had been named so.
    plain = measured(classifier, names=[best["odin"]], headline=best["odin"])
    np.testing.assert_allclose(found.scores["near"][best["odin"]], plain.scores["near"][best["odin"]], atol=1e-6)
    assert "tuned" not in plain.figures


def test_options_that_few_images_chose_are_doubted(classifier):
    names = ["msp", "ash", "odin"]
    for count in (49, 50):
        few = {"few": image_set(count, 11)}
        found = measured(classifier, names=names, headline="odin", tune=True, validation_ood=few)
        tried = sum(len(one["tried"]) for one in found.figures["tuned"].values())
        told = f"the options of ash, odin were chosen from {tried} settings on {count} images, where chance decides"
        assert any(one.startswith(told) for one in found.figures["warnings"]) == (count < 50)


def test_the_choice_looks_at_validation_images_alone_and_each_image_passes_once(classifier, monkeypatch):
    runs = []

    def counted(forward, images, batch_size):
        runs.append(len(images))
        return run_over(forward, images, batch_size)

    monkeypatch.setattr("kood.detector.measuring.run_over", counted)
    found = measured(classifier, tune=True)
    assert sorted(runs) == sorted([60, 60, 60, 60, 60, 60, 60, 30])  # Three proxies; the last of training.
    assert {"ash", "odin"}.isdisjoint(found.figures["tuned"]) and "react" in found.figures["tuned"]
    other = evaluate(
        classifier, **{name: image_set(60, i) for i, name in enumerate(("train", "validation", "calibration"))},
        test=image_set(50, 77), near={}, far={}, tune=True,
    )  # fmt: skip
    assert other.figures["tuned"] == found.figures["tuned"]
