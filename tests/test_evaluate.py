"""Evaluation: the threshold's guarantee, the choice of the headline score, means, warnings."""

import functools
import tracemalloc
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from kood import heads, registry
from kood.classifier import Classifier
from kood.conformal import Calibration
from kood.conformal import threshold as conformal_threshold
from kood.data import ImageSet
from kood.detector.choosing import (
    MOST_PROXIES,
    PROXIES,
    Choice,
    Measured,
    mean_auroc,
    proxies,
    proxies_of,
    validation_images,
)
from kood.detector.evaluate import evaluate
from kood.detector.figures import details_of, no_better, rarely_accepted, undetected
from kood.detector.measuring import Measuring
from kood.errors import UserError
from kood.intervals import auroc_interval
from kood.outputs import outputs_of, score_rows
from kood.pipeline.held_out import notes_of, told_folds
from kood.report.wording import all_warnings, validation_note
from kood.scorer import Scorer, applicable, linear_weights
from kood.scores import ON_REQUEST, TempScale

pytestmark = pytest.mark.backend  # Run once under each Keras backend.


def test_the_threshold_is_the_conformal_quantile():
    values = np.arange(1.0, 100.0)
    assert conformal_threshold(values, 0.95) == 95.0  # ceil(100 * 0.95)
    assert conformal_threshold(values, 0.951) == 96.0
    assert conformal_threshold(np.array([3.0]), 0.5) == 3.0
    assert conformal_threshold(np.full(30, 2.0), 0.9) == 2.0


def test_too_few_calibration_images():
    with pytest.raises(UserError, match="at least 19 calibration images, there are 18"):
        conformal_threshold(np.arange(18.0), 0.95)
    assert conformal_threshold(np.arange(19.0), 0.95) == 18.0


def test_the_guarantee_holds_on_average():
    rng = np.random.default_rng(0)
    accepted = [np.mean(rng.normal(size=2000) <= conformal_threshold(rng.normal(size=39), 0.9)) for _ in range(400)]
    # Exactly ceil(40 * 0.9) / 40 = 0.9 in expectation.
    assert abs(np.mean(accepted) - 0.9) < 0.007


