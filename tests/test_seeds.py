"""`derive` against literals, a plain transcription, and collisions of careless hashing."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_darex.seeds import derive

LABELS = st.lists(st.integers(-(2**70), 2**70) | st.text(max_size=8), max_size=5)

GOLDEN = [
    ((0,), 1887154467326967967),
    ((0, "train", 1, 2), 3830001575259641182),
    ((42, "sample", 3), 7750386572211148047),
    ((-5, "größe"), 1418797028175625040),
]


def plain(*labels: int | str) -> int:
    """The definition on one page: length-prefixed ``type:label``, BLAKE2b, the upper 63 bits."""
    texts = [f"{type(label).__name__}:{label}".encode() for label in labels]
    joined = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    return int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "little") // 2


@pytest.mark.parametrize(("labels", "number"), GOLDEN)
def test_derived_seeds_never_change(labels, number):
    assert derive(*labels) == number


@settings(deadline=None)
@given(st.integers(), LABELS)
def test_derive_is_the_plain_definition(seed, labels):
    assert derive(seed, *labels) == plain(seed, *labels)


@settings(deadline=None)
@given(st.integers(), LABELS)
def test_a_derived_seed_fits_a_signed_64_bit_number(seed, labels):
    assert 0 <= derive(seed, *labels) < 2**63


@settings(deadline=None)
@given(st.tuples(st.integers(), LABELS), st.tuples(st.integers(), LABELS))
def test_different_labels_have_different_seeds(one, other):
    # True with probability 1 - 2**-63 for each pair.
    assert (derive(one[0], *one[1]) == derive(other[0], *other[1])) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", "c"), ("a", "bc")),
        (("abc",), ("a", "bc")),
        (("a", ""), ("a",)),
        ((1,), ("1",)),
        ((1, 2), (12,)),
        ((1, 2), (2, 1)),
        (("a|b",), ("a", "b")),
        (("int:1",), (1,)),
        (("listen",), ("silent",)),
    ],
)
def test_the_border_between_labels_and_their_order_and_type_count(one, other):
    assert derive(0, *one) != derive(0, *other)


def test_the_seed_and_the_first_label_do_not_mix():
    assert len({derive(1, 23), derive(12, 3), derive(123), derive(1, 2, 3)}) == 4


def test_every_bit_of_a_derived_seed_is_fair():
    # Each bit of N hashes is Binomial(N, 1/2): standard error 1 / (2 sqrt N).
    count = 4000
    seeds = [derive(0, "fair", index) for index in range(count)]
    for bit in range(63):
        share = sum(seed >> bit & 1 for seed in seeds) / count
        assert abs(share - 0.5) <= 5 * 0.5 / count**0.5


def test_a_derived_seed_does_not_depend_on_the_process():
    code = "from fl_darex.seeds import derive; print(derive(42, 'sample', 3))"
    for hash_seed in ("0", "1"):
        told = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(told.stdout) == 7750386572211148047
