"""Tables of the page: with a caption, scopes, and a box that scrolls where there is no room."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fl_darex.study.page.html import Html, Part, join, tag

MOST_ROWS = 500
"""A page shows no more of a table; the data files have all."""

_MORE = re.compile(r"^(\S+) ((?:±|\[|\().*)$")


def table(
    key: str,
    caption: Part,
    names: Sequence[Part],
    rows: Sequence[Sequence[Part]],
    numbers: bool = False,
    pinned: bool = False,
) -> Html:
    """Return a table whose first column names the rows.

    Args:
        key: Unique on the page.
        caption: What it is.
        names: Of the columns.
        rows: Cells, one for each column.
        numbers: Whether all columns but the first are numbers.
        pinned: Whether the first column stays where the others scroll.
    """
    shown = rows[:MOST_ROWS]
    head = (_head(name, numbers and place > 0) for place, name in enumerate(names))
    body = (tag("tr", _name(row[0]), *(_cell(c, numbers) for c in row[1:])) for row in shown)
    whole = tag(
        "table",
        tag("caption", caption, id=f"{key}-caption"),
        tag("thead", tag("tr", *head)),
        tag("tbody", *body),
        class_="pinned" if pinned else False,
        id=key,
    )
    box = tag(
        "div", whole, class_="scroll", role="region", tabindex="0", aria_labelledby=f"{key}-caption"
    )
    if len(rows) == len(shown):
        return box
    return join(box, tag("p", f"The first {len(shown)} of {len(rows):,} rows.", class_="note"))


def _head(name: Part, number: bool) -> Html:
    return tag("th", name, scope="col", class_="number" if number else False)


def _name(cell: Part) -> Html:
    return tag("th", cell, scope="row")


def _cell(cell: Part, number: bool) -> Html:
    if not number:
        return tag("td", cell)
    # An interval stands below its number, so that a wide table fits.
    parts = None if isinstance(cell, Html) else _MORE.match(cell or "")
    if parts is None:
        return tag("td", cell, class_="number")
    return tag("td", parts[1], " ", tag("span", parts[2], class_="more"), class_="number")
