"""Run folders and studies made by hand, of which every number is known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_darex.config import make_config

SHORT = {"federation.clients": 2, "federation.rounds": 4}
DENSE = 100_000
"""Bytes that a round would take with whole models."""


def write_run(
    folder: Path,
    metrics: Sequence[float | None] = (0.5, 0.6, 0.7, 0.8),
    settings: Mapping[str, Any] | None = None,
    up: int = 1000,
    down: int = 3000,
    **summary: Any,
) -> Path:
    """Two clients share each round's bytes equally; 100 bytes of handshake; 0.1 before round 1."""
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(SHORT | dict(settings or {}))
    (folder / "config.toml").write_text(config.to_toml(), "utf-8")
    rounds, clients = [], [exchange(0, 0, "handshake", 40, 60)]
    for number, metric in enumerate(metrics, start=1):
        q = None if config.compress.method == "dense" else 1 - config.compress.p
        row = {"round": number, "metric": metric, "up_bytes": up, "down_bytes": down, "q": q}
        rounds.append(row | {"rho": 0.5, "seconds": 1.0})
        clients += [exchange(number, who, "train", up // 2, down // 2) for who in range(2)]
    for name, rows in (("rounds", rounds), ("clients", clients)):
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, "utf-8")
    measured = [metric for metric in metrics if metric is not None]
    told = {
        "status": "finished" if len(metrics) == config.federation.rounds else "running",
        "reason": None,
        "metric_name": "accuracy",
        "initial_metric": 0.1,
        "final_metric": measured[-1] if measured else None,
        "rounds": len(metrics),
        "up_bytes": up * len(metrics),
        "down_bytes": down * len(metrics),
        "handshake_bytes": 100,
        "total_bytes": (up + down) * len(metrics) + 100,
        "dense_total_bytes": DENSE * len(metrics),
        "seed": config.federation.seed,
        "versions": {"python": "3.11.7", "fl-darex": "0.1.0"},
    }
    (folder / "summary.json").write_text(json.dumps(told | summary), "utf-8")
    return folder


def exchange(number: int, client: int, kind: str, up: int, down: int) -> dict[str, Any]:
    return {"round": number, "client": client, "kind": kind, "up_bytes": up, "down_bytes": down}


def write_study(folder: Path, runs: Sequence[Mapping[str, Any]], /, **told: Any) -> Path:
    """A ``study.json`` around runs, each as it has them; arms are theirs unless told."""
    names = list(dict.fromkeys(run["arm"] for run in runs))
    study = {
        "format": 1,
        "title": "A study",
        "command": "fl-darex study study.toml",
        "metric_name": "accuracy",
        "reference": "dense" if "dense" in names else None,
        "target": 0.9 if "dense" in names else None,
        "budgets": [5000, 10000],
        "links": [[1, 10]],
        "seeds": sorted({run["seed"] for run in runs}),
        "grid": [{}],
        "arms": [{"name": name, "settings": {}, "chosen": [{}]} for name in names],
        "runs": list(runs),
        "tuning": [],
        "remarks": [],
        "versions": {"python": "3.11.7", "fl-darex": "0.1.0"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(study | told), "utf-8")
    return folder


def entry(
    arm: str, seed: int, folder: str, status: str = "finished", point: int = 0, reason: str = ""
) -> dict[str, Any]:
    told = {"arm": arm, "point": point, "seed": seed, "folder": folder, "status": status}
    return told | {"reason": reason or None}
