"""Classifiers of every kind, taken apart: features and logits are those that make the model's own answer."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from kood import heads
from kood.attached.adapted import Adapted
from kood.attached.apart import take_apart
from kood.attached.taken import Linear
from kood.attached.watching import layers_of
from kood.backends import compiled
from kood.classifier import Classifier
from kood.errors import UserError
from kood.scorer import linear_weights

pytestmark = pytest.mark.backend

SHAPE = (6, 5, 3)


def sequential(*inner, shape=SHAPE):
    return keras.Sequential([keras.Input(shape), *inner])


def pooled():
    return layers.Conv2D(4, 3, activation="relu"), layers.GlobalAveragePooling2D(name="pool")


class Subclassed(keras.Model):
    """Its layers lie in a list and in a layer of its own, where Keras's own `layers` does not look."""

    class Block(layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = {"hidden": layers.Dense(6, activation="relu"), "last": layers.Dense(4)}

        def call(self, rows):
            return self.inner["last"](self.inner["hidden"](rows))

    def __init__(self):
        super().__init__()
        self.below = [*pooled()]
        self.block = self.Block()

    def call(self, pixels, training=False):
        for layer in self.below:
            pixels = layer(pixels)
        return ops.softmax(self.block(pixels))


def subclassed():
    model = Subclassed()
    model(np.zeros((1, *SHAPE), "float32"))
    return model


def nested():
    backbone = keras.Sequential([keras.Input(SHAPE), layers.Conv2D(4, 3)], name="backbone")
    model = keras.Sequential([backbone, layers.GlobalAveragePooling2D(), layers.Dense(4, activation="softmax")])
    model.build((None, *SHAPE))
    return model


def functional(head):
    inputs = keras.Input(SHAPE)
    convolution, pool = pooled()
    return keras.Model(inputs, head(pool(convolution(inputs))))


#: What the model answers, and the model; features are 4 numbers unless it says otherwise.
MODELS = {
    "softmax": lambda: sequential(*pooled(), layers.Dense(4, activation="softmax")),
    "logits": lambda: sequential(*pooled(), layers.Dense(4)),
    "no bias": lambda: sequential(*pooled(), layers.Dense(4, use_bias=False), layers.Softmax()),
    "a softmax apart": lambda: sequential(*pooled(), layers.Dense(4), layers.Dropout(0.5), layers.Softmax()),
    "an activation that casts": lambda: sequential(
        *pooled(), layers.Dense(4), layers.Activation("softmax", dtype="float32")
    ),
    "its logarithm": lambda: sequential(*pooled(), layers.Dense(4, activation="log_softmax")),
    "an operation": lambda: functional(lambda rows: ops.softmax(layers.Dense(4)(rows))),
    "dropout below": lambda: sequential(*pooled(), layers.Dropout(0.5), layers.Dense(4, activation="softmax")),
    "one sigmoid": lambda: sequential(*pooled(), layers.Dense(1, activation="sigmoid")),
    "nested": nested,
    "subclassed": subclassed,
    "a 1x1 convolution": lambda: sequential(
        layers.GlobalAveragePooling2D(keepdims=True), layers.Conv2D(4, 1), layers.Reshape((4,)), layers.Softmax()
    ),
    "a mean of logits": lambda: sequential(layers.Conv2D(4, 1), layers.GlobalAveragePooling2D(), layers.Softmax()),
    "a head of kood's": lambda: sequential(*pooled(), heads.Softmax(4)),
    "one output in a list": lambda: functional(lambda rows: [layers.Dense(4)(rows)]),
}


def said_by(answers, logits):
    if answers == "sigmoid":
        return ops.sigmoid(logits[:, 1:] - logits[:, :1])
    forms = {"softmax": ops.softmax, "log_softmax": ops.log_softmax}
    return forms.get(answers, lambda rows: rows)(logits)


def same(model, taken, tolerance=1e-5):
    pixels = np.random.default_rng(1).uniform(-1, 1, (3, *SHAPE)).astype("float32")
    own = model(ops.convert_to_tensor(pixels), training=False)
    own = ops.convert_to_numpy(own[0] if isinstance(own, list) else own)
    for run in (taken, compiled(taken)):
        found = {name: ops.convert_to_numpy(rows) for name, rows in run(pixels).items()}
        assert {rows.dtype.name for rows in found.values()} == {"float32"}
        assert np.abs(ops.convert_to_numpy(said_by(taken.way.answers, found["logits"])) - own).max() < tolerance
        weights = linear_weights(taken.way.head)
        assert np.allclose(found["features"] @ weights["kernel"] + weights["bias"], found["logits"], atol=1e-5)
    return found


@pytest.mark.parametrize("kind", MODELS)
def test_logits_and_features_make_the_answer_of_the_model(kind):
    keras.utils.set_random_seed(1)
    model = MODELS[kind]()
    taken = take_apart(model)
    found = same(model, taken)
    classes = 2 if kind == "one sigmoid" else 4
    assert taken.num_classes == classes == found["logits"].shape[1]
    assert taken.image_shape == SHAPE
    others = {"one sigmoid": "sigmoid", "its logarithm": "log_softmax"}
    others |= dict.fromkeys(["logits", "a head of kood's", "one output in a list"], "logits")
    assert taken.way.answers == others.get(kind, "softmax")
    assert found["features"].shape[1] == {"subclassed": 6}.get(kind, 3 if "1x1" in kind or "mean" in kind else 4)
    assert taken.way.told[0].startswith("features: the input of the dense layer")
    # The weights are the model's, and nothing is left on its layers.
    assert {id(weight) for weight in taken.weights} == {id(weight) for weight in model.weights}
    assert not any("call" in vars(layer) for _, layer in layers_of(model))


def test_the_logits_of_one_sigmoid_favour_no_class():
    """Where both were certain alike, an energy is the same, and highest between them."""
    taken = take_apart(MODELS["one sigmoid"]())
    logits = ops.convert_to_numpy(taken(np.ones((2, *SHAPE), "float32"))["logits"])
    np.testing.assert_array_equal(logits[:, 0], -logits[:, 1])
    assert linear_weights(taken.way.head)["kernel"].shape == (4, 2)


@pytest.mark.parametrize("bias", [-300.0, -100.0, -30.0, 30.0, 300.0])
def test_a_sigmoid_may_be_0_or_1(bias):
    """In float32 it is 0 where the logistic function itself is not."""
    model = MODELS["one sigmoid"]()
    model.layers[-1].bias.assign([bias])
    taken = take_apart(model)
    assert taken.way.answers == "sigmoid" and taken.num_classes == 2


def test_it_follows_the_weights_of_the_model():
    model = MODELS["softmax"]()
    taken = take_apart(model)
    model.layers[-1].kernel.assign(np.ones((4, 4), "float32"))
    same(model, taken)
    assert (linear_weights(taken.way.head)["kernel"] == 1).all()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_ends_in_float32(policy):
    if policy == "mixed_float16" and keras.backend.backend() == "torch":
        pytest.skip("torch has no convolution of float16 on a CPU")
    keras.utils.set_random_seed(1)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = sequential(*pooled(), layers.Dense(4), layers.Activation("softmax", dtype="float32"))
    finally:
        keras.config.set_dtype_policy(before)
    same(model, take_apart(model), 1e-2)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_the_policy_of_whoever_takes_it_in_changes_nothing(policy, tmp_path):
    model, pixels = MODELS["softmax"](), np.random.default_rng(0).random((8, *SHAPE)).astype("float32")
    plain = Adapted(model)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        mine = Adapted(model)
        mine.save(tmp_path / "mine.keras")
        again = keras.saving.load_model(tmp_path / "mine.keras")
    finally:
        keras.config.set_dtype_policy(before)
    for one in (mine, again):
        for name, values in plain(pixels).items():
            found = one(pixels)[name]
            assert keras.backend.standardize_dtype(found.dtype) == "float32"
            assert np.allclose(ops.convert_to_numpy(found), ops.convert_to_numpy(values), atol=1e-6)


def test_several_threads_may_ask():
    from concurrent.futures import ThreadPoolExecutor

    model = MODELS["softmax"]()
    taken, pixels = take_apart(model), np.random.default_rng(0).random((8, 2, *SHAPE)).astype("float32")
    alone = [ops.convert_to_numpy(taken(one)["features"]) for one in pixels]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda one: ops.convert_to_numpy(taken(one)["features"]), pixels))
    assert np.allclose(alone, together, atol=1e-6)
    assert not any("call" in vars(layer) for _, layer in layers_of(model))


