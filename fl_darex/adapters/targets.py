"""Which modules of a model get adapters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fl_darex.errors import ConfigError, nearest

if TYPE_CHECKING:
    from torch import nn

Ends = Sequence[str] | str
# Where peft has no default for a model type: the attention's query and value, as models call them.
QUERY_AND_VALUE = ("query", "value", "q_proj", "v_proj", "q_lin", "v_lin", "c_attn", "qkv")


def find_targets(
    model: nn.Module,
    wanted: str,
    heads: Iterable[str] = (),
    defaults: Mapping[str, Ends] | None = None,
    otherwise: Ends = QUERY_AND_VALUE,
) -> list[str]:
    """Return the full names of the linear modules that get adapters, in the model's order.

    Args:
        model: Its output embeddings never count.
        wanted: ``train.lora-targets``: ``"auto"``, ``"all-linear"``, or names of modules, or their
            ends, separated by commas.
        heads: Names of fresh modules, which are trained whole.
        defaults: ``"auto"`` by model type: ends of names, or one regular expression; None: peft's
            for LoRA, as a rule query and value.
        otherwise: The same for any other type.

    Raises:
        ConfigError: If there is none.
    """
    fresh = set(heads)
    found = [name for name, _ in _linear_modules(model) if name not in fresh]
    if wanted == "auto":
        kind = getattr(getattr(model, "config", None), "model_type", "")
        ends = (_of_lora() if defaults is None else defaults).get(kind, otherwise)
        return _automatic(kind, ends, found)
    return found if wanted == "all-linear" else _named(wanted, found)


def named_by(ends: Ends, names: Iterable[str]) -> list[str]:
    """Return the names that end in one of these, or that match the whole regular expression."""
    if isinstance(ends, str):
        return [name for name in names if re.fullmatch(ends, name)]
    return [name for name in names if any(f".{name}".endswith(f".{end}") for end in ends)]


def sides(model: nn.Module, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return the shape of each linear module's weight, as (inputs, outputs) or the other way."""
    return {name: tuple(model.get_submodule(name).weight.shape) for name in names}  # type: ignore[arg-type]


def check_rank(model: nn.Module, names: Iterable[str], rank: int) -> None:
    """Refuse a rank that a target has not.

    Raises:
        ConfigError: If it is larger than one of a weight's sides.
    """
    for name, shape in sides(model, names).items():
        if rank > (most := min(shape)):
            raise ConfigError(
                f"train.lora-rank = {rank} is more than {name!r} has, which is "
                f"{' x '.join(map(str, shape))}; allowed: 1 to {most}"
            )


def norm_layers(model: nn.Module, heads: Iterable[str] = ()) -> list[str]:
    """Return the full names of layer normalisations that have weights, `heads` left out.

    Models have classes of their own for them, whose names end alike.
    """
    fresh = set(heads)
    return [
        name
        for name, module in model.named_modules()
        if type(module).__name__.endswith(("LayerNorm", "RMSNorm"))
        and any(True for _ in module.parameters(recurse=False))
        and name not in fresh
    ]


def _of_lora() -> Mapping[str, Ends]:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    return DEFAULTS


def _linear_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    output = getattr(model, "get_output_embeddings", lambda: None)()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not output:
            yield name, module


def _automatic(kind: str, ends: Ends, known: list[str]) -> list[str]:
    if not (found := named_by(ends, known)):
        raise ConfigError(
            f"train.lora-targets = 'auto' finds nothing in a model of type {kind!r}; name modules, "
            f"or set 'all-linear'; it has {_offer(known)}"
        )
    return found


def _named(targets: str, known: list[str]) -> list[str]:
    chosen: set[str] = set()
    for target in (part.strip() for part in targets.split(",")):
        found = set(named_by([target], known)) if target else set()
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
