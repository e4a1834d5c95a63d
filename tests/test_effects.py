"""Settings that do nothing in a run: refused on the command line, named where a file has them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fl_darex.cli import app as command
from fl_darex.clients.client_app import app
from fl_darex.commands.settings import Engine, read_settings
from fl_darex.config import RunConfig, known_keys, make_config, read_file
from fl_darex.config.effects import USES
from fl_darex.config.idle import ENGINES, without_effect
from fl_darex.errors import ConfigError
from fl_darex.observers.run_folder import RunFolder
from fl_darex.simulation import simulate_in_process
from fl_darex.strategies.server_app import make_app

ROOT = Path(__file__).resolve().parent.parent
ALWAYS = """
task.name task.model task.train-examples task.tuning-examples task.text-columns task.label-column
federation.clients federation.clients-per-round federation.rounds federation.partition
federation.seed federation.evaluate federation.min-replies federation.checkpoint-every
train.optimizer train.lr train.local-steps train.local-epochs train.batch-size train.precision
train.grad-accumulation train.gradient-checkpointing train.max-grad-norm train.warmup
train.schedule train.threads train.adapter
compress.method compress.downlink server.strategy server.average resources.num-gpus
train.dense-lr compress.budget
""".split()
TEXT = {"task.name": "text-classification"}
CAUSAL = {"task.name": "causal-lm"}
DENSE = {"compress.method": "dense"}
DENSE_BOTH = DENSE | {"compress.downlink": "dense"}

# The key; settings with which it does nothing; settings with which it counts; what it is for.
ROWS = [
    ("task.dataset", {}, TEXT, "brings its own data"),
    ("task.subset", {}, TEXT, "brings its own data"),
    ("task.holdout", {}, TEXT, "brings its own data"),
    ("task.max-length", {}, TEXT, "task.name = 'text-classification' or 'causal-lm'"),
    ("task.max-length", {"task.name": "image-classification"}, CAUSAL, "task.name = "),
    ("task.template", TEXT, CAUSAL, "task.name = 'causal-lm'"),
    ("task.packing", TEXT, CAUSAL, "task.name = 'causal-lm'"),
    ("task.test", TEXT, CAUSAL, "task.name = 'causal-lm'"),
    ("task.max-new-tokens", CAUSAL, CAUSAL | {"task.metric": "exact-match"}, "'exact-match'"),
    ("task.metric", {"federation.evaluate": "none"}, {}, "runs that measure something"),
    ("task.eval-examples", {"federation.evaluate": "none"}, {}, "federation.evaluate = "),
    ("train.group-by-length", {}, TEXT, "texts: task.name = 'text-classification'"),
    ("train.group-by-length", {}, CAUSAL | {"task.packing": True}, "or 'causal-lm'"),
    (
        *("federation.evaluate-every", {"federation.evaluate": "clients"}, {}),
        "federation.evaluate = 'server'",
    ),
    (
        *("federation.alpha", {}, {"federation.partition": "dirichlet"}),
        "federation.partition = 'dirichlet'",
    ),
    (
        *("federation.classes-per-client", {}, {"federation.partition": "pathological"}),
        "federation.partition = 'pathological'",
    ),
    (
        "federation.partition-column",
        {},
        {"federation.partition": "natural", "federation.partition-column": "who"},
        "federation.partition = 'natural'",
    ),
    (
        "train.eval-batch-size",
        {"federation.evaluate": "none"},
        {"federation.evaluate": "none", "compress.q": "q-e"},
        "runs that measure something",
    ),
    (
        "train.eval-batch-size",
        {"federation.evaluate": "none", "compress.q": "curvature"},
        {"federation.evaluate": "none", "compress.q": "group-server-validation"},
        "but 'curvature'",
    ),
    ("train.delta-decay", {"train.optimizer": "adamw"}, {}, "train.optimizer = 'adamr'"),
    ("train.norm", {"train.optimizer": "adamw"}, {}, "train.optimizer = 'adamr'"),
    ("train.norm", {"train.delta-decay": 0}, {}, "train.delta-decay above 0"),
    ("train.anchor", {"train.optimizer": "adamw"}, {}, "train.optimizer = 'adamr'"),
    ("train.weight-decay", {}, {"train.optimizer": "adamw"}, "train.optimizer = 'adamw'"),
    ("train.lora-alpha", {}, {"train.lora-rank": 2}, "train.lora-rank of 1 or more"),
    ("train.lora-dropout", {}, {"train.lora-rank": 2}, "train.lora-rank of 1 or more"),
    ("train.lora-targets", {}, {"train.lora-rank": 2}, "train.lora-rank of 1 or more"),
    ("train.lora-rank", {"train.adapter": "vera"}, {}, "train.adapter = 'auto', or an adapter"),
    ("train.lora-rank", {"train.adapter": "none"}, {"train.adapter": "unilora"}, "has a rank"),
    (
        "train.lora-alpha",
        {"train.adapter": "unilora"},
        {"train.adapter": "lora-xs"},
        "'lora', 'ffa",
    ),
    ("train.lora-dropout", {"train.adapter": "fourierft"}, {"train.adapter": "vera"}, "'vera'"),
    ("train.lora-targets", {"train.adapter": "bitfit"}, {"train.adapter": "ia3"}, "'ia3'"),
    ("train.adapter-size", {}, {"train.adapter": "vera"}, "'unilora', 'vera', 'fourierft'"),
    ("train.adapter-size", {"train.lora-rank": 2}, {"train.adapter": "fourierft"}, "'fourierft'"),
    ("compress.lora", {}, {"train.lora-rank": 2}, "train.lora-rank of 1 or more"),
    ("compress.lora", {"train.adapter": "vera"}, {"train.adapter": "lora"}, "adapter = 'lora'"),
    ("compress.p", DENSE, DENSE | {"compress.downlink": "server"}, "that drops something"),
    (
        "compress.p",
        DENSE | {"compress.downlink": "server", "compress.downlink-p": 0.5},
        {},
        "drops",
    ),
    ("compress.q", DENSE, {"compress.method": "magnitude"}, "not 'dense'"),
    ("compress.calibration-examples", {}, {"compress.q": "q-v"}, "'q-v', 'q-e', 'layer-q-v'"),
    ("compress.calibration-examples", {}, {"compress.method": "wanda"}, "'wanda'"),
    ("compress.calibration-examples", {}, {"compress.q": "curvature"}, "'curvature'"),
    ("compress.mask", {"compress.method": "magnitude"}, {}, "draws what survives"),
    ("compress.mask", {"compress.p": 0}, {}, "compress.p above 0"),
    ("compress.count", {"compress.method": "wanda"}, {}, "draws what survives"),
    ("compress.rotate", {"compress.method": "magnitude"}, {}, "draws what survives"),
    ("compress.rotate", {"compress.p": 0}, {}, "compress.p above 0"),
    ("train.masked", {"compress.p": 0}, {}, "compress.p above 0"),
    ("train.masked", DENSE, {"compress.method": "structured"}, "draws what survives"),
    ("compress.count", {"compress.mask": "disjoint"}, {}, "whose count is always exact"),
    ("compress.values", DENSE_BOTH, DENSE, "packets"),
    ("compress.scale", {}, {"compress.values": "eden2"}, "compress.values = 'eden1' to 'eden4'"),
    ("compress.values", DENSE | {"compress.downlink-values": "fp32"}, {}, "packets"),
    ("compress.dense-below", DENSE_BOTH, DENSE, "packets"),
    ("compress.downlink-p", {}, {"compress.downlink": "server"}, "compress.downlink = 'server'"),
    ("compress.downlink-values", {"compress.downlink": "dense"}, {}, "'update' or 'server'"),
    (
        "compress.scope",
        {},
        {"compress.method": "wanda"},
        "'magnitude' or 'wanda' or 'topk' or 'dgc'",
    ),
    ("compress.columns", {}, {"compress.method": "structured"}, "compress.method = 'structured'"),
    (
        *("compress.step", {}),
        *({"compress.method": "signsgd", "compress.p": 0, "compress.values": "sign"}, "'signsgd'"),
    ),
    ("compress.decay", {}, {"compress.method": "sparseloco"}, "compress.method = 'sparseloco'"),
    ("compress.chunk", {}, {"compress.method": "sparseloco"}, "compress.method = 'sparseloco'"),
    ("compress.momentum", {}, {"compress.method": "dgc"}, "compress.method = 'dgc'"),
    ("compress.warmup-rounds", {}, {"compress.method": "dgc"}, "compress.method = 'dgc'"),
    (
        *("compress.rank", {}),
        *({"compress.method": "powersgd", "compress.p": 0}, "compress.method = 'powersgd'"),
    ),
    ("compress.feedback", {}, {"compress.method": "topk"}, "compress.method = 'topk'"),
    ("server.lr", {}, {"server.strategy": "fedavgm"}, "'fedavgm' or 'fedadam'"),
    ("server.momentum", {"server.strategy": "fedadam"}, {"server.strategy": "fedavgm"}, "fedavgm"),
    ("server.beta-1", {"server.strategy": "fedavgm"}, {"server.strategy": "fedadam"}, "fedadam"),
    ("server.beta-2", {}, {"server.strategy": "fedadam"}, "server.strategy = 'fedadam'"),
    ("server.tau", {}, {"server.strategy": "fedadam"}, "server.strategy = 'fedadam'"),
    (
        *("server.average-from", {}, {"server.average": "uniform"}),
        "server.average = 'uniform' or 'ema'",
    ),
    (
        *("server.average-decay", {"server.average": "uniform"}, {"server.average": "ema"}),
        "server.average = 'ema'",
    ),
    (
        *("server.validation-examples", {"compress.q": "q-e"}),
        *({"compress.q": "server-validation"}, "compress.q = 'server-validation'"),
    ),
    (
        *("server.validation-examples", {"compress.q": "curvature"}),
        *({"compress.q": "group-server-validation"}, "or 'group-server-validation'"),
    ),
]
ON_ENGINES = [
    ("federation.min-clients", "ray", "deployment"),
    ("federation.resume", "local", "deployment"),
    ("federation.timeout", "local", "ray"),
    ("resources.num-cpus", "local", "flower"),
    ("resources.actors", "flower", "ray"),
    ("resources.ray-address", "flower", "ray"),
    ("resources.classes", "local", "ray"),
]


def idle(settings: dict[str, object], engine: str = "ray") -> dict[str, str]:
    return without_effect(make_config(settings), engine)


@pytest.mark.parametrize(("key", "without", "with_it", "words"), ROWS, ids=lambda v: str(v)[:40])
def test_a_key_does_nothing_where_nothing_asks_for_it_and_counts_elsewhere(
    key: str, without: dict[str, object], with_it: dict[str, object], words: str
) -> None:
    assert words in idle(without)[key]
    assert key not in idle(with_it)


@pytest.mark.parametrize(("key", "without", "with_it"), ON_ENGINES)
def test_some_keys_are_for_some_engines(key: str, without: str, with_it: str) -> None:
    assert key in idle({}, without)
    assert key not in idle({}, with_it)


def test_every_key_is_either_in_the_table_or_counts_in_every_run() -> None:
    sometimes = {key for use in USES for key in use.keys} | set(ENGINES)
    assert sometimes | set(ALWAYS) == set(known_keys())
    assert not sometimes & set(ALWAYS)
    assert sometimes == {key for key, *_ in ROWS} | {key for key, *_ in ON_ENGINES}


def test_settings_of_somebodys_own_are_never_called_idle() -> None:
    own = {"task.name": "own_task:spirals", "compress.method": "topk:TopK"}
    own |= {"compress.downlink": "own_downlink:RandomPart"}
    found = idle(own)
    wanted = ["task.max-length", "task.packing", "compress.calibration-examples", "compress.p"]
    assert not {*wanted, "compress.downlink-p", "compress.fraction"} & set(found)
    assert "compress.scope" in found  # of other methods


# --- what a person is told ------------------------------------------------------------------------


def test_an_override_that_does_nothing_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[train]\noptimizer = 'adamw'\n")
    for name in ("run", "check"):
        done = CliRunner().invoke(command, [name, str(path), "train.delta-decay=0.1"])
        assert done.exit_code == 2
        assert done.output == (
            "error: train.delta-decay = 0.1 has no effect in this run: it is for train.optimizer = "
            "'adamr'; leave it out\n"
        )
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.toml"]


def test_an_override_may_take_the_effect_from_a_key_of_the_file_which_is_then_named(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[federation]\npartition = 'dirichlet'\nalpha = 0.3\n")
    assert read_settings(path, [], Engine.ray)[1] == []
    _, said = read_settings(path, ["federation.partition=iid"], Engine.ray)
    assert said == [
        "federation.alpha = 0.3 has no effect in this run: it is for federation.partition = "
        "'dirichlet'"
    ]


def test_the_engine_decides_too(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("")
    read_settings(path, ["resources.actors=1"], Engine.ray)
    with pytest.raises(ConfigError, match=r"resources\.actors = 1 has no effect .* engine 'ray'"):
        read_settings(path, ["resources.actors=1"], Engine.local)


def test_a_run_folders_configuration_names_only_what_somebody_set(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(make_config({"federation.alpha": 0.7}).to_toml())
    _, said = read_settings(path, [], Engine.ray)
    assert [line.partition(" ")[0] for line in said] == ["federation.alpha"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.stem)
def test_every_key_of_a_preset_does_something(path: Path) -> None:
    given = read_file(path)
    assert not set(given) & set(without_effect(make_config(given), "ray"))
    assert read_settings(path, [], Engine.ray)[1] == []


# --- it is true -----------------------------------------------------------------------------------

SMALL = {"federation.clients": 2, "federation.rounds": 2, "train.local-steps": 2}
OTHER = {
    "task.metric": "matthews",
    "train.norm": "l1",
    "train.anchor": "pretrained",
    "train.lora-targets": "all-linear",
    "compress.mask": "round",
    "compress.count": "exact",
    "compress.values": "int8",
    "compress.downlink-values": "fp32",
    "compress.scope": "row",
    "compress.q": 0.5,
    "compress.downlink-p": 0.3,
    "compress.dense-below": 500,
    "federation.partition-column": "who",
    "federation.resume": "runs/1",
    "resources.classes": "0: num-cpus=0.5",
}
REFUSED = {
    *("task.dataset", "task.subset", "task.holdout", "train.weight-decay", "compress.lora"),
    *("task.max-new-tokens", "task.template", "task.packing", "task.test"),
    *("compress.scale", "resources.ray-address"),
}
"""These cannot be set to anything else where they do nothing: another check refuses them."""


def model(folder: Path, settings: dict[str, object]) -> bytes:
    simulate_in_process(make_app(make_config(settings), [RunFolder(folder)]), app, clients=2)
    assert json.loads((folder / "summary.json").read_text())["failures"] == 0
    return (folder / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "base",
    [
        {},
        {"compress.method": "dense", "compress.downlink": "dense", "train.optimizer": "adamw"},
        {"compress.method": "magnitude", "federation.evaluate": "none"},
        {"compress.p": 0, "train.delta-decay": 0, "server.strategy": "fedavgm"},
    ],
    ids=lambda base: " ".join(map(str, base.values())),
)
def test_all_that_is_said_to_do_nothing_does_nothing(
    tmp_path: Path, base: dict[str, object]
) -> None:
    defaults = RunConfig().flat()
    keys = set(idle(SMALL | base, "local")) - REFUSED
    changed = {key: OTHER.get(key) or _another(defaults[key]) for key in keys}
    if base.get("compress.method") == "magnitude":
        for key in ("compress.mask", "compress.rotate", "train.masked"):  # refused for it
            del changed[key]
    assert len(changed) > 10
    for key, value in changed.items():
        make_config(SMALL | base | {key: value})
    assert model(tmp_path / "a", SMALL | base) == model(tmp_path / "b", SMALL | base | changed)


def _another(value: object) -> object:
    if isinstance(value, bool):
        return not value
    assert isinstance(value, int | float), value
    return value / 2 + 0.2 if isinstance(value, float) else value + 1


def test_a_run_of_flowers_command_names_what_somebody_changed_and_does_nothing() -> None:
    from fl_darex.strategies.server_app import idle_remarks

    (line,) = idle_remarks(make_config({"train.optimizer": "adamw", "train.delta-decay": 0.3}))
    assert line.startswith("train.delta-decay = 0.3 has no effect in this run: it is for")
    assert idle_remarks(make_config({"train.optimizer": "adamw"})) == []
    # What is for a deployment or an engine is not known to be idle there.
    assert idle_remarks(make_config({"federation.min-clients": 2, "resources.actors": 1})) == []
