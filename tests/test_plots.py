"""The plots of a run: what is drawn, as numbers, and in which files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from matplotlib import image

from fl_darex.study import plots


def run_folder(path: Path, metrics: list[float | None], start: float | None = 0.1) -> Path:
    path.mkdir()
    sizes = {"up_bytes": 1e6, "down_bytes": 3e6, "dense_up_bytes": 2e8, "dense_down_bytes": 2e8}
    rows = [{"round": n, "metric": metric, **sizes} for n, metric in enumerate(metrics, start=1)]
    (path / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"metric_name": "accuracy", "initial_metric": start}
    (path / "summary.json").write_text(json.dumps(summary))
    return path


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, by name."""
    figures, save = {}, plots.save_figure

    def keep(figure, path):
        figures[path.name] = figure.axes[0]
        return save(figure, path)

    monkeypatch.setattr(plots, "save_figure", keep)
    return figures


def test_bytes_are_those_until_each_round_up_together_and_dense(tmp_path, drawn):
    plots.plot_run(run_folder(tmp_path / "run", [0.5, None, 0.75]))  # round 2 was not evaluated
    axes = drawn["metric-by-megabytes"]
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines["up"].get_xdata()) == [1.0, 3.0]
    assert list(lines["up + down"].get_xdata()) == [4.0, 12.0]
    assert list(lines["the same rounds, dense"].get_xdata()) == [400.0, 1200.0]
    assert all(list(line.get_ydata()) == [0.5, 0.75] for line in lines.values())
    assert axes.get_xscale() == "log"
    # In grey they differ by marker and dashes.
    looks = {(line.get_marker(), line.get_linestyle()) for line in lines.values()}
    assert len(looks) == 3


def test_the_label_of_an_axis_is_inside_the_picture_whatever_its_numbers_need(tmp_path):
    # The axis gets its long numbers only once the legend has taken room from it.
    plots.plot_run(run_folder(tmp_path / "run", [0.4] * 9 + [0.4167], start=0.4))
    for file in (tmp_path / "run" / "plots").glob("*.png"):
        dark = image.imread(file)[..., :3].min(axis=2) < 0.9
        edges = (dark[0], dark[-1], dark[:, 0], dark[:, -1])
        assert not any(edge.any() for edge in edges), file.name


@pytest.mark.parametrize("rounds", [1, 2, 3, 30])
def test_rounds_are_whole_numbers_and_begin_before_the_first(tmp_path, drawn, rounds):
    plots.plot_run(run_folder(tmp_path / "run", [0.5] * rounds))
    axes = drawn["metric-by-round"]
    assert list(axes.get_lines()[0].get_xdata()) == list(range(rounds + 1))
    ticks = axes.get_xticks()
    assert (ticks == ticks.astype(int)).all()


def test_a_run_that_was_not_evaluated_before_round_1_begins_with_it(tmp_path, drawn):
    plots.plot_run(run_folder(tmp_path / "run", [0.5], start=None))
    assert list(drawn["metric-by-round"].get_lines()[0].get_xdata()) == [1]


def test_a_figure_is_a_column_wide_and_the_same_run_gives_the_same_files(tmp_path):
    folder = run_folder(tmp_path / "run", [0.5, 0.6])
    files = plots.plot_run(folder)
    assert sorted(file.name for file in files) == sorted(
        f"metric-by-{by}.{kind}" for by in ("round", "megabytes") for kind in ("png", "pdf", "svg")
    )
    before = {file: file.read_bytes() for file in files}
    assert {file: file.read_bytes() for file in plots.plot_run(folder)} == before
    svg = (folder / "plots" / "metric-by-round.svg").read_text("utf-8")
    assert 'width="244.8pt"' in svg, "3.4 inches"


def test_a_run_without_a_metric_has_no_plots(tmp_path):
    folder = run_folder(tmp_path / "run", [None, None])
    assert plots.plot_run(folder) == [] and not (folder / "plots").exists()
