"""The wheel: one top-level package, complete, and usable far from the checkout."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import fl_darex
from fl_darex.config import RunConfig, load_config

ROOT = Path(__file__).resolve().parent.parent
CODE = ("fl_darex", "strategies", "clients")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def run(*command, **options):
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def installed_name(path):
    """Where a file of the checkout lies in the wheel."""
    name = path.relative_to(ROOT).as_posix()
    return name if name.startswith("fl_darex/") else f"fl_darex/{name}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # In a copy: the build leaves folders behind, and old ones would find their way into the wheel.
    copy = tmp_path_factory.mktemp("checkout") / "fl-darex"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, copy)
    for name in CODE:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", copy / "dist", copy)
    (built,) = (copy / "dist").iterdir()
    return built


def test_the_only_top_level_package_of_the_wheel_is_fl_darex(wheel):
    top = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert top == {"fl_darex", f"fl_darex-{fl_darex.__version__}.dist-info"}


def test_the_wheel_holds_every_module_the_type_marker_and_the_digits_checkpoint(wheel):
    data = [
        ROOT / "fl_darex" / "py.typed",
        *(ROOT / "fl_darex" / "tasks" / "digits" / "digits_checkpoint").glob("*.json"),
    ]
    modules = [path for folder in CODE for path in (ROOT / folder).rglob("*.py")]
    assert len(data) == 3 and len(modules) > 40
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in held if ".dist-info/" not in name} == {
        installed_name(path) for path in [*data, *modules]
    }
    assert f"fl_darex-{fl_darex.__version__}.dist-info/licenses/LICENSE" in held


def test_both_halves_import_from_the_installed_wheel(wheel, tmp_path):
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run("-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel)
    code = (
        "import sys, fl_darex.clients, fl_darex.strategies\n"
        "for name, module in sorted(sys.modules.items()):\n"
        "    if name.partition('.')[0] in ('fl_darex', 'strategies', 'clients'):\n"
        "        print(module.__file__)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(target)}
    files = run("-c", code, cwd=elsewhere, env=environment).splitlines()
    assert len(files) > 10
    assert [file for file in files if not Path(file).is_relative_to(target / "fl_darex")] == []


def test_pyproject_lists_every_folder_that_holds_modules():
    folders = {path.parent for folder in CODE for path in (ROOT / folder).rglob("*.py")}
    packages = {installed_name(folder).replace("/", ".") for folder in folders - {ROOT / CODE[0]}}
    assert sorted(PYPROJECT["tool"]["setuptools"]["packages"]) == sorted({"fl_darex", *packages})


def test_version_is_the_same_in_pyproject_and_in_the_package():
    assert PYPROJECT["project"]["version"] == fl_darex.__version__


def test_flower_sees_every_setting_with_its_default():
    sections = PYPROJECT["tool"]["flwr"]["app"]["config"]
    found = {f"{s}.{key}": value for s, values in sections.items() for key, value in values.items()}
    expected = RunConfig().flat()
    assert found == expected, "write fl_darex.config.RunConfig().to_toml() into pyproject.toml"
    assert {k: type(v) for k, v in found.items()} == {k: type(v) for k, v in expected.items()}


def test_there_are_presets():
    assert (ROOT / "configs" / "quickstart.toml").is_file()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.stem)
def test_every_preset_is_a_valid_configuration(path):
    load_config(path)
