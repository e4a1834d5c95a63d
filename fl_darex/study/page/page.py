"""A result as one HTML file, with its figures beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import quote

from fl_darex.errors import ConfigError
from fl_darex.files.atomic import write_text_atomically
from fl_darex.study.headline import Headline, headline
from fl_darex.study.page.background import origin, settings, tuning, unfinished
from fl_darex.study.page.gallery import front, gallery
from fl_darex.study.page.html import Html, Part, join, tag
from fl_darex.study.page.pictures import Pictures
from fl_darex.study.page.results import copies, headline_table, warning
from fl_darex.study.page.style import SCRIPT, STYLE
from fl_darex.study.result import Result
from fl_darex.study.sentence import sentence

_NOTHING_FETCHED = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

Section = tuple[str, str, Html]
"""Its anchor, its heading, and what is in it."""


def write_report(result: Result, out: Path, figures: Path | None = None) -> list[Path]:
    """Write the page and its figures.

    Args:
        result: What was measured.
        out: The page.
        figures: Folder for the figures, as SVG and PDF; None: ``figures`` beside the page.

    Returns:
        The files written, the page first.

    Raises:
        ConfigError: If they cannot be written.
    """
    folder = out.parent / "figures" if figures is None else figures
    if out.is_dir():
        raise ConfigError(
            f"{str(out)!r} is a folder; name a file, such as {str(out / 'report.html')!r}"
        )
    pictures = Pictures(folder, partial(_link, out.parent))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        text = page(result, pictures, partial(_link, out.parent))
        write_text_atomically(out, text)
    except OSError as error:
        raise ConfigError(
            f"cannot write to {error.filename or str(out)!r}: {error.strerror or error}; name "
            "another place with --out and --figures"
        ) from None
    return [out, *pictures.files]


def page(result: Result, pictures: Pictures, link: partial[Html]) -> str:
    """Return the page as text.

    Args:
        result: What was measured.
        pictures: Makes the figures.
        link: Makes a link from the page to a file.
    """
    whole = headline(result)
    sections = _sections(whole, pictures, link)
    contents = (tag("li", tag("a", name, href=f"#{key}")) for key, name, _ in sections)
    body = tag(
        "body",
        tag("a", "To the result", href="#main", class_="skip"),
        tag(
            "header",
            tag("h1", result.title),
            tag("p", sentence(whole), class_="lead"),
            warning(whole),
            tag("nav", tag("ul", *contents), aria_label="Contents"),
        ),
        tag("main", *map(_section, sections), id="main"),
        tag("footer", tag("p", "Made by fl-darex report.", class_="small")),
        tag("script", Html(SCRIPT)),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_NOTHING_FETCHED),
        tag("title", result.title),
        tag("meta", name="description", content=sentence(whole)),
        tag("style", Html(STYLE)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _sections(whole: Headline, pictures: Pictures, link: partial[Html]) -> list[Section]:
    result = whole.result
    several = len(result.grid) > 1
    drawn = (
        tag("div", front(pictures, result, None), class_="figures")
        if several
        else gallery(pictures, result, 0)
    )
    found: list[tuple[str, str, Html | None]] = [
        ("result", "Result", join(headline_table(whole), _remarks(result.remarks))),
        ("figures", "Figures", drawn),
    ]
    if several:
        found += [_point(result, point, pictures) for point in result.points]
    found += [
        ("tuning", "Tuning", tuning(result)),
        ("unfinished", "Not finished", unfinished(result, link)),
        ("settings", "Settings", settings(result)),
        ("copies", "Tables to copy", copies(whole)),
        ("origin", "Origin and data", origin(result, link)),
    ]
    return [(key, name, content) for key, name, content in found if content]


def _point(result: Result, point: int, pictures: Pictures) -> Section:
    name, key = result.point_name(point), f"point-{point}"
    shown = headline_table(headline(result, [point]), f"{key}-table", f"Arms at {name}")
    return key, name, join(shown, gallery(pictures, result, point, f"{key}-"))


def _section(section: Section) -> Html:
    key, name, content = section
    return tag("section", tag("h2", name), content, id=key)


def _remarks(remarks: Sequence[str]) -> Html | None:
    if not remarks:
        return None
    return join(tag("h3", "Remarks"), tag("ul", *(tag("li", words) for words in remarks)))


def _link(page_folder: Path, path: Path, text: Part) -> Html:
    """Return a link from the page, relative, so that folder and page can move together."""
    try:
        relative = Path(os.path.relpath(path.resolve(), page_folder.resolve())).as_posix()
    except ValueError:  # on another drive
        return tag("span", text)
    return tag("a", text, href=quote(os.fsencode(relative)))
