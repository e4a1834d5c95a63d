"""Tables of texts: JSON Lines, JSON, CSV or Parquet in a folder, or a data set on the hub.

Files are read here rather than through ``datasets.load_dataset``, which copies each into a cache on
disk, takes the sentence "NA" in a CSV file for a missing value, and reports a broken line by a
traceback.
"""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_darex.config import RunConfig
from fl_darex.errors import ConfigError
from fl_darex.tasks.preparation import choose_splits
from fl_darex.tasks.sources import Source, load_splits, read_parquet, read_splits

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Table:
    """Columns of equal length.

    Attributes:
        columns: Name -> values.
        label_names: Names of the classes where the source knows them; position = label.
    """

    columns: dict[str, list[Any]]
    label_names: tuple[str, ...] = field(default=())

    @property
    def column_names(self) -> list[str]:
        """The names of the columns."""
        return list(self.columns)

    def __getitem__(self, name: str) -> list[Any]:
        """Return the values of a column."""
        return self.columns[name]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.columns.values()), []))

    def dataset(self, names: Sequence[str], **more: list[Any]) -> Dataset:
        """Return the columns of these names that are there, and more; the empty name is none."""
        from datasets import Dataset

        kept = {name: self.columns[name] for name in names if name and name in self.columns}
        return Dataset.from_dict(kept | more)


def read_parts(config: RunConfig, needs: str, label: str = "") -> dict[str, Table]:
    """Return the tables of ``task.dataset`` by the part that they play; see `choose_splits`.

    Args:
        config: The run's configuration.
        needs: What a folder has to hold, for messages.
        label: The column of labels; empty = there are none.

    Raises:
        ConfigError: If a part is missing, a split has two files, or one cannot be read.
    """
    read = functools.partial(read_splits, sources=_files)
    found = load_splits(config.task, needs, "train.*", read, from_arrow)
    hint = "the file train.jsonl, .json, .csv or .parquet"
    return {part: found[s] for part, s in choose_splits(config, found, hint, label).items()}


def _files(folder: Path, split: str) -> list[Source[Table]]:
    paths = [folder / f"{split}{suffix}" for suffix in READERS]
    return [(path.name, functools.partial(read_table, path)) for path in paths if path.is_file()]


def choose_columns(
    name: str, tables: Sequence[Table], known: Sequence[tuple[str, ...]], kind: str
) -> tuple[str, ...]:
    """Return the first known columns that every table has.

    Args:
        name: ``task.dataset``, for messages.
        tables: All that will be used.
        known: What columns may be called.
        kind: What they are, for messages.

    Raises:
        ConfigError: If there are none.
    """
    common = [c for c in tables[0].columns if all(c in table.columns for table in tables)]
    for columns in known:
        if all(column in common for column in columns):
            return columns
    raise ConfigError(
        f"task.dataset = {name!r} has no {kind}; columns: {', '.join(common)}; known: "
        f"{'; '.join(' and '.join(columns) for columns in known)}"
    )


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


def from_arrow(data: Dataset) -> Table:
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
    return from_arrow(read_parquet([path]))


READERS: dict[str, Callable[[Path], Table]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
