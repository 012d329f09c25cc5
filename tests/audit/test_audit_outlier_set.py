"""The whole audit: its parts agree with the functions they come from, and its verdicts with what was put in."""

import json

import numpy as np
import pytest

from kood.audit import Judged, audit, with_shortcut
from kood.audit.content import mixed_content, pure_content
from kood.audit.fidelity import frechet_distance, kernel_distance
from kood.audit.verdicts import WARNINGS, judge_content, judge_diversity, judge_fidelity
from kood.data.deferred import Made


def made(rng, n, labels=None, classes=3):
    images = rng.integers(0, 256, (n, 5, 4, 3), dtype=np.uint8)
    logits = rng.normal(size=(n, classes))
    if labels is not None:
        logits[np.arange(n), labels] += 4
    posteriors = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Judged(images, posteriors.astype("float32"), rng.normal(size=(n, 4)).astype("float32"), labels)


@pytest.fixture
def arrays():
    """Everything that `audit` takes, of random images that the judge recognises."""
    rng = np.random.default_rng(0)
    pure_labels, held_out_labels = rng.integers(0, 3, 60), rng.integers(0, 3, 40)
    mixtures = np.zeros((50, 3), "float32")
    for row in mixtures:
        row[rng.permutation(3)[:2]] = 0.5
    train, mixed = made(rng, 200), made(rng, 50)
    mixed = mixed._replace(posteriors=0.9 * mixtures + 0.1 * mixed.posteriors, labels=mixtures)
    return {
        "pure": made(rng, 60, pure_labels),
        "held_out": made(rng, 40, held_out_labels),
        "train": train,
        "mixed": mixed,
        "class_names": ("a", "b", "c"),
        "feature_space": "noise",
    }


def test_the_parts_are_those_of_the_functions(arrays):
    found = audit(**arrays)
    content = found["content"]
    assert content["pure"] == pure_content(arrays["pure"].posteriors, arrays["pure"].labels)
    assert content["held_out"] == pure_content(arrays["held_out"].posteriors, arrays["held_out"].labels)
    assert content["mixtures"] == mixed_content(arrays["mixed"].posteriors, arrays["mixed"].labels)
    assert found["class_names"] == ["a", "b", "c"]
    assert (found["feature_space"], found["seed"], found["shortcut"], found["warnings"]) == ("noise", 0, None, [])
    # Sixty samples, fifty mixtures: fifty of each, so that FID compares; the mixtures are then all.
    fidelity, reference = found["fidelity"], arrays["held_out"].features
    assert {one["n"] for one in fidelity["sets"].values()} == {50}
    assert fidelity["sets"]["mixtures"]["fid"] == frechet_distance(arrays["mixed"].features, reference)
    value, error = kernel_distance(arrays["mixed"].features, reference)
    assert fidelity["sets"]["mixtures"]["kid"] == pytest.approx(value, rel=1e-9)
    assert fidelity["sets"]["mixtures"]["kid_standard_error"] == pytest.approx(error, rel=1e-9)
    assert (fidelity["dimensions"], fidelity["n_held_out"]) == (4, 40)


def test_it_is_ready_for_json_and_repeatable(arrays):
    found = audit(**arrays)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert audit(**arrays) == found
    assert audit(**arrays, seed=1)["diversity"] != found["diversity"]


def test_deferred_images_are_audited_as_arrays_are(arrays):
    def deferred(images):
        return Made(images.shape, lambda rows: images[rows])

    later = dict(arrays)
    for name in ("pure", "held_out", "train", "mixed"):
        later[name] = arrays[name]._replace(images=deferred(arrays[name].images))
    assert audit(**later, augment=["flip"], most=40) == audit(**arrays, augment=["flip"], most=40)


