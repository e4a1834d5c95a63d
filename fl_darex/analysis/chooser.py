"""Which pruning method fits: the flowchart of Fig. 4.

"DARE the Extreme", ICLR 2025, Fig. 4, App. C.3, Sec. 5.1 and 5.3. The chart speaks of deltas that
are "large" and of deltas that are "insufficient" without a number; the numbers here are ours, each
with its reason. It was drawn for one model pruned once: where many clients and rounds are averaged,
the average removes noise, too, and a run of one's own is the better guide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fl_darex.analysis.influence import delta_magnitude
from fl_darex.delta import Delta

Architecture = Literal["encoder", "decoder"]
Method = Literal["dare", "wanda"]
QRule = Literal["1-p", "1/q_v", "1/q_e", "none"]

DOUBTFUL = 0.002
"""Mean |delta| from which DARE is doubtful: its authors saw it work up to about this
(github.com/yule-BUAA/MergeLM, issue 30)."""

LARGE = 0.005
"""Mean |delta| that counts as large: the upper limit that DARE's authors name (MergeLM, issue 26).
Table 8: 4e-4 to 7e-4 prune well, .017 fails from p = .1 on (Table 6)."""

EXTREME: dict[Architecture, float] = {"encoder": 0.99, "decoder": 0.9}
"""The p from which training for prunability pays even where deltas are small. Encoders: at p = .99
AdamR-L2 is ahead of every tuned q in 7 of the 8 columns of Tables 2 and 5. Decoders: Fig. 3."""

_WANDA_LIMIT = 0.5  # Table 6: WANDA loses 10 of 64.5 points at .5, and half of them at .6


@dataclass(frozen=True)
class Choice:
    """What Fig. 4 recommends.

    Attributes:
        train: Fine-tune again with AdamR and this norm first; None: prune the delta as it is.
        method: Which entries survive.
        q: How the survivors are divided: ``1-p``; ``1/q_v``: searched on labelled validation
            data; ``1/q_e``: searched on the change of outputs; ``none``: not at all.
        per_layer: Whether q is searched for each layer, not for the whole model.
        alternative: What the chart names as second choice; empty if nothing.
        reasons: Why, one sentence for each turn of the chart.
        warnings: What may go wrong all the same.
    """

    train: Literal["l2"] | None
    method: Method
    q: QRule
    per_layer: bool
    alternative: str
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def choose_method(
    delta: Delta | Mapping[str, Any] | float | None,
    p: float,
    *,
    may_finetune: bool,
    has_labels: bool,
    architecture: Architecture,
) -> Choice:
    """Return what the flowchart of Fig. 4 recommends.

    Args:
        delta: What is to be pruned, or its mean |delta| if that is known; None: no fine-tuned
            model exists yet.
        p: Fraction to be dropped, in [0, 1).
        may_finetune: Whether the model may be fine-tuned (again).
        has_labels: Whether there are labelled validation data to search q on.
        architecture: ``encoder`` (BERT, ViT) or ``decoder`` (Llama).

    Raises:
        ValueError: If an argument is outside its range, or there is no delta and no leave to
            make one.
    """
    mean = _mean(delta)
    if not 0.0 <= p < 1.0:
        raise ValueError(f"p must be in [0, 1), got {p!r}")
    if architecture not in get_args(Architecture):
        raise ValueError(f"architecture must be 'encoder' or 'decoder', got {architecture!r}")
    if mean is None and not may_finetune:
        raise ValueError("without a delta and without fine-tuning there is nothing to prune")
    if p == 0.0 and mean is not None:
        return Choice(None, "dare", "1-p", False, "", ("p = 0 drops nothing: any method does.",))
    insufficient = _insufficient(mean, p, architecture)
    if may_finetune and insufficient:
        return _trained(insufficient, has_labels, architecture)
    if mean is not None and mean >= LARGE:
        return _by_importance(mean, p)
    return _rescaled(mean or 0.0, p, has_labels, architecture)


def _mean(delta: Delta | Mapping[str, Any] | float | None) -> float | None:
    if isinstance(delta, Delta | Mapping):
        return delta_magnitude(delta).mean
    if delta is not None and not 0.0 <= delta < math.inf:
        raise ValueError(f"the mean |delta| must be a number of at least 0, got {delta!r}")
    return delta


def _insufficient(mean: float | None, p: float, architecture: Architecture) -> str:
    """Return why existing deltas do not do, or an empty text."""
    if mean is None:
        return "No fine-tuned model exists yet, so its deltas can be made prunable."
    if mean >= DOUBTFUL:
        return f"The mean |delta| of {mean:.2g} is at least {DOUBTFUL}: DARE alone is in doubt."
    if p >= EXTREME[architecture]:
        return (
            f"p = {p:g} is at least {EXTREME[architecture]}: there training for prunability gains "
            "most (Table 5, Fig. 3)."
        )
    return ""


def _trained(why: str, has_labels: bool, architecture: Architecture) -> Choice:
    q, reason = _q(has_labels)
    return Choice(
        train="l2",
        method="dare",
        q=q,
        per_layer=architecture == "encoder",
        alternative="AdamR with norm l1, then magnitude pruning without rescaling",
        reasons=(
            why,
            "Fine-tuning is allowed: AdamR-L2 with DAREx-q is preferred to AdamR-L1 with magnitude "
            "pruning, being more flexible and better (App. C.3).",
            reason,
            _scope(architecture),
        ),
    )


def _by_importance(mean: float, p: float) -> Choice:
    warnings: tuple[str, ...] = ()
    if p > _WANDA_LIMIT:
        warnings = (
            f"At p = {p:g} expect losses: in Table 6 WANDA goes from 64.5 to 54.5 at p = .5 and to "
            "32.5 at p = .6. Check too that the base is the right one: a delta against another "
            "base is large by construction.",
        )
    return Choice(
        train=None,
        method="wanda",
        q="none",
        per_layer=False,
        alternative="magnitude pruning, which needs no inputs and is close behind (Table 6)",
        reasons=(
            "Fine-tuning is not allowed.",
            f"The mean |delta| of {mean:.2g} is at least {LARGE}, so large that random dropping "
            "fails early; importance-based pruning lasts longer (Sec. 5.3).",
        ),
        warnings=warnings,
    )


def _rescaled(mean: float, p: float, has_labels: bool, architecture: Architecture) -> Choice:
    q, reason = _q(has_labels)
    warnings: tuple[str, ...] = ()
    if mean >= DOUBTFUL:
        warnings = (
            f"The mean |delta| of {mean:.2g} is between {DOUBTFUL} and {LARGE}, where DARE may "
            "fail: compare with WANDA.",
        )
    return Choice(
        train=None,
        method="dare",
        q=q,
        per_layer=architecture == "encoder",
        alternative="",
        reasons=(
            f"The mean |delta| of {mean:.2g} is below {LARGE}: entries can be dropped at random.",
            reason,
            _scope(architecture),
        ),
        warnings=warnings,
    )


def _q(has_labels: bool) -> tuple[QRule, str]:
    if has_labels:
        return "1/q_v", "There are labelled validation data: search q on them (1/q_v, Sec. 4.1)."
    return (
        "1/q_e",
        "There are no labels: search the q that changes outputs least (1/q_e, Sec. 4.1).",
    )


def _scope(architecture: Architecture) -> str:
    if architecture == "encoder":
        return "For encoders one q for each layer does better than one for all (Sec. 5.1)."
    return "For decoders one q for the whole model does as well and costs less (Sec. 5.1)."
