"""The stages that sample from the diffusion model: label mixtures, and images of one class each."""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kood import registry
from kood.data import ImageSet
from kood.data.images import quantize
from kood.data.stored import write_blocks
from kood.diffusion import label_mixup
from kood.diffusion.classifier_guidance import away_from
from kood.diffusion.sampling import ImageSampler, Shard, Start, draw_rows
from kood.errors import UserError
from kood.pipeline.build import mixed_groups
from kood.pipeline.judge import Judge
from kood.pipeline.work import Work
from kood.recipe.outlier_sections import LabelMixup, Sampling
from kood.report.progress import Stage as Progress
from kood.report.sheet import write_sheet
from kood.runs import Stage

__all__ = ["image_sampler", "make_label_mixup", "make_pure_samples"]

#: A filter may draw so many times the images it is to keep.
MOST_DRAWN = 20


def image_sampler(
    denoiser,
    image_shape: tuple[int, int, int],
    settings: Sampling,
    seed: int,
    mix: str = "condition",
    push: Callable | None = None,
) -> ImageSampler:
    """The sampler that a table of the recipe describes."""
    return ImageSampler(
        denoiser,
        image_shape,
        sampler=registry.obtain("samplers", settings.sampler),
        num_steps=settings.sampling_steps,
        mix=mix,
        guidance=settings.guidance,
        clip=settings.clip or None,
        level=settings.level if settings.start == "image" else None,
        push=push,
        seed=seed,
        batch_size=settings.batch_size,
    )


def make_label_mixup(work: Work) -> Stage:
    """Samples outliers under mixtures of labels, and keeps those that the judge is as unsure of as the recipe asks.

    A smoke run keeps all: its judge knows nothing.
    """
    settings, seed, shape = work.recipe.outliers.label_mixup, work.seed("label_mixup"), work.recipe.data.shape
    filters = settings.confidence is not None and not work.recipe.quick
    count = work.recipe.outliers.count_of("label_mixup")

    def make(folder: Path) -> dict[str, Any]:
        train = work.data("train")
        denoiser, judge = _denoiser(work), Judge.of(work) if settings.needs_judge else None
        sampler = image_sampler(
            denoiser, shape, settings, work.seed("label_mixup noise"), settings.mix, _push(denoiser, judge, settings)
        )
        keeps = _keeps(judge, settings) if filters else None
        draw = _mixture_drawer(work, judge)
        made, until = _Made(count), _until(work, "label_mixup")
        with work.progress.stage("label_mixup", count, unit="image") as progress:
            for number in range(MOST_DRAWN if filters else 1):
                chosen, condition = draw(np.random.default_rng([seed, number]))
                start = _start(settings, train, chosen[:, 0], np.random.default_rng([seed, number, 1]))
                shards = sampler.shards(
                    folder / "shards", condition, start=start, first_block=number * sampler.blocks_of(count),
                    progress=made.shower(progress),
                )  # fmt: skip
                if made.take(shards, keeps, condition, progress, until):
                    break
            else:
                shutil.rmtree(folder / "shards")
                raise UserError(_too_few(settings, made), exit_code=1)
            _write_sheet(folder / "sheet.png", sampler, train, settings, seed)
        np.save(folder / "mixtures.npy", np.concatenate(made.conditions))
        facts = write_blocks(folder, "outliers", made.blocks(), count=made.kept, image_shape=shape)
        shutil.rmtree(folder / "shards")
        return {**facts, **made.facts}

    decides = {
        "mixup": settings.model_dump(),
        "count": count,
        "diffusion": work.stages["diffusion"].key,
        "judge": work.stages["judge"].key if settings.needs_judge else None,
        "images": work.digest("train", "validation"),
        "seed": seed,
        "backend": keras.backend.backend(),
    }
    return work.stage("label_mixup", decides, make, on=work.devices.inference)


