"""The two lines, put into an example app's own files as its user would."""

from __future__ import annotations

import ast
from pathlib import Path


def put_into(client: Path, server: Path, arguments: str = "") -> None:
    """Put the mod into the client's file, and the strategy around the one of the server's file.

    Args:
        client: The file with ``app = ClientApp(...)``.
        server: The file with ``strategy = ...``.
        arguments: More arguments of DarexStrategy, such as ``, p=0``.

    Raises:
        ValueError: If a file has no such line.
    """
    text = client.read_text("utf-8")
    with_mod = text.replace("= ClientApp()", "= ClientApp(mods=[DarexMod()])", 1)
    if with_mod == text:
        with_mod = text.replace("mods=[", "mods=[DarexMod(), ", 1)
    if with_mod == text:
        raise ValueError(f"{client} has neither ClientApp() nor mods=[...]")
    client.write_text(_importing("fl_darex.clients", "DarexMod", with_mod), "utf-8")
    text = server.read_text("utf-8")
    made = _strategy(text)
    around = text.replace(f"= {made}", f"= DarexStrategy({made}{arguments})", 1)
    server.write_text(_importing("fl_darex.strategies", "DarexStrategy", around), "utf-8")


def _strategy(text: str) -> str:
    """Return the text of the call whose result is the strategy."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "strategy":
            return ast.get_source_segment(text, node.value) or ""
    raise ValueError("no line 'strategy = ...' in the server's file")


def _importing(module: str, name: str, text: str) -> str:
    """Import a name after the module's docstring."""
    first = next(
        node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)
    )
    lines = text.splitlines(keepends=True)
    lines.insert(first.lineno - 1, f"from {module} import {name}\n")
    return "".join(lines)
