"""The Flower bundle that `flwr run` ships, built, unpacked and loaded by Flower itself."""

import shutil
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.install import install_from_fab
from flwr.cli.utils import validate_project_name
from flwr.common.config import (
    get_fused_config_from_dir,
    get_project_config,
    parse_config_args,
)

from fl_darex.config import RunConfig, load_config, make_config

ROOT = Path(__file__).resolve().parent.parent
CODE = ("fl_darex", "strategies", "clients")

# Nothing is put on the path but the bundle, by Flower; the working folder is empty. The library may
# also be installed from the checkout, so each module says where it came from.
LOAD_BOTH = """
import sys
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.supercore.object_ref import load_app

bundle = Path(sys.argv[1])
for reference, kind in zip(sys.argv[2:], (ServerApp, ClientApp), strict=True):
    assert isinstance(load_app(reference, ValueError, bundle), kind), reference

from fl_darex.config import RunConfig
from fl_darex.tasks import load_task

model = load_task(RunConfig()).load_model()
assert sum(parameter.numel() for parameter in model.parameters()) > 100_000

ours = ("fl_darex", "strategies", "clients")
modules = {name: m for name, m in sys.modules.items() if name.partition(".")[0] in ours}
assert "fl_darex.strategies.server_app" in modules and "fl_darex.clients.client_app" in modules
outside = {n: m.__file__ for n, m in modules.items() if not Path(m.__file__).is_relative_to(bundle)}
assert not outside, outside
"""

VALIDATE = """
import sys
from pathlib import Path

from flwr.cli.config_utils import load_and_validate

config, warnings = load_and_validate(Path(sys.argv[1], "pyproject.toml"), check_module=True)
assert warnings == []
import fl_darex

assert Path(fl_darex.__file__).is_relative_to(sys.argv[1]), fl_darex.__file__
"""

# Flower still uses a pattern class that pathspec will drop.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pathspec")


def run(code, bundle, folder, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle), *arguments],
        cwd=folder,
        env={"HOME": str(folder), "FLWR_HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def fab(tmp_path_factory):
    # A copy, because Flower looks at every file of the folder, those of .venv too.
    copy = tmp_path_factory.mktemp("checkout") / "fl-darex"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, copy)
    for name in (*CODE, "configs", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    validate_project_name(copy.name, "folder")
    return build_fab_from_disk(copy)


@pytest.fixture(scope="module")
def bundle(fab, tmp_path_factory):
    return install_from_fab(fab, tmp_path_factory.mktemp("flwr-home"), skip_prompt=True)


def test_the_bundle_holds_all_modules_presets_and_the_digits_checkpoint_and_no_tests(fab):
    patterns = [
        *((folder, "**/*.py") for folder in CODE),
        ("configs", "**/*.toml"),
        ("fl_darex/tasks/digits/digits_checkpoint", "*.json"),
        (".", "LICENSE"),
        (".", "README.md"),
        (".", "pyproject.toml"),
    ]
    expected = [
        path.relative_to(ROOT).as_posix()
        for folder, pattern in patterns
        for path in (ROOT / folder).glob(pattern)
    ]
    held = zipfile.ZipFile(BytesIO(fab)).namelist()
    assert sorted(held) == sorted([*expected, ".info/CONTENT"])


def test_both_apps_and_the_digits_model_load_from_the_bundle_alone(bundle, tmp_path):
    components = get_project_config(bundle)["tool"]["flwr"]["app"]["components"]
    run(LOAD_BOTH, bundle, tmp_path, components["serverapp"], components["clientapp"])


def test_flower_finds_nothing_to_complain_about_in_the_bundle(bundle, tmp_path):
    run(VALIDATE, bundle, tmp_path)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.stem)
def test_a_preset_means_the_same_to_flower_and_to_the_command(bundle, path):
    fused = get_fused_config_from_dir(bundle, parse_config_args([str(path)]))
    assert make_config(fused) == load_config(path)


def test_flower_lets_a_run_change_every_setting(bundle):
    changed = RunConfig().flat() | {"compress.q": 0.02, "task.dataset": "a/b", "train.lr": 1e-5}
    assert get_fused_config_from_dir(bundle, changed) == changed
