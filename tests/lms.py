"""Tiny causal language models with tokenizers of their own, and sums for them to learn."""

from pathlib import Path

import torch
from texts import write
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
END, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def sums(size, first=0):
    """Worked solutions as in GSM8K, one for each number."""
    return [
        {
            "question": f"Ann has {n} apples and buys {n % 7 + 1} more. How many has she now?",
            "answer": f"She has {n} + {n % 7 + 1} = <<{n}+{n % 7 + 1}={n + n % 7 + 1}>>"
            f"{n + n % 7 + 1} apples.\n#### {n + n % 7 + 1}",
            "user": f"u{n % 4}",
        }
        for n in range(first, first + size)
    ]


def tokenizer(special, opens=False):
    """Byte-level BPE trained on the sums; with ``opens`` it puts special[0] before each text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([" ".join(row.values()) for row in sums(60)], trainer)
    if opens:
        made.post_processor = processors.TemplateProcessing(
            single=f"{special[0]} $A", special_tokens=[(special[0], 0)]
        )
    return made


def save_llama(folder):
    """Untied embeddings, a start token, no padding token and no chat template; in bfloat16."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(["<s>", "</s>"], opens=True), bos_token="<s>", eos_token="</s>"
    )
    config = LlamaConfig(
        **SIZES, vocab_size=len(made), bos_token_id=0, eos_token_id=1, tie_word_embeddings=False
    )
    return _save(folder, LlamaForCausalLM, config, made)


def save_qwen2(folder):
    """Tied embeddings, more of them than tokens, no start token, a chat template."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer([END, IM_START, IM_END]),
        eos_token=END,
        pad_token=END,
        additional_special_tokens=[IM_START, IM_END],
        chat_template=CHATML,
    )
    config = Qwen2Config(
        **SIZES,
        vocab_size=len(made) + 5,
        bos_token_id=None,
        eos_token_id=0,
        tie_word_embeddings=True,
    )
    return _save(folder, Qwen2ForCausalLM, config, made)


def save_gpt2(folder):
    """Learned positions: packing and left padding must count them anew."""
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer([END]), eos_token=END)
    config = GPT2Config(
        vocab_size=len(made), n_positions=512, n_embd=32, n_layer=2, n_head=4, eos_token_id=0
    )
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    return _save(folder, GPT2LMHeadModel, config, made)


def _save(folder: Path, kind, config, made):
    config.initializer_range = 0.2  # at 0.02 every guess is as good as another
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def save_sums(folder, train=40, evaluation=8, suffix="jsonl"):
    write(folder / f"train.{suffix}", sums(train))
    return write(folder / f"test.{suffix}", sums(evaluation, first=1000))
