"""BitFit: the biases alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from fl_darex.adapters.adapter import Adapter, Wanted
from fl_darex.errors import ConfigError


class BitFit(Adapter):
    """Every bias of the model, those of normalisations among them; nothing is added to it."""

    name: ClassVar[str] = "bitfit"
    paper: ClassVar[str] = "Ben Zaken et al., ACL 2022, https://arxiv.org/abs/2106.10199"

    def put_into(self, model: Any, wanted: Wanted, fresh: Iterable[str]) -> Any:
        """Freeze all but biases and fresh tensors.

        Raises:
            ConfigError: If the model has no bias but fresh ones.
        """
        whole, found = set(fresh), 0
        for name, tensor in model.named_parameters():
            end = name.rpartition(".")[2]
            bias = tensor.requires_grad and (end == "bias" or end.endswith("_bias"))
            found += bias and name not in whole
            tensor.requires_grad_(bias or name in whole)
        if not found:
            raise ConfigError(
                f"train.adapter = 'bitfit' trains biases, and {type(model).__name__} has none; set "
                "'layernorms', or an adapter of its linear modules such as 'lora'"
            )
        return model
