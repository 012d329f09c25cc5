"""Backbones that others made: the pixels that reach them, their features, their files, and what is refused."""

import json
import sys
import types
import zipfile

import keras
import numpy as np
import pytest
from keras import layers, ops

from kood import registry
from kood.classifier import Classifier
from kood.data.images import normalize
from kood.errors import UserError
from kood.heads import Softmax
from kood.nets.backbones import keras_applications
from kood.nets.neck import neck, whole
from tests.conftest import TINY

pytestmark = pytest.mark.backend

backbones = types.SimpleNamespace(**registry.things("backbones"))

#: The functions of `keras.applications`, by their names.
APPLICATIONS = [name for name, one in vars(keras.applications).items() if isinstance(one, types.FunctionType)]


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def pixels(*shape, seed=0):
    """Whole numbers of 0..255."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype("float32")


def seen(p):
    """The same as kood's images."""
    return (p / 127.5 - 1).astype("float32")


def shaken(model, seed=0):
    """The model with noise on its weights, so that batch normalisation has statistics of its own."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if "float" in str(weight.dtype):
            weight.assign(numpy(weight) + 0.1 * rng.random(weight.shape).astype("float32"))
    return model


def pooled(rows):
    return rows.mean(axis=tuple(range(1, rows.ndim - 1)))


def close(one, other, tolerance=1e-5):
    one, other = np.asarray(one, "float64"), np.asarray(other, "float64")
    np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


def is_one_line(error):
    return "\n" not in str(error) and len(str(error)) < 900


# Keras Applications --------------------------------------------------------------------------------------------------


def reaching(model):
    """What reaches the network within a backbone, which is its last layer where it pools itself."""
    return keras.Model(model.input, model.layers[-2].output)


def module_of(name):
    return getattr(keras.applications, getattr(keras.applications, name).__module__.rpartition(".")[2])


# All four ways; the first does most to the pixels: channels swapped, means taken off.
@pytest.mark.parametrize(
    "name",
    [
        "VGG16",
        *(pytest.param(o, marks=pytest.mark.one_backend) for o in ("MobileNetV2", "MobileNetV3Small", "DenseNet121")),
    ],
)
def test_a_network_of_keras_gets_its_own_pixels(name):
    model = backbones.keras_applications((32, 40, 3), name, weights="none")
    p = pixels(2, 32, 40, 3)
    close(numpy(reaching(model)(seen(p))), module_of(name).preprocess_input(p.copy()))


#: One of each module of Keras Applications: the pixels are the module's.
MODULES = {one.__name__: name for name in reversed(APPLICATIONS) for one in [module_of(name)]}


@pytest.mark.one_backend
@pytest.mark.parametrize("module", MODULES)
def test_each_module_of_keras_prepares_its_own_pixels(module, monkeypatch):
    prepare = keras_applications._networks()[MODULES[module]][1]

    def small(input_shape, **_):  # In place of a network that takes seconds to build.
        return keras.Sequential([keras.Input(input_shape), layers.GlobalAveragePooling2D()])

    monkeypatch.setattr(keras_applications, "_networks", lambda: {"Net": (small, prepare)})
    p = pixels(1, 8, 10, 3)
    expected = getattr(keras.applications, module.rpartition(".")[2]).preprocess_input(p.copy())
    close(numpy(reaching(backbones.keras_applications((8, 10, 3), "net", weights="none"))(seen(p))), expected)


@pytest.mark.slow
@pytest.mark.one_backend
@pytest.mark.parametrize("name", ["MobileNetV2", "MobileNetV3Small", "VGG16", "DenseNet121"])
def test_a_network_of_keras_is_read_back(name, tmp_path):
    model = backbones.keras_applications((80, 80, 3), name, weights="none")
    p = pixels(1, 80, 80, 3)
    features = numpy(model(seen(p)))
    close(features, numpy(model.layers[-1](module_of(name).preprocess_input(p.copy()))), 1e-3)
    assert features.ndim == 2
    model.save(tmp_path / "model.keras")
    close(numpy(keras.saving.load_model(tmp_path / "model.keras")(seen(p))), features)


def test_every_network_of_keras_has_a_name():
    with pytest.raises(UserError, match=r"classifier.options.name: Keras has no network 'x'") as error:
        backbones.keras_applications((32, 32, 3), "x", weights="none")
    assert len(APPLICATIONS) > 30 and all(f" {name}" in str(error.value) for name in APPLICATIONS)


def test_features_of_a_network_of_keras_come_from_its_weights(tmp_path):
    network = shaken(keras.applications.MobileNet(include_top=False, weights=None, input_shape=(32, 32, 3)))
    network.save_weights(tmp_path / "own.weights.h5")
    model = backbones.keras_applications((32, 32, 3), "mobilenet", weights=str(tmp_path / "own.weights.h5"))
    p = pixels(3, 32, 32, 3)
    expected = pooled(numpy(network(p / 127.5 - 1, training=False)))
    close(numpy(model(seen(p))), expected, 1e-4)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    close(numpy(again(seen(p))), expected, 1e-4)
    assert len(model.trainable_weights) == len(network.trainable_weights) > 0


def test_grey_images_are_the_three_channels_of_a_network_of_colours():
    model = shaken(backbones.keras_applications((32, 32, 1), "MobileNet", weights="none"))
    p = pixels(2, 32, 32, 1)
    close(numpy(model(seen(p))), numpy(model.layers[-1](np.repeat(p, 3, -1) / 127.5 - 1)), 1e-4)


@pytest.mark.one_backend
def test_it_loads_where_kood_is_not(tmp_path):
    """Its file names nothing of kood's, and Keras finds what a file names by that alone."""
    model = backbones.keras_applications((32, 32, 1), "VGG16", weights="none")  # Repeats, swaps, scales.
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as file:
        config = file.read("config.json").decode()
    assert model.output_shape == (None, 512) and "VGG16" in config.upper() and "kood" not in config


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("shape", "options", "code", "why"),
    [
        ((32, 32, 3), {"name": "mobilenetv4"}, 2, r"did you mean 'MobileNetV2'\? Allowed"),
        ((20, 40, 1), {"name": "MobileNetV2"}, 2, r"images of 32x32 and more, and these are 20x40; .*\[32, 40, 1\]"),
        ((70, 80, 3), {"name": "Xception"}, 2, r"71x71 and more.*image_shape = \[71, 80, 3\]"),
        ((31, 31, 3), {"name": "MobileNetV3Small"}, 2, r"takes images of 32x32"),
        ((32, 32, 3), {"weights": "nowhere.h5"}, 2, r"classifier.options.weights: there is no file .*nowhere.h5"),
        ((32, 32, 3), {"weights": "$UNSET_FOLDER/own.h5"}, 2, r"options.weights = .*UNSET_FOLDER is not set"),
    ],
)  # fmt: skip
def test_what_a_network_of_keras_refuses(shape, options, code, why):
    with pytest.raises(UserError, match=why) as error:
        backbones.keras_applications(shape, **{"weights": "none", **options})
    assert error.value.exit_code == code and is_one_line(error.value)


