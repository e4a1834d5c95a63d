"""What people give in place of what is wanted: one error each, where the call is made."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apps import numpy_app
from federations import fedavg, listening
from flwr.clientapp import ClientApp
from flwr.server.strategy import FedAvg as FormerFedAvg
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from fl_darex.clients import DarexMod
from fl_darex.compression.methods import METHODS
from fl_darex.compression.uplink import Uplink
from fl_darex.errors import ConfigError
from fl_darex.files.tensors import write_tensors
from fl_darex.flower.grids import exchange
from fl_darex.secagg import SecureAggregation
from fl_darex.simulation import InProcessGrid, simulate_in_process
from fl_darex.strategies import DarexStrategy
from fl_darex.wire.codings import CODINGS


class OwnFormer(FormerFedAvg):
    """Somebody's own, of Flower's former API."""


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (FormerFedAvg(), r"FedAvg is of Flower's former API .*from flwr.serverapp.strategy import"),
        (OwnFormer(), "OwnFormer is of Flower's former API"),
        (FormerFedAvg, "FedAvg is of Flower's former API"),
        (FedAvg, r"strategy must be a strategy of .* got the class FedAvg; write FedAvg\(\.\.\.\)"),
        (None, "strategy must be a strategy of flwr.serverapp.strategy, such as .* got None"),
        ("FedAvg", "strategy must be .* got 'FedAvg'"),
        (DarexStrategy(FedAvg()), "strategy is a DarexStrategy already; give it the strategy in"),
    ],
)
def test_what_is_no_strategy_of_the_present_api_is_refused(strategy: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        DarexStrategy(strategy)


NO_NUMBER = ["0.99", True, np.True_, None, [0.99], 1j]


@pytest.mark.parametrize("value", NO_NUMBER)
@pytest.mark.parametrize("name", ["p", "max_weight", "seed"])
def test_what_is_no_number_is_not_taken_for_one(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be a.*number.* got "):
        DarexStrategy(fedavg(), **{name: value})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"p": math.nan}, r"p must be a number in \[0, 1\), got nan"),
        ({"downlink_p": "0.5"}, r"downlink_p must be a number in \[0, 1\), or None, got '0.5'"),
        ({"downlink_p": 1.5}, r"downlink_p must be .* got 1.5"),
        ({"downlink_p": math.nan}, "downlink_p must be .* got nan"),
        ({"q": "0.5"}, "q must be 'dare' .* got '0.5'"),
        ({"q": np.True_}, "q must be 'dare'"),
        ({"q": math.nan}, "q must be 'dare'"),
        ({"q": None}, "q must be 'dare'"),
        ({"seed": 1.5}, r"seed must be a whole number in \[0, 2\*\*63\), got 1.5"),
        (
            {"seed": 2**63},
            r"seed = 9223372036854775808 is not allowed; it must be in \[0, 2\*\*63\)",
        ),
        ({"max_weight": math.inf}, "max_weight must be a finite number above 0, got inf"),
        ({"max_weight": 0}, "max_weight must be a finite number above 0, got 0"),
        ({"clip": "1"}, "clip must be a norm above 0, or None, got '1'"),
        ({"clip": -1.0}, "clip is the largest norm of an update, above 0; got -1.0"),
        ({"clip": math.nan}, "clip is the largest norm of an update, above 0; got nan"),
        ({"base_held": "false"}, "base_held must be True or False, got 'false'"),
        ({"handshake": 0}, "handshake must be True or False, got 0"),
        ({"dense": "head.weight"}, "dense = 'head.weight' is not allowed; it must be a"),
        ({"dense": None}, "dense must be a list of names, got None"),
        ({"dense": [1]}, r"dense = \(1,\) is not allowed; it must be a list of names"),
        ({"validate": 3}, "validate must be a function or None, got 3"),
        ({"on_reply": []}, r"on_reply must be a function or None, got \[\]"),
        (
            {"secure": SecureAggregation},
            "secure must be a SecureAggregation or None, got the class",
        ),
        ({"secure": {"range": 1}}, "secure must be a SecureAggregation or None, got {'range': 1}"),
        ({"uplink": {"p": 0.9}}, "uplink must be an Uplink or None"),
        (
            {"uplink": Uplink},
            "uplink must be an Uplink or None, got the class Uplink; write",
        ),
        ({"method": type(METHODS["dare"])}, "method must be one of"),
        ({"method": None}, "method must be one of"),
        ({"values": None}, "None is no object of a class derived from"),
        ({"values": type(CODINGS["fp16"])}, "is no object of a class derived from"),
        ({"mask": None}, "mask must be one of"),
        ({"count": True}, "count must be one of"),
        ({"downlink": None}, "downlink must be one of"),
        ({"downlink_values": 16}, "16 is no object of a class derived from"),
        ({"replies": None}, "replies must be one of"),
        ({"method": "structured", "columns": "0.1"}, "columns = '0.1' is not allowed; it must be"),
    ],
)
def test_arguments_of_the_strategy_say_what_they_want(options: dict[str, Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        DarexStrategy(fedavg(), **options)


@pytest.mark.parametrize("kind", [np.float32, np.float64, float])
def test_numbers_of_numpy_are_numbers(kind: Any) -> None:
    strategy = DarexStrategy(fedavg(), p=kind(0.75), seed=np.int64(3), base_held=np.False_)
    assert strategy._uplink == Uplink.of("dare", 0.75, seed=3, dense_below="auto")
    assert type(strategy._uplink.seed) is int  # JSON writes no other


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("p", 0.9),
        ("q", 0.5),
        ("values", "int8"),
        ("mask", "round"),
        ("count", "exact"),
        ("method", "magnitude"),
        ("seed", 7),
        ("dense", ["head"]),
        ("scope", "row"),
    ],
)
def test_a_setting_beside_the_uplink_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"uplink says everything .* \['{name}'\] besides"):
        DarexStrategy(fedavg(), uplink=Uplink.of("dare", 0.5), **{name: value})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"scope": "row"},
            "scope = 'row' does nothing: it is for method = 'magnitude' or 'wanda' or 'topk'",
        ),
        ({"columns": 0.5}, "columns = 0.5 does nothing: it is for method = 'structured'"),
        ({"method": "dense", "q": 0.5}, "q = 0.5 does nothing: it is for methods that send"),
        ({"method": "dense", "mask_first": True}, "mask_first = True does nothing"),
        ({"mask": "disjoint", "count": "exact"}, "other masks than 'disjoint'"),
        ({"downlink_p": 0.5}, "downlink_p = 0.5 does nothing: it is for downlink = 'server'"),
        ({"downlink": "dense", "downlink_values": "int8"}, "it is for downlink = 'update' or"),
    ],
)
def test_an_argument_that_does_nothing_has_a_line(
    options: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(caplog):
        DarexStrategy(FedAvg(), **options)
    assert len(set(caplog.messages)) == 1 and words in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "wanda", "scope": "row"},
        {"downlink": "server", "downlink_p": 0.5, "downlink_values": "fp32"},
        {"method": "dense", "values": "int8"},  # of the way down
        {"q": 0.5, "count": "exact", "mask": "round", "rotate": False},
        {"uplink": Uplink.of("dare", 0.9), "downlink_p": 0.9},
    ],
)
def test_arguments_that_do_something_have_none(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with listening(caplog):
        DarexStrategy(FedAvg(), **options)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base": 3}, "base must be a path, a function or None, got 3"),
        ({"base": dict}, "base must be a path, a function or None, got the class dict"),
        ({"base": {"w": np.zeros(3)}}, "base must be a path or a function that returns the tens"),
        ({"norms": {}}, "norms must be a function or None"),
        ({"search": "q-v"}, "search must be a function or None"),
        ({"secure_only": "no"}, "secure_only must be True or False, got 'no'"),
        ({"methods": METHODS["dare"]}, "methods must be a list of objects, got"),
        ({"methods": [type(METHODS["dare"])]}, "is no object of a class derived from"),
        ({"codings": "fp16"}, "codings must be a list of objects, got 'fp16'"),
        ({"codings": None}, "codings must be a list of objects, got None"),
    ],
)
def test_arguments_of_the_mod_say_what_they_want(options: dict[str, Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        DarexMod(**options)


def test_a_base_that_is_not_there_or_holds_nothing_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="base: there is no file or folder '/no/such' on this"):
        DarexMod(base="/no/such")
    with pytest.raises(ConfigError, match=r"base: there is no file .*nowhere.npz' on this machine"):
        DarexMod(base=tmp_path / "nowhere.npz")
    with pytest.raises(ConfigError, match=r"base: no \.safetensors file lies in the folder"):
        DarexMod(base=tmp_path)
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(ConfigError, match=r"base: .*torn.npz' cannot be read"):
        DarexMod(base=tmp_path / "torn.npz")
    write_tensors(tmp_path / "empty.npz", {})
    with pytest.raises(ConfigError, match=r"base: .*empty.npz' holds no tensors"):
        DarexMod(base=tmp_path / "empty.npz")
    pytest.importorskip("safetensors")
    write_tensors(tmp_path / "empty.safetensors", {})
    with pytest.raises(ConfigError, match=r"base: .*holds no tensors"):
        DarexMod(base=str(tmp_path))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"range": "1"}, "range must be a finite number above 0, got '1'"),
        ({"range": math.nan}, "range must be a finite number above 0, got nan"),
        ({"max_weight": True}, "max_weight must be a finite number above 0, got True"),
        ({"dense_range": math.inf}, "dense_range must be a finite number above 0, or None"),
        ({"timeout": -1}, "timeout must be a finite number above 0, or None, got -1"),
        ({"timeout": "60"}, "timeout must be a finite number above 0, or None, got '60'"),
        ({"bits": 16.0}, "bits must be an integer from 2 to 32, got 16.0"),
        ({"bits": np.True_}, "bits must be an integer from 2 to 32"),
        ({"ring": "32"}, r"ring must be one of \[8, .*\] or None, got '32'"),
        ({"neighbours": "4"}, "neighbours must be an even number from 2 on, or None, got '4'"),
        ({"neighbours": 4.0}, "neighbours must be an even number from 2 on, or None, got 4.0"),
        ({"threshold": math.nan}, r"threshold must be a part in \[0.5, 1\) or a number"),
        ({"threshold": "2"}, "threshold must be 2 clients or more, got '2'"),
        ({"threshold": True}, "threshold must be 2 clients or more, got True"),
        ({"metrics": "loss"}, "metrics must be a list of names, got 'loss'"),
        ({"metrics": [1]}, r"metrics must be a list of names, got \[1\]"),
    ],
)
def test_arguments_of_secure_aggregation_say_what_they_want(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        SecureAggregation(**{"range": 0.1, "max_weight": 10} | options)


@pytest.mark.parametrize(
    ("app", "clients", "config", "said"),
    [
        (ClientApp, 2, None, r"client_app must be a ClientApp, got the class ClientApp; write"),
        (ServerApp(), 2, None, "client_app must be a ClientApp, got"),
        (None, 2, None, "client_app must be a ClientApp, got None"),
        (numpy_app(), "2", None, "clients must be 1 or more, got '2'"),
        (numpy_app(), 2.0, None, "clients must be 1 or more, got 2.0"),
        (numpy_app(), True, None, "clients must be 1 or more, got True"),
        (numpy_app(), 0, None, "clients must be 1 or more, got 0"),
        (numpy_app(), 2, "lr=1", "run_config must be a mapping of names to values, got 'lr=1'"),
    ],
)
def test_arguments_of_a_grid_say_what_they_want(
    app: Any, clients: Any, config: Any, said: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        InProcessGrid(app, clients, config)


@pytest.mark.parametrize("app", [ServerApp, numpy_app(), None])
def test_what_is_no_server_app_is_not_served(app: Any) -> None:
    with pytest.raises(TypeError, match="server_app must be a ServerApp, got"):
        simulate_in_process(app, numpy_app(), clients=2)


def test_a_text_is_the_folder_of_an_app_and_not_its_name() -> None:
    with pytest.raises(ConfigError, match="apps:server' is no Flower app: no such folder; give"):
        simulate_in_process("apps:server", clients=2)


@pytest.mark.parametrize("timeout", [-1, math.nan, "60", True])
def test_a_timeout_is_a_number_of_seconds(timeout: Any) -> None:
    grid = InProcessGrid(numpy_app(), 2)
    with pytest.raises((TypeError, ValueError), match="timeout must be a number of seconds from 0"):
        exchange(grid, [], timeout, 0.0)
