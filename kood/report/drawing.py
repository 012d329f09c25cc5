"""How every figure of the report is drawn: its look, its letters, and a canvas without global state.

Matplotlib is imported when a figure is drawn, and only its object-oriented part: no window, no global state.
Colours are those of Okabe and Ito, told apart by the colour-blind; line styles and fills carry the same
difference in grey.
"""

import io
import warnings
from collections.abc import Callable
from typing import Any

from kood.text import clean

__all__ = ["BLUE", "COLOURS", "DASHES", "GREEN", "GREY", "INK", "PALE", "VERMILION", "as_label", "draw"]

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
INK, GREY, PALE = "#1b1f24", "#6a737d", "#d5dadf"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.4)), (0, (6, 2, 1.2, 2)))
#: Colours repeat after six and dashes after four; together they give twelve lines, no two alike.
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": False,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.facecolor": "white",
    # Outlines instead of text: the same look without this machine's fonts.
    "svg.fonttype": "path",
    "svg.hashsalt": "kood",
    "text.color": INK,
    "text.usetex": False,
    "xtick.color": GREY,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8.5,
}


def as_label(text: object) -> str:
    """A name as a figure shows it: on one line, none of its signs an instruction."""
    # A dollar would start mathematics, a leading underscore hide a legend entry.
    plain = clean(text).replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain


def draw(width: float, height: float, paint: Callable[[Any], None]) -> bytes:
    """The bytes of a figure, SVG.

    Args:
        width: In inches; 96 pixels of a page each.
        height: In inches.
        paint: Draws into the Matplotlib figure it is given.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # A name in a script the font lacks shows as boxes; the tables spell it out.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure)
        # Without a date the same results give the same bytes.
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
