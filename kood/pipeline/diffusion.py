"""The stages of the diffusion model: its training, and the images of one class each that are sampled from it."""

import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kood import training
from kood.data import ImageSet
from kood.data.batches import labelled_batches, raising
from kood.data.stored import read_images, write_blocks
from kood.diffusion import schedule as schedules
from kood.diffusion.collected import Collected
from kood.diffusion.denoiser import Denoiser
from kood.diffusion.sampling import Start, draw_rows, image_sampler, resized
from kood.pipeline.build import build_denoiser
from kood.pipeline.fitting import augmentations, decided, fitted, remembered, resident_images
from kood.pipeline.precision import faster, seconds_of_a_step
from kood.pipeline.prepare import Rows
from kood.pipeline.stage import Stage, Work
from kood.recipe import Recipe, sections
from kood.section import Sampling
from kood.training import TimeBudget

__all__ = ["Diffusion", "Pure", "apportioned", "epochs_of"]

#: What a model draws that had time for fewer passes over the images than these is said to be next to noise.
PASSES = 10
#: Classes of validation images are of one size where the largest is at most so many times the smallest.
EVEN = 1.25
#: So much of an image, sqrt(alpha-bar), may be left at the last step without a word.
LEFT = 0.05


class Diffusion(Stage):
    """The class-conditional diffusion model, fitted to the training images."""

    kind, version, on = "diffusion", 4, "fitting"

    def __init__(self, recipe: Recipe, data: Rows):
        super().__init__(recipe)
        self.data = data

    @property
    def _seed(self) -> int:
        return self.seed("diffusion", self.recipe.diffusion.seed)

    def decides(self) -> dict[str, Any]:
        return {
            "diffusion": self.recipe.diffusion.model_dump(exclude={"seed", "image_shape"}),
            **({"drawn": shape} if (shape := self.recipe.drawn_shape) != self.recipe.data.shape else {}),
            "augment": decided(self.recipe, self.data, self.recipe.data.augment),
            "train": self.data.digest("train"),
            "seed": self._seed,
            "backend": keras.backend.backend(),
        }

    def uses(self) -> list[tuple[str, str]]:
        augment = [("augmentations", name) for name in self.recipe.data.augment]
        return [("denoisers", self.recipe.diffusion.denoiser), *augment]

    def make(self, folder: Path, work: Work) -> dict[str, Any]:
        began, settings, seed = time.monotonic(), self.recipe.diffusion, self._seed
        (unit, amount), seconds = settings.budget, work.budget.of(self.kind, self.recipe)
        timed = unit == "minutes" or seconds is not None
        images = resized(self.data.images("train"), self.recipe.drawn_shape)
        classes = len(images.class_names)
        epochs, per_epoch = _length(settings, len(images))
        steps = epochs * per_epoch
        augment = augmentations(self.recipe, self.data, self.recipe.data.augment, self.recipe.drawn_shape)
        held = resident_images(self.recipe, augment, images)

        def batches(first: int):
            return labelled_batches(
                images, batch_size=settings.batch_size, steps=steps, seed=seed,
                first_step=first * per_epoch, augment=augment, resident=held is not None,
            )  # fmt: skip

        def compiled(precision: str, per_call: int) -> Denoiser:
            model = build_denoiser(self.recipe, classes, precision, seed)
            optimizer = training.optimizer(
                None if timed else steps, learning_rate=settings.learning_rate, clip_norm=settings.clip_norm,
                ema=settings.ema, precision=precision,
            )  # fmt: skip
            model.compile(optimizer=optimizer, steps_per_execution=per_call)
            return model

        arithmetic: dict[str, Any] = {"precision": settings.precision}
        if settings.precision == "auto":
            probe = labelled_batches(images, batch_size=settings.batch_size, steps=4, seed=seed)
            with raising():
                arithmetic = faster(lambda precision: seconds_of_a_step(compiled(precision, 1), probe), folder)
            keras.utils.clear_session()
        per_call, limit = training.steps_per_call(per_epoch), None
        # The rate of a time budget moves, and the time is looked at, between calls.
        model = compiled(arithmetic["precision"], min(per_call, 5) if timed else per_call)
        if unit == "minutes" and (seconds is None or 60.0 * amount <= seconds):
            limit = TimeBudget(60.0 * amount, settings.learning_rate, training.shared_clock())
        elif seconds is not None:
            limit = TimeBudget(seconds, settings.learning_rate, steps=None if unit == "minutes" else steps, since=began)
        model, facts, trained = fitted(
            self, work, folder, model, batches, epochs=epochs, steps_per_epoch=per_epoch, rows=settings.batch_size,
            limit=limit, images=held,
        )  # fmt: skip
        model.save(folder / "denoiser.keras")
        training.remove_checkpoint(folder)
        passes = trained * settings.batch_size / len(images)
        facts |= {"steps": trained, "passes": round(passes, 2), "timed": timed, **arithmetic}
        return {**facts, "image_shape": list(self.recipe.drawn_shape)}

    @property
    def told(self) -> list[str]:
        return [*super().told, "image_shape"]

    @property
    def warnings(self) -> list[str]:
        passes, warned = self.facts["passes"], self._unnoised()
        if not self.recipe.quick:  # The lengths of a smoke run are not the user's.
            warned += remembered("diffusion.ema", self.recipe.diffusion.ema, self.facts["steps"])
        if passes >= PASSES or not self.facts["timed"]:
            return warned
        kept = ["diffusion.minutes"] if self.recipe.diffusion.minutes is not None else []
        kept += ["budget.minutes", "budget.diffusion"] if self.recipe.budget.minutes is not None else []
        return [
            *warned,
            f"diffusion: the time was enough for {self.facts['steps']} steps, in which each image was seen {passes:g} "
            f"times; what such a model draws is little more than noise; raise {' or '.join(kept)}, or take a smaller "
            'denoiser (on a GPU name diffusion.precision: "auto" compiles the step three times)',
        ]

    def _unnoised(self) -> list[str]:
        """Says so where the last step of the schedule leaves of the images what sampling does not begin with."""
        settings = self.recipe.diffusion
        left = float(np.sqrt(getattr(schedules, settings.schedule)(settings.num_steps)[-1]))
        if left <= LEFT:
            return []
        return [
            f"diffusion.schedule = {settings.schedule!r}: after {settings.num_steps} steps {left:.0%} of an image is "
            'left, and sampling begins with noise alone; take 1000 steps, or schedule = "cosine"'
        ]

    def denoiser(self) -> keras.Model:
        """The trained model."""
        return keras.saving.load_model(self.folder / "denoiser.keras", compile=False)


