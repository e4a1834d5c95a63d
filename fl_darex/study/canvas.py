"""What all figures of a study share: size, style, legend, and text that every font has."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.text import Text

from fl_darex.study.looks import FAINT, INK, OTHER, Look
from fl_darex.study.plots import COLUMN
from fl_darex.study.plots import STYLE as RUN_STYLE

STYLE: dict[Any, Any] = RUN_STYLE | {
    "font.family": ["DejaVu Sans"],  # it comes with matplotlib: the same everywhere
    "text.parse_math": False,  # an arm may be called $x$
    "axes.edgecolor": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
}
_ROW = 0.17  # inches of a line of small text


class StudyFigure(Figure):
    """A figure that notebooks show without pyplot."""

    def _repr_svg_(self) -> str:
        return as_text(self)


def as_text(figure: Figure, transparent: bool = False) -> str:
    """Return a figure as SVG whose letters are text, shown in the reader's fonts.

    Args:
        figure: The figure.
        transparent: Whether its ground is left to the page.
    """
    written = io.StringIO()
    with rc_context(STYLE | {"svg.fonttype": "none"}), warnings.catch_warnings():
        # Only the room for such a letter is guessed; the reader's fonts have it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(written, format="svg", transparent=transparent, metadata={"Date": None})
    return written.getvalue()


def canvas(x_label: str, y_label: str, rows: int = 0) -> tuple[StudyFigure, Axes]:
    """Return an empty figure of a column's width.

    Args:
        x_label: Of the axis below.
        y_label: Of the one on the left.
        rows: Rows of text that the axis on the left has to have room for.
    """
    width, height = COLUMN
    size = width, max(height, 0.7 + rows * _ROW)
    figure = StudyFigure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(readable(y_label))
    axes.grid(alpha=0.3, linewidth=0.5)
    return figure, axes


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Write a name at each of some rows, the first one at the top."""
    axes.set_yticks(range(len(names)), [""] * len(names))
    place: Any = {"ha": "right", "va": "center", "transform": axes.get_yaxis_transform()}
    for row, name in enumerate(names):
        axes.text(-0.03, row, name, fontsize=6.5, **place)
    axes.set_ylim(len(names) - 0.5, -0.5)


def add_legend(figure: Figure, looks: Mapping[str, Look], lines: bool = True) -> None:
    """Name the looks below the axes, and make the figure higher by what that takes.

    Args:
        figure: Gets the legend.
        looks: By name.
        lines: Whether they are lines, not dots alone.
    """
    named = {readable(name, 34): look for name, look in looks.items() if look.own}
    if others := len(looks) - len(named):
        named[f"{others} others"] = OTHER
    longest = max(map(len, named), default=0)
    columns = 1 if longest > 19 else 2 if longest > 10 else 3
    rows = -(-len(named) // columns)
    figure.set_figheight(figure.get_figheight() + _ROW * rows)
    # A legend leaves out names that begin with an underscore; what it has may be renamed.
    legend = figure.legend(
        [_handle(look, lines) for look in named.values()],
        ["x" * len(name) for name in named],
        loc="outside lower center",
        ncols=columns,
    )
    legend.set_frame_on(False)
    for text, name in zip(legend.get_texts(), named, strict=True):
        text.set_text(name)


def _handle(look: Look, lines: bool) -> Line2D:
    dots: Any = {} if lines else {"linestyle": "", "marker": look.marker or "."}
    return Line2D([], [], linewidth=1.2 if look.own else 0.6, **{**look.line, **dots})


def readable(text: str, most: int = 60) -> str:
    """Return a text as a label: one line, not too long, without what is no character."""
    line = "".join(c if c.isprintable() else " " for c in text)
    line = " ".join(line.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def without_missing_glyphs(figure: Figure) -> None:
    """Write out, as Python does, the characters that the figure's font does not have."""
    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_text(_written_out(text.get_text()))


def _written_out(text: str) -> str:
    if text.isascii() or all(ord(character) in _glyphs() for character in text):
        return text
    return readable("".join(c if ord(c) in _glyphs() else ascii(c)[1:-1] for c in text), 34)


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())
