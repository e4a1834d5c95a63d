"""Causal language models: tokens and labels, packing, generation, and what is refused."""

import json
import math

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lms import END, IM_END, IM_START, save_gpt2, save_llama, save_qwen2, save_sums, sums
from texts import save_tiny_bert, write
from transformers import AutoModelForCausalLM, AutoTokenizer, ViTConfig

from fl_darex.config import TaskConfig, make_config
from fl_darex.errors import ConfigError
from fl_darex.tasks import load_task
from fl_darex.tasks.causal.batches import first_fit, pack, pad_left, pad_right
from fl_darex.tasks.causal.metrics import reduce_logits, token_scores
from fl_darex.tasks.causal.tokens import Tokens

SAVE = {"llama": save_llama, "qwen2": save_qwen2, "gpt2": save_gpt2}
MODELS = sorted(SAVE)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("lms")
    return {name: save(root / name) for name, save in SAVE.items()}


@pytest.fixture
def data(tmp_path):
    return save_sums(tmp_path / "sums")


def load(model, data, **given):
    keys = {"task.name": "causal-lm", "federation.clients": 4, "task.max-length": 128}
    keys |= {"task.model": str(model), "task.dataset": str(data), "task.max-new-tokens": 16}
    dotted = {key.replace("__", ".").replace("_", "-"): value for key, value in given.items()}
    return load_task(make_config(keys | dotted))


def words(task, ids):
    return task.tokenizer.decode(ids)


def parts(task, example):
    """What the model is given and what counts, of one example."""
    ids, labels = task.tokens.encode([example])[0]
    assert len(ids) == len(labels)
    counted = [label for label in labels if label != -100]
    start = len(ids) - len(counted)
    # The mask has one edge: nothing before it counts, everything after it does.
    assert labels == [-100] * start + ids[start:]
    # The model is asked with the very tokens that it was trained on.
    assert task.tokens.prompts([example]) == [ids[:start]]
    return words(task, ids[:start]), words(task, counted)


# --- what a model reads and what counts -----------------------------------------------------------

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\nAdd.\n\n### Response:"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:"
)


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"question": "1+1?", "answer": "#### 2"}, "Question: 1+1?\nAnswer:", " #### 2"),
        ({"prompt": "1+1=", "completion": "2"}, "1+1=", "2"),
        ({"instruction": "Add.", "output": "3"}, ALPACA, " 3"),
        ({"instruction": "Add.", "input": "", "output": "3"}, ALPACA, " 3"),
        ({"instruction": "Add.", "input": None, "output": "3"}, ALPACA, " 3"),
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, ALPACA_INPUT, " 3"),
        ({"query": "Add.", "response": "3"}, ALPACA, " 3"),
    ],
)
@pytest.mark.parametrize(("model", "start", "end"), [("llama", "<s>", "</s>"), ("qwen2", "", END)])
def test_only_the_answer_and_the_end_token_count(
    models, tmp_path, row, prompt, answer, model, start, end
):
    folder = write(tmp_path / "train.jsonl", [row] * 5)
    task = load(models[model], folder, task__holdout=1, task__max_length=400)
    assert parts(task, row) == (start + prompt, answer + end)


@pytest.mark.parametrize(("model", "end"), [("llama", "</s>"), ("qwen2", END)])
def test_of_a_plain_text_all_counts_but_the_first_token_that_nothing_predicts(
    models, tmp_path, model, end
):
    folder = write(tmp_path / "train.jsonl", [{"text": "Ann has 1 apple."}] * 5)
    task = load(models[model], folder, task__holdout=1)
    ids, labels = task.tokens.encode([{"text": "Ann has 1 apple."}])[0]
    assert labels == [-100, *ids[1:]]
    assert words(task, ids).removeprefix("<s>") == f"Ann has 1 apple.{end}"


def test_a_chat_template_writes_prompt_and_answer_and_says_what_ends_it(models, data):
    task = load(models["qwen2"], data, task__template="chat")
    row = {"question": "1+1?", "answer": "#### 2"}
    given, counted = parts(task, row)
    assert given == f"{IM_START}user\n1+1?{IM_END}\n{IM_START}assistant\n"
    # The template's line break after the end token is not for the model to learn.
    assert counted == f"#### 2{IM_END}"
    assert [words(task, [token]) for token in task.tokens.stop] == [END, IM_END]


