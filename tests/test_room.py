"""Where workers fit: on which machine, on which GPU, and whose place they take."""

from __future__ import annotations

import pytest

from fl_darex.errors import ConfigError
from fl_darex.simulation.room import Need, Seat, capacity, fitting, place

TWO = {"a": {"CPU": 4.0, "GPU": 2.0}, "b": {"CPU": 8.0, "memory": 1e9, "node:1.2.3.4": 1.0}}


def filled(among: dict[str, Need], need: Need) -> list[Seat]:
    """Place workers until none fits any more."""
    seats: list[Seat] = []
    while (found := place(among, seats, Seat(need), [])) is not None:
        assert found[1] == []
        seats.append(found[0])
    return seats


@pytest.mark.parametrize(
    ("need", "fits"),
    [
        ({"CPU": 1.0}, 4),
        ({"CPU": 0.1}, 40),
        ({"CPU": 0.5, "GPU": 0.25}, 8),
        ({"CPU": 0.5, "GPU": 0.6}, 2),  # a fraction lies on one GPU
        ({"CPU": 1.0, "GPU": 0.3333}, 4),
        ({"CPU": 0.1, "GPU": 0.3333}, 6),
        ({"CPU": 1.0, "GPU": 2.0}, 1),
        ({"CPU": 1.0, "tpu": 0.5}, 2),
        ({"CPU": 1.0, "GPU": 3.0}, 0),
        ({"CPU": 1.0, "npu": 1.0}, 0),
    ],
)
def test_as_many_fit_as_are_counted(need: Need, fits: int) -> None:
    machine = {"CPU": 4.0, "GPU": 2.0, "tpu": 1.0}
    assert fitting(machine, need) == len(filled({"a": machine}, need)) == fits


def test_all_gpus_of_all_machines_are_in_use() -> None:
    among = {name: {"CPU": 8.0, "GPU": 2.0} for name in "abc"}
    seats = filled(among, {"CPU": 1.0, "GPU": 0.5})
    assert sorted((seat.node, seat.gpus) for seat in seats) == sorted(
        (node, (gpu,)) for node in "abc" for gpu in ("new 0", "new 1") for _ in range(2)
    )
    # Few workers go to different machines.
    first, second = seats[:2]
    assert first.node != second.node


def test_who_needs_no_gpu_leaves_machines_with_gpus_to_others() -> None:
    seats = filled(TWO, {"CPU": 1.0})
    assert [seat.node for seat in seats] == ["b"] * 8 + ["a"] * 4


def test_a_fraction_goes_to_the_fullest_gpu_that_has_room_as_with_ray() -> None:
    taken = [
        Seat({"CPU": 0.1, "GPU": 0.6}, node="a", gpus=("0",)),
        Seat({"CPU": 0.1, "GPU": 0.3}, node="a", gpus=("1",)),
    ]
    for share, gpu in ((0.4, "0"), (0.5, "1"), (0.7, "1")):
        found = place(TWO, taken, Seat({"CPU": 0.1, "GPU": share}), [])
        assert found is not None and found[0].gpus == (gpu,)
    assert place(TWO, taken, Seat({"CPU": 0.1, "GPU": 0.8}), []) is None
    assert place(TWO, taken, Seat({"CPU": 0.1, "GPU": 1.0}), []) is None


def test_a_whole_gpu_takes_the_place_of_those_who_share_one_and_of_nobody_else() -> None:
    share = {"CPU": 0.1, "GPU": 0.25}
    seats = [Seat(share, node="a", gpus=(gpu,)) for gpu in "00001111"]
    busy = seats[1]
    idle = [seat for seat in seats if seat is not busy]
    found = place(TWO, seats, Seat({"CPU": 0.1, "GPU": 1.0}), idle)
    assert found is not None
    assert found[1] == seats[4:] and len(found[0].gpus) == 1
    assert place(TWO, seats, Seat({"CPU": 0.1, "GPU": 2.0}), idle) is None
    both = place(TWO, seats, Seat({"CPU": 0.1, "GPU": 2.0}), seats)
    assert both is not None and set(both[1]) == set(seats)


def test_as_few_leave_as_possible() -> None:
    seats = filled(TWO, {"CPU": 1.0})
    found = place(TWO, seats, Seat({"CPU": 2.5}), seats)
    assert found is not None and len(found[1]) == 3
    found = place(TWO, seats[:-1], Seat({"CPU": 1.0}), seats)
    assert found is not None and found[1] == []


def test_who_is_apart_has_a_machine_to_itself() -> None:
    one = Seat({"CPU": 1.0}, node="a")
    apart = Seat({"CPU": 1.0}, apart=True)
    found = place(TWO, [one], apart, [])
    assert found is not None and found[0].node == "b" and found[0].apart
    assert place({"a": TWO["a"]}, [one], apart, []) is None
    taken = place({"a": TWO["a"]}, [one], apart, [one])
    assert taken is not None and taken[1] == [one]
    assert place({"a": TWO["a"]}, [taken[0]], Seat({"CPU": 1.0}), []) is None


@pytest.mark.parametrize(
    ("need", "message"),
    [
        ({"CPU": 9.0}, r"resources.num-cpus = 9 of X, but the largest node has 8 cores; allowed h"),
        ({"CPU": 1.0, "GPU": 3.0}, r"num-gpus = 3 of X, but the largest node has 2 GPUs; allowed"),
        ({"CPU": 1.0, "tpu": 1.0}, r"custom.tpu = 1 of X, but the largest node has 0 of 'tpu'"),
        ({"CPU": 8.0, "GPU": 1.0}, r"num-cpus = 8, num-gpus = 1 of X: no node has all of that tog"),
    ],
)
def test_what_fits_on_no_machine_is_an_error_with_what_there_is(need: Need, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        capacity(TWO, need, " of X")
    assert capacity(TWO, {"CPU": 3.0}) == 3
