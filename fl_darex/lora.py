"""LoRA: train two thin factors beside each target weight, W + scaling * B @ A.

Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685, through peft. "DARE the Extreme" prunes A
and B separately (Tables 4 and 16): an entry of their product that survives was divided by q twice,
so 1/q^2 in effect. `product_delta` is the other way: B @ A as the delta of the weight itself, for
every function that prunes or rescales.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fl_darex.delta import Delta
from fl_darex.errors import ConfigError, nearest

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_ADAPTER = "default"
_PREFIX = "base_model.model."  # what peft puts in front of every name
# Where peft has no default for a model type: the attention's query and value, as models call them.
_QUERY_AND_VALUE = ("query", "value", "q_proj", "v_proj", "q_lin", "v_lin", "c_attn", "qkv")
_TASK_TYPES = {"ForSequenceClassification": "SEQ_CLS", "ForCausalLM": "CAUSAL_LM"}


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
    try:
        from peft import LoraConfig, PeftModel
    except ImportError:
        raise ConfigError(
            "train.lora-rank needs peft, which is not installed; pip install 'fl-darex[lora]'"
        ) from None
    heads = sorted({name.rpartition(".")[0] for name in fresh})
    targets = find_targets(model, lora, heads)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft divides it; it may be a fraction
        lora_dropout=lora.dropout,
        target_modules=targets,
        modules_to_save=heads or None,
        fan_in_fan_out=not isinstance(model.get_submodule(targets[0]), nn.Linear),
        task_type=_task_type(model),
    )
    with torch.random.fork_rng(devices=[]):
        # The CPU's generator alone: torch.manual_seed would move those of GPUs too.
        torch.default_generator.manual_seed(lora.seed)
        # The plain class: those of a task type would train pre-trained heads too.
        return PeftModel(model, config, adapter_name=_ADAPTER)


def _task_type(model: nn.Module) -> str | None:
    """Return peft's name for what the model does, which helps those who load the adapters."""
    name = type(model).__name__
    return next((kind for end, kind in _TASK_TYPES.items() if name.endswith(end)), None)


def find_targets(model: nn.Module, lora: Lora, heads: Iterable[str] = ()) -> list[str]:
    """Return the full names of the modules that get adapters, in the model's order.

    Raises:
        ConfigError: If there is none, or the rank is larger than one of them.
    """
    fresh = set(heads)
    linear = {name: m for name, m in _linear_modules(model) if name not in fresh}
    found = list(linear)
    if lora.targets == "auto":
        found = _automatic(model, found)
    elif lora.targets != "all-linear":
        found = _named(lora.targets, found)
    for name in found:
        if lora.rank > (most := min(linear[name].weight.shape)):
            raise ConfigError(
                f"train.lora-rank = {lora.rank} is more than {name!r} has, which is "
                f"{' x '.join(map(str, linear[name].weight.shape))}; allowed: 0 (off) to {most}"
            )
    return found


def _linear_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    from transformers.pytorch_utils import Conv1D

    output = getattr(model, "get_output_embeddings", lambda: None)()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not output:
            yield name, module


def _automatic(model: nn.Module, known: list[str]) -> list[str]:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    kind = getattr(getattr(model, "config", None), "model_type", "")
    wanted = DEFAULTS.get(kind, _QUERY_AND_VALUE)
    if isinstance(wanted, str):
        found = [name for name in known if re.fullmatch(wanted, name)]
    else:
        found = [name for name in known if name.rpartition(".")[2] in wanted]
    if not found:
        raise ConfigError(
            f"train.lora-targets = 'auto' finds nothing in a model of type {kind!r}; name modules, "
            f"or set 'all-linear'; it has {_offer(known)}"
        )
    return found


def _named(targets: str, known: list[str]) -> list[str]:
    chosen: set[str] = set()
    for target in (part.strip() for part in targets.split(",")):
        found = {name for name in known if target and f".{name}".endswith(f".{target}")}
        if not found:
            ends = {name.rpartition(".")[2] for name in known}
            raise ConfigError(
                f"train.lora-targets names {target!r}, which is no linear module of the model"
                f"{nearest(target, [*ends, 'auto', 'all-linear'])}; it has {_offer(known)}"
            )
        chosen |= found
    return [name for name in known if name in chosen]


def _offer(known: list[str]) -> str:
    ends = dict.fromkeys(name.rpartition(".")[2] for name in known)
    return ", ".join(map(repr, ends)) or "no linear module"


def trained_name(fresh: str) -> str:
    """Return the name under which a model with adapters trains a fresh tensor."""
    module, _, kind = fresh.rpartition(".")
    return f"{_PREFIX}{module}.modules_to_save.{_ADAPTER}.{kind}"


def target_layers(model: nn.Module) -> dict[str, Any]:
    """Return peft's layers by the names that their weights have in the base model.

    Raises:
        ValueError: If the model has none.
    """
    from peft.tuners.lora import LoraLayer

    found = {
        f"{name.removeprefix(_PREFIX)}.weight": layer
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
    # peft merges in place, and W + BA - BA is not W to the bit.
    merged: PreTrainedModel = copy.deepcopy(model).merge_and_unload()
    return merged
