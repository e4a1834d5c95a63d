"""How packets write numbers: a table of codings, one file a family.

A new one is a class with what `Coding` asks for, and a row in the table. One from outside the
package is added with ``CODINGS.add(...)``, on both ends, before a packet is written or read.
"""

import numpy as np

from fl_darex.errors import ConfigError
from fl_darex.registry import Registry
from fl_darex.wire.codings.coding import Coding, Numbers, type_of
from fl_darex.wire.codings.floats import BF16, FP16, FP32, FP64
from fl_darex.wire.codings.integers import INT4, INT8, SIGN

__all__ = ["CODINGS", "Coding", "Numbers", "coding_of", "dense_coding", "type_of"]


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


CODINGS: Registry[Coding] = _Codings("coding", Coding, [FP32, FP16, BF16, INT8, INT4, SIGN, FP64])


def coding_of(code: int) -> Coding | None:
    """Return the coding that a packet's byte stands for; None: this side knows none."""
    return next((coding for coding in CODINGS.values() if coding.code == code), None)


def dense_coding(values: str) -> Coding:
    """Return how whole tensors are written beside survivors: in fp64 and fp32 as these, else fp16.

    A fresh head and running statistics are few numbers, and no random mask averages their
    rounding away.
    """
    return CODINGS[values if values in ("fp64", "fp32") else "fp16"]
