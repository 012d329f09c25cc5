"""One model for every table of results: built once, laid out by renderers that know nothing of what it shows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile, zip_longest
from typing import Any

__all__ = ["MISSING", "Cell", "Column", "Filled", "Row", "Table", "row", "table_of", "words"]

#: Stands where there is no figure.
MISSING = "—"


@dataclass(frozen=True)
class Column:
    """What the cells of a column are.

    Attributes:
        heading: Its lines.
        small: What stands under the heading, in small letters where there are any.
        words: Words, which stand at the left and may be folded; figures stand at the right and are never broken.
        strong: Words to be read first.
        priority: Where there is no room for all columns, those of the greatest number go first; 0 stays.
        more_is_better: Which figure of the column is the best; None where none is.
        compares: Whether the best is marked: not of figures that are measured on different images.
        name: What it is called in a file for programs; its heading where not given.
        parts: The keys of its cells' values, each of which is a column of its own in a file for programs; that of
            the key "" has the column's name alone.
    """

    heading: str
    small: str = ""
    words: bool = False
    strong: bool = False
    priority: int = 0
    more_is_better: bool | None = None
    compares: bool = True
    name: str = ""
    parts: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The heading on one line."""
        return " ".join(f"{self.heading} {self.small}".split())


def words(heading: str, name: str = "") -> Column:
    """A column of words."""
    return Column(heading, words=True, name=name)


@dataclass(frozen=True)
class Cell:
    """What stands in a cell.

    Attributes:
        text: For people, rounded.
        value: For programs, unrounded: a figure, or those of the column's parts by name; None where it is the text.
    """

    text: str
    value: Any = None

    @property
    def figure(self) -> Any:
        """The figure by which cells are compared and sorted; None where there is none."""
        figure = self.value.get("mean", self.value.get("low")) if isinstance(self.value, Mapping) else self.value
        return figure if isinstance(figure, int | float) else None

    @property
    def runs(self) -> int:
        """How many runs the figure is a mean of; 1 where nothing says."""
        return self.value.get("n", 1) if isinstance(self.value, Mapping) else 1


@dataclass(frozen=True)
class Row:
    """Cells, and what is to be seen at once: "block" is a heading over the rows that follow it, "mean" sums them up,
    "headline" is the one that counts, "below" one that fails."""

    cells: Sequence[Cell]
    kind: str = ""


def row(*cells: str | Cell, kind: str = "") -> Row:
    """A row of cells, those that are only text given as such."""
    return Row(tuple(one if isinstance(one, Cell) else Cell(one) for one in cells), kind)


@dataclass(frozen=True)
class Table:
    """Rows under columns, with what stands above and what has to be said below.

    Texts may hold anything: a renderer neutralises what its medium would take for an instruction. `rest` are rows that
    are not shown; the best of a column is the best of them too.
    """

    columns: Sequence[Column]
    rows: Sequence[Row]
    title: str = ""
    notes: Sequence[str] = ()
    rest: Sequence[Row] = ()

    @property
    def labels(self) -> int:
        """How many of the first columns hold words: together they name a row."""
        return len(list(takewhile(lambda column: column.words, self.columns)))

    @cached_property
    def best(self) -> list[list[bool]]:
        """Which cells of each row are the best of their column.

        Figures that print alike share the mark; a column all alike has none. A mean over fewer runs than others of its
        column are is one of other seeds, and takes no part.
        """
        return self._marked[0]

    @cached_property
    def _marked(self) -> tuple[list[list[bool]], bool]:
        """The marks, and whether any figure of a marked column took no part."""
        every = [*self.rows, *self.rest]
        marks, partial = [[False] * len(self.columns) for _ in every], False
        for index, column in enumerate(self.columns):
            if column.more_is_better is None or not column.compares:
                continue
            there = {place: of.cells[index] for place, of in enumerate(every) if not of.kind}
            there = {place: one for place, one in there.items() if one.text != MISSING}
            most = max((one.runs for one in there.values()), default=1)
            shown = {place: one.text.split(" ", 1)[0] for place, one in there.items() if one.runs == most}
            if len(set(shown.values())) > 1:
                partial |= len(shown) < len(there)
                choose = max if column.more_is_better else min
                best = shown[choose(shown, key=lambda place: there[place].figure)]
                for place, text in shown.items():
                    marks[place][index] = text == best
        return marks[: len(self.rows)], partial

    def name_of(self, one: Row) -> str:
        """The words that name a row, each behind its heading where they are several."""
        if self.labels == 1:
            return one.cells[0].text
        named = zip(self.columns[: self.labels], one.cells, strict=False)
        return ", ".join(f"{column.title} {cell.text}" for column, cell in named if cell.text != MISSING)

    def merged(self) -> "Table":
        """The same with the columns that name a row in one."""
        table = self._changed(lambda one: (Cell(self.name_of(one)), *one.cells[self.labels :]))
        return replace(table, columns=(Column("", words=True), *self.columns[self.labels :]))

    def without(self, priority: int) -> "Table":
        """The same without the columns of this priority and of greater numbers."""
        kept = [index for index, column in enumerate(self.columns) if column.priority < priority]
        table = self._changed(lambda one: [one.cells[i] for i in kept if i < len(one.cells)])
        return replace(table, columns=[self.columns[i] for i in kept])

    def first(self, most: int | None) -> "Table":
        """The same with so many of its rows shown; all where not given."""
        return self if most is None else replace(self, rows=self.rows[:most], rest=[*self.rows[most:], *self.rest])

    def _changed(self, cells: Callable[[Row], Sequence[Cell]]) -> "Table":
        rows, rest = ([replace(one, cells=cells(one)) for one in some] for some in (self.rows, self.rest))
        return replace(self, rows=rows, rest=rest)

    def noted(self, bold: str = "Bold") -> str:
        """What stands below it, with the meaning of the mark that the best cells carry."""
        among = ", of the figures over the most runs" if self._marked[1] else ""
        return " ".join((*self.notes, *([f"{bold}: best of its column{among}."] if any(map(any, self.best)) else [])))


#: A column and its cells, one for each row.
Filled = tuple[Column, Sequence[str | Cell]]


def table_of(filled: Sequence[Filled], title: str = "", notes: Sequence[str] = (), kinds: Sequence[str] = ()) -> Table:
    """A table of columns, each with its cells, and of the kinds of its rows where any is more than a row."""
    columns, cells = zip(*filled, strict=True)
    rows = [row(*one, kind=kind) for one, kind in zip_longest(zip(*cells, strict=True), kinds, fillvalue="")]
    return Table(columns, rows, title, notes)