class Pure(Stage):
    """Labelled samples of one class each: "pure" to train on, "pure_audit" to be tested on.

    Those to train on are of every class equally often. The others stand beside validation images, and where these are
    of some classes more often, so are they: else a hard class would count as what is generated.
    """

    version, on = 1, "inference"

    def __init__(self, recipe: Recipe, data: Rows, diffusion: Diffusion, kind: str):
        self.kind = kind
        super().__init__(recipe)
        self.data, self.diffusion = data, diffusion

    @property
    def _count(self) -> int:
        settings = self.recipe.pure_samples
        return settings.audit_count if self.kind == "pure_audit" else settings.count or self.recipe.outliers.count

    @property
    def _sizes(self) -> list[int]:
        """In what proportion the classes stand, where they are not of one size; else empty."""
        if self.kind != "pure_audit":
            return []
        beside = self.data.images("validation")
        sizes = np.bincount(beside.known_labels, minlength=len(beside.class_names))
        return [] if sizes.max() <= EVEN * sizes.min() else sizes.tolist()

    def decides(self) -> dict[str, Any]:
        return {
            **({"sizes": sizes} if (sizes := self._sizes) else {}),
            "sampling": {key: getattr(self.recipe.pure_samples, key) for key in Sampling.model_fields},
            "count": self._count,
            "diffusion": self.diffusion.key,
            "images": self.data.digest("train"),
            "seed": self.seed(self.kind),
            "backend": keras.backend.backend(),
        }

    def uses(self) -> list[tuple[str, str]]:
        return [("samplers", self.recipe.pure_samples.sampler)]

    def make(self, folder: Path, work: Work) -> dict[str, Any]:
        settings, seed, count = self.recipe.pure_samples, self.seed(self.kind), self._count
        train, shape, drawn = self.data.images("train"), self.recipe.data.shape, self.recipe.drawn_shape
        classes, start = len(train.class_names), None
        labels = np.random.default_rng(seed).permutation(apportioned(count, self._sizes or [1] * classes))
        condition = np.eye(classes, dtype="float32")[labels]
        if settings.start == "image":
            chosen = draw_rows(train.known_labels, labels, np.random.default_rng([seed, 0, 1]))
            start = Start(resized(train, drawn).images, chosen)
        sampler = image_sampler(self.diffusion.denoiser(), drawn, settings, self.seed(f"{self.kind} noise"))
        over = work.budget.timer(self.kind, self.recipe)
        with work.progress.bar(self.role, count, unit="image") as bar:
            made = Collected(count, bar.update, shape)
            shards = sampler.shards(folder / "shards", condition, start=start, progress=made.show_part)
            made.take(shards, condition, over=over)
        facts = write_blocks(
            folder, "pure", made.blocks(), count=made.kept, image_shape=shape, labels=labels[: made.kept],
            class_names=train.class_names,
        )  # fmt: skip
        shutil.rmtree(folder / "shards")
        return {**facts, **made.facts}

    def images(self) -> ImageSet:
        """The samples and their classes."""
        return read_images(self.folder, "pure", self.facts)


def apportioned(count: int, sizes: Sequence[int]) -> np.ndarray:
    """So many labels (count,) in the proportion of the sizes of the classes, the odd ones to the largest remainders."""
    exact = count * np.asarray(sizes, float) / sum(sizes)
    numbers = np.floor(exact).astype(int)
    numbers[np.argsort(numbers - exact, kind="stable")[: count - numbers.sum()]] += 1
    labels = np.repeat(np.arange(len(sizes)), numbers)
    nth = np.concatenate([np.arange(number) for number in numbers])
    return labels[np.lexsort((labels, nth))]  # One of each class in turn.


def _length(settings: sections.Diffusion, images: int) -> tuple[int, int]:
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
