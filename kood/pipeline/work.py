"""What every stage is given, and the versions of the stages' code."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kood.data import ImageSet
from kood.data.stored import read_images
from kood.machine import arithmetic
from kood.pipeline.budget import Budget
from kood.pipeline.team import Team
from kood.recipe import Recipe
from kood.report import StageProgress
from kood.runs import Run, Stage, fingerprint
from kood.steps import Devices

__all__ = ["VERSIONS", "Work"]

#: Raised by one when a stage's code changes its result, so that results of older code are not taken for it.
VERSIONS = {
    "data": 4, "diffusion": 3, "label_mixup": 2, "pure": 1, "pure_audit": 1, "pixel_mixup": 2, "cutmix": 2, "noise": 1,
    "patch_shuffle": 1, "amplitude_swap": 1, "real": 2, "classifier": 3, "validation": 3, "baseline": 1, "evaluate": 5,
    "audit": 1, "shortcut": 2, "export": 3,
}  # fmt: skip


@dataclass
class Work:
    """What every stage function is given.

    Attributes:
        recipe: Of one cell.
        team: The processes of the run, and its folder.
        progress: The display.
        devices: What the cell trains and samples on.
        budget: The time that is left.
        stages: The stages so far.
        seen: Stages that another cell has told of.
        labels: What the matrix calls the cell.
        origin: What the run was started with, for the report.
        accepted: Called with this once the data are there and nothing speaks against the recipe.
    """

    recipe: Recipe
    team: Team
    progress: StageProgress
    devices: Devices
    budget: Budget
    stages: dict[str, Stage] = field(default_factory=dict)
    seen: set[Path] = field(default_factory=set)
    labels: dict[str, str] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    accepted: Callable[["Work"], None] = lambda _: None

    @property
    def logs(self) -> Path:
        """Where a user finds what the cell's trainings wrote down."""
        plain = ",".join(f"{key}-{value}" for key, value in self.labels.items())
        cell = "".join(c if c.isascii() and (c.isalnum() or c in ",._-+") else "_" for c in plain)
        # Long or strange labels may come out alike.
        tag = f"-{fingerprint(plain)[:8]}" if cell != plain or len(cell) > 100 else ""
        return self.run.folder / "logs" / (cell[:100] + tag)

    def board(self, training: str) -> Path | None:
        """A folder for a training's TensorBoard files, in the first of several processes and where they are wanted."""
        return self.logs / training if self.recipe.report.tensorboard and self.team.leads else None

    @property
    def run(self) -> Run:
        """The folder."""
        return self.team.run

    def stage(
        self,
        name: str,
        decides: dict[str, Any],
        make: Callable[[Path], dict[str, Any]],
        *,
        shown: str | None = None,
        on: Callable[[], AbstractContextManager[None]] | None = None,
        awaited: bool = True,
    ) -> Stage:
        """Finds or makes a stage's result and keeps it under its name.

        A run with a time budget takes a stage that nothing cut short, where there is one; else the time that the stage
        may take decides its result too.

        Args:
            name: The stage's name.
            decides: What decides its result beside its version and, where "backend" is in it, the environment variables
                that change what the backend computes.
            make: Makes it in a folder.
            shown: What the display calls it, where that is not its name.
            on: The block of `Devices` in which every process makes it; not given, the first process makes it alone.
            awaited: Whether the other processes come to this stage.

        Returns:
            The stage.
        """
        decides = {"version": VERSIONS[name], "quick": self.recipe.quick, **decides}
        variables = arithmetic(decides.get("backend", ""))
        if variables:
            decides["variables"] = variables
        seconds = self.budget.of(name, self.recipe)
        if seconds is not None and not self.run.has(name, decides):
            decides["seconds"] = round(seconds, 3)

        def afforded(folder: Path) -> dict[str, Any]:
            self.budget.afford(name)
            return make(folder)

        stage = self.team.stage(name, decides, afforded, on) if awaited else self.run.stage(name, decides, afforded)
        self.budget.note(name, stage.key, 0.0 if stage.cached else stage.seconds)
        if stage.cached and stage.folder not in self.seen:
            others = set(stage.backends) - {self.run.backend}
            self.progress.cached(shown or name, f"made under {', '.join(stage.backends)}" if others else "")
        self.seen.add(stage.folder)
        self.stages[name] = stage
        return stage

    def beside(self, recipe: Recipe) -> "Work":
        """Another classifier of the same data, made beside this cell's own."""
        return Work(
            recipe, self.team, self.progress, self.devices, self.budget, {"data": self.stages["data"]}, self.seen,
            self.labels,
        )  # fmt: skip

    def seed(self, purpose: str, own: int | None = None) -> int:
        """A seed for one purpose, which follows from the recipe's, or from its own where the recipe gives it one."""
        return int(fingerprint(self.recipe.seed if own is None else own, purpose), 16) % 2**31

    def data(self, name: str) -> ImageSet:
        """One of the image sets of the data stage."""
        stage = self.stages["data"]
        return read_images(stage.folder, name, stage.facts["sets"][name])

    def digest(self, *names: str) -> list[str]:
        """The contents of image sets, for fingerprints."""
        return [self.stages["data"].facts["sets"][name]["sha256"] for name in names]

    def sets(self, kind: str) -> dict[str, ImageSet]:
        """The image sets of `data.near`, `data.far` or `data.validation_ood`, by the recipe's names."""
        return {name: self.data(f"data.{kind}.{name}") for name in getattr(self.recipe.data, kind)}

    def digests(self, kind: str) -> dict[str, str]:
        """Their contents, for fingerprints."""
        names = list(getattr(self.recipe.data, kind))
        return dict(zip(names, self.digest(*(f"data.{kind}.{name}" for name in names)), strict=True))
