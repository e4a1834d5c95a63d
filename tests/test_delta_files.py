"""The format of files of changes: a second reader that follows the page, and strangers' files."""

from __future__ import annotations

import json
import struct
import tracemalloc
import zlib
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import golden_file
import numpy as np
import pytest
import torch
from golden_file import BASE, FILE, HALVES, TEXT, TUNED
from safetensors.torch import load_file, save_file
from small_checkpoints import HOWS, TYPES, moved, saved, weights
from test_wire_format import hash8, read

from fl_darex import __version__, deltas
from fl_darex.delta import Layout, TensorSpec
from fl_darex.deltas import Pruning, open_checkpoint, open_delta
from fl_darex.deltas.container import parse
from fl_darex.deltas.header_reader import MOST_ENTRIES
from fl_darex.errors import DarexError, PacketError
from fl_darex.wire.header import read_header

# --- A second reader, of docs/wire-format.md, section 11, alone ----------------------------------

Stored = dict[str, tuple[str, tuple[int, ...], bytes]]
"""Type, shape and bytes of tensors."""


def unpack(dtype: str, data: bytes) -> list[Any]:
    if dtype == "bfloat16":
        return [struct.unpack("<f", b"\0\0" + data[i : i + 2])[0] for i in range(0, len(data), 2)]
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).tolist()


def pack(dtype: str, entries: list[Any]) -> bytes:
    if dtype != "bfloat16":
        return np.array(entries, np.dtype(dtype).newbyteorder("<")).tobytes()
    found = b""
    for entry in entries:
        (bits,) = struct.unpack("<I", np.float32(entry).tobytes())
        low, high = bits & 0xFFFF, bits >> 16
        found += (high + (low > 0x8000 or (low == 0x8000 and high & 1))).to_bytes(2, "little")
    return found


def read_file(data: bytes, base: Stored) -> tuple[Stored, dict[str, bytes | None]]:
    """The tensors and small files that a file makes of a base; None: take the base's file."""
    assert data[:8] == b"DARF\1\0\0\0"
    assert data[-32:] == blake2b(data[:-32], digest_size=32).digest()
    size, length = struct.unpack("<QQ", data[-48:-32])
    text = zlib.decompress(data[-48 - size : -48])
    assert len(text) == length
    told = json.loads(text)
    at, packets, files, rows = 8, [], {}, told["tensors"]
    for size in told["packets"]:
        packets.append(data[at : at + size])
        at += size
    for file in told["files"]:
        packed = data[at : at + file["packed"]]
        at += file["packed"]
        files[file["path"]] = zlib.decompress(packed) if packed else None
        if packed:
            content = files[file["path"]]
            assert blake2b(content, digest_size=16).hexdigest() == file["digest"]
    names = {r["base"] if "base" in r else r["name"] for r in rows if r["role"] in WITH_BASE}
    digests = []
    for name in sorted(names - {None}):
        dtype, shape, content = base[name]
        head = repr((name, dtype, shape)).encode()
        digests.append(hash8(len(head).to_bytes(8, "little"), head, content))
    assert told["base"] == hash8(*digests).hex()
    found: Stored = {}
    for number, packet in enumerate(packets):
        mine = [row for row in rows if row.get("packet") == number]
        specs = [(r["name"], tuple(r["shape"]), r["dtype"], r["role"]) for r in mine]
        assert packet[68:76].hex() == told["base"]
        says = read(packet, specs)
        for row in mine:
            found[row["name"]] = made(row, says[row["name"]], base)
    for row in rows:
        if row["role"] == "same":
            found[row["name"]] = made(row, None, base)
    for row in rows:
        if row["role"] == "tied":
            found[row["name"]] = found[row["source"]]
    return found, files


WITH_BASE = ("pruned", "dense", "same")


def made(row: dict[str, Any], change: list[Any] | None, base: Stored) -> tuple[Any, Any, bytes]:
    dtype, shape = row["dtype"], tuple(row["shape"])
    if row["role"] == "raw":
        return dtype, shape, pack(dtype, change or [])
    name = row.get("base", row["name"])
    if name is None:
        return dtype, shape, pack(dtype, change or [])
    kind, _, content = base[name]
    if change is None and kind == dtype:
        return dtype, shape, content
    before = unpack(kind, content)
    wide = np.float64 if kind == "float64" else np.float32
    after = [wide(b) + c for b, c in zip(before, change or [wide(0)] * len(before), strict=True)]
    return dtype, shape, pack(dtype, after)


