"""The headline table against numbers that were worked out by hand, and its copies read back."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies import entry, write_run, write_study

from fl_darex.study import numbers
from fl_darex.study.columns import exact, texts
from fl_darex.study.copies import comma_separated, latex, markdown
from fl_darex.study.estimates import Estimate, Reached, estimate
from fl_darex.study.headline import Headline, headline
from fl_darex.study.read_folders import load_result
from fl_darex.study.sentence import incomplete, seeds_of, sentence

T_2 = 12.706204736432095
"""Student's t with one degree of freedom, at 97.5 %."""

DENSE = {"compress.method": "dense"}
RUNS = {
    ("dense", 1): ((0.5, 0.6, 0.7, 0.8), DENSE, 25_000, 25_000),
    ("dense", 2): ((0.5, 0.6, 0.7, 0.9), DENSE, 25_000, 25_000),
    # 90 % of dense is .72 and .81: with seed 1 after round 3, with seed 2 after round 4
    ("p", 1): ((0.4, 0.6, 0.73, 0.79), {"compress.p": 0.9}, 1000, 3000),
    ("p", 2): ((0.4, 0.6, 0.74, 0.81), {"compress.p": 0.9}, 1000, 3000),
    ("q", 1): ((0.7, 0.72, 0.6, 0.5), {"compress.p": 0.5}, 2000, 4000),
    ("q", 2): ((0.7, 0.6, 0.6, 0.5), {"compress.p": 0.5}, 2000, 4000),
}


def make(folder: Path, runs=RUNS, points=1, **told) -> Headline:
    entries = []
    for point in range(points):
        for (arm, seed), (metrics, settings, up, down) in runs.items():
            place = f"{arm}-{point}-{seed}"
            write_run(
                folder / place,
                [None if m is None else m - 0.1 * point for m in metrics],
                settings | {"federation.seed": seed},
                up,
                down,
            )
            entries.append(entry(arm, seed, place, point=point))
    return headline(load_result(write_study(folder, entries, **told)))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Headline:
    return make(tmp_path_factory.mktemp("study"))


def row(table: Headline, arm: str):
    return next(row for row in table.rows if row.arm == arm)


def test_final_metrics_and_differences_have_the_intervals_of_two_seeds(table: Headline) -> None:
    p = row(table, "p")
    assert p.final.mean == pytest.approx(0.80)
    assert p.final.half == pytest.approx(T_2 * 0.01)  # .79 and .81: s = .01 * sqrt(2), over sqrt(2)
    assert p.gap.mean == pytest.approx(-0.05)  # -.01 and -.09
    assert p.gap.half == pytest.approx(T_2 * 0.04)
    assert row(table, "dense").gap is None


def test_bytes_are_those_of_a_run_with_its_handshake(table: Headline) -> None:
    p = row(table, "p")
    assert (p.up, p.down, p.total, p.runs, p.planned) == (4000, 12_000, 16_100, 2, 2)
    assert p.ratio == pytest.approx(400_000 / 16_100)


def test_bytes_to_the_target_are_means_over_the_seeds_that_reached_it(table: Headline) -> None:
    assert row(table, "p").to_target == ((12_100 + 16_100) / 2, 2, 2)
    assert row(table, "q").to_target == (12_100, 1, 2)
    assert row(table, "dense").to_target == (200_100, 2, 2)
    # Client 0 sends 500 and is sent 1,500 bytes a round: at 1 and 10 Mbit/s 4 and 1.2 ms.
    assert row(table, "p").seconds == [pytest.approx((3.5 * 0.0052, 2, 2))]


def test_rows_are_sorted_by_bytes_to_the_target_and_those_that_lack_runs_come_last(
    table: Headline, tmp_path: Path
) -> None:
    assert [row.arm for row in table.rows] == ["p", "dense", "q"]
    never = RUNS | {("q", 1): ((0.1, 0.1, 0.1, 0.1), {"compress.p": 0.5}, 2000, 4000)}
    never |= {("o", 1): ((0.7, 0.72, 0.6, 0.5), {"compress.p": 0.6}, 2000, 4000)}
    found = make(tmp_path, {key: run for key, run in never.items() if key != ("q", 2)})
    assert [row.arm for row in found.rows] == ["p", "dense", "o", "q"]
    assert row(found, "q").to_target == (None, 0, 1) and row(found, "q").planned == 2
    assert row(found, "o").to_target == (12_100, 1, 1) and row(found, "o").planned == 2
    only = {key: run for key, run in never.items() if key[0] in ("dense", "o")}
    assert sentence(make(tmp_path, only)).startswith("o (1 of 2 runs) reaches 90 %")
    assert numbers.reached(row(found, "q").to_target) == "— (0/1)"


