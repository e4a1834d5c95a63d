"""The metrics of the GLUE benchmark, computed by scikit-learn and SciPy.

Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
Understanding", ICLR 2019, https://arxiv.org/abs/1804.07461. Every metric returns a number for
constant predictions too: a correlation that is not defined counts as 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fl_darex.errors import ConfigError

Metric = Callable[[np.ndarray, np.ndarray], dict[str, float]]

# Subsets of the GLUE hub dataset that are not measured by accuracy alone.
_GLUE = {
    "cola": "matthews",
    "mrpc": "accuracy-f1",
    "qqp": "accuracy-f1",
    "stsb": "pearson-spearman",
}


def accuracy(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the fraction of examples whose largest logit is that of the label."""
    from sklearn.metrics import accuracy_score

    predicted = _classes(logits, labels)
    return {"accuracy": float(accuracy_score(labels, predicted))}


def matthews(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return Matthews' correlation in [-1, 1]; 0 where predictions or labels are constant."""
    from sklearn.metrics import matthews_corrcoef

    predicted = _classes(logits, labels)
    value = float(matthews_corrcoef(labels, predicted)) if np.ptp(labels) else 0.0
    return {"matthews": value, **accuracy(logits, labels)}


def accuracy_f1(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the mean of accuracy and F1 of class 1, and both; F1 is 0 without positives."""
    from sklearn.metrics import f1_score

    parts = accuracy(logits, labels)
    parts["f1"] = float(f1_score(labels, _classes(logits, labels), zero_division=0.0))
    return {"accuracy-f1": (parts["accuracy"] + parts["f1"]) / 2, **parts}


def pearson_spearman(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the mean of Pearson's and Spearman's correlation in [-1, 1], and both.

    Both are 0 where predictions or labels are constant, not finite, or a single example.
    """
    from scipy.stats import pearsonr, spearmanr

    _check(logits, labels)
    predicted = logits.reshape(len(labels)).astype(np.float64)
    if not np.isfinite(predicted).all():
        predicted = np.zeros_like(predicted)
    # Centred, or SciPy warns of "nearly constant" input where the mean is large.
    x, y = predicted - predicted.mean(), labels.astype(np.float64) - labels.mean()
    if np.ptp(x) > 0 and np.ptp(y) > 0:
        pearson, spearman = float(pearsonr(x, y)[0]), float(spearmanr(x, y)[0])
    else:
        pearson = spearman = 0.0
    mean = (pearson + spearman) / 2
    return {"pearson-spearman": mean, "pearson": pearson, "spearman": spearman}


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "matthews": matthews,
    "accuracy-f1": accuracy_f1,
    "pearson-spearman": pearson_spearman,
}


def choose_metric(name: str, classes: int, subset: str = "") -> str:
    """Return the name of the metric to use, a key of ``METRICS``.

    Args:
        name: ``task.metric``; ``"auto"`` chooses by the kind of labels, and for the subsets of
            GLUE by the benchmark's own rule.
        classes: Number of classes; 0 for a regression.
        subset: ``task.subset``.

    Raises:
        ConfigError: If the metric does not fit the labels.
    """
    if name == "auto":
        name = _GLUE.get(subset, "accuracy")
        if classes == 0 or not _fits(name, classes):
            name = "accuracy" if classes else "pearson-spearman"
    if not _fits(name, classes):
        found = f"{classes} classes" if classes else "numbers as labels (a regression)"
        allowed = [repr(metric) for metric in METRICS if _fits(metric, classes)]
        raise ConfigError(
            f"task.metric = {name!r} does not fit a dataset with {found}; allowed here: "
            f"'auto', {', '.join(allowed)}"
        )
    return name


def _fits(name: str, classes: int) -> bool:
    if name not in METRICS:
        return False  # a language model's
    if name == "accuracy-f1":
        return classes == 2
    return (name == "pearson-spearman") == (classes == 0)


def _check(logits: np.ndarray, labels: np.ndarray) -> None:
    if len(labels) == 0 or len(logits) != len(labels):
        raise ValueError(
            f"a metric needs one row of logits per label and at least one; found "
            f"{len(logits)} rows and {len(labels)} labels"
        )


def _classes(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    _check(logits, labels)
    return np.asarray(logits.argmax(axis=-1))
