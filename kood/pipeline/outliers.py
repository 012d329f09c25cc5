"""The stage that draws the outliers of one source before training."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kood import registry
from kood.data import ImageSet
from kood.data.amplitude import swap_amplitudes
from kood.data.stored import read_images, write_blocks
from kood.outliers import OutlierSource
from kood.outputs import Judge
from kood.pipeline.prepare import Rows
from kood.pipeline.stage import Stage, Work
from kood.recipe import Recipe
from kood.report.sheet import write_sheet
from kood.section import Sampling

__all__ = ["Outliers"]

#: Files that say of which classes each was made.
_MADE_OF = ("made_of.npy", "mixtures.npy")
#: The image sets of the data stage that a source may be given, by its names for them.
SETS = {"train": "train", "validation": "validation", "real": "outliers.real"}


class Outliers(Stage):
    """What a source of `kood.outliers` draws.

    Args:
        recipe: Of the cell.
        name: The source's.
        data: The images of the run.
        diffusion: The diffusion model, where a source of the recipe asks for one.
        judge: The classifier trained on real images alone, likewise.
    """

    def __init__(self, recipe: Recipe, name: str, data: Rows, diffusion: Any, judge: Any):
        self.source: OutlierSource = recipe.outliers.drawn[name]
        self.kind, self.version = name, self.source.version
        self.data, self.diffusion, self.judge = data, diffusion, judge
        super().__init__(recipe)

    @property
    def on(self) -> str:  # type: ignore[override]
        return "inference" if "denoiser" in self.source.needs else ""

    @property
    def _count(self) -> int:
        return self.recipe.outliers.count_of(self.kind)

    def decides(self) -> dict[str, Any]:
        needs = self.source.needs
        given: dict[str, Any] = {name: self.data.digest(SETS[name]) for name in needs if name in SETS}
        if "shape" in needs:
            given["shape"] = self.recipe.data.shape
        if "judge" in needs:
            given["judge"] = self.judge.key
        if self.on:
            given |= {"denoiser": self.diffusion.key, "backend": keras.backend.backend()}
        return {**self.source.model_dump(), **given, "count": self._count, "seed": self.seed(self.kind)}

    def uses(self) -> list[tuple[str, str]]:
        named = [("samplers", self.source.sampler)] if isinstance(self.source, Sampling) else []
        name = self.recipe.outliers.named(self.kind)
        # Of kood's own the version is the stage's.
        return [*named, ("outliers", name)] if registry.find("outliers", name).package else named

    @property
    def told(self) -> Iterable[str]:
        """All that its source tells."""
        return [name for name in self.facts if name not in ("images", "class_names", "sha256")]

    def make(self, folder: Path, work: Work) -> dict[str, Any]:
        pieces = folder / "shards"
        with work.progress.bar(self.role, self._count, unit="image") as bar:
            given: dict[str, Callable[[], Any]] = {
                "shape": lambda: self.recipe.data.shape,
                "denoiser": lambda: self.diffusion.denoiser(),  # noqa: PLW0108  # There may be none.
                "judge": lambda: Judge(self.judge.model(), self.recipe.evaluate.batch_size),
                "seeds": lambda: self.seed,
                "folder": lambda: pieces,
                "show": lambda: bar.update,
                "over": lambda: work.budget.timer(self.kind, self.recipe),
            }
            rng = np.random.default_rng(self.seed(self.kind))
            needs = {
                name: self.data.images(SETS[name]) if name in SETS else given[name]() for name in self.source.needs
            }
            rows = self.source.draw(self._count, rng, **needs)
            if rows.shares is not None:
                np.save(folder / "mixtures.npy", rows.shares)
            if rows.made_of is not None:
                np.save(folder / "made_of.npy", rows.made_of)
            if rows.sheet is not None:
                write_sheet(folder / "sheet.png", *rows.sheet, list(self.data.images("train").class_names))
            facts = write_blocks(folder, "outliers", rows.blocks, count=rows.count, image_shape=self.recipe.data.shape)
        shutil.rmtree(pieces, ignore_errors=True)
        return {**facts, **rows.facts}

    def images(self) -> ImageSet:
        """The outliers."""
        return read_images(self.folder, "outliers", self.facts)

    @property
    def is_swapped(self) -> bool:
        """Whether a classifier sees them under the amplitudes of training images."""
        return self.recipe.outliers.amplitude == "swapped" and not self.source.is_texture

    def exposed(self, seed: int) -> ImageSet:
        """The outliers as a classifier is exposed to them.

        Args:
            seed: Decides whose amplitudes each gets, where it gets some.
        """
        drawn = self.images()
        if not self.is_swapped:
            return drawn
        givers = self.data.images("train").images
        return ImageSet(swap_amplitudes(drawn.images, givers, rng=np.random.default_rng(seed)))

    def shares(self) -> np.ndarray | None:
        """(N, K), of which class in what share each is; None where its source does not say."""
        file = self.folder / "mixtures.npy"
        return np.load(file, allow_pickle=False) if file.exists() else None

    def serves_fewer(self) -> bool:
        """Whether some of them serve a classifier that does not know all of the classes: nothing that was trained had a
        hand in them, and each says of which classes it was made, or was made of no training image."""
        needs = set(self.source.needs)
        if self.is_swapped or needs & {"denoiser", "judge"}:
            return False
        return not needs & {"train", "validation"} or any((self.folder / name).exists() for name in _MADE_OF)

    def made_without(self, classes: np.ndarray) -> np.ndarray:
        """The rows (n,) of those that were made of no image of some classes, their numbers (m,)."""
        made_of, shares = self.folder / "made_of.npy", self.shares()
        if made_of.exists():
            return np.flatnonzero(~np.isin(np.load(made_of, allow_pickle=False), classes).any(axis=1))
        if shares is not None:
            return np.flatnonzero(~(shares[:, classes] > 0).any(axis=1))
        return np.arange(self.facts["images"])

    @property
    def sheet(self) -> Path | None:
        """A picture of some of them, where the source draws one."""
        file = self.folder / "sheet.png"
        return file if file.exists() else None
