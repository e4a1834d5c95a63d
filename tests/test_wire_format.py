"""The specification, held against the library by a second reader that follows the page alone.

Plain Python, one number at a time, nothing of fl-darex in it: docs/wire-format.md says how.
"""

from __future__ import annotations

import re
import struct
import zlib
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import ALL_GOLDEN, GOLDEN, LAYOUT, TENSORS
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fl_darex.delta import Delta, Layout
from fl_darex.masks import ONE, keep_threshold
from fl_darex.positions import ListedMask, SeededMask, StructuredMask, UnionMask
from fl_darex.pruning import dare, structured
from fl_darex.pruning.gather import gather
from fl_darex.survivors import Survivors
from fl_darex.wire import encode
from fl_darex.wire.codings import CODINGS
from fl_darex.wire.reader import read_packet
from fl_darex.wire.versions import content_version, next_version, tensor_digests

PAGE = (Path(__file__).parent.parent / "docs" / "wire-format.md").read_text("utf-8")
WORD = 2**64
GOLDEN_GAMMA = 0x9E3779B97F4A7C15

Spec = tuple[str, tuple[int, ...], str, str]

# --- §5: seeded masks -------------------------------------------------------------------------


def mix(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB % WORD
    return z ^ z >> 31


def draw_number(stream: int, index: int) -> int:
    output = mix((stream + index // 2 * GOLDEN_GAMMA) % WORD)
    return output >> 32 if index % 2 else output % 2**32


def table(kept: int) -> list[int]:
    first = power = (2**32 - kept) * 2**64
    found = []
    while len(found) < 2**18 and (rounded := power + 2**63 >> 64):
        found.append(rounded)
        power = power * first >> 96
    return found


def kept_of_block(stream: int, length: int, kept: int) -> list[int]:
    if kept == 2**32:
        return list(range(length))
    falling, found, at, index = table(kept), [], -1, 0
    while True:
        u = draw_number(stream, index)
        at, index = at + 1 + sum(entry > u for entry in falling), index + 1
        if at >= length:
            return found
        found.append(at)


def disjoint(seed: int, round_: int, slot: int, name: str, numel: int, kept: int) -> list[int]:
    places = 2**32 // kept
    text = f"darex.disjoint.v1|{seed}|{round_}|{slot // places}|{name}"
    key = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
    offset, found = mix(key) % 2**32, []
    for block, start in enumerate(range(0, numel, 2**18)):
        length, stream = min(2**18, numel - start), mix((key + (block + 1) * GOLDEN_GAMMA) % WORD)
        ends = [0]
        for place in range(slot % places + 1):
            low = start * kept + offset + (place << 32) // places
            ends.append(ends[-1] + (low + length * kept >> 32) - (low >> 32))
        images = [image(stream, number, length) for number in range(*ends[-2:])]
        found += sorted(start + position for position in images)
    return found


def image(stream: int, number: int, length: int) -> int:
    def output(index: int) -> int:
        return mix((stream + index * GOLDEN_GAMMA) % WORD)

    bits = 0
    while 2**bits < length:
        bits += 1
    high = bits // 2
    low = bits - high
    z = (number + output(0)) % length
    while True:
        left, right = z >> low, z % 2**low
        for turn in range(1, 25 if bits < 4 else 7):
            if turn % 2:
                left ^= output(turn * 2**32 + right) % 2**high
            else:
                right ^= output(turn * 2**32 + left) % 2**low
        z = left << low | right
        if z < length:
            return z


def mask(seed: int, round_: int, slot: int, name: str, numel: int, kept: int, how: str) -> Any:
    """The positions that generator ``how`` gives."""
    if how == "disjoint":
        return disjoint(seed, round_, slot, name, numel, kept)
    exact = how == "exact"
    key, found = mask_key(seed, round_, slot, name), []
    for block, start in enumerate(range(0, numel, 2**18)):
        length = min(2**18, numel - start)
        mine = of_block(key, block, start, length, kept, exact)
        found += [start + position for position in mine]
    return found


def mask_key(seed: int, round_: int, slot: int, name: str) -> int:
    text = f"darex.mask.v1|{seed}|{round_}|{slot}|{name}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def of_block(key: int, block: int, first: int, length: int, kept: int, exact: bool) -> list[int]:
    stream = mix((key + (block + 1) * GOLDEN_GAMMA) % WORD)
    mine = kept_of_block(stream, length, kept)
    if exact and kept < 2**32:
        offset = mix(key) % 2**32
        count = ((first + length) * kept + offset >> 32) - (first * kept + offset >> 32)
        mine = corrected(stream, mine, length, count)
    return mine


def corrected(stream: int, mine: list[int], length: int, count: int) -> list[int]:
    surplus = len(mine) - count
    pool = mine if surplus > 0 else [x for x in range(length) if x not in mine]
    chosen: set[int] = set()
    for index in range(abs(surplus)):
        top = len(pool) - abs(surplus) + index
        rank = draw_number(stream, 2**32 + index) * (top + 1) >> 32
        chosen.add(top if rank in chosen else rank)
    return sorted(set(mine) ^ {pool[rank] for rank in chosen})


def in_columns(
    seed: int, round_: int, slot: int, spec: Spec, kept: int, columns: int, exact: bool
) -> list[int]:
    name, shape = spec[:2]
    numel = int(np.prod(shape, dtype=int))
    if len(shape) < 2 or not numel:
        return mask(seed, round_, slot, name, numel, kept, "exact" if exact else "random")
    width = numel // shape[0]
    chosen = set(mask(seed, round_, slot, f"{name}|columns", width, columns, "exact"))
    numbered = [position for position in range(numel) if position % width in chosen]
    key = mask_key(seed, round_, slot, name)
    inside, found, first = max(1, (kept << 32) // columns), [], 0
    for block, start in enumerate(range(0, numel, 2**18)):
        length = sum(start <= position < start + 2**18 for position in numbered)
        mine = of_block(key, block, first, length, inside, exact) if length else []
        found += [numbered[first + number] for number in mine]
        first += length
    return found


# --- §4: listed positions ---------------------------------------------------------------------


def bits_of(data: bytes) -> list[int]:
    return [byte >> i & 1 for byte in data for i in range(8)]


def listed(data: bytes, sizes: list[int]) -> list[list[int]]:
    counts, parameters, at = [], [], 0
    for _ in sizes:
        count, shift = 0, 0
        while True:
            byte, at = data[at], at + 1
            count, shift = count | (byte & 127) << shift, shift + 7
            if byte < 128:
                break
        counts.append(count)
        parameters.append(data[at] if count else 0)
        at += bool(count)
    unary, place, quotients = bits_of(data[at:]), 0, []
    for _ in range(sum(counts)):
        zeros = 0
        while not unary[place]:
            zeros, place = zeros + 1, place + 1
        quotients.append(zeros)
        place += 1
    at += (place + 7) // 8
    found = []
    for count, k in zip(counts, parameters, strict=True):
        low = [0] * count
        for plane in range(k // 8):
            for i in range(count):
                low[i] |= data[at + i] << 8 * plane
            at += count
        rest = k % 8
        high = bits_of(data[at : at + (count * rest + 7) // 8])
        at += (count * rest + 7) // 8
        positions, last = [], -1
        for i in range(count):
            value = sum(high[i * rest + bit] << bit for bit in range(rest))
            gap = quotients.pop(0) << k | value << 8 * (k // 8) | low[i]
            last += gap + 1
            positions.append(last)
        found.append(positions)
    assert at == len(data) and not quotients
    return found


# --- §6: numbers ------------------------------------------------------------------------------


def upper_half(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits << 16))[0])


def numbers(coding: int, data: bytes, count: int, exponent: int) -> list[float]:
    if coding in (0, 6):
        return list(struct.unpack(f"<{count}{'d' if coding else 'f'}", data))
    if 6 < coding < 11:
        return eden(coding - 6, data, count)
    if coding == 1:
        halves = struct.unpack(f"<{count}e", data)
        return [float(np.float32(half * 2.0**-exponent)) for half in halves]
    if coding == 2:
        return [upper_half(bits) for bits in struct.unpack(f"<{count}H", data)]
    if coding == 14:
        tables = 4 * -(-count // 4096)
        table = [upper_half(bits) for bits in struct.unpack(f"<{tables}H", data[: 2 * tables])]
        bits = bits_of(data[2 * tables :])
        return [table[i // 4096 * 4 + bits[2 * i] + 2 * bits[2 * i + 1]] for i in range(count)]
    blocks = -(-count // 256)
    scales = [upper_half(bits) for bits in struct.unpack(f"<{blocks}H", data[: 2 * blocks])]
    body = data[2 * blocks :]
    if coding in (3, 11):
        codes = list(struct.unpack(f"<{count}b", body))
    elif coding == 13:
        pairs = [2 * high + low for low, high in zip(*[iter(bits_of(body))] * 2, strict=True)]
        codes = [pair - 4 if pair > 1 else pair for pair in pairs[:count]]
    elif coding in (4, 12):
        halves = [half for byte in body for half in (byte & 15, byte >> 4)][:count]
        codes = [half - 16 if half > 7 else half for half in halves]
    else:
        codes = [1 - 2 * bit for bit in bits_of(body)[:count]]
    return [float(np.float32(code) * np.float32(scales[i // 256])) for i, code in enumerate(codes)]


LEVELS = {
    1: [1],
    2: [0.45278004, 1.5104176],
    3: [0.24509418, 0.7560053, 1.3439093, 2.1519456],
    4: [0.12839504, 0.3880483, 0.65675914, 0.94234043, 1.2562312, 1.6180464, 2.0690172, 2.7325895],
}


def blocks_of(count: int) -> list[int]:
    filled = 64 * -(-count // 64)
    tail = [2**bit for bit in reversed(range(14)) if filled % 16384 >> bit & 1]
    return [16384] * (filled // 16384) + tail


def hadamard(numbers: list[np.float32]) -> list[np.float32]:
    distance = len(numbers) // 2
    while distance:
        for i in range(len(numbers)):
            if i // distance % 2 == 0:
                x, y = numbers[i], numbers[i + distance]
                numbers[i], numbers[i + distance] = x + y, x - y
        distance //= 2
    return numbers


def flipped(numbers: list[np.float32], stream: int, first: int) -> list[np.float32]:
    bits = [draw_number(stream, i // 32) >> i % 32 & 1 for i in range(first, first + len(numbers))]
    return [-x if bit else x for x, bit in zip(numbers, bits, strict=True)]


def eden(width: int, data: bytes, count: int) -> list[float]:
    if not count:
        return []
    (key,), sizes = struct.unpack("<Q", data[:8]), blocks_of(count)
    halves = struct.unpack(f"<{len(sizes)}H", data[8 : 8 + 2 * len(sizes)])
    scales = [upper_half(bits) for bits in halves]
    bits = bits_of(data[8 + 2 * len(sizes) :])
    assert len(bits) == width * sum(sizes)
    streams = [mix((key + i * GOLDEN_GAMMA) % WORD) for i in (1, 2)]
    levels = [np.float32(x) for x in [*(-x for x in LEVELS[width][::-1]), *LEVELS[width]]]
    found, at = [], 0
    for size, scale in zip(sizes, scales, strict=True):
        codes = [
            sum(bits[width * i + bit] << bit for bit in range(width)) for i in range(at, at + size)
        ]
        block = flipped(hadamard([levels[code] for code in codes]), streams[1], at)
        block = flipped(hadamard(block), streams[0], at)
        found += [float(x * (np.float32(scale) / np.float32(size))) for x in block]
        at += size
    return found[:count]


def number_bytes(coding: int, count: int) -> int:
    if 6 < coding < 11:
        sizes = blocks_of(count)
        return 8 * bool(count) + 2 * len(sizes) + sum(sizes) * (coding - 6) // 8
    scales = 2 * -(-count // 256)
    return [
        *(4 * count, 2 * count, 2 * count),
        *(scales + count, scales + (count + 1) // 2, scales + (count + 7) // 8),
        8 * count,
        *[0] * 4,
        *(scales + count, scales + (count + 1) // 2, scales + (count + 3) // 4),
        8 * -(-count // 4096) + (count + 3) // 4,
    ][coding]


# --- §1 and §2: layout and packet -------------------------------------------------------------


def is_statistic(name: str) -> bool:
    last = re.split("[./]", name)[-1].removesuffix(":0")
    known = last in ("running_mean", "running_var", "moving_mean", "moving_variance")
    return known or "batch_stats" in re.split("[./]", name)[:-1]


def specs_of(
    tensors: dict[str, np.ndarray], dense: set[str] = frozenset(), below: int = 0
) -> list[Spec]:
    found = []
    for name in sorted(tensors):
        tensor = tensors[name]
        role = "pruned" if tensor.dtype.kind == "f" else "raw"
        if role == "pruned" and (name in dense or is_statistic(name) or 0 < tensor.size <= below):
            role = "dense"
        found.append((name, tensor.shape, tensor.dtype.name, role))
    return found


def read(packet: bytes, specs: list[Spec]) -> dict[str, Any]:
    """What a packet says: each tensor's change, or new values, as a flat list."""
    assert packet[:5] == b"DARX\1"
    method, generator, coding = packet[5:8]
    seed, round_, slot, kept, q = struct.unpack_from("<QQqQd", packet, 8)
    drawn_in, exact = 0 if generator in (3, 4, 6) else round_, generator in (2, 4)
    how = "random random exact random exact disjoint disjoint".split()[generator]
    exponent, dense_exponent, q_count = struct.unpack_from("<bbH", packet, 48)
    text = "\n".join(repr(spec) for spec in specs)
    assert packet[52:68] == blake2b(text.encode(), digest_size=16).digest()
    survivors, position_bytes, checksum = struct.unpack_from("<QQI", packet, 76)
    assert checksum == zlib.crc32(packet[96:], zlib.crc32(packet[:92]))
    at = 96
    sizes = {name: int(np.prod(shape, dtype=int)) for name, shape, _, _ in specs}
    pruned = [spec[0] for spec in specs if spec[3] == "pruned"]
    qs = [q] * len(pruned)
    if q_count != 1:
        qs = list(struct.unpack_from(f"<{q_count}f", packet, at))
        at += 4 * q_count
    section = packet[at : at + position_bytes]
    at += position_bytes
    if method == 2:
        where = listed(section, [sizes[name] for name in pruned])
    elif method == 4:
        (columns,) = struct.unpack("<Q", section)
        chosen = [spec for spec in specs if spec[3] == "pruned"]
        where = [in_columns(seed, drawn_in, slot, spec, kept, columns, exact) for spec in chosen]
    else:
        slots = struct.unpack(f"<{position_bytes // 8}q", section) if method == 3 else [slot]
        where = [
            sorted(set().union(*(mask(seed, drawn_in, s, n, sizes[n], kept, how) for s in slots)))
            for n in pruned
        ]
    assert sum(map(len, where)) == survivors
    kept_numbers = numbers(
        coding, packet[at : at + number_bytes(coding, survivors)], survivors, exponent
    )
    at += number_bytes(coding, survivors)
    full: dict[str, Any] = {}
    kind = np.float64 if coding == 6 else np.float32
    for name, positions, divisor in zip(pruned, where, qs, strict=True):
        full[name] = [kind(0)] * sizes[name]
        for position in positions:
            full[name][position] = kind(kept_numbers.pop(0)) / kind(divisor)
    dense = [spec[0] for spec in specs if spec[3] == "dense"]
    runs = [(coding if coding in (0, 6) else 1, dense)]
    if 6 < coding < 11:
        statistics = [name for name in dense if is_statistic(name)]
        others = [name for name in dense if not is_statistic(name)]
        small = [name for name in others if sizes[name] <= 4096]
        runs = [(3, statistics), (9, small), (coding, [n for n in others if sizes[n] > 4096])]
    for how, names in runs:
        count = sum(sizes[name] for name in names)
        whole = numbers(how, packet[at : at + number_bytes(how, count)], count, dense_exponent)
        at += number_bytes(how, count)
        for name in names:
            full[name] = [whole.pop(0) for _ in range(sizes[name])]
    for name, _, kind, role in specs:
        if role == "raw":
            raw = np.dtype(kind).newbyteorder("<")
            full[name] = np.frombuffer(packet, raw, sizes[name], at).tolist()
            at += sizes[name] * raw.itemsize
    assert at == len(packet)
    return full


def assert_says(packet: bytes, update: Survivors, specs: list[Spec]) -> None:
    mine = read(packet, specs)
    theirs = read_packet(packet, update.layout).survivors().rescaled()
    assert set(mine) == set(theirs)
    for name, array in theirs.items():
        assert np.array(mine[name], array.dtype).tobytes() == array.tobytes()


@pytest.mark.parametrize("which", ALL_GOLDEN)
def test_the_second_reader_reads_the_golden_packets(which):
    packet = ALL_GOLDEN[which]
    assert_says(packet, read_packet(packet, LAYOUT).survivors(), specs_of(TENSORS))


@st.composite
def updates(draw: Any) -> tuple[Survivors, list[Spec]]:
    shapes = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9)
    names = st.text("ab.é", max_size=3) | st.sampled_from(
        ["x.running_var", "moving_mean", "a/moving_variance:0", "batch_stats.b.var", "batch_stats"]
    )
    tensors = draw(
        st.dictionaries(
            names,
            npst.arrays(np.float32, shapes, elements=st.floats(-9, 9, width=32))
            | npst.arrays(np.float64, shapes, elements=st.floats(-9, 9))
            | npst.arrays(st.sampled_from([np.int16, np.bool_]), shapes),
            max_size=4,
        )
    )
    dense = draw(st.sets(st.sampled_from(sorted(tensors)))) if tensors else set()
    below = draw(st.sampled_from([0, 1, 12]))
    kind = draw(st.sampled_from([np.float32, np.float64]))
    delta = Delta(tensors, layout=Layout.of(tensors, dense, below), dtype=kind)
    specs = specs_of(tensors, dense, below)
    kept = keep_threshold(draw(st.sampled_from([0.0, 0.2, 0.5, 0.9])))
    seed, round_ = draw(st.integers(0, 2**63)), draw(st.integers(0, 1000))
    kind = draw(
        st.sampled_from(["seeded", "exact", "disjoint", "union", "listed", "columns", "both"])
    )
    fixed = draw(st.booleans())
    if kind == "listed":
        where = {}
        for spec in delta.layout.pruned:
            chosen = draw(st.sets(st.integers(0, spec.numel - 1))) if spec.numel else set()
            where[spec.name] = np.array(sorted(chosen), np.int64)
        return gather(delta, ListedMask(where, seed, round_, 4), 1.0), specs
    if kind == "union":
        slots = sorted(draw(st.sets(st.integers(-1, 9), min_size=1, max_size=3)))
        apart = draw(st.booleans())
        members = tuple(
            SeededMask(seed, round_, s, kept, disjoint=apart, fixed=fixed) for s in slots
        )
        return gather(delta, UnionMask(members), 0.5), specs
    one = SeededMask(seed, round_, 3, kept, kind in ("exact", "both"), kind == "disjoint", fixed)
    if kind in ("columns", "both"):
        columns = draw(st.integers(kept, ONE))
        return gather(delta, StructuredMask(one, columns), 0.5), specs
    return gather(delta, one, 0.3), specs


@settings(deadline=None, max_examples=200)
@given(updates(), st.sampled_from(sorted(CODINGS)))
def test_the_second_reader_reads_what_the_library_writes(case, values):
    update, specs = case
    assert_says(encode(update, values), update, specs)


def test_the_second_reader_follows_a_mask_across_blocks():
    values = np.random.default_rng(0).normal(size=2**18 + 2000).astype(np.float32)
    for exact in (False, True):
        update = dare({"w": values}, 0.999, seed=3, exact=exact)
        assert_says(encode(update), update, specs_of({"w": values}))
        table = {"w": values.reshape(16, -1)}
        update = structured(table, 0.999, 0.01, seed=3, exact=exact)
        assert_says(encode(update), update, specs_of(table))
    for slot in (2, 1013):
        one = SeededMask(3, 0, slot, keep_threshold(0.999), disjoint=True)
        update = gather(Delta({"w": values}), one, 0.001)
        assert_says(encode(update), update, specs_of({"w": values}))


@pytest.mark.parametrize("values", ["eden1", "eden2", "eden3", "eden4"])
def test_the_second_reader_follows_rotations_across_blocks_and_whole_tensors_of_all_kinds(values):
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.normal(size=size).astype(np.float32)
        for name, size in (
            ("a", 17000),
            ("b.running_var", 70),
            ("head", 5000),
            ("small", 4096),
            ("z", 77),
        )
    }
    layout = Layout.of(tensors, {"head", "small"})
    update = gather(Delta(tensors, layout=layout), SeededMask(3, 1, 0, ONE), 1.0)
    assert_says(encode(update, values), update, specs_of(tensors, {"head", "small"}))


# --- §8: versions -----------------------------------------------------------------------------


def hash8(*parts: bytes) -> bytes:
    return blake2b(b"".join(parts), digest_size=8).digest()


def test_versions_are_what_the_page_says():
    digests = {}
    for name, tensor in TENSORS.items():
        head = repr((name, tensor.dtype.name, tensor.shape)).encode()
        digests[name] = hash8(len(head).to_bytes(8, "little"), head, tensor.tobytes())
    assert tensor_digests(TENSORS) == digests
    first = hash8(*(digests[name] for name in sorted(digests)))
    assert content_version(digests) == first
    assert next_version(first, GOLDEN["fp16"]) == hash8(first, GOLDEN["fp16"])
    assert first.hex() == "f74d373cde285baa"


# --- the page itself --------------------------------------------------------------------------


def test_the_example_on_the_page_is_the_golden_packet():
    example = PAGE.partition("## 10. An example")[2].partition("```")[2].partition("```")[0]
    pairs = [re.match(r"(?:[0-9a-f]{2} )*[0-9a-f]{2}", line) for line in example.splitlines()]
    assert bytes.fromhex("".join(pair[0] for pair in pairs if pair)) == GOLDEN["int4"]


def test_the_rotated_example_on_the_page_says_what_stands_below_it():
    example = PAGE.partition("For example, with n = 5 the section")[2].partition("Dividing by")[0]
    _, block, text = example.split("```")
    lines = [re.match(r"(?:[0-9a-f]{2} )*[0-9a-f]{2}", line) for line in block.splitlines()]
    found = eden(1, bytes.fromhex("".join(line[0] for line in lines if line)), 5)
    said = re.findall(r"-?\d+\.\d{7,8}", text)[1:]  # the first one is the scale
    assert [str(np.float32(x)) for x in found] == said


def test_the_page_lists_every_reason_and_every_coding():
    from fl_darex.errors import Reason

    for word in [*(f"`{reason}`" for reason in Reason), *CODINGS]:
        assert word in PAGE