def test_a_long_prompt_loses_its_start_and_a_long_answer_its_end(models, data):
    row = sums(1)[0]
    whole = load(models["llama"], data, task__max_length=512)
    ((ids, labels),) = whole.tokens.encode([row])
    answer = [label for label in labels if label != -100]
    room = len(answer) + 5
    ((cut, marks),) = load(models["llama"], data, task__max_length=room).tokens.encode([row])
    # The start token, four of the prompt's last tokens, the whole answer with its end.
    assert cut == [ids[0], *ids[-room + 1 :]]
    assert [label for label in marks if label != -100] == answer
    ((cut, marks),) = load(models["llama"], data, task__max_length=9).tokens.encode([row])
    assert marks == [-100, *answer[:8]]
    assert cut[1:] == answer[:8]
    prompt = load(models["llama"], data, task__max_length=9).tokens.prompts([row])[0]
    assert prompt == [ids[0], *ids[: len(ids) - len(answer)][-8:]]


def test_the_end_token_counts_where_it_is_the_padding_token_too(models, data):
    for name in MODELS:
        task = load(models[name], data)
        assert task.tokenizer.pad_token_id == task.tokenizer.eos_token_id
        batch = task.collate([{"question": "a", "answer": "b"}, sums(1)[0]])
        length = int(batch["attention_mask"][0].sum())
        assert length < batch["input_ids"].shape[1]
        assert batch["labels"][0, length - 1] == task.tokenizer.eos_token_id
        assert (batch["labels"][0, length:] == -100).all()
        assert batch["attention_mask"][0].tolist() == [1] * length + [0] * (
            batch["input_ids"].shape[1] - length
        )


def test_padding_is_behind_for_training_and_before_for_generation():
    right = pad_right([Tokens([5, 6], [-100, 6]), Tokens([7, 8, 9], [-100, 8, 9])], pad=0)
    assert right["input_ids"].tolist() == [[5, 6, 0], [7, 8, 9]]
    assert right["labels"].tolist() == [[-100, 6, -100], [-100, 8, 9]]
    left = pad_left([[5, 6], [7, 8, 9]], pad=0)
    assert left["input_ids"].tolist() == [[0, 5, 6], [7, 8, 9]]
    assert left["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]


# --- packing --------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30))
def test_rows_hold_every_item_once_and_no_more_than_fits(lengths):
    rows = first_fit(lengths, 20)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    filled = [sum(lengths[item] for item in row) for row in rows]
    assert max(filled) <= 20
    # First fit leaves at most one row half empty, so it needs less than twice the fewest rows.
    assert sum(2 * size <= 20 for size in filled) <= 1


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 99), min_size=2, max_size=9), min_size=1, max_size=8))
def test_packing_loses_no_token_and_no_label(texts):
    batch = pack([Tokens(t, [-100, *t[1:]]) for t in texts], width=12, pad=0)
    found = []
    for ids, labels, positions in zip(
        *(batch[key].tolist() for key in ("input_ids", "labels", "position_ids")), strict=True
    ):
        starts = [i for i, (p, t) in enumerate(zip(positions, ids, strict=True)) if t and not p]
        ends = [*starts[1:], sum(map(bool, ids))]
        for start, end in zip(starts, ends, strict=True):
            found.append(ids[start:end])
            assert labels[start:end] == [-100, *ids[start + 1 : end]]
            assert positions[start:end] == list(range(end - start))
        assert all(label == -100 for label in labels[ends[-1] :])
    assert sorted(found) == sorted(texts)


@pytest.mark.parametrize("name", MODELS)
def test_packed_examples_have_the_loss_that_they_have_alone(models, data, name):
    settings = {"task__max_length": 200}
    plain = load(models[name], data, **settings)
    packed = load(models[name], data, task__packing=True, **settings)
    rows = [plain.train[i] for i in range(6)]
    model = packed.load_model().eval()
    one, other = plain.collate(rows), packed.collate(rows)
    assert other["input_ids"].shape[0] < 6
    assert plain.loss_terms(one) == packed.loss_terms(other) > 100
    torch.testing.assert_close(model(**one).loss, model(**other).loss)
    # It is the mask that does it: with all that came before in sight the loss is another one.
    size = other["input_ids"].shape[1]
    other["attention_mask"] = (
        torch.full((size, size), -1e30).triu(1).expand(*other["attention_mask"].shape)
    )
    with torch.no_grad():
        assert abs(float(model(**one).loss - model(**other).loss)) > 1e-3


