"""Our training step against Keras's own default step, on whatever backend Keras runs."""

import gc
import weakref

import keras
import numpy as np
import pytest
from keras import ops

from kood import backends, heads, losses, registry, training
from kood.backends import compiled
from kood.classifier import Classifier
from kood.diffusion.denoiser import Denoiser
from kood.nets import denoisers
from kood.virtual import VirtualOutliers

# Run once under each Keras backend.
pytestmark = [pytest.mark.backend, pytest.mark.usefixtures("as_written")]

SHAPE, CLASSES = (8, 8, 1), 3


def backbone():
    inputs = keras.Input(SHAPE)
    x = keras.layers.Flatten()(inputs)
    x = keras.layers.Dense(16, activation="tanh")(x)
    return keras.Model(inputs, keras.layers.Dense(8)(x))


def batch(rows=12, outliers=4, seed=0):
    rng = np.random.default_rng(seed)
    label = np.eye(CLASSES, dtype="float32")[rng.integers(0, CLASSES, rows)]
    label[:outliers] = 0.0
    return {
        "image": rng.uniform(-1, 1, (rows, *SHAPE)).astype("float32"),
        "label": label,
        "is_outlier": (np.arange(rows) < outliers).astype("float32"),
    }


def classifier(head="ArcFace", exposure="outlier_exposure", **options):
    keras.utils.set_random_seed(0)
    model = Classifier(backbone(), getattr(heads, head)(CLASSES), exposure=exposure, **options)
    model.build((None, *SHAPE))
    return model


