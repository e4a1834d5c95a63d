"""Checkpoints that are written: what was stored comes back bit for bit, tensor by tensor."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from fl_darex.errors import ConfigError, DeltaError
from fl_darex.files.formats import StoredTensor
from fl_darex.files.tensors import StoredTensors, open_tensors, read_tensors, write_tensors

SUFFIXES = ("npz", "safetensors")
TYPES = [
    *("float16", "float32", "float64", "bool"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
]
EVERY_BFLOAT16 = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)


def bits_of(tensor: Any) -> tuple[str, tuple[int, ...], bytes]:
    return tensor.dtype.name, tensor.shape, tensor.tobytes()


def changed(path: Any, change: Callable[[str, np.ndarray], np.ndarray]) -> StoredTensors:
    """A file's tensors with other values, which are made when they are asked for."""
    stored = open_tensors(path).data
    return StoredTensors(
        {
            name: replace(tensor, load=lambda n=name, t=tensor: change(n, t.load()))
            for name, tensor in stored.items()
        }
    )


def as_bfloat16(array: np.ndarray) -> StoredTensors:
    return StoredTensors({"w": StoredTensor("bfloat16", array.shape, lambda: array)})


def from_bits(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Any bit pattern: -0.0, subnormal numbers, infinity, and NaN of every payload."""
    raw = np.random.default_rng(seed).integers(
        0, 2 if dtype == "bool" else 256, (*shape, np.dtype(dtype).itemsize), dtype=np.uint8
    )
    return raw.view(dtype)[..., 0]


arrays = st.builds(
    from_bits,
    st.sampled_from(TYPES),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    st.integers(0, 2**32),
)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(tensors=st.dictionaries(names, arrays, max_size=5))
def test_what_is_written_comes_back_bit_for_bit(tmp_path_factory, suffix, tensors):
    path = tmp_path_factory.mktemp("w") / f"a.{suffix}"
    write_tensors(path, tensors)
    for found in (read_tensors(path), open_tensors(path)):
        assert {k: bits_of(v) for k, v in found.items()} == {
            k: bits_of(v) for k, v in tensors.items()
        }
    if suffix == "safetensors":
        assert {k: bits_of(v) for k, v in load_file(path).items()} == {
            k: bits_of(v) for k, v in tensors.items()
        }
    with np.load(path) if suffix == "npz" else safe_open(path, "np") as other:
        assert set(other.keys()) == set(tensors)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_columns_foreign_byte_orders_and_torch_tensors_are_written_as_their_values(
    tmp_path, suffix
):
    written = {
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "strided": np.arange(10, dtype=np.int16)[::3],
        "big": np.arange(3, dtype=">f4"),
        "torch": torch.arange(6).reshape(2, 3).T,
        "half": torch.tensor([-0.0, 1.5], dtype=torch.float16),
        "grown": torch.ones(2, requires_grad=True),
    }
    write_tensors(tmp_path / f"a.{suffix}", written)
    found = read_tensors(tmp_path / f"a.{suffix}")
    for name, tensor in written.items():
        expected = tensor.detach().numpy() if isinstance(tensor, torch.Tensor) else tensor
        assert bits_of(found[name]) == bits_of(expected.astype(expected.dtype.newbyteorder("<")))


def test_every_bfloat16_survives_reading_and_writing_bit_for_bit(tmp_path):
    bits = EVERY_BFLOAT16.view(torch.int16)
    save_torch({"w": EVERY_BFLOAT16, "x": torch.ones(3)}, tmp_path / "theirs.safetensors")
    lazy = open_tensors(tmp_path / "theirs.safetensors")
    assert (lazy.data["w"].dtype, lazy.data["w"].shape) == ("bfloat16", (2**16,))
    assert lazy["w"].dtype == np.float32
    np.testing.assert_array_equal(
        lazy["w"].view(np.uint32), bits.numpy().view(np.uint16).astype(np.uint32) << 16
    )
    write_tensors(tmp_path / "lazy.safetensors", lazy)
    write_tensors(tmp_path / "torch.safetensors", {"w": EVERY_BFLOAT16})
    write_tensors(tmp_path / "chosen.safetensors", as_bfloat16(lazy["w"]))
    for name in ("lazy", "torch", "chosen"):
        found = load_torch(tmp_path / f"{name}.safetensors")["w"]
        assert found.dtype == torch.bfloat16 and torch.equal(found.view(torch.int16), bits)


@given(numbers=hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_side=5)))
def test_float32_is_rounded_to_bfloat16_as_torch_rounds(tmp_path_factory, numbers):
    path = tmp_path_factory.mktemp("b") / "a.safetensors"
    write_tensors(path, as_bfloat16(numbers))
    expected = torch.from_numpy(np.atleast_1d(numbers)).bfloat16().float().numpy()
    np.testing.assert_array_equal(np.atleast_1d(read_tensors(path)["w"]), expected)


@pytest.mark.parametrize("bits", [0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_nan_that_is_rounded_stays_a_nan_of_its_sign(tmp_path, bits):
    write_tensors(tmp_path / "a.safetensors", as_bfloat16(np.uint32([bits]).view(np.float32)))
    found = read_tensors(tmp_path / "a.safetensors")["w"]
    assert np.isnan(found) and np.signbit(found) == bits >> 31


def test_every_tensor_is_aligned_and_the_file_says_whose_layout_it_has(tmp_path):
    write_tensors(
        tmp_path / "a.safetensors",
        {"a": np.ones(3, bool), "b": np.ones(3), "c": np.ones(3, np.float16), "d": np.ones(1)},
    )
    assert all(array.flags.aligned for array in open_tensors(tmp_path / "a.safetensors").values())
    with safe_open(tmp_path / "a.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_checkpoint_is_changed_tensor_by_tensor_and_may_replace_itself(tmp_path, suffix):
    path, size = tmp_path / f"a.{suffix}", 2**20
    write_tensors(path, {f"w{i}": np.full(size, i, np.float32) for i in range(8)})
    tracemalloc.start()
    write_tensors(path, changed(path, lambda name, array: array + int(name[1:])))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.5 * size * 4  # of 8 tensors
    found = open_tensors(path)
    assert [float(found[f"w{i}"].sum()) for i in range(8)] == [2.0 * i * size for i in range(8)]


def test_changed_values_are_written_in_the_stored_type(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"w": torch.ones(2, dtype=torch.bfloat16), "h": np.ones(2, np.float16)})
    write_tensors(path, changed(path, lambda _, array: array * np.float32(1 + 2**-12)))
    found = load_torch(path)
    assert found["w"].dtype == torch.bfloat16 and (found["w"] == 1).all()
    assert found["h"].dtype == torch.float16 and (found["h"] == 1).all()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda _, array: array[1:], r"'w' is of shape \(3,\), its new values \(2,\)"),
        (lambda _, array: array * 0.5, "'w' is of type int64, its values float64"),
    ],
)
def test_new_values_that_do_not_fit_are_refused_and_the_old_file_stays(
    tmp_path, suffix, change, says
):
    path = tmp_path / f"a.{suffix}"
    write_tensors(path, {"w": np.arange(3)})
    with pytest.raises(DeltaError, match=says):
        write_tensors(path, changed(path, change))
    assert read_tensors(path)["w"].tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "tensors", "says"),
    [
        ("a.pt", {"w": np.ones(1)}, "neither .npz nor .safetensors"),
        ("a.npz", as_bfloat16(np.ones(1)), "'w' is of type bfloat16.*safetensors"),
        ("a.npz", {"w": np.array([print])}, "'w' is of type object"),
        ("a.npz", {"w\0": np.ones(1)}, r"npz file can be named 'w\\x00'"),
        ("a.safetensors", {"w": np.ones(1, complex)}, "'w' is of type complex128"),
        (
            "a.safetensors",
            {"w": torch.ones(1).to(torch.float8_e4m3fn)},
            "'w' is of type float8_e4m3fn; .*bfloat16",
        ),
        ("a.safetensors", {"__metadata__": np.ones(1)}, "can be named '__metadata__'"),
    ],
)
def test_what_a_format_cannot_hold_is_named(tmp_path, name, tensors, says):
    with pytest.raises(ConfigError, match=says):
        write_tensors(tmp_path / name, tensors)
    assert not list(tmp_path.iterdir())


WITHOUT = """
import sys
sys.modules["torch"] = sys.modules["safetensors"] = None
import numpy as np
from fl_darex.files.formats import StoredTensor
from fl_darex.files.tensors import StoredTensors, write_tensors
tensor = StoredTensor(sys.argv[2], (3,), lambda: np.arange(3))
write_tensors(sys.argv[1], StoredTensors({"w": tensor}))
"""


@pytest.mark.parametrize(
    ("suffix", "dtype"), [("npz", "float32"), ("safetensors", "int64"), ("safetensors", "bfloat16")]
)
def test_numpy_alone_is_enough_to_write(tmp_path, suffix, dtype):
    path = tmp_path / f"a.{suffix}"
    subprocess.run([sys.executable, "-c", WITHOUT, str(path), dtype], check=True, timeout=60)
    assert open_tensors(path).data["w"].dtype == dtype
    assert read_tensors(path)["w"].tolist() == [0, 1, 2]


SLOW = """
import sys, time
from dataclasses import replace
from fl_darex.files.tensors import open_tensors, write_tensors

def slowly():
    print("in the middle", flush=True)
    time.sleep(60)

tensors = open_tensors(sys.argv[1])
tensors["w2"] = replace(tensors.data["w2"], load=slowly)
write_tensors(sys.argv[1], tensors)
"""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    write_tensors(path, {f"w{i}": np.full(50_000, i) for i in range(4)})
    old = path.read_bytes()
    writer = subprocess.Popen([sys.executable, "-c", SLOW, str(path)], stdout=subprocess.PIPE)
    try:
        assert writer.stdout.readline() == b"in the middle\n"
    finally:
        writer.kill(), writer.wait(timeout=10), writer.stdout.close()
    assert path.read_bytes() == old
    (left,) = set(tmp_path.iterdir()) - {path}
    assert left.name.startswith(path.name) and left.suffix == ".part"
