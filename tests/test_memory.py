"""How much memory a client takes, and whether it ran out of it."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
import torch

from fl_darex.simulation.memory import (
    machine_memory,
    ran_out,
    read,
    share_of,
    slots_of,
)

GIB = 1 << 30


def test_as_many_share_a_memory_as_fit_with_a_tenth_more_each() -> None:
    assert slots_of((10 * GIB, 24 * GIB)) == 2
    assert slots_of((1000, 11_000)) == 10
    assert slots_of((1001, 11_000)) == 9
    assert slots_of((23 * GIB, 24 * GIB)) == slots_of((99 * GIB, 24 * GIB)) == 1
    assert slots_of((0, 24 * GIB)) == 10_000


@pytest.mark.parametrize("slots", [1, 2, 3, 6, 7, 11, 13, 99, 10_000])
def test_exactly_so_many_shares_fit_into_one_in_rays_ten_thousandths(slots: int) -> None:
    share = share_of(slots)
    units = round(share * 10_000)
    assert units / 10_000 == share
    assert slots * units <= 10_000 < (slots + 1) * units or slots > 100


def raised(act: object) -> BaseException:
    try:
        act()  # type: ignore[operator]
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def wrapped(error: Exception) -> Exception:
    try:
        raise ValueError("the app's own") from error
    except ValueError as found:
        return found


def test_running_out_of_memory_is_known_from_other_errors() -> None:
    assert ran_out(raised(lambda: bytearray(1 << 62))) == "machine"
    assert ran_out(raised(lambda: np.ones(1 << 50))) == "machine"
    assert ran_out(raised(lambda: torch.ones(1 << 50))) == "machine"
    assert ran_out(raised(lambda: mmap.mmap(-1, 1 << 60))) == "machine"
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory.")) == "device"
    assert ran_out(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when ...")) == "device"
    assert ran_out(RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying ...")) == "device"
    assert ran_out(wrapped(torch.OutOfMemoryError("..."))) == "device"
    for other in (ValueError("out of memory"), RuntimeError("shapes"), KeyError("x"), None):
        assert ran_out(other) == ""
    loop = ValueError("a")
    loop.__cause__ = RuntimeError("b")
    loop.__cause__.__context__ = loop
    assert ran_out(loop) == ""


def test_a_meter_that_cannot_says_why() -> None:
    def broken() -> tuple[int, int]:
        raise RuntimeError("no such device")

    peak, total = machine_memory()
    assert 10_000_000 < peak < total
    found = read({"a": machine_memory, "b": broken})
    assert found["a"][1] == total and found["b"] == "RuntimeError: no such device"
