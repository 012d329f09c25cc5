"""Our training step against Keras's own default step, on whatever backend Keras runs."""

import keras
import numpy as np
import pytest
from keras import ops

from kood import heads, losses, training
from kood.classifier import Classifier
from kood.diffusion.denoiser import Denoiser
from kood.nets import denoisers
from kood.steps import compiled

pytestmark = pytest.mark.backend  # Run once under each Keras backend.

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
        return ops.stack(list(self.inner.losses(inputs, training=training).values()))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.sum(y_pred)


def dataset(batches):
    import tensorflow as tf

    stacked = {key: np.stack([b[key] for b in batches]) for key in batches[0]}
    return tf.data.Dataset.from_tensor_slices(stacked).repeat()


def history(model, batches, optimizer, epochs=4):
    model.compile(optimizer=optimizer)
    result = model.fit(dataset(batches), epochs=epochs, steps_per_epoch=len(batches), shuffle=False, verbose=0)
    return result.history


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
    terms = {k: float(ops.convert_to_numpy(v)) for k, v in model.losses(data).items()}
    logits = ops.convert_to_numpy(model(data["image"])["logits"]).astype("float64")
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    rows = data["is_outlier"] == 0
    np.testing.assert_allclose(terms["cross_entropy"], -(log_p * data["label"]).sum(1)[rows].mean(), rtol=1e-5)
    kl = -np.log(CLASSES) - log_p.mean(1)
    np.testing.assert_allclose(terms["exposure"], 0.25 * kl[~rows].mean(), rtol=1e-4)


@pytest.mark.parametrize("kinds", [0, 12])
def test_a_batch_of_one_kind_only(kinds):
    terms = classifier().losses(batch(rows=12, outliers=kinds))
    values = {k: float(ops.convert_to_numpy(v)) for k, v in terms.items()}
    assert all(np.isfinite(v) for v in values.values())
    assert values["exposure" if kinds == 0 else "cross_entropy"] == 0.0


EXPOSURES = [name for name in losses.__all__ if name.endswith("_exposure")]


@pytest.mark.parametrize(
    ("head", "exposure"),
    [*((h, "outlier_exposure") for h in heads.__all__), *(("CosFace", e) for e in [*EXPOSURES, None])],
)
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


def test_evaluate_moves_no_weight_and_reports_the_same_terms():
    model, data = classifier(), batch()
    before = [ops.convert_to_numpy(w) for w in model.weights]
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    logs = model.evaluate(dataset([data]), steps=1, return_dict=True, verbose=0)
    assert set(logs) == {"loss", "cross_entropy", "exposure"}
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, ops.convert_to_numpy(new))


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
    found = model.losses({"image": image.astype("float32"), "label": label})["noise_error"]

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
    error = float(ops.convert_to_numpy(model.losses({"image": image, "label": label})["noise_error"]))
    assert abs(error - 1.7) < 0.06


def test_compiled_forward_equals_the_plain_one():
    model, images = classifier(), batch()["image"]
    plain, fast = model(images), compiled(model)(images)
    for name in plain:
        np.testing.assert_allclose(
            ops.convert_to_numpy(plain[name]), ops.convert_to_numpy(fast[name]), rtol=1e-5, atol=1e-6
        )