def make_pure_samples(work: Work) -> Stage | None:
    """Samples labelled images of one class each, as the recipe uses them: the stage "pure" to train on, which is
    returned, and the stage "pure_audit" to be tested on."""
    settings = work.recipe.pure_samples
    if "audit" in settings.use:
        _pure(work, "pure_audit", settings.audit_count)
    return _pure(work, "pure", settings.count or work.recipe.outliers.count) if settings.trains else None


def _pure(work: Work, name: str, count: int) -> Stage:
    settings, seed, shape = work.recipe.pure_samples, work.seed(name), work.recipe.data.shape

    def make(folder: Path) -> dict[str, Any]:
        train = work.data("train")
        classes = len(train.class_names)
        labels = np.random.default_rng(seed).permutation(np.arange(count) % classes)
        condition = np.eye(classes, dtype="float32")[labels]
        start = _start(settings, train, labels, np.random.default_rng([seed, 0, 1]))
        sampler = image_sampler(_denoiser(work), shape, settings, work.seed(f"{name} noise"))
        made = _Made(count)
        with work.progress.stage(name, count, unit="image") as progress:
            shards = sampler.shards(folder / "shards", condition, start=start, progress=made.shower(progress))
            made.take(shards, None, condition, progress, _until(work, name))
        facts = write_blocks(
            folder, "pure", made.blocks(), count=made.kept, image_shape=shape, labels=labels[: made.kept],
            class_names=train.class_names,
        )  # fmt: skip
        shutil.rmtree(folder / "shards")
        return {**facts, **made.facts}

    decides = {
        "sampling": {key: getattr(settings, key) for key in Sampling.model_fields},
        "count": count,
        "diffusion": work.stages["diffusion"].key,
        "images": work.digest("train"),
        "seed": seed,
        "backend": keras.backend.backend(),
    }
    return work.stage(name, decides, make, on=work.devices.inference)


@dataclass
class _Made:
    """What a job has kept so far, as places in its shards; the images themselves stay on disk."""

    wanted: int
    drawn: int = 0
    kept: int = 0
    places: list[tuple[Path, np.ndarray]] = field(default_factory=list)
    conditions: list[np.ndarray] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        return self.kept >= self.wanted

    @property
    def facts(self) -> dict[str, Any]:
        # The median block: the first one waits for the compiler.
        rate = round(float(np.median(self.rates)), 1)
        return {
            "drawn": self.drawn, "kept": self.kept, "wanted": self.wanted, "drop_rate": 1.0 - self.kept / self.drawn,
            "images_per_second": rate,
        }  # fmt: skip

    def take(
        self,
        shards: Iterator[Shard],
        keeps: Callable | None,
        condition: np.ndarray,
        progress: Progress,
        until: Callable[[], bool],
    ) -> bool:
        """Takes of each shard what is wanted, until there is enough or the time is up; says whether it is one of the
        two."""
        first = 0
        for shard in shards:
            size = len(shard.images)
            rows = np.arange(size) if keeps is None else np.flatnonzero(keeps(shard.images))
            # What comes after the last one wanted was drawn for nothing and is not counted against the filter.
            if len(rows) > self.wanted - self.kept:
                rows = rows[: self.wanted - self.kept]
                size = int(rows[-1]) + 1
            self.drawn += size
            self.kept += len(rows)
            self.rates.append(len(shard.images) / max(shard.seconds, 1e-9))
            self.places.append((shard.path, rows))
            self.conditions.append(condition[first : first + len(shard.images)][rows])
            first += len(shard.images)
            progress.update(self.kept, self._terms())
            if self.is_full or (self.kept and until()):
                return True
        return False

    def shower(self, progress: Progress) -> Callable[[float], None]:
        """Shows the part of a block that is done, at the share that is kept."""

        def show(images: float) -> None:
            share = self.kept / self.drawn if self.drawn else 1.0
            progress.update(min(self.kept + images * share, self.wanted), self._terms())

        return show

    def _terms(self) -> dict[str, float]:
        terms = {"images/s": float(np.median(self.rates))} if self.rates else {}
        return {**terms, "dropped": 1.0 - self.kept / self.drawn} if self.kept < self.drawn else terms

    def blocks(self) -> Iterator[np.ndarray]:
        """The kept images, a shard at a time."""
        for path, rows in self.places:
            yield np.load(path, mmap_mode="r", allow_pickle=False)[rows]


