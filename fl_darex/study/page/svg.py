"""A matplotlib figure as an inline SVG that takes colours and letters from the page."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from matplotlib.figure import Figure

from fl_darex.study.canvas import as_text
from fl_darex.study.looks import FAINT, INK, LIGHT
from fl_darex.study.page.html import Html, printable

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_COLORS = {INK: "currentColor", FAINT: "var(--faint)"} | {
    color: f"var(--arm-{place})" for place, color in enumerate(LIGHT)
}
_COLOR = re.compile("|".join(_COLORS))
_FONT = re.compile(r"font-family:[^;]*;\s*")
_NUMBER = re.compile(r"-?\d+\.\d+")
_REFERENCE = re.compile(r"#([A-Za-z_][\w.-]*)")


def inline_svg(figure: Figure, key: str, words: str) -> Html:
    """Return a figure as an element of a page.

    Letters stay text, colours are the page's variables, so that it is as dark as the page is.

    Args:
        figure: The figure.
        key: Unique on the page; what is named in the SVG is named after it.
        words: What a person hears who cannot see it.
    """
    root = ElementTree.fromstring(as_text(figure, transparent=True))
    _clean(root)
    kept = {name for one in root.iter() for text in one.attrib.values() for name in _named(text)}
    for element in root.iter():
        _adapt(element, key, kept)
    box = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-label": printable(words)})
    return Html(ElementTree.tostring(root, "unicode"))


def _clean(root: ElementTree.Element) -> None:
    """Take away what a page has no use for; a style sheet would be the whole page's."""
    for parent in list(root.iter()):
        for child in list(parent):
            name = child.tag.removeprefix(f"{{{_SVG}}}")
            empty = child.get("style") in ("fill: none", "fill: none; opacity: 0")
            if name in ("metadata", "style") or (name == "path" and empty):
                parent.remove(child)
        parent.text = parent.text if parent.tag == f"{{{_SVG}}}text" else None
        for child in parent:
            child.tail = None


def _adapt(element: ElementTree.Element, key: str, kept: set[str]) -> None:
    element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
    found = {}
    for name, value in element.attrib.items():
        name = name.replace(f"{{{_XLINK}}}", "")
        if name == "id":
            if value in kept:
                found["id"] = f"{key}-{value}"
            continue
        if name == "style":
            value = _FONT.sub("", _COLOR.sub(lambda match: _COLORS[match[0]], value))
        elif name == "transform" and value.startswith(("rotate(-0 ", "rotate(0 ")):
            continue
        if name in ("href", "clip-path"):
            value = _REFERENCE.sub(rf"#{key}-\1", value)
        else:
            value = " ".join(_NUMBER.sub(_short, value).split())
        found[name] = value
    element.attrib.clear()
    element.attrib.update(found)


def _named(value: str) -> list[str]:
    return _REFERENCE.findall(value) if value.startswith(("#", "url(")) else []


def _short(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
