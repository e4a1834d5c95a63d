"""Apps of the tests as Flower projects, which it bundles."""

from __future__ import annotations

import shutil
from pathlib import Path

from superlink import ROOT

PYPROJECT = """
[project]
name = "{name}"
version = "0.1.0"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "fl-darex"

[tool.flwr.app.components]
serverapp = "{module}.server_app:app"
clientapp = "{module}.client_app:app"

[tool.flwr.app.config]
rounds = 1
out = ""
"""


def project_of(module: str, folder: Path) -> Path:
    """Make a project of a package beside the tests, in a folder of its own, and return that."""
    name = module.replace("_", "-")
    project, leave = folder / name, shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tests" / module, project / module, ignore=leave)
    text = PYPROJECT.format(name=name, module=module)
    (project / "pyproject.toml").write_text(text, encoding="utf-8")
    return project
