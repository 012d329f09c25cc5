"""The stages that make outliers: the diffusion model, label mixup, and the controls."""

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kood import registry, training
from kood.data import ImageSet
from kood.data.batches import labelled_batches
from kood.data.images import quantize
from kood.data.outliers import noise_images, pixel_mixup
from kood.data.stored import write_images
from kood.diffusion import label_mixup
from kood.diffusion.denoiser import Denoiser
from kood.pipeline.build import build_network, mixed_groups
from kood.pipeline.work import Work
from kood.report import fit_callback
from kood.report.sheet import write_sheet
from kood.runs import Stage

__all__ = ["epochs_of", "make_outliers", "train_denoiser"]


def train_denoiser(work: Work) -> Stage:
    """Fits the class-conditional diffusion model on the training images."""
    settings, seed = work.recipe.diffusion, work.seed("diffusion")

    def make(folder: Path) -> dict[str, Any]:
        images = work.data("train")
        classes = len(images.class_names)
        epochs, per_epoch = epochs_of(settings.steps)
        steps = epochs * per_epoch
        keras.utils.set_random_seed(seed)
        model = Denoiser(
            build_network(work.recipe, classes),
            schedule=settings.schedule,
            num_steps=settings.num_steps,
            prediction=settings.prediction,
            label_dropout=settings.label_dropout,
            seed=seed,
            name="denoiser",
        )
        model.compile(
            optimizer=training.optimizer(
                steps,
                learning_rate=settings.learning_rate,
                clip_norm=settings.clip_norm,
                ema=settings.ema,
                precision=settings.precision,
            ),
            steps_per_execution=training.steps_per_call(per_epoch),
        )
        with work.progress.stage("diffusion", epochs) as stage:
            model, history = training.fit(
                model,
                lambda first: labelled_batches(
                    images, num_classes=classes, batch_size=settings.batch_size, steps=steps, seed=seed,
                    first_step=first * per_epoch, augment=work.recipe.data.augment,
                ),
                epochs=epochs,
                steps_per_epoch=per_epoch,
                folder=folder,
                callback=fit_callback(stage),
            )  # fmt: skip
        model.save(folder / "denoiser.keras")
        return {"history": history, "parameters": model.count_params()}

    decides = {
        "diffusion": settings.model_dump(),
        "augment": work.recipe.data.augment,
        "train": work.digest("train"),
        "seed": seed,
        "backend": keras.backend.backend(),
    }
    return work.stage("diffusion", decides, make, on=work.devices.fitting)


def epochs_of(steps: int) -> tuple[int, int]:
    """Epochs, and steps of each, that make up at least so many training steps.

    Progress is shown and checkpoints are written between epochs, so there are about twenty, and none is longer than 250
    steps.
    """
    epochs = max(1, min(20, steps // 10), math.ceil(steps / 250))
    return epochs, math.ceil(steps / epochs)


def make_outliers(work: Work) -> list[Stage]:
    """Makes the outliers of each source that the recipe uses."""
    makers = {"label_mixup": _label_mixup, "pixel_mixup": _pixel_mixup, "noise": _noise, "real": _real}
    return [makers[name](work) for name in work.recipe.outliers.use]


def _label_mixup(work: Work) -> Stage:
    settings, seed, shape = work.recipe.outliers.label_mixup, work.seed("label_mixup"), work.recipe.data.shape
    count = work.recipe.outliers.count_of("label_mixup")
    sampler = registry.obtain("samplers", settings.sampler)
    how: dict[str, Any] = {
        "sampler": sampler, "num_steps": settings.sampling_steps, "mix": settings.mix, "guidance": settings.guidance,
        "clip": settings.clip or None, "seed": seed,
    }  # fmt: skip

    def make(folder: Path) -> dict[str, Any]:
        names = work.data("train").class_names
        denoiser = keras.saving.load_model(work.stages["diffusion"].folder / "denoiser.keras", compile=False)
        rng = np.random.default_rng(seed)
        mixtures = label_mixup.mixtures(
            count,
            len(names),
            classes=settings.classes,
            groups=mixed_groups(work.recipe, names),
            weight=settings.weight,
            alpha=settings.alpha,
            rng=rng,
        )
        conditions = label_mixup.sweep(len(names), rng=rng)
        rows, columns = conditions.shape[:2]
        # One start noise along a row of the contact sheet, so that only the mixture changes.
        noise = np.repeat(rng.standard_normal((rows, *shape)).astype("float32"), columns, axis=0)
        with work.progress.stage("label_mixup", count, unit="image") as stage:
            images = label_mixup.sample(denoiser, mixtures, shape, progress=stage.update, **how)
            swept = label_mixup.sample(denoiser, conditions.reshape(rows * columns, -1), shape, noise=noise, **how)
        np.save(folder / "mixtures.npy", mixtures)
        facts = write_images(folder, "outliers", ImageSet(quantize(images)))
        write_sheet(folder / "sheet.png", quantize(swept).reshape(rows, columns, *shape), conditions, list(names))
        return facts

    decides = {
        "mixup": settings.model_dump(),
        "count": count,
        "diffusion": work.stages["diffusion"].key,
        "seed": seed,
        "backend": keras.backend.backend(),
    }
    return work.stage("label_mixup", decides, make, on=work.devices.inference)


def _pixel_mixup(work: Work) -> Stage:
    settings, seed = work.recipe.outliers.pixel_mixup, work.seed("pixel_mixup")
    count = work.recipe.outliers.count_of("pixel_mixup")

    def make(folder: Path) -> dict[str, Any]:
        train = work.data("train")
        images = pixel_mixup(
            np.asarray(train.images), train.known_labels, count, weight=settings.weight, alpha=settings.alpha,
            rng=np.random.default_rng(seed),
        )  # fmt: skip
        return write_images(folder, "outliers", ImageSet(images))

    return work.stage(
        "pixel_mixup", {**settings.model_dump(), "count": count, "train": work.digest("train"), "seed": seed}, make
    )


def _noise(work: Work) -> Stage:
    settings, seed, shape = work.recipe.outliers.noise, work.seed("noise"), work.recipe.data.shape
    count = work.recipe.outliers.count_of("noise")

    def make(folder: Path) -> dict[str, Any]:
        images = noise_images(count, shape, kind=settings.kind, scale=settings.scale, rng=np.random.default_rng(seed))
        return write_images(folder, "outliers", ImageSet(images))

    return work.stage("noise", {**settings.model_dump(), "count": count, "shape": shape, "seed": seed}, make)


def _real(work: Work) -> Stage:
    def make(folder: Path) -> dict[str, Any]:
        return write_images(folder, "outliers", ImageSet(np.asarray(work.data("outliers.real").images)))

    return work.stage("real", {"images": work.digest("outliers.real")}, make)
