"""The search for a client that spoils sums: it is found, and nobody else is."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_darex.strategies.secure.suspects import Suspects


def enough(clients: int) -> bool:
    return clients >= 3


def play(suspects: Suspects, picked: list[int], liars: set[int]) -> bool:
    """A round, in which the liars that take part spoil the sum; whether it was sound."""
    part = set(picked) - suspects.left_out(picked, enough)
    sound = not part & liars
    if enough(len(part)):
        suspects.summed(part, sound)
    return sound


@given(st.integers(4, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))))
def test_one_that_spoils_every_sum_is_found_in_a_few_rounds(case: tuple[int, int]) -> None:
    clients, liar = case
    suspects, spoiled, rounds = Suspects(), 0, 0
    while not suspects.caught:
        spoiled += not play(suspects, list(range(clients)), {liar})
        rounds += 1
        assert rounds <= 2 * math.log2(clients) + 4
    assert suspects.caught == {liar} and spoiled <= math.log2(clients) + 4
    assert all(play(suspects, list(range(clients)), {liar}) for _ in range(5))


@settings(max_examples=50, deadline=None)
@given(st.integers(5, 30), st.integers(0, 2**32))
def test_it_is_found_where_only_some_clients_are_picked(clients: int, seed: int) -> None:
    rng, suspects = random.Random(seed), Suspects()
    liar = rng.randrange(clients)
    for _ in range(400):
        play(suspects, rng.sample(range(clients), rng.randint(4, clients)), {liar})
    assert suspects.caught == {liar}


def test_two_are_found_one_after_the_other() -> None:
    suspects = Suspects()
    for _ in range(60):
        play(suspects, list(range(12)), {3, 10})
    assert suspects.caught == {3, 10}
    assert play(suspects, list(range(12)), {3, 10})


@given(st.integers(4, 30))
def test_a_sum_that_was_spoiled_once_leaves_everybody_in(clients: int) -> None:
    suspects = Suspects()
    assert not play(suspects, list(range(clients)), {0})
    for _ in range(20):
        assert play(suspects, list(range(clients)), set())
    assert not suspects.caught and not suspects.left_out(range(clients), enough)


def test_rounds_that_come_to_nothing_do_not_stop_the_search() -> None:
    suspects = Suspects()
    suspects.summed(range(6), sound=False)
    outs = [suspects.left_out(range(6), enough) for _ in range(2)]
    assert outs == [{3, 4, 5}, {0, 1, 2}]  # others each time, as nothing was learned


def test_of_three_nobody_is_left_out() -> None:
    suspects = Suspects()
    for _ in range(10):
        assert not suspects.left_out(range(3), enough)
        suspects.summed(range(3), sound=False)
    assert not suspects.caught


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_the_search_goes_on_where_it_was_saved(after: int) -> None:
    one, other = Suspects(), Suspects()
    for _ in range(after):
        play(one, list(range(9)), {5})
    other.restore(one.state())
    for _ in range(12):
        play(one, list(range(9)), {5})
        play(other, list(range(9)), {5})
    assert one.state() == other.state() and one.caught == {5}
