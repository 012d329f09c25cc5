"""A stage as a value: what decides its result, how it is made, and what it left once it was."""

import abc
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kood.recipe import Recipe
from kood.runs import Result, fingerprint

if TYPE_CHECKING:
    from kood.pipeline.work import Work

__all__ = ["Stage"]


class Stage(abc.ABC):
    """One step of a run. `Work.obtain` finds its result or makes it; key, display and report follow from what it says.

    Other stages are its inputs: it is made after them and reads their results.

    Args:
        recipe: Of the cell, or of a classifier beside the cell's own.
        role: What the display and the report call it; the name of its kind where not given.

    Attributes:
        kind: Begins the name of its folder; results of one kind and one key are one result.
        version: Raised by one when its code changes its result, so that results of older code are not taken for it.
        on: The block of `kood.steps.Devices` in which every process makes it; "" where the first makes it alone.
        is_shared: Whether the other processes wait for its result.
        result: What it left; None before.
    """

    kind: str
    version: int
    on: ClassVar[str] = ""
    is_shared: ClassVar[bool] = True

    def __init__(self, recipe: Recipe, role: str = ""):
        self.recipe = recipe
        self.role = role or self.kind
        self.result: Result | None = None

    @abc.abstractmethod
    def decides(self) -> dict[str, Any]:
        """What decides its result beside its version (JSON); "backend" where the Keras backend is part of it."""

    @abc.abstractmethod
    def make(self, folder: Path, work: "Work") -> dict[str, Any]:
        """Makes its result.

        Args:
            folder: Where; a killed predecessor may have left something there.
            work: The run.

        Returns:
            What it has to say of itself (JSON).
        """

    def applies(self) -> str:
        """Why it is not to be made after all, now that its inputs are there; "" where it is."""
        return ""

    def damage(self) -> str:
        """What is wrong with what it left outside of its folder; "" where that is as it was."""
        return ""

    def says(self) -> Iterable[tuple[str, str]]:
        """Lines for the display once its result is there, and their styles."""
        return ()

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self._made.folder

    @property
    def facts(self) -> dict[str, Any]:
        """What it said of itself."""
        return self._made.facts

    @property
    def key(self) -> str:
        """Its fingerprint, for those whose input it is."""
        return self._made.key

    @property
    def _made(self) -> Result:
        if self.result is None:
            raise RuntimeError(f"the stage {self.role!r} has not been made")
        return self.result

    def seed(self, purpose: str, own: int | None = None) -> int:
        """A seed for one purpose, which follows from the recipe's, or from its own where the recipe gives it one."""
        return int(fingerprint(self.recipe.seed if own is None else own, purpose), 16) % 2**31
