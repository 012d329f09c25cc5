"""Run in a process of its own under one Keras backend: stages, stopped on the way or brought to their end.

python -m tests.resume_probe FOLDER stop MODEL...   trains two of four epochs under this backend; in FOLDER/whole all
python -m tests.resume_probe FOLDER any MODEL...    makes the stages from what another backend left; FOLDER/MODEL.json
"""

import contextlib
import json
import sys
from pathlib import Path

import keras
import numpy as np
from keras import ops

from kood import training
from kood.data.batches import labelled_batches, training_batches
from kood.runs import Run
from tests.device_probe import CLASSES, images, optimizer

EPOCHS, STEPS = 4, 2


class Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


def batches(name):
    if name == "denoiser":
        return lambda first: labelled_batches(
            images(32), num_classes=CLASSES, batch_size=16, steps=EPOCHS * STEPS, seed=4, first_step=first * STEPS
        )
    return lambda first: training_batches(
        images(32), None, num_classes=CLASSES, batch_size=16, outliers_per_batch=0, epochs=EPOCHS, seed=2,
        first_epoch=first,
    )[0]  # fmt: skip


def main(folder, what, name):
    def make(where):
        keras.utils.set_random_seed(1)  # Seeds the dropout.
        model = keras.saving.load_model(folder / f"{name}.keras", compile=False)
        model.compile(optimizer(EPOCHS * STEPS))
        model, history = training.fit(
            model,
            batches(name),
            epochs=EPOCHS,
            steps_per_epoch=STEPS,
            folder=where,
            callbacks=[Stop() if what == "stop" else None],
            interval=0.0,
        )
        model.save(where / "model.keras")
        numbers = {f"{i}/{w.path}": ops.convert_to_numpy(w) for i, w in enumerate(model.weights)}
        if name == "denoiser":
            numbers["seed"] = ops.convert_to_numpy(model.seed_generator.state).astype("int64")
        numbers["iterations"] = ops.convert_to_numpy(model.optimizer.iterations)
        np.savez(where / "numbers.npz", allow_pickle=False, **numbers)
        return {"history": history}

    backend = keras.backend.backend()
    with Run(folder / "run", backend=backend, any_backend=what == "any").held() as run:
        stage = run.ensure(name, {"backend": backend}, make)
    found = {"folder": str(stage.folder), "cached": stage.cached, "backends": stage.backends, **stage.facts}
    (folder / f"{name}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    for one in sys.argv[3:]:
        if sys.argv[2] == "stop":
            with contextlib.suppress(KeyboardInterrupt):
                main(Path(sys.argv[1]), "stop", one)
            main(Path(sys.argv[1]) / "whole", "make", one)
        else:
            main(Path(sys.argv[1]), sys.argv[2], one)
