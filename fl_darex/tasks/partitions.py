"""Which client holds which training example, on the partitioners of flwr-datasets.

``iid``: equal shares at random. ``dirichlet``: each class is divided in proportions drawn from
Dirichlet(alpha) (Yurochkin et al., ICML 2019, https://arxiv.org/abs/1905.12022).
``pathological``: each client holds a fixed number of classes (McMahan et al., AISTATS 2017,
https://arxiv.org/abs/1602.05629). ``natural``: a column of the data names the owner.

Every partition is disjoint from the others, not empty, and all together are the training set.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fl_darex.config import FederationConfig
from fl_darex.errors import ConfigError, nearest
from fl_darex.seeds import derive

if TYPE_CHECKING:
    from datasets import Dataset

_LABEL = "label"
_OWNER = "owner"
_ROW = "row"


class Partitions:
    """The rows of a training set that each client holds.

    The same settings, data and seed give the same partitions in every process.
    """

    def __init__(self, train: Dataset, classes: int, federation: FederationConfig) -> None:
        """Divide a training set; raises where that is not possible, before any round starts.

        Args:
            train: The training examples; where there are classes, with a ``label`` column.
            classes: Number of classes; 0 for a regression and for texts without labels.
            federation: Number of clients, kind of partition and seed.

        Raises:
            ConfigError: If some client would get no example, or some example no client.
        """
        self.clients = federation.clients
        if len(train) < self.clients:
            raise ConfigError(
                f"federation.clients = {self.clients} is more than the {len(train)} training "
                f"examples; allowed: 1 to {len(train)}"
            )
        if federation.partition in ("dirichlet", "pathological") and classes == 0:
            found = "numbers (a regression)" if _LABEL in train.column_names else "no labels"
            raise ConfigError(
                f"federation.partition = {federation.partition!r} needs classes as labels; this "
                f"dataset has {found}: use 'iid' or 'natural'"
            )
        self._partitioner = _make(train, federation)
        # The library divides lazily: do it here, so that its refusals come at the start.
        self.indices(0)

    def indices(self, index: int) -> list[int]:
        """Return the rows of client ``index``, in a seeded random order (natural: in file order).

        Raises:
            ConfigError: If there is no such client.
        """
        self.check(index)
        rows: list[int] = self._partitioner.load_partition(index)[_ROW][:]
        return rows

    def check(self, index: int) -> None:
        """Refuse an index outside ``0 .. clients - 1`` with a ``ConfigError``."""
        if not 0 <= index < self.clients:
            raise ConfigError(
                f"there is no partition {index}: federation.clients = {self.clients}, so "
                f"partitions go from 0 to {self.clients - 1}"
            )


class Partitioner(Protocol):
    """What is asked of a partitioner of flwr-datasets."""

    def load_partition(self, partition_id: int) -> Dataset:
        """Return one client's rows."""


def _make(train: Dataset, federation: FederationConfig) -> Partitioner:
    makers = {
        "iid": _iid,
        "dirichlet": _dirichlet,
        "pathological": _pathological,
        "natural": _natural,
    }
    partitioner: Partitioner = makers[federation.partition](train, federation)
    return partitioner


@dataclass(frozen=True)
class _Iid:
    """The library's IidPartitioner, which does no more than this.

    To import the library takes two seconds, for its plots; and in a deployment a client is a new
    process for each message.
    """

    dataset: Dataset
    clients: int

    def load_partition(self, partition_id: int) -> Dataset:
        return self.dataset.shard(num_shards=self.clients, index=partition_id, contiguous=True)


def _iid(train: Dataset, federation: FederationConfig) -> Partitioner:
    # The rows are cut as they come: the random order is ours.
    return _Iid(_shuffled(train, federation), federation.clients)


def _dirichlet(train: Dataset, federation: FederationConfig) -> Any:  # no type hints
    from flwr_datasets.partitioner import DirichletPartitioner

    partitioner = DirichletPartitioner(
        num_partitions=federation.clients,
        partition_by=_LABEL,
        alpha=federation.alpha,
        min_partition_size=1,
        self_balancing=False,
        seed=derive(federation.seed, "partition"),
    )
    partitioner.dataset = _shuffled(train, federation)
    try:
        with warnings.catch_warnings():
            # One warning per attempt; the error below says it once.
            warnings.simplefilter("ignore")
            partitioner.load_partition(0)
    except ValueError:
        raise ConfigError(
            f"federation.alpha = {federation.alpha} left some of the {federation.clients} clients "
            f"without any of the {len(train)} examples in each of 11 draws; use a larger alpha, "
            "fewer clients or another seed"
        ) from None
    return partitioner


