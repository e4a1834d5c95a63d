"""Which part of a data set is learned from, and which is measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from fl_darex.errors import ConfigError

_VALIDATION = ("validation", "validation_matched")

Data = TypeVar("Data")


def training_split(name: str, splits: Mapping[str, Data], hint: str) -> Data:
    """Return the split ``train``.

    Args:
        name: ``task.dataset``, for messages.
        splits: Everything that was found.
        hint: What to do where there is none, for a person.

    Raises:
        ConfigError: If there is none.
    """
    if "train" not in splits:
        found = ", ".join(splits) or "no file named train, validation or test"
        raise ConfigError(
            f"task.dataset = {name!r} has no training data; found {found}; name {hint}"
        )
    return splits["train"]


def evaluation_split(
    name: str, splits: Mapping[str, Data], is_hidden: Callable[[Data], bool]
) -> tuple[str, Data]:
    """Return name and content of the validation split, else of the test split.

    Args:
        name: ``task.dataset``, for messages.
        splits: Everything that was found.
        is_hidden: Whether a split's labels were withheld; such a split is passed over.

    Raises:
        ConfigError: If there is neither, or their labels were withheld.
    """
    note = ""
    for split in (*_VALIDATION, "test"):
        if split in splits:
            if not is_hidden(splits[split]):
                return split, splits[split]
            note = f" (the {split} split has no labels)"
    raise ConfigError(
        f"task.dataset = {name!r} has no examples to evaluate on{note}; set "
        "task.holdout to the number of training examples to keep apart, e.g. 500"
    )