class DefaultStep(keras.Model):
    """The same losses through Keras's own `train_step` and `compute_loss`."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, inputs, training=False):
        return ops.stack(list(self.inner.loss_terms(inputs, training=training).values()))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.sum(y_pred)


def dataset(batches):
    import tensorflow as tf

    stacked = {key: np.stack([b[key] for b in batches]) for key in batches[0]}
    return tf.data.Dataset.from_tensor_slices(stacked).repeat()


def history(model, batches, optimizer, epochs=4, **compiling):
    model.compile(optimizer=optimizer, **compiling)
    result = model.fit(dataset(batches), epochs=epochs, steps_per_epoch=len(batches), shuffle=False, verbose=0)
    return result.history


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch alone has such a context")
def test_a_training_is_of_its_own_precision_whatever_context_is_open():
    import torch

    found, batches = [], [batch(seed=i) for i in range(2)]
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            model = with_virtual("outlier_exposure", queue=2)
            history(model, batches, keras.optimizers.SGD(0.1), epochs=2)
        found.append([ops.convert_to_numpy(weight) for weight in model.weights])
    for plain, lowered in zip(*found, strict=True):
        np.testing.assert_array_equal(plain, lowered)


@pytest.mark.parametrize(
    ("head", "settings"),
    [("Softmax", {}), ("ArcFace", {"global_clipnorm": 0.05}), ("ArcFace", {"use_ema": True, "ema_momentum": 0.5})],
)
def test_same_history_as_the_default_step(head, settings):
    batches = [batch(seed=i) for i in range(5)]
    ours = classifier(head)
    twin = classifier(head)
    reference = DefaultStep(twin)
    reference.built = True
    got = history(ours, batches, keras.optimizers.Adam(1e-2, **settings))
    expected = history(reference, batches, keras.optimizers.Adam(1e-2, **settings))
    np.testing.assert_allclose(got["loss"], expected["loss"], rtol=2e-5)
    assert got["loss"][-1] < got["loss"][0]
    for mine, other in zip(ours.trainable_weights, twin.trainable_weights, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(mine), ops.convert_to_numpy(other), atol=1e-5)


def test_logs_name_every_term_and_their_sum():
    logs = history(classifier(), [batch()], keras.optimizers.SGD(0.0), epochs=1)
    assert set(logs) == {"loss", "cross_entropy", "exposure"}
    np.testing.assert_allclose(logs["loss"][0], logs["cross_entropy"][0] + logs["exposure"][0], rtol=1e-6)


def test_each_mean_is_over_its_own_rows():
    model, data = classifier("Softmax", exposure_weight=0.25), batch(rows=10, outliers=3)
    terms = {k: float(ops.convert_to_numpy(v)) for k, v in model.loss_terms(data).items()}
    logits = ops.convert_to_numpy(model(data["image"])["logits"]).astype("float64")
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    rows = data["is_outlier"] == 0
    np.testing.assert_allclose(terms["cross_entropy"], -(log_p * data["label"]).sum(1)[rows].mean(), rtol=1e-5)
    kl = -np.log(CLASSES) - log_p.mean(1)
    np.testing.assert_allclose(terms["exposure"], 0.25 * kl[~rows].mean(), rtol=1e-4)


@pytest.mark.parametrize("head", ["Softmax", "ArcFace"])
def test_class_weights_are_the_expected_weight_of_each_row(head):
    weights = (0.25, 1.0, 4.0)
    model, plain, data = classifier(head, class_weight=weights), classifier(head), batch(rows=10, outliers=3)
    data["label"][5:8] = [[0.5, 0.0, 0.5], [0.25, 0.75, 0.0], [0.2, 0.3, 0.5]]  # Labels may be soft.
    terms = {k: float(ops.convert_to_numpy(v)) for k, v in model.loss_terms(data).items()}
    others = {k: float(ops.convert_to_numpy(v)) for k, v in plain.loss_terms(data).items()}
    features = plain.backbone(data["image"])
    logits = ops.convert_to_numpy(plain.head(features, data["label"])).astype("float64")
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    inside = data["is_outlier"] == 0
    each = (data["label"] @ np.array(weights)) * -(data["label"] * log_p).sum(1)
    np.testing.assert_allclose(terms["cross_entropy"], each[inside].sum() / inside.sum(), rtol=1e-5)
    assert terms["exposure"] == others["exposure"] and abs(terms["cross_entropy"] - others["cross_entropy"]) > 1e-2


def test_equal_class_weights_train_as_none_and_others_go_into_the_file(tmp_path):
    trained = {}
    for weights in (None, (1.0, 1.0, 1.0), (0.25, 1.0, 4.0)):
        model = classifier(class_weight=weights)
        history(model, [batch()], keras.optimizers.SGD(0.1), epochs=2)
        trained[weights] = [ops.convert_to_numpy(weight) for weight in model.weights]
        assert ("class_weight" in model.get_config()) == (weights is not None)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        assert loaded.class_weight == weights
    plain, equal, other = trained.values()
    for one, two, three in zip(plain, equal, other, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-7)
        assert one.size == 1 or not np.allclose(one, three, rtol=1e-6, atol=1e-7)


def mixed_batch(outliers=4):
    """Outlier rows labelled as mixtures are: a class times its share."""
    data = batch(outliers=outliers)
    rng = np.random.default_rng(1)
    classes = rng.integers(0, CLASSES, outliers)
    data["label"][:outliers] = rng.uniform(size=(outliers, 1)) * np.eye(CLASSES)[classes]
    return data


@pytest.mark.parametrize("head", heads.__all__)
def test_the_label_of_a_mixture_is_for_its_exposure_alone(head):
    """The cross-entropy, and what the head keeps, are those of a batch whose outliers have no label."""
    model, twin = classifier(head), classifier(head)
    data, plain = mixed_batch(), batch()
    terms, others = model.loss_terms(data, training=True), twin.loss_terms(plain, training=True)
    values = {k: float(ops.convert_to_numpy(v)) for k, v in terms.items()}
    assert values["cross_entropy"] == float(ops.convert_to_numpy(others["cross_entropy"]))
    for mine, other in zip(model.weights, twin.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(mine), ops.convert_to_numpy(other))
    logits = ops.convert_to_numpy(model(data["image"])["logits"]).astype("float64")[:4]
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = data["label"][:4] + (1 - data["label"][:4].sum(axis=1, keepdims=True)) / CLASSES
    expected = 0.5 * (target * (np.log(target) - log_p)).sum(axis=1).mean()
    np.testing.assert_allclose(values["exposure"], expected, rtol=1e-4)
    assert abs(values["exposure"] - float(ops.convert_to_numpy(others["exposure"]))) > 1e-3


def test_mixtures_learn_their_shares():
    model, data = classifier("Softmax", exposure_weight=1.0), mixed_batch()
    history(model, [data], keras.optimizers.Adam(1e-2), epochs=250)
    found = ops.convert_to_numpy(ops.softmax(model(data["image"])["logits"]))[:4]
    target = data["label"][:4] + (1 - data["label"][:4].sum(axis=1, keepdims=True)) / CLASSES
    np.testing.assert_allclose(found, target, atol=0.03)


@pytest.mark.parametrize("kinds", [0, 12])
def test_a_batch_of_one_kind_only(kinds):
    terms = classifier().loss_terms(batch(rows=12, outliers=kinds))
    values = {k: float(ops.convert_to_numpy(v)) for k, v in terms.items()}
    assert all(np.isfinite(v) for v in values.values())
    assert values["exposure" if kinds == 0 else "cross_entropy"] == 0.0


def test_a_head_that_disperses_adds_it_to_the_loss_before_it_moves():
    model, data = classifier("CIDER", "cosine_exposure"), batch()
    features, label = model(data["image"])["features"], np.where(data["is_outlier"][:, None] > 0, 0, data["label"])
    expected = float(ops.convert_to_numpy(model.head.dispersion(features, label)))
    terms = model.loss_terms(data)
    assert list(terms) == list(model.terms) == ["cross_entropy", "dispersion", "exposure"]
    assert float(ops.convert_to_numpy(terms["dispersion"])) == pytest.approx(expected, rel=1e-4)
    # Outliers, as negatives of every class, move the whole backbone.
    assert len(model.trainable_weights) == 4 and min(gradient(model, data).values()) > 1e-5


EXPOSURES = [name for name in losses.__all__ if name.endswith("_exposure")]


#: In the default and under every backend a linear one, one of cosines, and each kind that keeps a state; the formulas
#: and gradients of all stand against float64 in test_heads.py.
OF_EACH_KIND = ("Softmax", "CosFace", "AdaCos", "CurricularFace", "AdaFace", "CIDER")
LEARNING = [
    *(
        pytest.param(
            h, "outlier_exposure", marks=() if h in OF_EACH_KIND else [pytest.mark.one_backend, pytest.mark.slow]
        )
        for h in heads.__all__
    ),
    *(("CosFace", e) for e in [*EXPOSURES, None] if e != "outlier_exposure"),
]


@pytest.mark.parametrize(("head", "exposure"), LEARNING)
def test_every_head_and_every_exposure_learns_and_saves(head, exposure, tmp_path):
    model = classifier(head, exposure)
    logs = history(model, [batch(seed=i) for i in range(4)], keras.optimizers.Adam(3e-3), epochs=12)
    assert logs["cross_entropy"][-1] < logs["cross_entropy"][0]
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    images = batch()["image"]
    for name, value in model(images).items():
        np.testing.assert_array_equal(ops.convert_to_numpy(value), ops.convert_to_numpy(again(images)[name]))
    assert again.exposure == exposure
    assert int(ops.convert_to_numpy(again.optimizer.iterations)) == 48


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_learns_with_float32_outputs(precision):
    with training.precision(precision):
        model = classifier()
    assert model.backbone.layers[-1].compute_dtype != "float32"
    outputs = model(batch()["image"])
    assert {keras.backend.standardize_dtype(v.dtype) for v in outputs.values()} == {"float32"}
    optimizer = training.optimizer(80, learning_rate=1e-2, clip_norm=1.0, ema=0.9, precision=precision)
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer) == (precision == "mixed_float16")
    logs = history(model, [batch(seed=i) for i in range(4)], optimizer, epochs=20)
    assert np.isfinite(logs["loss"]).all() and logs["loss"][-1] < logs["loss"][0]


def gradient(model, data):
    """Of one batch's exposure alone, as the difference that a step of plain descent makes."""
    both, without = [], []
    for weight, found in ((1.0, both), (0.0, without)):
        twin = Classifier.from_config(model.get_config())
        twin.build((None, *SHAPE))
        twin.set_weights(model.get_weights())
        twin.exposure_weight = weight
        before = [ops.convert_to_numpy(w) for w in twin.trainable_weights]
        # One step: to trace it takes longer than to make it.
        history(twin, [data], keras.optimizers.SGD(1.0), epochs=1, run_eagerly=keras.backend.backend() == "tensorflow")
        found += [old - ops.convert_to_numpy(new) for old, new in zip(before, twin.trainable_weights, strict=True)]
    return {w.path: np.abs(a - b).max() for w, a, b in zip(model.trainable_weights, both, without, strict=True)}


