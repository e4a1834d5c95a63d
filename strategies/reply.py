"""A reply that counts, and what came of a round."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from logging import WARNING
from typing import NamedTuple

from flwr.app import Message, MetricRecord
from flwr.common.logger import log

from fl_darex.change import Arrays, shortened
from fl_darex.compression.terms import Terms
from fl_darex.compression.update import Update
from fl_darex.compression.weighted_sum import Part
from fl_darex.errors import DIVERGED, DeltaError, PacketError, Reason, one_line
from fl_darex.flower.private import as_error
from fl_darex.flower.records import metrics_in

from .sent import Asked, Sent

Refuse = Callable[[int, PacketError], None]
"""Called with the partition of a reply that cannot be used, and why."""


class Names(NamedTuple):
    """What Flower needs to be the same in all replies.

    Attributes:
        model: Name of the ArrayRecord; empty: it does not matter.
        record: Name of the MetricRecord.
        metrics: The metrics by name, with how many numbers each has; -1: it is no list.
        unsound: Those that are NaN or infinite.
    """

    model: str
    record: str
    metrics: frozenset[tuple[str, int]]
    unsound: frozenset[str]

    @classmethod
    def of(cls, metrics: MetricRecord, record: str, model: str = "") -> Names:
        """Describe one reply."""
        numbers = {k: v if isinstance(v, list) else [v] for k, v in metrics.items()}
        sizes = {(k, len(v) if isinstance(v, list) else -1) for k, v in metrics.items()}
        unsound = {
            name
            for name, some in numbers.items()
            if not all(isinstance(one, int) or math.isfinite(one) for one in some)
        }
        return cls(model, record, frozenset(sizes), frozenset(unsound))

    def differs(self, usual: Names) -> str:
        """Return in words what is not as in most replies."""
        if self.model != usual.model:
            return f"it calls its arrays {self.model!r}, most clients {usual.model!r}"
        if self.record != usual.record:
            return f"it calls its metrics {self.record!r}, most clients {usual.record!r}"
        if odd := sorted({name for name, _ in self.metrics ^ usual.metrics}):
            return f"its metrics differ from those of most clients: {odd[:5]}"
        return f"its metrics {sorted(self.unsound)[:5]} are not finite, those of most clients are"


@dataclass(frozen=True, eq=False)
class Reply:
    """One client's reply that counts.

    Attributes:
        message: The reply itself.
        model: Name of its ArrayRecord that holds the model or a packet.
        metrics: Name of its MetricRecord that holds the weight.
        asked: What this client was asked for.
        sent: The tensors that it is a change of.
        part: Its update, its weight and how far it is shortened.
    """

    message: Message
    model: str
    metrics: str
    asked: Asked
    sent: Sent
    part: Part

    @property
    def terms(self) -> Terms:
        """What this client was told."""
        return self.asked.terms

    @property
    def update(self) -> Update:
        """What it says of the model."""
        return self.part.update

    @property
    def packed(self) -> bool:
        """Whether it was a packet, so that the client has the mod."""
        return self.update.mask is not None

    @property
    def names(self) -> Names:
        """What Flower wants to be the same in all replies."""
        metrics = metrics_in(self.message.content)[self.metrics]
        return Names.of(metrics, self.metrics, self.model)

    def arrays(self) -> Arrays:
        """Return the tensors that this client alone says the model should be.

        Raises:
            PacketError: If its mask keeps another number of entries than it has survivors.
        """
        before, factor = self.sent.arrays, self.part.factor
        values = self.update.values(before)
        for spec in (*self.sent.layout.pruned, *self.sent.layout.dense):
            name, base = spec.name, before[spec.name]
            if factor != 1.0:
                values[name] = shortened(values[name], base, factor)
            values[name] = values[name].astype(base.dtype, copy=False)
        return values


def log_refused(partition: int, error: object) -> None:
    """Say whose reply does not count, and why."""
    log(WARNING, "client %s does not count this round: %s", partition, one_line(str(error)))


@dataclass
class Came:
    """What came of a round.

    Attributes:
        messages: All replies by partition, one of each client that was asked.
        usable: The replies that count, in partition order.
        failed: An error for each of the others.
        reasons: Why replies with content do not count.
    """

    messages: dict[int, Message] = field(default_factory=dict)
    usable: list[Reply] = field(default_factory=list)
    failed: list[Message] = field(default_factory=list)
    reasons: list[PacketError] = field(default_factory=list)

    def refuse(self, slot: int, error: PacketError) -> None:
        """Say whose reply does not count, and why."""
        log_refused(slot, error)
        self.reasons.append(error)
        self.failed.append(as_error(self.messages[slot], str(error)))

    def fail(self, slot: int) -> None:
        """Say that a client answered with an error."""
        message = self.messages[slot]
        reason = message.error.reason or "the client failed without a reason"
        log_refused(slot, reason)
        self.failed.append(message)

    @property
    def structural(self) -> str:
        """Why nobody counts, where it is the app's structure; empty: it is something else."""
        texts = [str(message.error.reason) for message in self.failed]
        ours = [text for text in texts if _ERRORS.search(text) and DIVERGED not in text]
        odd = [str(one) for one in self.reasons if one.reason in (Reason.LAYOUT, Reason.RECORDS)]
        all_of_them = len(odd) + len(ours) == len(self.failed)
        return next(iter([*odd, *ours]), "") if all_of_them and not self.usable else ""


def nobody(why: str) -> DeltaError:
    """Return the error of a run in which nobody's reply can ever count."""
    return DeltaError(f"no client's reply can be used, in this round or any: {why}")


_ERRORS = re.compile("DeltaError|PacketError")  # engines begin a client's error with its class
