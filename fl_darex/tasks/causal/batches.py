"""Batches for a causal language model: one example a row, or several without mixing them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from fl_darex.tasks.causal.tokens import IGNORED, Tokens


def pad_right(examples: Sequence[Tokens], pad: int) -> dict[str, torch.Tensor]:
    """Return a row for each example, padded behind it, as for training.

    Args:
        examples: At least one.
        pad: The padding token. It may be one that occurs in texts: the mask comes from lengths.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``, int64 ``(examples, longest)``.
    """
    return {
        "input_ids": _stacked([e.ids for e in examples], pad),
        "attention_mask": _stacked([[1] * len(e.ids) for e in examples], 0),
        "labels": _stacked([e.labels for e in examples], IGNORED),
    }


def pad_left(prompts: Sequence[list[int]], pad: int) -> dict[str, torch.Tensor]:
    """Return a row for each prompt, padded before it, so that new tokens follow its end.

    Returns:
        ``input_ids`` and ``attention_mask``, int64 ``(prompts, longest)``.
    """
    return {
        "input_ids": _stacked(prompts, pad, "left"),
        "attention_mask": _stacked([[1] * len(ids) for ids in prompts], 0, "left"),
    }


def pack(examples: Sequence[Tokens], width: int, pad: int) -> dict[str, torch.Tensor]:
    """Lay a batch's examples into few rows; each attends to itself alone.

    No example is cut or lost, and positions start anew with each: the loss is that of
    ``pad_right`` up to rounding, with less padding to compute.

    Args:
        examples: At least one, none longer than ``width``.
        width: Tokens of a row at most.
        pad: The padding token.

    Returns:
        ``input_ids``, ``position_ids`` and ``labels``, int64 ``(rows, longest)``, and
        ``attention_mask``, float32 ``(rows, 1, longest, longest)``: 0 where a token (third
        axis) sees another (fourth axis), else the lowest number, to be added to the scores.
    """
    rows = [[examples[i] for i in row] for row in first_fit([len(e.ids) for e in examples], width)]
    owners = _stacked([[n for n, e in enumerate(row) for _ in e.ids] for row in rows], -1)
    mine = owners[:, :, None] == owners[:, None, :]
    seen = mine.tril()[:, None]
    lowest = torch.finfo(torch.float32).min
    return {
        "input_ids": _stacked([[t for e in row for t in e.ids] for row in rows], pad),
        "position_ids": _stacked([[p for e in row for p in range(len(e.ids))] for row in rows], 0),
        "attention_mask": torch.zeros(seen.shape).masked_fill(~seen, lowest),
        "labels": _stacked([[t for e in row for t in e.labels] for row in rows], IGNORED),
    }


def first_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Return the items of each row: the longest first, each into the first row with room.

    Args:
        lengths: Length of each item, at most ``width``.
        width: Room of a row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, left in enumerate(room) if left >= lengths[item]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append(item)
        room[row] -= lengths[item]
    return rows


def _stacked(rows: Sequence[list[int]], fill: int, side: str = "right") -> torch.Tensor:
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=fill, padding_side=side)
