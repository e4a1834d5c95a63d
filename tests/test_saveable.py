"""What a run remembers: every holder says it all between two rounds, and a fresh one goes on."""

from __future__ import annotations

import pickle
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from threading import Lock
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
from apps import BASE, numpy_app
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    Strategy,
)

from fl_darex.clients import DarexMod
from fl_darex.compression import Local, Method, State, Terms, left_over
from fl_darex.delta import Delta
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.positions import ListedMask
from fl_darex.pruning.largest import largest
from fl_darex.saveable import Saveable
from fl_darex.simulation.in_process import InProcessGrid
from fl_darex.strategies import DarexStrategy
from fl_darex.survivors import Survivors

CLIENTS, PICKED = 6, 4


class Residual(Method):
    """The largest hundredth of the change and of what was not sent before."""

    name: ClassVar[str] = "residual"
    remembers: ClassVar[bool] = True

    def compress(
        self, delta: Delta, terms: Terms, local: Local | None = None, state: State | None = None
    ) -> tuple[bytes, State]:
        layout, known = delta.layout, state or {}
        whole = {
            spec.name: known.get(spec.name, np.float32(0)) + delta.whole(spec.name)
            for spec in layout.pruned
        }
        where = largest(whole, sum(array.size for array in whole.values()) // 100)
        parts = [whole[name][at] for name, at in where.items()]
        survivors = Survivors(
            layout=layout,
            mask=ListedMask(where, terms.uplink.seed, terms.round, terms.slot),
            numbers=np.concatenate(parts),
            counts=tuple(part.size for part in parts),
            dense={},
            raw={},
            q=1.0,
        )
        packet = self.encoded(survivors, terms)
        return packet, left_over(whole, packet, layout)


def fedavg(kind: type[FedAvg] = FedAvg, **options: Any) -> FedAvg:
    strategy = kind(
        fraction_train=PICKED / CLIENTS,
        min_train_nodes=PICKED,
        min_available_nodes=CLIENTS,
        **options,
    )
    strategy.fraction_evaluate = 0.0
    return strategy


def private() -> Strategy:
    return DifferentialPrivacyServerSideFixedClipping(fedavg(), 1e-9, 1.0, PICKED)


MAKE: dict[str, Any] = {
    "average": lambda **more: DarexStrategy(fedavg(), p=0.9, seed=3, **more),
    "adam": lambda **more: DarexStrategy(fedavg(FedAdam), p=0.9, seed=3, values="int8", **more),
    "momentum": lambda **more: DarexStrategy(
        fedavg(FedAvgM, server_momentum=0.9), p=0.9, seed=3, **more
    ),
    "largest entries down": lambda **more: DarexStrategy(
        fedavg(), p=0.9, seed=3, downlink="server", **more
    ),
    "everything down": lambda **more: DarexStrategy(
        fedavg(FedAdam), p=0.9, seed=3, downlink="dense", **more
    ),
    "clients remember": lambda **more: DarexStrategy(
        fedavg(), method=Residual(), seed=3, dense_below=0, **more
    ),
    "masks side by side": lambda **more: DarexStrategy(
        fedavg(), p=0.5, mask="disjoint", seed=3, **more
    ),
    "a mask that is chosen": lambda **more: DarexStrategy(
        fedavg(), p=0.5, mask="auto", seed=3, **more
    ),
    "compared": lambda **more: DarexStrategy(
        fedavg(FedMedian), p=0.5, mask="round", seed=3, **more
    ),
    "a wrapper inside": lambda **more: DarexStrategy(
        fedavg(FedAvgM), p=0.9, seed=3, clip=0.5, **more
    ),
}


def clients() -> InProcessGrid:
    return InProcessGrid(numpy_app([DarexMod(methods=[Residual()])]), CLIENTS)


def driven(
    strategy: DarexStrategy, grid: Grid, rounds: Iterable[int], model: ArrayRecord
) -> Iterator[ArrayRecord]:
    """Yield the model after each round, inside `DarexStrategy.running`."""
    for round_ in rounds:
        messages = strategy.configure_train(round_, model, ConfigRecord(), grid)
        after, _ = strategy.aggregate_train(round_, grid.send_and_receive(messages))
        assert after is not None
        model = after
        yield model


def bits(record: ArrayRecord) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in to_arrays(record).items()}


def uninterrupted(make: Any, rounds: int) -> tuple[list[dict[str, bytes]], DarexStrategy]:
    strategy = make()
    with strategy.running(clients()) as grid:
        models = [bits(m) for m in driven(strategy, grid, range(1, rounds + 1), to_record(BASE))]
    return models, strategy