def test_a_budget_and_an_area_are_those_of_the_curve(table: Headline) -> None:
    assert [found.mean for found in row(table, "p").budgets] == pytest.approx([0.4, 0.6])
    assert [found.mean for found in row(table, "dense").budgets] == pytest.approx([0.1, 0.1])
    assert table.span == (4100, 200_100)
    assert row(table, "dense").area.mean == pytest.approx(
        (
            0.1 * math.log(50_100 / 4100)
            + 0.5 * math.log(100_100 / 50_100)
            + 0.6 * math.log(150_100 / 100_100)
            + 0.7 * math.log(200_100 / 150_100)
        )
        / math.log(200_100 / 4100)
    )


def test_with_several_points_means_are_over_points_and_intervals_a_bootstrap(
    tmp_path: Path,
) -> None:
    grid = [{"federation.alpha": 1.0}, {"federation.alpha": 0.1}]
    table = make(tmp_path, points=2, grid=grid)
    p = row(table, "p")
    assert p.final.mean == pytest.approx((0.80 + 0.70) / 2) and p.final.half is None
    low, high = p.final.ends
    assert low < p.final.mean < high and 0.69 <= low and high <= 0.81
    assert p.gap.mean == pytest.approx(-0.05)
    assert (p.runs, p.planned) == (4, 4) and table.span is None
    assert "bootstrap over points and seeds" in seeds_of(table)
    alone = headline(table.result, [1])
    assert row(alone, "p").final.mean == pytest.approx(0.70) and alone.span == (4100, 200_100)


def test_an_arm_that_lacks_a_point_is_marked_and_compared_with_no_other(tmp_path: Path) -> None:
    grid = [{"federation.alpha": 1.0}, {"federation.alpha": 0.1}]
    runs = [
        entry(arm, 1, f"{arm}{point}", point=point) for arm in ("dense", "p") for point in (0, 1)
    ]
    for run in runs[:3]:
        write_run(tmp_path / run["folder"])
    table = headline(load_result(write_study(tmp_path, runs, grid=grid)))
    p = row(table, "p")
    assert (p.state, p.gap, p.area) == ("at 1 of 2 points", None, None)
    assert [row.arm for row in table.front] == ["dense"]
    assert texts(table)[1][1][0] == "p (at 1 of 2 points)"


def test_an_arm_without_a_finished_run_shows_what_it_has_so_far(tmp_path: Path) -> None:
    write_run(tmp_path / "d")
    write_run(tmp_path / "p", [0.9])
    runs = [entry("dense", 1, "d"), entry("p", 1, "p"), entry("n", 1, "n", "failed", reason="why")]
    table = headline(load_result(write_study(tmp_path, runs)))
    p, none = row(table, "p"), row(table, "n")
    assert p.state == "running, 1 of 4 rounds" and p.final.mean == 0.9 and p.gap is None
    assert none.state == "failed" and none.final is None and none.total is None
    assert incomplete(table.result) == "Incomplete: 1 of 3 runs finished; 1 running, 1 failed."
    assert sentence(table).startswith("No other arm reaches 90 % of the final accuracy of dense")


