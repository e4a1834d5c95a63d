"""Adapters: what of a model is trained and exchanged in place of all its weights.

One row each in `ADAPTERS`, chosen by ``train.adapter``; ``"package.module:Class"`` is somebody's
own. What most have in common is in `peft_adapter`, what one alone needs in its row.
"""

from __future__ import annotations

from fl_darex.adapters.adapter import Adapter, Wanted
from fl_darex.adapters.bias import BitFit
from fl_darex.adapters.factors import FfaLora, Lora, LoraXs, RoLora
from fl_darex.adapters.peft_adapter import PeftAdapter
from fl_darex.adapters.vectors import FourierFt, Ia3, LayerNorms, UniLora, Vera
from fl_darex.registry import Registry

ADAPTERS: Registry[Adapter] = Registry(
    "adapter",
    Adapter,
    (
        *(Lora(), FfaLora(), RoLora(), LoraXs(), UniLora(), Vera(), FourierFt(), Ia3()),
        *(LayerNorms(), BitFit()),
    ),
)

__all__ = ["ADAPTERS", "Adapter", "PeftAdapter", "Wanted"]