@pytest.mark.parametrize("reach", ["all", "head"])
@pytest.mark.parametrize("exposure", EXPOSURES)
def test_the_reach_of_the_exposure(reach, exposure):
    model = classifier("CosFace", exposure, exposure_weight=1.0, reach=reach)
    moved = gradient(model, batch(rows=12, outliers=6))
    head = {weight.path for weight in model.head.trainable_weights}
    assert all(moved[path] > 1e-5 for path in head)
    backbone = [size for path, size in moved.items() if path not in head]
    assert len(backbone) == 4 and (max(backbone) < 1e-6 if reach == "head" else min(backbone) > 1e-5)


def test_exposure_begins_at_its_step_and_goes_on_after_a_restart(tmp_path):
    batches = [batch(seed=i) for i in range(4)]
    model = classifier("Softmax", exposure_begin=6)
    logs = history(model, batches, keras.optimizers.SGD(0.0), epochs=2)
    late, always = logs["exposure"], history(classifier("Softmax"), batches, keras.optimizers.SGD(0.0))["exposure"]
    assert late[0] == 0.0 and 0.0 < late[1] < always[1]
    assert int(ops.convert_to_numpy(model.step)) == 8
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert (again.exposure_begin, int(ops.convert_to_numpy(again.step))) == (6, 8)
    assert float(ops.convert_to_numpy(again.exposed)) == 2.0
    again.loss_terms(batches[0])
    assert int(ops.convert_to_numpy(again.step)) == 8
    assert all("step" not in weight.path for weight in again.trainable_weights)


