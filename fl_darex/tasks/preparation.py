"""What every task is made from in the same way: which rows are learned from and measured on.

A task reads its data and says how to turn them into batches, which model there is and how it is
measured; ``prepare`` does the rest. Choices of rows do not depend on the run's seed: runs that
differ in their seed alone are measured on the same examples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fl_darex.config import RunConfig
from fl_darex.errors import ConfigError
from fl_darex.rescaling.rules import SERVER_RULES
from fl_darex.seeds import derive
from fl_darex.tasks.labels import hidden
from fl_darex.tasks.metrics import METRICS, Metric, choose_metric
from fl_darex.tasks.partitions import Partitions, check_owner_column
from fl_darex.tasks.rows import Example, Rows, pick
from fl_darex.tasks.task import LoadedModel, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

    from fl_darex.tasks.readers import Table

_EVALUATION = ("validation", "validation_matched", "test")


def owner_column(config: RunConfig) -> str:
    """Return the column that the natural partition needs; empty = none."""
    federation = config.federation
    return federation.partition_column if federation.partition == "natural" else ""


def choose_splits(
    config: RunConfig, found: Mapping[str, Table | Dataset], hint: str, label: str = ""
) -> dict[str, str]:
    """Return which split plays which part: ``train``, ``evaluation`` and ``test``.

    Evaluation examples come from the validation split, else from the test split; they play no
    part where some are taken out of train or nothing is evaluated. With ``task.test`` the test
    split is for the final model alone.

    Args:
        config: The run's configuration.
        found: Every split by name.
        hint: What to do where there is no training data, for a person.
        label: The column of labels; a split whose labels were withheld is passed over;
            empty = there are none.

    Raises:
        ConfigError: If a split is missing, or train has no column with owners that is asked for.
    """
    task = config.task
    if "train" not in found:
        names = ", ".join(found) or _nothing(Path(task.dataset).expanduser())
        raise ConfigError(
            f"task.dataset = {task.dataset!r} has no training data; found {names}; name {hint}"
        )
    if owner := owner_column(config):
        check_owner_column(owner, found["train"].column_names)
    parts = {"train": "train"}
    if task.test:
        if "test" not in found:
            raise ConfigError(
                f"task.test = true, but task.dataset = {task.dataset!r} has no test split; found "
                f"{', '.join(found)}; set task.test = false"
            )
        parts["test"] = "test"
    if not (task.holdout or task.tuning_examples) and config.federation.evaluate != "none":
        parts["evaluation"] = _evaluation_split(config, found, label)
    return parts


def _nothing(folder: Path) -> str:
    others = sorted(path.name for path in folder.glob("[!.]*"))
    if (folder / "train").is_dir():
        return "a folder train, which is for task.name = 'image-classification'"
    more = f" and {len(others) - 5} more" if len(others) > 5 else ""
    among = f" among {', '.join(others[:5])}{more}" if others else ""
    return f"no file named train, validation or test{among}"


def _evaluation_split(config: RunConfig, found: Mapping[str, Table | Dataset], label: str) -> str:
    note = ""
    for split in _EVALUATION:
        if split in found and not (split == "test" and config.task.test):
            if not label or not _without_labels(found, split, label):
                return split
            note = f" (the {split} split has no labels)"
    tenth = max(1, len(found["train"]) // 10)
    raise ConfigError(
        f"task.dataset = {config.task.dataset!r} has no examples to evaluate on{note}; set "
        f"task.holdout to the number of training examples to keep apart, e.g. {tenth}"
    )


def _without_labels(found: Mapping[str, Table | Dataset], split: str, label: str) -> bool:
    columns = found[split].column_names
    if label in columns:
        return hidden(found[split][label][:])
    # Competitions publish their test texts so; a validation split that lacks them is a mistake.
    return split == "test" and label in found["train"].column_names


def prepare(
    config: RunConfig,
    parts: Mapping[str, Rows],
    *,
    collate: Callable[[list[Example]], dict[str, Tensor]],
    build: Callable[[], LoadedModel | torch.nn.Module],
    classes: int = 0,
    metric: Metric | None = None,
    metric_name: str = "",
    kind: Callable[..., Task] = Task,
    **own: Any,
) -> Task:
    """Return a task on rows that a task has read: held out, sampled, checked and partitioned.

    All settings of ``[task]`` that say how many examples there are, and all of ``[federation]``,
    mean the same for every task that comes from here.

    Args:
        config: The run's configuration.
        parts: ``train``, and ``evaluation`` and ``test`` where there are such rows.
        collate: See `Task`.
        build: Makes the model, or a ``LoadedModel``. What it draws from torch's global
            generator is drawn from the run's seed instead.
        classes: Number of classes that the column ``label`` has; 0 = it has none.
        metric: See `Task`; None: the row ``metric_name`` of ``METRICS``.
        metric_name: See `Task`; empty: what ``task.metric`` and the labels choose.
        kind: The class of the task, called with all attributes by name.
        **own: Further attributes of the task.

    Raises:
        ConfigError: If too few examples remain, they cannot be partitioned as asked, or the metric
            does not fit the labels.
    """
    task, federation = config.task, config.federation
    if metric is None:
        metric_name = metric_name or choose_metric(task.metric, classes)
        metric = METRICS[metric_name]
    train = parts["train"]
    evaluation = parts.get("evaluation", pick(train, []))
    if task.holdout:
        train, evaluation = _take(train, task.holdout, "holdout", "task.holdout", least=0)
    if task.tuning_examples:
        key = "task.tuning-examples"
        train, evaluation = _take(train, task.tuning_examples, "tuning", key, least=0)
    train = _subsample(train, task.train_examples, "train")
    evaluation = _subsample(evaluation, task.eval_examples, "evaluation")
    validation = None
    if config.compress.q in SERVER_RULES:
        count = config.server.validation_examples
        train, validation = _take(train, count, "validation", "server.validation-examples", least=1)
    made = kind(
        metric_name=metric_name,
        train=train,
        evaluation=evaluation,
        partitions=Partitions(train, classes, federation),
        collate=collate,
        build=functools.partial(_seeded, build, derive(federation.seed, "head")),
        metric=metric,
        validation=validation,
        test=parts.get("test"),
        classes=classes,
        **own,
    )
    if federation.evaluate == "clients":
        made.evaluation_partition(0)  # refuses here what it would refuse in a round
    return made


def _seeded(build: Callable[[], LoadedModel | torch.nn.Module], seed: int) -> LoadedModel:
    """Build a model from a seed; the global random generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        # The CPU's generator alone: torch.manual_seed would move those of GPUs too.
        torch.default_generator.manual_seed(seed)
        built = build()
    return built if isinstance(built, LoadedModel) else LoadedModel(built, ())


def _subsample(data: Rows, examples: int, label: str) -> Any:
    """Return ``examples`` of the data at random, in their old order; 0 or too many mean all.

    A smaller number gives a subset of a larger one's; different labels give independent samples.
    """
    if not 0 < examples < len(data):
        return data
    return pick(data, np.sort(_order(len(data), label)[:examples]))


def _take(train: Rows, examples: int, label: str, key: str, least: int) -> tuple[Any, Any]:
    """Take ``examples`` out of ``train``; return what remains, and them."""
    if examples >= len(train):
        raise ConfigError(
            f"{key} = {examples} leaves nothing of the {len(train)} training examples; "
            f"allowed: {least} to {len(train) - 1}"
        )
    order = _order(len(train), label)
    rest, taken = np.sort(order[examples:]), np.sort(order[:examples])
    return pick(train, rest), pick(train, taken)


def _order(length: int, label: str) -> np.ndarray:
    return np.random.default_rng(derive(0, "task", label)).permutation(length)
