"""The masks of `fl_darex.masks`, drawn where a torch tensor lives.

The same integers on every device: torch has no full unsigned 64-bit arithmetic on CUDA, so this
is signed arithmetic, which wraps alike, with the sign bits of shifts masked out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fl_darex.masks.gaps import draws, tables
from fl_darex.masks.keys import BLOCK, FIRST, GOLDEN, ONE, SECOND

_AT_ONCE = 1 << 24  # draws at once: some hundred megabytes of temporaries


def survivors(key: int, numel: int, keep: int, device: torch.device | str) -> Tensor:
    """Return the sorted positions that survive, as int64 on ``device``.

    They are those of `fl_darex.masks.survivors`, whatever the device.

    Args:
        key: From `fl_darex.masks.mask_key`.
        numel: Number of entries, 0 or more.
        keep: Keep threshold in [1, ONE].
        device: Where to draw and to leave the positions.
    """
    if keep == ONE or not numel:
        return torch.arange(numel, device=device)
    rising = torch.from_numpy(tables(keep)[1][::-1].astype("int64")).to(device)
    blocks = -(-numel // BLOCK)
    at_once = max(1, _AT_ONCE // draws(BLOCK, keep))
    parts = [
        _blocks(key, first, min(first + at_once, blocks), numel, keep, rising)
        for first in range(0, blocks, at_once)
    ]
    return torch.cat(parts)


def _blocks(key: int, first: int, end: int, numel: int, keep: int, rising: Tensor) -> Tensor:
    numbers = torch.arange(first, end, device=rising.device)
    start = numbers * BLOCK
    length = torch.clamp(numel - start, max=BLOCK)[:, None]
    stream = _mix(_signed(key) + (numbers + 1) * _signed(GOLDEN))[:, None]
    count, parts, drawn = draws(int(length.max()), keep), [], 0
    reached = torch.zeros_like(length)
    while bool((reached < length).any()):
        moved = reached + torch.cumsum(_gaps(stream, drawn, count, rising), dim=1)
        parts.append(moved)
        reached, drawn = moved[:, -1:], drawn + count
    positions = torch.cat(parts, dim=1)
    return (positions - 1 + start[:, None])[positions <= length]


def _gaps(stream: Tensor, first: int, count: int, rising: Tensor) -> Tensor:
    counters = torch.arange(first // 2, (first + count) // 2, device=stream.device)
    outputs = _mix(stream + counters * _signed(GOLDEN))
    halves = torch.stack([outputs & (ONE - 1), _shift(outputs, 32)], dim=-1)
    uniform = halves.reshape(stream.shape[0], count)
    return 1 + rising.numel() - torch.searchsorted(rising, uniform, right=True)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _signed(FIRST)
    z = (z ^ _shift(z, 27)) * _signed(SECOND)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros, as unsigned numbers do."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
