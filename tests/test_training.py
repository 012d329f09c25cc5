"""Fitting: schedules, checkpoints, and the promise that an interrupted training ends as an uninterrupted one."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from kood import heads, training
from kood.classifier import Classifier
from kood.data import ImageSet
from kood.data.batches import labelled_batches, training_batches
from kood.diffusion.denoiser import Denoiser
from kood.errors import UserError
from kood.nets import denoisers
from kood.recipe import load
from kood.training import timing
from kood.virtual import VirtualOutliers
from tests.interrupted import KillAfter, Killed

# Run once under each Keras backend.
pytestmark = [pytest.mark.backend, pytest.mark.usefixtures("as_written")]


RECIPES = Path(__file__).parents[1] / "recipes"


def values(model):
    return [ops.convert_to_numpy(w) for w in model.weights]


def test_the_rate_rises_and_falls():
    rate = training.optimizer(100, learning_rate=0.5, warmup=0.1)._learning_rate
    at = [float(ops.convert_to_numpy(rate(step))) for step in (0, 5, 10, 55, 100)]
    np.testing.assert_allclose(at, [0.0, 0.25, 0.5, 0.25, 0.0], atol=1e-6)


def test_optimizers_take_their_settings():
    sgd = training.optimizer(10, name="sgd", learning_rate=0.1, clip_norm=2.0)
    adam = training.optimizer(10, learning_rate=0.1, weight_decay=0.01, ema=0.9)
    assert (sgd.momentum, sgd.nesterov, sgd.global_clipnorm) == (0.9, True, 2.0)
    assert (adam.weight_decay, adam.use_ema, adam.ema_momentum) == (0.01, True, 0.9)


@pytest.mark.parametrize("name", ["openood_cifar10", "openood_cifar100"])
def test_weights_decay_as_in_openood(name):
    """It adds 5e-4 of a weight to its gradient, as torch's SGD does; written out, for a gradient of nothing else."""
    settings = load(RECIPES / f"{name}.toml").train
    sgd = training.optimizer(
        None, name=settings.optimizer, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay
    )
    mine, theirs, velocity = keras.Variable([1.0]), 1.0, 0.0
    sgd.build([mine])
    for _ in range(100):
        sgd.apply([ops.zeros((1,))], [mine])
        gradient = 5e-4 * theirs
        velocity = 0.9 * velocity + gradient
        theirs -= settings.learning_rate * (gradient + 0.9 * velocity)
    assert 1 - float(ops.convert_to_numpy(mine)[0]) == pytest.approx(1 - theirs, rel=0.1)


@pytest.mark.parametrize(("steps", "wanted"), [(1, 1), (7, 25), (50, 20), (51, 20), (97, 30)])
def test_calls_never_run_past_an_epoch(steps, wanted):
    assert steps % training.steps_per_call(steps, wanted) == 0
    assert training.steps_per_call(steps, wanted) <= max(wanted, 1) or wanted == 1


@pytest.mark.one_backend
def test_steps_that_take_no_time_are_called_an_epoch_at_once():
    assert training.steps_per_call(47) == 1 and training.steps_per_call(47, most=250) == 47
    assert training.steps_per_call(47, 5, most=250) == 1  # What the recipe asks for stays the bound.
    assert training.steps_per_call(1000, most=250) == 250


EPOCHS, STEPS = 4, 3


def start():
    keras.utils.set_random_seed(1)
    model = Denoiser(denoisers.mlp((8, 8, 1), 3, width=16, depth=1), num_steps=20, seed=2, name="denoiser")
    model.compile(training.optimizer(EPOCHS * STEPS, learning_rate=1e-2, clip_norm=1.0, ema=0.8))
    return model


def batches(first):
    rng = np.random.default_rng(0)
    images = ImageSet(
        rng.integers(0, 256, (24, 8, 8, 1)).astype("uint8"), np.arange(24, dtype="int64") % 3, ("a", "b", "c")
    )
    return labelled_batches(images, batch_size=8, steps=EPOCHS * STEPS, seed=4, first_step=first * STEPS)


