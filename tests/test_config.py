"""The configuration: every key there and back, and one clear line for each mistake."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import papers
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fl_darex.adapters import ADAPTERS
from fl_darex.compression import METHODS, POLICIES
from fl_darex.config import (
    TASKS,
    RunConfig,
    known_keys,
    load_config,
    make_config,
)
from fl_darex.config.text import flatten, parse_override
from fl_darex.errors import ConfigError, DarexError
from fl_darex.flower.optimizers import OPTIMIZERS
from fl_darex.rescaling.rules import CURVATURE, PER_TENSOR, RULES, SERVER_RULES
from fl_darex.wire.codings import CODINGS

FIELDS = {
    f"{section}.{field.alias}": field
    for section, owner in RunConfig.model_fields.items()
    for field in owner.annotation.model_fields.values()
}
DEFAULTS = RunConfig().flat()

# The keys of DESIGN.md §5 and no others: a new key is a decision, and belongs here as well.
CONTRACT = """
task.name task.model task.dataset federation.clients federation.clients-per-round federation.rounds
federation.partition federation.alpha federation.seed train.optimizer train.lr train.local-steps
train.batch-size train.delta-decay train.norm compress.method compress.p compress.q train.threads
train.precision train.grad-accumulation train.max-grad-norm train.warmup train.anchor
compress.values compress.mask compress.downlink server.strategy resources.num-cpus
resources.num-gpus
""".split()

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def written(folder: Path, text: str | bytes, name: str = "run.toml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(values: dict[str, Any]) -> str:
    """Return the message of a refused configuration: one line that a person can read."""
    with pytest.raises(ConfigError, match=r"\S") as caught:
        make_config(values)
    message = str(caught.value)
    assert "\n" not in message
    assert not re.search(r"pydantic|validation error|Traceback|type=|Value error", message)
    return message


# --- there and back ---------------------------------------------------------------------------


ROWS = {
    "compress.method": METHODS,
    "compress.values": CODINGS,
    "compress.downlink": POLICIES,
    "compress.downlink-values": {"same", *CODINGS},
    "server.strategy": OPTIMIZERS,
    "train.adapter": {"auto", "none", *ADAPTERS},
}


def values_of(key: str) -> st.SearchStrategy[Any]:
    """Every value that the field's own declaration allows."""
    field = FIELDS[key]
    kind = field.annotation
    if key == "compress.p":
        return st.floats(0, 1 - 2**-32)
    if key == "compress.q":
        return st.sampled_from(["dare", *RULES, *SERVER_RULES]) | st.floats(1e-9, 1)
    if key == "task.name":
        return st.sampled_from([*TASKS, "own:task", "a.b_1.c:d2"])
    if key == "compress.downlink-p":
        return st.just("same") | st.floats(0, 1 - 2**-32)
    if key == "train.dense-lr":
        return st.just("same") | st.floats(1e-9, 10)
    if key == "compress.budget":
        return st.sampled_from(["", "50 kB", "1.5MB", "1 GB", "800 B", "30000", "7 KiB"])
    if key == "resources.num-gpus":
        return st.sampled_from(["auto", 64.0]) | st.floats(1e-4, 0.99) | st.integers(0, 64)
    if key == "resources.classes":
        return st.sampled_from(
            ["", "0: num-gpus=1", "0-1: num-cpus=0.5 custom.tpu=1 actors=2; 2: num-gpus=auto"]
        )
    if key == "compress.dense-below":
        return st.just("auto") | st.integers(0, 10**9)
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if key in ROWS:
        return st.sampled_from(sorted(ROWS[key]))
    if kind is str:
        return TEXT
    if kind is bool:
        return st.booleans()
    limits = {
        n: getattr(m, n) for m in field.metadata for n in ("ge", "gt", "le", "lt") if hasattr(m, n)
    }
    if kind is int:
        low = limits.get("ge", limits.get("gt", -1) + 1)
        return st.integers(low, limits.get("le", limits.get("lt", 2**63) - 1))
    return st.floats(
        limits.get("ge", limits.get("gt")),
        limits.get("le", limits.get("lt")),
        exclude_min="gt" in limits,
        exclude_max="lt" in limits,
        allow_nan=False,
        allow_infinity=False,
    )


