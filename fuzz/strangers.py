"""Bytes from strangers, guided by coverage: nothing but `PacketError`, and no more memory.

    make fuzz                           # a million inputs
    make fuzz ARGS="-runs=10000000"     # more; all options are libFuzzer's

The first byte of an input chooses what the rest is taken for: a packet as it comes, or with a right
checksum, or with the right header fields as well, so that the parser behind each check is
reached; a positions section; an array in a reply; settings in a message; a delivery to a client; a
file of changes as it comes, with a right digest, or as the header of one.
The golden packets and the golden file of the tests are where it begins.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

with atheris.instrument_imports(include=["fl_darex"]):
    import golden
    import golden_file
    import numpy as np
    from flwr.app import Array, ArrayRecord, Context, Message, RecordDict

    from fl_darex.clients.receiver import Receiver
    from fl_darex.compression import SparseUpdate, Terms, Uplink
    from fl_darex.compression.weighted_sum import Part, weighted_mean
    from fl_darex.deltas import inspect, restored_tensors
    from fl_darex.deltas.container import parse
    from fl_darex.errors import PacketError
    from fl_darex.files.formats import StoredTensor
    from fl_darex.flower.model_note import Greeting, ModelNote
    from fl_darex.flower.private import adopt_run
    from fl_darex.flower.records import packet_record, to_arrays, view_arrays
    from fl_darex.masks import ONE
    from fl_darex.positions import ListedMask
    from fl_darex.positions.rice import ListedPositions
    from fl_darex.strategies.intake import opened
    from fl_darex.strategies.sent import Asked, Sent
    from fl_darex.wire import decode
    from fl_darex.wire.codings import CODINGS
    from fl_darex.wire.reader import read_packet
    from fl_darex.wire.versions import content_version, next_version, tensor_digests

MODEL = golden.TENSORS
LAYOUT, MASK = golden.LAYOUT, golden.MASK
BASE = {name: StoredTensor(a.dtype.name, a.shape, a.copy) for name, a in golden_file.BASE.items()}
FIRST = content_version(tensor_digests(MODEL))
TERMS = Terms(uplink=Uplink(method="dare", keep=ONE // 2, seed=7), round=3, slot=2)
GROWTH = 256 << 20  # bytes of memory that a process may add, libFuzzer's own included
AT_ONCE = 100_000  # inputs of a process
CHILD = "FL_DAREX_FUZZ_FOLDER"


def sealed(data: bytes) -> bytes:
    """Make a packet of which magic, version and checksum are right."""
    body = b"DARX\1" + data[5:].ljust(91, b"\0")
    return body[:92] + struct.pack("<I", zlib.crc32(body[96:], zlib.crc32(body[:92]))) + body[96:]


def plausible(data: bytes) -> bytes:
    """Make a packet that also is of our layout, and names a method and a coding that exist."""
    head = bytearray(data[:96].ljust(96, b"\0"))
    head[5], head[6], head[7] = (head[5] - 1) % 3 + 1, head[6] % 3, head[7] % 7
    head[52:68] = LAYOUT.fingerprint
    if head[5] == 2:
        head[6], head[32:40] = 0, bytes(8)
    else:
        head[32:40] = struct.pack("<Q", min(int.from_bytes(head[32:40], "little"), ONE))
    if head[49] & 1:  # the lengths that the header announces, too
        struct.pack_into("<H", head, 50, 1)
        struct.pack_into("<d", head, 40, 0.5)
        struct.pack_into("<QQ", head, 76, head[76] % 200, head[84] % 64)
    return sealed(bytes(head) + data[96:])


def check_packet(data: bytes) -> None:
    """Whatever is read has finite numbers, sorted positions and the layout's shapes."""
    packet = read_packet(data, LAYOUT)
    update = packet.survivors()
    assert np.isfinite(update.numbers).all()
    with np.errstate(over="ignore"):
        full = update.rescaled()
    for spec in LAYOUT:
        assert full[spec.name].shape == spec.shape
        assert spec.role == "raw" or np.isfinite(full[spec.name]).all()
    for spec in LAYOUT.pruned:
        where = update.positions[spec.name]
        assert (np.diff(where) > 0).all() and (not where.size or 0 <= where[0])
        assert not where.size or where[-1] < spec.numel
    SparseUpdate.of_packet(packet).values(MODEL)


