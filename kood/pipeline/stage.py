"""A stage as a value: what decides its result, how it is made, and what it left once it was; and what it is given."""

import abc
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from kood import registry
from kood.backends import Devices
from kood.files import fingerprint
from kood.machine import arithmetic, collect_garbage
from kood.pipeline.budget import Budget
from kood.pipeline.team import Team
from kood.recipe import Recipe
from kood.report import StageProgress
from kood.runs import Result, Run

__all__ = ["Stage", "Work"]

#: What a stage says of itself in the report, as far as it has it.
TOLD = ("steps", "precision", "drawn", "kept", "drop_rate", "images_per_second", "wanted", "epochs")


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
        notes: What there is to say of the whole recipe, for the report.
        accepted: Called with the data, and the classes that are served of them, once these are there and nothing speaks
            against the recipe.
    """

    recipe: Recipe
    team: Team
    progress: StageProgress
    devices: Devices
    budget: Budget
    seen: set[Path] = field(default_factory=set)
    labels: dict[str, str] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    accepted: Callable[[Any, Sequence[str]], None] = lambda data, class_names: None

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


class Stage(abc.ABC):
    """One step of a run. `ensure` finds its result or makes it; key, display and report follow from what it says.

    Other stages are its inputs: it is made after them and reads their results.

    Args:
        recipe: Of the cell, or of a classifier beside the cell's own.
        role: What the display and the report call it; the name of its kind where not given.

    Attributes:
        kind: Begins the name of its folder; results of one kind and one key are one result.
        version: Raised by one when its code changes its result, so that results of older code are not taken for it.
        on: The block of `kood.backends.Devices` in which every process makes it; "" where the first makes it alone.
        is_shared: Whether the other processes wait for its result.
        only_for: The stages without which it is of no use; where there are some, and none of them applies, neither does
            it.
        result: What it left; None before.
    """

    kind: str
    version: int
    on: ClassVar[str] = ""
    is_shared: ClassVar[bool] = True
    only_for: "Sequence[Stage]" = ()

    def __init__(self, recipe: Recipe, role: str = ""):
        self.recipe = recipe
        self.role = role or self.kind
        self.result: Result | None = None

    @abc.abstractmethod
    def decides(self) -> dict[str, Any]:
        """What decides its result beside its version (JSON); "backend" where the Keras backend is part of it."""

    @abc.abstractmethod
    def make(self, folder: Path, work: Work) -> dict[str, Any]:
        """Makes its result.

        Args:
            folder: Where; a killed predecessor may have left something there.

        Returns:
            What it has to say of itself (JSON).
        """

    def uses(self) -> Iterable[tuple[str, str]]:
        """What it uses of the rooms that a recipe chooses from, room and name each: their versions decide too."""
        return ()

    def applies(self) -> str:
        """Why it is not to be made after all, now that the images are there; "" where it is."""
        why = [stage.applies() for stage in self.only_for]
        return why[0] if why and all(why) else ""

    def damage(self) -> str:
        """What is wrong with what it left outside of its folder; "" where that is as it was."""
        return ""

    def says(self) -> Iterable[tuple[str, str]]:
        """Lines for the display once its result is there, and their styles."""
        return [(text, "yellow") for text in self.warnings]

    @property
    def notes(self) -> list[str]:
        """What it notes of itself, a sentence each."""
        return self.facts.get("notes", [])

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self._made.folder

    @property
    def warnings(self) -> list[str]:
        """What speaks against its result, a sentence each."""
        return []

    @property
    def facts(self) -> dict[str, Any]:
        """What it said of itself."""
        return self._made.facts

    @property
    def key(self) -> str:
        """Its fingerprint, for those whose input it is."""
        return self._made.key

    @property
    def made_by(self) -> dict[str, str]:
        """With which versions it was made, {package: version}; nothing where that is not known."""
        return self._made.made_by

    @property
    def told(self) -> Iterable[str]:
        """The facts that the report tells."""
        return TOLD

    @property
    def line(self) -> dict[str, Any]:
        """What the report tells of it: what it took, and how a network was trained or a sampler sampled."""
        made = self._made
        told = {key: made.facts[key] for key in self.told if key in made.facts}
        return {"seconds": made.seconds, "cached": made.cached, "backend": ", ".join(made.backends), **told}

    @property
    def _made(self) -> Result:
        if self.result is None:
            raise RuntimeError(f"the stage {self.role!r} has not been made")
        return self.result

    def ensure(self, work: Work) -> Result:
        """Finds its result or makes it, and says so; its inputs have their results.

        A run with a time budget takes a result that nothing cut short, where there is one; else the time that the stage
        may take decides its result too.

        Returns:
            The result, which is the stage's from now on.
        """
        decides = {"version": self.version, "quick": self.recipe.quick, **self.decides()}
        decides |= {"variables": arithmetic(decides.get("backend", "")), "versions": registry.versions(*self.uses())}
        seconds = work.budget.of(self.kind, self.recipe)
        if seconds is not None and not work.run.has(self.kind, decides):
            decides["seconds"] = round(seconds, 3)
        result = self.result = self._found_or_made(work, decides)
        damage = self.damage()
        if damage:
            work.run.on_damage(f"{self.role}: {damage}, and is made again")
            shutil.rmtree(result.folder)
            result = self.result = self._found_or_made(work, decides)
        work.budget.note(self.kind, result.key, 0.0 if result.cached else result.seconds)
        if result.cached and result.folder not in work.seen:
            others = set(result.backends) - {work.run.backend}
            work.progress.cached(self.role, f"made under {', '.join(result.backends)}" if others else "")
        for text, style in () if result.folder in work.seen else self.says():
            work.progress.say(text, style=style)
        work.seen.add(result.folder)
        return result

    def _found_or_made(self, work: Work, decides: dict[str, Any]) -> Result:
        def make(folder: Path) -> dict[str, Any]:
            work.budget.afford(self.kind)
            try:
                return self.make(folder, work)
            finally:
                collect_garbage()

        if not self.is_shared:
            return work.run.ensure(self.kind, decides, make)
        return work.team.ensure(self.kind, decides, make, getattr(work.devices, self.on) if self.on else None)

    def seed(self, purpose: str, own: int | None = None) -> int:
        """A seed for one purpose, which follows from the recipe's, or from its own where the recipe gives it one."""
        return int(fingerprint(self.recipe.seed if own is None else own, purpose), 16) % 2**31
