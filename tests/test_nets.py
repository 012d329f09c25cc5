"""The networks: parameter counts, gradients, precision, saving, and the denoisers' layers against NumPy."""

from functools import cache
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import ops

from kood import registry
from kood.errors import UserError
from kood.kernels import winograd
from kood.nets import denoisers, layers

pytestmark = pytest.mark.backend  # Run once under each Keras backend.

backbones = SimpleNamespace(**registry.things("backbones"))
#: Made by others: `tests/test_networks_of_others.py`.
OTHERS = ("file", "keras_applications", "keras_hub", "pretrained")
BACKBONES = [make for name, make in vars(backbones).items() if name not in OTHERS]


#: Those that are deeper or wider than another of the same blocks give a backend nothing that it has not there.
LARGER = ("resnet18", "resnet20", "wrn28_10")
EACH_KIND = [pytest.param(make, marks=pytest.mark.one_backend if make.__name__ in LARGER else ()) for make in BACKBONES]


def trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def randomised(model, seed=0):
    """The model with noise on its weights, so that nothing is hidden by a zero-initialised layer."""
    rng = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        weight.assign(numpy(weight) + 0.1 * rng.standard_normal(weight.shape).astype("float32"))
    return model


@cache
def ready(make):
    """One randomised model a maker, for the tests that change nothing in it."""
    return randomised(make())


@cache
def full_size(name):
    return getattr(backbones, name)((32, 32, 3))


def images(shape, batch=3, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (batch, *shape)).astype("float32")


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


@pytest.fixture
def mixed_bfloat16():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(before)


# Backbones -----------------------------------------------------------------------------------------------------------


@pytest.mark.one_backend  # What is counted is the same.
@pytest.mark.parametrize(
    ("name", "published", "digits"),
    [
        ("resnet8", 0.08e6, 1), ("resnet20", 0.27e6, 2), ("resnet18", 11.17e6, 4),
        ("wrn40_2", 2_243_546, 7), ("wrn28_10", 36_479_194, 8),
    ],
)  # fmt: skip
def test_trainable_parameters_with_a_ten_way_head_are_the_published_ones(name, published, digits):
    model = full_size(name)
    head = (model.output_shape[-1] + 1) * 10
    assert float(f"{trainable(model) + head:.{digits}g}") == published


@pytest.mark.one_backend
def test_resnet20_counted_by_hand():
    def convolution(i, o, kernel=3):
        return kernel * kernel * i * o + 2 * o  # and the scale and shift of its normalisation

    expected = convolution(3, 16) + 6 * convolution(16, 16)
    expected += convolution(16, 32) + 5 * convolution(32, 32) + convolution(16, 32, kernel=1)
    expected += convolution(32, 64) + 5 * convolution(64, 64) + convolution(32, 64, kernel=1)
    assert trainable(full_size("resnet20")) == expected


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet8", 78_064), ("resnet20", 273_392), ("resnet18", 11_178_432), ("wrn40_2", 2_247_664),
        ("wrn28_10", 36_490_736),
    ],
)  # fmt: skip
def test_parameter_counts_are_those_in_the_docstring(name, count):
    assert full_size(name).count_params() == count
    assert f"{count:,}" in getattr(backbones, name).__doc__


def test_parameter_count_of_the_small_cnn():
    assert backbones.small_cnn((8, 8, 1)).count_params() == 46_960
    assert "46,960" in backbones.small_cnn.__doc__


@pytest.mark.one_backend
@pytest.mark.parametrize("name", ["resnet8", "resnet20", "resnet18"])
def test_depth_is_in_the_name(name):
    model = full_size(name)
    main = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D) and layer.kernel_size == (3, 3)]
    assert len(main) + 1 == int(name.removeprefix("resnet"))


