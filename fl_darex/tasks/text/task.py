"""Task ``text-classification``: any encoder on any data set of texts or pairs of texts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fl_darex.config import RunConfig, TaskConfig
from fl_darex.errors import ConfigError
from fl_darex.tasks.heads import Head, choose_head
from fl_darex.tasks.labels import Encoded, Labels, encode_labels
from fl_darex.tasks.lengths import check_length
from fl_darex.tasks.metrics import choose_metric
from fl_darex.tasks.preparation import owner_column, prepare
from fl_darex.tasks.pretrained import (
    build_classifier,
    load_config_of_kind,
    load_tokenizer,
    model_class,
    pad_with_end,
)
from fl_darex.tasks.readers import Table
from fl_darex.tasks.rows import Example
from fl_darex.tasks.tables import check_text, choose_columns, named_columns, read_parts
from fl_darex.tasks.task import LoadedModel, Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


# The columns of GLUE's subsets and of most others; the first row that is there counts.
TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("premise", "hypothesis"),
    ("sentence",),
    ("text",),
)
_TRIED = 100  # rows in which a long text is looked for


def load_text_task(config: RunConfig) -> Task:
    """Return the task: texts are kept as they are and turned into tokens batch by batch.

    Labels with a fraction make it a regression, all others a classification.

    Raises:
        ConfigError: If the model or the data cannot be used, or do not fit the settings.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as KNOWN

    task = config.task
    encoder = load_config_of_kind(
        task,
        "an encoder: a folder or a hub name such as 'distilbert/distilbert-base-uncased'",
        lambda found: type(found) in KNOWN,
        "which does not classify texts; give a text encoder such as BERT, DistilBERT or RoBERTa",
    )
    kind = model_class(encoder, KNOWN)
    tokenizer, padded = _tokenizer(task, encoder, kind)
    data = _load_data(config)
    head, labels = choose_head(task.model, encoder, kind, data.labels)
    parts = {
        part: table.dataset([*data.columns, owner_column(config)], label=ids)
        for (part, table), ids in zip(data.tables.items(), labels.ids, strict=True)
    }
    batch = functools.partial(
        collate,
        tokenizer=tokenizer,
        columns=data.columns,
        max_length=task.max_length,
        label_type=torch.int64 if head.names else torch.float32,
    )
    long = long_text(data.tables["train"], data.columns, tokenizer, task.max_length)
    return prepare(
        config,
        parts,
        classes=len(head.names),
        metric_name=choose_metric(task.metric, len(head.names), task.subset),
        build=functools.partial(_build, task, head, tokenizer, batch, long),
        collate=batch,
        processor=tokenizer,
        notes=(*padded, *labels.notes),
    )


@dataclass(frozen=True)
class _Data:
    """Tables by the part that they play, the text columns, and the labels of each table."""

    tables: dict[str, Table]
    columns: tuple[str, ...]
    labels: Encoded


def _load_data(config: RunConfig) -> _Data:
    """Read the data set of a task: all rows of the splits that play a part.

    Raises:
        ConfigError: If the data cannot be found or read, or its columns do not fit.
    """
    task = config.task
    label = task.label_column or "label"
    parts = read_parts(config, "a folder with train and validation files", label)
    tables = list(parts.values())
    if task.label_column:
        (label,) = named_columns("task.label-column", task.label_column, parts, most=1)
    else:
        kind = "column 'label'"
        choose_columns(task.dataset, tables, [(label,)], kind, "task.label-column")
    if task.text_columns:
        columns = named_columns("task.text-columns", task.text_columns, parts)
    else:
        columns = choose_columns(task.dataset, tables, TEXT_COLUMNS, "text column")
    _check_roles(config, columns, label)
    for table in tables:
        for column in columns:
            for row, text in enumerate(table[column]):
                check_text(text, column, table.where(row))
    found = [Labels(table.labels(label), table.where) for table in tables]
    known = tables[0].class_names.get(label, ())
    return _Data(parts, columns, encode_labels(found, known, label))


