"""Final answers of worked solutions, as GSM8K counts them."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fl_darex.tasks.causal.answers import extract_answer, is_right

ANSWERS = [
    # behind the mark, the first number
    ("She has 3 + 4 = <<3+4=7>>7.\n#### 7", "7"),
    ("#### 1,250", "1250"),
    ("#### $1,250.50.", "1250.5"),
    ("####72", "72"),
    ("#### -5", "-5"),
    ("#### 5 apples, not 6", "5"),
    ("#### 5\n\nQuestion: ...\n#### 6", "5"),
    ("#### 5\n7", "5"),
    ("#### five", "five"),
    ("it is 3\n####", ""),
    # no mark: the last number
    ("The answer is 72.", "72"),
    ("so it costs $3.50.", "3.5"),
    ("He pays -$5", "-5"),
    ("He pays $-5", "-5"),
    ("a loss of \N{MINUS SIGN}3", "-3"),
    ("x=-3", "-3"),
    ("10-4", "4"),
    ("10 - 4", "4"),
    ("5%", "5"),
    ("1,2,3", "3"),
    ("12,34", "34"),
    ("1,000,000 dollars", "1000000"),
    (".5", "0.5"),
    ("007", "7"),
    ("7.0", "7"),
    ("-0.0", "0"),
    ("1/2", "2"),
    ("12345678901234567890123456789.5", "12345678901234567890123456789.5"),
    # no number at all: the words
    ("Paris.", "Paris"),
    ("  New\n York ", "New York"),
    ("", ""),
    ("...", ""),
]


@pytest.mark.parametrize(("text", "answer"), ANSWERS)
def test_the_final_answer_is_found(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("solution", "reference", "right"),
    [
        ("so 1,000 in all.", "... #### 1000", True),
        ("#### 18.00", "#### 18", True),
        ("#### 18", "#### 19", False),
        ("#### 18", "The answer is 18", True),
        ("Paris", "Paris.", True),
        ("London", "Paris", False),
        ("", "#### 1", False),
        ("", "", False),
    ],
)
def test_answers_compare_by_value(solution, reference, right):
    assert is_right(solution, reference) is right


@given(st.integers(-(10**12), 10**12))
def test_any_whole_number_is_found_however_it_is_written(number):
    for written in (f"{number}", f"{number:,}", f"{number}.", f"{number:,}.00"):
        assert extract_answer(f"2 + 2 are 4\n#### {written}") == str(number)
        assert extract_answer(f"The answer is {written}") == str(number)


@given(st.text())
@example(": .")
def test_any_text_has_an_answer_that_is_its_own_answer(text):
    once = extract_answer(text)
    assert extract_answer(once) == once


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_reference_of_gsm8k_is_the_number_behind_its_mark(shared_data, split):
    path = shared_data / "gsm8k" / f"{split}.jsonl"
    if not path.is_file():
        pytest.skip("there is no gsm8k in FL_DAREX_DATA")
    answers = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
    behind = [answer.rpartition("#### ")[2].replace(",", "") for answer in answers]
    assert [extract_answer(answer) for answer in answers] == behind
