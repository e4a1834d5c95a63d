"""The terms of a round: what the server tells a client, and garbage in its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from papers import NEEDS

from fl_darex.compression import METHODS, Method, Terms, Uplink
from fl_darex.compression.methods.dare import Dare
from fl_darex.compression.uplink import COUNTS, MASKS
from fl_darex.errors import PacketError, Reason
from fl_darex.masks import ONE
from fl_darex.options import Option
from fl_darex.positions import SeededMask
from fl_darex.rescaling.rules import CURVATURE, RULES
from fl_darex.wire.codings import CODINGS, SCALES

UPLINK = Uplink(method="dare", keep=ONE // 2, q=0.5, seed=7)
TERMS = Terms(uplink=UPLINK, round=3, slot=2)
GOLDEN = (
    '{"method":"dare","keep":2147483648,"q":0.5,"seed":7,"dense":["h\\u00e9ad","b"],'
    '"round":3,"slot":2,"model":"0000000000000000","version":4}'
)
SOUND = dict(Terms.usual) | json.loads(GOLDEN) | {"dense": []}
ALWAYS = sorted(set(SOUND) - set(Terms.usual) - {"version"})


def detached(**changes: Any) -> Terms | None:
    return Terms.detach({"darex": json.dumps(SOUND | changes), "lr": 0.1})


def test_terms_never_change_on_the_wire():
    config: dict[str, Any] = {}
    replace(TERMS, uplink=replace(UPLINK, dense=("héad", "b"))).attach(config)
    assert config == {"darex": GOLDEN}


def _told(method: Method) -> list[str]:
    """The masks that terms of a method can name; "auto" is the server's own."""
    return [
        mask
        for mask in MASKS
        if mask == "client" or (method.seeded and mask != "auto")
        if (method.name, mask) != ("structured", "disjoint")
    ]


