"""Models on disk: what is read is what was written, or it is not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from apps import BASE, numpy_app
from federations import Federation, fedavg, listening, rounds

from fl_darex.clients import DarexMod
from fl_darex.files.atomic import UNFINISHED_SECONDS
from fl_darex.files.model_cache import FORGOTTEN_DAYS, KEPT, ModelCache
from fl_darex.strategies import DarexStrategy

RUN = "0123456789abcdef"
ONE, TWO, THREE = (bytes([i] * 8) for i in (1, 2, 3))
MODEL = {
    "weight": np.linspace(-1, 1, 3000, dtype=np.float32).reshape(60, 50),
    "bias": np.zeros(0, np.float32),
    "scalar": np.array(1.5),
    "flags": np.array([True, False, True]),
    "half": np.arange(7, dtype=np.float16),
    "columns": np.asfortranarray(np.arange(12, dtype=np.int64).reshape(3, 4)),
    "größe": np.arange(5, dtype=">i4"),
}


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(RUN, tmp_path)


def same(one: dict[str, np.ndarray] | None, other: dict[str, np.ndarray]) -> bool:
    return (
        one is not None
        and list(one) == list(other)
        and all(
            (one[k].dtype, one[k].shape, one[k].tobytes())
            == (other[k].dtype, other[k].shape, other[k].tobytes())
            for k in other
        )
    )


def test_a_model_is_read_as_it_was_written(cache):
    assert cache.load(ONE) is None
    cache.store(ONE, MODEL)
    assert same(cache.load(ONE), MODEL)
    assert cache.load(TWO) is None


def test_what_is_read_cannot_be_changed_and_is_not_copied(cache):
    cache.store(ONE, MODEL)
    weight = cache.load(ONE)["weight"]
    assert isinstance(weight, np.memmap)
    assert not weight.flags.writeable
    assert all(a.ctypes.data % 64 == 0 for a in cache.load(ONE).values() if a.size)


def test_another_process_reads_it_too(cache, tmp_path):
    cache.store(ONE, MODEL)
    code = (
        "import sys; from pathlib import Path; from fl_darex.files.model_cache import ModelCache\n"
        f"print(ModelCache({RUN!r}, Path(sys.argv[1])).load(bytes([1] * 8))['weight'].sum())"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == str(MODEL["weight"].sum())


def test_the_newest_versions_stay(cache):
    for version in (ONE, TWO, THREE):
        cache.store(version, MODEL)
        time.sleep(0.01)
    assert cache.load(ONE) is None
    assert same(cache.load(TWO), MODEL) and same(cache.load(THREE), MODEL)
    assert len(list(cache.folder.glob("*.model"))) == KEPT


def test_a_model_that_is_still_being_read_may_be_forgotten(cache):
    cache.store(ONE, MODEL)
    read = cache.load(ONE)
    for version in (TWO, THREE):
        cache.store(version, MODEL)
    assert same(read, MODEL)


def test_runs_do_not_see_each_other(tmp_path):
    one, other = ModelCache(RUN, tmp_path), ModelCache(RUN[::-1], tmp_path)
    one.store(ONE, MODEL)
    one.hold(7, ONE)
    assert other.load(ONE) is None and other.held_by(7) is None
    other.store(TWO, MODEL)
    one.remove()
    assert one.load(ONE) is None and same(other.load(TWO), MODEL)


def test_old_runs_are_removed_when_a_new_one_begins(tmp_path):
    old, young = ModelCache("0" * 16, tmp_path), ModelCache("1" * 16, tmp_path)
    old.store(ONE, MODEL), young.store(ONE, MODEL)
    (tmp_path / "something else").mkdir()
    past = time.time() - (FORGOTTEN_DAYS + 1) * 86400
    for folder in (old.folder, tmp_path / "something else"):
        os.utime(folder, (past, past))
    ModelCache(RUN, tmp_path).store(ONE, MODEL)
    assert sorted(path.name for path in tmp_path.iterdir()) == [RUN, "1" * 16, "something else"]


def test_a_client_is_remembered_with_the_version_it_was_brought_to(cache):
    assert cache.held_by(5) is None
    cache.store(ONE, MODEL)
    cache.hold(5, ONE)
    assert (cache.held_by(5), cache.held_by(6)) == (ONE, None)
    cache.store(TWO, MODEL), cache.hold(5, TWO)
    assert cache.held_by(5) == TWO


def test_a_version_that_is_gone_is_not_held(cache):
    cache.store(ONE, MODEL)
    cache.hold(5, ONE)
    next(cache.folder.glob("*.model")).unlink()
    assert cache.held_by(5) is None


@pytest.mark.parametrize("text", ["", "\n5", "\n5 1", "\n5 x\n", "\n5 é\n", "\n55 1\n", "5 1\n"])
def test_a_damaged_note_is_no_note(cache, text):
    cache.store(ONE, MODEL), cache.store(TWO, MODEL)
    (cache.folder / f"{ONE.hex()}.held").write_text(text)
    (cache.folder / "nonsense.held").write_text("\n5 1\n")
    assert cache.held_by(5) is None
    cache.hold(5, ONE)
    assert cache.held_by(5) == ONE


def test_the_last_note_counts_and_those_of_other_clients_stand_beside_it(cache):
    cache.store(ONE, MODEL), cache.store(TWO, MODEL)
    for node in (5, 15, 5, 151):
        cache.hold(node, ONE)
    for node in (15, 5):
        cache.hold(node, TWO)
    cache.hold(5, ONE)  # a server that went back
    assert [cache.held_by(node) for node in (5, 15, 151, 1)] == [ONE, TWO, ONE, None]
    assert len(list(cache.folder.glob("*.held"))) == 2


@pytest.mark.parametrize("run", ["", "../../etc", "0" * 15, "0" * 17, "ABCDEF0123456789", "/" * 16])
def test_a_run_that_is_no_name_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="16 hexadecimal digits, got"):
        ModelCache(run, tmp_path)


# --- damage --------------------------------------------------------------------------------


def test_every_truncation_is_taken_for_missing_and_mended_by_the_next_writer(cache):
    small = {"w": np.arange(5, dtype=np.float32)}
    cache.store(ONE, small)
    (path,) = cache.folder.glob("*.model")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert cache.load(ONE) is None
    cache.store(ONE, small)
    assert same(cache.load(ONE), small)


def test_every_flipped_bit_is_taken_for_missing_or_changes_nothing(cache):
    small = {"w": np.arange(5, dtype=np.float32)}
    cache.store(ONE, small)
    (path,) = cache.folder.glob("*.model")
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert cache.load(ONE) is None


WRITER = """
import sys
from pathlib import Path
import numpy as np
from fl_darex.files.model_cache import ModelCache
cache = ModelCache(sys.argv[2], Path(sys.argv[1]))
model = {"w": np.full(2_000_000, 7, np.float32)}
print("ready", flush=True)
while True:
    for path in cache.folder.glob("*.model"):
        path.unlink(missing_ok=True)
    cache.store(bytes([1] * 8), model)
    cache.hold(3, bytes([1] * 8))
