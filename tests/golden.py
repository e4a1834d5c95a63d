"""Golden packets, byte by byte, and a second description of the header to forge others."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np

from fl_darex.delta import Layout
from fl_darex.masks import ONE
from fl_darex.positions import ListedMask, SeededMask, StructuredMask, UnionMask

# --- a second description of the header, independent of the library's -------------------------

HEADER = struct.Struct("<4s B B B B Q Q q Q d b b H 16s 8s Q Q")
FIELDS = [
    *("magic", "version", "mask_kind", "rng", "coding", "seed", "round", "slot", "keep", "q"),
    *("exponent", "dense_exponent", "q_count", "fingerprint", "base", "survivors", "positions"),
]


def take_apart(packet: bytes) -> tuple[dict[str, Any], bytes]:
    return dict(zip(FIELDS, HEADER.unpack_from(packet), strict=True)), packet[96:]


def seal(fields: dict[str, Any], body: bytes) -> bytes:
    """Put a packet together with a right checksum, whatever its fields say."""
    head = HEADER.pack(*(fields[name] for name in FIELDS))
    return head + struct.pack("<I", zlib.crc32(head + body)) + body


def forge(packet: bytes, body: bytes | None = None, **changes: Any) -> bytes:
    fields, old = take_apart(packet)
    return seal(fields | changes, old if body is None else body)


# --- the small update of the golden packets ---------------------------------------------------

TENSORS = {
    "bias": np.array([0.5, -0.25, 0.75], np.float32),
    "bn.running_var": np.array([0.125, -0.5], np.float32),
    "steps": np.array(258, np.int64),
    "weight": np.array([[1.0, -2.0, 3.0], [0.001, -5.0, 6.0]], np.float32),
}
LAYOUT = Layout.of(TENSORS)
MASK = SeededMask(seed=7, round=3, slot=2, keep=ONE // 2)
POSITIONS = {"bias": [2], "weight": [0, 2, 3]}

FINGERPRINT = "ccc932599db489d92cb7686b1ec31c90"
HEAD = (
    "44415258"  # magic "DARX"
    "01"  # version
    "01"  # mask kind: seeded
    "01"  # random generator: SplitMix64
)
ORIGIN = (
    "0700000000000000"  # seed
    "0300000000000000"  # round
    "0200000000000000"  # slot
    "0000008000000000"  # keep threshold: 2**31 of 2**32
    "000000000000e03f"  # q: 0.5
)
GOLDEN = {
    "fp32": bytes.fromhex(
        "44415258"  # magic "DARX"
        "01"  # version
        "01"  # mask kind: seeded
        "01"  # random generator: SplitMix64
        "00"  # value coding: fp32
        "0700000000000000"  # seed
        "0300000000000000"  # round
        "0200000000000000"  # slot
        "0000008000000000"  # keep threshold: 2**31 of 2**32
        "000000000000e03f"  # q: 0.5
        "00"  # exponent of survivors
        "00"  # exponent of dense numbers
        "0100"  # count of q
        + FINGERPRINT  # layout
        + "0000000000000000"  # version of the model: not said
        "0400000000000000"  # survivors
        "0000000000000000"  # bytes of the positions section
        "b9036324"  # CRC-32 of all of the above and all of the below
        "0000403f"  # bias[2] = 0.75
        "0000803f"  # weight[0] = 1
        "00004040"  # weight[2] = 3
        "6f12833a"  # weight[3] = 0.001
        "0000003e"  # bn.running_var[0] = 0.125
        "000000bf"  # bn.running_var[1] = -0.5
        "0201000000000000"  # steps = 258
    ),
    "fp16": bytes.fromhex(
        "44415258"  # magic "DARX"
        "01"  # version
        "01"  # mask kind: seeded
        "01"  # random generator: SplitMix64
        "01"  # value coding: fp16
        "0700000000000000"  # seed
        "0300000000000000"  # round
        "0200000000000000"  # slot
        "0000008000000000"  # keep threshold: 2**31 of 2**32
        "000000000000e03f"  # q: 0.5
        "0d"  # exponent 13: the largest survivor, 3, becomes 24576, below 2**15
        "0f"  # exponent 15: the largest dense number, 0.5, becomes 16384
        "0100"  # count of q
        + FINGERPRINT  # layout
        + "0000000000000000"  # version of the model: not said
        "0400000000000000"  # survivors
        "0000000000000000"  # bytes of the positions section
        "095f62f3"  # CRC-32
        "006e"  # bias[2] = 6144 / 2**13
        "0070"  # weight[0] = 8192 / 2**13
        "0076"  # weight[2] = 24576 / 2**13
        "1948"  # weight[3] = 8.1953125 / 2**13
        "006c"  # bn.running_var[0] = 4096 / 2**15
        "00f4"  # bn.running_var[1] = -16384 / 2**15
        "0201000000000000"  # steps = 258
    ),
    "bf16": bytes.fromhex(
        HEAD
        + "02"  # value coding: bf16
        + ORIGIN
        + "00"  # exponent of survivors: none
        "0f"  # exponent 15 of dense numbers, which are fp16
        "0100"  # count of q
         + FINGERPRINT + "0000000000000000"  # version of the model: not said
        "0400000000000000"  # survivors
        "0000000000000000"  # bytes of the positions section
        "a4d5b593"  # CRC-32
        "403f"  # bias[2] = 0.75
        "803f"  # weight[0] = 1
        "4040"  # weight[2] = 3
        "833a"  # weight[3] = 0.001, rounded to 0.00099945
        "006c00f4"  # bn.running_var
        "0201000000000000"  # steps
    ),
    "int8": bytes.fromhex(
        HEAD
        + "03"  # value coding: int8
        + ORIGIN
        + "000f0100"
        + FINGERPRINT
        + "000000000000000004000000000000000000000000000000"
        "def09b57"  # CRC-32
        "c23c"  # scale of the block: 3/127 rounded up to 0.023681640625
        "20"  # bias[2] = 0.75 = 31.7 scales, rounded up to 32
        "2a"  # weight[0] = 1 = 42.2 scales, rounded down to 42
        "7f"  # weight[2] = 3 = 126.7 scales, rounded up to 127
        "00"  # weight[3] = 0.001 = 0.04 scales, rounded down to 0
        "006c00f4"  # bn.running_var
        "0201000000000000"  # steps
    ),
    "int4": bytes.fromhex(
        HEAD
        + "04"  # value coding: int4
        + ORIGIN
        + "000f0100"
        + FINGERPRINT
        + "000000000000000004000000000000000000000000000000"
        "24f47285"  # CRC-32
        "dc3e"  # scale of the block: 3/7 rounded up to 0.4296875
        "22"  # bias[2] = 1.75 scales -> 2, in the low half; weight[0] = 2.3 scales -> 2
        "07"  # weight[2] = 6.98 scales -> 7; weight[3] = 0.002 scales -> 0
        "006c00f4"  # bn.running_var
        "0201000000000000"  # steps
    ),
    "sign": bytes.fromhex(
        HEAD
        + "05"  # value coding: sign
        + ORIGIN
        + "000f0100"
        + FINGERPRINT
        + "000000000000000004000000000000000000000000000000"
        "3adf4737"  # CRC-32
        "993f"  # mean magnitude of the block: 1.18775 rounded up to 1.1953125
        "00"  # four bits: all are positive
        "006c00f4"  # bn.running_var
        "0201000000000000"  # steps
    ),
    "fp64": bytes.fromhex(
        HEAD
        + "06"  # value coding: fp64
        + ORIGIN
        + "00000100"  # no exponents, one q
        + FINGERPRINT
        + "000000000000000004000000000000000000000000000000"
        "bc54e803"  # CRC-32
        "000000000000e83f"  # bias[2] = 0.75
        "000000000000f03f"  # weight[0] = 1
        "0000000000000840"  # weight[2] = 3
        "000000e04d62503f"  # weight[3] = 0.001 in float32, widened
        "000000000000c03f"  # bn.running_var[0] = 0.125, in fp64, too
        "000000000000e0bf"  # bn.running_var[1] = -0.5
        "0201000000000000"  # steps
    ),
    "qsgd8": bytes.fromhex(
        HEAD
        + "0b"  # value coding: qsgd8
        + ORIGIN
        + "000f0100"
        + FINGERPRINT
        + "000000000000000004000000000000000000000000000000"
        "b3ad8de9"  # CRC-32
        "d23c"  # length of the block over 127: 3.25/127 rounded up to 0.025634765625
        "1d"  # bias[2] = 0.75 = 29.3 scales, rounded down to 29
        "27"  # weight[0] = 1 = 39.01 scales, rounded down to 39
        "75"  # weight[2] = 3 = 117.03 scales, rounded down to 117
        "00"  # weight[3] = 0.001 = 0.04 scales, rounded down to 0
        "006c00f4"  # bn.running_var
        "0201000000000000"  # steps
    ),
    "qsgd4": bytes.fromhex(
        HEAD
        + "0c"  # value coding: qsgd4
        + ORIGIN
        + "000f0100"
        + FINGERPRINT
        + "000000000000000004000000000000000000000000000000"
        "5fd92183"  # CRC-32
        "ee3e"  # length of the block over 7: 3.25/7 rounded up to 0.46484375
        "22"  # bias[2] = 1.6 scales -> 2, in the low half; weight[0] = 2.2 scales -> 2
        "06"  # weight[2] = 6.5 scales -> 6; weight[3] = 0.002 scales -> 0
        "006c00f4"  # bn.running_var
        "0201000000000000"  # steps
    ),
    "qsgd2": bytes.fromhex(
        HEAD
        + "0d"  # value coding: qsgd2
        + ORIGIN
        + "000f0100"
        + FINGERPRINT
        + "000000000000000004000000000000000000000000000000"
        "7801526e"  # CRC-32
        "5140"  # length of the block: 3.25 rounded up to 3.265625
        "10"  # of two bits each, the low ones first: 0, 0, weight[2] = 0.92 scales -> 1, 0
        "006c00f4"  # bn.running_var
        "0201000000000000"  # steps
    ),
    "lookup2": bytes.fromhex(
        HEAD
        + "0e"  # value coding: lookup2
        + ORIGIN
        + "000f0100"
        + FINGERPRINT
        + "000000000000000004000000000000000000000000000000"
        "d6cedaed"  # CRC-32
        "0000"  # more than 2.25 standard deviations, 1.277, below the mean, 1.188: none
        "833a"  # more than .75: 0.001, rounded to 0.00099945
        "603f"  # around the mean: the mean of 0.75 and 1 is 0.875
        "4040"  # above: 3
        "7a"  # of two bits each, the low ones first: 2, 2, 3, 1
        "006c00f4"  # bn.running_var
        "0201000000000000"  # steps
    ),
}

# --- other ways to say where survivors are ----------------------------------------------------

LISTED = ListedMask({"bias": np.array([2]), "weight": np.array([0, 4, 5])}, 7, 3, 2)
UNION = UnionMask((SeededMask(7, 3, 0, ONE // 4), SeededMask(7, 3, 2, ONE // 4)))
EXACT = SeededMask(7, 3, 2, ONE // 2, exact=True)
DISJOINT = SeededMask(7, 3, 5, ONE // 3, disjoint=True)
STRUCTURED = StructuredMask(MASK, columns=3 * (ONE // 4))

GOLDEN_LISTED = bytes.fromhex(
    "44415258"
    "01"
    "02"  # mask kind: listed
    "00"  # random generator: none
    "00"  # value coding: fp32
    "0700000000000000"  # seed
    "0300000000000000"  # round
    "0200000000000000"  # slot
    "0000000000000000"  # keep threshold: none
    "000000000000f03f"  # q: 1
    "00000100" + FINGERPRINT + "0000000000000000"  # version of the model: not said
    "0400000000000000"  # survivors
    "0600000000000000"  # bytes of the positions section
    "e2233d72"  # CRC-32
    "0100"  # bias: one position, Rice parameter 0
    "0300"  # weight: three positions, Rice parameter 0
    # Gaps 2 | 0, 3, 0 in unary, the low bit first: 001 | 1, 0001, 1
    "8c01"
    "0000403f"  # bias[2] = 0.75
    "0000803f"  # weight[0] = 1
    "0000a0c0"  # weight[4] = -5
    "0000c040"  # weight[5] = 6
    "0000003e000000bf"  # bn.running_var
    "0201000000000000"  # steps
)
GOLDEN_UNION = bytes.fromhex(
    "44415258"
    "01"
    "03"  # mask kind: union
    "01"  # random generator: SplitMix64
    "00"  # value coding: fp32
    "0700000000000000"  # seed
    "0300000000000000"  # round
    "ffffffffffffffff"  # slot: the server
    "0000004000000000"  # keep threshold: 2**30 of 2**32
    "000000000000f03f"  # q: 1
    "00000100" + FINGERPRINT + "0000000000000000"  # version of the model: not said
    "0500000000000000"  # survivors
    "1000000000000000"  # bytes of the positions section
    "0a5ceef3"  # CRC-32
    "0000000000000000"  # slot 0 keeps bias[1], bias[2], weight[1]
    "0200000000000000"  # slot 2 keeps weight[0], weight[5]
    "000080be"  # bias[1] = -0.25
    "0000403f"  # bias[2] = 0.75
    "0000803f"  # weight[0] = 1
    "000000c0"  # weight[1] = -2
    "0000c040"  # weight[5] = 6
    "0000003e000000bf"  # bn.running_var
    "0201000000000000"  # steps
)
GOLDEN_EXACT = bytes.fromhex(
    "44415258"
    "01"
    "01"  # mask kind: seeded
    "02"  # random generator: SplitMix64 with an exact count
    "00"  # value coding: fp32
    "0700000000000000"  # seed
    "0300000000000000"  # round
    "0200000000000000"  # slot
    "0000008000000000"  # keep threshold: 2**31 of 2**32
    "0000000000000000"  # q: below, one for each pruned tensor
    "0000"
    "0200" + FINGERPRINT + "0102030405060708"  # count of q  # version of the model
    "0400000000000000"  # survivors
    "0000000000000000"  # bytes of the positions section
    "1446d7fe"  # CRC-32
    "0000003f"  # q of bias: 0.5
    "0000403f"  # q of weight: 0.75
    "0000403f"  # bias[2] = 0.75
    "0000803f"  # weight[0] = 1
    "00004040"  # weight[2] = 3
    "6f12833a"  # weight[3] = 0.001
    "0000003e000000bf"  # bn.running_var
    "0201000000000000"  # steps
)
GOLDEN_STRUCTURED = bytes.fromhex(
    "44415258"
    "01"
    "04"  # mask kind: structured
    "01"  # random generator: SplitMix64
    "00"  # value coding: fp32
    "0700000000000000"  # seed
    "0300000000000000"  # round
    "0200000000000000"  # slot
    "0000008000000000"  # keep threshold: 2**31 of 2**32
    "000000000000e03f"  # q: 0.5
    "00000100" + FINGERPRINT + "0000000000000000"  # version of the model: not said
    "0500000000000000"  # survivors
    "0800000000000000"  # bytes of the positions section
    "be319d73"  # CRC-32
    "000000c000000000"  # keep threshold of columns: 3 * 2**30; weight keeps columns 0 and 2
    "0000403f"  # bias[2] = 0.75
    "0000803f"  # weight[0] = 1
    "00004040"  # weight[2] = 3
    "6f12833a"  # weight[3] = 0.001
    "0000c040"  # weight[5] = 6
    "0000003e000000bf"  # bn.running_var
    "0201000000000000"  # steps
)
GOLDEN_DISJOINT = bytes.fromhex(
    "44415258"
    "01"
    "01"  # mask kind: seeded
    "05"  # random generator: SplitMix64 with disjoint slots
    "00"  # value coding: fp32
    "0700000000000000"  # seed
    "0300000000000000"  # round
    "0500000000000000"  # slot: the third of the second group of three
    "5555555500000000"  # keep threshold: a third of 2**32
    "000000000000e03f"  # q: 0.5
    "00000100" + FINGERPRINT + "0000000000000000"  # version of the model: not said
    "0300000000000000"  # survivors
    "0000000000000000"  # bytes of the positions section
    "7b0bcd92"  # CRC-32
    "000080be"  # bias[1] = -0.25
    "0000a0c0"  # weight[4] = -5
    "0000c040"  # weight[5] = 6
    "0000003e000000bf"  # bn.running_var
    "0201000000000000"  # steps
)

# --- EDEN: the four survivors of `GOLDEN`, filled up to 64 and rotated ------------------------

ROTATED = {
    "eden1": bytes.fromhex(
        "4441525801010107"  # magic, version, seeded, SplitMix64, eden1
        + ORIGIN
        + "00000100"  # exponents, count of q
        + FINGERPRINT
        + "0000000000000000"  # version of the model: not said
        "0400000000000000"  # survivors
        "0000000000000000"  # bytes of the positions section
        "34d2bcd1"  # CRC-32
        "589c5e89a25da787"  # key of the rotation
        "053f"  # scale: 0.519531
        # 64 codes of 1 bit: 0.3896, 0.5195, 3.247, 0
        "f9d805b605c320bd"
        "823b2082"  # bn.running_var in int8: its scale, then 32 and -126
        "0201000000000000"  # steps
    ),
    "eden2": bytes.fromhex(
        "4441525801010108"  # magic, version, seeded, SplitMix64, eden2
        + ORIGIN
        + "00000100"  # exponents, count of q
        + FINGERPRINT
        + "0000000000000000"  # version of the model: not said
        "0400000000000000"  # survivors
        "0000000000000000"  # bytes of the positions section
        "46098efe"  # CRC-32
        "589c5e89a25da787"  # key of the rotation
        "e73e"  # scale: 0.451172
        # 64 codes of 2 bits: 0.69, 1.039, 3.007, -2.151e-07
        "96ef81a7664028db22115aa51419a28a"
        "823b2082"  # bn.running_var in int8: its scale, then 32 and -126
        "0201000000000000"  # steps
    ),
    "eden3": bytes.fromhex(
        "4441525801010109"  # magic, version, seeded, SplitMix64, eden3
        + ORIGIN
        + "00000100"  # exponents, count of q
        + FINGERPRINT
        + "0000000000000000"  # version of the model: not said
        "0400000000000000"  # survivors
        "0000000000000000"  # bytes of the positions section
        "4574d4e6"  # CRC-32
        "589c5e89a25da787"  # key of the rotation
        "ce3e"  # scale: 0.402344
        # 64 codes of 3 bits: 0.7428, 1.007, 2.998, 0.1679
        "d47af74ae8b51d85402073ca0db12ce4b691d9222a1549aa"
        "823b2082"  # bn.running_var in int8: its scale, then 32 and -126
        "0201000000000000"  # steps
    ),
    "eden4": bytes.fromhex(
        "444152580101010a"  # magic, version, seeded, SplitMix64, eden4
        + ORIGIN
        + "00000100"  # exponents, count of q
        + FINGERPRINT
        + "0000000000000000"  # version of the model: not said
        "0400000000000000"  # survivors
        "0000000000000000"  # bytes of the positions section
        "a28a0b76"  # CRC-32
        "589c5e89a25da787"  # key of the rotation
        "d43e"  # scale: 0.414062
        # 64 codes of 4 bits: 0.7585, 1.039, 2.98, -0.00607
        "59a6beeb44936dba6969314282298ec52b18473688777788733684264b8888b4"
        "823b2082"  # bn.running_var in int8: its scale, then 32 and -126
        "0201000000000000"  # steps
    ),
}

FIXED = SeededMask(seed=7, round=3, slot=2, keep=ONE // 2, fixed=True)
GOLDEN_FIXED = bytes.fromhex(
    "44415258"
    "01"
    "01"  # mask kind: seeded
    "03"  # random generator: SplitMix64, fixed for the run
    "00"  # value coding: fp32
    "0700000000000000"  # seed
    "0300000000000000"  # round: of the packet; the mask's key has 0
    "0200000000000000"  # slot
    "0000008000000000"  # keep threshold: 2**31 of 2**32
    "000000000000e03f"  # q: 0.5
    "00000100" + FINGERPRINT + "0000000000000000"  # version of the model: not said
    "0600000000000000"  # survivors
    "0000000000000000"  # bytes of the positions section
    "20dfc3f8"  # CRC-32
    "0000003f"  # bias[0] = 0.5
    "0000803f"  # weight[0] = 1
    "000000c0"  # weight[1] = -2
    "00004040"  # weight[2] = 3
    "6f12833a"  # weight[3] = 0.001
    "0000a0c0"  # weight[4] = -5
    "0000003e000000bf"  # bn.running_var
    "0201000000000000"  # steps
)
ALL_GOLDEN = {
    **GOLDEN,
    "listed": GOLDEN_LISTED,
    "union": GOLDEN_UNION,
    "exact": GOLDEN_EXACT,
    "disjoint": GOLDEN_DISJOINT,
    "structured": GOLDEN_STRUCTURED,
    "fixed": GOLDEN_FIXED,
    **ROTATED,
}
