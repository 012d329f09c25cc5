"""The OOD scores against NumPy float64, at hard values, compiled and under every backend."""

import functools
import inspect
import tracemalloc

import keras
import numpy as np
import pytest
from keras import ops

from kood import scores
from kood.scores import distances, neighbours, streaming, subspaces

pytestmark = pytest.mark.backend  # Run once under each Keras backend.

FITTED = [name for name in scores.__all__ if inspect.isclass(getattr(scores, name))]
PLAIN = [name for name in scores.__all__ if name not in FITTED]
WIDTH, CLASSES = 12, 4


def numbers(tensor):
    assert keras.backend.standardize_dtype(tensor.dtype) == "float32"
    return np.asarray(ops.convert_to_numpy(tensor), np.float64)


def log_softmax64(logits):
    logits = np.float64(logits)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def compiled(function, *widths):
    """`function` as the backend compiles it, with an unknown number of rows where it knows such a thing."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, input_signature=[tf.TensorSpec((None, width)) for width in widths])
    if backend == "jax":
        import jax

        return jax.jit(function)
    return function


REFERENCES = {
    "msp": lambda x: 1 - np.exp(log_softmax64(x)).max(axis=1),
    "max_logit": lambda x: -x.max(axis=1),
    "energy": lambda x: -np.logaddexp.reduce(x, axis=1),
    "entropy": lambda x: -(np.exp(log_softmax64(x)) * log_softmax64(x)).sum(axis=1),
    "max_cosine": lambda x: -x.max(axis=1),
    "cosine_margin": lambda x: np.sort(x, axis=1)[:, -2] - x.max(axis=1),
    "odin": lambda x: odin64(x, 1000),
    "odin_temperature": lambda x: odin64(x, 1000),
    "angular_energy": lambda x: -np.log(np.exp(16 * x).sum(axis=1)) / 16,
    "gen": lambda x: np.exp(log_gen64(x)),
    "rotation": lambda x: x.mean(axis=1),
    "rotation_energy": lambda x: 2 * x.mean(axis=1) - np.logaddexp.reduce(x, axis=1) + np.log(x.shape[1]),
}


def plain(name):
    """A plain score as a function of one array, which stands for both where it takes two."""
    function = getattr(scores, name)
    return (lambda x: function(x, x)) if name == "rotation_energy" else function


def log_odds64(logits):
    """ln of the others' summed probability over each class's own, (B, K), from which ln p and ln(1 - p) are exact."""
    logits = np.float64(logits)
    nothing = np.full((len(logits), 1), -np.inf)
    # All before a class and all behind it.
    before = np.hstack([nothing, np.logaddexp.accumulate(logits, axis=1)[:, :-1]])
    behind = np.hstack([np.logaddexp.accumulate(logits[:, ::-1], axis=1)[:, ::-1][:, 1:], nothing])
    return np.logaddexp(before, behind) - logits


def log_gen64(logits, gamma=0.1, top=100):
    odds = np.sort(log_odds64(logits), axis=1)[:, :top]
    powers = -gamma * (np.logaddexp(0, odds) + np.logaddexp(0, -odds))
    return np.logaddexp.reduce(powers, axis=1) - np.log(odds.shape[1])


def log_entropy64(logits):
    odds = log_odds64(logits)
    surprise = np.where(odds < -30, odds, np.log(np.logaddexp(0, np.maximum(odds, -30))))
    return np.logaddexp.reduce(surprise - np.logaddexp(0, odds), axis=1)


def odin64(logits, temperature):
    """T ln((1 - p) / ((K - 1) p)) of the largest p, by the mean of the others' odds, in long doubles."""
    scaled = np.sort(np.longdouble(logits), axis=1)
    scaled = (scaled - scaled[:, -1:]) / temperature
    top = scaled[:, -2:-1]
    odds = np.exp(scaled[:, :-1] - top).mean(axis=1)
    return np.float64(temperature * (np.log(odds) + top[:, 0]))


def gen64(logits, gamma, top, smallest):
    """By the odds of each class, so that 1 - p keeps its digits."""
    p = -np.sort(-np.exp(log_softmax64(logits)), axis=1)
    rest = np.stack([np.delete(p, k, axis=1).sum(axis=1) for k in range(p.shape[1])], axis=1)
    p, rest = (np.clip(x, smallest, 1 - smallest) for x in (p[:, :top], rest[:, :top]))
    return ((p * rest) ** gamma).mean(axis=1)


def rows(name, count=200):
    """Random input of the kind a score takes, then equal, tied and far-apart rows."""
    rng = np.random.default_rng(0)
    if next(iter(inspect.signature(getattr(scores, name)).parameters)) == "cosines":
        hard = [[0, 0, 0, 0], [1, 1, 1, 1], [-1, -1, -1, -1], [1, -1, -1, -1], [0.5, 0.5, 0.2, 0]]
        return np.concatenate([rng.uniform(-1, 1, size=(count, CLASSES)), hard]).astype("float32")
    hard = [[0, 0, 0, 0], [1e4, 1e4, 1e4, 1e4], [1e4, -1e4, 0, 0], [-1e4] * 4, [30, 0, 0, 0], [5, 5, 0, 0]]
    return np.concatenate([4 * rng.normal(size=(count, CLASSES)), hard]).astype("float32")


@pytest.mark.parametrize("name", PLAIN)
def test_plain_scores_match_float64(name):
    assert name in REFERENCES, f"{name} needs a reference here"
    values = rows(name)
    found = numbers(plain(name)(values))
    np.testing.assert_allclose(found, REFERENCES[name](np.float64(values)), rtol=2e-6, atol=1e-6)
    assert found.shape == (len(values),)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_plain_scores_are_float32_for_tensors_and_arrays(name, dtype):
    values = rows(name, 5)[:5]
    if dtype == "float64":
        half = values.astype("float64")
    else:
        half = ops.cast(values, dtype)
        values = ops.convert_to_numpy(ops.cast(half, "float32"))
    expected = numbers(plain(name)(values))
    np.testing.assert_array_equal(numbers(plain(name)(half)), expected)


