"""Run in one or several processes under one Keras backend: trainings that must end alike wherever they run.

python -m tests.training_probe make START                          writes the models
python -m tests.training_probe train DEVICES OUT START MODEL...    trains them and samples; writes OUT-RANK.npz
python -m tests.training_probe stop FOLDER START MODEL...          trains two of four epochs, and all in FOLDER/whole
python -m tests.training_probe resume FOLDER START MODEL...        makes the stages from what another backend left there
python -m tests.training_probe timed OUT RECIPE KEY=VALUE...       trains its diffusion model; writes OUT-RANK.npz

`stop` and `resume` write what became of each stage to FOLDER/MODEL.json. Several of them, with a + between them, go one
after another in the same process.
"""

import atexit
import contextlib
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
from keras import ops

from kood import backends, heads, registry, training
from kood.classifier import Classifier
from kood.data import ImageSet
from kood.data.batches import labelled_batches, training_batches
from kood.diffusion.denoiser import Denoiser
from kood.nets.layers import Convolution, ResidualBlock
from kood.runs import Run

backbones = SimpleNamespace(**registry.things("backbones"))
SHAPE, CLASSES = (8, 8, 1), 4
MODELS = ("ArcFace", "AdaCos", "AdaFace", "CIDER", "denoiser")
#: Few: at a value within rounding of a ReLU's kink the gradients of two orders of summation part, and Adam amplifies
#: that from step to step.
EPOCHS, STEPS = 2, 1
#: Of the trainings that are stopped half-way.
LONGER, OF_EACH = 4, 2


def images(count):
    rng = np.random.default_rng(0)
    return ImageSet(
        rng.integers(0, 256, (count, *SHAPE)).astype("uint8"), np.arange(count, dtype="int64") % CLASSES, tuple("abcd")
    )


def optimizer(steps, slower=0):
    # Epsilon keeps Adam from magnifying the rounding of a gradient that is nearly zero. The bound on the gradients'
    # norm is low enough to act, so a bound on each device's share would show.
    chosen = training.optimizer(
        steps, learning_rate=1e-2, weight_decay=0.01, clip_norm=0.5, ema=0.8, slower=slower, share=0.3
    )
    chosen.epsilon = 1e-3
    return chosen


def make(start):
    keras.utils.set_random_seed(0)
    classifier("ArcFace", normalised()).save(start / "ArcFace.keras")
    classifier("AdaCos", backbones.small_cnn(SHAPE)).save(start / "AdaCos.keras")
    network = denoising()
    rng = np.random.default_rng(3)
    for weight in network.weights:  # The output layer starts at zero, which would hide every difference.
        weight.assign(weight + 0.05 * rng.normal(size=weight.shape))
    Denoiser(network, num_steps=100, prediction="v", seed=5).save(start / "denoiser.keras")
    # Six of a batch's rows are outliers; only the 16 others turn, or all do.
    settings = {
        "AdaFace": {"class_weight": (0.25, 0.5, 1.25, 2.0), "rotation": 0.5, "outlier_rows": 6},
        "CIDER": {"rotation": 0.5},
    }  # fmt: skip
    for name, options in settings.items():
        classifier(name, backbones.small_cnn(SHAPE), **options).save(start / f"{name}.keras")


def denoising():
    """A network with dropout, of one block of the U-Net."""
    inputs = {
        "image": keras.Input(SHAPE, name="image"),
        "step": keras.Input((), name="step"),
        "condition": keras.Input((CLASSES,), name="condition"),
    }
    step = keras.layers.Reshape((1,))(inputs["step"])
    context = keras.layers.Dense(16)(keras.layers.Concatenate()([step, inputs["condition"]]))
    block = ResidualBlock(8, dropout=0.2)(Convolution(8)(inputs["image"]), context)
    return keras.Model(inputs, Convolution(SHAPE[2])(block))


def normalised():
    """A network with batch normalisation, whose statistics are of the whole batch, and a loss of its weights."""
    image, decay = keras.Input(SHAPE), keras.regularizers.L2(0.01)
    convolution = keras.layers.Conv2D(8, 3, kernel_regularizer=decay)
    x = keras.layers.Activation("relu")(backends.BatchNormalization()(convolution(image)))
    return keras.Model(image, keras.layers.GlobalAveragePooling2D()(x))


def classifier(name, backbone, **options):
    model = Classifier(backbone, getattr(heads, name)(CLASSES), "outlier_exposure", **options)
    model.build((None, *SHAPE))
    return model


