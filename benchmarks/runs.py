"""One run of the command, and what a table needs of it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

from scipy.stats import t as student

from fl_darex.files.atomic import write_text_atomically

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
KEPT = (
    *("metric_name", "initial_metric", "final_metric", "rounds", "parameters", "seed"),
    *("up_bytes", "down_bytes", "dense_up_bytes", "dense_down_bytes", "up_ratio", "total_ratio"),
)


# Small tensors are pruned as all others: what the paper does, and what these results had.
PRUNE_ALL = "compress.dense-below=0"


def run(config: str, settings: list[str], private: list[str] | None = None) -> dict[str, Any]:
    """Run ``fl-darex run CONFIG SETTINGS`` and return the command with its summary.

    Args:
        config: Path of the TOML file, from the repository's root.
        settings: Overrides that belong to the result.
        private: Overrides that do not change it, such as paths; not part of the command shown.
    """
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        command = [sys.executable, "-c", "from fl_darex.cli import main; main()", "run", config]
        subprocess.run(
            [*command, *settings, *(private or []), "--out", str(out)],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    result = {key: summary[key] for key in KEPT}
    shown = " ".join(["fl-darex run", config, *settings])
    return {"command": shown, **result, "versions": summary["versions"]}


def half_width(gaps: Sequence[float]) -> float:
    """Return half of the 95 % interval of a mean of paired differences; two of them at least."""
    return float(student.ppf(0.975, len(gaps) - 1) * stdev(gaps) / len(gaps) ** 0.5)


def save(name: str, rows: Any) -> None:
    """Write results to ``benchmarks/results/NAME.json``."""
    RESULTS.mkdir(exist_ok=True)
    # At once: another process may read it meanwhile.
    write_text_atomically(RESULTS / f"{name}.json", json.dumps(rows, indent=1) + "\n")


def load(name: str) -> Any:
    """Read ``benchmarks/results/NAME.json``."""
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def in_turn(
    script: str, kinds: Sequence[str], arms: Iterable[str], column: str, again: bool
) -> list[dict[str, Any]]:
    """Measure each arm in each kind, in a fresh process, save each row as it comes; return all.

    Args:
        script: Its path; ``--one KIND --only ARM`` makes it print a row. Results go by its name.
        kinds: What is compared.
        arms: With what.
        column: Where the kind stands in a row.
        again: Whether what there is is measured anew.
    """
    name = Path(script).stem
    rows: list[dict[str, Any]] = load(name) if (RESULTS / f"{name}.json").exists() else []
    for arm in arms:
        for kind in kinds:
            known = [row for row in rows if (row["arm"], row[column]) == (arm, kind)]
            if known and not again:
                continue
            command = [sys.executable, script, "--one", kind, "--only", arm]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows = [row for row in rows if row not in known]
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            save(name, rows)
    return rows