@pytest.mark.parametrize("name", PLAIN)
def test_no_rows_have_no_plain_scores(name):
    found = numbers(plain(name)(rows(name)[:0]))
    assert found.shape == (0,)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_scores_compile_with_an_unknown_batch(name):
    function = plain(name)
    run = compiled(function, CLASSES)
    small = 1e-6 if name == "rotation_energy" else 0  # A difference may be next to nothing.
    for values in (rows(name), rows(name)[:1]):
        found = numbers(run(ops.convert_to_tensor(values)))
        np.testing.assert_allclose(found, numbers(function(values)), rtol=1e-6, atol=small)


@pytest.mark.parametrize("name", ["msp", "energy", "entropy", "max_logit", "gen", "odin_temperature"])
def test_higher_is_more_out_of_distribution(name):
    sure, unsure = np.array([[9, 0, 0, 0]], "float32"), np.array([[1, 1, 0, 0]], "float32")
    assert numbers(getattr(scores, name)(sure)) < numbers(getattr(scores, name)(unsure))


@pytest.mark.parametrize("name", ["max_cosine", "cosine_margin", "angular_energy"])
def test_higher_cosine_score_is_more_out_of_distribution(name):
    near, far = np.array([[0.9, 0.1, 0, -0.2]], "float32"), np.array([[0.3, 0.2, 0, -0.2]], "float32")
    assert numbers(getattr(scores, name)(near)) < numbers(getattr(scores, name)(far))


def test_msp_keeps_confident_examples_apart():
    """1 - max softmax in float32 is 0 from a lead of 17 on; here each of them stays ordered and exact."""
    leads = np.linspace(10, 85, 76)
    logits = np.zeros((76, CLASSES), "float32")
    logits[:, 1] = leads
    found = numbers(scores.msp(logits))
    assert np.all(np.diff(found) < 0)
    np.testing.assert_allclose(found, 3 * np.exp(-leads) / (1 + 3 * np.exp(-leads)), rtol=1e-5)


def saturated(classes, factor, count=400):
    """Logits of a classifier that is sure, times a factor; equal rows, ties of the largest, and no lead at all."""
    rng = np.random.default_rng(classes)
    logits = rng.normal(size=(count, classes))
    logits[np.arange(count), rng.integers(classes, size=count)] += rng.gamma(4, 1.5, size=count)
    logits[:3] = logits[3]
    logits[4, : min(2, classes)] = logits[4].max()
    logits[5] = 0
    return (factor * logits).astype("float32")


LOGS = {
    "msp": lambda x: -np.logaddexp(0, -log_odds64(x).min(axis=1)),
    "entropy": log_entropy64,
    "gen": log_gen64,
}


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
@pytest.mark.parametrize("factor", [1, 8, 100, 1000])
def test_saturated_images_keep_their_digits_and_their_order(name, classes, factor):
    values = saturated(classes, factor)
    found = numbers(getattr(scores, name)(values))
    if classes == 1:
        assert found.tolist() == [0.0] * len(found)
        return
    log = LOGS[name](values)
    held = log > -86
    np.testing.assert_allclose(found[held], np.exp(log[held]), rtol=2e-5)
    assert np.all(found[~held] > np.finfo(np.float32).tiny) and np.all(found[~held] < 5e-38)
    # What the float64 logarithms tell apart by more than float32 rounds is in their order.
    ordered, log = found[np.argsort(log)], np.sort(log)
    clear = np.diff(log) > 1e-5 * np.maximum(1, -log[:-1])
    assert clear.mean() > 0.9 and np.all(np.diff(ordered)[clear] > 0)
    assert len(np.unique(ordered)) >= 0.99 * len(np.unique(log))


def test_gen_tells_apart_what_clipping_makes_equal():
    values = saturated(10, 100)
    assert len(np.unique(numbers(scores.gen(values, smallest=1e-7)))) < 50
    assert len(np.unique(numbers(scores.gen(values)))) > 390


@pytest.mark.parametrize("temperature", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_odin_keeps_what_float64_tells_apart(classes, temperature):
    """1 - p in float32 has some hundred values for 1,500 images of a thousand classes at T = 1000."""
    values = saturated(classes, 1.0, 1500)
    found, expected = numbers(scores.odin_temperature(values, temperature)), odin64(values, temperature)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)
    ties = len(np.unique(expected)) - len(np.unique(found))
    assert ties <= len(np.unique(expected)) - len(np.unique(expected.astype("float32"))) + 1
    # The order of 1 - p, which is what others answer.
    p = np.exp(log_softmax64(values / np.float64(temperature))).max(axis=1)
    np.testing.assert_allclose(1 / (1 + (classes - 1) * np.exp(expected / temperature)), p, rtol=1e-9)
    assert numbers(scores.odin_temperature(np.zeros((2, classes)), temperature)).tolist() == [0, 0]
    assert numbers(scores.odin(np.zeros((2, 1)), temperature)).tolist() == [0, 0]


def test_msp_of_ties():
    np.testing.assert_allclose(numbers(scores.msp(np.zeros((1, 10)))), 0.9, rtol=1e-6)
    np.testing.assert_allclose(numbers(scores.msp(np.array([[1e4, 1e4, 0]]))), 0.5, rtol=1e-6)
    assert numbers(scores.msp(np.zeros((3, 1)))).tolist() == [0, 0, 0]