def test_a_classifier_of_kood_is_used_as_it_is():
    backbone = sequential(*pooled())
    classifier = Classifier(backbone, heads.CosFace(4))
    classifier.build((None, *SHAPE))
    taken, pixels = take_apart(classifier), np.ones((2, *SHAPE), "float32")
    own, found = classifier(pixels), taken(pixels)
    assert list(found) == ["features", "logits", "cosines"]
    assert all(np.array_equal(ops.convert_to_numpy(own[name]), ops.convert_to_numpy(found[name])) for name in own)
    assert (taken.image_shape, taken.num_classes) == (SHAPE, 4)
    assert (taken.way.head, taken.way.answers) == (classifier.head, "outputs")


def test_a_dictionary_names_features_and_logits():
    def named(rows):
        return {"features": rows, "logits": layers.Dense(4)(rows), "else": rows}

    model = functional(named)
    taken = take_apart(model)
    assert taken.way.answers == "outputs"
    assert isinstance(taken.way.head, Linear)
    assert list(taken(np.ones((2, *SHAPE), "float32"))) == ["features", "logits"]
    cosine = take_apart(functional(lambda rows: {"features": rows, "logits": heads.CosFace(4)(rows)}))
    assert linear_weights(cosine.way.head) == {}


@pytest.mark.parametrize("last", [lambda rows: rows, lambda rows: rows * 0.5], ids=["of the layer", "of half of it"])
@pytest.mark.parametrize("kind", ["softmax", "log_softmax"])
def test_logits_of_a_dictionary_that_are_probabilities(last, kind):
    """As logits their largest is 1, and of their logarithms the energy is 0: neither tells anything."""
    keras.utils.set_random_seed(1)

    def named(rows, answer):
        return {"features": rows, "logits": answer(last(layers.Dense(4)(rows)))}

    keras.utils.set_random_seed(1)
    model = functional(lambda rows: named(rows, layers.Activation(kind)))
    keras.utils.set_random_seed(1)
    plain = functional(lambda rows: named(rows, lambda logits: logits))
    pixels = np.random.default_rng(1).uniform(-1, 1, (3, *SHAPE)).astype("float32")
    taken, expected = take_apart(model), ops.convert_to_numpy(plain(pixels)["logits"])
    for run in (taken, compiled(taken)):
        found = {name: ops.convert_to_numpy(rows) for name, rows in run(pixels).items()}
        own = {name: ops.convert_to_numpy(rows) for name, rows in model(pixels).items()}
        assert np.array_equal(found["features"], own["features"])
        said = {"softmax": ops.softmax, "log_softmax": ops.log_softmax}[kind](found["logits"])
        assert np.allclose(ops.convert_to_numpy(said), own["logits"], atol=1e-6)
        shift = found["logits"] - expected
        assert np.allclose(shift, shift[:, :1], atol=1e-5)
    is_linear = isinstance(taken.way.head, Linear)
    assert is_linear == (last(1.0) == 1.0)
    assert ("its output 'logits' is" if is_linear else "less their mean") in taken.way.told[1]
    assert np.allclose(shift if is_linear else found["logits"].mean(axis=1), 0, atol=1e-5)


