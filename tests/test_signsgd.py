"""signSGD with majority vote, against a transcription of Bernstein et al., and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from apps import BASE, numpy_app, step_of
from federations import CLIENTS, fedavg, run
from flwr.app import ConfigRecord, Context, Message
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedMedian
from papers import SHAPES, Client, change

from fl_darex.clients import DarexMod
from fl_darex.compression import METHODS, Uplink
from fl_darex.compression.update import WholeUpdate
from fl_darex.compression.weighted_sum import Part
from fl_darex.delta import Layout
from fl_darex.strategies import DarexStrategy

STEP = 0.25
VOTING: dict[str, Any] = {"p": 0.0, "method": "signsgd", "values": "sign"}
BEFORE = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}


def client(slot: int) -> Client:
    return Client("signsgd", 0.0, slot, values="sign", options={"step": STEP})


def single(changes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float32) for name, array in changes.items()}


def combined(clients: list[Client], parts: list[Part], before: Any = BEFORE) -> Any:
    layout = Layout.of(before)
    result, odd = METHODS["signsgd"].combine(before, layout, parts, clients[0].terms(1))
    assert not odd
    return result


@pytest.mark.parametrize("count", [1, 3, 7])
def test_each_entry_steps_as_most_clients_changed_it(count: int) -> None:
    clients = [client(slot) for slot in range(count)]
    before = single(change(99, 0))
    for t in range(1, 4):
        changes = [single(change(slot, t)) for slot in range(count)]
        updates = [c.opened(one, 1, before) for c, one in zip(clients, changes, strict=True)]
        # One client has ten thousand examples, and one vote.
        parts = [Part(update, 10.0 ** (4 * (i == 0))) for i, update in enumerate(updates)]
        after = combined(clients, parts, before)
        for name in SHAPES:
            # Algorithm 1 of "Majority Vote": x - eta * sign(sum of sign(g)), the change being -g's.
            votes = np.sum([np.sign(one[name].astype(np.float64)) for one in changes], axis=0)
            expected = before[name].astype(np.float64) + STEP * np.sign(votes)
            np.testing.assert_allclose(after[name], expected, rtol=0, atol=1e-6)
        before = after


def test_an_even_vote_and_an_entry_that_rests_are_decided_by_seeded_coins() -> None:
    two = [client(slot) for slot in (0, 1)]
    shape = {"w": (40, 50)}
    ahead, before = single(change(0, 1, shape)), {"w": np.zeros((40, 50), np.float32)}
    back = {"w": -ahead["w"]}
    for first, second in ((ahead, back), ({"w": 0 * ahead["w"]}, {"w": 0 * ahead["w"]})):
        updates = [c.opened(one, 1) for c, one in zip(two, (first, second), strict=True)]
        after = combined(two, [Part(update, 1.0) for update in updates], before)["w"]
        assert set(np.unique(np.abs(after))) == {np.float32(STEP)}
        assert abs(np.sign(after).mean()) < 5 / np.sqrt(after.size)
    assert (after == combined(two, [Part(u, 1.0) for u in updates], before)["w"]).all()


def test_whole_tensors_vote_too_and_abstain_where_they_rest() -> None:
    changes = [single(change(slot, 1)) for slot in range(3)]
    voters = [client(slot) for slot in range(2)]
    updates: list[Any] = [c.opened(one, 1) for c, one in zip(voters, changes[:2], strict=True)]
    plain = {name: array.copy() for name, array in changes[2].items()}
    plain["d"][:] = 0
    updates.append(WholeUpdate(Layout.of(BEFORE), lambda: plain))
    weights = (1.0, 1.0, 1.0)
    parts = [Part(update, w) for update, w in zip(updates, weights, strict=True)]
    after = combined(voters, parts)
    for name in ("a.weight", "b.bias", "c.weight"):
        votes = np.sum([np.sign(one[name]) for one in changes], axis=0)
        assert (after[name] == np.float32(STEP) * np.sign(votes)).all()
    both = np.sign(changes[0]["d"]) + np.sign(changes[1]["d"])
    assert (after["d"][both != 0] == np.float32(STEP) * np.sign(both[both != 0])).all()
    # Who trained on nothing has no vote.
    silent = [*parts[:1], *(Part(part.update, 0.0) for part in parts[1:])]
    assert (combined(voters, silent)["d"] == STEP * np.sign(changes[0]["d"])).all()


def test_a_federation_steps_by_the_vote_and_a_bit_an_entry_goes_each_way() -> None:
    made = DarexStrategy(
        fedavg(clients=3), **VOTING, step=0.1, seed=5, dense_below=0, downlink="update"
    )
    found = run(made, 2, clients=3)
    for name, base in BASE.items():
        votes = [
            np.sum([np.sign(step_of(i, t, base.shape)) for i in range(3)], axis=0) for t in (1, 2)
        ]
        moved = 0.1 * (np.sign(votes[0]) + np.sign(votes[1]))
        # The way down rounds a step up by less than 2**-7 of it.
        np.testing.assert_allclose(found[name] - base, moved, rtol=0, atol=0.2 * 2**-7)
    entries = [entry for entry in made.ledger.entries if entry.round == 2 and entry.kind == "train"]
    numel = sum(base.size for base in BASE.values())
    for entry in entries:  # a bit, a scale for 256, and the envelope
        assert entry.up_bytes < 1500 + 1.1 * numel / 8
        assert entry.down_bytes < 1700 + 1.1 * numel / 8


def test_tensors_that_are_one_stay_one_whatever_the_coins() -> None:
    # An even number of clients, in all of which two tensors go the same way.
    twice = {"a": np.zeros((30, 40), np.float32), "z": np.zeros((30, 40), np.float32)}
    app = numpy_app([DarexMod(), _twin])
    found = run(DarexStrategy(fedavg(), **VOTING, seed=2), 3, app=app, base=twice)
    assert (found["a"] == found["z"]).all() and found["a"].any()


def _twin(message: Message, context: Context, call_next: Any) -> Message:
    reply = call_next(message, context)
    for record in reply.content.array_records.values():
        if "a" in record:
            record["z"] = record["a"]
    return reply


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"p": 0.9, "values": "sign"}, r"^p = 0\.9 drops entries, .* set p = 0"),
        ({"p": 0.0}, r"^values = 'fp16' takes more than the one bit .* set values = 'sign'"),
        ({"p": 0.0, "values": "sign", "q": 0.5}, r"^q = 0\.5 divides numbers"),
        ({"p": 0.0, "values": "sign", "q": "server-validation"}, r"^q = 'server-validation' div"),
        ({"p": 0.0, "values": "sign", "mask": "round"}, r"set mask = 'client'"),
        ({"p": 0.0, "values": "sign", "options": {"step": 0.0}}, r"^step = 0\.0 is not allowed"),
    ],
)
def test_what_is_no_vote_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Uplink.of("signsgd", settings.pop("p"), **settings)


def test_strategies_that_take_updates_for_summands_are_refused() -> None:
    private = DifferentialPrivacyServerSideFixedClipping(fedavg(), 0.1, 1.0, CLIENTS)
    median = fedavg(FedMedian)
    for strategy, more, said in (
        (private, {}, "DifferentialPrivacyServerSideFixedClipping clips updates"),
        (fedavg(), {"clip": 1.0}, "FedAvg clips updates"),
        (median, {}, "FedMedian is given each client's own arrays"),
        (fedavg(), {"replies": "own"}, "FedAvg is given each client's own arrays"),
    ):
        with pytest.raises(ValueError, match=said):
            DarexStrategy(strategy, **VOTING, **more)


def test_the_terms_of_a_vote_are_read_as_said() -> None:
    terms, config = client(1).terms(3), ConfigRecord()
    terms.attach(config)
    assert type(terms).detach(config) == terms
    assert terms.uplink.options == {"step": STEP}
