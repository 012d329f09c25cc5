"""Tables as text for a paper or for a program: Markdown, LaTeX, CSV."""

import csv
import io
from collections.abc import Iterator
from typing import Any

from kood.report.tables import MISSING, Cell, Column, Table
from kood.text import clean

__all__ = ["ENDINGS", "FORMATS", "as_csv", "latex", "markdown"]

_MARKDOWN = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_{}[]()#+!|~"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})
_LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "<": r"\textless{}",
       ">": r"\textgreater{}", "±": r"$\pm$", "‡": r"$\ddagger$", "—": "--", "|": r"\textbar{}", "\"": "''",
       "↓": r"$\downarrow$", "◂": r"$\triangleleft$"}
)  # fmt: skip


def _written(table: Table, words: dict[int, str], figures: dict[int, str], bold: str) -> Iterator[list[str]]:
    """Headings and rows, every cell with its signs as its medium writes them."""
    yield [clean(column.title).translate(words) for column in table.columns]
    for one, marks in zip(table.rows, table.best, strict=True):
        signs = (words if column.words else figures for column in table.columns)
        texts = (clean(cell.text).translate(of) for cell, of in zip(one.cells, signs, strict=False))
        yield [bold % text if best else text for text, best in zip(texts, marks, strict=False)]


def markdown(table: Table) -> str:
    """A table of GitHub's Markdown, its notes below."""
    # Figures need no escaping, and would not be read with it.
    heads, *lines = _written(table, _MARKDOWN, {}, "**%s**")
    rule = ["---" if column.words else "---:" for column in table.columns]
    return "".join(f"| {' | '.join(line)} |\n" for line in [heads, rule, *lines]) + f"\n{clean(table.noted())}\n"


def latex(table: Table) -> str:
    """A tabular with the rules of the package booktabs, the notes a comment above."""
    head, *body = (" & ".join(line) + r" \\" for line in _written(table, _LATEX, _LATEX, r"\textbf{%s}"))
    kinds = "".join("l" if column.words else "r" for column in table.columns)
    return "\n".join(
        [
            f"% {clean(table.noted())} Needs the package booktabs.",
            rf"\begin{{tabular}}{{{kinds}}}",
            r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", "",
        ]
    )  # fmt: skip


def as_csv(table: Table) -> str:
    """CSV (RFC 4180) for programs: figures unrounded, each part of one a column; no text is a spreadsheet's formula."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(
        _inert(f"{_name(column)}_{part}" if part else _name(column))
        for column in table.columns
        for part in column.parts or ("",)
    )
    for one in table.rows:
        lines.writerow(
            value
            for column, cell in zip(table.columns, one.cells, strict=False)
            for value in _values(column, cell)
        )  # fmt: skip
    return out.getvalue()


def _name(column: Column) -> str:
    return clean(column.name or column.title)


def _values(column: Column, cell: Cell) -> list[Any]:
    if column.parts:
        found = [(cell.value or {}).get(part) for part in column.parts]
    else:
        text = "" if cell.text == MISSING else cell.text
        found = [text if cell.value in (None, "") else cell.value]
    return [_inert(clean(one)) if isinstance(one, str) else one for one in found]


def _inert(text: str) -> str:
    """Text that no spreadsheet takes for a formula; a number is none."""
    if text[:1] not in ("=", "+", "-", "@"):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


#: What a table may be written as.
FORMATS = {"markdown": markdown, "latex": latex, "csv": as_csv}
#: The endings of such files.
ENDINGS = {"md": markdown, "tex": latex, "csv": as_csv}
