"""What is asked: how every client's update is made, checked once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from fl_darex.compression.choices import COUNTS, MASKS, CountChoice, MaskChoice, QChoice
from fl_darex.compression.method import Method
from fl_darex.compression.methods import METHODS
from fl_darex.compression.small import whole_up_to
from fl_darex.delta import Layout
from fl_darex.errors import nearest
from fl_darex.masks import ONE, SHARED, fitting, keep_threshold
from fl_darex.options import Scalar, checked_options
from fl_darex.positions import SeededMask
from fl_darex.rescaling import resolve_q
from fl_darex.rescaling.rules import CURVATURE, PER_TENSOR, RULES, SERVER_RULES
from fl_darex.wire.codings import CODINGS, SCALES, Coding, Scale, dense_coding, nature_of, type_of
from fl_darex.wire.codings.eden import check_scale

AUTO = "auto"
"""Of ``dense_below``: as the model's sizes suggest; of ``mask``: as rounds suggest."""


@dataclass(frozen=True, kw_only=True)
class Uplink:
    """Settings of the way up, the same for all clients and rounds of a run.

    Attributes:
        method: Name of a row of `fl_darex.compression.methods.METHODS`.
        keep: Fraction kept in units of 2**-32, 1 to 2**32; `of` makes it from p.
        q: ``"dare"``, a number in (0, 1], a rule by which clients choose it, or
            one by which the server does; see `fl_darex.rescaling.rules`.
        values: Name of a row of `fl_darex.wire.codings.CODINGS`.
        scale: Of ``values = "eden1"`` to ``"eden4"``: ``"unbiased"``, or ``"least-squares"``; see
            `fl_darex.wire.codings.eden.Eden`.
        mask: ``"client"``, ``"round"``, ``"disjoint"``, or ``"auto"``: the server names one of
            these each round.
        count: ``"random"`` or ``"exact"``; disjoint masks are exact in any case.
        rotate: Whether each round draws masks of its own; False: one draw for the whole run.
        mask_first: Whether clients train only the entries that their mask keeps. Then nothing is
            dropped, and q is 1.
        seed: The run's seed, in [0, 2**63).
        dense: Names of tensors whose whole delta is sent.
        dense_below: Floating-point tensors of at most so many entries are sent whole, too.
            ``"auto"``: the smallest ones, while they are few; `fitted` makes a number of it.
        options: The method's own settings by name; those that are left out take their default.

    Raises:
        ValueError: If one is of a wrong type or outside its range, or two do not go together. The
            message begins with the name of the setting.
    """

    method: str
    keep: int
    q: float | QChoice = "dare"
    values: str = "fp16"
    scale: Scale = "unbiased"
    mask: MaskChoice = "client"
    count: CountChoice = "random"
    rotate: bool = True
    mask_first: bool = False
    seed: int = 0
    dense: tuple[str, ...] = ()
    dense_below: int | Literal["auto"] = 0
    options: Mapping[str, Scalar] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_each()
        options = checked_options(f"method {self.method!r}", self.how.options, self.options)
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "dense", tuple(self.dense))
        self._check_mask()
        self._check_mask_first()
        self._check_feedback()
        _ = self.divisor
        self.how.check(self)

    def _check_each(self) -> None:
        rows = (("method", [*METHODS]), ("values", [*CODINGS]), ("scale", SCALES))
        for name, known in (*rows, ("mask", MASKS), ("count", COUNTS)):
            check_choice(name, getattr(self, name), known)
        rules = (*RULES, *SERVER_RULES)
        if isinstance(self.q, str) and self.q not in ("dare", *rules):
            raise ValueError(
                "q must be 'dare' (q = 1-p), a number in (0, 1], or one of "
                f"{', '.join(map(repr, rules))}, got {self.q!r}{nearest(self.q, rules)}"
            )
        check_scale(CODINGS[self.values], self.scale)
        if type(self.keep) is not int or not 0 < self.keep <= ONE:
            raise ValueError(f"keep = {self.keep!r} is not allowed; it must be from 1 to 2**32")
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed = {self.seed!r} is not allowed; it must be in [0, 2**63)")
        names = self.dense if isinstance(self.dense, list | tuple) else [None]
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"dense = {self.dense!r} is not allowed; it must be a list of names")
        below = self.dense_below
        if below != AUTO and (type(below) is not int or not 0 <= below < 2**63):
            raise ValueError(
                f"dense_below = {below!r} is not allowed; it must be a number of entries in "
                f"[0, 2**63), or {AUTO!r}"
            )
        for name in ("rotate", "mask_first"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")

    def _check_mask(self) -> None:
        if self.mask != "client" and not self.how.seeded:
            raise ValueError(
                f"mask = {self.mask!r} is for masks that are drawn; "
                f"method = {self.method!r} chooses by value: set mask = 'client'"
            )
        biased = nature_of(self.values).biased
        if self.mask == AUTO and (biased or self.rule in PER_TENSOR):
            own = f"values = {self.values!r}" if biased else f"q = {self.q!r}"
            raise ValueError(
                f"mask = 'auto' measures how much clients agree, which their packets do not say "
                f"with {own}: choose the mask, or another of these"
            )
        if self.q == CURVATURE and self.how.packs and not self.how.seeded:
            raise ValueError(
                f"q = {self.q!r} weighs the noise of masks that are drawn; method = "
                f"{self.method!r} chooses by value: set method = 'dare', or another q"
            )
        if not self.rotate and self.how.packs and not self.how.seeded:
            raise ValueError(
                f"rotate = False is for masks that are drawn; method = {self.method!r} chooses by "
                "value in each round: leave it out"
            )

    def _check_mask_first(self) -> None:
        if not self.mask_first:
            return
        if self.how.packs and not self.how.seeded:
            raise ValueError(
                "mask_first = True trains what a mask keeps that is known before training, and "
                f"method = {self.method!r} chooses by value afterwards: set method = 'dare' or "
                "'structured'"
            )
        if self.mask == "auto":
            raise ValueError(
                "mask = 'auto' does not go with training what the mask keeps: nothing is known of "
                "the entries beside it, so rho says nothing; set mask = 'round', 'client' or "
                "'disjoint'"
            )
        if self.q not in ("dare", 1):
            raise ValueError(
                f"q = {self.q!r} does not go with training what the mask keeps: nothing is "
                "dropped, so nothing is made up for, and q is 1; leave q = 'dare'"
            )

    def _check_feedback(self) -> None:
        if not self.how.feeds_back:
            return
        given = f"method = {self.method!r} adds what it does not deliver to the next change"
        if self.q not in ("dare", 1):
            raise ValueError(
                f"q = {self.q!r} makes up at once for what is dropped, and {given}: both would be "
                "too much; leave q = 'dare', which is 1 here"
            )
        if self.mask == AUTO:
            raise ValueError(
                f"mask = 'auto' measures how much clients' changes agree, and {given}, so packets "
                "do not say: choose the mask"
            )
        if self.mask_first or not self.rotate:
            key, value = ("mask_first", True) if self.mask_first else ("rotate", False)
            raise ValueError(
                f"{key} = {value} changes the same entries only that are sent, and {given}: there "
                "is nothing that could come later; set method = 'dare'"
            )

    @classmethod
    def of(
        cls, method: str | Method, p: float, *, values: str | Coding = "fp16", **settings: Any
    ) -> Uplink:
        """Return an uplink from p, the fraction dropped, in [0, 1).

        Args:
            method: A name, or a method of one's own, which is added to the table.
            p: Fraction of each delta that is dropped.
            values: A name, or a coding of one's own, likewise.
            settings: All others. Options that only other methods have are checked and left out.
        """
        if isinstance(method, Method):
            method = METHODS.add(method).name
        check_choice("method", method, METHODS)
        given, own = settings.pop("options", {}), METHODS[method].options
        others = {name: one for row in METHODS.values() for name, one in row.options.items()}
        for name in set(given) & set(others) - set(own):
            others[name].checked(name, given[name])
        settings["options"] = {k: v for k, v in given.items() if k in own or k not in others}
        if not isinstance(values, str):
            values = CODINGS.add(values).name
        keep = keep_threshold(p)
        if settings.get("mask") in ("disjoint", AUTO):
            keep = fitting(keep)
        return cls(method=method, keep=keep, values=values, **settings)

    @property
    def how(self) -> Method:
        """Both halves of the method."""
        return METHODS[self.method]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy type of a packet's numbers: float32, or float64."""
        return type_of(CODINGS[self.values])

    @property
    def rule(self) -> str:
        """How clients choose q; empty: they do not."""
        return self.q if isinstance(self.q, str) and self.q in RULES else ""

    def fitted(self, tensors: Mapping[str, Any]) -> Uplink:
        """Return the uplink for a model of these tensors, with a number for ``dense_below``.

        Names in ``dense`` of tensors that are not there are left out.
        """
        there = tuple(name for name in self.dense if name in tensors)
        if self.dense_below != AUTO:
            return self if there == self.dense else replace(self, dense=there)
        layout = Layout.of(tensors)
        # By sizes alone: which tensors are named dense, and later so, does not move the others.
        sizes = [spec.numel for spec in (*layout.pruned, *layout.dense)]
        # Beside EDEN as if whole tensors took fp16, as beside others: a smaller part goes whole.
        bits, whole = CODINGS[self.values].bits, dense_coding(self.values).bits
        below = whole_up_to(sizes, self.keep, min(1.0, bits / whole)) if self.how.packs else 0
        return replace(self, dense=there, dense_below=below)

    def layout(self, tensors: Mapping[str, Any]) -> Layout:
        """Return what becomes of each tensor of a model.

        Raises:
            DeltaError: If ``dense`` names a tensor that is not there.
        """
        return Layout.of(tensors, self.dense, int(self.dense_below))

    def drawn(self, round_: int, slot: int) -> SeededMask:
        """Return the entries that a client draws in a round; the mask is not ``"auto"``."""
        slot = SHARED if self.mask == "round" else slot
        exact, disjoint = self.count == "exact", self.mask == "disjoint"
        return SeededMask(
            *(self.seed, round_, slot, self.keep), exact, disjoint=disjoint, fixed=not self.rotate
        )

    @cached_property
    def divisor(self) -> float:
        """The number that survivors are divided by unless a search finds another one."""
        if self.mask_first or self.how.feeds_back:
            return 1.0
        if self.rule or self.q in SERVER_RULES:
            return self.keep / ONE
        return resolve_q(self.q, self.keep if self.how.seeded else ONE)


def check_choice(name: str, value: object, known: Iterable[str]) -> None:
    """Raise `ValueError` if a value is none of those known."""
    choices = sorted(known)
    if not isinstance(value, str) or value not in choices:
        hint = nearest(value, choices) if isinstance(value, str) else ""
        raise ValueError(f"{name} must be one of {choices}, got {value!r}{hint}")