@pytest.mark.parametrize("name", MAKE)
def test_a_run_that_is_saved_and_restored_between_two_rounds_ends_with_the_same_bits(name):
    expected, whole = uninterrupted(MAKE[name], 5)
    first, nodes = MAKE[name](), clients()
    with first.running(nodes) as grid:
        *_, _ = driven(first, grid, (1, 2), to_record(BASE))
        saved = pickle.dumps((first.state(), nodes.state()))
        second, others = MAKE[name](), clients()
        strategy_state, clients_state = pickle.loads(saved)
        second.restore(strategy_state)
        others.restore(clients_state)
        with second.running(others) as again:
            found = [bits(m) for m in driven(second, again, (3, 4, 5), second.model)]
    assert found == expected[2:]
    assert second.ledger.entries == whole.ledger.entries
    assert (second.q, second.counted) == (whole.q, whole.counted)


@pytest.mark.parametrize(
    ("name", "forgotten"),
    [("adam", "strategy"), ("momentum", "strategy"), ("largest entries down", "broadcast")],
)
def test_a_holder_that_forgets_changes_the_run(name, forgotten):
    """What is saved is needed: without it the same test ends with other bits."""
    expected, _ = uninterrupted(MAKE[name], 4)
    first = MAKE[name]()
    with first.running(clients()) as grid:
        *_, model = driven(first, grid, (1, 2), to_record(BASE))
        second = MAKE[name]()
        fresh, state = second.state(), first.state()
        second.restore(state | {forgotten: fresh[forgotten]})
        with second.running(clients()) as again:
            *_, found = driven(second, again, (3, 4), to_record(to_arrays(model)))
    assert bits(found) != expected[-1]


def test_clients_that_forget_change_the_run():
    expected, _ = uninterrupted(MAKE["clients remember"], 4)
    first = MAKE["clients remember"]()
    with first.running(clients()) as grid:
        *_, _ = driven(first, grid, (1, 2), to_record(BASE))
        second = MAKE["clients remember"]()
        second.restore(first.state())
        with second.running(clients()) as again:
            *_, found = driven(second, again, (3, 4), second.model)
    assert bits(found) != expected[-1]


def test_a_saved_state_does_not_change_with_the_run_that_it_was_taken_from():
    strategy = MAKE["largest entries down"]()
    with strategy.running(clients()) as grid:
        *_, model = driven(strategy, grid, (1,), to_record(BASE))
        saved = strategy.state()
        before = pickle.dumps(saved)
        *_, _ = driven(strategy, grid, (2, 3), model)
    assert pickle.dumps(saved) == before


class Pair(NamedTuple):
    low: int
    high: float


def test_what_a_strategy_of_ones_own_remembers_comes_back_in_containers_of_the_same_kind():
    kept = {
        "seen": {1, 2},
        "counts": defaultdict(int, {"a": 1}),
        "latest": deque([1, 2], maxlen=2),
        "limits": Pair(1, 2.0),
        "nested": [{"moments": (np.ones(2, np.float32), to_record(BASE))}],
    }
    first, second = fedavg(), fedavg()
    vars(first).update(kept | {"lock": Lock()})
    second.lock = None  # type: ignore[attr-defined]
    saved = pickle.loads(pickle.dumps(DarexStrategy(first).state()))
    DarexStrategy(second).restore(saved)
    found = vars(second)
    assert {name: type(found[name]) for name in kept} == {k: type(v) for k, v in kept.items()}
    assert [found[name] for name in list(kept)[:4]] == list(kept.values())[:4]
    assert found["counts"]["b"] == 0 and found["latest"].maxlen == 2 and found["lock"] is None
    moments, record = found["nested"][0]["moments"]
    assert moments.tolist() == [1.0, 1.0] and bits(record) == bits(to_record(BASE))


def test_what_a_run_knew_of_versions_is_not_used_where_the_whole_model_goes_to_everybody():
    first, nodes = MAKE["adam"](), clients()
    with first.running(nodes) as grid:
        *_, _ = driven(first, grid, (1, 2), to_record(BASE))
        state, left = first.state(), nodes.state()
    second, others = MAKE["everything down"](), clients()
    second.restore(state)
    others.restore(left)
    with second.running(others) as grid:
        *_, _ = driven(second, grid, (3, 4), second.model)
    assert second.counted == PICKED


def test_every_holder_is_saveable():
    strategy = MAKE["average"]()
    holders = [strategy, clients(), *strategy._holders().values()]
    assert all(isinstance(holder, Saveable) for holder in holders)
