"""How packets write numbers: a table of codings, one file a family.

A new one is a class with what `Coding` asks for, and a row in the table. One from outside the
package is added with ``CODINGS.add(...)``, on both ends, before a packet is written or read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fl_darex.errors import ConfigError
from fl_darex.registry import Registry
from fl_darex.wire.codings.coding import Coding, Nature, Numbers, type_of
from fl_darex.wire.codings.eden import EDEN1, EDEN2, EDEN3, EDEN4, SCALES, Scale, scaled, scales_of
from fl_darex.wire.codings.floats import BF16, FP16, FP32, FP64
from fl_darex.wire.codings.integers import INT4, INT8, SIGN
from fl_darex.wire.codings.lookup import LOOKUP2
from fl_darex.wire.codings.qsgd import QSGD2, QSGD4, QSGD8

if TYPE_CHECKING:
    from fl_darex.delta import TensorSpec

__all__ = [
    "CODINGS",
    "FP16",
    "SCALES",
    "Coding",
    "Nature",
    "Numbers",
    "Scale",
    "coding_of",
    "dense_coding",
    "dense_parts",
    "dense_size",
    "nature_of",
    "scaled",
    "scales_of",
    "type_of",
]

LARGE = 1 << 12
"""Whole tensors of more entries are written by EDEN where survivors are."""


class _Codings(Registry[Coding]):
    def check(self, row: Coding) -> None:
        """Refuse what cannot be added: codes belong to one coding, and some to the format."""
        super().check(row)
        if type(row.code) is not int or not 128 <= row.code <= 255:
            raise ConfigError(
                f"coding {row.name!r} has the code {row.code!r}; allowed: 128 to 255, as those "
                "below belong to the format"
            )
        if type_of(row) not in (np.float32, np.float64):
            raise ConfigError(
                f"coding {row.name!r} has numbers of type {type_of(row)}; allowed: float32, float64"
            )
        for name, other in self.items():
            if other.code == row.code and name != row.name:
                raise ConfigError(
                    f"coding {row.name!r} has the code {row.code} of {name!r}; give it another one "
                    "from 128 to 255"
                )


_OWN = [FP32, FP16, BF16, INT8, INT4, EDEN4, EDEN3, EDEN2, EDEN1, SIGN, FP64]
_RIVALS = [QSGD8, QSGD4, QSGD2, LOOKUP2]  # what others have published, to compare with
CODINGS: Registry[Coding] = _Codings("coding", Coding, [*_OWN, *_RIVALS])


def coding_of(code: int) -> Coding | None:
    """Return the coding that a packet's byte stands for; None: this side knows none."""
    return next((coding for coding in CODINGS.values() if coding.code == code), None)


def dense_coding(values: str) -> Coding:
    """Return how whole tensors are written beside survivors: in fp64 and fp32 as these, else fp16.

    A fresh head and running statistics are few numbers, and no random mask averages their
    rounding away. EDEN has other rules: see `dense_parts`.
    """
    return CODINGS[values if values in ("fp64", "fp32") else "fp16"]


def dense_parts(
    values: str, specs: Sequence[TensorSpec]
) -> list[tuple[Coding, Sequence[TensorSpec]]]:
    """Return how whole tensors are written, and which of them, in their order in a packet.

    Beside EDEN's survivors two bytes a number would be most of a small packet. Running statistics,
    which go by magnitude, are written in int8; tensors of more than `LARGE` entries as survivors
    are; all others in eden3, whose noise is a thirtieth.
    """
    if not nature_of(values).rotated:
        return [(dense_coding(values), specs)]
    statistics = [spec for spec in specs if spec.statistic]
    large = [spec for spec in specs if spec.numel > LARGE and not spec.statistic]
    small = [spec for spec in specs if spec.numel <= LARGE and not spec.statistic]
    return [(INT8, statistics), (EDEN3, small), (CODINGS[values], large)]


def nature_of(values: str) -> Nature:
    """Return what becomes of numbers in a coding, of EDEN with the unbiased scale."""
    found: Nature = getattr(CODINGS.choose(values), "nature", Nature())  # few have it
    return found


def dense_size(values: str, specs: Sequence[TensorSpec]) -> int:
    """Return the bytes of whole tensors."""
    parts = dense_parts(values, specs)
    return sum(coding.size(sum(spec.numel for spec in some)) for coding, some in parts)
