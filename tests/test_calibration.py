"""What a client measures on its own examples: activations, and q by each rule of the paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fl_darex.config import make_config
from fl_darex.delta import Delta
from fl_darex.errors import ConfigError
from fl_darex.masks import ONE, keep_threshold
from fl_darex.pruning import dare
from fl_darex.rescaling.rules import LABELLED, PER_TENSOR, RULES, SERVER_RULES
from fl_darex.training.calibration import batches, choose_q, input_norms
from fl_darex.training.loop import train
from fl_darex.training.session import Examples, Session

P = 0.99


def session(**settings: object) -> Session:
    values = {"federation.clients": 4, "train.local-steps": 40, "compress.p": P}
    return Session(make_config(values | settings))


def state(one: Session) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in one.tensors.items()}


def images(examples: Examples) -> list[tuple[float, ...]]:
    return [tuple(np.ravel(example["pixel_values"]).tolist()) for example in examples]


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_finds_q_in_its_range_and_leaves_the_model_as_it_was(rule: str) -> None:
    one = session(**{"compress.q": rule})
    before = {name: array.copy() for name, array in one.base.items()}
    train(one, 1, 1)
    trained = state(one)
    survivors = dare(Delta(one.read(), before), P, seed=3, slot=1)
    q = np.atleast_1d(choose_q(one, 1, survivors, before, rule))
    assert state(one) == trained
    assert q.size == (len(survivors.layout.pruned) if rule in PER_TENSOR else 1)
    assert (np.float32(q) >= np.float32(keep_threshold(P) / ONE)).all() and (q <= 1).all()
    if rule not in LABELLED:
        # Long local training makes deltas large: dividing by 1-p alone is too much.
        assert q.mean() > 1.05 * (1 - P)


def test_the_change_of_outputs_is_smaller_at_the_q_that_is_found() -> None:
    one = session()
    before = {name: array.copy() for name, array in one.base.items()}
    train(one, 1, 1)
    trained = one.read()
    survivors = dare(Delta(trained, before), P, seed=3, slot=1)
    q = choose_q(one, 1, survivors, before, "q-e")
    batch = list(batches(one, one.calibration(1)))

    @torch.no_grad()
    def change(divisor: float) -> float:
        full = {
            name: before[name] + survivors.rescaled()[name] * survivors.q / divisor
            for name in before
        }
        one.model.train(False)
        one.write(trained)
        reference = [one.model(**inputs).logits for inputs in batch]
        one.write({name: array.astype(before[name].dtype) for name, array in full.items()})
        found = [one.model(**inputs).logits for inputs in batch]
        pairs = zip(found, reference, strict=True)
        return float(torch.cat([(a - b).abs().flatten() for a, b in pairs]).mean())

    assert change(q) < change(1 - P)
    assert change(q) < change(1.0)


def test_norms_are_those_of_the_trained_models_inputs_and_of_no_other_tensor() -> None:
    one = session()
    norms = input_norms(one, 2)
    weights = {name for name, tensor in one.tensors.items() if tensor.ndim == 2}
    assert norms and set(norms) <= weights
    assert all(norms[name].shape == one.tensors[name].shape[1:] for name in norms)
    train(one, 2, 1)
    again = input_norms(one, 2)
    assert any(not np.array_equal(norms[name], again[name]) for name in norms)


@pytest.mark.parametrize("rule", ["q-v", "layer-q-v", "q-e", "curvature", "dare"])
def test_examples_that_q_is_validated_on_are_not_trained_on(rule: str) -> None:
    one = session(**{"compress.q": rule, "compress.calibration-examples": 50})
    trained, seen = images(one.examples(0)), images(one.calibration(0))
    whole = images(list(one.task.partition(0)))
    assert len(seen) == 50
    if rule in LABELLED:
        assert not set(seen) & set(trained) and sorted(seen + trained) == sorted(whole)
    else:
        assert set(seen) <= set(trained) and trained == whole


@pytest.mark.parametrize("rule", SERVER_RULES)
def test_the_servers_validation_examples_are_nobody_elses(rule: str) -> None:
    one = session(**{"compress.q": rule, "server.validation-examples": 100})
    kept = images(one.validation_examples)
    theirs = [image for i in range(4) for image in images(one.examples(i))]
    assert len(kept) == 100
    assert not set(kept) & {*theirs, *images(one.evaluation_examples())}


def test_more_calibration_examples_than_a_client_has_are_refused() -> None:
    one = session(**{"compress.q": "q-v", "compress.calibration-examples": 5000})
    with pytest.raises(ConfigError, match=r"calibration-examples = 5000 leaves client 0 nothing"):
        one.examples(0)
    with pytest.raises(ConfigError, match=r"server.validation-examples = 9000 leaves nothing"):
        session(**{"compress.q": "server-validation", "server.validation-examples": 9000})
