"""The app of this repository under ``flwr run``, from its bundle alone and beside a wheel.

In Flower's simulation and on a SuperLink the model is that of ``fl-darex run``, bit for bit.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from superlink import ROOT, Deployment, wait_for

from .checkout import copy_of_the_checkout, environment
from .marks import SLOW, deployment
from .replay import exchanges, participants

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

pytestmark = deployment(3600)


@dataclass(frozen=True)
class Place:
    """A checkout, and the model that ``fl-darex run`` makes of its preset."""

    checkout: Path
    preset: Path
    model: bytes


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


def imports_fl_darex(scripts: Path) -> bool:
    command = [str(scripts / "python"), "-c", "import fl_darex.strategies"]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd="/", env=clean, capture_output=True, timeout=SLOW)
    return done.returncode == 0


def run_on_a_superlink(flower: Deployment, place: Place) -> tuple[Path, str]:
    """Run the preset with a SuperNode too many, whose data are not there; return folder and log."""
    flower.start_superlink()
    lost = flower.start_supernode(2, 3, **{"dataset-path": "/nowhere"})
    wait_for("the third SuperNode", lambda: lost.says("SuperNode ID"), SLOW, flower.logs)
    for partition in range(2):
        flower.start_supernode(partition, 3)
    run_id = flower.submit(place.checkout, "--run-config", str(place.preset))
    flower.finish(run_id, SLOW)
    return flower.folder / "runs" / run_id, flower.log_of(run_id)


def test_in_flowers_simulation_the_bundle_alone_makes_the_model_of_the_command(
    place, alone, tmp_path
):
    assert not imports_fl_darex(alone)
    flower = Deployment(tmp_path, scripts=alone, path=None)
    try:
        flower.start_superlink("--simulation")
        nodes = ["--federation-config", "num-supernodes=2"]
        run_id = flower.submit(place.checkout, *nodes, "--run-config", str(place.preset))
        flower.finish(run_id, SLOW)
    finally:
        flower.stop()
    assert flower.left() == []
    made = tmp_path / "runs" / run_id / "model" / "model.safetensors"
    assert made.read_bytes() == place.model


def test_a_simulation_with_too_few_nodes_ends_and_says_how_to_get_more(place, alone, tmp_path):
    flower = Deployment(tmp_path, scripts=alone, path=None)
    try:
        flower.start_superlink("--simulation")
        run_id = flower.submit(place.checkout)  # federation.clients = 10, and Flower's 2 nodes
        flower.finish(run_id, SLOW, ends="failed")
        log = flower.log_of(run_id)
    finally:
        flower.stop()
    assert "add --federation-config 'num-supernodes=10' to flwr run" in log


@pytest.mark.parametrize("kind", ["alone", "beside"])
def test_on_a_superlink_the_bundle_makes_the_model_of_the_command(place, kind, tmp_path, request):
    scripts = request.getfixturevalue(kind)
    assert imports_fl_darex(scripts) == (kind == "beside")
    flower = Deployment(tmp_path, scripts=scripts, path=None)
    try:
        folder, log = run_on_a_superlink(flower, place)
    finally:
        flower.stop()
    assert flower.left() == []
    assert (folder / "model" / "model.safetensors").read_bytes() == place.model
    # A SuperNode whose data are not there costs its own replies, and the log says why.
    asked = {0: True, 1: True, 2: False}
    assert participants(exchanges(folder)) == {1: asked, 2: asked}
    reason = "dataset-path = '/nowhere' of this SuperNode: no such folder"
    assert log.count("client 2 does not count this round") == 2 == log.count(reason)
