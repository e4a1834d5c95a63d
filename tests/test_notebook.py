"""The notebooks of examples/: sound files, whose code runs and gives what is in them."""

from __future__ import annotations

import ast
import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "examples").rglob("*.ipynb"))


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def run(source: str, space: dict[str, Any]) -> tuple[str, Any]:
    """What a cell prints, and the value of its last line, as a notebook shows them."""
    *first, last = ast.parse(source).body
    printed = io.StringIO()
    with redirect_stdout(printed):
        if not isinstance(last, ast.Expr):
            first, last = [*first, last], None
        exec(compile(ast.Module(first, []), "cell", "exec"), space)
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), space) if last else None
    return printed.getvalue(), value


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_what_nbformat_4_5_says(path: Path) -> None:
    found = read(path)
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    assert found["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in found["cells"]]
    assert len({*ids}) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", one) for one in ids)
    code = [cell for cell in found["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    for cell in found["cells"]:
        more = ("outputs", "execution_count") if cell["cell_type"] == "code" else ()
        assert {*cell} == {"cell_type", "id", "metadata", "source", *more}
        assert all(isinstance(line, str) for line in cell["source"])
        for output in cell.get("outputs", ()):
            if output["output_type"] == "stream":
                assert {*output} == {"output_type", "name", "text"}
            else:
                assert {*output} == {"output_type", "execution_count", "metadata", "data"}
    assert path.stat().st_size < 200_000
    assert "/home/" not in path.read_text("utf-8") and "/tmp/" not in path.read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_code_of_a_notebook_gives_outputs_like_those_in_it(path: Path, monkeypatch) -> None:
    """Numbers may differ between machines: a table's head and length are compared."""
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    space: dict[str, Any] = {}
    figures = 0
    for cell in read(path)["cells"]:
        if cell["cell_type"] != "code":
            continue
        printed, value = run("".join(cell["source"]), space)
        streams = [o for o in cell["outputs"] if o["output_type"] == "stream"]
        results = [o["data"] for o in cell["outputs"] if o["output_type"] == "execute_result"]
        stored, found = streams[0]["text"] if streams else [], printed.splitlines(keepends=True)
        assert len(stored) == len(found) and stored[:1] == found[:1]
        assert len(results) == (value is not None)
        if value is not None:
            assert "".join(results[0]["text/plain"]) == repr(value)
            drawn = hasattr(value, "_repr_svg_")
            assert ("image/svg+xml" in results[0]) == drawn
            figures += drawn
    assert figures >= 2
