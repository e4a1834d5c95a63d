"""A checkpoint's own head and padding: classes by name, pad ids, lengths, vocabularies."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lms import END, tokenizer
from pictures import SIDE, VIT, picture, save_processor
from test_cli import fl_darex
from texts import BERT, WORDS, tiny_tokenizer, write
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2Model,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTForImageClassification,
)

from fl_darex.config import make_config
from fl_darex.errors import ConfigError
from fl_darex.tasks import load_task
from fl_darex.tasks.heads import match_classes
from fl_darex.tasks.labels import Encoded
from fl_darex.training.evaluation import evaluate
from fl_darex.training.session import Session

DRAWN = ("classifier.bias", "classifier.weight")
SAYS = ("positive", "negative", "neutral")


def perfect(folder: Path, names: tuple[str, ...], default: bool = False) -> Path:
    """A BERT that knows the class of a text from its one word, ``WORDS[i]`` is class i."""
    settings: dict[str, Any] = {"num_labels": len(names)}
    if not default:
        settings |= {"id2label": dict(enumerate(names)), "label2id": {}}
    config = BertConfig(**{**BERT, "num_hidden_layers": 0}, **settings)
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.zero_()
        model.bert.embeddings.LayerNorm.weight.fill_(1.0)
        # The pooled token is [CLS]; so the word has to be at its place: see `word_tokenizer`.
        for number in range(len(names)):
            model.bert.embeddings.word_embeddings.weight[5 + number, number] = 5.0
            model.classifier.weight[number, number] = 9.0
        model.bert.pooler.dense.weight.copy_(torch.eye(16))
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def word_tokenizer() -> Any:
    """Without [CLS] and [SEP]: the first token is the text's first word."""
    backend = tiny_tokenizer().backend_tokenizer
    backend.post_processor = None
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=inputs, pad_token="[PAD]", unk_token="[UNK]"
    )


