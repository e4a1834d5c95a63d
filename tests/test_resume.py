"""`DarexStrategy(checkpoint=...)`: a process ends at any moment, and another one goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apps import BASE, numpy_app
from federations import listening
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, Result
from test_saveable import CLIENTS, MAKE, Pair, Residual, bits, fedavg

import fl_darex.strategies.resumed as resumed_module
from fl_darex.clients import DarexMod
from fl_darex.errors import ConfigError
from fl_darex.files.checkpoint import Checkpoint
from fl_darex.files.model_cache import ModelCache
from fl_darex.flower.grids import GridView
from fl_darex.flower.records import to_record
from fl_darex.simulation.in_process import InProcessGrid
from fl_darex.strategies import Average, Checkpoints, DarexStrategy
from fl_darex.strategies.averaging import Average as Mean

ROUNDS = 5


class Power(BaseException):
    """What nobody catches, as a power cut."""


class Dying(InProcessGrid):
    """Clients in a process that ends as it hands out a message to train: that one, if any."""

    def __init__(self, dies: int = 0) -> None:
        super().__init__(numpy_app([DarexMod(methods=[Residual()])]), CLIENTS)
        self._dies, self.trained = dies, 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        listed = list(messages)
        ids = []
        for message in listed:
            if message.content.array_records or self.trained:
                self.trained += 1
            if self._dies and self.trained == self._dies:
                raise Power
            ids += super().push_messages([message])
        return ids


def run(strategy: DarexStrategy, grid: Any = None, rounds: int = ROUNDS, **more: Any) -> Result:
    grid = grid or Dying()
    return strategy.start(grid, to_record(BASE), num_rounds=rounds, timeout=60, **more)


def told(result: Result) -> list[Any]:
    """All that a result says, model and metrics of every round."""
    parts = (
        result.train_metrics_clientapp,
        result.evaluate_metrics_clientapp,
        result.evaluate_metrics_serverapp,
    )
    return [bits(result.arrays), *({n: dict(m) for n, m in part.items()} for part in parts)]


def size(round_: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"size": float(sum(np.abs(a.numpy()).sum() for a in arrays.values()))})


def die(make: Any, folder: Path, at: int, **more: Any) -> None:
    with suppress(Power):
        run(make(checkpoint=folder), Dying(at), **more)
        raise AssertionError("it did not die")


@pytest.mark.parametrize("name", MAKE)
def test_a_process_that_ends_again_and_again_comes_to_the_same_bits(
    name: str, tmp_path: Path
) -> None:
    make = MAKE[name]
    whole = make()
    expected = told(run(whole, evaluate_fn=size))
    # Each gets a little further; messages to train are 4 a round, and some are sent again.
    for at in (3, 9, 7):
        die(make, tmp_path, at, evaluate_fn=size)
    last = make(checkpoint=tmp_path)
    seen: list[int] = []

    def watched(round_: int, arrays: ArrayRecord) -> MetricRecord:
        seen.append(round_)
        return size(round_, arrays)

    assert told(run(last, evaluate_fn=watched)) == expected
    assert last.ledger.entries == whole.ledger.entries
    assert (last.q, last.counted, last.rho) == (whole.q, whole.counted, whole.rho)
    assert seen == [5] or seen == [4, 5]  # what was measured before is not measured again
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_what_came_after_the_last_checkpoint_is_done_again(tmp_path: Path) -> None:
    make = MAKE["clients remember"]
    expected = told(run(make()))
    for every in (2, 3, 9):
        settings = Checkpoints(tmp_path / str(every), every=every)
        with suppress(Power):
            run(make(checkpoint=settings), Dying(4 * 3 + 4))
        assert (tmp_path / str(every) / "state.darex").exists() == (every < 9)
        assert told(run(make(checkpoint=settings))) == expected


def test_clients_keep_their_models_over_an_interrupt_and_not_over_the_end(tmp_path: Path) -> None:
    first = MAKE["average"](checkpoint=tmp_path)
    with pytest.raises(Power):
        run(first, Dying(10))
    cache = ModelCache(first._broadcast.run)
    assert cache.folder.is_dir()
    second = MAKE["average"](checkpoint=tmp_path)
    run(second)
    assert not cache.folder.exists()
    assert {entry.kind for entry in second.ledger.entries} == {"handshake", "train"}  # none lacked


def test_an_error_of_the_app_is_an_interrupt_too(tmp_path: Path) -> None:
    def broken(round_: int, arrays: ArrayRecord) -> MetricRecord | None:
        if round_ == 3:
            raise ValueError("no disk")
        return None

    expected = told(run(MAKE["adam"]()))
    with pytest.raises(ValueError, match="no disk"):
        run(MAKE["adam"](checkpoint=tmp_path), evaluate_fn=broken)
    assert told(run(MAKE["adam"](checkpoint=str(tmp_path)))) == expected


def test_what_else_later_rounds_depend_on_is_kept_beside_it(tmp_path: Path) -> None:
    def averaged(grid: Any, **more: Any) -> list[bytes]:
        average = Average("uniform")
        settings = Checkpoints(tmp_path, also={"average": average}) if more else None
        found: dict[int, ArrayRecord] = {}

        def evaluate(round_: int, arrays: ArrayRecord) -> None:
            found[round_] = average.after(round_, arrays)

        run(MAKE["average"](checkpoint=settings), grid, evaluate_fn=evaluate)
        return [array.data for array in found[ROUNDS].values()]

    expected = averaged(Dying())
    with pytest.raises(Power):
        averaged(Dying(14), checkpoint=True)
    assert averaged(Dying(), checkpoint=True) == expected


def supernodes(clients: Dying) -> GridView:
    """Clients that outlive the server's process, and keep their states to themselves."""
    return GridView(clients)


