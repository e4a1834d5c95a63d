"""EDEN: one to four bits a number, rounded after a random rotation; unbiased.

Vargaftik et al., "DRIVE: One-bit Distributed Mean Estimation", NeurIPS 2021, arXiv 2105.08339 (one
bit), and "EDEN: Communication-Efficient and Robust Distributed Mean Estimation for Federated
Learning", ICML 2022, arXiv 2108.08842. A rotated block looks like numbers of a normal distribution,
whatever it was before, so one table of levels, the best for that distribution (Lloyd-Max), does for
all. Its scale then makes the mean over rotations what was written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fl_darex.errors import Reason
from fl_darex.positions.bits import pack, unpack
from fl_darex.positions.mask import refuse
from fl_darex.wire.codings import rotation
from fl_darex.wire.codings.coding import Coding, Nature, Numbers, check_no_exponent
from fl_darex.wire.codings.floats import from_bfloat16, to_bfloat16

Scale = Literal["unbiased", "least-squares"]
SCALES: tuple[Scale, ...] = get_args(Scale)

_KEY, _SCALE = 8, 2  # bytes: what the rotation is drawn from, once; a block's scale
_ROUND_OFF = 1.001  # of some thirty additions

# Levels above 0 and what lies between them, for numbers of mean 0 and variance 1. A single bit has
# one magnitude, which the scale brings along.
_LEVELS: dict[int, tuple[float, ...]] = {
    1: (1.0,),
    2: (0.45278004, 1.5104176),
    3: (0.24509418, 0.7560053, 1.3439093, 2.1519456),
    4: (0.12839504, 0.3880483, 0.65675914, 0.94234043, 1.2562312, 1.6180464, 2.0690172, 2.7325895),
}
_BORDERS: dict[int, tuple[float, ...]] = {
    1: (),
    2: (0.981598822,),
    3: (0.50054973, 1.04995728, 1.74792749),
    4: (0.258221665, 0.522403709, 0.799549788, 1.09928583, 1.43713879, 1.84353181, 2.4008034),
}
_NMSE = {1: 0.5707963, 2: 0.1331212, 3: 0.0357840, 4: 0.0095921}


@dataclass(frozen=True)
class Eden(Coding):
    """Numbers of ``width`` bits.

    Attributes:
        width: Bits a number, 1 to 4.
        scale: ``"unbiased"``: the mean over rotations is what was written; ``"least-squares"``: as
            near to it as can be, and shorter by ``1 / (1 + nmse)``. A reader need not know.
    """

    width: int
    scale: Scale = "unbiased"

    block = rotation.BLOCK

    @property
    def name(self) -> str:
        """``"eden1"`` to ``"eden4"``."""
        return f"eden{self.width}"

    @property
    def code(self) -> int:
        """The byte that names it in a packet."""
        return 6 + self.width

    @property
    def bits(self) -> float:
        """Bits per number, scales included, for many numbers."""
        return self.width + 8 * _SCALE / rotation.BLOCK

    @property
    def nmse(self) -> float:
        """Mean of ``||read - written||^2 / ||written||^2``; D / (1 - D) for a distortion of D.

        One bit: pi/2 - 1. With the least-squares scale it is D.
        """
        unbiased = _NMSE[self.width]
        return unbiased if self.scale == "unbiased" else unbiased / (1.0 + unbiased)

    @property
    def nature(self) -> Nature:
        """What becomes of numbers."""
        return Nature(nmse=self.nmse, zeros=False, rotated=True)

    def scaled(self, scale: Scale) -> Eden:
        """Return the coding that writes with another scale."""
        return replace(self, scale=scale)

    def size(self, count: int) -> int:
        """Return the bytes of ``count`` numbers."""
        if not count:
            return 0
        codes = rotation.padded(count) * self.width // 8
        return _KEY + _SCALE * rotation.block_count(count) + codes

    def write(self, numbers: Numbers, exponent: int, noise: NDArray[np.uint64]) -> bytes:
        """Return the bytes of finite numbers; the stream of rounding becomes the rotation's key."""
        if not numbers.size:
            return b""
        key = noise[:1].astype("<u8")
        scales, codes = [], []
        for _, start, rows, size in rotation.batches(numbers.size, 0, numbers.size):
            block = np.zeros(rows * size, dtype=np.float32)
            part = numbers[start : start + block.size]
            block[: part.size] = part
            scale, code = self._rounded(block.reshape(rows, size), key, start)
            scales.append(to_bfloat16(scale).astype("<u2").tobytes())
            codes.append(code)
        return b"".join([key.tobytes(), *scales, *codes])

    def largest(self, data: memoryview, count: int, exponent: int) -> float:
        """Check bytes from a stranger and return a bound of what they can stand for."""
        check_no_exponent(exponent)
        if not count:
            return 0.0
        end = _KEY + _SCALE * rotation.block_count(count)
        upper = np.frombuffer(data[_KEY:end], dtype="<u2")
        if (upper >= 0x7F80).any():  # infinite, NaN, or negative
            refuse("holds a scale that is no number above 0", Reason.VALUES)
        # A rotation keeps lengths: all of a block's may come together in one number.
        spread = _LEVELS[self.width][-1] * np.sqrt(min(rotation.padded(count), rotation.BLOCK))
        return float(from_bfloat16(upper).max()) * float(spread) * _ROUND_OFF

    def read(self, data: memoryview, count: int, exponent: int, start: int, end: int) -> Numbers:
        """Return numbers ``start`` to ``end - 1`` of ``count``."""
        if start >= end:
            return np.empty(0, dtype=np.float32)
        key = np.frombuffer(data[:_KEY], dtype="<u8").astype(np.uint64)
        body = data[_KEY + _SCALE * rotation.block_count(count) :]
        scales = from_bfloat16(np.frombuffer(data[_KEY : len(data) - len(body)], dtype="<u2"))
        parts, first = [], -1
        for block, position, rows, size in rotation.batches(count, start, end):
            first = position if first < 0 else first
            at, numel = position * self.width // 8, rows * size
            levels = self._levels(body[at : at + numel * self.width // 8], numel)
            back = rotation.rotate_back(levels.reshape(rows, size), key, position)
            back *= scales[block : block + rows, None] / np.float32(size)
            parts.append(back.reshape(-1))
        return np.concatenate(parts)[start - first : end - first]

    def _rounded(
        self, blocks: Numbers, key: NDArray[np.uint64], position: int
    ) -> tuple[Numbers, bytes]:
        """Return scales and codes of blocks of one size."""
        size = blocks.shape[1]
        square = _sum(np.square(blocks, dtype=np.float64))
        rotated = rotation.rotate(blocks, key, position)
        if self.width == 1:
            codes = np.packbits(rotated >= 0, bitorder="little").tobytes()
            both, own = _sum(np.abs(rotated)), np.full(square.shape, size, dtype=np.float64)
        else:
            chosen = self._nearest(rotated)
            codes = pack(chosen, self.width)
            levels = _both_signs(_LEVELS[self.width])[chosen].reshape(rotated.shape)
            both = _sum(np.multiply(rotated, levels, dtype=np.float64))
            own = _sum(np.square(levels, dtype=np.float64))
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            scales = square * size / both if self.scale == "unbiased" else both / own / size
            scales[square == 0] = 0.0
            return scales.astype(np.float32), codes

    def _nearest(self, rotated: Numbers) -> NDArray[np.int64]:
        """Return the codes of the levels that are nearest to numbers of each row's length."""
        size = rotated.shape[1]
        deviation = np.sqrt(_sum(np.square(rotated, dtype=np.float64)) / size)[:, None]
        borders, codes = _BORDERS[self.width], np.zeros(rotated.shape, dtype=np.uint8)
        for border in (*(-b for b in borders[::-1]), 0.0, *borders):
            codes += rotated >= (border * deviation).astype(np.float32)
        return codes.reshape(-1).astype(np.int64)

    def _levels(self, codes: memoryview, count: int) -> Numbers:
        """Return what codes stand for, before they are rotated back and scaled."""
        levels = _both_signs(_LEVELS[self.width])
        if self.width == 3:
            return levels[unpack(codes, count, self.width)]
        each = np.arange(256)[:, None] >> np.arange(0, 8, self.width) & (1 << self.width) - 1
        found: Numbers = levels[each][np.frombuffer(codes, dtype=np.uint8)]  # a byte at once
        return found


def _both_signs(levels: tuple[float, ...]) -> Numbers:
    """Return all levels in rising order: what each code stands for."""
    return np.array([*(-level for level in levels[::-1]), *levels], dtype=np.float32)


def _sum(numbers: NDArray[Any]) -> NDArray[np.float64]:
    """Return each row's sum, halves added to halves: the same bits on every machine."""
    while (half := numbers.shape[1] // 2) > 0:
        numbers = np.add(numbers[:, :half], numbers[:, half:], dtype=np.float64)
    return numbers[:, 0]


EDEN1, EDEN2, EDEN3, EDEN4 = Eden(1), Eden(2), Eden(3), Eden(4)


def scales_of(coding: Coding) -> tuple[Scale, ...]:
    """Return the scales that a coding can write with."""
    return SCALES if isinstance(coding, Eden) else ("unbiased",)


def check_scale(coding: Coding, scale: Scale) -> None:
    """Raise `ValueError` if a coding has no such scale."""
    if scale not in scales_of(coding):
        raise ValueError(
            f"scale = {scale!r} is for values = 'eden1' to 'eden4'; set scale = 'unbiased' for "
            f"{coding.name!r}, which has one scale only"
        )


def scaled(coding: Coding, scale: Scale) -> Coding:
    """Return a coding that writes with this scale; `ValueError` if it has no such one."""
    check_scale(coding, scale)
    return coding.scaled(scale) if isinstance(coding, Eden) else coding
