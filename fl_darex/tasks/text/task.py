"""Task ``text-classification``: any encoder on any data set of texts or pairs of texts."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING

import torch

from fl_darex.config import RunConfig
from fl_darex.errors import ConfigError
from fl_darex.tasks.labels import encode_labels
from fl_darex.tasks.metrics import choose_metric
from fl_darex.tasks.preparation import owner_column, prepare
from fl_darex.tasks.pretrained import (
    build_classifier,
    load_config_of_kind,
    load_tokenizer,
    model_class,
)
from fl_darex.tasks.rows import Example
from fl_darex.tasks.tables import choose_columns, read_parts
from fl_darex.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset
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


def load_text_task(config: RunConfig) -> Task:
    """Return the task: texts are kept as they are and turned into tokens batch by batch.

    Labels with a fraction make it a regression, all others a classification.

    Raises:
        ConfigError: If the model or the data cannot be used, or do not fit the settings.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as KNOWN
    from transformers import AutoModelForSequenceClassification

    task = config.task
    encoder = load_config_of_kind(
        task,
        "an encoder: a folder or a hub name such as 'distilbert/distilbert-base-uncased'",
        lambda found: type(found) in KNOWN,
        "which does not classify texts; give a text encoder such as BERT, DistilBERT or RoBERTa",
    )
    tokenizer = _tokenizer(task.model, encoder, task.max_length)
    parts, columns, label_names = _load_data(config)
    return prepare(
        config,
        parts,
        classes=len(label_names),
        metric_name=choose_metric(task.metric, len(label_names), task.subset),
        build=functools.partial(
            build_classifier, task.model, AutoModelForSequenceClassification, label_names
        ),
        collate=functools.partial(
            collate,
            tokenizer=tokenizer,
            columns=columns,
            max_length=task.max_length,
            label_type=torch.int64 if label_names else torch.float32,
        ),
        processor=tokenizer,
    )


def _load_data(
    config: RunConfig,
) -> tuple[dict[str, Dataset], tuple[str, ...], tuple[str, ...]]:
    """Read the data set of a task: all rows of the splits that play a part.

    Returns:
        Rows by the part that they play, with the text columns, ``label`` and, where one is set,
        the owner's column; the text columns, one or two whose texts make a pair; and what each
        class was called in the data, empty for a regression.

    Raises:
        ConfigError: If the data cannot be found or read, or its columns do not fit.
    """
    name, owner = config.task.dataset, owner_column(config)
    read = read_parts(config, "a folder with train and validation files", "label")
    tables = list(read.values())
    choose_columns(name, tables, [("label",)], "column 'label'")
    columns = choose_columns(name, tables, TEXT_COLUMNS, "text column")
    for column in columns:
        for text, row in ((text, row) for t in tables for row, text in enumerate(t[column], 1)):
            if not isinstance(text, str):
                raise ConfigError(
                    f"column {column!r}, row {row}: {text!r} is not a text; every row needs one"
                )
    ids, names = encode_labels([table["label"] for table in tables], tables[0].label_names)
    encoded = zip(read, tables, ids, strict=True)
    parts = {
        part: table.dataset([*columns, owner], label=labels) for part, table, labels in encoded
    }
    return parts, columns, names


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
    batch = tokenizer(
        *texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt"
    )
    labels = torch.tensor([example["label"] for example in examples], dtype=label_type)
    return {**batch, "labels": labels}


def _tokenizer(name: str, config: PretrainedConfig, max_length: int) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer; one without padding, or of another model, is refused."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    found = load_tokenizer(name, config, max_length)
    if found.pad_token is None:
        raise ConfigError(
            f"task.model = {name!r}: its tokenizer has no padding token, so texts of different "
            "length make no batch; give an encoder such as BERT, DistilBERT or RoBERTa"
        )
    # A tokenizer may offer token types to a model that has none, and is refused by its forward.
    model = model_class(config, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)
    known = inspect.signature(model.forward).parameters
    found.model_input_names = [name for name in found.model_input_names if name in known]
    return found