def test_one_seed_has_no_interval_and_nan_is_told(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", [0.5, 0.6, 0.7, math.nan], {"compress.p": 0.5})
    table = headline(load_result(tmp_path / "a", tmp_path / "b"))
    assert row(table, "a").final == Estimate(0.8) and "One seed has no interval" in seeds_of(table)
    assert numbers.estimated(row(table, "b").final) == "NaN"
    assert [row.arm for row in table.front] == ["a"]


def test_a_reference_that_came_to_nothing_gives_no_target(tmp_path: Path) -> None:
    for final in (0.0, -0.5, math.nan):
        write_run(tmp_path / "d", [0.1, 0.1, 0.1, final])
        write_run(tmp_path / "p", settings={"compress.p": 0.9})
        runs = [entry("dense", 1, "d"), entry("p", 1, "p")]
        table = headline(load_result(write_study(tmp_path, runs)))
        assert [row.to_target for row in table.rows] == [None, None]
        assert sentence(table) == "dense, the reference, has no result to compare with."


def test_the_sentence_says_what_the_target_cost(table: Headline, tmp_path: Path) -> None:
    # (12.1 + 16.1) / 2 = 14.1 kB, and 200.1 / 14.1 = 14.19
    assert sentence(table) == (
        "p reaches 90 % of the final accuracy of dense with 14.1 kB, 1/14.2 of what dense itself "
        "needs for that."
    )
    alone = headline(load_result(write_run(tmp_path / "one")))
    assert sentence(alone) == (
        "The final accuracy is 0.8000; 16.1 kB were sent, where whole models would have taken 24.8 "
        "times as much."
    )
    running = headline(load_result(write_run(tmp_path / "two", [0.3])))
    assert sentence(running).startswith(
        "No run has finished yet: the accuracy so far is 0.3000; 4.1"
    )
    assert incomplete(running.result) == "This run has not finished: running, 1 of 4 rounds."
    other = write_run(tmp_path / "three", [0.5] * 4, {"compress.p": 0.5}, up=10)
    both = headline(load_result(tmp_path / "one", other))
    assert sentence(both) == (
        "The best final accuracy, 0.8000, is that of one, with 16.1 kB; three sends the fewest "
        "bytes, 12.1 kB, for 0.5000."
    )


# --- copies -------------------------------------------------------------------------------------

ODD = ["dense", "a|b", "x_$y$_%&#{~^}\\", "<b>\"q\", 'r'", "*[1]*", "=1+1", "two  words", "模型"]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Headline:
    folder = tmp_path_factory.mktemp("odd")
    entries = []
    for place, name in enumerate(ODD):
        write_run(folder / f"{place}", settings={"compress.p": 0.5 + place / 100})
        entries.append(entry(name, 1, f"{place}"))
    return headline(load_result(write_study(folder, entries)))


def test_the_csv_reads_back_to_the_same_numbers(table: Headline, odd: Headline) -> None:
    for one in (table, odd):
        read = list(csv.DictReader(io.StringIO(comma_separated(one))))
        for there, found in zip(exact(one), read, strict=True):
            assert list(there) == list(found)
            for key, value in there.items():
                back = found[key] or None
                assert back in (value or None, str(value)) or float(back or 0) == value, key
    p = next(csv.DictReader(io.StringIO(comma_separated(table))))
    assert float(p["final_mean"]) == pytest.approx(0.8) and p["bytes_to_target_reached"] == "2"
    assert float(p["final_high"]) - float(p["final_low"]) == pytest.approx(2 * T_2 * 0.01)


def test_the_markdown_reads_back_to_the_same_cells(table: Headline, odd: Headline) -> None:
    for one in (table, odd):
        names, rows = texts(one)
        head, rule, *body = (
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in markdown(one).splitlines()
        )
        assert {*rule} == {"---", "---:"}
        plain = [[re.sub(r"\\(.)", r"\1", cell) for cell in row] for row in (head, *body)]
        assert plain == [[" ".join(cell.split()) for cell in row] for row in (names, *rows)]


def test_the_latex_reads_back_to_the_same_cells(table: Headline, odd: Headline) -> None:
    known = {
        r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^",
        r"\textless{}": "<", r"\textgreater{}": ">", r"\textbar{}": "|", r"\textquotedbl{}": '"',
        r"$\pm$": "±", "---": "—", "{[}": "[", "{*}": "*",
    }  # fmt: skip
    pattern = "|".join([*map(re.escape, known), r"\\[&%$#_{}]"])
    for one in (table, odd):
        names, rows = texts(one)
        lines = [line for line in latex(one).splitlines() if line.endswith(r" \\")]
        read = [
            [
                re.sub(pattern, lambda m: known.get(m[0], m[0][1:]), cell)
                for cell in re.split(r" (?<!\\)& ", line.removesuffix(r" \\"))
            ]
            for line in lines
        ]
        assert read == [[" ".join(cell.split()) for cell in row] for row in (names, *rows)]
        assert f"{{l{'r' * (len(names) - 1)}}}" in latex(one)


# --- numbers ------------------------------------------------------------------------------------


@given(st.floats(1e-9, 1e12))
def test_three_digits_that_count_are_three(value: float) -> None:
    shown = numbers.significant(value)
    assert "e" not in shown and float(shown) == pytest.approx(value, rel=0.006)
    assert len(shown.replace(".", "").lstrip("0")) == 3 or value >= 999.5


@given(st.floats(1, 1e13))
def test_bytes_in_words_are_within_half_a_percent_and_short(value: float) -> None:
    shown, unit = numbers.in_bytes(value).split()
    assert "e" not in shown and float(shown) * numbers.UNITS[unit] == pytest.approx(
        value, rel=0.006
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Estimate(0.91234, half=0.00321), "0.9123 ± 0.0032"),
        (Estimate(0.5, ends=(-0.1, 0.75)), "0.5000 [-0.1000, 0.7500]"),
        (Estimate(123.456), "123.46"),
        (Estimate(math.nan), "NaN"),
        (None, "—"),
    ],
)
def test_an_estimate_is_written_with_its_interval(value: Estimate | None, shown: str) -> None:
    assert numbers.estimated(value) == shown


def test_signs_and_counts_are_written_out() -> None:
    assert numbers.estimated(Estimate(0.01, half=0.02), sign=True) == "+0.0100 ± 0.0200"
    assert numbers.reached(Reached(12_345.0, 2, 3), 1e3) == "12.3 (2/3)"
    assert numbers.significant(9.9996) == "10.0" and numbers.significant(0.0) == "0"


def test_an_estimate_of_nothing_is_none_and_one_value_has_no_interval() -> None:
    assert estimate([]) is None and estimate([[], []]) is None
    assert estimate([[0.5]]) == Estimate(0.5) and estimate([[0.5], []]) == Estimate(0.5)