def fit(folder, callback=None, interval=0.0, model=None):
    return training.fit(
        model or start(), batches, epochs=EPOCHS, steps_per_epoch=STEPS, folder=folder, callbacks=[callback],
        interval=interval,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that nothing interrupted: its weights and its history."""
    model, history = fit(tmp_path_factory.mktemp("whole"))
    return values(model), history


#: After the first epoch, in the middle, after the last; which it is is nothing to the backend.
FIRST = pytest.param(0, marks=[pytest.mark.one_backend, pytest.mark.slow])
KILLED_AFTER = [FIRST, 2, pytest.param(3, marks=[pytest.mark.one_backend, pytest.mark.slow])]


@pytest.mark.parametrize("killed_after", KILLED_AFTER)
def test_an_interrupted_training_ends_bit_for_bit_the_same(whole, tmp_path, killed_after):
    weights, history = whole
    with pytest.raises(Killed):
        fit(tmp_path / "killed", KillAfter(killed_after))
    assert json.loads((tmp_path / "killed" / "checkpoint.json").read_bytes())["epoch"] == killed_after + 1
    model = start()
    resumed, again = fit(tmp_path / "killed", model=model)
    assert again == history and len(history["loss"]) == EPOCHS
    assert resumed is model  # Made for the devices of now, which the checkpoint's was not.
    for one, other in zip(weights, values(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
    # Until the model is saved, its last checkpoint stays.
    resumed, again = fit(tmp_path / "killed", KillAfter(EPOCHS - 1))
    assert again == history
    for one, other in zip(weights, values(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
    training.remove_checkpoint(tmp_path / "killed")
    assert not list((tmp_path / "killed").iterdir())


def test_a_fitted_model_can_be_fitted_again(tmp_path):
    model, _ = training.fit(start(), batches, epochs=1, steps_per_epoch=STEPS, folder=tmp_path)
    before = values(model)
    model, _ = training.fit(model, batches, epochs=1, steps_per_epoch=STEPS, folder=tmp_path)
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 2 * STEPS
    assert any(np.abs(old - new).max() > 1e-4 for old, new in zip(before, values(model), strict=True))


def test_the_checkpoint_is_written_no_oftener_than_asked(tmp_path):
    with pytest.raises(Killed):
        fit(tmp_path, KillAfter(2), interval=3600.0)
    assert not list(tmp_path.iterdir())


def classifier_fit(folder, callback=None, budget=None):
    """Exposure that begins within the second epoch, to virtual outliers and to the head alone."""
    keras.utils.set_random_seed(3)
    virtual = VirtualOutliers(3, 5, queue=4, candidates=20, seed=6)
    inputs = keras.Input((8, 8, 1))
    # Its dropout has no seed of its own, which torch's is drawn without.
    features = keras.layers.Dropout(0.2)(keras.layers.Dense(6)(keras.layers.Flatten()(inputs)))
    backbone = keras.Model(inputs, features)
    model = Classifier(
        backbone, heads.CosFace(3), "outlier_exposure", exposure_begin=5, reach="head", virtual=virtual,
        name="classifier",
    )  # fmt: skip
    model.build((None, 8, 8, 1))
    model.compile(training.optimizer(None if budget else EPOCHS * STEPS, learning_rate=1e-2))

    def mixed(first):
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (34, 8, 8, 1)).astype("uint8")
        images = ImageSet(pixels[:24], np.arange(24, dtype="int64") % 3, ("a", "b", "c"))
        return training_batches(
            images, ImageSet(pixels[24:]), batch_size=8, outliers_per_batch=4, epochs=EPOCHS, seed=4,
            first_epoch=first,
        )[0]  # fmt: skip

    return training.fit(
        model, mixed, epochs=EPOCHS, steps_per_epoch=STEPS, folder=folder, callbacks=[callback], interval=0.0,
        budget=budget,
    )  # fmt: skip


@pytest.fixture(scope="module")
def exposed(tmp_path_factory):
    """As `whole`, of a classifier."""
    return classifier_fit(tmp_path_factory.mktemp("exposed"))


@pytest.mark.parametrize("killed_after", [FIRST, 1, *KILLED_AFTER[2:]])
def test_an_interrupted_exposure_ends_bit_for_bit_the_same(exposed, tmp_path, killed_after):
    whole, history = exposed
    assert history["exposure"][0] == 0.0 < history["exposure"][1]
    with pytest.raises(Killed):
        classifier_fit(tmp_path / "killed", KillAfter(killed_after))
    resumed, again = classifier_fit(tmp_path / "killed")
    assert again == history
    for one, other in zip(values(whole), values(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
    states = [ops.convert_to_numpy(model.virtual.seed_generator.state) for model in (whole, resumed)]
    np.testing.assert_array_equal(*states)


@pytest.mark.one_backend  # Nothing is computed with what is damaged.
@pytest.mark.parametrize("damage", ["json", "middle", "other", pytest.param("cut", marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_means_a_new_start(whole, tmp_path, damage):
    with pytest.raises(Killed):
        fit(tmp_path / "killed", KillAfter(1))
    file = next((tmp_path / "killed").glob("*.keras"))
    content, half = file.read_bytes(), file.stat().st_size // 2
    if damage == "json":
        (tmp_path / "killed" / "checkpoint.json").write_text("{")
    elif damage == "other":
        other = Denoiser(denoisers.mlp((8, 8, 1), 3, width=9, depth=1), num_steps=20, seed=2, name="denoiser")
        other.compile(training.optimizer(EPOCHS * STEPS, learning_rate=1e-2, clip_norm=1.0, ema=0.8))
        other.optimizer.build(other.trainable_variables)
        other.save(file)
    else:
        file.write_bytes(content[:half] + (bytes(1000) + content[half + 1000 :] if damage == "middle" else b""))
    again, history = fit(tmp_path / "killed")
    assert len(history["loss"]) == EPOCHS
    for one, other in zip(whole[0], values(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_loss_that_is_no_number_stops_with_advice(tmp_path):
    model = start()
    model.network.weights[0].assign(np.full(model.network.weights[0].shape, np.nan))
    with pytest.raises(UserError, match=r"denoiser.*nan.*step 3.*learning rate") as caught:
        training.fit(model, batches, epochs=EPOCHS, steps_per_epoch=STEPS, folder=tmp_path, interval=0.0)
    assert caught.value.exit_code == 1 and "no weights were kept before" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [np.nan, pytest.param(np.inf, marks=pytest.mark.one_backend), 1e30])
def test_a_loss_that_explodes_stops_and_keeps_the_last_good_weights(tmp_path, wrong):
    good = []

    class Spoil(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                good.extend(values(self.model))
                weight = self.model.network.weights[0]
                weight.assign(np.full(weight.shape, wrong))

    with pytest.raises(UserError, match=r"the loss of denoiser is .* after step 9 \(epoch 3, learning rate") as caught:
        fit(tmp_path, Spoil(), interval=0.0)
    assert f"the last good weights, of epoch 2, are in {tmp_path / 'checkpoint-2.keras'}" in str(caught.value)
    kept = keras.saving.load_model(tmp_path / "checkpoint-2.keras")
    for one, other in zip(values(kept), good, strict=True):
        np.testing.assert_array_equal(one, other)


def test_precision_holds_inside_the_block_only():
    with training.precision("mixed_bfloat16"):
        inside = keras.layers.Dense(1)
    assert inside.compute_dtype == "bfloat16"
    assert keras.layers.Dense(1).compute_dtype == "float32"


# A budget in time -----------------------------------------------------------------------------------------------------


class Seconds(keras.callbacks.Callback):
    """A clock on which every call of the training function takes one second; it notes the rate of each."""

    def __init__(self, now=0.0):
        super().__init__()
        self.now = now
        self.rates = []
        self.kill_after = None

    def __call__(self):
        return self.now

    def on_train_batch_begin(self, batch, logs=None):
        self.now += 1.0
        self.rates.append(float(ops.convert_to_numpy(self.model.optimizer.learning_rate)))

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.kill_after:
            raise Killed


def timed(folder, seconds, clock, *, kill_after=None, rate=1e-2):
    keras.utils.set_random_seed(1)
    model = Denoiser(denoisers.mlp((8, 8, 1), 3, width=16, depth=1), num_steps=20, seed=2, name="denoiser")
    model.compile(training.optimizer(None, learning_rate=rate, clip_norm=1.0, ema=0.8))
    budget = timing.TimeBudget(seconds, rate, clock=clock)
    clock.kill_after = kill_after
    return training.fit(
        model, batches, epochs=EPOCHS, steps_per_epoch=STEPS, folder=folder, callbacks=[clock], interval=0.0,
        budget=budget,
    )  # fmt: skip


class Table(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, rates):
        self.rates = np.asarray(rates, "float32")

    def __call__(self, step):
        return ops.take(self.rates, ops.cast(step, "int32"))


@pytest.mark.one_backend  # The rates of each step stand below.
@pytest.mark.parametrize(("seconds", "steps"), [(0.01, 2), (6.4, 7), (6.6, 8), (1000.0, EPOCHS * STEPS)])
def test_a_training_ends_when_its_time_is_up(tmp_path, seconds, steps):
    clock = Seconds(now=50.0)
    model, history = timed(tmp_path, seconds, clock)
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == steps
    assert len(history["loss"]) == -(-steps // STEPS)
    # The first call is not counted.
    expected = [0.01 * (1 + np.cos(np.pi * min(max(i - 1, 0) / seconds, 1.0))) / 2 for i in range(steps)]
    np.testing.assert_allclose(clock.rates, expected, rtol=1e-6)


def test_the_steps_are_taken_at_the_rate_of_the_time(tmp_path):
    """Against the same training whose schedule is the table of those rates."""
    clock = Seconds()
    found, _ = timed(tmp_path, 6.4, clock)
    model = start()
    optimizer = keras.optimizers.AdamW(
        Table(clock.rates), weight_decay=0.0, global_clipnorm=1.0, use_ema=True, ema_momentum=0.8
    )
    model.compile(optimizer)
    model.fit(batches(0), steps_per_epoch=7, epochs=1, shuffle=False, verbose=0)
    for one, other in zip(model.trainable_weights, found.trainable_weights, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(one), ops.convert_to_numpy(other), rtol=1e-5, atol=1e-6)


def test_exposure_begins_at_its_share_of_a_training_that_ends_by_the_clock(tmp_path):
    clock = Seconds()
    budget = timing.TimeBudget(4.4, 1e-2, clock=clock, steps=EPOCHS * STEPS)
    model, history = classifier_fit(tmp_path, clock, budget)
    # Five of twelve steps are made; exposure is to begin after five, that is with 42% of the time.
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 5
    assert history["exposure"][0] == 0.0 < history["exposure"][1]


@pytest.mark.parametrize("killed_after", KILLED_AFTER)
def test_a_resumed_training_has_the_rest_of_its_time(tmp_path, killed_after):
    with pytest.raises(Killed):
        timed(tmp_path, 9.4, Seconds(), kill_after=killed_after)
    state = json.loads((tmp_path / "checkpoint.json").read_bytes())
    done = min(STEPS * (killed_after + 1), 10)
    assert state["time"] == {"spent": done - 1.0, "over": killed_after == 3}
    clock = Seconds(now=9000.0)
    resumed, history = timed(tmp_path, 9.4, clock)
    # The first call of the second process is not counted either, so there is one more.
    assert len(clock.rates) == (11 - done if killed_after < 3 else 0)
    assert len(history["loss"]) == EPOCHS
    if killed_after < 3:
        expected = [0.01 * (1 + np.cos(np.pi * (done - 1 + max(i - 1, 0)) / 9.4)) / 2 for i in range(11 - done)]
        np.testing.assert_allclose(clock.rates, expected, rtol=1e-5)
    assert int(ops.convert_to_numpy(resumed.optimizer.iterations)) == done + len(clock.rates)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"prediction": "x0"}, "prediction must be 'epsilon' or 'v'; it is 'x0'"),
        ({"schedule": "whole_number"}, "schedule must be one of linear, cosine; it is 'whole_number'"),
        ({"label_dropout": 10}, "label_dropout must be from 0 to 1; it is 10"),
        ({"num_steps": 2.5}, "num_steps must be a whole number"),
        ({"min_snr": -1.0}, "min_snr must be above 0"),
    ],
)
def test_a_denoiser_refuses_settings_that_there_are_not(setting, message):
    with pytest.raises(ValueError, match=message):
        Denoiser(denoisers.mlp((8, 8, 1), 3, width=8, depth=1), **setting)


def test_a_denoiser_takes_what_a_recipe_would_find_odd():
    network = denoisers.mlp((8, 8, 1), 3, width=8, depth=1)
    for setting in ({"num_steps": np.int64(20)}, {"num_steps": 1}, {"num_steps": 20_000}, {"label_dropout": 1.0}):
        made = Denoiser(network, **setting)
        assert len(made.alpha_bar) == setting.get("num_steps", 1000) and type(made.num_steps) is int
