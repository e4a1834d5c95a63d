"""The inside of LoRA-XS: a trained square matrix between frozen singular vectors of a weight."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def put_between(model: nn.Module, adapter: str) -> None:
    """Replace A and B of peft's LoRA layers by V' and U S R, of which R alone is trained.

    Args:
        model: With LoRA layers of peft.
        adapter: Its name there.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums, and with them the last bits, depend on how many there are
    try:
        for layer in _layers(model):
            weight = layer.get_base_layer().weight.detach()
            weight = weight.T if layer.fan_in_fan_out else weight
            left, right = principal(weight, layer.r[adapter])
            layer.lora_A[adapter].weight = nn.Parameter(right, requires_grad=False)
            layer.lora_B[adapter] = Between(left)
    finally:
        torch.set_num_threads(threads)


def as_lora(model: nn.Module, adapter: str) -> Any:
    """Return a copy with LoRA's own B in place of each `Between`, which computes the same."""
    plain = copy.deepcopy(model)
    for layer in _layers(plain):
        weight = layer.lora_B[adapter].weight.detach()
        layer.lora_B[adapter] = _bare(weight.shape[1], weight.shape[0], weight)
        layer.lora_B[adapter].weight = nn.Parameter(weight)
    return plain


class Between(nn.Module):
    """In place of LoRA's B: a frozen matrix times the trained square one.

    Attributes:
        square: The layer whose weight R is trained, at first 0.
        left: Shape ``(outputs, rank)``; it is not saved, so it is not exchanged.
    """

    bias = None

    def __init__(self, left: Tensor) -> None:
        super().__init__()
        self.square = _bare(left.shape[1], left.shape[1], left)
        nn.init.zeros_(self.square.weight)
        self.left: Tensor
        self.register_buffer("left", left, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The product, as peft merges it."""
        found: Tensor = self.left @ self.square.weight
        return found

    def forward(self, values: Tensor) -> Tensor:
        """Return the layer's outputs, without the square of the larger side."""
        return functional.linear(self.square(values), self.left)


def principal(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return U S, shape ``(outputs, rank)``, and V', shape ``(rank, inputs)``, of a weight's SVD.

    The entry of each left vector that is largest in magnitude, the first of equals, is positive.
    """
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    signs = left.gather(0, left.abs().argmax(0, keepdim=True)).sign()
    signs[signs == 0] = 1
    scaled, turned = left * values * signs, right * signs.T
    return scaled.to(weight.dtype).contiguous(), turned.to(weight.dtype).contiguous()


def _bare(inputs: int, outputs: int, like: Tensor) -> Any:
    """Return a linear layer without numbers: drawing them would move the global generator."""
    made = nn.Linear(inputs, outputs, bias=False, device="meta", dtype=like.dtype)
    return made.to_empty(device=like.device)


def _layers(model: nn.Module) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]