@pytest.mark.one_backend
@pytest.mark.parametrize(("name", "depth", "widening"), [("wrn40_2", 40, 2), ("wrn28_10", 28, 10)])
def test_depth_and_widening_of_a_wide_network_are_in_its_name(name, depth, widening):
    model = full_size(name)
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    # The paper counts the shortcuts of the three stages among the convolutions, and a head adds the last layer.
    assert len(convolutions) + 1 == depth + 1 and model.output_shape[-1] == 64 * widening


@pytest.mark.one_backend
def test_a_wide_network_is_pre_activated_throughout():
    model = full_size("wrn40_2")
    sums = [layer for layer in model.layers if isinstance(layer, keras.layers.Add)]
    assert len(sums) == 18
    for layer in sums:
        assert all(isinstance(into._keras_history.operation, keras.layers.Conv2D | keras.layers.Add)
                   for into in layer.input)  # fmt: skip
    last = model.get_layer("pooled").input._keras_history.operation
    assert isinstance(last, keras.layers.ReLU)


@pytest.mark.one_backend  # Keras's layer; the denoiser's is tested under each.
def test_dropout_of_a_wide_network_acts_in_training_alone():
    model = backbones.wrn40_2((8, 8, 3), width=4, dropout=0.5)
    x = images((8, 8, 3))
    np.testing.assert_array_equal(numpy(model(x)), numpy(model(x)))
    assert np.abs(numpy(model(x, training=True)) - numpy(model(x, training=True))).max() > 1e-3
    with pytest.raises(ValueError, match="dropout"):
        backbones.wrn40_2((8, 8, 3), dropout=1.0)


def small(make):
    return {} if make is backbones.small_cnn else {"width": 4}


@pytest.mark.parametrize("make", EACH_KIND)
def test_backbone_features(make):
    shape = (9, 12, 3)
    model = make(shape, features=5, **small(make))
    assert model.input_shape == (None, *shape)
    features = numpy(model(images(shape)))
    assert features.shape == (3, 5)
    assert features.dtype == np.float32
    assert np.all(np.isfinite(features))
    assert not np.allclose(features[0], features[1])
    assert model.layers[-1].activation is keras.activations.linear


@pytest.mark.parametrize("make", [make for make in BACKBONES if make.__name__ not in LARGER])
def test_backbone_survives_saving(make, tmp_path):
    model = make((8, 8, 3), **small(make))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = images((8, 8, 3))
    np.testing.assert_allclose(numpy(again(x)), numpy(model(x)), atol=1e-6)


@pytest.mark.parametrize("make", [backbones.small_cnn, backbones.resnet8])
def test_backbone_trains(make):
    model = make((8, 8, 3), **small(make))
    before = model.get_weights()
    model.compile(optimizer=keras.optimizers.SGD(0.01), loss="mse")
    target = np.ones((3, model.output_shape[-1]), "float32")
    model.fit(images((8, 8, 3)), target, epochs=1, batch_size=3, verbose=0)
    moved = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert all(moved)


@pytest.fixture
def fetched(monkeypatch):
    """Presets without a network: a small ResNet of KerasCV with weights of its own."""
    cv = pytest.importorskip("keras_cv")

    def from_preset(preset):
        assert preset == "resnet_v2"
        keras.utils.set_random_seed(5)
        return cv.models.ResNetV2Backbone(
            stackwise_filters=[64, 128], stackwise_blocks=[2, 2], stackwise_strides=[1, 2], include_rescaling=True,
            block_type="basic_block", input_shape=(None, None, 3),
        )  # fmt: skip

    monkeypatch.setattr(cv.models.Backbone, "from_preset", staticmethod(from_preset))
    return from_preset


def test_a_pretrained_backbone_sees_the_pixels_that_kerascv_means(fetched, tmp_path):
    model = backbones.pretrained((64, 64, 3), "resnet_v2", features=7)
    x = images((64, 64, 3))
    assert model.output_shape == (None, 7)
    maps = numpy(fetched("resnet_v2")((x + 1.0) * 127.5))
    inner = keras.Model(model.input, model.get_layer("pooled").output)
    np.testing.assert_allclose(numpy(inner(x)), maps.mean(axis=(1, 2)), rtol=1e-4, atol=1e-4)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(numpy(again(x)), numpy(model(x)), rtol=1e-5, atol=1e-5)


