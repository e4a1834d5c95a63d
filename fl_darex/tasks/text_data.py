"""Texts and labels for classification or regression, from a folder or the hub."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fl_darex.config import TaskConfig
from fl_darex.errors import ConfigError

from .partitions import check_owner_column
from .quiet import quiet
from .sampling import hold_out, subsample
from .sources import first_line, local_folder
from .text_files import Table, from_arrow, read_folder

if TYPE_CHECKING:
    from datasets import Dataset

# The columns of GLUE's subsets and of most others; the first row that is there counts.
TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("premise", "hypothesis"),
    ("sentence",),
    ("text",),
)
MAX_CLASSES = 1000
_VALIDATION = ("validation", "validation_matched")
_KINDS = {
    type(None): "empty values",
    bool: "true and false",
    int: "whole numbers",
    float: "numbers with a fraction",
    str: "texts",
}


@dataclass(frozen=True)
class TextData:
    """Examples to learn from and to measure on.

    Attributes:
        train: Columns ``text_columns``, ``label`` and, where one is set, the owner's column.
        evaluation: The same columns; no row of ``train``.
        text_columns: One column, or two whose texts make a pair.
        classes: Number of classes, labels ``0 .. classes - 1``; 0 for a regression.
        label_names: What each class was called in the data; empty for a regression.
    """

    train: Dataset
    evaluation: Dataset
    text_columns: tuple[str, ...]
    classes: int
    label_names: tuple[str, ...]


def load_text_data(task: TaskConfig, owner: str = "") -> TextData:
    """Read the data set of a task, and set evaluation examples apart.

    These are ``task.holdout`` examples of the training data if that is above 0, else the
    validation split, else the test split; the same ones for every seed.

    Args:
        task: Where the data is, and how much of it to use.
        owner: A further column to keep, for the natural partition; empty = none.

    Raises:
        ConfigError: If the data cannot be found or read, or its columns do not fit.
    """
    splits = _read(task)
    if "train" not in splits:
        found = ", ".join(splits) or "no file named train, validation or test"
        raise ConfigError(
            f"task.dataset = {task.dataset!r} has no training data; found {found}; name the file "
            "train.jsonl, .json, .csv or .parquet"
        )
    if owner:
        check_owner_column(owner, list(splits["train"].columns))
    evaluation = None if task.holdout else _evaluation_split(task, splits)
    used = [splits["train"], *([evaluation] if evaluation else [])]
    columns = _text_columns(task, used)
    encoded, names = _encode([table.columns["label"] for table in used], used[0].label_names)
    keep = [*columns, *([owner] if owner else [])]
    data = [_dataset(t, keep, labels) for t, labels in zip(used, encoded, strict=True)]
    train, held = hold_out(data[0], task.holdout) if task.holdout else (data[0], data[1])
    return TextData(
        train=subsample(train, task.train_examples, "train"),
        evaluation=subsample(held, task.eval_examples, "evaluation"),
        text_columns=columns,
        classes=len(names),
        label_names=names,
    )


def _read(task: TaskConfig) -> dict[str, Table]:
    if not task.dataset:
        raise ConfigError(
            "task.dataset is empty; task.name = 'text-classification' needs a folder with train "
            "and validation files, or a hub name"
        )
    folder = local_folder("task.dataset", task.dataset)
    if folder is None:
        return _read_hub(task)
    if task.subset and (folder / task.subset).is_dir():
        folder = folder / task.subset
    elif task.subset and not any(folder.glob("train.*")):
        raise ConfigError(
            f"task.subset = {task.subset!r}: no such folder in task.dataset = {task.dataset!r}, "
            "and no train file lies there itself"
        )
    return read_folder(folder)


def _read_hub(task: TaskConfig) -> dict[str, Table]:
    import datasets

    with quiet():
        try:
            found = datasets.load_dataset(task.dataset, task.subset or None)
        except Exception as error:
            # Hub, network, scripts and formats: the library raises what its parts raise.
            raise ConfigError(
                f"task.dataset = {task.dataset!r} with task.subset = {task.subset!r}: no such "
                f"folder, and not loaded from the hub: {first_line(error)}"
            ) from None
    return {str(split): from_arrow(data) for split, data in found.items()}


def _evaluation_split(task: TaskConfig, splits: dict[str, Table]) -> Table:
    hidden = ""
    for split in (*_VALIDATION, "test"):
        if split in splits:
            if not _is_hidden(splits[split]):
                return splits[split]
            hidden = f" (the {split} split has no labels)"
    raise ConfigError(
        f"task.dataset = {task.dataset!r} has no examples to evaluate on{hidden}; set "
        "task.holdout to the number of training examples to keep apart, e.g. 500"
    )


def _is_hidden(table: Table) -> bool:
    # GLUE on the hub publishes its test texts with -1 for every label.
    labels = table.columns.get("label", [])
    return bool(labels) and all(label is None or label == -1 for label in labels)


def _text_columns(task: TaskConfig, tables: Sequence[Table]) -> tuple[str, ...]:
    common = [c for c in tables[0].columns if all(c in table.columns for table in tables)]
    if "label" not in common:
        raise ConfigError(
            f"task.dataset = {task.dataset!r} has no column 'label'; columns: {', '.join(common)}"
        )
    for columns in TEXT_COLUMNS:
        if all(column in common for column in columns):
            for column in columns:
                _check_texts(column, tables)
            return columns
    raise ConfigError(
        f"task.dataset = {task.dataset!r} has no text column; columns: {', '.join(common)}; "
        f"known: {'; '.join(' and '.join(columns) for columns in TEXT_COLUMNS)}"
    )


def _check_texts(column: str, tables: Sequence[Table]) -> None:
    for table in tables:
        for number, text in enumerate(table.columns[column], start=1):
            if not isinstance(text, str):
                raise ConfigError(
                    f"column {column!r}, row {number}: {text!r} is not a text; every row needs one"
                )


def _encode(
    labels: Sequence[list[Any]], known: tuple[str, ...]
) -> tuple[list[list[Any]], tuple[str, ...]]:
    """Return labels as class ids and the classes' names, or as floats and no names."""
    every = [label for part in labels for label in part]
    kinds = {type(label) for label in every}
    if float in kinds and kinds <= {int, float}:
        if not all(math.isfinite(label) for label in every):
            raise ConfigError("column 'label' holds a number that is not finite; remove that row")
        return [[float(label) for label in part] for part in labels], ()
    if kinds - {int, bool} and kinds != {str}:
        found = " and ".join(sorted(_KINDS.get(kind, kind.__name__) for kind in kinds))
        raise ConfigError(
            f"column 'label' holds {found}; it must hold whole numbers or texts (classes), or "
            "numbers with a fraction (a regression), and nothing else"
        )
    values = list(range(len(known))) if known else sorted(set(every))
    ids = {value: position for position, value in enumerate(values)}
    if unknown := set(every) - set(ids):
        raise ConfigError(
            f"column 'label' holds {min(unknown)!r}, which is none of its {len(known)} classes; "
            "remove the rows without a label"
        )
    if not 2 <= len(values) <= MAX_CLASSES:
        raise ConfigError(
            f"column 'label' holds {len(values)} different classes; allowed: 2 to {MAX_CLASSES}; "
            "write 1.0 rather than 1 where labels are amounts (a regression)"
        )
    return [[ids[label] for label in part] for part in labels], known or tuple(map(str, values))


def _dataset(table: Table, keep: list[str], labels: list[Any]) -> Dataset:
    from datasets import Dataset

    columns = {name: table.columns[name] for name in keep if name in table.columns}
    return Dataset.from_dict({**columns, "label": labels})
