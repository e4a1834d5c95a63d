"""A word about weights: a mean that is one client's is no mean."""

from __future__ import annotations

from collections.abc import Sequence
from logging import WARNING

from flwr.common.logger import log

from .reply import Reply

_NEARLY_ALL = 0.999


def note_one_is_all(round_: int, used: Sequence[Reply]) -> None:
    """Say so where one client weighs more than 99.9 % of all although others count, too.

    Args:
        round_: The federated round.
        used: The replies that count.
    """
    total = sum(reply.part.weight for reply in used)
    heaviest = max(used, key=lambda reply: reply.part.weight, default=None)
    if heaviest is None or len(used) < 2 or heaviest.part.weight <= _NEARLY_ALL * total:
        return
    log(
        WARNING,
        "round %s: client %s weighs %.6g of %.6g, so the mean of %s clients is its own; give "
        "DarexStrategy a max_weight that no honest client has reason to pass",
        round_,
        heaviest.terms.slot,
        heaviest.part.weight,
        total,
        len(used),
    )
