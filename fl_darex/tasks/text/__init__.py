"""Task ``text-classification``: texts or pairs of texts, and an encoder."""
