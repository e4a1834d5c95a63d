"""Adapters of every kind in a model: what is trained, equal bits everywhere, merged and saved."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from texts import BERT
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)

from fl_darex.adapters import ADAPTERS, Adapter, Wanted
from fl_darex.adapters.square import principal
from fl_darex.adapters.targets import norm_layers
from fl_darex.config import make_config
from fl_darex.errors import ConfigError
from fl_darex.lora import Lora, add_lora
from fl_darex.training.exchange import Exchange
from fl_darex.training.session import Session

FRESH = ("classifier.weight", "classifier.bias")
INPUTS = {"input_ids": torch.arange(8).view(2, 4)}
SMALL = {"unilora": 64, "vera": 8, "fourierft": 20}  # of a model of width 16
PEFT = sorted(set(ADAPTERS.first) - {"bitfit"})
MINILM = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 50,
}


def bert(**settings: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForSequenceClassification(
            BertConfig(**(BERT | {"initializer_range": 0.3} | settings))
        ).eval()


def gpt2(kind: Any = GPT2ForSequenceClassification) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes: dict[str, Any] = {
            "n_embd": 16,
            "n_layer": 1,
            "n_head": 2,
            "n_positions": 16,
            "vocab_size": 20,
        }
        sizes["initializer_range"] = 0.3
        none = {f"{part}_pdrop": 0.0 for part in ("attn", "embd", "resid")}
        return kind(GPT2Config(**sizes, **none, pad_token_id=0)).eval()


def wanted(name: str, **settings: Any) -> Wanted:
    rank = 2 if "rank" in ADAPTERS[name].reads else 0
    return Wanted(**({"rank": rank, "size": SMALL.get(name, 0), "seed": 5} | settings))


def adapted(name: str, model: Any = None, fresh: tuple[str, ...] = FRESH, **settings: Any) -> Any:
    made = bert() if model is None else model
    return ADAPTERS[name].put_into(made, wanted(name, **settings), fresh).eval()


def moved(name: str, model: Any = None, fresh: tuple[str, ...] = FRESH) -> Any:
    """A model whose adapter has been trained: every trained number is another one."""
    made = adapted(name, model, fresh)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in (p for p in made.parameters() if p.requires_grad):
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return made


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture(params=list(ADAPTERS.first))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- how much is trained --------------------------------------------------------------------------

COUNTS: list[tuple[str, dict[str, Any], int]] = [
    ("lora", {}, 73_728),
    ("lora", {"rank": 1}, 9_216),
    ("ffa-lora", {}, 36_864),
    ("rolora", {}, 73_728),
    ("lora-xs", {}, 12 * 16 * 16),
    ("unilora", {"size": 23_040}, 23_040),
    ("unilora", {"size": 5_000}, 5_000),
    ("unilora", {}, 6_144),  # a sixth of 12 * 4 * (384 + 384)
    ("vera", {}, 7_680),
    ("fourierft", {}, 2_400),
    ("ia3", {}, 16_128),
    ("layernorms", {}, 9_984),
    ("bitfit", {}, 25_728 + 384),  # of 6 layers and the embeddings' norm, and the pooler's
]


@pytest.mark.parametrize(("name", "settings", "count"), COUNTS)
def test_a_model_of_minilms_shape_exchanges_as_many_numbers_as_the_papers_say(
    name: str, settings: dict[str, Any], count: int
) -> None:
    made = ADAPTERS[name].put_into(bert(**MINILM), Wanted(**settings), FRESH)
    head = {ADAPTERS[name].trained_name(fresh) for fresh in FRESH}
    tensors = Exchange(made).tensors
    assert head < set(tensors)
    assert sum(t.numel() for key, t in tensors.items() if key not in head) == count


def test_all_that_is_exchanged_is_trained_and_fresh_tensors_are_among_it(name: str) -> None:
    exchange = Exchange(adapted(name))
    assert set(exchange.tensors) == set(exchange.trained)
    assert {ADAPTERS[name].trained_name(fresh) for fresh in FRESH} < set(exchange.trained)
    assert not any(word in key for key in exchange.tensors for word in ("indices", "vera_A"))


def test_every_row_says_where_it_comes_from(name: str) -> None:
    row = ADAPTERS[name]
    assert row.paper.count("https://arxiv.org/abs/") == 1 and row.name == name
    assert ("rank" in row.reads) == (row.rank > 0)


# --- the same bits everywhere ---------------------------------------------------------------------

NUMBERS = """
import hashlib, sys, torch
threads, here = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(threads)
torch.manual_seed(threads)
sys.path.insert(0, here)
from test_adapters import ADAPTERS, INPUTS, MINILM, adapted, bert, moved
for name in ADAPTERS:
    digest = hashlib.sha256()
    wide = adapted(name, bert(**MINILM)) if name == "lora-xs" else adapted(name)
    for key, tensor in sorted([*wide.named_parameters(), *wide.named_buffers()]):
        digest.update(key.encode() + tensor.detach().contiguous().numpy().tobytes())
    torch.set_num_threads(1)  # FourierFT's places are neither: the model has to run
    digest.update(moved(name)(**INPUTS).logits.detach().numpy().tobytes())
    torch.set_num_threads(threads)
    print(name, digest.hexdigest())
