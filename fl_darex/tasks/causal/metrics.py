"""What a language model's results are computed from: a few numbers for each example.

The logits of a batch are examples x tokens x vocabulary, gigabytes for a data set. So each batch
is reduced at once to ``COLUMNS``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from fl_darex.errors import ConfigError
from fl_darex.tasks.causal.tokens import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

COLUMNS = ("loss", "right", "exact")
"""Sum of the token losses (nats), tokens that are the likeliest, and 1 for an exact answer."""

LM_METRICS = ("token-accuracy", "exact-match", "negative-perplexity")


def choose_lm_metric(name: str, prompted: bool) -> str:
    """Return the name of the metric to use, one of ``LM_METRICS``.

    Higher is better for every metric of this package, so perplexity counts with a minus; it is
    reported beside each of them without one.

    Args:
        name: ``task.metric``; ``"auto"`` is ``token-accuracy``, which needs no generation.
        prompted: Whether examples have a prompt and an answer.

    Raises:
        ConfigError: If the metric does not fit.
    """
    allowed = LM_METRICS if prompted else tuple(m for m in LM_METRICS if m != "exact-match")
    if name == "auto":
        return "token-accuracy"
    if name not in allowed:
        kind = "a prompt and an answer" if prompted else "texts alone"
        raise ConfigError(
            f"task.metric = {name!r} does not fit a language model on {kind}; allowed here: "
            f"'auto', {', '.join(map(repr, allowed))}"
        )
    return name


@torch.no_grad()
def reduce_logits(logits: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 rows of ``COLUMNS`` and the number of tokens that count, per example.

    The column ``exact`` is left 0. One example's logits at a time are turned to float32.

    Args:
        logits: Shape ``(examples, length, vocabulary)``, any floating type.
        labels: Shape ``(examples, length)``, ``IGNORED`` where a token does not count.
    """
    rows = np.zeros((len(labels), len(COLUMNS)))
    targets = labels[:, 1:]
    counted = targets != IGNORED
    for row, said, wanted, mask in zip(rows, logits[:, :-1], targets, counted, strict=True):
        scores, answer = said[mask].float(), wanted[mask]
        losses = torch.nn.functional.cross_entropy(scores, answer, reduction="none")
        row[:2] = float(losses.double().sum()), int((scores.argmax(-1) == answer).sum())
    return rows, counted.sum(1).cpu().numpy()


def token_scores(rows: np.ndarray, tokens: np.ndarray, *, metric: str) -> dict[str, float]:
    """Return the metric first, then token accuracy and perplexity where they are not it.

    ``token-accuracy`` is the fraction of the answers' tokens that are the likeliest given all
    before them; ``exact-match`` the fraction of examples whose generated answer is right;
    perplexity is exp of the mean loss of a token.

    Args:
        rows: ``COLUMNS`` of each example.
        tokens: Tokens that count in each.
        metric: One of ``LM_METRICS``.

    Raises:
        ValueError: If there is no example.
    """
    if not len(rows):
        raise ValueError("a metric needs at least one example; found none")
    loss, right, exact = rows.sum(0)
    # math.exp raises where a diverged model's loss is beyond 709; the limit is infinity.
    mean = loss / tokens.sum()
    perplexity = math.exp(mean) if mean < 709 else math.inf
    scores = {
        "token-accuracy": float(right / tokens.sum()),
        "exact-match": float(exact / len(rows)),
        "negative-perplexity": -perplexity,
    }
    return {
        metric: scores[metric],
        "token-accuracy": scores["token-accuracy"],
        "perplexity": perplexity,
    }