def test_clients_that_are_ahead_of_the_checkpoint_go_on_from_what_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = told(run(MAKE["clients remember"]()))
    clients = Dying(4 * 2 + 3)
    with pytest.raises(Power):
        run(MAKE["clients remember"](checkpoint=tmp_path), supernodes(clients))
    clients._dies = 0  # two have trained round 3, and the server knows nothing of it
    assert told(run(MAKE["clients remember"](checkpoint=tmp_path), supernodes(clients))) == expected
    clients, settings = Dying(4 * 3 + 3), Checkpoints(tmp_path, every=2)
    with pytest.raises(Power):
        run(MAKE["clients remember"](checkpoint=settings), supernodes(clients))
    clients._dies = 0  # it is two rounds behind some of them
    with listening(caplog):
        again = run(MAKE["clients remember"](checkpoint=settings), supernodes(clients))
    assert len(again.train_metrics_clientapp) == ROUNDS
    assert "what was kept then is not here; it begins with nothing kept" in caplog.text


def test_on_ray_the_states_of_clients_come_back_too(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from fl_darex.simulation import RayGrid, Resources

    expected = told(run(MAKE["clients remember"]()))
    die(MAKE["clients remember"], tmp_path, 10)
    with RayGrid("residual_clients:app", CLIENTS, Resources(actors=1)) as grid:
        assert told(run(MAKE["clients remember"](checkpoint=tmp_path), grid)) == expected


class Adventure(FedAvg):
    """A `start` of one's own, that keeps the best round."""

    def start(self, grid: Any, initial_arrays: Any, num_rounds: int = 3, **more: Any) -> Any:  # type: ignore[override]
        best, arrays, asked = (0, -1.0), initial_arrays, []
        for round_ in range(1, num_rounds + 1):
            messages = list(self.configure_train(round_, arrays, more["train_config"], grid))
            asked.append(len(messages))
            replies = grid.send_and_receive(messages, timeout=60)
            after, metrics = self.aggregate_train(round_, replies)
            arrays = after if after is not None else arrays
            best = max(best, (round_, metrics["loss"]), key=lambda pair: pair[1])
        return best, bits(arrays), asked


def test_a_start_of_ones_own_goes_through_all_rounds_and_asks_in_the_later_ones(
    tmp_path: Path,
) -> None:
    from flwr.app import ConfigRecord

    def go(grid: Dying, folder: Path | None) -> Any:
        strategy = DarexStrategy(fedavg(Adventure), p=0.9, seed=3, checkpoint=folder)
        return run(strategy, grid, train_config=ConfigRecord())

    expected = go(Dying(), None)
    with pytest.raises(Power):
        go(Dying(14), tmp_path)
    best, model, asked = go(Dying(), tmp_path)
    assert (best, model) == expected[:2]
    assert asked == [0, 0, 0, 4, 4] and expected[2] == [4] * 5


FOREIGN = {
    "p": (
        dict(p=0.8),
        "downlink.keep is 858993459, was 429496730; uplink.keep is 858993459, was 429496730",
    ),
    "seed": (dict(seed=4), "uplink.seed is 4, was 3"),
    "down": (dict(downlink="server"), "downlink.policy is 'server', was 'update'"),
    "clip": (dict(clip=1.0), "clip is 1.0, was None"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_checkpoint_of_other_settings_is_refused(what: str, tmp_path: Path) -> None:
    die(MAKE["average"], tmp_path, 10)
    changed, said = FOREIGN[what]
    other = DarexStrategy(fedavg(), **{"p": 0.9, "seed": 3, "checkpoint": tmp_path} | changed)
    with pytest.raises(ConfigError, match=f"of another run: {said}; go on with the same settings"):
        run(other)
    run(MAKE["average"](checkpoint=tmp_path))  # it is still there


def test_a_checkpoint_of_another_model_strategy_or_shorter_run_is_refused(tmp_path: Path) -> None:
    die(MAKE["average"], tmp_path, 10)
    with pytest.raises(ConfigError, match="strategy is 'FedAdam', was 'FedAvg'"):
        run(DarexStrategy(fedavg(FedAdam), p=0.9, seed=3, checkpoint=tmp_path))
    with pytest.raises(ConfigError, match=r"1 rounds are asked for, and the checkpoint .* is of r"):
        run(MAKE["average"](checkpoint=tmp_path), rounds=1)
    other = {name: array + 1 for name, array in BASE.items()}
    with pytest.raises(ConfigError, match="another run: the model before round 1 is "):
        MAKE["average"](checkpoint=tmp_path).start(Dying(), to_record(other), num_rounds=5)


def test_a_torn_checkpoint_is_refused_and_nobody_is_asked(tmp_path: Path) -> None:
    die(MAKE["average"], tmp_path, 10)
    path = tmp_path / "state.darex"
    path.write_bytes(path.read_bytes()[:-100])
    grid = Dying()
    with pytest.raises(ConfigError, match=r"damaged \(its checksum is wrong\); remove it"):
        run(MAKE["average"](checkpoint=tmp_path), grid)
    assert grid.trained == 0
    path.unlink()
    assert told(run(MAKE["average"](checkpoint=tmp_path))) == told(run(MAKE["average"]()))


def test_a_sound_checkpoint_of_other_parts_is_refused_in_a_line(tmp_path: Path) -> None:
    die(MAKE["average"], tmp_path, 10)
    file = Checkpoint(tmp_path)
    facts, state = file.load() or ({}, {})
    del state["rounds"]["ledger"]["over"][0]["kinds"]
    file.save(facts, state)
    said = r"means nothing to this one, .* \(KeyError: 'kinds'\); go on with the version"
    with pytest.raises(ConfigError, match=said):
        run(MAKE["average"](checkpoint=tmp_path))


def test_more_rounds_than_before_go_on_as_one_longer_run(tmp_path: Path) -> None:
    die(MAKE["adam"], tmp_path, 10, rounds=3)
    found = told(run(MAKE["adam"](checkpoint=tmp_path), rounds=7))
    assert found == told(run(MAKE["adam"](), rounds=7))


def test_a_finished_folder_can_be_kept_and_its_last_round_is_done_again(tmp_path: Path) -> None:
    settings = Checkpoints(tmp_path, keep=True)
    expected = told(run(MAKE["adam"](checkpoint=settings)))
    grid = Dying()
    assert told(run(MAKE["adam"](checkpoint=settings), grid)) == expected
    assert grid.trained == 8  # the end took away what they held, so all are sent the model again


def test_a_strategy_made_with_other_settings_goes_on_with_the_old_ones_and_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def adam(eta: float) -> DarexStrategy:
        return DarexStrategy(fedavg(FedAdam, eta=eta), p=0.9, seed=3, checkpoint=tmp_path)

    expected = told(run(adam(0.1)))
    die(lambda checkpoint: adam(0.1), tmp_path, 10)
    with listening(caplog):
        assert told(run(adam(0.2))) == expected
    said = "goes on with the settings of the checkpoint: FedAdam.eta = 0.1 (not 0.2)"
    assert said in caplog.text


def test_another_version_of_fl_darex_is_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumed_module, "__version__", "0.0.1")
    die(MAKE["average"], tmp_path, 10)
    monkeypatch.undo()
    with listening(caplog):
        run(MAKE["average"](checkpoint=tmp_path))
    assert "was written by fl-darex 0.0.1, and this is " in caplog.text


def test_what_a_strategy_remembers_beside_plain_values_is_named_or_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inner = fedavg()
    inner.draws = np.random.default_rng(1)  # type: ignore[attr-defined]
    with listening(caplog):
        run(DarexStrategy(inner, p=0.9, checkpoint=tmp_path), rounds=1)
    assert "neither number, text nor array: FedAvg.draws (Generator);" in caplog.text
    inner.limits = Pair(1, 2.0)  # type: ignore[attr-defined]
    said = "FedAvg remembers something that no checkpoint can hold: layers.0.limits is a Pair"
    with pytest.raises(ConfigError, match=said):
        run(DarexStrategy(inner, p=0.9, checkpoint=tmp_path), rounds=1)


def test_a_checkpoint_that_cannot_be_written_is_a_line_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fl_darex.files.atomic.os.fsync", full)
    with listening(caplog):
        found = told(run(MAKE["average"](checkpoint=tmp_path)))
    assert found == told(run(MAKE["average"]()))
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert list(dict.fromkeys(line.partition(" (")[0] for line in lines)) == [
        f"round {n}: no checkpoint can be written to {str(tmp_path)!r}" for n in (1, 2, 3, 4)
    ]


def test_two_runs_with_one_folder_at_once_are_refused(tmp_path: Path) -> None:
    def second(round_: int, arrays: ArrayRecord) -> None:
        with pytest.raises(ConfigError, match="a run that goes on in another process"):
            run(MAKE["average"](checkpoint=tmp_path))

    run(MAKE["average"](checkpoint=tmp_path), rounds=1, evaluate_fn=second)


def test_settings_of_another_kind_are_refused() -> None:
    for wrong, said in (
        (dict(folder=3), "folder must be a folder's path, got 3"),
        (dict(folder="x", every=1.5), "every must be a number of rounds, 1 or more"),
        (dict(folder="x", also={"a": 1}), r"also\['a'\] must be something with state and restore"),
    ):
        with pytest.raises(TypeError, match=said):
            Checkpoints(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every must be a number of rounds, 1 or more, got 0"):
        Checkpoints("x", every=0)
    with pytest.raises(TypeError, match="folder must be a folder's path, got True"):
        DarexStrategy(fedavg(), checkpoint=True)  # type: ignore[arg-type]
    assert Average is Mean
