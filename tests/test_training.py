from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_darex.config import TrainConfig, make_config
from fl_darex.optim import AdamR
from fl_darex.training.batches import shuffled
from fl_darex.training.evaluation import evaluate
from fl_darex.training.exchange import exchanged, to_numpy, write
from fl_darex.training.loop import learning_rate, steps_per_round, train
from fl_darex.training.optimizer import make_optimizer
from fl_darex.training.session import Session
from fl_darex.training.settings import settings_of, settings_record


def session(**settings: Any) -> Session:
    values = {"federation.clients": 5, "federation.rounds": 4, "train.local-steps": 3}
    return Session(make_config(values | {k.replace("__", "."): v for k, v in settings.items()}))


def trained(made: Session, partition: int, round_: int) -> dict[str, np.ndarray]:
    write(to_numpy(made.pretrained), made.tensors)
    train(made, partition, round_)
    return to_numpy(made.tensors)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_a_clients_result_does_not_depend_on_what_the_process_did_before() -> None:
    fresh, used = session(), session()
    trained(used, 3, 1)
    torch.manual_seed(99)
    torch.rand(5)
    assert same(trained(fresh, 1, 2), trained(used, 1, 2))


def test_partitions_rounds_and_seeds_each_give_another_result() -> None:
    made, other = session(), session(federation__seed=1)
    base = trained(made, 1, 2)
    for result in (trained(made, 2, 2), trained(made, 1, 3), trained(other, 1, 2)):
        assert not same(base, result)


def test_training_lowers_the_loss_on_evaluation_data() -> None:
    made = session(**{"train.local-steps": 30})
    examples = made.evaluation_examples()
    before = evaluate(made, examples, threads=1)
    train(made, 0, 1)
    after = evaluate(made, examples, threads=1)
    assert after["loss"] < before["loss"]
    assert after["accuracy"] > before["accuracy"]


def test_accumulation_over_small_batches_is_close_to_one_large_batch() -> None:
    small = session(**{"train.batch-size": 8, "train.grad-accumulation": 4})
    large = session(**{"train.batch-size": 32})
    one, other = trained(small, 0, 1), trained(large, 0, 1)
    start = to_numpy(large.pretrained)
    moved = max(np.abs(other[name] - start[name]).max() for name in start)
    # Adam's first steps are signs: round-off flips a few entries, not the whole.
    off = np.concatenate([np.abs(one[name] - other[name]).ravel() for name in start])
    assert np.quantile(off, 0.99) < 0.02 * moved


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_trains_float32_weights(precision: str) -> None:
    made = session(**{"train.precision": precision})
    result = trained(made, 0, 1)
    assert all(array.dtype == np.float32 for array in result.values())
    assert all(np.isfinite(array).all() for array in result.values())
    assert not same(result, to_numpy(made.pretrained))


@pytest.mark.parametrize(("precision", "has"), [("bf16", False), ("bf16", True), ("fp32", False)])
def test_a_precision_that_the_cpu_only_emulates_is_one_line(
    precision: str, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has)
    said = " ".join(session(**{"train.precision": precision}).notes)
    slow = "'bf16': this machine's CPU does not compute in it, and takes many times as long"
    assert (slow in said) == (precision == "bf16" and not has)


def test_threads_are_set_for_every_client() -> None:
    torch.set_num_threads(2)
    train(session(), 0, 1)
    assert torch.get_num_threads() == 1


def test_an_empty_anchor_choice_anchors_at_the_round_and_pretrained_at_the_first_weights() -> None:
    for anchor, expected in (("round", 1.0), ("pretrained", 0.0)):
        made = session(**{"train.anchor": anchor})
        with torch.no_grad():
            for tensor in made.tensors.values():
                tensor += 1.0
        optimizer = make_optimizer(made)
        assert isinstance(optimizer, AdamR)
        parameter = next(iter(made.tensors.values()))
        first = next(iter(made.pretrained.values()))
        found = optimizer._tracks[parameter].anchor - first
        assert torch.allclose(found, torch.full_like(found, expected), atol=1e-6)


def test_the_learning_rate_warms_up_and_falls_over_all_rounds() -> None:
    config = TrainConfig(warmup=0.2, schedule="linear")
    whole = [learning_rate(config, 0, 20)(step) for step in range(20)]
    by_round = [learning_rate(config, 5 * r, 20)(s) for r in range(4) for s in range(5)]
    assert whole == by_round
    assert whole[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert whole[4:] == sorted(whole[4:], reverse=True) and 0 < whole[-1] < 0.1
    cosine = learning_rate(TrainConfig(schedule="cosine"), 0, 10)
    assert cosine(0) == 1.0 and cosine(5) == pytest.approx(0.5)
    assert learning_rate(TrainConfig(), 0, 10)(9) == 1.0


def test_epochs_become_steps_and_batches_cover_every_example_once_a_pass() -> None:
    config = TrainConfig(local_steps=0, local_epochs=2, batch_size=8, grad_accumulation=2)
    assert steps_per_round(config, 34) == 2 * 3
    assert steps_per_round(config, 33) == 2 * 2  # the last one joins the batch before
    examples = [{"n": n} for n in range(10)]
    batches = shuffled(examples, 4, seed=1)
    first, second = ([next(batches) for _ in range(3)] for _ in range(2))
    for one_pass in (first, second):
        assert sorted(row["n"] for batch in one_pass for row in batch) == list(range(10))
    assert first != second


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 3)
        self.second = torch.nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.frozen = torch.nn.Linear(3, 3).requires_grad_(False)
        self.norm = torch.nn.BatchNorm1d(3)


def test_tied_tensors_travel_once_and_frozen_ones_never() -> None:
    names = set(exchanged(Tied()))
    assert {"first.weight", "first.bias", "second.bias"} <= names
    assert "second.weight" not in names
    assert not any(name.startswith("frozen") for name in names)
    assert {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"} <= names


def test_writing_needs_the_same_names_and_shapes_and_copies() -> None:
    tensors = {"a": torch.zeros(2, 3), "n": torch.tensor(0)}
    source = {"a": np.ones((2, 3), np.float32), "n": np.array(4)}
    for array in source.values():
        array.setflags(write=False)  # as Ray's object store gives them
    write(source, tensors)
    tensors["a"] += 1
    assert source["a"].max() == 1.0 and int(tensors["n"]) == 4
    with pytest.raises(ValueError, match=r"not this model's: \['b'\] differ"):
        write({**source, "b": source["a"]}, tensors)
    with pytest.raises(ValueError, match=r"'a' has shape \(3,\), not \(2, 3\)"):
        write({**source, "a": np.ones(3, np.float32)}, tensors)


def test_settings_reach_clients_in_the_message_and_the_nodes_dataset_wins(tmp_path: Path) -> None:
    from flwr.app import Context, Message, RecordDict

    from fl_darex.flower.private import adopt_run

    adopt_run("settings")
    config = make_config({"train.lr": 0.5, "compress.q": 0.25, "task.model": "m"})
    message = Message(RecordDict({"config": settings_record(config)}), 1, "train")
    context = Context(1, 1, {}, RecordDict(), {})
    assert settings_of(message, context) == config
    context.node_config["dataset-path"] = str(tmp_path)
    assert settings_of(message, context).task.dataset == str(tmp_path)
