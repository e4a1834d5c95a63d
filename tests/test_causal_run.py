"""Training causal language models: one client in this process, and federations from end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lms import save_llama, save_qwen2, save_sums
from test_cli import fl_darex, weights
from texts import write
from transformers import AutoModelForCausalLM, AutoTokenizer

from fl_darex.clients.client_app import app as client_app
from fl_darex.config import load_config, make_config
from fl_darex.errors import ConfigError
from fl_darex.observers.run_folder import RunFolder
from fl_darex.simulation import InProcessGrid
from fl_darex.strategies.server_app import serve
from fl_darex.training.calibration import input_norms
from fl_darex.training.evaluation import evaluate, mean_loss
from fl_darex.training.exchange import to_numpy
from fl_darex.training.exchange import write as write_weights
from fl_darex.training.loop import train
from fl_darex.training.session import Session, checkpoint_activations

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("causal")
    save_llama(folder / "llama")
    save_qwen2(folder / "qwen2")
    save_sums(folder / "sums", train=24, evaluation=6)
    return folder


@pytest.fixture
def make(root: Path) -> Callable[..., Session]:
    def make(model: str = "llama", **given: Any) -> Session:
        keys = {
            "task.name": "causal-lm",
            "task.model": str(root / model),
            "task.dataset": str(root / "sums"),
            "federation.clients": 2,
            "train.local-steps": 2,
            "train.batch-size": 4,
        }
        dotted = {k.replace("__", ".").replace("_", "-"): v for k, v in given.items()}
        return Session(make_config(keys | dotted))

    return make


def trained(session: Session) -> tuple[float, Arrays]:
    write_weights(to_numpy(session.pretrained), session.tensors)
    return train(session, 0, 1).loss, to_numpy(session.tensors)


def off(session: Session, one: Arrays, other: Arrays) -> float:
    """How far apart two results are, relative to how far training went: 99 % of entries."""
    start = to_numpy(session.pretrained)
    moved = max(np.abs(one[name] - start[name]).max() for name in start)
    apart = np.concatenate([np.abs(one[name] - other[name]).ravel() for name in start])
    return float(np.quantile(apart, 0.99) / moved)


# --- one client -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["llama", "qwen2"])
def test_gradient_checkpointing_changes_memory_alone(make: Any, model: str) -> None:
    plain, saving = make(model), make(model, train__gradient_checkpointing=True)
    (loss, one), (other_loss, other) = trained(plain), trained(saving)
    assert other_loss == pytest.approx(loss, rel=1e-6)
    assert off(plain, one, other) < 0.01
    kept = {False: 0, True: 0}
    for session in (plain, saving):
        batch = session.task.collate(session.examples(0)[:4])
        session.model.train()

        def count(tensor: torch.Tensor, key: bool = session is saving) -> torch.Tensor:
            kept[key] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            session.model(**batch)
    assert kept[True] < kept[False] / 2


def test_a_model_that_cannot_save_memory_is_refused(make: Any, monkeypatch: Any) -> None:
    model = make().model
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(ConfigError, match=r"train.gradient-checkpointing = true, but Llama.*false"):
        checkpoint_activations(model)


@pytest.mark.parametrize("more", [False, True], ids=["alone", "packed and checkpointed"])
def test_bf16_trains_float32_weights_to_nearly_the_same_loss(make: Any, more: bool) -> None:
    plain = make()
    given = {"train__gradient_checkpointing": more, "task__packing": more}
    half = make(train__precision="bf16", **given)
    (loss, _), (other_loss, other) = trained(plain), trained(half)
    # bfloat16 keeps 8 bits: a relative error of 2**-8 in each activation.
    assert other_loss == pytest.approx(loss, rel=0.02)
    assert other_loss != loss
    assert all(array.dtype == np.float32 for array in other.values())


def test_tokens_count_equally_however_a_step_is_cut_into_batches(make: Any, root: Path) -> None:
    # Answers of very different length: a mean of means would weigh their tokens differently.
    rows = [{"prompt": f"{n}:", "completion": "1 " * (40 if n % 2 else 1)} for n in range(8)]
    write(root / "uneven" / "train.jsonl", rows)
    given = {"task__dataset": str(root / "uneven"), "task__holdout": 4, "federation__clients": 1}
    whole = make(**given, train__local_steps=1)
    cut = make(**given, train__local_steps=1, train__batch_size=1, train__grad_accumulation=4)
    (loss, one), (other_loss, other) = trained(whole), trained(cut)
    assert other_loss == pytest.approx(loss, rel=1e-5)
    assert off(whole, one, other) < 0.01
    losses, terms = [], []
    write_weights(to_numpy(whole.pretrained), whole.tensors)
    for row in whole.examples(0):
        batch = whole.task.collate([row])
        losses.append(float(whole.model(**batch).loss.detach()))
        terms.append(whole.task.loss_terms(batch))
    assert loss == pytest.approx(np.average(losses, weights=terms), rel=1e-5)
    assert abs(loss - np.mean(losses)) > 0.01


def test_packing_trains_as_padding_does(make: Any) -> None:
    plain, packed = make(), make(task__packing=True)
    (loss, one), (other_loss, other) = trained(plain), trained(packed)
    assert other_loss == pytest.approx(loss, rel=1e-5)
    assert off(plain, one, other) < 0.01


def test_a_model_that_has_learned_the_answers_matches_them_exactly(make: Any, root: Path) -> None:
    rows = [{"question": q, "answer": f"It is #### {a}"} for q, a in (("one", 1), ("two", 22))]
    write(root / "two" / "train.jsonl", rows)
    write(root / "two" / "test.jsonl", rows)
    session = make(
        task__dataset=str(root / "two"),
        task__metric="exact-match",
        task__max_new_tokens=24,
        federation__clients=1,
        train__local_steps=40,
        train__lr=1e-2,
        train__delta_decay=0.0,
        train__eval_batch_size=1,
    )
    before = evaluate(session, session.evaluation_examples(), 1)
    train(session, 0, 1)
    after = evaluate(session, session.evaluation_examples(), 1)
    assert (before["exact-match"], after["exact-match"]) == (0.0, 1.0)
    assert after["token-accuracy"] == 1.0
    assert after["perplexity"] < 2 < before["perplexity"]
    assert after["perplexity"] == pytest.approx(np.exp(after["loss"]))
    said = session.task.generate(session.model, session.evaluation_examples())  # type: ignore
    assert said == ["It is #### 1", "It is #### 22"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_alone_is_that_of_an_evaluation(make: Any, precision: str) -> None:
    given = {"task__packing": True, "train__precision": precision, "train__eval_batch_size": 4}
    session = make(**given)
    examples = session.evaluation_examples()
    found = mean_loss(session, examples, 1)
    assert found == pytest.approx(evaluate(session, examples, 1)["loss"], rel=1e-5)


def test_calibration_reads_an_example_a_row(make: Any) -> None:
    plain, packed = make(), make(task__packing=True)
    norms = [input_norms(session, 0) for session in (plain, packed)]
    assert list(norms[0]) == list(norms[1]) != []
    assert all(np.array_equal(norms[0][name], norms[1][name]) for name in norms[0])


def test_examples_by_which_q_is_chosen_are_neither_trained_on_nor_evaluated(make: Any) -> None:
    given = {"compress__q": "server-validation", "server__validation_examples": 5}
    session = make(**given, task__metric="exact-match", task__holdout=4, task__test=True)
    parts = [
        session.task.train,
        session.task.evaluation,
        session.task.validation,
        session.task.test,
    ]
    asked = [row["question"] for part in parts for row in part]
    assert [len(part) for part in parts] == [15, 4, 5, 6]
    assert len(set(asked)) == 30


def test_the_size_of_evaluation_batches_does_not_change_results(make: Any) -> None:
    given = {"task__metric": "exact-match", "task__max_new_tokens": 8}
    one, other = make(**given, train__eval_batch_size=1), make(**given, train__eval_batch_size=5)
    scores = [evaluate(session, session.evaluation_examples(), 1) for session in (one, other)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_tied_embeddings_are_exchanged_once_and_stay_tied(make: Any, tmp_path: Path) -> None:
    session = make("qwen2")
    names = set(session.tensors)
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names
    assert sum(tensor.numel() for tensor in session.tensors.values()) == sum(
        parameter.numel() for parameter in session.model.parameters()
    )
    trained(session)
    assert session.model.lm_head.weight is session.model.model.embed_tokens.weight
    session.save_model(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert torch.equal(again.lm_head.weight, session.model.lm_head.weight)
    assert set(make("llama").tensors) > {"lm_head.weight", "model.embed_tokens.weight"}


# --- federations ----------------------------------------------------------------------------------

CONFIG = """
[task]
name = "causal-lm"
model = "llama"
dataset = "sums"
metric = "exact-match"
max-new-tokens = 8
holdout = 4
test = true

