"""What layers add to the loss by themselves is trained, as Keras trains it."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import ops

from kood import heads, training
from kood.classifier import Classifier
from kood.diffusion.denoiser import Denoiser
from kood.errors import UserError
from kood.virtual import VirtualOutliers

# Run once under each Keras backend.
pytestmark = [pytest.mark.backend, pytest.mark.usefixtures("as_written")]

SHAPE, CLASSES, EPOCHS, STEPS, ROWS = (4, 4, 1), 3, 2, 3, 8


class Adding(heads.Softmax):
    """A head that adds a loss of its rows and one of its weights."""

    def call(self, features, labels=None, training=None):
        self.add_loss(0.3 * ops.mean(ops.square(features)))
        self.add_loss(0.2 * ops.sum(ops.square(self.trainable_weights[0])))
        return super().call(features, labels, training=training)


def backbone(kind="none"):
    """Of one kind of losses; their weights are the same."""
    kernel = keras.regularizers.L2(0.5) if kind == "weights" else None
    activity = keras.regularizers.L2(0.5) if kind == "activity" else None
    image = keras.Input(SHAPE)
    x = keras.layers.Flatten()(image)
    x = keras.layers.Dense(6, kernel_regularizer=kernel, activity_regularizer=activity)(x)
    x = keras.layers.Activation("relu")(keras.layers.BatchNormalization()(x))
    return keras.Model(image, keras.layers.Dense(4, kernel_regularizer=kernel)(x))


def classifier(kind="none", **options):
    keras.utils.set_random_seed(0)
    head = (Adding if kind == "head" else heads.Softmax)(CLASSES)
    model = Classifier(backbone(kind), head, **options)
    model.build((None, *SHAPE))
    return model


def rows():
    rng = np.random.default_rng(1)
    count = STEPS * ROWS
    return rng.uniform(-1, 1, (count, *SHAPE)).astype("float32"), np.eye(CLASSES, dtype="float32")[np.arange(count) % 3]


def batches(outliers=0):
    import tensorflow as tf

    image, label = rows()
    given = {"image": image, "label": label, "is_outlier": np.tile(np.arange(ROWS) < outliers, STEPS).astype("float32")}
    return tf.data.Dataset.from_tensor_slices(given).batch(ROWS, drop_remainder=True).repeat()


def fitted(model, tmp_path, **compiling):
    model.compile(optimizer=keras.optimizers.SGD(0.1), **compiling)
    return training.fit(
        model, lambda first: batches(), epochs=EPOCHS, steps_per_epoch=STEPS, folder=tmp_path / "at", interval=1e9
    )


def numbers(model):
    return [ops.convert_to_numpy(weight) for weight in model.weights]


KINDS = ["weights", "activity", "head"]


@pytest.mark.parametrize("kind", KINDS)
def test_trained_as_by_keras(kind, tmp_path):
    ours, history = fitted(classifier(kind), tmp_path)
    parts = classifier(kind)
    image = keras.Input(SHAPE)
    keras_own = keras.Model(image, parts.head(parts.backbone(image)))
    keras_own.compile(keras.optimizers.SGD(0.1), keras.losses.CategoricalCrossentropy(from_logits=True))
    data = batches().map(lambda batch: (batch["image"], batch["label"]))
    expected = keras_own.fit(data, epochs=EPOCHS, steps_per_epoch=STEPS, verbose=0, shuffle=False).history
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)
    for mine, its in zip(numbers(ours), numbers(keras_own), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-5)
    assert set(history) == {"loss", "cross_entropy", "layer_losses"} and history["layer_losses"][0] > 0.01
    plain, without = fitted(classifier(), tmp_path / "plain")
    assert set(without) == {"loss", "cross_entropy"}
    assert max(np.abs(mine - its).max() for mine, its in zip(numbers(ours), numbers(plain), strict=True)) > 1e-3


def test_the_term_is_the_sum_that_the_formulas_give(tmp_path):
    model, (image, label) = classifier("weights"), rows()
    batch = {"image": image, "label": label, "is_outlier": np.zeros(len(image), "float32")}
    found = float(ops.convert_to_numpy(model.loss_terms(batch)["layer_losses"]))
    kernels = [weight for weight in numbers(model.backbone) if weight.ndim == 2]
    np.testing.assert_allclose(found, 0.5 * sum(np.square(one.astype("float64")).sum() for one in kernels), rtol=1e-6)
    model.backbone.trainable = False
    assert "layer_losses" not in model.loss_terms(batch)


def test_rows_drawn_by_the_head_do_not_hide_those_of_the_batch():
    image, label = rows()
    batch = {"image": image, "label": label, "is_outlier": np.zeros(len(image), "float32")}
    found = []
    for virtual in (None, VirtualOutliers(CLASSES, 4, queue=2, candidates=10)):
        model = classifier("head", exposure="energy_exposure", virtual=virtual)
        found.append(float(ops.convert_to_numpy(model.loss_terms(batch, training=True)["layer_losses"])))
    assert found[0] == found[1] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_training_in_the_process_adds_them_too(kind, tmp_path):
    first, _ = fitted(classifier(kind), tmp_path / "1", jit_compile=False)
    again, _ = fitted(classifier(kind), tmp_path / "2", jit_compile=False)
    for mine, its in zip(numbers(first), numbers(again), strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.mark.one_backend
def test_on_several_devices_of_one_process_rows_losses_are_refused(monkeypatch):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("replicas of a process are TensorFlow's")
    several = SimpleNamespace(num_replicas_in_sync=2, extended=SimpleNamespace(worker_devices=("a", "b")))
    model, (image, label) = classifier("activity"), rows()
    monkeypatch.setattr(Classifier, "distribute_strategy", several)
    with pytest.raises(UserError, match=r"train.devices = 1"):
        model.loss_terms({"image": image, "label": label, "is_outlier": np.zeros(len(image), "float32")})


def test_the_denoiser_trains_them_too():
    image, label = rows()
    inputs = {
        "image": keras.Input(SHAPE, name="image"),
        "step": keras.Input((), name="step"),
        "condition": keras.Input((CLASSES,), name="condition"),
    }
    output = keras.layers.Conv2D(1, 3, padding="same", kernel_regularizer=keras.regularizers.L1(0.1))(inputs["image"])
    model = Denoiser(keras.Model(inputs, output), num_steps=10)
    terms = model.loss_terms({"image": image, "label": label}, training=True)
    kernel = ops.convert_to_numpy(model.network.trainable_weights[0])
    np.testing.assert_allclose(ops.convert_to_numpy(terms["layer_losses"]), 0.1 * np.abs(kernel).sum(), rtol=1e-6)