NEEDS = {
    method: {f"compress.{name}": value for name, value in needs.items()}
    for method, needs in papers.NEEDS.items()
}


@st.composite
def configs(draw: Any) -> RunConfig:
    keys = draw(st.sets(st.sampled_from(sorted(FIELDS))))
    values = {key: draw(values_of(key)) for key in sorted(keys)}
    # Settings that go together.
    clients = values.get("federation.clients", 10)
    values["federation.clients-per-round"] = draw(st.integers(0, clients))
    values["federation.min-clients"] = draw(st.integers(0, clients))
    if clients < 3:
        values["resources.classes"] = ""
    asked = values["federation.clients-per-round"] or clients
    values["federation.min-replies"] = draw(st.integers(0, asked))
    if values.get("federation.partition") == "natural":
        values["federation.partition-column"] = "owner"
    if draw(st.booleans()):
        values |= {"train.local-steps": 0, "train.local-epochs": draw(st.integers(1, 9))}
    else:
        values |= {"train.local-steps": draw(st.integers(1, 9)), "train.local-epochs": 0}
    method = values.get("compress.method")
    if method in METHODS and METHODS[method].packs and not METHODS[method].seeded:
        values |= {"compress.mask": "client", "compress.scope": "row", "train.masked": False}
        values["compress.rotate"] = True
    if method == "structured":
        values["compress.columns"] = 1.0
    if method == "structured" or values.get("compress.values") == "sign":
        values["compress.mask"] = "client"
    if method in NEEDS:
        values |= NEEDS[method] | {"train.adapter": "auto", "compress.q": "dare"}
    if method in METHODS and METHODS[method].feeds_back:
        values |= {"compress.q": "dare", "compress.mask": "client", "compress.rotate": True}
        values["train.masked"] = False
    q = values.get("compress.q")
    if method == "dense" or (q == CURVATURE and method != "dare"):
        values["compress.q"] = "dare"
    if q in PER_TENSOR:
        values["compress.mask"] = "client"
    if values.get("train.optimizer", "adamr") == "adamr":
        values["train.weight-decay"] = 0.0
    adapter = values.get("train.adapter", "auto")
    if adapter != "auto" and "rank" not in getattr(ADAPTERS.get(adapter), "reads", ()):
        values["train.lora-rank"] = 0
    if adapter != "auto":  # what goes with few of them
        values |= {"compress.q": "dare", "compress.values": "fp16", "compress.lora": "factors"}
        values["compress.downlink-values"] = "same"
    if not str(values.get("compress.values")).startswith("eden"):
        values["compress.scale"] = "unbiased"
    if values.get("compress.lora") == "product":
        values |= {"train.lora-rank": draw(st.integers(1, 64)), "train.anchor": "round"}
        if method == "wanda" or values.get("compress.q") in RULES:
            values |= {"compress.method": "dare", "compress.q": "dare"}
        values["train.masked"] = False
    if values.get("server.average", "none") != "none":
        values |= {"server.average-from": 1, "federation.evaluate": "server"}
    if values.get("train.masked"):
        values["compress.q"] = "dare"
    if values.get("compress.budget"):
        values |= {"compress.method": "dare", "compress.q": "dare"}
    return make_config(values)


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(configs())
def test_any_configuration_is_read_back_as_it_was_written(tmp_path, config):
    again = load_config(written(tmp_path, config.to_toml()))
    assert again == config
    assert again.to_toml() == config.to_toml()
    assert hash(again) == hash(config)
    assert {k: (type(v), v) for k, v in again.flat().items()} == {
        k: (type(v), v) for k, v in config.flat().items()
    }


@settings(deadline=None, max_examples=100)
@given(configs())
def test_flat_keys_make_the_same_configuration(config):
    assert make_config(config.flat()) == config


@pytest.mark.parametrize("key", FIELDS)
def test_the_default_of_every_key_is_allowed_in_a_file_and_as_an_override(key, tmp_path):
    section, name = key.split(".")
    line = next(
        line
        for line in RunConfig().to_toml().partition(f"[{section}]")[2].splitlines()
        if line.startswith(f"{name} = ")
    )
    assert load_config(written(tmp_path, f"[{section}]\n{line}\n")) == RunConfig()
    empty = written(tmp_path, "")
    assert load_config(empty, [f"{section}.{line}"]) == RunConfig()


