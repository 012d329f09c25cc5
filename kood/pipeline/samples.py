"""The stage that samples images of one class each from the diffusion model."""

import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kood.data import ImageSet
from kood.data.stored import read_images, write_blocks
from kood.diffusion.collected import Collected
from kood.diffusion.sampling import Start, draw_rows, image_sampler, resized
from kood.pipeline.diffusion import Diffusion
from kood.pipeline.prepare import Rows
from kood.pipeline.stage import Stage
from kood.pipeline.work import Work
from kood.recipe import Recipe
from kood.section import Sampling

__all__ = ["Pure"]


class Pure(Stage):
    """Labelled samples of one class each: "pure" to train on, "pure_audit" to be tested on.

    Args:
        recipe: Of the cell.
        data: The images of the run.
        diffusion: Trained on them.
        kind: Which of the two.
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

    def decides(self) -> dict[str, Any]:
        return {
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
        labels = np.random.default_rng(seed).permutation(np.arange(count) % classes)
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