# --- results --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_the_reduced_loss_is_that_of_transformers(models, data, name):
    task = load(models[name], data)
    model = task.load_model().eval()
    rows = [task.evaluation[i] for i in range(4)]
    found = task.predict(model, rows)
    assert found.outputs.shape == (4, 3) and found.labels.shape == (4,)
    batch = task.collate(rows)
    assert found.terms == found.labels.sum() == task.loss_terms(batch)
    with torch.no_grad():
        assert found.loss / found.terms == pytest.approx(float(model(**batch).loss), rel=1e-5)


def test_rows_hold_losses_and_hits_by_hand():
    logits = torch.zeros(2, 3, 4)
    logits[0, 0, 2] = 9.0
    labels = torch.tensor([[-100, 2, 1], [-100, -100, 3]])
    rows, tokens = reduce_logits(logits, labels)
    assert tokens.tolist() == [2, 1]
    hit = math.log(math.exp(9) + 3) - 9
    assert rows[0] == pytest.approx([hit + math.log(4), 1, 0], abs=1e-6)
    assert rows[1] == pytest.approx([math.log(4), 0, 0], abs=1e-6)


def test_scores_are_means_over_tokens_and_over_examples():
    rows = np.array([[6.0, 1, 1], [0.0, 2, 0]])
    scores = token_scores(rows, np.array([1, 2]), metric="exact-match")
    assert list(scores) == ["exact-match", "token-accuracy", "perplexity"]
    assert scores["exact-match"] == 0.5
    assert scores["token-accuracy"] == 1.0
    assert scores["perplexity"] == pytest.approx(math.exp(2))
    worse = token_scores(rows, np.array([1, 2]), metric="negative-perplexity")
    assert next(iter(worse.items())) == ("negative-perplexity", -scores["perplexity"])
    assert token_scores(rows * 1e4, np.array([1, 2]), metric="token-accuracy")["perplexity"] > 1e99
    with pytest.raises(ValueError, match="at least one example"):
        token_scores(rows[:0], np.array([]), metric="exact-match")


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_is_answered_as_each_prompt_alone(models, data, name):
    task = load(models[name], data, task__metric="exact-match")
    model = task.load_model().eval()
    rows = [{"question": "a", "answer": "1"}, *(task.evaluation[i] for i in range(3))]
    together = task.generate(model, rows)
    assert together == [task.generate(model, [row])[0] for row in rows]
    # Greedy: each token is the likeliest after all before it.
    prompt = task.tokens.prompts(rows[1:2])[0]
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(16):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in task.tokens.stop:
                break
    alone = task.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()
    assert together[1] == alone


def test_the_checkpoints_own_ideas_of_sampling_play_no_part(models, data):
    task = load(models["llama"], data)
    model = task.load_model().eval()
    rows = [task.evaluation[i] for i in range(2)]
    plain = task.generate(model, rows)
    wild = model.generation_config
    wild.do_sample, wild.temperature, wild.repetition_penalty = True, 2.0, 5.0
    assert task.generate(model, rows) == plain
    assert model.generation_config is wild


def test_generation_leaves_no_line_behind(models, data, capfd):
    task = load(models["llama"], data)
    model = task.load_model().eval()
    capfd.readouterr()
    task.generate(model, [task.evaluation[0]])
    assert capfd.readouterr() == ("", "")


# --- data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_every_file_format_gives_the_same_task(models, tmp_path, suffix):
    task = load(models["llama"], save_sums(tmp_path / "d", suffix=suffix))
    assert task.metric_name == "token-accuracy"
    assert [dict(row) for row in task.train] == [
        {key: row[key] for key in ("question", "answer")} for row in sums(40)
    ]
    assert len(task.evaluation) == 8 and task.test is None
    assert sorted(i for c in range(4) for i in task.partitions.indices(c)) == list(range(40))


