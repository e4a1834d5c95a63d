"""The files of examples/extend: a method, a coding, a task and a downlink of somebody's own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apps import BASE, numpy_app
from federations import fedavg, listening, rounds
from flwr.app import Context, Message, RecordDict
from own_coding import Ternary
from own_downlink import RandomPart
from topk import TopK
from typer.testing import CliRunner

from fl_darex.cli import app as command
from fl_darex.clients import DarexMod
from fl_darex.clients.client_app import app as client_app
from fl_darex.compression import METHODS, Uplink
from fl_darex.config import RunConfig, load_config, make_config
from fl_darex.errors import ConfigError, DeltaError, PacketError
from fl_darex.flower.private import adopt_run
from fl_darex.flower.records import to_arrays
from fl_darex.masks import words
from fl_darex.observers.run_folder import RunFolder
from fl_darex.simulation.in_process import InProcessGrid, simulate_in_process
from fl_darex.strategies import DarexStrategy
from fl_darex.strategies.server_app import make_app
from fl_darex.training.settings import settings_of, settings_record
from fl_darex.wire.codings import CODINGS, scales
from fl_darex.wire.codings.coding import noise_of

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "examples" / "extend").glob("*.py"))
SPIRALS = {
    "task.name": "own_task:spirals",
    "federation.clients": 4,
    "federation.rounds": 3,
    "train.local-steps": 4,
    "train.lr": 0.01,
    "compress.p": 0.5,
    "resources.actors": 2,
}
OWN: dict[str, dict[str, Any]] = {
    "task": {},
    "method": {"compress.method": "topk:TopK", "compress.fraction": 0.05},
    "coding": {"compress.values": "own_coding:Ternary"},
    "downlink": {"compress.downlink": "own_downlink:RandomPart", "compress.downlink-p": 0.25},
}
OWN["all"] = {key: value for own in OWN.values() for key, value in own.items()}
ENGINES = """
import json, sys
from pathlib import Path

from fl_darex.clients.client_app import app
from fl_darex.config import make_config
from fl_darex.observers.run_folder import RunFolder
from fl_darex.simulation import Resources, simulate
from fl_darex.simulation.cluster import connect
from fl_darex.simulation.flower_engine import simulate_with_flower
from fl_darex.strategies.server_app import make_app

configs, out = json.loads(sys.argv[1]), Path(sys.argv[2])
resources = Resources(actors=2)
connect(resources)  # one Ray for all of the first engine's runs
client = "fl_darex.clients.client_app:app"
for name, values in configs.items():
    server = make_app(make_config(values), [RunFolder(out / "ray" / name)])
    simulate(server, client, clients=4, resources=resources)
