"""The final answer of a worked solution, found as GSM8K counts it.

Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021,
https://arxiv.org/abs/2110.14168: a solution ends in ``#### 72``. Of a text without that mark
the last number counts, as usual where a model has not been trained on the mark.
"""

from __future__ import annotations

import re

MARK = "####"
# A minus belongs to its number unless it stands behind something: "10-4" ends in 4, not in -4.
# Commas belong to it where they cut off thousands: "1,2" are two numbers.
_NUMBER = re.compile(
    r"(?P<minus>(?<![\w).])[-\N{MINUS SIGN}](?=\$?[0-9.]))?\$?"
    r"(?P<value>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)


def extract_answer(text: str) -> str:
    """Return the final answer of a solution in one spelling, so that answers compare as texts.

    That is the first number behind the first ``####``; the last number of a text without the
    mark; and where there is no number, the words: behind the mark, or all of them. Dollar signs,
    thousands' commas, a trailing period and zeros that say nothing are left out:
    ``"$1,250.50."`` is ``"1250.5"``. An empty text has the answer ``""``.
    """
    _, mark, behind = text.partition(MARK)
    words = behind.strip().partition("\n")[0] if mark else text
    numbers = list(_NUMBER.finditer(words))
    if not numbers:
        return " ".join(words.split()).rstrip(". ")
    return _spelled(numbers[0 if mark else -1])


def is_right(solution: str, reference: str) -> bool:
    """Return whether a solution has the reference's final answer; no answer is never right."""
    found = extract_answer(solution)
    return bool(found) and found == extract_answer(reference)


def _spelled(number: re.Match[str]) -> str:
    whole, _, fraction = number["value"].replace(",", "").partition(".")
    value = f"{whole.lstrip('0') or '0'}.{fraction.rstrip('0')}".removesuffix(".")
    return f"-{value}" if number["minus"] and value != "0" else value
