"""A table as text to copy: Markdown, LaTeX and CSV, whatever the names in it hold."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable

from fl_darex.study.columns import Cell, exact, texts
from fl_darex.study.headline import Headline

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|$~&])")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",  # behind the end of a row it would be an option of that
    "*": "{*}",  # likewise
    "±": r"$\pm$",
    "—": "---",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def markdown(table: Headline) -> str:
    """Return the table as Markdown (GitHub's)."""
    names, rows = texts(table)
    lines = [names, ["---", *["---:"] * (len(names) - 1)]]
    shown = [[_in_markdown(cell) for cell in row] for row in (names, *rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (shown[0], lines[1], *shown[1:]))


def latex(table: Headline) -> str:
    """Return the table as a LaTeX ``tabular`` for the package booktabs."""
    names, rows = texts(table)
    head, *body = (" & ".join(map(_in_latex, row)) + r" \\" for row in (names, *rows))
    lines = [
        r"% \usepackage{booktabs}, and \usepackage[T1]{fontenc}",
        rf"\begin{{tabular}}{{l{'r' * (len(names) - 1)}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def comma_separated(table: Headline) -> str:
    """Return the table as CSV (RFC 4180, lines end with a line feed): exact numbers, bytes, s.

    Intervals are their two ends. What is not known is empty.
    """
    rows = exact(table)
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(rows[0] if rows else [])
    writer.writerows(_plain(row.values()) for row in rows)
    return written.getvalue()


def _plain(cells: Iterable[Cell]) -> list[str]:
    # A float as Python writes it reads back to the same number.
    return ["" if cell is None else str(cell) for cell in cells]


def _in_markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _in_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