def test_a_named_layer_gives_the_features():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([
        keras.Input(SHAPE), keras.Sequential([layers.Conv2D(7, 3, name="map")], name="block"), *pooled(),
        layers.Dropout(0.5), layers.Dense(4, activation="softmax"),
    ])  # fmt: skip
    by_default, of_pool = take_apart(model), take_apart(model, "pool")
    assert isinstance(of_pool.way.head, Linear)
    for name in ("block/map", "map"):
        taken = take_apart(model, name)
        pixels = np.random.default_rng(0).random((2, *SHAPE)).astype("float32")
        expected, found = by_default(pixels), taken(pixels)
        of_map = ops.convert_to_numpy(model.layers[0](pixels)).mean(axis=(1, 2))
        assert np.allclose(ops.convert_to_numpy(found["features"]), of_map, atol=1e-6)
        assert np.allclose(ops.convert_to_numpy(found["logits"]), ops.convert_to_numpy(expected["logits"]), atol=1e-6)
        assert linear_weights(taken.way.head) == {}
        assert "averaged over its positions (7 numbers)" in taken.way.told[0]


def test_a_named_map_with_its_channels_first_is_refused():
    model = keras.Sequential([
        keras.Input(SHAPE), layers.Permute((3, 1, 2)),
        layers.AveragePooling2D(2, data_format="channels_first", name="map"), layers.Permute((2, 3, 1), name="turned"),
        layers.Flatten(), layers.Dense(4, activation="softmax"),
    ])  # fmt: skip
    with pytest.raises(UserError, match=r"features = 'map': this layer of .* gives a map with its channels first"):
        take_apart(model, "map")
    assert "averaged over its positions" in take_apart(model, "turned").way.told[0]