@pytest.mark.parametrize("key", FIELDS)
@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_every_value_of_every_key_is_written_and_read_back(key, data, tmp_path):
    value = data.draw(values_of(key))
    partners = {
        "federation.clients": {"federation.clients-per-round": 0, "federation.min-clients": 0},
        "federation.min-replies": {"federation.clients": 1_000_000},
        "federation.clients-per-round": {"federation.clients": 1_000_000},
        "federation.min-clients": {"federation.clients": 1_000_000},
        "federation.partition": {"federation.partition-column": "owner"},
        "train.local-steps": {"train.local-epochs": int(value == 0)},
        "train.local-epochs": {"train.local-steps": int(value == 0)},
        "train.weight-decay": {"train.optimizer": "adamw"},
        "compress.lora": {"train.lora-rank": 1},
        "resources.classes": {"federation.clients": 3},
        "compress.method": NEEDS.get(value, {}),
        "compress.scale": {"compress.values": "eden2"},
        "train.adapter": {"train.lora-rank": 0},
    }.get(key, {})
    few = ("federation.clients-per-round", "federation.min-clients", "federation.min-replies")
    if key in few and value > 1_000_000:
        return
    config = make_config({key: value} | partners)
    assert config.flat()[key] == value
    assert load_config(written(tmp_path, config.to_toml())).flat()[key] == value


def test_the_keys_of_the_contract_are_there():
    assert set(CONTRACT) <= set(known_keys())
    assert known_keys() == list(DEFAULTS) == list(FIELDS)


def test_every_value_is_a_scalar_that_flower_takes():
    assert {type(value) for value in DEFAULTS.values()} <= {str, int, float, bool}
    assert all(re.fullmatch(r"[a-z]+\.[a-z0-9-]+", key) for key in DEFAULTS)


@pytest.mark.parametrize(
    "text", ['a"b', "a\\b", "tab\tnewline\nreturn\r", "größe", "\0\x1f", "", "#"]
)
def test_text_with_special_characters_is_written_and_read_back(text, tmp_path):
    config = make_config({"task.model": text})
    assert load_config(written(tmp_path, config.to_toml())).task.model == text


def test_the_delete_character_is_written_and_read_back(tmp_path):
    config = make_config({"task.model": "a\x7fb"})
    assert load_config(written(tmp_path, config.to_toml())) == config


def test_a_configuration_cannot_be_changed():
    config = RunConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.compress.p = 0.5
    with pytest.raises(ValidationError, match="frozen"):
        config.compress = None


def test_equal_settings_are_equal_configurations_however_they_are_given(tmp_path):
    nested = load_config(written(tmp_path, "[compress]\np = 0.9\n[train]\nlr = 1\n"))
    dotted = load_config(written(tmp_path, "train.lr = 1.0\ncompress.p = 0.9\n"))
    flat = load_config(written(tmp_path, '"compress.p" = 0.9\n"train.lr" = 1.0\n'))
    override = load_config(written(tmp_path, ""), ["compress.p=.9", "train.lr=1"])
    assert nested == dotted == flat == override == make_config({"compress.p": 0.9, "train.lr": 1})
    assert type(nested.train.lr) is float


# --- unknown keys -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("lr", "train.lr"),
        ("p", "compress.p"),
        ("seed", "federation.seed"),
        ("compres.p", "compress.p"),
        ("train.learning-rate", None),
        ("train.local_steps", "train.local-steps"),
        ("train.batchsize", "train.batch-size"),
        ("federation.client", "federation.clients"),
        ("federation.client-per-round", "federation.clients-per-round"),
        ("resource.num-cpus", "resources.num-cpus"),
        ("Compress.p", "compress.p"),
        ("compress", None),
        ("compress.p.q", None),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(key, near):
    message = refused({key: 1})
    assert message.startswith(f"unknown key '{key}'")
    if near is not None:
        assert message == f"unknown key '{key}'; did you mean '{near}'?"


