"""What an adapter is to a run: put into a model, exchanged, merged and saved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a run says of its adapters; each kind reads the fields that its `Adapter.reads` names.

    Attributes:
        rank: Rows of A and columns of B (``train.lora-rank``); 0: the adapter's own.
        alpha: Products are scaled by ``alpha / rank`` (``train.lora-alpha``).
        dropout: Fraction of an adapter's inputs that is dropped in training, in [0, 1).
        targets: Which modules; see `fl_darex.adapters.targets.find_targets`.
        size: Trained numbers, of all modules or of each (``train.adapter-size``); 0: the adapter's
            own.
        seed: What is random at the start, or frozen, is drawn from it.
    """

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str = "auto"
    size: int = 0
    seed: int = 0


class Adapter:
    """A few numbers that are trained in place of a model's weights.

    Attributes:
        name: By which it is chosen.
        paper: Where it comes from.
        reads: The fields of `Wanted` that do something; the seed always may.
        rank: The rank where none is asked for; 0: it has none.
        matrices: Whether what is trained are weights of linear layers, which have inputs: what a q
            of each layer is searched by.
        product: Whether ``compress.lora = "product"`` is for it.
        needs_zeros: Whether a change of exactly 0 has to arrive as 0.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    reads: ClassVar[frozenset[str]] = frozenset()
    rank: ClassVar[int] = 0
    matrices: ClassVar[bool] = False
    product: ClassVar[bool] = False
    needs_zeros: ClassVar[bool] = False

    def put_into(self, model: Any, wanted: Wanted, fresh: Iterable[str]) -> Any:
        """Put the adapter into a model and freeze all else but its fresh tensors.

        Equal arguments give equal bits in every process, and the global random generator is
        neither used nor moved. Frozen numbers of its own have to be parameters without gradients
        or buffers that are not saved: a saved buffer would be exchanged.

        Args:
            model: On the CPU; it may be changed.
            wanted: The settings.
            fresh: Names of tensors that the base checkpoint lacks; they are trained whole.

        Returns:
            The model that is trained.

        Raises:
            ConfigError: If it does not fit the model, or a package is missing.
        """
        raise NotImplementedError

    def trained_name(self, fresh: str) -> str:
        """Return the name under which the model with the adapter trains a fresh tensor."""
        return fresh

    def takes_turn(self, name: str, round_: int) -> bool:
        """Return whether a trained tensor is trained in a round, the first being 1."""
        return True

    def merged(self, model: Any) -> Any:
        """Return the model as it would be without the adapter, and compute the same."""
        return model

    def save(self, model: Any, folder: Path) -> None:
        """Write the adapter alone, where there is a format for it."""
