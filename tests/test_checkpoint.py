"""What a run remembers, as a file: exact, whole or not there, and refused where it is another's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_darex.errors import ConfigError
from fl_darex.files.checkpoint import Checkpoint, refuse_foreign
from fl_darex.files.lock import Lock
from fl_darex.files.states import Packed

FACTS = {"round": 3, "run": {"p": 0.99, "dense": ["head"]}}
DTYPES = st.sampled_from(["<f4", ">f8", "<f2", "<i8", "|u1", "|b1", "<c8", "<U3", "|S2", "<M8[s]"])
ARRAYS = hnp.arrays(DTYPES.map(np.dtype), hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=9)
)
KEYS = st.booleans() | st.integers() | st.text() | st.binary(max_size=3)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS | ARRAYS | ARRAYS.map(np.asfortranarray) | ARRAYS.map(lambda array: array.T),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.lists(inner, max_size=3).map(lambda items: deque(items, 3))
        | st.sets(KEYS, max_size=3)
        | st.frozensets(KEYS, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=3).map(OrderedDict)
        | st.dictionaries(KEYS, inner, max_size=3).map(lambda items: defaultdict(list, items))
        | st.dictionaries(KEYS, st.integers(), max_size=3).map(Counter)
    ),
    max_leaves=8,
)


def same(one: Any, other: Any) -> bool:
    """Whether two values are of the same kinds and hold the same bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        order = [one.flags.c_contiguous, one.flags.f_contiguous]
        alike = (one.dtype, one.shape) == (other.dtype, other.shape)
        ordered = one.size < 2 or order == [other.flags.c_contiguous, other.flags.f_contiguous]
        return alike and one.tobytes() == other.tobytes() and (ordered or not any(order))
    if isinstance(one, dict):
        factory = getattr(one, "default_factory", None)
        pairs = zip(one.items(), other.items(), strict=True)
        return factory is getattr(other, "default_factory", None) and all(
            same(a, b) for pair in pairs for a, b in zip(*pair, strict=True)
        )
    if isinstance(one, set | frozenset):
        return sorted(map(repr, one)) == sorted(map(repr, other))
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(map(same, one, other))
    return one.hex() == other.hex() if isinstance(one, float) else one == other


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoint")


@given(value=VALUES)
def test_every_plain_value_comes_back_as_it_was(value: Any, folder: Path) -> None:
    Checkpoint(folder).save(FACTS, value)
    facts, found = Checkpoint(folder).load() or ({}, None)
    assert facts == FACTS and same(value, found)


def test_numpys_scalars_keep_their_kind_and_arrays_can_be_written_to(tmp_path: Path) -> None:
    state = {"n": np.float32(0.1), "d": np.datetime64("2025-01-01"), "a": np.arange(4)[::2]}
    Checkpoint(tmp_path).save({}, state)
    _, found = Checkpoint(tmp_path).load() or ({}, {})
    assert same(state["n"], found["n"]) and same(state["d"], found["d"])
    found["a"] += 1
    assert found["a"].tolist() == [1, 3]


class Pair(NamedTuple):
    low: int
    high: float


class Own(dict[str, int]):
    """Somebody's dictionary."""


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"layers": [{"limits": Pair(1, 2.0)}]}, "layers.0.limits is a Pair"),
        ({"seen": Own(a=1)}, "seen is a Own"),
        ([1, {2: object()}], "1.2 is a object"),
        (np.array([None]), "it is a ndarray of object"),
        ({"m": np.ma.masked_array([1], [True])}, "m is a MaskedArray"),
        ({"s": np.zeros(2, [("a", "i4"), ("b", "f4")])}, "s is a ndarray of"),
        ({"f": defaultdict(lambda: 0)}, "f is a defaultdict"),
        ({"n": 1j}, "n is a complex"),
        ({(1, 2): bytearray(2)}, r"\(1, 2\) is a bytearray"),
    ],
)
def test_what_is_no_plain_value_is_named(value: Any, said: str, tmp_path: Path) -> None:
    Checkpoint(tmp_path).save({}, "before")
    with pytest.raises(TypeError, match=said):
        Packed(value)
    with pytest.raises(TypeError, match=said):
        Checkpoint(tmp_path).save({}, value)
    assert Checkpoint(tmp_path).load() == ({}, "before")


