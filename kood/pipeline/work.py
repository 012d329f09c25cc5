"""What every stage is given, and the versions of the stages' code."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kood.data import ImageSet
from kood.data.stored import read_images
from kood.recipe import Recipe
from kood.report import StageProgress
from kood.runs import Run, Stage, fingerprint

__all__ = ["VERSIONS", "Work"]

#: Raised by one when a stage's code changes its result, so that results of older code are not taken for it.
VERSIONS = {
    "data": 1, "diffusion": 2, "label_mixup": 1, "pixel_mixup": 1, "noise": 1, "real": 1, "classifier": 1,
    "evaluate": 1, "export": 1,
}  # fmt: skip


@dataclass
class Work:
    """What every stage function is given: the recipe of one cell, the folder, the display, and the stages so far."""

    recipe: Recipe
    run: Run
    progress: StageProgress
    stages: dict[str, Stage] = field(default_factory=dict)
    seen: set[Path] = field(default_factory=set)

    def stage(self, name: str, decides: dict[str, Any], make) -> Stage:
        """Finds or makes a stage's result and keeps it under its name."""
        decides = {"version": VERSIONS[name], "quick": self.recipe.quick, **decides}
        stage = self.run.stage(name, decides, make)
        if stage.cached and stage.folder not in self.seen:
            self.progress.cached(name)
        self.seen.add(stage.folder)
        self.stages[name] = stage
        return stage

    def seed(self, purpose: str) -> int:
        """A seed for one purpose, which follows from the recipe's."""
        return int(fingerprint(self.recipe.seed, purpose), 16) % 2**31

    def data(self, name: str) -> ImageSet:
        """One of the image sets of the data stage."""
        stage = self.stages["data"]
        return read_images(stage.folder, name, stage.facts["sets"][name])

    def digest(self, *names: str) -> list[str]:
        """The contents of image sets, for fingerprints."""
        return [self.stages["data"].facts["sets"][name]["sha256"] for name in names]
