"""A report in a browser: nothing is cut off on a phone, dark is dark, and it prints.

Each look is a headless Chromium of its own (Debian: ``apt-get install chromium``).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from studies import entry, write_run, write_study

pytest.importorskip("matplotlib")

from PIL import Image

from fl_darex.study.page.page import write_report
from fl_darex.study.read_folders import load_result

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not CHROMIUM, reason="there is no Chromium here (Debian's package: chromium)"
    ),
]

QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--hide-scrollbars",
]
SCHEMES = {"dark": 0, "light": 1}
# Asks for what it measures, and writes it where --dump-dom finds it.
MEASURE = """
<script>
addEventListener("load", () => {
  const wide = document.documentElement.clientWidth;
  const inside = (one) => one.closest(".scroll, pre");
  const cut = [...document.querySelectorAll("body *")].filter((one) => {
    const box = one.getBoundingClientRect();
    return box.width && !inside(one) && !one.closest("svg, .skip") && box.right > wide + 1;
  });
  const small = [...document.querySelectorAll("figure svg[role=img] text")].filter(
    (one) => one.getBoundingClientRect().height < 9);
  const style = getComputedStyle(document.body);
  const told = {
    client: wide,
    scroll: document.documentElement.scrollWidth,
    cut: cut.map((one) => one.tagName + " " + one.textContent.slice(0, 40)),
    small: small.map((one) => one.textContent),
    ground: style.backgroundColor,
    ink: style.color,
    figures: document.querySelectorAll("figure").length,
    buttons: document.querySelectorAll("details button").length,
  };
  const note = document.createElement("div");
  note.id = "measured";
  note.textContent = JSON.stringify(told);
  document.body.append(note);
});
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with arms of long names, a failed run, tuning, and two points of a grid."""
    folder = tmp_path_factory.mktemp("study")
    names = ["dense", "p-0.9", "an-arm-with-a-name-that-goes-on-and-on-without-any-space", "<&>"]
    grid = [{"federation.partition": "iid"}, {"federation.partition": "dirichlet"}]
    runs, tuning = [], []
    for place, name in enumerate(names):
        for point, more in enumerate(grid):
            for seed in (1, 2, 3):
                where = f"{place}-{point}-{seed}"
                metrics = [0.3, 0.5 - 0.01 * seed, 0.6, 0.8 - 0.02 * place]
                settings = more | {"federation.seed": seed, "compress.p": 0.5 + place / 9}
                write_run(folder / where, metrics, settings, up=90_000 // (place + 1))
                runs.append(entry(name, seed, where, point=point))
        tuning.append({"arm": name, "settings": {"train.lr": 0.001}, "metric": 0.5, "chosen": True})
    runs[-1] |= {"status": "failed", "reason": "CUDA out of memory, " * 20}
    write_study(folder, runs, grid=grid, tuning=tuning, links=[[1, 10], [10, 100]])
    return write_report(load_result(folder), folder / "report.html")[0]


def chromium(tmp_path: Path, page: Path, *arguments: str) -> str:
    profile = tmp_path / "profile"
    done = subprocess.run(
        [CHROMIUM, *QUIET, f"--user-data-dir={profile}", *arguments, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def scheme(name: str) -> str:
    return f"--blink-settings=preferredColorScheme={SCHEMES[name]}"


def measured(tmp_path: Path, page: Path, width: int, colors: str) -> dict:
    """What the page is at some width: in a frame, since a window is never narrower than 500."""
    copy = tmp_path / "page.html"
    copy.write_text(page.read_text("utf-8").replace("</body>", f"{MEASURE}</body>"), "utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe src="page.html" style="width: {width}px; height: 4000px; border: 0"></iframe>'
        "<script>addEventListener('load', () => { document.body.append(Object.assign("
        "document.createElement('p'), {textContent: document.querySelector('iframe')"
        ".contentDocument.getElementById('measured').textContent})) })</script>",
        "utf-8",
    )
    arguments = ["--allow-file-access-from-files", "--virtual-time-budget=3000", "--dump-dom"]
    shown = chromium(tmp_path, frame, scheme(colors), "--window-size=1600,900", *arguments)
    found = re.search(r"<p>(\{.*?\})</p>", shown, re.DOTALL)
    assert found, shown[-2000:]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@pytest.mark.parametrize("colors", SCHEMES)
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_cut_off_and_letters_can_be_read(
    tmp_path: Path, page: Path, width: int, colors: str
) -> None:
    found = measured(tmp_path, page, width, colors)
    assert found["client"] == width and found["scroll"] <= width
    assert found["cut"] == [] and found["small"] == []
    assert found["figures"] == 1 + 2 * 6 and found["buttons"] == 4
    dark = found["ground"] == "rgb(20, 23, 28)", found["ink"] == "rgb(232, 234, 237)"
    assert dark == (colors == "dark",) * 2


@pytest.mark.parametrize("colors", SCHEMES)
@pytest.mark.parametrize("width", [500, 1280])
def test_a_picture_of_it_is_as_dark_as_the_reader_wants(
    tmp_path: Path, page: Path, width: int, colors: str
) -> None:
    file = tmp_path / "page.png"
    chromium(tmp_path, page, scheme(colors), f"--window-size={width},3000", f"--screenshot={file}")
    picture = np.asarray(Image.open(file).convert("L"), dtype=float)
    assert picture.shape == (3000, width)
    most = float(np.median(picture))
    assert most < 40 if colors == "dark" else most > 240
    assert picture.std() > 10, "there is something on it"


def test_it_prints_light_whatever_the_screen_is(tmp_path: Path, page: Path) -> None:
    file = tmp_path / "page.pdf"
    chromium(tmp_path, page, scheme("dark"), "--no-pdf-header-footer", f"--print-to-pdf={file}")
    assert file.read_bytes().startswith(b"%PDF") and file.stat().st_size > 20_000
    convert = shutil.which("pdftoppm")
    if convert is None:
        return  # the file is all that can be looked at
    subprocess.run([convert, "-r", "50", "-png", file, tmp_path / "sheet"], check=True, timeout=60)
    sheets = sorted(tmp_path.glob("sheet-*.png"))
    assert 3 <= len(sheets) <= 25
    for sheet in sheets:
        picture = np.asarray(Image.open(sheet).convert("L"), dtype=float)
        assert np.median(picture) > 250, "the ground is white"
        edges = (picture[:5], picture[-5:], picture[:, :5], picture[:, -5:])
        assert min(edge.min() for edge in edges) > 250, f"{sheet.name} goes over its edge"
