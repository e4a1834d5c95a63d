"""A step of AdamR beside torch's AdamW and the official code's way to do it: time and memory.

    python benchmarks/adamr.py            # runs everything, writes benchmarks/results/
    python benchmarks/adamr.py --table    # prints the table of the committed results

BERT-base's 109.5 M float32 parameters with made-up gradients. All optimizers share parameters and
gradients and take turns in one process, step by step; times are medians. Memory is what a process
of its own holds at most during a step, beyond parameters, gradients, moments and anchor, in models
of float32 (Linux). `Official` is our own transcription of how the official class works: it copies
the pre-trained model at every step and walks through the parameters twice, one operation after the
other. Its print for each parameter is left out. "compiled" is with Numba (`pip install
'fl-darex[fast]'`), loaded before; all others are without.
"""

from __future__ import annotations

import copy
import math
import multiprocessing
import platform
import time
from collections.abc import Callable
from importlib import metadata
from statistics import median
from typing import Annotated, Any

import torch
import typer
from aggregation import peak
from models import MODELS, entries
from rich.console import Console
from rich.table import Table
from runs import load, save
from torch import nn

from fl_darex import compiled
from fl_darex.observers.summary import versions
from fl_darex.optim import AdamR

MODEL, LR, DECAY, TURNS = "BERT-base", 1e-5, 0.01, 15
kernels = compiled.load(1.0)
ROW_OF = {
    "fused": "torch AdamW, fused",
    "foreach": "torch AdamW, foreach",
    "l2": "AdamR, l2",
    "l1": "AdamR, l1",
    "l1, compiled": "AdamR, l1, compiled",
    "official-l2": "official structure, l2",
    "official-l1": "official structure, l1",
}


class Official(torch.optim.Optimizer):
    """AdamR step by step as the official class takes it; for the comparison of time alone."""

    def __init__(self, params: list[nn.Parameter], anchor: list[torch.Tensor], norm: str) -> None:
        options = {"lr": LR, "betas": (0.9, 0.999), "eps": 1e-8, "decay": DECAY}
        super().__init__(params, options | {"pre_model": anchor, "norm": norm})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the moments and sum v; then copy the anchor and move each parameter."""
        total, count = 0.0, 0
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(step=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
                state["step"] += 1
                state["m"].mul_(beta1).add_(p.grad, alpha=1 - beta1)
                state["v"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                total = total + (state["v"] / (1 - beta2 ** state["step"])).sum()
                count += p.numel()
        root = math.sqrt(total / count) or 1.0
        for group in self.param_groups:
            for p, goal in zip(group["params"], copy.deepcopy(group["pre_model"]), strict=True):
                self._move(p, goal.to(p.device), group, root)

    def _move(
        self, p: nn.Parameter, goal: torch.Tensor, group: dict[str, Any], root: float
    ) -> None:
        (beta1, beta2), state = group["betas"], self.state[p]
        delta = p - goal if group["norm"] == "l2" else torch.sign(p - goal)
        p.add_(delta, alpha=-group["lr"] * group["decay"] / root)
        bias1, bias2 = (1 - beta ** state["step"] for beta in (beta1, beta2))
        denominator = (state["v"] / bias2).sqrt().add_(group["eps"])
        p.addcdiv_(state["m"], denominator, value=-group["lr"] / bias1)


def make(kind: str, params: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return an optimizer of the parameters, with the anchor a little away from them."""
    if kind in ("fused", "foreach"):
        return torch.optim.AdamW(params, LR, weight_decay=0.0, **{kind: True})
    with torch.no_grad():
        anchor = [p + 1e-3 * torch.randn_like(p) for p in params]
    if kind.startswith("official"):
        return Official(params, anchor, kind.removeprefix("official-"))
    norm: Any = kind.partition(",")[0]
    return AdamR(params, lr=LR, delta_decay=DECAY, norm=norm, anchor=anchor)


def compile_if(kind: str) -> None:
    """Take compiled loops from here on, or not."""
    if kernels is None:
        raise SystemExit("numba is not installed: pip install 'fl-darex[fast]'")
    compiled._State.kernels = kernels if kind.endswith("compiled") else None


def parameters() -> list[nn.Parameter]:
    """Return random parameters of the model's shapes, with gradients of norm 1 in all."""
    torch.manual_seed(0)
    params = [nn.Parameter(0.05 * torch.randn(shape)) for shape in MODELS[MODEL].values()]
    for p in params:
        p.grad = torch.randn_like(p) / entries(MODEL) ** 0.5
    return params


def memory(kind: str, threads: int) -> float:
    """Return what a step needs beyond what it leaves behind, in models; in this process."""
    torch.set_num_threads(threads)
    compile_if(kind)
    optimizer = make(kind, parameters())
    optimizer.step()  # moments are made in the first step
    return round(peak(optimizer.step) / (4 * entries(MODEL)), 3)


def times(threads: int) -> dict[str, float]:
    """Return each optimizer's median time of a step, all taking turns; in this process."""
    torch.set_num_threads(threads)
    params = parameters()
    optimizers = {kind: make(kind, params) for kind in ROW_OF}
    taken: dict[str, list[float]] = {kind: [] for kind in ROW_OF}
    for turn in range(TURNS + 1):
        for kind, optimizer in optimizers.items():
            compile_if(kind)
            spent = seconds(optimizer.step)
            if turn:  # the first step makes the moments
                taken[kind].append(spent)
    return {kind: round(median(spent), 4) for kind, spent in taken.items()}


def seconds(step: Callable[[], Any]) -> float:
    """Return the wall-clock time of one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure(threads: int) -> dict[str, Any]:
    """Measure all rows, each kind of measurement in processes of its own."""
    context = multiprocessing.get_context("spawn")

    def alone(function: Callable[..., Any], *arguments: Any) -> Any:
        with context.Pool(1) as pool:
            return pool.apply(function, arguments)

    spent = alone(times, threads)
    rows = [
        {"kind": kind, "step_seconds": spent[kind], "extra_models": alone(memory, kind, threads)}
        for kind in ROW_OF
    ]
    found = versions() | {"numba": metadata.version("numba")}
    return {"rows": rows, "threads": threads, "machine": platform.machine(), "versions": found}


def table(found: dict[str, Any]) -> Table:
    """Return time, memory and both ratios."""
    title = f"{MODEL}, {entries(MODEL) / 1e6:.1f} M, float32, {found['threads']} thread(s)"
    shown = Table(title=title)
    for column in ("", "step, s", "of fused AdamW", "faster than official", "extra models"):
        shown.add_column(column, justify="left" if not column else "right")
    rows = {row["kind"]: row for row in found["rows"]}
    fused = rows["fused"]["step_seconds"]
    for kind, row in rows.items():
        peer = rows.get(f"official-{kind.partition(',')[0]}")
        spent = row["step_seconds"]
        faster = f"{peer['step_seconds'] / spent:.1f}x" if peer else ""
        cells = (f"{spent:.3f}", f"{spent / fused:.2f}x", faster, f"{row['extra_models']:.3f}")
        shown.add_row(ROW_OF[kind], *cells)
    return shown


def main(
    table_only: Annotated[bool, typer.Option("--table", help="print, do not run")] = False,
    threads: Annotated[int, typer.Option(help="torch threads")] = 1,
) -> None:
    """Measure, write the results and print the table."""
    if not table_only:
        save("adamr", measure(threads))
    Console(width=110).print(table(load("adamr")))


if __name__ == "__main__":
    typer.run(main)
