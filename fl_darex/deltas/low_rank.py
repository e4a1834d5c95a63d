"""A LoRA adapter as a change of the weights themselves: ``scaling * B @ A`` added to each target.

Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685. The product is pruned, and not its factors,
whose surviving entries would be divided by q twice. peft is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache, partial
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_darex.deltas.checkpoints import (
    ADAPTER_CONFIG,
    Checkpoint,
    has_adapter,
    open_checkpoint,
)
from fl_darex.deltas.matching import counterparts
from fl_darex.errors import ConfigError
from fl_darex.files.formats import StoredTensor

_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_WAY_OUT = "merge it with peft's merge_and_unload, save the model and leave --adapter out"
_OF_ADAPTERS = (ADAPTER_CONFIG, "README.md")


def open_pair(
    base: str | PathLike[str], tuned: str | PathLike[str], *, adapter: bool = False
) -> tuple[Checkpoint, Checkpoint]:
    """Open a model before and after fine-tuning.

    Args:
        base: The folder of the model before it.
        tuned: The folder of the model after it.
        adapter: Whether the second one is an adapter: its factors are changes to those of the base,
            where that is an adapter, too, and else its product is a change to the base's weights.

    Raises:
        ConfigError: If one of the two cannot be read, or they do not fit each other.
    """
    if not adapter:
        return open_checkpoint(base), open_checkpoint(tuned)
    after, both = open_checkpoint(tuned, adapter=True), has_adapter(base)
    before = open_checkpoint(base, adapter=both)
    return before, after if both else merged(before, after)


def merged(base: Checkpoint, adapter: Checkpoint) -> Checkpoint:
    """Return a model with an adapter added to its weights, each when it is asked for, in float32.

    Modules that were trained whole take the place of the model's, or are added to it. Its small
    files are the model's, and the adapter's own but for its configuration.

    Args:
        base: The model that the adapter was trained on.
        adapter: A LoRA adapter as peft writes it (`open_checkpoint` with ``adapter=True``).

    Raises:
        ConfigError: If it is another kind of adapter, or does not fit the model.
    """
    config = _config(adapter)
    plain = {
        name.removeprefix(_PREFIX).replace(".base_layer.", "."): tensor
        for name, tensor in adapter.tensors.items()
    }
    targets = sorted(name.removesuffix(_A) for name in plain if name.endswith(_A))
    factors = {name + part for name in targets for part in (_A, _B)}
    whole = {name: tensor for name, tensor in plain.items() if name not in factors}
    odd = sorted(factors - set(plain)) + sorted(name for name in whole if "lora_" in name)
    if odd or not targets:
        raise ConfigError(
            f"{str(adapter.place)!r} is no plain LoRA of linear layers, as "
            f"{repr(odd[0]) if odd else 'the lack of lora_A'} shows; {_WAY_OUT}"
        )
    turned = bool(config.get("fan_in_fan_out"))
    shapes = {f"{n}.weight": _shape(plain[n + _A], plain[n + _B], turned) for n in targets}
    wanted = {name: StoredTensor("float32", shape, _nothing) for name, shape in shapes.items()}
    names, remark = counterparts({**wanted, **whole}, base.tensors)
    if lacking := sorted(set(wanted) - set(names)):
        raise ConfigError(
            f"{str(base.place)!r} is not the model of this adapter: it has no {lacking[0]!r} of "
            f"shape {shapes[lacking[0]]}"
        )
    tensors = {**base.tensors, **{names.get(name, name): whole[name] for name in whole}}
    for target in targets:
        name = names[f"{target}.weight"]
        before, a, b = base.tensors[name], plain[target + _A], plain[target + _B]
        load = partial(_sum, before, a, b, _scaling(config, a.shape[0]), turned)
        tensors[name] = StoredTensor(before.dtype, before.shape, load)
    own = {path: file for path, file in adapter.files.items() if path not in _OF_ADAPTERS}
    remarks = (remark.replace("FINETUNED", "the adapter"),) if remark else ()
    return Checkpoint(adapter.place, tensors, {**base.files, **own}, base.weights, remarks)


def _config(adapter: Checkpoint) -> Mapping[str, Any]:
    place = adapter.files.get(ADAPTER_CONFIG)
    if place is None:
        raise ConfigError(f"{str(adapter.place)!r} has no {ADAPTER_CONFIG}; peft writes one")
    try:
        found = json.loads(place.read_text("utf-8"))
        kind = found["peft_type"]
        float(found["lora_alpha"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{str(place)!r} is no LoRA's configuration: {error!r}") from None
    odd = [key for key in ("use_dora", "alpha_pattern", "layer_replication") if found.get(key)]
    if kind != "LORA" or odd:
        what = f"{odd[0]} = {found[odd[0]]!r}" if odd else f"peft_type = {kind!r}"
        raise ConfigError(f"{str(place)!r} has {what}, which --adapter does not know; {_WAY_OUT}")
    config: Mapping[str, Any] = found
    return config


def _scaling(config: Mapping[str, Any], rank: int) -> float:
    alpha = float(config["lora_alpha"])
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _shape(a: StoredTensor, b: StoredTensor, turned: bool) -> tuple[int, ...]:
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        raise ConfigError(f"factors of shapes {b.shape} and {a.shape} have no product")
    shape = b.shape[0], a.shape[1]
    return shape[::-1] if turned else shape


@lru_cache(maxsize=1)  # it is asked for piece by piece
def _sum(
    before: StoredTensor, a: StoredTensor, b: StoredTensor, scaling: float, turned: bool
) -> NDArray[np.float32]:
    first, second = (np.asarray(factor.load(), dtype=np.float32) for factor in (b, a))
    product = first @ second * np.float32(scaling)
    found: NDArray[np.float32] = np.asarray(before.load(), np.float32) + (
        product.T if turned else product
    )
    return found


def _nothing() -> NDArray[Any]:
    return np.empty(0)