def texts_of(labels: tuple[Any, ...], classes: tuple[int, ...], size: int = 24) -> list[Any]:
    """Rows in which the label ``labels[k]`` has the word of class ``classes[k]``."""
    kinds = list(zip(labels, classes, strict=True))
    return [{"sentence": WORDS[c], "label": label} for label, c in kinds * (size // len(kinds))]


def session(model: Path, rows: list[Any], **settings: Any) -> Session:
    data = model.parent / "data"
    write(data / "train.jsonl", rows)
    write(data / "validation.jsonl", rows[:12])
    keys: dict[str, Any] = {"task.name": "text-classification", "federation.clients": 2}
    keys |= {"task.model": str(model), "task.dataset": str(data), "task.max-length": 8}
    return Session(make_config(keys | settings))


def accuracy(made: Session) -> float:
    return evaluate(made, made.evaluation_examples(), threads=1)["accuracy"]


# --- heads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "labels", "classes"),
    [
        (SAYS, SAYS, (0, 1, 2)),
        (SAYS, ("POSITIVE", "Negative", "neutral "), (0, 1, 2)),
        (SAYS, ("neutral", "positive"), (2, 0)),
        (SAYS, (0, 1, 2), (0, 1, 2)),
        (("2", "0", "1"), (0, 1, 2), (1, 2, 0)),
        (("no", "yes"), (False, True), None),
    ],
)
def test_labels_go_to_the_output_of_their_name_so_a_perfect_model_starts_at_one(
    tmp_path: Path, names: tuple[str, ...], labels: tuple[Any, ...], classes: Any
) -> None:
    made = session(perfect(tmp_path / "bert", names), texts_of(labels, classes or (0, 1)))
    if classes is None:  # neither names nor numbers say which is which
        assert made.task.fresh == DRAWN
        return
    assert made.task.fresh == ()
    assert accuracy(made) == 1.0
    made.save_model(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["id2label"] == {str(i): name for i, name in enumerate(names)}


def test_default_names_are_the_whole_numbers_of_the_data(tmp_path: Path) -> None:
    model = perfect(tmp_path / "bert", SAYS, default=True)
    made = session(model, texts_of((0, 1, 2), (0, 1, 2)))
    assert accuracy(made) == 1.0
    assert made.model.config.id2label == {0: "0", 1: "1", 2: "2"}
    assert made.task.notes == ()


@pytest.mark.parametrize(
    ("names", "labels", "why"),
    [
        (SAYS, ("good", "bad", "so so"), "3 classes .positive, negative, neutral., which are not"),
        (SAYS[:2], SAYS, "2 classes .positive, negative., which are not the 3 of the data"),
        (SAYS, (1, 2, 3), "which are not the 3 of the data .1, 2, 3."),
        (SAYS, (0, 1), "which are not the 2 of the data .0, 1."),
        (("A", "a", "b"), ("a", "B", "c"), "which are not the 3"),
    ],
)
def test_a_head_for_other_classes_is_drawn_anew_and_the_log_says_so(
    tmp_path: Path, names: tuple[str, ...], labels: tuple[Any, ...], why: str
) -> None:
    model = perfect(tmp_path / "bert", names)
    made = session(model, texts_of(labels, tuple(range(len(labels)))))
    assert made.task.fresh == DRAWN
    (note,) = made.task.notes
    assert float(made.model.classifier.weight.detach().abs().max()) < 1.0  # the old one has 9
    assert re.search(why, note) and note.endswith("a fresh head is drawn")
    assert sorted(made.model.config.id2label.values()) == sorted(map(str, labels))
    again = made.task.load_model().state_dict()
    assert all(torch.equal(again[name], made.tensors[name]) for name in DRAWN)


def test_a_head_with_default_names_says_nothing_of_words(tmp_path: Path) -> None:
    made = session(perfect(tmp_path / "bert", SAYS, default=True), texts_of(SAYS, (0, 1, 2)))
    assert made.task.fresh == DRAWN


def test_amounts_keep_a_head_of_one_output_and_no_other(tmp_path: Path) -> None:
    rows = texts_of((0.5, 1.5), (0, 1))
    assert session(perfect(tmp_path / "one" / "bert", ("LABEL_0",)), rows).task.fresh == ()
    made = session(perfect(tmp_path / "three" / "bert", SAYS), rows)
    assert made.task.fresh == DRAWN
    assert "has a head for 3 classes, the data have amounts" in made.task.notes[0]


def test_what_is_taken_from_numbers_or_from_more_classes_is_said(tmp_path: Path) -> None:
    model = perfect(tmp_path / "bert", SAYS)
    (note,) = session(model, texts_of((0, 1, 2), (0, 1, 2))).task.notes
    assert "0 = positive, 1 = negative, 2 = neutral" in note
    (note,) = session(model, texts_of(("neutral", "positive"), (2, 0))).task.notes
    assert "keeps its 3 classes, of which the data have 2 (neutral, positive)" in note


def test_a_name_that_means_two_outputs_means_none() -> None:
    labels = Encoded([], ("a", "b"))
    assert match_classes(labels, ("b", "A", "a")) == (2, 0)
    assert match_classes(labels, ("B", "A", "A ")) is None
    assert match_classes(labels, ("B", "A", "c")) == (1, 0)


def test_classes_that_a_source_numbers_go_with_default_names_alone() -> None:
    labels = Encoded([], ("no", "yes"), numbered=True)
    assert match_classes(labels, ("LABEL_0", "LABEL_1")) == (0, 1)
    assert match_classes(labels, ("LABEL_0", "LABEL_1", "LABEL_2")) is None
    assert match_classes(labels, ("ham", "spam")) is None


def test_a_vision_model_keeps_its_classes_too(tmp_path: Path) -> None:
    names = ("owl", "dog", "cat", "elk")
    settings = {"id2label": dict(enumerate(names)), "label2id": {}}
    ViTForImageClassification(ViTConfig(**VIT, **settings)).save_pretrained(tmp_path / "vit")
    save_processor(tmp_path / "vit")
    for split in ("train", "validation"):
        for number, name in enumerate(("cat", "dog", "owl") * 4):
            target = tmp_path / "data" / split / name / f"{number}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            picture(number, size=(SIDE, SIDE)).save(target)
    keys = {"task.model": str(tmp_path / "vit"), "task.dataset": str(tmp_path / "data")}
    keys["task.name"] = "image-classification"
    task = load_task(make_config(keys))
    assert task.fresh == ()
    assert sorted(set(task.train["label"])) == [0, 1, 2]
    folders = [Path(image["path"]).parent.name for image in task.train["image"]]
    assert [names[label] for label in task.train["label"]] == folders


# --- padding --------------------------------------------------------------------------------------


def causal_tokenizer(**tokens: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["<end>", "<unk>", "<pad>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **tokens)


def save_gpt2(folder: Path, words: Any, kind: Any = GPT2Model, **settings: Any) -> Path:
    config = GPT2Config(
        **{"vocab_size": 20, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2} | settings
    )
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    config.initializer_range = 0.5
    kind(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def save_qwen2(folder: Path, words: Any, **settings: Any) -> Path:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen2Config(**sizes, **heads, max_position_embeddings=32, **settings)
    config.initializer_range = 0.5
    Qwen2ForSequenceClassification(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


ROWS = [{"sentence": " ".join(WORDS[: 1 + i % 5]), "label": i % 2} for i in range(24)]


@pytest.mark.parametrize("kind", ["gpt2", "gpt2-other-pad", "gpt2-left", "qwen2"])
def test_a_language_model_classifies_texts_and_its_loss_is_that_of_each_text(
    tmp_path: Path, kind: str
) -> None:
    plain = causal_tokenizer(eos_token="<end>")
    if kind == "gpt2":
        model = save_gpt2(tmp_path / "m", plain)
    elif kind == "gpt2-other-pad":  # the configuration's padding is a word of the texts
        padded = causal_tokenizer(eos_token="<end>", pad_token="<pad>")
        head = GPT2ForSequenceClassification
        model = save_gpt2(tmp_path / "m", padded, kind=head, pad_token_id=4)
    elif kind == "gpt2-left":
        left = causal_tokenizer(eos_token="<end>", pad_token="<pad>")
        left.padding_side = "left"
        model = save_gpt2(tmp_path / "m", left)
    else:
        words = PreTrainedTokenizerFast(tokenizer_object=tokenizer([END]), eos_token=END)
        model = save_qwen2(tmp_path / "m", words, vocab_size=len(words))
    made = session(model, ROWS)
    made.model.train(False)
    rows = made.evaluation_examples()
    with torch.no_grad():
        alone = torch.cat([made.model(**made.task.collate([row])).logits for row in rows])
        together = made.model(**made.task.collate(rows)).logits
    torch.testing.assert_close(alone, together)
    pads = {"gpt2": 0, "qwen2": 0, "gpt2-other-pad": 2, "gpt2-left": 2}
    assert made.model.config.pad_token_id == pads[kind]
    said = "becomes that too"
    assert any(said in note for note in made.task.notes) == (kind == "gpt2")
    made.save_model(tmp_path / "saved")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert again.config.pad_token_id == pads[kind]
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").pad_token_id == pads[kind]


# --- lengths and vocabularies ---------------------------------------------------------------------


def save_roberta(folder: Path) -> Path:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(
        **sizes, vocab_size=16, intermediate_size=16, max_position_embeddings=34, pad_token_id=1
    )
    RobertaModel(config).save_pretrained(folder)
    words = tiny_tokenizer()
    words.pad_token = "[UNK]"  # id 1, as RoBERTa has it
    words.save_pretrained(folder)
    return folder


def test_an_empty_text_is_padding_alone_wherever_it_stands(tmp_path: Path) -> None:
    made = session(save_gpt2(tmp_path / "m", causal_tokenizer(eos_token="<end>")), ROWS)
    made.model.train(False)
    empty, other = {"sentence": "", "label": 0}, {"sentence": "good film", "label": 1}
    with torch.no_grad():
        alone = made.model(**made.task.collate([empty])).logits
        together = made.model(**made.task.collate([empty, other])).logits
    torch.testing.assert_close(alone[0], together[0])


def test_positions_that_no_text_can_have_are_found_by_one_pass(tmp_path: Path) -> None:
    model = save_roberta(tmp_path / "roberta")
    with pytest.raises(ConfigError, match=r"task.max-length = 34 is more .*allowed: 4 to 32"):
        session(model, ROWS, **{"task.max-length": 34})
    made = session(model, ROWS, **{"task.max-length": 32})
    long = made.task.collate([{"sentence": "good " * 50, "label": 0}])
    assert long["input_ids"].shape == (1, 32)
    assert made.model(**long).loss.isfinite()


def test_a_pair_of_texts_is_tried_at_its_whole_length(tmp_path: Path) -> None:
    rows = [{"premise": "good", "hypothesis": "bad film", "label": i % 2} for i in range(24)]
    with pytest.raises(ConfigError, match=r"task.max-length = 33 .*allowed: 4 to 32"):
        session(save_roberta(tmp_path / "roberta"), rows, **{"task.max-length": 33})


def test_a_tokenizer_with_more_tokens_than_rows_is_refused_with_the_way_out(tmp_path: Path) -> None:
    longer = causal_tokenizer(eos_token="<end>")
    longer.add_special_tokens({"pad_token": "<new>"})
    model = save_gpt2(tmp_path / "m", longer, vocab_size=len(longer) - 1)
    with pytest.raises(ConfigError, match=r"15 tokens, its model 14; .*resize_token_embeddings"):
        session(model, ROWS)


@pytest.mark.slow
def test_the_log_of_a_run_says_what_became_of_the_head(tmp_path: Path) -> None:
    perfect(tmp_path / "bert", SAYS)
    write(tmp_path / "data" / "train.jsonl", texts_of(("good", "bad"), (0, 1)))
    write(tmp_path / "data" / "validation.jsonl", texts_of(("good", "bad"), (0, 1), 8))
    (tmp_path / "run.toml").write_text(
        '[task]\nname = "text-classification"\nmodel = "bert"\ndataset = "data"\nmax-length = 8\n'
        "[federation]\nclients = 2\nrounds = 1\n[train]\nlocal-steps = 1\nbatch-size = 4\n"
    )
    done = fl_darex("run", "run.toml", "--engine", "local", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("a fresh head is drawn") == 1
