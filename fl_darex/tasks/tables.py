"""Tables of texts: files in a folder, or a data set on the hub, and which columns play a part."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fl_darex.config import RunConfig
from fl_darex.errors import ConfigError, nearest
from fl_darex.tasks.preparation import choose_splits
from fl_darex.tasks.readers import READERS, Table, from_arrow, read_table
from fl_darex.tasks.sources import Source, load_splits, read_splits


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
    *most, last = READERS
    hint = f"the file train{', '.join(most)} or {last}, or save it as one of these"
    chosen = choose_splits(config, found, hint, label)
    return {part: _named(found[split], split) for part, split in chosen.items()}


def _named(table: Table, split: str) -> Table:
    return table if table.source else replace(table, source=f"the {split} split")


def _files(folder: Path, split: str) -> list[Source[Table]]:
    paths = [folder / f"{split}{suffix}" for suffix in READERS]
    return [(path.name, functools.partial(read_table, path)) for path in paths if path.is_file()]


def choose_columns(
    name: str,
    tables: Sequence[Table],
    known: Sequence[tuple[str, ...]],
    kind: str,
    key: str = "task.text-columns",
) -> tuple[str, ...]:
    """Return the first known columns that every table has.

    Args:
        name: ``task.dataset``, for messages.
        tables: All that will be used.
        known: What columns may be called.
        kind: What they are, for messages.
        key: The setting that names others.

    Raises:
        ConfigError: If there are none.
    """
    common = [c for c in tables[0].columns if all(c in table.columns for table in tables)]
    for columns in known:
        if all(column in common for column in columns):
            return columns
    raise ConfigError(
        f"task.dataset = {name!r} has no {kind}; columns: {', '.join(common)}; known: "
        f"{'; '.join(' and '.join(columns) for columns in known)}; name another in {key}"
    )


def named_columns(
    key: str, value: str, parts: Mapping[str, Table], most: int = 2
) -> tuple[str, ...]:
    """Return the columns that a setting names.

    Args:
        key: The setting: ``"task.text-columns"``.
        value: A column, or two with a comma between them.
        parts: All that will be used, by the part that it plays.
        most: How many columns it may name, 1 or 2.

    Raises:
        ConfigError: If these are no such columns, or a table lacks one.
    """
    names = tuple(name.strip() for name in value.split(","))
    if not all(names) or len(names) > most or len(set(names)) < len(names):
        two = ", or two different ones with a comma between them: 'title,body'" * (most > 1)
        raise ConfigError(f"{key} = {value!r} is not allowed; name one column{two}")
    for part, table in parts.items():
        for name in names:
            if name not in table.columns:
                raise ConfigError(
                    f"{key} = {value!r}: the {part} data have no column {name!r}; columns: "
                    f"{', '.join(table.columns)}{nearest(name, table.columns)}"
                )
    return names


def check_text(text: object, column: str, where: str) -> None:
    """Refuse what is no text, or holds half of a character, which no file can.

    Raises:
        ConfigError: With the place and what to do.
    """
    if not isinstance(text, str):
        raise ConfigError(
            f"column {column!r}, {where}: {text!r} is not a text; every row needs one"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"column {column!r}, {where}: the text holds {text[error.start]!r}, half of a "
            "character; write it again, or remove the row"
        ) from None
