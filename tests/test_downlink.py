"""The way down: what a client holds is what the server holds, bit for bit, however it got there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apps import BASE, numpy_app
from federations import CLIENTS, Federation, fedavg, listening, rounds
from flwr.app import ArrayRecord, Message
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM

from fl_darex.clients import DarexMod
from fl_darex.flower.ledger import LACKING
from fl_darex.flower.model_note import DELIVERY_KEY, GREETING_KEY
from fl_darex.flower.records import PACKET_STYPE, to_arrays, to_record
from fl_darex.flower.roster import is_handshake
from fl_darex.simulation.client import failure
from fl_darex.strategies import DarexStrategy

BOTH = pytest.mark.parametrize("downlink", ["update", "server"])
MODEL = {
    **BASE,
    "bn.running_var": np.ones(50, np.float32),
    "bn.num_batches_tracked": np.array(3, np.int64),
    "wide": np.linspace(0, 1, 700).reshape(7, 100),
    "half": np.linspace(-2, 2, 900, dtype=np.float16),
}


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FL_DAREX_CACHE", str(tmp_path))
    return tmp_path


def training(messages: list[Message]) -> list[Message]:
    """Those in which a model is trained: not the question that opens a run."""
    return [m for m in messages if m.metadata.message_type == "train" and not is_handshake(m)]


class Witness:
    """Stands behind the mod and keeps every model that the app is given, by client and round."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, int, str], dict[str, bytes]] = {}

    def __call__(self, message: Any, context: Any, call_next: Any) -> Message:
        for record in message.content.array_records.values():
            round_ = int(message.content["config"]["server-round"])
            key = (round_, context.node_config["partition-id"], message.metadata.message_type)
            self.seen[key] = bits(to_arrays(record))
        return call_next(message, context)


def bits(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: repr((a.dtype, a.shape)).encode() + a.tobytes() for name, a in arrays.items()}


class Fleet(Federation):
    """Clients of one process each: a mod of its own for every client, so nothing is shared."""

    def __init__(self, clients: int, base: Any = None, machines: int = 0, **options: Any) -> None:
        self.witness = Witness()
        self.apps = [numpy_app([DarexMod(base), self.witness], **options) for _ in range(clients)]
        super().__init__(self.apps[0], clients)
        self.delivered: list[Message] = []

    def _reply(self, message: Message) -> Message:
        self._app = self.apps[self.partitions[message.metadata.dst_node_id]]
        self.delivered.append(message)
        return super()._reply(message)

    def restart(self, client: int, base: Any = None) -> None:
        """Give a client a new process: what it knew in memory is gone."""
        self.apps[client] = numpy_app([DarexMod(base), self.witness])


class Server:
    """Keeps the model of the server after each round."""

    def __init__(self) -> None:
        self.models: dict[int, dict[str, bytes]] = {}

    def __call__(self, round_: int, arrays: ArrayRecord) -> None:
        self.models[round_] = bits(to_arrays(arrays))


def run(
    strategy: DarexStrategy, grid: Fleet, count: int, model: dict[str, np.ndarray] = MODEL
) -> dict[int, dict[str, bytes]]:
    server = Server()
    strategy.start(grid, to_record(model), num_rounds=count, timeout=60, evaluate_fn=server)
    return server.models


def held_model(message: Any = None, context: Any = None) -> dict[str, np.ndarray]:
    return MODEL


def start_of(message: Message) -> str:
    return str(json.loads(message.content["config"][DELIVERY_KEY])["start"])


def packets_in(message: Message) -> int:
    records = message.content.array_records.values()
    return sum(array.stype == PACKET_STYPE for record in records for array in record.values())


STRATEGIES: dict[str, Any] = {
    "fedavg": lambda **o: fedavg(FedAvg, **o),
    "fedavgm": lambda **o: fedavg(FedAvgM, server_learning_rate=0.8, server_momentum=0.9, **o),
    "fedadam": lambda **o: fedavg(FedAdam, eta=0.01, **o),
}


