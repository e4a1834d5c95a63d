"""One run seed, and an independent number from it for each use.

Seeds come from what a use *is* (run, round, partition, name), never from node ids, process ids
or a global random generator, so a run gives the same result on any engine, with any number of
workers and in any order of arrival.
"""

from __future__ import annotations

import hashlib
from numbers import Integral


def derive(seed: int, *labels: int | str) -> int:
    """Return a 63-bit number that depends on the seed and on every label.

    Labels are length-prefixed before hashing (BLAKE2b), so ``("ab", "c")`` and ``("a", "bc")``
    give different numbers. 63 bits fit a signed int64 and every generator's seed.

    Args:
        seed: The run's seed, any integer.
        labels: What the number is for, for example ``("train", round, partition)``.
    """
    digest = hashlib.blake2b(digest_size=8)
    for label in (seed, *labels):
        # NumPy's integers are integers too: a partition may arrive as one.
        text = (f"int:{int(label)}" if isinstance(label, Integral) else f"str:{label}").encode()
        digest.update(len(text).to_bytes(4, "little") + text)
    return int.from_bytes(digest.digest(), "little") >> 1