"""


@pytest.mark.slow
def test_processes_of_any_number_of_threads_have_the_same_numbers_trained_and_frozen() -> None:
    here = str(Path(__file__).parent)
    one, two = (
        subprocess.run(
            [sys.executable, "-c", NUMBERS, threads, here],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for threads in ("1", "2")
    )
    assert one == two and len(one) == len(ADAPTERS.first)


def test_what_is_random_comes_from_the_seed_and_moves_no_global_generator(name: str) -> None:
    torch.manual_seed(77)
    np.random.seed(3)
    before, numpys = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    one = adapted(name)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpys).all()  # type: ignore[index]
    torch.manual_seed(78)
    two = adapted(name)
    assert all(torch.equal(p, q) for p, q in zip(*map(all_of, (one, two)), strict=True))


def all_of(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


@pytest.mark.parametrize("name", ["ffa-lora", "unilora", "vera", "fourierft"])
def test_another_seed_is_another_draw(name: str) -> None:
    one, other = moved(name), adapted(name, seed=6)
    other.load_state_dict({k: v for k, v in one.state_dict().items() if k in trained(one)}, False)
    assert not torch.equal(one(**INPUTS).logits, other(**INPUTS).logits)


def test_at_the_start_the_model_computes_what_the_base_does(name: str) -> None:
    found, plain = adapted(name)(**INPUTS).logits, bert()(**INPUTS).logits
    # Uni-LoRA has no zeros to start from: its vector would have no gradient.
    assert torch.equal(found, plain) == (name != "unilora")
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-2)


def test_row_lora_has_the_bits_of_add_lora() -> None:
    one = add_lora(bert(), Lora(rank=2, alpha=3.0, seed=5), FRESH)
    two = adapted("lora", alpha=3.0)
    assert all(torch.equal(p, q) for p, q in zip(*map(all_of, (one, two)), strict=True))
    assert list(trained(one)) == list(trained(two))


# --- merged and saved -----------------------------------------------------------------------------

MODELS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "bert": (bert, FRESH),
    "gpt2": (gpt2, ("score.weight",)),  # its weights are kept transposed
    "pre-trained head": (bert, ()),
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_merged_model_computes_what_the_adapted_one_does_and_is_the_bases_class(
    name: str, kind: str, tmp_path: Path
) -> None:
    make, fresh = MODELS[kind]
    model = moved(name, make(), fresh)
    expected = model(**INPUTS).logits
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    merged = ADAPTERS[name].merged(model)
    assert list(merged.state_dict()) == list(make().state_dict())
    merged.save_pretrained(tmp_path)
    loaded = type(make()).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(**INPUTS).logits, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, make()(**INPUTS).logits, atol=1e-3)
    assert torch.equal(model(**INPUTS).logits, expected)
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", PEFT)
def test_the_adapter_alone_loads_onto_the_base_with_peft(
    name: str, kind: str, tmp_path: Path
) -> None:
    from peft import PeftModel

    make, fresh = MODELS[kind]
    model = moved(name, make(), fresh)
    ADAPTERS[name].save(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # VeRA: that its projections are drawn again from the seed
        loaded = PeftModel.from_pretrained(make(), tmp_path).eval()
    torch.testing.assert_close(loaded(**INPUTS).logits, model(**INPUTS).logits)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 40_000


def test_bitfit_has_no_file_of_its_own(tmp_path: Path) -> None:
    ADAPTERS["bitfit"].save(moved("bitfit"), tmp_path)
    assert not list(tmp_path.iterdir())


# --- sums -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["ffa-lora", "lora-xs", "fourierft", "ia3", "layernorms", "bitfit"]
)
def test_the_mean_of_what_clients_send_is_the_mean_of_their_weights(name: str) -> None:
    one, two = moved(name, fresh=()), adapted(name, fresh=())
    with torch.no_grad():
        for p in trained(two).values():
            p.sub_(0.3)
    both = copy.deepcopy(one)
    with torch.no_grad():
        for p, q in zip(trained(both).values(), trained(two).values(), strict=True):
            p.add_(q).div_(2)
    states = [ADAPTERS[name].merged(model).state_dict() for model in (one, two, both)]
    for first, second, mean in zip(*(state.values() for state in states), strict=True):
        torch.testing.assert_close((first + second) / 2, mean, rtol=1e-4, atol=1e-6)


def test_lora_xs_trains_a_square_between_the_largest_singular_vectors() -> None:
    weight = bert().bert.encoder.layer[0].attention.self.query.weight.detach()
    left, right = principal(weight, 3)
    values = torch.linalg.svdvals(weight.double())[:3].float()
    torch.testing.assert_close(right @ right.T, torch.eye(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(left.norm(dim=0), values)
    torch.testing.assert_close(weight @ right.T, left, rtol=0, atol=1e-6)
    assert (left.gather(0, left.abs().argmax(0, keepdim=True)) > 0).all()
    model = moved("lora-xs")
    stem = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_B.default.square.weight"
    square = model.state_dict()[stem]
    merged = ADAPTERS["lora-xs"].merged(model).bert.encoder.layer[0].attention.self.query.weight
    left, right = principal(weight, 2)
    torch.testing.assert_close(
        merged.detach() - weight, 16 / 2 * left @ square @ right, atol=1e-6, rtol=1e-4
    )


def test_rolora_trains_b_in_odd_rounds_and_a_in_even_ones() -> None:
    row = ADAPTERS["rolora"]
    names = [f"q.lora_{letter}.default.weight" for letter in "AB"]
    assert [[row.takes_turn(name, r) for name in names] for r in (1, 2, 3)] == [
        *([False, True], [True, False], [False, True])
    ]
    assert all(row.takes_turn("classifier.weight", r) for r in (1, 2))


# --- what does not fit ----------------------------------------------------------------------------


class Plain(nn.Module):
    """A model without biases and normalisations."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(4, 4, bias=False), nn.Linear(4, 6, bias=False)
        self.norm = nn.LayerNorm(4, elementwise_affine=False)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lora", {"rank": 5}, "lora-rank = 5 is more than 'query' has, which is 4 x 4; .* 1 to 4"),
        ("lora-xs", {"rank": 0}, "train.lora-rank = 16 is more than 'query' has"),
        ("unilora", {"rank": 9}, "train.lora-rank = 9 is more than"),
        (
            "unilora",
            {"size": 99},
            "size = 99 is more than the 36 entries .* allowed: 1 to 36, or 0",
        ),
        ("fourierft", {"size": 17}, "size = 17 is more than the 16 entries of 'query'; .* 1 to 16"),
        ("vera", {"targets": "kwery"}, "lora-targets names 'kwery', .* did you mean 'query'"),
        ("ia3", {"targets": "auto"}, None),
        ("layernorms", {}, "'layernorms' trains layer norm.*, and Plain has none .* set 'bitfit'"),
        ("bitfit", {}, "'bitfit' trains biases, and Plain has none; set 'layernorms'"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_with_what_does(
    name: str, settings: dict[str, Any], message: str | None
) -> None:
    rank = {"rank": 2} if "rank" in ADAPTERS[name].reads else {}
    if message is None:
        made = ADAPTERS[name].put_into(Plain(), Wanted(), ())
        assert [key.split(".")[2] for key in trained(made)] == ["value"]
        return
    with pytest.raises(ConfigError, match=message):
        ADAPTERS[name].put_into(Plain(), Wanted(**(rank | settings)), ())


def test_auto_finds_nothing_in_a_model_without_attention(name: str) -> None:
    if "targets" not in ADAPTERS[name].reads:
        return
    with pytest.raises(ConfigError, match=r"finds nothing .* it has '0', '1'"):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        ADAPTERS[name].put_into(model, Wanted(rank=1, size=1), ())


def test_without_peft_each_adapter_of_peft_says_how_to_install_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    if name == "bitfit":
        assert trained(adapted(name))
        return
    with pytest.raises(ConfigError, match=r"train.adapter = '.*needs peft.*pip install"):
        adapted(name)


def test_an_older_peft_without_an_adapter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import peft

    monkeypatch.delattr(peft, "UniLoraConfig")
    with pytest.raises(ConfigError, match=r"'unilora' needs a newer peft than .* no UniLoraConfig"):
        adapted("unilora")


def test_norms_of_models_own_classes_are_found_and_fresh_ones_are_not() -> None:
    class TinyRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

    model = nn.Sequential(nn.LayerNorm(4), TinyRMSNorm(), nn.BatchNorm1d(4), nn.LayerNorm(4))
    assert norm_layers(model, ["3"]) == ["0", "1"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"train.adapter": "lroa"},
            "'lroa' is not allowed; allowed: 'auto', 'none', 'lora', .*mean",
        ),
        ({"train.adapter": "none", "train.lora-rank": 8}, "'none' and train.lora-rank = 8 contrad"),
        (
            {"train.adapter": "ia3", "train.lora-rank": 8},
            "which has no rank; leave it out .*'lora'",
        ),
        ({"train.adapter-size": -1}, "adapter-size = -1 .* from 0"),
        ({"train.adapter": "vera", "compress.lora": "product"}, "is for train.adapter = 'lora'; "),
        ({"train.adapter": "rolora", "compress.lora": "product"}, "set compress.lora = 'factors'"),
        ({"train.adapter": "none", "compress.lora": "product"}, "is for adapters"),
        (
            {"train.adapter": "vera", "compress.q": "layer-q-e"},
            "no weights of such layers; set 'q-e'",
        ),
        ({"train.adapter": "rolora", "compress.values": "sign"}, "'sign' writes no zero as zero"),
        (
            {"train.adapter": "rolora", "compress.downlink-values": "sign"},
            "downlink-values = 'sign'",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(values)


def test_a_rank_alone_means_lora_and_nothing_means_none() -> None:
    chosen = [
        make_config(values).train.chosen
        for values in (
            *({}, {"train.adapter": "none"}, {"train.lora-rank": 4}),
            *({"train.adapter": "lora", "train.lora-rank": 4}, {"train.adapter": "vera"}),
        )
    ]
    assert [row and row.name for row in chosen] == [None, None, "lora", "lora", "vera"]
    assert make_config({"train.adapter": "unilora"}).train.rank == 4
    assert make_config({"train.adapter": "vera"}).train.rank == 0


def test_lora_by_name_has_the_bits_of_lora_by_rank() -> None:
    base = {"train.lora-rank": 2, "train.lora-targets": "all-linear"}
    one, two = (Session(make_config(base | more)) for more in ({}, {"train.adapter": "lora"}))
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(t, two.tensors[key]) for key, t in one.tensors.items())


