"""Tables and sentences in a terminal, or in a log."""

from collections.abc import Iterator
from itertools import zip_longest

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from kood.report.tables import Table
from kood.text import clean

__all__ = ["print_table", "say", "warn"]

#: Signs that an ASCII-only terminal cannot show, and what stands for them.
PLAIN = str.maketrans({"±": "+-", "—": "-", "·": "|", "◂": "<", "‡": "!", "↓": "v"})
#: Narrower than this a column of words is not made by folding them.
WORDS = 14
#: Cells between two columns.
GAP = 2
#: How rows that stand out are printed.
STYLES = {"block": "italic", "mean": "bold", "headline": "bold"}


def _fitting(console: Console, text: str) -> str:
    """The text without control characters, and in letters that the terminal has."""
    text = clean(text)
    return text.translate(PLAIN).encode("ascii", "backslashreplace").decode() if console.options.ascii_only else text


def say(console: Console, text: str, style: str = "", *, indent: int = 0, whole: bool = False) -> None:
    """Prints a sentence as it is: "[red]" in a name of a user's is a name, no markup.

    Args:
        indent: Of all its lines.
        whole: On one line, however long: what names a file shall not be broken.
    """
    line = Text(_fitting(console, text), style=style)
    console.print(Padding(line, (0, 0, 0, indent), expand=False) if indent else line, highlight=False, soft_wrap=whole)


def warn(console: Console, text: str) -> None:
    """Prints a sentence that must not be missed."""
    grid = Grid.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text("WARNING", style="bold yellow"), Text(_fitting(console, text), style="yellow"))
    console.print(grid)


def print_table(console: Console, table: Table) -> None:
    """Prints a table with its title and its notes.

    Where it is too wide, first the columns go that may; then those that name a row become one; and where even that is
    too wide, each row becomes a list, which holds all its figures. No figure is ever broken. How many columns have gone
    is told, since the notes may speak of them.

    Args:
        console: Where to print. The best cells are bold in a terminal; elsewhere they have a star.
    """
    if table.title:
        say(console, table.title, "bold")
    shown = next((one for one in _forms(table) if _width(console, one) <= console.width), None)
    if shown:
        console.print(_grid(console, shown))
        if gone := sum(one not in shown.columns for one in table.columns[table.labels :]):
            say(console, f"{gone} more column{'s' if gone > 1 else ''} in a wider terminal.", "dim")
    else:
        _print_lists(console, table)
    notes = (shown or table).noted("Bold" if console.is_terminal else "*")
    if notes:
        say(console, notes, "dim")


def _forms(table: Table) -> Iterator[Table]:
    priorities = sorted({column.priority for column in table.columns} - {0}, reverse=True)
    for whole in [table, table.merged()] if table.labels > 1 else [table]:
        yield whole
        yield from (whole.without(priority) for priority in priorities)


def _texts(console: Console, table: Table) -> list[list[str]]:
    """Headings, and under them the cells, as they are printed."""
    headings = [f"{one.heading}\n{one.small}" if one.small else one.heading for one in table.columns]
    texts = [["\n".join(_fitting(console, line) for line in heading.split("\n")) for heading in headings]]
    indented = any(one.kind == "block" for one in table.rows)
    starred = not console.is_terminal and any(map(any, table.best))
    for one, marks in zip(table.rows, table.best, strict=True):
        texts.append([])
        for column, cell, best in zip(table.columns, one.cells, marks, strict=False):
            text = _fitting(console, cell.text if column.words else cell.text.replace(" ± ", "±"))
            star = ("*" if best else " ") if starred and column.more_is_better is not None else ""
            texts[-1].append(text + star)
        if indented and one.kind != "block":
            texts[-1][0] = f"  {texts[-1][0]}"
    return texts


def _widths(console: Console, table: Table) -> list[int]:
    """How narrow each column may be: one of figures as the widest of them, one of words less."""
    columns = zip_longest(*(texts for texts in _texts(console, table) if len(texts) == len(table.columns)))
    widest = [max(cell_len(line) for text in texts for line in text.split("\n")) for texts in columns]
    return [min(WORDS, one) if of.words else one for of, one in zip(table.columns, widest, strict=True)]


def _width(console: Console, table: Table) -> int:
    return sum(_widths(console, table)) + GAP * (len(table.columns) - 1)


def _grid(console: Console, table: Table) -> Grid:
    headings, *texts = _texts(console, table)
    grid = Grid(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", padding=(0, GAP - 1, 0, 0),
        show_header=any(headings),
    )  # fmt: skip
    for column, heading, width in zip(table.columns, headings, _widths(console, table), strict=True):
        grid.add_column(
            Text(heading), justify="left" if column.words else "right", no_wrap=not column.words, overflow="fold",
            min_width=width,
        )  # fmt: skip
    for one, marks, words in zip(table.rows, table.best, texts, strict=True):
        bold = console.is_terminal
        cells = [Text(text, style="bold" if best and bold else "") for text, best in zip(words, marks, strict=False)]
        grid.add_row(*cells, style=STYLES.get(one.kind, ""))
    return grid


def _print_lists(console: Console, table: Table) -> None:
    """Each row as its name, and under it a line for each figure."""
    headings, *texts = _texts(console, table)
    for one, words in zip(table.rows, texts, strict=True):
        say(console, table.name_of(one), STYLES.get(one.kind, "bold"))
        for heading, text in list(zip(headings, words, strict=False))[table.labels :]:
            say(console, f"{' '.join(heading.split())}: {text.rstrip()}", indent=2)
