"""Partitions: disjoint, complete, never empty, the same in every process."""

import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset
from flwr_datasets.partitioner import IidPartitioner
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_darex.config import FederationConfig
from fl_darex.errors import ConfigError
from fl_darex.tasks.partitions import Partitions, deal


def labelled(size, classes=10):
    return Dataset.from_dict({"label": [i % classes for i in range(size)]})


def rows(data, classes=10, **federation):
    partitions = Partitions(data, classes, FederationConfig(**federation))
    return [partitions.indices(i) for i in range(partitions.clients)]


def assert_a_partition(parts, size):
    assert all(parts)
    assert sorted(row for part in parts for row in part) == list(range(size))


@given(size=st.integers(1, 60), data=st.data())
@settings(max_examples=30, deadline=None)
def test_iid_partitions_are_disjoint_complete_and_even(size, data):
    clients = data.draw(st.integers(1, size))
    seed = data.draw(st.integers(0, 2**63 - 1))
    parts = rows(labelled(size), clients=clients, seed=seed)
    assert_a_partition(parts, size)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(size=st.integers(1, 60), data=st.data())
@settings(max_examples=20, deadline=None)
def test_iid_partitions_are_cut_as_the_library_cuts_them(size, data):
    clients = data.draw(st.integers(1, size))
    order = [row for part in rows(labelled(size), clients=clients) for row in part]
    library = IidPartitioner(clients)
    library.dataset = Dataset.from_dict({"row": order})
    cut = [library.load_partition(index)["row"][:] for index in range(clients)]
    assert cut == rows(labelled(size), clients=clients)