@st.composite
def uplinks(draw: st.DrawFn) -> Uplink:
    method = METHODS[draw(st.sampled_from(sorted(METHODS)))]
    needs = NEEDS.get(method.name, {})
    values = needs.get("values") or draw(st.sampled_from(sorted(CODINGS)))
    rules = [rule for rule in RULES if rule != CURVATURE or method.name == "dare"]
    options = {"scope": st.sampled_from(("layer", "row")), "columns": st.floats(0.5, 1)}
    divided = st.floats(0, 1, exclude_min=True, width=32) | st.sampled_from(rules)
    if method.feeds_back or not method.adds_up:
        divided = st.sampled_from(["dare", 1])
    return Uplink(
        method=method.name,
        keep=ONE if "p" in needs else draw(st.integers(1, ONE // 2)),
        q=draw(divided) if method.packs else 0.5,
        values=values,
        mask=draw(st.sampled_from(_told(method))),
        scale=draw(st.sampled_from(SCALES if values.startswith("eden") else SCALES[:1])),
        count=draw(st.sampled_from(COUNTS)),
        seed=draw(st.integers(0, 2**63 - 1)),
        dense=draw(st.lists(st.text(max_size=8), max_size=4).map(tuple)),
        dense_below=draw(st.integers(0, 2**40)),
        rotate=draw(st.booleans()) or not method.seeded or method.feeds_back,
        options={n: draw(options[n]) for n in method.options if n in options},
    )


@settings(deadline=None)
@given(
    st.builds(
        Terms,
        uplink=uplinks(),
        round=st.integers(0, 2**40),
        slot=st.integers(0, 2**40),
        version=st.binary(min_size=8, max_size=8),
        record=st.text(max_size=8),
        counted=st.integers(0, 2**40),
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
    shared, exact = replace(UPLINK, mask="round"), replace(UPLINK, count="exact")
    fixed = replace(UPLINK, rotate=False)
    assert replace(TERMS, uplink=fixed).drawn == SeededMask(7, 3, 2, ONE // 2, fixed=True)
    assert replace(TERMS, uplink=shared).drawn == SeededMask(7, 3, -1, ONE // 2)
    assert replace(TERMS, uplink=exact).drawn == SeededMask(7, 3, 2, ONE // 2, exact=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "are of wire version 2, this side speaks 4; install the same fl-darex"),
        ({"version": 0}, "are of wire version 0"),
        ({"version": "4"}, "are of wire version 4"),
        ({"version": None}, "are of wire version None"),
        ({"method": "dara"}, "method must be one of .*, got 'dara'; did you mean 'dare'"),
        (
            {"values": "int5"},
            r"the server's terms: values must be one of \['bf16', 'eden1', 'eden2'",
        ),
        ({"keep": 0}, r"keep = 0 is not allowed; it must be from 1 to 2\*\*32"),
        ({"keep": ONE + 1}, "keep = 4294967297 is not allowed"),
        ({"keep": -1}, "keep = -1 is not allowed"),
        ({"q": 0.0}, r"q must be 'dare' \(q = 1-p\) or a number in \(0, 1\], got 0.0"),
        ({"q": 1.5}, "q must be .* got 1.5"),
        ({"q": -0.5}, "q must be .* got -0.5"),
        ({"q": "q-w"}, "q must be .* got 'q-w'"),
        ({"q": float("nan")}, "q must be .* got nan"),
        ({"q": float("inf")}, "q must be .* got inf"),
        ({"q": 10**400}, "q must be .* got 1000"),
        ({"q": -(10**400)}, "q must be .* got -1000"),
        ({"dense": None}, "dense = None is not allowed; it must be a list of names"),
        ({"dense": 5}, "dense = 5 is not allowed"),
        ({"dense_below": -1}, r"dense_below in the server's terms is -1, not an integer in \[0,"),
        ({"dense_below": True}, "dense_below in the server's terms is True, not an integer"),
        ({"dense_below": "auto"}, "dense_below in the server's terms is 'auto', not an integer"),
        ({"options": {"scope": "row"}}, "'scope' is no option of method 'dare'"),
        (
            {"method": "structured", "options": {"columns": 2}},
            "columns = 2 is not allowed; it must be a number from 1e-09 to 1",
        ),
        ({"method": "magnitude", "mask": "round"}, "mask = 'round' is for masks that are drawn"),
        ({"method": "magnitude", "rotate": False}, "rotate = False is for masks that are drawn"),
        ({"rotate": 0}, "rotate must be True or False, got 0"),
        ({"mask_first": "yes"}, "mask_first must be True or False, got 'yes'"),
        ({"mask_first": True}, "q = 0.5 does not go with training what the mask keeps"),
        ({"method": "wanda", "mask_first": True, "q": 1.0}, "mask_first = True trains what"),
        ({"later": 1}, "not readable: .*later"),
    ],
)
def test_terms_that_are_not_understood_are_refused(changes, message):
    with pytest.raises(PacketError, match=message):
        detached(**changes)


def test_terms_that_name_each_setting_are_those_that_leave_the_usual_ones_out():
    short = {name: value for name, value in SOUND.items() if name in (*ALWAYS, "q", "version")}
    assert Terms.detach({"darex": json.dumps(short)}) == detached() == TERMS
    usual = Terms.detach({"darex": json.dumps({k: v for k, v in short.items() if k != "q"})})
    assert usual == replace(TERMS, uplink=replace(UPLINK, q="dare"))


def test_the_page_says_what_is_left_out_and_what_it_then_is():
    page = (Path(__file__).parent.parent / "docs" / "wire-format.md").read_text("utf-8")
    said = " ".join(page.partition("A writer MAY leave out what is usual")[2].split())
    assert all(f"`{name}` `{json.dumps(value)}`" in said for name, value in Terms.usual.items())


@pytest.mark.parametrize("missing", ALWAYS)
def test_terms_with_a_field_missing_are_refused_by_name(missing):
    fields = {name: value for name, value in SOUND.items() if name != missing}
    with pytest.raises(PacketError, match=f"not readable: .*{missing}"):
        Terms.detach({"darex": json.dumps(fields)})


MISTYPED = [
    *[{"keep": wrong} for wrong in ("1", None, 1.5, True, [1], {})],
    *[{"q": wrong} for wrong in ("0.5", None, True, [0.5])],
    *[{"values": wrong} for wrong in ([], {}, ["fp16"])],
    *[{"seed": wrong} for wrong in ("7", -1, None, 1.5, 2**64)],
    *[{"round": wrong} for wrong in ("3", -1, None, 0.5)],
    *[{"slot": wrong} for wrong in ("2", None, 2**63)],
    *[{"counted": wrong} for wrong in ("2", None, -1)],
    *[{"dense": wrong} for wrong in ("abc", [1], [["a"]], {"a": 1}, [None])],
    *[{"mask": wrong} for wrong in ("no", 2, None, "auto")],
    *[{"count": wrong} for wrong in ("no", 1, None)],
    *[{"model": wrong} for wrong in (0, None, "", "0" * 15, "0" * 17, "G" * 16, "A" * 16, [])],
    *[{"method": wrong} for wrong in ([], None, 1)],
    *[{"options": wrong} for wrong in ([], None, "columns")],
    *[{"record": wrong} for wrong in ([], None, 1)],
    *[{"version": wrong} for wrong in (True, 1.0)],
]


@pytest.mark.parametrize("changes", MISTYPED, ids=str)
def test_terms_of_a_wrong_type_or_range_are_refused(changes):
    (field,) = changes
    with pytest.raises(PacketError, match=field) as caught:
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


@pytest.mark.parametrize("field", sorted(set(SOUND) - {"version"}))
def test_nesting_that_can_just_be_read_is_refused_like_any_other(field):
    for depth in range(800, 1000):  # where Python gives up depends on who calls
        text = json.dumps(SOUND | {field: "@"}).replace('"@"', '{"a":' * depth + "1" + "}" * depth)
        with pytest.raises(PacketError, match="the server's terms"):
            Terms.detach({"darex": text})


class Stepped(Dare):
    """DARE with an option that may be any number."""

    name = "stepped"
    options: ClassVar[Mapping[str, Option]] = {"lr": Option(default=1.0, help="any number")}


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf"), True, "1"])
def test_an_own_option_that_no_float_can_hold_is_refused(value, monkeypatch):
    monkeypatch.setattr(METHODS, "_rows", dict(METHODS))  # taken back after the test
    METHODS.add(Stepped())
    with pytest.raises(PacketError, match=r"lr = .* is not allowed; it must be a number"):
        detached(method="stepped", options={"lr": value})


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
    assert isinstance(terms.drawn.keep, int) and isinstance(terms.uplink.values, str)