def with_virtual(exposure="outlier_exposure", head="CosFace", queue=6, **options):
    virtual = VirtualOutliers(CLASSES, 5, queue=queue, candidates=40, seed=3)
    return classifier(head, exposure, virtual=virtual, **options)


@pytest.mark.parametrize(
    ("begin", "queue", "found"), [(0, 12, [1.0, 2.0]), (5, 100, [0.0, 1.0]), (9, 6, [0.0, 0.0]), (0, None, [2.0, 2.0])]
)
def test_how_far_exposure_came_is_kept_by_the_steps(begin, queue, found):
    model = with_virtual(queue=queue) if queue else classifier("CosFace")
    model = Classifier.from_config(model.get_config() | {"exposure_begin": begin})
    model.build((None, *SHAPE))
    seen = []
    for start in range(2):
        history(model, [batch(seed=3 * start + i, rows=12) for i in range(3)], keras.optimizers.SGD(0.0), epochs=1)
        seen.append(float(ops.convert_to_numpy(model.exposed)))
    assert seen == found
    model.loss_terms(batch(rows=12))
    assert float(ops.convert_to_numpy(model.exposed)) == found[-1]


@pytest.mark.parametrize("exposure", EXPOSURES)
@pytest.mark.parametrize("outliers", [0, 4])
def test_virtual_outliers_count_beside_the_others_once_queues_are_full(exposure, outliers):
    model, data = with_virtual(exposure, exposure_weight=0.5), batch(rows=12, outliers=outliers)
    rows = model._exposure_of
    shown = model(data["image"])["cosines" if exposure == "cosine_exposure" else "logits"]
    own = np.asarray(ops.convert_to_numpy(rows(shown)), "float64")[:outliers]
    found = float(ops.convert_to_numpy(model.loss_terms(data)["exposure"]))
    np.testing.assert_allclose(found, 0.5 * own.mean() if outliers else 0.0, rtol=1e-4, atol=1e-6)
    # Once they are full: the mean over both kinds of rows.
    features = np.random.default_rng(0).normal(size=model.virtual.features.shape).astype("float32")
    model.virtual.features.assign(features)
    model.virtual.filled.assign(np.full(CLASSES, 6, "int32"))
    state = ops.convert_to_numpy(model.virtual.seed_generator.state)
    drawn = model.virtual.draw()
    model.virtual.seed_generator.state.assign(state)
    more = rows(model.head.cosines(drawn) if exposure == "cosine_exposure" else model.head(drawn))
    expected = np.concatenate([own, np.asarray(ops.convert_to_numpy(more), "float64")])
    assert len(expected) == outliers + 5
    found = float(ops.convert_to_numpy(model.loss_terms(data)["exposure"]))
    np.testing.assert_allclose(found, 0.5 * expected.mean(), rtol=1e-4, atol=1e-6)


