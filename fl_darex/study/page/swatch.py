"""The legend of figures, as a list of the page: names wrap there, and are read aloud."""

from __future__ import annotations

from collections.abc import Mapping

from fl_darex.study.looks import FAINT, INK, LIGHT, OTHER, Look
from fl_darex.study.page.html import Html, tag

_POLYGONS = {
    "s": "15,3 25,3 25,13 15,13",
    "^": "20,2 25.5,13 14.5,13",
    "v": "20,14 25.5,3 14.5,3",
    "D": "20,1.5 26.5,8 20,14.5 13.5,8",
    "p": "20,2 26,6.5 23.7,13.5 16.3,13.5 14,6.5",
    "P": "18,2 22,2 22,6 26,6 26,10 22,10 22,14 18,14 18,10 14,10 14,6 18,6",
    "X": "17,2 20,5 23,2 26,5 23,8 26,11 23,14 20,11 17,14 14,11 17,8 14,5",
}
_WIDTH = 2.0


def legend(looks: Mapping[str, Look], lines: bool = True) -> Html | None:
    """Return a list of names with what they look like; None where there is nothing to tell apart.

    Args:
        looks: By name; those without a look of their own share an entry.
        lines: Whether they are drawn as lines, not as dots alone.
    """
    if len(looks) < 2:
        return None
    own = {name: look for name, look in looks.items() if look.own}
    entries = [tag("li", _swatch(look, lines), tag("span", name)) for name, look in own.items()]
    if others := len(looks) - len(own):
        entries.append(tag("li", _swatch(OTHER, lines), f"{others} others"))
    return tag("ul", *entries, class_="legend")


def _swatch(look: Look, lines: bool) -> Html:
    color = _color(look.color)
    parts = []
    if lines:
        dashes = " ".join(f"{_WIDTH * length:g}" for length in look.dashes)
        parts.append(
            tag(
                *("path", None),
                d="M1 8H39",
                stroke=color,
                stroke_width=f"{_WIDTH:g}",
                stroke_dasharray=dashes or False,
                fill="none",
            )
        )
    if look.marker == "o":
        parts.append(tag("circle", None, cx="20", cy="8", r="5", fill=color))
    elif not lines and not look.marker:
        parts.append(tag("circle", None, cx="20", cy="8", r="3", fill=color))
    elif look.marker in _POLYGONS:
        parts.append(tag("polygon", None, points=_POLYGONS[look.marker], fill=color))
    return tag("svg", *parts, viewBox="0 0 40 16", aria_hidden="true", focusable="false")


def _color(color: str) -> str:
    if color in LIGHT:
        return f"var(--arm-{LIGHT.index(color)})"
    return {INK: "currentColor", FAINT: "var(--faint)"}[color]
