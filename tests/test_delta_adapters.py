"""LoRA adapters as changes: of another adapter's factors, or of the weights of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoints import same
from typer.testing import CliRunner

from fl_darex import deltas
from fl_darex.cli import app
from fl_darex.deltas import Pruning, open_delta, open_pair
from fl_darex.deltas.applied import survivors_of
from fl_darex.errors import ConfigError

peft = pytest.importorskip("peft")
EXACT = Pruning(method="dare", p=0.0, values="fp32")


def trained(folder: Path, bare: bool = False, **options: Any) -> Any:
    """A model and its adapter on disk, and the two merged."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(vocab_size=20, intermediate_size=8, **sizes))
    (model.bert if bare else model).save_pretrained(folder / "base")
    asked = {"target_modules": ["query", "value"], "modules_to_save": ["classifier"]} | options
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=6, **asked))
    with torch.no_grad():
        for tensor in wrapped.parameters():
            if tensor.requires_grad:
                tensor += 0.1 * torch.randn_like(tensor)
    wrapped.save_pretrained(folder / "adapter")
    return wrapped.merge_and_unload().state_dict()


@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"rank_pattern": {"query": 3}}, {"bias": "lora_only"}],
    ids=lambda options: "".join(options) or "plain",
)
def test_an_adapter_becomes_a_change_of_the_models_weights(tmp_path, options):
    merged = trained(tmp_path, **options)
    base, tuned = open_pair(tmp_path / "base", tmp_path / "adapter", adapter=True)
    found = deltas.prune(base, tuned, tmp_path / "x.darex", EXACT)
    changed = {row.name for row in found.header.rows if row.role == "pruned"}
    expected = {"query.weight", "value.weight"} | (
        {"query.bias", "value.bias"} if "bias" in options else set()
    )
    head = {"classifier.weight", "classifier.bias"}
    assert {".".join(name.split(".")[-2:]) for name in changed} == expected | head
    deltas.apply(base, open_delta(tmp_path / "x.darex"), tmp_path / "out")
    out = load_file(tmp_path / "out" / "model.safetensors")
    assert set(out) == set(load_file(tmp_path / "base" / "model.safetensors"))
    for name, tensor in out.items():
        torch.testing.assert_close(tensor, merged[name], rtol=1e-5, atol=1e-7)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"config.json", "model.safetensors"}  # else it would be taken for an adapter


def test_an_adapter_of_a_model_with_a_head_fits_the_bare_one(tmp_path):
    merged = trained(tmp_path, bare=True)
    base, tuned = open_pair(tmp_path / "base", tmp_path / "adapter", adapter=True)
    found = deltas.prune(base, tuned, tmp_path / "x.darex", EXACT)
    assert "2 names begin with 'bert.' in the adapter alone" in found.remarks[0]
    deltas.apply(base, open_delta(tmp_path / "x.darex"), tmp_path / "out")
    out = load_file(tmp_path / "out" / "model.safetensors")
    name = "encoder.layer.0.attention.self.query.weight"
    torch.testing.assert_close(out[name], merged[f"bert.{name}"], rtol=1e-5, atol=1e-7)
    assert "classifier.weight" in out


def test_steps_that_the_models_type_does_not_see_are_pruned_all_the_same(tmp_path):
    trained(tmp_path)
    path = tmp_path / "base" / "model.safetensors"
    half = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(half, path, {"format": "pt"})
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({k: v * 1e-3 for k, v in load_file(weights).items() if "lora" in k}, weights)
    base, tuned = open_pair(tmp_path / "base", tmp_path / "adapter", adapter=True)
    how = Pruning(method="dare", p=0.5, q=1e-3, values="fp32")
    deltas.prune(base, tuned, tmp_path / "x.darex", how)
    delta = open_delta(tmp_path / "x.darex")
    (row, _) = (row for row in delta.header.rows if row.role == "pruned")
    before = half[row.name].float()
    factors = {k.split(".")[-2]: v for k, v in load_file(weights).items() if ".query." in k}
    product = 3 * factors["lora_B"] @ factors["lora_A"]
    rounded_away = (before + product).bfloat16() == half[row.name]
    assert rounded_away.float().mean() > 0.9
    positions, change = survivors_of(delta, row)
    kept = ((before + product) - before).reshape(-1)[positions]
    torch.testing.assert_close(torch.from_numpy(change) * 1e-3, kept)
    assert kept.abs().max() > 0 and row.dtype == "bfloat16"


def test_two_adapters_are_pruned_factor_by_factor(tmp_path):
    trained(tmp_path)
    before = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    later = tmp_path / "later"
    later.mkdir()
    after = {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in before.items()}
    save_file(after, later / "adapter_model.safetensors")
    (later / "adapter_config.json").write_bytes(
        (tmp_path / "adapter" / "adapter_config.json").read_bytes()
    )
    run = CliRunner(env={"NO_COLOR": "1"})
    prune = f"prune {tmp_path}/adapter {later} -o {tmp_path}/x.darex --p 0 --values fp32 --adapter"
    assert run.invoke(app, prune.split()).exit_code == 0
    apply = f"apply {tmp_path}/adapter {tmp_path}/x.darex -o {tmp_path}/out"
    assert run.invoke(app, apply.split()).exit_code == 0
    out = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert set(out) == set(after) and not same(out, before)
    for name, tensor in out.items():
        torch.testing.assert_close(tensor, after[name], rtol=1e-6, atol=1e-7)
    assert (tmp_path / "out" / "adapter_config.json").is_file()
    told = json.loads(
        run.invoke(app, ["inspect", f"{tmp_path}/x.darex", f"{tmp_path}/adapter", "--json"]).stdout
    )
    assert told["base_fits"] and len(told["tensors"]) == len(after)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"peft_type": "LOHA"}, "peft_type = 'LOHA', which --adapter does not know; merge it"),
        ({"use_dora": True}, "use_dora = True, which --adapter does not know"),
        ({"alpha_pattern": {"query": 4}}, "has alpha_pattern"),
        ({"lora_alpha": "many"}, "is no LoRA's configuration"),
    ],
)
def test_what_is_no_plain_lora_is_refused_with_what_to_do(tmp_path, change, match):
    trained(tmp_path)
    place = tmp_path / "adapter" / "adapter_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | change))
    with pytest.raises(ConfigError, match=match):
        open_pair(tmp_path / "base", tmp_path / "adapter", adapter=True)


def test_an_adapter_of_another_model_or_of_embeddings_is_refused(tmp_path):
    trained(tmp_path)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    held = load_file(weights)
    save_file({k.replace("query", "queries"): v for k, v in held.items()}, weights)
    with pytest.raises(ConfigError, match=r"not the model of this adapter: it has no '.*queries"):
        open_pair(tmp_path / "base", tmp_path / "adapter", adapter=True)
    save_file({**held, "base_model.model.x.lora_embedding_A": torch.ones(2)}, weights)
    with pytest.raises(
        ConfigError, match=r"no plain LoRA of linear layers, as 'x\.lora_embedding_A'"
    ):
        open_pair(tmp_path / "base", tmp_path / "adapter", adapter=True)
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(ConfigError, match=r"has no adapter_config\.json; peft writes one"):
        open_pair(tmp_path / "base", tmp_path / "adapter", adapter=True)
    with pytest.raises(ConfigError, match=r"has no adapter_model\.safetensors"):
        open_pair(tmp_path / "base", tmp_path / "base", adapter=True)
