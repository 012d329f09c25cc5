"""How far a run is: a live bar in a terminal, a few lines elsewhere."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from kood.report.wording import duration, number
from kood.text import clean

__all__ = ["Bar", "StageProgress", "fit_callback"]

#: Plain lines between a stage's first and last.
LINES = 8


def _terms(values: Mapping[str, Any] | None) -> str:
    parts = []
    for name, value in (values or {}).items():
        try:
            parts.append(f"{clean(name)} {number(float(value))}")
        except (TypeError, ValueError):
            parts.append(f"{clean(name)} {clean(value)}")
    return "  ".join(parts)


class Bar:
    """How far one stage is; made by `StageProgress.bar`.

    Attributes:
        total: How many units of work it has, or None when unknown.
        completed: How many are done; a part of one counts as a fraction.
    """

    def __init__(self, progress: "StageProgress", name: str, total: int | None, unit: str, pace: float | None):
        self.name = clean(name)
        self.total = total
        self.unit = unit
        self._pace = pace
        self.completed = 0.0
        self._progress = progress
        self._started = time.monotonic()
        self._text = ""
        self._printed = 0
        self._task: TaskID | None = None

    def update(self, completed: float, terms: Mapping[str, Any] | None = None) -> None:
        """Says how far the stage is.

        Args:
            completed: Units done so far; 2.5 means halfway through the third.
            terms: Loss terms or metrics by name, to stand beside the bar. None keeps the last ones.
        """
        self.completed = float(completed)
        if terms is not None:
            self._text = _terms(terms)
        if self._task is None:
            self._print_line()
        else:
            self._progress.live.update(self._task, completed=self.completed, terms=self._text, count=self.count())

    def count(self) -> str:
        """The unit under way: "epoch 3/30"; "" before the first and where there is nothing to count."""
        if not self.completed:
            return ""
        at = math.ceil(self.completed)
        return f"{self.unit} {at}/{self.total}" if self.total else f"{self.unit} {at}"

    def elapsed(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self._started

    def _print_line(self) -> None:
        # Whole units only: the first, then evenly to the last; without a total the 1st, 2nd, 4th, 8th, ...
        whole = math.floor(self.completed)
        if whole < 1:
            return
        mark = 1 + (whole * (LINES - 1) // self.total if self.total else int(math.log2(whole)))
        if not self._printed < mark <= LINES:
            return
        self._printed = mark
        text = f"{self.name}: {self.unit} {whole}"
        if self.total:
            text += f"/{self.total}"
            pace = self._pace or self.elapsed() / self.completed
            left = pace * (self.total - self.completed)
            text += f", {duration(left)} left" if left > 0 else ""
        self._progress.say(text, self._text)


class StageProgress:
    """Shows the stages of a run.

    In a terminal a live line: name, bar, epoch, loss terms, time left; one line stays when the stage is done.
    Elsewhere (a file, a pipe, CI) about ten plain lines a stage.

    Example:
        >>> progress = StageProgress(Console())
        >>> with progress.bar("classifier", total=30) as bar:
        ...     bar.update(1, {"loss": 0.7})
    """

    def __init__(self, console: Console):
        self.console = console
        self.live = _bars(console)

    @property
    def is_live(self) -> bool:
        """Whether the console can redraw a line."""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def say(self, text: str, detail: str = "", style: str = "") -> None:
        """Prints one line that stays; `detail` stands dimmed behind it."""
        line = Text(clean(text), style=style)
        if detail:
            line.append("  " + detail, style="dim")
        self.console.print(line, soft_wrap=not self.is_live, highlight=False)

    def cached(self, stage: str, detail: str = "") -> None:
        """Says that a stage is not run again because its result is there.

        Args:
            detail: What there is to say about it, such as where the result came from.
        """
        self.say(f"{clean(stage)}: already there, not run again", clean(detail), style="cyan")

    @contextmanager
    def bar(self, name: str, total: int | None = None, unit: str = "epoch", pace: float | None = None) -> Iterator[Bar]:
        """Shows one stage while the block runs.

        Leaving the block ends the stage with a line that stays; leaving it by an exception says how far it came.

        Args:
            total: Units of work, None when unknown.
            unit: What is counted: "epoch", "step", "image", "second".
            pace: Seconds that a unit takes, where that is known beforehand; as the units so far took when None.

        Yields:
            The `Bar` to update.
        """
        bar = Bar(self, name, total, unit, pace)
        if self.is_live:
            self.live.start()
            bar._task = self.live.add_task(bar.name, total=total, terms="", count="")
        else:
            self.say(f"{bar.name}: started" + (f", {total} {unit}{'s' if total > 1 else ''}" if total else ""))
        try:
            yield bar
        except BaseException as error:
            how = "failed" if isinstance(error, Exception) else "stopped"
            where = f" at {bar.count()}" if bar.count() else ""
            self._close(bar)
            self.say(f"{bar.name}: {how} after {duration(bar.elapsed())}{where}", style="bold red")
            raise
        else:
            self._close(bar)
            self.say(f"{bar.name}: done in {duration(bar.elapsed())}", bar._text, style="green")

    def _close(self, bar: Bar) -> None:
        if bar._task is not None:
            self.live.remove_task(bar._task)
            if not self.live.tasks:
                self.live.stop()
                self.live = _bars(self.console)


def _bars(console: Console) -> Progress:
    """A line for each stage under way."""
    whole = Column(no_wrap=True)
    return Progress(
        # markup=False: a stage may carry a name out of a recipe.
        TextColumn("{task.description}", markup=False, style="bold", table_column=whole),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[count]}", markup=False, table_column=whole),
        TimeRemainingColumn(compact=True),
        TextColumn(
            "{task.fields[terms]}", markup=False, style="dim",
            table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
        ),
        console=console, transient=True, expand=True, refresh_per_second=8,
    )  # fmt: skip


def fit_callback(bar: Bar, *, every: float = 0.5, position: Callable[[], float] | None = None) -> Any:
    """A Keras callback that keeps a bar up to date during `fit`.

    Epoch ends always show. Within an epoch the display moves too, but not more often than every so many
    seconds: reading a loss waits for the device.

    Args:
        bar: Its unit is one epoch.
        every: Seconds between two updates within an epoch.
        position: How many units are done, where a unit is not an epoch but, say, a minute.

    Returns:
        A `keras.callbacks.Callback`. Keras is imported here, not with this module.
    """
    import keras

    class ShowProgress(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self._epoch = 0
            self._last = time.monotonic()

        def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
            self._epoch = epoch

        def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
            steps = (self.params or {}).get("steps")
            if steps and batch + 1 < steps and time.monotonic() - self._last >= every:
                bar.update(position() if position else self._epoch + (batch + 1) / steps, logs)
                self._last = time.monotonic()

        def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
            bar.update(position() if position else epoch + 1, logs)
            self._last = time.monotonic()

    return ShowProgress()