@pytest.mark.parametrize("key", ["", ".", "compress.", ".p", "x" * 1000, "zzzz.qqqq"])
def test_a_key_that_is_like_no_other_is_refused_as_well(key):
    assert refused({key: 1}).startswith("unknown key ")


@pytest.mark.parametrize("section", ["trian", "compression", "task.extra"])
def test_an_unknown_section_is_refused_even_when_it_is_empty(section, tmp_path):
    with pytest.raises(ConfigError, match="unknown"):
        load_config(written(tmp_path, f"[{section}]\n"))


def test_a_key_that_is_given_twice_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not valid TOML: Cannot overwrite a value"):
        load_config(written(tmp_path, "[compress]\np = 0.9\np = 0.5\n"))


def test_a_key_that_is_given_in_two_spellings_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"compress\.p"):
        load_config(written(tmp_path, '"compress.p" = 0.5\n[compress]\np = 0.9\n'))


# --- wrong types and ranges -------------------------------------------------------------------


@pytest.mark.parametrize("key", FIELDS)
@pytest.mark.parametrize(
    "value", [[1], {"a": 1}, None, b"x", object()], ids=lambda value: type(value).__name__
)
def test_what_is_not_a_scalar_is_refused_at_every_key(key, value):
    assert refused({key: value}).startswith(f"{key} = ")


@pytest.mark.parametrize("key", FIELDS)
def test_a_value_of_another_type_is_refused_at_every_key(key):
    wrong: Any = {str: 5, int: "5", float: "0.5"}.get(FIELDS[key].annotation, 50.5)
    message = refused({key: wrong})
    assert message.startswith(f"{key} = {wrong!r} is not allowed; ")
    assert re.search(
        r"must be (text|true or false|a (whole )?number|'\w+'.* or a (whole )?number)|allowed: '",
        message,
    )


NUMBERS = [key for key, value in DEFAULTS.items() if type(value) in (int, float)]


@pytest.mark.parametrize("key", [*NUMBERS, "compress.q"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), True, False, -1e9])
def test_a_number_must_be_finite_positive_and_no_boolean(key, value):
    assert refused({key: value}).startswith(f"{key} = {value!r} is not allowed; it must be ")


@pytest.mark.parametrize("key", [k for k, v in DEFAULTS.items() if type(v) is int])
@pytest.mark.parametrize("value", [1.0, 1.5, "1"])
def test_a_whole_number_is_not_a_fraction_or_text(key, value):
    assert "it must be a whole number" in refused({key: value})


