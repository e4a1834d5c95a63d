"""Files of rows: JSON Lines, JSON, CSV, TSV and Parquet, as people and their programs write them.

Files are read here rather than through ``datasets.load_dataset``, which copies each into a cache on
disk, takes the sentence "NA" in a CSV file for a missing value, and reports a broken line by a
traceback.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_darex.errors import ConfigError
from fl_darex.tasks.labels import parse_cell
from fl_darex.tasks.sources import first_line, read_parquet

if TYPE_CHECKING:
    from datasets import Dataset

_DELIMITERS = ",;\t"
_LONGEST_FIELD = 2**31 - 1  # a C long, which has 32 bits on Windows


@dataclass(frozen=True)
class Table:
    """Columns of equal length.

    Attributes:
        columns: Name -> values.
        class_names: Names of classes by column where the source knows them; position = label.
        source: Where the rows come from, for messages; empty = not known yet.
        lines: The line of each row in its file, where the file has lines.
        typed: Whether values have types; cells of a CSV file are texts.
    """

    columns: dict[str, list[Any]]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: str = ""
    lines: Sequence[int] = ()
    typed: bool = True

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

    def where(self, row: int) -> str:
        """Return what a person finds a row by; rows count from 0 here and from 1 there."""
        line = f" (line {self.lines[row]})" if self.lines else ""
        return f"row {row + 1} of {self.source}{line}"

    def labels(self, column: str) -> list[Any]:
        """Return a column as labels: numbers where cells without types read as such."""
        values = self.columns[column]
        return values if self.typed else [parse_cell(value) for value in values]

    def dataset(self, names: Sequence[str], **more: list[Any]) -> Dataset:
        """Return the columns of these names that are there, and more; the empty name is none.

        Raises:
            ConfigError: If a column holds values of several kinds.
        """
        import pyarrow
        from datasets import Dataset

        kept = {name: self.columns[name] for name in names if name and name in self.columns}
        for name, values in kept.items():
            try:
                kept[name] = pyarrow.array(values)
            except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError) as error:
                raise ConfigError(
                    f"column {name!r} of {self.source} makes no column of one kind: "
                    f"{first_line(error)}"
                ) from None
        return Dataset.from_dict(kept | more)


def read_table(path: Path) -> Table:
    """Return the rows of a file; its suffix tells the format.

    Raises:
        ConfigError: If the content is not what the suffix says, or holds no row.
    """
    try:
        table = READERS[path.suffix](path)
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    if len(table) == 0:
        raise ConfigError(f"{str(path)!r} holds no example")
    return table


def from_arrow(data: Dataset, source: str = "") -> Table:
    """Return a ``datasets.Dataset`` as a table, with the names of its classes if it has them."""
    names = {
        name: tuple(known)
        for name, feature in data.features.items()
        if (known := getattr(feature, "names", None))
    }
    return Table({name: data[name][:] for name in data.column_names}, names, source)


def _text(path: Path) -> str:
    """Return a file's text without a byte order mark.

    Raises:
        ConfigError: If it is not UTF-8.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        name = "UTF-16" if wide else "Latin-1 or Windows-1252"
        tool = "UTF-16" if wide else "WINDOWS-1252"
        raise ConfigError(
            f"{str(path)!r} is not UTF-8 text: byte {error.start} (line {line}) is "
            f"0x{content[error.start]:02x}, as {name} has it; save it as UTF-8 (spreadsheets: "
            f"'CSV UTF-8'), or convert it: iconv -f {tool} -t UTF-8 OLD > NEW"
        ) from None


def _jsonl(path: Path) -> Table:
    return _json_lines(_text(path), path)


def _json(path: Path) -> Table:
    text = _text(path)
    if not text.lstrip().startswith("["):
        return _json_lines(text, path)
    return _from_rows(_parse(text, repr(str(path))), path)


def _json_lines(text: str, path: Path) -> Table:
    rows, lines = [], []
    for number, line in enumerate(io.StringIO(text), start=1):
        if line.strip():
            rows.append(_parse(line, f"line {number} of {str(path)!r}", lines=False))
            lines.append(number)
    return _from_rows(rows, path, lines)


def _parse(text: str, where: str, lines: bool = True) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        # A line of its own is always "line 1" to the parser.
        place = f"line {error.lineno}, column {error.colno}" if lines else f"column {error.colno}"
        said = error.msg.removesuffix(" at")
        raise ConfigError(f"{where} is not JSON at {place}: {said}") from None
    except RecursionError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from None
    except ValueError as error:  # of a key, or of a number with thousands of digits
        raise ConfigError(f"{where} cannot be read: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key {twice!r} twice; keep one of them")
    return found


def _from_rows(rows: list[Any], path: Path, lines: Sequence[int] = ()) -> Table:
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
    columns = {key: [row[key] for row in rows] for key in keys}
    return Table(columns, source=repr(str(path)), lines=lines)


def _csv(path: Path) -> Table:
    header, rows, lines = _cells(path)
    names = [name.strip() for name in header]
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise ConfigError(
            f"the header of {str(path)!r} has the column {twice[0]!r} twice; rename or remove one"
        )
    for number, (row, line) in enumerate(zip(rows, lines, strict=True), start=1):
        if len(row) != len(header):
            raise ConfigError(
                f"row {number} of {str(path)!r} (line {line}) has {len(row)} fields, its header "
                f"has {len(header)}; put texts with commas in double quotes"
            )
    # A spreadsheet leaves columns without a name behind; nobody can ask for them.
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names) if name}
    return Table(columns, source=repr(str(path)), lines=lines, typed=False)


def _cells(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """Return the header, the rows that are not blank, and the line that each row ends on."""
    text, first = _text(path), 0
    if text[:4].lower() == "sep=":  # how a spreadsheet is told the delimiter
        text, first = text.partition("\n")[2], 1
    try:
        with _long_fields():
            source = io.StringIO(text, newline="")
            delimiter = "\t" if path.suffix == ".tsv" else _delimiter(text)
            reader = csv.reader(source, delimiter=delimiter, strict=True)
            found = [(row, reader.line_num + first) for row in reader]
    except csv.Error as error:
        raise ConfigError(f"{str(path)!r} is not CSV: {error}") from None
    header, *rows = [one for one in found if any(map(str.strip, one[0]))] or [([], 0)]
    return header[0], [row for row, _ in rows], [line for _, line in rows]


def _delimiter(text: str) -> str:
    """Return what parts the header's fields: a comma unless it has none, and another parts it."""
    for delimiter in _DELIMITERS:
        header = next(
            csv.reader(io.StringIO(text.lstrip("\r\n"), newline=""), delimiter=delimiter), []
        )
        if len(header) > 1:
            return delimiter
    return ","


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let a field be longer than 131,072 characters."""
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path) -> Table:
    return from_arrow(read_parquet([path]), repr(str(path)))


READERS: dict[str, Callable[[Path], Table]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
