"""What secure aggregation costs: bytes per survivor and per client, and time, beside the clear.

    python benchmarks/secure.py            # measures, writes benchmarks/results/secure.json
    python benchmarks/secure.py --table    # prints the table of the committed results

Clients and server run in one process, without training: times are those of the protocol.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import numpy as np
import typer
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from rich.console import Console
from rich.table import Table
from runs import load, save

from fl_darex.clients import DarexMod
from fl_darex.flower.records import to_arrays, to_record
from fl_darex.simulation import InProcessGrid
from fl_darex.strategies import DarexStrategy, SecureAggregation

SIZE, P = 1_000_000, 0.99

CASES: list[tuple[str, int, str, SecureAggregation | None]] = [
    ("in the clear, fp32", 10, "fp32", None),
    ("in the clear, fp16", 10, "fp16", None),
    ("in the clear, int8", 10, "int8", None),
    *(
        (f"secure, bits={bits}", 10, "", SecureAggregation(range=0.02, max_weight=10, bits=bits))
        for bits in (12, 16, 20, 28)
    ),
    ("secure, bits=16", 50, "", SecureAggregation(range=0.02, max_weight=50)),
    (
        "secure, bits=16, neighbours=20",
        50,
        "",
        SecureAggregation(range=0.02, max_weight=50, neighbours=20),
    ),
]


def app() -> ClientApp:
    """Returns the model plus a little noise; keeps clients' states as an engine does."""
    states: dict[int, RecordDict] = {}

    def stateful(message: Message, context: Context, call_next: Any) -> Message:
        context.state = states.setdefault(context.node_id, RecordDict())
        return call_next(message, context)

    made = ClientApp(mods=[stateful, DarexMod()])

    @made.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        rng = np.random.default_rng(partition)
        name, record = next(iter(message.content.array_records.items()))
        step = rng.normal(scale=0.004, size=SIZE).astype(np.float32)
        arrays = {key: value + step for key, value in to_arrays(record).items()}
        metrics = MetricRecord({"num-examples": partition + 1})
        return Message(RecordDict({name: to_record(arrays), "metrics": metrics}), reply_to=message)

    return made


def measure(
    name: str, clients: int, values: str, secure: SecureAggregation | None
) -> dict[str, Any]:
    """Run one round and return what it cost a client."""
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    strategy = DarexStrategy(
        inner, P, mask="round", count="exact", values=values or "fp16", secure=secure, dense_below=0
    )
    base = to_record({"weight": np.zeros(SIZE, dtype=np.float32)})
    start = time.perf_counter()
    strategy.start(InProcessGrid(app(), clients), base, num_rounds=1)
    seconds = time.perf_counter() - start
    entries = strategy.ledger.entries
    trained = [entry for entry in entries if entry.kind == "train"]
    short = [entry for entry in entries if entry.kind == "secure"]
    survivors, update = SIZE // 100, np.mean([entry.up_bytes for entry in trained])
    return {
        "way": name,
        "clients": clients,
        "bytes_per_survivor": update / survivors,
        "bytes_per_parameter": update / SIZE,
        "short_up_bytes": sum(entry.up_bytes for entry in short) / clients,
        "short_down_bytes": sum(entry.down_bytes for entry in short) / clients,
        "letters_down_bytes": np.mean([entry.down_bytes for entry in trained]) - _down(trained),
        "ratio_up": np.mean([e.dense_up_bytes for e in trained])
        / (update + sum(entry.up_bytes for entry in short) / clients),
        "seconds": seconds,
    }


def _down(trained: list[Any]) -> float:
    return float(np.mean([entry.dense_down_bytes for entry in trained]))


def table(results: list[dict[str, Any]]) -> Table:
    """Return the results as a table."""
    shown = Table(title=f"{SIZE:,} parameters, p = {P}: one client's part of a round")
    for column in ("", "clients", "B/survivor", "B/parameter", "short up", "short down", "up, x"):
        shown.add_column(column, justify="left" if not column else "right")
    for row in results:
        shown.add_row(
            row["way"],
            str(row["clients"]),
            f"{row['bytes_per_survivor']:.2f}",
            f"{row['bytes_per_parameter']:.4f}",
            f"{row['short_up_bytes']:,.0f}",
            f"{row['short_down_bytes']:,.0f}",
            f"{row['ratio_up']:.0f}",
        )
    return shown


def main(show: Annotated[bool, typer.Option("--table")] = False) -> None:
    """Measure, or print what was measured."""
    if not show:
        save("secure", [measure(*case) for case in CASES])
    Console(width=110).print(table(load("secure")))


if __name__ == "__main__":
    typer.run(main)