def _pathological(train: Dataset, federation: FederationConfig) -> Partitioner:
    per_client, clients = federation.classes_per_client, federation.clients
    labels = np.asarray(train[_LABEL][:])
    values, counts = np.unique(labels, return_counts=True)
    if per_client > len(values):
        raise ConfigError(
            f"federation.classes-per-client = {per_client} is more than the {len(values)} classes "
            f"of the training examples; allowed: 1 to {len(values)}"
        )
    if per_client * clients < len(values):
        raise ConfigError(
            f"federation.classes-per-client = {per_client} with federation.clients = {clients} "
            f"leaves out some of the {len(values)} classes; use at least "
            f"{-(-len(values) // per_client)} clients or {-(-len(values) // clients)} classes each"
        )
    dealt = deal(len(values), clients, per_client, derive(federation.seed, "classes"))
    holders = np.bincount(np.concatenate(dealt), minlength=len(values))
    short = int(np.argmax(holders - counts))
    if holders[short] > counts[short]:
        raise ConfigError(
            f"federation.partition = 'pathological' gives class {values[short]} to "
            f"{holders[short]} clients, but it has {counts[short]} training examples; use fewer "
            "federation.clients or federation.classes-per-client"
        )
    from fl_darex.tasks.pathological import Dealt

    hands = [[values[c].item() for c in hand] for hand in dealt]
    partitioner = Dealt(hands, _LABEL, derive(federation.seed, "partition"))
    partitioner.dataset = _shuffled(train, federation)
    return partitioner


def deal(classes: int, clients: int, per_client: int, seed: int) -> list[list[int]]:
    """Deal ``per_client`` different classes to each client, all classes equally often.

    Hands are dealt from a shuffled deck of all classes, and from a new one when it runs out; so
    each class is dealt at least once if ``clients * per_client >= classes``, and numbers of
    holders differ by 2 at most.

    Args:
        classes: Number of classes.
        clients: Number of hands.
        per_client: Classes per hand, in ``1 .. classes``.
        seed: Seed of the deck.
    """
    random = np.random.default_rng(seed)
    hands: list[list[int]] = []
    deck: list[int] = []
    for _ in range(clients):
        hand, deck = deck[:per_client], deck[per_client:]
        if len(hand) < per_client:
            # What the hand has already goes to the end of the new deck, or it came twice.
            fresh = random.permutation(classes).tolist()
            fresh.sort(key=hand.__contains__)
            missing = per_client - len(hand)
            hand, deck = hand + fresh[:missing], fresh[missing:]
        hands.append(hand)
    return hands


def _natural(train: Dataset, federation: FederationConfig) -> Any:  # no type hints
    column = federation.partition_column
    check_owner_column(column, train.column_names)
    owners: Sequence[Any] = train.with_format(None)[column][:]
    if not all(isinstance(owner, str | int) for owner in owners):
        raise ConfigError(
            f"federation.partition-column = {column!r} must hold a text or a whole number in each "
            "row, the owner of the example"
        )
    found = len(set(owners))
    if found != federation.clients:
        raise ConfigError(
            f"federation.clients = {federation.clients}, but column {column!r} has {found} "
            f"owners; set federation.clients = {found}"
        )
    from flwr_datasets.partitioner import NaturalIdPartitioner

    partitioner = NaturalIdPartitioner(partition_by=_OWNER)
    partitioner.dataset = _light(_OWNER, owners, range(len(train)))
    # Its progress bar has no switch.
    with contextlib.redirect_stderr(io.StringIO()):
        partitioner.load_partition(0)
    return partitioner


def check_owner_column(column: str, columns: Sequence[str]) -> None:
    """Refuse a ``federation.partition-column`` that the data does not have.

    Raises:
        ConfigError: If ``column`` is not one of ``columns``.
    """
    if column not in columns:
        raise ConfigError(
            f"federation.partition-column = {column!r} is not a column of the training data; "
            f"columns: {', '.join(columns)}{nearest(column, columns)}"
        )


def _shuffled(train: Dataset, federation: FederationConfig) -> Dataset:
    order = np.random.default_rng(derive(federation.seed, "order")).permutation(len(train))
    # Texts without labels are of one class: only iid gets here then.
    labels = train[_LABEL][:] if _LABEL in train.column_names else np.zeros(len(train), np.int64)
    return _light(_LABEL, np.asarray(labels)[order], order)


def _light(
    column: str, values: Sequence[Any] | np.ndarray, rows: Sequence[int] | np.ndarray
) -> Dataset:
    # The partitioners see one column and the row numbers: texts and images are never copied.
    from datasets import Dataset

    return Dataset.from_dict({column: list(values), _ROW: list(rows)})
