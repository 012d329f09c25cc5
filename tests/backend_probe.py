"""Run in a process of its own under one Keras backend: writes the numbers that must agree across backends.

python -m tests.backend_probe make FOLDER    writes models; with names of heads, those of these alone
python -m tests.backend_probe read FOLDER    loads them and writes numbers-BACKEND.npz

Several of them, with a + between them, go one after another in the same process.
"""

import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
from keras import ops

from kood import heads, losses, registry
from kood.classifier import Classifier
from kood.data import ImageSet
from kood.data.batches import training_batches
from kood.diffusion import label_mixup, samplers
from kood.diffusion.denoiser import Denoiser
from kood.diffusion.sampling import ImageSampler
from kood.nets import denoisers
from kood.outputs import forward_of
from kood.scorer import Scorer, applicable

backbones = SimpleNamespace(**registry.things("backbones"))
SHAPE, CLASSES = (8, 8, 1), 4
#: Of which every score is made, and whose training goes on: a head without and with a state of its own, and one of a
#: classifier that learns rotations.
TRAINED = ("Softmax", "AdaCos", "CosFace")


def images(count=24):
    rng = np.random.default_rng(0)
    return ImageSet(
        rng.integers(0, 256, (count, *SHAPE)).astype("uint8"), np.arange(count, dtype="int64") % CLASSES, tuple("abcd")
    )


def batches(epochs):
    outliers = ImageSet(np.random.default_rng(1).integers(0, 256, (20, *SHAPE)).astype("uint8"))
    return training_batches(images(), outliers, batch_size=8, outliers_per_batch=4, epochs=epochs, seed=2)[0]


def one_step(model):
    model.fit(batches(1).take(1), epochs=1, steps_per_epoch=1, shuffle=False, verbose=0)


def make(folder, *names):
    keras.utils.set_random_seed(0)
    for name in names or heads.__all__:
        # Two of them learn rotations, one told how many rows are outliers and one not.
        turning = {"CosFace": {"rotation": 0.7, "outlier_rows": 4}, "Softmax": {"rotation": 0.7}}.get(name, {})
        network = backbones.small_cnn(SHAPE, features=16)
        model = Classifier(network, getattr(heads, name)(CLASSES), "outlier_exposure", **turning)
        model.build((None, *SHAPE))
        if name in TRAINED:
            model.compile(keras.optimizers.AdamW(1e-3, use_ema=True, ema_momentum=0.9))
            one_step(model)
        model.save(folder / f"{name}.keras")
    if names:
        return
    for name, prediction, network in (
        ("mlp", "epsilon", denoisers.mlp(SHAPE, CLASSES, width=32, depth=2)),
        ("unet", "v", denoisers.unet(SHAPE, CLASSES, width=8, multipliers=(1, 2), blocks=1, attention=(4,))),
    ):
        rng = np.random.default_rng(3)
        for weight in network.weights:  # The output layer starts at zero, which would hide every difference.
            weight.assign(weight + 0.05 * rng.normal(size=weight.shape))
        Denoiser(network, num_steps=100, prediction=prediction).save(folder / f"{name}.keras")


def read(folder):
    numbers, measured = {}, set()
    batch = {key: np.asarray(value) for key, value in next(iter(batches(1))).items()}
    for key, value in batch.items():
        numbers[f"batch/{key}"] = value
    for name in [name for name in heads.__all__ if (folder / f"{name}.keras").exists()]:
        model = keras.saving.load_model(folder / f"{name}.keras", compile=name in TRAINED)
        forward = forward_of(model, ["rotation"] if model.rotation else [])
        outputs = {key: ops.convert_to_numpy(value) for key, value in forward(batch["image"]).items()}
        numbers |= {f"{name}/{key}": value for key, value in outputs.items()}
        terms = model.loss_terms(batch, training=False)
        numbers |= {f"{name}/{key}": ops.convert_to_numpy(value) for key, value in terms.items()}
        labels = batch["label"].argmax(1)
        # Each score once: against float64 they all stand in their own tests.
        for score in set(applicable(outputs)) - measured if name in TRAINED else ():
            try:
                scorer = Scorer(score).fit(outputs, labels, model.head)
            except ValueError:
                continue  # Twelve images do not determine it.
            numbers[f"{name}/score/{score}"] = ops.convert_to_numpy(scorer(outputs))
            measured.add(score)
        if name in TRAINED:
            numbers[f"{name}/iterations"] = ops.convert_to_numpy(model.optimizer.iterations)
        if name not in TRAINED:  # The gradients of the other heads stand against float64 in test_heads.py.
            continue
        # A step of plain gradient descent shows the gradients of every loss term.
        before = [ops.convert_to_numpy(w) for w in model.trainable_weights]
        model.compile(keras.optimizers.SGD(1.0))
        one_step(model)
        for i, (old, new) in enumerate(zip(before, model.trainable_weights, strict=True)):
            numbers[f"{name}/gradient/{i}"] = old - ops.convert_to_numpy(new)
        # And the optimizer's own state goes on from where the other backend left it.
        again = keras.saving.load_model(folder / f"{name}.keras")
        one_step(again)
        for i, weight in enumerate(again.trainable_weights):
            numbers[f"{name}/resumed/{i}"] = ops.convert_to_numpy(weight)
    rng = np.random.default_rng(4)
    condition = label_mixup.condition_rows(label_mixup.choose_classes(6, CLASSES, rng=rng), CLASSES, rng=rng)
    noise = rng.standard_normal((6, *SHAPE)).astype("float32")
    for name in [name for name in ("mlp", "unet") if (folder / f"{name}.keras").exists()]:
        model = keras.saving.load_model(folder / f"{name}.keras", compile=False)
        sampler = {"mlp": samplers.ddim, "unet": samplers.dpm_solver}[name]
        job = ImageSampler(model, SHAPE, sampler=sampler, num_steps=10, guidance=1.5, clip=None)
        numbers[f"{name}/{sampler.__name__}"] = job.images(condition, noise=noise)
    logits = np.random.default_rng(5).normal(size=(50, CLASSES)).astype("float32") * 20
    numbers["exposure/kl"] = ops.convert_to_numpy(losses.outlier_exposure(logits))
    numbers["exposure/energy"] = ops.convert_to_numpy(losses.energy_exposure(logits))
    np.savez(folder / f"numbers-{keras.backend.backend()}.npz", allow_pickle=False, **numbers)


if __name__ == "__main__":
    for more, words in itertools.groupby(sys.argv[1:], lambda word: word != "+"):
        if more:
            what, folder, *names = words
            {"make": make, "read": read}[what](Path(folder), *names)
