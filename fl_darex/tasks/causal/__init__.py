"""Task ``causal-lm``: texts or prompts and answers, and a language model."""
