"""In which order examples are learned from, and how they are cut into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

_TOGETHER = 50  # batches whose examples change places to find others of their length


def shuffled(
    examples: Sequence[dict[str, Any]], size: int, seed: int, *, by_length: bool = False
) -> Iterator[list[dict[str, Any]]]:
    """Yield batches for ever, in a new order each pass, cut by `batch_starts`.

    Args:
        examples: Rows.
        size: Of a batch.
        seed: Of the order.
        by_length: Whether 50 batches at a time are filled anew with examples of like length, which
            need little padding. Which come together is less random then, their order as random.
            Examples without text are not grouped.
    """
    by_length = by_length and any(isinstance(value, str) for value in examples[0].values())
    generator = torch.Generator().manual_seed(seed)
    starts = batch_starts(len(examples), size)
    bounds = list(zip(starts, [*starts[1:], len(examples)], strict=True))
    while True:
        order = torch.randperm(len(examples), generator=generator).tolist()
        if not by_length:
            yield from ([examples[index] for index in order[start:end]] for start, end in bounds)
            continue
        for first in range(0, len(bounds), _TOGETHER):
            some = bounds[first : first + _TOGETHER]
            near = order[some[0][0] : some[-1][1]]
            near.sort(key=lambda index: text_length(examples[index]))
            batches = [near[start - some[0][0] : end - some[0][0]] for start, end in some]
            for place in torch.randperm(len(batches), generator=generator).tolist():
                yield [examples[index] for index in batches[place]]


def batch_starts(examples: int, size: int) -> list[int]:
    """Return where each batch of a pass begins; the last one may be small, but for one example.

    That one joins the batch before: batch normalisation has no variance of it, and the client
    would be lost. Only batches of one are left as they are, where ``train.batch-size`` is 1.
    """
    starts = list(range(0, examples, size))
    lonely = size > 1 and len(starts) > 1 and examples - starts[-1] == 1
    return starts[:-1] if lonely else starts


def text_length(example: dict[str, Any]) -> int:
    """Return how many characters an example has: what it takes of a batch, about."""
    return sum(len(value) for value in example.values() if isinstance(value, str))
