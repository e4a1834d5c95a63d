"""Texts for a causal language model, from a folder or the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_darex.config import TaskConfig
from fl_darex.errors import ConfigError
from fl_darex.tasks.partitions import check_owner_column
from fl_darex.tasks.prompts import FORMATS, TextFormat
from fl_darex.tasks.sampling import set_apart, subsample
from fl_darex.tasks.sources import dataset_folder, load_hub_dataset
from fl_darex.tasks.splits import evaluation_split, training_split
from fl_darex.tasks.text_files import Table, from_arrow, read_folder

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class CausalData:
    """Examples to learn from and to measure on; no row is in two of them.

    Attributes:
        train: The format's columns and, where one is set, the owner's column.
        evaluation: What may be looked at after each round, and chosen by.
        test: What the final model alone is measured on; None = nothing.
        text_format: Which columns there are and how they are written.
    """

    train: Dataset
    evaluation: Dataset
    test: Dataset | None
    text_format: TextFormat


def load_causal_data(task: TaskConfig, owner: str = "", evaluate: bool = True) -> CausalData:
    """Read the data set of a task, and set evaluation and test examples apart.

    Evaluation examples are ``task.holdout`` of the training data if that is above 0, else the
    validation split, else the test split; with ``task.test`` the test split is never taken.

    Args:
        task: Where the data is, and how much of it to use.
        owner: A further column to keep, for the natural partition; empty = none.
        evaluate: Whether evaluation examples are needed; if not, there are none but held out ones.

    Raises:
        ConfigError: If the data cannot be found or read, or its columns do not fit.
    """
    splits = _used(task, _read(task), evaluate)
    if owner:
        check_owner_column(owner, list(splits["train"].columns))
    text_format = find_format(task.dataset, list(splits.values()))
    for split, table in splits.items():
        _check_texts(text_format, split, table)
    keep = [*text_format.columns, *filter(None, [text_format.context, owner])]
    data = {split: _dataset(table, keep) for split, table in splits.items()}
    parts = [data[split] for split in ("train", "evaluation") if split in data]
    train, evaluation = set_apart(parts, task.holdout)
    return CausalData(
        train=subsample(train, task.train_examples, "train"),
        evaluation=subsample(evaluation, task.eval_examples, "evaluation"),
        test=data.get("test"),
        text_format=text_format,
    )


def find_format(name: str, tables: Sequence[Table]) -> TextFormat:
    """Return the first format whose columns every table has.

    Args:
        name: ``task.dataset``, for messages.
        tables: All that will be used.

    Raises:
        ConfigError: If there is none.
    """
    common = [c for c in tables[0].columns if all(c in table.columns for table in tables)]
    for text_format in FORMATS:
        if all(column in common for column in text_format.columns):
            return text_format
    known = "; ".join(" and ".join(text_format.columns) for text_format in FORMATS)
    raise ConfigError(
        f"task.dataset = {name!r} has no columns that a language model learns from; columns: "
        f"{', '.join(common)}; known: {known}"
    )


def _read(task: TaskConfig) -> dict[str, Table]:
    if not task.dataset:
        raise ConfigError(
            "task.dataset is empty; task.name = 'causal-lm' needs a folder with a train file, or "
            "a hub name"
        )
    folder = dataset_folder(task, "train.*")
    if folder is None:
        return {split: from_arrow(data) for split, data in load_hub_dataset(task).items()}
    return read_folder(folder)


def _used(task: TaskConfig, found: Mapping[str, Table], evaluate: bool) -> dict[str, Table]:
    """Return the splits that play a part: train, evaluation (not if held out), test (if asked)."""
    hint = "the file train.jsonl, .json, .csv or .parquet"
    used = {"train": training_split(task.dataset, found, hint)}
    if task.test:
        if "test" not in found:
            raise ConfigError(
                f"task.test = true, but task.dataset = {task.dataset!r} has no test split; found "
                f"{', '.join(found)}; set task.test = false"
            )
        used["test"] = found["test"]
    if not task.holdout and evaluate:
        free = {split: table for split, table in found.items() if split not in used}
        used["evaluation"] = evaluation_split(task.dataset, free, lambda _: False)[1]
    return used


def _check_texts(text_format: TextFormat, split: str, table: Table) -> None:
    """Refuse what is no text or empty: an empty answer teaches a model to say nothing."""
    for column in text_format.columns:
        for number, text in enumerate(table.columns[column], start=1):
            if not isinstance(text, str) or not text.strip():
                raise ConfigError(
                    f"column {column!r}, row {number} of the {split} data: {text!r} is "
                    f"{'empty' if isinstance(text, str) else 'not a text'}; every row needs one, "
                    "so fill it in or remove the row"
                )
    for number, text in enumerate(table.columns.get(text_format.context, []), start=1):
        if text is not None and not isinstance(text, str):
            raise ConfigError(
                f"column {text_format.context!r}, row {number} of the {split} data: {text!r} is "
                "not a text; write it in quotes, or leave it empty"
            )


def _dataset(table: Table, keep: Sequence[str]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_dict({name: table.columns[name] for name in keep if name in table.columns})