STATE = {"model": {"w": np.arange(9, dtype=np.float32)}, "held": {0: b"12345678"}, "round": 3}


def test_a_checkpoint_that_is_cut_or_changed_anywhere_is_refused_with_the_way_out(
    tmp_path: Path,
) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(FACTS, STATE)
    whole = checkpoint.path.read_bytes()
    for size in range(len(whole)):
        checkpoint.path.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match=r"state.darex' is (damaged .*; remove it|of format)"):
            checkpoint.load()
    for at in range(len(whole)):
        checkpoint.path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        with pytest.raises(ConfigError, match=r"damaged|is of format '!', and this"):
            checkpoint.load()
    checkpoint.path.write_bytes(whole)
    assert same(STATE, (checkpoint.load() or ({}, {}))[1])


@pytest.mark.parametrize(
    "shape",
    [
        {"raw": 1},
        ["pickle", "os.system"],
        ["array", 0, "<f4", [99], False],
        ["array", 0, "|O", [1], False],
        ["bytes", -1, 4],
        ["bytes", 0, 10**9],
        ["defaultdict", "eval"],
        ["set", ["list"]],
        [[]],
        [],
    ],
    ids=str,
)
def test_a_checkpoint_of_other_things_is_damaged_whatever_its_checksum_says(
    shape: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(Packed):
        def __init__(self, value: Any) -> None:
            super().__init__(b"1234")
            self.shape = shape

    monkeypatch.setattr("fl_darex.files.checkpoint.Packed", Other)
    Checkpoint(tmp_path).save({}, None)
    with pytest.raises(ConfigError, match="is damaged"):
        Checkpoint(tmp_path).load()


def test_there_may_be_none_and_one_can_be_removed(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.load() is None
    checkpoint.save({}, 1)
    checkpoint.remove()
    checkpoint.remove()
    assert checkpoint.load() is None and list(tmp_path.iterdir()) == []


def test_one_that_cannot_be_written_leaves_the_one_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save({}, 1)

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fl_darex.files.atomic.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save({}, 2)
    assert checkpoint.load() == ({}, 1) and len(list(tmp_path.iterdir())) == 1


def test_a_foreign_one_is_refused_by_what_differs() -> None:
    own = {"compress.p": 0.9, "seed": 1, "model": "a", "x": None, "y": [1]}
    refuse_foreign(Path("c"), own, dict(own))
    with pytest.raises(ConfigError, match=r"another run: compress.p is 0.9, was 0.99; go on with"):
        refuse_foreign(Path("c"), own | {"compress.p": 0.99}, own)
    with pytest.raises(ConfigError, match=r"model is 'a', was None; seed is 1, was 2 and 1 more"):
        refuse_foreign(Path("c"), {"seed": 2, "x": None}, own)


HOLDER = """
import sys
from pathlib import Path
from fl_darex.files.checkpoint import Checkpoint
with Checkpoint(Path(sys.argv[1])).held():
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_one_process_alone_has_a_folder_and_a_killed_one_has_none(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "c")]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        checkpoint = Checkpoint(tmp_path / "c")
        with pytest.raises(ConfigError, match="of a run that goes on in another process"):
            checkpoint.held().__enter__()
        other.kill()
        other.wait()
        with checkpoint.held():
            assert not Lock(tmp_path / "c" / "lock").take()
        assert Lock(tmp_path / "c" / "lock").take()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be kept in .*file/c'"):
        Checkpoint(tmp_path / "file" / "c").held().__enter__()


def test_nothing_but_json_and_blocks_is_in_the_file(tmp_path: Path) -> None:
    Checkpoint(tmp_path).save(FACTS, STATE)
    data = (tmp_path / "state.darex").read_bytes()
    length = int.from_bytes(data[8:16], "little")
    index = json.loads(data[16 : 16 + length])
    assert data[:8] == b"DARXCKP1" and (16 + length) % 64 == 0
    assert index["facts"] == FACTS
    model = np.frombuffer(data, "<f4", 9, 16 + length)
    assert model.tolist() == list(range(9))