Q = (
    "it must be 'dare', 'q-v', 'q-e', 'layer-q-v', 'layer-q-e', 'curvature', 'server-validation', "
    "'group-server-validation' or a number from 1e-09 to 1"
)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("compress.p", 1, "it must be a number from 0 below 1"),
        ("compress.p", 1.0, "it must be a number from 0 below 1"),
        ("compress.p", -0.1, "it must be a number from 0 below 1"),
        ("compress.q", 0, Q),
        ("compress.q", 1.01, Q),
        ("compress.q", "drae", f"{Q}; did you mean 'dare'?"),
        ("compress.q", "q_v", f"{Q}; did you mean 'q-v'?"),
        (
            "compress.dense-below",
            -1,
            "it must be 'auto' or a whole number from 0 to 1e+09",
        ),
        ("compress.dense-below", 1.5, "it must be 'auto' or a whole number from 0 to 1e+09"),
        ("compress.dense-below", "all", "it must be 'auto' or a whole number from 0 to 1e+09"),
        ("compress.downlink-p", 1.0, "it must be 'same' or a number from 0 below 1"),
        ("compress.downlink-p", "equal", "it must be 'same' or a number from 0 below 1"),
        (
            "compress.downlink",
            "updates",
            "allowed: 'dense', 'update', 'server', or 'package.module:name'; "
            "did you mean 'update'?",
        ),
        ("train.lr", 0, "it must be a number above 0 to 10"),
        ("train.batch-size", 0, "it must be a whole number from 1 to 65536"),
        ("train.delta-decay", -1, "it must be a number from 0 to 1e+06"),
        ("federation.clients", 0, "it must be a whole number from 1 to 1e+06"),
        ("federation.seed", -1, "it must be a whole number from 0 below 9.22337e+18"),
        ("federation.timeout", 0, "it must be a number above 0"),
        ("train.max-grad-norm", -1, "it must be a number from 0"),
        ("task.model", 5, "it must be text"),
        (
            *("task.name", "digit"),
            "allowed: 'digits', 'text-classification', 'image-classification', 'causal-lm', or "
            "'package.module:function'; did you mean 'digits'?",
        ),
        ("task.packing", 1, "it must be true or false"),
        ("train.norm", "L2", "allowed: 'l2', 'l1'; did you mean 'l2'?"),
        (
            *("compress.values", "int3"),
            "allowed: 'fp32', 'fp16', 'bf16', 'int8', 'int4', 'eden4', 'eden3', 'eden2', 'eden1', "
            "'sign', 'fp64', 'qsgd8', 'qsgd4', 'qsgd2', 'lookup2', or 'package.module:name'; did "
            "you mean 'int8'?",
        ),
        (
            "compress.mask",
            "rounds",
            "allowed: 'client', 'round', 'disjoint', 'auto'; did you mean 'round'?",
        ),
    ],
)
def test_a_value_outside_its_range_is_refused_with_the_range(key, value, allowed):
    assert refused({key: value}) == f"{key} = {value!r} is not allowed; {allowed}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("federation.seed", 2**63 - 1),
        ("compress.p", 0),
        ("compress.p", 0.99999),
        ("compress.q", 1),
        ("compress.q", 1e-9),
        ("train.warmup", 1.0),
        ("train.delta-decay", 0),
        ("federation.alpha", 1e6),
    ],
)
def test_the_ends_of_ranges_are_allowed(key, value):
    assert make_config({key: value}).flat()[key] == value


@pytest.mark.parametrize("p", [1 - 2**-40, 1 - 2**-53])
def test_p_that_keeps_nothing_is_refused(p):
    with pytest.raises(ConfigError, match=r"compress\.p"):
        make_config({"compress.p": p})


@pytest.mark.parametrize("value", [10**400, -(10**400)])
@pytest.mark.parametrize("key", ["federation.alpha", "compress.p", "compress.q", "federation.seed"])
def test_a_number_that_no_float_can_hold_is_refused(key, value):
    assert refused({key: value}).startswith(f"{key} = ")


# --- settings that go together ----------------------------------------------------------------


@pytest.mark.parametrize(("clients", "sample"), [(10, 11), (1, 2), (3, 10**9)])
def test_more_clients_a_round_than_there_are_is_refused(clients, sample):
    message = refused({"federation.clients": clients, "federation.clients-per-round": sample})
    assert message == (
        f"federation.clients-per-round = {sample} is more than federation.clients = {clients}; "
        f"allowed: 0 (all) to {clients}"
    )


def test_a_round_cannot_wait_for_more_clients_than_there_are():
    message = refused({"federation.clients-per-round": 3, "federation.min-replies": 4})
    assert "federation.min-replies = 4, but 3 clients train in a round; allowed: 0" in message
    message = refused({"federation.clients": 3, "federation.min-clients": 4})
    assert message == (
        "federation.min-clients = 4 is more than federation.clients = 3; allowed: 0 (all) to 3"
    )
    assert [
        make_config({"federation.clients": 3, "federation.min-clients": few}).federation.needed
        for few in (0, 2, 3)
    ] == [3, 2, 3]


@pytest.mark.parametrize(("sample", "size"), [(0, 7), (1, 1), (7, 7)])
def test_a_round_has_the_sample_or_all_clients(sample, size):
    made = make_config({"federation.clients": 7, "federation.clients-per-round": sample})
    assert made.federation.sample_size == size


@pytest.mark.parametrize(("steps", "epochs"), [(0, 0), (5, 5), (1, 1)])
def test_both_or_neither_of_steps_and_epochs_are_refused(steps, epochs):
    message = refused({"train.local-steps": steps, "train.local-epochs": epochs})
    assert f"found local-steps = {steps}, local-epochs = {epochs}" in message
    assert "train.local-steps or train.local-epochs above 0 and the other to 0" in message


