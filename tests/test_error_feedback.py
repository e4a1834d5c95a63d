"""Top-k of examples/extend: what a packet delivers and what is kept are all that there was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from federations import fedavg, listening, run
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable
from topk import TopK

from fl_darex.clients import DarexMod
from fl_darex.clients.client_app import app as client_app
from fl_darex.compression import METHODS, NOTHING, Local, State, Terms
from fl_darex.config import make_config
from fl_darex.delta import Delta
from fl_darex.simulation.client import failure
from fl_darex.simulation.in_process import InProcessGrid
from fl_darex.strategies import DarexStrategy
from fl_darex.strategies.server_app import make_app
from fl_darex.wire.reader import read_packet

Seen = dict[str, Any]
"""What one call of the method was given and gave."""


class Witness(TopK):
    """Top-k that can be looked at."""

    name = "witness"
    seen: list[Seen] = []  # noqa: RUF012

    def compress(
        self, delta: Delta, terms: Terms, local: Local = NOTHING, state: State | None = None
    ) -> tuple[bytes, State]:
        before = {name: array.copy() for name, array in (state or {}).items()}
        specs = (*delta.layout.pruned, *delta.layout.dense)
        change = {spec.name: delta.whole(spec.name) for spec in specs}
        packet, kept = super().compress(delta, terms, local, state)
        sent = read_packet(packet, delta.layout)
        numbers = {name: array.reshape(-1) for name, array in sent.survivors().rescaled().items()}
        after = {name: array.copy() for name, array in kept.items()}
        self.seen.append(
            Seen(
                client=terms.slot,
                round=terms.round,
                counted=terms.counted,
                before=before,
                change=change,
                sent=numbers,
                after=after,
                survivors=sent.header.survivors,
                entries=sum(spec.numel for spec in delta.layout.pruned),
            )
        )
        return packet, kept


class Lossy(InProcessGrid):
    """Loses one client's second packet, as if it had never arrived."""

    loses: int | None = None
    lost = (-1, -1)  # client and round
    trained = 0

    def _reply(self, message: Message) -> Message:
        reply = super()._reply(message)
        client = self.partitions[message.metadata.dst_node_id]
        if client == self.loses and message.content.array_records:
            self.trained += 1
            if self.trained == 2:
                config = next(iter(message.content.config_records.values()))
                self.lost = (client, int(config["server-round"]))  # type: ignore[arg-type]
                return failure(message, "lost on the way")
        return reply


def watched(clients: int, sample: int, loses: int | None = None) -> tuple[list[Seen], Lossy]:
    config = make_config(
        {
            "compress.method": f"{__name__}:Witness",
            "federation.clients": clients,
            "federation.clients-per-round": sample,
            "federation.rounds": 20,
            "federation.evaluate": "none",
            "train.local-steps": 1,
            "train.batch-size": 4,
        }
    )
    Witness.seen.clear()
    grid = Lossy(client_app, clients)
    grid.loses = loses
    grid.serve(make_app(config, []))
    return list(Witness.seen), grid


def check_balance(seen: list[Seen]) -> None:
    """Sent + kept = residual + change, to the round-off of one sum and one difference."""
    for one in seen:
        assert one["survivors"] == round(0.01 * one["entries"])
        assert one["after"].keys() == one["change"].keys()
        for name, change in one["change"].items():
            left = one["before"].get(name, np.zeros_like(change))
            was = left.astype(np.float64) + change
            kept = one["after"][name].astype(np.float64)
            # float32 rounds residual + change, and then what is left of it: half a unit each.
            allowed = 2.0**-24 * (np.abs(was) + np.abs(kept)) * (1 + 2.0**-20)
            assert (np.abs(one["sent"][name] + kept - was) <= allowed).all(), name


def check_states(seen: list[Seen], lost: tuple[int, int] = (-1, -1)) -> None:
    """Each client goes on from what it kept in the last round in which its reply counted."""
    counted: dict[int, Seen] = {}
    for one in seen:
        last = counted.get(one["client"])
        assert one["counted"] == (last["round"] if last else 0)
        expected = last["after"] if last else {}
        assert one["before"].keys() == expected.keys()
        assert all(one["before"][k].tobytes() == v.tobytes() for k, v in expected.items())
        if (one["client"], one["round"]) != lost:
            counted[one["client"]] = one


def test_nothing_is_lost_over_twenty_rounds() -> None:
    seen, _ = watched(2, 2)
    assert [(one["round"], one["client"]) for one in seen] == [
        (round_, client) for round_ in range(1, 21) for client in range(2)
    ]
    check_balance(seen)
    check_states(seen)


@pytest.mark.slow
def test_where_few_clients_take_part_nothing_is_lost_but_the_round_whose_reply_is() -> None:
    seen, grid = watched(10, 4, loses=3)
    assert len(seen) == 80 and {one["client"] for one in seen} == set(range(10))
    check_balance(seen)
    check_states(seen, grid.lost)
    first, gone, next_ = [one for one in seen if one["client"] == 3][:3]
    assert (3, gone["round"]) == grid.lost
    # The message after it says that the round before the lost one was the last that counted.
    assert next_["counted"] == gone["counted"] == first["round"] < gone["round"]
    assert any((next_["before"][k] != gone["after"][k]).any() for k in gone["after"])
    assert all((next_["before"][k] == first["after"][k]).all() for k in first["after"])


# --- the memory itself ------------------------------------------------------------------------


class Counter(TopK):
    """Top-k that keeps in which rounds it was asked, as the digits of a number."""

    name = "counter"
    began: list[float] = []  # noqa: RUF012

    def compress(
        self, delta: Delta, terms: Terms, local: Local = NOTHING, state: State | None = None
    ) -> tuple[bytes, State]:
        known = float(state["rounds"][0]) if state else 0.0
        if terms.slot == 0:
            self.began.append(known)
        packet, _ = super().compress(delta, terms, local, {})
        return packet, {"rounds": np.array([10 * known + terms.round], dtype=np.float32)}


class Open(Counter):
    """The same, and replies go as they are."""

    name = "open"

    def compress(self, *given: Any, **named: Any) -> tuple[Any, State]:
        return None, super().compress(*given, **named)[1]


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS, "_rows", dict(METHODS))  # taken back after the test


def began(method: Counter, *mods: Any) -> list[float]:
    """Return what client 0 was given in each of four rounds."""
    method.began.clear()
    run(DarexStrategy(fedavg(), method=method), 4, mods=[*mods, DarexMod(methods=[method])])
    return list(method.began)


def test_what_is_kept_beside_a_reply_that_goes_as_it_is_counts_like_any_other() -> None:
    assert began(Counter()) == began(Open()) == [0.0, 1.0, 12.0, 123.0]


@pytest.mark.parametrize("put", [None, ConfigRecord({"a": 1})], ids=["nothing", "a setting"])
def test_a_client_whose_app_empties_its_state_begins_again_and_counts(
    put: ConfigRecord | None, caplog: pytest.LogCaptureFixture
) -> None:
    def careless(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        context.state.array_records.clear()
        if put is not None:
            context.state["darex.state.next"] = put
        return call_next(message, context)

    with listening(caplog):
        assert began(Counter(), careless) == [0.0] * 4
    assert "client 0: the server counted its reply of round 3, and what was kept" in caplog.text
