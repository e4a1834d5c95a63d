"""The two forms of a delta while it is learned: behind gates, and at fixed positions.

Both hold their numbers in float32 (float64 for float64 tensors), whatever the model's type. The
tuned tensors are rounded to that type, so the model is trained in the form in which it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from fl_darex.analysis.diff_pruning.gates import median_gates, open_probability, sample_gates
from fl_darex.positions import Positions

Tensors = dict[str, torch.Tensor]


class GatedDelta:
    """``delta = z * w`` for each tensor, or ``z_tensor * z * w`` with one more gate per tensor.

    Args:
        base: The trained tensors before training.
        whole: Names of those without gates: all of their entries are kept.
        alpha: Where the gates' parameters begin.
        structured: Whether each tensor has a gate of its own, too.
    """

    def __init__(
        self,
        base: Mapping[str, torch.Tensor],
        whole: Iterable[str] = (),
        *,
        alpha: float = 5.0,
        structured: bool = False,
    ) -> None:
        self._base = base
        gated = [name for name in base if name not in set(whole)]
        self.values = {name: _parameter(tensor, 0.0) for name, tensor in base.items()}
        self.gates = {name: _parameter(base[name], alpha) for name in gated}
        grouped = gated if structured else []
        self.group_gates = {name: _parameter(base[name].new_zeros(()), alpha) for name in grouped}

    @property
    def numel(self) -> int:
        """Number of entries that have a gate."""
        return sum(gates.numel() for gates in self.gates.values())

    def sampled(self) -> Tensors:
        """Return the tuned tensors for one draw of all gates (torch's global generators)."""
        return {
            name: _tuned(tensor, self._gated(name, _draw)) for name, tensor in self._base.items()
        }

    @torch.no_grad()
    def settled(self) -> Tensors:
        """Return the delta with every gate at its median."""
        return {name: self._gated(name, median_gates) for name in self._base}

    def expected_nonzero(self) -> torch.Tensor:
        """Return the expected number of non-zero entries behind gates, differentiable.

        With gates for tensors that is the sum of ``P(z_tensor > 0) P(z > 0)``. (The authors' code
        adds both probabilities up, so that closing a whole tensor saves the price of one entry.)
        """
        total = torch.zeros((), dtype=torch.float64)
        for name, gates in self.gates.items():
            count = open_probability(gates).sum()
            if name in self.group_gates:
                count = count * open_probability(self.group_gates[name])
            total = total + count.to("cpu", torch.float64)
        return total

    def _gated(self, name: str, gate: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        delta: torch.Tensor = self.values[name]
        for gates in (self.gates, self.group_gates):
            if name in gates:
                delta = delta * gate(gates[name])
        return delta


class FixedDelta:
    """A delta of which only the entries at fixed positions are trained.

    Args:
        base: The trained tensors before training.
        delta: Where the delta begins, same names and shapes.
        where: Flat positions of the entries that stay; tensors without a row stay whole.
    """

    def __init__(
        self,
        base: Mapping[str, torch.Tensor],
        delta: Mapping[str, torch.Tensor],
        where: Mapping[str, Positions],
    ) -> None:
        self._base = base
        self._where = {
            name: torch.from_numpy(positions).to(base[name].device)
            for name, positions in where.items()
        }
        self.values = {name: self._kept(name, tensor) for name, tensor in delta.items()}

    @property
    def count(self) -> int:
        """Number of entries at fixed positions."""
        return sum(self.values[name].numel() for name in self._where)

    def tuned(self) -> Tensors:
        """Return the base with the delta added, differentiable in the values."""
        return {name: _tuned(tensor, self._full(name)) for name, tensor in self._base.items()}

    @torch.no_grad()
    def exact(self) -> Tensors:
        """Return the same in the values' own type, so that subtracting the base gives them back."""
        return {
            name: _wide(tensor) + self._full(name).detach() for name, tensor in self._base.items()
        }

    def _kept(self, name: str, delta: torch.Tensor) -> torch.nn.Parameter:
        if name in self._where:
            delta = delta.reshape(-1)[self._where[name]]
        return torch.nn.Parameter(delta.clone())

    def _full(self, name: str) -> torch.Tensor:
        if name not in self._where:
            return self.values[name]
        flat = self.values[name].new_zeros(self._base[name].numel())
        return flat.index_put((self._where[name],), self.values[name]).view_as(self._base[name])


def _draw(alpha: torch.Tensor) -> torch.Tensor:
    return sample_gates(alpha, torch.rand_like(alpha))


def _parameter(like: torch.Tensor, value: float) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.full_like(_wide(like), value))


def _tuned(base: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    return (_wide(base) + delta).to(base.dtype)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
