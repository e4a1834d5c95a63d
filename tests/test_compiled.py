"""Compiled loops: the bits that NumPy gives, whatever is drawn, decoded and added."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import seal, take_apart
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fl_darex import compiled, masks
from fl_darex.compression import SparseUpdate, half_sum, sparse_sum
from fl_darex.compression.rho import LANES, add_squares
from fl_darex.compression.sparse_sum import Share, add_sparse
from fl_darex.compression.weighted_sum import Part
from fl_darex.delta import Delta, Layout
from fl_darex.masks import BLOCK, ONE
from fl_darex.optim.adamr import _pull_l1
from fl_darex.pruning import dare
from fl_darex.wire import encode
from fl_darex.wire.reader import read_packet

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {"a.bias": (50,), "b.weight": (700, 400), "c": (BLOCK,), "empty": (0, 3), "d": (1,)}
LAYOUT = Layout.of({n: np.zeros(s, np.float32) for n, s in SHAPES.items()})
needs_numba = pytest.mark.skipif(
    compiled.load(1.0) is None, reason="numba is not installed: pip install 'fl-darex[fast]'"
)
KERNELS, compiled._State.kernels = compiled._State.kernels, None


@pytest.fixture(autouse=True)
def other_tests_take_numpy_s_loops() -> Any:
    yield
    compiled._State.kernels = None


def both_ways(result: Callable[[], Any]) -> tuple[Any, Any]:
    """What a function returns with NumPy's loops and with the compiled ones."""
    compiled._State.kernels = None
    numpys = result()
    compiled._State.kernels = KERNELS
    return numpys, result()


