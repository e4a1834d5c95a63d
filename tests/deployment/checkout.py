"""What `flwr run .` finds in a checkout, and environments to run it in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

from superlink import ROOT

from .marks import SLOW

SCRIPT = """#!{python}
import sys
from {module} import {attribute}
sys.exit({attribute}())
"""


@dataclass(frozen=True)
class Place:
    """A checkout, and the model that ``fl-darex run`` makes of its preset."""

    checkout: Path
    preset: Path
    model: bytes


def copy_of_the_checkout(folder: Path) -> Path:
    """The files of this repository that a bundle is made of, and nothing else."""
    copy = folder / "fl-darex"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore", "MANIFEST.in"):
        shutil.copy(ROOT / name, copy)
    for name in ("fl_darex", "strategies", "clients", "configs"):
        leave = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=leave)
    return copy


def environment(folder: Path, wheel_of: Path | None = None) -> Path:
    """Make an environment with all that this one has, but for fl-darex; return its commands.

    Args:
        folder: Where to make it.
        wheel_of: A checkout to install as a wheel; default: none.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python, site = folder / "bin" / "python", next((folder / "lib").glob("python*/site-packages"))
    # Folders named here are searched, but their own .pth files, of editable installs, are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for entry in distribution("flwr").entry_points.select(group="console_scripts"):
        script = folder / "bin" / entry.name
        text = SCRIPT.format(python=python, module=entry.module, attribute=entry.attr)
        script.write_text(text)
        script.chmod(0o755)
    if wheel_of is not None:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
        build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(wheel_of)]
        subprocess.run([*pip, *build], check=True, timeout=600)
        (wheel,) = folder.glob("*.whl")
        target = ["--python", str(python), "install", "--no-deps", "--force-reinstall"]
        subprocess.run([*pip, *target, str(wheel)], check=True, timeout=600)
    return folder / "bin"


def imports_fl_darex(scripts: Path) -> bool:
    command = [str(scripts / "python"), "-c", "import fl_darex.strategies"]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd="/", env=clean, capture_output=True, timeout=SLOW)
    return done.returncode == 0
