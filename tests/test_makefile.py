"""``make``: its set-up is a few lines, and pip's own words are where it says they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A package of its own that installs without an index, in place of fl-darex and all it needs.
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "nothing"
version = "1"
"""
BACKEND = """
import pathlib, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    print("a word of the builder")
    {trouble}
    info, name = "nothing-1.dist-info", "nothing-1-py3-none-any.whl"
    metadata = "Metadata-Version: 2.1\\nName: nothing\\nVersion: 1\\nProvides-Extra: all\\n"
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as wheel:
        wheel.writestr(info + "/METADATA", metadata)
        wheel.writestr(info + "/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr(info + "/RECORD", "")
    return name
"""


def make(folder: Path, trouble: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "backend.py").write_text(BACKEND.format(trouble=trouble))
    (folder / "constraints.txt").write_text("")
    # A make inside `make test` says which folder it enters; a person's make does not.
    outside = {
        key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))
    }
    return subprocess.run(
        ["make", ".venv/.ready-all", f"PYTHON={sys.executable}"],
        cwd=folder,
        env=outside | {"PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(autouse=True)
def has_make() -> None:
    if shutil.which("make") is None:
        pytest.skip("there is no make here")


def test_a_set_up_that_works_is_a_few_lines(tmp_path: Path) -> None:
    done = make(tmp_path, "pass")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "making .venv",
        "installing fl-darex and the packages that it needs into .venv: minutes, the first time; "
        "follow it in .venv/install.log",
        "installed",
    ]
    assert "Successfully installed nothing-1" in (tmp_path / ".venv" / "install.log").read_text()
    assert (tmp_path / ".venv" / ".ready-all").exists()
    again = make(tmp_path, "pass")  # its files are new, .venv is there
    assert again.returncode == 0 and "making" not in again.stdout


def test_a_set_up_that_fails_shows_what_pip_said_last_and_names_the_log(tmp_path: Path) -> None:
    done = make(tmp_path, "raise SystemExit('no space left on the moon')")
    assert done.returncode != 0
    assert "no space left on the moon" in done.stderr
    assert "pip could not install them; all that it said is in .venv/install.log" in done.stderr
    assert len(done.stderr.splitlines()) < 30
    assert "no space left on the moon" in (tmp_path / ".venv" / "install.log").read_text()
    assert not (tmp_path / ".venv" / ".ready-all").exists()
    assert not (tmp_path / ".venv" / ".unfinished").exists()
