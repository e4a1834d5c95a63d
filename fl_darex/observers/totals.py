"""The table at the end of a run: bytes beside those of plain federated training, and the result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fl_darex.shown import counted

DENSE = "dense: every client is sent the whole model in every round, and sends one back whole."
HELD = (
    "but for the first model: as dense, except that nobody is sent the model before round 1, which "
    "the clients hold already."
)
BUT_FOR_FIRST = "  but for the first model"


def baselines(held: bool) -> str:
    """Return what the columns of dense bytes compare with.

    Args:
        held: Whether clients hold the first model, so that there are two baselines.
    """
    return f"{DENSE}\n{HELD}" if held else DENSE


def megabytes(sent: int, dense: int) -> tuple[str, str, str]:
    """Return the cells of a row: bytes sent, bytes of the baseline, and how many times as many."""
    ratio = f"{dense / sent:,.1f}x" if sent else "-"
    return f"{sent / 1e6:,.3f} MB", f"{dense / 1e6:,.3f} MB", ratio


def summary_table(summary: dict[str, Any]) -> Group:
    """Return the final table of a run from its ``summary.json``, and what it compares with.

    Where clients hold the first model, bytes are compared with two baselines: training that sends
    it all the same, and training that does not.
    """
    table = Table(
        title=f"{counted(summary['rounds'], 'round')}, {summary['seconds']:.0f} s",
        title_justify="left",
    )
    for column in ("", "sent", "dense", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for label, sent, dense in _bytes(summary):
        table.add_row(label, *megabytes(sent, dense))
    table.add_section()
    name = summary["metric_name"]
    for label, key in (("before round 1", "initial_metric"), ("best", "best_metric")):
        table.add_row(f"{name}, {label}", _number(summary[key]), "", "")
    table.add_row(f"{name}, final", _number(summary["final_metric"]), "", "", style="bold")
    if summary["test_metric"] is not None:
        table.add_row(f"{name}, final, on test", _number(summary["test_metric"]), "", "")
    if summary["failures"]:
        table.add_row("failed replies", str(summary["failures"]), "", "")
    return Group(table, Text(baselines(summary["held_bytes"] > 0)))


def _bytes(summary: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Yield what each row compares: its label, bytes sent, bytes of the baseline."""
    held = summary["held_bytes"]
    for label, key in (("up", "up"), ("down", "down"), ("total, with handshake", "total")):
        sent, dense = summary[f"{key}_bytes"], summary[f"dense_{key}_bytes"]
        yield label, sent, dense
        if held and key != "up":
            yield BUT_FOR_FIRST, sent, dense - held


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
