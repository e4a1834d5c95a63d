"""A budget of bytes in place of p: what fits with least noise, and what a run then sends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apps import numpy_app
from federations import Federation, fedavg, rounds
from hypothesis import given, settings
from hypothesis import strategies as st
from side_by_side import app as app_of
from side_by_side import plus, reply

from fl_darex.clients import DarexMod
from fl_darex.clients.client_app import app
from fl_darex.compression.budget import CANDIDATES, usual, within
from fl_darex.compression.expected import expected_noise, packet_bytes
from fl_darex.compression.uplink import Uplink
from fl_darex.config import RunConfig, load_config, make_config
from fl_darex.config.budget import within_budget
from fl_darex.errors import ConfigError
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.observers.run_folder import RunFolder
from fl_darex.simulation import simulate_in_process
from fl_darex.strategies import DarexStrategy
from fl_darex.strategies.server_app import idle_remarks, make_app
from fl_darex.wire.codings import nature_of

MODEL = {"w": np.zeros((500, 400), np.float32), "b": np.zeros(400, np.float32)}
SMALL = {"federation.clients": 2, "federation.rounds": 2, "train.local-steps": 2}
LENGTHS = {"eden1": 1, "eden2": 2, "eden3": 3, "eden4": 4, "fp16": 16}  # bits


@given(st.integers(2_000, 500_000), st.sampled_from([(30, 40), (500, 400), (7,), (90, 1000)]))
@settings(max_examples=20, deadline=None)
def test_nothing_that_fits_has_less_noise(budget: int, shape: tuple[int, ...]) -> None:
    tensors = {"w": np.zeros(shape, np.float32), "b": np.zeros(300, np.float32)}
    found = within(budget, tensors)
    assert found.up_bytes <= budget and 0 <= found.p < 1
    for values in CANDIDATES:
        for share in np.geomspace(1e-4, 1, 60):
            made = usual(1 - share, values).fitted(tensors)
            drawn = 0 if share == 1 else 4 * (share * (1 - share) / made_of(made, tensors)) ** 0.5
            size = packet_bytes(made.layout(tensors), min(1, share + drawn), values)
            error = (1 + nature_of(values).nmse) / share - 1
            # Three digits of 1-p, and a size that jumps where one more tensor goes whole.
            assert size > budget or error >= found.error * 0.985 - 1e-9


def made_of(uplink: Uplink, tensors: dict[str, Any]) -> int:
    return max(1, sum(spec.numel for spec in uplink.layout(tensors).pruned))


def test_bits_are_spent_before_p_and_more_of_them_only_once_nothing_is_dropped() -> None:
    entries = 200_400
    for values, bits in LENGTHS.items():
        room = 1_600 + entries * bits // 8 + 600
        assert within(room, MODEL).p == 0 and within(room, MODEL).values == values
    few = within(5_000, MODEL)
    assert few.values == "eden1" and 0.8 < few.p < 0.9
    # The same bytes in fp16 keep a sixteenth: ten times the noise.
    share = (1 - few.p) / 16
    assert few.error < (1 / share - 1) / 9


def test_a_budget_that_no_message_fits_into_says_what_the_least_is() -> None:
    with pytest.raises(ValueError, match="900 bytes are too few") as refused:
        within(900, MODEL)
    least = int(str(refused.value).split("takes about ")[1].split(", its")[0].replace(",", ""))
    assert within(least, MODEL).up_bytes <= least
    with pytest.raises(ValueError, match="too few"):
        within(least - 1, MODEL)


def test_what_the_other_settings_rule_out_is_not_chosen() -> None:
    config = make_config({"compress.budget": "300 kB", "compress.scale": "least-squares"})
    found, said = within_budget(config, MODEL, ())
    assert found.compress.values == "eden4" and found.compress.p == 0 and "eden4" in said[0]
    config = make_config({"compress.budget": "9 kB", "train.adapter": "rolora"})
    assert within_budget(config, MODEL, ())[0].compress.values == "fp16"  # EDEN writes no zero


@pytest.mark.parametrize("many", [1, 2, 120])
def test_a_q_of_each_tensor_fits_into_the_budget_too(many: int) -> None:
    budget = 6_000
    model = {f"w{i}": np.zeros((60, 50 + i), np.float32) for i in range(many)}
    found = within(
        budget,
        model,
        lambda p, values: Uplink.of("dare", p, q="curvature", values=values, dense_below=0),
    )
    strategy = DarexStrategy(fedavg(), found.p, q="curvature", values=found.values, dense_below=0)
    expected = strategy.check(to_record(model)).up_bytes

    def search(message: Any, context: Any, survivors: Any, rule: str) -> Any:
        return np.full(many, 1 - found.p / 2, np.float32)

    rounds(strategy, Federation(numpy_app([DarexMod(search=search)])), 2, model)
    sent = [entry.up_bytes for entry in strategy.ledger.entries if entry.kind == "train"]
    assert len(sent) == 8 and max(sent) <= budget
    assert expected == pytest.approx(np.mean(sent), abs=300)


@pytest.mark.parametrize("mask", ["client", "round", "disjoint"])
def test_every_reply_of_a_run_fits_into_its_budget_and_fills_it(mask: str) -> None:
    budget = 6_000
    found = within(
        budget, MODEL, lambda p, values: Uplink.of("dare", p, values=values, mask=mask, seed=3)
    )
    strategy = DarexStrategy(
        fedavg(clients=10), found.p, values=found.values, mask=mask, seed=3, dense_below=0
    )
    rounds(strategy, Federation(numpy_app([DarexMod()]), 10), 4, MODEL)
    sent = [entry.up_bytes for entry in strategy.ledger.entries if entry.kind == "train"]
    assert len(sent) == 40
    assert 0.93 * budget < min(sent) and max(sent) <= budget, sorted(sent)[-3:]


def test_a_run_says_what_its_budget_chose_and_its_folder_repeats_it(tmp_path: Path) -> None:
    config = make_config(SMALL | {"compress.budget": "6 kB"})
    ran = [folder_of(config, tmp_path / "first")]
    written = load_config(tmp_path / "first" / "config.toml")
    assert written.compress.budget == "" and written.compress.values == "eden1"
    assert 0.8 < written.compress.p < 0.9
    ran.append(folder_of(written, tmp_path / "again"))
    models = [(folder / "model" / "model.safetensors").read_bytes() for folder in ran]
    assert models[0] == models[1]
    for line in (ran[0] / "clients.jsonl").read_text().splitlines():
        entry = json.loads(line)
        assert entry["kind"] != "train" or 5_500 < entry["up_bytes"] <= 6_000


def folder_of(config: RunConfig, path: Path) -> Path:
    with RunFolder(path) as folder:
        simulate_in_process(make_app(config, [folder]), app, clients=config.federation.clients)
    assert folder.status == "finished"
    return path


def test_what_was_chosen_is_one_line() -> None:
    found, (said,) = within_budget(make_config({"compress.budget": "20kB"}), MODEL, ())
    noise = expected_noise(found.uplink(), 10)
    assert said == (
        f"compress.budget = '20kB' chooses compress.p = {found.compress.p:g} and compress.values = "
        f"'eden1': at most about 19,{said.split('about 19,')[1][:3]} bytes up, a client and round; "
        f"noise of a round {noise:.2g} times a client's change"
    )
    assert not found.compress.budget and found.compress.p == pytest.approx(0.29, abs=0.05)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"compress.budget": "50 parsec"}, "such as '50 kB'"),
        ({"compress.budget": "0 kB"}, "a number of bytes above 0"),
        ({"compress.budget": "-3"}, "a number of bytes above 0"),
        ({"compress.budget": "9" * 400 + " GB"}, "a number of bytes above 0"),
        ({"compress.budget": "1e400 B"}, "a number of bytes above 0"),
        ({"compress.budget": "5 kB", "compress.method": "magnitude"}, "'magnitude' does not drop"),
        ({"compress.budget": "5 kB", "compress.method": "dense"}, "'dense' does not drop"),
        ({"compress.budget": "5 kB", "compress.q": 0.01}, "compress.q = 0.01 belongs to"),
    ],
)
def test_a_budget_that_means_nothing_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_config(values)


@pytest.mark.parametrize("budget", ["800", "0.8 kB", "800B", "1 KiB"])
def test_a_budget_that_is_too_small_is_refused_with_the_least(budget: str) -> None:
    with pytest.raises(ConfigError, match=r"compress.budget = '.*': .* too few.* or more"):
        within_budget(make_config({"compress.budget": budget}), MODEL, ())


def test_beside_a_budget_p_and_values_do_nothing_and_a_line_says_so() -> None:
    found = idle_remarks(make_config({"compress.budget": "5 kB", "compress.p": 0.9}))
    assert len(found) == 1 and "compress.p = 0.9 has no effect" in found[0]
    assert "without compress.budget" in found[0]


@pytest.mark.parametrize(
    ("settings", "idle"),
    [
        ({"train.masked": True}, "train.masked = True has no effect"),
        ({"compress.mask": "round"}, "compress.mask = 'round' has no effect"),
        ({"compress.rotate": False}, "compress.rotate = False has no effect"),
    ],
)
def test_a_setting_that_what_was_chosen_leaves_idle_has_a_line(
    settings: dict[str, Any], idle: str
) -> None:
    config = make_config({"compress.budget": "10 MB", "compress.p": 0.9} | settings)
    found, said = within_budget(config, MODEL, ())
    assert found.compress.p == 0 and len(said) == 2
    assert said[1].startswith(idle) and "with compress.p above 0" in said[1]
    assert (
        len(within_budget(make_config({"compress.budget": "6 kB"} | settings), MODEL, ())[1]) == 1
    )


@pytest.mark.parametrize("budget", ["5 kB", None, True, 5e3])
def test_a_budget_in_python_is_a_whole_number(budget: Any) -> None:
    with pytest.raises(TypeError, match="budget must be a whole number of bytes, such as 50_000"):
        within(budget, MODEL)


@pytest.mark.parametrize("mask", ["client", "round"])
@pytest.mark.parametrize("scale", ["unbiased", "least-squares"])
@pytest.mark.parametrize("p", [0.0, 0.9])
def test_the_noise_that_is_expected_is_that_of_dropping_and_of_rounding(
    mask: str, scale: str, p: float
) -> None:
    clients, model = 4, {"w": np.zeros((400, 500), np.float32)}
    asked = {"values": "eden1", "scale": scale, "mask": mask, "downlink": "dense", "seed": 5}
    strategy = DarexStrategy(fedavg(clients=clients), p, **asked)
    found = strategy.check(to_record(model)).noise
    change = np.random.default_rng(1).standard_normal((400, 500)).astype(np.float32)

    def add(arrays: dict[str, Any], *_: Any) -> Any:
        return reply(plus(arrays, change))

    after = to_arrays(rounds(strategy, Federation(app_of(add), clients), 1, model).arrays)["w"]
    mean = change / (1 if scale == "unbiased" else 1 + nature_of("eden1").nmse)
    noise = np.linalg.norm(after - mean) / np.linalg.norm(change)
    assert found == pytest.approx(noise, rel=0.05)