def on_disk(path: Path) -> Stored:
    """What a .safetensors file holds, read by hand."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header.pop("__metadata__", None)
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "I64": "int64"}
    names |= {"F64": "float64", "BOOL": "bool"}
    return {
        name: (names[e["dtype"]], tuple(e["shape"]), data[end:][slice(*e["data_offsets"])])
        for name, e in header.items()
    }


def tensors_of(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {
        name: torch.from_numpy(array).to(torch.bfloat16 if name in HALVES else None)
        for name, array in arrays.items()
    }


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return saved(tmp_path / "base", tensors_of(BASE))


EXPECTED = {
    "bias": [1.0, 2.5, 3.0],
    "head": [0.5, -1.5],
    "steps": [258],
    "still": [7.0, 8.0],
    "tied": [2.0, 2.5, 3.25, 4.0, 5.0, 7.0],
    "weight": [2.0, 2.5, 3.25, 4.0, 5.0, 7.0],
}


def test_the_golden_file_says_what_it_says(base, tmp_path):
    found, files = read_file(FILE, on_disk(base / "model.safetensors"))
    assert {name: unpack(dtype, data) for name, (dtype, _, data) in found.items()} == EXPECTED
    assert files == {"config.json": b'{"a":1}'}
    (tmp_path / "x.darex").write_bytes(FILE)
    deltas.apply(open_checkpoint(base), open_delta(tmp_path / "x.darex"), tmp_path / "out")
    assert on_disk(tmp_path / "out" / "model.safetensors") == found
    assert (tmp_path / "out" / "config.json").read_bytes() == b'{"a":1}'


def test_what_is_written_is_the_golden_file_but_for_zlib(base, tmp_path):
    tuned = saved(tmp_path / "tuned", tensors_of(TUNED), config='{"a":1}')
    how = Pruning(method="dare", p=golden_file.P, seed=golden_file.SEED)
    deltas.prune(open_checkpoint(base), open_checkpoint(tuned), tmp_path / "x.darex", how)
    data = (tmp_path / "x.darex").read_bytes()
    size = int.from_bytes(data[-48:-40], "little")
    text = zlib.decompress(data[-48 - size : -48]).decode()
    text = text.replace(f"fl-darex {__version__}", "fl-darex 0.1.0")
    packed = json.loads(text)["files"][0]["packed"]
    assert text.replace(f'"packed":{packed}', '"packed":15') == TEXT
    ours = b"DARF\1\0\0\0" + golden_file.PRUNED + golden_file.WHOLE
    assert data[: len(ours)] == FILE[: len(ours)] == ours
    assert zlib.decompress(data[len(ours) : -48 - size]) == b'{"a":1}'


@pytest.mark.parametrize("how", HOWS, ids=lambda how: f"{how.method}-{how.values}")
@pytest.mark.parametrize("kind", TYPES)
def test_the_second_reader_reads_what_the_library_writes(tmp_path, how, kind):
    if how.values.startswith("eden") and kind != "fp32":
        return  # one number at a time takes long
    tensors = weights(0, TYPES[kind])
    tensors |= {"tie": torch.ones(3).to(TYPES[kind]), "s": torch.zeros(2, dtype=torch.int64)}
    tuned = moved(weights(0, TYPES[kind]))
    tuned |= {"new": torch.ones(2, 2), "tie": torch.ones(3), "s": torch.ones(2, dtype=torch.int64)}
    before, after = saved(tmp_path / "base", tensors), saved(tmp_path / "tuned", tuned)
    deltas.prune(open_checkpoint(before), open_checkpoint(after), tmp_path / "x.darex", how)
    deltas.apply(open_checkpoint(before), open_delta(tmp_path / "x.darex"), tmp_path / "out")
    data = (tmp_path / "x.darex").read_bytes()
    found, _ = read_file(data, on_disk(before / "model.safetensors"))
    assert found == on_disk(tmp_path / "out" / "model.safetensors")


# --- What strangers write ------------------------------------------------------------------------


def sealed(body: bytes, text: bytes, size: int | None = None, packed: bytes | None = None) -> bytes:
    """A file with a right digest, whatever is in it."""
    packed = zlib.compress(text) if packed is None else packed
    data = b"DARF\1\0\0\0" + body + packed
    data += struct.pack("<QQ", len(packed), len(text) if size is None else size)
    return data + blake2b(data, digest_size=32).digest()


BODY = golden_file.PRUNED + golden_file.WHOLE + golden_file.CONFIG


def forged(change: Any, body: bytes = BODY) -> bytes:
    told = json.loads(TEXT)
    change(told)
    return sealed(body, json.dumps(told).encode())


def row(told: Any, name: str) -> Any:
    return next(row for row in told["tensors"] if row["name"] == name)


def more(key: str, value: Any, name: str = "weight") -> Any:
    return lambda told: row(told, name).update({key: value})


FORGERIES: dict[str, tuple[Any, str]] = {
    "base": (lambda told: told.update(base="x"), "says base = 'x'; allowed: 16 hexadecimal"),
    "another": (lambda told: told.update(base="0" * 16), "packet that is a change to another"),
    "weights": (lambda told: told.update(weights="../model"), "says weights = '../model'"),
    "notes": (lambda told: told.update(notes={"a": 1}), "says notes"),
    "unknown": (lambda told: told.update(more=1), r"header with \['more'\] missing or unknown"),
    "length": (lambda told: told.update(packets=[106, 109]), "not as long as its header says"),
    "negative": (lambda told: told.update(packets=[106, -108]), "says packets = -108"),
    "one packet": (lambda told: told.update(packets=[214]), "names packets that are not there"),
    "idle packet": (
        lambda told: told.update(packets=[106, 108, 0]),
        "names packets that are not there, or has some without",
    ),
    "rows": (lambda told: told.update(tensors={}), "says tensors"),
    "order": (lambda told: told["tensors"].reverse(), "lists tensors twice, or not sorted"),
    "twice": (lambda told: told["tensors"].append(told["tensors"][-1]), "lists tensors twice"),
    "row": (lambda told: told["tensors"].append(3), "says role"),
    "name": (more("name", "__metadata__"), "says name = '__metadata__'"),
    "role": (more("role", "secret"), "says role = 'secret'"),
    "dtype": (more("dtype", "object"), "says dtype = 'object'"),
    "type": (more("dtype", "int64"), "has 'weight' of type int64 as pruned"),
    "shape": (more("shape", [2, -3]), "says shape"),
    "axes": (more("shape", [1] * 33), "says shape"),
    "huge": (more("shape", [2**20, 2**20]), "says shape"),
    "one more": (more("shape", [MOST_ENTRIES + 1]), "says shape"),
    "fraction": (more("shape", [2.0, 3]), "says shape"),
    "truth": (more("kept", True), "says kept = True"),
    "kept": (more("kept", 7), "keeps 7 of the 6 entries"),
    "fewer": (more("kept", 3), "keeps another number of entries than its packet"),
    "packet": (more("packet", 5), "names packets that are not there"),
    "no base": (more("base", None), "says base = NoneType"),
    "other base": (more("base", "still"), "takes a tensor of the base twice"),
    "tie": (more("source", "nobody", "tied"), "ties 'tied' to 'nobody'"),
    "itself": (more("source", "tied", "tied"), "ties 'tied' to 'tied'"),
    "tied type": (more("source", "still", "tied"), "ties 'tied' to 'still'"),
    "tied shape": (more("shape", [3, 2], "tied"), "ties 'tied' to a tensor of another shape"),
    "path": (lambda told: told["files"][0].update(path="../config.json"), "says path"),
    "absolute": (lambda told: told["files"][0].update(path="/etc/x.json"), "says path"),
    "weights file": (lambda told: told["files"][0].update(path="a.safetensors"), "says path"),
    "code": (lambda told: told["files"][0].update(path="modeling.py"), "says path"),
    "hidden": (lambda told: told["files"][0].update(path=".ssh/a.json"), "says path"),
    "windows": (lambda told: told["files"][0].update(path="c:\\a.json"), "says path"),
    "folder": (
        lambda told: told["files"].append(
            {"path": "config.json/a.json", "size": 0, "packed": 0, "digest": "0" * 32}
        ),
        "a file that is a folder, too",
    ),
    "adapter": (
        lambda told: told["files"][0].update(path="adapter_config.json"),
        "has an adapter's configuration for a model",
    ),
    "large file": (lambda told: told["files"][0].update(size=2**40), "says size"),
    "file twice": (
        lambda told: told["files"].append({**told["files"][0], "packed": 0}),
        "lists a file twice",
    ),
    "many bytes": (
        lambda told: told["files"].extend(
            {"path": f"{i}.json", "size": 2**26, "packed": 0, "digest": "0" * 32} for i in (1, 2)
        ),
        "more than 64 MiB of files",
    ),
}


@pytest.mark.parametrize("which", FORGERIES)
def test_a_header_that_makes_no_sense_is_refused(which, base):
    change, match = FORGERIES[which]
    data = forged(change)
    with pytest.raises(PacketError, match=match):
        delta = parse(memoryview(data))
        deltas.inspect(delta)


def test_a_file_that_is_not_changed_at_all_is_read(base):
    assert deltas.inspect(parse(memoryview(forged(lambda told: None)))).same == 1


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"DARF", "has 4 bytes, fewer than any"),
        (b"DARG" + FILE[4:], "starts with b'DARG"),
        (FILE[:4] + b"\2" + FILE[5:], "has version 2; this fl-darex knows 1"),
        (FILE[:5] + b"\1" + FILE[6:], "which is no delta"),
        (FILE[:-1] + b"\0", "is damaged: its digest does not match"),
        (sealed(BODY, b"{}"), r"header with \['base', 'files'.* missing or unknown"),
        (sealed(BODY, b"nonsense"), "has a header that is no JSON"),
        (sealed(BODY, b"[" * 100_000), "has a header that is no JSON"),
        (sealed(BODY, TEXT.encode(), 10), "has a header of another length than it says"),
        (sealed(BODY, TEXT.encode(), 10**4), "has a header of another length than it says"),
        (sealed(BODY, TEXT.encode(), 2**40), "header that is longer than it can be"),
        (sealed(BODY, TEXT.encode(), packed=b"nothing"), "header that cannot be unpacked"),
        (sealed(BODY, TEXT.encode(), packed=zlib.compress(TEXT.encode()) + b"x"), "another length"),
    ],
)
def test_bytes_that_are_no_file_are_refused(data, match):
    with pytest.raises(PacketError, match=match):
        parse(memoryview(data))


def test_a_header_that_unpacks_to_much_is_not_unpacked():
    bomb = zlib.compress(bytes(200 << 20))
    data = sealed(BODY, b"", 1000, bomb)
    tracemalloc.start()
    with pytest.raises(PacketError, match="another length"):
        parse(memoryview(data))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_small_file_that_unpacks_to_much_is_not_unpacked():
    bomb = zlib.compress(bytes(200 << 20))

    def change(told: Any) -> None:
        told["files"][0].update(packed=len(bomb), size=1000)

    data = forged(change, BODY[: -len(golden_file.CONFIG)] + bomb)
    tracemalloc.start()
    delta = parse(memoryview(data))
    with pytest.raises(PacketError, match="another length"):
        delta.content(delta.header.files[0])
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()


def test_tensors_that_no_base_has_cost_no_memory():
    """A mask of a packet that fits them is not drawn; only a base that has them bounds that."""
    shape = (2**18, 2**18)

    def change(told: Any) -> None:
        for name in ("weight", "tied"):
            row(told, name)["shape"] = shape

    specs = [TensorSpec("bias", (3,), "float32", "pruned")]
    specs.append(TensorSpec("weight", shape, "bfloat16", "pruned"))
    header = replace(
        read_header(golden_file.PRUNED), keep=1, fingerprint=Layout(tuple(specs)).fingerprint
    )
    packet = header.seal(golden_file.PRUNED[96:])
    assert len(packet) == len(golden_file.PRUNED)
    tracemalloc.start()
    delta = parse(memoryview(forged(change, packet + BODY[len(packet) :])))
    report = deltas.inspect(delta)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert max(row.entries for row in report.tensors) == 2**36


def test_a_damaged_packet_leaves_no_folder(base, tmp_path):
    bad = bytearray(BODY)
    bad[100] ^= 1
    (tmp_path / "x.darex").write_bytes(sealed(bytes(bad), TEXT.encode()))
    with pytest.raises(PacketError, match="checksum"):
        deltas.apply(open_checkpoint(base), open_delta(tmp_path / "x.darex"), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_random_changes_are_refused_or_harmless(base, tmp_path):
    """What stands in the header is changed at random; the rest is that of the golden file."""
    rng, before = np.random.default_rng(0), open_checkpoint(base)
    refused = 0
    for number in range(3000):
        text = bytearray(TEXT.encode())
        for _ in range(rng.integers(1, 4)):
            text[rng.integers(len(text))] = rng.choice(
                np.frombuffer(b'0159-.[]{}",:aenrt', np.uint8)
            )
        try:
            delta = parse(memoryview(sealed(BODY, bytes(text))))
            deltas.inspect(delta)
            if number % 10 == 0:
                deltas.check_base(delta, before)
                for tensor in deltas.restored_tensors(before.tensors, delta).values():
                    assert tensor.load().shape == tensor.shape
        except DarexError:
            refused += 1
    assert 1000 < refused < 3000


def test_saved_and_loaded_types_are_those_of_safetensors(base):
    held = load_file(base / "model.safetensors")
    save_file(held, base / "again.safetensors")
    assert on_disk(base / "again.safetensors") == on_disk(base / "model.safetensors")
