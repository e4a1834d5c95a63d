"""What each client was sent: its update is a change of that, whatever the strategy was given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from flwr.app import ArrayRecord, Message

from fl_darex.compression.terms import Terms
from fl_darex.compression.update import Before
from fl_darex.delta import Layout
from fl_darex.flower.records import view_arrays


@dataclass(frozen=True, eq=False)
class Sent:
    """Tensors that clients were sent, one object for all who were sent the same.

    Attributes:
        arrays: By name.
        layout: Their layout.
    """

    arrays: Before
    layout: Layout

    @classmethod
    def of(cls, record: ArrayRecord, dense: Iterable[str]) -> Sent:
        """Describe a record's tensors; those named are sent back whole, where they are there."""
        arrays = view_arrays(record)
        return cls(arrays, Layout.of(arrays, [name for name in dense if name in arrays]))

    def like(self, arrays: Before) -> Sent:
        """Return what a reply of another structure is a change of: these tensors, else zeros."""
        before = {
            name: self.arrays[name] if _fits(self.arrays.get(name), new) else np.zeros_like(new)
            for name, new in arrays.items()
        }
        dense = [spec.name for spec in self.layout.dense if spec.name in before]
        return Sent(before, Layout.of(before, dense))

    @property
    def structure(self) -> frozenset[tuple[str, tuple[int, ...]]]:
        """Names and shapes."""
        return structure(self.arrays)


NOTHING = Sent({}, Layout(()))


class Asked(NamedTuple):
    """What one client was asked for.

    Attributes:
        message: As it went out.
        terms: What its reply must look like.
        sent: What the reply is a change of.
        told: Whether the message carries the terms: one without a model cannot be answered by a
            change of it.
    """

    message: Message
    terms: Terms
    sent: Sent
    told: bool


def structure(arrays: Mapping[str, Any]) -> frozenset[tuple[str, tuple[int, ...]]]:
    """Return the names and shapes of tensors, or of a record's arrays."""
    return frozenset((name, tuple(array.shape)) for name, array in arrays.items())


def _fits(old: np.ndarray[Any, Any] | None, new: np.ndarray[Any, Any]) -> bool:
    return old is not None and old.shape == new.shape and old.dtype.kind == new.dtype.kind


def same(one: ArrayRecord, other: ArrayRecord) -> bool:
    """Return whether two records hold the same tensors, bit for bit, in any order."""
    return one is other or (
        set(one) == set(other)
        and all(
            array is other[name]
            or (
                (array.dtype, tuple(array.shape)) == (other[name].dtype, tuple(other[name].shape))
                and array.data == other[name].data
            )
            for name, array in one.items()
        )
    )
