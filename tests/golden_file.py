"""A golden file of changes, byte by byte, and what it is a change of."""

from __future__ import annotations

import numpy as np

BASE = {
    "bias": np.array([1, 2, 3], np.float32),
    "weight": np.array([[1, 2, 3], [4, 5, 6]], np.float32),  # bfloat16 in its file
    "steps": np.array(1, np.int64),
    "still": np.array([7, 8], np.float32),
    "gone": np.array([9], np.float32),
}
TUNED = {
    "bias": np.array([1.5, 2.25, 3.75], np.float32),
    "weight": np.array([[1.5, 2.25, 3.125], [4.5, 5.25, 6.5]], np.float32),  # bfloat16
    "steps": np.array(258, np.int64),
    "still": np.array([7, 8], np.float32),
    "head": np.array([0.5, -1.5], np.float32),
}
TUNED["tied"] = TUNED["weight"]
HALVES = ("weight", "tied")
"""What is of type bfloat16."""

SEED, P = 3, 0.5

PRUNED = bytes.fromhex(
    # DARX, version 1, seeded, SplitMix64, fp16; seed 3, round 0, slot 0, half is kept, q = 0.5
    "44415258010101010300000000000000000000000000000000000000000000000000008000000000"
    "000000000000e03f"
    # exponents, one q; fingerprint of bias and weight; version of the base; 5 survivors
    "0f000100f5910105aee2a125e94d850cb4743b6fc9e87ea65de0ce09050000000000000000000000"
    "00000000"
    # CRC-32, and the survivors
    "964aa913007000740070006c0074"
)
WHOLE = bytes.fromhex(
    "44415258010101010300000000000000000000000000000000000000000000000000000001000000"
    "000000000000f03f000e01001ed3151887c30db946960f5c7dfa268fc9e87ea65de0ce0900000000"
    "000000000000000000000000"
    # CRC-32; head: 0.5, -1.5 times 2**14; steps: 258
    "38043f7f007000f60201000000000000"
)
CONFIG = bytes.fromhex("78daab564a54b232ac0500082a0209")  # {"a":1}
HEADER = bytes.fromhex(
    "78da8d92dd72c22010855fa5c335cd406262f4551c2ff8d9182a4226e058ebe4ddbbc458e9453b5e"
    "b1ecd9fdf62cc38d4811806c89da40bb06d1d41a9802b621945cc01cfa18503c790db608a283082e"
    "f831a0ea7c04d46e445eb1a2b3ef5a8cf0f9c60a5e30944f107baf514969bc0f18b2a2c66819381f"
    "9474c6413c3b48a5f773c262a18e9026ef386b2867ed3e15da346f774335f6c9b1779d39141fc13b"
    "e404f385d4f5d28b345e53a2cd0142c4da523592f34ab65af3baeba406bd691b26571548a61a4526"
    "9cf0d82dcd70e2349b3422edaae37580794b2f6255a671bd48995d857da3b7491cc6d9fec33dd932"
    "4a8e3060c027fa43ec41e87f89e593a8d1106440fe783c77b636638608436ed3b8d8ac32e493388a"
    "4bcefbc530d6be6a2ca49eac391ac8979273336ff2669abdd4521efc7954e97eff683970c9bc8efc"
    "fbf157d37efa0652b8e729"
)
TEXT = (
    '{"base":"c9e87ea65de0ce09","weights":"model.safetensors","notes":{'
    '"by":"fl-darex 0.1.0","method":"dare","p":"0.5","base":"base","finetuned":"tuned"},'
    '"packets":[106,108],"files":[{"path":"config.json","size":7,"packed":15,'
    '"digest":"2c6b113b8dd15ffbded9860b43eb0c6c"}],"tensors":[{"name":"bias",'
    '"dtype":"float32","shape":[3],"role":"pruned","packet":0,"kept":1},{"name":"head",'
    '"dtype":"float32","shape":[2],"role":"dense","packet":1,"base":null},{"name":"steps",'
    '"dtype":"int64","shape":[],"role":"raw","packet":1},{"name":"still","dtype":"float32",'
    '"shape":[2],"role":"same"},{"name":"tied","dtype":"bfloat16","shape":[2,3],'
    '"role":"tied","source":"weight"},{"name":"weight","dtype":"bfloat16","shape":[2,3],'
    '"role":"pruned","packet":0,"kept":4}]}'
)
FILE = b"".join(
    [
        bytes.fromhex("4441524601000000"),  # DARF, version 1
        PRUNED,
        WHOLE,
        CONFIG,
        HEADER,
        bytes.fromhex("4b01000000000000"),  # 331 bytes of header
        bytes.fromhex("e602000000000000"),  # 742 of text
        bytes.fromhex("fc49390f8a39180bda7588d372b968309eb961576e5e67c47a048a4b0b58a357"),
    ]
)