@pytest.mark.parametrize("temperature", [0.5, 2.0, 1000.0])
def test_energy_under_a_temperature(temperature):
    values = rows("energy")
    expected = -temperature * np.logaddexp.reduce(np.float64(values) / temperature, axis=1)
    np.testing.assert_allclose(numbers(scores.energy(values, temperature)), expected, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("temperature", [0, -1, float("nan")])
def test_energy_refuses_a_temperature_not_above_zero(temperature):
    with pytest.raises(ValueError, match="temperature"):
        scores.energy(rows("energy"), temperature)
    with pytest.raises(ValueError, match="temperature"):
        scores.odin_temperature(rows("energy"), temperature)
    with pytest.raises(ValueError, match="scale"):
        scores.angular_energy(rows("max_cosine"), temperature)


@pytest.mark.parametrize("scale", [0.5, 30.0, 1000.0])
def test_angular_energy_under_a_scale(scale):
    cosines = rows("angular_energy")
    expected = -np.logaddexp.reduce(scale * np.float64(cosines), axis=1) / scale
    np.testing.assert_allclose(numbers(scores.angular_energy(cosines, scale)), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.1, 1.0])
@pytest.mark.parametrize("top", [1, 2, CLASSES, 100])
@pytest.mark.parametrize("smallest", [0.0, 1e-7, 1e-2])
def test_gen_settings(gamma, top, smallest):
    values = rows("gen")
    found = numbers(scores.gen(values, gamma, top, smallest))
    np.testing.assert_allclose(found, gen64(values, gamma, top, smallest), rtol=5e-6, atol=1e-5 if smallest == 0 else 0)


def test_gen_counts_a_hundred_classes_unless_asked_for_more():
    """As its authors do: the 50 least likely of 150 change nothing."""
    values = np.random.default_rng(0).normal(size=(40, 150)).astype("float32") * 4
    np.testing.assert_allclose(numbers(scores.gen(values)), gen64(values, 0.1, 100, 0.0), rtol=5e-6, atol=1e-5)
    every = numbers(scores.gen(values, top=None))
    np.testing.assert_allclose(every, gen64(values, 0.1, 150, 0.0), rtol=5e-6, atol=1e-5)
    np.testing.assert_array_equal(numbers(scores.gen(values, top=1000)), every)
    assert np.abs(every - numbers(scores.gen(values))).min() > 1e-3
    np.testing.assert_array_equal(numbers(scores.gen(values[:, :100])), numbers(scores.gen(values[:, :100], top=None)))


def test_gen_keeps_confident_examples_apart_where_nothing_is_clipped():
    logits = np.zeros((60, CLASSES), "float32")
    logits[:, 2] = np.linspace(10, 69, 60)
    assert np.all(np.diff(numbers(scores.gen(logits))) < 0)


@pytest.mark.parametrize("wrong", [{"gamma": 0}, {"top": 0}, {"top": 1.5}, {"top": True}, {"smallest": 0.5}])
def test_gen_refuses_impossible_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        scores.gen(rows("gen"), **wrong)


@pytest.mark.parametrize("name", scores.__all__)
def test_needs_are_told_by_parameter_names(name):
    thing = getattr(scores, name)
    parameters = inspect.signature(thing.score if name in FITTED else thing).parameters
    needs = [p.name for p in parameters.values() if p.default is inspect.Parameter.empty and p.name != "self"]
    assert needs and set(needs) <= {"logits", "cosines", "features", "perturbed", "shifted", "rotations"}


# Fitted


