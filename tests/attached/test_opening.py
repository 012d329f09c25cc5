"""Keras files that cannot be opened: one line that says why, and what to do."""

import json
import shutil

import h5py
import keras
import pytest
from keras import layers

from kood.attached import opened
from kood.errors import UserError

REBUILD = r"build the network here, load the weights with model\.load_weights\(\.\.\.\), and save it as \.keras$"


@pytest.fixture(scope="module")
def network():
    layered = [keras.Input((8, 8, 3)), layers.DepthwiseConv2D(3), layers.Flatten(), layers.Dense(2)]
    return keras.Sequential(layered)


@pytest.mark.parametrize(
    ("version", "layer", "message"),
    [
        (b"2.11.0", {"groups": 1}, r"Keras 2\.11\.0 saved it, and here is 3.*: Unrecognized .*'groups'.*" + REBUILD),
        ("2.4.0", {"class_name": "TFOpLambda"}, r"Keras 2\.4\.0 saved it, .*Unknown layer: 'TFOpLambda'.*; " + REBUILD),
        ("2.4.0", {"class_name": "Mine"}, "it has the custom layer or function 'Mine'; register it"),
        ("99.0.0", {"class_name": "Mine"}, r"Keras 99\.0\.0 saved it, and here is 3\.[^:]*; upgrade keras: "),
        (None, None, "it holds weights and no network; save the whole model"),
    ],
)  # fmt: skip
def test_an_hdf5_file_that_keras_cannot_open_says_what_to_do(network, tmp_path, version, layer, message):
    network.save(tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        told = json.loads(file.attrs.pop("model_config"))
        if layer is not None:
            changed = told["config"]["layers"][1]
            (changed if "class_name" in layer else changed["config"]).update(layer)
            file.attrs["model_config"], file.attrs["keras_version"] = json.dumps(told), version
    with pytest.raises(UserError, match=rf"^model: .*model\.h5 cannot be loaded: .*{message}") as caught:
        opened(tmp_path / "model.h5")
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_is_opened_by_the_name_that_keras_goes_by(network, tmp_path):
    for wrong, right in (("model.keras", "model.h5"), ("model.h5", "model.keras")):
        network.save(tmp_path / right)
        shutil.move(tmp_path / right, tmp_path / wrong)
        with pytest.raises(UserError, match=f"by another name, and Keras goes by names; rename it to {right}$"):
            opened(tmp_path / wrong)