def test_a_client_with_iid_data_does_not_wait_for_the_librarys_plots():
    code = """
import sys
from fl_darex.config import RunConfig
from fl_darex.training.session import session
assert session(RunConfig()).examples(0)
found = sorted({"flwr_datasets", "matplotlib", "seaborn"}.intersection(sys.modules))
sys.exit(str(found) if found else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@given(alpha=st.floats(1e-3, 1e6), clients=st.integers(1, 20), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=30, deadline=None)
def test_dirichlet_partitions_are_disjoint_and_complete_or_refused(alpha, clients, seed):
    try:
        parts = rows(labelled(200), partition="dirichlet", alpha=alpha, clients=clients, seed=seed)
    except ConfigError as error:
        assert "federation.alpha" in str(error)
        return
    assert_a_partition(parts, 200)


@given(data=st.data(), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=30, deadline=None)
def test_pathological_partitions_cover_all_and_hold_their_number_of_classes(data, seed):
    classes = data.draw(st.integers(1, 8))
    each = data.draw(st.integers(1, classes))
    clients = data.draw(st.integers(-(-classes // each), 20))
    parts = rows(
        labelled(30 * classes, classes),
        classes,
        partition="pathological",
        classes_per_client=each,
        clients=clients,
        seed=seed,
    )
    assert_a_partition(parts, 30 * classes)
    assert all(len({row % classes for row in part}) == each for part in parts)


@given(
    classes=st.integers(1, 12), clients=st.integers(1, 30), data=st.data(), seed=st.integers(0, 99)
)
def test_hands_of_classes_hold_no_class_twice_and_deal_all_equally_often(
    classes, clients, data, seed
):
    each = data.draw(st.integers(1, classes))
    hands = deal(classes, clients, each, seed)
    assert [len(set(hand)) for hand in hands] == [each] * clients
    counts = np.bincount(np.concatenate(hands), minlength=classes)
    assert counts.max() - counts.min() <= 2


def test_natural_partitions_give_each_owner_its_rows_in_file_order(capfd):
    data = Dataset.from_dict({"label": [0, 1, 0, 1, 0], "user": ["b", "a", "b", "c", "a"]})
    parts = rows(data, 2, partition="natural", partition_column="user", clients=3)
    assert parts == [[1, 4], [0, 2], [3]]
    assert capfd.readouterr() == ("", "")


def test_a_smaller_alpha_skews_the_classes_more():
    def share_of_the_largest_class(alpha):
        parts = rows(labelled(5000), partition="dirichlet", alpha=alpha, clients=10)
        return np.mean([np.bincount(np.array(p) % 10).max() / len(p) for p in parts])

    assert share_of_the_largest_class(0.1) > 2 * share_of_the_largest_class(100.0)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "pathological"])
def test_another_seed_gives_other_partitions_and_the_same_seed_the_same(kind):
    first, again, other = (
        rows(labelled(300), partition=kind, clients=10, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "pathological"])
def test_another_process_gets_the_same_partitions(kind):
    code = (
        "from datasets import Dataset\n"
        "from fl_darex.config import FederationConfig\n"
        "from fl_darex.tasks.partitions import Partitions\n"
        "data = Dataset.from_dict({'label': [i % 10 for i in range(300)]})\n"
        f"f = FederationConfig(partition={kind!r}, clients=10, seed=7)\n"
        "print(Partitions(data, 10, f).indices(3))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(rows(labelled(300), partition=kind, clients=10, seed=7)[3])


def test_the_global_random_generators_are_not_touched():
    before = np.random.get_state()[1].copy()
    rows(labelled(300), partition="dirichlet", clients=10)
    assert (np.random.get_state()[1] == before).all()


REFUSED = [
    ({"clients": 301}, "federation.clients = 301 is more than the 300 training examples"),
    (
        {"partition": "dirichlet", "alpha": 1e-3, "clients": 100},
        "federation.alpha = 0.001 left some of the 100 clients without",
    ),
    (
        {"partition": "pathological", "classes_per_client": 11},
        "federation.classes-per-client = 11 is more than the 10 classes.*allowed: 1 to 10",
    ),
    (
        {"partition": "pathological", "classes_per_client": 2, "clients": 4},
        "leaves out some of the 10 classes; use at least 5 clients or 3 classes each",
    ),
    (
        {"partition": "pathological", "classes_per_client": 10, "clients": 31},
        "to 31 clients, but it has 30 training examples",
    ),
    (
        {"partition": "natural", "partition_column": "lable"},
        "'lable' is not a column.*columns: label; did you mean 'label'",
    ),
    (
        {"partition": "natural", "partition_column": "label", "clients": 9},
        "has 10 owners; set federation.clients = 10",
    ),
    (
        {"partition": "natural", "partition_column": "label", "clients": 11},
        "has 10 owners; set federation.clients = 10",
    ),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("federation", "message"), REFUSED)
def test_a_partition_that_cannot_be_made_is_refused(federation, message):
    with pytest.raises(ConfigError, match=message):
        Partitions(labelled(300), 10, FederationConfig(**federation))


@pytest.mark.parametrize("kind", ["dirichlet", "pathological"])
def test_a_partition_by_class_is_refused_for_a_regression(kind):
    data = Dataset.from_dict({"label": [i / 7 for i in range(30)]})
    with pytest.raises(ConfigError, match=f"'{kind}' needs classes.*use 'iid' or 'natural'"):
        Partitions(data, 0, FederationConfig(partition=kind))


@pytest.mark.parametrize("owner", [None, 1.5, [1]])
def test_an_owner_that_is_no_name_is_refused(owner):
    data = Dataset.from_dict({"label": [0], "user": [owner]})
    federation = FederationConfig(partition="natural", partition_column="user", clients=1)
    with pytest.raises(ConfigError, match="must hold a text or a whole number"):
        Partitions(data, 2, federation)


@pytest.mark.parametrize("index", [-1, 10])
def test_a_partition_that_does_not_exist_is_refused(index):
    with pytest.raises(ConfigError, match="partitions go from 0 to 9"):
        Partitions(labelled(300), 10, FederationConfig()).indices(index)
