"""Labels as they stand in data: class ids and names, or amounts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fl_darex.errors import ConfigError

MAX_CLASSES = 1000
_KINDS = {
    type(None): "empty values",
    bool: "true and false",
    int: "whole numbers",
    float: "numbers with a fraction",
    str: "texts",
}


def encode_labels(
    labels: Sequence[list[Any]],
    known: tuple[str, ...],
    column: str = "label",
    limit: int = MAX_CLASSES,
) -> tuple[list[list[Any]], tuple[str, ...]]:
    """Return labels as class ids and the classes' names, or as floats and no names.

    Args:
        labels: The labels of each split; whole numbers or texts are classes, numbers with a
            fraction amounts.
        known: Names of the classes where the source knows them; position = label.
        column: The labels' column, for messages.
        limit: Classes at most; more are amounts by mistake.

    Raises:
        ConfigError: If the labels are of several kinds, of too many classes, or missing.
    """
    every = [label for part in labels for label in part]
    kinds = {type(label) for label in every}
    if float in kinds and kinds <= {int, float}:
        if not all(math.isfinite(label) for label in every):
            raise ConfigError(
                f"column {column!r} holds a number that is not finite; remove that row"
            )
        return [[float(label) for label in part] for part in labels], ()
    if kinds - {int, bool} and kinds != {str}:
        found = " and ".join(sorted(_KINDS.get(kind, kind.__name__) for kind in kinds))
        raise ConfigError(
            f"column {column!r} holds {found}; it must hold whole numbers or texts (classes), or "
            "numbers with a fraction (a regression), and nothing else"
        )
    values = list(range(len(known))) if known else sorted(set(every))
    ids = {value: position for position, value in enumerate(values)}
    if unknown := set(every) - set(ids):
        raise ConfigError(
            f"column {column!r} holds {min(unknown)!r}, which is none of its {len(known)} "
            "classes; remove the rows without a label"
        )
    if not 2 <= len(values) <= limit:
        raise ConfigError(
            f"column {column!r} holds {len(values)} different classes; allowed: 2 to {limit}; "
            "write 1.0 rather than 1 where labels are amounts (a regression)"
        )
    return [[ids[label] for label in part] for part in labels], known or tuple(map(str, values))


def hidden(labels: Sequence[Any]) -> bool:
    """Return whether every label is missing: a benchmark that keeps its test labels to itself."""
    # GLUE on the hub publishes its test texts with -1 for every label.
    return bool(labels) and all(label is None or label == -1 for label in labels)
