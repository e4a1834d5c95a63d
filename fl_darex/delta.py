"""Named tensors: what they look like (`Layout`) and how they changed (`Delta`).

A delta is the difference between the tuned and the base values of a set of named tensors. It is
never built whole: positions are gathered first and subtracted afterwards, so the work is
proportional to what is kept. Tensors may be NumPy arrays or torch tensors (bfloat16 too); torch
itself is not imported here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fl_darex.change import added, holds
from fl_darex.entries import flat, gather, span, to_numpy, widened
from fl_darex.errors import DeltaError

Tensors = Mapping[str, Any]
Role = Literal["pruned", "dense", "raw", "tied"]

# Running statistics are no trained weights, and a pruned and rescaled variance can turn negative:
# they always travel whole. torch, Keras, flax.
_STATISTICS = re.compile(
    r"(^|[./])((running_mean|running_var|moving_mean|moving_variance)(:0)?$|batch_stats[./])"
)


@dataclass(frozen=True)
class TensorSpec:
    """One tensor's place in a layout.

    Attributes:
        name: Its name, unique in the layout.
        shape: Its shape; ``()`` is a scalar.
        dtype: Its type as NumPy or torch spells it, without a ``torch.`` prefix.
        role: ``pruned``: a part of its delta is sent; ``dense``: its whole delta is sent;
            ``raw``: not floating point, its new values are sent as they are; ``tied``: nothing is
            sent, its new values are those of another one.
        source: The tensor that a tied one equals; empty for all others.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Role
    source: str = ""

    @cached_property
    def numel(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def statistic(self) -> bool:
        """Whether its name says that it is a running statistic."""
        return _STATISTICS.search(self.name) is not None


@dataclass(frozen=True)
class Layout:
    """The tensors of a model in canonical order: sorted by name, whatever order they came in."""

    specs: tuple[TensorSpec, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Any], dense: Iterable[str] = (), below: int = 0) -> Layout:
        """Describe named tensors.

        Args:
            tensors: NumPy arrays or torch tensors by name.
            dense: Names whose whole delta is sent, such as a head that the base model lacks.
            below: Floating-point tensors of at most so many entries are sent whole, too; 0: none.

        Raises:
            DeltaError: If ``dense`` names a tensor that is not there, or a tensor holds neither
                real numbers nor booleans.
        """
        if isinstance(dense, str):
            raise DeltaError(f"dense must be a list of names, got the text {dense!r}")
        whole = set(dense)
        if missing := whole - set(tensors):
            raise DeltaError(f"dense names no such tensor: {sorted(missing)}")
        specs = (_describe(name, tensors[name]) for name in sorted(tensors))
        roles = (_sent(spec, spec.name in whole or 0 < spec.numel <= below) for spec in specs)
        return cls(tuple(roles))

    def __iter__(self) -> Iterator[TensorSpec]:
        return iter(self.specs)

    @property
    def pruned(self) -> tuple[TensorSpec, ...]:
        """The tensors of which a random part is sent."""
        return tuple(spec for spec in self.specs if spec.role == "pruned")

    @property
    def dense(self) -> tuple[TensorSpec, ...]:
        """The floating-point tensors whose whole delta is sent."""
        return tuple(spec for spec in self.specs if spec.role == "dense")

    @property
    def raw(self) -> tuple[TensorSpec, ...]:
        """The tensors whose new values are sent as they are."""
        return tuple(spec for spec in self.specs if spec.role == "raw")

    @property
    def tied(self) -> tuple[TensorSpec, ...]:
        """The tensors that equal another one, which is sent in their place."""
        return tuple(spec for spec in self.specs if spec.role == "tied")

    def tie(self, sources: Mapping[str, str]) -> Layout:
        """Return this layout with some tensors tied.

        Args:
            sources: The tensor that each of them equals, by name; none of those is tied itself.
        """
        if not sources:
            return self
        known: Iterable[TensorSpec] = (
            replace(spec, role="tied", source=sources[spec.name]) if spec.name in sources else spec
            for spec in self.specs
        )
        return Layout(tuple(known))

    @cached_property
    def fingerprint(self) -> bytes:
        """16 bytes that differ between any two layouts (BLAKE2b of names, shapes, types, roles)."""
        rows = ((s.name, s.shape, s.dtype, s.role, *filter(None, [s.source])) for s in self.specs)
        text = "\n".join(map(repr, rows))
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Delta:
    """The change of named tensors, evaluated only where it is asked for.

    Args:
        tuned: The tensors after training, or the difference itself where ``base`` is None.
        base: The tensors before training, same names and shapes; None means zeros.
        dense: Names whose whole delta is to be sent.
        layout: What becomes of each tensor, where that is settled; None: `Layout.of`.
        dtype: Of the changes: float32, or float64 for packets that keep it.

    Raises:
        DeltaError: If names or shapes of ``tuned`` and ``base`` differ.
    """

    def __init__(
        self,
        tuned: Tensors,
        base: Tensors | None = None,
        dense: Iterable[str] = (),
        *,
        layout: Layout | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        # A trainer may answer in another type; what was sent decides.
        self.layout = layout or Layout.of(tuned if base is None else base, dense)
        self.dtype = np.dtype(dtype)
        self._dtypes = {spec.name: spec.dtype for spec in self.layout}
        self._tuned = tuned
        self._base = base
        if base is None:
            return
        if odd := restructured(tuned, base):
            raise DeltaError(
                f"tuned and base tensors: {odd}; a client must return the tensors that it was sent"
            )

    def accelerator(self, name: str) -> Any | None:
        """Return the torch device of a tensor that is not on the CPU; None for all others."""
        device = getattr(self._tuned[name], "device", None)
        # NumPy 2's arrays have a device, too: the text "cpu".
        return device if getattr(device, "type", "cpu") != "cpu" else None

    def take(self, name: str, positions: Any) -> NDArray[Any]:
        """Return the delta at flat positions of one tensor, in ``dtype``.

        Args:
            name: The tensor.
            positions: Inside the tensor; int64, a NumPy array or a torch tensor.
        """
        tuned = gather(self._tuned[name], positions)
        if self._base is not None:
            tuned = _minus(tuned, gather(self._base[name], positions))
        return tuned.astype(self.dtype, copy=False)

    def whole(self, name: str) -> NDArray[Any]:
        """Return one tensor's delta, flattened, in ``dtype``."""
        tuned = flat(self._tuned[name])
        if self._base is not None:
            tuned = _minus(tuned, flat(self._base[name]))
        # A copy of what came in: training may go on.
        return tuned.astype(self.dtype, copy=self._base is None)

    def part(self, name: str, start: int, end: int) -> NDArray[Any]:
        """Return entries ``start`` to ``end - 1`` of what `whole` returns."""
        tuned = span(self._tuned[name], start, end)
        if self._base is not None:
            tuned = _minus(tuned, span(self._base[name], start, end))
        return tuned.astype(self.dtype, copy=self._base is None)

    def moved_by(
        self, name: str, change: NDArray[Any], positions: Any | None = None
    ) -> NDArray[Any]:
        """Return by how much one tensor's base moves where numbers are added and it is rounded.

        Args:
            name: The tensor, of a type that NumPy has.
            change: One number for each position.
            positions: Flat positions inside the tensor; None: all.
        """
        if self._base is None:
            return change
        tensor = self._base[name]
        before = flat(tensor) if positions is None else gather(tensor, positions)
        after = added(before.astype(self._dtypes[name], copy=False), change)
        return _minus(widened(after), before)

    def raw(self, name: str) -> NDArray[Any]:
        """Return the new values of a tensor that is not floating point, in its shape and type."""
        values = to_numpy(self._tuned[name])
        dtype = np.dtype(self._dtypes[name])
        if not holds(dtype, values):
            raise DeltaError(
                f"{name!r} holds NaN or numbers that {dtype}, which was sent, cannot hold: from "
                f"{values.min()} to {values.max()}"
            )
        whole = values.dtype.kind == "f" and dtype.kind in "iu"
        return np.array(np.rint(values) if whole else values, dtype=dtype)

    def changed(self, name: str) -> NDArray[Any]:
        """Return what is true where one tensor changed, flattened."""
        tuned = flat(self._tuned[name])
        return tuned if self._base is None else tuned != flat(self._base[name])


def restructured(tuned: Tensors, base: Tensors) -> str:
    """Return in words how names or shapes differ; empty: they do not."""
    if difference := set(base).symmetric_difference(tuned):
        return f"they differ in names: {sorted(difference)[:5]}"
    for name in sorted(base):
        if (shape := tuple(tuned[name].shape)) != (sent := tuple(base[name].shape)):
            return f"{name!r} has shape {shape}, its base {sent}"
    return ""


def as_delta(delta: Delta | Mapping[str, Any]) -> Delta:
    """Return a mapping of differences as a `Delta`; a `Delta` passes through."""
    return delta if isinstance(delta, Delta) else Delta(delta)


def _describe(name: str, tensor: Any) -> TensorSpec:
    # NumPy's name leaves out the byte order; torch's types have none.
    dtype = getattr(tensor.dtype, "name", None) or str(tensor.dtype).removeprefix("torch.")
    if not dtype.startswith(("int", "uint", "bool")) and "float" not in dtype:
        raise DeltaError(f"{name!r} is of type {dtype}; real numbers and booleans can be sent")
    role: Role = "pruned" if "float" in dtype else "raw"
    return TensorSpec(name, tuple(int(size) for size in tensor.shape), dtype, role)


def _sent(spec: TensorSpec, whole: bool) -> TensorSpec:
    whole = whole or spec.statistic
    return replace(spec, role="dense") if whole and spec.role == "pruned" else spec


def _minus(tuned: NDArray[Any], base: NDArray[Any]) -> NDArray[Any]:
    """Return what changed; an infinite entry that stayed, as in a mask of attention, did not."""
    with np.errstate(invalid="ignore"):
        change: NDArray[Any] = tuned - base
    if np.isnan(change).any():
        change[tuned == base] = 0
    return change
