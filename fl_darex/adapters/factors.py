"""W + scaling * B @ A: LoRA, and those that keep a factor still so that sums are exact.

The mean of products is not the product of means. Where all clients have the same A, or the same B,
it is: mean(B_i) A = mean(B_i A).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fl_darex.adapters.adapter import Wanted
from fl_darex.adapters.peft_adapter import NAME, PeftAdapter, transposed
from fl_darex.adapters.targets import check_rank

if TYPE_CHECKING:
    from torch import nn


class Lora(PeftAdapter):
    """Two thin factors beside each target weight, A drawn at random and B = 0."""

    name: ClassVar[str] = "lora"
    paper: ClassVar[str] = "Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685"
    reads: ClassVar[frozenset[str]] = frozenset({"rank", "alpha", "dropout", "targets"})
    rank: ClassVar[int] = 8
    matrices: ClassVar[bool] = True
    product: ClassVar[bool] = True
    config: ClassVar[str] = "LoraConfig"

    def targets(self, model: nn.Module, wanted: Wanted, heads: Iterable[str]) -> list[str]:
        """Return the targets, all at least as wide as the rank."""
        found = super().targets(model, wanted, heads)
        check_rank(model, found, wanted.rank or self.rank)
        return found

    def options(self, model: nn.Module, targets: list[str], wanted: Wanted) -> Mapping[str, Any]:
        """Return the arguments of ``LoraConfig``."""
        return {
            "r": wanted.rank or self.rank,
            "lora_alpha": wanted.alpha,
            "lora_dropout": wanted.dropout,
            "fan_in_fan_out": transposed(model, targets),
        }


class FfaLora(Lora):
    """LoRA whose A stays as it was drawn: B alone is trained and exchanged."""

    name: ClassVar[str] = "ffa-lora"
    paper: ClassVar[str] = "Sun et al., ICLR 2024, https://arxiv.org/abs/2403.12313"
    product: ClassVar[bool] = False

    def finish(self, model: Any, wanted: Wanted) -> None:
        """Freeze A."""
        for name, tensor in model.named_parameters():
            if ".lora_A." in name:
                tensor.requires_grad_(False)


class RoLora(Lora):
    """LoRA that trains B in odd rounds and A in even ones.

    B first: as long as it is 0, A has no gradient. Server and clients have one layout for all
    rounds, so both travel in each; the change of the one that rests is exactly 0.
    """

    name: ClassVar[str] = "rolora"
    paper: ClassVar[str] = "Chen et al., 2024, https://arxiv.org/abs/2409.02346"
    product: ClassVar[bool] = False
    needs_zeros: ClassVar[bool] = True

    def takes_turn(self, name: str, round_: int) -> bool:
        """Return whether a tensor is the round's factor, or none of the two."""
        return f".lora_{'A' if round_ % 2 else 'B'}." not in name


class LoraXs(Lora):
    """A square matrix of r x r numbers between two frozen factors of the weight's own SVD.

    W + scaling * (U S) R V' with the r largest singular values, R = 0 at first. The mean of the
    clients' R is the mean of their products, which is what Fed-SB is built on (Singhal et al.,
    2025, https://arxiv.org/abs/2502.15436). peft has no such adapter: this is its LoRA, B replaced.

    Singular vectors are computed where the model is loaded: in double precision, by one thread and
    with their signs fixed, so processes of one machine have the same bits.
    """

    name: ClassVar[str] = "lora-xs"
    paper: ClassVar[str] = "Balazy et al., 2024, https://arxiv.org/abs/2405.17604"
    rank: ClassVar[int] = 16
    product: ClassVar[bool] = False

    def finish(self, model: Any, wanted: Wanted) -> None:
        """Put the weight's singular vectors in place of A and B, with R between them."""
        from fl_darex.adapters.square import put_between

        put_between(model, NAME)

    def save(self, model: Any, folder: Path) -> None:
        """Write it as LoRA of the same rank, B = U S R: peft loads that."""
        from fl_darex.adapters.square import as_lora

        super().save(as_lora(model, NAME), folder)
