"""Classes of clients: as text in a configuration, and as arguments."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from fl_darex.commands.beforehand import check_machine
from fl_darex.config import ResourcesConfig, make_config
from fl_darex.config.resources import classes_of
from fl_darex.errors import ConfigError
from fl_darex.simulation import RayGrid, Resources
from fl_darex.simulation.flower_engine import simulate_with_flower
from fl_darex.simulation.memory import gpu_memory
from fl_darex.simulation.resources import groups_of, ranges


def test_classes_are_written_as_clients_and_what_each_of_them_needs() -> None:
    text = " 0-2,7 : num-gpus=0.25  num-cpus=2; 9: custom.tpu=1 custom.x=0.5 actors=3 ;"
    text += "8:num-gpus=auto;"
    assert classes_of(text) == [
        ([0, 1, 2, 7], {"num_gpus": 0.25, "num_cpus": 2.0}),
        ([9], {"actors": 3, "custom": {"tpu": 1.0, "x": 0.5}}),
        ([8], {"num_gpus": "auto"}),
    ]
    assert classes_of("") == classes_of(" ; ") == []


def test_a_class_needs_what_all_need_but_for_what_it_says_itself() -> None:
    settings = {
        "resources.num-cpus": 3,
        "resources.actors": 2,
        "resources.classes": "1: num-gpus=1",
    }
    resources = make_config(settings).resources
    assert resources.by_class == [([1], {"num_cpus": 3.0, "num_gpus": 1.0})]
    assert Resources(**resources.for_all) == Resources(num_cpus=3, actors=2)
    assert resources.uses_gpus and not make_config({}).resources.uses_gpus


WRONG = {
    "0-9": r"'0-9' does not say what clients need; write 'CLIENTS: SETTING=NUMBER",
    "0-9:": r"'0-9:' does not say what clients need",
    "x: num-cpus=1": r"'x' is no client and no range of clients; write 'CLIENTS",
    "9-0: num-cpus=1": r"'9-0' is no client and no range",
    ": num-cpus=1": r"'' is no client and no range",
    "0: num-gpu=1": r"'num-gpu' is none of num-cpus, num-gpus, actors, custom.NAME; did you mean "
    "'num-gpus'?",
    "0: custom.=1": r"'custom.' is none of",
    "0: num-gpus=1.5": r"'num-gpus=1.5' must be 'auto', a fraction below 1, or a whole number from",
    "0: num-gpus=65": r"'num-gpus=65' must be",
    "0: num-gpus=nan": r"'num-gpus=nan' must be",
    "0: num-cpus=auto": r"'num-cpus=auto' must be a number from 0.0001 to 4096",
    "0: num-cpus=0": r"'num-cpus=0' must be a number from 0.0001 to 4096",
    "0: custom.tpu": r"'custom.tpu' must be a number",
    "0: actors=1.5": r"'actors=1.5' must be a whole number from 0 to 65536",
    "0-3: num-cpus=1; 2: num-cpus=2": r"client 2 is in it twice",
    "0,0: num-cpus=1": r"client 0 is in it twice",
    "8-10: num-cpus=1": r"names client 10, and federation.clients = 10; allowed: 0 to 9",
}


@pytest.mark.parametrize("text", WRONG)
def test_classes_that_are_written_otherwise_are_refused_with_the_form(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(WRONG[text])) as caught:
        make_config({"resources.classes": text})
    assert str(caught.value).startswith(f"resources.classes = {text!r} ")


@pytest.mark.parametrize("value", [1.5, 0.00001, 64.5, -1, "half"])
def test_gpus_are_a_fraction_a_whole_number_or_measured(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"resources.num-gpus = .*'auto'"):
        make_config({"resources.num-gpus": value})
    with pytest.raises((ValueError, TypeError), match="num_gpus must be 'auto', or from 0 on a"):
        Resources(num_gpus=value if value != 64.5 else 1.25)
    assert make_config({"resources.num-gpus": "auto"}).resources.uses_gpus


def test_gpus_that_are_not_there_are_refused_before_anything_starts() -> None:
    for settings in ({"num-gpus": 64}, {"classes": "3: num-gpus=64"}):
        with pytest.raises(ConfigError, match=r"num-gpus = 64, but torch finds \d GPUs"):
            check_machine(ResourcesConfig.model_validate(settings))
    with pytest.raises(ConfigError, match=r"num-cpus = 4096, but this machine has"):
        check_machine(ResourcesConfig.model_validate({"classes": "3: num-cpus=4096"}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_gpu_memory_is_not_measured_where_there_is_no_gpu() -> None:
    with pytest.raises(ConfigError, match=r"num-gpus = 'auto', but torch finds 0 GPUs on this mac"):
        check_machine(ResourcesConfig.model_validate({"num-gpus": "auto"}))


def test_who_is_in_no_class_needs_what_all_need() -> None:
    large, small = Resources(num_gpus=1), Resources(num_cpus=0.5)
    groups = groups_of(6, Resources(), {(0,): large, (5, 3): small, (1,): large, (): small})
    assert [(group.label, group.resources, list(group.partitions)) for group in groups] == [
        (" of the clients 0-1", large, [0, 1]),
        (" of the clients 3,5", small, [5, 3]),
        ("", Resources(), [2, 4]),
    ]
    assert len(groups_of(2, Resources(), {range(2): large})) == 1
    assert ranges([7, 3, 4, 5, 9]) == "3-5,7,9" and ranges([]) == ""


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        ([Resources()], TypeError, "classes must be a mapping of partitions to Resources"),
        ({(0,): 1}, TypeError, "classes must be a mapping of partitions to Resources, got 1"),
        ({0: Resources()}, TypeError, r"partitions such as range\(10\) as keys, got 0"),
        ({"01": Resources()}, TypeError, r"partitions such as range\(10\) as keys, got '01'"),
        ({(0.5,): Resources()}, TypeError, r"classes must be partitions from 0 to 3, got 0.5"),
        ({(4,): Resources()}, ValueError, r"classes must be partitions from 0 to 3, got 4"),
        ({(0, 0): Resources()}, ValueError, r"classes has clients twice, 0; each can be in one"),
        ({(0, 1): Resources(), range(1, 3): Resources()}, ValueError, r"clients twice, 1"),
        ({(0,): Resources(ray_address="auto")}, ValueError, r"belongs into resources: all classes"),
    ],
)
def test_classes_that_cannot_be_are_refused_before_ray_starts(
    classes: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        RayGrid("nobody:app", 4, classes=classes)


@pytest.mark.parametrize(
    ("custom", "message"),
    [
        ({"GPU": 1}, "cores and GPUs are num_cpus and num_gpus"),
        ({"": 1}, "names that Ray does not use itself, got ''"),
        ({"memory": 1}, "names that Ray does not use itself, got 'memory'"),
        ({"tpu": 0}, r"custom\['tpu'\] must be an amount from 0.0001 on, or a function that meas"),
        ({"tpu": float("inf")}, r"custom\['tpu'\] must be an amount"),
    ],
)
def test_custom_resources_are_amounts_under_names_of_their_own(
    custom: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Resources(custom=custom)


def test_what_is_measured_is_for_our_engine_alone() -> None:
    assert Resources(num_gpus="auto").meters == {"GPU": gpu_memory}
    assert Resources(num_gpus="auto").fixed == {"CPU": 1.0}
    with pytest.raises(ConfigError, match="for the engine 'ray'"):
        simulate_with_flower(None, None, clients=1, resources=Resources(num_gpus="auto"))  # type: ignore
