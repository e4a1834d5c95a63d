"""Which strategies of Flower go with which mask and downlink, and what is left of the traffic.

    python benchmarks/composition.py             # a minute
    python benchmarks/composition.py --table     # prints the table of the committed results

Four clients, 600,000 float32 parameters, p = .99, fp16, no training: clients add noise of their
own. Ratios are of messages as Flower serialises them, dense to sent: up over the whole run, down in
round 6 (strategies with momentum change more entries each round).
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import typer
from flwr.app import Context, Message
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg, Strategy
from rich.console import Console
from rich.table import Table
from runs import ROOT, load, save

from fl_darex.clients import DarexMod
from fl_darex.strategies import DarexStrategy

sys.path.insert(0, str(ROOT / "tests"))

CLIENTS, ROUNDS = 4, 6
OPTIONS: dict[str, Any] = {
    "min_train_nodes": CLIENTS,
    "min_available_nodes": CLIENTS,
    "fraction_evaluate": 0.0,
}
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": lambda: FedAvg(**OPTIONS),
    "FedProx": lambda: flower.FedProx(proximal_mu=0.1, **OPTIONS),
    "FedAdagrad": lambda: flower.FedAdagrad(eta=0.01, **OPTIONS),
    "FedAvgM": lambda: flower.FedAvgM(server_momentum=0.9, **OPTIONS),
    "FedAdam": lambda: flower.FedAdam(eta=0.01, **OPTIONS),
    "FedYogi": lambda: flower.FedYogi(eta=0.01, **OPTIONS),
    "FedMedian": lambda: flower.FedMedian(**OPTIONS),
    "FedTrimmedAvg": lambda: flower.FedTrimmedAvg(**OPTIONS),
    "Krum": lambda: flower.Krum(num_malicious_nodes=1, **OPTIONS),
    "MultiKrum": lambda: flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=2, **OPTIONS),
    "Bulyan": lambda: flower.Bulyan(num_malicious_nodes=0, **OPTIONS),
    "QFedAvg": lambda: flower.QFedAvg(
        client_learning_rate=0.1, train_loss_key="num-examples", q=0.2, **OPTIONS
    ),
    "DP, server side": lambda: flower.DifferentialPrivacyServerSideFixedClipping(
        FedAvg(**OPTIONS), 0.01, 0.5, CLIENTS
    ),
    "DP, client side": lambda: flower.DifferentialPrivacyClientSideFixedClipping(
        FedAvg(**OPTIONS), 0.01, 0.5, CLIENTS
    ),
    "FedAvg where one client of four lacks the mod": lambda: FedAvg(**OPTIONS),
}
CHOICES = [(mask, downlink) for mask in ("client", "round") for downlink in ("update", "server")]


def run(name: str, mask: str, downlink: str) -> dict[str, Any]:
    """Run one strategy; a combination that is refused has the reason in place of ratios."""
    from apps import numpy_app
    from federations import rounds

    from fl_darex.simulation import InProcessGrid

    row: dict[str, Any] = {"strategy": name, "mask": mask, "downlink": downlink}
    modded, plain = numpy_app([DarexMod()]), numpy_app()

    def app(message: Message, context: Context) -> Message:
        without = "lacks" in name and context.node_config["partition-id"] == 3
        return (plain if without else modded)(message, context)

    try:
        strategy = DarexStrategy(STRATEGIES[name](), mask=mask, downlink=downlink, dense_below=0)
    except ValueError as error:
        return row | {"refused": str(error)}
    rng = np.random.default_rng(0)
    model = {f"{i}.weight": np.float32(rng.normal(size=(300, 1000))) for i in range(2)}
    rounds(strategy, InProcessGrid(app, CLIENTS), ROUNDS, model)
    if strategy.counted != CLIENTS:
        raise RuntimeError(f"{row}: {strategy.counted} replies counted, expected {CLIENTS}")
    # Where one client has no mod, its own dense messages are not what the table is about.
    entries = [
        e for e in strategy.ledger.entries if e.round and not ("lacks" in name and e.client == 3)
    ]
    last = [entry for entry in entries if entry.round == ROUNDS]
    up = sum(e.dense_up_bytes for e in entries) / sum(e.up_bytes for e in entries)
    down = sum(e.dense_down_bytes for e in last) / sum(e.down_bytes for e in last)
    return row | {"up": up, "down": down}


def table(rows: list[dict[str, Any]]) -> Table:
    """Return the ratio down of each combination."""
    shown = Table(title="how much smaller the way down is in round 6; four clients, p = .99, fp16")
    shown.add_column("strategy")
    for mask, downlink in CHOICES:
        shown.add_column(f"mask {mask}, {downlink}", justify="right")
    for name in STRATEGIES:
        mine = {(r["mask"], r["downlink"]): r for r in rows if r["strategy"] == name}
        cells = [mine[choice] for choice in CHOICES]
        shown.add_row(name, *("refused" if "refused" in c else f"{c['down']:.0f}x" for c in cells))
    return shown


def main(
    table_only: Annotated[bool, typer.Option("--table", help="print, do not run")] = False,
) -> None:
    """Run all combinations, write the results and print the table."""
    if not table_only:
        logging.getLogger("flwr").setLevel(logging.ERROR)
        with tempfile.TemporaryDirectory() as cache:
            os.environ["FL_DAREX_CACHE"] = cache
            rows = [run(name, *choice) for name in STRATEGIES for choice in CHOICES]
        save("composition", rows)
    rows = load("composition")
    Console(width=130).print(table(rows))
    up = [row["up"] for row in rows if "up" in row]
    Console().print(f"the way up is smaller by {min(up):.0f}x to {max(up):.0f}x")


if __name__ == "__main__":
    typer.run(main)
