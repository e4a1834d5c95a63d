"""Reading a local table of texts: JSON Lines, JSON, CSV or Parquet.

Read here rather than through ``datasets.load_dataset``, which copies each file into a cache on
disk, takes the sentence "NA" in a CSV file for a missing value, and reports a broken line by a
traceback.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl_darex.errors import ConfigError


@dataclass(frozen=True)
class Table:
    """Columns of equal length.

    Attributes:
        columns: Name -> values.
        label_names: Names of the classes where the source knows them; position = label.
    """

    columns: dict[str, list[Any]]
    label_names: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.columns.values()), []))


def read_folder(folder: Path) -> dict[str, Table]:
    """Return the tables of a folder by split: ``train``, ``validation``, ``test``.

    Raises:
        ConfigError: If a split has two files, or one cannot be read.
    """
    tables = {}
    for split in ("train", "validation", "test"):
        found = [folder / f"{split}{s}" for s in READERS if (folder / f"{split}{s}").is_file()]
        if len(found) > 1:
            names = " and ".join(path.name for path in found)
            raise ConfigError(f"task.dataset = {str(folder)!r} holds {names}; keep one of them")
        if found:
            tables[split] = read_table(found[0])
    return tables


def read_table(path: Path) -> Table:
    """Return the rows of a file; its suffix tells the format.

    Raises:
        ConfigError: If the content is not what the suffix says, or holds no row.
    """
    try:
        table = READERS[path.suffix](path)
    except UnicodeDecodeError:
        raise ConfigError(f"{str(path)!r} is not UTF-8 text; convert it") from None
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    if len(table) == 0:
        raise ConfigError(f"{str(path)!r} holds no example")
    return table


def from_arrow(data: Any) -> Table:
    """Return a ``datasets.Dataset`` as a table, with the names of its classes if it has them."""
    names = getattr(data.features.get("label"), "names", None) or ()
    return Table({name: data[name][:] for name in data.column_names}, tuple(names))


def _jsonl(path: Path) -> Table:
    rows = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                rows.append(_parse(line, f"line {number} of {str(path)!r}"))
    return _from_rows(rows, path)


def _json(path: Path) -> Table:
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        return _jsonl(path)
    return _from_rows(_parse(text, repr(str(path))), path)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {error}") from None


def _from_rows(rows: list[Any], path: Path) -> Table:
    if not rows:
        return Table({})
    keys = list(rows[0]) if isinstance(rows[0], dict) else []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or row.keys() != rows[0].keys():
            raise ConfigError(
                f"row {number} of {str(path)!r} does not have the keys of the first row, "
                f"{', '.join(keys) or 'which is no JSON object'}; each row must be an object with "
                "the same keys"
            )
    return Table({key: [row[key] for row in rows] for key in keys})


def _csv(path: Path) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            header, *rows = csv.reader(file, strict=True)
        except csv.Error as error:
            raise ConfigError(f"{str(path)!r} is not CSV: {error}") from None
        except ValueError:
            return Table({})
    rows = [row for row in rows if row]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise ConfigError(
                f"row {number} of {str(path)!r} has {len(row)} fields, its header has "
                f"{len(header)}; put texts with commas in double quotes"
            )
    columns: dict[str, list[Any]] = {
        name: [row[i] for row in rows] for i, name in enumerate(header)
    }
    if "label" in columns:
        columns["label"] = _numbers(columns["label"])
    return Table(columns)


def _numbers(texts: list[str]) -> list[Any]:
    # CSV has no types: labels are whole numbers if all are, else numbers if all are, else text.
    kinds: tuple[Callable[[str], Any], ...] = (int, float)
    for kind in kinds:
        try:
            return [kind(text) for text in texts]
        except ValueError:
            continue
    return list(texts)


def _parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet
    from datasets import Dataset

    try:
        return from_arrow(Dataset(pyarrow.parquet.read_table(path)))
    except (pyarrow.ArrowException, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{str(path)!r} is not a Parquet file: {reason}") from None


READERS: dict[str, Callable[[Path], Table]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