def test_a_loss_that_needs_labels_is_told_that_virtual_outliers_are_mixtures_of_nothing(monkeypatch):
    seen = []

    def asks(logits, labels):
        seen.append(np.asarray(ops.convert_to_numpy(labels)))
        return losses.outlier_exposure(logits, labels=labels)

    monkeypatch.setattr(registry, "obtain", lambda room, name: asks if name == "asks" else None)
    model = with_virtual("asks")
    model.loss_terms(batch(rows=12, outliers=4))
    assert [labels.shape for labels in seen] == [(12, CLASSES), (5, CLASSES)] and not seen[1].any()


#: Under every backend two kinds: one whose logits are cosines, and one that keeps a state of its own.
VARIED = ["CosFace", "AdaCos", *(pytest.param(name, marks=pytest.mark.one_backend) for name in ("Softmax", "CIDER"))]


@pytest.mark.parametrize("head", VARIED)
def test_virtual_outliers_learn_in_the_compiled_step(head, tmp_path):
    batches = [batch(outliers=0, seed=i) for i in range(4)]
    model = with_virtual(head=head)
    logs = history(model, batches, keras.optimizers.Adam(3e-3), epochs=6)
    assert logs["exposure"][-1] > 0.0 and np.isfinite(logs["loss"]).all()
    assert logs["cross_entropy"][-1] < logs["cross_entropy"][0]
    assert (ops.convert_to_numpy(model.virtual.filled) == 6).all()
    seen = ops.convert_to_numpy(model.virtual.features)
    assert (np.abs(seen).sum(axis=-1) > 0).all()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(seen, ops.convert_to_numpy(again.virtual.features))
    assert training.loop._seeds(again)[0].shape == model.virtual.seed_generator.state.shape


def test_virtual_outliers_reach_the_head_alone():
    model = with_virtual(exposure_weight=1.0)
    rng = np.random.default_rng(0)
    model.virtual.features.assign(rng.normal(size=model.virtual.features.shape).astype("float32"))
    model.virtual.filled.assign(np.full(CLASSES, 6, "int32"))
    moved = gradient(model, batch(rows=12, outliers=0))
    head = {weight.path for weight in model.head.trainable_weights}
    assert max(moved[path] for path in head) > 1e-5
    assert max(size for path, size in moved.items() if path not in head) < 1e-6


def test_a_file_without_the_newer_settings_loads():
    config = classifier().get_config()
    for key in ("exposure_begin", "reach", "virtual"):
        del config[key]
    model = Classifier.from_config(config)
    assert (model.exposure_begin, model.reach, model.virtual, model.step) == (0, "all", None, None)


