"""QSGD: integers of 8, 4 or 2 bits times a share of their block's length, rounded at random.

Alistarh, Grubic, Li, Tomioka, Vojnovic, "QSGD: Communication-Efficient SGD via Gradient
Quantization and Encoding", NeurIPS 2017, https://arxiv.org/abs/1610.02132, Sec. 3.1 and 3.3: with s
levels, ``Q(v_i) = |v| sign(v_i) l / s``, the integer l being next to ``s |v_i| / |v|``, up or down
at random, so that the mean is v_i. |v| is the l2 norm of a bucket; here buckets are the format's
blocks of 256 numbers, and a norm is sent in two bytes, rounded up.
"""

from __future__ import annotations

import numpy as np

from fl_darex.wire.codings import scales
from fl_darex.wire.codings.coding import Numbers
from fl_darex.wire.codings.integers import Integer


class _Qsgd(Integer):
    """As int8 and int4, whose largest code stands for the block's largest number, not its length.

    A single number may be as large as the block is long, so no code ever passes s; but most codes
    are small. For normal numbers the squared error over the squared length is .0026 in 8 bits
    (int8: .0001), .87 in 4 (int4: .03) and 11.8 in 2. Elias codes, by which the paper sends the
    many zeros in fewer bits, are left out: a packet's sections have lengths that follow from their
    number of entries, so that nothing is read before it is known to be there.
    """

    def _tops(self, numbers: Numbers) -> Numbers:
        """Return the length of each block."""
        if not numbers.size:
            return np.zeros(0, dtype=np.float32)
        starts = np.arange(0, numbers.size, scales.BLOCK)
        squares = np.add.reduceat(np.square(numbers, dtype=np.float64), starts)
        with np.errstate(over="ignore"):  # who writes asks whether the scale is finite
            # The next number up: no shorter than any number in it.
            return np.nextafter(np.sqrt(squares).astype(np.float32), np.float32(np.inf)) * (
                squares > 0
            )


class _Qsgd8(_Qsgd):
    name, code, bits = "qsgd8", 11, 8 + scales.BITS
    width, top = 8, 127


class _Qsgd4(_Qsgd):
    name, code, bits = "qsgd4", 12, 4 + scales.BITS
    width, top = 4, 7


class _Qsgd2(_Qsgd):
    name, code, bits = "qsgd2", 13, 2 + scales.BITS
    width, top = 2, 1


QSGD8, QSGD4, QSGD2 = _Qsgd8(), _Qsgd4(), _Qsgd2()