@BOTH
@pytest.mark.parametrize("which", STRATEGIES)
@pytest.mark.parametrize("mask", ["client", "round", "disjoint"])
@pytest.mark.parametrize("values", ["fp16", "int8"])
def test_every_client_trains_the_very_bits_that_the_server_holds(downlink, which, mask, values):
    strategy = DarexStrategy(
        STRATEGIES[which](), p=0.9, mask=mask, downlink=downlink, downlink_values=values
    )
    grid = Fleet(CLIENTS, held_model)
    models = run(strategy, grid, 5)
    for (round_, _, _), seen in grid.witness.seen.items():
        assert seen == models[round_ - 1]
    assert len(grid.witness.seen) == 5 * CLIENTS
    assert strategy.counted == CLIENTS
    # Nobody was ever sent a whole model, and no two rounds had the same one.
    trained = training(grid.delivered)
    assert all(start_of(message) for message in trained)
    assert len({repr(model) for model in models.values()}) == 6


@BOTH
def test_clients_that_come_now_and_then_catch_up(downlink):
    strategy = DarexStrategy(
        fedavg(fraction_train=0.25, min_train_nodes=2, min_available_nodes=8),
        **{"p": 0.9, "downlink": downlink, "seed": 3},
    )
    grid = Fleet(8, held_model)
    models = run(strategy, grid, 12)
    assert all(seen == models[round_ - 1] for (round_, _, _), seen in grid.witness.seen.items())
    trained = training(grid.delivered)
    assert {packets_in(message) for message in trained} >= {0, 1, 2, 3}
    assert len(grid.witness.seen) == 24


@BOTH
def test_evaluation_brings_clients_up_to_date_too(downlink):
    strategy = DarexStrategy(
        fedavg(fraction_evaluate=1.0, min_evaluate_nodes=CLIENTS), p=0.9, downlink=downlink
    )
    grid = Fleet(CLIENTS, held_model)
    models = run(strategy, grid, 3)
    for (round_, _, kind), seen in grid.witness.seen.items():
        assert seen == models[round_ if kind == "evaluate" else round_ - 1]
    sent = [(m.metadata.message_type, packets_in(m)) for m in grid.delivered]
    assert set(sent) == {("train", 0), ("evaluate", 1)}


def test_an_update_is_the_servers_own_step_rounded():
    models = {}
    for downlink in ("dense", "update"):
        strategy = DarexStrategy(
            fedavg(), p=0.9, values="fp32", downlink=downlink, downlink_values="fp32"
        )
        result = rounds(strategy, Fleet(CLIENTS, lambda m, c: BASE), 1)
        models[downlink] = to_arrays(result.arrays)
    for name, base in BASE.items():
        # base + (new - base): each float32 operation rounds once.
        bound = 2 * np.finfo(np.float32).eps * (np.abs(base).max() + 1)
        assert np.abs(models["update"][name] - models["dense"][name]).max() <= bound
        unchanged = models["dense"][name] == base
        assert (models["update"][name][unchanged] == base[unchanged]).all()


@pytest.mark.parametrize(
    ("mask", "slots"), [("round", 0), ("client", CLIENTS), ("disjoint", CLIENTS)]
)
def test_positions_of_an_update_follow_from_the_clients_masks(mask, slots):
    strategy = DarexStrategy(fedavg(), p=0.99, mask=mask, downlink="update", dense_below=0)
    base = {name: tensor - np.float32(1) for name, tensor in BASE.items()}  # each has a negative
    grid = Fleet(CLIENTS, lambda m, c: base)
    run(strategy, grid, 2, base)
    (packet,) = (
        array.data
        for array in grid.delivered[-1].content["arrays"].values()
        if array.stype == PACKET_STYPE
    )
    numel = sum(tensor.size for tensor in BASE.values())
    share = {"round": 0.01, "client": 1 - 0.99**CLIENTS, "disjoint": 0.01 * CLIENTS}[mask]
    survivors = (len(packet) - 96 - 8 * slots) / 2
    assert abs(survivors - share * numel) <= 5 * (share * (1 - share) * numel) ** 0.5
    # A client's packet is not in it.
    sent = {
        bytes(array.data)
        for m in grid.pushed
        for r in m.content.array_records.values()
        for array in r.values()
        if array.stype == PACKET_STYPE
    }
    assert len(sent) == 1


