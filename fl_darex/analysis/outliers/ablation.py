"""What one dimension's deltas are worth: a model without them (Table 14).

"DARE the Extreme", App. D.2: without the deltas of dimension 1512, a massive activation that
came with fine-tuning, MetaMath-llema-7B falls from 64.5 to 48.0 on GSM8K.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def ablate_dimension(
    model: torch.nn.Module, base: Mapping[str, Any], dimension: int, weights: Iterable[str]
) -> Iterator[int]:
    """Put one input dimension of linear weights back to the base, for a while, in place.

    ``with ablate_dimension(...) as changed:`` gives how many entries had another value. On the
    way out every entry has its bits again, whatever happened.

    Args:
        model: The tuned model.
        base: The pre-trained weights by name, torch or NumPy.
        dimension: The column of each weight: which dimension of the residual stream.
        weights: Names of weights, shape (outputs, inputs): for Table 14 those that
            ``residual_readers`` finds inside transformer layers. A weight that is tied to an
            embedding changes the embedding too.

    Raises:
        ValueError: If a name is not in the model or the base, a shape differs, or there is no
            such dimension.
    """
    state = model.state_dict()
    columns = [_column(state, base, name, dimension) for name in dict.fromkeys(weights)]
    saved = [column.clone() for column, _ in columns]
    changed = 0
    try:
        for column, original in columns:
            changed += int((column != original).sum())
            column.copy_(original)
        yield changed
    finally:
        for (column, _), tuned in zip(columns, saved, strict=True):
            column.copy_(tuned)


def ablations(
    model: torch.nn.Module,
    base: Mapping[str, Any],
    dimensions: Iterable[int],
    weights: Iterable[str],
    evaluate: Callable[[], float],
) -> dict[int | None, float]:
    """Return Table 14: the result without each dimension's deltas, and under None with all.

    Args:
        model: The tuned model, as it is evaluated.
        base: The pre-trained weights by name.
        dimensions: Which to leave out, one at a time.
        weights: As for ``ablate_dimension``.
        evaluate: Measures the model as it is now.
    """
    names = tuple(weights)
    table: dict[int | None, float] = {None: evaluate()}
    for dimension in dimensions:
        with ablate_dimension(model, base, dimension, names):
            table[dimension] = evaluate()
    return table


def _column(
    state: Mapping[str, torch.Tensor], base: Mapping[str, Any], name: str, dimension: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a view of one column of a weight, and what the base has there."""
    for where, tensors in (("model", state), ("base", base)):
        if name not in tensors:
            raise ValueError(f"the {where} has no weight {name!r}")
    weight, original = state[name], torch.as_tensor(base[name]).detach()
    if weight.shape != original.shape or weight.dim() != 2:
        raise ValueError(
            f"{name} has shape {tuple(weight.shape)}, its base {tuple(original.shape)}; both must "
            "be (outputs, inputs)"
        )
    if not 0 <= dimension < weight.shape[1]:
        raise ValueError(
            f"dimension = {dimension}: {name} has {weight.shape[1]} inputs; allowed: 0 to "
            f"{weight.shape[1] - 1}"
        )
    column = weight[:, dimension]
    return column, original[:, dimension].to(column.device, column.dtype)
