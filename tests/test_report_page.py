"""The page of a report: sound HTML, the files' numbers, nothing fetched, every text escaped."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from scipy.stats import t as student
from studies import entry, write_run, write_study

pytest.importorskip("matplotlib")

from fl_darex.errors import ConfigError
from fl_darex.study.page.html import Html, join, safe, tag
from fl_darex.study.page.page import page as page_of
from fl_darex.study.page.page import write_report
from fl_darex.study.page.pictures import MOST_BYTES, Pictures
from fl_darex.study.read_folders import load_result

pytestmark = pytest.mark.filterwarnings("error:Glyph")

NAMES = ["dense", "<i>&amp;\"'_%$", "$x^2$ \\frac", "_hidden\x1b", "模型"]
SHOWN = [name.replace("\x1b", r"\x1b") for name in NAMES]
GRID = [{"federation.partition": "iid"}, {"federation.partition": "dirichlet"}]
VOID = {"meta", "br", "hr"}
UNMEASURED = {"federation.evaluate": "none"}


@dataclass
class Element:
    name: str
    attributes: dict[str, str | None]
    parent: Element | None = None
    children: list[Element | str] = field(default_factory=list)

    def all(self, *names: str) -> list[Element]:
        found = []
        for child in self.children:
            if isinstance(child, Element):
                found += [child] if not names or child.name in names else []
                found += child.all(*names)
        return found

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)


class Page(HTMLParser):
    """Reads a page and refuses an element that is not closed, or another's end."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = self._open = Element("", {})
        self.feed(text)
        self.close()
        assert self._open is self.root, f"<{self._open.name}> is not closed"

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        child = Element(tag, dict(attrs), self._open)
        self._open.children.append(child)
        if tag not in VOID:
            self._open = child

    def handle_startendtag(self, tag, attrs):
        self._open.children.append(Element(tag, dict(attrs), self._open))

    def handle_endtag(self, tag):
        assert tag == self._open.name, f"</{tag}> in <{self._open.name}>"
        self._open = self._open.parent

    def handle_data(self, data):
        self._open.children.append(data)


def read_page(folder: Path, formats: Sequence[str] = ()) -> tuple[str, Page]:
    """The page of a folder, without most files of its figures, which take time."""
    pictures = Pictures(folder / "figures", _link, formats)
    text = page_of(load_result(folder), pictures, _link)
    return text, Page(text)


