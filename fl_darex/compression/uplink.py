"""What the server asks of every client: the method and its numbers, checked once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from fl_darex.compression.compressor import COMPRESSORS, Compressor
from fl_darex.compression.terms import Terms
from fl_darex.errors import nearest
from fl_darex.masks import ONE, keep_threshold
from fl_darex.pruning.scores import SCOPES
from fl_darex.pruning.structured import columns_kept
from fl_darex.rescaling import resolve_q
from fl_darex.rescaling.rules import RULES, SERVER_VALIDATION
from fl_darex.wire.values import CODINGS


@dataclass(frozen=True, kw_only=True)
class Request:
    """Settings of a run's uplink; `DarexStrategy` says what they mean.

    Raises:
        ValueError: If one is outside its range, or two do not go together.
    """

    p: float
    q: float | str
    values: str
    mask: str
    count: str
    method: str
    scope: str
    columns: float
    seed: int
    dense: tuple[str, ...]

    def __post_init__(self) -> None:
        check_choice("values", self.values, CODINGS)
        check_choice("mask", self.mask, ("client", "round"))
        check_choice("count", self.count, ("random", "exact"))
        check_choice("method", self.method, COMPRESSORS)
        check_choice("scope", self.scope, SCOPES)
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2**63), got {self.seed}")
        if self.mask == "round" and not self.compressor.seeded:
            raise ValueError(
                f"mask 'round' needs survivors that do not depend on values; method "
                f"{self.method!r} chooses them by value: use mask 'client'"
            )
        if self.method == "structured":
            columns_kept(self.p, self.columns)
        _ = self.first_q

    @cached_property
    def kept(self) -> int:
        """Keep threshold in units of 2**-32."""
        return keep_threshold(self.p)

    @property
    def compressor(self) -> Compressor:
        """Both halves of the method."""
        return COMPRESSORS[self.method]

    @property
    def rule(self) -> str:
        """How clients choose q; empty: they do not."""
        return self.q if isinstance(self.q, str) and self.q in RULES else ""

    @property
    def first_q(self) -> float:
        """The number that survivors are divided by unless a search finds another one."""
        if self.rule or self.q == SERVER_VALIDATION:
            return self.kept / ONE
        return resolve_q(self.q, self.kept if self.compressor.seeded else ONE)

    def terms(self, round_: int, slot: int, base: str, record: str) -> Terms:
        """Return the terms of one client in one round.

        Args:
            round_: The federated round.
            slot: The client's partition.
            base: Version of the model that it is sent.
            record: Name of the ArrayRecord that is the model; empty: there is no other.
        """
        return Terms(
            method=self.method,
            kept=self.kept,
            q=self.first_q,
            values=self.values,
            seed=self.seed,
            round=round_,
            slot=slot,
            shared=self.mask == "round",
            exact=self.count == "exact",
            columns=columns_kept(self.p, self.columns) if self.method == "structured" else 0,
            scope=self.scope,
            search=self.rule,
            dense=self.dense,
            base=base,
            record=record,
        )


def check_replies(asked: Request, form: str, strategy: str) -> None:
    """Raise `ValueError` if clients cannot be compared although a strategy does that.

    Args:
        asked: The settings of the uplink.
        form: Which replies the strategy is given.
        strategy: Its name.
    """
    if form != "support" or asked.method == "dense":
        return
    if asked.mask != "round":
        raise ValueError(
            f"{strategy} compares clients, and clients with masks of their own have next to no "
            "coordinates in common (at p = .99 the median of ten is 0 everywhere): use mask='round'"
        )
    if asked.q == SERVER_VALIDATION:
        raise ValueError(
            f"q = {SERVER_VALIDATION!r} searches along the average, which {strategy} does not "
            "take; choose another q"
        )


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Raise `ValueError` if a value is none of those known."""
    if value not in known:
        choices = sorted(known)
        raise ValueError(f"{name} must be one of {choices}, got {value!r}{nearest(value, choices)}")
