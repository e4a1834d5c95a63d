"""A tiny encoder, a tokenizer and sentences for it, made on the spot."""

import csv
import json

import datasets
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = "good bad film very boring great the a plot not is".split()
BERT = {
    "vocab_size": 5 + len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def tiny_tokenizer(words=WORDS):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    tokens = {f"{name}_token": token for name, token in zip(names, special, strict=True)}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **tokens)


def save_tiny_bert(folder):
    """A base encoder without pooler and head, stored in bfloat16."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = BertModel(BertConfig(**BERT), add_pooling_layer=False)
    encoder.to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def sentences(size, labels=(0, 1)):
    return [
        {
            "sentence": " ".join(WORDS[(i * 3 + j) % len(WORDS)] for j in range(1 + i % 6)),
            "label": labels[i % len(labels)],
            "user": f"u{i % 4}",
        }
        for i in range(size)
    ]


def write(path, rows):
    path.parent.mkdir(exist_ok=True, parents=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path.parent
