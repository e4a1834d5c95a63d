"""LoRA's adapters: same bits everywhere, their product as a delta, and clear refusals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from texts import BERT
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from fl_darex.config import make_config
from fl_darex.errors import ConfigError
from fl_darex.lora import Lora, add_lora, find_targets, merge, product_delta, products, trained_name
from fl_darex.pruning import dare
from fl_darex.rescaling import rescale
from fl_darex.training.exchange import Exchange, ProductExchange
from fl_darex.training.session import Session

FRESH = ("classifier.bias", "classifier.weight")
LORA = Lora(rank=2, alpha=3.0, seed=5)


def bert() -> BertForSequenceClassification:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForSequenceClassification(BertConfig(**BERT)).eval()


def gpt2() -> GPT2LMHeadModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2)
        )


def moved(model: nn.Module, seed: int = 0) -> PeftModel:
    """A model with adapters that have been trained: B is not zero any more."""
    made = add_lora(model, LORA, FRESH if hasattr(model, "classifier") else ()).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in (p for p in made.parameters() if p.requires_grad):
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return made


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_adapters_are_drawn_from_their_seed_alone():
    before = torch.random.get_rng_state()
    one = trained(add_lora(bert(), LORA, FRESH))
    torch.manual_seed(77)
    two = trained(add_lora(bert(), LORA, FRESH))
    other = trained(add_lora(bert(), Lora(rank=2, seed=6), FRESH))
    assert all(torch.equal(p, two[name]) for name, p in one.items())
    first = next(name for name in one if "lora_A" in name)
    assert not torch.equal(one[first], other[first])
    torch.random.set_rng_state(before)
    add_lora(bert(), LORA, FRESH)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_only_adapters_and_fresh_modules_are_trained_and_the_start_changes_nothing():
    plain, made = bert(), add_lora(bert(), LORA, FRESH).eval()
    kinds = {tuple(name.split(".")[-4:-2]) for name in trained(made) if "lora" in name}
    assert kinds == {(part, f"lora_{x}") for part in ("query", "value") for x in "AB"}
    assert set(map(trained_name, FRESH)) <= set(trained(made))
    assert len(trained(made)) == 2 * 2 + 2
    inputs = {"input_ids": torch.arange(8).view(2, 4)}
    assert torch.equal(plain(**inputs).logits, made(**inputs).logits)


@pytest.mark.parametrize("make", [bert, gpt2])  # GPT-2 keeps its weights transposed
def test_the_product_delta_is_the_difference_of_the_merged_model(make):
    base, model = make().state_dict(), moved(make())
    merged, delta = merge(model).state_dict(), product_delta(model)
    names = {spec.name for spec in delta.layout}
    assert names and names < set(base)
    for name, before in base.items():
        change = (merged[name] - before).reshape(-1).numpy()
        if name in names:
            bound = 2**-23 * (1 + before.abs().max().item())
            np.testing.assert_allclose(delta.whole(name), change, rtol=0, atol=bound)
            assert np.abs(change).max() > 1e-3
        elif name not in FRESH:
            assert not change.any()


def test_the_product_is_scaling_times_b_times_a_by_hand():
    model = moved(bert())
    name = "bert.encoder.layer.0.attention.self.query.weight"
    state = model.state_dict()
    stem = f"base_model.model.{name.removesuffix('.weight')}"
    a, b = (state[f"{stem}.lora_{letter}.default.weight"] for letter in "AB")
    assert torch.equal(products(model)[name], b @ a * (3.0 / 2))


def test_merging_leaves_the_model_with_adapters_as_it_is():
    model = moved(bert())
    before = {name: t.clone() for name, t in model.state_dict().items()}
    merged = merge(model)
    inputs = {"input_ids": torch.arange(8).view(2, 4)}
    torch.testing.assert_close(merged(**inputs).logits, model(**inputs).logits)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not any("lora" in name for name in merged.state_dict())


@pytest.mark.parametrize("p", [0.9, 0.99])
def test_dare_on_the_product_is_unbiased(p):
    delta = product_delta(moved(bert()))
    full = np.concatenate([delta.whole(spec.name) for spec in delta.layout])
    draws, total = 400, np.zeros(full.size)
    for seed in range(draws):
        kept = dare(delta, p, seed=seed).rescaled()
        total += np.concatenate([kept[spec.name].reshape(-1) for spec in delta.layout])
    error = np.abs(full) * math.sqrt(p / (1 - p) / draws)
    distance = (total / draws - full) / error
    # 512 entries, 5 sigma for a normal variable; at p = .99 an entry survives about 4 times, so
    # its tail is Poisson's: 6 sigma is 16 survivals, once in 4e5 entries.
    assert np.abs(distance).max() < 6
    # Chi-square of independent entries with the binomial's own kurtosis.
    spread = math.sqrt((2 + (1 - 6 * p * (1 - p)) / (p * (1 - p) * draws)) / full.size)
    assert abs((distance**2).mean() - 1) < 5 * spread


def test_pruned_factors_scale_a_kept_product_entry_by_q_squared():
    model = moved(bert())
    arrays = {n: t.detach() for n, t in trained(model).items() if "query.lora" in n}
    kept = dare(arrays, 0.5, seed=3).rescaled()
    a, b = (next(v for n, v in kept.items() if f"lora_{letter}" in n) for letter in "AB")
    full_a, full_b = (
        next(t.numpy() for n, t in arrays.items() if f"lora_{letter}" in n) for letter in "AB"
    )
    one_path = (b[:, :1] != 0) & (a[:1] != 0)
    np.testing.assert_allclose(
        (b[:, :1] @ a[:1])[one_path], 4 * (full_b[:, :1] @ full_a[:1])[one_path], rtol=1e-5
    )
    assert one_path.any() and not one_path.all()


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 1), st.integers(0, 2**31), st.sampled_from([0.0, 0.5, 0.9]))
def test_the_product_goes_through_every_rescaling(q, seed, p):
    delta = product_delta(MOVED)
    survivors = dare(delta, p, seed=seed)
    plain, scaled = (rescale(survivors, x).rescaled() for x in (1.0, q))
    for name, values in plain.items():
        np.testing.assert_allclose(scaled[name], values / np.float32(q), rtol=1e-6)


MOVED = moved(bert())


def test_a_product_exchange_reads_the_merged_weights_and_starts_anew_when_written():
    model = add_lora(bert(), LORA, FRESH)
    exchange, base = ProductExchange(model), bert().state_dict()
    start = {name: p.detach().clone() for name, p in trained(model).items()}
    queries = [name for name in exchange.tensors if name.endswith("query.weight")]
    assert np.array_equal(exchange.read()[queries[0]], base[queries[0]].numpy())
    with torch.no_grad():
        for p in trained(model).values():
            p.add_(0.25)
    tuned = exchange.read()
    assert np.array_equal(
        tuned[queries[0]], (base[queries[0]] + products(model)[queries[0]]).numpy()
    )
    exchange.write(tuned)
    assert all(torch.equal(p, start[n]) for n, p in trained(model).items() if "lora" in n)
    after = exchange.read()
    assert all(np.array_equal(after[name], tuned[name]) for name in tuned)
    assert not set(exchange.tensors) & {n for n in trained(model) if "lora" in n}


def test_factors_are_exchanged_and_base_weights_are_not():
    model = add_lora(bert(), LORA, FRESH)
    assert set(Exchange(model).tensors) == set(trained(model))


def digits(**values: object) -> dict[str, object]:
    return {"train.lora-rank": 2} | {
        k.replace("__", ".").replace("_", "-"): v for k, v in values.items()
    }


def test_digits_train_with_adapters_too():
    session = Session(make_config(digits(train__lora_targets="all-linear")))
    assert session.dense == () and len(session.trained) > 10
    assert all("lora" in name for name in session.trained)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train__lora_rank": 99}, r"lora-rank = 99 is more than '.*' has, which is .* to \d+$"),
        ({"train__lora_targets": "kwery"}, r"names 'kwery', .* it has .*'"),
        ({"train__lora_targets": "q_proj,"}, "names '', which is no linear module"),
        ({"train__lora_targets": "classifer"}, "did you mean 'classifier'"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_with_what_does(values, message):
    with pytest.raises(ConfigError, match=message):
        Session(make_config(digits(**values)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train.lora-rank": -1}, "train.lora-rank = -1 .* from 0 to 65536"),
        ({"train.lora-rank": 2, "train.lora-dropout": 1.0}, "lora-dropout = 1.0 .* below 1"),
        ({"train.lora-alpha": 0.0}, "lora-alpha = 0.0 .* above 0"),
        ({"compress.lora": "products"}, "allowed: 'factors', 'product'; did you mean 'product'"),
        ({"compress.lora": "product"}, "train.lora-rank = 0 means none"),
        (
            {"compress.lora": "product", "train.lora-rank": 1, "train.anchor": "pretrained"},
            "does not go with compress.lora = 'product'",
        ),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        make_config(values)


def test_auto_takes_query_and_value_where_peft_knows_no_default():
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_lin, self.k_lin, self.v_lin = (nn.Linear(4, 4) for _ in range(3))

    assert find_targets(Body(), LORA) == ["q_lin", "v_lin"]
    with pytest.raises(ConfigError, match=r"finds nothing .* it has '0', '1'"):
        find_targets(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), LORA)
    assert "classifier" not in find_targets(
        bert(), Lora(rank=1, targets="all-linear"), ["classifier"]
    )


def test_a_model_without_adapters_has_no_product():
    with pytest.raises(ValueError, match="no LoRA layers"):
        product_delta(bert())
