"""Rows of a ``datasets.Dataset``, or of any plain sequence of dicts, in one spelling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from datasets import Dataset

Example = dict[str, Any]
Rows: TypeAlias = "Dataset | Sequence[Example]"


def pick(rows: Rows, indices: Iterable[int]) -> Any:
    """Return the rows of these numbers, in their order, as the same kind of rows."""
    if hasattr(rows, "select"):
        return rows.select(indices)
    return [rows[index] for index in indices]


def column(rows: Rows, name: str) -> Sequence[Any]:
    """Return a column's values as Python objects; a row that lacks it raises a ``KeyError``."""
    if hasattr(rows, "with_format"):
        values: list[Any] = rows.with_format(None)[name][:]
        return values
    return [row[name] for row in rows]


def column_names(rows: Rows) -> list[str]:
    """Return the names of the columns; of plain rows, those of the first."""
    names: list[str] = rows.column_names if hasattr(rows, "column_names") else list(rows[0])
    return names
