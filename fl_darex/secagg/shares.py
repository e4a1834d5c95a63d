"""Shares that rebuild a secret, and which of them are wrong.

Shamir, "How to share a secret", 1979, over GF(2^128): a share is the value of a random polynomial
whose value at 0 is the secret. Shares are a Reed-Solomon code (McEliece and Sarwate, "On sharing
secrets and Reed-Solomon codes", 1981), so wrong ones show themselves: with n shares of which t are
needed, (n - t) / 2 of them are found by Berlekamp and Massey's algorithm. Beyond that some are left
out on trial, and what is known of the secret tells which trial was right.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache
from itertools import chain, combinations, islice
from typing import NamedTuple

from Crypto.Protocol.SecretSharing import Shamir

SHARE_BYTES = 16

_MOST_WORK = 45_000  # trials times the square of the shares: seconds
_DEGREE = 128
_POLYNOMIAL = 1 << _DEGREE | 0b10000111  # x^128 + x^7 + x^2 + x + 1


class Recovered(NamedTuple):
    """A secret, and who gave a wrong share of it.

    Attributes:
        secret: 16 bytes.
        wrong: Holders whose share is not one of this secret; none where so many differ that
            others could have made it up: two wrong shares may cancel, and right ones look wrong.
        sure: Whether it is the secret that was looked for, or merely what the shares agree on.
    """

    secret: bytes
    wrong: frozenset[int]
    sure: bool


def split(secret: bytes, threshold: int, holders: int) -> list[bytes]:
    """Return one share for each holder; ``threshold`` of them give the secret, fewer say nothing.

    A share's number is not in it: holder i, from 0, has share number i + 1.
    """
    return [share for _, share in Shamir.split(threshold, holders, secret, ssss=False)]


def combine(
    shares: Mapping[int, bytes], threshold: int, right: Callable[[bytes], bool]
) -> Recovered | None:
    """Return the secret that enough shares give, or None.

    Of n shares any n - threshold may be wrong where n is small (up to a dozen or so), and half as
    many whatever n is. Time is bounded: some seconds where nothing fits.

    Args:
        shares: By holder, from 0.
        threshold: As in `split`.
        right: Tells the secret.
    """
    points = {holder + 1: int.from_bytes(share, "big") for holder, share in shares.items()}
    if len(points) < threshold:
        return None
    agreed: Recovered | None = None
    for out in chain([()], _trials(points, threshold)):
        kept = [x for x in points if x not in out][:threshold]
        secret, wrong = _found(points, kept)
        spare = len(points) - threshold
        if right(secret):
            sure = 2 * len(wrong) <= spare + 1  # the secret itself is one share more
            return Recovered(secret, wrong if sure else frozenset(), True)
        if agreed is None and spare and 2 * len(wrong) <= spare:
            agreed = Recovered(secret, wrong, False)
    return agreed


def _found(points: Mapping[int, int], used: list[int]) -> tuple[bytes, frozenset[int]]:
    """Return the secret that some shares give, and the holders of others that do not fit them."""
    of = {x: points[x] for x in used}
    secret = _at(of, 0).to_bytes(SHARE_BYTES, "big")
    wrong = (x - 1 for x in points if x not in of and _at(of, x) != points[x])
    return secret, frozenset(wrong)


def _trials(points: Mapping[int, int], threshold: int) -> Iterator[Collection[int]]:
    """Yield shares to do without: a few on trial, and those that are wrong among the others."""
    fewest = range(len(points) - threshold + 1)
    guesses = chain.from_iterable(combinations(points, few) for few in fewest)
    for guess in islice(guesses, 1 + _MOST_WORK // len(points) ** 2):
        left = {x: share for x, share in points.items() if x not in guess}
        wrong = _wrong(left, threshold)
        if wrong is not None:
            yield {*guess, *wrong}


def _wrong(points: Mapping[int, int], threshold: int) -> set[int] | None:
    """Return the wrong ones of many shares; None: there are too many of them to tell.

    Syndromes of the dual code are 0 where all shares are right; else they are a sum of powers of
    the numbers of the wrong ones, which the shortest recurrence that gives them tells.
    """
    terms, syndromes = [_times(w, points[x]) for x, w in _weights(tuple(points))], []
    for _ in range(len(points) - threshold):
        total = 0
        for term in terms:
            total ^= term
        syndromes.append(total)
        terms = [_times(term, x) for term, x in zip(terms, points, strict=True)]
    recurrence = _shortest_recurrence(syndromes)
    # 1 + c1 z + ... is the product of 1 - x z over the wrong ones; reversed, its roots are the x.
    wrong = {x for x in points if not _value(recurrence, x)}
    count = len(recurrence) - 1
    return wrong if len(wrong) == count and 2 * count <= len(syndromes) else None


def _shortest_recurrence(numbers: list[int]) -> list[int]:
    """Return 1, c1, ..., cL with ``s_n = c1 s_(n-1) + ... + cL s_(n-L)`` (Massey, 1969)."""
    now, before, length, gap, last = [1], [1], 0, 1, 1
    for at, number in enumerate(numbers):
        off = number
        for back in range(1, min(length, len(now) - 1) + 1):
            off ^= _times(now[back], numbers[at - back])
        if not off:
            gap += 1
            continue
        factor, old = _times(off, _inverse(last)), now
        change = [0] * gap + [_times(factor, one) for one in before]
        size = max(len(now), len(change))
        padded = [*now, *[0] * (size - len(now))], [*change, *[0] * (size - len(change))]
        now = [one ^ other for one, other in zip(*padded, strict=True)]
        if 2 * length <= at:
            length, before, last, gap = at + 1 - length, old, off, 1
        else:
            gap += 1
    return [*now, *[0] * (length + 1 - len(now))]


def _value(coefficients: list[int], x: int) -> int:
    """Return the value at x of a polynomial whose highest coefficient comes first."""
    total = 0
    for one in coefficients:
        total = _times(total, x) ^ one
    return total


def _at(points: Mapping[int, int], x: int) -> int:
    """Return the value at x, none of the points, of the polynomial through all points."""
    whole, total = 1, 0
    for other in points:
        whole = _times(whole, x ^ other)
    for other, weight in _weights(tuple(points)):
        part = _times(weight, _inverse(x ^ other))
        total ^= _times(part, points[other])
    return _times(whole, total)


@lru_cache(maxsize=64)
def _weights(points: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Return each point with one over the product of its differences to the others."""
    found = []
    for one in points:
        product = 1
        for other in points:
            product = _times(product, one ^ other) if other != one else product
        found.append((one, _inverse(product)))
    return tuple(found)


def _times(one: int, other: int) -> int:
    """Return the product of two elements of the field; the second one had better be short."""
    total = 0
    while other:
        if other & 1:
            total ^= one
        one <<= 1
        other >>= 1
    while high := total >> _DEGREE:
        total ^= high << _DEGREE ^ high ^ high << 1 ^ high << 2 ^ high << 7
    return total


@lru_cache(maxsize=1 << 12)
def _inverse(element: int) -> int:
    """Return one over an element that is not 0, by Euclid's algorithm."""
    now, other, found, spare = element, _POLYNOMIAL, 1, 0
    while now != 1:
        shift = now.bit_length() - other.bit_length()
        if shift < 0:
            now, other, found, spare, shift = other, now, spare, found, -shift
        now ^= other << shift
        found ^= spare << shift
    return found