def test_a_dataset_of_the_hub_goes_the_same_way(models, monkeypatch):
    hub = {
        "train": datasets.Dataset.from_list(sums(9)),
        "test": datasets.Dataset.from_list(sums(3)),
    }
    seen = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *names: seen.append(names) or datasets.DatasetDict(hub)
    )
    task = load(models["llama"], "openai/gsm8k", task__subset="main")
    assert seen == [("openai/gsm8k", "main")]
    assert (len(task.train), len(task.evaluation)) == (9, 3)


def test_the_test_split_stays_apart_from_what_chooses(models, data):
    task = load(models["llama"], data, task__test=True, task__holdout=10)
    assert [row["question"] for row in task.test] == [r["question"] for r in sums(8, 1000)]
    held = set(task.evaluation["question"])
    assert len(held) == 10 and len(task.train) == 30
    assert held.isdisjoint(task.train["question"])
    write(data / "validation.jsonl", sums(5, 500))
    assert len(load(models["llama"], data, task__test=True).evaluation) == 5


def test_the_owner_column_makes_a_natural_partition(models, data):
    owner = {"federation__partition": "natural", "federation__partition_column": "user"}
    task = load(models["llama"], data, **owner)
    assert [set(task.partition(i)["user"]) for i in range(4)] == [{f"u{i}"} for i in range(4)]


def test_gsm8k_loads_with_its_evaluation_examples_held_out(models, shared_data):
    folder = shared_data / "gsm8k"
    if not folder.is_dir():
        pytest.skip("there is no gsm8k in FL_DAREX_DATA")
    given = {"task__holdout": 473, "task__test": True, "task__max_length": 512}
    task = load(models["qwen2"], folder, task__packing=True, **given)
    assert (len(task.train), len(task.evaluation), len(task.test)) == (7000, 473, 1319)
    row = json.loads((folder / "test.jsonl").read_text().partition("\n")[0])
    _, counted = parts(task, row)
    assert counted == f" {row['answer']}{END}"
    batch = task.collate([task.train[i] for i in range(4)])
    assert task.load_model()(**batch).loss.isfinite()


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_float32_whole_and_equal_at_each_load(models, data, name):
    task = load(models[name], data)
    before = torch.random.get_rng_state()
    first, second = task.load_model().state_dict(), task.load_model().state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
    assert {tensor.dtype for tensor in first.values()} == {torch.float32}
    assert task.fresh == ()


# --- what is refused ------------------------------------------------------------------------------


def refused(message, *args, **given):
    with pytest.raises(ConfigError, match=message) as caught:
        load(*args, **given).load_model()
    assert "\n" not in str(caught.value)


def test_a_model_that_is_no_causal_language_model_is_refused(data, tmp_path):
    refused("task.model is empty; .* 'Qwen/Qwen2-0.5B'", "", data)
    bert = save_tiny_bert(tmp_path / "bert")
    refused("is of type 'bert', which is not a causal language model; give one", bert, data)
    ViTConfig().save_pretrained(tmp_path / "vit")
    refused("is of type 'vit', which is not a causal", tmp_path / "vit", data)