def denoiser(prediction="epsilon", **options):
    keras.utils.set_random_seed(0)
    network = denoisers.mlp(SHAPE, CLASSES, width=32, depth=1)
    return Denoiser(network, num_steps=50, prediction=prediction, seed=7, **options)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_denoiser_learns_and_saves(prediction, tmp_path):
    batches = [{k: v for k, v in batch(outliers=0, seed=i).items() if k != "is_outlier"} for i in range(4)]
    for b in batches:
        b["image"] = np.sign(b["label"].argmax(1) - 0.5).reshape(-1, 1, 1, 1) * np.ones((12, *SHAPE), "float32")
    model = denoiser(prediction)
    logs = history(model, batches, keras.optimizers.Adam(1e-2), epochs=25)
    assert set(logs) == {"loss", "noise_error"} and logs["loss"][-1] < 0.7 * logs["loss"][0]
    model.save(tmp_path / "denoiser.keras")
    again = keras.saving.load_model(tmp_path / "denoiser.keras")
    inputs = {"image": batches[0]["image"], "step": np.full(12, 20), "condition": batches[0]["label"]}
    np.testing.assert_array_equal(ops.convert_to_numpy(model(inputs)), ops.convert_to_numpy(again(inputs)))


def test_the_output_is_the_noise_whatever_the_network_predicts():
    model, rng = denoiser("v"), np.random.default_rng(0)
    for weight in model.network.weights:
        weight.assign(rng.normal(size=weight.shape) * 0.2)
    image, step = rng.normal(size=(5, *SHAPE)).astype("float32"), np.array([0, 1, 10, 30, 49])
    condition = np.eye(CLASSES, dtype="float32")[[0, 1, 2, 0, 1]]
    v = ops.convert_to_numpy(
        model.network({"image": image, "step": (step / 50).astype("float32"), "condition": condition})
    ).astype("float64")
    a = model.alpha_bar[step].reshape(-1, 1, 1, 1)
    # From x_t = sqrt(a) x + sqrt(1-a) e and v = sqrt(a) e - sqrt(1-a) x.
    x = np.sqrt(a) * image - np.sqrt(1 - a) * v
    noise = (image - np.sqrt(a) * x) / np.sqrt(1 - a)
    got = ops.convert_to_numpy(model({"image": image, "step": step, "condition": condition}))
    np.testing.assert_allclose(got, noise, rtol=1e-3, atol=1e-4)


class Nothing(keras.Model):
    def call(self, inputs, training=False):
        return 0.5 * inputs["image"]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("gamma", [None, 1e-3, 5.0, 1e5])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_loss_with_min_snr_against_numpy(monkeypatch, prediction, gamma, schedule):
    rng = np.random.default_rng(0)
    step = np.array([0, 1, 2, 100, 500, 900, 998, 999])
    epsilon = rng.normal(size=(8, *SHAPE))
    image = rng.uniform(-1, 1, (8, *SHAPE))
    monkeypatch.setattr(keras.random, "randint", lambda *_, **__: ops.convert_to_tensor(step.astype("int32")))
    monkeypatch.setattr(keras.random, "normal", lambda *_, **__: ops.convert_to_tensor(epsilon.astype("float32")))
    model = Denoiser(Nothing(), schedule=schedule, prediction=prediction, min_snr=gamma)
    label = np.zeros((8, CLASSES), "float32")
    found = model.loss_terms({"image": image.astype("float32"), "label": label})["noise_error"]

    a = model.alpha_bar[step].reshape(-1, 1, 1, 1)
    noisy = np.sqrt(a) * image + np.sqrt(1 - a) * epsilon
    target = epsilon if prediction == "epsilon" else np.sqrt(a) * epsilon - np.sqrt(1 - a) * image
    snr = a / (1 - a)
    weight = 1.0
    if gamma is not None:
        weight = np.minimum(snr, gamma) / (snr if prediction == "epsilon" else snr + 1)
    expected = (weight * (0.5 * noisy - target) ** 2).mean()
    np.testing.assert_allclose(float(ops.convert_to_numpy(found)), expected, rtol=2e-5)