def test_epochs_alone_are_refused_while_steps_have_their_default():
    assert "found local-steps = 10, local-epochs = 2" in refused({"train.local-epochs": 2})


@pytest.mark.parametrize(("steps", "epochs"), [(0, 3), (3, 0)])
def test_one_of_steps_and_epochs_is_enough(steps, epochs):
    made = make_config({"train.local-steps": steps, "train.local-epochs": epochs}).train
    assert (made.local_steps, made.local_epochs) == (steps, epochs)


def test_a_natural_partition_needs_its_column():
    message = refused({"federation.partition": "natural"})
    assert message.startswith("federation.partition = 'natural' needs federation.partition-column")
    make_config({"federation.partition": "natural", "federation.partition-column": "user"})


def test_weight_decay_is_refused_for_adamr_with_the_way_out():
    message = refused({"train.weight-decay": 0.01})
    assert "train.weight-decay = 0.01 is for train.optimizer = 'adamw'" in message
    assert "train.delta-decay" in message
    make_config({"train.weight-decay": 0.01, "train.optimizer": "adamw"})


# --- overrides --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "key", "value"),
    [
        ("compress.p=.999", "compress.p", 0.999),
        ("compress.p=0.999", "compress.p", 0.999),
        ("compress.p=5e-1", "compress.p", 0.5),
        ("compress.p=1.", "compress.p", 1.0),
        ("train.lr=+1e-3", "train.lr", 1e-3),
        ("train.local-steps=40", "train.local-steps", 40),
        ("federation.seed=1_000", "federation.seed", 1000),
        ("federation.seed=0x10", "federation.seed", 16),
        ("x.flag=true", "x.flag", True),
        ("x.flag=false", "x.flag", False),
        ("x.flag=True", "x.flag", "True"),
        ("task.model=bert-base-uncased", "task.model", "bert-base-uncased"),
        ("task.model=a name with spaces", "task.model", "a name with spaces"),
        ('task.model="quoted = text"', "task.model", "quoted = text"),
        ("task.model='single'", "task.model", "single"),
        ("task.model=/data/my model", "task.model", "/data/my model"),
        ("task.model=a=b", "task.model", "a=b"),
        ("task.model=C:\\models\\x", "task.model", "C:\\models\\x"),
        ('task.model="2024"', "task.model", "2024"),
        ("task.model=größe", "task.model", "größe"),
        ("task.model=[half", "task.model", "[half"),
        ("task.model=", "task.model", ""),
        ("  task.model  =  padded  ", "task.model", "padded"),
    ],
)
def test_an_override_is_read_as_toml_then_as_a_number_then_as_text(item, key, value):
    found_key, found = parse_override(item, RunConfig().flat())
    assert (found_key, found, type(found)) == (key, value, type(value))


@pytest.mark.parametrize("item", ["", "compress.p", "=5", "  =5", "compress.p:0.5", "--compress.p"])
def test_what_is_not_an_override_is_refused_with_an_example(item):
    with pytest.raises(ConfigError, match=r"is not an override; write key=value, e\.g\. compress"):
        parse_override(item, RunConfig().flat())


