"""The terms of a round: what the server tells a client, and garbage in its place."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl_darex.compression.compressor import COMPRESSORS
from fl_darex.compression.terms import Terms
from fl_darex.errors import PacketError, Reason
from fl_darex.masks import ONE
from fl_darex.positions import SeededMask
from fl_darex.pruning.scores import SCOPES
from fl_darex.rescaling.rules import RULES
from fl_darex.wire.values import CODINGS

TERMS = Terms(method="dare", kept=ONE // 2, q=0.5, values="fp16", seed=7, round=3, slot=2)
SOUND = asdict(TERMS) | {"dense": []}


def detached(**changes: Any) -> Terms | None:
    return Terms.detach({"darex": json.dumps(SOUND | changes), "lr": 0.1})


def test_terms_never_change_on_the_wire():
    config: dict[str, Any] = {}
    replace(TERMS, dense=("héad", "b")).attach(config)
    assert config == {
        "darex": '{"method":"dare","kept":2147483648,"q":0.5,"values":"fp16","seed":7,"round":3,'
        '"slot":2,"shared":false,"exact":false,"columns":0,"scope":"layer","search":"",'
        '"dense":["h\\u00e9ad","b"],'
        '"base":"0000000000000000","record":"","version":1}'
    }


@settings(deadline=None)
@given(
    st.builds(
        Terms,
        method=st.sampled_from(sorted(COMPRESSORS)),
        kept=st.integers(1, ONE),
        q=st.floats(0, 1, exclude_min=True),
        values=st.sampled_from(sorted(CODINGS)),
        seed=st.integers(0, 2**63 - 1),
        round=st.integers(0, 2**40),
        slot=st.integers(0, 2**40),
        shared=st.booleans(),
        exact=st.booleans(),
        columns=st.integers(0, ONE),
        scope=st.sampled_from(SCOPES),
        search=st.sampled_from(["", *RULES]),
        base=st.binary(min_size=8, max_size=8).map(bytes.hex),
        dense=st.lists(st.text(max_size=8), max_size=4).map(tuple),
    )
)
def test_terms_that_are_attached_are_detached_unchanged_and_leave_no_trace(terms):
    config: dict[str, Any] = {"lr": 0.1}
    terms.attach(config)
    assert Terms.detach(config) == terms
    assert config == {"lr": 0.1}


def test_a_message_without_terms_asks_for_nothing():
    config = {"lr": 0.1}
    assert Terms.detach(config) is None
    assert config == {"lr": 0.1}


def test_a_shared_mask_has_the_slot_of_nobody():
    assert TERMS.drawn == SeededMask(7, 3, 2, ONE // 2)
    assert replace(TERMS, shared=True).drawn == SeededMask(7, 3, -1, ONE // 2)
    assert replace(TERMS, exact=True).drawn == SeededMask(7, 3, 2, ONE // 2, exact=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "are of wire version 2, this side speaks 1; install the same fl-darex"),
        ({"version": 0}, "are of wire version 0"),
        ({"version": "1"}, "are of wire version 1"),
        ({"version": None}, "are of wire version None"),
        (
            {"values": "int5"},
            r"values in the server's terms is 'int5', not one of \['bf16', 'fp16', 'fp32', 'int4'",
        ),
        ({"kept": 0}, r"kept in the server's terms is 0, not an integer in \[1, 2\*\*32\]"),
        ({"kept": ONE + 1}, "kept in the server's terms is 4294967297"),
        ({"kept": -1}, "kept in the server's terms is -1"),
        ({"q": 0.0}, r"q in the server's terms is 0.0, not a number in \(0, 1\]"),
        ({"q": 1.5}, "q in the server's terms is 1.5"),
        ({"q": -0.5}, "q in the server's terms is -0.5"),
        ({"q": float("nan")}, "q in the server's terms is nan"),
        ({"q": float("inf")}, "q in the server's terms is inf"),
        ({"dense": None}, "dense in the server's terms is None, not a list of names"),
        ({"dense": 5}, "dense in the server's terms is 5"),
        ({"later": 1}, "not readable: .*later"),
    ],
)
def test_terms_that_are_not_understood_are_refused(changes, message):
    with pytest.raises(PacketError, match=message):
        detached(**changes)


@pytest.mark.parametrize("missing", ["method", "kept", "q", "values", "seed", "round", "slot"])
def test_terms_with_a_field_missing_are_refused_by_name(missing):
    fields = {name: value for name, value in SOUND.items() if name != missing}
    with pytest.raises(PacketError, match=f"not readable: .*{missing}"):
        Terms.detach({"darex": json.dumps(fields)})


MISTYPED = [
    *[{"kept": wrong} for wrong in ("1", None, 1.5, True, [1], {})],
    *[{"q": wrong} for wrong in ("0.5", None, True, [0.5])],
    *[{"values": wrong} for wrong in ([], {}, ["fp16"])],
    *[{"seed": wrong} for wrong in ("7", -1, None, 1.5, 2**64)],
    *[{"round": wrong} for wrong in ("3", -1, None, 0.5)],
    *[{"slot": wrong} for wrong in ("2", None, 2**63)],
    *[{"dense": wrong} for wrong in ("abc", [1], [["a"]], {"a": 1}, [None])],
    *[{"shared": wrong} for wrong in ("no", 2, None)],
    *[{"exact": wrong} for wrong in ("no", 1, None)],
    *[{"base": wrong} for wrong in (0, None, "", "0" * 15, "0" * 17, "G" * 16, "A" * 16, [])],
    *[{"method": wrong} for wrong in ([], None, 1)],
    *[{"version": wrong} for wrong in (True, 1.0)],
]


@pytest.mark.parametrize("changes", MISTYPED, ids=str)
def test_terms_of_a_wrong_type_or_range_are_refused(changes):
    (field,) = changes
    with pytest.raises(PacketError, match=field.replace("kept", "keep|kept")) as caught:
        detached(**changes)
    assert caught.value.reason == Reason.TERMS


@pytest.mark.parametrize(
    "garbage", ["", "{", "[]", "null", "5", '"dare"', "{}", b"{}", 5, 1.5, [1, 2], "\0", "NaN"]
)
def test_garbage_in_place_of_terms_is_refused(garbage):
    with pytest.raises(PacketError, match="the server's terms are not readable"):
        Terms.detach({"darex": garbage})


@pytest.mark.parametrize(
    "garbage", [b"\xff", "[" * 100_000, "1" * 5000, b"\xff\xfe\xff"], ids=lambda g: repr(g[:3])
)
def test_garbage_that_the_json_parser_gives_up_on_is_refused(garbage):
    with pytest.raises(PacketError, match="the server's terms are not readable"):
        Terms.detach({"darex": garbage})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=40) | JSON.map(json.dumps))
def test_any_text_in_place_of_terms_raises_nothing_but_packet_errors(text):
    with pytest.raises(PacketError, match=r"terms|version"):
        Terms.detach({"darex": text})


@settings(deadline=None)
@given(st.fixed_dictionaries({}, optional={name: JSON for name in SOUND}))
def test_any_field_in_place_of_a_right_one_raises_nothing_but_packet_errors(changes):
    try:
        terms = detached(**changes)
    except PacketError:
        return
    assert terms is not None
    assert isinstance(terms.drawn.kept, int) and isinstance(terms.values, str)
