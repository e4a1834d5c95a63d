"""A checkout as ``flwr run .`` finds it, and environments to run it in."""

from __future__ import annotations

import subprocess
import sys

import pytest
from superlink import ROOT

from .checkout import Place, copy_of_the_checkout, environment
from .marks import SLOW

PRESET = """
[task]
name = "digits"

[federation]
clients = 2
rounds = 2

[train]
local-steps = 2

[compress]
p = 0.99
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    checkout = copy_of_the_checkout(folder)
    preset = checkout / "configs" / "small.toml"
    preset.write_text(PRESET, encoding="utf-8")
    command = [sys.executable, "-c", "from fl_darex.cli import main; main()", "run", str(preset)]
    options = ["--out", str(folder / "out")]
    subprocess.run([*command, *options], check=True, cwd=ROOT, timeout=SLOW, capture_output=True)
    return Place(checkout, preset, (folder / "out" / "model" / "model.safetensors").read_bytes())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return environment(tmp_path_factory.mktemp("alone") / "venv")


@pytest.fixture(scope="module")
def beside(place, tmp_path_factory):
    return environment(tmp_path_factory.mktemp("beside") / "venv", place.checkout)