@needs_numba
@settings(max_examples=100, deadline=None)
@given(
    keep=st.integers(1, ONE) | st.sampled_from([1, 2, ONE // 100, ONE - 1, ONE]),
    lengths=st.lists(st.integers(1, BLOCK) | st.integers(1, 9), min_size=1, max_size=4),
    seed=st.integers(0, (1 << 64) - 1),
)
@example(keep=1, lengths=[BLOCK] * 3, seed=0)  # gaps longer than the guide has room for
@example(keep=ONE - 1, lengths=[1, BLOCK], seed=5)
def test_the_same_positions_are_drawn(keep, lengths, seed):
    stream = masks.streams(
        np.full(len(lengths), seed, np.uint64), np.arange(len(lengths)).view("u8")
    )
    start = np.arange(len(lengths)) * BLOCK
    numpys, numbas = both_ways(lambda: masks.draw(stream, start, np.array(lengths), keep))
    assert [part.dtype for part in numbas] == [np.int64] * len(lengths)
    assert [part.tolist() for part in numbas] == [part.tolist() for part in numpys]


def delta(client: int, scale: float = 1.0) -> Delta:
    rng = np.random.default_rng(client)
    return Delta(
        {n: np.float32(scale) * rng.normal(size=s).astype("f4") for n, s in SHAPES.items()}
    )


def packets(p: float, clients: int, scale: float = 1.0, **options: Any) -> list[bytes]:
    return [
        encode(dare(delta(i, scale), p, seed=1, slot=i, **options), "fp16") for i in range(clients)
    ]


def summed(packets: list[bytes], weights: list[float], clear: bool = True) -> tuple[Any, ...]:
    """The sum, the squares of its parts, and which parts do not fit their masks."""
    shares = [
        Share(Part(SparseUpdate.of_packet(read_packet(packet, LAYOUT)), weight), weight)
        for packet, weight in zip(packets, weights, strict=True)
    ]
    total = np.full(sum(spec.numel for spec in LAYOUT.pruned), 0.1, np.float32)
    odd = [shares.index(share) for share in add_sparse(total, LAYOUT, shares, clear=clear)]
    return odd, [share.square for share in shares], total.tobytes()


@needs_numba
@settings(max_examples=40, deadline=None)
@given(
    p=st.sampled_from([0.0, 0.3, 0.9, 0.99, 0.9999]),
    weights=st.lists(st.floats(0.0, 2.0, width=32), min_size=1, max_size=5),
    scale=st.sampled_from([1.0, 1e-3, 1e-30, 1e30, 1e-44]),
    span=st.sampled_from([1, BLOCK, 1 << 20]),
    room=st.sampled_from([1, 7, 1 << 14]),
    clear=st.booleans(),
)
def test_sums_and_their_squares_have_the_same_bits(p, weights, scale, span, room, clear):
    sent = packets(p, len(weights), scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_sum, "_SPAN", span)
        patch.setattr(half_sum, "_ROOM", room)
        numpys, numbas = both_ways(lambda: summed(sent, weights, clear))
    assert numpys[0] == []
    assert numbas == numpys


@needs_numba
def test_every_number_of_float16_is_decoded_to_the_same_bits():
    bits = np.arange(1 << 16, dtype=np.uint16)
    finite = bits[bits & 0x7C00 != 0x7C00]
    layout = Layout.of({"w": np.zeros(finite.size, np.float32)})
    packet = encode(dare({"w": np.ones(finite.size, np.float32)}, 0.0, seed=1, slot=0), "fp16")
    fields, _ = take_apart(packet)

    def decoded(exponent: int) -> bytes:
        forged = seal(fields | {"exponent": exponent}, finite.tobytes())
        share = Share(Part(SparseUpdate.of_packet(read_packet(forged, layout)), 1.0), 0.7)
        total = np.zeros(finite.size, np.float32)
        assert add_sparse(total, layout, [share]) == []
        return total.tobytes()

    for exponent in (0, 15, -100, 126, 127, -112):
        numpys, numbas = both_ways(lambda exponent=exponent: decoded(exponent))
        assert numbas == numpys
    expected = (finite.view(np.float16).astype(np.float32) * np.float32(0.7)) + np.float32(0)
    assert decoded(0) == expected.tobytes()


@needs_numba
@pytest.mark.parametrize("change", [1, -1, 5000, -5000])
def test_a_packet_with_another_number_of_survivors_is_found_out(change):
    sent = packets(0.9, 3)
    fields, body = take_apart(sent[1])
    count = fields["survivors"] + change
    sent[1] = seal(fields | {"survivors": count}, (body + bytes(2 * abs(change)))[: 2 * count])
    numpys, numbas = both_ways(lambda: summed(sent, [0.3] * 3)[0])
    assert numbas == numpys == [1]


OTHERS: dict[str, list[bytes]] = {
    "exact counts": packets(0.9, 3, exact=True),
    "one mask": [encode(dare(delta(i), 0.9, seed=1, slot=-1), "fp16") for i in range(3)],
    "other codings": [
        encode(dare(delta(i), 0.9, seed=1, slot=i), values)
        for i, values in enumerate(["fp32", "bf16", "int8", "eden3"])
    ],
    "one q a tensor": [
        encode(
            replace(dare(delta(i), 0.9, seed=1, slot=i), q=np.full(5, 0.1 + i, np.float32) / 4),
            "fp16",
        )
        for i in range(3)
    ],
    "thresholds that differ": [
        encode(dare(delta(i), p, seed=1, slot=i), "fp16") for i, p in enumerate([0.9, 0.99])
    ],
    "alone and together": [*packets(0.9, 2), *packets(0.9, 1), *packets(0.5, 4)[2:]],
}


@needs_numba
@pytest.mark.parametrize("case", OTHERS)
def test_what_no_loop_is_made_for_is_added_as_before(case):
    sent = OTHERS[case]
    numpys, numbas = both_ways(lambda: summed(sent, [0.2] * len(sent)))
    assert numpys[0] == []
    assert numbas == numpys


@given(sizes=st.lists(st.integers(0, 300), max_size=8))
def test_squares_do_not_depend_on_how_a_vector_is_cut(sizes):
    numbers = np.random.default_rng(0).normal(size=sum(sizes)).astype(np.float32)
    lanes, first = np.zeros(LANES), 0
    for size in sizes:
        add_squares(lanes, numbers[first : first + size], first)
        first += size
    expected = np.zeros(LANES)
    for i, number in enumerate(numbers.astype(np.float64)):
        expected[i % LANES] += number * number
    assert lanes.tobytes() == expected.tobytes()


def test_squares_of_float64_may_be_infinite():
    lanes = np.zeros(LANES)
    add_squares(lanes, np.array([1e200, 2.0]), 0)
    assert lanes[:2].tolist() == [np.inf, 4.0]


SPECIAL = [0.0, -0.0, 1e-7, -1e-7, 1.0, 3e38, np.inf, -np.inf, np.nan, 1e-45]


@needs_numba
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 99), step=st.sampled_from([0.0, 1e-7, 0.5, 1.0, np.inf]))
@pytest.mark.parametrize("shape", [(), (0,), (7,), (10, 33)])
def test_adamr_pulls_by_a_distance_to_the_same_bits(shape, seed, step):
    torch = pytest.importorskip("torch", reason="AdamR needs torch")
    rng = np.random.default_rng(seed)

    def numbers() -> Any:
        found = rng.normal(size=shape).astype(np.float32)
        return torch.from_numpy(
            np.where(rng.random(shape) < 0.3, rng.choice(SPECIAL, shape), found)
        )

    start, goal = numbers().float(), numbers().float()

    def pulled() -> bytes:
        p = torch.nn.Parameter(start.clone())
        with torch.no_grad():
            _pull_l1([p], [goal], [torch.tensor(step, dtype=torch.float32)])
        p.data[p.isnan()] = torch.nan  # which NaN, or which zero, may differ
        return (p.detach() + 0.0).numpy().tobytes()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torchs, numbas = both_ways(pulled)
    finally:
        torch.set_num_threads(threads)
    assert numbas == torchs