def images(count, seed, level=None):
    """Class k is bright in column k; an out-of-distribution image is bright everywhere, or nowhere."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (count, 4, 4, 1))
    labels = np.arange(count) % 4
    if level is None:
        pixels[np.arange(count), :, labels] += 180
    else:
        pixels += level
    return ImageSet(pixels.astype("uint8"), labels.astype("int64"), ("a", "b", "c", "d"))


@pytest.fixture(scope="module", params=["Softmax", pytest.param("CosFace", marks=pytest.mark.one_backend)])
def classifier(request):
    inputs = keras.Input((4, 4, 1))
    features = keras.layers.Flatten()(inputs)
    backbone = keras.Model(inputs, keras.layers.Dense(6)(features))
    model = Classifier(backbone, getattr(heads, request.param)(4))
    model.build((None, 4, 4, 1))
    columns = np.zeros((16, 6), "float32")
    for k in range(4):
        columns[k::4, k] = 1.0
    columns[:, 4:] = np.random.default_rng(0).normal(size=(16, 2)) * 0.01
    backbone.layers[-1].set_weights([columns, np.array([4, 4, 4, 4, 0, 0], "float32")])
    prototypes = np.eye(6, 4, dtype="float32")
    model.head.set_weights([prototypes, np.zeros(4, "float32")][: len(model.head.get_weights())])
    return model


#: Where it does not matter which: of logits, of features, and of both.
FEW = ["msp", "energy", "knn", "vim"]


def measure(classifier, **options):
    return measured(classifier, **options) if options else plainly_measured(classifier)


@functools.cache
def plainly_measured(classifier):
    """What many tests look at, made once for each classifier."""
    return measured(classifier)


def measured(classifier, **options):
    sets = {"train": images(200, 1), "validation": images(40, 2), "calibration": images(60, 3), "test": images(80, 4)}
    return evaluate(classifier, **sets, near={"bright": images(50, 5, 180)}, far={"dark": images(70, 6, 0)}, **options)


@pytest.mark.one_backend
def test_small_sets_of_about_one_size_share_a_compiled_shape(classifier):
    measuring, sizes = Measuring(classifier, scores=["msp"], batch_size=128), []
    forward = measuring._normal
    measuring.__dict__["_normal"] = lambda rows: sizes.append(len(rows)) or forward(rows)
    found = measuring.measure({str(count): images(count, count) for count in (1, 33, 40, 64, 65, 128, 300)})
    assert sizes == [1, 64, 64, 64, 128, 128, 128, 128, 128]
    for count in (1, 33, 300):
        logits = np.float64(outputs_of(classifier, images(count, count).images, 7)["logits"])
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found.scores[str(count)]["msp"], 1 - probabilities.max(axis=1), atol=1e-6)


def test_figures_are_those_of_the_scores(classifier):
    result = measure(classifier, batch_size=33, names=FEW)
    figures = result.figures
    assert (figures["id"]["accuracy"], figures["id"]["images"]) == (1.0, 80)
    for score, measured in figures["scores"].items():
        for kind, name in (("near", "bright"), ("far", "dark")):
            inside, outside = result.scores["id"][score], result.scores[name][score]
            truth = np.repeat([0, 1], [len(inside), len(outside)])
            expected = roc_auc_score(truth, np.concatenate([inside, outside]))
            np.testing.assert_allclose(measured[name]["auroc"], expected, rtol=1e-12)
            assert measured[kind] == measured[name]
    headline = figures["headline_score"]
    assert figures["validation"][headline] == max(figures["validation"].values())
    threshold = figures["threshold"]
    assert threshold["accepted_id_test"] == np.mean(result.scores["id"][headline] <= threshold["value"])
    for name, count in (("bright", 50), ("dark", 70)):
        found, share = threshold["flagged"][name], np.mean(result.scores[name][headline] > threshold["value"])
        assert (found["share"], found["images"]) == (share, count)
        sure = binomtest(round(share * count), count).proportion_ci(0.95, "exact")
        np.testing.assert_allclose(found["interval"], sure, atol=1e-12)
    outputs = outputs_of(classifier, images(80, 4).images, 512)
    np.testing.assert_allclose(result.kept["parity"]["label"], outputs["logits"].argmax(1))


def test_a_score_that_moves_pixels_needs_their_gradient():
    inputs = keras.Input((4, 4, 1))
    features = keras.layers.Flatten()(keras.ops.round(100 * inputs))
    whole = Classifier(keras.Model(inputs, keras.layers.Dense(6)(features)), heads.Softmax(4))
    whole.build((None, 4, 4, 1))
    with pytest.raises(UserError, match="^evaluate.scores: odin moves pixels by a gradient, and the model has none"):
        measure(whole, names=["odin"])


def test_a_score_that_few_images_chose_is_doubted(classifier):
    few, named = measure(classifier, names=FEW), measure(classifier, names=FEW, headline="energy")
    assert any("on 40 images, where chance decides" in one for one in few.figures["warnings"])
    assert not any("chance decides" in one for one in named.figures["warnings"])
    rare = measure(classifier, names=FEW, validation_ood={"rare": images(3, 7)})
    assert any("on 3 images, where chance decides" in one for one in rare.figures["warnings"])
    both = {"msp": 0.9, "energy": 0.8}
    assert Choice("msp", both, [], 49).doubts and not Choice("msp", {"msp": 0.9}, [], 9).doubts
    assert not Choice("msp", both, [], 50).doubts
    # Images of the user's own may have the name of one of the sets that are drawn.
    for own in (["pictures", "theirs"], ["patch_shuffle", "pictures", "mine"]):
        listed = ", ".join(own[:-1])
        assert f"images from {listed} and {own[-1]} (" in Choice("msp", both, own, 99).told()[0]


def test_details_are_of_the_images_they_name(classifier, monkeypatch):
    monkeypatch.setattr("kood.detector.figures.ON_THE_PLANE", 30)
    result = measure(classifier, names=["msp"])
    details, test = result.kept["details"], images(80, 4)
    outputs = outputs_of(classifier, test.images, 512)
    logits = outputs["logits"].astype("float64")
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(details["confidence"], probabilities.max(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(details["correct"], logits.argmax(axis=1) == test.labels)
    gaps, place = 0.0, np.minimum((details["confidence"] * 15).astype(int), 14)
    for b in np.unique(place):
        own = place == b
        gaps += own.sum() / 80 * abs(details["correct"][own].mean() - details["confidence"][own].mean())
    assert abs(result.figures["id"]["ece"] - gaps) < 1e-9
    # The plane holds as much of the features' variance as any two directions can.
    features = outputs["features"].astype("float64") - outputs["features"].mean(axis=0)
    rows = details["id/plane_rows"]
    assert len(rows) == 30 == len(details["id/plane"]) and rows[0] == 0 and rows[-1] == 79
    most = np.linalg.svd(features, full_matrices=False)
    expected = features[rows] @ most.Vh[:2].T
    np.testing.assert_allclose(np.abs(details["id/plane"]), np.abs(expected), atol=1e-3)
    for name, sign, count in (("id", -1, 80), ("bright", 1, 50), ("dark", 1, 70)):
        scores = result.scores[name]["msp"]
        np.testing.assert_array_equal(details[f"{name}/extreme"], np.argsort(sign * scores, kind="stable")[:8])
        assert len(scores) == count and details[f"{name}/predicted"].shape == (8,)
    given = outputs_of(classifier, images(50, 5, 180).images, 512)["logits"].argmax(axis=1)
    np.testing.assert_array_equal(details["bright/predicted"], given[details["bright/extreme"]])


@pytest.mark.one_backend
@pytest.mark.parametrize("shape", [(20_000, 128), (128, 20_000)])
def test_a_plane_takes_less_memory_than_the_features(shape, monkeypatch):
    monkeypatch.setattr("kood.data.large._BLOCK", 2**20)
    monkeypatch.setattr("kood.detector.figures.ON_THE_PLANE", 20)
    rng = np.random.default_rng(0)
    features = 3 + rng.normal(size=shape).astype("float32")
    features[: shape[0] // 2] += rng.normal(size=shape[1]).astype("float32")
    features[::2] += rng.normal(size=shape[1]).astype("float32")
    outputs = {"features": features, "logits": np.zeros((shape[0], 2), "float32")}
    measured = Measured({"id": outputs}, {"id": {"msp": np.arange(shape[0])}}, [], {"id": np.zeros(shape[0])})
    tracemalloc.start()
    details = details_of(measured, "msp", ["id"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < features.nbytes
    center = features.mean(axis=0, dtype="float64")
    most = np.linalg.svd(features - center, full_matrices=False)
    expected = (features - center)[details["id/plane_rows"]] @ most.Vh[:2].T
    np.testing.assert_allclose(np.abs(details["id/plane"]), np.abs(expected), atol=1e-3)


def test_the_choice_does_not_look_at_the_test_sets(classifier):
    one = measure(classifier, names=FEW).figures
    sets = {"train": images(200, 1), "validation": images(40, 2), "calibration": images(60, 3), "test": images(80, 4)}
    other = evaluate(classifier, **sets, near={}, far={"noise": images(9, 7, 90)}, names=FEW).figures
    assert one["validation"] == other["validation"] and one["headline_score"] == other["headline_score"]
    assert one["threshold"].pop("flagged").keys() == {"bright", "dark"}
    assert other["threshold"].pop("flagged").keys() == {"noise"}
    assert one["threshold"] == other["threshold"]
    assert "near" not in other["scores"][other["headline_score"]]


def test_the_choice_is_made_on_the_sets_that_are_given(classifier):
    given = {"dim": images(30, 8, 20), "glare": images(50, 9, 150)}
    result = measure(classifier, validation_ood=given, names=FEW)
    assert result.figures["validation_sets"] == ["dim", "glare"]
    assert set(result.scores) == {"id", "bright", "dark"}  # Nothing is reported on them.
    outputs = {name: outputs_of(classifier, one.images, 512) for name, one in given.items()}
    inside = outputs_of(classifier, images(40, 2).images, 512)
    energies = {k: -np.logaddexp.reduce(np.float64(o["logits"]), axis=1) for k, o in {**outputs, "id": inside}.items()}
    expected = [
        roc_auc_score([0] * 40 + [1] * len(energies[k]), np.concatenate([energies["id"], energies[k]])) for k in given
    ]
    np.testing.assert_allclose(result.figures["validation"]["energy"], np.mean(expected), atol=1e-3)
    assert measure(classifier).figures["validation_sets"] == list(PROXIES)
    assert measure(classifier, names=["msp"], headline="msp").figures["validation_sets"] == []


@pytest.mark.parametrize(
    ("sets", "told"), [(PROXIES, "the validation proxies"), (("pictures", "dogs"), "pictures, dogs")]
)
def test_reports_know_the_proxies_by_name(sets, told):
    cell = {"headline_score": "gen", "validation": {"gen": 0.9, "msp": 0.8}, "validation_sets": list(sets)}
    assert validation_note(cell) == f"Headline score gen: 90.0 AUROC on {told}, the best."


def test_proxies_are_made_of_some_images_of_every_class_where_there_are_many():
    levels = np.repeat(np.arange(1, 5, dtype=np.uint8), 3 * MOST_PROXIES)[:, None, None, None]
    held = ImageSet(np.broadcast_to(levels, (len(levels), 8, 8, 3)), levels[:, 0, 0, 0] - np.int64(1), tuple("abcd"))
    made = proxies(held, 0)
    assert {name: len(one) for name, one in made.items()} == dict.fromkeys(PROXIES, MOST_PROXIES)
    # A shuffle of a flat image is that image.
    counts = np.bincount(made["patch_shuffle"].images[:, 0, 0, 0], minlength=5)
    assert counts[0] == 0 and counts[1:].min() >= MOST_PROXIES // 4 - 1
    few = proxies(held.take(np.arange(0, len(held), 100)), 0)
    assert {len(one) for one in few.values()} == {len(range(0, len(held), 100))}
    # Of each kind of drawn pictures some, of no other shape, and the same ones each time.
    assert len(np.unique(made["pictures"].images.reshape(MOST_PROXIES, -1), axis=0)) > MOST_PROXIES // 2
    np.testing.assert_array_equal(made["pictures"].images, proxies(held, 9)["pictures"].images)
    assert made["pictures"].images.shape[1:] == held.images.shape[1:]
    # A single image of another class, which thinning leaves out.
    for alone in (held.take(np.arange(9)), held.take(np.r_[np.arange(700), 2000, np.arange(700)])):
        assert list(proxies(alone, 0)) == proxies_of(alone) == ["patch_shuffle", "pictures"]


@pytest.mark.parametrize("given", [None, {"glare": images(50, 9, 150)}])
def test_validation_alone_gives_the_figures_of_the_whole_evaluation(classifier, given):
    held = images(40, 2)
    measuring = Measuring(classifier, class_names=held.class_names, scores=FEW)
    measuring.fit_scores(images(200, 1))
    found = measuring.measure(validation_images(held, given, 0))
    whole = measure(classifier, validation_ood=given, names=FEW)
    sets = list(given or PROXIES)
    assert found.correct("validation").all() and whole.validation_correct.all()
    assert set(measuring.scorers) == set(whole.figures["scores"])
    for name in measuring.scorers:
        alone, among = (
            mean_auroc(by["validation"][name], [by[where][name] for where in sets])
            for by in (found.scores, whole.validation)
        )
        np.testing.assert_allclose(alone, whole.figures["validation"][name], atol=2e-3)
        assert among == whole.figures["validation"][name]
    with pytest.raises(UserError, match="no 'nothing' among the scores"):
        Measuring(classifier, scores=["nothing"])


def test_scores_follow_from_what_the_head_gives(classifier):
    angular = "CosFace" in type(classifier.head).__name__
    result = measure(classifier).figures
    assert ("max_cosine" in result["scores"]) == angular
    assert {"msp", "energy", "max_logit", "entropy", "mahalanobis", "vim", "knn"} <= set(result["scores"])
    if not angular:
        with pytest.raises(UserError, match="max_cosine"):
            measure(classifier, names=["max_cosine"])


def test_an_explicit_headline_and_an_inverted_detector(classifier):
    result = measure(classifier, names=["msp"], headline="msp")
    assert result.figures["headline_score"] == "msp" and result.figures["validation"] == {}
    inverted = evaluate(
        classifier,
        train=images(9, 1), validation=images(40, 2), calibration=images(60, 3, 180), test=images(80, 4, 180),
        near={"clear": images(50, 5)}, far={}, names=["msp"], headline="msp",
    ).figures  # fmt: skip
    assert inverted["scores"]["msp"]["clear"]["auroc"] < 0.05
    told = "'clear' (AUROC 0.0 [0.0, "
    assert inverted["warnings"][0].startswith(told)
    turned = "takes their images for known more than known ones; a score is higher for what is less known"
    assert inverted["warnings"][0].endswith(f"): the score msp {turned}")


def test_sets_that_are_not_clearly_told_from_known_images_are_one_warning():
    rng = np.random.default_rng(0)
    known, some = rng.normal(size=400), rng.normal(size=300)
    scores = {
        "id": known, "same": some, "above": some + 0.4, "below": some - 2, "few": np.linspace(-1.5, 2, 9),
        "one": np.zeros(1), "other": np.full(1, 9.0),
    }  # fmt: skip
    measured = {
        name: {"auroc": roc_auc_score(np.repeat([0, 1], [len(known), len(values)]), np.concatenate([known, values]))}
        for name, values in scores.items()
    }
    measured["one"]["auroc"] = 0.5
    said, turned = undetected(scores, measured, "gen")
    assert turned.startswith("'below' (AUROC ") and "the score gen takes their images for known more than" in turned
    named, rest = said.split(": ")
    assert [one.split("'")[1] for one in named.split("), ")] == ["same", "few", "one"]
    low, high = (100 * end for end in auroc_interval(known, [some]))
    assert f"'same' (AUROC {100 * measured['same']['auroc']:.1f} [{low:.1f}, {high:.1f}])" in named
    assert "'one' (AUROC 50.0)" in named
    assert rest == "the score gen does not clearly tell their images from known ones"
    (alone,) = undetected({"id": known, "same": some}, measured, "gen")
    assert alone.endswith("does not clearly tell their images from known ones")
    assert undetected({"id": known, "above": some + 0.4}, measured, "gen") == []
    # Cells of a matrix, which differ in the figures, give one.
    again = undetected({"id": known, "same": some + 0.01}, {"same": {"auroc": 0.512}}, "gen")
    (both,) = all_warnings({"cells": [{"warnings": [alone]}, {"warnings": again}]})
    assert both.endswith("(2 of 2 cells)") and both.startswith("'same' (AUROC 51.2 to ")


def test_what_speaks_against_a_score_that_nobody_asked_for_is_told_where_it_is_chosen(classifier):
    few = {"train": images(80, 0), "calibration": images(60, 2), "test": images(40, 3)}
    near = {"bright": images(50, 5, 180)}
    for kept in ("knn", "energy"):
        measuring = Measuring(classifier, class_names=few["train"].class_names, scores="all")
        measuring.fit_scores(few["train"])
        assert not any("neighbours" in text for text in measuring.warnings)
        measuring.scorers = {kept: measuring.scorers[kept]}
        found = measuring.measure({"in": few["test"], "out": near["bright"]})
        told = measuring.choose(found, "in", ["out"]).doubts
        assert any(text.startswith("knn: more neighbours than the 20") for text in told) == (kept == "knn")


def test_more_neighbours_than_a_class_has_images_is_one_warning(classifier):
    few = {name: images(n, i) for i, (name, n) in enumerate(
        {"train": 80, "validation": 40, "calibration": 60, "test": 40}.items())}  # fmt: skip
    near = {"bright": images(50, 5, 180)}
    found = evaluate(classifier, **few, near=near, far={}, names=["knn", "knn:k=30"], headline="knn").figures
    (told,) = (text for text in found["warnings"] if "neighbours" in text)
    assert told.startswith("knn, knn:k=30: more neighbours than the 20 training images") and "knn:k=10 fits" in told
    mended = evaluate(classifier, **few, near=near, far={}, names=["knn:k=10"], headline="knn:k=10").figures
    assert not any("neighbours" in text for text in mended["warnings"])


def test_progress_moves_while_scores_are_fitted(classifier):
    steps = []
    measured(classifier, names=FEW, progress=steps.append)
    # Each of four scores is a quarter of the first step; then calibration, validation with three proxies, three sets.
    assert sorted(steps) == steps and steps[:4] == [0.25, 0.5, 0.75, 1.0] and steps[4] == 2 and steps[-1] == 9


def test_a_score_that_cannot_be_fitted(classifier):
    few = {name: images(n, i) for i, (name, n) in enumerate(
        {"train": 10, "validation": 40, "calibration": 60, "test": 20}.items())}  # fmt: skip
    result = evaluate(classifier, **few, near={}, far={"dark": images(7, 6, 0)}).figures
    assert "knn" not in result["scores"] and any("knn cannot be fitted" in note for note in result["notes"])
    assert not any("cannot be fitted" in warning for warning in result["warnings"])  # Nobody named it.
    with pytest.raises(UserError, match="knn cannot be fitted"):
        evaluate(classifier, **few, near={}, far={"dark": images(7, 6, 0)}, names=["knn"], headline="knn")
    with pytest.raises(UserError, match="knn cannot be fitted"):  # So many images cannot fit it.
        evaluate(classifier, **few, near={}, far={"dark": images(7, 6, 0)}, names=["msp", "knn"])


@pytest.mark.parametrize("tune", [False, True])
def test_a_named_score_that_only_what_the_classifier_says_makes_impossible_is_left_out(classifier, tune):
    train = images(200, 1)
    train = ImageSet(train.images, np.where(train.labels < 2, 1 - train.labels, train.labels), train.class_names)
    held = {"validation": images(40, 2), "calibration": images(60, 3), "test": images(80, 4)}
    given = {"train": train, **held, "near": {}, "far": {"dark": images(7, 6, 0)}, "tune": tune}
    figures = evaluate(classifier, **given, names=["openmax", "msp", "she"]).figures
    assert list(figures["scores"]) == ["msp"] and figures["headline_score"] == "msp"
    for name in ("openmax", "she"):
        (told,) = (text for text in figures["warnings"] if text.startswith(f"evaluate.scores: {name} cannot be fitted"))
        assert "there is none of 2 of the 4 classes; give more images, train longer or name another score" in told
    for options in ({"names": ["msp", "she"], "headline": "she"}, {"names": ["openmax", "she"]}):
        with pytest.raises(UserError, match="she cannot be fitted"):
            evaluate(classifier, **given, **options)


@pytest.mark.parametrize("name", registry.room("scores"))
def test_a_fitted_score_comes_back_from_its_state(name):
    rng = np.random.default_rng(0)
    cosines = np.clip(rng.normal(size=(120, 4)) * 0.3, -1, 1).astype("float32")
    outputs = {"features": rng.normal(size=(120, 6)).astype("float32"), "logits": 5 * cosines, "cosines": cosines}
    moved = outputs["features"] + 0.1 * rng.normal(size=(120, 6)).astype("float32")
    asked = {"perturbed": outputs["logits"], "rotations": np.abs(outputs["logits"]), "shifted": moved}
    outputs |= {output: asked[one] for one, output in Scorer(name).inputs.items() if one in asked}
    head = SimpleNamespace(kernel=rng.normal(size=(6, 4)).astype("float32"), bias=np.arange(4, dtype="float32"))
    scorer = Scorer(name).fit(outputs, np.arange(120) % 4, head)
    again = Scorer(name, scorer.state)
    for key, value in (scorer.state or {}).items():
        np.testing.assert_array_equal(value, again.state[key])
    # To the last bit only where the same memory layout is promised to a matrix product, and torch does not.
    np.testing.assert_allclose(np.asarray(scorer(outputs)), np.asarray(again(outputs)), rtol=1e-6, atol=1e-5)
    assert np.asarray(scorer(outputs)).shape == (120,)
    assert scorer.is_fitted == bool(scorer.state)


def test_a_temperature_is_fitted_to_images_that_nothing_was_trained_on(classifier):
    """Where there are any, whether they are measured themselves or not; another score is fitted as before."""
    seen, unseen = images(200, 1), images(40, 2)
    unseen = ImageSet(
        unseen.images, np.where(np.arange(40) < 10, (unseen.labels + 1) % 4, unseen.labels), unseen.class_names
    )
    expected = {
        name: TempScale().fit(o["features"], of.labels, o["logits"]).get_state()["temperature"]
        for name, of in (("seen", seen), ("unseen", unseen))
        for o in [outputs_of(classifier, of.images, 512)]
    }
    assert expected["unseen"] > 1.5 * expected["seen"]
    means = []
    for held, which in ((unseen, "unseen"), (None, "seen")):
        measuring = Measuring(classifier, class_names=seen.class_names, scores=["tempscale", "openmax"])
        measuring.fit_scores(seen, held)
        states = [measuring.scorers[name].state or {} for name in ("tempscale", "openmax")]
        np.testing.assert_allclose(states[0]["temperature"], expected[which], rtol=1e-4)
        means.append(states[1]["means"])
    np.testing.assert_allclose(*means, rtol=1e-5)
    given = {"calibration": images(60, 3), "test": images(80, 4), "near": {"bright": images(50, 5, 180)}, "far": {}}
    for options in ({"validation": unseen}, {"validation": None, "unseen": unseen}):
        result = evaluate(classifier, train=seen, **given, **options, names=["tempscale"], headline="tempscale")
        np.testing.assert_allclose(result.kept["state"]["temperature"], expected["unseen"], rtol=1e-4)


def test_what_is_measured_on_request_is_a_score():
    assert set(registry.room("scores")) > ON_REQUEST
    assert not ON_REQUEST & {"msp", "max_logit", "energy", "entropy", "max_cosine", "mahalanobis", "knn", "vim"}


def test_scores_of_a_linear_head_are_left_out_under_an_angular_one(classifier):
    linear = {"ash", "dice", "fdbd", "gradnorm", "nci", "react", "scale", "weiper"}
    without = applicable(["features", "logits", "cosines"])
    assert set(applicable(["features", "logits", "cosines", "kernel", "bias"])) - set(without) == linear
    head = heads.Softmax(3)
    head.build((None, 2))
    assert linear_weights(head)["kernel"].shape == (2, 3) and set(linear_weights(head)) == {"kernel", "bias"}
    assert linear_weights(heads.CosFace(3)) == {}
    sets = {name: images(n, i) for i, (name, n) in enumerate(
        {"train": 80, "validation": 40, "calibration": 60, "test": 20}.items())}  # fmt: skip
    given = {"near": {}, "far": {"dark": images(7, 6, 0)}, "names": ["react"], "headline": "react"}
    if classifier.is_angular:
        with pytest.raises(UserError, match="this head cannot give react; it can give"):
            evaluate(classifier, **sets, **given)
    else:
        assert set(evaluate(classifier, **sets, **given).figures["scores"]) == {"react"}
    with pytest.raises(UserError, match="react needs the kernel and bias of a linear head; CosFace has none"):
        Scorer("react").fit({"features": np.ones((4, 2)), "logits": np.ones((4, 3))}, np.arange(4), heads.CosFace(3))


def test_every_class_is_told_by_itself(classifier):
    hard = images(80, 4)
    pixels, labels = np.array(hard.images), np.array(hard.labels)
    pixels[labels == 2] = images(80, 5).images[images(80, 5).labels == 3]  # Class c looks like d.
    pixels[labels == 1] = 255 - pixels[labels == 1] // 4  # And class b like nothing that is known.
    sets = {"train": images(200, 1), "validation": images(40, 2), "calibration": images(60, 3)}
    result = evaluate(
        classifier, **sets, test=ImageSet(pixels, labels, hard.class_names), near={"bright": images(50, 5, 180)},
        far={}, names=["knn", "msp"], headline="knn",
    )  # fmt: skip
    classes = {one["name"]: one for one in result.figures["classes"]}
    assert list(classes) == ["a", "b", "c", "d"] and {one["images"] for one in classes.values()} == {20}
    given = outputs_of(classifier, pixels, 512)["logits"].argmax(axis=1)
    scores, edge = result.scores["id"]["knn"], result.figures["threshold"]["value"]
    for k, one in enumerate(classes.values()):
        own = labels == k
        assert one["accuracy"] == np.mean(given[own] == k) and one["accepted"] == np.mean(scores[own] <= edge)
        truth = np.repeat([0, 1], [20, 50])
        expected = roc_auc_score(truth, np.concatenate([scores[own], result.scores["bright"]["knn"]]))
        np.testing.assert_allclose(one["auroc"]["near"], expected)
        assert (
            one["accepted_interval"][0] <= one["accepted"] <= one["accepted_interval"][1] and "far" not in one["auroc"]
        )
    warnings = result.figures["warnings"]
    assert any("but clearly fewer are of 'b' (0% of 20)" in text for text in warnings)
    assert any("labelled rightly, but clearly fewer of" in text and "'c' (0% of 20)" in text for text in warnings)
    assert not measure(classifier, names=["knn"], headline="knn").figures["warnings"]
    groups = {part: {"images": n, "groups": n // 4} for part, n in (("test", 80), ("calibration", 60))}
    grouped = evaluate(
        classifier, **sets, test=ImageSet(pixels, labels, hard.class_names), near={}, far={}, names=["knn"],
        headline="knn", groups=groups,
    ).figures  # fmt: skip
    (told,) = grouped["warnings"]
    assert "images stand in groups (60 calibration images in 15, 80 test images in 20)" in told
    assert grouped["threshold"]["warnings"] == [told] and "clearly fewer" not in told
    grouped = evaluate(
        classifier, **sets, test=ImageSet(pixels, labels, hard.class_names), near={}, far={}, names=["knn"],
        headline="knn", groups={"validation": groups["test"]},
    ).figures  # fmt: skip
    first, *others = (text for text in grouped["warnings"] if text in warnings or "stand in groups" in text)
    assert "exposure is not called worse" in first and "intervals" not in first
    assert others == warnings  # Test images that stand in none are judged as ever.
    swapped = np.array([0, 2, 1, 3])[labels]  # Two names that are exchanged are no hard classes.
    test = ImageSet(images(80, 4).images, swapped, hard.class_names)
    told = evaluate(classifier, **sets, test=test, near={}, far={}, names=["knn"], headline="knn").figures["warnings"]
    assert any("in another order (it calls 'b' as 'c', 'c' as 'b')" in text for text in told)
    assert not any("a training on more of them" in text for text in told)


def test_a_classifier_at_chance_is_told_in_place_of_its_hard_classes(classifier):
    sets = {"train": images(200, 1), "validation": images(40, 2), "calibration": images(60, 3)}
    test = images(80, 4)
    shuffled = ImageSet(test.images, np.random.default_rng(0).permutation(test.labels), test.class_names)
    figures = evaluate(classifier, **sets, test=shuffled, near={}, far={}, names=["knn"], headline="knn").figures
    right = round(80 * figures["id"]["accuracy"])
    assert (
        f"it labels {right} of 80 test images rightly ({right / 80:.1%}), where chance would 25" in figures["at_chance"]
    )
    assert not any("a training on more of them" in text for text in figures["warnings"])
    assert not measure(classifier, names=["knn"], headline="knn").figures["at_chance"]


def test_one_class_for_every_image_is_told_as_that():
    labels, names = np.repeat([0, 1, 2], 20), ["cat", "dog", "ship"]
    told = no_better(np.ones(60, int), labels, names)
    assert "it labels all as 'dog', and so 20 of 60 test images rightly (33.3%), where chance would 33.3%;" in told
    assert all(what in told for what in ("no better than chance", "the labels", "learning rate", "epochs"))
    assert no_better(labels, labels, names) == "" == no_better(np.zeros(20, int), labels[:20], names)
    half = np.where(np.arange(60) % 3, labels, (labels + 1) % 3)  # Two of three are right.
    assert no_better(half, labels, names) == ""


@pytest.mark.slow
@pytest.mark.parametrize("by_class", [True, False])
def test_classes_like_those_of_calibration_are_hardly_ever_said_to_be_rarely_accepted(by_class):
    rng, labels, names = np.random.default_rng(0), np.repeat(np.arange(10), 100), "abcdefghij"
    told = 0
    for _ in range(200):
        known = np.repeat(np.arange(10), 39 if by_class else 4)
        decision = Calibration(rng.normal(size=len(known)), known, 10, 0.95, by_class=by_class)
        scores = rng.normal(size=1000)
        told += len(rarely_accepted(decision, names, labels, ~decision.flagged(scores, labels)))
        scores[labels == 3] += 4
        (low,) = rarely_accepted(decision, names, labels, ~decision.flagged(scores, labels))
        assert "clearly fewer are of 'd' (" in low
    # Binomial(200, 0.05) exceeds 20 about once in a thousand times.
    assert told <= 20


def test_a_promise_by_class_is_of_what_is_labelled_so():
    known = np.repeat([0, 1, 2], [200, 5, 20])
    decision = Calibration(np.tile(np.arange(25.0), 9), known, 3, 0.95, by_class=True)
    assert [group.classes for group in decision.groups] == [(0,), (1, 2)]
    labels, accepted = np.repeat([0, 1, 2, -1], 50), np.repeat([True, False], 100)
    (told,) = rarely_accepted(decision, "abc", labels, accepted)
    assert told == (
        "95% are promised to be accepted of what is labelled as each class, but clearly fewer are of 'b', 'c' "
        "(50% of 100)"
    )
    assert not rarely_accepted(decision, "abc", labels, labels >= 0)


def test_thresholds_by_class_are_those_of_the_images_labelled_so(classifier):
    result = measure(classifier, names=["msp"], headline="msp", by_class=True, accept=0.8)
    told, outputs = result.figures["threshold"], outputs_of(classifier, images(60, 3).images, 512)
    given = outputs["logits"].argmax(axis=1)
    np.testing.assert_array_equal(result.kept["calibration"]["labels"], given)
    assert told["by_class"] and [one["classes"] for one in told["thresholds"]] == [["a"], ["b"], ["c"], ["d"]]
    for k, one in enumerate(told["thresholds"]):
        assert one["value"] == conformal_threshold(result.kept["calibration"]["scores"][given == k], 0.8)
        assert one["calibration_images"] == np.sum(given == k) == 15


def test_a_score_that_is_infinite_is_named(classifier, monkeypatch):
    monkeypatch.setattr(Scorer, "__call__", lambda self, outputs: np.full(len(outputs["logits"]), np.inf))
    with pytest.raises(UserError, match="^evaluate.scores: msp: 60 of 60 calibration images have a score that is NaN"):
        measured(classifier, names=["msp"], headline="msp")


@pytest.fixture
def undefined(monkeypatch):
    """{score: sizes of the sets for whose first image it is NaN}; the proxies are as many as validation images."""
    sizes: dict[str, set[int]] = {}

    def some(scorer, outputs, batch_size):
        found = np.array(score_rows(scorer, outputs, batch_size))
        found[: len(found) in sizes.get(scorer.name, ())] = np.nan
        return found

    monkeypatch.setattr("kood.detector.measuring.score_rows", some)
    return sizes


VALIDATION, CALIBRATION, TEST, BRIGHT, DARK = 40, 60, 80, 50, 70


def test_a_score_that_is_nan_for_a_validation_image_cannot_be_chosen(classifier, undefined):
    undefined |= {"msp": {VALIDATION, CALIBRATION, TEST, BRIGHT, DARK}}
    for names in (None, ["msp", "energy"]):
        found = measure(classifier, names=names).figures
        assert "energy" in found["scores"] and not {"msp"} & {*found["scores"], *found["validation"]}
        (told,) = [text for text in found["warnings"] if "NaN" in text]
        assert told.startswith("msp is NaN for 1 of 40 images of 'validation' and 1 of 40 images of 'p")
        assert told.endswith(", so it is not measured")
    for options in ({"names": ["msp"]}, {"names": ["energy", "msp"], "headline": "msp"}):
        with pytest.raises(UserError, match="^evaluate.scores: msp is NaN for 1 of 40 images of 'validation'"):
            measure(classifier, **options)


def test_what_is_nan_for_a_test_image_moves_no_choice(classifier, undefined):
    plain = measure(classifier, names=FEW).figures
    decides = plain["headline_score"]
    other = next(name for name in FEW if name != decides)
    undefined[other] = {DARK, CALIBRATION}
    found = measure(classifier, names=FEW).figures
    same = ("headline_score", "validation", "threshold", "classes")
    assert {key: found[key] for key in same} == {key: plain[key] for key in same}
    rest = {key: of for key, of in plain["scores"][other].items() if key not in ("dark", "far")}
    assert found["scores"] == {**plain["scores"], other: rest} and {*rest} == {"bright", "near"}
    told = f"{other} is NaN for 1 of 70 images of 'dark', so it has no figures of these, nor means over them"
    assert [one for one in found["warnings"] if "NaN" in one] == [told]
    undefined[other] = {TEST}
    found = measure(classifier, names=FEW)
    assert found.figures["validation"] == plain["validation"] and other not in found.figures["scores"]
    assert all(other not in by for by in found.scores.values())
    undefined[other] = {BRIGHT, DARK}
    assert measure(classifier, names=FEW).figures["scores"][other] == {}
    undefined[decides] = {DARK}
    for headline in ("auto", decides):
        told = f"^evaluate.scores: {decides} is NaN for 1 of 70 images of 'dark', and it is the score that decides; "
        with pytest.raises(UserError, match=told):
            measure(classifier, names=FEW, headline=headline)


def test_calibration_images_without_a_finite_score_count_as_flagged(classifier, undefined):
    plain = measure(classifier, names=["msp"], accept=0.9)
    undefined["msp"] = {CALIBRATION}
    found = measure(classifier, names=["msp"], accept=0.9)
    told = "1 of 60 calibration images have no finite msp and count as flagged"
    assert told in found.figures["warnings"] and told not in plain.figures["warnings"]
    values = np.append(plain.kept["calibration"]["scores"][1:], np.inf)
    assert found.figures["threshold"]["value"] == conformal_threshold(values, 0.9)
    with pytest.raises(UserError, match="^evaluate.scores: msp: 1 of 60 calibration images have a score that is NaN"):
        measure(classifier, names=["msp"], accept=0.98)


@pytest.mark.one_backend
def test_folds_bear_a_score_without_figures(tmp_path):
    def fold(number, scores, warnings=()):
        folder = tmp_path / str(number)
        folder.mkdir()
        np.savez(folder / "scores.npz", **{"id/msp": np.arange(4.0), "held_out/msp": np.arange(2.0, 6.0)})
        threshold = {"accepted_id_test": 1.0, "accepted_id_test_interval": [0.5, 1.0]}
        facts = {"scores": scores, "threshold": threshold, "id": {"accuracy": 1.0}, "warnings": warnings, "notes": []}
        data = SimpleNamespace(digest=lambda name: [name], digests=lambda kind: {"held_out": kind})
        return SimpleNamespace(facts=facts, headline="msp", folder=folder, data=data, result=facts)

    whole, lacks = {"held_out": {"auroc": 0.5}}, "knn is NaN for 1 of 4 images of 'held_out', so it has no figures"
    folds = [fold(0, {"msp": whole, "knn": whole}), fold(1, {"msp": whole, "knn": {}}, [lacks])]
    told = told_folds([(("a",), folds[0]), (("b",), folds[1])], [], tmp_path)
    assert told["scores"] == {"msp": 0.5} and [one["score"] for one in told["folds"]] == ["msp", "msp"]
    assert [notes_of(None, (), one, ["msp", "knn"]) for one in folds] == [[], [lacks]]
