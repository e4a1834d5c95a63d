"""Texts and labels for classification or regression, from a folder or the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fl_darex.config import TaskConfig
from fl_darex.errors import ConfigError
from fl_darex.tasks.labels import encode_labels, hidden
from fl_darex.tasks.partitions import check_owner_column
from fl_darex.tasks.sampling import set_apart, subsample
from fl_darex.tasks.sources import dataset_folder, load_hub_dataset
from fl_darex.tasks.splits import evaluation_split, training_split
from fl_darex.tasks.text_files import Table, from_arrow, read_folder

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


def load_text_data(task: TaskConfig, owner: str = "", evaluate: bool = True) -> TextData:
    """Read the data set of a task, and set evaluation examples apart.

    These are ``task.holdout`` examples of the training data if that is above 0, else the
    validation split, else the test split; the same ones for every seed.

    Args:
        task: Where the data is, and how much of it to use.
        owner: A further column to keep, for the natural partition; empty = none.
        evaluate: Whether evaluation examples are needed; if not, there are none but held out ones.

    Raises:
        ConfigError: If the data cannot be found or read, or its columns do not fit.
    """
    splits = _read(task)
    training = training_split(task.dataset, splits, "the file train.jsonl, .json, .csv or .parquet")
    if owner:
        check_owner_column(owner, list(training.columns))
    used = [training]
    if not task.holdout and evaluate:
        used.append(evaluation_split(task.dataset, splits, _is_hidden)[1])
    columns = _text_columns(task, used)
    encoded, names = encode_labels([table.columns["label"] for table in used], used[0].label_names)
    keep = [*columns, *([owner] if owner else [])]
    data = [_dataset(t, keep, labels) for t, labels in zip(used, encoded, strict=True)]
    train, held = set_apart(data, task.holdout)
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
    folder = dataset_folder(task, "train.*")
    if folder is None:
        return {split: from_arrow(data) for split, data in load_hub_dataset(task).items()}
    return read_folder(folder)


def _is_hidden(table: Table) -> bool:
    return hidden(table.columns.get("label", []))


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


def _dataset(table: Table, keep: list[str], labels: list[Any]) -> Dataset:
    from datasets import Dataset

    columns = {name: table.columns[name] for name in keep if name in table.columns}
    return Dataset.from_dict({**columns, "label": labels})
