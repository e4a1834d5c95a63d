"""The apps of examples/: before and after the patches that plug fl-darex in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from example_apps import EXAMPLES, ROOT, prepare, run_direct
from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate

from fl_darex.simulation.own_modules import imported_from

APPS = ("torch-app", "sklearn-app")
FEW_STEPS = {"num-server-rounds": 2, "batch-size": 360}  # one mini-batch of each client's half

# Flower still uses a pattern class that pathspec will drop.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pathspec")


def changed(folder: Path, name: str, *patches: str) -> dict[str, list[str]]:
    """What patches change in each file, as lines that begin with + or -."""
    before, after = (prepare(name, folder / str(len(p)), *p) for p in (patches[:-1], patches))
    found = {}
    for file in sorted(path.relative_to(after) for path in after.rglob("*") if path.is_file()):
        old, new = ((side / file).read_text("utf-8").splitlines() for side in (before, after))
        lines = [f"-{line}" for line in old if line not in new]
        found[file.as_posix()] = [*lines, *(f"+{line}" for line in new if line not in old)]
    return {file: lines for file, lines in found.items() if lines}


@pytest.mark.parametrize("name", APPS)
def test_two_lines_their_imports_and_a_dependency_are_all_that_changes(name, tmp_path):
    package = name.replace("-", "_")
    plain = 'FedAvg(fraction_evaluate=float(config["fraction-evaluate"]))'
    assert changed(tmp_path, name, "darex.patch") == {
        "pyproject.toml": ['+    "fl-darex",'],
        f"{package}/client_app.py": [
            "-app = ClientApp()",
            "+from fl_darex.clients import DarexMod",
            "+app = ClientApp(mods=[DarexMod()])",
        ],
        f"{package}/server_app.py": [
            f"-    strategy = {plain}",
            "+from fl_darex.strategies import DarexStrategy",
            f"+    strategy = DarexStrategy({plain})",
        ],
    }


def test_a_client_that_holds_the_initial_model_says_so_in_its_own_file_alone(tmp_path):
    found = changed(tmp_path, "torch-app", "darex.patch", "base.patch")
    assert list(found) == ["torch_app/client_app.py"]
    assert "+app = ClientApp(mods=[DarexMod(base=held)])" in found["torch_app/client_app.py"]


def test_the_optimizer_of_the_paper_is_a_third_line(tmp_path):
    assert changed(tmp_path, "torch-app", "adamr.patch") == {
        "torch_app/task.py": [
            "-    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)",
            "+from fl_darex import AdamR",
            "+    optimizer = AdamR(model.parameters(), lr=lr, delta_decay=0.1)",
        ]
    }


@pytest.mark.parametrize("name", APPS)
@pytest.mark.parametrize("patches", [(), ("darex.patch",)], ids=["before", "after"])
def test_flower_bundles_an_example_and_finds_nothing_to_complain_about(name, patches, tmp_path):
    app = prepare(name, tmp_path, *patches)
    assert build_fab_from_disk(app)
    _, warnings = load_and_validate(app / "pyproject.toml", check_module=False)
    assert warnings == []


def torch_tensors(file: Path) -> dict[str, np.ndarray]:
    import torch

    return {name: tensor.numpy() for name, tensor in torch.load(file).items()}


def share_changed(found: dict[str, np.ndarray], start: dict[str, np.ndarray]) -> float:
    moved = sum(int((found[name] != start[name]).sum()) for name in start)
    return moved / sum(array.size for array in start.values())


def test_the_torch_app_runs_before_and_after_and_sends_less(tmp_path):
    dense, out = run_direct(prepare("torch-app", tmp_path / "0"), 2, **FEW_STEPS)
    plain = torch_tensors(out)
    app = prepare("torch-app", tmp_path / "1", "darex.patch")
    sent, out = run_direct(app, 2, **FEW_STEPS)
    pruned = torch_tensors(out)
    with imported_from(app):
        from torch_app.task import initial_model

        model = initial_model()
    start = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert sum(array.size for array in start.values()) > 5_000_000
    # Two clients in two rounds keep 1 % each; entries without a gradient do not move.
    assert 0.01 < share_changed(pruned, start) < 1 - 0.99**4 + 0.002
    assert share_changed(plain, start) > 0.5
    assert ratio(dense, sent, "up_bytes") > 190
    # The first message of each client is whole, the other three are not.
    assert ratio(dense, sent, "down_bytes") == pytest.approx(4, rel=0.05)

    held, _ = run_direct(
        prepare("torch-app", tmp_path / "2", "darex.patch", "base.patch"), 2, **FEW_STEPS
    )
    assert ratio(dense, held, "down_bytes") > 100
    assert not any(entry.failed for ledger in (dense, sent, held) for entry in exchanges(ledger))


def exchanges(ledger):
    """The entries of a ledger but for the handshake, which a plain app does not answer."""
    return [entry for entry in ledger.entries if entry.kind != "handshake"]


def ratio(dense, sent, column: str) -> float:
    return sum(getattr(e, column) for e in dense.entries) / sum(
        getattr(e, column) for e in sent.entries
    )


WITHOUT_TORCH = """
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path


class NotInstalled(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ImportError(f"{name} is not installed")


sys.meta_path.insert(0, NotInstalled())

import numpy as np
from example_apps import prepare, run_direct

up = []
for patches in ((), ("darex.patch",)):
    app = prepare("sklearn-app", Path(sys.argv[1], str(len(patches))), *patches)
    ledger, out = run_direct(app, 2, **{"num-server-rounds": 2, "batch-size": 360})
    trained = [entry for entry in ledger.entries if entry.kind != "handshake"]
    assert len(trained) == 8 and not any(entry.failed for entry in trained), trained
    up.append(sum(entry.up_bytes for entry in ledger.entries))
    arrays = np.load(out)
    assert sum(array.size for array in arrays.values()) > 5_000_000
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
assert up[0] / up[1] > 190, up
assert "torch" not in sys.modules
"""


@pytest.mark.slow
def test_the_scikit_learn_app_runs_before_and_after_where_torch_is_not_installed(tmp_path):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", APPS)
def test_an_example_explains_itself(name):
    text = (EXAMPLES / name / "README.md").read_text("utf-8")
    assert "patch -p1 < darex.patch" in text and "flwr run ." in text