def _denoiser(work: Work) -> keras.Model:
    return keras.saving.load_model(work.stages["diffusion"].folder / "denoiser.keras", compile=False)


def _until(work: Work, name: str) -> Callable[[], bool]:
    """Whether a sampling stage that begins now has used up the time that it may take."""
    seconds, began = work.budget.of(name, work.recipe), time.monotonic()
    return lambda: seconds is not None and time.monotonic() - began >= seconds


def _mixture_drawer(work: Work, judge: Judge | None) -> Callable:
    """The function that draws a job's classes and conditions from a generator."""
    settings, names = work.recipe.outliers.label_mixup, work.data("train").class_names
    count = work.recipe.outliers.count_of("label_mixup")
    groups, confused = mixed_groups(work.recipe, names), None
    if settings.pairs == "confused" and groups is None and judge is not None:
        held = work.data("validation")
        confused = label_mixup.confusion(judge.posteriors(held.images), held.known_labels)

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        chosen = label_mixup.choose_classes(
            count, len(names), classes=settings.classes, pairs=settings.pairs, groups=groups, confused=confused,
            rng=rng,
        )  # fmt: skip
        return chosen, label_mixup.condition_rows(
            chosen, len(names), weight=settings.weight, alpha=settings.alpha, rng=rng
        )

    return draw


def _keeps(judge: Judge | None, settings: LabelMixup) -> Callable[[np.ndarray], np.ndarray] | None:
    """The function of images that says which are kept, None where all are."""
    if settings.confidence is None or judge is None:
        return None
    low, high = settings.confidence

    def keeps(images: np.ndarray) -> np.ndarray:
        most = judge.posteriors(images).max(axis=1)
        return (most >= low) & (most <= high)

    return keeps


def _push(denoiser: keras.Model, judge: Judge | None, settings: LabelMixup) -> Callable | None:
    """The push away from what the judge knows, None where the recipe has none."""
    if judge is None or not settings.push:
        return None
    return away_from(judge.energy_gradient(), denoiser.alpha_bar, settings.push)


def _too_few(settings: LabelMixup, made: _Made) -> str:
    return (
        f"outliers.label_mixup.confidence = {settings.confidence} kept {made.kept} of {made.drawn} images "
        f"({made.kept / made.drawn:.1%}), but {made.wanted} are wanted; widen the range, or lower "
        "outliers.label_mixup.count"
    )


def _start(settings: Sampling, train: ImageSet, classes: np.ndarray, rng: np.random.Generator) -> Start | None:
    """Training images of the given classes to start from, where the recipe starts from images."""
    if settings.start == "noise":
        return None
    return Start(train.images, draw_rows(train.known_labels, classes, rng))


def _write_sheet(path: Path, sampler: ImageSampler, train: ImageSet, settings: LabelMixup, seed: int) -> None:
    """The contact sheet: one start along a row, so that only the mixture changes."""
    rng = np.random.default_rng([seed, 0, 2])
    conditions = label_mixup.sweep(len(train.class_names), rng=rng)
    rows, columns = conditions.shape[:2]
    noise = np.repeat(rng.standard_normal((rows, *sampler.image_shape)).astype("float32"), columns, axis=0)
    start = _start(settings, train, conditions[:, 0].argmax(axis=1), rng)
    if start is not None:
        start = Start(start.images, np.repeat(start.rows, columns))
    images = sampler.images(conditions.reshape(rows * columns, -1), noise=noise, start=start)
    shaped = quantize(images).reshape(rows, columns, *sampler.image_shape)
    write_sheet(path, shaped, conditions, list(train.class_names))