def test_distances_are_counted(arrays):
    found = audit(**arrays)["diversity"]
    for name, count in (("pure", 60), ("held_out", 40), ("mixtures", 50)):
        one = found["sets"][name]
        assert one["n"] == one["searched"] == one["to_training"]["n"] == count
        assert one["among"]["n"] == 40
        assert (one["copies"], one["duplicates"], one["memorised"]) == (0, 0, {"count": 0, "share": 0.0})
        assert sum(found["histogram"]["counts"][name]) == count
    assert found["verdict"] == "new"
    # By its making the yardstick: one of forty is nearer than the interpolated percentile.
    assert found["sets"]["held_out"]["nearer"] == 1 / 40
    assert found["near"] == found["sets"]["held_out"]["among"]["p01"]


def test_most_bounds_the_search_and_not_the_counts(arrays):
    arrays["pure"] = arrays["pure"]._replace(images=arrays["train"].images[:60])
    found = audit(**arrays, most=10)["diversity"]["sets"]
    assert {one["searched"] for one in found.values()} == {10}
    assert found["pure"]["copies"] == 60
    assert found["pure"]["memorised"] == {"count": 10, "share": 1.0}


def test_copies_of_training_images_are_memorised(arrays):
    images = arrays["pure"].images.copy()
    images[:5] = arrays["train"].images[:5]
    arrays["pure"] = arrays["pure"]._replace(images=images)
    found = audit(**arrays)
    assert found["diversity"]["verdict"] == "memorised"
    assert found["diversity"]["sets"]["pure"]["copies"] == 5
    assert found["warnings"] == [WARNINGS["memorised"]]
    assert "5 of 60 single-class samples (8.3%)" in found["diversity"]["sentences"][0]
    # Where real images are copies of training images as often, the data set repeats itself, not the generator.
    held_out = arrays["held_out"].images.copy()
    held_out[:4] = arrays["train"].images[5:9]
    arrays["held_out"] = arrays["held_out"]._replace(images=held_out)
    assert audit(**arrays)["diversity"]["verdict"] == "new"


def test_mirrored_copies_are_memorised_where_the_generator_learnt_mirrored_images(arrays):
    images = arrays["pure"].images.copy()
    images[:5] = arrays["train"].images[:5, :, ::-1]
    images[5] = arrays["train"].images[5]
    arrays["pure"] = arrays["pure"]._replace(images=images)
    plain, mirrored = audit(**arrays)["diversity"], audit(**arrays, augment=["crop", "flip"])["diversity"]
    assert [one["sets"]["pure"]["memorised"]["count"] for one in (plain, mirrored)] == [1, 6]
    assert mirrored["verdict"] == "memorised" and mirrored["sets"]["held_out"]["memorised"]["count"] == 0
    assert mirrored["sets"]["held_out"]["to_training"]["median"] < plain["sets"]["held_out"]["to_training"]["median"]
    assert not any("learnt" in text for text in plain["sentences"])
    told = " ".join(mirrored["sentences"])
    assert "near-copies are looked for both ways round" in told and "learnt images under crop too: copies" in told
    assert "are not seen" not in " ".join(audit(**arrays, augment=["flip"])["diversity"]["sentences"])


def test_the_features_of_training_images_are_no_measure_of_a_perfect_generator(arrays):
    (told, *_) = audit(**arrays)["fidelity"]["sentences"]
    assert "the features were learnt on these very images" in told and "perfect" not in told


def test_a_generator_that_repeats_itself(arrays):
    arrays["mixed"] = arrays["mixed"]._replace(images=np.repeat(arrays["mixed"].images[:1], 50, axis=0))
    found = audit(**arrays)
    assert found["diversity"]["sets"]["mixtures"]["duplicates"] == 49
    assert found["diversity"]["sets"]["mixtures"]["near_duplicates"] == {"count": 40, "share": 1.0}
    assert (found["diversity"]["verdict"], found["warnings"]) == ("repeated", [WARNINGS["repeated"]])


