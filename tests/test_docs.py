"""The documentation: its Python runs, its links lead somewhere, its error messages are real."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from fl_darex.commands.run import own_keys
from fl_darex.compression import METHODS
from fl_darex.files.tensors import write_tensors
from fl_darex.flower.optimizers import OPTIMIZERS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / "examples").rglob("*.md"),
]
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")

# What a page takes for granted, by page.
TINY_MODEL = """
import copy
import torch
from transformers import BertConfig, BertForSequenceClassification

torch.manual_seed(0)
config = BertConfig(
    vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
)
model = BertForSequenceClassification(config).eval()
"""
GIVEN = {
    "docs/simulation.md": f"""
import shutil
from pathlib import Path

shutil.copytree({str(ROOT / "tests" / "plain_app")!r}, Path("~/my-app").expanduser())
""",
    "docs/library.md": TINY_MODEL
    + """
base = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
with torch.no_grad():
    for tensor in model.parameters():
        tensor += 0.01 * torch.randn_like(tensor)
tuned = dict(model.named_parameters())
batches = [{"input_ids": torch.randint(20, (2, 5))}]
""",
    "docs/deltas.md": """
from pathlib import Path
import numpy as np
from fl_darex.files.tensors import write_tensors

for name in ("base", "tuned"):
    folder = Path(f"~/models/{name}").expanduser()
    folder.mkdir()
    write_tensors(folder / "model.safetensors", {"w": np.random.default_rng().random((50, 40))})
""",
    "docs/extend.md": "".join(
        f"from {name} import *\n" for name in ("own_coding", "own_downlink", "own_task", "topk")
    ),
    "docs/lora.md": TINY_MODEL
    + """
from peft import LoraConfig, get_peft_model

model = get_peft_model(model, LoraConfig(target_modules=["query", "value"]))
""",
}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(
    "page", [p for p in PAGES if PYTHON.search(p.read_text("utf-8"))], ids=name_of
)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    write_tensors(tmp_path / "models" / "model.safetensors", {"w": np.zeros(3)})
    space = {}
    exec(compile(GIVEN.get(name_of(page), ""), "given", "exec"), space)
    text = page.read_text("utf-8")
    for found in PYTHON.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        exec(compile("\n" * line + found[1], str(page), "exec"), space)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_inside_the_repository_lead_somewhere(page):
    for target in LINK.findall(page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{target} in {name_of(page)}"


def names_in(line: str) -> set[str]:
    """The strategies that a line of the table is about."""
    first = line.strip("| ").partition(" | ")[0]
    return {*first.split(", "), *first.split("; ")}


@pytest.fixture
def benchmarks(monkeypatch):
    """Lets a test import them."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_the_numbers_of_the_plug_in_page_are_those_of_the_committed_results(benchmarks):
    text = (ROOT / "docs" / "plug-in.md").read_text("utf-8")
    from composition import CHOICES
    from plug_in import lines
    from runs import load

    rows = ["| " + " | ".join(line) + " |" for line in lines(load("plug-in"))]
    assert len(rows) == 10 and all(row in text for row in rows), rows
    section = text.partition("**Strategies.**")[2].partition("**Methods.**")[0]
    lines_of = {name: line for line in section.splitlines() for name in names_in(line)}
    for row in load("composition"):
        cells = lines_of[row["strategy"]].split("|")[2:]
        shown = cells[CHOICES.index((row["mask"], row["downlink"]))].strip()
        if "refused" in row:
            assert shown == "refused", row
        else:  # strategies that share a line differ by a byte or two
            assert abs(int(shown.partition("x")[0]) - row["down"]) < 1.5, row
    for row in load("step-size"):
        assert f"{row['accuracy']:.3f}".lstrip("0") in text, row


def test_the_tables_of_engines_and_of_scale_are_committed_ones(benchmarks: None) -> None:
    from runs import load

    read = {name_of(page): page.read_text("utf-8") for page in PAGES}
    flower = {row["arm"]: row["overhead_ms"] for row in load("engine") if row["engine"] == "flower"}
    for row in load("engine"):
        ratio = f"{flower[row['arm']] / row['overhead_ms']:.1f}"
        cells = f"| {row['wall_ms']:.2f} | {row['overhead_ms']:.2f} | {ratio} |"
        assert cells in read["docs/results.md"], row
    for row in load("scale"):
        held = (f"{row[key]:,}" for key in ("start_mb", "after_first_mb", "after_last_mb"))
        cells = (f"{row['clients']:,}", row["kind"], f"{row['wall_ms']:.2f}", *held)
        assert f"| {' | '.join(cells)} | {row['most_mb']:,} |" in read["docs/scale.md"], row


def test_the_numbers_of_the_mod_and_of_the_results_page_are_committed_ones(
    benchmarks,
):
    from plug_in import lines
    from runs import load

    read = {name_of(page): " ".join(page.read_text("utf-8").split()) for page in PAGES}
    ratio = {
        (variant, counter): [cell.partition("(")[2].partition("x")[0] for cell in cells]
        for app, variant, _, counter, *cells in lines(load("plug-in"))
        if app == "torch"
    }
    sent, held = ratio["two lines", "SuperLink"], ratio["held", "SuperLink"]
    proxy = ratio["two lines", "proxy"]
    traffic = f"up 1/{sent[0]}; in all 1/{sent[2]}, or 1/{held[2]} where clients hold"
    assert traffic in read["docs/results.md"]
    assert f"counts 1/{proxy[0]} up" in read["docs/results.md"]
    rounds = load("overhead")["rounds"][1:]  # the first message is the whole model
    plain, both, mod = (median(r[key] for r in rounds) for key in ("plain", "with_mod", "mod"))
    share = f"{100 * mod / plain:.1f} %"
    assert f"The mod costs {share} of a local epoch" in read["docs/results.md"]
    guide = read["docs/plug-in.md"]
    assert f"the mod costs {mod:.2f} s of processor time" in guide
    assert f"{share} of one epoch over 200 sentences of SST-2, {plain:.2f} s" in guide
    assert f"The whole epoch took {both:.2f} s with the mod" in guide


def test_the_table_of_the_readme_is_that_of_the_committed_results(benchmarks):
    pytest.importorskip("matplotlib")
    from headline import FIGURE, lines
    from runs import load

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\n".join(lines(load("headline"))) in readme
    assert f"]({FIGURE.relative_to(ROOT).as_posix()})" in readme and FIGURE.is_file()
    found, names = load("both-ways-sst2"), {("client", "update"), ("round", "update")}
    ratios = {
        (row["mask"], row["downlink"]): round(row["total_ratio"])
        for row in found
        if row["fleet"] == "10 of 10" and (row["mask"], row["downlink"]) in names
    }
    up = round(load("sst2")[1]["up_ratio"])
    for ratio in (*ratios.values(), up):
        assert f"1/{ratio}" in readme


def test_settings_page_and_help_have_every_methods_and_optimizers_options_in_its_words():
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    for section, rows in (("compress", METHODS), ("server", OPTIMIZERS)):
        for row in rows.values():
            for name, option in row.options.items():
                key = name.replace("_", "-")
                assert f"`{section}.{key}`" in page or f"`.{key}`" in page
                assert option.help in page
                assert f"{section}.{key} ({option.help})" in own_keys()