def train(devices, out, start, names):
    from kood.diffusion import label_mixup, samplers
    from kood.diffusion.sampling import ImageSampler

    outliers = ImageSet(np.random.default_rng(1).integers(0, 256, (20, *SHAPE)).astype("uint8"))

    def classifier_batches(first):
        return training_batches(
            images(16), outliers, batch_size=16, outliers_per_batch=6, epochs=EPOCHS, seed=2,
            first_epoch=first,
        )[0]  # fmt: skip

    def denoiser_batches(first):
        return labelled_batches(images(16), batch_size=16, steps=EPOCHS * STEPS, seed=4, first_step=first * STEPS)

    numbers = {}
    for name in names:
        with devices.fitting():
            keras.utils.set_random_seed(1)  # Seeds the dropout.
            model = keras.saving.load_model(start / f"{name}.keras", compile=False)
            # One of them by two rates.
            slower = len(model.backbone.trainable_variables) if name == "CIDER" else 0
            model.compile(optimizer(EPOCHS * STEPS, slower))
            model, history = training.fit(
                model,
                denoiser_batches if name == "denoiser" else classifier_batches,
                epochs=EPOCHS,
                steps_per_epoch=STEPS,
                folder=out.with_suffix(f".{name}"),
                interval=0.0,
            )
            for place, weight in enumerate(model.weights):
                numbers[f"{name}/{place}/{weight.path}"] = ops.convert_to_numpy(weight)
            numbers |= {f"{name}/{term}": np.array(values) for term, values in history.items()}
            model.save(out.with_suffix(f".{name}.keras"))
    rng = np.random.default_rng(6)
    # Seven images do not divide among two devices.
    condition = label_mixup.condition_rows(label_mixup.choose_classes(7, CLASSES, rng=rng), CLASSES, rng=rng)
    with devices.inference():
        model = keras.saving.load_model(start / "denoiser.keras", compile=False)
        job = ImageSampler(model, SHAPE, sampler=samplers.ddpm, num_steps=3, guidance=1.5, clip=1.0, seed=3)
        numbers["sample"] = job.images(condition)
    np.savez(out, allow_pickle=False, **numbers)
    devices.wait()


def timed(out, recipe, settings):
    from kood.recipe import load
    from tests.conftest import Cell

    devices = backends.obtain("auto")
    here = out.with_name(f"{out.name}-{devices.rank}")
    cell = Cell(load(recipe, settings), here)
    with devices.fitting():
        cell.stages["diffusion"].make(here, cell.work)
    model = keras.saving.load_model(here / "denoiser.keras", compile=False)
    np.savez(here.with_suffix(".npz"), allow_pickle=False, **{w.path: ops.convert_to_numpy(w) for w in model.weights})
    devices.wait()


class Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == LONGER // 2 - 1:
            raise KeyboardInterrupt


def stage(folder, start, name, *, stopped=False, any_backend=False):
    """Trains a model as a stage of a run, if it is not there yet."""

    def batches(first):
        if name == "denoiser":
            return labelled_batches(
                images(32), batch_size=16, steps=LONGER * OF_EACH, seed=4,
                first_step=first * OF_EACH,
            )  # fmt: skip
        return training_batches(
            images(32), None, batch_size=16, outliers_per_batch=0, epochs=LONGER, seed=2,
            first_epoch=first,
        )[0]  # fmt: skip

    def make(where):
        keras.utils.set_random_seed(1)  # Seeds the dropout.
        model = keras.saving.load_model(start / f"{name}.keras", compile=False)
        model.compile(optimizer(LONGER * OF_EACH))
        model, history = training.fit(
            model,
            batches,
            epochs=LONGER,
            steps_per_epoch=OF_EACH,
            folder=where,
            callbacks=[Stop() if stopped else None],
            interval=0.0,
        )
        model.save(where / "model.keras")
        numbers = {f"{i}/{w.path}": ops.convert_to_numpy(w) for i, w in enumerate(model.weights)}
        if name == "denoiser":
            numbers["seed"] = ops.convert_to_numpy(model.seed_generator.state).astype("int64")
        numbers["iterations"] = ops.convert_to_numpy(model.optimizer.iterations)
        np.savez(where / "numbers.npz", allow_pickle=False, **numbers)
        return {"history": history}

    folder.mkdir(exist_ok=True)
    backend = keras.backend.backend()
    with Run(folder / "run", backend=backend, any_backend=any_backend).held() as run:
        made = run.ensure(name, {"backend": backend}, make)
    found = {"folder": str(made.folder), "cached": made.cached, "backends": made.backends, **made.facts}
    (folder / f"{name}.json").write_text(json.dumps(found))


def stop(folder, start, names):
    for name in names:
        with contextlib.suppress(KeyboardInterrupt):
            stage(folder, start, name, stopped=True)
        stage(folder / "whole", start, name)


def resume(folder, start, names):
    for name in names:
        stage(folder, start, name, any_backend=True)


def main(commands):
    if keras.backend.backend() == "torch":
        from torch import distributed

        # What is registered first runs last.
        atexit.register(lambda: print(f"joined at the end: {distributed.is_initialized()}"))
    # Before anything is computed, or the CPU cannot be split any more.
    backends.obtain("auto", most=max([int(rest[0]) for what, *rest in commands if what == "train"], default=1))
    for what, *rest in commands:
        if what == "train":
            devices = backends.obtain(int(rest[0]))
            out, start = map(Path, rest[1:3])
            train(devices, out.with_name(f"{out.name}-{devices.rank}.npz"), start, rest[3:])
        elif what == "make":
            make(Path(rest[0]))
        else:
            {"stop": stop, "resume": resume, "timed": timed}[what](*map(Path, rest[:2]), rest[2:])


if __name__ == "__main__":
    main([list(command) for more, command in itertools.groupby(sys.argv[1:], lambda word: word != "+") if more])