def test_a_preset_that_cannot_be_had_is_one_message(monkeypatch):
    cv = pytest.importorskip("keras_cv")

    def from_preset(preset):
        raise ConnectionError("no route to host\nand much more")

    monkeypatch.setattr(cv.models.Backbone, "from_preset", staticmethod(from_preset))
    with pytest.raises(UserError, match=r"classifier.options.preset: .*'resnet_x'.*\(no route to host\); check"):
        backbones.pretrained((64, 64, 3), "resnet_x")
    for shape, options, message in (((64, 64, 1), {}, "colour"), ((64, 64), {}, "image_shape"),
                                    ((64, 64, 3), {"features": 0}, "features")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            backbones.pretrained(shape, **options)


def test_small_cnn_does_not_mix_the_rows_of_a_batch():
    model = backbones.small_cnn((8, 8, 1))
    x = images((8, 8, 1), batch=4)
    alone = numpy(model(x[:1], training=True))
    with_outliers = numpy(model(np.concatenate([x[:1], 50 * x[1:]]), training=True))[:1]
    np.testing.assert_allclose(with_outliers, alone, atol=1e-5)


@pytest.mark.parametrize("make", BACKBONES)
@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 0), (8, 8.0, 1), (0, 8, 1)])
def test_backbone_refuses_a_bad_shape(make, shape):
    with pytest.raises(ValueError, match="image_shape"):
        make(shape)


def test_backbone_refuses_bad_options():
    for make in BACKBONES:
        with pytest.raises(ValueError, match="features"):
            make((8, 8, 1), features=0)
    with pytest.raises(ValueError, match="at least 8"):
        backbones.resnet18((32, 4, 3))
    with pytest.raises(ValueError, match="multiples of groups=8"):
        backbones.small_cnn((8, 8, 1), widths=(16, 12))
    with pytest.raises(ValueError, match="width"):
        backbones.resnet8((8, 8, 1), width=0)


# Denoisers -----------------------------------------------------------------------------------------------------------


def tiny_mlp(shape=(4, 6, 1), **options):
    return denoisers.mlp(shape, 3, **{"width": 16, "depth": 2, "embedding": 8, **options})


def tiny_unet(shape=(8, 12, 2), **options):
    options = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "embedding": 8, **options}
    return denoisers.unet(shape, 3, **options)


def batch_for(model, rows=3, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.standard_normal((rows, *model.output_shape[1:])).astype("float32"),
        "step": rng.uniform(0, 1, rows).astype("float32"),
        "condition": np.eye(3, dtype="float32")[rng.integers(0, 3, rows)],
    }


def patched_unet(**options):
    return tiny_unet(**{"patch": 2, **options})


def one_level_unet(**options):
    return tiny_unet((4, 4, 1), **{"multipliers": (1,), "blocks": 2, "dropout": 0.2, **options})


DENOISERS = [tiny_mlp, patched_unet, pytest.param(one_level_unet, marks=pytest.mark.one_backend)]


@pytest.mark.parametrize("make", DENOISERS)
def test_denoiser_starts_at_zero(make):
    model = make()
    prediction = model(batch_for(model))
    assert tuple(prediction.shape) == (3, *model.output_shape[1:])
    assert keras.backend.standardize_dtype(prediction.dtype) == "float32"
    np.testing.assert_array_equal(numpy(prediction), 0.0)


@pytest.mark.parametrize("make", DENOISERS)
@pytest.mark.parametrize("name", ["image", "step", "condition"])
def test_every_input_reaches_the_prediction(make, name):
    model = ready(make)
    batch = batch_for(model)
    other = {**batch, name: batch_for(model, seed=1)[name]}
    if name == "condition":
        other[name] = np.roll(batch[name], 1, axis=-1)
    difference = np.abs(numpy(model(batch)) - numpy(model(other)))
    assert np.all(difference.max(axis=(1, 2, 3)) > 1e-5)


