"""How a prompt becomes tokens: the same way where it is measured and where it is asked."""

from typing import Any


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a prompt, behind BOS where the tokenizer has one.

    Whether a tokenizer adds BOS by itself differs between models; training rows begin with it.
    """
    # Not verbose: whether a prompt fits the window is checked where it matters.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    bos = tokenizer.bos_token_id
    return list(ids) if bos is None else [int(bos), *ids]


def count_tokens(tokenizer: Any, text: str) -> int:
    """Return the number of tokens of a prompt, BOS included."""
    return len(encode(tokenizer, text))
