"""``fl-darex report`` as a person uses it: where the page goes, and what a mistake says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from studies import entry, write_run, write_study

pytest.importorskip("matplotlib")

from typer.testing import CliRunner, Result

import fl_darex
from fl_darex.cli import app

UNMEASURED = {"settings": {"federation.evaluate": "none"}, "initial_metric": None}


def report(*arguments: Path | str) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)], env={"COLUMNS": "200"})


def test_the_page_is_in_the_first_folder_and_its_figures_are_beside_it(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run 1", [None] * 4, **UNMEASURED)
    done = report(folder)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [
        f"report: '{folder}/report.html'",
        f"figures: '{folder}/figures'",
    ]
    assert (folder / "report.html").is_file() and (folder / "figures/bytes-by-kind.pdf").is_file()


def test_page_and_figures_go_where_one_says(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [None] * 4, **UNMEASURED)
    out, pictures = tmp_path / "new" / "page.html", tmp_path / "pictures"
    done = report(folder, "--out", out, "--figures", pictures)
    assert done.exit_code == 0, done.output
    assert out.is_file() and list(pictures.glob("*.svg"))
    assert not list(folder.glob("*.html")) and not (folder / "figures").exists()


def test_what_is_not_whole_is_said_at_once(tmp_path: Path) -> None:
    runs = [entry("a", 1, "a", "failed", reason="no memory"), entry("a", 2, "a", "missing")]
    done = report(write_study(tmp_path, runs))
    assert done.exit_code == 0, done.output
    assert done.output.startswith("note: Incomplete: 0 of 2 runs finished; 1 failed, 1 missing.")


def test_the_command_itself_runs_and_its_help_says_where_files_go(tmp_path: Path) -> None:
    code = "from fl_darex.cli import main; main()"
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
    for arguments, code_expected, words in (
        (["--help"], 0, "default figures beside the page"),
        ([str(tmp_path)], 2, "error: "),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, "report", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code_expected, done.stderr
        assert words in " ".join((done.stdout + done.stderr).split())
        assert "Traceback" not in done.stderr


def damaged(folder: Path) -> list[Path | str]:
    (write_run(folder) / "rounds.jsonl").write_text("{\n")
    return [folder]


def without_permission(folder: Path) -> list[Path | str]:
    write_run(folder, [None] * 4, **UNMEASURED)
    return [folder, "--out", "/proc/page.html"]


def not_utf8(folder: Path) -> list[Path | str]:
    (write_run(folder) / "clients.jsonl").write_bytes(b"\xff\n")
    return [folder]


def a_folder_for_a_file(folder: Path) -> list[Path | str]:
    (write_run(folder) / "summary.json").unlink()
    (folder / "summary.json").mkdir()
    return [folder]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: [folder], "is not there; name run folders, or a study's folder"),
        (lambda folder: [folder.parent], "neither a run folder nor a study's folder"),
        (lambda folder: [], "Missing argument 'DIR...'"),
        (lambda folder: [write_run(folder), "--out", folder], "is a folder; name a file, such as"),
        (damaged, "cannot be read (JSONDecodeError"),
        (not_utf8, "cannot be read (UnicodeDecodeError"),
        (a_folder_for_a_file, "cannot be read (Is a directory)"),
        (without_permission, "name another place with --out and --figures"),
    ],
)
def test_a_mistake_is_one_line_with_a_way_out(tmp_path: Path, make, words: str) -> None:
    done = report(*make(tmp_path / "run"))
    assert done.exit_code == 2 and words in done.output
    assert "Traceback" not in done.output


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    # An import leaves its module in its package, too.
    monkeypatch.setattr(fl_darex, "study", fl_darex.study)  # type: ignore[attr-defined]
    for name in [name for name in sys.modules if name.startswith("fl_darex.study")]:
        monkeypatch.delitem(sys.modules, name)
    done = report(write_run(tmp_path))
    assert done.exit_code == 2
    assert "matplotlib, which is not installed; pip install 'fl-darex[study]'" in done.output