@pytest.mark.parametrize("make", DENOISERS)
def test_rows_do_not_mix(make):
    model = ready(make)
    batch = batch_for(model)
    alone = numpy(model({name: values[1:2] for name, values in batch.items()}))
    np.testing.assert_allclose(numpy(model(batch))[1:2], alone, atol=2e-5)


@pytest.mark.parametrize("make", DENOISERS)
def test_soft_and_empty_labels(make):
    model = ready(make)
    batch = batch_for(model)
    for condition in ([0.0, 0.0, 0.0], [0.5, 0.5, 0.0]):
        batch["condition"] = np.array([condition] * 3, "float32")
        assert np.all(np.isfinite(numpy(model(batch))))


def test_a_mixture_of_labels_is_the_mean_of_their_embeddings():
    model = tiny_mlp()
    embed = model.get_layer("label_embedding")
    rows = numpy(embed(ops.convert_to_tensor(np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0], [0, 0, 0]], "float32"))))
    np.testing.assert_allclose(rows[2], (rows[0] + rows[1]) / 2, atol=1e-6)
    np.testing.assert_array_equal(rows[3], 0.0)


def test_label_embedding_starts_standard_normal():
    kernel = numpy(denoisers.mlp((2, 2, 1), 50, width=8, depth=1, embedding=200).get_layer("label_embedding").kernel)
    assert abs(kernel.mean()) < 0.05
    assert kernel.std() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("make", DENOISERS)
def test_denoiser_survives_saving(make, tmp_path):
    model = ready(make)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    batch = batch_for(model)
    np.testing.assert_allclose(numpy(again(batch)), numpy(model(batch)), atol=1e-5)


@pytest.mark.parametrize("make", [tiny_mlp, patched_unet])
def test_denoiser_trains(make):
    model = make()
    before = [numpy(weight) for weight in model.trainable_weights]
    # TensorFlow traces a graph of four steps for longer than it takes without; under JAX it is the other way round.
    eagerly = keras.backend.backend() == "tensorflow"
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss="mse", run_eagerly=eagerly)
    batch = batch_for(model)
    target = np.random.default_rng(3).standard_normal(batch["image"].shape).astype("float32")
    # The first step moves the zero-initialised output only, the next ones what stands behind it.
    losses = model.fit(batch, target, epochs=4, batch_size=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    still = [
        weight.path
        for weight, old in zip(model.trainable_weights, before, strict=True)
        if np.array_equal(numpy(weight), old)
    ]
    assert still == []


@pytest.mark.parametrize("make", [tiny_mlp, patched_unet])
def test_denoiser_in_mixed_precision(make, mixed_bfloat16):
    model = randomised(make())
    prediction = model(batch_for(model))
    assert keras.backend.standardize_dtype(prediction.dtype) == "float32"
    assert np.all(np.isfinite(numpy(prediction)))
    assert np.abs(numpy(prediction)).max() > 0
    # bfloat16 cannot tell these two steps apart.
    steps = ops.convert_to_tensor(np.array([0.999, 0.998], "float32"))
    rows = numpy(model.get_layer("step_embedding")(steps))
    assert np.abs(rows[0] - rows[1]).max() > 0.5


def test_unet_saved_in_mixed_precision(tmp_path, mixed_bfloat16):
    model = randomised(tiny_unet(patch=2))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(again(batch_for(model))), numpy(model(batch_for(model))))


@pytest.mark.one_backend
def test_parameter_counts():
    mlp = denoisers.mlp((8, 8, 1), 10)
    assert mlp.count_params() == 643_136
    assert f"{mlp.count_params():,}" in denoisers.mlp.__doc__
    unet = denoisers.unet((16, 16, 3), 10, width=80, multipliers=(1, 2), attention=(8, 4), patch=2)
    assert unet.count_params() == 4_038_812
    assert f"{unet.count_params():,}" in denoisers.unet.__doc__