@pytest.mark.one_backend
def test_weights_that_do_not_fit_or_do_not_come_are_one_message(tmp_path, monkeypatch):
    keras.Sequential([keras.Input((4,)), layers.Dense(2)]).save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(
        UserError, match=r"classifier.options.weights: .*other.weights.h5 does not fit MobileNet .*are not there"
    ) as e:
        backbones.keras_applications((32, 32, 3), "MobileNet", weights=str(tmp_path / "other.weights.h5"))
    assert e.value.exit_code == 2 and is_one_line(e.value)

    def make(include_top=True, weights="imagenet", **_):
        raise Exception("URL fetch failure on https://me:secret@host/x.h5: None\nand more")

    monkeypatch.setattr(keras_applications, "_networks", lambda: {"Net": (make, None)})
    with pytest.raises(UserError, match=r"weights of 'Net' could not be had \(URL fetch .*\); check the network") as e:
        backbones.keras_applications((32, 32, 3), "net")
    assert e.value.exit_code == 1 and is_one_line(e.value) and "secret" not in str(e.value)


# A file --------------------------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="test_networks_of_others")
class Subclassed(keras.Model):
    """A classifier that is no graph of layers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scale = layers.Rescaling(1 / 255)
        self.conv = layers.Conv2D(4, 3, name="conv", data_format="channels_last")
        self.norm = layers.BatchNormalization(name="norm")
        self.pool = layers.GlobalAveragePooling2D(name="pool", data_format="channels_last")
        self.dense = layers.Dense(5, name="dense")

    def build(self, shape):
        self.conv.build(shape)
        self.norm.build((None, 14, 14, 4))
        self.dense.build((None, 4))
        self.built = True

    def call(self, images, training=False):
        return self.dense(self.pool(self.norm(self.conv(self.scale(images)), training=training)))


def convolutions(rescales=True):
    """Made for pixels of 0..255, or of anything."""
    scale = [layers.Rescaling(1 / 255)] if rescales else []
    return keras.Sequential([
        keras.Input((16, 16, 3)), *scale, layers.Conv2D(4, 3, name="conv", data_format="channels_last"),
        layers.BatchNormalization(name="norm"), layers.Activation("relu", name="map"),
    ], name="block")  # fmt: skip


def functional(rescales=True):
    image = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D(name="pool", data_format="channels_last")(convolutions(rescales)(image))
    x = layers.Dropout(0.5)(layers.Dense(6, activation="tanh", name="hidden")(x))
    return keras.Model(image, layers.Dense(3, activation="softmax", name="top")(x), name="functional")


def sequential():
    x = [*convolutions().layers, layers.GlobalMaxPooling2D(name="pool", data_format="channels_last"), layers.Dense(3)]
    return keras.Sequential([keras.Input((16, 16, 3)), *x])


def nested():
    """Its last dense layer lies in a model within it."""
    image = keras.Input((16, 16, 3))
    return keras.Model(image, functional()(layers.Activation("linear")(image)), name="nested")


def tags():
    """A sigmoid for each of several words, which `kood attach` refuses."""
    x = [*convolutions().layers, layers.GlobalMaxPooling2D(name="pool", data_format="channels_last")]
    return keras.Sequential([keras.Input((16, 16, 3)), *x, layers.Dense(3, activation="sigmoid")])


def two_outputs():
    model = functional()
    given = {"features": model.get_layer("hidden").output, "logits": model.output}
    return keras.Model(model.input, given, name="two")


def subclassed():
    model = Subclassed()
    model.build((None, 16, 16, 3))
    return model


def headless(rescales=True):
    model = functional(rescales)
    return keras.Model(model.input, model.get_layer("hidden").output)


#: A network, the layer that is named, what runs up to the same features, and the length of these.
CUTS = {
    "functional": (functional, None, lambda m: keras.Model(m.input, m.get_layer("hidden").output), 6),
    "functional, layer": (functional, "pool", lambda m: keras.Model(m.input, m.get_layer("pool").output), 4),
    "functional, inner layer": (functional, "block/norm",
                                lambda m: keras.Sequential(m.get_layer("block").layers[:-1]), 4),
    "functional, block": (functional, "block", lambda m: m.get_layer("block"), 4),
    "sequential": (sequential, None, lambda m: keras.Model(m.inputs, m.get_layer("pool").output), 4),
    "nested": (nested, None, lambda m: keras.Model(m.layers[-1].input, m.layers[-1].get_layer("hidden").output), 6),
    "nested, inner layer": (nested, "conv", 
                            lambda m: keras.Sequential(m.layers[-1].get_layer("block").layers[:-2]), 4),
    "tags": (tags, None, lambda m: keras.Model(m.inputs, m.get_layer("pool").output), 4),
    "two outputs": (two_outputs, None, lambda m: (lambda p: m(p)["features"]), 6),
    "headless": (headless, None, lambda m: m, 6),
    "headless map": (convolutions, None, lambda m: m, 4),
    "subclassed": (subclassed, None, lambda m: (lambda p: m.pool(m.norm(m.conv(m.scale(p))))), 4),
    "subclassed, layer": (subclassed, "norm", lambda m: (lambda p: m.norm(m.conv(m.scale(p)))), 4),
}  # fmt: skip


def kept(model, folder, name="net.keras"):
    model.save(folder / name)
    return str(folder / name)


@pytest.mark.parametrize("kind", CUTS)
def test_a_file_gives_the_features_that_its_network_has_there(kind, tmp_path):
    make, layer, upto, width = CUTS[kind]
    network = shaken(make())
    p = pixels(3, 16, 16, 3)
    expected = pooled(numpy(upto(network)(ops.convert_to_tensor(p))))
    network.trainable = False
    model = backbones.file((16, 16, 3), kept(network, tmp_path), layer)
    assert model.output_shape == (None, width) and expected.shape == (3, width)
    close(numpy(model(seen(p))), expected)
    again = keras.saving.load_model(kept(model, tmp_path, "again.keras"))
    close(numpy(again(seen(p))), expected)
    # It learns: every layer below the features, though the file's were frozen.
    before = [numpy(weight) for weight in model.trainable_weights]
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(seen(p), np.ones((3, width)), verbose=0)
    assert before
    assert any(not np.array_equal(one, numpy(w)) for one, w in zip(before, model.trainable_weights, strict=True))


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_a_file_that_takes_integers_gets_each_pixel_as_it_is(dtype, tmp_path):
    given = keras.Input((16, 16, 1), dtype=dtype)
    kept(keras.Model(given, keras.layers.Flatten()(keras.layers.Rescaling(1.0)(given))), tmp_path)
    model = backbones.file((16, 16, 1), str(tmp_path / "net.keras"))
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(numpy(model(normalize(every))), every.reshape(1, 256))


@pytest.mark.one_backend
def test_a_graph_of_layers_loads_where_kood_is_not(tmp_path):
    text = json.dumps(keras.saving.serialize_keras_object(
        backbones.file((16, 16, 3), kept(headless(False), tmp_path), preprocess="caffe")))  # fmt: skip
    assert "kood" not in text.replace(str(tmp_path), "")


def test_a_classifier_of_kood_is_its_backbone(tmp_path):
    frozen = backbones.resnet8((8, 8, 3), width=4)
    frozen.trainable = False
    classifier = Classifier(whole(frozen, neck(frozen.output_shape[-1])), Softmax(3))
    classifier.build((None, 8, 8, 3))
    x = seen(pixels(2, 8, 8, 3))
    model = backbones.file((8, 8, 3), kept(shaken(classifier), tmp_path))
    close(numpy(model(x)), numpy(classifier(x)["features"]))
    # Trained further, but for what stands between: by the statistics of one and the same image it would divide by 0.
    assert model.trainable_weights and np.isfinite(numpy(model(np.zeros((2, 8, 8, 3), "float32"), training=True))).all()
    with pytest.raises(UserError, match="has its features and its pixels; leave layer and preprocess out"):
        backbones.file((8, 8, 3), str(tmp_path / "net.keras"), preprocess="caffe")


@pytest.mark.parametrize("mode", ["none", "0..1", "-1..1", "caffe", "torch"])
def test_a_file_gets_the_pixels_that_are_named(mode, tmp_path):
    by_keras = {"none": lambda p: p, "0..1": lambda p: p / 255}
    of_keras = {"-1..1": "tf", "caffe": "caffe", "torch": "torch"}
    prepare = by_keras.get(mode) or (lambda p: keras.applications.imagenet_utils.preprocess_input(
        p.copy(), mode=of_keras[mode], data_format="channels_last"))  # fmt: skip
    network, p = headless(rescales=False), pixels(2, 16, 16, 3)
    model = backbones.file((16, 16, 3), kept(network, tmp_path), preprocess=mode)
    close(numpy(model(seen(p))), numpy(network(prepare(p), training=False)), 1e-4)


@pytest.mark.one_backend
def test_pixels_stay_float32_under_mixed_precision(tmp_path):
    path, x = kept(shaken(functional()), tmp_path), seen(pixels(4, 16, 16, 3))
    full = numpy(backbones.file((16, 16, 3), path)(x))
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        close(numpy(backbones.file((16, 16, 3), path)(x)), full)  # The file's layers are float32 themselves.
    finally:
        keras.config.set_dtype_policy(before)


def test_grey_images_for_a_file_of_colours(tmp_path):
    network, p = shaken(functional()), pixels(2, 16, 16, 1)
    model = backbones.file((16, 16, 1), kept(network, tmp_path), "pool")
    colour = backbones.file((16, 16, 3), str(tmp_path / "net.keras"), "pool")
    close(numpy(model(seen(p))), numpy(colour(seen(np.repeat(p, 3, -1)))))


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("shape", "options", "why"),
    [
        ((16, 16, 3), {"path": "nowhere.keras"}, r"classifier.options.path: .*nowhere.keras does not exist"),
        ((16, 16, 3), {"path": 3}, r"classifier.options.path = 3: write a path in quotes"),
        ((16, 16, 3), {"path": "net.keras", "imports": 3}, r"classifier.options.imports = 3: write a list of names"),
        ((16, 16, 3), {"path": "."}, r"classifier.options.path: .* is a folder"),
        ((16, 16, 3), {"path": "$UNSET_FOLDER/a.keras"}, r"classifier.options.path = .*UNSET_FOLDER is not set"),
        ((16, 16, 3), {"path": "text.keras"}, r"classifier.options.path: .*text.keras is no .keras file"),
        ((16, 16, 3), {"layer": "pooled"}, r"classifier.options.layer = 'pooled': functional has no such layer; .*top"),
        ((20, 16, 3), {}, r"takes images of 16x16, and these are 20x16; set data.image_shape = \[16, 16, 3\]"),
        ((8, 9, 3), {"path": "free.keras"}, r"free.keras leaves nothing of images of 8x9; set data.im"),
        ((16, 16, 1), {"path": "four.keras"}, r"takes images of 4 channels, and these have 1; .*\[16, 16, 4\]"),
        ((16, 16, 3), {"path": "grey.keras"}, r"takes images of 1 channels, and these have 3; .*\[16, 16, 1\]"),
        ((16, 16, 1), {"path": "grey.keras", "preprocess": "caffe"}, r"preprocess = 'caffe': it is for a network of c"),
        ((16, 16, 3), {"preprocess": "-1..0"}, r"classifier.options.preprocess = '-1..0': did you mean '-1..1'\?"),
        ((16, 16, 3), {"preprocess": "0..1"},
         r"classifier.options.preprocess = '0..1': the model is made for pixels of 0..255"),
        ((16, 16, 3), {"imports": ("not_there",)}, r"classifier.options.imports: the module 'not_there' cannot be imp"),
    ],
)  # fmt: skip
def test_what_a_file_is_refused_for(shape, options, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept(functional(), tmp_path)
    (tmp_path / "text.keras").write_text("text")
    for name, channels in (("grey", 1), ("four", 4)):
        kept(keras.Sequential([keras.Input((16, 16, channels)), layers.Flatten(), layers.Dense(3)]), tmp_path,
             f"{name}.keras")  # fmt: skip
    free = [keras.Input((None, None, 3)), layers.Conv2D(2, 5, strides=2), layers.Conv2D(2, 5)]
    kept(keras.Sequential([*free, layers.GlobalAveragePooling2D()]), tmp_path, "free.keras")
    with pytest.raises(UserError, match=why) as error:
        backbones.file(shape, **{"path": "net.keras", **options})
    assert error.value.exit_code == 2 and is_one_line(error.value)


def after_a_dense_layer(*rest, **options):
    """A network with something after its last dense layer."""
    model = functional(rescales=False)
    x = layers.Dense(3, name="top", **options)(model.get_layer("hidden").output)
    for one in rest:
        x = one(x)
    return keras.Model(model.input, x, name="functional")


def int8():
    model = functional()
    model.quantize("int8")
    return model


#: Classifiers whose answers are neither logits of a dense layer nor their softmax, and why they are no features.
ANSWERS = {
    "temperature": (lambda: after_a_dense_layer(layers.Rescaling(1 / 1.5), layers.Softmax()), "is probabilities of cl"),
    "softmax squared": (lambda: after_a_dense_layer(layers.Softmax(), activation="softmax"), "is probabilities of cl"),
    "log softmax": (
        lambda: after_a_dense_layer(layers.Rescaling(0.5), layers.Activation("log_softmax")), "is probabilities of cl"
    ),
    "scaled logits": (lambda: after_a_dense_layer(layers.Rescaling(0.1)), "whether it is features or what a class"),
    "int8": (int8, r"net.keras is quantised \('hidden' int8, 'top' int8\); give the network that it was made of"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ANSWERS)
def test_what_a_classifier_answers_is_not_taken_for_features(kind, tmp_path):
    make, why = ANSWERS[kind]
    path = kept(make(), tmp_path)
    with pytest.raises(UserError, match=f"classifier.options.path: .*{why}") as error:
        backbones.file((16, 16, 3), path)
    assert str(error.value).endswith("name the layer whose output the features are with classifier.options.layer")
    assert is_one_line(error.value)
    assert backbones.file((16, 16, 3), path, "pool").output_shape == (None, 4)


@pytest.mark.parametrize(
    ("make", "layer", "told"),
    [
        (functional, None, "the input of the dense layer 'top' (6 numbers)"),
        (functional, "block/norm", "the output of the layer 'block/norm', averaged over its positions (4 numbers)"),
        (two_outputs, None, "the model's output 'features' (6 numbers)"),
        (lambda: after_a_dense_layer(activation="log_softmax"), None, "the input of the dense layer 'top' ("),
        (headless, None, "the model's answer, the output of hidden (Dense) (6 numbers)"),
        (convolutions, None, "the model's answer, the output of map (Activation), averaged over its positions (4 numb"),
        (subclassed, None, "the input of the dense layer 'dense' (4 numbers)"),
    ],
)  # fmt: skip
def test_a_file_says_what_its_features_are(make, layer, told, tmp_path):
    assert backbones.file((16, 16, 3), kept(make(), tmp_path), layer).told.startswith(f"features: {told}")


@pytest.mark.one_backend
def test_a_layer_without_rows_is_refused(tmp_path):
    image = keras.Input((16, 16, 3))
    x = layers.Reshape((16, 16, 3, 1), name="five")(image)
    path = kept(keras.Model(image, layers.Dense(3)(layers.Flatten()(x))), tmp_path)
    with pytest.raises(UserError, match=r"net.keras gives no features of images .* name a layer that gives one row"):
        backbones.file((16, 16, 3), path, "five")


@keras.saving.register_keras_serializable("test_networks_of_others")
class LessTheMean(layers.Layer):
    """What a batch normalization does that is called with training=True."""

    def call(self, rows):
        return rows - keras.ops.mean(rows, axis=0, keepdims=True)


@pytest.mark.one_backend
@pytest.mark.parametrize("layer", [None, "flat"])
def test_a_network_whose_answers_depend_on_the_batch_is_refused(layer, tmp_path):
    network = keras.Sequential([
        keras.Input((16, 16, 3)), LessTheMean(name="less"), layers.Flatten(name="flat"), layers.Dense(3),
    ])  # fmt: skip
    with pytest.raises(UserError, match=r"path: .*net.keras: answers depend on the other images .* layer 'less'"):
        backbones.file((16, 16, 3), kept(network, tmp_path), layer)


@pytest.mark.one_backend
def test_a_quantised_network_needs_a_named_layer(tmp_path):
    """Its last dense layer is not seen, and what it answers is no features."""
    network = shaken(functional())
    network.quantize("int8")
    path = kept(network, tmp_path)
    with pytest.raises(UserError, match=r"is quantised \('.*' int8\); .*classifier.options.layer"):
        backbones.file((16, 16, 3), path)
    assert backbones.file((16, 16, 3), path, "pool").output_shape[0] is None


def test_in_inference_the_statistics_of_the_file_are_used(tmp_path):
    model = backbones.file((16, 16, 3), kept(shaken(functional()), tmp_path))
    x = seen(pixels(4, 16, 16, 3))
    close(numpy(model(x))[:1], numpy(model(x[:1])))
    before = [numpy(weight) for weight in model.non_trainable_weights]
    model(x, training=False)
    assert all(np.array_equal(one, numpy(w)) for one, w in zip(before, model.non_trainable_weights, strict=True))


@pytest.mark.one_backend
def test_what_options_name_is_read_for_the_key(tmp_path):
    (tmp_path / "a.keras").write_bytes(b"one")
    (tmp_path / "b.keras").write_bytes(b"one")
    first, second = (registry.read_by("backbones", "file", {"path": str(tmp_path / n)}) for n in ("a.keras", "b.keras"))
    assert first == second != {} and set(first) == {"path"}
    (tmp_path / "a.keras").write_bytes(b"two")
    assert registry.read_by("backbones", "file", {"path": str(tmp_path / "a.keras"), "layer": "x"}) != first
    weights = {"weights": str(tmp_path / "a.keras")}
    assert set(registry.read_by("backbones", "keras_applications", weights)) == {"weights"}
    assert registry.read_by("backbones", "keras_applications", {"name": "VGG16"}) == {}
    assert registry.read_by("backbones", "keras_hub", {"preset": "resnet_50_imagenet"}) == {}
    assert set(registry.read_by("backbones", "keras_hub", {"preset": str(tmp_path)})["preset"]) == {
        "a.keras",
        "b.keras",
    }
    assert registry.read_by("backbones", "resnet8", {"width": 4}) == {}


RECIPE = (
    TINY[: TINY.index("[diffusion]")].replace("[8, 8, 1]", "[16, 16, 3]")
    + """
