"""Adapters that peft has: how its configuration is built, and all that is the same for each."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fl_darex.adapters.adapter import Adapter, Wanted
from fl_darex.adapters.targets import find_targets
from fl_darex.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

NAME = "default"
"""What peft calls the one adapter of a model."""

PREFIX = "base_model.model."
"""What peft puts in front of every name."""

_HEADS = ("classifier", "score")  # peft takes these of a sequence classifier to be in the file
# Warnings of peft's that are as they should be: normalisations for which it has an adapter, and
# projections that each process draws from the seed.
_KNOWN = ("Unsupported layer type", "Specified to not save vera_A")


class PeftAdapter(Adapter):
    """An adapter of peft: a row is the name of its configuration, and that one's arguments.

    Attributes:
        config: The name of peft's class.
    """

    config: ClassVar[str]

    def options(self, model: nn.Module, targets: list[str], wanted: Wanted) -> Mapping[str, Any]:
        """Return what peft's configuration is given besides targets and fresh modules.

        Frozen random numbers have to come from ``wanted.seed``, and must not be saved.

        Raises:
            ConfigError: If a setting does not fit the model.
        """
        raise NotImplementedError

    def targets(self, model: nn.Module, wanted: Wanted, heads: Iterable[str]) -> list[str]:
        """Return the full names of the modules that get adapters.

        Raises:
            ConfigError: If there is none.
        """
        return find_targets(model, wanted.targets, heads)

    def finish(self, model: Any, wanted: Wanted) -> None:
        """Change the model after peft has made it."""

    def put_into(self, model: Any, wanted: Wanted, fresh: Iterable[str]) -> Any:
        """Return a ``PeftModel``; see `Adapter.put_into`."""
        made = _of_peft(self.name, self.config)
        heads = sorted({name.rpartition(".")[0] for name in fresh})
        targets = self.targets(model, wanted, heads)
        options = self.options(model, targets, wanted)

        import torch
        from peft import PeftModel

        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            for known in _KNOWN:
                warnings.filterwarnings("ignore", known)
            config = made(
                target_modules=targets,
                modules_to_save=heads or None,
                task_type=_task_type(model, heads),
                **options,
            )
            # The CPU's generator alone: torch.manual_seed would move those of GPUs too.
            torch.default_generator.manual_seed(wanted.seed)
            # The plain class: those of a task type would train pre-trained heads too.
            adapted = PeftModel(model, config, adapter_name=NAME)
        self.finish(adapted, wanted)
        return adapted

    def trained_name(self, fresh: str) -> str:
        """Return the name under which a model with adapters trains a fresh tensor."""
        module, _, kind = fresh.rpartition(".")
        return f"{PREFIX}{module}.modules_to_save.{NAME}.{kind}"

    def merged(self, model: Any) -> Any:
        """Return a copy of the base model with the adapters added to its weights."""
        # peft merges in place, and W + BA - BA is not W to the bit.
        return copy.deepcopy(model).merge_and_unload()

    def save(self, model: Any, folder: Path) -> None:
        """Write it as ``PeftModel.from_pretrained`` loads it onto the base."""
        model.save_pretrained(folder)


def transposed(model: nn.Module, targets: list[str]) -> bool:
    """Return whether weights are kept as (inputs, outputs), as GPT-2's ``Conv1D`` does."""
    from torch import nn

    return not isinstance(model.get_submodule(targets[0]), nn.Linear)


def _of_peft(adapter: str, name: str) -> Any:
    try:
        import peft
    except ImportError:
        raise ConfigError(
            f"train.adapter = {adapter!r} (or 'auto' with train.lora-rank) needs peft, which is "
            "not installed; pip install 'fl-darex[lora]'"
        ) from None
    if not hasattr(peft, name):
        raise ConfigError(
            f"train.adapter = {adapter!r} needs a newer peft than {peft.__version__}, which has no "
            f"{name}; pip install -U peft"
        )
    return getattr(peft, name)


def _task_type(model: nn.Module, heads: list[str]) -> str | None:
    """Return peft's name for what the model does, which helps those who load the adapters.

    A sequence classifier with a head of the checkpoint's has none: peft could not load the adapter.
    """
    name = type(model).__name__
    if name.endswith("ForCausalLM"):
        return "CAUSAL_LM"
    found = [key for key, _ in model.named_modules() if key.rpartition(".")[2] in _HEADS]
    return (
        "SEQ_CLS" if name.endswith("ForSequenceClassification") and {*found} <= {*heads} else None
    )
