"""Task ``text-classification``: any encoder on any data set of texts or pairs of texts."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from fl_darex.config import RunConfig
from fl_darex.seeds import derive
from fl_darex.tasks.classifier import build_classifier
from fl_darex.tasks.metrics import METRICS, choose_metric
from fl_darex.tasks.partitions import Partitions
from fl_darex.tasks.sampling import take_validation
from fl_darex.tasks.task import Example, Task, check_evaluation_shares
from fl_darex.tasks.text_data import load_text_data
from fl_darex.tasks.text_model import load_encoder_config, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_text_task(config: RunConfig) -> Task:
    """Return the task: texts are kept as they are and turned into tokens batch by batch.

    Labels with a fraction make it a regression, all others a classification.

    Raises:
        ConfigError: If the model or the data cannot be used, or do not fit the settings.
    """
    from transformers import AutoModelForSequenceClassification

    task, federation = config.task, config.federation
    encoder = load_encoder_config(task.model)
    tokenizer = load_tokenizer(task.model, encoder, task.max_length)
    owner = federation.partition_column if federation.partition == "natural" else ""
    data = load_text_data(task, owner, federation.evaluate != "none")
    train, validation = take_validation(data.train, config)
    metric = choose_metric(task.metric, data.classes, task.subset)
    if federation.evaluate == "clients":
        check_evaluation_shares(len(data.evaluation), federation.clients)
    return Task(
        metric_name=metric,
        train=train,
        evaluation=data.evaluation,
        partitions=Partitions(train, data.classes, federation),
        collate=functools.partial(
            collate,
            tokenizer=tokenizer,
            columns=data.text_columns,
            max_length=task.max_length,
            label_type=torch.int64 if data.classes else torch.float32,
        ),
        build=functools.partial(
            build_classifier,
            task.model,
            AutoModelForSequenceClassification,
            data.label_names,
            derive(federation.seed, "head"),
        ),
        metric=METRICS[metric],
        validation=validation,
        processor=tokenizer,
    )


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
