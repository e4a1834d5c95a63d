"""Flower's own examples: what the benchmark puts into them, and what its committed results say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
CLIENT = '''"""An app."""
from flwr.clientapp import ClientApp

app = ClientApp({mods})
'''
SERVER = '''"""An app."""
import torch
from flwr.serverapp.strategy import FedAvg


def main():
    strategy = FedAvg(
        fraction_train=1.0,
    )
    return strategy.start()
'''


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a test import them."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.mark.parametrize(
    ("mods", "with_mod"),
    [("", "mods=[DarexMod()]"), ("\n    mods=[own],\n", "\n    mods=[DarexMod(), own],\n")],
)
def test_the_two_lines_are_the_mod_first_and_the_strategy_around(tmp_path, mods, with_mod):
    from flower_apps.two_lines import put_into

    client, server = tmp_path / "client.py", tmp_path / "server.py"
    client.write_text(CLIENT.format(mods=mods), "utf-8")
    server.write_text(SERVER, "utf-8")
    put_into(client, server, ", p=0")
    first = '"""An app."""\n'
    expected = CLIENT.format(mods=with_mod)
    imported = first + "from fl_darex.clients import DarexMod\n"
    assert client.read_text("utf-8") == expected.replace(first, imported)
    around = SERVER.replace("FedAvg(\n", "DarexStrategy(FedAvg(\n").replace(
        "    )\n", "    ), p=0)\n"
    )
    imported = first + "from fl_darex.strategies import DarexStrategy\n"
    assert server.read_text("utf-8") == around.replace(first, imported)


@pytest.fixture
def rows(benchmarks: None) -> list[dict[str, Any]]:
    """The committed results."""
    from runs import load

    found: list[dict[str, Any]] = load("flower-examples")
    assert len(found) >= 10
    return found


def runs_of(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{run['engine']} {run['variant']}": run for run in row["runs"]}


def test_every_example_with_p_0_and_fp32_ends_where_plain_flower_does(rows):
    for row in rows:  # training amplifies round-off: "one ulp" is what the last place does
        runs = runs_of(row)
        assert runs["local K"]["apart"] <= 1e-5 + 10 * runs["local one ulp"]["apart"], row["app"]


def test_every_example_has_the_same_bits_on_both_engines_and_loses_no_reply(rows):
    for row in rows:
        assert row["same_bits"], row["app"]
        assert [run["failed"] for run in row["runs"]] == [0] * len(row["runs"]), row["app"]


def test_every_example_writes_the_files_with_the_two_lines_that_it_writes_without(rows):
    for row in rows:
        runs = runs_of(row)
        for name in ("local two lines", "local K"):  # on Ray, processes race for a logger's names
            assert runs[name]["files"] == runs["local plain"]["files"], (row["app"], name)
    files = runs_of(next(row for row in rows if row["app"] == "advanced-pytorch"))["local plain"]
    kinds = {name.rpartition("/")[2] for name in files["files"]}
    assert {"results.json", "run_config.json", "model_state_acc_N.N_round_N.pth"} <= kinds


def test_the_table_of_the_plug_in_page_is_that_of_the_committed_results(rows):
    from flower_examples import lines

    text = (ROOT / "docs" / "plug-in.md").read_text("utf-8")
    for line in lines(rows):
        assert "| " + " | ".join(line) + " |" in text, line
