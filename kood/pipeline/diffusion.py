"""The stage that trains the diffusion model."""

import math
import time
from pathlib import Path
from typing import Any

import keras

from kood import training
from kood.data.batches import labelled_batches
from kood.diffusion.denoiser import Denoiser
from kood.pipeline.build import build_network
from kood.pipeline.precision import faster, seconds_of_a_step
from kood.pipeline.resident import resident_images
from kood.pipeline.work import Work
from kood.recipe.sections import Diffusion
from kood.report import fit_callback
from kood.runs import Stage
from kood.timing import Pace, TimeBudget

__all__ = ["epochs_of", "train_denoiser"]


def train_denoiser(work: Work) -> Stage:
    """Fits the class-conditional diffusion model on the training images."""
    settings, seed = work.recipe.diffusion, work.seed("diffusion", work.recipe.diffusion.seed)
    unit, amount = settings.budget
    seconds = work.budget.of("diffusion", work.recipe)
    timed = unit == "minutes" or seconds is not None

    def make(folder: Path) -> dict[str, Any]:
        began, limit = time.monotonic(), None
        images = work.data("train")
        classes = len(images.class_names)
        epochs, per_epoch = _length(settings, len(images))
        steps = epochs * per_epoch
        held = resident_images(work, work.recipe.data.augment, images)

        def batches(first: int):
            return labelled_batches(
                images, num_classes=classes, batch_size=settings.batch_size, steps=steps, seed=seed,
                first_step=first * per_epoch, augment=work.recipe.data.augment,
                resident=held is not None,
            )  # fmt: skip

        def compiled(precision: str, per_call: int) -> Denoiser:
            keras.utils.set_random_seed(seed)
            model = Denoiser(
                build_network(work.recipe, classes, precision),
                schedule=settings.schedule,
                num_steps=settings.num_steps,
                prediction=settings.prediction,
                label_dropout=settings.label_dropout,
                seed=seed,
                min_snr=settings.min_snr,
                name="denoiser",
            )
            model.compile(
                optimizer=training.optimizer(
                    None if timed else steps,
                    learning_rate=settings.learning_rate,
                    clip_norm=settings.clip_norm,
                    ema=settings.ema,
                    precision=precision,
                ),
                steps_per_execution=per_call,
            )
            return model

        arithmetic: dict[str, Any] = {"precision": settings.precision}
        if settings.precision == "auto":
            probe = labelled_batches(images, num_classes=classes, batch_size=settings.batch_size, steps=4, seed=seed)
            arithmetic = faster(lambda precision: seconds_of_a_step(compiled(precision, 1), probe), folder)
            keras.utils.clear_session()
        per_call = training.steps_per_call(per_epoch)
        # The rate of a time budget moves, and the time is looked at, between calls.
        model = compiled(arithmetic["precision"], min(per_call, 5) if timed else per_call)
        if unit == "minutes" and (seconds is None or 60.0 * amount <= seconds):
            limit = TimeBudget(60.0 * amount, settings.learning_rate)
        elif seconds is not None:
            limit = TimeBudget(seconds, settings.learning_rate, steps=None if unit == "minutes" else steps, since=began)
        pace = Pace(settings.batch_size)
        shown = limit.shown if limit else {"total": epochs}
        with work.progress.stage("diffusion", **shown) as stage:
            model, history = training.fit(
                model,
                batches,
                epochs=epochs,
                steps_per_epoch=per_epoch,
                folder=folder,
                log=folder / "history.csv",
                board=work.board("diffusion"),
                callbacks=[fit_callback(stage, position=(lambda: limit.spent) if limit else None), pace],
                budget=limit,
                images=held,
            )
        model.save(folder / "denoiser.keras")
        trained = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
        return {"history": history, "parameters": model.count_params(), "steps": trained, **arithmetic, **pace.facts}

    decides = {
        "diffusion": settings.model_dump(exclude={"seed"}),
        "augment": work.recipe.data.augment,
        "train": work.digest("train"),
        "seed": seed,
        "backend": keras.backend.backend(),
    }
    return work.stage("diffusion", decides, make, on=work.devices.fitting)


def _length(settings: Diffusion, images: int) -> tuple[int, int]:
    """Epochs, and steps of each; a budget in minutes ends the training before the last of them."""
    unit, amount = settings.budget
    if unit == "minutes":
        return 10**6, 100
    return epochs_of(math.ceil(amount * images / settings.batch_size) if unit == "epochs" else int(amount))


def epochs_of(steps: int) -> tuple[int, int]:
    """Epochs, and steps of each, that make up at least so many training steps.

    Progress is shown and checkpoints are written between epochs, so there are about twenty, and none is longer than 250
    steps.
    """
    epochs = max(1, min(20, steps // 10), math.ceil(steps / 250))
    return epochs, math.ceil(steps / epochs)
