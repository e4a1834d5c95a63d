"""Figures on the page, and each of them as files to publish."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context

from fl_darex.study.canvas import STYLE, StudyFigure, without_missing_glyphs
from fl_darex.study.looks import Look
from fl_darex.study.page.html import Html, Part, join, tag
from fl_darex.study.page.svg import inline_svg
from fl_darex.study.page.swatch import legend
from fl_darex.study.plots import save_figure

FORMATS = ("svg", "pdf")
MOST_BYTES = 2_000_000
"""Of all figures of a page, so that it stays below 3 MB; of the others it has links."""


@dataclass(frozen=True)
class Panel:
    """One picture of a figure.

    Attributes:
        key: Its name on the page and as a file; unique.
        draw: Makes it, with or without a legend.
        words: What it shows, for whoever does not see it.
    """

    key: str
    draw: Callable[[bool], StudyFigure]
    words: str


class Pictures:
    """Makes a page's figures.

    Args:
        folder: Where the files go.
        link: Makes a link from the page to a file.
        formats: Of the files.

    Attributes:
        files: Those that were written.
    """

    def __init__(
        self,
        folder: Path,
        link: Callable[[Path, str], Html],
        formats: Sequence[str] = FORMATS,
    ) -> None:
        self._folder, self._link, self._formats = folder, link, formats
        self._left = MOST_BYTES
        self.files: list[Path] = []

    def figure(
        self,
        title: str,
        panels: Sequence[Panel],
        caption: Part,
        looks: Mapping[str, Look],
        lines: bool = True,
        width: str = "",
    ) -> Html:
        """Return a figure with its legend and caption, and write its files.

        Args:
            title: What it shows.
            panels: Its pictures, side by side where there is room.
            caption: What seeds and bands are.
            looks: What to tell apart, by name.
            lines: Whether these are lines, not dots alone.
            width: Empty: a third of a wide page; ``"half"`` or ``"wide"``.
        """
        pictures, links = [], []
        for panel in panels:
            files = self._save(panel)
            several = f"{panel.key}." if len(panels) > 1 else ""
            links += [self._link(file, f"{several}{file.suffix[1:]}") for file in files]
            shown = inline_svg(panel.draw(False), panel.key, panel.words)
            if len(shown) <= self._left:
                self._left -= len(shown)
                pictures.append(shown)
            else:
                pictures.append(tag("p", "This page would be too large with it; see the files."))
        under = join(caption, " ", *(part for link in links for part in (link, " ")))
        return tag(
            "figure",
            tag("h3", title),
            tag("div", *pictures, class_="panels"),
            legend(looks, lines),
            tag("figcaption", under),
            class_=width or False,
        )

    def _save(self, panel: Panel) -> list[Path]:
        if not self._formats:
            return []
        figure = panel.draw(True)
        without_missing_glyphs(figure)
        self._folder.mkdir(parents=True, exist_ok=True)
        with rc_context(STYLE):
            files = save_figure(figure, self._folder / panel.key, self._formats)
        self.files += files
        return files
