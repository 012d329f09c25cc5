"""Networks of others get layers that see the whole batch where several devices fit them, and no other numbers."""

import contextlib
import json
import zipfile
from dataclasses import replace

import keras
import numpy as np
import pytest

from kood import backends
from kood.errors import UserError
from kood.nets.backbones import parts, pretrained
from kood.recipe import load
from tests.conftest import Cell

pytestmark = pytest.mark.backend


def network(preset):
    """A backbone of Keras's own layers, a model within it."""
    image = keras.Input((8, 8, 3))
    inner = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.BatchNormalization(), keras.layers.Dropout(0.3)])
    x = inner(keras.layers.Conv2D(4, 3, padding="same", data_format="channels_last")(image))
    return keras.Model(image, keras.layers.BatchNormalization()(x))


@pytest.mark.parametrize("several", [False, True])
def test_a_network_of_others_keeps_its_numbers(monkeypatch, several):
    keras.utils.set_random_seed(0)
    original = network("")
    for weight in original.weights:
        weight.assign(weight + 0.1 * np.random.default_rng(1).random(weight.shape))
    monkeypatch.setattr(pretrained, "_fetched", lambda preset: original)
    monkeypatch.setattr(parts, "several", lambda: several)
    model = pretrained.pretrained((8, 8, 3))
    text = json.dumps(keras.saving.serialize_keras_object(model))
    assert text.count("kood>BatchNormalization") == (2 if several else 0)
    assert text.count("kood>Dropout") == (1 if several else 0)
    image = np.random.default_rng(2).uniform(-1, 1, (5, 8, 8, 3)).astype("float32")
    expected = np.mean(keras.ops.convert_to_numpy(original(image * 127.5 + 127.5)), axis=(1, 2))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(image)), expected, rtol=1e-4, atol=1e-4)


def test_what_is_made_and_drawn_afterwards_does_not_depend_on_the_number_of_devices():
    found = []
    for count in (1, 2):
        keras.utils.set_random_seed(0)
        with backends.Devices(count).foreseen():
            whole = parts.of_whole_batches(network(""))
        head = keras.layers.Dense(3)
        head.build((None, 4))
        found.append([keras.ops.convert_to_numpy(one) for one in (*whole.variables, *head.variables)])
    assert len(found[0]) > len(whole.weights) + len(head.weights)  # The states of its generators too.
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def within(layer):
    """A layer that has another in it and is no graph."""
    return keras.layers.TimeDistributed(layer, name="within")


@pytest.mark.parametrize(
    ("layer", "refused"),
    [
        (lambda: within(keras.layers.BatchNormalization(name="norm")), r"'within/norm' \(BatchNormalization\); train"),
        (lambda: within(keras.layers.Dropout(0.1, name="drop")), r"'within/drop' \(Dropout\); train"),
        (lambda: within(keras.layers.BatchNormalization(trainable=False)), None),
        (lambda: within(backends.BatchNormalization()), None),
        (lambda: within(backends.BatchNormalization(renorm=True)), "BatchNormalization"),
        (lambda: keras.layers.BatchNormalization(renorm=True), "BatchNormalization"),
        (lambda: keras.layers.SpatialDropout2D(0.1), "SpatialDropout2D"),
        (lambda: keras.layers.SpatialDropout2D(0.0), None),
        (keras.layers.RandomFlip, "RandomFlip"),
        (lambda: keras.layers.ConvLSTM1D(2, 1), None),
    ],
)
def test_layers_that_each_device_has_to_itself_are_refused(layer, refused):
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, layer()(keras.layers.BatchNormalization()(image)))
    parts.refuse_apart("classifier.backbone", model)  # On one device nothing is.
    with backends.Devices(2).foreseen():
        whole = parts.of_whole_batches(model)
        is_refused = refused is not None and keras.backend.backend() != "jax"
        message = rf"classifier\.backbone: several devices .*{refused}"
        with pytest.raises(UserError, match=message) if is_refused else contextlib.nullcontext():
            parts.refuse_apart("classifier.backbone", whole)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("settings", "refused"),
    [([], True), (["classifier.frozen_statistics=true"], False), (["classifier.train=head"], False)],
)
def test_they_are_refused_before_anything_is_trained(tiny, tmp_path, settings, refused):
    image = keras.Input((8, 8, 1))
    x = keras.layers.GaussianNoise(0.1)(keras.layers.Conv2D(4, 3, data_format="channels_last")(image))
    keras.Model(image, keras.layers.BatchNormalization()(x)).save(tmp_path / "net.keras")
    recipe = load(tiny, ["classifier.backbone=file", f"classifier.options.path='{tmp_path}/net.keras'", *settings])
    cell = Cell(recipe, tmp_path / "saved")
    cell.check()
    cell.work = replace(cell.work, devices=backends.Devices(2))
    with pytest.raises(UserError, match="gaussian_noise") if refused else contextlib.nullcontext():
        cell.check()


def test_on_one_device_the_layers_are_keras_own(tmp_path):
    x = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    for ours, theirs, options in (
        (backends.BatchNormalization, keras.layers.BatchNormalization, {"momentum": 0.9}),
        (backends.Dropout, keras.layers.Dropout, {"rate": 0.5, "seed": 3}),
    ):
        one, other = ours(**options), theirs(**options)
        np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(layer(x, training=True)) for layer in (one, other)))
    keras.Sequential([keras.Input((4,)), backends.BatchNormalization()]).save(tmp_path / "a.keras")
    with zipfile.ZipFile(tmp_path / "a.keras") as file:
        assert b'"synchronized": true' not in file.read("config.json")
    assert isinstance(keras.saving.load_model(tmp_path / "a.keras").layers[-1], backends.BatchNormalization)