def _link(path: Path, text: str) -> Html:
    return tag("a", text, href=path.name)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two points, three seeds, arms with awkward names; a run failed, one is missing."""
    folder = tmp_path_factory.mktemp("study")
    runs, tuning = [], []
    for place, name in enumerate(NAMES):
        settings = (
            {"compress.method": "dense"} if name == "dense" else {"compress.p": 0.5 + place / 9}
        )
        for point, more in enumerate(GRID):
            for seed in (1, 2, 3):
                where = f"runs/{place}/{point}/{seed}"
                metrics = [0.3, 0.5, 0.6, 0.8 - 0.01 * seed * (place + 1) - 0.1 * point]
                told = settings | more | {"federation.seed": seed}
                if (place, seed) == (3, 2):
                    runs.append(entry(name, seed, where, "missing", point, "<script>alert(1)"))
                    continue
                write_run(folder / where, metrics, told, up=20_000 // (1 + place))
                runs.append(entry(name, seed, where, point=point))
        tried = {"train.lr": 0.001 * (place + 1)}
        tuning.append({"arm": name, "point": 0, "settings": tried, "metric": 0.5, "chosen": True})
    write_run(folder / "runs/4/1/3", [0.3, 0.4], status="failed", reason="no <memory> & more")
    write_study(
        folder,
        runs,
        grid=GRID,
        tuning=tuning,
        title="Title </title><script>x</script>",
        command="fl-darex study 'a & b.toml'",
        remarks=["the chosen train.lr is at the <edge> of its grid"],
    )
    return folder


@pytest.fixture(scope="module")
def page(study: Path) -> tuple[str, Page]:
    return read_page(study, ("svg",))


def tables(page: Page) -> dict[str, tuple[list[str], list[list[str]]]]:
    found = {}
    for table in page.root.all("table"):
        rows = [[cell.text for cell in row.all("th", "td")] for row in table.all("tr")]
        found[str(table.attributes["id"])] = rows[0], rows[1:]
    return found


def test_the_page_has_landmarks_headings_in_order_and_a_language(page) -> None:
    text, read = page
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    for name in ("header", "nav", "main", "footer", "h1", "title"):
        assert len(read.root.all(name)) == 1, name
    levels = [int(one.name[1]) for one in read.root.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    skip = next(one for one in read.root.all("a") if one.attributes.get("class") == "skip")
    assert skip.attributes["href"] == "#main"


def test_ids_are_unique_and_links_inside_the_page_lead_somewhere(page) -> None:
    _, read = page
    ids = [one.attributes["id"] for one in read.root.all() if "id" in one.attributes]
    assert len({*ids}) == len(ids)
    used = [v for one in read.root.all() for v in one.attributes.values() if v]
    named = {name for value in used for name in re.findall(r"^#([\w-]+)|url\(#([\w-]+)\)", value)}
    assert {a or b for a, b in named} <= {*ids}


def test_tables_have_captions_and_scopes_and_can_be_scrolled_by_keyboard(page) -> None:
    _, read = page
    assert len(read.root.all("table")) >= 6
    for table in read.root.all("table"):
        assert table.children[0].name == "caption" and table.children[0].text
        scopes = [cell.attributes.get("scope") for cell in table.all("th")]
        width = len(table.all("thead")[0].all("th"))
        assert scopes == ["col"] * width + ["row"] * (len(scopes) - width)
        assert all(len(row.all("th", "td")) == width for row in table.all("tr"))
        box = table.parent
        assert (box.attributes["tabindex"], box.attributes["role"]) == ("0", "region")


def test_figures_have_words_captions_and_files(page, study: Path) -> None:
    _, read = page
    figures = read.root.all("figure")
    assert len(figures) == 1 + 2 * 6
    for figure in figures:
        pictures = [svg for svg in figure.all("svg") if svg.attributes.get("role") == "img"]
        assert pictures and all(len(svg.attributes["aria-label"]) > 20 for svg in pictures)
        links = [a.attributes["href"] for a in figure.all("a")]
        assert len(links) == len(pictures)
        assert all((study / "figures" / link).stat().st_size > 1000 for link in links)
        assert "seed" in figure.all("figcaption")[0].text


def test_nothing_is_fetched_and_the_page_is_small(page) -> None:
    text, read = page
    assert len(text.encode()) < 3_000_000
    for one in read.root.all():
        assert one.name not in ("link", "img", "iframe", "object", "embed", "base", "form")
        for name, value in one.attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                assert one.name in ("a", "use") and name == "href", (one.name, name)
                assert not re.match(r"[a-z]+:|//", value or ""), value
            assert "url(http" not in (value or "")
    assert "http" not in text.replace('http-equiv="Content-Security-Policy"', "")
    assert "@import" not in text and "default-src &#x27;none&#x27;" in text


def test_texts_are_escaped_and_no_other_script_runs(page) -> None:
    text, read = page
    assert len(read.root.all("script")) == 1 and "alert" not in read.root.all("script")[0].text
    assert read.root.all("h1")[0].text == "Title </title><script>x</script>"
    assert not read.root.all("i"), "the name of an arm is no markup"
    assert {row[0] for row in tables(read)["headline-table"][1]} == {*SHOWN}
    assert "&amp;amp;" in text and "no &lt;memory&gt; &amp; more" in text


def test_the_numbers_of_a_point_are_those_of_the_runs_files(page, study: Path) -> None:
    names, rows = tables(page[1])["point-1-table"]
    for cells in rows:
        row = dict(zip(names, cells, strict=True))
        folders = [study / f"runs/{SHOWN.index(row['arm'])}/1/{seed}" for seed in (1, 2, 3)]
        there = [f / "summary.json" for f in folders if (f / "summary.json").is_file()]
        found = [json.loads(file.read_text("utf-8")) for file in there]
        found = [one for one in found if one["status"] == "finished"]
        finals = [one["final_metric"] for one in found]
        half = student.ppf(0.975, len(finals) - 1) * stdev(finals) / math.sqrt(len(finals))
        assert row["final accuracy"] == f"{mean(finals):.4f} ± {half:.4f}"
        assert row["runs"] == f"{len(found)}/3"
        for name, key in (("up", "up_bytes"), ("down", "down_bytes"), ("in all", "total_bytes")):
            shown = float(row[f"kB {name}"]) * 1e3
            assert shown == pytest.approx(mean(one[key] for one in found), rel=0.005), name


def test_the_headline_says_what_is_missing_and_the_page_why(page) -> None:
    _, read = page
    header = read.root.all("header")[0].text
    assert "Incomplete: 27 of 30 runs finished; 2 missing, 1 failed." in header
    names, rows = tables(read)["unfinished-runs"]
    assert names == ["arm", "point", "seed", "status", "reason", "whole error"]
    told = {(row[0], row[2], row[3], row[4]) for row in rows}
    assert ("模型", "3", "failed, 2 of 4 rounds", "no <memory> & more") in told
    assert (SHOWN[3], "2", "missing", "<script>alert(1)") in told


def test_tuning_settings_and_origin_are_there(page) -> None:
    _, read = page
    found = tables(read)
    assert found["tuning-counts"] == (["arm", "runs"], [[name, "1"] for name in SHOWN])
    assert found["tuning-trials"][1][0][2:] == ["train.lr = 0.001", "0.5000", "chosen"]
    names, rows = found["differences"]
    assert names == ["arm", "compress.method", "compress.p"] and rows[0][:2] == ["dense", "dense"]
    facts = dict(found["facts"][1])
    assert facts["seeds"] == "1, 2, 3" and facts["command"] == "fl-darex study 'a & b.toml'"
    assert len(found["runs"][1]) == 30
    remarks = [one.text for one in read.root.all("li")]
    assert "the chosen train.lr is at the <edge> of its grid" in remarks


def test_links_lead_to_the_files_from_where_the_page_is(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a run%20&", [None] * 4, UNMEASURED, initial_metric=None)
    out = tmp_path / "a b" / "page.html"
    write_report(load_result(folder), out, tmp_path / "pictures")
    links = [str(a.attributes["href"]) for a in Page(out.read_text("utf-8")).root.all("a")]
    files = [unquote(link) for link in links if not link.startswith("#")]
    assert len(files) == 2 * 3 + 4 and all((out.parent / file).is_file() for file in files)
    assert "../pictures/bytes-by-kind.svg" in files and "../a run%20&/summary.json" in files


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_folder_whose_name_is_no_text_has_a_page(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"run-\xff")
    write_run(folder, [None] * 4, UNMEASURED, initial_metric=None)
    out = tmp_path / "page.html"
    write_report(load_result(folder), out)
    text = out.read_text("utf-8")
    assert r"Run run-\udcff" in text and 'href="run-%FF/summary.json"' in text


def test_the_tables_to_copy_are_the_headline(page) -> None:
    _, read = page
    names, rows = tables(read)["headline-table"]
    copies = {
        str(one.all("summary")[0].text): one.all("pre")[0].text
        for one in read.root.all("details")
        if one.all("pre")
    }
    table = list(csv.DictReader(io.StringIO(copies["CSV, exact numbers"])))
    assert [row["arm"] for row in table] == [row[0] for row in rows] and {
        row[0] for row in rows
    } == {*SHOWN}
    shown = [f"{float(row['final_mean']):.4f}" for row in table]
    assert shown == [row[names.index("final accuracy")].split()[0] for row in rows]
    assert copies["Markdown"].count("\n") == len(rows) + 2 and r"\toprule" in copies["LaTeX"]


def test_the_same_folders_give_the_same_files(tmp_path: Path) -> None:
    result = load_result(write_run(tmp_path / "run", [None] * 4, UNMEASURED, initial_metric=None))
    found = []
    for _ in range(2):
        files = write_report(result, tmp_path / "page.html")
        found.append([file.read_bytes() for file in files])
    assert found[0] == found[1] and len(found[0]) == 1 + 2 * 3


def test_a_run_that_goes_on_has_a_page(tmp_path: Path) -> None:
    text, read = read_page(write_run(tmp_path, [0.3, 0.5]))
    assert "This run has not finished: running, 2 of 4 rounds." in text
    assert tables(read)["headline-table"][1][0][:2] == [
        f"{tmp_path.name} (running, 2 of 4 rounds)",
        "0.5000",
    ]
    assert "One run a line, seed 0: there is no band." in text


def test_a_run_that_has_only_begun_or_failed_at_once_has_a_page(tmp_path: Path) -> None:
    told = {"status": "failed", "reason": "ConfigError: no <data>", "metric_name": None}
    folder = write_run(tmp_path, [], initial_metric=None, **told)
    text, read = read_page(folder)
    assert "No run has come to a result yet." in text
    assert tables(read)["unfinished-runs"][1][0][2:4] == ["failed, 0 of 4 rounds", told["reason"]]


def test_a_run_without_evaluation_has_no_figures_of_a_metric(tmp_path: Path) -> None:
    text, _ = read_page(write_run(tmp_path, [None] * 4, UNMEASURED, initial_metric=None))
    assert "No metric was measured; 16.1 kB were sent" in text
    assert "accuracy by round" not in text.lower() and "Bytes by kind" in text


def test_a_run_that_diverged_says_so(tmp_path: Path) -> None:
    text, read = read_page(write_run(tmp_path, [0.5, 0.4, None, None], final_metric=None))
    assert tables(read)["headline-table"][1][0][1] == "NaN"
    assert "its training has diverged" in text


def test_layers_are_shown_where_runs_tell_them(tmp_path: Path) -> None:
    layers = [{"name": "encoder.<0>", "entries": 10, "bytes": 900}]
    layers += [{"name": "head", "entries": 5, "bytes": 90}]
    text, _ = read_page(write_run(tmp_path, layers=layers))
    assert "Bytes by layer" in text and "encoder.&lt;0&gt;: " in text
    for odd in ("none", [1], [{"name": "x"}]):
        write_run(tmp_path, layers=odd)
        with pytest.raises(ConfigError, match="layers"):
            load_result(tmp_path)


@pytest.mark.slow
def test_forty_arms_fit_into_a_page(tmp_path: Path) -> None:
    metrics = [0.9 - 1 / (n + 2) for n in range(60)]
    runs = []
    for place in range(40):
        settings = {"compress.p": 0.5 + place / 100, "federation.rounds": 60}
        write_run(tmp_path / f"{place}", [m - place / 200 for m in metrics], settings)
        runs.append(entry("dense" if not place else f"arm-{place}", 1, f"{place}"))
    text, read = read_page(write_study(tmp_path, runs))
    assert len(text.encode()) < 3_000_000
    assert len(tables(read)["headline-table"][1]) == 40
    legend = read.root.all("figure")[0].all("ul")[0]
    assert 2 <= len(legend.all("li")) <= 9 and "others" in legend.text


def test_what_would_make_the_page_too_large_is_a_link(monkeypatch, tmp_path: Path) -> None:
    assert MOST_BYTES < 3_000_000
    monkeypatch.setattr("fl_darex.study.page.pictures.MOST_BYTES", 20_000)
    text, read = read_page(write_run(tmp_path))
    figures = read.root.all("figure")
    assert any("This page would be too large with it; see the files." in f.text for f in figures)
    assert sum(bool(figure.all("svg")) for figure in figures) < len(figures) == 5
    assert len(text) < 60_000


def test_a_page_that_cannot_be_written_says_where_else(tmp_path: Path) -> None:
    result = load_result(write_run(tmp_path / "run"))
    with pytest.raises(ConfigError, match="is a folder; name a file"):
        write_report(result, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write to .*name another place with --out"):
        write_report(result, tmp_path / "file" / "page.html")
    with pytest.raises(ConfigError, match=r"cannot write to .*name another place with --out"):
        write_report(result, tmp_path / "page.html", tmp_path / "file")


def test_one_place_escapes_and_escapes_once() -> None:
    assert tag("p", "<&\"'\x00\n") == "<p>&lt;&amp;&quot;&#x27;\\x00\n</p>"
    assert tag("p", tag("b", "<"), title='"') == '<p title="&quot;"><b>&lt;</b></p>'
    assert tag("a", None, class_="x", aria_label="y", hidden=True, id=False) == (
        '<a class="x" aria-label="y" hidden></a>'
    )
    assert join("<", Html("<"), None) == "&lt;<" and safe(safe("&")) == "&amp;"
    assert html.unescape(safe("模型 <&>")) == "模型 <&>"


def test_an_inline_figure_takes_its_colours_from_the_page(page) -> None:
    text, _ = page
    found = re.findall(r'<svg viewBox="[^"]*" role="img".*?</svg>', text, re.DOTALL)
    assert len(found) == 1 + 2 * 8
    for svg in found:
        root = ElementTree.fromstring(svg)
        styles = " ".join(one.get("style", "") for one in root.iter())
        assert not re.search(r"#[0-9a-fA-F]{3,6}\b", styles) and "font-family" not in styles
        assert "currentColor" in styles and "<style" not in svg