def test_min_snr_survives_saving(tmp_path):
    model = denoiser("v", min_snr=5.0)
    model.save(tmp_path / "denoiser.keras")
    again = keras.saving.load_model(tmp_path / "denoiser.keras")
    assert again.min_snr == 5.0
    np.testing.assert_array_equal(again.weights_of_steps(), model.weights_of_steps())
    assert denoiser().weights_of_steps().tolist() == [1.0] * 50


def test_labels_are_dropped_at_the_stated_rate():
    class Spy(keras.Model):
        def call(self, inputs, training=False):
            return ops.zeros_like(inputs["image"]) + ops.sum(inputs["condition"], axis=-1)[:, None, None, None]

    model = Denoiser(Spy(), num_steps=50, label_dropout=0.3, seed=1)
    label = np.ones((20000, 1), "float32")
    image = np.zeros((20000, 1, 1, 1), "float32")
    # E (noise - kept)^2 = 1 + P(kept).
    error = float(ops.convert_to_numpy(model.loss_terms({"image": image, "label": label})["noise_error"]))
    assert abs(error - 1.7) < 0.06


def test_the_gradient_by_the_images_against_differences():
    model, images = classifier(), batch(rows=3)["image"]
    energy = lambda outputs: -ops.logsumexp(outputs["logits"], axis=-1)  # noqa: E731
    found = ops.convert_to_numpy(backends.gradient(model, energy)(images))
    assert found.shape == images.shape and found.dtype == np.float32
    way = np.random.default_rng(0).standard_normal(images.shape).astype("float32")
    ahead, behind = (ops.convert_to_numpy(energy(model(images + s * 1e-2 * way))) for s in (1, -1))
    slope = (ahead - behind).astype("float64") / 2e-2
    np.testing.assert_allclose((found * way).sum(axis=(1, 2, 3)), slope, rtol=2e-2, atol=1e-3)
    assert np.abs(slope).max() > 1e-2
    if keras.backend.backend() == "torch":
        import torch

        with torch.inference_mode():
            again = backends.gradient(model, energy)(ops.convert_to_tensor(images))
        np.testing.assert_array_equal(ops.convert_to_numpy(again), found)


def test_an_interrupt_in_the_first_step_stays_one():
    def interrupted(*_):
        raise KeyboardInterrupt

    model = classifier()
    model.compile(keras.optimizers.Adam(use_ema=True))
    model.train_function = interrupted
    with pytest.raises(KeyboardInterrupt):
        model.fit(dataset([batch()]), epochs=1, steps_per_epoch=1, verbose=0)


def test_compiled_forward_equals_the_plain_one():
    model, images = classifier(), batch()["image"]
    plain, fast = model(images), compiled(model)(images)
    for name in plain:
        np.testing.assert_allclose(
            ops.convert_to_numpy(plain[name]), ops.convert_to_numpy(fast[name]), rtol=1e-5, atol=1e-6
        )


@pytest.mark.one_backend
@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_graph_of_a_training_goes_with_its_model(clip, monkeypatch):
    """Of a matrix of a hundred trainings in one process each would stay otherwise."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("graphs are TensorFlow's")
    import tensorflow as tf

    graphs, model = [], classifier()
    terms_of = model.loss_terms

    def traced(*given, **options):
        graphs.append(weakref.ref(tf.compat.v1.get_default_graph()))
        return terms_of(*given, **options)

    monkeypatch.setattr(model, "loss_terms", traced)
    history(model, [batch()], keras.optimizers.Adam(global_clipnorm=clip), epochs=1)
    assert graphs and all(graph() is not None for graph in graphs)
    monkeypatch.undo()
    model = terms_of = None
    gc.collect()
    assert all(graph() is None for graph in graphs)
