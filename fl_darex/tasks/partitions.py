"""Which client holds which training example.

``iid``: equal shares at random. ``dirichlet``: each class is divided in proportions drawn from
Dirichlet(alpha) (Yurochkin et al., ICML 2019, https://arxiv.org/abs/1905.12022).
``pathological``: each client holds a fixed number of classes (McMahan et al., AISTATS 2017,
https://arxiv.org/abs/1602.05629). ``natural``: a column of the data names the owner.

Every partition is disjoint from the others, not empty, and all together are the training set.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fl_darex.config import FederationConfig
from fl_darex.errors import ConfigError, nearest
from fl_darex.seeds import derive
from fl_darex.tasks.rows import Rows, column, column_names

_LABEL = "label"
_ROW = "row"

Division = Callable[[int], list[int]]
"""Gives the rows of a client."""


class Partitions:
    """The rows of a training set that each client holds.

    The same settings, data and seed give the same partitions in every process.
    """

    def __init__(self, train: Rows, classes: int, federation: FederationConfig) -> None:
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
            found = "numbers (a regression)" if _LABEL in column_names(train) else "no labels"
            raise ConfigError(
                f"federation.partition = {federation.partition!r} needs classes as labels; this "
                f"dataset has {found}: use 'iid' or 'natural'"
            )
        divide = {
            "iid": _iid,
            "dirichlet": _dirichlet,
            "pathological": _pathological,
            "natural": _natural,
        }
        self._rows = divide[federation.partition](train, federation)

    def indices(self, index: int) -> list[int]:
        """Return the rows of client ``index``, in a seeded random order (natural: in file order).

        Raises:
            ConfigError: If there is no such client.
        """
        self.check(index)
        return self._rows(index)

    def check(self, index: int) -> None:
        """Refuse an index outside ``0 .. clients - 1`` with a ``ConfigError``."""
        if not 0 <= index < self.clients:
            raise ConfigError(
                f"there is no partition {index}: federation.clients = {self.clients}, so "
                f"partitions go from 0 to {self.clients - 1}"
            )


def _iid(train: Rows, federation: FederationConfig) -> Division:
    # As the library's IidPartitioner, whose import takes two seconds, for its plots; and in a
    # deployment a client is a new process for each message.
    shares = np.array_split(_order(train, federation), federation.clients)
    return lambda index: shares[index].tolist()


def _dirichlet(train: Rows, federation: FederationConfig) -> Division:
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner

    partitioner = DirichletPartitioner(
        num_partitions=federation.clients,
        partition_by=_LABEL,
        alpha=federation.alpha,
        min_partition_size=1,
        self_balancing=False,
        seed=derive(federation.seed, "partition"),
    )
    order = _order(train, federation)
    labels = np.asarray(column(train, _LABEL))[order]
    # It sees labels and row numbers alone: texts and images are never copied.
    partitioner.dataset = Dataset.from_dict({_LABEL: list(labels), _ROW: list(order)})
    try:
        with warnings.catch_warnings():
            # One warning per attempt; the error below says it once.
            warnings.simplefilter("ignore")
            # The library divides lazily: do it here, so that its refusal comes at the start.
            partitioner.load_partition(0)
    except ValueError:
        raise ConfigError(
            f"federation.alpha = {federation.alpha} left some of the {federation.clients} clients "
            f"without any of the {len(train)} examples in each of 11 draws; use a larger alpha, "
            "fewer clients or another seed"
        ) from None
    return lambda index: partitioner.load_partition(index)[_ROW][:]


def _pathological(train: Rows, federation: FederationConfig) -> Division:
    per_client, clients = federation.classes_per_client, federation.clients
    labels = np.asarray(column(train, _LABEL))
    values = np.unique(labels)
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
    return _shares_of_classes(train, labels, dealt, federation)


def _shares_of_classes(
    train: Rows, labels: np.ndarray, dealt: list[list[int]], federation: FederationConfig
) -> Division:
    """Divide each class equally among those that hold it, and shuffle what each client has.

    The library's PathologicalPartitioner does so too, but its ways to deal may leave classes to
    nobody.
    """
    order, rows = _order(train, federation), [list[int]() for _ in dealt]
    for position, value in enumerate(np.unique(labels)):
        holders = [client for client, hand in enumerate(dealt) if position in hand]
        mine = order[labels[order] == value]
        if len(holders) > len(mine):
            raise ConfigError(
                f"federation.partition = 'pathological' gives class {value} to {len(holders)} "
                f"clients, but it has {len(mine)} training examples; use fewer "
                "federation.clients or federation.classes-per-client"
            )
        shares = np.array_split(mine, len(holders))
        for client, share in zip(holders, shares, strict=True):
            rows[client] += share.tolist()
    random = np.random.default_rng(derive(federation.seed, "partition"))
    for held in rows:
        random.shuffle(held)
    return rows.__getitem__


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


def _natural(train: Rows, federation: FederationConfig) -> Division:
    name = federation.partition_column
    check_owner_column(name, column_names(train))
    owners = column(train, name)
    if not any(all(isinstance(owner, kind) for owner in owners) for kind in (str, int)):
        raise ConfigError(
            f"federation.partition-column = {name!r} must hold a text or a whole number in each "
            "row, the owner of the example"
        )
    held: dict[Any, list[int]] = defaultdict(list)
    for row, owner in enumerate(owners):
        held[owner].append(row)
    if len(held) != federation.clients:
        raise ConfigError(
            f"federation.clients = {federation.clients}, but column {name!r} has {len(held)} "
            f"owners; set federation.clients = {len(held)}"
        )
    names = sorted(held)
    return lambda index: held[names[index]]


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


def _order(train: Rows, federation: FederationConfig) -> np.ndarray:
    return np.random.default_rng(derive(federation.seed, "order")).permutation(len(train))
