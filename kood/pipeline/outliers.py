"""The stage that draws the outliers of one source before training."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kood import registry
from kood.data import ImageSet
from kood.data.amplitude import swap_amplitudes
from kood.data.copies import distinct, image_digests
from kood.data.stored import read_digests, read_images, write_blocks, write_digests
from kood.errors import UserError
from kood.outliers import OutlierSource
from kood.outliers import Rows as Drawn
from kood.outputs import Judge
from kood.pipeline.prepare import KINDS, Data, Rows, refuse_shared
from kood.pipeline.stage import Stage, Work
from kood.recipe import Recipe
from kood.report.sheet import write_sheet
from kood.runs import Result
from kood.section import Sampling

__all__ = ["Outliers"]

#: Files that say of which classes each was made.
_MADE_OF = ("made_of.npy", "mixtures.npy")
#: The image sets of the data stage that a source may be given, by its names for them.
SETS = {"train": "train", "validation": "validation", "real": "outliers.real"}
#: How far from 1 the shares of an image may sum: they are float32.
_ROUNDED = 1e-4


class Outliers(Stage):
    """What a source of `kood.outliers` draws.

    Args:
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
            self._refuse_wrong(rows)
            if rows.shares is not None:
                np.save(folder / "mixtures.npy", rows.shares)
            if rows.made_of is not None:
                np.save(folder / "made_of.npy", rows.made_of)
            if rows.sheet is not None:
                write_sheet(folder / "sheet.png", *rows.sheet, list(self.data.images("train").class_names))
            blocks = self._checked(folder, rows)
            facts = write_blocks(folder, "outliers", blocks, count=rows.count, image_shape=self.recipe.data.shape)
        shutil.rmtree(pieces, ignore_errors=True)
        return {**rows.facts, **facts}  # What a source tells is not to hide what was written.

    def ensure(self, work: Work) -> Result:
        """As of `Stage`; what was drawn before is held against the sets that the recipe tests on now."""
        result = super().ensure(work)
        if result.cached and (result.folder / "outliers.digests.npy").exists():
            self._refuse_tested(read_digests(result.folder, "outliers"))
        return result

    def _refuse(self, gave: str) -> None:
        raise UserError(f"outliers.{self.kind}: the source {self.recipe.outliers.named(self.kind)!r} gave {gave}")

    def _refuse_wrong(self, rows: Drawn) -> None:
        """Refuses what is not as many rows as were asked for, or not the shares of classes."""
        if not isinstance(rows, Drawn):
            self._refuse(f"{type(rows).__name__} and no kood.outliers.Rows")
        # Of real images there may be fewer, and so there may be when the time is up.
        can_be_fewer = {"real", "over"} & set(self.source.needs)
        if not (1 <= rows.count <= self._count if can_be_fewer else rows.count == self._count):
            self._refuse(f"{rows.count} images; {self._count} are asked for")
        classes = len(self.data.images("train").class_names)
        if rows.shares is not None:
            shares = np.asarray(rows.shares)
            if shares.shape != (rows.count, classes) or shares.dtype.kind != "f":
                self._refuse(f"shares {shares.dtype} {shares.shape}; floats {(rows.count, classes)} are asked for")
            wrong = ~((shares >= 0).all(axis=1) & (np.abs(shares.sum(axis=1, dtype="float64") - 1.0) < _ROUNDED))
            if wrong.any():
                some = np.array2string(shares[wrong.argmax()], threshold=10)
                self._refuse(f"shares that are not at least 0 and of the sum 1, of {wrong.sum()} of {rows.count} "
                             f"images, such as {some}")  # fmt: skip
        if rows.made_of is not None:
            made_of = np.asarray(rows.made_of)
            is_table = made_of.ndim == 2 and len(made_of) == rows.count and made_of.dtype.kind in "iu"
            if not is_table or (made_of.size and not 0 <= made_of.min() <= made_of.max() < classes):
                self._refuse(f"made_of {made_of.dtype} {made_of.shape}; numbers of {classes} classes are asked for, a "
                             f"row for each of {rows.count} images")  # fmt: skip

    def _checked(self, folder: Path, rows: Drawn) -> Iterator[np.ndarray]:
        """The images, a piece at a time, each looked at before it is written; at their end their digests are."""
        shape, digests, count = self.recipe.data.shape, list[np.ndarray](), 0
        asked = f"uint8 (n, {', '.join(map(str, shape))})"
        for block in map(np.asarray, rows.blocks):
            if block.dtype != np.uint8 or block.shape[1:] != shape:
                self._refuse(f"images {block.dtype} {block.shape}; {asked} of 0..255 are asked for")
            digests.append(image_digests(block))
            count += len(block)
            yield block
        if count != rows.count:
            self._refuse(f"{count} images, and says that they are {rows.count}")
        found = distinct(np.concatenate(digests))
        self._refuse_tested(found)
        write_digests(folder, "outliers", found)

    def _refuse_tested(self, digests: np.ndarray) -> None:
        """Refuses images that the detector is tested, or choices are made, on."""
        data = self.data
        names = [f"data.{kind}.{name}" for kind in KINDS for name in data.names(kind)]
        seen = {
            name: read_digests(data.folder, name)
            if isinstance(data, Data)
            else distinct(image_digests(data.images(name).images))
            for name in names
        }
        refuse_shared(f"outliers.{self.kind}", digests, seen)

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
