"""How a fine-tuned model is pruned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fl_darex.errors import ConfigError, nearest
from fl_darex.masks import ONE, keep_threshold
from fl_darex.pruning.scores import SCOPES
from fl_darex.pruning.structured import COLUMNS, columns_kept
from fl_darex.rescaling import resolve_q
from fl_darex.wire.codings import CODINGS

SEEDED = ("dare", "structured")
SCORED = ("magnitude", "wanda")
METHODS = (*SEEDED, *SCORED)

Told = Callable[[str, int, int], None]
"""Is told what goes on, how many bytes of it are done, and of how many."""


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """How a fine-tuned model is pruned; checked when it is made.

    Attributes:
        method: ``"dare"``, ``"structured"``, ``"magnitude"`` or ``"wanda"`` (`fl_darex.pruning`).
        p: Fraction dropped, in [0, 1). Higher means fewer bytes.
        values: How survivors are written: a row of `fl_darex.wire.codings.CODINGS`.
        q: What survivors are divided by: ``"dare"``, which is 1-p where they are drawn at random
            and 1 where they are chosen; a number in (0, 1]; or a number for each tensor by name.
        seed: What masks are drawn from, in [0, 2**63).
        exact: Whether each tensor keeps an exact number of entries, where they are drawn.
        columns: Fraction of the input columns that ``"structured"`` keeps, from 1-p to 1.
        scope: Among which entries those that choose do so: ``"layer"``, ``"row"`` or, of
            ``"magnitude"`` alone, ``"global"``.
        norms: Of ``"wanda"``: the norm of each input, by weight.
        dense: Parts of names: tensors that have one in theirs are kept whole.
        dense_below: Tensors of at most so many entries are kept whole; 0: none.

    Raises:
        ConfigError: If one is out of range.
    """

    method: str
    p: float
    values: str = "fp16"
    q: float | str | Mapping[str, float] = "dare"
    seed: int = 0
    exact: bool = False
    columns: float = COLUMNS
    scope: str = "layer"
    norms: Mapping[str, Any] | None = None
    dense: tuple[str, ...] = ()
    dense_below: int = 0

    def __post_init__(self) -> None:
        _choose("method", self.method, METHODS)
        _choose("scope", self.scope, SCOPES)
        _choose("values", self.values, tuple(CODINGS))
        if not (_is_number(self.p) and 0 <= self.p < 1 and round(self.p * ONE) < ONE):
            raise ConfigError(
                f"p = {self.p!r}; allowed: from 0 to below 1 (it is the fraction dropped)"
            )
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed = {self.seed!r}; allowed: 0 to 2**63 - 1")
        if type(self.dense_below) is not int or self.dense_below < 0:
            raise ConfigError(f"dense-below = {self.dense_below!r}; allowed: 0 and up")
        if self.method == "wanda" and self.scope == "global":
            raise ConfigError(
                "scope = 'global' compares all tensors, and of some, such as embeddings, no inputs "
                "are known to weigh them by; allowed with method = 'wanda': layer, row"
            )
        if self.method == "wanda" and self.norms is None:
            raise ConfigError("method = 'wanda' weighs changes by inputs, so it needs data")
        try:
            self.divisors([])
            if self.method == "structured":
                columns_kept(self.keep, self.columns)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    @property
    def keep(self) -> int:
        """Keep threshold in units of 2**-32."""
        return keep_threshold(self.p)

    @property
    def chance(self) -> int:
        """The same where entries are drawn; `ONE` where they are chosen."""
        return self.keep if self.method in SEEDED else ONE

    def divisors(self, names: list[str]) -> float | list[float]:
        """Return q: one number, or one for each of some tensors.

        Raises:
            ValueError: If one is out of range.
        """
        if isinstance(self.q, Mapping):
            return [resolve_q(self.q.get(name, "dare"), self.chance) for name in names]
        return resolve_q(self.q, self.chance)

    def whole(self, name: str) -> bool:
        """Return whether a tensor is to be kept whole by its name."""
        return any(part in name for part in self.dense)


def _choose(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        choices = ", ".join(known)
        raise ConfigError(f"{key} = {value!r}; allowed: {choices}{nearest(str(value), known)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
