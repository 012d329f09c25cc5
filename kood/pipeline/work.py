"""What the stages of a cell are made with."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kood.backends import Devices
from kood.pipeline.budget import Budget
from kood.pipeline.team import Team
from kood.recipe import Recipe
from kood.report import StageProgress
from kood.runs import Run, fingerprint

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
