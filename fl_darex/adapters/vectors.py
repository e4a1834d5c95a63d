"""Adapters that train vectors: over frozen random projections, or scales of what is there.

Projections, indices and places are drawn from the run's seed in every process: they are neither
saved nor exchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

from fl_darex.adapters.adapter import Wanted
from fl_darex.adapters.peft_adapter import NAME, PeftAdapter, transposed
from fl_darex.adapters.targets import check_rank, find_targets, named_by, norm_layers, sides
from fl_darex.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

# For model types of which peft does not know them.
_KEY_AND_VALUE = ("key", "value", "k_proj", "v_proj", "k_lin", "v_lin")
_FEEDFORWARD = ("output.dense", "fc2", "lin2", "down_proj", "wo", "mlp.c_proj")


class UniLora(PeftAdapter):
    """One vector for all of LoRA's A and B: each of their entries is one of its, chosen at random.

    The vector starts at small random numbers, so the adapted model is not quite the base at first.
    """

    name: ClassVar[str] = "unilora"
    paper: ClassVar[str] = "Li et al., NeurIPS 2025, https://arxiv.org/abs/2506.00799"
    reads: ClassVar[frozenset[str]] = frozenset({"rank", "dropout", "targets", "size"})
    rank: ClassVar[int] = 4
    config: ClassVar[str] = "UniLoraConfig"
    size: ClassVar[int] = 23_040  # the paper's, for RoBERTa-base, where it is a sixth of A and B
    part: ClassVar[int] = 6

    def options(self, model: nn.Module, targets: list[str], wanted: Wanted) -> Mapping[str, Any]:
        """Return the arguments of ``UniLoraConfig``."""
        rank = wanted.rank or self.rank
        check_rank(model, targets, rank)
        entries = rank * sum(map(sum, sides(model, targets).values()))
        if wanted.size > entries:
            raise ConfigError(
                f"train.adapter-size = {wanted.size} is more than the {entries:,} entries of A and "
                f"B that train.adapter = 'unilora' of rank {rank} draws from it; allowed: 1 to "
                f"{entries}, or 0 for the adapter's own"
            )
        return {
            "r": rank,
            "theta_d_length": wanted.size or min(self.size, entries // self.part),
            "proj_seed": wanted.seed,
            "unilora_dropout": wanted.dropout,
            "fan_in_fan_out": transposed(model, targets),
        }


class Vera(PeftAdapter):
    """Two scaling vectors a target between one frozen random A and B that all targets share."""

    name: ClassVar[str] = "vera"
    paper: ClassVar[str] = "Kopiczko et al., ICLR 2024, https://arxiv.org/abs/2310.11454"
    reads: ClassVar[frozenset[str]] = frozenset({"dropout", "targets", "size"})
    config: ClassVar[str] = "VeraConfig"

    def options(self, model: nn.Module, targets: list[str], wanted: Wanted) -> Mapping[str, Any]:
        """Return the arguments of ``VeraConfig``."""
        return {
            "r": wanted.size or 256,
            "projection_prng_key": wanted.seed,
            "save_projection": False,
            "vera_dropout": wanted.dropout,
            "fan_in_fan_out": transposed(model, targets),
        }


class FourierFt(PeftAdapter):
    """A few entries of each change's discrete Fourier transform, at random places; 0 at first."""

    name: ClassVar[str] = "fourierft"
    paper: ClassVar[str] = "Gao et al., ICML 2024, https://arxiv.org/abs/2405.03003"
    reads: ClassVar[frozenset[str]] = frozenset({"targets", "size"})
    config: ClassVar[str] = "FourierFTConfig"

    def options(self, model: nn.Module, targets: list[str], wanted: Wanted) -> Mapping[str, Any]:
        """Return the arguments of ``FourierFTConfig``."""
        entries = {name: prod(shape) for name, shape in sides(model, targets).items()}
        smallest = min(entries, key=entries.__getitem__)
        if wanted.size > entries[smallest]:
            raise ConfigError(
                f"train.adapter-size = {wanted.size} is more than the {entries[smallest]:,} "
                f"entries of {smallest!r}; allowed with train.adapter = 'fourierft': 1 to "
                f"{entries[smallest]}, or 0 for the adapter's own"
            )
        return {
            "n_frequency": wanted.size or min(200, entries[smallest]),
            "random_loc_seed": wanted.seed,
            "init_weights": True,  # peft's word for zeros; the paper begins at random numbers
            "fan_in_fan_out": transposed(model, targets),
        }


class Ia3(PeftAdapter):
    """One factor for each output of the attention's keys and values, and each feed-forward input.

    Factors start at 1: no change.
    """

    name: ClassVar[str] = "ia3"
    paper: ClassVar[str] = "Liu et al., NeurIPS 2022, https://arxiv.org/abs/2205.05638"
    reads: ClassVar[frozenset[str]] = frozenset({"targets"})
    config: ClassVar[str] = "IA3Config"

    def targets(self, model: nn.Module, wanted: Wanted, heads: Iterable[str]) -> list[str]:
        """Return peft's choice for the model type, or keys, values and feed-forward layers."""
        from peft.utils import constants

        known = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
        return find_targets(model, wanted.targets, heads, known, _KEY_AND_VALUE + _FEEDFORWARD)

    def options(self, model: nn.Module, targets: list[str], wanted: Wanted) -> Mapping[str, Any]:
        """Return the arguments of ``IA3Config``."""
        from peft.utils import constants

        kind = getattr(getattr(model, "config", None), "model_type", "")
        known = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
        return {
            "feedforward_modules": named_by(known.get(kind, _FEEDFORWARD), targets),
            "fan_in_fan_out": transposed(model, targets),
        }


class LayerNorms(PeftAdapter):
    """The weights and biases of all layer normalisations."""

    name: ClassVar[str] = "layernorms"
    paper: ClassVar[str] = "Zhao et al., ICLR 2024, https://arxiv.org/abs/2312.11420"
    config: ClassVar[str] = "LNTuningConfig"

    def targets(self, model: nn.Module, wanted: Wanted, heads: Iterable[str]) -> list[str]:
        """Return all that are not fresh."""
        if not (found := norm_layers(model, heads)):
            raise ConfigError(
                f"train.adapter = 'layernorms' trains layer normalisations, and "
                f"{type(model).__name__} has none with weights; set 'bitfit', or an adapter of its "
                "linear modules such as 'lora'"
            )
        return found

    def options(self, model: nn.Module, targets: list[str], wanted: Wanted) -> Mapping[str, Any]:
        """Return nothing: targets are all that ``LNTuningConfig`` takes."""
        return {}

    def merged(self, model: Any) -> Any:
        """Return a copy of the base model with the trained normalisations and fresh modules."""
        from peft.utils import ModulesToSaveWrapper

        made = super().merged(model)
        # peft's own unloading of this adapter leaves the wrappers of fresh modules where they are.
        wrappers = [(n, m) for n, m in made.named_modules() if isinstance(m, ModulesToSaveWrapper)]
        for name, wrapper in wrappers:
            parent, _, child = name.rpartition(".")
            setattr(made.get_submodule(parent), child, wrapper.modules_to_save[NAME])
        return made
