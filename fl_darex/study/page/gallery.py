"""Which figures a point of the grid has, in what order, and the words below them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from fl_darex.study import figures, numbers
from fl_darex.study.bands import Band, by_bytes, by_round, of_rows, over_rounds
from fl_darex.study.canvas import StudyFigure
from fl_darex.study.headline import headline
from fl_darex.study.looks import MOST, Look, looks
from fl_darex.study.page.html import Html, tag
from fl_darex.study.page.pictures import Panel, Pictures
from fl_darex.study.result import Result, Run
from fl_darex.study.sums import bytes_by_kind, bytes_by_layer

_MOST_WORDS = 12
Make = Callable[[Sequence[Run]], Band | None]


def gallery(pictures: Pictures, result: Result, point: int, prefix: str = "") -> Html:
    """Return the figures of one grid point.

    Args:
        pictures: Makes them.
        result: What was measured.
        point: The grid point, from 0.
        prefix: Of their names, where there are several points.
    """
    found = []
    if _drawn(result, point, by_round):
        found += [
            _by_round(pictures, result, point, prefix),
            _by_bytes(pictures, result, point, prefix),
        ]
    if len(headline(result, [point]).front) > 1:
        found.append(front(pictures, result, [point], prefix))
    for key, words in figures.ROW_KEYS.items():
        make: Make = partial(over_rounds, values=of_rows(key))
        if _drawn(result, point, make):
            draw = partial(_over_rounds, result, key, point)
            text = _in_words(f"{words}, by round", result, point, make)
            panel = Panel(f"{prefix}{key}-by-round", draw, text)
            found.append(
                pictures.figure(f"{key} by round", [panel], _seeds(result, point), looks(result))
            )
    return tag("div", *found, *_sums(pictures, result, point, prefix), class_="figures")


def front(
    pictures: Pictures, result: Result, points: Sequence[int] | None, prefix: str = ""
) -> Html:
    """Return the figure of bytes against the final metric, over some points; None: all."""
    table = headline(result, points)
    best = ", ".join(row.arm for row in table.front) or "none"
    text = f"Final {result.metric_name} by bytes of a whole run. Arms that no other beats: {best}."
    bars = (
        "a bootstrap over points and seeds" if len(table.points) > 1 else "Student's t over seeds"
    )
    caption = (
        f"A point for each arm, {_over(result)}; bars are 95 % intervals, by {bars}. The line "
        "joins the arms that no other beats in both. Arms that have not finished are left out."
    )
    panel = Panel(
        f"{prefix}pareto-front",
        lambda legend: figures.pareto_front(result, points, legend=legend),
        text,
    )
    title = f"Final {result.metric_name} against bytes"
    return pictures.figure(title, [panel], caption, looks(result), lines=False, width="half")


def _by_round(pictures: Pictures, result: Result, point: int, prefix: str) -> Html:
    name = result.metric_name
    panel = Panel(
        f"{prefix}metric-by-round",
        lambda legend: figures.metric_by_round(result, point, legend=legend),
        _in_words(f"{name} by round", result, point, by_round),
    )
    caption = _seeds(result, point)
    return pictures.figure(
        f"{_title(name)} by round", [panel], caption, looks(result), width="half"
    )


def _by_bytes(pictures: Pictures, result: Result, point: int, prefix: str) -> Html:
    name = result.metric_name
    panels = [
        Panel(
            f"{prefix}metric-by-{way}-bytes",
            partial(_way, result, way, point),
            _in_words(f"{name} by {words}", result, point, partial(by_bytes, way=way)),
        )
        for way, words in figures.WAYS.items()
    ]
    caption = (
        f"{_seeds(result, point)} Bytes are those of all clients' messages until the round was "
        "over, on a logarithmic axis, and means over seeds, too; up and down has the handshake."
    )
    return pictures.figure(
        f"{_title(name)} by bytes sent", panels, caption, looks(result), width="wide"
    )


def _way(result: Result, way: str, point: int, legend: bool) -> StudyFigure:
    return figures.metric_by_bytes(result, way, point, legend=legend)


def _over_rounds(result: Result, key: str, point: int, legend: bool) -> StudyFigure:
    return figures.over_rounds(result, key, point, legend=legend)


def _sums(pictures: Pictures, result: Result, point: int, prefix: str) -> list[Html]:
    """Return the figures of where bytes go."""
    found = []
    kinds, layers = bytes_by_kind(result, point), bytes_by_layer(result, point)
    if any(kinds.values()):
        panel = Panel(
            f"{prefix}bytes-by-kind",
            lambda legend: figures.bytes_by_kind(result, point, legend=legend),
            _listed("Bytes by kind of exchange", kinds),
        )
        caption = f"Both ways, a whole run, {_over(result)}; on a logarithmic axis."
        styles = figures.kinds_looks(result, point)
        found.append(pictures.figure("Bytes by kind of exchange", [panel], caption, styles, False))
    if layers:
        panel = Panel(
            f"{prefix}bytes-by-layer",
            lambda legend: figures.bytes_by_layer(result, point, legend=legend),
            _listed("Bytes by layer", layers),
        )
        caption = f"The layers with the most bytes; a whole run, {_over(result)}."
        found.append(pictures.figure("Bytes by layer", [panel], caption, looks(result), False))
    return found


def _listed(title: str, table: dict[str, dict[str, float]]) -> str:
    shown = [
        f"{name}: {', '.join(f'{part} {numbers.in_bytes(v)}' for part, v in row.items())}"
        for name, row in list(table.items())[:_MOST_WORDS]
    ]
    return f"{title}. {'; '.join(shown)}."


def _drawn(result: Result, point: int, make: Make) -> bool:
    return any(make(result.shown(name, point)) for name in result.names)


def _in_words(title: str, result: Result, point: int, make: Make) -> str:
    """Return from where to where each line goes; its numbers are in the tables."""
    ends = []
    for name in [name for name, look in looks(result).items() if look.own][:_MOST_WORDS]:
        band = make(result.shown(name, point))
        if band is not None:
            first, last = numbers.metric(band.mean[0]), numbers.metric(band.mean[-1])
            ends.append(f"{name} from {first} to {last}")
    return f"{title}. {'; '.join(ends)}."


def _seeds(result: Result, point: int) -> str:
    """Return what lines and bands are."""
    counts = {len(result.shown(name, point)) for name in result.names} - {0}
    seeds = ", ".join(map(str, result.seeds))
    styles: dict[str, Look] = looks(result)
    own = sum(look.own for look in styles.values())
    grey = "" if own == len(styles) else f" Of more than {MOST} arms, those of the front are named."
    if counts == {1}:
        of = "seed" if len(result.seeds) == 1 else "of seeds"
        return f"One run a line, {of} {seeds}: there is no band.{grey}"
    some = "" if counts == {len(result.seeds)} else " (some lines have fewer)"
    return (
        f"Lines are means over seeds {seeds}{some}; bands reach from the lowest to the highest "
        f"seed.{grey}"
    )


def _over(result: Result) -> str:
    seeds = ", ".join(map(str, result.seeds))
    return f"seed {seeds}" if len(result.seeds) == 1 else f"the mean over seeds {seeds}"


def _title(text: str) -> str:
    return text[:1].upper() + text[1:]
