"""Networks of others get layers that see the whole batch where several devices fit them, and no other numbers."""

import json
import zipfile

import keras
import numpy as np
import pytest

from kood import backends
from kood.nets.backbones import parts, pretrained

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
