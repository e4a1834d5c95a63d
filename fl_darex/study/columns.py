"""The headline as columns of text, for whatever shows a table: HTML, LaTeX, a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fl_darex.study import numbers
from fl_darex.study.estimates import Estimate, Reached
from fl_darex.study.headline import Headline, Row

Cell = str | float | None


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: What programs call it, in the CSV.
        name: What people read over it.
        text: A row's cell for people.
        exact: A row's cells for programs, by what is added to the key.
    """

    key: str
    name: str
    text: Callable[[Row], str]
    exact: Callable[[Row], dict[str, Cell]]


def columns(table: Headline) -> list[Column]:
    """Return the columns that a result has something for, in a reader's order."""
    result, name = table.result, table.result.metric_name
    unit = numbers.unit_of(row.total for row in table.rows)
    found = [Column("arm", "arm", _named, lambda row: {"": row.arm, "state": row.state})]
    if len(result.runs) > 1:
        found.append(_runs())
    found.append(_estimate("final", f"final {name}", lambda row: row.final))
    if result.reference is not None:
        versus = f"to {result.reference}"
        found.append(_estimate("gap", versus, lambda row: row.gap, sign=True))
    found += [
        _bytes("up_bytes", f"{unit} up", unit, lambda row: row.up),
        _bytes("down_bytes", f"{unit} down", unit, lambda row: row.down),
        _bytes("total_bytes", f"{unit} in all", unit, lambda row: row.total),
        _number("ratio", "ratio to whole models", lambda row: row.ratio),
    ]
    if result.reference is not None and result.target is not None:
        found.append(_reached("bytes_to_target", f"{unit} to target", unit, lambda r: r.to_target))
    found += _at_budgets(table)
    if any(row.area for row in table.rows):
        found.append(_estimate("area", f"area, {name}", lambda row: row.area))
    if result.reference is not None and result.target is not None:
        found += _times(table)
    return found


def texts(table: Headline) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns, and each row's cells, for people."""
    shown = columns(table)
    return [c.name for c in shown], [[c.text(row) for c in shown] for row in table.rows]


def exact(table: Headline) -> list[dict[str, Cell]]:
    """Return the rows for programs: every number as it is, by its key; None: there is none."""
    shown = columns(table)
    return [
        {
            "_".join(filter(None, (column.key, part))): value
            for column in shown
            for part, value in column.exact(row).items()
        }
        for row in table.rows
    ]


def _named(row: Row) -> str:
    return f"{row.arm} ({row.state})" if row.state else row.arm


def _runs() -> Column:
    return Column(
        "runs",
        "runs",
        lambda row: f"{row.runs}/{row.planned}",
        lambda row: {"": row.runs, "planned": row.planned},
    )


def _estimate(
    key: str, name: str, of: Callable[[Row], Estimate | None], sign: bool = False
) -> Column:
    def exactly(row: Row) -> dict[str, Cell]:
        found = of(row)
        if found is None:
            return dict.fromkeys(("mean", "low", "high"))
        ends: tuple[float | None, float | None] = found.ends or (None, None)
        if found.half is not None:
            ends = found.mean - found.half, found.mean + found.half
        return {"mean": found.mean, "low": ends[0], "high": ends[1]}

    return Column(key, name, lambda row: numbers.estimated(of(row), sign), exactly)


def _bytes(key: str, name: str, unit: str, of: Callable[[Row], float | None]) -> Column:
    def shown(row: Row) -> str:
        found = of(row)
        return numbers.significant(None if found is None else found / numbers.UNITS[unit])

    return Column(key, name, shown, lambda row: {"": of(row)})


def _number(key: str, name: str, of: Callable[[Row], float | None]) -> Column:
    return Column(key, name, lambda row: numbers.significant(of(row)), lambda row: {"": of(row)})


def _reached(key: str, name: str, unit: str, of: Callable[[Row], Reached | None]) -> Column:
    def exactly(row: Row) -> dict[str, Cell]:
        found = of(row)
        if found is None:
            return {"": None, "reached": None, "of": None}
        return {"": found.mean, "reached": found.reached, "of": found.runs}

    scale = numbers.UNITS.get(unit, 1.0)
    return Column(key, name, lambda row: numbers.reached(of(row), scale), exactly)


def _at_budgets(table: Headline) -> Iterator[Column]:
    for place, budget in enumerate(table.result.budgets):
        name = f"{table.result.metric_name} at {numbers.in_bytes(budget)}"
        yield _estimate(f"at_{budget:.15g}_bytes", name, _nth("budgets", place))


def _times(table: Headline) -> Iterator[Column]:
    for place, (up, down) in enumerate(table.result.links):
        key = f"seconds_to_target_{up:g}_up_{down:g}_down_mbit"
        name = f"s to target, {up:g}/{down:g} Mbit/s"
        yield _reached(key, name, "", _nth("seconds", place))


def _nth(name: str, place: int) -> Callable[[Row], Any]:
    def of(row: Row) -> Any:
        values = getattr(row, name)
        return values[place] if place < len(values) else None

    return of