def expected(data: bytes) -> None:
    """A packet held against what a server expects."""
    for values in CODINGS:
        with contextlib.suppress(PacketError):
            decode(data, LAYOUT, MASK, q=0.5, values=values)
    with contextlib.suppress(PacketError):
        decode(data, LAYOUT, golden.STRUCTURED, q=0.5, values="fp32")
    decode(data, LAYOUT, ListedMask({}, 7, 3, 2), q=None, values="int8")


def reply(data: bytes) -> None:
    """A reply with a packet, or with an array, averaged with an honest one."""
    dense = data[:1] > b"\x7f"
    arrays = dict(ArrayRecord({name: Array(array) for name, array in MODEL.items()}))
    honest = ArrayRecord(arrays)
    if dense:
        arrays["bias"] = Array("float32", (3,), "numpy.ndarray", data[1:])
    record = ArrayRecord(arrays) if dense else packet_record(plausible(data[1:]))
    asked = Asked(Message(RecordDict(), 1, "train"), TERMS, Sent(MODEL, LAYOUT), True)
    parts = [Part(opened(one, asked, {})[0], 1.0) for one in (honest, record)]
    mean, odd = weighted_mean(MODEL, LAYOUT, parts)
    if mean is None:
        assert odd == parts[1:]
        return
    assert all(np.isfinite(array).all() for array in mean.values())


def array_of(data: bytes) -> None:
    """The bytes of one array."""
    record = ArrayRecord({"w": Array("float32", (3,), "numpy.ndarray", data)})
    to_arrays(record), view_arrays(record)


def settings(data: bytes) -> None:
    """Settings in a message's configuration."""
    for kind, key in ((Terms, "darex"), (ModelNote, "darex.model"), (Greeting, "darex.greeting")):
        for text in (data, data.decode("utf-8", "replace")):
            with contextlib.suppress(PacketError):
                kind.detach({key: text})


def positions(data: bytes) -> None:
    """The section of listed positions."""
    found = ListedPositions(LAYOUT, memoryview(data[1:]), data[0] if data else 0)
    assert sum(where.size for where in found.values()) == (data[0] if data else 0)


def delivery(data: bytes) -> None:
    """A packet on its way to a client that holds the model."""
    receiver = Receiver(lambda message, context: MODEL)
    context = Context(1, 1, {}, RecordDict(), {})
    packet = bytearray(plausible(data[1:]))
    packet[68:76] = FIRST
    sent = sealed(bytes(packet))
    model = next_version(FIRST, sent) if data[:1] < b"\xf0" else FIRST
    told = ModelNote(run="0" * 16, start=FIRST.hex(), model=model.hex())
    question = Message(RecordDict(), 1, "train")
    receiver.receive(packet_record(sent), told, question, context)


def file_of_changes(data: bytes) -> None:
    """A file of changes: a report, and what it makes of a base where that is one that it is for."""
    delta = parse(memoryview(data))
    report = inspect(delta)
    assert all(np.isfinite(row.largest) for row in report.tensors)
    needed = {row.base: row.shape for row in delta.header.rows if row.base is not None}
    if all(name in BASE and BASE[name].shape == shape for name, shape in needed.items()):
        for name, tensor in restored_tensors(BASE, delta).items():
            assert tensor.stored().shape == tensor.shape, name
    for file in delta.header.files:
        if file.packed:
            assert len(delta.content(file)) == file.size


def with_digest(data: bytes) -> bytes:
    """Make a file of which magic, version, lengths at its end and digest are right."""
    packed = data[16:]
    start = b"DARF\1\0\0\0" + packed
    return closed(start, min(int.from_bytes(data[:8], "little"), len(packed)), data[8:16])


