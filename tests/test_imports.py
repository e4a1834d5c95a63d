"""What runs where only numpy and flwr are installed."""

import subprocess
import sys
import tomllib
from pathlib import Path

WITHOUT_HEAVY_PACKAGES = """
import sys
from importlib.abc import MetaPathFinder

HEAVY = {"torch", "ray", "transformers", "datasets", "pydantic"}


class NotInstalled(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ImportError(f"{name} is not installed")


sys.meta_path.insert(0, NotInstalled())
"""

ONE_ROUND = """
import numpy as np
from flwr.app import ArrayRecord, Array, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fl_darex.clients import DarexMod
from fl_darex.simulation import InProcessGrid
from fl_darex.strategies import DarexStrategy

CLIENTS, SIZE = 4, 10_000
app = ClientApp(mods=[DarexMod()])


@app.train()
def train(message, context):
    (name, record), = message.content.array_records.items()
    moved = {key: Array(array.numpy() + np.float32(1)) for key, array in record.items()}
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({name: ArrayRecord(moved), "m": metrics}), reply_to=message)


flower = FedAvg(min_train_nodes=CLIENTS, min_available_nodes=CLIENTS, fraction_evaluate=0.0)
strategy = DarexStrategy(flower, p=0.75, values="fp32", seed=7)
start = ArrayRecord({"w": Array(np.zeros(SIZE, dtype=np.float32))})
result = strategy.start(InProcessGrid(app, CLIENTS), start, num_rounds=1)

w = result.arrays["w"].numpy()
assert strategy.counted == CLIENTS
# Each client adds 1/q = 4 to a quarter of the entries, so an entry is the number of clients that
# kept it, of mean 1 and variance CLIENTS * 3/16.
assert set(np.unique(w)) <= set(range(CLIENTS + 1)), np.unique(w)
assert abs(w.mean() - 1) < 5 * (CLIENTS * 3 / 16 / SIZE) ** 0.5, w.mean()
up = sum(entry.up_bytes for entry in strategy.ledger.of_round(1))
assert 0 < up < CLIENTS * SIZE * 4 * 0.26 + 4_000, up
assert not HEAVY & set(sys.modules)
"""


def run(code):
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:fl_darex", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_costs_numpy_at_most():
    loaded = run(
        "import sys; before = set(sys.modules); import fl_darex\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    ).split()
    outside = set(loaded) - set(sys.stdlib_module_names) - {"fl_darex"}
    assert outside <= {"numpy"}


def test_masks_wire_and_both_halves_import_without_the_heavy_packages():
    rooms = ("masks", "rescaling", "wire", "clients", "strategies")
    names = ["fl_darex", *(f"fl_darex.{room}" for room in rooms)]
    imports = "".join(f"import {name}\n" for name in names)
    run(WITHOUT_HEAVY_PACKAGES + imports + "assert not HEAVY & set(sys.modules)")


def test_mod_and_strategy_carry_a_round_without_the_heavy_packages():
    run(WITHOUT_HEAVY_PACKAGES + ONE_ROUND)


# Flower looks for both apps from two threads while a third may still import the package.
WHILE_THE_PACKAGE_IS_IMPORTED = """
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec
from threading import Event, Thread

begun, go_on, found = Event(), Event(), []
run = SourceFileLoader.exec_module


def slowly(self, module):
    if module.__name__ == "fl_darex":
        begun.set()
        go_on.wait(60)
    run(self, module)


SourceFileLoader.exec_module = slowly
importing = Thread(target=__import__, args=("fl_darex",))
importing.start()
assert begun.wait(60)
looking = Thread(target=lambda: found.append(find_spec(sys.argv[1])))
looking.start()
looking.join(0.5)
assert not found  # it waits
go_on.set()
looking.join(60)
importing.join(60)
assert found and found[0] is not None
"""


def test_the_apps_that_flower_is_told_of_are_found_while_another_thread_imports_the_package():
    pyproject = Path(__file__).resolve().parent.parent / "pyproject.toml"
    components = tomllib.loads(pyproject.read_text())["tool"]["flwr"]["app"]["components"]
    for reference in components.values():
        run(WHILE_THE_PACKAGE_IS_IMPORTED.replace("sys.argv[1]", repr(reference.split(":")[0])))