"""


def test_writers_at_once_and_kills_in_mid_write_leave_whole_models_or_none(cache, tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path), RUN]
    seen = 0
    for _ in range(3):
        writers = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in "12"
        ]
        try:
            for writer in writers:
                assert writer.stdout.readline() == b"ready\n"
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                found = cache.load(ONE)
                if found is not None:
                    seen += 1
                    assert (found["w"] == 7).all()
                assert cache.held_by(3) in (None, ONE)
        finally:
            for writer in writers:
                writer.send_signal(signal.SIGKILL)
                writer.wait(timeout=10)
                writer.stdout.close(), writer.stderr.close()
        found = cache.load(ONE)
        assert found is None or (found["w"] == 7).all()
    assert seen
    model = {"w": np.full(2_000_000, 7, np.float32)}
    cache.store(ONE, model)
    assert same(cache.load(ONE), model)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        ModelCache(RUN, tmp_path / "file").store(ONE, MODEL)


def test_a_write_that_fails_leaves_nothing(cache, monkeypatch):
    cache.store(TWO, MODEL)

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        cache.store(ONE, MODEL)
    assert [path.name for path in cache.folder.iterdir()] == [f"{TWO.hex()}.model"]


def test_a_file_under_another_versions_name_is_a_damaged_one(cache):
    cache.store(ONE, MODEL)
    os.rename(cache._path(ONE), cache._path(TWO))
    assert cache.load(TWO) is None
    assert not cache._path(TWO).exists()


OBJECTS = [os.mkdir, *([os.mkfifo] if hasattr(os, "mkfifo") else [])]


@pytest.mark.timeout(20)  # whoever opens a pipe waits for ever
@pytest.mark.parametrize("make", OBJECTS)
def test_a_pipe_or_a_folder_in_a_files_place_is_an_error_and_nobody_waits(cache, make):
    cache.store(TWO, MODEL)
    cache.hold(7, TWO)
    make(cache._path(ONE))
    make(cache.folder / f"{ONE.hex()}.held")
    assert cache.load(ONE) is None and cache.held_by(5) is None
    with pytest.raises(OSError, match=r"\.model' is there and is no file; remove it"):
        cache.store(ONE, MODEL)
    with pytest.raises(OSError, match=r"\.held' is there and is no file; remove it"):
        cache.hold(5, ONE)
    assert cache.held_by(7) == TWO and cache.held_by(5) is None
    assert same(cache.load(TWO), MODEL)


def test_what_killed_writers_left_goes_and_what_is_being_written_stays(cache):
    cache.store(ONE, MODEL)
    old, young = (cache.folder / f"{name}.model.0123456789abcdef.part" for name in "ab")
    past = time.time() - UNFINISHED_SECONDS - 10
    for part in (old, young):
        part.write_bytes(b"half")
    os.utime(old, (past, past))
    cache.store(TWO, MODEL)
    assert not old.exists() and young.exists()


@pytest.fixture
def homeless(monkeypatch):
    """As in a container whose user is in no list of users."""
    for name in ("FL_DAREX_CACHE", "XDG_CACHE_HOME", "HOME", "USERPROFILE"):
        monkeypatch.delenv(name, raising=False)
    if os.name != "nt":
        import pwd

        def nobody(_: int) -> None:
            raise KeyError("no such user")

        monkeypatch.setattr(pwd, "getpwuid", nobody)


def test_without_a_home_folder_the_cache_holds_nothing_and_cannot_be_written(homeless):
    cache = ModelCache(RUN)
    assert cache.load(ONE) is None and cache.held_by(5) is None
    with pytest.raises(FileNotFoundError, match="there is none; set FL_DAREX_CACHE to a folder"):
        cache.store(ONE, MODEL)
    with pytest.raises(FileNotFoundError, match="set FL_DAREX_CACHE"):
        cache.hold(5, ONE)
    cache.remove()


def test_a_run_without_a_home_folder_comes_to_its_end_and_says_so_once(homeless, caplog):
    strategy = DarexStrategy(fedavg(clients=2), p=0.9)
    with listening(caplog):
        rounds(strategy, Federation(numpy_app([DarexMod()]), 2), 3)
    assert strategy.counted == 2
    lines = {id(one): one.getMessage() for one in caplog.records}
    said = [line for line in lines.values() if "models cannot be kept in" in line]
    assert len(said) == 1 and "set FL_DAREX_CACHE" in said[0]


def test_a_cache_that_cannot_be_removed_does_not_hide_the_result(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_DAREX_CACHE", str(tmp_path))

    def busy(*_: object, **__: object) -> None:
        raise OSError("device or resource busy")

    monkeypatch.setattr(os, "rmdir", busy)
    monkeypatch.setattr(os, "unlink", busy)
    strategy = DarexStrategy(fedavg(clients=2), p=0.9)
    result = rounds(strategy, Federation(numpy_app([DarexMod()]), 2), 1)
    assert set(result.arrays) == set(BASE)
    with (
        pytest.raises(ValueError, match="the app's own"),
        strategy.running(Federation(numpy_app(), 2)),
    ):
        raise ValueError("the app's own")