def test_overrides_beat_the_file_and_later_ones_beat_earlier_ones(tmp_path):
    path = written(tmp_path, "[compress]\np = 0.9\nvalues = 'fp32'\n")
    made = load_config(path, ["compress.p=.5", "train.lr=.01", "compress.p=.75"])
    assert (made.compress.p, made.compress.values, made.train.lr) == (0.75, "fp32", 0.01)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("compress.p=1", r"compress\.p = 1 is not allowed"),
        ("compress.p=nan", r"compress\.p = nan is not allowed"),
        ("compress.p=inf", r"compress\.p = inf is not allowed"),
        ("compress.p=high", r"compress\.p = 'high' is not allowed"),
        ("compress.p=true", r"compress\.p = True is not allowed"),
        ("compress.p=[0.5]", r"compress\.p = \[0\.5\] is not allowed"),
        ("compress.p={a=1}", r"compress\.p = \{'a': 1\} is not allowed"),
        ("compress.p=2024-01-01", r"compress\.p = datetime\.date\(2024, 1, 1\) is not allowed"),
        ("compress.p=", r"compress\.p = '' is not allowed"),
        ("federation.rounds=1e1", r"federation\.rounds = 10\.0 is not allowed"),
        ("compres.p=.5", r"unknown key 'compres\.p'; did you mean 'compress\.p'\?"),
        ("p=.5", r"unknown key 'p'; did you mean 'compress\.p'\?"),
    ],
)
def test_a_bad_override_is_refused_like_a_bad_file(item, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_config(written(tmp_path, ""), [item])


@pytest.mark.parametrize("item", ["task.model=true", "task.model=2024", "task.dataset=1e3"])
def test_an_override_of_text_is_text(item, tmp_path):
    key, _, value = item.partition("=")
    assert load_config(written(tmp_path, ""), [item]).flat()[key] == value


def test_an_override_of_two_lines_is_refused():
    key, value = parse_override("compress.p=0.5\ntrain.lr=1", RunConfig().flat())
    with pytest.raises(ConfigError, match=r"compress\.p"):
        make_config({key: value})


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=30))
def test_any_text_as_an_override_is_a_setting_or_one_clear_line(text):
    try:
        make_config(dict([parse_override(text, RunConfig().flat())]))
    except ConfigError as error:
        assert "\n" not in str(error)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(FIELDS)), st.text(max_size=20))
def test_any_text_as_a_value_is_a_setting_or_one_clear_line(key, text):
    try:
        make_config(dict([parse_override(f"{key}={text}", RunConfig().flat())]))
    except ConfigError as error:
        assert "\n" not in str(error)


# --- files ------------------------------------------------------------------------------------


def refused_file(path: Path | str) -> str:
    with pytest.raises(ConfigError, match=r"\S") as caught:
        load_config(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_file_is_one_clear_line(tmp_path):
    path = tmp_path / "no.toml"
    assert refused_file(path) == (
        f"cannot read the configuration {str(path)!r}: No such file or directory"
    )


def test_a_folder_in_place_of_a_file_is_one_clear_line(tmp_path):
    assert "Is a directory" in refused_file(tmp_path)


def test_a_file_as_a_folder_is_one_clear_line(tmp_path):
    assert "Not a directory" in refused_file(written(tmp_path, "") / "run.toml")


def test_a_file_that_may_not_be_read_is_one_clear_line(tmp_path):
    path = written(tmp_path, "")
    path.chmod(0)
    try:
        path.read_bytes()
    except PermissionError:
        assert "Permission denied" in refused_file(path)
    else:  # root may read everything
        pytest.skip("this user may read every file")


def test_a_link_to_itself_is_one_clear_line(tmp_path):
    path = tmp_path / "loop.toml"
    path.symlink_to(path)
    assert "symbolic links" in refused_file(path)


@pytest.mark.parametrize(
    "data", [b"\xff\xfe", b"\x80abc", "[task]\nmodel = 'größe'".encode("latin-1")]
)
def test_a_file_that_is_not_utf_8_is_one_clear_line(data, tmp_path):
    assert refused_file(written(tmp_path, data)).endswith("is not UTF-8 text, so not a TOML file")


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[", "[compress", "p", "p =", "p = 0.5 0.6", "= 5", '"p', "[a]\n[a]", "p = .5"),
        *("\0", "p = nul\0", "{'json': true}", "a: yaml", "[compress]\np = 0.9\n[compress]\nq = 1"),
    ],
)
def test_a_file_that_is_not_toml_is_one_clear_line(text, tmp_path):
    assert "is not valid TOML: " in refused_file(written(tmp_path, text))


@pytest.mark.parametrize(
    "text", ["[federation]\nseed = " + "1" * 5000, "[federation]\nseed = " + "[" * 20_000]
)
def test_a_file_that_the_toml_parser_gives_up_on_is_one_clear_line(text, tmp_path):
    assert refused_file(written(tmp_path, text))


def test_a_path_that_no_system_allows_is_one_clear_line():
    assert refused_file("a\0b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("compress = 5", "unknown key 'compress'"),
        ("[compress]\np = []", "compress.p = [] is not allowed"),
        ("[[compress]]\np = 0.5", "unknown key 'compress'"),
        ("[compress.p]\nx = 1", "unknown key 'compress.p.x'"),
        ("[train]\nlr = 1e-3\n[tain]\nx = 1", "unknown key 'tain.x'"),
        ("[task]\nname = '''two\nlines'''", r"task.name = 'two\nlines' is not allowed"),
        ("[compress]\np = 2024-01-01T00:00:00Z", "compress.p = datetime.datetime("),
    ],
)
def test_a_file_with_a_wrong_shape_is_one_clear_line(text, message, tmp_path):
    assert refused_file(written(tmp_path, text)).startswith(message)


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_as_a_file_are_a_configuration_or_one_clear_line(tmp_path, data):
    try:
        load_config(written(tmp_path, data))
    except ConfigError as error:
        assert "\n" not in str(error)


