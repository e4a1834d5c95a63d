"""Which replies a wrapped strategy is given, and which strategies cannot be wrapped.

Flower's strategies expect the arrays of every client. Those that take a step on an average are
given the average, which takes no more memory than one model, in one of two ways: as ``"mean"``, one
reply that stands for all, or as ``"each"``: every reply with its own metrics and records and the
average in place of its arrays, for strategies that count replies or look at their metrics.
Strategies that compare clients are given every client's own values where all of them have some:
``"support"``. Any other is given what each client's packet stands for, whole: ``"own"``.
"""

from __future__ import annotations

from typing import Literal

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fl_darex.compression.uplink import AUTO, Uplink
from fl_darex.masks import ONE
from fl_darex.rescaling.rules import SERVER_RULES

FORMS = ("mean", "each", "support", "own")
FormChoice = Literal["auto", "mean", "each", "support", "own"]

COMPARING = (
    *(flower.FedMedian, flower.FedTrimmedAvg, flower.Krum, flower.MultiKrum, flower.Bulyan),
    flower.QFedAvg,
)
"""Compare clients or weigh each by its own change; an average means nothing to them."""

AGGREGATING = ("aggregate_train", "_check_and_log_replies")
"""What looks at replies; FedAvg's `aggregate_train` lets the second one choose which count."""

PRIVATE = (
    flower.DifferentialPrivacyServerSideFixedClipping,
    flower.DifferentialPrivacyClientSideFixedClipping,
)
"""Add noise for a clipping norm to an average in which all clients count the same."""

_REFUSED: dict[type, str] = {
    flower.DifferentialPrivacyServerSideAdaptiveClipping: (
        "adapts its norm to how many clients exceed it, which an average does not tell; use "
        "DifferentialPrivacyServerSideFixedClipping"
    ),
    flower.DifferentialPrivacyClientSideAdaptiveClipping: (
        "adapts its norm to what clients say of their change before pruning; use "
        "DifferentialPrivacyServerSideFixedClipping"
    ),
    flower.FedXgbBagging: "exchanges trees, not tensors; use it without DarexStrategy",
    flower.FedXgbCyclic: "exchanges trees, not tensors; use it without DarexStrategy",
}


def layers(strategy: Strategy) -> list[Strategy]:
    """Return a strategy and those inside it, whatever the attribute that holds them is called."""
    found = [strategy]
    for one in found:  # grows on the way
        for value in vars(one).values():
            inside = value.values() if isinstance(value, dict) else value
            for inner in inside if isinstance(value, dict | list | tuple) else [value]:
                if isinstance(inner, Strategy) and all(inner is not other for other in found):
                    found.append(inner)
    return found


def own_methods(strategy: Strategy, *names: str) -> list[str]:
    """Return which of these methods Flower does not come with, in a strategy or one inside it."""
    return [name for name in names if any(is_own(one, name) for one in layers(strategy))]


def is_own(strategy: Strategy, name: str) -> bool:
    """Return whether Flower does not come with a strategy's method of this name."""
    if name in vars(strategy):
        return True
    defined = next((kind for kind in type(strategy).__mro__ if name in vars(kind)), None)
    return defined is not None and not defined.__module__.startswith("flwr.")


def form_for(strategy: Strategy, form: str) -> str:
    """Return which replies a strategy is given.

    Args:
        strategy: The outermost one.
        form: One of `FORMS`, or ``"auto"``.

    Raises:
        ValueError: If the strategy cannot be wrapped, or the form is unknown or does not suit it.
    """
    name, inside = type(strategy).__name__, layers(strategy)
    for one in inside:
        if reason := next((why for kind, why in _REFUSED.items() if isinstance(one, kind)), ""):
            raise ValueError(f"{type(one).__name__} {reason}")
    if form not in ("auto", *FORMS):
        raise ValueError(f"replies must be one of {sorted(('auto', *FORMS))}, got {form!r}")
    private = isinstance(strategy, PRIVATE)
    comparing = next((type(one).__name__ for one in inside if isinstance(one, COMPARING)), "")
    if private and comparing:
        raise ValueError(f"{name} adds noise to an average; wrap FedAvg in it")
    if comparing and form in ("mean", "each"):
        raise ValueError(
            f"{comparing} compares clients; it cannot be given replies={form!r}, leave it out"
        )
    if private and form not in ("auto", "each"):
        raise ValueError(f"{name} counts replies; it needs replies='each'")
    if form != "auto":
        return form
    if comparing:
        return "support"
    if own := own_methods(strategy, *AGGREGATING):
        raise ValueError(_choices(name, own[0]))
    return "each" if private else "mean"


def _choices(name: str, method: str) -> str:
    article = "an" if method[0] == "a" else "a"
    return (
        f"{name} has {article} {method} of its own; say what it needs of the replies: "
        "replies='own' gives it what each client's packet stands for (right for all that is linear "
        "in the replies; takes memory for clients x model), replies='support' with mask='round' "
        "gives it each client's values where all have some (to compare clients), and "
        "replies='each' gives it the average in place of each reply's arrays (where it looks at "
        "metrics and records alone)"
    )


def check_form(asked: Uplink, form: str, strategy: Strategy, clip: float | None = None) -> None:
    """Raise `ValueError` where clients' replies are not what a strategy takes them for.

    Args:
        asked: The settings of the uplink.
        form: Which replies the strategy is given.
        strategy: The outermost one.
        clip: Largest norm of an update; None: any.
    """
    if not asked.how.adds_up and (form in ("support", "own") or clip is not None):
        what = "clips updates" if clip is not None else "is given each client's own arrays"
        raise ValueError(
            f"method = {asked.method!r} makes a model of all updates together, in which no single "
            f"one is a summand, and {type(strategy).__name__} {what}: choose another method"
        )
    if not asked.how.packs or form not in ("support", "own"):
        return
    name = type(strategy).__name__
    if form == "support" and asked.mask != "round":
        raise ValueError(
            f"{name} compares clients, and clients with masks of their own have next to no "
            "coordinates in common (at p = .99 the median of ten is 0 everywhere): use mask='round'"
        )
    if asked.q in SERVER_RULES:
        raise ValueError(
            f"q = {asked.q!r} searches along the average, which {name} does not take; "
            "choose another q"
        )
    if asked.mask == AUTO:
        raise ValueError(
            f"mask = 'auto' measures how much clients agree on their average, which {name} does "
            "not take; choose the mask"
        )
    comparing = any(isinstance(one, COMPARING) for one in layers(strategy))
    if form == "own" and comparing and asked.keep != ONE:
        raise ValueError(
            f"{name} compares clients, and each one's own arrays are unchanged where its mask "
            "drops: use replies='support' with mask='round'"
        )
