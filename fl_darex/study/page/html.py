"""HTML with every text escaped, in this one place."""

from __future__ import annotations

import html

_VOID = frozenset({"meta", "br", "hr"})


class Html(str):
    """Text that is HTML already; any other text is escaped where it enters a tag."""


Part = str | None


def safe(text: Part) -> Html:
    """Return a text as HTML, which may hold no control characters: they are written out."""
    if text is None:
        return Html("")
    if isinstance(text, Html):
        return text
    return Html(html.escape(printable(text), quote=True))


def printable(text: str) -> str:
    """Return a text with what is no character written out, as Python does."""
    return "".join(c if c.isprintable() or c in "\n\xa0" else ascii(c)[1:-1] for c in text)


def tag(name: str, /, *parts: Part, **attributes: str | bool) -> Html:
    """Return an element.

    Args:
        name: Of the element.
        parts: What is in it; text is escaped, None is nothing.
        attributes: Their values are escaped; ``class_`` is ``class``, ``aria_label`` is
            ``aria-label``, True is an attribute without a value, False is none.
    """
    shown = []
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            shown.append(f" {key}")
        elif value is not False:
            shown.append(f' {key}="{safe(str(value))}"')
    start = f"<{name}{''.join(shown)}>"
    return Html(start if name in _VOID else f"{start}{join(*parts)}</{name}>")


def join(*parts: Part) -> Html:
    """Return parts one after the other; text is escaped."""
    return Html("".join(map(safe, parts)))