def test_an_empty_file_is_the_default_configuration(tmp_path):
    assert load_config(written(tmp_path, "")) == RunConfig()
    assert load_config(str(written(tmp_path, "# a comment\n"))) == RunConfig()


def test_windows_line_ends_are_fine(tmp_path):
    assert load_config(written(tmp_path, "[compress]\r\np = 0.5\r\n")).compress.p == 0.5


def test_a_configuration_error_can_be_caught_as_one_of_ours_and_as_a_value_error():
    for kind in (DarexError, ValueError):
        with pytest.raises(kind, match="unknown key"):
            make_config({"lr": 1})


def test_only_the_first_mistake_is_told():
    assert refused({"compress.p": 2, "train.lr": -1}).count("is not allowed") == 1


def test_flattening_leaves_flat_keys_alone():
    tree = {"a": {"b": {"c": 1}, "d": "x"}, "e.f": 2.5, "g": {}}
    assert flatten(tree) == {"a.b.c": 1, "a.d": "x", "e.f": 2.5, "g": {}}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"method": "magnitude", "mask": "round"},
            "compress.mask = 'round' .* chooses by value: set mask = 'client'",
        ),
        ({"method": "wanda", "mask": "auto"}, "compress.mask = 'auto' .* chooses by value"),
        (
            {"method": "structured", "mask": "disjoint"},
            "compress.mask = 'disjoint' is for method = 'dare'.* use mask = 'client' or 'round'",
        ),
        ({"values": "sign", "mask": "auto"}, "compress.mask = 'auto' .* with values = 'sign'"),
        ({"q": "layer-q-e", "mask": "auto"}, "compress.mask = 'auto' .* with q = 'layer-q-e'"),
        ({"q": "curvature", "mask": "auto"}, "compress.mask = 'auto' .* with q = 'curvature'"),
        (
            {"q": "curvature", "method": "magnitude"},
            "compress.q = 'curvature' .* chooses by value: set method = 'dare', or another q",
        ),
        ({"q": "curvature", "method": "wanda"}, "compress.q = 'curvature' .* chooses by value"),
        (
            {"q": "curvature", "method": "structured"},
            "compress.q = 'curvature' .* draws columns: set method = 'dare', or another q",
        ),
        ({"q": "curvature", "method": "dense"}, "compress.q = 'curvature' divides survivors"),
        (
            {"q": "group-server-validation", "method": "dense"},
            "compress.q = 'group-server-validation' divides survivors",
        ),
        ({"method": "wanda", "scope": "global"}, "set 'layer' or 'row'"),
        ({"method": "structured", "p": 0.9}, "compress.columns = 0.05 keeps fewer .*: 0.1 to 1"),
        ({"method": "dense", "q": "q-e"}, "compress.q = 'q-e' divides survivors"),
    ],
)
def test_settings_of_a_method_that_do_not_go_together_are_refused(settings, words):
    message = refused({f"compress.{key}": value for key, value in settings.items()})
    assert re.search(words, message)


@pytest.mark.parametrize("rule", RULES)
def test_products_of_adapters_take_no_search_on_the_client(rule):
    product = {"train.lora-rank": 2, "compress.lora": "product"}
    message = refused(product | {"compress.q": rule})
    assert "searches for compress.q on the client cannot look at it; set" in message
    for other in SERVER_RULES:
        assert make_config(product | {"compress.q": other}).compress.q == other