def test_a_server_that_prunes_keeps_back_what_it_does_not_send():
    """Sent + kept = whole: after enough rounds without change, everything has arrived."""
    from fl_darex.compression import POLICIES, Uplink
    from fl_darex.strategies.downlink.broadcast import Broadcast

    numel, kept = 1000, 2**32 // 10
    uplink = Uplink.of("dare", 0.9)
    broadcast = Broadcast(POLICIES["server"], keep=kept, values="fp16", uplink=uplink)
    base = {"w": np.zeros(numel, np.float32), "n": np.array([1])}
    change = np.random.default_rng(0).normal(size=numel).astype(np.float32)
    broadcast.present(to_record(base))
    model = to_arrays(broadcast.advance(to_record({"w": change, "n": np.array([5])}), None, 1))
    assert np.count_nonzero(model["w"]) == numel // 10
    assert model["n"].tolist() == [5]
    for round_ in range(2, 14):
        left = broadcast.state()["kept"]["w"]
        np.testing.assert_allclose(model["w"] + left, change, rtol=0, atol=1e-6)
        # The strategy answers with the model that everybody holds: nothing new.
        model = to_arrays(broadcast.advance(to_record(model), None, round_))
    # What is left is the rounding of the largest entries of the last rounds, to 11 bits.
    np.testing.assert_allclose(model["w"], change, rtol=0, atol=np.abs(change).max() * 2**-11)


