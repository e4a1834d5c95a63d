"""Metrics against values computed by hand, and a number for every prediction."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_darex.errors import ConfigError
from fl_darex.tasks.metrics import METRICS, choose_metric


def one_hot(predicted, classes=2):
    return np.eye(classes, dtype=np.float32)[predicted]


# Four right of six; class 1: two hits, one false alarm, one miss.
LABELS = np.array([1, 1, 1, 0, 0, 0])
LOGITS = one_hot([1, 1, 0, 1, 0, 0])


def test_accuracy_is_the_fraction_of_hits():
    assert METRICS["accuracy"](LOGITS, LABELS) == {"accuracy": pytest.approx(4 / 6)}


def test_matthews_is_that_of_the_confusion_matrix():
    # (TP*TN - FP*FN) / sqrt of the product of the four margins = (4 - 1) / 9
    assert METRICS["matthews"](LOGITS, LABELS)["matthews"] == pytest.approx(1 / 3)


def test_accuracy_f1_is_the_mean_of_both():
    scores = METRICS["accuracy-f1"](LOGITS, LABELS)
    assert scores["f1"] == pytest.approx(2 / 3)
    assert scores["accuracy-f1"] == pytest.approx((4 / 6 + 2 / 3) / 2)


def test_pearson_spearman_is_the_mean_of_both():
    scores = METRICS["pearson-spearman"](np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 2.0, 3.0]))
    assert scores["spearman"] == pytest.approx(1.0)
    # covariance 3, sums of squares 14/3 and 2
    assert scores["pearson"] == pytest.approx(3 / np.sqrt(14 / 3 * 2))
    assert scores["pearson-spearman"] == pytest.approx((scores["pearson"] + 1) / 2)


def test_constant_predictions_on_mrpc_give_its_well_known_baseline():
    # The test set of MRPC: 1,147 of 1,725 pairs are paraphrases.
    labels = np.array([1] * 1147 + [0] * 578)
    ones = METRICS["accuracy-f1"](one_hot(np.ones(1725, int)), labels)
    assert ones["accuracy"] == pytest.approx(0.6649, abs=1e-4)
    assert ones["f1"] == pytest.approx(0.7987, abs=1e-4)
    zeros = METRICS["accuracy-f1"](one_hot(np.zeros(1725, int)), labels)
    assert zeros["f1"] == 0.0
    assert zeros["accuracy-f1"] == pytest.approx((578 / 1725) / 2)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e6, 1e-30])
def test_constant_predictions_give_a_number_without_a_warning(name, value):
    logits = np.full((6, 1 if name == "pearson-spearman" else 2), value, dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = METRICS[name](logits, LABELS)
    assert all(np.isfinite(score) for score in scores.values())
    for undefined in ("matthews", "pearson", "spearman"):
        assert scores.get(undefined, 0.0) == 0.0


@pytest.mark.parametrize("logits", [[np.nan, 1.0], [np.inf, 1.0], [1.0, 2.0]])
def test_a_correlation_that_is_not_defined_is_zero(logits):
    labels = np.array([1.0, 1.0]) if np.isfinite(logits).all() else np.array([1.0, 2.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = METRICS["pearson-spearman"](np.array(logits)[:, None], labels)
    assert scores == {"pearson-spearman": 0.0, "pearson": 0.0, "spearman": 0.0}


@pytest.mark.parametrize("name", METRICS)
def test_no_example_is_an_error_rather_than_a_number(name):
    with pytest.raises(ValueError, match="at least one"):
        METRICS[name](np.zeros((0, 2)), np.zeros(0))


@pytest.mark.parametrize("name", METRICS)
@given(data=st.data())
def test_scores_are_finite_and_in_range_and_carry_their_name(name, data):
    size = data.draw(st.integers(1, 20))
    width = 1 if name == "pearson-spearman" else 2
    number = st.floats(-1e6, 1e6, width=32)
    flat = data.draw(st.lists(number, min_size=size * width, max_size=size * width))
    labels = np.array(data.draw(st.lists(st.integers(0, 1), min_size=size, max_size=size)))
    scores = METRICS[name](np.array(flat, dtype=np.float32).reshape(size, width), labels)
    assert next(iter(scores)) == name
    assert all(-1 - 1e-9 <= score <= 1 + 1e-9 for score in scores.values())


@pytest.mark.parametrize(
    ("classes", "subset", "expected"),
    [
        (2, "", "accuracy"),
        (10, "", "accuracy"),
        (0, "", "pearson-spearman"),
        (2, "sst2", "accuracy"),
        (2, "cola", "matthews"),
        (2, "mrpc", "accuracy-f1"),
        (2, "qqp", "accuracy-f1"),
        (0, "stsb", "pearson-spearman"),
        (3, "mrpc", "accuracy"),
        (2, "stsb", "accuracy"),
    ],
)
def test_auto_chooses_by_labels_and_by_the_rule_of_glue(classes, subset, expected):
    assert choose_metric("auto", classes, subset) == expected


@pytest.mark.parametrize(
    ("name", "classes", "allowed"),
    [
        ("pearson-spearman", 2, "'accuracy', 'matthews', 'accuracy-f1'"),
        ("accuracy-f1", 10, "'accuracy', 'matthews'$"),
        ("accuracy", 0, "'pearson-spearman'"),
    ],
)
def test_a_metric_that_does_not_fit_the_labels_is_refused(name, classes, allowed):
    with pytest.raises(ConfigError, match=f"task.metric = '{name}'.*{allowed}"):
        choose_metric(name, classes)
