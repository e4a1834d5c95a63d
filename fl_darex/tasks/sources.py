"""Data sets from a local folder or the Hugging Face hub, and clear refusals."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fl_darex.config import TaskConfig
from fl_darex.errors import ConfigError

if TYPE_CHECKING:
    from datasets import Dataset

Data = TypeVar("Data")
Source = tuple[str, Callable[[], Data]]
"""A file or folder with a split: its name, and what reads it."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def local_folder(key: str, value: str) -> Path | None:
    """Return the folder that a setting names, or None where it is a name on the hub.

    An existing folder is a folder. What does not exist is a hub name if it looks like ``name``
    or ``owner/name`` and there is no folder ``owner``, and else a missing folder: the hub would be
    asked for it many times.

    Args:
        key: The setting's key, for messages: ``"task.model"``.
        value: Its value, not empty.

    Raises:
        ConfigError: If the folder does not exist, or is a file.
    """
    path = Path(value).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ConfigError(f"{key} = {value!r} is a file; give the folder that holds it")
    owner = value.rpartition("/")[0] if _HUB_NAME.fullmatch(value) else None
    if owner == "" or (owner and not Path(owner).is_dir()):
        return None
    found = f" in {owner!r}" if owner else ""
    raise ConfigError(
        f"{key} = {value!r}: no such folder{found}; give an existing folder, or a hub name like "
        "'owner/name'"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message, or its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def load_splits(
    task: TaskConfig,
    needs: str,
    pattern: str,
    read: Callable[[Path], dict[str, Data]],
    convert: Callable[[Dataset], Data],
) -> dict[str, Data]:
    """Return the splits of ``task.dataset``, a folder or a hub name, by name.

    ``task.subset`` names a folder in it, or what the hub calls a configuration; where there is no
    such folder, the data may lie in the folder itself.

    Args:
        task: Where the data is.
        needs: What the folder has to hold, for messages.
        pattern: What a folder with data holds, as a glob pattern: ``"train.*"``.
        read: Reads the splits of a folder.
        convert: Turns a split from the hub into what ``read`` returns.

    Raises:
        ConfigError: If the setting is empty, there is no such data, or it cannot be read.
    """
    if not task.dataset:
        raise ConfigError(
            f"task.dataset is empty; task.name = {task.name!r} needs {needs}, or a hub name"
        )
    folder = local_folder("task.dataset", task.dataset)
    if folder is None:
        return {str(split): convert(data) for split, data in _hub_dataset(task).items()}
    if task.subset and (folder / task.subset).is_dir():
        return read(folder / task.subset)
    if task.subset and not any(folder.glob(pattern)):
        raise ConfigError(
            f"task.subset = {task.subset!r}: no such folder in task.dataset = {task.dataset!r}, "
            "and no train file lies there itself"
        )
    return read(folder)


def _hub_dataset(task: TaskConfig) -> Any:
    import datasets

    with quiet():
        try:
            return datasets.load_dataset(task.dataset, task.subset or None)
        except Exception as error:
            # Hub, network, scripts and formats: the library raises what its parts raise.
            raise ConfigError(
                f"task.dataset = {task.dataset!r} with task.subset = {task.subset!r}: no such "
                f"folder, and not loaded from the hub: {first_line(error)}"
            ) from None


def read_splits(
    folder: Path, sources: Callable[[Path, str], list[Source[Data]]], validation: Sequence[str] = ()
) -> dict[str, Data]:
    """Return the splits of a folder: ``train``, ``validation``, ``test``.

    Args:
        folder: Where they lie.
        sources: Finds what a folder has under a split's name.
        validation: Further names that mean ``validation``.

    Raises:
        ConfigError: If a split is there twice, or cannot be read.
    """
    splits = {}
    for split, others in (("train", ()), ("validation", validation), ("test", ())):
        found = [source for name in (split, *others) for source in sources(folder, name)]
        if len(found) > 1:
            names = " and ".join(name for name, _ in found)
            raise ConfigError(f"task.dataset = {str(folder)!r} holds {names}; keep one of them")
        if found:
            splits[split] = found[0][1]()
    return splits


def read_parquet(paths: Sequence[Path], kind: str = "a Parquet file") -> Dataset:
    """Return the rows of Parquet files, as parts of one table.

    Columns of a type that ``datasets`` does not know, such as maps, are left out.

    Args:
        paths: At least one.
        kind: What each of them should be, for messages.

    Raises:
        ConfigError: If one cannot be read, their columns differ, a column is there twice, or there
            is no row.
    """
    import pyarrow
    from datasets import Dataset

    tables = []
    for path in paths:
        try:
            tables.append(_known_columns(path))
            whole = Dataset(pyarrow.concat_tables(tables))
        except ConfigError:
            raise
        except (pyarrow.ArrowException, ValueError) as error:
            raise ConfigError(f"{str(path)!r} is not {kind}: {first_line(error)}") from None
        except OSError as error:
            raise ConfigError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    if len(whole) == 0:
        raise ConfigError(f"{str(paths[0])!r} holds no example")
    return whole


def _known_columns(path: Path) -> Any:
    import pyarrow.parquet
    from datasets import Features

    schema = pyarrow.parquet.read_schema(path)
    if twice := [name for name in schema.names if schema.names.count(name) > 1]:
        raise ConfigError(f"{str(path)!r} has the column {twice[0]!r} twice; remove one of them")
    kept = []
    for column in schema:
        with suppress(ValueError):
            Features.from_arrow_schema(pyarrow.schema([column]))
            kept.append(column.name)
    return pyarrow.parquet.read_table(path, columns=kept)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers, datasets and the hub below errors; put all back afterwards."""
    import datasets
    import huggingface_hub.utils.logging as hub_logging
    from transformers.utils import logging

    transformers_logging: Any = logging  # its switches have no types
    libraries: list[Any] = [datasets.logging, hub_logging, transformers_logging]
    levels = [library.get_verbosity() for library in libraries]
    transformers_bars = transformers_logging.is_progress_bar_enabled()
    datasets_bars = not datasets.are_progress_bars_disabled()
    for library in libraries:
        library.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
        if transformers_bars:
            transformers_logging.enable_progress_bar()
        if datasets_bars:
            datasets.enable_progress_bars()
