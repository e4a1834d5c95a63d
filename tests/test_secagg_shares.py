"""Secrets are rebuilt from shares of which some are wrong, and the wrong ones are named."""

from __future__ import annotations

import random
import time

import pytest
from Crypto.Protocol.SecretSharing import Shamir
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_darex.secagg.shares import combine, split

SECRET = bytes(range(16))


def test_shares_are_those_of_pycryptodome() -> None:
    shares = dict(enumerate(split(SECRET, 4, 7)))
    some = [(holder + 1, shares[holder]) for holder in (6, 1, 3, 4)]
    assert Shamir.combine(some, ssss=False) == SECRET
    found = combine({holder - 1: share for holder, share in some}, 4, SECRET.__eq__)
    assert found == (SECRET, frozenset(), True)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 10).flatmap(lambda n: st.tuples(st.just(n), st.integers(2, n))), st.data())
def test_as_many_wrong_shares_as_there_are_more_than_needed_are_corrected(
    case: tuple[int, int], data: st.DataObject
) -> None:
    holders, threshold = case
    shares = dict(enumerate(split(SECRET, threshold, holders)))
    most = min(3, holders - threshold)
    bad = data.draw(st.sets(st.integers(0, holders - 1), max_size=most))
    for at in bad:
        shares[at] = bytes([shares[at][0] ^ 1]) + shares[at][1:]
    found = combine(shares, threshold, SECRET.__eq__)
    assert found is not None and found.secret == SECRET and found.sure
    if 2 * len(bad) <= holders - threshold + 1:  # more than that may tell any story
        assert found.wrong <= bad


@pytest.mark.parametrize("bad", [(0, 1), (0, 9), (4, 7)])
def test_two_wrong_shares_of_ten_with_threshold_seven_are_corrected(bad: tuple[int, ...]) -> None:
    shares = dict(enumerate(split(SECRET, 7, 10))) | dict.fromkeys(bad, bytes(16))
    found = combine(shares, 7, SECRET.__eq__)
    assert found is not None and found.secret == SECRET and found.sure
    assert found.wrong == frozenset(bad)


def test_four_wrong_shares_of_ten_with_threshold_seven_are_too_many() -> None:
    shares = dict(enumerate(split(SECRET, 7, 10))) | dict.fromkeys(range(4), bytes(16))
    assert combine(shares, 7, SECRET.__eq__) is None


def test_half_of_the_spare_shares_of_many_holders_may_be_wrong_and_it_takes_no_time() -> None:
    shares = dict(enumerate(split(SECRET, 67, 100)))
    bad = random.Random(0).sample(range(100), 16)
    found = combine(shares | dict.fromkeys(bad, bytes(16)), 67, SECRET.__eq__)
    assert found == (SECRET, frozenset(bad), True)
    bad = random.Random(0).sample(range(100), 30)
    start = time.perf_counter()
    assert combine(shares | dict.fromkeys(bad, bytes(16)), 67, SECRET.__eq__) is None
    assert time.perf_counter() - start < 60  # C(100, 30) trials would take for ever


def test_what_is_known_of_a_secret_may_be_the_lie() -> None:
    """All shares agree: then it was its owner who committed itself to another one."""
    shares = dict(enumerate(split(SECRET, 3, 5)))
    assert combine(shares, 3, lambda _: False) == (SECRET, frozenset(), False)
    # One wrong among them is told apart by the four others; three shares agree on anything.
    found = combine(shares | {1: bytes(16)}, 3, lambda _: False)
    assert found == (SECRET, frozenset({1}), False)
    assert combine(dict(list(shares.items())[:3]), 3, lambda _: False) is None


def test_wrong_shares_that_cancel_do_not_put_right_ones_in_the_wrong() -> None:
    """At 0 the first two of three weigh the same: equal errors leave the secret as it is."""
    shares = dict(enumerate(split(SECRET, 3, 5)))
    for at in (0, 1):
        shares[at] = bytes([shares[at][0] ^ 1]) + shares[at][1:]
    assert combine(shares, 3, SECRET.__eq__) == (SECRET, frozenset(), True)