def attention_layers(model):
    return [layer.name for layer in model.layers if isinstance(layer, layers.SelfAttention)]


def test_attention_stands_at_the_resolutions_named():
    assert attention_layers(tiny_unet((16, 32, 1), multipliers=(1, 1, 1), attention=(8,))) == [
        "down1_attention",
        "up1_attention",
    ]
    assert attention_layers(tiny_unet((16, 16, 1), patch=4, attention=(4, 2))) == [
        "down0_attention",
        "down1_attention",
        "up1_attention",
        "up0_attention",
    ]
    assert attention_layers(tiny_unet(attention=())) == []


def test_dropout_acts_in_training_only():
    model = randomised(tiny_unet(dropout=0.5))
    batch = batch_for(model)
    np.testing.assert_array_equal(numpy(model(batch)), numpy(model(batch, training=False)))
    assert not np.allclose(numpy(model(batch, training=True)), numpy(model(batch, training=True)))


@pytest.mark.parametrize(
    ("shape", "options", "multiple"),
    [
        ((9, 8, 1), {}, 2),
        ((8, 10, 1), {"multipliers": (1, 1, 1)}, 4),
        ((8, 12, 1), {"patch": 4}, 8),
        ((7, 7, 1), {"multipliers": (1,), "patch": 2}, 2),
    ],
)
def test_unet_names_the_multiple_it_needs(shape, options, multiple):
    with pytest.raises(ValueError, match=f"multiples of {multiple}, got {shape[0]}x{shape[1]}"):
        tiny_unet(shape, **options)


def test_odd_sizes_that_can_be_done():
    model = tiny_unet((5, 7, 1), multipliers=(1,), attention=(5,))
    assert model(batch_for(model)).shape == (3, 5, 7, 1)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"width": 0}, "width"),
        ({"blocks": 0}, "blocks"),
        ({"patch": 0}, "patch"),
        ({"multipliers": ()}, "multipliers"),
        ({"multipliers": (1, 0)}, "multipliers"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"embedding": 7}, "embedding must be even"),
        ({"shape": (8, 8)}, "image_shape"),
    ],
)
def test_unet_refuses_bad_options(options, word):
    with pytest.raises(ValueError, match=word):
        tiny_unet(**options)


def test_mlp_refuses_bad_options():
    for options, word in [({"width": 0}, "width"), ({"depth": 0}, "depth"), ({"embedding": 3}, "even")]:
        with pytest.raises(ValueError, match=word):
            tiny_mlp(**options)
    with pytest.raises(ValueError, match="num_classes"):
        denoisers.mlp((2, 2, 1), 0)


# The denoisers' layers against NumPy ---------------------------------------------------------------------------------


def test_space_to_depth_by_hand_and_back():
    x = np.arange(2 * 4 * 6 * 3, dtype="float32").reshape(2, 4, 6, 3)
    folded = layers.SpaceToDepth(2)(ops.convert_to_tensor(x))
    expected = np.zeros((2, 2, 3, 12), "float32")
    for i in range(2):
        for j in range(2):
            expected[..., (2 * i + j) * 3 : (2 * i + j + 1) * 3] = x[:, i::2, j::2]
    np.testing.assert_array_equal(numpy(folded), expected)
    np.testing.assert_array_equal(numpy(layers.DepthToSpace(2)(folded)), x)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("modulated", [False, True])