class Scale(Adapter):
    """One's own: a row that trains the last layer."""

    name = "own-last"
    paper = "none"

    def put_into(self, model: Any, wanted: Wanted, fresh: Any) -> Any:
        *_, last = model.parameters()
        model.requires_grad_(False)
        last.requires_grad_(True)
        return model


def test_somebodys_own_adapter_is_chosen_by_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_adapters", sys.modules[__name__])
    session = Session(make_config({"train.adapter": "my_adapters:Scale"}))
    assert len(session.trained) == 1 and session.adapter is not None
    with pytest.raises(ConfigError, match=r"no object of a class derived from .*Adapter"):
        make_config({"train.adapter": "my_adapters:Plain"})


def test_the_own_adapter_of_the_documentation_runs() -> None:
    page = Path(__file__).parent.parent / "docs" / "lora.md"
    space: dict[str, Any] = {}
    exec(page.read_text().split("```python")[1].split("```")[0], space)
    row = space["TinyOft"]()
    model = row.put_into(bert(), Wanted(), FRESH).eval()
    with torch.no_grad():
        for p in trained(model).values():
            p.add_(0.1)
    torch.testing.assert_close(row.merged(model)(**INPUTS).logits, model(**INPUTS).logits)
    assert len(trained(model)) == 4


def test_no_adapter_warns_of_what_it_is_for(name: str) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        adapted(name)
    assert not [str(w.message) for w in found if not issubclass(w.category, FutureWarning)]


def test_gpt2_as_a_language_model_takes_every_adapter(name: str) -> None:
    model = moved(name, gpt2(GPT2LMHeadModel), ())
    merged = ADAPTERS[name].merged(model)
    torch.testing.assert_close(
        merged(**INPUTS).logits, model(**INPUTS).logits, rtol=1e-4, atol=1e-5
    )