[outliers]
use = ["noise"]
per_batch = 16

[outliers.noise]
count = 24

[classifier]
backbone = "file"
options = { path = "$NETWORKS/net.keras", layer = "pool" }

[train]
epochs = 1
batch_size = 16

[evaluate]
baseline = false
"""
)


@pytest.mark.slow
@pytest.mark.one_backend
def test_a_run_on_a_file_and_again_once_its_bytes_changed(invoke, tmp_path, monkeypatch):
    (tmp_path / "file.toml").write_text(RECIPE)
    kept(functional(), tmp_path)

    def classifiers():
        return sorted(p.name for p in (tmp_path / "saved" / "file" / "stages").iterdir() if "classifier" in p.name)

    def run():
        return invoke("run", "file.toml", cwd=tmp_path)

    monkeypatch.setenv("NETWORKS", str(tmp_path))
    result = run()
    assert result.returncode == 0, result.stderr + result.stdout
    first = classifiers()
    report = json.loads((tmp_path / "saved" / "file" / "report.json").read_bytes())
    assert not report["stages"]["classifier"]["cached"]
    note = "classifier: features: the output of the layer 'pool' (4 numbers)"
    assert report["notes"].count(note) == 1
    result = invoke("run", "file.toml", "--set", "classifier.train=head", "--saved", "frozen", cwd=tmp_path)
    assert result.returncode == 0 and note in result.stdout
    assert json.loads((tmp_path / "frozen" / "file" / "report.json").read_bytes())["notes"].count(note) == 1
    assert run().returncode == 0 and classifiers() == first
    kept(shaken(functional(), 7), tmp_path)
    result = run()
    assert result.returncode == 0, result.stderr + result.stdout
    assert len(set(classifiers()) - set(first)) == 1
    (tmp_path / "net.keras").unlink()
    result = run()
    assert result.returncode == 2 and "classifier.options.path" in result.stderr + result.stdout
    assert "Traceback" not in result.stderr


# KerasHub ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub():
    return pytest.importorskip("keras_hub")


def preset(hub, kind, folder):
    """A small network of KerasHub's with random weights, its converter, and the folder of both as a preset."""
    if kind == "resnet":
        network = hub.models.ResNetBackbone(
            input_conv_filters=[64], input_conv_kernel_sizes=[3], stackwise_num_filters=[64], stackwise_num_blocks=[1],
            stackwise_num_strides=[1], block_type="basic_block", image_shape=(None, None, 3),
        )  # fmt: skip
        converter = hub.layers.ResNetImageConverter
    else:
        network = hub.models.ViTBackbone(
            image_shape=(32, 32, 3), patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16
        )
        converter = hub.layers.ViTImageConverter
    made = converter(image_size=(32, 32), scale=[0.017, 0.0175, 0.0174], offset=[-2.1, -2.0, -1.8])
    network.save_to_preset(str(folder))
    made.save_to_preset(str(folder))
    return network, made