def test_modulated_group_norm_against_numpy(groups, modulated):
    shape = (3, 4, 5, 8)
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape) * 3 + 1
    layer = layers.ModulatedGroupNorm(groups)
    m = rng.standard_normal((3, 16)) if modulated else np.zeros((3, 16))
    arguments = [ops.convert_to_tensor(v, "float32") for v in ((x, m) if modulated else (x,))]
    layer(*arguments)
    gamma, beta = rng.standard_normal(8), rng.standard_normal(8)
    layer.set_weights([gamma, beta])

    rows = x.reshape(3, -1, groups, 8 // groups)
    mean = rows.mean(axis=(1, 3), keepdims=True)
    normed = ((rows - mean) / np.sqrt(((rows - mean) ** 2).mean(axis=(1, 3), keepdims=True) + 1e-5)).reshape(shape)
    wide = (3, 1, 1, 8)
    expected = (1 + m[:, :8].reshape(wide)) * (gamma * normed + beta) + m[:, 8:].reshape(wide)
    np.testing.assert_allclose(numpy(layer(*arguments)), expected, atol=2e-5, rtol=1e-5)


def test_modulation_against_numpy():
    rng = np.random.default_rng(0)
    x, m = rng.standard_normal((5, 4)), rng.standard_normal((5, 8))
    y = layers.Modulation()(ops.convert_to_tensor(x, "float32"), ops.convert_to_tensor(m, "float32"))
    np.testing.assert_allclose(numpy(y), x + x * m[:, :4] + m[:, 4:], atol=1e-5)


def test_modulated_group_norm_equals_keras():
    x = ops.convert_to_tensor(images((4, 4, 8)))
    np.testing.assert_allclose(
        numpy(layers.ModulatedGroupNorm(4)(x)),
        numpy(keras.layers.GroupNormalization(4, epsilon=1e-5)(x)),
        atol=1e-5,
    )


def test_modulated_group_norm_of_a_constant_is_finite():
    for value in (0.0, 1e4, -3e-7):
        y = numpy(layers.ModulatedGroupNorm(2)(ops.full((2, 3, 3, 4), value)))
        assert np.all(np.isfinite(y))


def test_modulated_group_norm_refuses_groups_that_do_not_fit():
    with pytest.raises(ValueError, match="divide"):
        layers.ModulatedGroupNorm(3).build((None, 4, 4, 8))


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_self_attention_against_numpy(heads):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4, 8))
    layer = layers.SelfAttention(heads)
    layer(ops.convert_to_tensor(x, "float32"))
    weights = [rng.standard_normal(w.shape) for w in layer.get_weights()]
    layer.set_weights(weights)
    queries, keys, values, output, bias = weights
    size = 8 // heads
    expected = np.zeros((2, 12, 8))
    for b in range(2):
        rows = x[b].reshape(12, 8)
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            logits = (rows @ queries)[:, part] @ (rows @ keys)[:, part].T / np.sqrt(size)
            attention = np.exp(logits - logits.max(axis=-1, keepdims=True))
            attention /= attention.sum(axis=-1, keepdims=True)
            expected[b, :, part] = attention @ (rows @ values)[:, part]
    expected = (expected @ output + bias).reshape(x.shape)
    np.testing.assert_allclose(numpy(layer(ops.convert_to_tensor(x, "float32"))), expected, atol=1e-4, rtol=1e-4)


def plain_convolution(x, kernel):
    """3x3 with zero padding, in float64, as the sum it is."""
    padded = np.pad(x.astype("float64"), ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    return sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j].astype("float64") for i in range(3) for j in range(3)
    )


@pytest.mark.parametrize("shape", [(4, 4), (8, 8), (4, 12), (8, 4), (16, 16), (3, 5), (1, 1), (6, 4)])
@pytest.mark.parametrize(("channels", "filters"), [(1, 1), pytest.param(5, 7, marks=pytest.mark.one_backend), (40, 24)])
def test_convolution_against_numpy(shape, channels, filters):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, *shape, channels)).astype("float32") * 4 + 1
    layer = layers.Convolution(filters)
    layer(ops.convert_to_tensor(x))
    kernel, bias = rng.standard_normal((3, 3, channels, filters)), rng.standard_normal(filters)
    layer.set_weights([kernel, bias])
    expected = plain_convolution(x, kernel.astype("float32")) + bias
    found = numpy(layer(ops.convert_to_tensor(x)))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("shape", [(4, 4), (8, 12), (16, 4)])