def test_a_named_layer_takes_apart_what_has_no_dense_layer():
    keras.utils.set_random_seed(1)
    model = sequential(*pooled(), heads.CosFace(4), layers.Softmax())
    taken = take_apart(model, "pool")
    found = taken(np.ones((2, *SHAPE), "float32"))
    assert found["features"].shape == (2, 4)
    assert np.allclose(ops.convert_to_numpy(ops.softmax(found["logits"])),
                       ops.convert_to_numpy(model(np.ones((2, *SHAPE), "float32"))), atol=1e-6)  # fmt: skip
    assert linear_weights(taken.way.head) == {}


REFUSED = {
    "regression": (lambda: sequential(*pooled(), layers.Dense(1)), "one linear unit, as for a regression"),
    "one softmax": (lambda: sequential(*pooled(), layers.Dense(1, activation="softmax")), "a softmax of one unit;"),
    "several labels": (lambda: sequential(*pooled(), layers.Dense(4, activation="sigmoid")), "4 sigmoid units"),
    "no dense layer": (lambda: sequential(layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Softmax()),
                       "calls no dense layer"),
    "more after it": (lambda: sequential(*pooled(), layers.Dense(4), layers.Rescaling(0.5), layers.Softmax()),
                      r"neither the logits .* rescaling\w* \(Rescaling\), softmax\w* \(Softmax\)"),
    "a relu after it": (lambda: sequential(*pooled(), layers.Dense(4), layers.ReLU()), "neither the logits"),
    "several outputs": (lambda: functional(lambda rows: [layers.Dense(4)(rows), layers.Dense(2)(rows)]),
                        "several outputs"),
    "a map": (lambda: sequential(layers.Conv2D(4, 1)), "not one row of classes an image"),
    "columns left out": (lambda: functional(lambda rows: layers.Dense(4)(rows)[:, :3]), "which gives 4"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_taken_apart_is_refused_with_its_last_layers(kind):
    keras.utils.set_random_seed(1)
    make, why = REFUSED[kind]
    with pytest.raises(UserError, match=why) as raised:
        take_apart(make())
    assert "its last layers are " in str(raised.value)
    assert "\n" not in str(raised.value)


@keras.saving.register_keras_serializable("test_apart")
class AlwaysOn(layers.Layer):
    """Dropout that nothing turns off, or of one mask for each place of a batch."""

    def __init__(self, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.seed = keras.random.SeedGenerator(1) if seed is None else seed

    def call(self, rows):
        return keras.random.dropout(rows, 0.3, seed=self.seed)


@keras.saving.register_keras_serializable("test_apart")
class ByTheBatch(layers.Layer):
    def call(self, rows):
        return rows - ops.mean(rows, axis=0, keepdims=True)


class Training(keras.Model):
    """Its author left training=True on the batch normalization."""

    def __init__(self):
        super().__init__()
        self.below, self.norm, self.head = [*pooled()], layers.BatchNormalization(name="norm"), layers.Dense(4)

    def call(self, pixels, training=False):
        for layer in self.below:
            pixels = layer(pixels)
        return ops.softmax(self.head(self.norm(pixels, training=True)))


def training():
    model = Training()
    model(np.zeros((2, *SHAPE), "float32"))
    return model


UNSTEADY = {
    "batch normalization in training": (training, r"depend on the other images .* 'norm' \(BatchNormalization\)"),
    "the batch's mean": (lambda: sequential(*pooled(), ByTheBatch(name="by"), layers.Dense(4)),
                         r"depend on the other images of a batch, first in what its layer 'by' \(ByTheBatch\) gives"),
    "a mask for each place": (lambda: sequential(*pooled(), AlwaysOn(3), layers.Dense(4)),
                              "depend on the other images"),
    "dropout under the features": (lambda: sequential(*pooled(), AlwaysOn(name="on"), layers.Dense(4)),
                                   r"differ from pass to pass, first in what its layer 'on' \(AlwaysOn\) gives"),
    "dropout in front": (lambda: sequential(AlwaysOn(), *pooled(), layers.Dense(6, "relu"),
                                            layers.Dense(4, activation="softmax")), "differ from pass to pass"),
    "dropout of a dictionary": (lambda: functional(lambda rows: {"features": rows, "logits": layers.Dense(4)(
        AlwaysOn()(rows))}), "differ from pass to pass"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNSTEADY)
def test_an_answer_that_is_not_of_the_image_alone_is_refused(kind):
    """Nothing that is measured of such a model holds of the next batch."""
    keras.utils.set_random_seed(1)
    make, why = UNSTEADY[kind]
    with pytest.raises(UserError, match=why) as raised:
        take_apart(make())
    assert "call it without" in str(raised.value) and "\n" not in str(raised.value)


class Rounding(layers.Layer):
    """What differs by so much from pass to pass as bfloat16 rounds over some layers."""

    def call(self, rows):
        self.passes = getattr(self, "passes", 0) + 1
        return rows * (1 + 0.02 * self.passes)


def test_rounding_in_half_precision_is_no_other_answer():
    keras.utils.set_random_seed(1)

    def model(dtype):
        return sequential(*pooled(), Rounding(dtype=dtype), layers.Dense(4))

    assert take_apart(model("mixed_bfloat16")).num_classes == 4
    with pytest.raises(UserError, match="differ from pass to pass"):
        take_apart(model("float32"))


def test_a_batch_of_another_size_has_to_pass():
    def fixed(rows):
        return layers.Dense(4)(ops.reshape(rows, (4, 4)))

    with pytest.raises(UserError, match="answers 4 images and fails on 3 of them .* batches of any size"):
        take_apart(functional(fixed))


@pytest.mark.one_backend
def test_a_quantised_model_is_called_so():
    keras.utils.set_random_seed(1)
    model = sequential(*pooled(), layers.Dense(4, activation="softmax", name="last"))
    model.quantize("int8")
    with pytest.raises(UserError, match=r"it is quantised \('last' int8\), .* as it was before model.quantize"):
        take_apart(model)
    assert take_apart(model, "pool").way.answers == "softmax"
    # One whose last dense layer is not is taken apart as any other.
    model = sequential(layers.Flatten(), layers.Dense(6), layers.Dense(4, name="last"))
    model.quantize("int8", filters=lambda layer: layer.name != "last")
    assert [layer.quantization_mode for layer in model.layers[1:]] == ["int8", None]
    assert isinstance(take_apart(model).way.head, Linear)


def test_what_takes_no_images_is_refused():
    with pytest.raises(UserError, match="takes \\(None, 8\\); one input of images is needed"):
        take_apart(sequential(layers.Dense(4), shape=(8,)))
    with pytest.raises(UserError, match="does not say what it takes"):
        take_apart(Subclassed())
    with pytest.raises(UserError, match="a keras.Model is needed, not Dense"):
        take_apart(layers.Dense(4))


def test_images_without_a_channel_are_refused_with_what_gives_them_one():
    model = sequential(layers.Flatten(), layers.Dense(4), shape=(8, 6))
    with pytest.raises(UserError, match=r"takes grey images without their channel, \(None, 8, 6\)") as refused:
        take_apart(model)
    line = str(refused.value).rpartition(": ")[2]
    mended = eval(line, {"keras": keras, "model": model})
    pixels = np.random.default_rng(0).random((3, 8, 6, 1), "float32")
    answers = take_apart(mended)(ops.convert_to_tensor(pixels))
    np.testing.assert_allclose(
        ops.convert_to_numpy(answers["logits"]), ops.convert_to_numpy(model(pixels[..., 0])), rtol=1e-5, atol=1e-6
    )


def test_a_layer_that_is_not_there_is_refused():
    model = MODELS["softmax"]()
    with pytest.raises(UserError, match="has no such layer; its last ones are conv2d.*, pool, dense"):
        take_apart(model, "pol")


def test_a_probe_finds_the_size_of_a_model_that_takes_any():
    model = sequential(layers.AveragePooling2D(64), *(layers.GlobalAveragePooling2D(), layers.Dense(3)),
                       shape=(None, None, 3))  # fmt: skip
    assert take_apart(model).image_shape == (None, None, 3)


def application(name):
    for side in (32, 64, 72, 96, 128, 224, 331):
        try:
            return getattr(keras.applications, name)(weights=None, input_shape=(side, side, 3))
        except ValueError:
            continue
    return getattr(keras.applications, name)(weights=None)


def check_application(name):
    keras.utils.set_random_seed(1)
    model = application(name)
    taken = take_apart(model)
    pixels = np.random.default_rng(1).uniform(0, 255, (2, *taken.image_shape)).astype("float32")
    own = ops.convert_to_numpy(model(pixels, training=False))
    found = taken(pixels)
    assert np.abs(ops.convert_to_numpy(ops.softmax(found["logits"])) - own).max() < 1e-4
    assert found["features"].shape == (2, taken.way.head.kernel.shape[0])


@pytest.mark.one_backend  # The walk through a graph of layers is the same; each kind of end stands above.
@pytest.mark.parametrize("name", ["MobileNet", "ResNet50"])
def test_networks_of_keras_applications(name):
    check_application(name)


@pytest.mark.slow
@pytest.mark.one_backend
@pytest.mark.parametrize("name", ["ConvNeXtTiny", "MobileNetV3Small", "VGG16", "EfficientNetB0"])  # Other last layers.
def test_more_networks_of_keras_applications(name):
    check_application(name)


@pytest.mark.filterwarnings("error:The structure of `inputs`")
@pytest.mark.parametrize("wrapped", [lambda pixels: {"image": pixels}, lambda pixels: [pixels]])
def test_one_input_by_name_or_in_a_list_is_given_so_without_a_warning_of_keras(wrapped):
    pixels = keras.Input((None, None, 3), name="image")
    found = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(layers.Rescaling(1 / 255)(pixels)))
    model = keras.Model(wrapped(pixels), layers.Dense(4, activation="softmax")(found))
    rows = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype("float32")
    answer = ops.softmax(Adapted(model, takes_bytes=True)(rows)["logits"])
    np.testing.assert_allclose(ops.convert_to_numpy(answer), ops.convert_to_numpy(model(wrapped(rows))), atol=1e-5)