def with_header(data: bytes) -> bytes:
    """Make a file of the golden packets with any header."""
    body = golden_file.PRUNED + golden_file.WHOLE + golden_file.CONFIG
    packed = zlib.compress(data)
    return closed(b"DARF\1\0\0\0" + body + packed, len(packed), len(data).to_bytes(8, "little"))


def closed(start: bytes, packed: int, length: bytes) -> bytes:
    """Put what every file of changes ends with behind it."""
    data = start + packed.to_bytes(8, "little") + length.ljust(8, b"\0")
    return data + hashlib.blake2b(data, digest_size=32).digest()


KINDS: list[Callable[[bytes], None]] = [
    check_packet,
    lambda data: check_packet(sealed(data)),
    lambda data: check_packet(plausible(data)),
    lambda data: expected(plausible(data)),
    positions,
    reply,
    array_of,
    settings,
    delivery,
    file_of_changes,
    lambda data: file_of_changes(with_digest(data)),
    lambda data: file_of_changes(with_header(data)),
]


def try_one(data: bytes) -> None:
    """Try one input; any error but `PacketError` ends the run and is written down."""
    if not data:
        return
    try:
        KINDS[data[0] % len(KINDS)](data[1:])
    except PacketError as error:
        assert error.reason and str(error)


def corpus(folder: Path) -> None:
    """Write down what libFuzzer begins with: every golden packet for every kind of input."""
    for kind in range(len(KINDS)):
        for name, packet in golden.ALL_GOLDEN.items():
            for extra in (b"", b"\0", b"\xff"):
                (folder / f"{kind}-{name}-{extra.hex()}").write_bytes(
                    bytes([kind]) + extra + packet
                )
        if KINDS[kind] is file_of_changes:
            (folder / "file").write_bytes(bytes([kind]) + golden_file.FILE)
            (folder / "header").write_bytes(bytes([kind + 2]) + golden_file.TEXT.encode())
            inside, ends = golden_file.FILE[8:-48], golden_file.FILE[-48:-32]
            (folder / "digest").write_bytes(bytes([kind + 1]) + ends + inside)


def fuzz(folder: Path, options: list[str]) -> None:
    """Run libFuzzer in this process; it ends the process."""
    os.environ["FL_DAREX_CACHE"] = str(folder / "cache")
    adopt_run("fuzz")
    warnings.simplefilter("error")  # NumPy's, too: an overflow is something that was not foreseen
    for path in (folder / "corpus").iterdir():
        try_one(path.read_bytes())
    # An input that makes us ask for more memory raises MemoryError, which is no PacketError.
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + GROWTH, used + GROWTH))
    fixed = ["-max_len=2048", "-timeout=10", "-print_final_stats=1", "-rss_limit_mb=0"]
    atheris.Setup([sys.argv[0], *fixed, *options, str(folder / "corpus")], try_one)
    atheris.Fuzz()


def main() -> int:
    """Run libFuzzer again and again: its bookkeeping for Python grows by some bytes an input."""
    if folder := os.environ.pop(CHILD, ""):
        fuzz(Path(folder), sys.argv[1:])
    options = [option for option in sys.argv[1:] if not option.startswith("-runs=")]
    runs = [int(option[6:]) for option in sys.argv[1:] if option.startswith("-runs=")]
    left = total = runs[-1] if runs else 1_000_000
    with tempfile.TemporaryDirectory(prefix="fl-darex-fuzz-") as scratch:
        (Path(scratch) / "corpus").mkdir()
        corpus(Path(scratch) / "corpus")
        while left > 0:
            some = min(left, AT_ONCE)
            command = [sys.executable, *sys.argv[:1], *options, f"-runs={some}"]
            code = subprocess.call(command, env=os.environ | {CHILD: scratch})
            if code:
                return code
            left -= some
            sys.stderr.write(f"tried {total - left} of {total} inputs, none got through\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