def test_samples_without_content(arrays):
    labels = np.random.default_rng(5).permutation(arrays["pure"].labels)
    arrays["pure"] = arrays["pure"]._replace(labels=labels)
    found = audit(**arrays)
    assert (found["content"]["verdict"], found["warnings"]) == ("weak", [WARNINGS["weak"]])
    arrays["held_out"] = arrays["held_out"]._replace(labels=(arrays["held_out"].labels + 1) % 3)
    assert audit(**arrays)["content"]["verdict"] == "unjudged"


def test_mixtures_may_be_left_out(arrays):
    del arrays["mixed"]
    found = audit(**arrays)
    assert found["content"]["mixtures"] is None
    assert list(found["diversity"]["sets"]) == ["pure", "held_out"]
    assert list(found["fidelity"]["sets"]) == ["train", "pure"]
    assert "ixture" not in " ".join(found["content"]["sentences"] + found["diversity"]["sentences"])


def test_a_good_set_and_a_shortcut(new_audit):
    good = new_audit()
    assert [good[part]["verdict"] for part in ("content", "diversity", "shortcut")] == ["shown", "new", "passed"]
    assert good["warnings"] == []
    fid = {name: one["fid"] for name, one in good["fidelity"]["sets"].items()}
    assert new_audit(shift=20)["fidelity"]["sets"]["pure"]["fid"] > fid["pure"] + 0.05
    bad = new_audit(score_shift=2.0)
    assert bad["warnings"] == [WARNINGS["failed"]]
    assert bad["shortcut"]["n_pure"] == 400


def test_the_shortcut_is_added_without_touching_the_rest(arrays):
    before = audit(**arrays)
    kept = json.dumps(before)
    after = with_shortcut(before, np.zeros(50), np.ones(50), score="msp")
    assert json.dumps(before) == kept
    assert after["shortcut"]["verdict"] == "failed"
    assert {key: value for key, value in after.items() if key not in ("shortcut", "warnings")} == {
        key: value for key, value in before.items() if key not in ("shortcut", "warnings")
    }


def test_the_smallest_sets_that_make_sense(arrays):
    arrays["train"] = arrays["train"]._replace(labels=np.zeros(200, int))
    for name, count in (("pure", 2), ("held_out", 3), ("mixed", 2), ("train", 2)):
        arrays[name] = Judged(*(values[:count] for values in arrays[name]))
    arrays["pure"] = arrays["pure"]._replace(labels=np.array([0, 1]))
    arrays["held_out"] = arrays["held_out"]._replace(labels=np.array([0, 1, 2]))
    found = audit(**arrays)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["fidelity"]["sets"]["pure"]["kid_standard_error"] is None
    assert "no more images than the 4 dimensions" in found["fidelity"]["sentences"][1]


def test_samples_that_are_no_mixtures_are_asked_nothing_of_their_classes(arrays):
    whole = audit(**arrays)
    found = audit(**{**arrays, "mixed": arrays["mixed"]._replace(labels=None)})
    assert found["content"]["mixtures"] is None and found["content"]["mixtures_verdict"] is None
    assert found["diversity"] == whole["diversity"] and found["fidelity"] == whole["fidelity"]


def pure_figures(share, classes=4):
    return {"share": share, "confidence": share, "entropy": 0.5, "per_class": [{}] * classes}


def mixed_figures(**changes):
    figures = {"parents": {"min": 2, "max": 2}, "on_top": 0.4, "first": 0.4, "second": 0.3, "entropy": 0.9}
    return {**figures, "all_parents": 0.7, "share_entropy": 0.65, **changes}


@pytest.mark.parametrize(
    ("on_samples", "on_real", "verdict"),
    # Chance is .25: skill .5 of .75 above it on the samples is what .625 of .75 real is half of.
    [(0.7, 0.9, "shown"), (0.576, 0.9, "shown"), (0.574, 0.9, "weak"), (0.25, 0.9, "weak"), (0.9, 0.32, "unjudged")],
)
def test_content_is_judged_above_chance(on_samples, on_real, verdict):
    content = {"pure": pure_figures(on_samples), "held_out": pure_figures(on_real), "mixtures": None}
    assert judge_content(content)["verdict"] == verdict


