"""What the stages of a cell are made with, and how each is found or made."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kood.machine import arithmetic
from kood.pipeline.budget import Budget
from kood.pipeline.stage import Stage
from kood.pipeline.team import Team
from kood.recipe import Recipe
from kood.report import StageProgress
from kood.runs import Result, Run, fingerprint
from kood.steps import Devices

__all__ = ["Work"]


@dataclass
class Work:
    """What every stage of a cell is given.

    Attributes:
        recipe: Of the cell.
        team: The processes of the run, and its folder.
        progress: The display.
        devices: What the cell trains and samples on.
        budget: The time that is left.
        seen: Results that have been told of, by this cell or another.
        labels: What the matrix calls the cell.
        origin: What the run was started with, for the report.
        accepted: Called with the data once they are there and nothing speaks against the recipe.
    """

    recipe: Recipe
    team: Team
    progress: StageProgress
    devices: Devices
    budget: Budget
    seen: set[Path] = field(default_factory=set)
    labels: dict[str, str] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    accepted: Callable[[Any], None] = lambda _: None

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

    def obtain(self, stage: Stage) -> Result:
        """Finds a stage's result or makes it, and says so.

        A run with a time budget takes a result that nothing cut short, where there is one; else the time that the stage
        may take decides its result too.

        Args:
            stage: Its inputs have been obtained.

        Returns:
            The result, which is the stage's from now on.
        """
        decides = {"version": stage.version, "quick": stage.recipe.quick, **stage.decides()}
        variables = arithmetic(decides.get("backend", ""))
        if variables:
            decides["variables"] = variables
        seconds = self.budget.of(stage.kind, stage.recipe)
        if seconds is not None and not self.run.has(stage.kind, decides):
            decides["seconds"] = round(seconds, 3)
        result = stage.result = self._obtained(stage, decides)
        damage = stage.damage()
        if damage:
            self.run.on_damage(f"{stage.role}: {damage}, and is made again")
            shutil.rmtree(result.folder)
            result = stage.result = self._obtained(stage, decides)
        self.budget.note(stage.kind, result.key, 0.0 if result.cached else result.seconds)
        if result.cached and result.folder not in self.seen:
            others = set(result.backends) - {self.run.backend}
            self.progress.cached(stage.role, f"made under {', '.join(result.backends)}" if others else "")
        for text, style in () if result.folder in self.seen else stage.says():
            self.progress.say(text, style=style)
        self.seen.add(result.folder)
        return result

    def _obtained(self, stage: Stage, decides: dict[str, Any]) -> Result:
        def make(folder: Path) -> dict[str, Any]:
            self.budget.afford(stage.kind)
            return stage.make(folder, self)

        if not stage.is_shared:
            return self.run.obtain(stage.kind, decides, make)
        return self.team.obtain(stage.kind, decides, make, getattr(self.devices, stage.on) if stage.on else None)
