"""Flower's own example apps on local data, plain and with the two lines, on two engines.

    python benchmarks/flower_examples.py --flower ../flower    # apps that the results lack
    python benchmarks/flower_examples.py --flower ../flower --only fl-tabular --again
    python benchmarks/flower_examples.py --table               # prints the committed results

``--flower`` is a checkout of https://github.com/adap/flower. Each app is copied, its data sets are
local ones of the same columns and shapes (``flower_apps/local_data.py``), and nothing else changes
but the two lines (``flower_apps/two_lines.py``). "plain" is the app as it is, "two lines" has the
defaults (p = .99, fp16), "p=.9" is for large steps, "K" is ``DarexStrategy(..., p=0,
values="fp32")``, which has to equal plain to round-off. "one ulp" is plain with every number of
every reply moved by a unit in its last place: what round-off comes to where an app's training
amplifies it. Bytes are those of all messages, counted in the same way for all of them
(``LedgerGrid``). Apps whose framework is not installed are left out, with a line.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from flower_apps.rows import APPS, App
from flower_apps.two_lines import put_into
from rich.console import Console
from runs import RESULTS, ROOT, load, save

from fl_darex.observers.summary import versions
from fl_darex.simulation.project import read

# What DarexStrategy is given; None: the app as it is.
VARIANTS = {
    "plain": None,
    "two lines": "",
    "p=.9": ", p=0.9",
    "K": ', p=0, values="fp32"',
    "one ulp": None,
}
RUNS = [("local", variant) for variant in VARIANTS] + [("ray", "plain"), ("ray", "two lines")]
TRIAL = RUNS[: len(VARIANTS)]
HEADS = (
    *("app", "parameters", "metric", "plain", "two lines", "p=.9"),
    *("K", "one ulp", "MB up", "MB down"),
)
FRAMEWORKS = ("keras", "jax", "flax", "pytorch-lightning", "monai", "fastai", "opacus", "pennylane")


def run(name: str, app: App, source: Path, scratch: Path, wanted: list[Any]) -> dict[str, Any]:
    """Run an app in the wanted variants."""
    jobs = []
    for engine, variant in wanted:
        out = scratch / f"{engine}-{variant.replace(' ', '-')}"
        job = prepare(name, app, source, Path(f"{out}.app"), VARIANTS[variant])
        jobs.append({**job, "engine": engine, "variant": variant, "out": str(out)})
    start(jobs, scratch / "log.txt")
    runs, models = [], []
    for (engine, variant), job in zip(wanted, jobs, strict=True):
        said = json.loads(Path(f"{job['out']}.json").read_text("utf-8"))
        with np.load(f"{job['out']}.npz") as saved:
            models.append(dict(saved))
        runs.append(
            {"engine": engine, "variant": variant, "apart": apart(models[0], models[-1]), **said}
        )
    return {
        "app": name,
        "parameters": sum(array.size for array in models[0].values()),
        "tensors": len(models[0]),
        "clients": app.clients,
        "metric": app.metric,
        "settings": dict(app.settings),
        "runs": runs,
        "same_bits": apart(models[1], models[-1]) == 0,
        "versions": versions() | _frameworks(),
    }


def prepare(
    name: str, app: App, source: Path, folder: Path, arguments: str | None
) -> dict[str, Any]:
    """Copy an app, with the two lines if there are arguments; return what is to be run."""
    copy = folder / name
    shutil.copytree(source / "examples" / name, copy)
    project = read(copy)
    halves = dict(project.components)
    if arguments is not None:
        client, server = (
            copy / (halves[half].partition(":")[0].replace(".", "/") + ".py")
            for half in ("clientapp", "serverapp")
        )
        put_into(client, server, arguments)
    app.prepare(copy)
    config = project.run_config(app.settings)
    job = {"folder": str(copy), "config": config, "clients": app.clients, "examples": app.examples}
    return {**job, **halves}


def start(jobs: list[dict[str, Any]], log: Path) -> None:
    """Run jobs in a process of their own."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
        "TF_NUM_INTRAOP_THREADS": "1",
        "WANDB_MODE": "disabled",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "FLWR_TELEMETRY_ENABLED": "0",
    }
    with log.open("w", encoding="utf-8") as out:
        command = [sys.executable, "-m", "flower_apps.one", json.dumps(jobs)]
        done = subprocess.run(command, env=environment, stdout=out, stderr=out, cwd=log.parent)
    if done.returncode:
        told = log.read_text("utf-8").splitlines()[-30:]
        raise RuntimeError("\n".join([f"{log} ends with:", *told]))


