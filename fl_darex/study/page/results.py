"""The parts of the page that say what came out: the headline, its notes, its copies."""

from __future__ import annotations

from collections.abc import Iterator

from fl_darex.study import numbers
from fl_darex.study.columns import columns
from fl_darex.study.copies import comma_separated, latex, markdown
from fl_darex.study.headline import Headline
from fl_darex.study.page.html import Html, Part, join, tag
from fl_darex.study.page.tables import table
from fl_darex.study.sentence import incomplete, seeds_of


def warning(headline: Headline) -> Html | None:
    """Return what is missing of the result, in a box; None: it is whole."""
    words = incomplete(headline.result)
    if not words:
        return None
    more = tag("a", "Which, and why", href="#unfinished")
    return tag("p", tag("strong", words), " ", more, ".", class_="warn", role="note")


def headline_table(headline: Headline, key: str = "headline-table", caption: str = "") -> Html:
    """Return the table and what is to be said under it.

    Args:
        headline: Its rows.
        key: Unique on the page.
        caption: What the table is; empty: that of the whole result.
    """
    shown = columns(headline)
    rows = [[_cell(column.key, column.text(row)) for column in shown] for row in headline.rows]
    names: list[Part] = [column.name for column in shown]
    found = table(
        key, caption or _caption(headline), names, rows, numbers=True, pinned=len(rows) > 1
    )
    return join(found, *(tag("p", words, class_="note") for words in _notes(headline)))


def _caption(headline: Headline) -> str:
    if len(headline.result.arms) == 1:
        return "What the run came to"
    order = "bytes to target" if headline.result.target else "bytes"
    return f"Arms by {order}"


def _cell(key: str, text: str) -> Part:
    if key != "runs" or text.partition("/")[0] == text.partition("/")[2]:
        return text
    return tag("strong", text)  # not all of them are there


def _notes(headline: Headline) -> Iterator[str]:
    result = headline.result
    yield seeds_of(headline)
    yield (
        "Bytes are those of all clients' messages in a whole run, as Flower sends them; in all: "
        "up, down and the handshake. Ratio: bytes of the same exchanges with every tensor in full, "
        "the model of before round 1 included, over those sent."
    )
    words = []
    if result.reference is not None and result.target is not None:
        words.append(
            f"Target: {100 * result.target:g} % of the final {result.metric_name} of "
            f"{result.reference}, at the same point and with the same seed; (2/3): two of three "
            "runs reached it, and the mean is theirs. Arms that always reached it come first."
        )
        words.append(
            "Time is that on the wire: of the slowest client in each round, by its rates up/down, "
            "without training."
        )
    if result.budgets:
        words.append("At a budget: the last metric before more bytes than that were sent.")
    if headline.span:
        low, high = map(numbers.in_bytes, headline.span)
        words.append(
            f"Area: the mean of {result.metric_name} over the logarithm of bytes, {low} to {high}."
        )
    if words:
        yield " ".join(words)
    if any(row.final and row.final.mean != row.final.mean for row in headline.rows):
        yield "NaN: the metric of a run was no number at its end; its training has diverged."


def copies(headline: Headline) -> Html:
    """Return the headline as text to copy."""
    found = (
        ("Markdown", markdown(headline)),
        ("LaTeX", latex(headline)),
        ("CSV, exact numbers", comma_separated(headline)),
    )
    return join(
        *(
            tag(
                "details",
                tag("summary", name),
                tag("pre", text, tabindex="0", aria_label=name, role="region"),
            )
            for name, text in found
        )
    )
