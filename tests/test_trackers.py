"""A run in TensorBoard, MLflow, Weights & Biases and trackio: what each of them then holds."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fl_darex.cli import app as command
from fl_darex.config import make_config
from fl_darex.errors import ConfigError
from fl_darex.flower.ledger import Entry
from fl_darex.flower.roster import HANDSHAKE
from fl_darex.observers import RoundReport, RunStart
from fl_darex.observers.guarded import Guarded
from fl_darex.observers.tracker import Tracker
from fl_darex.observers.trackers import TRACKERS, check_trackers, tracker

CONFIG = make_config({"federation.clients": 2, "federation.rounds": 2, "compress.p": 0.9})
START = RunStart(config=CONFIG, metric_name="accuracy", initial_metric=0.1, parameters=3)
# As a tracker is to show the two rounds below: 20 bytes of handshakes come first.
COMMON = {"clients": 2.0, "q": 0.1, "pull": 0.5, "rho": 0.75}
ROUNDS = [
    {"accuracy": 0.1},
    {
        **COMMON,
        **{"accuracy": 0.25, "loss": 2.0, "train_loss": 1.5, "failures": 0.0, "seconds": 1.5},
        **{"bytes/up": 100.0, "bytes/down": 200.0, "bytes/up_so_far": 100.0},
        **{"bytes/down_so_far": 200.0, "bytes/total_so_far": 320.0, "ratio": 4000 / 320},
    },
    {  # without an evaluation
        **COMMON,
        **{"train_loss": 1.5, "failures": 1.0, "seconds": 1.5, "test_accuracy": 0.5},
        **{"bytes/up": 300.0, "bytes/down": 400.0, "bytes/up_so_far": 400.0},
        **{"bytes/down_so_far": 600.0, "bytes/total_so_far": 1020.0, "ratio": 8000 / 1020},
    },
]


def reports() -> list[RoundReport]:
    common: dict[str, Any] = {"clients": 2, "q": 0.1, "pull": 0.5, "rho": 0.75, "train_loss": 1.5}
    common |= {"dense_up_bytes": 2000, "dense_down_bytes": 2000, "seconds": 1.5}
    one = {"up_bytes": 100, "down_bytes": 200, "metric": 0.25, "loss": 2.0, "failures": 0}
    two = {"up_bytes": 300, "down_bytes": 400, "metric": None, "loss": None, "failures": 1}
    return [
        RoundReport(round=1, **common, **one),
        RoundReport(round=2, **common, **two, test_metric=0.5),
    ]


def follow(observer: Any, rounds: int = 2) -> None:
    """Tell an observer of a run."""
    observer.started(START)
    for client in (0, 1):
        observer.replied(Entry(0, client, HANDSHAKE, down_bytes=4, up_bytes=6, failed=False))
    for report in reports()[:rounds]:
        observer.replied(Entry(report.round, 0, "train", down_bytes=9, up_bytes=9, failed=False))
        observer.round_closed(report, [], lambda folder: None)


class Kept:
    """A tracker that keeps what it is told; it fails where it is asked to."""

    def __init__(self, fails: str = "") -> None:
        self.told: list[Any] = []
        self._fails = fails

    def begin(self, settings: Any) -> Kept:
        self._tell("begin", settings)
        return self

    def log(self, numbers: Any, step: int) -> None:
        self._tell("log", step, numbers)

    def end(self, *given: Any) -> None:
        self._tell("end", *given)

    def _tell(self, what: str, *given: Any) -> None:
        self.told.append((what, *given))
        if what == self._fails:
            raise ConnectionError("no route\nto host")


def test_a_tracker_is_told_settings_rounds_with_totals_and_the_summary() -> None:
    kept = Kept()
    with Tracker("kept", kept.begin) as observer:
        follow(observer)
    (begin, settings), *logs, (end, status, reason, summary) = kept.told
    assert (begin, end) == ("begin", "end")
    assert settings["compress.p"] == 0.9 and settings["federation.rounds"] == 2
    assert [step for _, step, _ in logs] == [0, 1, 2]
    for (_, _, numbers), expected in zip(logs, ROUNDS, strict=True):
        assert numbers == pytest.approx(expected)
    assert (status, reason) == ("finished", "")
    assert summary["total_bytes"] == 1020 and summary["handshake_bytes"] == 20
    assert summary["total_ratio"] == pytest.approx(8000 / 1020)
    assert summary["failures"] == 1


def test_a_run_that_goes_on_is_recorded_with_what_was_sent_before_and_ends_as_finished() -> None:
    kept = Kept()
    first, second = reports()
    asked = tuple(
        Entry(0, one, HANDSHAKE, down_bytes=4, up_bytes=6, failed=False) for one in (0, 1)
    )
    with Tracker("kept", kept.begin) as observer:
        observer.started(replace(START, reports=(first,), handshake=asked))
        observer.round_closed(second, [], lambda folder: None)
    _, (_, step, numbers), (_, status, reason, summary) = kept.told
    assert (step, numbers) == (2, pytest.approx(ROUNDS[2]))
    assert (status, reason) == ("finished", "")
    assert summary["total_bytes"] == 1020 and summary["rounds"] == 2


@pytest.mark.parametrize(
    ("error", "rounds", "status", "reason"),
    [
        (None, 2, "finished", ""),
        (None, 1, "failed", "the run ended after 1 of 2 rounds"),
        (KeyboardInterrupt("SIGTERM"), 1, "interrupted", "SIGTERM"),
        (ValueError("too\nbad"), 1, "failed", "ValueError: too bad"),
    ],
)
def test_a_tracker_hears_how_a_run_ends_and_why(
    error: BaseException | None, rounds: int, status: str, reason: str
) -> None:
    kept = Kept()
    try:
        with Tracker("kept", kept.begin) as observer:
            follow(observer, rounds)
            if error is not None:
                raise error
    except (KeyboardInterrupt, ValueError) as raised:
        assert raised is error
    assert kept.told[-1][:3] == ("end", status, reason)
    assert kept.told[-1][3]["rounds"] == rounds


def test_a_run_that_never_began_is_not_in_a_tracker() -> None:
    kept = Kept()
    with pytest.raises(ConfigError), Tracker("kept", kept.begin):
        raise ConfigError("no such data")
    assert kept.told == []


@pytest.mark.parametrize(("fails", "told"), [("begin", 1), ("log", 2), ("end", 5)])
def test_a_tracker_that_fails_is_one_line_and_hears_no_more(fails: str, told: int) -> None:
    kept, said = Kept(fails), io.StringIO()
    handler, logger = logging.StreamHandler(said), logging.getLogger("flwr")
    logger.addHandler(handler)
    try:
        with Tracker("kept", kept.begin) as observer:
            follow(Guarded(observer))
    finally:
        logger.removeHandler(handler)
    assert len(kept.told) == told
    reason = "ConnectionError: no route to host"
    assert said.getvalue() == f"kept records no more of this run, which goes on: {reason}\n"


# --- the four -----------------------------------------------------------------------------------


def tensorboard_holds(folder: Path) -> tuple[dict[int, dict[str, float]], str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    rows: dict[int, dict[str, float]] = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            rows.setdefault(event.step, {})[name] = event.value
    settings, summary = (
        events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode()
        for tag in ("settings", "summary")
    )
    assert "| compress.p | 0.9 |" in settings
    assert "| total_bytes | 1020 |" in summary
    return rows, "finished" if "| status | finished |" in summary else "failed"


def mlflow_holds(folder: Path) -> tuple[dict[int, dict[str, float]], str]:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("fl-darex")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == folder.name and run.data.params["compress.p"] == "0.9"
    assert run.data.tags["summary.total_bytes"] == "1020"
    assert run.info.status == ("FINISHED" if run.data.tags["status"] == "finished" else "FAILED")
    rows: dict[int, dict[str, float]] = {}
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            rows.setdefault(metric.step, {})[name] = metric.value
    return rows, run.data.tags["status"]


def wandb_holds(folder: Path) -> tuple[dict[int, dict[str, float]], str]:
    """Read the file of a run that was offline: a log of LevelDB after seven bytes of its own."""
    import json

    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    data, place, whole = file.read_bytes(), 7, b""
    rows: dict[int, dict[str, float]] = {}
    summary: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:  # no header is cut by the end of a block
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind not in (1, 4):  # whole, or the last part
            continue
        record, whole = Record.FromString(whole), b""
        items = {
            "history": record.history.item,
            "summary": record.summary.update,
            "run": record.run.config.update,
        }.get(record.WhichOneof("record_type"), [])
        found = {
            item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items
        }
        if record.HasField("history"):
            numbers = {name: x for name, x in found.items() if not name.startswith("_")}
            rows[found["_step"]] = numbers
        elif record.HasField("summary"):
            summary |= found
        elif record.HasField("run"):
            settings |= found
            assert record.run.display_name == folder.name
        elif record.HasField("exit"):
            assert record.exit.exit_code == (0 if summary["status"] == "finished" else 1)
    assert settings["compress.p"] == 0.9 and summary["total_bytes"] == 1020
    return rows, summary["status"]


def trackio_holds(folder: Path) -> tuple[dict[int, dict[str, float]], str]:
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = Api().runs("fl-darex")
    assert run.name == folder.name and run.config["compress.p"] == 0.9
    *logs, last = SQLiteStorage.get_logs("fl-darex", folder.name)
    assert last["summary/total_bytes"] == 1020
    return {log.pop("step"): _numbers(log) for log in logs}, last["status"]


def _numbers(log: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in log.items() if isinstance(value, float)}


HOLDS = {
    "tensorboard": tensorboard_holds,
    "mlflow": mlflow_holds,
    "wandb": wandb_holds,
    "trackio": trackio_holds,
}


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which trackers keep all that they have."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_PROJECT": "fl-darex",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path


def test_every_tracker_is_tested() -> None:
    assert HOLDS.keys() == TRACKERS.keys()


@pytest.mark.filterwarnings("ignore")  # of other people's packages
@pytest.mark.parametrize("ends", ["finished", "failed"])
@pytest.mark.parametrize("name", HOLDS)
def test_a_tracker_holds_settings_rounds_and_the_end(
    name: str, ends: str, apart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed")
    if name == "trackio":  # it has read its folder's name when it was imported
        storage, utils = (
            __import__(f"trackio.{part}", fromlist=["x"]) for part in ("sqlite_storage", "utils")
        )
        for module in (storage, utils):
            monkeypatch.setattr(module, "TRACKIO_DIR", apart / "trackio")
    folder = apart / "my-run"
    folder.mkdir()
    try:
        with tracker(name, folder) as observer:
            follow(observer)
            if ends == "failed":
                raise RuntimeError("no memory")
    except RuntimeError as error:
        assert str(error) == "no memory"
    rows, status = HOLDS[name](folder)
    assert status == ends
    assert rows.keys() == {0, 1, 2}
    for step, expected in enumerate(ROUNDS):
        assert rows[step] == pytest.approx(expected, rel=1e-6)  # TensorBoard's are float32


# --- what cannot be -----------------------------------------------------------------------------


def test_a_tracker_that_is_not_installed_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in TRACKERS:
        monkeypatch.setitem(sys.modules, name, None)
        said = f"tracker '{name}' is not installed; pip install {name}, or 'fl-darex\\[{name}\\]'"
        with pytest.raises(ConfigError, match=said):
            tracker(name, tmp_path)
    config = tmp_path / "tiny.toml"
    config.write_text('[task]\nname = "digits"\n', "utf-8")
    out = tmp_path / "out"
    arguments = ["run", str(config), "--out", str(out), "--track", "mlflow"]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2 and "pip install mlflow" in done.output
    assert done.output.count("\n") == 1 and not out.exists()


def test_a_folder_of_a_trackers_name_is_not_the_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next((name for name in TRACKERS if find_spec(name) is None), None)
    if name is None:
        pytest.skip("all trackers are installed")
    (tmp_path / name).mkdir()  # W&B keeps offline runs in a folder called wandb
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=f"'{name}' is not installed"):
        check_trackers([name])


def test_a_tracker_that_nobody_knows_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'comet' is not known; known: tensorboard, mlflow, wan"):
        tracker("comet", tmp_path)


def test_wandb_without_a_key_is_refused_before_it_would_ask(monkeypatch: Any) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nowhere")
    if wandb.login(prompt=False, verify=False):
        pytest.skip("this machine has a key")
    with pytest.raises(ConfigError, match=r"run: wandb login, set WANDB_API_KEY, or keep"):
        check_trackers(["wandb"])