def test_the_sentence_on_mixtures():
    content = {"pure": pure_figures(0.8), "held_out": pure_figures(0.9), "mixtures": mixed_figures()}
    sentence = judge_content(content)["sentences"][-2]
    assert "40.0% have both parents on top of the judge's list (guessing: 16.7%)" in sentence
    assert "0.90 on mixtures and 0.50 on single-class samples; the shares of the mixtures have 0.65" in sentence
    three = mixed_figures(parents={"min": 2, "max": 3})
    sentence = judge_content({**content, "mixtures": three})["sentences"][-2]
    assert "have all parents on top of the judge's list, and" in sentence


@pytest.mark.parametrize(
    ("changes", "verdict"),
    # Samples are believed at .8, (.8 - .25) / .75 = .733 above chance; two parents of four have chance .5, so half of
    # that is a belief of .5 + .5 * .3667 = .683.
    [({}, "both"), ({"all_parents": 0.684}, "both"), ({"all_parents": 0.683}, "other"), ({"entropy": 0.629}, "one"),
     ({"entropy": 0.631}, "both"), ({"entropy": 0.57, "share_entropy": 0.32}, "both"),
     ({"all_parents": 1.0, "parents": {"min": 4, "max": 4}}, "both")],
)  # fmt: skip
def test_mixtures_are_judged(changes, verdict):
    content = {"pure": pure_figures(0.8), "held_out": pure_figures(0.9), "mixtures": mixed_figures(**changes)}
    assert judge_content(content)["mixtures_verdict"] == verdict


def test_mixtures_of_classes_that_are_not_shown_are_not_judged():
    content = {"pure": pure_figures(0.3), "held_out": pure_figures(0.9), "mixtures": mixed_figures()}
    assert judge_content(content)["mixtures_verdict"] is None
    content["mixtures"] = None
    assert judge_content({**content, "pure": pure_figures(0.8)})["mixtures_verdict"] is None


def test_mixtures_of_other_classes_warn(arrays):
    posteriors = np.where(arrays["mixed"].labels > 0, 0.05, 0.9)
    arrays["mixed"] = arrays["mixed"]._replace(posteriors=posteriors)
    found = audit(**arrays)
    assert found["content"]["mixtures_verdict"] == "other"
    assert found["warnings"] == [WARNINGS["other"]]


def diversity_figures(memorised, real, duplicates=0):
    def one(share, twice):
        return {
            "n": 1000, "searched": 1000, "copies": 0, "duplicates": twice, "among": {"median": 0.0},
            "memorised": {"share": share, "count": round(1000 * share)},
        }  # fmt: skip

    return {"sets": {"pure": one(memorised, duplicates), "held_out": one(real, 0)}}


@pytest.mark.parametrize(
    ("memorised", "real", "duplicates", "verdict"),
    [(0.01, 0, 0, "new"), (0.011, 0, 0, "memorised"), (0.06, 0.03, 0, "new"), (0.061, 0.03, 20, "memorised"),
     (0, 0, 10, "new"), (0, 0, 11, "repeated")],
)  # fmt: skip
def test_diversity_is_judged_beside_real_images(memorised, real, duplicates, verdict):
    found = judge_diversity(diversity_figures(memorised, real, duplicates))
    assert found["verdict"] == verdict
    assert len(found["sentences"]) == 2


def test_few_images_are_said_to_be_few():
    sets = {name: {"fid": 1.0, "kid": 0.1, "n": 50} for name in ("pure", "train")}
    few = judge_fidelity({"sets": sets, "n_held_out": 900, "dimensions": 50})["sentences"]
    enough = judge_fidelity({"sets": sets, "n_held_out": 900, "dimensions": 49})["sentences"]
    assert "50 dimensions" in few[-1]
    assert len(enough) == len(few) - 1