@pytest.mark.parametrize(("channels", "filters"), [(1, 3), (96, 64)])
def test_winograd_is_the_plain_sum(shape, channels, filters):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, *shape, channels)).astype("float32")
    kernel = rng.standard_normal((3, 3, channels, filters)).astype("float32")
    expected = plain_convolution(x, kernel)
    found = numpy(winograd.convolution(ops.convert_to_tensor(x), ops.convert_to_tensor(kernel)))
    error = np.abs(found - expected)
    assert error.max() < 1e-5 * np.abs(expected).max()
    assert np.sqrt((error**2).mean()) < 3e-6 * np.sqrt((expected**2).mean())


def test_winograd_at_hard_values():
    x, kernel = np.zeros((1, 4, 4, 1), "float32"), np.zeros((3, 3, 1, 1), "float32")
    kernel[0, 2] = 1.0
    for pixel in np.ndindex(4, 4):  # One pixel, one tap: it moves by one place, or off the map.
        spot = x.copy()
        spot[0, pixel[0], pixel[1], 0] = 1e6
        expected = plain_convolution(spot, kernel)
        assert np.abs(numpy(winograd.convolution(*map(ops.convert_to_tensor, (spot, kernel)))) - expected).max() < 10.0
    nothing = winograd.convolution(*map(ops.convert_to_tensor, (x, kernel)))
    np.testing.assert_array_equal(numpy(nothing), 0.0)


def gradients(model, batch, target, eagerly=False):
    """What one step of plain gradient descent at rate 1 moves each weight by."""
    before = [numpy(weight) for weight in model.trainable_weights]
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss="mse", run_eagerly=eagerly)
    model.fit(batch, target, epochs=1, batch_size=len(target), verbose=0)
    return [old - numpy(weight) for old, weight in zip(before, model.trainable_weights, strict=True)]


@pytest.mark.slow
def test_recomputation_changes_no_gradient(tmp_path):
    """Nor, with dropout, which units are dropped."""
    found = []
    for recompute in (False, True):
        keras.utils.set_random_seed(5)
        model = randomised(one_level_unet(blocks=1, dropout=0.3, recompute=recompute))
        if recompute:  # It is part of the file: a resumed training needs the same memory.
            model.save(tmp_path / "model.keras")
            again = keras.saving.load_model(tmp_path / "model.keras")
            assert all(layer.recompute for layer in again.layers if isinstance(layer, layers.ResidualBlock))
        batch = batch_for(model)
        target = np.random.default_rng(3).standard_normal(batch["image"].shape).astype("float32")
        # What is compared with is made without a graph where tracing one takes longer.
        eagerly = not recompute and keras.backend.backend() == "tensorflow"
        found.append(gradients(model, batch, target, eagerly))
    assert len(found[0]) > 20
    for plain, again in zip(*found, strict=True):
        assert np.abs(plain).max() > 0
        np.testing.assert_allclose(again, plain, atol=2e-6 * max(1.0, np.abs(plain).max()), rtol=1e-4)


def test_self_attention_refuses_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="heads=3"):
        layers.SelfAttention(3).build((None, 4, 4, 8))


def test_step_embedding_against_numpy():
    steps = np.array([0.0, 0.001, 0.5, 1.0])
    rows = numpy(layers.StepEmbedding(6)(ops.convert_to_tensor(steps, "float32")))
    angles = 1000 * steps[:, None] / 10000 ** (2 * np.arange(3) / 6)
    np.testing.assert_allclose(rows, np.concatenate([np.cos(angles), np.sin(angles)], axis=1), atol=2e-4)


def test_groups_divide_the_channels_and_leave_four_each():
    for channels in range(1, 300):
        groups = layers.group_count(channels)
        assert channels % groups == 0
        assert groups <= 32
        assert channels // groups >= min(4, channels)
