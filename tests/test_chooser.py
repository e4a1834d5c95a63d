"""Fig. 4: each way through the flowchart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fl_darex.analysis import choose_method
from fl_darex.delta import Delta

# Mean |delta| as Table 8 has it.
ABEL, LLEMA = 7.3e-4, 0.017


def choose(mean, p=0.95, may_finetune=False, has_labels=True, architecture="decoder"):
    return choose_method(
        mean, p, may_finetune=may_finetune, has_labels=has_labels, architecture=architecture
    )


@pytest.mark.parametrize(("has_labels", "q"), [(True, "1/q_v"), (False, "1/q_e")])
@pytest.mark.parametrize("architecture", ["encoder", "decoder"])
def test_small_deltas_are_dropped_at_random_and_q_is_searched(has_labels, q, architecture):
    choice = choose(ABEL, 0.99, has_labels=has_labels, architecture=architecture)
    assert (choice.train, choice.method, choice.q) == (None, "dare", q)
    assert choice.per_layer is (architecture == "encoder")
    assert not choice.warnings


def test_large_deltas_that_may_not_be_trained_again_are_pruned_by_importance():
    choice = choose(LLEMA, 0.5)
    assert (choice.train, choice.method, choice.q) == (None, "wanda", "none")
    assert "magnitude" in choice.alternative and "0.017" in " ".join(choice.reasons)
    assert not choice.warnings
    assert "expect losses" in choose(LLEMA, 0.6).warnings[0]


@pytest.mark.parametrize(
    ("mean", "p", "architecture"),
    [
        (LLEMA, 0.5, "decoder"),
        (0.002, 0.5, "encoder"),
        (ABEL, 0.99, "encoder"),
        (ABEL, 0.9, "decoder"),
        (None, 0.5, "encoder"),
        (None, 0.0, "decoder"),
    ],
)
def test_insufficient_deltas_that_may_be_trained_again_are_trained_with_adamr(
    mean, p, architecture
):
    choice = choose(mean, p, may_finetune=True, architecture=architecture)
    assert (choice.train, choice.method, choice.q) == ("l2", "dare", "1/q_v")
    assert "l1" in choice.alternative and "magnitude" in choice.alternative


@pytest.mark.parametrize(("p", "architecture"), [(0.98, "encoder"), (0.89, "decoder")])
def test_sufficient_deltas_are_not_trained_again(p, architecture):
    choice = choose(ABEL, p, may_finetune=True, architecture=architecture)
    assert choice.train is None and choice.method == "dare"


def test_deltas_in_between_are_dropped_at_random_with_a_warning():
    for mean, warned, method in [
        (0.00199, False, "dare"),
        (0.002, True, "dare"),
        (0.00499, True, "dare"),
        (0.005, False, "wanda"),
    ]:
        choice = choose(mean, 0.5)
        assert choice.method == method
        assert any("compare with WANDA" in text for text in choice.warnings) is warned


def test_the_mean_is_measured_where_a_delta_is_given():
    base = {"w": np.zeros(1000, np.float32)}
    large = {"w": np.full(1000, -LLEMA, np.float32)}
    assert choose(Delta(large, base), 0.5) == choose(float(np.float32(LLEMA)), 0.5)
    assert choose(large, 0.5).method == "wanda"
    assert choose(base, 0.5).method == "dare"


def test_dropping_nothing_needs_no_method():
    assert choose(LLEMA, 0.0).q == "1-p" and choose(ABEL, 0.0, may_finetune=True).train is None


def test_every_way_ends_with_reasons_that_name_the_facts():
    for mean, p, tune, labels, kind in itertools.product(
        [0.0, ABEL, 0.003, LLEMA],
        [0.5, 0.99],
        [True, False],
        [True, False],
        ["encoder", "decoder"],
    ):
        choice = choose(mean, p, tune, labels, kind)
        assert len(choice.reasons) >= 2 and all(text.endswith(".") for text in choice.reasons)
        assert (choice.q == "none") is (choice.method == "wanda")
        assert not (choice.train and not tune)
        if choice.q != "none":
            assert (choice.q == "1/q_v") is labels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": -1.0}, "mean |delta| must be a number of at least 0, got -1.0"),
        ({"mean": float("nan")}, "at least 0, got nan"),
        ({"mean": ABEL, "p": 1.0}, r"p must be in \[0, 1\), got 1.0"),
        ({"mean": ABEL, "architecture": "rnn"}, "must be 'encoder' or 'decoder', got 'rnn'"),
        ({"mean": None}, "nothing to prune"),
    ],
)
def test_impossible_facts_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        choose(**arguments)
