"""LoRA as a library: adapters in a model, their product as the weights' delta, and merged models.

Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685, through peft. "DARE the Extreme" prunes A
and B separately (Tables 4 and 16): an entry of their product that survives was divided by q twice,
so 1/q^2 in effect. `product_delta` is the other way: B @ A as the delta of the weight itself, for
every function that prunes or rescales. Other adapters of a run are in `fl_darex.adapters`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fl_darex.adapters import ADAPTERS, Wanted
from fl_darex.adapters.peft_adapter import PREFIX
from fl_darex.adapters.targets import check_rank
from fl_darex.adapters.targets import find_targets as _find
from fl_darex.delta import Delta

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_LORA = ADAPTERS["lora"]


@dataclass(frozen=True, kw_only=True)
class Lora:
    """What adapters look like.

    Attributes:
        rank: Rows of A and columns of B, at least 1.
        alpha: The product is scaled by ``alpha / rank``.
        dropout: Fraction of an adapter's inputs that is dropped in training, in [0, 1).
        targets: ``"auto"``: peft's choice for the model type, as a rule query and value;
            ``"all-linear"``; or names of linear modules, or their ends, separated by commas.
        seed: What A is drawn from; B starts at zero.
    """

    rank: int
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str = "auto"
    seed: int = 0


def add_lora(model: PreTrainedModel, lora: Lora, fresh: Iterable[str] = ()) -> PeftModel:
    """Put adapters into a model and freeze all else but its fresh modules.

    Equal arguments give equal bits in every process; the global random generator is neither used
    nor moved. The model must be on the CPU, and is changed.

    Args:
        model: Its base weights stay as they are.
        lora: What to add.
        fresh: Names of tensors that the base checkpoint lacks; their modules are trained whole.

    Raises:
        ConfigError: If peft is missing, a target is no linear module of the model, or the rank is
            larger than one.
    """
    made: PeftModel = _LORA.put_into(model, Wanted(**asdict(lora)), fresh)
    return made


def find_targets(model: nn.Module, lora: Lora, heads: Iterable[str] = ()) -> list[str]:
    """Return the full names of the modules that get adapters, in the model's order.

    Raises:
        ConfigError: If there is none, or the rank is larger than one of them.
    """
    found = _find(model, lora.targets, heads)
    check_rank(model, found, lora.rank)
    return found


def trained_name(fresh: str) -> str:
    """Return the name under which a model with adapters trains a fresh tensor."""
    return _LORA.trained_name(fresh)


def target_layers(model: nn.Module) -> dict[str, Any]:
    """Return peft's layers by the names that their weights have in the base model.

    Raises:
        ValueError: If the model has none.
    """
    from peft.tuners.lora import LoraLayer

    found = {
        f"{name.removeprefix(PREFIX)}.weight": layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    if not found:
        raise ValueError("the model has no LoRA layers; give a model with peft's adapters")
    return found


@torch.no_grad()
def products(model: nn.Module) -> Mapping[str, Tensor]:
    """Return scaling * B @ A for each target, in the shape of its weight."""
    return {
        name: sum((layer.get_delta_weight(adapter) for adapter in layer.active_adapters), start=0)
        for name, layer in target_layers(model).items()
    }


def product_delta(model: nn.Module) -> Delta:
    """Return what the adapters add to the weights of their targets, as a delta.

    ``scaling * B @ A`` under the names of the base model, as `merge` would add it: to prune it
    with ``dare(product_delta(model), p=0.99, seed=0)``, or with any other method.

    Args:
        model: A model with peft's LoRA adapters; the active ones count.

    Raises:
        ValueError: If it has none.
    """
    return Delta(products(model))


def merge(model: PeftModel) -> PreTrainedModel:
    """Return a copy of the base model with the adapters added to its weights."""
    merged: PreTrainedModel = _LORA.merged(model)
    return merged
