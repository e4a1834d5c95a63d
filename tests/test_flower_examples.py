"""Flower's own examples: what the benchmark puts into them."""

from __future__ import annotations

from pathlib import Path

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