# Flower's engine starts a Ray for each run, so here is the one run that has everything.
server = make_app(make_config(configs["all"]), [RunFolder(out / "flower" / "all")])
simulate_with_flower(server, app, clients=4, resources=resources)
"""


def run_locally(config: RunConfig, out: Path) -> RunFolder:
    folder = RunFolder(out)
    app = make_app(config, [folder])
    simulate_in_process(app, client_app, clients=config.federation.clients)
    return folder


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


# --- in runs of ours --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on Ray and on Flower's engine, in a process of their own."""
    out = tmp_path_factory.mktemp("engines")
    configs = json.dumps({name: SPIRALS | own for name, own in OWN.items()})
    path = os.pathsep.join([str(ROOT), str(FILES[0].parent)])
    done = subprocess.run(
        [sys.executable, "-c", ENGINES, configs, str(out)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
@pytest.mark.timeout(600)  # the first one waits for all runs
@pytest.mark.parametrize("name", OWN)
def test_each_runs_on_every_engine_to_the_same_bits(
    name: str, finished: Path, tmp_path: Path
) -> None:
    config = make_config(SPIRALS | OWN[name])
    local = run_locally(config, tmp_path / "local")
    assert local.summary()["failures"] == 0
    assert local.summary()["metric_name"] == "worst"
    for engine in ("ray", "flower") if name == "all" else ("ray",):
        assert weights(finished / engine / name) == weights(local.path), engine
    # The configuration that a run has written down is that of the run, own options and all.
    written = load_config(finished / "ray" / name / "config.toml")
    assert written == config == make_config(config.flat())
    again = run_locally(written, tmp_path / "again")
    assert weights(again.path) == weights(local.path)


def test_the_spirals_are_learned(tmp_path: Path) -> None:
    config = make_config(SPIRALS | {"train.local-steps": 40, "train.lr": 0.03})
    assert run_locally(config, tmp_path / "out").summary()["final_metric"] > 0.7


def test_an_own_option_is_overridden_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(make_config(SPIRALS | OWN["method"]).to_toml())
    config = load_config(path, ["compress.fraction=.25"])
    assert config.flat()["compress.fraction"] == 0.25
    assert config.compress.uplink(seed=0).options == {"fraction": 0.25}
    assert make_config({"compress.method": "topk:TopK"}).flat()["compress.fraction"] == 0.01


MISTAKES = {
    "a key of no section": (["?=1"], "unknown key '?'"),
    "an unknown option": (
        ["compress.method=topk:TopK", "compress.fractoin=0.1"],
        "unknown key 'compress.fractoin'; own options of method 'own-topk': fraction; did you mean "
        "'fraction'?",
    ),
    "an option of a method that is not there": (
        ["compress.fraction=0.1"],
        "unknown key 'compress.fraction'; did you mean",
    ),
    "a bad value": (
        ["compress.method=topk:TopK", "compress.fraction=2"],
        "compress.fraction = 2 is not allowed; it must be a number above 0 to 1",
    ),
    "no such module": (
        ["compress.method=topkk:TopK"],
        "compress.method = 'topkk:TopK' is not allowed; method 'topkk:TopK' cannot be imported: "
        "ModuleNotFoundError: No module named 'topkk'",
    ),
    "no such class": (["compress.values=own_coding:Binary"], "own_coding has no 'Binary'"),
    "a class of another kind": (
        ["compress.method=own_downlink:RandomPart"],
        "is no object of a class derived from fl_darex.compression.method.Method",
    ),
    "no class at all": (["compress.downlink=topk:left_over"], "is no object of a class derived"),
    "a class that needs more": (
        ["compress.method=topk:Option"],
        "method 'topk:Option' cannot be made: TypeError",
    ),
    "no such task": (["task.name=own_task:circles"], "own_task has no 'circles'"),
    "a Python name in place of a key": (
        ["compress.method=topk:TopK", "compress.downlink_p=0.5"],
        "unknown key 'compress.downlink_p'; did you mean 'compress.downlink-p'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line(mistake: str, tmp_path: Path) -> None:
    settings, said = MISTAKES[mistake]
    path = tmp_path / "own.toml"
    path.write_text("[federation]\nrounds = 1\n")
    done = CliRunner().invoke(command, ["run", str(path), *settings, "--out", str(tmp_path / "o")])
    assert done.exit_code == 2
    assert said in done.output and done.output.startswith("error: ")
    assert done.output.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["own.toml"]


# --- a message alone imports nothing ----------------------------------------------------------


def told(config: RunConfig, run_config: dict[str, Any]) -> RunConfig:
    adopt_run("settings")
    message = Message(RecordDict({"config": settings_record(config)}), 1, "train")
    return settings_of(message, Context(1, 1, {}, RecordDict(), run_config))


OWN_NAMES = {
    "task.name": "own_task:spirals",
    "compress.method": "topk:TopK",
    "compress.values": "own_coding:Ternary",
    "compress.downlink": "own_downlink:RandomPart",
    "compress.downlink-values": "own_coding:Ternary",
    "server.strategy": f"{__name__}:Same",
}


class Same(type(make_config({}).server.chosen)):  # type: ignore[misc]
    """An optimizer of one's own."""

    name = "same"


@pytest.mark.parametrize("key", OWN_NAMES)
def test_a_node_with_a_run_configuration_imports_only_what_that_names(key: str) -> None:
    config, name = make_config({key: OWN_NAMES[key]}), OWN_NAMES[key]
    assert told(config, {}) == config  # a simulation
    assert told(config, {key: name}) == config  # an app of one's own with few keys
    assert told(config, RunConfig().flat() | {key: name}) == config
    for other in (RunConfig().flat(), {key: "somewhere:else"}, {"rounds": 3}):
        with pytest.raises(ConfigError, match=f"names {key} = {name!r}, which would be imported"):
            told(config, other)


def test_settings_that_name_nothing_of_ones_own_reach_any_node() -> None:
    config = make_config({"compress.p": 0.5})
    assert told(config, {"rounds": 3}) == config
    assert told(config, {"compress.p": 0.9, "compress.method": "topk:TopK"}) == config


def test_a_run_configuration_with_few_keys_has_own_options() -> None:
    own = {"compress.method": "topk:TopK", "compress.fraction": 0.2}
    config = make_config(own)
    assert config.flat() == RunConfig().flat() | own
    assert told(config, own) == config


# --- in somebody's own app --------------------------------------------------------------------


def plugged_in(grid_app: Any, count: int = 3, **settings: Any) -> tuple[DarexStrategy, Any]:
    strategy = DarexStrategy(fedavg(), **settings)
    return strategy, rounds(strategy, InProcessGrid(grid_app, 4), count)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": TopK(), "fraction": 0.01},
        {"values": Ternary()},
        {"downlink": RandomPart(), "downlink_p": 0.5},
        {"method": TopK(), "values": Ternary(), "downlink": RandomPart()},
    ],
    ids=["method", "coding", "downlink", "all"],
)
def test_each_works_in_an_app_that_they_are_plugged_into(settings: dict[str, Any]) -> None:
    app = numpy_app([DarexMod(methods=[TopK()], codings=[Ternary()])])
    strategy, result = plugged_in(app, **settings)
    # A client that put another model together would refuse the next delivery.
    assert strategy.counted == 4
    assert any((array != BASE[name]).any() for name, array in to_arrays(result.arrays).items())


@pytest.mark.parametrize(
    ("settings", "argument"), [({"method": TopK()}, "methods"), ({"values": Ternary()}, "codings")]
)
def test_a_client_that_did_not_register_it_says_what_to_do(
    settings: dict[str, Any],
    argument: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app, known = numpy_app([DarexMod()]), [(table, dict(table)) for table in (METHODS, CODINGS)]

    def elsewhere(message: Message, context: Context) -> Message:
        with monkeypatch.context() as patch:  # as in a process of its own
            for table, rows in known:
                patch.setattr(table, "_rows", rows)
            return app(message, context)

    with listening(caplog), pytest.raises(DeltaError, match="in this round or any"):
        plugged_in(elsewhere, 1, **settings)
    assert f"give this client DarexMod({argument}=[...])" in caplog.text


def test_a_class_in_place_of_an_object_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"TopK'> is no object of a class derived from"):
        DarexMod(methods=[TopK])  # type: ignore[list-item]


def test_settings_are_the_same_keys_whatever_was_registered_before_they_are_read() -> None:
    code = "from fl_darex.config import known_keys; print(known_keys())"
    first = "from fl_darex.compression import METHODS; from topk import TopK; METHODS.add(TopK());"
    plain, after = (
        subprocess.run(
            [sys.executable, "-c", each],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        ).stdout
        for each in (code, first + code)
    )
    assert plain == after and "compress.scope" in plain


def test_options_beside_an_uplink_are_refused() -> None:
    uplink = Uplink.of("dare", 0.9)
    with pytest.raises(ValueError, match=r"uplink says everything about the way up; \['clipp'\]"):
        DarexStrategy(fedavg(), uplink=uplink, clipp=1.0)


def test_a_module_that_fails_for_want_of_an_attribute_is_told_from_one_without_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_on_import.py").write_text("import json\n\njson.nose\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be imported: AttributeError: .* has no attr"):
        make_config({"compress.method": "failing_on_import:TopK"})


# --- the coding -------------------------------------------------------------------------------


def written(numbers: np.ndarray, seed: int = 0) -> memoryview:
    return memoryview(Ternary().write(numbers, 0, noise_of(seed, 1, 0)))


@pytest.mark.parametrize("count", [0, 1, 4, 5, 255, 256, 257, 1003])
def test_any_part_of_ternary_numbers_is_read_and_each_is_none_or_its_scale(count: int) -> None:
    numbers = np.random.default_rng(count).normal(size=count).astype(np.float32)
    coding, data = Ternary(), written(numbers)
    assert len(data) == coding.size(count)
    whole = coding.read(data, count, 0, 0, count)
    tops = scales.read(data, 0, count)
    assert set(np.unique(np.abs(whole) / tops)) <= {0.0, 1.0}
    assert (whole * numbers >= 0).all()
    assert coding.largest(data, count, 0) == (tops.max() if count else 0)
    for start, end in ((0, count // 2), (count // 3, count), (count, count)):
        assert (coding.read(data, count, 0, start, end) == whole[start:end]).all()


def test_ternary_numbers_are_unbiased() -> None:
    numbers = np.random.default_rng(1).normal(size=300).astype(np.float32)
    numbers[:3] = 0, 1e-30, -1e-30
    draws, coding = 4000, Ternary()
    total = np.zeros(300)
    for seed in range(draws):
        total += coding.read(written(numbers, seed), 300, 0, 0, 300)
    top = scales.read(written(numbers), 0, 300).astype(np.float64)
    # Each draw is top with probability |x| / top; the chance itself is off by 2**-32 at most.
    deviation = np.sqrt(np.abs(numbers) * (top - np.abs(numbers)) / draws)
    assert (np.abs(total / draws - numbers) <= 5 * deviation + top * 2.0**-31).all()
    first, last = (words(noise_of(seed, 1, 0), 0, 2)[0] for seed in (0, draws - 1))
    assert first != last


@pytest.mark.parametrize(("at", "byte"), [(-1, 27), (-1, 255), (-2, 243), (1, 0x80)])
def test_bytes_that_nobody_writes_in_ternary_are_refused(at: int, byte: int) -> None:
    data = bytearray(written(np.ones(8, dtype=np.float32)))
    data[at] = byte
    with pytest.raises(PacketError, match="the packet holds a"):
        Ternary().largest(memoryview(bytes(data)), 8, 0)


# --- the files --------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_is_short_and_says_what_it_is(file: Path) -> None:
    text = file.read_text("utf-8")
    assert text.startswith('"""') and len(text.splitlines()) <= 60


def test_the_page_shows_what_is_in_the_files() -> None:
    page, texts = (ROOT / "docs" / "extend.md").read_text("utf-8"), [f.read_text() for f in FILES]
    plugged, *shown = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert "DarexMod(methods=[TopK()]" in plugged
    found = [[block in text for text in texts].index(True) for block in shown]
    assert sorted(found) == [0, 1, 2, 3]
    settings = re.findall(r"(?:compress|task)\.[a-z.-]+=([a-z_]+:\w+)", page)
    assert {*settings} == {name for name in (SPIRALS | OWN["all"]).values() if ":" in str(name)}


def test_there_are_four_files() -> None:
    names = ["own_coding.py", "own_downlink.py", "own_task.py", "topk.py"]
    assert [file.name for file in FILES] == names