@pytest.mark.parametrize("values", ["fp64", "fp32", "int8", "int4"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_rounding_takes_away_when_a_model_moves_is_kept_back_as_well(dtype, values):
    """What clients hold and what is kept back add up to all that the strategy asked for."""
    from fl_darex.compression import POLICIES, Uplink
    from fl_darex.strategies.downlink.broadcast import Broadcast

    rng, uplink = np.random.default_rng(0), Uplink.of("dare", 0.9, dense=("head",))
    broadcast = Broadcast(POLICIES["server"], keep=2**30, values=values, uplink=uplink)
    model = {name: rng.normal(size=400).astype(dtype) for name in ("w", "head")}
    broadcast.present(to_record(model))
    wanted = {name: array.astype(np.float64) for name, array in model.items()}
    for round_ in range(1, 31):
        asked = {}
        for name, array in model.items():
            asked[name] = array + (0.01 * rng.normal(size=400)).astype(dtype)
            wanted[name] += asked[name].astype(np.float64) - array
        model = to_arrays(broadcast.advance(to_record(asked), None, round_))
        kept = broadcast.state()["kept"]
        for name, array in model.items():
            assert array.dtype == dtype
            together = array.astype(np.float64) + kept[name]
            np.testing.assert_allclose(together, wanted[name], rtol=0, atol=3e-6)


@BOTH
def test_total_bytes_fall_when_the_base_is_held(downlink):
    strategy = DarexStrategy(fedavg(), p=0.99, mask="round", downlink=downlink)
    grid = Fleet(CLIENTS, held_model)
    big = {**MODEL, "body": np.linspace(-1, 1, 400_000, dtype=np.float32)}
    for client in range(CLIENTS):
        grid.restart(client, lambda m, c: big)
    run(strategy, grid, 4, big)
    entries = [e for e in strategy.ledger.entries if e.kind == "train"]
    dense = sum(e.dense_down_bytes for e in entries)
    assert dense > 4 * CLIENTS * 1_600_000
    # The dense head and statistics are few here; values 2 bytes, positions 1 byte, 1 %.
    assert sum(e.down_bytes for e in entries) < dense / 50


# --- who holds what -----------------------------------------------------------------------------


@BOTH
def test_a_client_without_a_base_is_sent_the_model_once(downlink):
    strategy = DarexStrategy(fedavg(), p=0.9, downlink=downlink)
    grid = Fleet(CLIENTS)
    models = run(strategy, grid, 3)
    assert all(seen == models[round_ - 1] for (round_, _, _), seen in grid.witness.seen.items())
    trained = training(grid.delivered)
    assert [bool(start_of(message)) for message in trained] == [False] * 4 + [True] * 8


@BOTH
def test_a_client_that_holds_a_part_is_sent_the_rest(downlink):
    def body_only(message: Any, context: Any) -> dict[str, np.ndarray]:
        return body

    body = {name: tensor for name, tensor in MODEL.items() if not name.startswith("head")}
    strategy = DarexStrategy(fedavg(), p=0.9, downlink=downlink)
    grid = Fleet(CLIENTS, body_only)
    models = run(strategy, grid, 3)
    assert all(seen == models[round_ - 1] for (round_, _, _), seen in grid.witness.seen.items())
    trained = training(grid.delivered)
    assert [list(m.content["arrays"]) for m in trained[:CLIENTS]] == [["head.weight"]] * CLIENTS


@BOTH
def test_a_base_with_another_bit_is_not_trusted(downlink):
    other = {**MODEL, "layer.weight": np.nextafter(MODEL["layer.weight"], np.float32(2))}
    strategy = DarexStrategy(fedavg(), p=0.9, downlink=downlink)
    grid = Fleet(CLIENTS, lambda m, c: other)
    models = run(strategy, grid, 2)
    assert all(seen == models[round_ - 1] for (round_, _, _), seen in grid.witness.seen.items())
    trained = training(grid.delivered)
    assert list(trained[0].content["arrays"]) == ["layer.weight"]


@BOTH
def test_a_base_that_raises_keeps_nobody_out(downlink, caplog):
    def broken(message: Any, context: Any) -> dict[str, np.ndarray]:
        raise FileNotFoundError("no such model")

    strategy = DarexStrategy(fedavg(), p=0.9, downlink=downlink)
    with listening(caplog):
        models = run(strategy, grid := Fleet(CLIENTS, broken), 2)
    assert "the base model cannot be had: FileNotFoundError: no such model" in caplog.text
    assert all(seen == models[round_ - 1] for (round_, _, _), seen in grid.witness.seen.items())


@BOTH
def test_a_client_without_the_mod_gets_the_whole_model_and_counts(downlink):
    strategy = DarexStrategy(fedavg(), p=0.9, downlink=downlink)
    grid = Fleet(CLIENTS, lambda m, c: BASE)
    grid.apps[2] = numpy_app([grid.witness])
    models = run(strategy, grid, 3, BASE)
    assert strategy.counted == CLIENTS
    assert all(seen == models[round_ - 1] for (round_, _, _), seen in grid.witness.seen.items())
    trained = training(grid.delivered)
    whole = [grid.partitions[m.metadata.dst_node_id] for m in trained if not start_of(m)]
    assert whole == [2, 2, 2]


@BOTH
def test_a_client_that_was_not_greeted_is_known_by_its_packet(downlink):
    class Silent(Fleet):
        def _reply(self, message: Message) -> Message:
            if is_handshake(message):  # the question is lost on the way
                return failure(message, "no answer")
            return super()._reply(message)

    strategy = DarexStrategy(fedavg(), p=0.9, downlink=downlink)
    grid = Silent(CLIENTS)
    models = run(strategy, grid, 3)
    assert all(seen == models[round_ - 1] for (round_, _, _), seen in grid.witness.seen.items())
    trained = training(grid.delivered)
    assert [bool(start_of(message)) for message in trained] == [False] * 4 + [True] * 8


# --- what is lost and comes back ----------------------------------------------------------------


class Losing(Fleet):
    """Does something to a client before it is sent its message of a round."""

    def __init__(self, *args: Any, before: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.before = before
        self.done: set[tuple[int, int]] = set()

    def _reply(self, message: Message) -> Message:
        if training([message]):
            round_ = int(message.content["config"]["server-round"])
            key = (round_, self.partitions[message.metadata.dst_node_id])
            if key not in self.done:
                self.done.add(key)
                self.before(self, *key)
        return super()._reply(message)


@BOTH
def test_a_new_process_finds_the_model_on_disk(downlink):
    def restart(grid: Fleet, round_: int, client: int) -> None:
        grid.restart(client, held_model)

    strategy = DarexStrategy(fedavg(), p=0.9, downlink=downlink)
    grid = Losing(CLIENTS, held_model, before=restart)
    models = run(strategy, grid, 4)
    assert all(seen == models[round_ - 1] for (round_, _, _), seen in grid.witness.seen.items())
    assert not [e for e in strategy.ledger.entries if e.kind == LACKING]


@BOTH
def test_a_client_that_lost_its_cache_is_sent_the_whole_model(downlink, cache_folder, caplog):
    def lose(grid: Fleet, round_: int, client: int) -> None:
        if (round_, client) == (3, 0):
            for app in range(CLIENTS):
                grid.restart(app)
            for path in cache_folder.rglob("*.model"):
                path.unlink()

    strategy = DarexStrategy(fedavg(), p=0.9, downlink=downlink)
    grid = Losing(CLIENTS, before=lose)
    with listening(caplog):
        models = run(strategy, grid, 5)
    assert all(seen == models[round_ - 1] for (round_, _, _), seen in grid.witness.seen.items())
    # Client 0 asked again; what it was sent then lies on the disk that it shares with the others.
    lacking = [e for e in strategy.ledger.entries if e.kind == LACKING]
    assert [(e.round, e.client, e.dense_down_bytes, e.failed) for e in lacking] == [
        (3, 0, 0, False),
        (3, 1, 0, False),
        (3, 2, 0, False),
        (3, 3, 0, False),
    ]
    assert "client 0 lacks an earlier model and is sent the whole one" in caplog.text
    assert strategy.counted == CLIENTS
    again = training(grid.delivered)[-CLIENTS:]
    assert all(start_of(message) for message in again)


@BOTH
def test_a_client_whose_disk_cannot_be_written_is_soon_sent_everything(
    downlink, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FL_DAREX_CACHE", str(tmp_path / "file"))

    def restart(grid: Fleet, round_: int, client: int) -> None:
        grid.restart(client)

    strategy = DarexStrategy(fedavg(), p=0.9, downlink=downlink)
    grid = Losing(CLIENTS, before=restart)
    models = run(strategy, grid, 6)
    assert all(seen == models[round_ - 1] for (round_, _, _), seen in grid.witness.seen.items())
    lacking = [e.round for e in strategy.ledger.entries if e.kind == LACKING]
    assert lacking == [2] * CLIENTS + [3] * CLIENTS
    assert strategy.counted == CLIENTS


@BOTH
def test_a_damaged_file_is_like_no_file(downlink, cache_folder):
    def damage(grid: Fleet, round_: int, client: int) -> None:
        if (round_, client) == (3, 0):
            for app in range(CLIENTS):
                grid.restart(app)
            for path in cache_folder.rglob("*.model"):
                path.write_bytes(path.read_bytes()[:-1])

    strategy = DarexStrategy(fedavg(), p=0.9, downlink=downlink)
    grid = Losing(CLIENTS, before=damage)
    models = run(strategy, grid, 4)
    assert all(seen == models[round_ - 1] for (round_, _, _), seen in grid.witness.seen.items())


@BOTH
def test_a_client_that_fails_after_it_got_the_model_still_follows(downlink):
    def raises_in_round_2(message: Any, context: Any, call_next: Any) -> Message:
        if message.content["config"].get("server-round") == 2:
            raise RuntimeError("out of memory")
        return call_next(message, context)

    strategy = DarexStrategy(fedavg(), p=0.9, downlink=downlink)
    grid = Fleet(CLIENTS, held_model)
    grid.apps[1] = numpy_app([DarexMod(held_model), grid.witness, raises_in_round_2])
    models = run(strategy, grid, 4)
    assert all(seen == models[round_ - 1] for (round_, _, _), seen in grid.witness.seen.items())
    third = training(grid.delivered)[2 * CLIENTS :]
    assert [packets_in(m) for m in third[:CLIENTS]] == [1, 2, 1, 1]


@BOTH
def test_a_round_without_a_usable_reply_changes_no_version(downlink):
    strategy = DarexStrategy(fedavg(), p=0.9, downlink=downlink)
    grid = Fleet(CLIENTS, held_model)
    for client in range(CLIENTS):
        grid.apps[client] = numpy_app([DarexMod(held_model), grid.witness], broken=(0, 1, 2, 3))
    models = run(strategy, grid, 2)
    assert models[0] == models[1] == models[2]
    assert all(seen == models[0] for seen in grid.witness.seen.values())


def test_a_client_that_comes_late_begins_with_its_base_or_the_whole_model():
    class Growing(Fleet):
        def get_node_ids(self) -> list[int]:
            nodes = sorted(self.partitions, key=self.partitions.__getitem__)
            now = max([0, *(key[0] for key in self.witness.seen)])
            return nodes if now >= 3 else nodes[:2]

    inner = fedavg(min_train_nodes=2, min_available_nodes=2)
    # Undivided, so that nothing turns negative and is sent whole from then on.
    strategy = DarexStrategy(inner, p=0.99, q=1.0, mask="round", downlink="update")
    grid = Growing(CLIENTS, held_model)
    grid.apps[3] = numpy_app([DarexMod(), grid.witness])
    models = run(strategy, grid, 6)
    assert all(seen == models[round_ - 1] for (round_, _, _), seen in grid.witness.seen.items())
    fourth = training(grid.delivered)[6:10]
    assert [packets_in(m) for m in fourth] == [1, 1, 3, 0]
    assert not start_of(fourth[3])


def test_packets_that_would_be_larger_than_the_model_are_not_sent_and_forgotten():
    inner = fedavg(min_train_nodes=3, fraction_train=0.3)  # another one is left out each time
    strategy = DarexStrategy(inner, p=0.0, downlink="update", downlink_values="fp32")
    grid = Fleet(CLIENTS, lambda m, c: BASE)
    models = run(strategy, grid, 8, BASE)
    assert all(seen == models[round_ - 1] for (round_, _, _), seen in grid.witness.seen.items())
    trained = training(grid.delivered)
    # A packet of everything is a little smaller than the model: one pays, two do not.
    assert max(packets_in(m) for m in trained) == 1
    assert len(strategy._broadcast._steps) <= 2


def test_a_step_that_is_not_a_number_is_not_taken(caplog):
    class Diverging(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            arrays, metrics = super().aggregate_train(server_round, replies)
            if server_round == 2:
                broken = to_arrays(arrays)
                broken["layer.bias"] = broken["layer.bias"] * np.float32(np.nan)
                arrays = to_record(broken)
            return arrays, metrics

    inner = Diverging(min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)
    inner.fraction_evaluate = 0.0
    strategy = DarexStrategy(inner, p=0.9, downlink="update", replies="each")
    grid = Fleet(CLIENTS, lambda m, c: BASE)
    with listening(caplog):
        models = run(strategy, grid, 3, BASE)
    assert "round 2: the step makes 'layer.bias' NaN or infinite" in caplog.text
    assert models[2] == models[1] != models[0]
    third = training(grid.delivered)[-CLIENTS:]
    assert all(start_of(message) for message in third)


def test_another_model_from_outside_begins_a_new_history():
    strategy = DarexStrategy(fedavg(), p=0.9, downlink="update")
    grid = Fleet(CLIENTS, held_model)
    first = run(strategy, grid, 2)
    other = {name: tensor + tensor.dtype.type(1) for name, tensor in MODEL.items()}
    second = run(strategy, grid, 2, other)
    seen = {key: value for key, value in grid.witness.seen.items()}
    assert all(model == second[key[0] - 1] for key, model in seen.items())
    assert first[0] != second[0]


# --- hostile or confused servers ----------------------------------------------------------------


def spoil(grid: Fleet, change: Any) -> None:
    """Change the second round's message to client 1 on its way."""

    class Spoiler:
        def __call__(self, message: Any, context: Any, call_next: Any) -> Message:
            if message.content["config"].get("server-round") == 2:
                change(message)
            return call_next(message, context)

    # Outside the mod: what arrives is what a bad network or server would send.
    grid.apps[1] = numpy_app([Spoiler(), DarexMod(held_model), grid.witness])


def cut(message: Message) -> None:
    record = message.content["arrays"]
    for name, array in list(record.items()):
        if array.stype == PACKET_STYPE:
            array.__dict__["data"] = array.data[:-1]
            record[name] = array


def swap_versions(message: Message) -> None:
    config = message.content["config"]
    config[DELIVERY_KEY] = config[DELIVERY_KEY].replace('"model":"', '"model":"0000000000000000')[
        :-16
    ]


def empty(message: Message) -> None:
    message.content["config"][DELIVERY_KEY] = "{}"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (cut, "the packets lead to version"),
        (empty, "the server's delivery are not readable|the server's delivery"),
        (swap_versions, "the server's delivery"),
    ],
)
def test_a_delivery_that_does_not_fit_is_an_error_of_that_client_alone(change, says, caplog):
    strategy = DarexStrategy(fedavg(), p=0.9, downlink="update")
    grid = Fleet(CLIENTS, held_model)
    spoil(grid, change)
    with listening(caplog):
        models = run(strategy, grid, 2)
    assert strategy.counted == CLIENTS - 1
    import re

    assert re.search(f"client 1 does not count this round: .*({says})", caplog.text)
    assert all(seen == models[round_ - 1] for (round_, _, _), seen in grid.witness.seen.items())


def test_runs_have_names_of_their_own_and_leave_nothing_behind(cache_folder):
    seen: list[set[str]] = []

    class Looking(Fleet):
        def _reply(self, message: Message) -> Message:
            reply = super()._reply(message)
            seen.append({path.name for path in (cache_folder / "models").glob("*")})
            return reply

    strategies = [DarexStrategy(fedavg(), p=0.9, downlink="update") for _ in range(2)]
    for strategy in strategies:
        run(strategy, Looking(CLIENTS), 2)
    names = {strategy._broadcast.run for strategy in strategies}
    assert len(names) == 2
    assert set().union(*seen) == names
    assert not list((cache_folder / "models").iterdir())


@BOTH
def test_a_strategy_that_is_started_again_assumes_nothing(downlink):
    strategy = DarexStrategy(fedavg(), p=0.9, downlink=downlink)
    grid = Fleet(CLIENTS)
    first = run(strategy, grid, 2)
    grid.witness.seen.clear()
    again = run(strategy, grid, 2)
    assert first[0] == again[0]
    assert all(seen == again[round_ - 1] for (round_, _, _), seen in grid.witness.seen.items())
    assert not [e for e in strategy.ledger.entries if e.kind == LACKING]


def test_the_same_seed_gives_the_same_bytes_and_bits_again():
    found = []
    for _ in range(2):
        strategy = DarexStrategy(fedavg(), p=0.9, downlink="update", downlink_values="int8", seed=5)
        models = run(strategy, Fleet(CLIENTS, held_model), 3)
        found.append((models, [(e.down_bytes, e.up_bytes) for e in strategy.ledger.entries]))
    assert found[0] == found[1]


def test_a_dense_downlink_asks_nothing_and_keeps_nothing(cache_folder):
    strategy = DarexStrategy(fedavg(), p=0.9, downlink="dense")
    grid = Fleet(CLIENTS, held_model)
    run(strategy, grid, 2)
    assert not list(cache_folder.iterdir())
    assert all(DELIVERY_KEY not in m.content.get("config", {}) for m in grid.delivered)
    (question,) = {m.content["config"][GREETING_KEY] for m in grid.delivered if is_handshake(m)}
    assert '"first":""' in question  # it asks for the partition alone


# --- clients that say nothing ---------------------------------------------------------------------


class Silent(Fleet):
    """Clients that tell neither their partition nor what they hold."""

    def __init__(self, bases: list[Any]) -> None:
        super().__init__(len(bases))
        self.apps = [numpy_app([DarexMod(base)]) for base in bases]

    def _reply(self, message: Message) -> Message:
        if is_handshake(message):
            return failure(message, "no answer")
        return super()._reply(message)


def test_clients_that_are_known_to_hold_the_first_model_need_not_say_so() -> None:
    told = DarexStrategy(fedavg(), p=0.9, values="fp32")
    expected = rounds(told, Silent([None] * CLIENTS), 3, MODEL)
    strategy = DarexStrategy(fedavg(), p=0.9, values="fp32", base_held=True)
    found = rounds(strategy, Silent([held_model] * CLIENTS), 3, MODEL)
    assert bits(to_arrays(found.arrays)) == bits(to_arrays(expected.arrays))
    first = [entry for entry in strategy.ledger.of_round(1) if entry.kind == "train"]
    assert len(first) == CLIENTS
    assert all(entry.down_bytes < entry.dense_down_bytes / 5 for entry in first)


def test_a_client_that_does_not_hold_it_after_all_is_sent_it_and_counts() -> None:
    other = {name: array + 1 if array.dtype.kind == "f" else array for name, array in MODEL.items()}
    bases = [held_model, None, lambda message, context: other, held_model]
    strategy = DarexStrategy(fedavg(), p=0.9, values="fp32", base_held=True)
    found = rounds(strategy, Silent(bases), 3, MODEL)
    assert strategy.counted == CLIENTS == len(bases)
    lacking = [entry for entry in strategy.ledger.entries if entry.kind == "lacking"]
    assert [entry.round for entry in lacking] == [1, 1]
    told = DarexStrategy(fedavg(), p=0.9, values="fp32")
    expected = rounds(told, Silent([None] * CLIENTS), 3, MODEL)
    assert bits(to_arrays(found.arrays)) == bits(to_arrays(expected.arrays))


def test_a_dense_downlink_has_no_use_for_what_clients_hold() -> None:
    with pytest.raises(ValueError, match="base_held needs a downlink that builds on"):
        DarexStrategy(fedavg(), downlink="dense", base_held=True)


def test_a_mod_that_refuses_the_handshake_does_not_keep_the_partition_secret() -> None:
    from flwr.clientapp.mod import fixedclipping_mod

    grid = Federation(numpy_app([DarexMod(), fixedclipping_mod]), CLIENTS)
    strategy = DarexStrategy(fedavg(), p=0.9)
    strategy.start(grid, to_record(MODEL), num_rounds=1)
    assert strategy.ledger.partition_of == grid.partitions