def apart(plain: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Return the largest difference of two models, as a share of plain's largest entry."""
    if set(plain) != set(other):
        return float("inf")
    differences = [np.max(np.abs(a.astype(float) - other[name])) for name, a in plain.items()]
    return float(max(differences) / max(np.max(np.abs(a)) for a in plain.values()))


def _frameworks() -> dict[str, str]:
    found = {}
    for name in FRAMEWORKS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def score(metric: str, run: dict[str, Any]) -> float | None:
    """Return the app's own number after the last round; None where it has none."""
    if metric in run:
        return float(run[metric])
    for asked in ("evaluate_server", "evaluate_clients"):
        if run[asked] and metric in run[asked][-1]:
            return float(run[asked][-1][metric])
    return None


def lines(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return the cells of the table: on both engines, where they differ at all."""
    found = []
    for row in rows:
        runs = {(run["engine"], run["variant"]): run for run in row["runs"]}
        scores = {key: score(row["metric"], run) for key, run in runs.items()}
        shown = {key: "" if s is None else f"{s:.3f}" for key, s in scores.items()}
        cells = [row["app"], f"{row['parameters']:,}", row["metric"]]
        for variant in ("plain", "two lines"):
            one = shown["local", variant]
            other = shown.get(("ray", variant), one)
            cells.append(one if one == other else f"{one} / {other}")
        cells.append(shown["local", "p=.9"])
        cells += [f"{runs['local', variant]['apart']:.0e}" for variant in ("K", "one ulp")]
        for way in ("up", "down"):
            plain, sent = (runs["local", variant][way] for variant in ("plain", "two lines"))
            cells.append(f"{plain / 1e6:,.3f} ({plain / sent:,.1f}x)")
        found.append(cells)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table as docs/plug-in.md has it."""
    return "\n".join(
        f"| {' | '.join(cells)} |" for cells in [HEADS, ["---"] * len(HEADS), *lines(rows)]
    )


def main(
    flower: Annotated[Path | None, typer.Option(help="a checkout of adap/flower")] = None,
    only: Annotated[str, typer.Option(help="some apps, with commas between them")] = "",
    again: Annotated[bool, typer.Option(help="run what the results already have, too")] = False,
    trial: Annotated[bool, typer.Option(help="without Ray; is not saved")] = False,
    keep: Annotated[Path | None, typer.Option(help="a folder for logs and models")] = None,
    table_only: Annotated[bool, typer.Option("--table", help="print, do not run")] = False,
) -> None:
    """Run the apps that the results lack, write the results and print the table."""
    console = Console(soft_wrap=True, markup=False, highlight=False)
    known = (RESULTS / "flower-examples.json").exists()
    rows: list[dict[str, Any]] = load("flower-examples") if known else []
    if not table_only and flower is None:
        raise typer.BadParameter("give --flower, a folder with Flower's examples/, or --table")
    for name, app in {} if flower is None else APPS.items():
        wanted = name in only.split(",") if only else True
        if not wanted or (not (again or trial) and name in [row["app"] for row in rows]):
            continue
        if importlib.util.find_spec(app.needs) is None:
            console.print(f"{name} is left out: {app.needs} is not installed")
            continue
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder) if keep is None else keep.resolve() / name
            if keep is not None:
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir(parents=True)
            row = run(name, app, flower.resolve(), scratch, TRIAL if trial else RUNS)
        console.print(table([row]))
        if not trial:
            rows = [*(row for row in rows if row["app"] != name), row]
            rows.sort(key=lambda row: list(APPS).index(row["app"]))
            save("flower-examples", rows)
    console.print(table(rows))


if __name__ == "__main__":
    typer.run(main)