def _check_roles(config: RunConfig, columns: tuple[str, ...], label: str) -> None:
    """Refuse a column that would be two things; class numbers are kept under the name 'label'."""
    owner = owner_column(config)
    if label in columns:
        raise ConfigError(
            f"column {label!r} is both text and label; set task.text-columns and task.label-column "
            "to different columns"
        )
    if label != "label" and "label" in (*columns, owner):
        key = "federation.partition-column" if owner == "label" else "task.text-columns"
        raise ConfigError(
            f"{key} = 'label', but the labels are in task.label-column = {label!r}; rename the "
            "column 'label'"
        )


def _build(
    task: TaskConfig,
    head: Head,
    tokenizer: PreTrainedTokenizerBase,
    batch: Callable[..., dict[str, torch.Tensor]],
    example: Example,
) -> LoadedModel:
    """Return the model with the tokenizer's padding, after a first pass at full length."""
    from transformers import AutoModelForSequenceClassification

    loaded = build_classifier(task.model, AutoModelForSequenceClassification, head)
    # Only now: some models count positions from their own padding token, which they know already.
    for config in (loaded.model.config, loaded.model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id

    def inputs(length: int) -> dict[str, torch.Tensor]:
        made = batch([example], max_length=length)
        return {name: tensor for name, tensor in made.items() if name != "labels"}

    key = f"task.max-length = {task.max_length}"
    check_length(task.model, loaded.model, inputs, task.max_length, key)
    return loaded


def collate(
    examples: list[Example],
    *,
    tokenizer: PreTrainedTokenizerBase,
    columns: tuple[str, ...],
    max_length: int,
    label_type: torch.dtype,
) -> dict[str, torch.Tensor]:
    """Return token ids and masks (batch, longest example) and ``labels`` (batch,).

    Tokens are made here rather than once for all: it takes about a hundredth of a step's time,
    and an example is then stored as its text alone.

    Args:
        examples: Rows with the text columns and ``label``.
        tokenizer: The model's.
        columns: One column, or two for a pair; a pair is cut at the longer text first.
        max_length: Tokens per example at most.
        label_type: int64 for classes, float32 for a regression.
    """
    texts = [[example[column] for example in examples] for column in columns]
    cut = {"truncation": True, "return_tensors": "pt"}
    batch = tokenizer(*texts, padding=True, max_length=max_length, **cut)
    if not batch["input_ids"].shape[1]:
        # Without special tokens an empty text has none: padding alone, as beside a longer one.
        batch = tokenizer(*texts, padding="max_length", max_length=1, **cut)
    labels = torch.tensor([example["label"] for example in examples], dtype=label_type)
    return {**batch, "labels": labels}


def long_text(
    table: Table, columns: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> Example:
    """Return an example of the data's own words that has at least so many tokens in each text."""
    texts = (text for column in columns for text in table[column][:_TRIED])
    words = max(texts, key=len)
    tokens = len(tokenizer(words, add_special_tokens=False)["input_ids"])
    return dict.fromkeys(columns, " ".join([words] * (length // max(1, tokens) + 1))) | {"label": 0}


def _tokenizer(
    task: TaskConfig, config: PretrainedConfig, kind: Any
) -> tuple[PreTrainedTokenizerBase, tuple[str, ...]]:
    """Return the tokenizer of a class of models, able to pad, and a line where it was not."""
    found = load_tokenizer(task.model, config, task.max_length)
    notes: tuple[str, ...] = ()
    if pad_with_end(found):
        notes = (
            f"task.model = {task.model!r}: its tokenizer has no padding token; its end token "
            f"{found.eos_token!r} becomes that too",
        )
    if found.pad_token_id is None:
        raise ConfigError(
            f"task.model = {task.model!r}: its tokenizer has no padding token and no end token, so "
            "texts of different length make no batch; set pad_token and save the tokenizer again"
        )
    known = inspect.signature(kind.forward).parameters
    # A tokenizer may offer token types to a model that has none, and is refused by its forward.
    found.model_input_names = [name for name in found.model_input_names if name in known]
    if "position_ids" in known:
        # Positions count from the left: with padding there, they would go by the batch.
        found.padding_side = "right"
    return found, notes
