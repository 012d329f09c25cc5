"""The comparison of an exposed classifier with its baseline: what is compared, and when it counts as worse."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from kood.data.image_set import ImageSet
from kood.detector.choosing import PROXIES
from kood.outliers.real import Real
from kood.pipeline.classify import unexposed
from kood.pipeline.comparison import _warning, comparison
from kood.pipeline.evaluation import Validation
from kood.pipeline.prepare import Rows
from kood.recipe import load
from kood.recipe.outlier_sections import Outliers
from tests.conftest import TINY


def classifier(shift, wrong=0, n=200, seed=0, sets=PROXIES, names=("msp",)):
    """A detector whose out-of-distribution scores lie `shift` above; the first `wrong` answers are wrong."""
    rng, own = np.random.default_rng(7), np.random.default_rng(seed)
    shared = {name: rng.normal(size=n) for name in ("validation", *sets)}
    scores = {
        name: {where: values + 0.3 * own.normal(size=n) + (where != "validation") * shift * (i + 1)
               for where, values in shared.items()}
        for i, name in enumerate(names)
    }  # fmt: skip
    return {"correct": np.arange(n) >= wrong, "scores": scores}


def auroc(scores, sets):
    inside = scores["validation"]
    return np.mean([roc_auc_score([0] * len(inside) + [1] * len(scores[s]), np.concatenate([inside, scores[s]]))
                    for s in sets])  # fmt: skip


def test_the_figures_are_those_of_each_ones_best_score():
    without = classifier(0.5, 10, names=("weak", "strong"))
    exposed = classifier(0.6, 4, seed=1, names=("msp",))
    found = comparison(without, exposed, [], ["noise"])
    assert (found["score"], found["exposed_score"]) == ("strong", "msp")
    np.testing.assert_allclose(found["validation_auroc"], auroc(without["scores"]["strong"], PROXIES))
    np.testing.assert_allclose(found["exposed_validation_auroc"], auroc(exposed["scores"]["msp"], PROXIES))
    assert (found["validation_accuracy"], found["exposed_validation_accuracy"]) == (0.95, 0.98)
    assert found["sets"] == list(PROXIES) and found["images"] == 200
    low, high = found["auroc_interval"]
    difference = found["exposed_validation_auroc"] - found["validation_auroc"]
    np.testing.assert_allclose((low + high) / 2, difference)
    # 6 of 200 answers are better, none worse.
    d = np.repeat([1.0, 0.0], [6, 194])
    np.testing.assert_allclose(found["accuracy_interval"], 0.03 + np.array([-1.96, 1.96]) * d.std(ddof=1) / 200**0.5)


@pytest.mark.parametrize(
    ("shift", "wrong", "worse"),
    [
        (1.0, 0, (False, False)),  # The same but for noise.
        (2.0, 0, (False, False)),
        (0.3, 0, (True, False)),
        (1.0, 1, (False, False)),  # Half a point, within the interval.
        (1.0, 4, (False, False)),  # 2 points, the interval reaches -0.05 of them.
        (1.0, 20, (False, True)),
        (0.0, 60, (True, True)),
    ],
)
def test_worse_is_what_lies_beyond_the_noise(shift, wrong, worse):
    found = comparison(classifier(1.0), classifier(shift, wrong, seed=1), [], [])
    assert (found["worse_auroc"], found["worse_accuracy"]) == worse and found["worse"] == any(worse)


def test_of_images_in_groups_nothing_is_called_worse():
    """The intervals count them as independent, and are too narrow."""
    one, other = classifier(1.0), classifier(0.0, 60, seed=1)
    found, grouped = comparison(one, other, [], []), comparison(one, other, [], [], grouped=True)
    worse = ("worse", "worse_auroc", "worse_accuracy")
    assert grouped == found | dict.fromkeys(worse, False) and all(found[key] for key in worse)


def test_a_detector_turned_round_is_worse_without_any_noise():
    without = {"correct": np.ones(3, bool), "scores": {"msp": {"validation": np.zeros(3), "real": np.ones(3)}}}
    exposed = {"correct": np.ones(3, bool), "scores": {"msp": {"validation": np.ones(3), "real": np.zeros(3)}}}
    assert comparison(without, exposed, ["real"], [])["worse"]
    assert not comparison(exposed, without, ["real"], [])["worse"]
    assert not comparison(without, without, ["real"], [])["worse"]


@pytest.mark.parametrize(
    ("use", "sets"),
    [
        ([], PROXIES),
        (["noise", "virtual", "real"], PROXIES),
        (["pixel_mixup"], ["patch_shuffle", "pictures"]),
        (["label_mixup", "noise"], ["patch_shuffle", "pictures"]),
        (["cutmix"], ["patch_shuffle", "pictures"]),
        (["patch_shuffle"], ["pixel_mixup", "pictures"]),
        (["patch_shuffle", "cutmix"], PROXIES),
    ],
)
def test_a_proxy_of_the_kind_trained_on_is_no_judge(use, sets):
    recipe = Outliers()
    use = {getattr(recipe, name).resembles if name != "real" else Real.resembles for name in use}
    found = comparison(classifier(1.0), classifier(1.0, seed=1), [], use)
    assert found["sets"] == list(sets)
    one = {"sets": ("patch_shuffle", "pictures")}  # Of a validation part of one class.
    found = comparison(classifier(1.0, **one), classifier(1.0, seed=1, **one), [], use)
    assert found["sets"] == ["patch_shuffle", "pictures"]
    own = comparison(classifier(1.0, sets=("real",)), classifier(1.0, seed=1, sets=("real",)), ["real"], use)
    assert own["sets"] == ["real"]


def test_the_warning_says_what_to_do(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    facts = {"worse": True, "worse_auroc": True, "worse_accuracy": False}
    text = _warning(facts, load(path))
    assert "--set outliers.use=[]" in text and "pure_samples" not in text and "right class" not in text
    pure = load(path, ['pure_samples.use=["augment"]', "outliers.use=[]"])
    text = _warning({**facts, "worse_auroc": False, "worse_accuracy": True}, pure)
    assert "--set pure_samples.use=[]" in text and "outliers.use" not in text and "right class" in text
    assert _warning({"worse": False}, pure) is None


def test_the_baseline_is_the_same_recipe_without(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    recipe = load(path, ['pure_samples.use=["audit", "id_rows"]'])
    plain = unexposed(recipe)
    assert not plain.outliers.exposes and not plain.pure_samples.trains and not plain.needs_diffusion
    assert (plain.head, plain.classifier, plain.train, plain.seed) == (
        recipe.head, recipe.classifier, recipe.train, recipe.seed,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("inside", "few", "left"),
    [
        (9, 9, ""),
        (0, 9, "data.id.validation leaves no images"),
        (1, 9, "data.id.validation leaves 1 image, and an interval needs 2"),
        (9, 1, "data.validation_ood.few leaves 1 image, and an interval needs 2"),
    ],
)
def test_too_few_validation_images_for_an_interval_leave_the_comparison_out(tmp_path, inside, few, left):
    class Made(Rows):
        def images(self, name):
            counts = {"validation": inside, "data.validation_ood.few": few, "data.validation_ood.many": 9}
            return ImageSet(np.zeros((counts[name], 8, 8, 1), np.uint8))

        def names(self, kind):
            return {"validation_ood": ["many", "few"]}[kind]

        def digest(self, *names):
            return list(names)

        def seen(self):
            raise NotImplementedError

    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    told = Validation(load(path), Made(), None).applies()
    assert told == (f"no comparison with the baseline: {left}" if left else "")
