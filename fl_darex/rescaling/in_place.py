"""A torch model that moves along ``base + survivors / q`` in place.

The model is linear in 1/q, so a candidate costs one write per survivor: no copy of the model, no
``load_state_dict``, no dense delta.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fl_darex.delta import Layout, TensorSpec
from fl_darex.positions import Positions
from fl_darex.survivors import Q, Survivors


@dataclass(frozen=True, eq=False)
class Part:
    """One pruned tensor's survivors, on the tensor's device.

    Attributes:
        flat: A flat view of the tensor's memory.
        at: Where the survivors are in it.
        positions: Where they are in the flattened tensor; the same if it is contiguous.
        before: What the base has there.
        base: The same, in float32 at least.
        values: The unscaled survivors, float32 or float64.
    """

    flat: torch.Tensor
    at: torch.Tensor
    positions: torch.Tensor
    before: torch.Tensor
    base: torch.Tensor
    values: torch.Tensor

    def write(self, q: torch.Tensor) -> None:
        """Write ``base + values / q``, rounded once to the tensor's type."""
        moved = self.base + self.values / q
        self.flat.index_copy_(0, self.at, moved.to(self.flat.dtype))

    def slope(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the derivative by 1/q, in float32, from the gradient of the whole tensor."""
        picked = gradient.reshape(-1).index_select(0, self.positions)
        return torch.dot(picked.float(), self.values.float())


class RescaledModel:
    """Tensors of a model, held at ``base + survivors / q`` inside a ``with`` block.

    ::

        with RescaledModel(exchanged(model), survivors, base) as rescaled:
            rescaled.set(0.02)        # O(survivors); the model can be run now

    `set` writes the survivors' entries alone; the others hold the base's values. Dense tensors
    (``base + delta``) and raw tensors (their new values) are written once, on entry. On exit all
    tensors hold, bit for bit, what they held before. Entries are the bits that a client or server
    gets that applies a packet with this q. Any floating type, device and memory layout.

    Args:
        tensors: The model's tensors by the layout's names; each tied tensor once. Other tensors,
            such as frozen ones, may be among them and are left alone.
        survivors: What is added to the base.
        base: The values that the survivors are added to, NumPy arrays or torch tensors; None:
            those that the tensors have on entry. A tensor that does not hold its base's values
            on entry is kept aside until exit, the others cost no copy.

    Raises:
        ValueError: If a tensor is missing or has another shape.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        survivors: Survivors,
        base: Mapping[str, Any] | None = None,
    ) -> None:
        self.survivors = survivors
        self.tensors = _find(tensors, survivors.layout, "model")
        self._base = {} if base is None else _find(base, survivors.layout, "base")
        self._parts: list[Part] | None = None
        self._aside: dict[str, torch.Tensor] = {}

    @property
    def parts(self) -> list[Part]:
        """The pruned tensors' survivors, in canonical order.

        Raises:
            RuntimeError: Outside the ``with`` block.
        """
        if self._parts is None:
            raise RuntimeError("a RescaledModel moves its model inside a `with` block only")
        return self._parts

    @torch.no_grad()
    def __enter__(self) -> RescaledModel:
        if self._parts is not None:
            raise RuntimeError("this RescaledModel is in use already; leave the `with` block first")
        try:
            self._move_to_base()
            self._parts = [self._part(spec) for spec in self.survivors.layout.pruned]
            self._write_whole()
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    @torch.no_grad()
    def set(self, q: Q) -> None:
        """Move the model to ``base + survivors / q``.

        Args:
            q: One number for all pruned tensors, or one for each in canonical order. Smaller means
                a larger change.

        Raises:
            ValueError: If a q is not a positive number, or there is not one for each tensor.
        """
        parts = self.parts
        numbers = np.asarray(q, dtype=self.survivors.numbers.dtype)
        if numbers.ndim > 1 or (numbers.ndim == 1 and numbers.size != len(parts)):
            raise ValueError(f"q must be one number or {len(parts)}, got shape {numbers.shape}")
        if not (np.isfinite(numbers) & (numbers > 0)).all():
            raise ValueError(f"q must be positive and finite, got {q!r}")
        every = torch.from_numpy(np.broadcast_to(numbers, (len(parts),)).copy())
        # A number on the host would be turned into a multiplication on a GPU: other bits.
        on = {device: every.to(device) for device in {part.flat.device for part in parts}}
        for index, part in enumerate(parts):
            part.write(on[part.flat.device][index])

    def _move_to_base(self) -> None:
        for name, values in self._base.items():
            tensor, base = self.tensors[name], _as(values, self.tensors[name])
            if not torch.equal(tensor, base):
                self._aside[name] = tensor.detach().clone()
                tensor.copy_(base)

    def _part(self, spec: TensorSpec) -> Part:
        tensor, where = self.tensors[spec.name], self.survivors.positions[spec.name]
        positions = torch.tensor(where).to(tensor.device)
        at = positions if tensor.is_contiguous() else _offsets(tensor, where)
        flat = _memory(tensor)
        before = flat.index_select(0, at)
        values = torch.tensor(self.survivors.values[spec.name]).to(tensor.device)
        return Part(flat, at, positions, before, _wide(before), values)

    def _write_whole(self) -> None:
        layout = self.survivors.layout
        for spec in (*layout.dense, *layout.raw):
            tensor = self.tensors[spec.name]
            kept = tensor.detach().clone()
            if spec.role == "raw":
                tensor.copy_(_as(self.survivors.raw[spec.name], tensor))
            else:
                change = torch.tensor(self.survivors.dense[spec.name]).reshape(spec.shape)
                tensor.copy_(_wide(kept) + change.to(tensor.device))
            self._aside.setdefault(spec.name, kept)

    @torch.no_grad()
    def _restore(self) -> None:
        for part in self._parts or []:
            part.flat.index_copy_(0, part.at, part.before)
        for name, before in self._aside.items():
            self.tensors[name].copy_(before)
        self._parts, self._aside = None, {}


def _find(tensors: Mapping[str, Any], layout: Layout, what: str) -> dict[str, Any]:
    for spec in layout:
        if spec.name not in tensors:
            raise ValueError(f"the {what} has no tensor {spec.name!r} of the survivors' layout")
        if (shape := tuple(tensors[spec.name].shape)) != spec.shape:
            raise ValueError(
                f"{spec.name!r} has shape {shape} in the {what}, survivors {spec.shape}"
            )
    return {spec.name: tensors[spec.name] for spec in layout}


def _as(values: Any, like: torch.Tensor) -> torch.Tensor:
    if not isinstance(values, torch.Tensor):
        values = torch.from_numpy(np.require(values, requirements="W"))
    moved: torch.Tensor = values.detach().to(like.device, like.dtype)
    return moved


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _memory(tensor: torch.Tensor) -> torch.Tensor:
    """Return a flat view of the memory that a tensor lies in, whatever its strides."""
    tensor = tensor.detach()
    if tensor.is_contiguous():
        return tensor.view(-1)
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    extent = 1 + sum((size - 1) * stride for size, stride in pairs) if tensor.numel() else 0
    flat: torch.Tensor = tensor.as_strided((extent,), (1,))
    return flat


def _offsets(tensor: torch.Tensor, positions: Positions) -> torch.Tensor:
    """Return where flat positions lie in the tensor's memory, on its device."""
    places = np.unravel_index(positions, tuple(tensor.shape))
    offsets = np.zeros(positions.shape, dtype=np.int64)
    for place, stride in zip(places, tensor.stride(), strict=True):
        offsets += place * stride
    return torch.from_numpy(offsets).to(tensor.device)
