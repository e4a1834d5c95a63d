"""What DarexMod costs a client: MiniLM on 200 sentences, one local epoch, with the mod and without.

    python benchmarks/overhead.py --data FOLDER    # a folder with train.jsonl of SST-2
    python benchmarks/overhead.py                  # made-up sentences of the same lengths
    python benchmarks/overhead.py --table          # prints the table of the committed results

One client under ``DarexStrategy(FedAvg())`` (p = .99, fp16, ``downlink="update"``: the defaults).
Each message is answered twice, in turns: by a plain ClientApp, which is given the whole model, and
by the same one with the mod, made anew as in a deployment, where each message has a process of its
own. The first message brings the whole model and the mod writes it to disk; the others bring a
packet, and the mod reads the last model, applies the packet, and writes the new one. "mod" is what
passes between the call of the ClientApp and the call of its train function, and back: all that the
mod does, and what Flower itself does there, which the plain app's row shows. Process time, one
thread; imports and the start of a process, which are the same for both, are not in it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from rich.console import Console
from rich.table import Table
from runs import load, save
from search_q import examples, packaged
from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging

from fl_darex.clients import DarexMod
from fl_darex.flower.private import with_content
from fl_darex.flower.records import view_arrays
from fl_darex.observers.summary import versions
from fl_darex.strategies import DarexStrategy

EXAMPLES, BATCH, LR = 200, 32, 2e-5
WORDS = "a bad but good film of its own that never makes the most funny plot feel true".split()


def sentences(data: str) -> list[dict[str, Any]]:
    """Return what the client trains on: SST-2, or made-up text of about as many words."""
    if data:
        return list(islice(examples(data), EXAMPLES))
    rng = np.random.default_rng(0)
    lengths = rng.geometric(1 / 9.5, EXAMPLES).clip(1, 50)  # SST-2 has 9.4 words on average
    return [
        {"sentence": " ".join(rng.choice(WORDS, length)), "label": int(rng.integers(2))}
        for length in lengths
    ]


class Trainer:
    """A train function as anybody writes it; notes how long it took.

    Args:
        data: Folder with train.jsonl of SST-2; empty: made-up text.
    """

    def __init__(self, data: str) -> None:
        folder = packaged()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        torch.manual_seed(0)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).float()
        rows = sentences(data)
        self.batches = []
        for start in range(0, EXAMPLES, BATCH):
            some = rows[start : start + BATCH]
            texts = [row["sentence"] for row in some]
            batch = dict(tokenizer(texts, padding=True, return_tensors="pt"))
            self.batches.append(batch | {"labels": torch.tensor([row["label"] for row in some])})
        self.seconds = 0.0

    def __call__(self, message: Message, context: Context) -> Message:
        """Train one epoch on what the message brings."""
        start = time.process_time()
        record = next(iter(message.content.array_records.values()))
        self.model.load_state_dict(record.to_torch_state_dict())
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, fused=True)
        self.model.train()
        for batch in self.batches:
            optimizer.zero_grad()
            self.model(**batch).loss.backward()
            optimizer.step()
        metrics = MetricRecord({"num-examples": EXAMPLES})
        content = RecordDict({"arrays": ArrayRecord(self.model.state_dict()), "metrics": metrics})
        reply = Message(content, reply_to=message)
        self.seconds = time.process_time() - start
        return reply

    def app(self, *mods: Any) -> ClientApp:
        """Return a ClientApp with this train function."""
        app = ClientApp(mods=list(mods))
        app.train()(self)
        return app


class Bench:
    """Stands where a ClientApp stands; answers each message with and without the mod.

    Args:
        trainer: The train function.
        start: The model before round 1.
    """

    def __init__(self, trainer: Trainer, start: ArrayRecord) -> None:
        self.trainer, self.start = trainer, start
        self.rows: list[dict[str, float]] = []

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer with the mod's reply."""
        whole = RecordDict({**message.content})
        whole[next(iter(message.content.array_records))] = ArrayRecord(dict(self.start))
        plain = with_content(message, whole)

        def without() -> Any:
            return self._timed(self.trainer.app(), plain, context)

        def with_mod() -> Any:
            return self._timed(self.trainer.app(DarexMod()), message, context)

        first: tuple[Callable[[], Any], ...] = (without, with_mod)
        order = first if len(self.rows) % 2 else first[::-1]
        found = {one.__name__: one() for one in order}
        reply, seconds, mod = found["with_mod"]
        _, plain_seconds, flower = found["without"]
        self.rows.append(
            {"plain": plain_seconds, "with_mod": seconds, "mod": mod, "flower": flower}
        )
        return reply

    def _timed(self, app: ClientApp, message: Message, context: Context) -> Any:
        start = time.process_time()
        reply = app(message, context)
        seconds = time.process_time() - start
        return reply, seconds, seconds - self.trainer.seconds


def measure(data: str, rounds: int) -> dict[str, Any]:
    """Run one client for some rounds and return all measurements, in seconds."""
    from fl_darex.simulation import InProcessGrid

    trainer = Trainer(data)
    start = ArrayRecord(trainer.model.state_dict())
    bench = Bench(trainer, start)
    strategy = DarexStrategy(
        FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1), dense_below=0
    )
    strategy.start(InProcessGrid(bench, 1), start, num_rounds=rounds, timeout=60)
    tokens = [int(batch["attention_mask"].sum()) for batch in trainer.batches]
    return {
        "data": "sst2" if data else "made up",
        "parameters": sum(array.size for array in view_arrays(start).values()),
        "examples": EXAMPLES,
        "batch": BATCH,
        "tokens": sum(tokens),
        "up_bytes": [entry.up_bytes for entry in strategy.ledger.entries if entry.round],
        "rounds": [{k: round(v, 4) for k, v in row.items()} for row in bench.rows],
        "load": round(os.getloadavg()[0], 1),
        "versions": versions(),
    }


def table(found: dict[str, Any]) -> Table:
    """Return seconds of an epoch and of the mod, for the first message and for the others."""
    title = f"MiniLM, {found['parameters'] / 1e6:.1f} M, {found['examples']} sentences, one epoch"
    shown = Table(title=f"{title}; process time, s")
    columns = ("message", "plain app", "with the mod", "mod", "of an epoch", "Flower's own part")
    for column in columns:
        shown.add_column(column, justify="left" if column == "message" else "right")
    for name, rows in (("the whole model", found["rounds"][:1]), ("a packet", found["rounds"][1:])):
        plain, with_mod, mod, flower = (
            median(row[key] for row in rows) for key in ("plain", "with_mod", "mod", "flower")
        )
        shown.add_row(
            f"{name} ({len(rows)})",
            *(f"{plain:.2f}", f"{with_mod:.2f}", f"{mod:.3f}", f"{mod / plain:.1%}"),
            f"{flower:.3f}",
        )
    return shown


def main(
    data: Annotated[str, typer.Option(help="folder with train.jsonl of SST-2")] = "",
    rounds: Annotated[int, typer.Option(help="messages that are answered")] = 10,
    table_only: Annotated[bool, typer.Option("--table", help="print, do not run")] = False,
) -> None:
    """Measure, write the results and print the table."""
    if not table_only:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as cache:
            os.environ["FL_DAREX_CACHE"] = cache
            save("overhead", measure(data, rounds))
    Console(width=110).print(table(load("overhead")))


if __name__ == "__main__":
    typer.run(main)