@pytest.mark.parametrize(("kind", "shape"), [("resnet", (32, 32, 3)), ("resnet", (24, 40, 1)), ("vit", (40, 40, 3))])
def test_a_preset_of_kerashub_gets_the_pixels_of_its_converter(hub, kind, shape, tmp_path):
    network, converter = preset(hub, kind, tmp_path)
    model = backbones.keras_hub(shape, str(tmp_path))
    p = pixels(2, *shape)
    if kind == "resnet":
        converter.image_size = None  # It takes images of any size: they stay as the recipe has them.
    expected = pooled(numpy(network(converter(np.repeat(p, 3 // shape[2], -1)))))
    close(numpy(model(seen(p))), expected, 1e-4)
    model.save(tmp_path / "model.keras")
    close(numpy(keras.saving.load_model(tmp_path / "model.keras")(seen(p))), expected, 1e-4)


@pytest.mark.one_backend
def test_what_kerashub_does_not_have_is_one_message(hub, tmp_path, monkeypatch):
    for name, why in (("resnet_50_imagenot", "did you mean 'resnet_50_imagenet'"), (str(tmp_path), "cannot be loaded")):
        with pytest.raises(UserError, match=f"classifier.options.preset: .*{why}") as error:
            backbones.keras_hub((32, 32, 3), name)
        assert error.value.exit_code == 2 and is_one_line(error.value)

    def from_preset(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(hub.models.Backbone, "from_preset", from_preset)
    with pytest.raises(UserError, match=r"'resnet_50_imagenet' could not be had \(no route to host\)") as error:
        backbones.keras_hub((32, 32, 3), "resnet_50_imagenet")
    assert error.value.exit_code == 1
    monkeypatch.undo()
    network, _ = preset(hub, "resnet", tmp_path)
    (tmp_path / "image_converter.json").unlink()
    with pytest.raises(UserError, match="does not say how its pixels are prepared"):
        backbones.keras_hub((32, 32, 3), str(tmp_path))


@pytest.mark.one_backend
def test_without_kerashub_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(UserError, match=r"'keras_hub' needs KerasHub; pip install 'kood\[hub\]'"):
        backbones.keras_hub((32, 32, 3), "resnet_50_imagenet")


def test_options_of_these_backbones_are_listed():
    options = {name: registry.find("backbones", name).options for name in ("file", "keras_applications", "keras_hub")}
    assert options == {
        "file": ("path", "layer", "preprocess", "imports"), "keras_applications": ("name", "weights"),
        "keras_hub": ("preset",),
    }  # fmt: skip


def channels_first(*after):
    """Images (B, 8, 12, 3) to a map (B, 3, 4, 6), and what comes after it."""
    x = image = keras.Input((8, 12, 3))
    # A convolution of channels first has no kernel on every CPU; this one has the data format and no more.
    for layer in (layers.Permute((3, 1, 2)), layers.AveragePooling2D(2, data_format="channels_first", name="map"),
                  layers.Activation("relu", name="end"), *after):  # fmt: skip
        x = layer(x)
    return keras.Model(image, x)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("after", "name", "told"),
    [
        ([], None, r"its answer is a map with its channels first, \(None, 3, 4, 6\)"),
        ([layers.Flatten(), layers.Dense(4)], "map", "layer = 'map': it gives a map with its channels first"),
        ([layers.Flatten(), layers.Dense(4)], "end", "layer = 'end': it gives a map with its channels first"),
    ],
)
def test_a_map_with_its_channels_first_is_refused(tmp_path, after, name, told):
    channels_first(*after).save(tmp_path / "first.keras")
    with pytest.raises(UserError, match=told):
        backbones.file((8, 12, 3), str(tmp_path / "first.keras"), layer=name)


@pytest.mark.one_backend
def test_channels_that_were_moved_to_the_end_are_taken(tmp_path):
    model = channels_first(layers.Permute((2, 3, 1)))
    model.save(tmp_path / "last.keras")
    p = pixels(2, 8, 12, 3)
    close(numpy(backbones.file((8, 12, 3), str(tmp_path / "last.keras"))(seen(p))), numpy(model(p)).mean(axis=(1, 2)))
