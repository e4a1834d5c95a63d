"""Labels as they stand in data: class ids and names, or amounts.

Whole numbers and texts are classes, numbers with a fraction are amounts. One kind holds for all
splits: what one split writes as ``0, 1`` another may write as ``0.0, 1.0``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fl_darex.errors import ConfigError

MAX_CLASSES = 1000
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_FRACTION = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_KINDS = {
    bool: "true and false",
    int: "whole numbers",
    float: "numbers with a fraction",
    str: "texts",
}


@dataclass(frozen=True)
class Labels:
    """The labels of one split.

    Attributes:
        values: One for each example.
        where: Says where an example stands, for messages: ``"row 3 of 'train.csv'"``.
    """

    values: Sequence[Any]
    where: Callable[[int], str]


@dataclass(frozen=True)
class Encoded:
    """Labels as a model learns them.

    Attributes:
        ids: The labels of each split: positions in ``names``, or floats.
        names: What each class is called; empty for a regression.
        numbered: Whether the data count their classes themselves: as ``0 .. n - 1``, or by a source
            that gives each number a name.
        notes: What somebody should know of how they were understood, a line each.
    """

    ids: list[list[Any]]
    names: tuple[str, ...]
    numbered: bool = False
    notes: tuple[str, ...] = ()


def encode_labels(
    splits: Sequence[Labels],
    known: tuple[str, ...],
    column: str = "label",
    limit: int = MAX_CLASSES,
) -> Encoded:
    """Return labels as class ids, or as amounts.

    Args:
        splits: The labels of each split, the training data's first.
        known: Names of the classes where the source knows them; position = label.
        column: The labels' column, for messages.
        limit: Classes at most; more are amounts by mistake.

    Raises:
        ConfigError: If a label is missing, labels are of several kinds, or there are too few or
            too many classes.
    """
    rows = [[_cleaned(label) for label in split.values] for split in splits]
    for labels, split in zip(rows, splits, strict=True):
        _refuse_blanks(labels, split, column)
    kinds = {type(label) for labels in rows for label in labels}
    if float in kinds and kinds <= {int, float}:
        _refuse_infinite(rows, splits, column)
        if int not in kinds or not _integral(rows):
            return _amounts(rows, splits, column)
        rows = [[int(label) for label in labels] for labels in rows]
    elif len(kinds) > 1 or kinds - set(_KINDS):
        raise _mixed(rows, splits, column)
    return _classes(rows, splits, known, column, limit)


def parse_cell(text: str) -> int | float | str:
    """Return what a cell of a file without types holds: a number where it reads as one.

    Words such as ``nan``, ``inf`` and ``1_000`` are texts; spaces around do not count.
    """
    text = text.strip()
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if _FRACTION.fullmatch(text) else text


def hidden(labels: Sequence[Any]) -> bool:
    """Return whether every label is missing: a benchmark that keeps its test labels to itself."""
    # GLUE on the hub publishes its test texts with -1 for every label.
    return bool(labels) and all(_is_blank(label) or label in (-1, "-1") for label in labels)


def _cleaned(label: Any) -> Any:
    return label.strip() if isinstance(label, str) else label


def _is_blank(label: Any) -> bool:
    if isinstance(label, str):
        return not label.strip()
    return label is None or (isinstance(label, float) and math.isnan(label))


def _refuse_blanks(labels: list[Any], split: Labels, column: str) -> None:
    blank = [row for row, label in enumerate(labels) if _is_blank(label)]
    if blank:
        more = f" (and {len(blank) - 1} more)" if len(blank) > 1 else ""
        raise ConfigError(
            f"column {column!r}: {split.where(blank[0])}{more} has no label; fill it in or remove "
            "the row"
        )


def _refuse_infinite(rows: list[list[Any]], splits: Sequence[Labels], column: str) -> None:
    for labels, split in zip(rows, splits, strict=True):
        for row, label in enumerate(labels):
            if not math.isfinite(label):
                raise ConfigError(
                    f"column {column!r}: {split.where(row)} holds a number that is not finite; "
                    "remove that row"
                )


def _mixed(rows: list[list[Any]], splits: Sequence[Labels], column: str) -> ConfigError:
    """Return an error that names the first row of each kind."""
    first: dict[type, str] = {}
    for labels, split in zip(rows, splits, strict=True):
        for row, label in enumerate(labels):
            if type(label) not in first:
                first[type(label)] = f"{label!r:.40} in {split.where(row)}"
    shown = {_KINDS.get(kind, kind.__name__): place for kind, place in first.items()}
    found = " and ".join(f"{kind} ({shown[kind]})" for kind in sorted(shown))
    return ConfigError(
        f"column {column!r} holds {found}; it must hold whole numbers or texts (classes), or "
        "numbers with a fraction (a regression), and nothing else"
    )


def _integral(rows: list[list[Any]]) -> bool:
    return all(float(label).is_integer() for labels in rows for label in labels)


def _amounts(rows: list[list[Any]], splits: Sequence[Labels], column: str) -> Encoded:
    """Return amounts; classes that only look like them are refused, or get a line."""
    notes: tuple[str, ...] = ()
    if _integral(rows):
        notes = (
            f"column {column!r} holds {rows[0][0]!r} and the like: numbers with a point are "
            "amounts (a regression); write 1 rather than 1.0 where they are classes",
        )
    elif all(isinstance(label, int) for label in rows[0]):
        odd = next(
            f"{label!r} in {split.where(row)}"
            for labels, split in zip(rows, splits, strict=True)
            for row, label in enumerate(labels)
            if isinstance(label, float) and not label.is_integer()
        )
        raise ConfigError(
            f"column {column!r} holds whole numbers in the training data (classes) and {odd} (an "
            "amount); write 1.0 rather than 1 in the training data where labels are amounts"
        )
    elif any(isinstance(label, int) for label in rows[0]):
        notes = (
            f"column {column!r} holds whole numbers and numbers with a fraction: all are taken as "
            "amounts (a regression)",
        )
    return Encoded([[float(label) for label in labels] for labels in rows], (), notes=notes)


def _classes(
    rows: list[list[Any]],
    splits: Sequence[Labels],
    known: tuple[str, ...],
    column: str,
    limit: int,
) -> Encoded:
    values = list(range(len(known))) if known else sorted({x for labels in rows for x in labels})
    ids = {value: position for position, value in enumerate(values)}
    for labels, split in zip(rows, splits, strict=True):
        for row, label in enumerate(labels):
            if label not in ids:
                raise ConfigError(
                    f"column {column!r}: {split.where(row)} holds {label!r}, which is none of its "
                    f"{len(known)} classes; remove the rows without a label"
                )
    if len(values) == 1:
        only = (known or values)[0]
        raise ConfigError(
            f"column {column!r} holds nothing but {only!r}: there is nothing to learn; it must "
            f"hold 2 to {limit} classes; is it the column of labels (task.label-column)?"
        )
    if len(values) > limit:
        raise ConfigError(
            f"column {column!r} holds {len(values)} different classes; allowed: 2 to {limit}; "
            "write 1.0 rather than 1 where labels are amounts (a regression)"
        )
    if all(_COMMA.fullmatch(str(value)) for value in values):
        pointed = str(values[0]).replace(",", ".")
        raise ConfigError(
            f"column {column!r} holds {values[0]!r}; write numbers with a point: {pointed}"
        )
    return Encoded(
        [[ids[label] for label in labels] for labels in rows],
        known or tuple(map(str, values)),
        numbered=bool(known) or values == list(range(len(values))),
    )
