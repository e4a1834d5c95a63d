"""What a run is, in a few lines before round 1."""

from __future__ import annotations

from rich.table import Table

from fl_darex.config import CompressConfig, RunConfig
from fl_darex.observers import RunStart
from fl_darex.shown import counted

_OWN = "the task's own"

_MASKS = {
    "round": ", one mask for all clients",
    "disjoint": ", masks that share no entry",
    "auto": ", masks as rho suggests",
}


def header(start: RunStart) -> Table:
    """Return what is known of a run before its first round."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows(start):
        table.add_row(*row)
    return table


def rows(start: RunStart) -> list[tuple[str, str]]:
    """Return the lines of `header`, each a word and what is to be said of it."""
    config = start.config
    return [
        ("task", config.task.name),
        ("model", _model(start)),
        ("data", _data(start)),
        ("metric", _metric(start)),
        ("clients", _clients(config)),
        ("training", _training(config)),
        ("up", _up(config)),
        ("down", _down(config.compress)),
    ]


def _model(start: RunStart) -> str:
    task, train = start.config.task, start.config.train
    where = task.model or _OWN
    what = f"{start.parameters:,} parameters"
    if train.chosen is not None:
        rank = f" of rank {train.rank}" if train.rank else ""
        what = f"{train.chosen.name} adapters{rank}, {start.parameters:,} exchanged parameters"
    return f"{where} ({start.model}), {what}"


def _data(start: RunStart) -> str:
    task = start.config.task
    where = " ".join(filter(None, (task.dataset, task.subset))) or _OWN
    classes = f", {start.classes} classes" if start.classes else ""
    return (
        f"{where}: {start.examples:,} examples to train on, "
        f"{start.evaluation_examples:,} to measure on{classes}"
    )


def _metric(start: RunStart) -> str:
    federation, every = start.config.federation, start.config.federation.evaluate_every
    if federation.evaluate == "none":
        return f"{start.metric_name}, not measured (federation.evaluate = 'none')"
    if federation.evaluate == "clients":
        return f"{start.metric_name}, by the clients after each round"
    after = "each round" if every == 1 else f"every {every} rounds and the last"
    return f"{start.metric_name}, after {after}"


def _clients(config: RunConfig) -> str:
    federation = config.federation
    share = f"{federation.sample_size} of {federation.clients}"
    details = {
        "dirichlet": f", alpha {federation.alpha:g}",
        "pathological": f", {federation.classes_per_client} classes each",
        "natural": f" by {federation.partition_column}",
    }
    partition = federation.partition + details.get(federation.partition, "")
    rounds = counted(federation.rounds, "round")
    return f"{share} a round, {rounds}; {partition}; seed {federation.seed}"


def _training(config: RunConfig) -> str:
    train = config.train
    decay = f"delta-decay {train.delta_decay:g}"
    if train.optimizer == "adamw":
        decay = f"weight-decay {train.weight_decay:g}"
    examples = train.batch_size * train.grad_accumulation
    how_long = counted(train.local_steps, "step") if train.local_steps else ""
    how_long = how_long or counted(train.local_epochs, "epoch")
    return f"{train.optimizer}, lr {train.lr:g}, {decay}; {how_long} of {examples} a round"


def _up(config: RunConfig) -> str:
    compress = config.compress
    if not compress.chosen.packs:
        return f"{compress.method}: whole models"
    asked = config.uplink()
    q = f"q = {asked.divisor:.6g}"
    if isinstance(asked.q, str) and asked.q != "dare":
        q = f"q by {asked.q}" + (" on each client" if asked.rule else "")
    words = _MASKS.get(compress.mask, "")
    words += "" if compress.rotate else ", fixed for the run"
    words += ", trained on the mask alone" if asked.mask_first else ""
    return f"{compress.method}, p = {compress.p:g}, {q}, {compress.values}{words}"


def _down(compress: CompressConfig) -> str:
    words = {
        "dense": "whole models",
        "update": f"what changed, {compress.server_values}",
        "server": f"the largest changes, p = {compress.server_p:g}, {compress.server_values}",
    }
    return (
        f"{compress.downlink}: {words[compress.downlink]}"
        if compress.downlink in words
        else (compress.downlink)
    )