# --- when they are loaded, each in a process of its own ----------------------------------------

LARGE = """
import sys
import numpy as np
from fl_darex import compiled
from fl_darex.masks import draw
assert "numba" not in sys.modules
assert compiled.load(0.3) is None
assert "numba" not in sys.modules
found = compiled.load(0.2)
assert compiled.load(0.0) is compiled.loaded() is found
where = np.array([7], np.uint64), np.array([0]), np.array([100_000])
print(found is not None, int(draw(*where, 1 << 25)[0].sum()))
"""
SUM_OF_POSITIONS = int(
    masks.draw(np.array([7], np.uint64), np.array([0]), np.array([100_000]), 1 << 25)[0].sum()
)


def run(code: str, *paths: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    found = os.pathsep.join([*map(str, paths), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": found} | environment,
        capture_output=True,
        text=True,
        check=True,
    )


@needs_numba
def test_numba_is_loaded_once_there_is_enough_to_do():
    done = run(LARGE)
    assert done.stdout == f"True {SUM_OF_POSITIONS}\n"
    assert done.stderr == ""


@needs_numba
def test_loops_do_without_a_cache_on_disk():
    # Of the places that Numba knows, the one that has to be given, and is not.
    done = run(LARGE, NUMBA_CACHE_LOCATOR_CLASSES="UserProvidedCacheLocator", NUMBA_CACHE_DIR="")
    assert done.stdout == f"True {SUM_OF_POSITIONS}\n"
    assert done.stderr == ""


@needs_numba
def test_a_numba_that_is_told_not_to_compile_is_left_alone():
    done = run(LARGE, NUMBA_DISABLE_JIT="1")
    assert done.stdout == f"False {SUM_OF_POSITIONS}\n"
    assert "NUMBA_DISABLE_JIT" in done.stderr


def test_without_numba_sums_are_numpy_s_without_a_word():
    done = run("import sys\nsys.modules['numba'] = None" + LARGE.replace('"numba"', '"none"'))
    assert done.stdout == f"False {SUM_OF_POSITIONS}\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("numba", "error"),
    [
        ("raise ImportError('Numba needs NumPy 2.4 or less')", "ImportError('Numba needs"),
        ("import llvmlite_that_is_gone", "ModuleNotFoundError(\"No module named 'llvmlite_"),
        ("njit = config = None", "AttributeError("),
    ],
)
def test_a_numba_that_does_not_work_here_costs_a_line_in_the_log(numba, error, tmp_path):
    (tmp_path / "numba.py").write_text(numba)
    done = run(LARGE, tmp_path)
    assert done.stdout == f"False {SUM_OF_POSITIONS}\n"
    assert f"Inner loops are not compiled, so slower: {error}" in done.stderr
