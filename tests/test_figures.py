"""The figures of a result: what is drawn, as numbers, and whether everybody can tell it apart."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from studies import entry, write_run, write_study

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fl_darex.study import figures
from fl_darex.study.bands import MOST, by_bytes, by_round
from fl_darex.study.canvas import readable, without_missing_glyphs
from fl_darex.study.looks import DARK, INK, LIGHT, looks
from fl_darex.study.looks import MOST as MOST_LOOKS
from fl_darex.study.page.style import STYLE
from fl_darex.study.read_folders import load_result
from fl_darex.study.result import Result

METRICS = {1: [0.3, None, 0.6, 0.8], 2: [0.5, None, 0.6, 0.6]}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("study")
    runs = []
    for arm, p, up in (("dense", 0.5, 50_000), ("_p", 0.9, 1000)):
        for seed, metrics in METRICS.items():
            settings = {"compress.p": p, "federation.seed": seed}
            write_run(folder / f"{arm}{seed}", metrics, settings, up=up * seed)
            runs.append(entry(arm, seed, f"{arm}{seed}"))
    return load_result(write_study(folder, runs))


def line(figure: Figure, place: int) -> Line2D:
    return figure.axes[0].get_lines()[place]


def test_a_line_is_the_mean_over_seeds_where_all_were_measured(result: Result) -> None:
    figure = figures.metric_by_round(result)
    assert list(line(figure, 0).get_xdata()) == [0, 1, 3, 4]
    assert list(line(figure, 0).get_ydata()) == pytest.approx([0.1, 0.4, 0.6, 0.7])
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == 0.1 and band[:, 1].max() == 0.8


@pytest.mark.parametrize(
    ("way", "places"), [("up", [1.5, 4.5, 6]), ("down", [3, 9, 12]), ("total", [4.6, 13.6, 18.1])]
)
def test_bytes_are_means_over_seeds_on_a_logarithmic_axis(
    result: Result, way: str, places: list[float]
) -> None:
    figure = figures.metric_by_bytes(result, way)
    assert list(line(figure, 1).get_xdata()) == pytest.approx([place / 1e3 for place in places])
    assert figure.axes[0].get_xscale() == "log"


def test_the_front_has_a_point_and_an_interval_for_each_arm(result: Result) -> None:
    figure = figures.pareto_front(result)
    dots = [one for one in figure.axes[0].get_lines() if one.get_marker() in ("o", "s")]
    points = sorted((float(one.get_xdata()[0]), float(one.get_ydata()[0])) for one in dots)
    # Up 1,000 or 2,000 bytes a round and 3,000 down, four rounds, 100 of handshake.
    assert points == [pytest.approx((0.0181, 0.7)), pytest.approx((0.3121, 0.7))]
    half = 12.706204736432095 * 0.1
    ends = figure.axes[0].collections[0].get_segments()[0][:, 1]
    assert list(ends) == pytest.approx([0.7 - half, 0.7 + half])


def test_seeds_and_points_without_any_difference_have_an_interval_of_no_width(
    tmp_path: Path,
) -> None:
    grid = [{"federation.alpha": alpha} for alpha in (1.0, 0.5, 0.1)]
    runs = [entry("a", seed, "a", point=p) for seed in (1, 2, 3) for p in range(3)]
    write_run(tmp_path / "a", [0.1, 0.2, 0.3, 0.74])
    result = load_result(write_study(tmp_path, runs, grid=grid))
    ends = figures.pareto_front(result).axes[0].collections[0].get_segments()[0][:, 1]
    assert list(ends) == pytest.approx([0.74, 0.74])


def test_what_rounds_have_is_drawn_over_them(result: Result) -> None:
    figure = figures.over_rounds(result, "q")
    assert list(line(figure, 1).get_ydata()) == pytest.approx([0.1] * 4)
    assert figure.axes[0].get_ylabel() == figures.ROW_KEYS["q"]
    nothing = figures.over_rounds(result, "speed")
    assert [text.get_text() for text in nothing.axes[0].texts] == ["nothing was measured"]


def test_kinds_of_exchanges_are_dots_of_their_bytes(result: Result) -> None:
    figure = figures.bytes_by_kind(result)
    handshake, train = figure.axes[0].get_lines()
    assert list(handshake.get_xdata()) == pytest.approx([1e-4, 1e-4])
    assert list(train.get_xdata()) == pytest.approx([0.312, 0.018])
    assert [text.get_text() for text in figure.axes[0].texts] == ["dense", "_p"]


def test_the_legend_has_every_arm_whatever_its_name(result: Result) -> None:
    figure = figures.metric_by_round(result)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dense", "_p"]
    assert not figures.metric_by_round(result, legend=False).legends


def test_a_figure_is_a_column_wide_and_shows_itself_in_a_notebook(result: Result) -> None:
    for figure in (figures.metric_by_round(result), figures.bytes_by_kind(result)):
        assert figure.get_figwidth() == 3.4
        shown = figure._repr_svg_()
        assert shown.count("<svg") == 1 and ">dense</text>" in shown


def test_characters_that_the_font_lacks_are_written_out_in_files(tmp_path: Path) -> None:
    write_run(tmp_path / "a模型ü", metrics=[0.5] * 4)
    write_run(tmp_path / "b")
    result = load_result(tmp_path / "a模型ü", tmp_path / "b")
    for figure in (figures.metric_by_round(result), figures.bytes_by_kind(result)):
        without_missing_glyphs(figure)
        figure.draw_without_rendering()
        found = [text.get_text() for text in figure.findobj(lambda one: hasattr(one, "get_text"))]
        assert "a\\u6a21\\u578bü" in found


@pytest.mark.parametrize(
    "name", ["$x", "$a$ $b_1$", "\\frac", "tab\there\x00", "%", "x" * 300, "_"]
)
def test_names_are_drawn_as_they_are(tmp_path: Path, name: str) -> None:
    write_run(tmp_path / "a")
    runs = [entry(name, 1, "a"), entry("other", 1, "a")]
    result = load_result(write_study(tmp_path, runs))
    for figure in (figures.metric_by_round(result), figures.bytes_by_kind(result)):
        shown = figure._repr_svg_()
        assert readable(name, 22)[:20] in shown


def test_a_long_run_is_thinned_and_keeps_its_ends(tmp_path: Path) -> None:
    metrics = [number / 2000 for number in range(1, 1001)]
    write_run(tmp_path, metrics, {"federation.rounds": 1000})
    runs = load_result(tmp_path).runs
    bands = by_round(runs), by_bytes(runs, "total")
    assert [len(band.x) for band in bands if band] == [MOST + 1, MOST]
    assert bands[0].x[:2] == [0, 1] and bands[0].x[-1] == 1000


# --- looks --------------------------------------------------------------------------------------


def many(folder: Path, count: int) -> Result:
    runs = []
    for place in range(count):
        settings = {"compress.p": 0.5 + place / 100}
        # Fewer bytes, and worse: all are on the front.
        write_run(
            folder / f"{place}", [0.5, 0.6, 0.7, 0.9 - place / 100], settings, up=9000 - place
        )
        runs.append(entry("dense" if not place else f"arm-{place}", 1, f"{place}"))
    return load_result(write_study(folder, runs))


def test_arms_differ_in_grey_by_marker_and_dashes(tmp_path: Path) -> None:
    found = looks(many(tmp_path, MOST_LOOKS))
    assert found["dense"].color == INK
    assert len({(look.marker, tuple(look.dashes)) for look in found.values()}) == MOST_LOOKS
    assert len({look.marker for look in found.values()}) == MOST_LOOKS
    assert all(look.own for look in found.values())


def test_of_many_arms_some_of_the_front_and_the_reference_stand_out(tmp_path: Path) -> None:
    found = looks(many(tmp_path, 30))
    own = [name for name, look in found.items() if look.own]
    assert len(own) == MOST_LOOKS and own[0] == "dense"
    assert {"arm-1", "arm-29"} < {*own}, "both ends of the front"


def linear(color: str) -> np.ndarray:
    parts = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG 2.1's ratio of two colours."""
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other))
    return (high + 0.05) / (low + 0.05)


# Machado et al. 2009, severity 1, for linear RGB.
WITHOUT_CONES = {
    "all": np.eye(3),
    "long": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "middle": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "short": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
}


def lab(color: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear sRGB, whose distances are about those that one sees."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = to_xyz @ np.clip(color, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize(
    ("palette", "ground", "ink"),
    [(LIGHT, "#ffffff", INK), (DARK, "#14171c", "#e8eaed")],
    ids=["light", "dark"],
)
def test_colours_stand_out_and_stay_apart_whichever_cones_one_has(palette, ground, ink) -> None:
    assert f"--ground: {ground}" in STYLE and f"--ink: {ink}" in STYLE
    assert min(contrast(color, ground) for color in palette) >= 3
    assert contrast(ink, ground) >= 7
    for cones, matrix in WITHOUT_CONES.items():
        seen = [lab(np.array(matrix) @ linear(color)) for color in (*palette, ink)]
        apart = min(math.dist(a, b) for a, b in combinations(seen, 2))
        assert apart >= 14, cones  # 2.3 can just be seen