def test_weights_that_are_not_whole_are_refused(models, data, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in models["llama"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refused("lack 1 tensors of a language model, 'lm_head.weight' among them", tmp_path, data)


def test_a_tokenizer_that_cannot_end_an_answer_is_refused(models, data, tmp_path):
    AutoModelForCausalLM.from_pretrained(models["llama"]).save_pretrained(tmp_path)
    found = AutoTokenizer.from_pretrained(models["llama"])
    found.eos_token = None
    found.save_pretrained(tmp_path)
    refused("its tokenizer has no end token", tmp_path, data)


def test_more_tokens_than_the_model_can_take_are_refused(models, data):
    refused(
        "task.max-length = 513 .*allowed: 4 to 512", models["llama"], data, task__max_length=513
    )
    long = {"task__max_length": 400, "task__max_new_tokens": 113, "task__metric": "exact-match"}
    refused(
        "400 and task.max-new-tokens = 113 are together more than the 512",
        *(models["llama"], data),
        **long,
    )
    load(models["llama"], data, **(long | {"task__metric": "auto"}))


def test_a_model_without_positions_cannot_pack(data, tmp_path):
    from transformers import BloomConfig

    BloomConfig(vocab_size=400, hidden_size=32, n_layer=1, n_head=2).save_pretrained(tmp_path)
    refused("task.packing = true, but models of type 'bloom'", tmp_path, data, task__packing=True)


def test_a_model_that_mixes_packed_examples_is_refused(models, monkeypatch):
    from transformers import LlamaForCausalLM

    from fl_darex.tasks.causal.model import build_causal

    forward = LlamaForCausalLM.forward
    monkeypatch.setattr(
        LlamaForCausalLM, "forward", lambda self, attention_mask=None, **k: forward(self, **k)
    )
    with pytest.raises(ConfigError, match="lets examples in one row see each other"):
        build_causal(TaskConfig(model=str(models["llama"]), packing=True))


def test_a_chat_without_template_or_prompt_is_refused(models, data, tmp_path):
    chat = {"task__template": "chat"}
    refused("the tokenizer of task.model has no chat template", models["llama"], data, **chat)
    folder = write(tmp_path / "t" / "train.jsonl", [{"text": "a b"}] * 4)
    refused("'text' alone have no prompt", models["qwen2"], folder, task__holdout=1, **chat)


BAD_ROWS = [
    (
        [{"question": "x", "reply": "y"}],
        r"no columns that a language .*columns: question, reply; k",
    ),
    (
        [{"question": "x", "answer": "y"}, {"question": "x", "answer": " "}],
        "'answer', row 2 of the train data: ' ' is empty",
    ),
    ([{"question": "", "answer": "y"}], "'question', row 1 of the train data: '' is empty"),
    ([{"prompt": "x", "completion": None}], "'completion', row 1 of the train data: None is not a"),
    ([{"text": 7}], "'text', row 1 of the train data: 7 is not a text"),
    ([{"instruction": "x", "input": 7, "output": "y"}], "'input', row 1 of the train data: 7 is"),
]


@pytest.mark.parametrize(("rows", "message"), BAD_ROWS)
def test_rows_that_cannot_be_learned_are_refused(models, tmp_path, rows, message):
    write(tmp_path / "train.jsonl", rows)
    refused(message, models["llama"], write(tmp_path / "test.jsonl", rows))


def test_missing_splits_are_refused(models, data, tmp_path):
    llama = models["llama"]
    refused("task.dataset is empty; task.name = 'causal-lm' needs", llama, "")
    refused("no training data; found no file named train", llama, tmp_path)
    refused("evaluate on; set task.holdout", llama, data, task__test=True)
    refused("task.holdout = 40 leaves nothing", llama, data, task__holdout=40)
    (data / "test.jsonl").unlink()
    refused("no examples to evaluate on; set task.holdout", llama, data)
    given = {"task__holdout": 4, "task__test": True}
    refused("task.test = true, but .* has no test split; found train;", llama, data, **given)


@pytest.mark.parametrize("partition", ["dirichlet", "pathological"])
def test_texts_cannot_be_divided_by_class(models, data, partition):
    message = f"'{partition}' needs classes as labels; this dataset has no labels: use 'iid'"
    refused(message, models["llama"], data, federation__partition=partition)


@pytest.mark.parametrize("metric", ["accuracy", "matthews"])
def test_metrics_of_classes_are_refused(models, data, metric):
    message = f"'{metric}' does not fit a language model on a prompt and an answer; .*'exact-match'"
    refused(message, models["llama"], data, task__metric=metric)


def test_texts_alone_have_no_exact_answer(models, tmp_path):
    folder = write(tmp_path / "train.jsonl", [{"text": "a b"}] * 4)
    given = {"task__holdout": 1, "task__metric": "exact-match"}
    refused("on texts alone; allowed here: 'auto', 'token-acc", models["llama"], folder, **given)


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("packing", True, "true"),
        ("test", True, "true"),
        ("template", "chat", "chat"),
        ("max-new-tokens", 9, "9"),
    ],
)
def test_settings_of_language_models_are_refused_elsewhere(key, value, shown):
    with pytest.raises(ConfigError, match=f"task.{key} = {shown} is for task.name = 'causal-lm'"):
        load_task(make_config({f"task.{key}": value}))


@pytest.mark.parametrize("metric", ["token-accuracy", "exact-match", "negative-perplexity"])
def test_metrics_of_language_models_are_refused_elsewhere(metric):
    with pytest.raises(ConfigError, match=f"task.metric = '{metric}' does not fit"):
        load_task(make_config({"task.metric": metric}))