def blobs(count=120, seed=0):
    """Features around class means, correlated, with their labels and logits, as a linear head makes them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count)
    mixing = np.random.default_rng(99).normal(size=(WIDTH, WIDTH)) / 3
    means = 3 * np.random.default_rng(98).normal(size=(CLASSES, WIDTH))
    features = means[labels] + rng.normal(size=(count, WIDTH)) @ mixing
    kernel = (means - means.mean(axis=0)).T / 9 + np.random.default_rng(97).normal(size=(WIDTH, CLASSES)) / 20
    bias = np.arange(CLASSES) / 3
    return features.astype("float32"), labels, (features @ kernel + bias).astype("float32"), kernel, bias


def learnt(score, features, labels, logits, shifted=None):
    """Fits with what the score asks for: the head, where it does, and features of moved images."""
    parameters = inspect.signature(score.fit).parameters
    needs_head = "kernel" in parameters and parameters["kernel"].default is inspect.Parameter.empty
    more = {"kernel": blobs(1)[3], "bias": blobs(1)[4]} if needs_head else {}
    if "shifted" in parameters:
        more["shifted"] = moved(features) if shifted is None else shifted
    return score.fit(features, labels, logits, **more)


def moved(features):
    """Features that differ a little."""
    return (1.01 * features + 0.1).astype(features.dtype)


def asked(score, features, logits):
    """What a score is called with."""
    return features, moved(features) if "shifted" in inspect.signature(score.score).parameters else logits


def fitted(name, **settings):
    settings = {"KNN": {"k": 5}, "NNGuide": {"k": 5}, "ViM": {"dim": 4}, "Residual": {"dim": 4}}.get(
        name, {}
    ) | settings
    features, labels, logits, _, _ = blobs()
    return learnt(getattr(scores, name)(**settings), features, labels, logits)


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize("block", [1, 7, 60])
def test_what_is_fitted_does_not_depend_on_the_size_of_the_blocks(name, block, monkeypatch):
    whole = fitted(name).get_state()
    monkeypatch.setattr(streaming, "BLOCK", block)
    for key, value in fitted(name).get_state().items():
        if value.dtype.kind == "U":
            assert value == whole[key]
        else:
            # Sums in another order; eigenvectors amplify it.
            np.testing.assert_allclose(value, whole[key], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", sorted({*FITTED} - {"KNN", "NNGuide", "Relation"}))
def test_fitting_what_lies_on_disk_takes_no_more_memory_for_more_rows(name, tmp_path):
    def peak(count):
        features, labels, logits, _, _ = blobs(count)
        mapped = []
        for key, values in (("features", features), ("logits", logits), ("shifted", moved(features))):
            np.save(tmp_path / f"{key}.npy", values)
            mapped.append(np.load(tmp_path / f"{key}.npy", mmap_mode="r"))
        del features, logits
        tracemalloc.start()
        learnt(getattr(scores, name)(), mapped[0], labels, *mapped[1:])
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    # The labels are in memory: a few whole numbers a row, and nothing that is as wide as a feature.
    assert peak(120_000) - peak(30_000) < 90_000 * WIDTH * 4


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["normal", "relu", "ties", "signed zeros", "tiny and huge", "one"])
def test_quantiles_from_counts_are_exact(kind, share):
    rng = np.random.default_rng(0)
    values = {
        "normal": rng.normal(size=(1000, 7)).astype("float32"),
        "relu": np.maximum(rng.normal(size=(1000, 7)), 0),
        "ties": rng.integers(-2, 3, (501, 3)).astype("float32"),
        "signed zeros": np.where(rng.random((20, 2)) < 0.5, 0.0, -0.0),
        "tiny and huge": np.float64([[5e-324, -5e-324, 1e308], [-1e308, 0.0, 2e-310]]),
        "one": np.float64([[-3.5]]),
    }[kind]
    expected = np.quantile(values.astype("float64"), share)
    assert streaming.quantile(values, share) == pytest.approx(expected, rel=1e-15, abs=0)


@pytest.mark.parametrize("name", ["KNN", "NNGuide"])
def test_a_limit_keeps_features_at_equal_distances(name):
    features, labels, logits, _, _ = blobs()
    limited = getattr(scores, name)(k=2, limit=4).fit(features, labels, logits)
    chosen = [0, 40, 79, 119]
    expected = getattr(scores, name)(k=2).fit(features[chosen], labels[chosen], logits[chosen])
    np.testing.assert_array_equal(limited.get_state()["bank"], expected.get_state()["bank"])
    with pytest.raises(ValueError, match="fewer than k=5"):
        getattr(scores, name)(k=5, limit=4).fit(features, labels, logits)
    with pytest.raises(ValueError, match="limit must be a whole number"):
        getattr(scores, name)(limit=0)


#: They take the length of a feature for confidence, and what is far here is long.
OF_LENGTH = {"ASH", "AdaSCALE", "DICE", "SCALE", "ReAct", "SHE", "NNGuide", "NCI", "GradNorm", "TempScale"}


@pytest.mark.parametrize("name", sorted({*FITTED} - OF_LENGTH))
def test_distances_separate_what_is_far_and_are_called_alike(name):
    features, _, logits, kernel, bias = blobs(60, seed=1)
    far = (np.random.default_rng(2).normal(size=(60, WIDTH)) * 12).astype("float32")
    score = fitted(name)
    near_scores = numbers(score.score(*asked(score, features, logits)))
    far_scores = numbers(score.score(*asked(score, far, (far @ kernel + bias).astype("float32"))))
    assert near_scores.shape == (60,)
    assert np.mean(near_scores[:, None] < far_scores[None]) > 0.75


@pytest.mark.parametrize("name", FITTED)
def test_state_goes_through_npz_without_pickle(name, tmp_path):
    score = fitted(name)
    features, _, logits, _, _ = blobs(30, seed=3)
    np.savez(tmp_path / "state.npz", **score.get_state())
    with np.load(tmp_path / "state.npz", allow_pickle=False) as state:
        again = getattr(scores, name).from_state(state)
    given = asked(score, features, logits)
    np.testing.assert_array_equal(numbers(again.score(*given)), numbers(score.score(*given)))
    state = again.get_state()
    assert {key: value.tolist() for key, value in state.items()} == {
        key: value.tolist() for key, value in score.get_state().items()
    }
    features, labels, logits, _, _ = blobs()
    np.testing.assert_array_equal(
        learnt(again, features, labels, logits).get_state()[score.STATE[0]], state[score.STATE[0]]
    )


@pytest.mark.parametrize("name", FITTED)
def test_fitted_scores_compile_with_an_unknown_batch(name):
    score = fitted(name)
    features, second = asked(score, *blobs(9, seed=4)[:3:2])
    run = compiled(score.score, WIDTH, second.shape[1])
    for count in (9, 1):
        found = run(ops.convert_to_tensor(features[:count]), ops.convert_to_tensor(second[:count]))
        expected = numbers(score.score(features[:count], second[:count]))
        np.testing.assert_allclose(numbers(found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FITTED)
def test_no_rows_have_no_fitted_scores(name):
    score = fitted(name)
    found = numbers(score.score(*(one[:0] for one in asked(score, *blobs(9)[:3:2]))))
    assert found.shape == (0,)


@pytest.mark.parametrize("name", FITTED)
def test_fitted_scores_take_half_precision(name):
    score = fitted(name)
    features, _, logits, _, _ = blobs(9, seed=5)
    half = [one.astype("float16") for one in asked(score, features, logits)]
    expected = numbers(score.score(*(one.astype("float32") for one in half)))
    np.testing.assert_array_equal(numbers(score.score(*half)), expected)


@pytest.mark.parametrize("name", FITTED)
def test_unfitted_and_foreign_states_are_refused(name):
    features, _, logits, _, _ = blobs(3)
    with pytest.raises(RuntimeError, match="must be fitted"):
        getattr(scores, name)().score(features, logits)
    with pytest.raises(RuntimeError, match="must be fitted"):
        getattr(scores, name)().get_state()
    with pytest.raises(ValueError, match="lacks"):
        getattr(scores, name).from_state({"nothing": np.zeros(1)})
    with pytest.raises(ValueError, match="shape"):
        fitted(name).score(features[:, 1:], logits[:, 1:])


@pytest.mark.parametrize("name", FITTED)
def test_wrong_features_are_refused(name):
    features, labels, logits, _, _ = blobs()
    broken = features.copy()
    broken[3, 2], broken[4, 1] = np.nan, np.inf
    for wrong, message in ((broken, "2 values"), (features[:0], "filled"), (features[0], "shape")):
        with pytest.raises(ValueError, match=message):
            learnt(fitted(name), wrong, labels[: len(wrong)], logits[: len(wrong)])


#: What is made of a feature and of what goes with it, row by row.
PAIRS = ["FDBD", "SHE", "NNGuide", "Relation", "ViM", "NCI", "GradNorm", "AdaSCALE"]


@pytest.mark.parametrize("name", [*PAIRS, "KLMatching", "OpenMax", "TempScale"])
def test_second_arguments_of_another_width_or_number_are_refused(name):
    score = fitted(name)
    features, second = asked(score, *blobs(9, seed=4)[:3:2])
    wrong = [np.hstack([second, second]), second[:, :-1], second[0]]
    for other in wrong:
        with pytest.raises(ValueError, match=r"must have the shape \(B, "):
            score.score(features, other)
    for other in (second[:1], second[:-1]) if name in PAIRS else ():
        with pytest.raises(ValueError, match=r"There are 9 features but [18] "):
            score.score(features, ops.convert_to_tensor(other))


def test_vim_refuses_logits_of_other_classes_than_the_kernel_has():
    features, labels, logits, kernel, bias = blobs()
    with pytest.raises(ValueError, match=r"logits and kernel must have as many classes; theirs are \[3, 4\]"):
        scores.ViM(dim=4).fit(features, labels, logits[:, 1:], kernel.tolist(), bias.tolist())


@pytest.mark.parametrize("score", [scores.Mahalanobis, scores.RelativeMahalanobis])
def test_each_fit_has_arrays_of_its_own(score):
    features, labels, _, _, _ = blobs(seed=12)
    first, second = score().fit(features, labels), score().fit(features, labels)
    before = second.get_state()
    for array in first.state.values():
        array[...] = 0
    for one in (second, score().fit(features, labels)):
        assert all(np.array_equal(one.state[name], before[name]) for name in before)


def test_a_class_that_the_logits_rule_out_changes_nothing():
    logits = rows("entropy", 20)
    ruled_out = np.insert(logits, 2, -np.inf, axis=1)
    for name in ("entropy", "msp", "energy"):
        np.testing.assert_allclose(numbers(plain(name)(ruled_out)), numbers(plain(name)(logits)), rtol=1e-6)
    features, _, logits, _, _ = blobs(9)
    assert np.isfinite(
        numbers(fitted("KLMatching").score(features, np.hstack([logits[:, :-1], [[-np.inf]] * 9])))
    ).all()
    assert np.isnan(numbers(scores.entropy(np.full((1, 3), np.nan)))).all()


def test_a_failed_fit_leaves_the_old_state():
    score = fitted("Mahalanobis")
    before = score.get_state()
    with pytest.raises(ValueError):
        score.fit(np.zeros((4, WIDTH)), np.arange(4))
    assert all(np.array_equal(before[key], value) for key, value in score.get_state().items())


def mahalanobis64(features, labels, queries):
    features, queries = np.float64(features), np.float64(queries)
    means = np.stack([features[labels == c].mean(axis=0) for c in np.unique(labels)])
    within = features - means[np.searchsorted(np.unique(labels), labels)]
    precision = np.linalg.pinv(within.T @ within / len(features), hermitian=True)
    difference = queries[:, None] - means[None]
    return np.einsum("bcd,de,bce->bc", difference, precision, difference).min(axis=1)


def test_mahalanobis_matches_float64():
    features, labels, _, _, _ = blobs()
    queries = np.concatenate([blobs(50, seed=6)[0], 30 * np.random.default_rng(7).normal(size=(50, WIDTH))])
    queries = queries.astype("float32")
    found = numbers(scores.Mahalanobis().fit(features, labels).score(queries))
    np.testing.assert_allclose(found, mahalanobis64(features, labels, queries), rtol=1e-4)


@pytest.mark.parametrize("score", [scores.Mahalanobis, scores.RelativeMahalanobis])
def test_distances_are_fitted_once_to_the_same_features(monkeypatch, score):
    features, labels, _, _, _ = blobs(seed=11)
    first = score().fit(features, labels).get_state()
    solved, eigh = [], np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda matrix: solved.append(1) or eigh(matrix))
    again = score().fit(features.copy(), labels.copy()).get_state()
    assert not solved and all((again[name] == first[name]).all() for name in first)
    for other in ((features * np.float32(1.5), labels), (features, np.roll(labels, 1)), (features[:-1], labels[:-1])):
        solved.clear()
        assert any(
            of.shape != first[name].shape or (of != first[name]).any()
            for name, of in score().fit(*other).get_state().items()
        )
        assert solved
    solved.clear()
    score(cut=1e-3).fit(features, labels)
    assert solved


def test_mahalanobis_is_exact_at_a_mean():
    features, labels, _, _, _ = blobs()
    means = np.stack([features[labels == c].mean(axis=0, dtype=np.float64) for c in range(CLASSES)])
    found = numbers(scores.Mahalanobis().fit(features, labels).score(means.astype("float32")))
    assert np.all(found < 1e-9)


def test_mahalanobis_with_a_singular_covariance_uses_the_range():
    """A dead feature, a copied one, and fewer examples than features."""
    features, labels, _, _, _ = blobs()
    singular = np.concatenate([features, 0 * features[:, :1] + 3, features[:, :1]], axis=1)
    queries = np.concatenate([features, 0 * features[:, :1] + 3, features[:, :1]], axis=1) * np.float32(1.1)
    found = numbers(scores.Mahalanobis().fit(singular, labels).score(queries))
    np.testing.assert_allclose(found, mahalanobis64(singular, labels, queries), rtol=1e-3)
    few = numbers(scores.Mahalanobis().fit(features[:8], labels[:8]).score(queries[:, :WIDTH]))
    assert np.isfinite(few).all() and np.all(few >= 0)


def test_mahalanobis_labels_need_not_be_consecutive():
    features, labels, _, _, _ = blobs()
    expected = numbers(scores.Mahalanobis().fit(features, labels).score(features))
    found = numbers(scores.Mahalanobis().fit(features, labels * 7 + 3).score(features))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("apart", "twins"), [(1.0, 1), (300.0, 1), (30.0, 6)])
def test_mahalanobis_of_many_classes_matches_float64(apart, twins):
    """Classes far from the middle for their width, and several at one place."""
    rng = np.random.default_rng(3)
    means = np.repeat(apart * rng.normal(size=(60 // twins, WIDTH)), twins, axis=0)
    labels = np.repeat(np.arange(60), 12)
    features = (means[labels] + rng.normal(size=(720, WIDTH))).astype("float32")
    queries = np.concatenate([features[::7], 2 * features[::50]])
    score = scores.Mahalanobis().fit(features, labels)
    assert score.state["means"].shape[0] > score.BLOCK
    found = numbers(score.score(queries))
    np.testing.assert_allclose(found, mahalanobis64(features, labels, queries), rtol=3e-4)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(5), "120 features but 5"),
        (np.full(120, 0.5), "whole numbers"),
        (np.eye(120), "shape"),
        (np.arange(120) % 3 - 1, "whole numbers from 0"),
    ],
)
def test_mahalanobis_refuses_other_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        scores.Mahalanobis().fit(blobs()[0], labels)


def test_mahalanobis_refuses_features_that_do_not_vary():
    with pytest.raises(ValueError, match="do not vary"):
        scores.Mahalanobis().fit(np.eye(3)[[0, 1, 2, 0]], [0, 1, 2, 0])
    for cut in (-0.1, 1, float("nan")):
        with pytest.raises(ValueError, match="cut"):
            scores.Mahalanobis(cut=cut)


def knn64(features, queries, k):
    def unit(x):
        length = np.linalg.norm(np.float64(x), axis=1, keepdims=True)
        return np.float64(x) / np.where(length > 0, length, 1)

    distance = np.linalg.norm(unit(queries)[:, None] - unit(features)[None], axis=2)
    return np.sort(distance, axis=1)[:, k - 1]


@pytest.mark.parametrize("k", [1, 2, 50, 120])
@pytest.mark.parametrize("block", [7, 64, 8192])
def test_knn_matches_float64(k, block, monkeypatch):
    """Whatever the block: smaller than k, smaller than the bank, larger than both."""
    monkeypatch.setattr(scores.KNN, "BLOCK", block)
    features = blobs()[0].copy()
    features[5:9] = features[4]  # the same neighbour five times
    queries = np.concatenate([features[:10], 1e-20 * features[10:20], 1e20 * features[20:30], -features[30:40]])
    queries = np.concatenate([queries, 0 * queries[:1], blobs(20, seed=8)[0]])
    found = numbers(scores.KNN(k=k).fit(features, None).score(queries))
    np.testing.assert_allclose(found, knn64(features, queries, k), atol=1e-6 if k > 1 else 3e-7)


@pytest.mark.parametrize(("width", "k"), [(1, 1), (40, 3), (64, 2), (1000, 5), (1003, 30), (1003, 500), (96, 96)])
@pytest.mark.parametrize("kind", ["random", "ties", "equal", "infinite", "sorted"])
def test_the_largest_are_found_among_the_largest_of_groups(width, k, kind):
    values = np.random.default_rng(width).normal(size=(7, width)).astype("float32")
    if kind == "ties":
        values = np.rint(values)
    elif kind == "equal":
        values[:] = 2.0
    elif kind == "infinite":
        values[:, ::3] = -np.inf
    elif kind == "sorted":
        values = np.sort(values, axis=1)
    found, columns = (ops.convert_to_numpy(one) for one in neighbours._largest(ops.convert_to_tensor(values), k, 16))
    np.testing.assert_array_equal(found, -np.sort(-values, axis=1)[:, :k])
    np.testing.assert_array_equal(np.take_along_axis(values, columns, axis=1), found)
    assert all(len(set(row)) == k for row in columns.tolist())


@pytest.mark.parametrize("name", ["KNN", "NNGuide"])
def test_what_is_placed_on_the_device_answers_the_same(name, monkeypatch):
    monkeypatch.setattr(getattr(scores, name), "BLOCK", 100)
    features, labels, logits, _, _ = blobs()
    score = getattr(scores, name)(k=3).fit(features, labels, logits)
    queries = (blobs(20, seed=8)[0], blobs(20, seed=8)[2])
    expected = numbers(score.score(*queries))
    score.place()
    placed = score._placed
    score.place()
    assert score._placed is placed  # Not copied again for the next set of images.
    np.testing.assert_array_equal(numbers(score.score(*queries)), expected)
    np.testing.assert_array_equal(numbers(type(score).from_state(score.get_state()).score(*queries)), expected)
    # Fitted anew, what was placed is forgotten.
    again = numbers(score.fit(features[:50], labels[:50], logits[:50]).score(*queries))
    assert (again != expected).any()


def test_knn_of_a_fitted_feature_is_zero():
    features = blobs()[0]
    assert numbers(scores.KNN(k=1).fit(features, None).score(features)).max() < 3e-7


def test_knn_handles_zero_features_in_the_bank():
    features = blobs(10)[0].copy()
    features[0] = 0
    queries = blobs(5, seed=9)[0]
    for k in (1, 5, 10):
        found = numbers(scores.KNN(k=k).fit(features, None).score(queries))
        np.testing.assert_allclose(found, knn64(features, queries, k), atol=1e-6)


@pytest.mark.parametrize("k", [0, -1, 2.5, True])
def test_knn_refuses_an_impossible_k(k):
    with pytest.raises(ValueError, match="k must be"):
        scores.KNN(k=k)


def test_knn_refuses_fewer_features_than_neighbours():
    with pytest.raises(ValueError, match="fewer than k=50"):
        scores.KNN().fit(blobs(49)[0], None)


def vim64(features, logits, queries, query_logits, *, dim, origin):
    """As the paper's code: the covariance's eigenvectors sorted, the leading ones left out."""
    centred = np.float64(features) - origin
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    residual = vectors[:, np.argsort(-values)[dim:]]
    alpha = np.float64(logits).max(axis=1).mean() / np.linalg.norm(centred @ residual, axis=1).mean()
    norm = np.linalg.norm((np.float64(queries) - origin) @ residual, axis=1)
    return alpha * norm - np.logaddexp.reduce(np.float64(query_logits), axis=1)


@pytest.mark.parametrize("dim", [1, 4, WIDTH - 1])
def test_vim_matches_float64(dim):
    features, labels, logits, kernel, bias = blobs()
    queries, _, query_logits, _, _ = blobs(40, seed=10)
    found = numbers(scores.ViM(dim).fit(features, labels, logits).score(queries, query_logits))
    expected = vim64(features, logits, queries, query_logits, dim=dim, origin=np.float64(features).mean(axis=0))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

    origin = -np.linalg.pinv(kernel.T) @ bias
    np.testing.assert_allclose(origin @ kernel + bias, 0, atol=1e-12)
    expected = vim64(features, logits, queries, query_logits, dim=dim, origin=origin)
    for given in (logits, None):
        score = scores.ViM(dim).fit(features, labels, given, kernel=kernel, bias=bias)
        np.testing.assert_allclose(numbers(score.score(queries, query_logits)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ViM", "Residual"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_class_weights_that_sum_to_zero_give_no_origin_of_rounding_noise(name, scale):
    """Weight decay and softmax leave them so; in float32 their sum is not quite 0, and is no direction to invert."""
    rng = np.random.default_rng(21)
    features, labels, _, kernel, _ = blobs()
    kernel = scale * kernel
    exact = kernel - kernel.mean(axis=1, keepdims=True)
    kernel, bias = exact.astype("float32"), scale * rng.normal(size=CLASSES).astype("float32")
    assert 0 < np.abs(np.float64(kernel).sum(axis=1)).max() < 1e-6 * np.abs(kernel).max()
    # Of the biases what differs between classes alone can be undone.
    expected = -np.linalg.lstsq(exact.T, np.float64(bias) - np.float64(bias).mean(), rcond=1e-10)[0]
    logits = (np.float64(features) @ kernel + bias).astype("float32")
    found = getattr(scores, name)(4).fit(features, labels, logits, kernel=kernel, bias=bias).get_state()["origin"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert np.linalg.norm(found) < 100


@pytest.mark.parametrize(("width", "dim"), [(768, 512), (12, 6)])
def test_vim_default_dimension(width, dim):
    features = np.random.default_rng(11).normal(size=(30, width))
    features = features if width == 12 else np.concatenate([features, 10 * np.eye(width)])
    assert scores.ViM().fit(features, None, features[:, :3]).get_state()["dim"] == dim


@pytest.mark.parametrize("rows", [60, 3000])
def test_of_wide_features_no_square_matrix_is_kept(rows):
    """As of maps that were flattened: what stays is the principal space, and the length outside it is the same."""
    rng = np.random.default_rng(12)
    features = (rng.normal(size=(rows, 500)) * np.linspace(1, 3, 500)).astype("float32")
    queries = rng.normal(size=(20, 500)).astype("float32")
    score = scores.Residual(20).fit(features)
    assert score.get_state()["residual"].size == 500 * 20
    origin = np.float64(features).mean(axis=0)
    leading = np.linalg.svd(np.float64(features) - origin, full_matrices=False)[2][:20].T
    outside = queries - origin - (queries - origin) @ leading @ leading.T
    np.testing.assert_allclose(numbers(score.score(queries)), np.linalg.norm(outside, axis=1), rtol=1e-5)


@pytest.mark.parametrize("name", ["Mahalanobis", "RelativeMahalanobis", "Residual", "ViM"])
def test_hours_are_refused_in_words(name, monkeypatch):
    monkeypatch.setattr(streaming, "LARGEST", 20)
    rng = np.random.default_rng(13)
    for rows, width in ((12, 40), (40, 12), (21, 21)):
        features = rng.normal(size=(rows, width)).astype("float32")
        score = getattr(scores, name)(**({"dim": 3} if name in ("Residual", "ViM") else {}))
        fit = functools.partial(score.fit, features, np.arange(rows) % 3, features[:, :3] + 3)
        if rows == width:
            with pytest.raises(ValueError, match="21 images of 21 features would take hours; take features"):
                fit()
        else:
            fit()


@pytest.mark.parametrize("dim", [0, -1, 1.5, True])
def test_vim_refuses_an_impossible_dimension(dim):
    with pytest.raises(ValueError, match="dim must be"):
        scores.ViM(dim)


def test_vim_refuses_what_it_cannot_use():
    features, labels, logits, kernel, bias = blobs()
    with pytest.raises(ValueError, match="from 1 to 11"):
        scores.ViM(WIDTH).fit(features, labels, logits)
    with pytest.raises(ValueError, match="needs the logits"):
        scores.ViM(4).fit(features, labels)
    with pytest.raises(ValueError, match="the mean of the largest logits is -"):
        scores.ViM(4).fit(features, labels, logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    with pytest.raises(ValueError, match="go together"):
        scores.ViM(4).fit(features, labels, logits, kernel=kernel)
    with pytest.raises(ValueError, match="kernel must have the shape"):
        scores.ViM(4).fit(features, labels, logits, kernel=kernel.T, bias=bias)
    with pytest.raises(ValueError, match="120 features but 7"):
        scores.ViM(4).fit(features, labels, logits[:7])
    flat = features[:, :3] @ np.random.default_rng(12).normal(size=(3, WIDTH))
    with pytest.raises(ValueError, match="no residual"):
        scores.ViM(4).fit(flat, labels, logits)


@pytest.mark.parametrize("name", ["ViM", "Residual"])
@pytest.mark.parametrize(("count", "width", "rank"), [(80, 300, 79), (20, 24, 19), (200, 40, 3), (200, 40, 2)])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_few_images_have_a_dimension_that_leaves_a_residual(name, count, width, rank, scale):
    rng = np.random.default_rng(13)
    features = scale * rng.normal(size=(count, rank + 1)) @ rng.normal(size=(rank + 1, width))
    if count > rank + 1:  # As many directions as said, around the mean too.
        features = scale * rng.normal(size=(count, rank)) @ rng.normal(size=(rank, width))
    features, logits = features.astype("float32"), rng.normal(size=(count, 3)).astype("float32")
    with pytest.raises(ValueError, match=rf"outside their {rank} .* leave dim out"):
        getattr(scores, name)(rank).fit(np.float64(features), None, logits)
    dim = getattr(scores, name)().fit(features, None, logits).get_state()["dim"]
    assert 1 <= dim < rank
    assert getattr(scores, name)(dim).fit(features, None, logits).get_state()["dim"] == dim


def test_features_on_a_line_have_no_dimension_to_be_told():
    with pytest.raises(ValueError, match="they vary in one direction at most"):
        scores.Residual(4).fit(np.linspace(-1, 1, 50)[:, None] * np.arange(1, WIDTH + 1))


def few_in_many(case):
    """Features of fewer images than numbers, with their classes."""
    rng = np.random.default_rng(14)
    classes, each, width = {"one a class": (9, 1, 64), "two of one": (8, 1, 64)}.get(case, (4, 6, 64))
    labels = np.repeat(np.arange(classes), each)
    if case == "two of one":
        labels = np.append(labels, 0)
    features = 2 * rng.normal(size=(classes, width))[labels] + rng.normal(size=(len(labels), width))
    if case == "constant":
        features[:, 3] = 7.0
    elif case == "copies":
        features = features[np.repeat(np.arange(0, len(features), 2), 2)]
    elif case == "scales":
        features *= np.logspace(-3, 1, width)
    elif case == "far":
        features += 1e4
    return np.float64(np.float32(features)), labels


CASES = ["plain", "constant", "copies", "scales", "far", "one a class", "two of one"]


def test_a_subclass_with_an_option_more_is_fitted_by_it():
    class Shrunk(scores.Mahalanobis):
        def __init__(self, shrink):
            super().__init__()
            self.shrink = shrink

        def _estimated(self, features, labels):
            return {**super()._estimated(features, labels), "center": np.full(features.shape[1], self.shrink)}

    class Other:
        class Shrunk(scores.Mahalanobis):
            pass

    rng = np.random.default_rng(5)
    features, labels = rng.normal(size=(30, 4)).astype("float32"), np.arange(30) % 3
    centers = [made.fit(features, labels).state["center"][0] for made in (Shrunk(0.0), Shrunk(100.0), Other.Shrunk())]
    assert centers[:2] == [0.0, 100.0] and centers[2] == pytest.approx(features[:, 0].mean(), abs=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_few_images_of_many_numbers_have_the_figures_of_the_whole_matrix(case, monkeypatch):
    """What a D x D matrix says, the rows say by themselves, of classes, spaces and what no row reaches."""
    features, labels = few_in_many(case)
    rng = np.random.default_rng(15)
    queries = (features[:8] + features.std() * rng.normal(size=features[:8].shape)).astype("float32")
    logits = rng.normal(size=(len(features), 3)).astype("float32")

    def answers():
        distances._last.clear()
        made = [scores.Residual(3).fit(features), scores.ViM(3).fit(features, labels, logits)]
        if case != "one a class":
            made += [scores.Mahalanobis().fit(features, labels), scores.RelativeMahalanobis().fit(features, labels)]
        return [numbers(one.score(queries, logits[:8])) for one in made]

    def whole(parts, count, width):
        return np.linalg.eigh(sum(block.T @ block for block in parts))

    found = answers()
    for module in (distances, subspaces):
        monkeypatch.setattr(module, "principal", whole)
    for one, other in zip(found, answers(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())
    if case == "one a class":
        with pytest.raises(ValueError, match="do not vary within any class"):
            scores.Mahalanobis().fit(features, labels)


@pytest.mark.parametrize("name", ["Mahalanobis", "RelativeMahalanobis", "Residual", "ViM"])
def test_no_whole_matrix_is_solved_for_few_images_of_many_numbers(name, monkeypatch):
    features, labels = few_in_many("plain")
    sizes, eigh = [], np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda matrix: sizes.append(len(matrix)) or eigh(matrix))
    distances._last.clear()
    settings = {"dim": 3} if name in ("Residual", "ViM") else {}
    getattr(scores, name)(**settings).fit(features, labels, features[:, :3])
    assert max(sizes, default=0) <= len(features)


@pytest.mark.parametrize(
    ("counts", "told"), [([13, 14, 13, 14, 13, 13], 6), ([49, 50, 50], None), ([49, 49, 300], 24), ([1] * 60, 1)]
)
def test_more_neighbours_than_a_class_has_images_are_doubted(counts, told):
    labels = np.repeat(np.arange(len(counts)), counts)
    said = scores.KNN().doubt(labels)
    assert bool(said) == (told is not None)
    if told:
        assert f"the {int(np.median(counts))} training images of a usual class" in said and f"knn:k={told} fits" in said
        assert scores.KNN(told).doubt(labels) == ""