[federation]
clients = 2
rounds = 2

[train]
local-steps = 2
batch-size = 4
delta-decay = 0.01

[compress]
p = 0.9
"""


@pytest.fixture(scope="module")
def finished(root: Path) -> Path:
    (root / "lm.toml").write_text(CONFIG)
    done = fl_darex("run", "lm.toml", "--out", "out", cwd=root)
    assert done.returncode == 0, done.stderr
    assert "exact-match, final, on test" in done.stdout
    return root / "out"


def test_a_federation_trains_a_language_model(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["metric_name"] == "exact-match"
    assert (summary["failures"], summary["rounds"]) == (0, 2)
    assert summary["up_ratio"] > 10
    rows = [json.loads(line) for line in (finished / "rounds.jsonl").read_text().splitlines()]
    assert rows[0]["test_metric"] is None
    assert rows[1]["test_metric"] == summary["test_metric"] is not None
    assert rows[1]["loss"] < rows[0]["loss"]


def test_the_saved_model_and_tokenizer_load_and_give_the_final_loss(finished: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished / "model")
    found = AutoTokenizer.from_pretrained(finished / "model")
    assert found.decode(found("Ann has 3 apples.")["input_ids"]) == "<s>Ann has 3 apples."
    session = Session(load_config(finished / "config.toml"))
    session.model.load_state_dict(model.state_dict())
    last = json.loads((finished / "rounds.jsonl").read_text().splitlines()[-1])
    scores = evaluate(session, session.evaluation_examples(), 1)
    assert scores["loss"] == pytest.approx(last["loss"], rel=1e-5)


@pytest.mark.slow
def test_flowers_engine_gives_the_same_bits(finished: Path) -> None:
    done = fl_darex("run", "lm.toml", "--out", "same", "--engine", "flower", cwd=finished.parent)
    assert done.returncode == 0, done.stderr
    assert weights(finished.parent / "same") == weights(finished)


def test_central_fine_tuning_is_a_federation_of_one_client(make: Any, tmp_path: Path) -> None:
    central = {"federation__clients": 1, "federation__rounds": 1, "compress__method": "dense"}
    config = make(**central, compress__downlink="dense").config
    folder = RunFolder(tmp_path / "central")
    serve(InProcessGrid(client_app, clients=1), config, [folder])
    alone = Session(config)
    train(alone, 0, 1)
    found = AutoModelForCausalLM.from_pretrained(folder.path / "model").state_dict()
    for name, array in to_numpy(alone.tensors).items():
        np.testing.assert_array_equal(found[name].numpy(), array)
    summary = folder.summary()
    assert (summary["metric_name"], summary["test_metric"]) == ("token-accuracy", None)
    assert (
        summary["final_metric"] == evaluate(alone, alone.evaluation_examples(), 1)["token-accuracy"]
    )
