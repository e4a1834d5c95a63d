"""docs/privacy.md: its table is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")


def test_the_table_of_bytes_is_what_was_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "secure.json").read_text("utf-8"))
    for row in measured:
        line = "| {way} | {clients} | {bytes_per_survivor:.2f} | {bytes_per_parameter:.4f} ".format(
            **row
        )
        line += "| {short_up_bytes:,.0f} | {short_down_bytes:,.0f} | {ratio_up:.0f}x |".format(
            **row
        )
        assert line in PAGE
